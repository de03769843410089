# SPDX-License-Identifier: Apache-2.0
"""The list of tools: the same bytes every time, small, and of schemas that every client can read."""

import json
import re

import pytest
from conftest import COMMAND, LEGACY, ROOT

CONTRACT = {
    "workspace_create": {"name", "base_image", "vcpus", "memory_mb", "disk_gb", "allow_internet"},
    "workspace_destroy": {"workspace_id"},
    "workspace_start": {"workspace_id"},
    "workspace_stop": {"workspace_id"},
    "workspace_list": {"state_filter", "name_prefix", "cursor"},
    "workspace_info": {"workspace_id"},
    "workspace_fork": {"workspace_id", "snapshot_name", "new_name", "count", "name_prefix", "disk_only"},
    "workspace_logs": {"workspace_id", "log_type", "max_lines"},
    "exec": {"workspace_id", "command", "timeout_secs", "workdir", "env", "stdin", "max_output_bytes", "yield_secs"},
    "exec_background": {"action", "workspace_id", "command", "workdir", "env", "pty", "cols", "rows", "job_id",
                        "signal", "wait_secs", "stdout_offset", "stderr_offset", "data", "eof"},
    "set_env": {"workspace_id", "vars"},
    "exec_parallel": {"workspace_ids", "commands", "timeout_secs", "workdir", "env", "max_output_bytes", "strip_ansi"},
    "file_read": {"workspace_id", "path", "offset", "limit", "start_line", "line_count", "encoding"},
    "file_write": {"workspace_id", "path", "content", "mode", "encoding", "append"},
    "file_edit": {"workspace_id", "path", "old_string", "new_string", "replace_all"},
    "file_list": {"workspace_id", "path", "recursive", "max_entries"},
    "snapshot": {"workspace_id", "action", "name", "include_memory", "disk_only"},
}
CHARS_PER_TOKEN = 4
TOKENS_MAX = 8000
ALLOWED_KEYWORDS = {"type", "properties", "required", "description", "enum", "default", "minimum", "maximum",
                    "minLength", "maxLength", "pattern", "items", "minItems", "maxItems", "additionalProperties",
                    "maxProperties"}


@pytest.fixture
def tools(client):
    return client.request("tools/list")["result"]["tools"]


def test_the_bytes_never_change(spawn):
    seen = set()
    for version in LEGACY:
        server = spawn(argv=COMMAND)
        server.initialize(version)
        for _ in range(2):
            server.raw('{"jsonrpc":"2.0","id":"l","method":"tools/list"}\n')
            seen.add(server.line())
    assert len(seen) == 1


def tokens(tools):
    return len(json.dumps(tools, separators=(",", ":"), ensure_ascii=False)) / CHARS_PER_TOKEN


def test_size(client, tools):
    assert tokens(tools) < TOKENS_MAX
    assert tokens([{**t, "description": t["description"] + "x" * 4 * TOKENS_MAX} for t in tools]) > TOKENS_MAX
    for tool in tools:
        assert len(tool["description"].encode()) < 2048


def test_there_is_one_page(client):
    assert "nextCursor" not in client.request("tools/list")["result"]
    assert "result" in client.request("tools/list", {"cursor": None})
    for cursor in ("", "x", 1):
        assert client.request("tools/list", {"cursor": cursor})["error"]["code"] == -32602


def test_names_and_parameters_of_the_contract(tools):
    by_name = {t["name"]: t for t in tools}
    assert len(by_name) == len(tools)
    for name, parameters in CONTRACT.items():
        assert parameters <= set(by_name[name]["inputSchema"]["properties"]), name


