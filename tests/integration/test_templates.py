# SPDX-License-Identifier: Apache-2.0
"""Templates, live snapshots and forks with real machines: a program of its own that speaks TAP."""

import subprocess

from conftest import BUILD, IMAGE_DIR


def test_templates_snapshots_and_forks():
    done = subprocess.run([BUILD / "tests" / "unit" / "vm" / "template-once", IMAGE_DIR], capture_output=True,
                          text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nok 9 - " in done.stdout and "\n1..9\n" in done.stdout, done.stdout
