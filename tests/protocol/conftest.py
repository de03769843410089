# SPDX-License-Identifier: Apache-2.0
"""Speaks to an MCP server byte by byte.

The server is the harness of this folder, or the command in AGENTISO_PROTOCOL_CMD (for example "agentiso serve").
Tests that need the harness's own options use it in any case.
"""

import collections
import json
import os
import pathlib
import queue
import re
import shlex
import socket
import subprocess
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BUILD = ROOT / os.environ.get("AGENTISO_BUILD", "build")
HARNESS = [str(BUILD / "tests" / "protocol" / "mcp-harness")]
COMMAND = shlex.split(os.environ.get("AGENTISO_PROTOCOL_CMD", "")) or HARNESS
TIMEOUT = 30

# The methods of agentiso's own commands, which are described as tools are (src/tools/host.json) and not listed.
METHODS = {m["name"]: m for m in json.loads((ROOT / "src" / "tools" / "host.json").read_text(encoding="utf-8"))}

LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
MODERN = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}


def schema_errors(schema, value, where="result"):
    """Checks a value against the part of JSON Schema that the tools use; unknown keywords are an error."""
    known = {"type", "properties", "required", "items", "enum", "additionalProperties", "description", "minimum",
             "maximum", "minLength", "maxLength", "pattern", "default", "maxProperties", "minItems", "maxItems", "anyOf"}
    assert set(schema) <= known, set(schema) - known
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    if "anyOf" in schema:  # a type or null
        if value is not None:
            yield from schema_errors(schema["anyOf"][0], value, where)
        return
    if "type" in schema:
        right = isinstance(value, types[schema["type"]])
        if schema["type"] in ("integer", "number") and isinstance(value, bool):
            right = False
        if not right:
            yield f"{where}: {value!r} is not of type {schema['type']}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        for key in schema.get("required", []):
            if key not in value:
                yield f"{where}: {key} is missing"
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if inner:
                yield from schema_errors(inner, item, f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            yield from schema_errors(schema["items"], item, f"{where}[{i}]")


class Peer:
    """One connection: sends bytes or messages, hands out what comes back in order."""

    def __init__(self, write, read_line, close_write):
        self._write, self._read_line, self.close_write = write, read_line, close_write
        self._lines = queue.SimpleQueue()
        self._kept = collections.deque()
        self._next_id = 0
        self.schemas = None
        self._thread = None

    def start_reading(self):
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        while True:
            try:
                line = self._read_line()
            except OSError:
                line = b""
            self._lines.put(line)
            if not line:
                return

    def raw(self, data):
        self._write(data.encode() if isinstance(data, str) else data)

    def send(self, message):
        self.raw(json.dumps(message) + "\n")

    def line(self, timeout=TIMEOUT):
        """The next line as bytes; b"" at the end."""
        try:
            return self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"nothing arrived within {timeout} s") from None

    def recv(self, timeout=TIMEOUT):
        if self._kept:
            return self._kept.popleft()
        line = self.line(timeout)
        assert line.endswith(b"\n"), f"the server ended its output: {line!r}"
        assert len(line) < 1024 * 1024, f"a message of {len(line)} bytes"
        return json.loads(line)

    def answer(self, request_id, timeout=TIMEOUT):
        """The answer to a request; everything else that comes before it is kept for recv()."""
        seen, deadline = [], time.monotonic() + timeout
        while True:
            message = self.recv(max(0.001, deadline - time.monotonic()))
            if isinstance(message, dict) and "method" not in message and message.get("id") == request_id:
                self._kept.extendleft(reversed(seen))
                return message
            seen.append(message)

    def new_id(self):
        self._next_id += 1
        return self._next_id

    def start(self, method, params=None, request_id=None):
        request_id = self.new_id() if request_id is None else request_id
        self.send({"jsonrpc": "2.0", "id": request_id, "method": method,
                   **({} if params is None else {"params": params})})
        return request_id

    def request(self, method, params=None, timeout=TIMEOUT):
        return self.answer(self.start(method, params), timeout)

    def notify(self, method, params=None):
        self.send({"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})})

    def initialize(self, version="2025-06-18"):
        answer = self.request("initialize", {"protocolVersion": version, "capabilities": {},
                                             "clientInfo": {"name": "tests", "version": "1"}})
        self.notify("notifications/initialized")
        return answer["result"]

    def call(self, tool, arguments=None, timeout=TIMEOUT, **params):
        """The result of a tool, or of a method of METHODS, which is checked against its output schema."""
        if self.schemas is None:
            tools = self.request("tools/list")["result"]["tools"]
            self.schemas = {t["name"]: t.get("outputSchema") for t in [*tools, *METHODS.values()]}
        method, name = (tool, {}) if tool in METHODS else ("tools/call", {"name": tool})
        answer = self.request(method, {**name, **({} if arguments is None else {"arguments": arguments}), **params},
                              timeout)
        result = answer["result"]
        self.check_result(tool, result)
        return result

    def check_result(self, tool, result):
        assert result["content"][0]["type"] == "text"
        if result.get("isError"):
            assert re.fullmatch(r"[a-z_]+", result["_meta"]["code"])
            if "structuredContent" not in result:
                return
        schema = self.schemas[tool]
        if schema:
            assert list(schema_errors(schema, result["structuredContent"])) == []
            assert json.loads(result["content"][0]["text"]) == result["structuredContent"]

    def ping(self):
        assert "result" in self.request("ping")

    def silent(self, seconds=0.3):
        """Nothing arrives for a while."""
        assert not self._kept, list(self._kept)
        try:
            line = self.line(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"unexpected: {line!r}")


class Process(Peer):
    """A server process on its standard input and output."""

    def __init__(self, argv, read=True):
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        out = self.process.stdout
        reader = os.fdopen(os.dup(out.fileno()), "rb")
        super().__init__(self._send, reader.readline, self.process.stdin.close)
        if read:
            self.start_reading()

    def _send(self, data):
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view):]

    def end(self, timeout=TIMEOUT):
        """Closes the server's input; its exit status."""
        if not self.process.stdin.closed:
            self.close_write()
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


