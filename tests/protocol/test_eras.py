# SPDX-License-Identifier: Apache-2.0
"""The legacy handshake, the stateless revision, and both in one process."""

import pytest
from conftest import COMMAND, LEGACY, META, MODERN

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
SERVER_KEY = "io.modelcontextprotocol/serverInfo"


@pytest.mark.parametrize("version", LEGACY)
def test_a_known_version_is_echoed(server, version):
    result = server.initialize(version)
    assert result["protocolVersion"] == version
    assert result["capabilities"] == {"tools": {}}
    assert result["serverInfo"]["name"] == "agentiso" and result["serverInfo"]["version"]
    assert 200 < len(result["instructions"].encode()) < 2048
    assert "internet" in result["instructions"], "a model tries apt-get and pip first"
    assert "resultType" not in result and "_meta" not in result
    assert len(server.request("tools/list")["result"]["tools"]) >= 12


@pytest.mark.parametrize("version", ["1999-01-01", "2099-01-01", MODERN, ""])
def test_another_version_gets_the_latest_of_the_era(server, version):
    assert server.initialize(version)["protocolVersion"] == "2025-11-25"
    server.ping()


@pytest.mark.parametrize("params", [None, {}, {"protocolVersion": 5}, {"protocolVersion": None}])
def test_initialize_without_a_version(server, params):
    assert server.request("initialize", params)["error"]["code"] == -32602
    assert server.initialize()["protocolVersion"] == "2025-06-18"


def test_before_initialize(server):
    server.ping()
    for method in ("tools/list", "tools/call", "resources/list", "no/such"):
        answer = server.request(method, {"name": "workspace_list"})
        assert answer["error"]["code"] in (-32600, -32601)
        assert answer["error"]["message"]
    server.notify("notifications/initialized")
    server.initialize()
    assert "tools" in server.request("tools/list")["result"]


def test_unknown_methods(client):
    for method in ("no/such", "resources/list", "prompts/list", "logging/setLevel", "", "tools/list2", "m" * 100000):
        answer = client.request(method)
        assert answer["error"]["code"] == -32601
        assert len(answer["error"]["message"]) < 200


def test_initialize_again(client):
    assert client.initialize("2025-11-25")["protocolVersion"] == "2025-11-25"


def test_discover(server):
    result = server.request("server/discover", {"_meta": META})["result"]
    assert result["resultType"] == "complete"
    assert result["supportedVersions"][0] == MODERN and set(LEGACY) <= set(result["supportedVersions"])
    assert result["capabilities"] == {"tools": {}}
    assert result["_meta"][SERVER_KEY]["name"] == "agentiso"
    assert result["ttlMs"] >= 0 and result["cacheScope"] in ("public", "private")
    assert result["instructions"]


def test_a_modern_session_as_claude_code_opens_it(server):
    server.raw('{"method":"server/discover","params":{"_meta":{"%s":"%s","%s":{},"io.modelcontextprotocol/clientInfo":'
               '{"name":"c","version":"1"}}},"jsonrpc":"2.0","id":"probe-1"}\n' % (VERSION_KEY, MODERN, CAPABILITIES_KEY))
    assert server.answer("probe-1")["result"]["resultType"] == "complete"
    listed = server.request("tools/list", {"_meta": META})["result"]
    assert listed["resultType"] == "complete" and "ttlMs" in listed and "cacheScope" in listed
    called = server.request("tools/call", {"name": "workspace_list", "arguments": {}, "_meta": META})["result"]
    assert called["resultType"] == "complete" and "ttlMs" not in called
    assert called["_meta"][SERVER_KEY]["name"] == "agentiso"
    failed = server.request("tools/call", {"name": "workspace_info", "arguments": {"workspace_id": "none"},
                                           "_meta": META})["result"]
    assert failed["resultType"] == "complete" and failed["isError"]
    assert failed["_meta"]["code"] == "not_found" and SERVER_KEY in failed["_meta"]


@pytest.mark.parametrize("method", ["initialize", "ping", "logging/setLevel", "resources/subscribe", "no/such"])
def test_what_the_modern_era_does_not_have(server, method):
    answer = server.request(method, {"_meta": META, "protocolVersion": "2025-06-18"})
    assert answer["error"]["code"] == -32601


@pytest.mark.parametrize("missing", [VERSION_KEY, CAPABILITIES_KEY])
@pytest.mark.parametrize("method", ["server/discover", "tools/list", "tools/call"])
def test_missing_meta_keys(server, method, missing):
    meta = {k: v for k, v in META.items() if k != missing}
    answer = server.request(method, {"_meta": meta, "name": "workspace_list"})
    assert answer["error"]["code"] == -32602 and missing in answer["error"]["message"]


@pytest.mark.parametrize("key, value", [(VERSION_KEY, 5), (CAPABILITIES_KEY, []), (CAPABILITIES_KEY, None)])
def test_wrong_meta_values(server, key, value):
    answer = server.request("tools/list", {"_meta": {**META, key: value}})
    assert answer["error"]["code"] == -32602 and key in answer["error"]["message"]


def test_discover_without_meta(server):
    assert server.request("server/discover")["error"]["code"] == -32602
    server.ping()


@pytest.mark.parametrize("version", ["2099-01-01", "2025-06-18", "x"])
def test_an_unsupported_version(server, version):
    answer = server.request("tools/list", {"_meta": {**META, VERSION_KEY: version}})
    assert answer["error"]["code"] == -32022
    assert answer["error"]["data"]["requested"] == version
    assert MODERN in answer["error"]["data"]["supported"]


def test_both_eras_in_one_connection(server):
    assert "result" in server.request("server/discover", {"_meta": META})
    server.initialize("2025-11-25")
    legacy = server.request("tools/list")["result"]
    modern = server.request("tools/list", {"_meta": META})["result"]
    assert "resultType" not in legacy and modern["resultType"] == "complete"
    assert legacy["tools"] == modern["tools"]
    # Other keys of that name space do not make a message modern.
    related = {"_meta": {"io.modelcontextprotocol/related-task": {"taskId": "1"}}}
    assert "resultType" not in server.request("tools/list", related)["result"]


def test_a_client_that_probes_with_one_server_and_works_with_another(spawn):
    probe = spawn(argv=COMMAND)
    assert "result" in probe.request("server/discover", {"_meta": META})
    assert probe.end() == 0
    server = spawn(argv=COMMAND)
    assert server.initialize()["protocolVersion"] == "2025-06-18"
