# SPDX-License-Identifier: GPL-2.0-or-later
"""What parts need to be built or laid out before."""

import pathlib
import shutil
from collections.abc import Sequence

from dctools import build, common, environment, guest, series
from dctools.check.results import logs
from dctools.guest import image
from dctools.measure.generator import compile_c
from dctools.process import limited

# What machine type "pc" loads at its start in QEMU's own tests.
FIRMWARE = ["/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/vgabios-stdvga.bin",
            "/usr/lib/ipxe/qemu/efi-e1000.rom"]


def built(stack: str, targets: Sequence[str] = ()) -> pathlib.Path:
    """build/<stack>/series/build with the full series and these targets beside the usual."""
    _, tip = series.update_tree(stack)
    return build.build_side(stack, "series", tip, [*build.TARGETS, *targets])


def prepare_guest(stack: str) -> None:
    guest.build_image()
    built(stack)


def binary_of(stack: str) -> pathlib.Path:
    """The QEMU that prepare_guest() has built; parts that run beside others must not build."""
    return common.stack_dir(stack) / "series/build/qemu-system-x86_64"


def preload(name: str) -> pathlib.Path:
    """The library to preload that tests/NAME.c makes."""
    library = logs() / f"{name}.so"
    compile_c([common.ROOT / f"tests/{name}.c"], library, ["-shared", "-fPIC"])
    return library


def put_firmware(directory: pathlib.Path) -> None:
    """Where a QEMU that is run from its build directory looks for it."""
    guest.build_image()
    data = directory / "qemu-bundle/usr/local/share/qemu"
    data.mkdir(parents=True, exist_ok=True)
    for f in [*FIRMWARE, str(image.place() / "firmware/kvmvapic.bin")]:
        shutil.copy(f, data)


def notify_test(prefix: str, directory: pathlib.Path, *args: str, hooks: dict[str, str] | None = None) -> pathlib.Path:
    """Run the series' own qtest; its log."""
    log = logs() / f"{prefix.replace(' ', '-')}.log"
    limited([build.NOTIFY_TEST, "--tap", "-k", *args], log, 600, cwd=directory,
            env=environment.child({"QTEST_QEMU_BINARY": "./qemu-system-x86_64", "QTEST_QEMU_IMG": "./qemu-img",
                                   **(hooks or {})}))
    return log
