# SPDX-License-Identifier: Apache-2.0
"""Files of a real VM."""

import base64
import hashlib
import os

import pytest
from mcp_client import ToolError

MIB = 1024 * 1024


def test_write_read_and_mode(shared_client, workspace):
    text = "first\nsecond ünïcode ✓\n"
    written = shared_client.call("file_write", workspace_id=workspace, path="/tmp/new/deep/a.txt", content=text,
                                 mode="0640")
    assert written["bytes_written"] == len(text.encode())
    assert shared_client.call("file_read", workspace_id=workspace, path="/tmp/new/deep/a.txt") == text
    stat = shared_client.call("exec", workspace_id=workspace, command="stat -c '%a %U' /tmp/new/deep/a.txt")
    assert stat["stdout"] == "640 root\n"


def test_every_byte_survives_in_base64(shared_client, workspace):
    data = bytes(range(256)) * 300
    shared_client.call("file_write", workspace_id=workspace, path="/tmp/blob", encoding="base64",
                       content=base64.b64encode(data).decode())
    back = shared_client.call("file_read", workspace_id=workspace, path="/tmp/blob", encoding="base64")
    assert base64.b64decode(back) == data
    with pytest.raises(ToolError) as caught:
        shared_client.call("file_read", workspace_id=workspace, path="/tmp/blob")
    assert "base64" in caught.value.text


def test_one_hundred_mebibytes(shared_client, workspace):
    piece = os.urandom(5 * MIB)
    digest = hashlib.sha256()
    for number in range(20):
        shared_client.call("file_write", workspace_id=workspace, path="/tmp/large", encoding="base64",
                           content=base64.b64encode(piece).decode(), append=number > 0)
        digest.update(piece)
    result = shared_client.call("exec", workspace_id=workspace, command="sha256sum /tmp/large; stat -c %s /tmp/large")
    assert result["stdout"].split()[0] == digest.hexdigest()
    assert result["stdout"].split()[-1] == str(100 * MIB)
    # Read back from the middle and the end, over the border of two pieces.
    limit = 300_000
    for offset in (0, 5 * MIB - 1000, 99 * MIB + 777):
        text = shared_client.call("file_read", workspace_id=workspace, path="/tmp/large", encoding="base64",
                                  offset=offset, limit=limit)
        at = offset % (5 * MIB)
        assert base64.b64decode(text) == (piece + piece)[at:at + limit]


def test_reading_parts(shared_client, workspace):
    shared_client.call("exec", workspace_id=workspace, command="seq 1 1000000 > /tmp/numbers")
    by_lines = shared_client.call("file_read", workspace_id=workspace, path="/tmp/numbers", start_line=500_000,
                                  line_count=3)
    assert by_lines.startswith("500000\n500001\n500002\n")
    by_bytes = shared_client.call("file_read", workspace_id=workspace, path="/tmp/numbers", offset=2, limit=4)
    assert by_bytes.startswith("2\n3\n")


def read_raw(client, ws, path, **options):
    """The text, the second item or None, and what _meta says."""
    result = client.call_raw("file_read", workspace_id=ws, path=path, **options)
    texts = [c["text"] for c in result["content"]] + [None]
    return texts[0], texts[1], result["_meta"]


@pytest.mark.parametrize("options", [{"line_count": 90_000}, {"start_line": 1}, {"start_line": 1, "limit": 5000}])
def test_reading_on_by_lines_shows_nothing_twice(shared_client, workspace, options):
    count = 2000 if "limit" in options else 100_000
    shared_client.call("exec", workspace_id=workspace, command=f"seq 1 {count} > /tmp/lines")
    text, note, meta = read_raw(shared_client, workspace, "/tmp/lines", **options)
    assert "start_line" in note and str(meta["next_start_line"]) in note
    while "next_start_line" in meta:
        assert text.endswith("\n")
        more, _, meta = read_raw(shared_client, workspace, "/tmp/lines",
                                 **{**options, "start_line": meta["next_start_line"]})
        text += more
    assert text == "".join(f"{i}\n" for i in range(1, count + 1))


