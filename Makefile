# SPDX-License-Identifier: GPL-2.0-or-later
# The front door. `make help` lists the targets; docs/ has the depth.

PYTHON ?= /usr/bin/python3
export

all: help

install:              ## install the Debian packages that the tools use
	@[ -n "$(SKIP_INSTALL)" ] || tools/install.sh

tree: install         ## git tree of base + series under build/
	@$(PYTHON) tools/series.py tree

export: install       ## write the tree's commits back to patches/
	@$(PYTHON) tools/series.py export

series-check: install ## lint, git am, re-export, checkpatch
	@$(PYTHON) tools/series.py check

mail: install         ## prepare the series for sending; sends nothing
	@$(PYTHON) tools/series.py mail

build: install        ## build QEMU without and with the series
	@$(PYTHON) tools/build.py

bench: install        ## fio in a guest, base and series side by side
	@$(PYTHON) tools/bench.py

bench-ring: install   ## load generator instead of a guest, base and series side by side
	@$(PYTHON) tools/ring.py

bench-cost: install   ## what a deferred call costs, in instructions
	@$(PYTHON) tools/cost.py

stress: install       ## stop/cont under load: is a notification lost?
	@$(PYTHON) tools/stress.py

soak: install         ## fio verifies while the host stops, drains, unplugs, resets, migrates
	@$(PYTHON) tools/soak.py

fuzz: install         ## QEMU's generic-fuzz with libFuzzer, disks on an IOThread
	@$(PYTHON) tools/fuzz.py

check: install        ## all the tests
	@$(PYTHON) tools/check.py

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20

.PHONY: all install tree export series-check mail build bench bench-ring bench-cost stress soak fuzz check help
