# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's image: Debian's kernels, for QEMU and as a program, an initramfs with fio, firmware for QEMU."""

import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
from typing import Any

from dctools import common, environment, process
from dctools.common import ToolError

CONFIG = pathlib.Path(__file__).resolve().parent / "initramfs"
# Debian's kernel without drivers for real hardware: small, and boots fast.
KERNEL = "linux-image-cloud-amd64"
# Linux as a program, for the same initramfs
UML = "user-mode-linux"
PRELOAD = CONFIG.parent / "preload"     # what UML lacks: xstate.c for younger processors, idle.c
# QEMU's source package in Debian comes without firmware blobs.
FIRMWARE = {"seabios": ["bios-256k.bin"],
            "qemu-system-data": ["linuxboot_dma.bin", "kvmvapic.bin"]}

# mkinitramfs knows modules only below /lib/modules and wants the kernel's
# config in /boot. A private mount namespace shows it the unpacked package
# there and leaves the machine as it was; the hooks of other packages (udev,
# fsck, ...) are hidden, so that the image does not depend on what is installed.
MKINITRAMFS = """
mount -t overlay -o ro,lowerdir="$1/root/lib":/usr/lib overlay /usr/lib
mount --bind "$1/root/boot" /boot
mount --bind "$1/conf/conf.d" /usr/share/initramfs-tools/hooks
exec mkinitramfs -d "$1/conf" -o "$1/initrd.gz" "$2"
"""


def place() -> pathlib.Path:
    """Where kernel, initramfs and firmware lie."""
    return common.settings.build / "guest"


def kernel_package() -> tuple[str, str]:
    """The package that the kernel's meta package stands for just now."""
    for line in process.run(["apt-cache", "depends", "--important", KERNEL]).splitlines():
        m = re.match(r"\s*Depends: (linux-image-(\S+))$", line)
        if m:
            return m[1], m[2]
    raise ToolError(f"apt knows no kernel behind {KERNEL}; run apt-get update")


def candidates(packages: list[str]) -> dict[str, str]:
    """The version of each package that apt would download."""
    said = process.run(["apt-cache", "policy", *packages], env=environment.child({"LC_ALL": "C"}))
    found = dict(re.findall(r"^(\S+):\n.*\n\s+Candidate: (?!\(none)(\S+)$", said, re.M))
    for p in packages:
        if p not in found:
            raise ToolError(f"apt knows no package {p}; run apt-get update")
    return found


def image_inputs(kernel: str) -> dict[str, Any]:
    """All that the image is made from; another value means: build it again."""
    packages = candidates([kernel, UML, *FIRMWARE])
    for p in ["fio", "busybox-static", "initramfs-tools-core"]:
        packages[p] = process.run(["dpkg-query", "-W", "-f", "${Version}", p])
    files = {p.name: common.sha256(p) for top in (CONFIG, PRELOAD) for p in sorted(top.rglob("*")) if p.is_file()}
    return {"packages": packages, "files": files, "script": MKINITRAMFS}


def unpack(package: str, into: pathlib.Path, work: pathlib.Path) -> None:
    """Fetch a Debian package and unpack it; nothing is installed."""
    process.run(["apt-get", "-q", "download", "-o", "APT::Sandbox::User=root", package], cwd=work)
    deb = max(work.glob(f"{package}_*.deb"), key=lambda p: p.stat().st_mtime)
    process.run(["dpkg-deb", "-x", deb, into])


