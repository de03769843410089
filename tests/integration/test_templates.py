# SPDX-License-Identifier: Apache-2.0
"""Templates, snapshots and forks with real machines: programs of their own that speak TAP."""

import subprocess

import pytest
from host import BUILD, IMAGE_DIR


@pytest.mark.parametrize("program, tests", [("template-once", 9), ("fork-once", 9), ("agent-once", 9)])
def test_real_machines(program, tests):
    done = subprocess.run([BUILD / "tests" / "unit" / "vm" / program, IMAGE_DIR], capture_output=True,
                          text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\nok {tests} - " in done.stdout and f"\n1..{tests}\n" in done.stdout, done.stdout
