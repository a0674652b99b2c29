# SPDX-License-Identifier: GPL-2.0-or-later
"""make quilt: the stack's Debian source package with the series on top of Debian's own patches.

TOPIC= takes one topic and what it needs. docs/distributors.md says what to do with it.
"""

import dataclasses
import datetime
import email
import email.policy
import email.utils
import pathlib
import re
import shutil
from collections.abc import Sequence

from debian import changelog, debian_support

from dctools import base as base_
from dctools import common, environment, series
from dctools.common import ToolError, progress
from dctools.process import limited, run

FOLDER = "defer-call"           # below debian/patches
SUFFIX = "+defercall1"          # of the package's version; an update by Debian is newer
UNPACKED_MIB = 1500


@dataclasses.dataclass
class Package:
    """A source package that is unpacked in tree."""
    tree: pathlib.Path
    name: str
    version: str
    subjects: dict[str, str] = dataclasses.field(default_factory=dict)  # {line of debian/patches/series: subject}

    @property
    def top(self) -> pathlib.Path:
        """Where the package's files are."""
        return self.tree.parent

    @property
    def dsc(self) -> pathlib.Path:
        """What dpkg-source writes; a file name has no epoch."""
        return self.top / f"{self.name}_{self.version.partition(':')[2] or self.version}.dsc"


def unpack(stack: str, out: pathlib.Path) -> Package:
    """Debian's source package in the directory out, with Debian's patches applied."""
    pin = base_.read_pin(stack)
    files, version = base_.download(pin, common.settings.build / "apt" / "-".join(pin.get("suites", [])))
    if version != pin["version"]:
        progress(f"NOT THE PINNED PACKAGE: the archive has moved on to {pin['package']} {version}")
    shutil.rmtree(out, ignore_errors=True)
    common.need_space(out, UNPACKED_MIB)
    dsc, = files.glob("*.dsc")
    tree = out / f"{pin['package']}-{debian_support.Version(version).upstream_version}"
    package = Package(tree, pin["package"], version)
    progress(f"unpacking {package.name} {version}")
    run(["dpkg-source", "-x", dsc, tree.name], cwd=out, log=out / "unpack.log")
    return package


def with_header(path: pathlib.Path) -> tuple[str, datetime.datetime, bytes]:
    """(subject, date, text) of a patch, with a DEP-3 header in place of the mail's."""
    patch, data = series.read_patch(path), path.read_bytes()
    date = email.message_from_bytes(data, policy=email.policy.default)["date"]
    _, mark, diff = data.partition(b"\n---\n")[2].partition(b"\ndiff --git ")
    if not date or not diff:
        raise ToolError(f"{patch.name}: no mail as git format-patch writes it")
    message = "\n".join(patch.message).strip("\n").split("\n")
    header = [f"Description: {patch.subject}", *(f" {s}" if s.strip() else " ." for s in message),
              f"Author: {patch.sender}", "Forwarded: no", f"Last-Update: {date.datetime:%Y-%m-%d}", "", ""]
    return patch.subject, date.datetime, "\n".join(header).encode() + mark[1:] + diff


def add(package: Package, topics: Sequence[series.Topic]) -> None:
    """Put the topics behind Debian's patches, and an entry in front of its changelog."""
    debian, dates = package.tree / "debian", []
    for topic in topics:
        (debian / "patches" / FOLDER / topic.name).mkdir(parents=True)
        for path in topic.patches():
            name = f"{FOLDER}/{topic.name}/{path.name}"
            package.subjects[name], date, text = with_header(path)
            (debian / "patches" / name).write_bytes(text)
            dates.append(date)
    if not dates:
        raise ToolError("no patch in these topics")
    names = debian / "patches/series"
    theirs = names.read_text().rstrip("\n").split("\n") if names.is_file() else []
    names.write_text("\n".join([*theirs, *package.subjects, ""]))
    package.version += SUFFIX
    entry, log = changelog.Changelog(), debian / "changelog"
    entry.new_block(package=package.name, version=package.version, distributions="UNRELEASED", urgency="medium",
                    author=email.utils.formataddr(common.IDENTITY), date=email.utils.format_datetime(max(dates)))
    for line in ["", *(f"  * d/patches/{FOLDER}/{t.name}: {len(t.patches())} patches" for t in topics), ""]:
        entry.add_change(line)
    log.write_text(f"{entry}\n{log.read_text()}")


