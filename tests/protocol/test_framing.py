# SPDX-License-Identifier: Apache-2.0
"""Lines, JSON and JSON-RPC: what a server must bear on its input."""

import json
import time

import pytest

PING = '{"jsonrpc":"2.0","id":%s,"method":"ping"}'
MIB = 1024 * 1024

PARSE, INVALID = -32700, -32600


def nested(depth):
    """A message that is `depth` levels deep in all."""
    return '{"jsonrpc":"2.0","id":1,"method":"ping","params":' + '{"a":' * (depth - 1) + "1" + "}" * (depth - 1) + "}"


BAD_LINES = {
    "not JSON": (b"hello", PARSE),
    "half an object": (b'{"jsonrpc":"2.0","id":1,', PARSE),
    "two values": (b"{} {}", PARSE),
    "a key twice": (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', PARSE),
    "NaN": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}', PARSE),
    "invalid UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', PARSE),
    "overlong UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"\xc0\xaf"}', PARSE),
    "a byte order mark": (b"\xef\xbb\xbf" + (PING % 1).encode(), PARSE),
    "NUL between values": (b'{"jsonrpc":"2.0",\x00"id":1,"method":"ping"}', PARSE),
    "NUL in a string": (b'{"jsonrpc":"2.0","id":1,"method":"pi\x00ng"}', PARSE),
    "escaped NUL without id": (b'{"jsonrpc":"2.0","method":"pi\\u0000ng"}', PARSE),
    "escaped NUL in the id": (b'{"jsonrpc":"2.0","id":"\\u0000","method":"ping"}', PARSE),
    "half of a message with an escaped NUL": (b'{"jsonrpc":"2.0","id":1,"method":"\\u0000"', PARSE),
    "surrogate in UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"\xed\xa0\x80"}', PARSE),
    "nesting of 129": (nested(129).encode(), PARSE),
    "nesting of 100000": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 100000, PARSE),
    "a number": (b"17", INVALID),
    "a string": (b'"ping"', INVALID),
    "null": (b"null", INVALID),
    "true": (b"true", INVALID),
    "an empty object": (b"{}", INVALID),
    "no version": (b'{"id":1,"method":"ping"}', INVALID),
    "version 1.0": (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', INVALID),
    "version as a number": (b'{"jsonrpc":2.0,"id":1,"method":"ping"}', INVALID),
    "id null": ((PING % "null").encode(), INVALID),
    "id float": ((PING % "1.5").encode(), INVALID),
    "id 1.0": ((PING % "1.0").encode(), INVALID),
    "id with exponent": ((PING % "1e2").encode(), INVALID),
    "id true": ((PING % "true").encode(), INVALID),
    "id object": ((PING % "{}").encode(), INVALID),
    "id array": ((PING % "[1]").encode(), INVALID),
    "an id without end": ((PING % ("9" * 5000)).encode(), INVALID),
    "a batch": (b"[" + (PING % 1).encode() + b"]", INVALID),
    "an empty batch": (b"[]", INVALID),
    "an open batch": (b"[", INVALID),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_gets_one_error_without_id_and_the_server_goes_on(client, name):
    line, code = BAD_LINES[name]
    client.raw(line + b"\n")
    message = client.recv()
    assert message["error"]["code"] == code
    assert message["error"]["message"]
    assert "id" not in message
    client.ping()
    client.silent(0.05)


@pytest.mark.parametrize("text", ['{"jsonrpc":"2.0","id":"q","method":5}', '{"jsonrpc":"2.0","id":"q"}'])
def test_a_request_without_a_method_keeps_its_id(client, text):
    client.raw(text + "\n")
    message = client.recv()
    assert (message["id"], message["error"]["code"]) == ("q", INVALID)


@pytest.mark.parametrize("request_id", ["7", '"seven"', "123456789012345678901234567890"])
@pytest.mark.parametrize("escape, named", [
    ("\\u0000", "\\u0000"), ("\\ud83d", "half a surrogate pair"), ("\\ude00", "half a surrogate pair")])
def test_what_no_string_can_hold_is_answered_with_the_id(client, request_id, escape, named):
    call = '{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"file_write","arguments":%s}}\n'
    client.raw(call % (request_id, '{"workspace_id":"x","path":"/x","content":"s3cret' + escape + '"}'))
    message = client.recv()
    assert message["id"] == json.loads(request_id) and message["error"]["code"] == -32602
    text = message["error"]["message"]
    assert named in text and "base64" in text and "printf '\\000'" in text
    assert "s3cret" not in text and "JSON_ALLOW_NUL" not in text
    client.ping()


@pytest.mark.parametrize("line", [
    '{"jsonrpc":"2.0","id":1,"params":{"KEY":"s3cret"', '{"KEY":"s3cret" "x"}', '{"KEY":"s3cret\\x"}', '[s3cret]',
    '{"s3cret":1,"s3cret":2}', '{"KEY":"s3cret"} s3cret', '{"jsonrpc":"2.0","id":1,"method":"\\us3cret"}'])
def test_an_error_of_the_parser_does_not_quote_the_line(server, line):
    server.initialize("2025-06-18")
    server.raw(line + "\n")
    message = server.recv()
    assert message["error"]["code"] in (PARSE, INVALID) and "s3c" not in json.dumps(message)
    assert message["error"]["code"] == INVALID or "byte" in message["error"]["message"]


def test_nesting_of_128_is_fine(client):
    client.raw(nested(128) + "\n")
    assert client.recv() == {"jsonrpc": "2.0", "id": 1, "result": {}}


def test_params_that_are_no_object(client):
    for params in ([], "x", 1, True):
        assert client.request("ping", params)["error"]["code"] == -32602
    client.raw('{"jsonrpc":"2.0","id":"n","method":"ping","params":null}\n')
    assert client.answer("n")["result"] == {}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n\r\n  \t\n"])
def test_line_ends(client, end):
    client.raw("".join(PING % i + end for i in range(100, 105)))
    assert [client.recv()["id"] for _ in range(5)] == list(range(100, 105))


def test_blank_lines_alone_get_no_answer(client):
    client.raw("\n\r\n   \n\t\r\n")
    client.silent()
    client.ping()


def test_byte_by_byte(client):
    for byte in (PING % '"slow"' + "\n").encode():
        client.raw(bytes([byte]))
    assert client.recv()["id"] == "slow"


def test_the_last_line_needs_no_newline(server):
    server.initialize()
    server.raw(PING % 77)
    server.close_write()
    assert server.answer(77)["result"] == {}
    assert server.line() == b""


def test_an_end_in_the_middle_of_a_message(server):
    server.raw('{"jsonrpc":"2.0","id":1,"meth')
    server.close_write()
    message = server.recv()
    assert message["error"]["code"] == PARSE and "id" not in message
    assert server.line() == b""


@pytest.mark.parametrize("raw", [
    "0", "7", "-7", "-0", "9007199254740991", "9007199254740993", "9223372036854775807", "-9223372036854775808",
    "18446744073709551616", "123456789012345678901234567890", '""', '"a"', '"7"', '"\\u00e9\\n\\"id\\":5"', '"\u00e9"',
    '"a\\/b"', '"\\ud83d\\ude00"',
])
def test_ids_come_back_as_they_were_written(client, raw):
    client.raw((PING % raw + "\n").encode())
    assert client.line() == f'{{"jsonrpc":"2.0","id":{raw},"result":{{}}}}\n'.encode()
    # The same in an error and in the answer of a tool.
    client.raw(f'{{"method":"no/such","id" : {raw} ,"jsonrpc":"2.0"}}\n'.encode())
    assert client.line().startswith(f'{{"jsonrpc":"2.0","id":{raw},"error":'.encode())
    client.raw(f'{{"id":{raw},"jsonrpc":"2.0","method":"tools/call","params":{{"name":"workspace_list"}}}}\n'.encode())
    assert client.line().startswith(f'{{"jsonrpc":"2.0","id":{raw},"result":'.encode())


def test_an_id_elsewhere_is_not_the_id(client):
    client.raw('{"params":{"id":1,"x":"\\"id\\":2"},"method":"ping","jsonrpc":"2.0","id":3}\n')
    assert client.recv()["id"] == 3


def test_a_number_beyond_64_bits_still_gets_its_answer(client):
    client.raw('{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"workspace_logs","arguments":'
               '{"workspace_id":"x","max_lines":99999999999999999999999}}}\n')
    result = client.answer(5)["result"]
    assert result["isError"] and "max_lines" in result["content"][0]["text"]


def test_a_line_over_16_mib(client):
    began = time.monotonic()
    client.raw(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"' + b"x" * (17 * MIB) + b'"}}\n')
    message = client.recv()
    assert message["error"]["code"] in (PARSE, INVALID) and "id" not in message
    client.ping()
    client.silent(0.05)
    assert time.monotonic() - began < 20


