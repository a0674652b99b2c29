# SPDX-License-Identifier: GPL-2.0-or-later
"""What the load generator measures: configurations and parameters."""

import collections
import dataclasses
import itertools
import os
import pathlib
import random
import re
from collections.abc import Sequence

from dctools import common, guest, options
from dctools.common import ToolError
from dctools.measure import compared

DEFAULT_POLL = 32768    # nanoseconds: poll-max-ns of an IOThread if nobody says otherwise
MANY = 40               # configurations: with more, fewer pairs and shorter turns
TURN = 0.05             # seconds that one process is measured before it is another's turn
CHOICES = {"aio": guest.AIO, "event_idx": ["on", "off"], "irq": ["each", "batch", "off"],
           "wait": ["used", "irq"], "main": ["irqfd", "driver", "iothread", "other", "export"],
           "storage": ["fast", "disk"], "transport": ["pci", "scsi", "vhost-user"]}
# What a guest does: an interrupt handler takes all there is; a vCPU that runs in
# parallel anyway sees each entry; one that polls wants no interrupt.
NATURAL_WAIT = {"each": "used", "batch": "irq", "off": "used"}
# A driver that looks all the time sees a finished request at once, one that waits for an
# interrupt takes microseconds for that: (microseconds, jitter)
NATURAL_REACTION = {"used": (0.2, "off"), "irq": (3, "on")}


def reaction(wait: str, us: float | None, jitter: str | None) -> tuple[float, str]:
    """Reaction time in microseconds and jitter of a driver that waits for that; None: natural for it."""
    natural_us, natural_jitter = NATURAL_REACTION[wait]
    return natural_us if us is None else us, jitter or natural_jitter


LimitKey = tuple[str, str, int]         # storage, engine, requests in flight


@dataclasses.dataclass(frozen=True)
class Config:
    """What one process is measured with."""
    storage: str
    aio: str
    qd: int
    queues: int
    event_idx: str
    irq: str
    wait: str
    main: str
    poll_max_ns: int = 0        # of the IOThread; results that are older have it for all
    transport: str = "pci"      # older results have no other

    def __str__(self) -> str:
        return (f"{self.storage} {self.aio} qd {self.qd} x {self.queues}, event_idx {self.event_idx}, "
                f"irq {self.irq}" + (", waits for it" if self.wait == "irq" else "") +
                ("" if self.main == "irqfd" else f", main: {self.main}") +
                (f", polls {self.poll_max_ns} ns" if self.poll_max_ns else "") +
                ("" if self.transport == "pci" else f", {self.transport}"))


def read_write(text: str) -> str:
    """The same text, if it is a kind of I/O."""
    m = re.fullmatch(r"read|write|mix:(\d{1,3})", text)
    if not m or int(m[1] or 0) > 100:
        raise ValueError("give read, write or mix:PERCENT_WRITES")
    return text


def cpu_numbers(text: str) -> tuple[int, ...]:
    """Two or three CPUs that we may use."""
    known, given = sorted(os.sched_getaffinity(0)), re.split(r"[ ,]+", text.strip())
    if not 2 <= len(given) <= 3 or not all(c.isdigit() and int(c) in known for c in given) \
            or len(set(given)) < len(given):
        raise ValueError(f"give two or three of {' '.join(map(str, known))}: "
                         "for the driver, the IOThread and (optional) the main thread")
    return tuple(map(int, given))


