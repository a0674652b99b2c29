# SPDX-License-Identifier: GPL-2.0-or-later
"""A vhost-user client with one virtqueue, which does what no driver should."""

import contextlib
import mmap
import os
import pathlib
import socket
import struct
from collections.abc import Sequence

from dctools.common import ToolError

# Requests of the vhost-user protocol, by their numbers
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = 8, 9, 10, 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE = 15, 16, 18
VERSION = 1
FEATURES = 1 << 32 | 1 << 30            # VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES
CONFIG = 1 << 9                         # VHOST_USER_PROTOCOL_F_CONFIG, without which virtio-blk cannot be

MEMORY = 1 << 20
BASE = 0x7f0000000000                   # where this memory is for the client, as it says
DESCRIPTORS, AVAILABLE, USED, HEADERS = 0x1000, 0x2000, 0x3000, 0x10000
SIZE = 8                                # descriptors; a request takes three
NEXT, WRITE = 1, 2                      # flags of a descriptor
SECTOR = 512


def eventfd() -> int:
    return os.eventfd(0)    # type: ignore[attr-defined]    # Debian 12's mypy does not know it


class Client:
    """It reads the first sector, up to two times, and is gone when the with block ends. patience: in seconds."""

    def __init__(self, path: pathlib.Path, patience: float) -> None:
        self.path, self.patience = path, patience
        self._requests = 0

    def __enter__(self) -> "Client":
        with contextlib.ExitStack() as stack:
            self._socket = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._socket.settimeout(self.patience)
            try:
                self._socket.connect(os.fspath(self.path))
                self._ask(GET_FEATURES)
                self._set_up(stack)
            except OSError as e:
                raise ToolError(f"the export lets no client in ({e.strerror or e})") from e
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hang_up(self) -> None:
        """Go, but keep memory and eventfds."""
        self._socket.close()

    def _send(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        socket.send_fds(self._socket, [struct.pack("<III", request, VERSION, len(payload)) + payload], fds)

    def _ask(self, request: int) -> int:
        self._send(request)
        answer = b""
        while len(answer) < 20:             # header and number come one by one
            if not (part := self._socket.recv(20 - len(answer))):
                raise ConnectionResetError("it has hung up")
            answer += part
        return struct.unpack("<IIIQ", answer)[3]

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        memory, self._kick, call = os.memfd_create("client"), eventfd(), eventfd()
        for fd in memory, self._kick, call:
            stack.callback(os.close, fd)
        os.truncate(memory, MEMORY)
        self._memory = stack.enter_context(mmap.mmap(memory, MEMORY))
        self._send(SET_OWNER)
        self._send(SET_FEATURES, struct.pack("<Q", FEATURES))
        self._send(SET_PROTOCOL_FEATURES, struct.pack("<Q", self._ask(GET_PROTOCOL_FEATURES) & CONFIG))
        self._send(SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, MEMORY, BASE, 0), [memory])
        self._send(SET_VRING_NUM, struct.pack("<II", 0, SIZE))
        self._send(SET_VRING_BASE, struct.pack("<II", 0, 0))
        self._send(SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, BASE + DESCRIPTORS, BASE + USED, BASE + AVAILABLE, 0))
        self._send(SET_VRING_CALL, struct.pack("<Q", 0), [call])
        self._send(SET_VRING_KICK, struct.pack("<Q", 0), [self._kick])
        self._send(SET_VRING_ENABLE, struct.pack("<II", 0, 1))

    def read(self) -> None:
        """Add a request that reads the first sector, and kick."""
        first, n = 3 * self._requests, self._requests
        header = HEADERS + 0x1000 * n                           # of zeroes: VIRTIO_BLK_T_IN, sector 0
        parts = [(header, 16, NEXT), (header + 0x200, SECTOR, NEXT | WRITE), (header + 0x100, 1, WRITE)]
        for i, (address, length, flags) in enumerate(parts):
            struct.pack_into("<QIHH", self._memory, DESCRIPTORS + 16 * (first + i), address, length, flags,
                             first + i + 1 if flags & NEXT else 0)
        struct.pack_into("<H", self._memory, AVAILABLE + 4 + 2 * n, first)
        self._requests += 1
        struct.pack_into("<H", self._memory, AVAILABLE + 2, self._requests)
        os.write(self._kick, struct.pack("=Q", 1))

    def used(self) -> int:
        """How many requests have come back."""
        return struct.unpack_from("<H", self._memory, USED + 2)[0]