def test_the_error_for_a_long_line_does_not_wait_for_its_end(harness):
    harness.raw(b"x" * (17 * MIB))
    assert "error" in harness.recv()
    harness.raw(b"x" * (17 * MIB) + b"\n" + (PING % 8).encode() + b"\n")
    assert harness.recv()["id"] == 8


def test_a_line_just_below_16_mib(client):
    head, tail = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"', b'"}}'
    client.raw(head + b"x" * (16 * MIB - len(head) - len(tail)) + tail + b"\n")
    assert client.recv()["result"] == {}


def test_many_bad_lines(client):
    client.raw(b"}\n" * 2000 + (PING % 1).encode() + b"\n")
    messages = [client.recv() for _ in range(2001)]
    assert all("id" not in m for m in messages[:-1])
    assert messages[-1]["id"] == 1


@pytest.mark.parametrize("text", [
    '{"jsonrpc":"2.0","method":"notifications/no-such-thing"}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled"}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":[1]}',
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}',
    '{"jsonrpc":"2.0","method":"tools/call","params":{"name":"workspace_create"}}',
    '{"jsonrpc":"2.0","id":1,"result":{}}',
    '{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"x"}}',
])
def test_what_gets_no_answer(client, text):
    client.raw(text + "\n")
    client.silent(0.1)
    client.ping()