def test_no_note_when_all_that_was_asked_for_is_there(shared_client, workspace):
    shared_client.call("exec", workspace_id=workspace, command="seq 1 1000 > /tmp/thousand")
    for options in ({"line_count": 7}, {"limit": 100}, {"offset": 5, "limit": 100}):
        _, note, meta = read_raw(shared_client, workspace, "/tmp/thousand", **options)
        assert note is None and meta["truncated"] is True


def test_a_read_of_one_byte_gets_on_through_characters(shared_client, workspace):
    content = "aé€😀z"
    shared_client.call("file_write", workspace_id=workspace, path="/tmp/chars", content=content)
    text, at = "", 0
    while at is not None:
        piece, _, meta = read_raw(shared_client, workspace, "/tmp/chars", offset=at, limit=1)
        text, before, at = text + piece, at, meta.get("next_offset")
        assert at is None or at > before
    assert text == content
    assert read_raw(shared_client, workspace, "/tmp/chars", offset=2, limit=1)[2]["next_offset"] > 2


def test_a_variable_that_no_program_can_be_given(shared_client, workspace):
    room = 128 * 1024 - len("BIG=") - 1
    result = shared_client.call("exec", workspace_id=workspace, command="echo ${#BIG}", env={"BIG": "v" * room})
    assert result["stdout"] == f"{room}\n"
    with pytest.raises(ToolError) as caught:
        shared_client.call("exec", workspace_id=workspace, command="true", env={"BIG": "v" * (room + 1)})
    assert caught.value.code == "invalid_argument" and "BIG" in caught.value.text and "file_write" in caught.value.text


def test_the_input_of_a_command_of_exec_is_closed(shared_client, workspace):
    yielded = shared_client.call("exec", workspace_id=workspace, command="sleep 60", yield_secs=1, timeout_secs=90)
    assert "It is killed 90 s after its start." in yielded["next"]
    with pytest.raises(ToolError) as caught:
        shared_client.call("exec_background", workspace_id=workspace, action="write", job_id=yielded["job_id"], data="x")
    assert caught.value.code == "conflict" and "exec started has no open input" in caught.value.text
    shared_client.call("exec_background", workspace_id=workspace, action="kill", job_id=yielded["job_id"])


def test_a_poll_from_past_the_end(shared_client, workspace):
    started = shared_client.call("exec_background", workspace_id=workspace, action="start", command="echo one; sleep 60")
    job = {"workspace_id": workspace, "job_id": started["job_id"]}
    first = shared_client.call("exec_background", action="poll", wait_secs=20, stdout_offset=0, **job)
    assert first["stdout"] == "one\n"
    news = shared_client.call("exec_background", action="poll", stdout_offset=4000, stderr_offset=0, **job)
    assert (news["stdout"], news["stdout_offset"], news["stderr_offset"]) == ("", 4, 0)
    assert news["warnings"] == ["stdout_offset 4000 is past the end (4 bytes); is it of another job or stream?"]
    shared_client.call("exec_background", action="kill", **job)


def test_an_edit_changes_the_first_place_only_unless_told(shared_client, workspace):
    def edit(**options):
        return shared_client.call("file_edit", workspace_id=workspace, path="/tmp/e.py", **options)

    shared_client.call("file_write", workspace_id=workspace, path="/tmp/e.py", content="a = 1\nb = a\nc = a\n",
                       mode="0755")
    first = edit(old_string="a", new_string="alpha")
    assert (first["replacements"], first["other_matches"]) == (1, 2)
    rest = edit(old_string="= a", new_string="= alpha", replace_all=True)
    # "= alpha" was not there yet: both remaining places change.
    assert rest["replacements"] == 2
    assert shared_client.call("file_read", workspace_id=workspace, path="/tmp/e.py") == \
        "alpha = 1\nb = alpha\nc = alpha\n"
    mode = shared_client.call("exec", workspace_id=workspace, command="stat -c %a /tmp/e.py")
    assert mode["stdout"] == "755\n"