def walk(schema, where, is_input, is_argument):
    assert isinstance(schema, dict), f"{where}: boolean schemas are not portable"
    allowed = ALLOWED_KEYWORDS if is_argument else ALLOWED_KEYWORDS | {"anyOf"}
    assert set(schema) <= allowed, f"{where}: {set(schema) - allowed}"
    if "type" in schema or is_argument:
        assert isinstance(schema["type"], str), f"{where}: one type"
    else:
        assert [set(either) for either in schema["anyOf"]] == [{"type"}, {"type"}], where
        assert schema["anyOf"][1]["type"] == "null", f"{where}: only what may be null has no type"
    if "pattern" in schema:
        re.compile(schema["pattern"])
    for key in schema.get("required", []):
        assert key in schema["properties"], f"{where}: {key}"
    for name, inner in schema.get("properties", {}).items():
        walk(inner, f"{where}.{name}", is_input, is_argument)
        if is_input:
            assert len(inner["description"]) >= 8, f"{where}.{name} needs a description"
    for key in ("items", "additionalProperties"):
        if key in schema:
            walk(schema[key], f"{where}.{key}", False, is_argument)


def test_schemas_are_portable(tools):
    for tool in tools:
        assert re.fullmatch(r"[a-z_]{1,64}", tool["name"])
        assert tool["inputSchema"]["type"] == "object" and "properties" in tool["inputSchema"]
        walk(tool["inputSchema"], tool["name"], True, True)
        if "outputSchema" in tool:
            assert tool["outputSchema"]["type"] == "object"
            walk(tool["outputSchema"], tool["name"], False, False)


def test_annotations(tools):
    for tool in tools:
        hints = tool["annotations"]
        assert set(hints) == {"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"}
        assert all(isinstance(v, bool) for v in hints.values())
        assert not (hints["readOnlyHint"] and hints["destructiveHint"])
    hints = {t["name"]: t["annotations"] for t in tools}
    # A restore throws away what was not saved.
    assert {name for name, hint in hints.items() if hint["destructiveHint"]} == {"workspace_destroy", "snapshot"}
    assert not hints["workspace_fork"]["readOnlyHint"] and not hints["workspace_fork"]["idempotentHint"]
    assert not hints["workspace_fork"]["openWorldHint"] and not hints["snapshot"]["openWorldHint"]
    for name in ("workspace_list", "workspace_info", "workspace_logs", "file_read", "file_list"):
        assert hints[name]["readOnlyHint"], name
    for name in ("exec", "exec_background", "exec_parallel", "set_env"):
        assert not hints[name]["readOnlyHint"] and not hints[name]["destructiveHint"], name
        assert not hints[name]["openWorldHint"], name
    assert hints["set_env"]["idempotentHint"] and not hints["exec_background"]["idempotentHint"]


def test_the_first_sentence_says_what_it_does(tools):
    for tool in tools:
        first = re.split(r"[.:] ", tool["description"])[0]
        assert 10 < len(first) < 160, f"{tool['name']}: {first}"


def test_core_tools_are_always_loaded(tools):
    loaded = {t["name"] for t in tools if t.get("_meta", {}).get("anthropic/alwaysLoad") is True}
    assert {"workspace_create", "workspace_destroy", "exec", "exec_background", "file_read", "file_write",
            "file_list", "snapshot"} <= loaded


def test_the_instructions_name_no_tool_that_is_not_there(client, tools):
    names = {t["name"] for t in tools}
    text = client.initialize()["instructions"]
    mentioned = set(re.findall(r"\b(?:workspace|file|exec|set|git|vault)_[a-z]+", text)) - {"workspace_id"}
    assert mentioned <= names and {"workspace_create", "workspace_fork"} <= mentioned
    assert "snapshot" in text


def test_the_size_of_a_call_is_told_where_it_matters(tools):
    properties = {t["name"]: t["inputSchema"]["properties"] for t in tools}
    for name, key in (("exec", "stdin"), ("file_write", "content")):
        assert "16 MiB" in properties[name][key]["description"]


def test_what_an_entry_of_a_directory_may_have(tools):
    entry = next(t for t in tools if t["name"] == "file_list")["outputSchema"]["properties"]["entries"]["items"]
    assert {"target", "name_base64"} <= set(entry["properties"]) - set(entry["required"])


def test_the_documentation_names_every_tool(tools):
    text = (ROOT / "docs" / "tools.md").read_text()
    for tool in tools:
        assert f"### {tool['name']}\n" in text