class TestBatches:
    """JSON-RPC batches exist in revision 2025-03-26 alone."""

    @pytest.fixture
    def session(self, server):
        server.initialize("2025-03-26")
        return server

    def test_all_answers_come_as_one_array(self, session):
        session.send([
            {"jsonrpc": "2.0", "id": 1, "method": "ping"},
            {"jsonrpc": "2.0", "method": "notifications/whatever"},
            {"jsonrpc": "2.0", "id": "two", "method": "tools/call", "params": {"name": "workspace_list"}},
            {"jsonrpc": "2.0", "id": 3, "method": "nope"},
            {"jsonrpc": "2.0", "id": None, "method": "ping"},
        ])
        answers = session.recv()
        assert isinstance(answers, list) and len(answers) == 4
        by_id = {a.get("id", "none"): a for a in answers}
        assert by_id[1]["result"] == {}
        assert "workspaces" in by_id["two"]["result"]["structuredContent"]
        assert by_id[3]["error"]["code"] == -32601
        assert by_id["none"]["error"]["code"] == INVALID
        session.silent(0.05)

    def test_notifications_alone_get_no_answer(self, session):
        session.send([{"jsonrpc": "2.0", "method": "notifications/a"}, {"jsonrpc": "2.0", "method": "notifications/b"}])
        session.silent(0.1)

    @pytest.mark.parametrize("text, code", [("[]", INVALID), ("[1,]", PARSE), ("[", PARSE), ("[{]", PARSE)])
    def test_bad_batches(self, session, text, code):
        session.raw(text + "\n")
        message = session.recv()
        assert message["error"]["code"] == code and "id" not in message
        session.ping()

    def test_a_batch_is_bounded(self, session):
        session.send([{"jsonrpc": "2.0", "id": i, "method": "ping"} for i in range(1000)])
        assert session.recv()["error"]["code"] == INVALID
        session.ping()

    def test_initialize_may_not_hide_in_one(self, session):
        session.send([{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18"}}])
        assert session.recv()[0]["error"]["code"] == INVALID

    def test_what_no_string_can_hold_fails_its_own_message_only(self, session):
        session.raw('[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"pi\\u0000ng"}]\n')
        by_id = {a["id"]: a for a in session.recv()}
        assert by_id[1]["result"] == {} and by_id[2]["error"]["code"] == -32602

    def test_a_batch_with_invalid_json_runs_nothing(self, session):
        session.raw(json.dumps([{"jsonrpc": "2.0", "id": 1, "method": "ping"}])[:-1] + ", {\"a\": }]\n")
        assert session.recv()["error"]["code"] == PARSE
        session.silent(0.05)
