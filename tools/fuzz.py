#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""make fuzz MINUTES=10: QEMU's generic-fuzz against virtio-blk and virtio-scsi on an IOThread.

clang's libFuzzer makes up what a driver does with the device's registers and with guest memory;
AddressSanitizer, UBSan, QEMU's assertions and a time limit say what is wrong. It starts with
what a well-behaved driver does (seeds()) and with an empty corpus. tests/fuzz-STACK.patch lets
QEMU's fuzzer work with IOThreads. What crashes the series is run on the base, too: it counts
unless the base crashes in the same place.

MINUTES= (10) for each device, DRIVER= (virtio-blk-pci virtio-scsi-pci), AIO= (null native io_uring
threads) share its time. Inputs that crash stay in build/fuzz/STACK/DEVICE/crashes, each with what
QEMU said; INPUT=/path/to/one runs it again. SIDE=base does either with the base.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import time

import build
import common
import guest
import stress
from common import ToolError, progress

LOGS = common.logs("fuzz")
ENGINES = ["null", *guest.AIO]      # null-co: requests complete at once
DISK_MIB = 4            # bounds what requests in flight can allocate
HANG = 20               # seconds for one input
RSS_MIB = 4096
TRIES = 3               # how often an input that crashed is run again
GRACE = 120             # seconds to start and to end
SEARCH = 60             # seconds that the base is fuzzed for a crash, at least
REPEATED = 10           # so many crashes end the turn of an engine

# Mistakes that the patch can put into requests of IOThreads, and what has to be said of each
SABOTAGE = {"overflow": "heap-buffer-overflow", "undefined": "shift exponent", "hang": "timeout"}

# -- what a well-behaved driver does, in the operations of generic_fuzz.c; FUZZ is between two

OUT, WRITE, PCI_WRITE, RAM, STOP_CONT = 1, 3, 5, 10, 11
BYTE, WORD, LONG = 0, 1, 2
SEPARATOR = b"FUZZ"
# MMIO regions by address: the BAR of MSI-X, and the modern one
COMMON, NOTIFY = 2, 5
NEXT, DEVICE_WRITES, AVAILABLE = 1, 2, 1 << 7        # of descriptors
EVENT_IDX, VERSION_1, PACKED = 1 << 29, 1 << 32, 1 << 34
RINGS, BUFFERS, STRIDE, SIZE = 0x100000, 0x200000, 0x4000, 256       # SIZE: entries of a ring


def out(size, register, value):
    return struct.pack("<BBBHI", OUT, size, 0, register, value)


def mmio(region, size, register, value):
    return struct.pack("<BBBxxIQ", WRITE, size, region, register, value)


def ram(address, data):
    return struct.pack("<BI", RAM, address) + data


def blk_requests():
    """(what the device reads, how much it writes) of each. Reads start at sector 0, where SABOTAGE does nothing."""
    def request(kind, sector, *data, wanted=()):
        return [struct.pack("<IIQ", kind, 0, sector), *data], [*wanted, 1]
    segment = struct.pack("<QII", 8, 8, 0)
    return [request(0, 0, wanted=[512]), request(1, 8, bytes(512)), request(0, 0, wanted=[4096, 4096]), request(4, 0),
            request(8, 0, wanted=[20]), request(11, 0, segment), request(13, 0, segment)]


LUN = bytes([1, 0, 0x40, 0, 0, 0, 0, 0])


def scsi_requests():
    def request(op, *cdb, data=(), wanted=()):
        return [LUN + bytes(11) + bytes([op, *cdb]).ljust(32, b"\0"), *data], [108, *wanted]
    def rw(op, block, blocks, **kw):
        return request(op, 0, *struct.pack(">IxH", block, blocks), **kw)
    return [request(0), rw(0x28, 0, 1, wanted=[512]), rw(0x2a, 8, 1, data=[bytes(512)]),
            rw(0x28, 0, 16, wanted=[4096, 4096]), request(0x35), request(0x12, 0, 0, 0, 36, wanted=[36]),
            request(0x42, 0, 0, 0, 0, 0, 0, 24, data=[struct.pack(">HHxxxxQIxxxx", 22, 16, 8, 8)]),
            rw(0x41, 16, 8, data=[bytes(512)])]


def scsi_abort():
    """A task management function, for the control queue."""
    return [struct.pack("<II", 0, 0) + LUN + bytes(8)], [1]


