# SPDX-License-Identifier: GPL-2.0-or-later
"""The tools' own tests, and the patches as texts."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from xml.etree import ElementTree

from dctools import base, build, common, deb, environment, lint, quilt, series
from dctools.check.results import Results, logs, must_fail
from dctools.process import limited


def alone(cmd: Sequence[str]) -> list[str]:
    """The command where no process but its own can be seen, so that none can be hit by mistake."""
    user = [] if os.geteuid() == 0 else ["-r"]
    # process 1 gets the orphans of others, so that shall be the shell
    return ["unshare", *user, "--pid", "--fork", "--mount-proc", "--kill-child",
            "sh", "-c", '"$@"; exit $?', "sh", *cmd]


def check_tools(results: Results, stack: str) -> None:
    """The tools' own tests, on toy data and with bad input."""
    log = logs() / "tools.log"
    # some run make, which must not hear of the variables that were given to ours
    env = environment.child({"STACK": "", "BUILD_DIR": str(common.settings.build),
                             "QEMU_PYTHON": common.settings.qemu_python}, "MAKE")
    # not their output is read but its XML: what a process of theirs prints in between can't hide a result
    said = logs() / "tools.xml"
    said.unlink(missing_ok=True)
    status = limited(alone([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--junitxml={said}"]), log,
                     1200, cwd=common.ROOT / "tests", env=env)
    ran = list(ElementTree.parse(said).iter("testcase")) if said.exists() else []
    for case in ran:
        bad = [e.tag for e in case if e.tag in ("failure", "error", "skipped")]
        name = ".".join(n for n in (case.get("classname"), case.get("name")) if n)
        results.add(f"tools {name}", f"{bad[0]}, see {log}" if bad else None)
    if not ran or status not in (0, 1):
        results.add("tools", f"pytest ends with {status} after {len(ran)} tests, see {log}")


def damaged(package: quilt.Package) -> None:
    """Its last patch, with another line of context, has to be named."""
    name, subject = list(package.subjects.items())[-1]
    path = package.tree / "debian/patches" / name
    quilt.pop(package, 1)
    path.write_text(re.sub(r"(?m)^(@@ .*\n ).*", r"\1damaged", path.read_text(), count=1))
    must_fail(f'"{subject}"', quilt.push, package)


def check_quilt(results: Results, stack: str) -> None:
    """Debian's source package with the series."""
    out = logs() / "quilt"
    made: list[quilt.Package] = []
    results.do("series quilt: patches push without fuzz and pop, and the source package builds",
               lambda: made.append(quilt.make(stack, series.read_topics(stack), out)))
    if made:
        if not base.read_pin(stack).get("suites"):
            results.do("series deb: debian/ has all that make deb tells it about", deb.left_out, *made)
        results.do("series quilt: a damaged patch is named", damaged, *made)
        shutil.rmtree(out)


def check_series(results: Results, stack: str) -> None:
    """Lint, plain git am, re-export, checkpatch, Debian's source package."""
    here, pin = base.base(stack), base.read_pin(stack)
    if not here.pinned:
        common.progress("this is not the pinned base: tree hashes are not compared")
    if not here.debian:
        common.progress("no Debian patches with this base: whether the series touches what they change is not tested")
    for name, wrong in lint.run_checks(stack, here):
        results.add(f"series {name}", "; ".join(wrong) or None)
    if here.debian:
        check_quilt(results, stack)
    repo, tip = common.stack_dir(stack) / "tree", series.update_tree(stack)[1]
    results.do("series: the hooks for tests apply", build.hooked, stack, tip)
    results.do("series: the patch for make fuzz applies", build.hooked, stack, tip,
               common.ROOT / f"tests/fuzz-{stack}.patch")
    for pattern in pin.get("gone", []):
        left = subprocess.run(["git", "-C", repo, "grep", "-E", pattern, tip], stdout=subprocess.PIPE, text=True)
        results.add(f"series leaves nothing of {pattern}",
                    None if left.returncode == 1 else left.stdout.partition("\n")[0] or "git grep failed")
