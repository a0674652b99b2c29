# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the load generator: what it must find, and what it must not."""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from dctools.common import ToolError
from dctools.measure import compared
from dctools.measure.generator import SOURCES, Image, command, compile_c, images, place, run_load, sample, wrapped
from dctools.measure.plan import Options, Parameters, parameters
from dctools.report.loadgen import PER_BATCH, metrics
from dctools.report.results import ratio_text
from dctools.report.statistics import paired

WRAPS = 4       # times 65,536 requests
DOUBLE_WRITES = SOURCES / "preload" / "doublewrite.c"
LOST = SOURCES / "preload" / "lost.c"
# QEMU's trace events, of v7.2 and of v10.2: a used buffer, a notification, a deferred call, a handler
LETTERS = {"virtio_notify_irqfd": "U", "virtio_notify_irqfd_send": "N", "defer_call_run": "r",
           "virtio_notify_batch": "U", "virtio_notify": "N", "virtio_notify_batch_deferred_fn": "R",
           "virtio_queue_notify": "H"}
ROW_MOST = 32       # DEFER_CALL_TAKE_MAX
TURN_MOST = 256 + 64    # requests that fit into the virtqueue, and those in flight before
BATCHES = SOURCES / "preload" / "batches.c"
# aio-max-batch of the IOThread and of the file, and the most that QEMU then submits at once
BATCH_LIMITS = [(0, 0, 32), (4, 0, 4), (0, 4, 4), (8, 4, 4), (4, 8, 4)]


def _small(**kw: Any) -> Parameters:
    """Parameters of a short run whose counts do not depend on the machine.

    One request at a time and no EVENT_IDX: a notification for each, however late
    the driver is.
    """
    small: dict[str, Any] = {
        "pairs": 3, "seconds": .3, "seed": 1, "aio": ("threads",), "iodepth": (1,), "queues": (1,),
        "event_idx": ("off",), "irq": ("each",), "storage": ("fast",), "main": ("irqfd",), "reaction_us": .2,
        "min_ios": 3000}
    return parameters(Options(**{**small, **kw}))


def _writes(p: Parameters, found: dict[tuple[str, str], Image],
            binaries: Sequence[pathlib.Path | str]) -> dict[str, Any]:
    """Ratio of write(2) per I/O, second binary to first, and the interval over the pairs."""
    values: tuple[list[float], list[float]] = [], []
    config = p.configs[0]
    image = found[config.storage, config.aio]
    for pair in range(p.pairs):
        for n in random.Random(pair).sample((0, 1), 2):
            values[n].append(sample(binaries[n], config, p, image, pair)["per_io"]["writes"])
    return paired(*values)


def check_same(binary: pathlib.Path | str) -> None:
    """A/A: one binary against itself shows no difference."""
    p = _small()
    with images(p) as found:
        r = _writes(p, found, [binary, binary])
    if r["ratio"] is None or not .98 < r["ratio"] < 1.02:
        raise ToolError(f"a binary against itself: write(2) per I/O {ratio_text(r)}, 1 expected")


def _changing(cases: str, start: str) -> str:
    """A shell script that starts something, and changes some of its arguments: cases of "$a"."""
    return f'''
for a; do
    shift
    case "$a" in
    {cases}
    esac
    set -- "$@" "$a"
done
{start} "$@"'''


def check_batches(binary: pathlib.Path | str, limits: Sequence[tuple[int, int, int]] = BATCH_LIMITS) -> None:
    """Linux AIO submits as many requests at once as aio-max-batch lets it, and no more."""
    p = _small(aio=("native",), iodepth=(64,), irq=("batch",), wait=("irq",))
    config = p.configs[0]
    shim, most = place() / "batches.so", place() / "batches"
    compile_c([BATCHES], shim, ["-shared", "-fPIC"])
    for iothread, file, wanted in limits:
        script = _changing(f'''iothread,*) a="$a,aio-max-batch={iothread}" ;;
    *'"driver":"file",'*) a="${{a%?}},\\"aio-max-batch\\":{file}}}" ;;''',
                           f'MOST_SUBMITTED="{most}" LD_PRELOAD="{shim}" exec "{binary}"')
        most.write_text("0")
        with images(p) as found, wrapped(script) as wrapper:
            sample(wrapper, config, p, found[config.storage, config.aio], 1)
        if (got := int(most.read_text())) != wanted:
            raise ToolError(f"aio-max-batch={iothread}, of the file {file}: {got} requests at once, {wanted} expected")


