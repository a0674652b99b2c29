# SPDX-License-Identifier: GPL-2.0-or-later
"""make deb: Debian packages of the x86 emulator, its tools and the storage daemon, with the series.

The source package of make quilt is built by Debian's own rules, in a chroot below build/ which is
thrown away afterwards. docs/distributors.md says what to do with the packages.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from debian import deb822

from dctools import base, common, environment, options, quilt
from dctools.common import ToolError, progress
from dctools.process import run

# The emulator and all that depends on the very same version; qemu-system-common has the storage daemon.
# qemu-system-data of Debian fits: any of the same upstream version does.
PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-gui", "qemu-block-extra", "qemu-utils")
# Variables of debian/rules: no emulation of user processes, no other targets, no Xen.
RULES = {"enable_system": "enable", "enable_linux_user": "disable", "systems": "x86", "qemu-builds": "qemu microvm"}
# Those that debian/rules leaves to whoever builds. Debug information takes a quarter of the time.
# gcc, as ccache does not stand in for cc.
CONFIGURE = {"QEMU_CONFIGURE_OPTIONS": "--cc=gcc --disable-debug-info --target-list=i386-softmmu,x86_64-softmmu "
                                       "--disable-guest-agent",
             "QEMU_MICROVM_CONFIGURE_OPTIONS": "--cc=gcc --disable-debug-info"}
# What the machine's apt needs to reach its archive; the chroot's has none of the machine's configuration.
REACH = re.compile(r"Acquire::(https?|ftp|Retries|ForceIPv[46]|Check-)\b.*")
# Brings Debian's own packages back, of those that are installed.
BACK = ("apt-get install --only-upgrade --allow-downgrades "
        "qemu-{system-x86,system-common,system-gui,block-extra,utils}/bookworm")
CPU_MINUTES, DISK_MIB = 40, 3000
MOUNTS = pathlib.Path("/proc/self/mountinfo")
# Mounts and processes of its own, which end with it, however that ends.
NAMESPACE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@dataclasses.dataclass(frozen=True)
class Options:
    topic: str = options.text("", "one topic and what it needs, such as 1-fixes", "all")


# -- what can be refused at once -----------------------------------------------------

def need_machine(stack: str) -> None:
    """Refuse what cannot work, before anything is made."""
    if suites := base.read_pin(stack).get("suites"):
        raise ToolError(f"STACK={stack}: its build needs packages that only Debian {' '.join(suites)} has; "
                        f"make quilt STACK={stack} makes the source package to build there")
    if os.geteuid():
        raise ToolError("a chroot is made, which only root may; run it as root")
    if (machine := run(["dpkg", "--print-architecture"]).strip()) != "amd64":
        raise ToolError(f"this is {machine}; the packages are built on amd64 only")
    if not shutil.which("mmdebstrap"):
        raise ToolError("no mmdebstrap to make a chroot; run: apt-get install --no-install-recommends mmdebstrap")
    try:
        run([*NAMESPACE, "true"])
    except ToolError as e:
        raise ToolError(f"no mounts are allowed here (a container without CAP_SYS_ADMIN?): {e}") from e


# -- what of Debian's package is built -------------------------------------------------

def left_out(package: quilt.Package) -> list[str]:
    """The binary packages that are not built. debian/ must have all that it is told about."""
    debian = package.tree / "debian"
    with open(debian / "control", encoding="utf-8") as f:
        stanzas = {p["Package"]: p for p in deb822.Deb822.iter_paragraphs(f) if "Package" in p}
    if missing := [p for p in PACKAGES if p not in stanzas]:
        raise ToolError(f"{package.name} {package.version} has no package {', '.join(missing)}")
    for name in PACKAGES:
        for some in re.split(r",\s*", f"{stanzas[name].get('Depends', '')},{stanzas[name].get('Recommends', '')}"):
            same = re.findall(r"([\w+.-]+) *\(= *\$\{binary:Version\}\)", some)
            if same and not set(same) & set(PACKAGES):
                raise ToolError(f"{name} needs {' or '.join(same)} of the same version, which is not built")
    rules = (debian / "rules").read_text()
    unknown = [v for v in RULES if not re.search(rf"(?m)^ *{v} *[:+]?=", rules)]
    unknown += [v for v in CONFIGURE if f"${{{v}}}" not in rules]
    if unknown:
        raise ToolError(f"{package.name} {package.version}: debian/rules has no variable {', '.join(unknown)}")
    return sorted(stanzas.keys() - set(PACKAGES))


def rules() -> str:
    """A makefile that decides over the variables of debian/rules."""
    return "".join(f"override {k} := {v}\n" for k, v in RULES.items())


def build_environment(omitted: Sequence[str], cpus: int) -> dict[str, str]:
    """All that dpkg-buildpackage gets in the chroot; nothing of the person's."""
    return {"PATH": "/usr/lib/ccache:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8",
            "CCACHE_DIR": "/ccache", "DEB_BUILD_OPTIONS": f"nocheck noautodbgsym terse parallel={cpus}",
            **{f"DEB_{v}_STRIP": "-g" for v in ("CFLAGS", "CXXFLAGS", "OBJCFLAGS")}, **CONFIGURE,
            # debhelper's programs leave these out
            "DH_OPTIONS": " ".join(f"-N{p}" for p in omitted),
            # make reads it before debian/rules, which need not be changed then
            "MAKEFILES": "/build/rules.mk"}