def buffers(requests):
    """Operations that put requests into memory, and each one's descriptors: [(address, length, flags), ...]."""
    ops, chains = [], []
    for n, (read, written) in enumerate(requests):
        at = BUFFERS + n * STRIDE
        ops.append(ram(at, b"".join(read)))
        chains.append([])
        for length, flags in [*((len(part), 0) for part in read), *((size, DEVICE_WRITES) for size in written)]:
            chains[-1].append((at, length, flags))
            at += length
    return ops, chains


def split_ring(ring, requests):
    ops, chains = buffers(requests)
    table, heads = b"", []
    for chain in chains:
        heads.append(len(table) // 16)
        for address, length, flags in chain:
            table += struct.pack("<QIHH", address, length, flags | NEXT, len(table) // 16 + 1)
        table = table[:-4] + struct.pack("<HH", chain[-1][2], 0)
    return [*ops, ram(ring, table), ram(ring + 16 * SIZE, struct.pack(f"<HH{len(heads)}H", 0, len(heads), *heads))]


def packed_ring(ring, requests):
    ops, chains = buffers(requests)
    table = b"".join(struct.pack("<QIHH", address, length, n, flags | AVAILABLE | NEXT * (k + 1 < len(chain)))
                     for n, chain in enumerate(chains) for k, (address, length, flags) in enumerate(chain))
    return [*ops, ram(ring, table)]


def kick(setup, queue):
    return out(WORD, 16, queue) if setup is legacy else mmio(NOTIFY, WORD, 4 * queue, queue)


def legacy(queues, features):
    """Set the device up through I/O ports."""
    ops = [out(BYTE, 18, 1), out(BYTE, 18, 3), out(LONG, 4, features)]
    for n in range(queues):
        ops += [out(WORD, 14, n), out(LONG, 8, (RINGS + n * STRIDE) >> 12)]
    return [*ops, out(BYTE, 18, 7)]


def modern(queues, features):
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


def seeds(driver, given=None):
    """Inputs to start with, of the given requests or of some of each kind."""
    if driver == "virtio-blk-pci":
        before, requests, queues, first = [], blk_requests(), 2, 0
    else:       # the first command after a reset only hears of the reset
        before, requests, queues, first = scsi_requests()[:1], scsi_requests()[1:], 4, 2
    requests, ring, found = given or requests, RINGS + first * STRIDE, []
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


# -- running it

def qemu_arguments(driver, engine, image):
    if engine == "null":
        disk = f"driver=null-co,node-name=file0,size={DISK_MIB << 20},read-zeroes=on"
    else:
        disk = f"driver=file,node-name=file0,filename={image},cache.direct=on,discard=unmap,aio={engine}"
    args = (f"-L /usr/share/seabios -machine pc -nodefaults -object iothread,id=io0 -blockdev {disk} "
            f"-blockdev driver=raw,node-name=disk0,file=file0,discard=unmap ")
    if driver == "virtio-blk-pci":
        return args + f"-device {driver},iothread=io0,drive=disk0,num-queues=2,queue-size={SIZE},packed=on"
    return (args + f"-device {driver},id=bus0,iothread=io0,num_queues=2,virtqueue_size={SIZE},packed=on "
                   f"-device scsi-hd,bus=bus0.0,drive=disk0")


@dataclasses.dataclass
class Result:
    runs: int = 0
    seconds: float = 0
    coverage: int = 0
    requests: int = 0
    crash: str = ""         # where, without numbers that differ from run to run
    path: pathlib.Path = None


def where(text):
    """What names a crash: the assertion, or the sanitizer's finding with the first functions of its stack."""
    if m := re.search(r"(\w+)(?:\(.*\))?: Assertion `(.*)' failed|ERROR:\S+:(\w+): assertion failed:? (.*)", text):
        return f"{m[1] or m[3]}: assertion {m[2] or m[4]}"
    if m := re.search(r"runtime error: (.*)", text):
        kind = m[1]
    elif m := re.search(r"ERROR: (?:AddressSanitizer|libFuzzer): ((?:attempting |deadly )?[\w-]+)", text):
        kind = m[1]
    else:
        return ""
    kind = re.sub(r"0x[0-9a-f]+|\b\d+\b", "N", kind)
    frames = [f for f in re.findall(r"^ +#\d+ 0x[0-9a-f]+ in (\S+) \S*/src/\S+", text[m.end():], re.M)
              if not f.startswith(("fuzz", "LLVMFuzzer", "__"))]
    return f"{kind} in {' < '.join(frames[:3]) or 'unknown'}"


def parse(text):
    """A Result from what libFuzzer has said."""
    number = lambda pattern: max(map(int, re.findall(pattern, text, re.M)), default=0)
    return Result(runs=number(r"stat::number_of_executed_units: (\d+)") or number(r"^#(\d+)\s"),
                  coverage=number(r"\bcov: (\d+)"), requests=number(r"IOThreads had (\d+) requests"))


def environment(binary, driver, engine, image, sabotage):
    env = {**build.environment(binary.parent.parent), "QEMU_FUZZ_ARGS": qemu_arguments(driver, engine, image),
           "QEMU_FUZZ_OBJECTS": "virtio*", "QEMU_FUZZ_TIMEOUT": "0", "QEMU_AVOID_DOUBLE_FETCH": "1",
           "ASAN_OPTIONS": "detect_leaks=0:handle_abort=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return {**env, **({"FUZZ_SABOTAGE": sabotage} if sabotage else {})}


def libfuzzer(binary, driver, engine, directory, args, limit, sabotage=None):
    """Run it; a Result. What crashes it is in directory/crashes."""
    crashes, log, image = directory / "crashes", directory / f"{engine}.log", directory / "disk.raw"
    crashes.mkdir(parents=True, exist_ok=True)
    image.write_bytes(b"")
    os.truncate(image, DISK_MIB << 20)
    (directory / "words").write_text(f'"{SEPARATOR.decode()}"\n')
    cmd = [binary, "--fuzz-target=generic-fuzz", f"-timeout={HANG}", f"-rss_limit_mb={RSS_MIB}", "-detect_leaks=0",
           "-print_final_stats=1", f"-dict={directory / 'words'}", f"-artifact_prefix={crashes}/", *args]
    start = time.monotonic()
    with open(log, "w") as f, subprocess.Popen(
            [str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT, cwd=directory,
            env=environment(binary, driver, engine, image, sabotage), start_new_session=True) as p:
        try:
            status = p.wait(limit)
        except subprocess.TimeoutExpired:
            status = "timeout"
        finally:
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
    text = log.read_text(errors="replace")
    result = parse(text)
    result.seconds = time.monotonic() - start
    if status:
        result.crash = where(text)
        written = re.search(r"Test unit written to (\S+)", text)
        if not result.crash:
            raise ToolError(f"{binary.name} ended with {status}, see {log}")
        if written:
            result.path = pathlib.Path(written[1])
            shutil.copy(log, result.path.with_name(result.path.name + ".log"))
    return result


def fuzz(binary, driver, engine, seconds, directory, sabotage=None, inputs=None):
    """Fuzz until something crashes or the time is over; what is found is kept in directory/corpus."""
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in inputs or seeds(driver):
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    result = libfuzzer(binary, driver, engine, directory, [f"-max_total_time={max(1, round(seconds))}", corpus],
                       seconds + GRACE, sabotage)
    if not result.crash and not result.requests:
        raise ToolError(f"{driver} {engine}: no request came to the IOThread, see {directory / engine}.log")
    return result


def again(binary, driver, engine, path, directory):
    """In how many of TRIES processes that input crashes, and where it did last."""
    found = [libfuzzer(binary, driver, engine, directory, [path], GRACE).crash for _ in range(TRIES)]
    return sum(map(bool, found)), next(filter(None, reversed(found)), "")


def must_notice(binary, driver, sabotage, seconds=120):
    """A ToolError unless the fuzzer finds that mistake in requests of the IOThread."""
    directory = LOGS / f"sabotage-{driver}-{sabotage}"
    shutil.rmtree(directory, ignore_errors=True)
    # Many of the bytes decide what is read, so it takes few changes to find one
    read = blk_requests()[2] if driver == "virtio-blk-pci" else scsi_requests()[3]
    result = fuzz(binary, driver, "null", seconds, directory, sabotage, seeds(driver, [read] * 16)[32:33])
    if SABOTAGE[sabotage] not in result.crash:
        raise ToolError(f"{driver}: the sabotage `{sabotage}` was not found in {result.runs} runs, "
                        f"but {result.crash or 'nothing'}; see {directory}")


@dataclasses.dataclass
class Crash:
    where: str
    engine: str
    path: pathlib.Path
    count: int = 0
    alone: int = 0          # of TRIES
    base: str = ""          # how the base crashes there, if it does


def device(stack, binary, driver, engines, seconds, side):
    """Fuzz one device; the sum of the results, and the crashes."""
    directory = LOGS / (driver if side == "series" else f"{driver}-{side}")
    shutil.rmtree(directory / "corpus", ignore_errors=True)
    total, crashes = Result(), {}
    for engine in engines:
        end, turns, repeated = time.monotonic() + seconds / len(engines), 0, 0
        while (left := end - time.monotonic()) > (turns and 5) and repeated < REPEATED:
            turns += 1
            result = fuzz(binary, driver, engine, left, directory)
            total.runs += result.runs
            total.seconds += result.seconds
            total.requests += result.requests
            total.coverage = max(total.coverage, result.coverage)
            progress(f"{driver} {engine}: {result.runs} runs in {result.seconds:.0f} s, coverage {result.coverage}"
                     + (f", {result.crash}" if result.crash else ""))
            if result.crash:
                repeated += 1
                new = Crash(result.crash, engine, result.path)
                crashes.setdefault(result.crash, new).count += 1
    for crash in crashes.values() if side == "series" else ():
        examine(stack, binary, driver, crash, seconds / len(engines), directory)
    return total, list(crashes.values())


def examine(stack, binary, driver, crash, seconds, directory):
    """Whether the input crashes alone, and whether the base crashes there, too."""
    if crash.path:
        crash.alone, _ = again(binary, driver, crash.engine, crash.path, directory / "again")
    base = build.fuzzer(stack, "base")
    count, place = again(base, driver, crash.engine, crash.path, directory / "base") if crash.path else (0, "")
    if place == crash.where:
        crash.base = f"{count} of {TRIES} with this input"
        return
    if crash.where.startswith("timeout"):
        return              # the stack is that of the main thread, which waits there for many a reason
    # What is left from inputs before may matter, and when threads run
    shutil.rmtree(directory / "base/corpus", ignore_errors=True)
    shutil.copytree(directory / "corpus", directory / "base/corpus")
    end = time.monotonic() + max(SEARCH, seconds)
    while (left := end - time.monotonic()) > 0:
        result = fuzz(base, driver, crash.engine, left, directory / "base")
        if result.crash == crash.where:
            crash.base = "found with the corpus of the series"
            return


def table(driver, total, crashes):
    """Lines for the person."""
    lines = [f"{driver}: {total.runs} runs, {total.seconds:.0f} s, coverage {total.coverage}, "
             f"{total.requests} requests in the IOThread, crashes: {sum(c.count for c in crashes)}"]
    for c in crashes:
        lines += [f"  {'base too' if c.base else 'SERIES'}: {c.where}",
                  f"    {c.count} times, alone {c.alone} of {TRIES}; base: {c.base or 'not seen'}; "
                  f"AIO={c.engine} {c.path}"]
    return "\n".join(lines)


def run_all(stack, binary, drivers, engines, seconds, side="series"):
    """Fuzz the devices one after the other; the crashes that the base is not known to have."""
    own = []
    for driver in drivers:
        total, crashes = device(stack, binary, driver, engines, seconds, side)
        print(table(driver, total, crashes), flush=True)
        own += [c for c in crashes if not c.base]
    return own


def check(stack, binary, driver, seconds=30):
    """A ToolError if the series crashes where the base is not known to."""
    total, crashes = device(stack, binary, driver, ENGINES, seconds, "series")
    progress(table(driver, total, crashes))
    own = [c for c in crashes if not c.base]
    if own:
        raise ToolError("; ".join(f"{c.where}, see {c.path}" for c in own))


def run_input(binary, driver, engine, path):
    """Run one input and show what QEMU says."""
    result = libfuzzer(binary, driver, engine, LOGS / "input", [path.resolve()], GRACE)
    print((LOGS / f"input/{engine}.log").read_text(errors="replace"), end="")
    return 1 if result.crash else 0


def main():
    stack = common.stack_name()
    minutes = common.number(os.environ, "MINUTES", 10, 0.01, 10 ** 6, float)
    drivers, engines = stress.words("DRIVER", guest.DRIVERS), stress.words("AIO", ENGINES)
    side = os.environ.get("SIDE") or "series"
    if side not in ("series", "base"):
        raise ToolError(f"SIDE={side}: give series or base")
    path = os.environ.get("INPUT") and pathlib.Path(os.environ["INPUT"])
    if path and not path.is_file():
        raise ToolError(f"INPUT={path}: no such file")
    if path and (len(drivers), len(engines)) != (1, 1):
        raise ToolError("INPUT= wants one DRIVER= and one AIO=")
    binary = build.fuzzer(stack, side)
    if path:
        return run_input(binary, drivers[0], engines[0], path)
    return 1 if run_all(stack, binary, drivers, engines, minutes * 60, side) else 0


if __name__ == "__main__":
    common.main(main)
