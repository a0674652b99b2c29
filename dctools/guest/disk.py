# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk of the guest: QEMU's arguments for it."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from dctools.common import ToolError

AIO = ["native", "io_uring", "threads"]
DRIVERS = ["virtio-blk-pci", "virtio-scsi-pci"]
FIRST_SLOT = 8          # PCI slot of the first disk; lower ones are the board's
MOST_DISKS = 32 - FIRST_SLOT


def check_direct(path: pathlib.Path | str) -> None:
    """O_DIRECT is not for every file system; find out before QEMU does."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as e:
        raise ToolError(f"{path}: cannot be opened with O_DIRECT ({e.strerror}), which the guest's "
                        f"disk needs; use a disk on another file system (DISK= or BUILD_DIR=)") from e


@dataclasses.dataclass
class Disk:
    """A raw file or block device and the virtio device that shows it to the guest."""
    path: str
    aio: str = "io_uring"               # native, io_uring, threads
    driver: str = "virtio-blk-pci"      # or virtio-scsi-pci (one scsi-hd behind it), or nvme, without an IOThread
    iothread: bool = True               # an IOThread of its own, else the main loop
    queues: int = 1
    event_idx: bool = True
    cache_direct: bool = True
    read_only: bool = False
    locking: bool = True                # False: another disk of this guest has the same file
    node: dict[str, Any] = dataclasses.field(default_factory=dict)      # more for the -blockdev, e.g. another driver
    options: dict[str, Any] = dataclasses.field(default_factory=dict)   # more for the virtio device
    on_error: dict[str, str] = dataclasses.field(default_factory=dict)  # werror, rerror

    def file(self) -> dict[str, Any]:
        """The -blockdev of the file itself, without a format."""
        host = "host_device" if pathlib.Path(self.path).is_block_device() else "file"
        return {"driver": host, "filename": str(self.path), "aio": self.aio,
                "cache": {"direct": self.cache_direct}, "locking": "auto" if self.locking else "off"}

    def bare(self, name: str) -> dict[str, Any]:
        """The file as the node of that name, for a storage daemon."""
        return {"node-name": name, "read-only": self.read_only, **self.file()}

    def blockdev(self, n: int) -> dict[str, Any]:
        """The -blockdev that the device has, as the guest's number n."""
        return {"driver": "raw", "node-name": f"drive{n}", "read-only": self.read_only,
                "cache": {"direct": self.cache_direct}, "file": self.file(), **self.node}

    def devices(self, n: int) -> list[dict[str, Any]]:
        """The properties of each -device, in the order in which they are added, typed as in QMP."""
        device: dict[str, Any] = {"driver": self.driver, "id": f"disk{n}", "addr": f"{FIRST_SLOT + n:#x}"}
        if self.driver == "nvme":           # it has no IOThread
            return [device | {"serial": f"disk{n}", "drive": f"drive{n}", **self.options}]
        device |= {"event_idx": self.event_idx, **self.options}
        if self.iothread:
            device["iothread"] = f"iothread{n}"
        if self.driver == "virtio-blk-pci":
            return [device | {"drive": f"drive{n}", "num-queues": self.queues, **self.on_error}]
        if self.driver == "virtio-scsi-pci":
            return [device | {"num_queues": self.queues},
                    {"driver": "scsi-hd", "bus": f"disk{n}.0", "drive": f"drive{n}", "id": f"lun{n}",
                     **self.on_error}]
        raise ToolError(f"disk driver {self.driver}: virtio-blk-pci, virtio-scsi-pci or nvme")

    def qdev(self, n: int) -> str:
        """What query-blockstats and block_set_io_throttle call the device that has the drive."""
        return f"lun{n}" if self.driver == "virtio-scsi-pci" else f"/machine/peripheral/disk{n}/virtio-backend"

    def arguments(self, n: int) -> list[str]:
        """QEMU's arguments for this disk as the guest's number n."""
        args = ["-object", f"iothread,id=iothread{n}"] if self.iothread else []
        args += ["-blockdev", json.dumps(self.blockdev(n))]
        for device in self.devices(n):
            text = {k: {True: "on", False: "off"}[v] if isinstance(v, bool) else v for k, v in device.items()}
            args += ["-device", ",".join(f"{k}={v}" for k, v in text.items()).replace("driver=", "", 1)]
        return args
