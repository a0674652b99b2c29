# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests with sanitizers, and with hooks that provoke what is rare."""

import concurrent.futures
import re

from dctools import build, environment, guest, process, series
from dctools.check.results import Results, logs, must_say
from dctools.check.built import notify_test, put_firmware
from dctools.process import limited

# For tests/hooks.patch: sections end late, always or every fourth time; without the lock
# that keeps the main thread away while the sections of linux-aio and io_uring end; and
# without the barrier, which must be noticed.
LATE = {"DEFER_CALL_DELAY": "20000/4"}
UNLOCKED = {"DEFER_CALL_DELAY": "20000/1", "DEFER_CALL_DELAY_UNLOCKED": "1"}
NO_BARRIER = {**UNLOCKED, "DEFER_CALL_NO_BARRIER": "1"}
# Where a drain attaches host notifiers: one while the device stops; without the check for that, which must be noticed.
DRAIN, DRAIN_UNGUARDED = ({"DEFER_CALL_DRAIN_IN_STOP": value} for value in ("1", "unguarded"))
# A virtqueue handler takes a second, and a stop while drained must wait for it.
SLOW = {"DEFER_CALL_SLOW_HANDLER": "1000000"}
SLOW_STOP = [f"/x86_64/virtio-notify/{name}/stop-drained" for name in ("blk/io_uring", "scsi/native")]


def check_sanitizers(results: Results, stack: str) -> None:
    """The new tests with ASan, UBSan, LSan, the checks of a debug build, and sections that end late."""
    directory = build.sanitized(stack)
    put_firmware(directory)
    src, log = directory.parent / "src", logs() / "sanitizers.log"
    # The last two exist only with --enable-debug-mutex, and where the series forbids it
    text = (src / "tests/unit/test-defer-call.c").read_text()
    wanted = ["/defer-call/random", "/defer-call/misuse/thread-exit"] + \
        [f"/defer-call/misuse/{name}" for name in ("yield", "terminate") if f"misuse/{name}" in text]
    hooks = {"late": LATE}
    if "DEFER_CALL_DELAY_UNLOCKED" in (src / "util/defer-call.c").read_text():
        hooks["unlocked"] = UNLOCKED
    drains = "DEFER_CALL_DRAIN_IN_STOP" in (src / "hw/block/virtio-blk.c").read_text()
    if drains:
        hooks["drain"] = DRAIN
    # They mostly wait, so side by side
    with environment.setenv(UBSAN_OPTIONS="halt_on_error=1"), concurrent.futures.ThreadPoolExecutor() as pool:
        status = pool.submit(limited, [directory / "tests/unit/test-defer-call", "--tap", "-k"], log, 300,
                             cwd=directory)
        late = {name: pool.submit(notify_test, f"sanitizers notify {name}", directory, hooks=h)
                for name, h in hooks.items()}
        lost = {aio: pool.submit(notify_test, f"no barrier {aio}", directory,
                                 "-p", f"/x86_64/virtio-notify/blk/{aio}/stop", hooks=NO_BARRIER)
                for aio in guest.AIO}
        slow = {path: [pool.submit(notify_test, f"slow handler {name} {path.split('/')[3]}", directory, "-p", path,
                                   hooks=h)
                       for name, h in [("waits", SLOW), ("unguarded", {**SLOW, "DEFER_CALL_NO_BARRIER": "1"})]]
                for path in SLOW_STOP if drains}
        unguarded = [pool.submit(notify_test, "drain unguarded", directory, "-p",
                                 "/x86_64/virtio-notify/blk/io_uring/stop", hooks=DRAIN_UNGUARDED)] if drains else []
    results.tap("sanitizers", log, wanted)
    if status.result():
        results.add("sanitizers exit status", f"{status.result()}, see {log}")
    for name, ran in late.items():
        results.tap(f"sanitizers {name}", ran.result())
    for aio, ran in lost.items():
        must_say(results, f"sanitizers {aio}: without the barrier QEMU notices a notification that is late",
                 ran.result(), "Assertion .*notify_deferred")
    for path, (waits, without) in slow.items():
        results.tap("sanitizers slow", waits.result(), [path])
        must_say(results, f"sanitizers {path}: without the wait a handler that outlasts the stop is noticed",
                 without.result(), "a virtqueue handler outlasts the stop")
    for ran in unguarded:
        must_say(results, "sanitizers io_uring: host notifiers that a drain attaches during the stop are noticed",
                 ran.result(), "AddressSanitizer")


def races(text: str, files: tuple[str, ...]) -> list[str]:
    """The functions in these files that ThreadSanitizer saw in a race."""
    found: set[str] = set()
    for report in re.findall(r"^WARNING: ThreadSanitizer: (.*?)^=====", text, re.M | re.S):
        found.update(m[1] for m in re.finditer(r"^    #0 (\S+) (\S+):\d+", report, re.M)
                     if m[2].endswith(files))
    return sorted(found)


def check_tsan(results: Results, stack: str) -> None:
    """ThreadSanitizer: it knows no fences, so QEMU is full of races for it; the new code must have none."""
    args = [*build.configure_arguments(), "--enable-tsan", "--disable-werror", "--extra-cflags=-O1"]
    tests = ["test-defer-call", "test-aio-multithread", "test-thread-pool"]
    directory = build.build_side(stack, "tsan", series.update_tree(stack)[1],
                                 [f"tests/unit/{t}" for t in tests], args)
    for test in tests:
        binary, log = directory / "tests/unit" / test, logs() / f"tsan-{test}.log"
        # a child that aborts on purpose says nothing under ThreadSanitizer
        paths = [p for p in process.run([binary, "-l"]).splitlines() if p.startswith("/") and "/misuse/" not in p]
        limited([binary, "--tap", "-k", *[a for p in paths for a in ("-p", p)]], log, 300, cwd=directory)
        results.tap("tsan", log, paths)
        found = races(log.read_text(errors="replace"), ("/defer-call.c", "/test-defer-call.c"))
        results.add(f"tsan {test}: no race in the new code", f"{', '.join(found)}, see {log}" if found else None)
