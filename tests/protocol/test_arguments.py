# SPDX-License-Identifier: Apache-2.0
"""Every argument of every tool, wrong in each way that its schema allows, generated from the schemas."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = [tool for path in sorted((ROOT / "src" / "tools").glob("*.json"))
         for tool in json.loads(path.read_text(encoding="utf-8"))]

# Values that pass the check; the workspace does not exist, so nothing is ever done.
GOOD = {
    "workspace_id": "no-such-workspace", "path": "/tmp/x", "command": "true", "content": "", "old_string": "a",
    "new_string": "b", "name": "x", "base_image": "no-such-image", "action": "list", "vars": {},
    "workspace_ids": ["no-such-workspace"], "commands": ["true"], "direction": "upload", "host_path": "x",
    "guest_path": "/tmp/x",
}
WRONG_TYPES = {
    "string": [5, True, [], {}, 1.5], "integer": ["5", True, [], {}, 1.5, 1e300], "boolean": ["true", 0, 1, [], {}],
    "object": ["x", 5, True, []], "array": ["x", 5, True, {}], "number": ["1", True, []],
}


# These would do something without any workspace: an image that does not exist keeps them from it.
HARMLESS = {name: {"base_image": GOOD["base_image"]} for name in ("workspace_create", "agentiso/warm")}


def good(tool):
    required = {key: GOOD[key] for key in tool["inputSchema"].get("required", [])}
    return {**required, **HARMLESS.get(tool["name"], {})}


def cases():
    """(tool, arguments, name of the argument that is wrong, a text that the message must have)"""
    for tool in TOOLS:
        schema = tool["inputSchema"]
        for key in schema.get("required", []):
            for wrong in ({}, {key: None}):
                yield tool["name"], {**{k: v for k, v in good(tool).items() if k != key}, **wrong}, key, "missing"
        for key, s in schema["properties"].items():
            for value in WRONG_TYPES[s["type"]]:
                if value == "x" and s.get("items", {}).get("type") == "string":
                    continue  # counts as an array of one
                yield tool["name"], {**good(tool), key: value}, key, "must be"
            for value in out_of_range(s):
                yield tool["name"], {**good(tool), key: value}, key, "must be"


def out_of_range(schema):
    if "minimum" in schema:
        yield schema["minimum"] - 1
        yield -(10**30)
    if "maximum" in schema:
        yield schema["maximum"] + 1
        yield 10**30
    if "enum" in schema:
        yield schema["enum"][0] + "x"
        yield schema["enum"][0].upper()
        yield ""
    if schema.get("minLength"):
        yield ""
    if "maxLength" in schema:
        yield "/" + "\u20ac" * schema["maxLength"]
    if "pattern" in schema:
        yield from ("", "\n", "\u20ac" * 1000)
    if schema.get("minItems"):
        yield []
    if "maxItems" in schema:
        yield ["x"] * (schema["maxItems"] + 1)
    if schema["type"] == "array":
        yield from ([None], [[]], [{}])
    if "additionalProperties" in schema:
        yield from ({"A": 1}, {"A": None}, {"A": {}})
    if "maxProperties" in schema:
        yield {f"A{i}": "" for i in range(schema["maxProperties"] + 1)}


def expect_invalid(result, tool, key, text):
    assert result["isError"], result
    assert result["_meta"]["code"] == "invalid_argument"
    message = result["content"][0]["text"]
    assert f'"{key}' in message and text in message, message
    assert f"Arguments of {tool}: " in message and len(message.encode()) < 2000


@pytest.mark.parametrize("name", [tool["name"] for tool in TOOLS if tool["inputSchema"]["properties"]])
def test_each_wrong_argument_names_itself(client, name):
    mine = [c for c in cases() if c[0] == name]
    assert mine
    for tool, arguments, key, text in mine:
        expect_invalid(client.call(tool, arguments), tool, key, text)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t["name"])
def test_null_is_the_same_as_absent(client, tool):
    optional = {k: None for k in tool["inputSchema"]["properties"] if k not in good(tool)}
    with_null = client.call(tool["name"], {**good(tool), **optional})
    without = client.call(tool["name"], good(tool))
    assert with_null == without
    assert with_null.get("_meta", {}).get("code") != "invalid_argument"


@pytest.mark.parametrize("tool", [t for t in TOOLS if t["inputSchema"]["properties"]], ids=lambda t: t["name"])
def test_an_unknown_argument_is_named_with_the_nearest(client, tool):
    key = max(tool["inputSchema"]["properties"], key=len)
    result = client.call(tool["name"], {**good(tool), key + "s": 1, "wait_for_previous": True})
    text = result["content"][0]["text"]
    said = text if result.get("isError") else " ".join(result["structuredContent"]["warnings"])
    assert f'"{key}s"' in said and f'mean "{key}"' in said
    assert "wait_for_previous" not in text


@pytest.mark.parametrize("tool, key, meant", [
    ("exec", "timeout", "timeout_secs"), ("workspace_create", "memory", "memory_mb"), ("file_read", "lin", None),
    ("exec", "output_bytes", "max_output_bytes"), ("exec", "e", None),
])
def test_a_part_of_a_name_is_near(client, tool, key, meant):
    """Models shorten names, which is further from them than any typing error."""
    arguments = next(good(t) for t in TOOLS if t["name"] == tool)
    text = client.call(tool, {**arguments, key: 1})["content"][0]["text"]
    assert (f'mean "{meant}"' if meant else f'"{key}" was ignored.') in text


def test_a_result_with_an_unknown_argument_names_the_known_ones(client):
    warnings = client.call("workspace_list", {"owner": "me"})["structuredContent"]["warnings"]
    assert len(warnings) == 2 and "state_filter" in warnings[1] and "name_prefix" in warnings[1]
    text = client.call("exec", {"workspace_id": "no-such", "cmd": "true"})["content"][0]["text"]
    assert text.count("workdir") == 1, "a failure names them once"


def test_a_relative_path_is_told_in_words(client):
    text = client.call("file_read", {"workspace_id": "x", "path": "src/a.c"})["content"][0]["text"]
    assert 'that begins with "/"' in text and "^" not in text and '"src/a.c"' in text


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t["name"])
def test_wait_for_previous_is_ignored_in_silence(client, tool):
    with_it = client.call(tool["name"], {**good(tool), "wait_for_previous": False})
    assert with_it == client.call(tool["name"], good(tool))


def test_many_unknown_arguments_are_bounded(client):
    result = client.call("workspace_list", {f"unknown{i}": 1 for i in range(10000)})
    assert len(result["structuredContent"]["warnings"]) <= 20


@pytest.fixture
def stopped(spawn):
    """A session in which the workspaces ws-000 to ws-002 are there and stopped."""
    peer = spawn("--workspaces", "3")
    peer.initialize()
    return peer


@pytest.mark.parametrize("name", ["PATH", "IFS", "ENV", "BASH_ENV", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_"])
def test_refused_environment_variables(stopped, name):
    env = {"OK": "1", name: "x"}
    for tool, arguments in (("exec", {"workspace_id": "ws-000", "command": "true", "env": env}),
                            ("exec_background", {"workspace_id": "ws-000", "action": "start", "command": "true",
                                                 "env": env}),
                            ("set_env", {"workspace_id": "ws-000", "vars": env}),
                            ("exec_parallel", {"workspace_ids": ["ws-000"], "commands": "true", "env": env})):
        result = stopped.call(tool, arguments)
        assert result["_meta"]["code"] == "invalid_argument" and name in result["content"][0]["text"], tool


def with_variable(tool, name, value):
    """Arguments of a tool that give it this variable."""
    workspace = {"workspace_ids": ["ws-000"]} if tool == "exec_parallel" else {"workspace_id": "ws-000"}
    return {**workspace, **{"set_env": {"vars": {name: value}}, "exec": {"command": "true", "env": {name: value}},
                            "exec_background": {"action": "start", "command": "true", "env": {name: value}},
                            "exec_parallel": {"commands": "true", "env": {name: value}}}[tool]}


@pytest.mark.parametrize("tool", ["set_env", "exec", "exec_background", "exec_parallel"])
def test_a_variable_that_no_program_can_be_given(stopped, tool):
    room = 128 * 1024 - len("BIG=") - 1
    result = stopped.call(tool, with_variable(tool, "BIG", "v" * (room + 1)))
    text = result["content"][0]["text"]
    assert result["_meta"]["code"] == "invalid_argument" and "file_write" in text
    assert "variable BIG" in text and "131072" in text and "vvv" not in text
    assert stopped.call(tool, with_variable(tool, "BIG", "v" * room))["_meta"]["code"] == "not_running"


@pytest.mark.parametrize("ids, found", [([], "0 items"), (["x"] * 21, "21 items")])
def test_a_wrong_number_of_items_is_told(stopped, ids, found):
    result = stopped.call("exec_parallel", {"workspace_ids": ids, "commands": "true"})
    assert f"with 1 to 20 items, not {found}" in result["content"][0]["text"]


SECRET = "hunter2secret"


@pytest.mark.parametrize("tool", ["set_env", "exec", "exec_background", "exec_parallel"])
@pytest.mark.parametrize("value", [
    f"A={SECRET}", [SECRET], {"A": [SECRET]}, {"A": {"B": SECRET}}, {"A": SECRET, "PATH": SECRET}, {f"A={SECRET}": ""},
    {f"1A={SECRET}": "x"}, {"A": SECRET * 100000}, {"A": SECRET, "B": 5}, {"A": SECRET, f"B={SECRET}": None},
])
def test_no_error_shows_the_value_of_a_variable(stopped, tool, value):
    arguments = {"set_env": {"vars": value}, "exec": {"command": "true", "env": value},
                 "exec_background": {"action": "start", "command": "true", "env": value},
                 "exec_parallel": {"workspace_ids": "ws-000", "commands": "true", "env": value}}[tool]
    if tool != "exec_parallel":
        arguments["workspace_id"] = "ws-000"
    result = stopped.call(tool, arguments)
    assert result["_meta"]["code"] == "invalid_argument" and SECRET not in json.dumps(result)


@pytest.mark.parametrize("action, arguments, missing", [
    ("start", {}, "command"), ("poll", {}, "job_id"), ("kill", {}, "job_id"), ("write", {"data": "x"}, "job_id"),
    ("write", {"job_id": 1}, "data"), ("write", {"job_id": 1, "eof": False}, "data"),
    ("resize", {"cols": 80, "rows": 24}, "job_id"), ("resize", {"job_id": 1, "rows": 24}, "cols"),
    ("resize", {"job_id": 1, "cols": 80}, "rows"), ("start", {"command": None, "job_id": 3}, "command"),
])
def test_what_an_action_needs(stopped, action, arguments, missing):
    result = stopped.call("exec_background", {"workspace_id": "ws-000", "action": action, **arguments})
    assert result["_meta"]["code"] == "invalid_argument"
    assert f'"{action}"' in result["content"][0]["text"] and f'"{missing}"' in result["content"][0]["text"]


@pytest.mark.parametrize("action, arguments", [
    ("start", {"command": "true"}), ("poll", {"job_id": 1}), ("kill", {"job_id": 1}),
    ("write", {"job_id": 1, "data": ""}), ("write", {"job_id": 1, "eof": True}), ("list", {}),
    ("resize", {"job_id": 1, "cols": 80, "rows": 24}),
    # What belongs to another action stops nothing.
    ("list", {"job_id": 1, "signal": 9, "command": "true", "wait_secs": 5}),
    ("start", {"command": "true", "cols": 80}),
])
def test_an_action_with_what_it_needs_gets_to_the_workspace(stopped, action, arguments):
    result = stopped.call("exec_background", {"workspace_id": "ws-000", "action": action, **arguments})
    assert result["_meta"]["code"] == "not_running"


@pytest.mark.parametrize("action", ["create", "restore", "delete"])
@pytest.mark.parametrize("more", [{}, {"name": None}, {"include_memory": True, "disk_only": True}])
def test_an_action_on_a_snapshot_needs_its_name(stopped, action, more):
    result = stopped.call("snapshot", {"workspace_id": "ws-000", "action": action, **more})
    text = result["content"][0]["text"]
    assert result["_meta"]["code"] == "invalid_argument" and f'"{action}" needs the argument "name"' in text
    assert ("after-install" if action == "create" else '"list"') in text


@pytest.mark.parametrize("action", ["restore", "delete"])
def test_a_snapshot_that_is_not_there(stopped, action):
    result = stopped.call("snapshot", {"workspace_id": "ws-000", "action": action, "name": "none-such"})
    assert result["_meta"]["code"] == "not_found" and '"none-such"' in result["content"][0]["text"]
    fork = stopped.call("workspace_fork", {"workspace_id": "ws-000", "snapshot_name": "none-such"})
    assert fork["_meta"]["code"] == "not_found" and '"none-such"' in fork["content"][0]["text"]


def test_memory_of_a_stopped_workspace(stopped):
    result = stopped.call("snapshot", {"workspace_id": "ws-000", "action": "create", "name": "n",
                                       "include_memory": True})
    assert result["_meta"]["code"] == "not_running"


def test_what_means_nothing_to_the_action_stops_nothing(stopped):
    record = stopped.call("snapshot", {"workspace_id": "ws-000", "action": "list", "name": "n", "disk_only": True,
                                       "include_memory": False})["structuredContent"]
    assert record["snapshots"] == []
    assert sorted(w.split('"')[1] for w in record["warnings"]) == ["disk_only", "include_memory", "name"]


@pytest.mark.parametrize("tool, key, more", [
    ("snapshot", "name", {"action": "create"}), ("snapshot", "name", {"action": "delete"}),
    ("workspace_fork", "snapshot_name", {}), ("workspace_fork", "new_name", {}), ("workspace_fork", "name_prefix", {}),
])
@pytest.mark.parametrize("value", ["", "a b", "a/b", "..\n", "\u20ac", "x" * 129, "a\x7f"])
def test_names_of_snapshots_and_forks(stopped, tool, key, more, value):
    result = stopped.call(tool, {"workspace_id": "ws-000", **more, key: value})
    assert result["_meta"]["code"] == "invalid_argument" and f'"{key}"' in result["content"][0]["text"]


def test_a_prefix_leaves_room_for_the_number(stopped):
    long = {"workspace_id": "ws-000", "snapshot_name": "none-such", "count": 20}
    assert stopped.call("workspace_fork", {**long, "name_prefix": "p" * 125})["_meta"]["code"] == "not_found"
    assert stopped.call("workspace_fork", {**long, "name_prefix": "p" * 126})["_meta"]["code"] == "invalid_argument"


@pytest.mark.parametrize("count, good_count", [(0, False), (-1, False), (1, True), (20, True), (21, False),
                                               ("5", False), (2.0, True)])
def test_the_number_of_forks(stopped, count, good_count):
    result = stopped.call("workspace_fork", {"workspace_id": "ws-000", "snapshot_name": "none-such", "count": count})
    assert result["_meta"]["code"] == ("not_found" if good_count else "invalid_argument")
    assert good_count or '"count"' in result["content"][0]["text"]


@pytest.mark.parametrize("arguments, text", [
    ({"workspace_ids": ["ws-000", "ws-001"], "commands": ["a", "b", "c"]}, "3 items for 2 workspaces"),
    ({"workspace_ids": ["ws-000", "ws-001", "ws-002"], "commands": ["a", "b"]}, "2 items for 3 workspaces"),
    ({"workspace_ids": ["ws-000", "ws-001", "ws-000"], "commands": "a"}, "twice"),
    ({"workspace_ids": "ws-000", "commands": "x" * 200000}, "131071"),
])
def test_commands_for_several_workspaces(stopped, arguments, text):
    result = stopped.call("exec_parallel", arguments)
    assert result["_meta"]["code"] == "invalid_argument" and text in result["content"][0]["text"]


def test_the_same_workspace_by_name_and_by_id(stopped):
    listed = stopped.call("workspace_list")["structuredContent"]["workspaces"]
    first = next(w for w in listed if w["name"] == "ws-000")
    result = stopped.call("exec_parallel", {"workspace_ids": ["ws-000", first["workspace_id"]], "commands": "true"})
    assert result["_meta"]["code"] == "invalid_argument" and "twice" in result["content"][0]["text"]


@pytest.mark.parametrize("commands", ["true", ["true"], ["true", "false", "true"]])
def test_a_string_counts_as_an_array_of_one(stopped, commands):
    result = stopped.call("exec_parallel", {"workspace_ids": ["ws-000", "ws-001", "ws-002"], "commands": commands})
    assert result["_meta"]["code"] == "not_running" and "ws-000" in result["content"][0]["text"]


@pytest.mark.parametrize("tool, arguments, text", [
    ("exec", {"command": "true", "env": {"A=B": "x"}}, '"A=..."'),
    ("exec", {"command": "true", "env": {"": "x"}}, "variable"),
    ("exec", {"command": "true", "env": {"1A": "x"}}, "1A"),
    ("exec", {"command": "x" * 200000}, "131071"),
    ("exec_background", {"action": "start", "command": "x" * 200000}, "131071"),
    ("exec_background", {"action": "write", "job_id": 1, "data": "no base64!", "encoding": "base64"}, "base64"),
    ("exec_background", {"action": "write", "job_id": 1, "data": "x" * (1024 * 1024 + 1)}, "1048576"),
    ("set_env", {"vars": {}, "unset": ["A", "B C"]}, "B C"),
    ("set_env", {"vars": {name: "x" * (100 * 1024) for name in "ABC"}}, "262144"),
    ("file_write", {"path": "/x", "content": "", "mode": 420}, 'octal digits in quotes, such as "0644"'),
    ("file_write", {"path": "/x", "content": "", "mode": "rw-r--r--"}, 'octal digits in quotes, such as "0644"'),
    ("exec", {"command": "true", "env": {f"A{i}": "" for i in range(300)}}, "at most 256 keys, not 300 keys"),
    ("file_write", {"path": "/x", "content": "no base64!", "encoding": "base64"}, "base64"),
    ("file_edit", {"path": "/x", "old_string": "same", "new_string": "same"}, "same"),
    ("file_read", {"path": "/x", "offset": 1, "start_line": 1}, "offset"),
])
def test_what_no_schema_can_say(stopped, tool, arguments, text):
    result = stopped.call(tool, {"workspace_id": "ws-000", **arguments})
    assert result["_meta"]["code"] == "invalid_argument" and text in result["content"][0]["text"]