@dataclasses.dataclass
class Parameters:
    """What is measured, with all that the person has left open decided."""
    configs: list[Config]
    pairs: int
    seconds: float      # measured of each process
    turns: int          # in which they are measured
    min_ios: int        # a crowded machine may finish too few in the time given
    rw: str
    bs: int
    batch: int
    reaction_us: float | None       # None: natural for what the driver waits for
    jitter: str | None  # of the reaction time, from 0 to twice as much; likewise
    layouts: bool       # each pair has binaries of its own, the same objects linked in another order
    indirect: str
    machine: str
    seed: int
    quick: bool
    disk: str           # empty: our own file
    write_ok: bool
    cpus: dict[str, int | None]          # role of a thread: CPU
    qemu_a: str
    qemu_b: str

    def reaction(self, config: Config) -> tuple[float, str]:
        """The driver's reaction time in microseconds, and its jitter."""
        return reaction(config.wait, self.reaction_us, self.jitter)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the person can choose."""
    quick: bool = options.switch(False, "the configurations that the project has set itself targets for, alone")
    storage: tuple[str, ...] = options.words(CHOICES["storage"], ("fast", "disk"), "where the blocks are")
    aio: tuple[str, ...] = options.words(CHOICES["aio"], tuple(guest.AIO), "engines")
    iodepth: tuple[int, ...] = options.numbers((1, 4, 16, 64, 256), 1024, "requests in flight of each virtqueue")
    queues: tuple[int, ...] = options.numbers((1, 4), 64, "virtqueues")
    event_idx: tuple[str, ...] = options.words(CHOICES["event_idx"], ("on", "off"), "EVENT_IDX")
    irq: tuple[str, ...] = options.words(CHOICES["irq"], ("each", "batch", "off"),
                                         "when the driver asks for interrupts")
    wait: tuple[str, ...] | None = options.words(CHOICES["wait"], None, "what the driver waits for",
                                                 "irq with batch, else used")
    main: tuple[str, ...] | None = options.words(CHOICES["main"], None,
                                                 "QEMU's main thread: stopped, or whose CPU it has; or the storage "
                                                 "daemon's, which does the I/O itself, without an IOThread",
                                                 "irqfd, and some of the others")
    transport: tuple[str, ...] = options.words(CHOICES["transport"], ("pci",),
                                               "virtio-blk-pci or virtio-scsi-pci of QEMU, or the storage daemon's "
                                               "vhost-user-blk export", "pci")
    rw: str = options.option(read_write, "read", "read, write or mix:PERCENT_WRITES")
    bs: int = options.option(lambda text: options.size(text, 1), 4096, "block size", "4k")
    batch: int = options.number(64, 1, 1024, "requests that the driver adds before it kicks")
    reaction_us: float | None = options.number(None, 0, 1e6, "microseconds until the driver sees that something is "
                                               "finished", float, "3 if it waits for interrupts; else, and with "
                                               "QUICK=1, 0.2")
    jitter: bool | None = options.switch(None, "let that be at random from 0 to twice as much",
                                         "on if it waits for interrupts; else, and with QUICK=1, off")
    poll_max_ns: tuple[int, ...] = options.numbers((0,), 10 ** 9, "the IOThread polls so long (QEMU: 32768)", 0)
    indirect: bool = options.switch(True, "indirect descriptors")
    pairs: int | None = options.number(None, 1, 10000, "pairs of processes", shown="8; 2 with many configurations")
    seconds: float | None = options.number(None, 0.05, 3600, "measured of each process", float,
                                           "0.7; 0.3 with many configurations")
    min_ios: int = options.number(200, 1, 10 ** 9, "requests that each process must finish, however long that takes")
    layouts: bool | None = options.switch(None, "binaries with objects in random order for each pair",
                                          "on; off with binaries of your own")
    machine: str = options.text(guest.MACHINE, "machine type")
    cpus: tuple[int, ...] = options.option(cpu_numbers, (), "CPUs of the driver, the IOThread and the main thread",
                                           "one of each core first")
    seed: int | None = options.seed("replays the order of the runs")
    disk: str = options.text("", "a block device or file for storage=disk", "a file of our own")
    write_ok: bool = options.switch(False, "let that disk be overwritten")
    qemu_a: str = options.text("", "a QEMU binary in place of the base", "base")
    qemu_b: str = options.text("", "a QEMU binary in place of the series", "series")


def quick_plan() -> list[Config]:
    """What the project has set itself targets for, and the main thread's other places."""
    def config(storage, aio, qd=64, queues=1, event_idx="on", irq="each", main="irqfd"):
        return Config(storage, aio, qd, queues, event_idx, irq, NATURAL_WAIT[irq], main)
    return [config("fast", "native"), config("fast", "native", queues=4),
            config("fast", "native", event_idx="off", irq="batch"),
            config("fast", "io_uring"), config("fast", "io_uring", event_idx="off", irq="batch"),
            config("fast", "io_uring", queues=4), config("disk", "io_uring", queues=4),
            config("fast", "threads"),
            *(config("fast", aio, qd=1) for aio in guest.AIO),
            config("fast", "native", main="driver"), config("fast", "native", main="iothread")]


def low_depth_plan() -> list[Config]:
    """What QEMU 10.2.2 lost where few requests are in flight, and what must not get lost where many are."""
    rows = [(1, "batch", 0), (4, "batch", 0), (16, "batch", 0), (1, "each", 0), (4, "each", 0),
            (1, "batch", DEFAULT_POLL), (4, "batch", DEFAULT_POLL), (16, "batch", DEFAULT_POLL),
            (64, "each", 0), (64, "batch", 0)]
    return [Config("fast", aio, qd, 1, "on", irq, NATURAL_WAIT[irq], "irqfd", poll)
            for qd, irq, poll in rows for aio in guest.AIO]


# Stacks that have targets of their own
QUICK = {"v10.2": low_depth_plan}


