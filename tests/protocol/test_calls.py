# SPDX-License-Identifier: Apache-2.0
"""Tool calls: results, errors, progress, cancel, many at a time, and the end of a client."""

import json
import time

import pytest
from conftest import META, METHODS, schema_errors


def start_wait(peer, ms, reports=0, token=None, request_id=None):
    params = {"name": "test_wait", "arguments": {"ms": ms, "reports": reports}}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return peer.start("tools/call", params, request_id)


class TestRequests:
    def test_arguments_may_be_left_out(self, client):
        for arguments in ({}, {"arguments": {}}, {"arguments": None}):
            answer = client.request("tools/call", {"name": "workspace_list", **arguments})
            assert isinstance(answer["result"]["structuredContent"]["workspaces"], list)

    @pytest.mark.parametrize("params", [
        None, {}, {"name": 5}, {"name": None}, {"name": ""}, {"name": "no_such_tool"}, {"name": "x" * 100000},
        {"name": "workspace_list", "arguments": []}, {"name": "workspace_list", "arguments": "x"},
        {"name": "workspace_list", "arguments": 0},
    ])
    def test_malformed_calls_are_json_rpc_errors(self, client, params):
        error = client.request("tools/call", params)["error"]
        assert error["code"] == -32602 and len(error["message"]) < 300

    def test_an_unknown_tool_comes_with_the_nearest_name(self, client):
        error = client.request("tools/call", {"name": "workspace_craete"})["error"]
        assert 'did you mean "workspace_create"? tools/list' in error["message"]

    def test_a_failure_is_a_result_that_says_what_to_do(self, client):
        result = client.call("workspace_info", {"workspace_id": "nowhere"})
        assert result["isError"] and result["_meta"]["code"] == "not_found"
        text = result["content"][0]["text"]
        assert "nowhere" in text and "workspace_list" in text

    @pytest.mark.parametrize("message, text", [
        ("It failed", "It failed. Do this."),
        ("It failed!", "It failed! Do this."),
        # What a guest said, or lines of a file, must not look as if they ended in a full stop or went on as the hint.
        ("The nearest line is:\n2: print()", "The nearest line is:\n2: print()\nDo this."),
        ("The console:\nlast line\n", "The console:\nlast line\nDo this."),
    ])
    def test_the_hint_follows_the_message(self, harness, message, text):
        result = harness.call("test_fail", {"message": message, "hint": "Do this."})
        assert result["content"][0]["text"] == text and result["_meta"]["code"] == "conflict"

    def test_a_record_can_tell_of_a_failure(self, harness):
        result = harness.call("test_outcome", {"unknown": 1})
        assert result["isError"] and result["_meta"]["code"] == "no_space"
        record = result["structuredContent"]
        assert record["failures"] == 3 and '"unknown"' in record["warnings"][0]
        assert json.loads(result["content"][0]["text"]) == record

    def test_text_and_structure_are_the_same(self, spawn):
        peer = spawn("--workspaces", "3")
        peer.initialize()
        result = peer.call("workspace_list")
        assert len(result["content"]) == 1
        text = result["content"][0]["text"]
        assert text == json.dumps(result["structuredContent"], separators=(",", ":"))

    def test_a_result_that_is_too_large_is_an_error(self, harness):
        assert len(harness.call("test_big", {"bytes": 1000000})["content"][0]["text"]) == 1000000
        for size in (1024 * 1024, 4 * 1024 * 1024):
            result = harness.call("test_big", {"bytes": size})
            assert result["isError"] and "larger" in result["content"][0]["text"]


class TestMethods:
    """What agentiso's own commands ask the daemon, beside the tools."""

    def test_they_are_no_tools(self, client):
        listed = {tool["name"] for tool in client.request("tools/list")["result"]["tools"]}
        for name in METHODS:
            assert name.startswith("agentiso/") and name not in listed
            assert client.request("tools/call", {"name": name})["error"]["code"] == -32602
            assert client.request(name, {"arguments": []})["error"]["code"] == -32602
        assert client.request("agentiso/nothing")["error"]["code"] == -32601
        assert client.request("workspace_list")["error"]["code"] == -32601

    @pytest.mark.parametrize("name", METHODS)
    def test_not_before_initialize(self, server, name):
        assert server.request(name)["error"]["code"] == -32600
        assert "result" in server.request(name, {"_meta": META, "arguments": {"base_image": "no-such-image"}})

    def test_the_state(self, harness):
        state = harness.call("agentiso/state")["structuredContent"]
        assert state == {"pool": {"ready": 0, "wanted": 0}, "templates": [], "templates_bytes": 0}

    def test_there_are_no_templates_by_configuration(self, harness):
        """As the harness has it; with templates: tests/integration."""
        result = harness.call("agentiso/warm")
        assert result["isError"] and result["_meta"]["code"] == "unsupported"

    def test_progress_and_cancel_are_as_of_tools(self, harness):
        request_id = harness.start("agentiso/state", {"_meta": {"progressToken": "p"}})
        beat = harness.recv()
        assert beat["params"]["progressToken"] == "p" and "agentiso/state" in beat["params"]["message"]
        assert "result" in harness.answer(request_id)