def build_image() -> None:
    """Make build/guest/{vmlinuz,linux.uml,initrd.img,firmware/}, unless they are up to date."""
    top = place()
    top.mkdir(parents=True, exist_ok=True)
    with open(top / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel, version = kernel_package()
        inputs = image_inputs(kernel)
        stamp = top / "inputs.json"
        wanted = [top / "vmlinuz", top / "linux.uml", top / "initrd.img",
                  *(top / f"{f.stem}.so" for f in PRELOAD.glob("*.c")),
                  *(top / "firmware" / f for fs in FIRMWARE.values() for f in fs)]
        if stamp.is_file() and stamp.read_text() == json.dumps(inputs) \
                and all(p.is_file() for p in wanted):
            return
        common.need_space(top, 700)
        common.progress(f"building the guest: {kernel}, fio {inputs['packages']['fio']}")
        stamp.unlink(missing_ok=True)
        work = top / "work"
        shutil.rmtree(work, ignore_errors=True)
        try:
            make_image(work, kernel, version)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        stamp.write_text(json.dumps(inputs))


def build_preload(source: pathlib.Path, library: pathlib.Path) -> None:
    """Compile one of these files."""
    process.run(["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source])


def add_uml(work: pathlib.Path, initrd: pathlib.Path) -> None:
    """Take Linux as a program, and append its driver to the initramfs: archives may follow one another there."""
    unpack(UML, work / "uml", work)
    modules = list((work / "uml/usr/lib/uml/modules").glob("*/kernel/drivers/block/virtio_blk.ko"))
    if len(modules) != 1:
        raise ToolError(f"{len(modules)} virtio_blk.ko in Debian's package {UML}, one is needed")
    (work / "more/uml").mkdir(parents=True)
    shutil.copy(modules[0], work / "more/uml")
    process.run(["sh", "-ec", 'find . | cpio -o -H newc -R 0:0 --quiet >>"$1"', "sh", initrd], cwd=work / "more")
    for source in PRELOAD.glob("*.c"):
        build_preload(source, place() / f"{source.stem}.so")
    os.replace(work / "uml/usr/bin/linux.uml", place() / "linux.uml")


def make_image(work: pathlib.Path, kernel: str, version: str) -> None:
    """Make the image, without looking whether there is one."""
    top = place()
    (work / "tmp").mkdir(parents=True)
    unpack(kernel, work / "root", work)
    sbin = environment.child({"PATH": os.defpath + ":/usr/sbin:/sbin", "TMPDIR": str(work / "tmp")})
    process.run(["depmod", "-b", work / "root", version], env=sbin)
    shutil.copytree(CONFIG, work / "conf")
    for d in ["conf.d", "scripts"]:
        (work / "conf" / d).mkdir()
    root = [] if os.geteuid() == 0 else ["-r"]
    process.run(["unshare", *root, "-m", "sh", "-ec", MKINITRAMFS, "sh", work, version],
                log=top / "mkinitramfs.log", env=sbin)
    # Not compressed: QEMU copies it in no time, while inflating it under TCG takes seconds.
    with open(work / "initrd.img", "wb") as out:
        if subprocess.run(["gzip", "-dc", work / "initrd.gz"], stdout=out).returncode:
            raise ToolError(f"gzip cannot unpack what mkinitramfs made; all it said is in {top}/mkinitramfs.log")
    with open(work / "initrd.img", "rb") as image:
        listing = process.run(["cpio", "-t", "--quiet"], stdin=image)
    for name in ["init", "usr/bin/fio", "usr/bin/sh", "conf/modules"]:
        if name not in listing.split("\n"):
            raise ToolError(f"mkinitramfs left {name} out; all it said is in {top}/mkinitramfs.log")
    (top / "firmware").mkdir(exist_ok=True)
    for package, files in FIRMWARE.items():
        unpack(package, work / package, work)
        for f in files:
            found = next((work / package).rglob(f), None)
            if not found:
                raise ToolError(f"no {f} in Debian's package {package}")
            shutil.copy(found, top / "firmware" / f)
    add_uml(work, work / "initrd.img")
    os.replace(work / "initrd.img", top / "initrd.img")
    os.replace(work / f"root/boot/vmlinuz-{version}", top / "vmlinuz")


@dataclasses.dataclass(frozen=True)
class Options:
    pass


def main(_: Options) -> None:
    """Make build/guest/{vmlinuz,linux.uml,initrd.img,firmware/}, unless they are up to date."""
    build_image()
