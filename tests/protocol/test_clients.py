# SPDX-License-Identifier: Apache-2.0
"""Many clients of one server, and clients that do not behave."""

import json
import time

REQUEST = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}) + "\n"


def memory_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_two_hundred_connections(listener):
    peers = [listener() for _ in range(200)]
    for i, peer in enumerate(peers):
        peer.start("tools/call", {"name": "workspace_list"}, i)
    for i, peer in enumerate(peers):
        assert peer.answer(i)["result"]["structuredContent"] == {"workspaces": []}
    for peer in peers:
        peer.close_write()
    for peer in peers:
        assert peer.line() == b""
    listener().ping()


def test_too_many_connections_are_turned_away_with_a_reason(listener):
    peers = [listener(initialize=False) for _ in range(256)]
    peers[-1].ping()
    over = listener(initialize=False)
    message = over.recv()
    assert message["error"]["code"] == -32000 and "id" not in message
    assert over.line() == b""
    peers[0].close_write()
    assert peers[0].line() == b""
    # Its place is free soon after the client has seen the end.
    for _ in range(100):
        late = listener(initialize=False)
        try:
            late.start("ping", None, "p")
            if late.line() == b'{"jsonrpc":"2.0","id":"p","result":{}}\n':
                return
        except ConnectionError:
            pass
        time.sleep(0.05)
    raise AssertionError("no place became free")


def test_connections_that_come_and_go(listener):
    for i in range(300):
        peer = listener(initialize=False, read=False)
        peer.raw(REQUEST[: i % len(REQUEST)])
        peer.sock.close()
    listener().ping()


def test_a_client_that_does_not_read_is_bounded_and_holds_up_nobody(listener):
    pid = listener.server.process.pid
    listener().ping()
    before = memory_kib(pid)
    deaf = listener(read=False)
    deaf.raw(json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize",
                         "params": {"protocolVersion": "2025-06-18"}}) + "\n")
    deaf.sock.settimeout(0.5)
    asked = 0
    try:
        while asked < 20000:
            deaf.raw(REQUEST * 50)
            asked += 50
    except TimeoutError:
        pass
    # About 15 KB each: far more than the server may keep.
    assert asked < 20000
    other = listener()
    began = time.monotonic()
    for _ in range(20):
        other.ping()
        other.call("workspace_list")
    assert time.monotonic() - began < 10
    assert memory_kib(pid) - before < 64 * 1024
    deaf.sock.close()
    other.ping()


def test_a_client_that_does_not_read_loses_progress_not_answers(listener):
    """Its socket is full of answers when progress and further answers come; then it reads them all."""
    slow = listener(read=False)
    slow.raw(json.dumps({"jsonrpc": "2.0", "id": "i", "method": "initialize",
                         "params": {"protocolVersion": "2025-06-18"}}) + "\n")
    for i in range(60):
        slow.raw(json.dumps({"jsonrpc": "2.0", "id": i, "method": "tools/call", "params": {
            "name": "test_big", "arguments": {"bytes": 100000}, "_meta": {"progressToken": i}}}) + "\n")
        slow.raw(json.dumps({"jsonrpc": "2.0", "id": f"l{i}", "method": "ping"}) + "\n")
    time.sleep(1)
    slow.start_reading()
    wanted = {"i", *range(60), *(f"l{i}" for i in range(60))}
    while wanted:
        message = slow.recv()
        if "id" in message:
            wanted.remove(message["id"])
            assert not message["result"].get("isError"), message


def test_a_workspace_belongs_to_the_client_that_uses_it(spawn, tmp_path):
    from conftest import Connection

    path = str(tmp_path / "socket")
    server = spawn("--listen", path, "--workspaces", "2")
    assert server.line() == b"ready\n"
    one, two = Connection(path), Connection(path)
    one.initialize()
    two.initialize()
    assert one.call("workspace_stop", {"workspace_id": "ws-000"})["structuredContent"]["adopted"]
    listed = {w["name"]: w for w in two.call("workspace_list")["structuredContent"]["workspaces"]}
    assert not listed["ws-000"]["owned"] and not listed["ws-000"]["orphaned"] and listed["ws-001"]["orphaned"]
    refused = two.call("workspace_stop", {"workspace_id": "ws-000"})
    assert refused["_meta"]["code"] == "not_owner"
    assert two.call("workspace_destroy", {"workspace_id": "ws-000"})["_meta"]["code"] == "not_owner"
    # Reading its logs is free for all.
    assert "isError" not in two.call("workspace_logs", {"workspace_id": "ws-000"})
    one.close_write()
    assert one.line() == b""
    assert two.call("workspace_stop", {"workspace_id": "ws-000"})["structuredContent"]["adopted"]
