# SPDX-License-Identifier: Apache-2.0
"""A folder of src/ may include only itself and what stands above it (docs/architecture.md)."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
SRC = ROOT / "src"

ORDER = ["base", "wire", "guest", "state", "storage", "network", "vm", "workspace", "mcp", "tools", "daemon", "cli"]
# The guest is a leaf: it sees base and wire only, and nothing on the host includes it.
LEAVES = {"guest"}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def allowed(folder):
    above = ORDER[:ORDER.index(folder)]
    return {folder, *(name for name in above if name not in LEAVES)}


def violations(folder, path, text):
    for name in INCLUDE.findall(text):
        target = name.split("/")[0] if "/" in name else folder
        if target not in allowed(folder):
            yield f"{path}: includes \"{name}\": {folder} may include only {sorted(allowed(folder))}"


def test_every_folder_is_a_known_layer():
    assert sorted(p.name for p in SRC.iterdir() if p.is_dir()) == sorted(ORDER)


def test_includes_go_upwards_only():
    found = []
    for folder in ORDER:
        for path in sorted((SRC / folder).glob("**/*.[ch]*")):
            found += violations(folder, path.relative_to(ROOT), path.read_text())
    assert not found, "\n".join(found)


def test_a_wrong_include_is_noticed():
    assert list(violations("base", "x.c", '#include "vm/vm.h"\n'))
    assert list(violations("vm", "x.c", '#include "guest/exec.h"\n'))
    assert not list(violations("vm", "x.c", '#include "base/buf.h"\n#include <stdio.h>\n'))