def quilt(package: Package, *command: str) -> int | str:
    """Run quilt without the person's configuration; its exit status."""
    env = environment.child({"QUILT_PATCHES": "debian/patches", "LC_ALL": "C"}, "QUILT")
    return limited(["quilt", "--quiltrc", "-", *command], package.top / "quilt.log", 600, cwd=package.tree, env=env)


def refused(package: Package, log: pathlib.Path) -> ToolError:
    """What is wrong with the patch that a failed program has named last."""
    lines = [s for s in log.read_text(errors="replace").split("\n") if s.strip()] or ["it said nothing"]
    text = "\n".join(lines)
    name = max(package.subjects, key=text.rfind)
    why = [s for s in lines if re.search(r"FAILED|\*\*\*\*|error: |can't find file|reverse-applied", s)] or lines
    what = f'"{package.subjects[name]}" ({name}) does not apply' if name in text else "the patches do not apply"
    return ToolError(f"{what} to {package.name} {package.version} without fuzz: {why[-1]}")


def push(package: Package) -> None:
    """Apply the patches that are not applied, without fuzz."""
    if quilt(package, "push", "-a", "--fuzz=0"):
        raise refused(package, package.top / "quilt.log")


def pop(package: Package, patches: int) -> None:
    """Take that many patches away."""
    if quilt(package, "pop", str(patches)):
        raise ToolError(f"{package.tree}: quilt pop {patches} fails; all it said is in {package.top / 'quilt.log'}")


def contents(tree: pathlib.Path) -> dict[str, tuple[int, str]]:
    """{file: (mode, checksum)} of the source without debian/ and quilt's own files."""
    return {str(p.relative_to(tree)): (p.stat().st_mode, common.sha256(p)) for top in tree.iterdir()
            if top.name not in ("debian", ".pc") for p in (top.rglob("*") if top.is_dir() else [top])
            if p.is_file() and not p.is_symlink()}


def try_out(package: Package) -> None:
    """All patches must apply and go away again, and leave all as it was. They are applied in the end."""
    before = contents(package.tree)
    push(package)
    pop(package, len(package.subjects))
    after = contents(package.tree)
    if before != after:
        other = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
        raise ToolError(f"{package.tree}: with the patches applied and taken away, {len(other)} files are not as they "
                        f"were: {other[0]}")
    push(package)


def make(stack: str, topics: Sequence[series.Topic], out: pathlib.Path) -> Package:
    """The source package with these topics in the directory out, tried out."""
    package = unpack(stack, out)
    add(package, topics)
    progress(f"quilt push and pop of {len(package.subjects)} patches, dpkg-source --build")
    try_out(package)
    # it compares the tree with the tarball and all patches
    if limited(["dpkg-source", "--build", package.tree.name], out / "build.log", 600, cwd=out,
               env=environment.child({"LC_ALL": "C"})):
        raise refused(package, out / "build.log")
    return package


def wanted(stack: str) -> list[series.Topic]:
    """TOPIC= and what it needs, or all topics."""
    if common.settings.qemu_src:
        raise ToolError("QEMU_SRC= is no source package; Debian's is taken without QEMU_SRC=")
    topics = series.read_topics(stack)
    return series.needed(topics, series.wanted(topics))


def source_package() -> None:
    """The source package with TOPIC= and what it needs, or with all topics."""
    stack = common.stack_name()
    topics = wanted(stack)
    package = make(stack, topics, common.stack_dir(stack) / "quilt")
    print(f"{package.dsc}: {package.name} {package.version}, {len(package.subjects)} patches of "
          f"{' '.join(t.name for t in topics)}\n"
          f"{package.tree}: the same, unpacked, with all patches applied\n"
          "All apply without fuzz and pop cleanly. To build binary packages:\n"
          f"    cd {package.tree} && apt-get build-dep ./ && dpkg-buildpackage -b -uc\n"
          f"For a package of your own: copy debian/patches/{FOLDER}, and append its lines of debian/patches/series.")
