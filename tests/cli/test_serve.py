# SPDX-License-Identifier: Apache-2.0
"""`agentiso serve`: a proxy that starts, follows and survives the daemon."""
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from conftest import AGENTISO, Serve, alive, freeze, wait_for

UNKNOWN_OUTCOME = "its outcome is unknown"


def test_starts_the_daemon_and_leaves_at_eof(host, serve):
    answer = serve.initialize()
    assert answer["id"] == "init" and answer["result"]["serverInfo"]["name"] == "agentiso"
    serve.ping()
    pid = host.daemon_pid()
    assert pid and pid != serve.child.pid
    assert os.getsid(pid) == pid, "the daemon has a session of its own"
    begin = time.monotonic()
    assert serve.rest() == (b"", 0)
    assert time.monotonic() - begin < 1
    assert alive(pid), "the daemon outlives its client"


def test_tells_of_a_daemon_from_before_an_upgrade(host):
    program = host.state / "agentiso"
    shutil.copy(AGENTISO, program)
    before = Serve(host, program=program)
    before.initialize()
    program.unlink()
    shutil.copy(AGENTISO, program)
    after = Serve(host, program=program)
    assert "result" in after.initialize(), "it serves all the same"
    before.ping()
    for child in (before, after):
        assert child.rest() == (b"", 0)
    assert before.child.stderr.read() == b"", "of what is old itself, nobody learns anything"
    said = after.child.stderr.read().decode()
    assert "earlier" in said and "agentiso stop" in said and said.count("\n") == 1


def test_tells_a_person_what_it_is_for(host):
    master, slave = pty.openpty()
    serve = host.popen("serve", stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(slave)
    assert b"agentiso mcp-config" in serve.stderr.readline()
    os.close(master)
    assert serve.wait(5) == 0 and serve.stdout.read() == b""


def test_daemon_has_no_inherited_fds(host, serve):
    serve.initialize()
    pid = host.daemon_pid()
    targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]
    assert targets == ["/dev/null", "/dev/null", str(host.state / "daemon.log")]
    pipes = {os.readlink(f"/proc/{serve.child.pid}/fd/{fd}") for fd in (0, 2)}
    assert not pipes & set(fd_names(pid))


def test_input_without_newline_at_the_end(host):
    for data in (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', b'\r\n{"jsonrpc":"2.0","id":1,"method":"ping"}\r\n'):
        done = subprocess.run([AGENTISO, "serve"], input=data, env=host.env, capture_output=True, timeout=15)
        assert done.returncode == 0
        assert json.loads(done.stdout) == {"jsonrpc": "2.0", "id": 1, "result": {}}


def test_no_input_at_all(host):
    begin = time.monotonic()
    done = host.run("serve")
    assert done.returncode == 0 and done.stdout == ""
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("when", ["idle", "starting"])
def test_leaves_by_signal_within_a_second(host, number, when):
    serve = Serve(host)
    if when == "idle":
        serve.initialize()
    else:  # the handler is there before anything is said
        wait_for(lambda: "anon_inode:[signalfd]" in fd_names(serve.child.pid))
    begin = time.monotonic()
    serve.child.send_signal(number)
    assert serve.child.wait(3) == 0
    assert time.monotonic() - begin < 1
    assert serve.child.stdout.read() == b""


def fd_names(pid):
    names = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    return names


def test_leaves_when_nobody_reads(host, serve):
    serve.initialize()
    serve.child.stdout.close()
    assert serve.child.wait(3) == 0


def test_garbage_goes_to_the_daemon(host, serve):
    serve.initialize()
    for line in (b"garbage\n", b"\xff\xfe\n", b'{"jsonrpc":"2.0","id":null,"method":"ping"}\n', b"[]\n",
                 b"}}}]]]\n", b'"a string"\n'):
        serve.send(line)
        answer = serve.receive()
        assert answer["error"]["code"] in (-32700, -32600), line
        assert "id" not in answer
    serve.ping()


def test_garbage_before_eof_is_answered(host):
    done = subprocess.run([AGENTISO, "serve"], input=b"garbage\n", env=host.env, capture_output=True, timeout=15)
    assert json.loads(done.stdout)["error"]["code"] == -32700


def test_a_line_in_pieces(host, serve):
    for piece in (b'{"jsonrpc":"2.0",', b'"id":5,"meth', b'od":"ping"}', b"\n"):
        serve.send(piece)
        time.sleep(0.02)
    assert serve.receive() == {"jsonrpc": "2.0", "id": 5, "result": {}}


def test_big_lines(host, serve):
    serve.initialize()
    for size in (3 << 20, 15 << 20):
        serve.send({"jsonrpc": "2.0", "id": size, "method": "ping", "params": {"x": "y" * size}})
        assert serve.receive(30) == {"jsonrpc": "2.0", "id": size, "result": {}}
    serve.send(b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"x":"' + b"y" * (17 << 20) + b'"}}\n')
    answer = serve.receive(30)
    assert "error" in answer and answer.get("id") is None
    serve.ping()