def test_an_edit_that_finds_nothing_shows_the_nearest_lines(shared_client, workspace):
    content = "def alpha():\n    return compute_total(x)\n\ndef beta():\n    return 2\n"
    shared_client.call("file_write", workspace_id=workspace, path="/tmp/near.py", content=content)
    with pytest.raises(ToolError) as caught:
        shared_client.call("file_edit", workspace_id=workspace, path="/tmp/near.py",
                           old_string="    return compute_totals(x)", new_string="y")
    assert caught.value.code == "not_found" and "compute_total(x)" in caught.value.text
    assert shared_client.call("file_read", workspace_id=workspace, path="/tmp/near.py") == content


def test_listing(shared_client, workspace):
    shared_client.call("exec", workspace_id=workspace, command=(
        "mkdir -p /tmp/l/sub && cd /tmp/l && echo hi > file && chmod 600 file && ln -s file link && mkfifo pipe && "
        "touch sub/inner \"$(printf 'odd\\nname')\""))
    plain = shared_client.call("file_list", workspace_id=workspace, path="/tmp/l")
    kinds = {e["name"]: e["kind"] for e in plain["entries"]}
    assert kinds == {"file": "file", "link": "symlink", "pipe": "other", "sub": "directory", "odd\nname": "file"}
    entry = next(e for e in plain["entries"] if e["name"] == "file")
    assert entry["size"] == 3 and entry["permissions"] == "0600" and entry["modified"].endswith("Z")
    assert plain["truncated"] is False
    deep = shared_client.call("file_list", workspace_id=workspace, path="/tmp/l", recursive=True)
    assert "sub/inner" in {e["name"] for e in deep["entries"]}
    few = shared_client.call("file_list", workspace_id=workspace, path="/tmp/l", max_entries=2)
    assert len(few["entries"]) == 2 and few["truncated"] is True


@pytest.mark.parametrize("tool, options", [
    ("file_read", {}), ("file_list", {}), ("file_edit", {"old_string": "a", "new_string": "b"})])
def test_what_is_not_there_is_named(shared_client, workspace, tool, options):
    with pytest.raises(ToolError) as caught:
        shared_client.call(tool, workspace_id=workspace, path="/no/such/thing", **options)
    assert caught.value.code == "not_found" and "/no/such/thing" in caught.value.text
    assert "file_list of /no/such shows" in caught.value.text


@pytest.mark.parametrize("options, where", [({"offset": 10}, "offset 10"), ({"start_line": 3}, "line 3")])
def test_a_part_behind_the_end_is_not_taken_for_an_empty_file(shared_client, workspace, options, where):
    shared_client.call("file_write", workspace_id=workspace, path="/tmp/two", content="1\n2\n")
    result = shared_client.call_raw("file_read", workspace_id=workspace, path="/tmp/two", **options)
    assert [c["text"] for c in result["content"][:1]] == [""]
    assert where in result["content"][1]["text"] and "4 bytes" in result["content"][1]["text"]


def test_a_relative_path_is_refused(shared_client, workspace):
    with pytest.raises(ToolError) as caught:
        shared_client.call("file_write", workspace_id=workspace, path="relative", content="x")
    assert caught.value.code == "invalid_argument" and "relative" in caught.value.text


def test_a_folder_is_no_file(shared_client, workspace):
    for tool, options in (("file_read", {}), ("file_write", {"content": "x"})):
        with pytest.raises(ToolError) as caught:
            shared_client.call(tool, workspace_id=workspace, path="/etc", **options)
        assert "/etc" in caught.value.text
    assert shared_client.call("exec", workspace_id=workspace, command="test -d /etc")["exit_code"] == 0


def test_a_full_disk_is_told_and_leaves_the_old_file(shared_client, workspace):
    shared_client.call("exec", workspace_id=workspace, command=(
        "mkdir -p /tmp/small && mount -t tmpfs -o size=1m t /tmp/small && echo old > /tmp/small/keep"))
    with pytest.raises(ToolError) as caught:
        shared_client.call("file_write", workspace_id=workspace, path="/tmp/small/keep", content="x" * (2 * MIB))
    assert caught.value.code == "no_space"
    result = shared_client.call("exec", workspace_id=workspace, command="cat /tmp/small/keep; ls -A /tmp/small")
    assert result["stdout"] == "old\nkeep\n"
