# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs that fuzzing starts with: what a well-behaved driver does, in the operations of generic_fuzz.c."""

import struct
from collections.abc import Callable, Sequence

OUT, WRITE, PCI_WRITE, RAM, STOP_CONT = 1, 3, 5, 10, 11
BYTE, WORD, LONG = 0, 1, 2
SEPARATOR = b"FUZZ"
# MMIO regions by address: the BAR of MSI-X, and the modern one
COMMON, NOTIFY = 2, 5
NEXT, DEVICE_WRITES, AVAILABLE = 1, 2, 1 << 7        # of descriptors
EVENT_IDX, VERSION_1, PACKED = 1 << 29, 1 << 32, 1 << 34
RINGS, BUFFERS, STRIDE, SIZE = 0x100000, 0x200000, 0x4000, 256       # SIZE: entries of a ring

Request = tuple[list[bytes], list[int]]         # parts that the device reads, sizes of those that it writes
Descriptor = tuple[int, int, int]               # address, length, flags


def out(size: int, register: int, value: int) -> bytes:
    """Write to an I/O port."""
    return struct.pack("<BBBHI", OUT, size, 0, register, value)


def mmio(region: int, size: int, register: int, value: int) -> bytes:
    """Write to an MMIO region."""
    return struct.pack("<BBBxxIQ", WRITE, size, region, register, value)


def ram(address: int, data: bytes) -> bytes:
    """Write to guest memory."""
    return struct.pack("<BI", RAM, address) + data


def blk_requests() -> list[Request]:
    """Some of each kind. Reads start at sector 0, where SABOTAGE does nothing."""
    def request(kind, sector, *data, wanted=()):
        return [struct.pack("<IIQ", kind, 0, sector), *data], [*wanted, 1]
    segment = struct.pack("<QII", 8, 8, 0)
    return [request(0, 0, wanted=[512]), request(1, 8, bytes(512)), request(0, 0, wanted=[4096, 4096]), request(4, 0),
            request(8, 0, wanted=[20]), request(11, 0, segment), request(13, 0, segment)]


LUN = bytes([1, 0, 0x40, 0, 0, 0, 0, 0])


def scsi_requests() -> list[Request]:
    """Some of each kind."""
    def request(op, *cdb, data=(), wanted=()):
        return [LUN + bytes(11) + bytes([op, *cdb]).ljust(32, b"\0"), *data], [108, *wanted]

    def rw(op, block, blocks, **kw):
        return request(op, 0, *struct.pack(">IxH", block, blocks), **kw)
    return [request(0), rw(0x28, 0, 1, wanted=[512]), rw(0x2a, 8, 1, data=[bytes(512)]),
            rw(0x28, 0, 16, wanted=[4096, 4096]), request(0x35), request(0x12, 0, 0, 0, 36, wanted=[36]),
            request(0x42, 0, 0, 0, 0, 0, 0, 24, data=[struct.pack(">HHxxxxQIxxxx", 22, 16, 8, 8)]),
            rw(0x41, 16, 8, data=[bytes(512)])]


def scsi_abort() -> Request:
    """A task management function, for the control queue."""
    return [struct.pack("<II", 0, 0) + LUN + bytes(8)], [1]


def buffers(requests: Sequence[Request]) -> tuple[list[bytes], list[list[Descriptor]]]:
    """Operations that put requests into memory, and each one's descriptors."""
    ops: list[bytes] = []
    chains: list[list[Descriptor]] = []
    for n, (read, written) in enumerate(requests):
        at = BUFFERS + n * STRIDE
        ops.append(ram(at, b"".join(read)))
        chains.append([])
        for length, flags in [*((len(part), 0) for part in read), *((size, DEVICE_WRITES) for size in written)]:
            chains[-1].append((at, length, flags))
            at += length
    return ops, chains