def test_pipelined_requests(host, serve):
    n = 2000
    lines = b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n' % i for i in range(n))
    writer = threading.Thread(target=serve.send, args=(lines,))
    writer.start()
    assert sorted(serve.receive()["id"] for _ in range(n)) == list(range(n))
    writer.join()


def test_a_client_that_does_not_read_is_waited_for(host, serve):
    serve.initialize()
    n = 300
    for i in range(n):
        serve.send({"jsonrpc": "2.0", "id": i, "method": "tools/list"})
    time.sleep(0.5)
    assert sorted(serve.receive()["id"] for _ in range(n)) == list(range(n))
    with open(f"/proc/{serve.child.pid}/status", encoding="utf-8") as f:
        rss = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
    assert rss < 40 * 1024


def test_two_serves_start_one_daemon(host):
    serves = [Serve(host) for _ in range(6)]
    for s in serves:
        s.initialize()
    with open(host.state / "lock", encoding="utf-8") as f:
        pid = int(f.read().split()[0])
    assert host.daemon_pid() == pid
    for s in serves:
        s.ping()
        assert s.rest() == (b"", 0)
    assert host.daemon_pid() == pid


def test_daemon_killed_while_idle(host, serve):
    serve.initialize()
    first = kill_noticed(host, serve)
    serve.quiet()
    assert host.daemon_pid() is None, "an idle client starts nothing"
    serve.ping()
    assert host.daemon_pid() not in (None, first)
    assert serve.request("tools/list", id=3)["result"]["tools"], "the new daemon knows the session"
    assert serve.rest() == (b"", 0)


def kill_noticed(host, serve):
    """Kills the daemon; the kernel closes its sockets a moment after its death."""
    pid = host.kill_daemon()
    wait_link_down(serve)
    return pid


def wait_link_down(serve):
    wait_for(lambda: not any(name.startswith("socket:") for name in fd_names(serve.child.pid)))


def freeze_daemon(host):
    """A stopped daemon: what is sent to it stays without an answer."""
    pid = wait_for(host.daemon_pid)
    freeze(pid)
    return pid


def test_daemon_killed_with_a_call_outstanding(host, serve):
    serve.initialize()
    pid = freeze_daemon(host)
    serve.send({"jsonrpc": "2.0", "id": "call-1", "method": "tools/call",
                "params": {"name": "workspace_list", "arguments": {}}})
    serve.send({"jsonrpc": "2.0", "id": 2, "method": "ping"})
    serve.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}})
    serve.quiet()
    os.kill(pid, signal.SIGKILL)
    answer = serve.receive()
    assert answer["id"] == "call-1"
    assert answer["error"]["code"] == -32603 and UNKNOWN_OUTCOME in answer["error"]["message"]
    assert "workspace_list" in answer["error"]["message"], "clients show a model the message only"
    assert answer["error"]["data"]["code"] == "internal" and "workspace_list" in answer["error"]["data"]["hint"]
    serve.quiet()
    answer = serve.request("tools/call", {"name": "workspace_list", "arguments": {}}, id=3)
    assert answer["id"] == 3 and answer["result"]["structuredContent"]["workspaces"] == []
    serve.quiet()


def test_daemon_killed_during_initialize(host):
    Serve(host).ping()
    pid = freeze_daemon(host)
    serve = Serve(host)
    serve.send({"jsonrpc": "2.0", "id": 0, "method": "initialize",
                "params": {"protocolVersion": "2025-06-18", "capabilities": {},
                           "clientInfo": {"name": "t", "version": "1"}}})
    serve.quiet()
    os.kill(pid, signal.SIGKILL)
    answer = serve.receive()
    assert answer["id"] == 0 and "result" in answer, "initialize is repeated, not refused"
    serve.quiet()


def test_daemon_killed_in_mid_line(host, serve):
    serve.initialize()
    pid = freeze_daemon(host)
    begun = b'{"jsonrpc":"2.0","id":11,"method":"ping","params":{"x":"' + b"y" * (5 << 20)
    writer = threading.Thread(target=serve.send, args=(begun,))
    writer.start()
    # The socket is full of the line's begin, and serve holds as much as it may.
    wait_for(lambda: not select.select([], [serve.child.stdin], [], 0.3)[1])
    os.kill(pid, signal.SIGKILL)
    writer.join()
    wait_link_down(serve)
    serve.send(b'"}}\n{"jsonrpc":"2.0","id":12,"method":"ping"}\n')
    first, second = serve.receive(), serve.receive()
    assert first["id"] == 11 and first["error"]["code"] == -32603
    assert second == {"jsonrpc": "2.0", "id": 12, "result": {}}