class TestProgress:
    def test_none_without_a_token(self, harness):
        request_id = start_wait(harness, 300, reports=20)
        assert harness.recv()["id"] == request_id
        harness.silent(0.1)

    @pytest.mark.parametrize("token", [0, 17, "t", "", "\u20ac"])
    def test_the_first_comes_at_once_and_the_token_is_echoed(self, harness, token):
        began = time.monotonic()
        request_id = start_wait(harness, 1000, token=token)
        first = harness.recv()
        assert time.monotonic() - began < 0.9
        assert first["method"] == "notifications/progress" and "id" not in first
        assert first["params"]["progressToken"] == token
        assert type(first["params"]["progressToken"]) is type(token)
        assert harness.recv()["id"] == request_id

    @pytest.mark.parametrize("token", [None, 1.5, True, [], {}])
    def test_a_token_of_another_type_is_no_token(self, harness, token):
        harness.start("tools/call", {"name": "test_wait", "arguments": {"ms": 1}, "_meta": {"progressToken": token}})
        assert "result" in harness.recv()

    def test_it_goes_on_and_rises(self, harness):
        request_id = start_wait(harness, 6500, reports=50, token=1)
        seen = []
        while True:
            message = harness.recv()
            if message.get("id") == request_id:
                break
            seen.append(message["params"])
        values = [p["progress"] for p in seen]
        assert values == sorted(set(values)) and len(values) >= 2
        assert all(len(p["message"]) <= 200 for p in seen)
        assert "report 49" in seen[-1]["message"]
        harness.silent(0.2)

    def test_never_after_the_answer(self, harness):
        for i in range(100):
            start_wait(harness, 0, reports=3, token=i, request_id=i)
        done = set()
        while len(done) < 100:
            message = harness.recv()
            if "id" in message:
                done.add(message["id"])
            else:
                assert message["params"]["progressToken"] not in done
        harness.silent(0.1)

    def test_never_after_a_cancel(self, harness):
        start_wait(harness, 20000, token="t", request_id="c")
        assert "method" in harness.recv()
        harness.notify("notifications/cancelled", {"requestId": "c"})
        harness.silent(5.5)


class TestCancel:
    @pytest.mark.parametrize("request_id", ["c", 7, 0, 12345678901234567890])
    def test_the_work_ends_and_no_answer_comes(self, harness, request_id):
        start_wait(harness, 20000, request_id=request_id)
        harness.notify("notifications/cancelled", {"requestId": request_id, "reason": "changed my mind"})
        # The id is free at once.
        start_wait(harness, 0, request_id=request_id)
        assert harness.recv()["id"] == request_id
        harness.silent(0.2)

    def test_the_type_of_an_id_counts(self, harness):
        start_wait(harness, 1000, request_id=5)
        harness.notify("notifications/cancelled", {"requestId": "5"})
        assert harness.recv()["id"] == 5

    def test_ids_that_are_unknown_or_finished(self, harness):
        request_id = start_wait(harness, 0)
        assert "result" in harness.answer(request_id)
        for i in (request_id, 999, "x", None, 1.5, {}):
            harness.notify("notifications/cancelled", {"requestId": i})
        harness.ping()

    def test_all_at_once(self, harness):
        for i in range(60):
            start_wait(harness, 20000, request_id=i + 1000)
        for i in range(60):
            harness.notify("notifications/cancelled", {"requestId": i + 1000})
        harness.ping()
        began = time.monotonic()
        assert harness.end() == 0
        assert time.monotonic() - began < 5

    def test_another_clients_call_is_not_reached(self, listener):
        one, two = listener(), listener()
        start_wait(one, 500, request_id="same")
        two.notify("notifications/cancelled", {"requestId": "same"})
        assert one.recv()["id"] == "same"


