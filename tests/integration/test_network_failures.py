# SPDX-License-Identifier: Apache-2.0
"""What a workspace may reach stays what its row says, or less, whatever fails on the way."""

import os
import re
import shutil
import signal

import pytest

from guest import Guest
from host import wait_until
from mcp_client import ToolError
from netlab import WEB, helper_pid, holder_pid, kill, pasta_pid


@pytest.fixture
def installation(world):
    with world.agentiso() as host:
        yield host


def configure(host, old, new):
    text = host.config.read_text()
    assert old in text
    host.config.write_text(text.replace(old, new))


def test_one_who_takes_away_does_not_fail_for_the_uplink(world, installation):
    client = installation.client()
    one, two = Guest(client, "one", allow_internet=True), Guest(client, "two", allow_internet=True)
    world.host.sh(f"ip route del default via {WEB}")
    try:
        kill(pasta_pid(installation))
        wait_until(lambda: pasta_pid(installation) is None, 10, "the end of pasta")
        # Somebody else still wants the internet, and it cannot be had: that is nobody else's error.
        assert not one.policy(allow_internet=False)["allow_internet"]
        assert one.policy(allow_inter_vm=True)["allow_inter_vm"]
        assert two.policy()["allow_internet"]
        with pytest.raises(ToolError):
            one.policy(allow_internet=True)
        assert not one.policy()["allow_internet"]
    finally:
        world.host.sh(f"ip route add default via {WEB}")
    wait_until(lambda: two.connects(WEB, 80), 30, "the internet")
    assert two.exec("getent hosts web.test")["exit_code"] == 0
    assert not one.connects(WEB, 80)


def test_an_uplink_that_does_not_stay_is_not_started_all_the_time(world, installation):
    Guest(installation.client(), "one", allow_internet=True)
    world.host.sh(f"ip route del default via {WEB}")
    try:
        kill(pasta_pid(installation))
        log = installation.state_dir / "daemon.log"
        wait_until(lambda: "not as it should be" in log.read_text(), 20, "a word about it")
        size = log.stat().st_size
        # Three more rounds of the keeper.
        wait_until(lambda: log.read_text().count("not as it should be") >= 4, 30, "more words")
        assert log.stat().st_size - size < 4000
    finally:
        world.host.sh(f"ip route add default via {WEB}")


SLOW_NFT = """#!/bin/sh
i=0
while [ -e {gate} ] && [ $((i += 1)) -lt 300 ]; do : > {waits}; sleep 0.05; done
exec {nft} "$@"
"""


def test_a_daemon_serves_before_its_network_is_there(world, tmp_path):
    gate, waits, nft = tmp_path / "gate", tmp_path / "waits", tmp_path / "nft"
    nft.write_text(SLOW_NFT.format(gate=gate, waits=waits, nft=shutil.which("nft")))
    nft.chmod(0o755)
    with world.agentiso() as host:
        host.prefix += ["env", f"PATH={tmp_path}:{os.environ['PATH']}"]
        one = Guest(host.client(), "one", allow_internet=True)
        host.kill_daemon()
        gate.touch()
        assert one.run("echo here", timeout=10) == "here\n"
        one.policy()
        # A change is not acknowledged before it is in force.
        wait_until(waits.exists, 20, "the rules")
        gate.unlink()
        assert not one.policy(allow_internet=False)["allow_internet"]
        assert not one.connects(WEB, 80)


def test_an_address_is_not_handed_on_with_its_rights(world, installation):
    client = installation.client()
    first = Guest(client, "first", allow_internet=True)
    stopped = helper_pid(installation)
    os.kill(stopped, signal.SIGSTOP)
    # It goes all the same, but its address waits for the rules without it.
    client.call("workspace_destroy", workspace_id="first", timeout=60)
    second = Guest(client, "second")
    assert not second.connects(WEB, 80)
    assert second.ip != first.ip or not second.policy()["allow_internet"]
    wait_until(lambda: helper_pid(installation) not in (None, stopped), 40, "another helper")
    third = Guest(client, "third")
    assert not third.connects(WEB, 80) and not second.connects(WEB, 80)


def test_a_daemon_that_cannot_take_up_the_network_leaves_it(installation):
    client = installation.client()
    guest = Guest(client, "one", allow_internet=True)
    holder = holder_pid(installation)
    installation.cli("stop")
    configure(installation, "[templates]", '[network]\ncidr = "10.77.0.0/16"\n[templates]')
    with pytest.raises(ToolError) as caught:
        guest.policy(allow_internet=False)
    assert re.search("stop --all", caught.value.text), caught.value.text
    installation.cli("stop")
    assert holder_pid(installation) == holder
    configure(installation, '[network]\ncidr = "10.77.0.0/16"\n', "")
    wait_until(lambda: guest.connects(WEB, 80), 30, "the network as it was")
    guest.policy(allow_internet=False)
    assert not guest.connects(WEB, 80)


def test_another_mode_with_machines_of_the_former_one(world, installation):
    guest = Guest(installation.client(), "one", allow_internet=True)
    pids = [holder_pid(installation), pasta_pid(installation)]
    installation.cli("stop")
    configure(installation, "[templates]", '[network]\nmode = "user"\n[templates]')
    # What cannot be enforced is not said to be done; and the way out is gone in any case.
    with pytest.raises(ToolError) as caught:
        guest.policy(allow_internet=False)
    assert caught.value.code == "conflict" and "workspace_start" in caught.value.text
    guest.exec("ip route replace default via 10.99.0.1 dev eth0 onlink")
    assert not guest.connects(WEB, 80)
    # Its ports are reached by the agent.
    guest.serve(8000)
    port = guest.call("port_forward", action="add", guest_port=8000)["host_port"]
    with world.connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 200")
    installation.clients[0].close()
    installation.cli("stop", "--all")
    for pid in pids:
        wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), 10, f"the end of {pid}")


def test_a_namespace_that_is_lost(world, installation):
    guest = Guest(installation.client(), "one", allow_internet=True)
    pasta = pasta_pid(installation)
    daemon = installation.daemon_pid()
    os.kill(daemon, signal.SIGSTOP)  # it shall not mend it
    kill(holder_pid(installation))
    kill(daemon)
    installation.clients.append(again := installation.client())
    guest = Guest(again, "one", create=False)
    with pytest.raises(ToolError) as caught:
        guest.policy(allow_internet=False)
    assert caught.value.code == "conflict" and "workspace_start" in caught.value.text
    # Nobody controls it any more: so it does not reach anything.
    wait_until(lambda: not os.path.exists(f"/proc/{pasta}"), 10, "the end of the former uplink")
    assert not guest.connects(WEB, 80)
    guest.call("workspace_stop")
    guest.call("workspace_start")
    assert guest.connects(WEB, 80)
    guest.policy(allow_internet=False)
    assert not guest.connects(WEB, 80)
