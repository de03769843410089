# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests with real virtual machines: a host for a test or for a module."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "lib"))
from host import IMAGE_DIR, make_host, wait_readable, wait_until  # noqa: E402, F401
from netlab import World, missing  # noqa: E402
from saved import TEMPLATES  # noqa: E402


@pytest.fixture
def host():
    yield from make_host()


@pytest.fixture(scope="module")
def shared_host():
    yield from make_host()


@pytest.fixture(scope="module")
def shared_client(shared_host):
    return shared_host.client()


@pytest.fixture(scope="module")
def workspace(shared_client):
    """One running workspace for the tests of a module that do not change its life."""
    return shared_client.call("workspace_create", name="shared")["workspace_id"]


@pytest.fixture(scope="module")
def warm_host():
    """A host that has the templates of the default shape."""
    for host in make_host(TEMPLATES):
        host.warm()
        yield host


@pytest.fixture(scope="module")
def client(warm_host):
    return warm_host.client()


@pytest.fixture(scope="module")
def world():
    """A pretend host and a pretend internet."""
    if missing():
        pytest.skip(missing())
    world = World()
    yield world
    world.close()