class TestManyAtOnce:
    def test_slow_calls_delay_nothing(self, harness):
        for i in range(20):
            start_wait(harness, 3000, request_id=f"slow-{i}")
        began = time.monotonic()
        harness.ping()
        assert "tools" in harness.request("tools/list")["result"]
        harness.call("workspace_list")
        assert time.monotonic() - began < 2.5
        for i in range(20):
            assert "result" in harness.answer(f"slow-{i}")

    def test_a_burst_before_anything(self, server):
        params = {"protocolVersion": "2025-06-18", "capabilities": {}}
        server.start("initialize", params, "i")
        for i, method in enumerate(["tools/list", "prompts/list", "resources/list"]):
            server.start(method, None, i)
        assert "result" in server.answer("i")
        assert "result" in server.answer(0)
        assert server.answer(1)["error"]["code"] == server.answer(2)["error"]["code"] == -32601

    def test_a_burst_of_the_modern_era(self, server):
        for i in range(300):
            server.start("tools/list", {"_meta": META}, i)
        assert [server.recv()["id"] for i in range(300)] == list(range(300))

    def test_five_thousand_pings_in_one_write(self, client):
        client.raw("".join('{"jsonrpc":"2.0","id":%d,"method":"ping"}\n' % i for i in range(5000)))
        assert [client.recv()["id"] for _ in range(5000)] == list(range(5000))

    def test_an_id_that_is_in_use(self, harness):
        start_wait(harness, 1000, request_id="d")
        start_wait(harness, 1000, request_id="d")
        first, second = harness.recv(), harness.recv()
        assert first["error"]["code"] == -32600 and "result" in second

    def test_more_than_the_limit(self, harness):
        """Over 64 calls of one client are refused, each with a reason, and ping still works."""
        for i in range(100):
            start_wait(harness, 2000, request_id=i)
        harness.ping()
        refused = 0
        for i in range(100):
            result = harness.answer(i)["result"]
            if result.get("isError"):
                refused += 1
                assert result["_meta"]["code"] == "rate_limited"
        assert refused == 36
        assert "structuredContent" in harness.call("test_wait", {"ms": 0})


class TestEnd:
    def test_the_answers_of_quick_calls_still_come(self, harness):
        """printf ... | agentiso serve"""
        for i in range(10):
            start_wait(harness, 50, request_id=i)
        harness.close_write()
        answered = {harness.recv()["id"] for _ in range(10)}
        assert answered == set(range(10))
        assert harness.line() == b""

    def test_slow_calls_do_not_hold_the_end(self, harness):
        for i in range(10):
            start_wait(harness, 20000, request_id=i, token=i)
        began = time.monotonic()
        assert harness.end() == 0
        assert time.monotonic() - began < 2

    def test_the_servers_own_results_fit_their_schemas(self, spawn):
        """Stopped workspaces are enough for these; the others need machines (tests/integration)."""
        peer = spawn("--workspaces", "450")
        peer.initialize()
        pages, cursor = [], None
        while True:
            result = peer.call("workspace_list", {"cursor": cursor})["structuredContent"]
            pages.append([w["name"] for w in result["workspaces"]])
            cursor = result.get("next_cursor")
            if not cursor:
                break
        assert [len(p) for p in pages] == [200, 200, 50]
        assert len({name for page in pages for name in page}) == 450
        some = peer.call("workspace_list", {"name_prefix": "ws-00", "state_filter": "stopped"})["structuredContent"]
        assert {w["name"] for w in some["workspaces"]} == {f"ws-{i:03}" for i in range(10)}
        assert peer.call("workspace_list", {"state_filter": "running"})["structuredContent"] == {"workspaces": []}
        bad = peer.call("workspace_list", {"cursor": "bm9uc2Vuc2U="})
        assert bad["_meta"]["code"] == "invalid_argument"

        stopped = peer.call("workspace_stop", {"workspace_id": "ws-007"})["structuredContent"]
        assert stopped["already_stopped"] and stopped["state"] == "stopped" and stopped["adopted"]
        assert "adopted" not in peer.call("workspace_stop", {"workspace_id": "ws-007"})["structuredContent"]
        assert peer.call("workspace_logs", {"workspace_id": "ws-007"})["structuredContent"] == {
            "console": "", "stderr": ""}
        assert peer.call("workspace_logs", {"workspace_id": "ws-007", "log_type": "console"})[
            "structuredContent"] == {"console": ""}
        refused = peer.call("exec", {"workspace_id": "ws-007", "command": "true"})
        assert refused["_meta"]["code"] == "not_running" and "workspace_start" in refused["content"][0]["text"]
        destroyed = peer.call("workspace_destroy", {"workspace_id": "ws-007"})["structuredContent"]
        assert destroyed["destroyed"] is True and destroyed["name"] == "ws-007"
        assert peer.call("workspace_info", {"workspace_id": "ws-007"})["_meta"]["code"] == "not_found"

    def test_the_checker_of_these_tests_notices(self):
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        assert list(schema_errors(schema, {})) and list(schema_errors(schema, {"a": True}))
        assert not list(schema_errors(schema, {"a": 1, "b": 2}))
