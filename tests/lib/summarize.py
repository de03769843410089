# SPDX-License-Identifier: Apache-2.0
"""Adds up the JUnit files of a test run.

usage: summarize.py RESULTS_DIR ALLOWED_SKIPS

A skip counts as a failure unless ALLOWED_SKIPS has a line `<substring of the test's name>: <reason>`. A file
failed-steps in RESULTS_DIR lists parts of the run that failed as a whole: each counts when no single failure explains
it. The last line is `N passed, N failed`.
"""

import pathlib
import sys
import xml.etree.ElementTree


def read_allowed(path):
    allowed = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(": ")
            if not reason.strip():
                sys.exit(f"{path}: no reason after '{name}'")
            allowed[name.strip()] = reason.strip()
    return allowed


def main():
    results, allowed = pathlib.Path(sys.argv[1]), read_allowed(pathlib.Path(sys.argv[2]))
    passed = failed = 0
    for file in sorted(results.glob("*.xml")):
        for case in xml.etree.ElementTree.parse(file).iter("testcase"):
            name = f"{file.stem}: {case.get('classname') or ''} {case.get('name')}"
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                failed += 1
                print(f"failed: {name}")
            elif skip is not None:
                reason = next((why for part, why in allowed.items() if part in name), None)
                if reason is None:
                    failed += 1
                    print(f"failed: {name} was skipped, which is not on the list of allowed skips: {skip.get('message')}")
                else:
                    print(f"skipped: {name}: {reason}")
            else:
                passed += 1
    steps = results / "failed-steps"
    if steps.exists():
        names = steps.read_text().splitlines()
        print("failed steps: " + "; ".join(names))
        failed = max(failed, len(names))
    if passed == 0:
        print("no test ran")
        failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