def split_ring(ring: int, requests: Sequence[Request]) -> list[bytes]:
    """Operations that put requests into a split virtqueue."""
    ops, chains = buffers(requests)
    table = b""
    heads: list[int] = []
    for chain in chains:
        heads.append(len(table) // 16)
        for address, length, flags in chain:
            table += struct.pack("<QIHH", address, length, flags | NEXT, len(table) // 16 + 1)
        table = table[:-4] + struct.pack("<HH", chain[-1][2], 0)
    return [*ops, ram(ring, table), ram(ring + 16 * SIZE, struct.pack(f"<HH{len(heads)}H", 0, len(heads), *heads))]


def packed_ring(ring: int, requests: Sequence[Request]) -> list[bytes]:
    """Operations that put requests into a packed virtqueue."""
    ops, chains = buffers(requests)
    table = b"".join(struct.pack("<QIHH", address, length, n, flags | AVAILABLE | NEXT * (k + 1 < len(chain)))
                     for n, chain in enumerate(chains) for k, (address, length, flags) in enumerate(chain))
    return [*ops, ram(ring, table)]


def kick(setup: Callable[[int, int], list[bytes]], queue: int) -> bytes:
    """Tell a device that legacy() or modern() has set up of the requests in a queue."""
    return out(WORD, 16, queue) if setup is legacy else mmio(NOTIFY, WORD, 4 * queue, queue)


def legacy(queues: int, features: int) -> list[bytes]:
    """Set the device up through I/O ports."""
    ops = [out(BYTE, 18, 1), out(BYTE, 18, 3), out(LONG, 4, features)]
    for n in range(queues):
        ops += [out(WORD, 14, n), out(LONG, 8, (RINGS + n * STRIDE) >> 12)]
    return [*ops, out(BYTE, 18, 7)]


def modern(queues: int, features: int) -> list[bytes]:
    """Set the device up through MMIO, with an MSI-X vector for each queue."""
    ops = [struct.pack("<BBBBxI", PCI_WRITE, WORD, 0, 0x9a, 0x8000)]
    ops += [mmio(COMMON, BYTE, 20, status) for status in (0, 1, 3)]
    for n, half in enumerate((features & 0xffffffff, features >> 32)):
        ops += [mmio(COMMON, LONG, 8, n), mmio(COMMON, LONG, 12, half)]
    ops.append(mmio(COMMON, BYTE, 20, 11))
    for n in range(queues):
        ring = RINGS + n * STRIDE
        ops += [mmio(COMMON, WORD, 22, n), mmio(COMMON, WORD, 24, SIZE), mmio(COMMON, WORD, 26, n + 1),
                mmio(COMMON, LONG, 32, ring), mmio(COMMON, LONG, 40, ring + 16 * SIZE),
                mmio(COMMON, LONG, 48, ring + 32 * SIZE), mmio(COMMON, WORD, 28, 1)]
    return [*ops, mmio(COMMON, BYTE, 20, 15)]


def seeds(driver: str, given: list[Request] | None = None) -> list[bytes]:
    """Inputs to start with, of the given requests or of some of each kind."""
    if driver == "virtio-blk-pci":
        before, requests, queues, first = blk_requests()[:0], blk_requests(), 2, 0
    else:       # the first command after a reset only hears of the reset
        before, requests, queues, first = scsi_requests()[:1], scsi_requests()[1:], 4, 2
    requests, ring = given or requests, RINGS + first * STRIDE
    found: list[list[bytes]] = []
    for setup, make, features in [(legacy, split_ring, 0), (legacy, split_ring, EVENT_IDX),
                                  (modern, split_ring, VERSION_1 | EVENT_IDX),
                                  (modern, packed_ring, VERSION_1 | PACKED)]:
        start = setup(queues, features)
        if before:
            start += [*make(ring, before), kick(setup, first)]
        for some in [*([r] for r in requests), requests]:
            ready = [*start, *make(ring, before + some), kick(setup, first)]
            found += [ready, [*ready, bytes([STOP_CONT]), kick(setup, first)]]
        if first:
            found.append([*ready, *make(RINGS, [scsi_abort()]), kick(setup, 0)])
    return [SEPARATOR.join(ops) for ops in found]