def test_what_a_dead_daemon_never_saw_is_run_by_the_next(host, serve):
    serve.initialize()
    pid = freeze_daemon(host)
    # More than the socket takes: the last lines stay with serve.
    n = 40
    lines = [json.dumps({"jsonrpc": "2.0", "id": i, "method": "ping", "params": {"x": "y" * 60000}}).encode() + b"\n"
             for i in range(n)]
    writer = threading.Thread(target=serve.send, args=(b"".join(lines),))
    writer.start()
    serve.quiet()
    os.kill(pid, signal.SIGKILL)
    answers = {}
    while len(answers) < n:
        answer = serve.receive()
        assert answer["id"] not in answers, "answered twice"
        answers[answer["id"]] = "error" in answer
    writer.join()
    assert answers[0] is True and answers[n - 1] is False
    assert sorted(answers.values(), reverse=True) == [answers[i] for i in range(n)], "first errors, then results"
    serve.quiet()


def test_stop_is_not_undone_by_an_idle_client(host, serve):
    serve.initialize()
    assert host.run("stop").returncode == 0
    serve.quiet(0.5)
    assert host.daemon_pid() is None
    serve.ping()


def test_daemon_that_cannot_start(host, serve):
    """Also: serve stays alive, and the next request after the mistake is mended works."""
    serve.initialize()
    kill_noticed(host, serve)
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (host.state / name).unlink(missing_ok=True)
    (host.state / "state.db").mkdir()
    answer = serve.request("ping", id=1)
    assert answer["error"]["code"] == -32603
    assert "cannot be started" in answer["error"]["message"] and "state.db" in answer["error"]["message"]
    assert "daemon.log" in answer["error"]["data"]["hint"]
    begin = time.monotonic()
    assert "error" in serve.request("ping", id=2)
    assert time.monotonic() - begin < 0.5
    (host.state / "state.db").rmdir()
    time.sleep(1.1)
    serve.ping()


def test_broken_configuration(host):
    path = host.state / "config.toml"
    path.write_text("[vm]\nacel = 'x'\n")
    serve = Serve(host, "--config", str(path))
    answer = serve.request("initialize", id=1)
    assert "unknown key 'vm.acel'; did you mean 'vm.accel'?" in answer["error"]["message"]
    path.write_text("[log]\nlevel = 'debug'\n")
    time.sleep(1.1)
    assert "result" in serve.initialize()
    with open(f"/proc/{host.daemon_pid()}/cmdline", "rb") as f:
        assert f.read().split(b"\0")[1:4] == [b"daemon", b"--config", str(path).encode()]


def test_a_daemon_that_never_answers(host):
    """Somebody holds the lock and does not listen."""
    with open(host.state / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        serve = Serve(host)
        answer = serve.request("ping")
        assert "another process holds the lock" in answer["error"]["message"]
    time.sleep(1.1)
    serve.ping()


def test_a_listener_that_outlives_its_daemon(host):
    """As a program that the daemon was about to start holds it for a moment, when the daemon is killed just then."""
    path = str(host.state / "agentiso.sock")
    script = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.listen(9); s.detach()"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        subprocess.run([sys.executable, "-c", script, str(listener.fileno())], pass_fds=[listener.fileno()], check=True)
        serve = Serve(host)
        assert "result" in serve.initialize()
        assert serve.rest() == (b"", 0)


def test_log_is_rotated(host):
    log = host.state / "daemon.log"
    with open(log, "wb") as f:
        f.truncate(10 * 1024 * 1024 + 1)
    serve = Serve(host)
    serve.ping()
    assert (host.state / "daemon.log.1").stat().st_size == 10 * 1024 * 1024 + 1
    assert 0 < log.stat().st_size < 100000


def test_stdio_on_sockets(host):
    """Some clients use socket pairs for the standard streams."""
    ours, theirs = socket.socketpair()
    with ours:
        child = host.popen("serve", stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
        theirs.close()
        ours.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        ours.settimeout(10)
        data = b""
        while b"\n" not in data:
            data += ours.recv(4096)
        assert json.loads(data) == {"jsonrpc": "2.0", "id": 1, "result": {}}
        ours.shutdown(socket.SHUT_WR)
        assert child.wait(3) == 0


def test_output_holds_only_protocol(host, serve):
    """Whatever happens, each line on standard output is one JSON-RPC message."""
    serve.initialize()
    kill_noticed(host, serve)
    serve.send(b"garbage\n")
    serve.receive()
    kill_noticed(host, serve)
    serve.request("tools/list", id=1)
    data, status = serve.rest()
    assert status == 0
    for line in data.splitlines():
        assert json.loads(line)["jsonrpc"] == "2.0"
