# SPDX-License-Identifier: Apache-2.0
"""What only the lab machine has: KVM that works. Run by tests/lab/job."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "integration"))
from conftest import host  # noqa: E402, F401


def test_kvm_is_chosen_by_itself(host):  # noqa: F811
    facts = json.loads(host.cli("check", "--json", check=False, timeout=120).stdout)
    accelerator = next(item for item in facts["checks"] if "accel" in item["name"])
    assert "kvm" in json.dumps(accelerator).lower(), accelerator
    client = host.client()
    ws = client.call("workspace_create", name="kvm")["workspace_id"]
    arguments = pathlib.Path(f"/proc/{host.qemu_pids()[0]}/cmdline").read_bytes().split(b"\0")
    assert any(a.startswith(b"kvm") for a in arguments), arguments
    assert client.call("exec", workspace_id=ws, command="echo under KVM")["stdout"] == "under KVM\n"
