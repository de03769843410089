# SPDX-License-Identifier: Apache-2.0
"""Formatters, linters and rules of this repository, each as a test with the tool's own output as the reason."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BUILD = ROOT / os.environ.get("AGENTISO_BUILD", "build")
# What a linter finds changes with its version: those of Debian 12 decide.
CLANG_VERSION = "14"
CPPCHECK_VERSION = "2.10"
MAX_LINES = 800


def tracked(*patterns):
    """Files that git knows or would add, by glob; works in an exported tree without git too."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "--", *patterns], cwd=ROOT, check=False,
                            capture_output=True, text=True)
    if listed.returncode == 0:
        return sorted(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"**/{pattern}"))


def run(*argv, timeout=900):
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout + done.stderr


def need_version(tool, version):
    here = run(tool, "--version")[1]
    if not re.search(rf"(version|Cppcheck) {re.escape(version)}", here):
        pytest.skip(f"{tool} {version} decides; here is {here.strip()}")


def test_c_files_are_formatted():
    need_version("clang-format", CLANG_VERSION)
    status, output = run("clang-format", "--dry-run", "--Werror", *tracked("*.c", "*.h"))
    assert status == 0, output


def test_cppcheck():
    need_version("cppcheck", CPPCHECK_VERSION)
    status, output = run("cppcheck", "--quiet", "--error-exitcode=1", "--inline-suppr", "--std=c11", "-j2",
                         "--enable=warning,performance,portability", "--suppressions-list=.cppcheck-suppressions",
                         "-Isrc", "-D_GNU_SOURCE", "-DAGENTISO_VERSION=\"0\"", "src")
    assert status == 0, output


def test_clang_tidy():
    need_version("clang-tidy", CLANG_VERSION)
    files = [name for name in tracked("*.c") if name.startswith("src/")]
    assert files
    # A gcc build's compile commands have warning options that clang does not know.
    status, output = run("sh", "-c", 'printf "%s\\n" "$@" | xargs -P2 -n4 clang-tidy --quiet -p "$0" '
                         '--extra-arg=-Wno-unknown-warning-option', str(BUILD), *files)
    assert status == 0, output


def test_shell_scripts():
    scripts = [name for name in tracked("*")
               if re.match(rb"#!/bin/(ba)?sh", (ROOT / name).open("rb").readline())]
    assert scripts
    status, output = run("shellcheck", "-x", *scripts)
    assert status == 0, output


def test_files_stay_readable():
    long = [name for name in tracked("*.c", "*.h", "*.py", "*.cc")
            if (ROOT / name).read_text().count("\n") > MAX_LINES]
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_every_source_names_its_license():
    missing = [name for name in tracked("*.c", "*.h", "*.cc", "*.py", "meson.build")
               if "SPDX-License-Identifier: Apache-2.0" not in (ROOT / name).read_text()[:400]]
    assert not missing, missing


def test_only_the_state_folder_writes_sql():
    found = [name for name in tracked("*.c") if name.startswith("src/") and not name.startswith("src/state/")
             and "sqlite3_" in (ROOT / name).read_text()]
    assert not found, found
