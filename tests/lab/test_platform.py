# SPDX-License-Identifier: Apache-2.0
"""What only the lab machine has: KVM that works. Run by tests/lab/job.

KVM itself is emulated there, so a boot takes many times longer than on hardware: the accelerator is set, because the
probe's limit of a few seconds would be right to give up.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "lib"))
from host import make_host  # noqa: E402

SLOW = 400


def test_a_workspace_under_kvm():
    for host in make_host('[vm]\naccel = "kvm"\nboot_timeout_secs = 300\n'):
        client = host.client()
        ws = client.call("workspace_create", name="kvm", timeout=SLOW)["workspace_id"]
        arguments = pathlib.Path(f"/proc/{host.vm_pids()[0]}/cmdline").read_bytes().split(b"\0")
        assert b"host" in arguments and any(a.startswith(b"kvm") for a in arguments), arguments
        result = client.call("exec", workspace_id=ws, command="echo under KVM; cat /sys/devices/system/clocksource/*/current_clocksource",
                             timeout_secs=200, timeout=SLOW)
        assert result["stdout"] == "under KVM\nkvm-clock\n", result
        host.kill_daemon()
        assert client.call("exec", workspace_id=ws, command="echo again", timeout=SLOW)["stdout"] == "again\n"
        client.call("workspace_stop", workspace_id=ws, timeout=SLOW)
        client.call("workspace_start", workspace_id=ws, timeout=SLOW)
        client.call("workspace_destroy", workspace_id=ws, timeout=SLOW)
        assert host.qemu_pids() == []