def check_slowed(binary: pathlib.Path | str, **chosen: Any) -> None:
    """A binary with an extra write for each notification is found."""
    p = _small(**chosen)
    shim = place() / "doublewrite.so"
    compile_c([DOUBLE_WRITES], shim, ["-shared", "-fPIC"])
    with images(p) as found, wrapped(f'LD_PRELOAD="{shim}" exec "{binary}" "$@"') as slowed:
        r = _writes(p, found, [binary, slowed])
    if r["low"] is None or not 1.9 < r["ratio"] < 2.1 or r["low"] <= 1:
        raise ToolError(f"a doubled write was not found: write(2) per I/O {ratio_text(r)}, 2 expected")


def check_wraps(binary: pathlib.Path | str, **chosen: Any) -> None:
    """No notification is lost while the used index wraps: the driver takes nothing without an interrupt."""
    p = _small(**{"aio": ("native", "io_uring"), "iodepth": (7, 64), "event_idx": ("on",), "irq": ("each", "batch"),
                  "wait": ("irq",), "min_ios": WRAPS << 16, **chosen})
    with images(p) as found:
        for config in p.configs:
            done = sample(binary, config, p, found[config.storage, config.aio], 1)["ios"]
            if done < WRAPS << 16:
                raise ToolError(f"{config}: {done} requests, {WRAPS << 16} were wanted")


def check_writes(binary: pathlib.Path | str, most: float = PER_BATCH) -> None:
    """There are few notifications for a batch of completions that a waiting driver finds.

    A machine with more to do makes more of them, not fewer, so one of three runs will do.
    """
    p = _small(aio=("native", "io_uring"), iodepth=(64,), queues=(1, 4), event_idx=("on", "off"), irq=("batch",),
               wait=("irq",))
    with images(p) as found:
        for config in p.configs:
            for seed in range(3):
                run = sample(binary, config, p, found[config.storage, config.aio], seed)
                if (seen := metrics(run)["per_batch"]) <= most:
                    break
            else:
                raise ToolError(f"{config}: {seen:.2f} write(2) per batch of completions, {most} allowed")


def trace_events(trace: str) -> str:
    """What a trace says of the virtqueue: U: used buffer, N: notification, R: deferred call, H: the handler is called.

    Up to the last notification; QEMU may have been killed after that. In v7.2 a deferred call first goes
    behind the others, which may use buffers: it runs twice (r).
    """
    found = [(LETTERS[event], pointer)
             for event, pointer in re.findall(rf"^({'|'.join(LETTERS)}) .* (?:vq|opaque) (\S+)", trace, re.M)]
    queues = {pointer for letter, pointer in found if letter == "U"}
    events = "".join(letter for letter, pointer in found if pointer in queues)
    return re.sub(r"r(U*)r", r"\1R", events[:events.rfind("N") + 1])


def judge_rows(events: str, event_idx: bool, least: int = 10) -> None:
    """One deferred call for a row of used buffers; with EVENT_IDX its first buffer does not wait for that.

    Without EVENT_IDX the driver always wants to be notified; with it only sometimes, so not each N is there.
    """
    row = "UN?(?:U+RN?)?" if event_idx else "U+RN"
    good = re.match(f"(?:{row})*", events)
    assert good         # it may be empty
    if (at := good.end()) < len(events):
        raise ToolError(f"rows of used buffers are not notified of as they should be: "
                        f"{events[max(0, at - 20):at]} and then {events[at:at + 40]}")
    wanted = {"notifications for the first buffer of a row": "UN", "deferred calls": "R"} if event_idx else \
        {"rows of more than one used buffer": "UUR"}
    for what, pattern in wanted.items():
        if (n := len(re.findall(pattern, events))) < least:
            raise ToolError(f"{n} {what}, {least} were wanted")


