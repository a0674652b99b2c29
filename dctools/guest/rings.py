# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtqueues of a guest that gives no answer: does it wait for QEMU?"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Ring:
    """A split virtqueue, as its device and, in the guest's memory, its driver see it."""
    path: str
    queue: int
    broken: bool
    status: dict[str, Any]      # of x-query-virtio-queue-status
    avail: int                  # up to here the driver has made requests available
    used: int                   # up to here the device has used them
    used_event: int             # the driver is notified when the device gets beyond this

    @property
    def name(self) -> str:
        return f"{self.path}, queue {self.queue}"

    def __str__(self) -> str:
        return f"{self.name}: avail {self.avail}, used {self.used}, used_event {self.used_event}, {self.status}" + \
            (", broken" if self.broken else "")

    def waits_for(self) -> str | None:
        """What the driver of a disk still waits for, if nothing moves. It has EVENT_IDX."""
        if self.broken:
            return f"{self.name}: the device is broken"
        if self.avail != self.status["last-avail-idx"]:
            return f"{self.name}: the device has not taken all requests"
        if self.status["inuse"]:
            return f"{self.name}: {self.status['inuse']} requests do not complete"
        if self.used != self.used_event:
            return f"{self.name}: the driver has not taken all used buffers"
        return None


def rings(qmp: Callable[..., Any], word: Callable[[int], int]) -> Iterator[Ring]:
    """The virtqueues that the guest has set up; word(address) has two bytes of its memory."""
    for path in [device["path"] for device in qmp("x-query-virtio")]:
        device = qmp("x-query-virtio-status", path=path)
        for queue in range(device["num-vqs"]):
            status = qmp("x-query-virtio-queue-status", path=path, queue=queue)
            if status["vring-desc"]:
                avail, used = status["vring-avail"], status["vring-used"]
                yield Ring(path, queue, device["broken"], status, word(avail + 2), word(used + 2),
                           word(avail + 4 + 2 * status["vring-num"]))


def word_of(said: str) -> int:
    """The two bytes that the monitor's `xp /1xh` has found."""
    m = re.fullmatch(r"\s*[0-9a-f]+:\s+0x([0-9a-f]{4})\s*", said)
    if not m:
        raise ValueError(f"xp says {said.strip()!r}")
    return int(m[1], 16)
