# SPDX-License-Identifier: GPL-2.0-or-later
# Thin fronts of ./dc, which has all of the options; NAME=VALUE is --name VALUE. `make help` lists the targets.

PYTHON ?= /usr/bin/python3
export

# The variables that were given to make, so that one that no option has can be refused
GIVEN = $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(filter-out -%,$(v))))
DC = $(PYTHON) ./dc --make '$(GIVEN)' '$(MAKECMDGOALS)'

all: help

install:              ## install the Debian packages that the tools use
	@[ -n "$(SKIP_INSTALL)" ] || ./install.sh

tree: install         ## git tree of base + series under build/
	@$(DC) series tree

export: install       ## write the tree's commits back to patches/
	@$(DC) series export

series-check: install ## lint, git am, re-export, checkpatch
	@$(DC) series check

mail: install         ## prepare the series for sending; sends nothing
	@$(DC) series mail

mbox: install         ## each topic as one file, for git am, b4 or patchew
	@$(DC) series mbox

quilt: install        ## Debian's source package with the series in debian/patches
	@$(DC) series quilt

build: install        ## build QEMU without and with the series
	@$(DC) build

deb: install          ## Debian packages with the series, half an hour with 2 CPUs
	@$(DC) deb

bench: install        ## fio in a guest, base and series side by side
	@$(DC) bench

bench-ring: install   ## load generator instead of a guest, base and series side by side
	@$(DC) loadgen

bench-uml: install    ## fio in a real Linux on the vhost-user-blk export, base and series side by side
	@$(DC) uml

bench-cost: install   ## what a deferred call costs, in instructions
	@$(DC) cost

results: install      ## table and plots of results once more: DIRECTORY=
	@$(DC) results

docs: install         ## the documents' tables once more, from results/
	@$(DC) docs

signs: install        ## do other results show the same differences? CLAIMED= DIRECTORY=
	@$(DC) signs

stress: install       ## stop/cont under load: is a notification lost?
	@$(DC) stress

soak: install         ## fio verifies while the host stops, drains, unplugs, resets, migrates
	@$(DC) soak

sigterm: install      ## does QEMU end by SIGTERM while its disks are loaded?
	@$(DC) sigterm

fuzz: install         ## QEMU's generic-fuzz with libFuzzer, disks on an IOThread
	@$(DC) fuzz

image: install        ## the guest's kernel, initramfs and firmware
	@$(DC) image

check: install        ## all the tests
	@$(DC) check

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20
	@echo 'Options are variables: make bench PAIRS=12. ./dc COMMAND --help tells them:'
	@./dc --help | sed -n '/^  /p'

.PHONY: all install tree export series-check mail mbox quilt build deb bench bench-ring bench-uml bench-cost results docs signs \
	stress soak sigterm fuzz image check help