def _traced(binary: pathlib.Path | str, event_idx: str, iodepth: int, more: Sequence[str] = ()) -> str:
    """What QEMU does with the virtqueue of a driver that waits for interrupts."""
    p = _small(aio=("native",), iodepth=(iodepth,), event_idx=(event_idx,),
               irq=("batch" if event_idx == "on" else "each",), wait=("irq",))
    config, trace = p.configs[0], place() / "trace.log"
    with images(p) as found:
        events = [a for e in ["virtio_notify*", "defer_call_run", *more] for a in ("-trace", e)]
        run_load(command(binary, config, p, found[config.storage, config.aio], 1) +
                 [a for q in [*events, "-D", str(trace)] for a in ("--qemu-arg", q)], 120)
    return trace_events(trace.read_text(errors="replace"))


def check_rows(binary: pathlib.Path | str, event_idx: str) -> None:
    """A driver gets one notification for a row of used buffers; with EVENT_IDX one more, at once, for the first."""
    judge_rows(_traced(binary, event_idx, 16), event_idx == "on")


def check_row_length(binary: pathlib.Path | str, most: int = ROW_MOST) -> None:
    """A virtqueue's handler that always finds requests lets deferred calls run after so many."""
    longest = max(map(len, re.findall("U+", _traced(binary, "off", 64))), default=0)
    if longest > most:
        raise ToolError(f"{longest} used buffers in a row, {most} allowed")
    if longest < 2:
        raise ToolError("no rows of used buffers in the trace")


def check_turns(binary: pathlib.Path | str, most: int = TURN_MOST) -> None:
    """A virtqueue's handler that always finds requests returns to the event loop after so many."""
    turns = _traced(binary, "off", 64, ["virtio_queue_notify"]).split("H")
    if (longest := max(turn.count("U") for turn in turns)) > most:
        raise ToolError(f"{longest} used buffers before the handler is called again, {most} allowed")
    if len(turns) < 10:
        raise ToolError(f"{len(turns)} turns of the handler in the trace, 10 were wanted")


def check_jitter(binary: pathlib.Path | str, jitter: bool = True) -> None:
    """The driver's reaction time varies: many requests take much less than it is, some much more."""
    reaction = 2000
    p = _small(reaction_us=reaction, jitter=jitter, min_ios=300)
    with images(p) as found:
        # each of these requests takes milliseconds, and others have verified all of the image
        image = dataclasses.replace(found["fast", "threads"], verify="100")
        seen = sample(binary, p.configs[0], p, image, 1)["latency_us"]
    # not the least: the driver, if it is kept waiting, finds a request at once that came meanwhile
    if seen["p10"] > reaction / 2 or seen["p99"] < reaction * 1.5:
        raise ToolError(f"latencies from (p10) {seen['p10']:.0f} to (p99) {seen['p99']:.0f} us do not vary as a "
                        f"reaction time from 0 to {2 * reaction} us does")


def _exported(aio: str, **kw: Any) -> Parameters:
    """_small() for the storage daemon's vhost-user-blk export."""
    return _small(aio=(aio,), transport=("vhost-user",), **kw)


@contextlib.contextmanager
def _preloaded(qemu: pathlib.Path | str, source: pathlib.Path | None, environment: str = "") -> Iterator[str]:
    """The storage daemon of a QEMU, with something preloaded. It belongs to itself, for storage_daemon()."""
    if source:
        shim = place() / f"{source.stem}.so"
        compile_c([source], shim, ["-shared", "-fPIC"])
        environment += f' LD_PRELOAD="{shim}"'
    with wrapped(f'{environment} exec "{compared.storage_daemon(str(qemu))}" "$@"', "qemu-storage-daemon") as daemon:
        yield daemon


