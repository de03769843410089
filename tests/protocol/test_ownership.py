# SPDX-License-Identifier: Apache-2.0
"""Calls for several workspaces: all of them are checked before any is adopted."""

import pytest


def owned(peer):
    return [w["name"] for w in peer.call("workspace_list")["structuredContent"]["workspaces"] if w["owned"]]


def each(peer, *workspaces):
    return peer.call("test_each", {"workspace_ids": list(workspaces)})


def test_the_order_is_kept_and_orphans_are_adopted(orphans):
    peer = orphans()
    result = each(peer, "ws-002", "ws-000")["structuredContent"]
    assert result == {"names": ["ws-002", "ws-000"], "adopted": True}
    assert sorted(owned(peer)) == ["ws-000", "ws-002"]
    assert each(peer, "ws-000", "ws-002")["structuredContent"] == {"names": ["ws-000", "ws-002"]}
    assert each(peer, "ws-000", "ws-001")["structuredContent"]["adopted"] is True


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_is_not_there_stops_all(orphans, place):
    peer = orphans()
    names = ["ws-000", "ws-001"]
    names.insert(place, "ws-00x")
    result = each(peer, *names)
    assert result["_meta"]["code"] == "not_found" and '"ws-00x"' in result["content"][0]["text"]
    assert owned(peer) == []


@pytest.mark.parametrize("order", [("ws-001", "ws-000"), ("ws-000", "ws-001")])
def test_one_of_another_client_stops_all(orphans, order):
    one, two = orphans(), orphans()
    each(one, "ws-000")
    result = each(two, *order)
    assert result["_meta"]["code"] == "not_owner" and '"ws-000"' in result["content"][0]["text"]
    assert owned(two) == [] and owned(one) == ["ws-000"]


def test_no_workspace_twice(orphans):
    peer = orphans()
    result = each(peer, "ws-000", "ws-001", "ws-000")
    assert result["_meta"]["code"] == "invalid_argument" and "items 1 " in result["content"][0]["text"]
    assert owned(peer) == []


def snapshot(peer, workspace, action, **more):
    return peer.call("snapshot", {"workspace_id": workspace, "action": action, **more})


def test_snapshots_of_another_client_can_only_be_listed(orphans):
    one, two = orphans(), orphans()
    each(one, "ws-000")
    assert snapshot(two, "ws-000", "list")["structuredContent"] == {"snapshots": []}
    for action in ("create", "restore", "delete"):
        assert snapshot(two, "ws-000", action, name="n")["_meta"]["code"] == "not_owner", action
    assert two.call("workspace_fork", {"workspace_id": "ws-000"})["_meta"]["code"] == "not_owner"
    assert owned(one) == ["ws-000"] and owned(two) == []


def test_looking_at_snapshots_adopts_nothing(orphans):
    peer = orphans()
    assert snapshot(peer, "ws-000", "list")["structuredContent"] == {"snapshots": []}
    assert owned(peer) == []
    assert snapshot(peer, "ws-000", "delete", name="none-such")["_meta"]["code"] == "not_found"
    peer.call("workspace_fork", {"workspace_id": "ws-001", "snapshot_name": "none-such"})
    assert sorted(owned(peer)) == ["ws-000", "ws-001"]
    assert snapshot(peer, "nowhere", "list")["_meta"]["code"] == "not_found"


def test_none_at_all(orphans):
    assert each(orphans())["structuredContent"] == {"names": []}
