# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's generic-fuzz against virtio-blk and virtio-scsi on an IOThread."""

import dataclasses
import hashlib
import pathlib
import re
import shutil
import time
from collections.abc import Sequence

from dctools import build, common, guest, options, process
from dctools.common import ToolError, progress
from dctools.fuzz_inputs import SEPARATOR, SIZE, blk_requests, scsi_requests, seeds

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


def logs() -> pathlib.Path:
    return common.logs("fuzz")


def qemu_arguments(driver: str, engine: str, image: pathlib.Path) -> str:
    """What the fuzzer starts QEMU with."""
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
    """What the fuzzer did, and the crash that ended it, if one did."""
    runs: int = 0
    seconds: float = 0
    coverage: int = 0
    requests: int = 0
    crash: str = ""         # where, without numbers that differ from run to run
    path: pathlib.Path | None = None    # the input that crashed


def where(text: str) -> str:
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


def parse(text: str) -> Result:
    """A Result from what libFuzzer has said."""
    def number(pattern):
        return max(map(int, re.findall(pattern, text, re.M)), default=0)
    return Result(runs=number(r"stat::number_of_executed_units: (\d+)") or number(r"^#(\d+)\s"),
                  coverage=number(r"\bcov: (\d+)"), requests=number(r"IOThreads had (\d+) requests"))


