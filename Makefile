# SPDX-License-Identifier: Apache-2.0
# Thin front of scripts/ and meson; everything works without make too.
.PHONY: all run test test-lab test-trixie bench install clean

all:
	. scripts/lib.sh && setup_build "$$BUILD"

run:
	scripts/run

test:
	scripts/test

test-lab:
	scripts/test-lab

test-trixie:
	scripts/test-trixie

bench:
	scripts/bench

install: all
	. scripts/lib.sh && meson install -C "$$BUILD"

clean:
	. scripts/lib.sh && rm -rf "$$BUILD" build-asan build-tsan
