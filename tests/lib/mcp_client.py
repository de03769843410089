# SPDX-License-Identifier: Apache-2.0
"""A small MCP client over stdio for the tests, the benchmarks and the demonstration.

It starts a server command, speaks JSON-RPC a line at a time, and may be used from many threads at once: a reader
thread hands each response to the call that waits for it. Notifications are kept in `notifications`.
"""

import json
import os
import queue
import subprocess
import threading

DEFAULT_TIMEOUT = 120


class McpError(Exception):
    """A JSON-RPC error response."""

    def __init__(self, error):
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code = error.get("code")
        self.data = error.get("data")


class ToolError(Exception):
    """A tool result with isError: `code` is the stable code from _meta."""

    def __init__(self, result):
        self.text = "".join(c.get("text", "") for c in result.get("content", []))
        self.meta = result.get("_meta") or {}
        self.code = next((v for k, v in self.meta.items() if k.split("/")[-1] in ("code", "errorCode")), None)
        super().__init__(f"{self.code}: {self.text}")


class McpClient:
    def __init__(self, argv, env=None, initialize=True, stderr=None, name="agentiso-tests"):
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                                        env={**os.environ, **(env or {})})
        self.notifications = []
        self._waiting = {}
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._next_id = 0
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if initialize:
            self.server = self.request("initialize", {
                "protocolVersion": "2025-06-18", "capabilities": {},
                "clientInfo": {"name": name, "version": "1"}})
            self.notify("notifications/initialized")

    def _read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            if "method" in message:
                self.notifications.append(message)
                continue
            with self._lock:
                waiting = self._waiting.pop(message.get("id"), None)
            if waiting:
                waiting.put(message)
        with self._lock:
            self._closed = True
            for waiting in self._waiting.values():
                waiting.put(None)

    def send(self, message):
        data = (json.dumps(message) + "\n").encode()
        with self._write_lock:
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def notify(self, method, params=None):
        self.send({"jsonrpc": "2.0", "method": method, **({"params": params} if params is not None else {})})

    def start(self, method, params=None):
        """Sends a request and returns (id, queue that receives the response)."""
        answer = queue.SimpleQueue()
        with self._lock:
            if self._closed:
                raise EOFError("the server closed its output")
            self._next_id += 1
            request_id = self._next_id
            self._waiting[request_id] = answer
        self.send({"jsonrpc": "2.0", "id": request_id, "method": method,
                   **({"params": params} if params is not None else {})})
        return request_id, answer

    def request(self, method, params=None, timeout=DEFAULT_TIMEOUT):
        request_id, answer = self.start(method, params)
        try:
            message = answer.get(timeout=timeout)
        except queue.Empty:
            with self._lock:
                self._waiting.pop(request_id, None)
            raise TimeoutError(f"{method} got no response in {timeout} s") from None
        if message is None:
            raise EOFError("the server closed its output")
        if "error" in message:
            raise McpError(message["error"])
        return message["result"]

    def call_raw(self, tool, timeout=DEFAULT_TIMEOUT, **arguments):
        return self.request("tools/call", {"name": tool, "arguments": arguments}, timeout)

    def call(self, tool, timeout=DEFAULT_TIMEOUT, **arguments):
        """Calls a tool: its structured result, or its text when it has none. Raises ToolError."""
        result = self.call_raw(tool, timeout, **arguments)
        if result.get("isError"):
            raise ToolError(result)
        if "structuredContent" in result:
            return result["structuredContent"]
        return "".join(c.get("text", "") for c in result["content"])

    def close(self, timeout=5):
        """Closes standard input and waits for the server to end; returns its exit status."""
        if self.process.stdin and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