def fuzzer_environment(binary: pathlib.Path, driver: str, engine: str, image: pathlib.Path,
                       sabotage: str | None) -> dict[str, str]:
    """What the fuzzer takes from its environment."""
    env = {**build.clean_environment(binary.parent.parent), "QEMU_FUZZ_ARGS": qemu_arguments(driver, engine, image),
           "QEMU_FUZZ_OBJECTS": "virtio*", "QEMU_FUZZ_TIMEOUT": "0", "QEMU_AVOID_DOUBLE_FETCH": "1",
           "ASAN_OPTIONS": "detect_leaks=0:handle_abort=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return {**env, **({"FUZZ_SABOTAGE": sabotage} if sabotage else {})}


def libfuzzer(binary: pathlib.Path, driver: str, engine: str, directory: pathlib.Path,
              args: Sequence[str | pathlib.Path], limit: float, sabotage: str | None = None) -> Result:
    """Run it; a Result. What crashes it is in directory/crashes."""
    crashes, log, image = directory / "crashes", directory / f"{engine}.log", directory / "disk.raw"
    crashes.mkdir(parents=True, exist_ok=True)
    common.sparse(image, DISK_MIB << 20)
    (directory / "words").write_text(f'"{SEPARATOR.decode()}"\n')
    cmd = [binary, "--fuzz-target=generic-fuzz", f"-timeout={HANG}", f"-rss_limit_mb={RSS_MIB}", "-detect_leaks=0",
           "-print_final_stats=1", f"-dict={directory / 'words'}", f"-artifact_prefix={crashes}/", *args]
    start = time.monotonic()
    status = process.limited(cmd, log, limit, cwd=directory,
                             env=fuzzer_environment(binary, driver, engine, image, sabotage))
    text = log.read_text(errors="replace")
    result = parse(text)
    result.seconds = time.monotonic() - start
    if status:
        result.crash = where(text)
        written = re.search(r"Test unit written to (\S+)", text)
        if not result.crash:
            raise ToolError(f"{binary.name} ended with {status}, see {log}")
        if written:
            path = result.path = pathlib.Path(written[1])
            shutil.copy(log, path.with_name(path.name + ".log"))
    return result


def fuzz(binary: pathlib.Path, driver: str, engine: str, seconds: float, directory: pathlib.Path,
         sabotage: str | None = None, inputs: Sequence[bytes] | None = None) -> Result:
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


def again(binary: pathlib.Path, driver: str, engine: str, path: pathlib.Path,
          directory: pathlib.Path) -> tuple[int, str]:
    """In how many of TRIES processes that input crashes, and where it did last."""
    found = [libfuzzer(binary, driver, engine, directory, [path], GRACE).crash for _ in range(TRIES)]
    return sum(map(bool, found)), next(filter(None, reversed(found)), "")


def must_notice(binary: pathlib.Path, driver: str, sabotage: str, seconds: float = 120) -> None:
    """A ToolError unless the fuzzer finds that mistake in requests of the IOThread."""
    directory = logs() / f"sabotage-{driver}-{sabotage}"
    shutil.rmtree(directory, ignore_errors=True)
    # Many of the bytes decide what is read, so it takes few changes to find one
    read = blk_requests()[2] if driver == "virtio-blk-pci" else scsi_requests()[3]
    result = fuzz(binary, driver, "null", seconds, directory, sabotage, seeds(driver, [read] * 16)[32:33])
    if SABOTAGE[sabotage] not in result.crash:
        raise ToolError(f"{driver}: the sabotage `{sabotage}` was not found in {result.runs} runs, "
                        f"but {result.crash or 'nothing'}; see {directory}")


@dataclasses.dataclass
class Crash:
    """One of the places where the fuzzer crashed."""
    where: str
    engine: str
    path: pathlib.Path | None
    count: int = 0
    alone: int = 0          # of TRIES
    base: str = ""          # how the base crashes there, if it does


def device(stack: str, binary: pathlib.Path, driver: str, engines: Sequence[str], seconds: float,
           side: str) -> tuple[Result, list[Crash]]:
    """Fuzz one device; the sum of the results, and the crashes."""
    directory = logs() / (driver if side == "series" else f"{driver}-{side}")
    shutil.rmtree(directory / "corpus", ignore_errors=True)
    total = Result()
    crashes: dict[str, Crash] = {}
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


def examine(stack: str, binary: pathlib.Path, driver: str, crash: Crash, seconds: float,
            directory: pathlib.Path) -> None:
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


def table(driver: str, total: Result, crashes: Sequence[Crash]) -> str:
    """Lines for the person."""
    lines = [f"{driver}: {total.runs} runs, {total.seconds:.0f} s, coverage {total.coverage}, "
             f"{total.requests} requests in the IOThread, crashes: {sum(c.count for c in crashes)}"]
    for c in crashes:
        lines += [f"  {'base too' if c.base else 'SERIES'}: {c.where}",
                  f"    {c.count} times, alone {c.alone} of {TRIES}; base: {c.base or 'not seen'}; "
                  f"AIO={c.engine} {c.path}"]
    return "\n".join(lines)


def run_all(stack: str, binary: pathlib.Path, drivers: Sequence[str], engines: Sequence[str], seconds: float,
            side: str = "series") -> list[Crash]:
    """Fuzz the devices one after the other; the crashes that the base is not known to have."""
    own = []
    for driver in drivers:
        total, crashes = device(stack, binary, driver, engines, seconds, side)
        print(table(driver, total, crashes), flush=True)
        own += [c for c in crashes if not c.base]
    return own


def check(stack: str, binary: pathlib.Path, driver: str, seconds: float = 30) -> None:
    """A ToolError if the series crashes where the base is not known to."""
    total, crashes = device(stack, binary, driver, ENGINES, seconds, "series")
    progress(table(driver, total, crashes))
    own = [c for c in crashes if not c.base]
    if own:
        raise ToolError("; ".join(f"{c.where}, see {c.path}" for c in own))


def run_input(binary: pathlib.Path, driver: str, engine: str, path: pathlib.Path) -> int:
    """Run one input and show what QEMU says; the exit status."""
    result = libfuzzer(binary, driver, engine, logs() / "input", [path.resolve()], GRACE)
    print((logs() / f"input/{engine}.log").read_text(errors="replace"), end="")
    return 1 if result.crash else 0


@dataclasses.dataclass(frozen=True)
class Options:
    minutes: float = options.number(10, 0.01, 10 ** 6, "for each device", float)
    driver: tuple[str, ...] = options.words(guest.DRIVERS, tuple(guest.DRIVERS), "devices")
    aio: tuple[str, ...] = options.words(ENGINES, tuple(ENGINES), "engines, which share the time")
    side: str = options.choice(["series", "base"], "series", "what is fuzzed")
    input: str = options.text("", "a file: run this input alone, with one driver and one engine")


def main(given: Options) -> int:
    """QEMU's generic-fuzz against virtio-blk and virtio-scsi on an IOThread.

    clang's libFuzzer makes up what a driver does with the device's registers and with guest memory;
    AddressSanitizer, UBSan, QEMU's assertions and a time limit say what is wrong. It starts with
    what a well-behaved driver does and with an empty corpus. tests/fuzz-STACK.patch lets QEMU's
    fuzzer work with IOThreads. What crashes the series is run on the base, too: it counts unless
    the base crashes in the same place. Inputs that crash stay in build/fuzz/STACK/DEVICE/crashes,
    each with what QEMU said.

    Example: dc fuzz --minutes 30 --driver virtio-blk-pci
    """
    stack = common.stack_name()
    path = pathlib.Path(given.input) if given.input else None
    if path and not path.is_file():
        raise ToolError(f"INPUT={path}: no such file")
    if path and (len(given.driver), len(given.aio)) != (1, 1):
        raise ToolError("INPUT= wants one DRIVER= and one AIO=")
    binary = build.fuzzer(stack, given.side)
    if path:
        return run_input(binary, given.driver[0], given.aio[0], path)
    return 1 if run_all(stack, binary, given.driver, given.aio, given.minutes * 60, given.side) else 0