def check_export_wraps(binary: pathlib.Path | str, aio: str, queues: int = 1) -> None:
    """check_wraps() for the storage daemon's export."""
    check_wraps(binary, aio=(aio,), iodepth=(64,), queues=(queues,), irq=("batch",), transport=("vhost-user",))


def check_export_counts(binary: pathlib.Path | str, aio: str, preload: bool = False, wanted: float = 1) -> None:
    """With one request at a time, there is one kick and one write(2) for each; the interrupts are those writes.

    The kernel counts the writes, and our eventfds what is written to them. preload: with DOUBLE_WRITES.
    """
    p = _exported(aio)
    with images(p) as found, _preloaded(binary, DOUBLE_WRITES if preload else None) as daemon:
        run = sample(daemon, p.configs[0], p, found["fast", aio], 1)
    seen = {**run["per_io"], "write(2) in a window of their own": run["syscalls"]["per_io"].get("write", 0)}
    for what, expected in {"kicks": 1, "writes": wanted, "interrupts": wanted,
                           "write(2) in a window of their own": wanted}.items():
        if not .98 < seen[what] / expected < 1.02:
            raise ToolError(f"{p.configs[0]}: {seen[what]:.2f} {what} per I/O, {expected} expected")


def check_export_loses(binary: pathlib.Path | str, aio: str, lost: int = 100) -> None:
    """A driver that waits for interrupts gets them all, unless one is lost; 0: none is."""
    p = _exported(aio, iodepth=(16,), event_idx=("on",), irq=("batch",), wait=("irq",))
    with images(p) as found, _preloaded(binary, LOST, f"LOST={lost}") as daemon:
        run_load([*command(daemon, p.configs[0], p, found["fast", aio], 1), "--timeout", "1"], 120)


def check_load(binary: pathlib.Path | str, **chosen: Any) -> dict[str, Any]:
    """The data is right before and after, and no request is lost."""
    p = _small(**chosen)
    config = p.configs[0]
    with images(p) as found:
        return sample(binary, config, p, found[config.storage, config.aio], 1)


def check_quiet(binary: pathlib.Path | str, **chosen: Any) -> None:
    """A driver that never asks for interrupts gets none, once the set-up is over."""
    for event_idx in ("on", "off"):
        seen = check_load(binary, **chosen, irq=("off",), event_idx=(event_idx,), iodepth=(16,))["per_io"]["writes"]
        if seen > .02:
            raise ToolError(f"EVENT_IDX {event_idx}: {seen:.3f} write(2) per I/O of a driver that wants no interrupts")


def check_refused(binary: pathlib.Path | str, **chosen: Any) -> None:
    """The device refuses what lies behind its end. It ends here after a sector, which the driver does not know."""
    p = _small(**chosen)
    config = p.configs[0]
    with images(p) as found, tempfile.NamedTemporaryFile() as short:
        image = found[config.storage, config.aio]
        short.truncate(512)
        script = _changing(f"""*'"{image.path}"'*) a="${{a%%"{image.path}"*}}{short.name}${{a#*"{image.path}"}}" ;;""",
                           f'exec "{binary}"')
        with wrapped(script) as wrapper:
            sample(wrapper, config, p, image, 1)


def check_corruption(binary: pathlib.Path | str, **chosen: Any) -> None:
    """One wrong byte in the image is found, and its sector is named."""
    p = _small(**{"iodepth": (16,), "queues": (2,), **chosen})
    config, sector = p.configs[0], 4711
    with images(p) as found:
        image = found[config.storage, config.aio]
        fd = os.open(image.path, os.O_RDWR)
        try:
            byte = os.pread(fd, 1, sector * 512 + 99)
            os.pwrite(fd, bytes([byte[0] ^ 1]), sector * 512 + 99)
        finally:
            os.close(fd)
        try:
            sample(binary, config, p, image, 1)
        except ToolError as e:
            if f"data corruption: sector {sector} " not in str(e):
                raise
            return
    raise ToolError(f"a wrong byte in sector {sector} of the image was not found")