class Connection(Peer):
    """One of many connections to a harness with --listen."""

    def __init__(self, path, read=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        super().__init__(self.sock.sendall, self.sock.makefile("rb").readline,
                         lambda: self.sock.shutdown(socket.SHUT_WR))
        if read:
            self.start_reading()


@pytest.fixture
def spawn():
    """Starts servers; they must end well when their input does."""
    started = []

    def start(*options, argv=None, read=True):
        peer = Process((argv or HARNESS) + list(options), read)
        started.append(peer)
        return peer

    yield start
    for peer in started:
        if peer.process.poll() is None:
            assert peer.end() == 0
        else:
            assert peer.process.returncode == 0, "the server ended with an error (a sanitizer's report is on stderr)"


@pytest.fixture
def server(spawn):
    """The server under test, not initialized."""
    return spawn(argv=COMMAND)


@pytest.fixture
def client(server):
    """The server under test in a session of the revision that most clients open with."""
    server.initialize()
    return server


@pytest.fixture
def harness(spawn):
    """The harness with its own tools, in a session."""
    peer = spawn("--test-tools")
    peer.initialize()
    return peer


def connector(spawn, path, *options):
    """A function that connects to one harness, again and again."""
    server = spawn("--listen", path, "--test-tools", *options)
    assert server.line() == b"ready\n"

    def connect(initialize=True, read=True):
        peer = Connection(path, read)
        if initialize and read:
            peer.initialize()
        return peer

    connect.server = server
    return connect


@pytest.fixture
def listener(spawn, tmp_path):
    return connector(spawn, str(tmp_path / "socket"))


@pytest.fixture
def orphans(spawn, tmp_path):
    """The same with the workspaces ws-000 to ws-002, which nobody owns."""
    return connector(spawn, str(tmp_path / "socket"), "--workspaces", "3")