def cpu_list() -> list[int]:
    """The CPUs that we may use, one of each core first."""
    cores: collections.Counter[str] = collections.Counter()

    def turn(cpu):
        try:
            core = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            core = str(cpu)
        cores[core] += 1
        return cores[core]
    return [cpu for _, cpu in sorted((turn(cpu), cpu) for cpu in sorted(os.sched_getaffinity(0)))]


def full_plan(o: Options, cpus: Sequence[int]) -> list[Config]:
    """All combinations of what was chosen."""
    main = o.main or ("irqfd",)
    if "other" in main and len(cpus) < 3:
        raise ToolError("MAIN=other: needs a third CPU; give driver or iothread")
    if "vhost-user" in o.transport and not set(main) <= {"irqfd", "export"}:
        raise ToolError(f"MAIN={' '.join(main)} and TRANSPORT=vhost-user: a storage daemon's main thread takes no "
                        "interrupts; leave one of them out")
    if "export" in main and (o.transport != ("vhost-user",) or any(o.poll_max_ns)):
        raise ToolError("MAIN=export: needs TRANSPORT=vhost-user alone, and does not poll; leave POLL_MAX_NS= out")
    if o.transport == ("vhost-user",) and "machine" in options.given_to(o):
        raise ToolError("MACHINE= and TRANSPORT=vhost-user: a storage daemon has no machine; leave one of them out")
    if o.wait and "irq" in o.wait and "off" in o.irq:
        raise ToolError("WAIT=irq and IRQ=off: no interrupt would come; give IRQ= as well")
    found = [Config(s, a, d, q, e, i, w, m, n, t) for s, a, d, q, e, i, m, n, t in
             itertools.product(o.storage, o.aio, o.iodepth, o.queues, o.event_idx, o.irq, main, o.poll_max_ns,
                               o.transport)
             for w in o.wait or [NATURAL_WAIT[i]]]
    if not o.main and (list(o.irq), list(o.event_idx)) == (CHOICES["irq"], CHOICES["event_idx"]):
        # the main thread's other places, shown where they matter most
        found += [dataclasses.replace(c, main=m) for c in found for m in ("driver", "iothread")
                  if (c.storage, c.qd, c.queues, c.event_idx, c.irq, c.transport) ==
                  ("fast", 64, 1, "on", "each", "pci")]
    return found


def parameters(o: Options) -> Parameters:
    """The plan for these options, if they go together."""
    cpus: Sequence[int] = o.cpus or cpu_list()
    if len(cpus) < 2:
        raise ToolError("one CPU is not enough: driver and IOThread need one each")
    if o.quick:
        for name in [*CHOICES, "iodepth", "queues", "poll_max_ns"]:
            if name in options.given_to(o):
                raise ToolError(f"QUICK=1 has its own configurations; leave {name.upper()}= or QUICK= out")
    compared.check_given(o.qemu_a, o.qemu_b)
    configs = QUICK.get(common.stack_name(), quick_plan)() if o.quick else full_plan(o, cpus)
    if not o.indirect and max(c.qd for c in configs) > 341:
        raise ToolError("INDIRECT=off: at most 341 requests fit in a queue; give IODEPTH=")
    if o.disk and not any(c.storage == "disk" for c in configs):
        raise ToolError("DISK= is given, but STORAGE= leaves the disk out")
    many = len(configs) > MANY
    seconds = o.seconds or (0.3 if many else 0.7)
    return Parameters(
        configs=configs, quick=o.quick, rw=o.rw, bs=o.bs, indirect="on" if o.indirect else "off",
        # the full plan has hundreds of configurations, and is read group by group
        pairs=o.pairs or (2 if many else 8), seconds=seconds, turns=min(1000, round(seconds / TURN)),
        min_ios=o.min_ios, batch=o.batch,
        # the targets are for a driver that reacts at once
        reaction_us=NATURAL_REACTION["used"][0] if o.quick and o.reaction_us is None else o.reaction_us,
        jitter=None if o.jitter is None and not o.quick else "on" if o.jitter else "off",
        layouts=not o.qemu_a if o.layouts is None else o.layouts, machine=o.machine,
        seed=random.SystemRandom().randrange(1 << 31) if o.seed is None else o.seed,
        disk=compared.own_disk(o.disk, o.rw != "read", o.write_ok, o.rw) if o.disk else "", write_ok=o.write_ok,
        cpus={"driver": cpus[0], "iothread": cpus[1], "other": cpus[2] if len(cpus) > 2 else None},
        qemu_a=o.qemu_a, qemu_b=o.qemu_b)


def limit_key(config: Config) -> LimitKey:
    """What the host's fio can know of a configuration."""
    return config.storage, config.aio, config.qd * config.queues