# -- long work ---------------------------------------------------------------------------

def how_far(log: pathlib.Path) -> str:
    """The last [step/steps] in the log."""
    with open(log, "rb") as f:
        f.seek(max(0, os.path.getsize(log) - (64 << 10)))
        found = re.findall(rb"(?m)^\[(\d+/\d+)\]", f.read())
    return f", step {found[-1].decode()}" if found else ""


def work(cmd: Sequence[Any], log: pathlib.Path, what: str, every: float = 60, **kw: Any) -> None:
    """Run cmd with both outputs in log and a sign of life; a failure shows the last errors."""
    began = time.monotonic()
    with open(log, "wb") as out:
        p = subprocess.Popen([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                             **kw)
        try:
            while True:
                try:
                    status = p.wait(every)
                    break
                except subprocess.TimeoutExpired:
                    progress(f"{what}: {(time.monotonic() - began) / 60:.0f} minutes{how_far(log)}")
        finally:
            if p.poll() is None:
                p.kill()
                p.wait()
    if status:
        lines = log.read_text(errors="replace").splitlines()
        wrong = [s for s in lines if re.search(r"\berror: |^E: |^FAILED: |\*\*\* ", s)] or lines
        print("\n".join(s[:300] for s in wrong[-8:]), file=sys.stderr)
        raise ToolError(f"{what} fails with {status}; all it said is in {log}")


# -- the chroot ----------------------------------------------------------------------------

def remove(tree: pathlib.Path) -> None:
    """Take a chroot away, unless that would reach into what is mounted there."""
    inside = [m for m in (line.split()[4] for line in MOUNTS.read_text().splitlines()) if m.startswith(f"{tree}/")]
    if inside:
        raise ToolError(f"{inside[0]} is mounted; unmount it first")
    shutil.rmtree(tree, ignore_errors=True)


def make_chroot(package: quilt.Package, top: pathlib.Path) -> pathlib.Path:
    """This Debian with what the package's build needs, from the machine's own apt sources."""
    chroot, apt = top / "chroot", top / "apt"
    remove(chroot)
    shutil.rmtree(apt, ignore_errors=True)
    apt.mkdir()
    sources = base.own_sources("deb")
    for name, text in sources.items():
        (apt / name).write_text(text)
    # apt runs outside of the chroot, so it finds the keys and certificates of this machine
    known = run(["apt-config", "dump"]).splitlines()
    (apt / "reach").write_text("\n".join(s for s in known if REACH.match(s)) + "\n")
    build_dep = ('APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -y --no-install-recommends --arch-only '
                 '-o DPkg::Chroot-Directory="$1" build-dep "$TREE"')
    cmd = [*NAMESPACE, "mmdebstrap", "--mode=root", "--variant=apt", "--include=build-essential,ccache",
           "--dpkgopt=force-unsafe-io", f"--aptopt={apt / 'reach'}", f"--customize-hook={build_dep}",
           base.codename(), chroot, *(apt / name for name in sources)]
    work(cmd, top / "chroot.log", "making the chroot",
         env=environment.child({"LC_ALL": "C", "TREE": str(package.tree)}))
    for name in ("build", "ccache"):
        (chroot / name).mkdir()
    return chroot


def inside(chroot: pathlib.Path, binds: Mapping[str, pathlib.Path], env: Mapping[str, str],
           script: str) -> list[str]:
    """A command that runs the shell script in the chroot, with these directories of outside: {name there: here}."""
    mounts = 'mount -t proc proc "$1/proc"; root=$1; shift; while [ "$1" != -- ]; do mount --bind "$2" "$root$1"; ' \
             'shift 2; done; shift; exec chroot "$root" env -i "$@"'
    pairs = [str(part) for there, here in binds.items() for part in (there, here)]
    return [*NAMESPACE, "sh", "-euc", mounts, "sh", str(chroot), *pairs, "--", *(f"{k}={v}" for k, v in env.items()),
            "sh", "-euc", script]


# -- from source to packages -----------------------------------------------------------------

def build(package: quilt.Package, omitted: Sequence[str], chroot: pathlib.Path, top: pathlib.Path, cpus: int) -> None:
    """Let dpkg-buildpackage make the packages but for those that are omitted, next to the package's tree."""
    (package.top / "rules.mk").write_text(rules())
    cache = pathlib.Path(environment.variables().get("CCACHE_DIR", common.settings.build / "ccache"))
    cache.mkdir(parents=True, exist_ok=True)
    env = build_environment(omitted, cpus)
    script = f"cd '/build/{package.tree.name}'; exec dpkg-buildpackage --build=any -us -uc"
    work(inside(chroot, {"/build": package.top, "/ccache": cache}, env, script), top / "build.log", "building")


def collect(package: quilt.Package, top: pathlib.Path) -> list[pathlib.Path]:
    """Put the packages into top, in place of older ones, once all are there."""
    made = {}
    for path in sorted(package.top.glob("*.deb")):
        name, version = (run(["dpkg-deb", "--field", path, f]).strip() for f in ("Package", "Version"))
        if version != package.version:
            raise ToolError(f"{path}: its version is {version}, not {package.version}")
        made[name] = path
    if made.keys() != set(PACKAGES):
        raise ToolError(f"{package.top}: it made {', '.join(sorted(made)) or 'nothing'}; "
                        f"wanted: {', '.join(sorted(PACKAGES))}")
    for old in top.glob("*.deb"):
        old.unlink()
    return [path.replace(top / path.name) for path in made.values()]


def main(given: Options) -> None:
    """Debian packages with the series: the x86 emulator, its tools, the storage daemon.

    They are in build/STACK/deb then, and install over Debian's. It takes half an hour with two
    CPUs, says so before it starts, and installs nothing. docs/distributors.md has more.

    Example: dc deb --topic 1-fixes
    """
    common.settings.topic = given.topic
    stack = common.stack_name()
    topics = quilt.wanted(stack)
    need_machine(stack)
    top, cpus, began = common.stack_dir(stack) / "deb", len(os.sched_getaffinity(0)), time.monotonic()
    with common.exclusive(f"{stack}/deb"):
        common.need_space(top, DISK_MIB)
        progress(f"this takes about {CPU_MINUTES // cpus + 5} minutes with {cpus} CPUs, {DISK_MIB / 1000:.0f} GB "
                 f"in {top} and 300 MB from the archive")
        package = quilt.make(stack, topics, top / "source")
        omitted = left_out(package)     # before the long work
        progress("making a chroot with all that the build needs")
        chroot = make_chroot(package, top)
        progress(f"building {' '.join(PACKAGES)}")
        build(package, omitted, chroot, top, cpus)
        made = collect(package, top)
        remove(chroot)
        shutil.rmtree(package.top)
    print("\n".join(str(p) for p in made))
    print(f"{package.name} {package.version}, {len(package.subjects)} patches of {' '.join(t.name for t in topics)}: "
          f"{(time.monotonic() - began) / 60:.0f} minutes\n"
          f"Over Debian's, as root:\n    apt-get install --only-upgrade {top}/*.deb\n"
          f"Debian's own back, in bash:\n    {BACK}")
