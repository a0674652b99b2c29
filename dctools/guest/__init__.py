# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest that benchmarks and tests run in.

    with Guest(binary, [Disk(path, aio="native")]) as guest:
        guest.wait_ready()
        status, output = guest.run("fio --version")
"""

from dctools.guest.disk import AIO, DRIVERS, Disk, check_direct
from dctools.guest.image import build_image
from dctools.guest.machine import MACHINE, Guest, Hang, Stuck, accelerator
from dctools.guest.qemu import qemu_python
from dctools.guest.storage import StorageDaemon
from dctools.guest.uml import Uml

__all__ = ["AIO", "DRIVERS", "MACHINE", "Disk", "Guest", "Hang", "StorageDaemon", "Stuck", "Uml", "accelerator",
           "build_image", "check_direct", "qemu_python"]
