#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns a group's JSON into a C array: embed.py INPUT.json SYMBOL OUTPUT.c

An array of bytes, because string literals have a length limit. "doc" members are for docs/tools.md and left out.
"""

import json
import sys


def main():
    source, symbol, target = sys.argv[1:]
    with open(source, encoding="utf-8") as f:
        tools = json.load(f)
    for tool in tools:
        tool.pop("doc", None)
    data = json.dumps(tools, ensure_ascii=False, separators=(",", ":")).encode()
    lines = [", ".join(str(b) for b in data[i : i + 24]) for i in range(0, len(data), 24)]
    with open(target, "w", encoding="ascii") as f:
        f.write("/* Generated from a JSON file: do not edit. */\n")
        f.write(f"extern const char {symbol}[];\n")
        f.write(f"const char {symbol}[] = {{\n        ")
        f.write(",\n        ".join(lines))
        f.write(",\n        0,\n};\n")


if __name__ == "__main__":
    main()
