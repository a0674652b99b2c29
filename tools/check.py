#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""make check: every test of the project, a line each, and a count at the end.

STACK= names the stack (default: one after the other), ONLY= the parts to run (default:
all that the stack's pin.json lets, but for fuzz): tools series patches unit soak faults
guest sanitizers tsan qtest iotests stress ring cost fuzz. FULL=1 runs fuzz as well.
"""

import concurrent.futures
import concurrent.futures.process
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import traceback

import build
import common
import cost
import faults
import fuzz
import guest
import ring
import series
import source
import soak
import stress
from common import ToolError, git, setenv, progress

LOGS = common.logs("check")

# Tests that code in the series runs through, or that run through it.
UNIT_TESTS = ["test-aio", "test-aio-multithread", "test-bdrv-drain", "test-bdrv-graph-mod",
              "test-block-backend", "test-block-iothread", "test-blockjob", "test-blockjob-txn",
              "test-coroutine", "test-defer-call", "test-fdmon-epoll", "test-image-locking",
              "test-io-refused",
              "test-thread-pool", "test-throttle", "test-write-threshold"]
# What machine type "pc" loads at its start in QEMU's own tests.
FIRMWARE = ["/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/vgabios-stdvga.bin",
            "/usr/lib/ipxe/qemu/efi-e1000.rom", guest.GUEST / "firmware/kvmvapic.bin"]
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
# Operations of make soak that fit into the time; each comes once.
SOAK_OPS = ["stops", "mirror", "commit", "unplug", "reset_paused", "migrate"]
# Arguments of QEMU's iotests runner, which tests (a group, or words that their source
# has), and how many have to run; tests to leave out, with the reason.
TOUCHED = "iothread|throttl|mirror|commit|blkdebug"     # nested event loops and drains
IOTESTS = [(["-raw"], "quick", 50), (["-raw", "-i", "native", "-c", "none"], "quick", 50),
           (["-raw", "-i", "io_uring", "-c", "none"], "quick", 50),
           (["-raw"], TOUCHED, 5), (["-qcow2"], TOUCHED, 62)]
IOTESTS_OUT = {"307": "fails on the base too: QMP's python library loses a race when QEMU quits",
               **dict.fromkeys(["185", "281", "graph-changes-while-io"], "fails on the base too, with qcow2"),
               "194": "wants postcopy migration; fails on the base too where userfaultfd(2) is not to be had",
               "044": "speaks of mirrors in a comment only, and takes long",
               **dict.fromkeys(["026", "060"], "errors in qcow2's own metadata, and takes long"),
               "191": "prints the graph after a commit; a shell takes three minutes of CPU for that"}


class Results:
    def __init__(self):
        self.passed, self.failed = 0, []
        self.times = []         # (stack, part, CPU seconds, wall seconds)

    def add(self, name, problem=None, seconds=None):
        took = f" ({seconds:.0f} s)" if seconds and seconds >= 1 else ""
        if problem:
            self.failed.append(name)
            print(f"FAIL {name}{took}: {problem}", flush=True)
        else:
            self.passed += 1
            print(f"ok   {name}{took}", flush=True)

    def do(self, name, function, *args):
        """Count one test that is a function: a ToolError is its failure."""
        start, problem = time.monotonic(), None
        try:
            function(*args)
        except ToolError as e:
            problem = str(e)
        self.add(name, problem, time.monotonic() - start)

    def tap(self, prefix, log, wanted=()):
        """Count the lines of a TAP log; what was wanted and is not there has failed."""
        seen = set()
        for m in re.finditer(r"^(not )?ok \d+ (\S+)(.*)$", log.read_text(errors="replace"), re.M):
            seen.add(m[2])
            skipped = "# SKIP" in m[3]
            self.add(f"{prefix} {m[2]}", (m[1] and f"see {log}") or (skipped and "skipped") or None)
        for name in wanted:
            if name not in seen:
                self.add(f"{prefix} {name}", f"did not run, see {log}")
        if not seen:
            self.add(prefix, f"no test ran, see {log}")


def must_fail(said, function, *args):
    """The function has to find something wrong, and to say so."""
    try:
        function(*args)
    except ToolError as e:
        if said in str(e):
            return
        raise
    raise ToolError(f"nothing was found wrong, but `{said}` was expected")


def must_say(results, name, log, said):
    """Count a test of something wrong, which its log has to name."""
    found = re.search(said, log.read_text(errors="replace"))
    results.add(name, None if found else f"no `{said}`, so it noticed nothing, see {log}")


def command(cmd, log, timeout, **kw):
    """Run cmd with both outputs in log; its exit status. Ends it after timeout seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as out:
        p = subprocess.Popen([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=out,
                             stderr=subprocess.STDOUT, start_new_session=True, **kw)
        try:
            return p.wait(timeout)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            if p.poll() is None:
                os.killpg(p.pid, 9)
                p.wait()


# -- the parts -----------------------------------------------------------------

def check_tools(results, stack):
    """The tools' own tests, on toy data and with bad input."""
    log = LOGS / "tools.log"
    env = {k: v for k, v in os.environ.items() if k not in ("STACK", "SEVERAL_STACKS")}
    command([sys.executable, "-m", "unittest", "-b", "-v"], log, 900, cwd=common.ROOT / "tests", env=env)
    text = log.read_text(errors="replace")
    ran = 0
    for m in re.finditer(r"^(\w+) \(([\w.]+)\)(?:\n.*)? \.\.\. (ok|FAIL|ERROR|skipped.*)$", text, re.M):
        ran += 1
        results.add(f"tools {m[2]}", None if m[3] == "ok" else f"{m[3]}, see {log}")
    said = re.search(r"^Ran (\d+) tests? in", text, re.M)
    if not said or int(said[1]) != ran or not ran:
        results.add("tools", f"{ran} results of {said[1] if said else 'no'} tests, see {log}")


def check_series(results, stack):
    """Lint, plain git am, re-export, checkpatch."""
    base, pin = source.base(stack), source.read_pin(stack)
    if not base.pinned:
        progress("this is not the pinned base: tree hashes are not compared")
    if not base.debian:
        progress("no Debian patches with this base: whether the series touches what they change is not tested")
    for name, wrong in series.stack_checks(stack, base):
        results.add(f"series {name}", "; ".join(wrong) or None)
    repo, tip = common.stack_dir(stack) / "tree", series.update_tree(stack)[1]
    results.do("series: the hooks for tests apply", build.hooked, stack, tip)
    results.do("series: the patch for make fuzz applies", build.hooked, stack, tip,
               common.ROOT / f"tests/fuzz-{stack}.patch")
    for pattern in pin.get("gone", []):
        left = subprocess.run(["git", "-C", repo, "grep", "-E", pattern, tip], stdout=subprocess.PIPE, text=True)
        results.add(f"series leaves nothing of {pattern}",
                    None if left.returncode == 1 else left.stdout.partition("\n")[0] or "git grep failed")


def meson_test(prefix, directory, names):
    """Run unit tests through meson, which gives each its timeout and environment."""
    log = LOGS / f"{prefix.replace(' ', '-').replace('/', '-')}.log"
    result_file = directory / "meson-logs/testlog.json"
    result_file.unlink(missing_ok=True)
    command([build.meson(directory), "test", "--no-rebuild", "--print-errorlogs", *names], log, 900,
            cwd=directory, env=build.environment(directory.parent))
    found = {}
    if not result_file.is_file():
        raise ToolError(f"meson ran no test, see {log}")
    for line in result_file.read_text().splitlines():
        result = json.loads(line)
        found[result["name"].split(" / ")[-1]] = result["result"]
    return {name: None if found.get(name) == "OK" else f"{found.get(name, 'did not run')}, see {log}"
            for name in names}


def unit_names(src):
    """The unit tests that this commit has: the new one comes with the series, and QEMU drops some."""
    return [n for n in UNIT_TESTS if (src / f"tests/unit/{n}.c").is_file()]


def run_copies(copies, prefix, env):
    """Run copies of unit tests as meson would; what failed.

    Twice, because some measure time, and the machine is busy; one that is broken fails again.
    """
    def one(test):
        log = LOGS / f"{prefix}-{test.name}.log"
        for attempt in range(2):
            if not (status := command([test, "--tap", "-k"], log, 300, cwd=copies, env=env)):
                break
            if not attempt:
                log.rename(first := log.with_suffix(".first.log"))
                progress(f"{prefix}: {test.name} ended with {status}, see {first}; once more")
        return status and f"{test.name}: {status}, see {log}"
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = list(filter(None, pool.map(one, sorted(copies.iterdir()))))
    shutil.rmtree(copies)
    return failed


def check_patches(results, stack):
    """Each patch must build and pass the unit tests, one after the other."""
    base, tip = series.update_tree(stack)
    repo = common.stack_dir(stack) / "tree"
    commits = git(repo, "rev-list", "--reverse", f"{base.commit}..{tip}").split()
    done = {}           # {test: hash of the binary}: a patch that does not change it need not run it again

    def build_patch(name, commit):
        """Copies of the unit tests that it has changed, and what they have to run with."""
        src = build.checkout(stack, "series", commit)
        names = unit_names(src)
        directory = build.build_side(stack, "series", commit, ["qemu-system-x86_64", "qemu-img", "qemu-io",
                                     *[f"tests/unit/{t}" for t in names]])
        copies = LOGS / f"{name.replace(' ', '-')}"
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir(parents=True)
        for t in names:
            binary = directory / "tests/unit" / t
            now = hashlib.sha256(binary.read_bytes()).digest()
            if done.get(t) != now:
                done[t] = now
                shutil.copy(binary, copies)
        progress(f"{name}: {len(list(copies.iterdir()))} of {len(names)} unit tests to run, whose binaries it has changed")
        return copies, {**build.environment(directory.parent), "G_TEST_SRCDIR": str(src / "tests/unit"),
                        "G_TEST_BUILDDIR": str(directory / "tests/unit")}

    def finish(title, future):
        try:
            results.add(title, "; ".join(future.result()) or None)
        except ToolError as e:
            results.add(title, str(e))

    # The tests mostly wait, so the next patch is built meanwhile
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        before = None
        for n, commit in enumerate(commits, 1):
            name = f"patch {n:04}"
            title = f"{name} builds, {git(repo, 'log', '-1', '--format=%s', commit).strip()}"
            try:
                copies, env = build_patch(name, commit)
                future = pool.submit(run_copies, copies, copies.name, env)
            except ToolError as e:
                future = concurrent.futures.Future()
                future.set_exception(e)
            if before:
                finish(*before)
            before = title, future
        if before:
            finish(*before)


def built(stack, targets=()):
    """build/<stack>/series/build with the full series and these targets beside the usual."""
    _, tip = series.update_tree(stack)
    return build.build_side(stack, "series", tip, [*build.TARGETS, *targets])


def prepare_guest(stack):
    guest.build_image()
    built(stack)


def binary_of(stack):
    """The QEMU that prepare_guest() has built; parts that run beside others must not build."""
    return common.stack_dir(stack) / "series/build/qemu-system-x86_64"


def check_unit(results, stack):
    src = built(stack).parent / "src"
    names = unit_names(src)
    if "test-defer-call" not in names:
        raise ToolError("the series has no tests/unit/test-defer-call.c")
    directory = built(stack, [f"tests/unit/{t}" for t in names])
    for name, problem in meson_test("unit", directory, names).items():
        results.add(f"unit {name}", problem)


def check_sanitizers(results, stack):
    """The new tests with ASan, UBSan, LSan, the checks of a debug build, and sections that end late."""
    directory = build.sanitized(stack)
    put_firmware(directory)
    src, log = directory.parent / "src", LOGS / "sanitizers.log"
    # yield: exists only with --enable-debug-mutex, and where the series forbids it
    wanted = ["/defer-call/random", "/defer-call/misuse/thread-exit"] + \
        ["/defer-call/misuse/yield"] * ("misuse/yield" in (src / "tests/unit/test-defer-call.c").read_text())
    hooks = {"late": LATE}
    if "DEFER_CALL_DELAY_UNLOCKED" in (src / "util/defer-call.c").read_text():
        hooks["unlocked"] = UNLOCKED
    drains = "DEFER_CALL_DRAIN_IN_STOP" in (src / "hw/block/virtio-blk.c").read_text()
    if drains:
        hooks["drain"] = DRAIN
    # They mostly wait, so side by side
    with setenv(UBSAN_OPTIONS="halt_on_error=1"), concurrent.futures.ThreadPoolExecutor() as pool:
        status = pool.submit(command, [directory / "tests/unit/test-defer-call", "--tap", "-k"], log, 300,
                             cwd=directory)
        late = {name: pool.submit(notify_test, f"sanitizers notify {name}", directory, hooks=h)
                for name, h in hooks.items()}
        lost = {aio: pool.submit(notify_test, f"no barrier {aio}", directory,
                                 "-p", f"/x86_64/virtio-notify/blk/{aio}/stop", hooks=NO_BARRIER)
                for aio in guest.AIO}
        slow = {path: [pool.submit(notify_test, f"slow handler {name} {path.split('/')[3]}", directory, "-p", path, hooks=h)
                       for name, h in [("waits", SLOW), ("unguarded", {**SLOW, "DEFER_CALL_NO_BARRIER": "1"})]]
                for path in SLOW_STOP if drains}
        unguarded = drains and pool.submit(notify_test, "drain unguarded", directory,
                                           "-p", "/x86_64/virtio-notify/blk/io_uring/stop", hooks=DRAIN_UNGUARDED)
    results.tap("sanitizers", log, wanted)
    if status.result():
        results.add("sanitizers exit status", f"{status.result()}, see {log}")
    for name, log in late.items():
        results.tap(f"sanitizers {name}", log.result())
    for aio, log in lost.items():
        must_say(results, f"sanitizers {aio}: without the barrier QEMU notices a notification that is late",
                 log.result(), "Assertion .*notify_deferred")
    for path, (waits, without) in slow.items():
        results.tap("sanitizers slow", waits.result(), [path])
        must_say(results, f"sanitizers {path}: without the wait a handler that outlasts the stop is noticed",
                 without.result(), "a virtqueue handler outlasts the stop")
    if drains:
        must_say(results, "sanitizers io_uring: host notifiers that a drain attaches during the stop are noticed",
                 unguarded.result(), "AddressSanitizer")


def races(text, files):
    """The functions in these files that ThreadSanitizer saw in a race."""
    found = set()
    for report in re.findall(r"^WARNING: ThreadSanitizer: (.*?)^=====", text, re.M | re.S):
        found.update(m[1] for m in re.finditer(r"^    #0 (\S+) (\S+):\d+", report, re.M)
                     if m[2].endswith(files))
    return sorted(found)


def check_tsan(results, stack):
    """ThreadSanitizer: it knows no fences, so QEMU is full of races for it; the new code must have none."""
    args = [*build.configure_arguments(), "--enable-tsan", "--disable-werror", "--extra-cflags=-O1"]
    tests = ["test-defer-call", "test-aio-multithread", "test-thread-pool"]
    directory = build.build_side(stack, "tsan", series.update_tree(stack)[1],
                                 [f"tests/unit/{t}" for t in tests], args)
    for test in tests:
        binary, log = directory / "tests/unit" / test, LOGS / f"tsan-{test}.log"
        # a child that aborts on purpose says nothing under ThreadSanitizer
        paths = [p for p in common.run([binary, "-l"]).splitlines() if p.startswith("/") and "/misuse/" not in p]
        command([binary, "--tap", "-k", *[a for p in paths for a in ("-p", p)]], log, 300, cwd=directory)
        results.tap("tsan", log, paths)
        found = races(log.read_text(errors="replace"), ("/defer-call.c", "/test-defer-call.c"))
        results.add(f"tsan {test}: no race in the new code", found and f"{', '.join(found)}, see {log}")


def put_firmware(directory):
    """Where a QEMU that is run from its build directory looks for it."""
    guest.build_image()
    data = directory / "qemu-bundle/usr/local/share/qemu"
    data.mkdir(parents=True, exist_ok=True)
    for f in FIRMWARE:
        shutil.copy(f, data)


def notify_test(prefix, directory, *args, hooks={}):
    """Run the series' own qtest; its log."""
    log = LOGS / f"{prefix.replace(' ', '-')}.log"
    command([build.NOTIFY_TEST, "--tap", "-k", *args], log, 600, cwd=directory,
            env={**os.environ, "QTEST_QEMU_BINARY": "./qemu-system-x86_64", "QTEST_QEMU_IMG": "./qemu-img", **hooks})
    return log


def check_qtest(results, stack):
    """Tests with a driver, but no guest (libqos): QEMU's own of virtio-blk and virtio-scsi, and the new one."""
    directory = built(stack, ["tests/qtest/qos-test", build.NOTIFY_TEST])
    put_firmware(directory)
    env = {**build.environment(directory.parent), "QTEST_QEMU_BINARY": "./qemu-system-x86_64",
           "QTEST_QEMU_IMG": "./qemu-img", "G_TEST_DBUS_DAEMON": "/bin/false",
           "QTEST_QEMU_STORAGE_DAEMON_BINARY": "./storage-daemon/qemu-storage-daemon"}
    listing = subprocess.run(["tests/qtest/qos-test", "-l"], cwd=directory, env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.split()
    for device in guest.DRIVERS:
        paths = [p for p in listing if p.startswith("/") and f"/{device}/" in p]
        log = LOGS / f"qtest-{device}.log"
        if not paths:
            results.add(f"qtest {device}", "qos-test lists no test of it")
            continue
        command(["tests/qtest/qos-test", "--tap", "-k", *[a for p in paths for a in ("-p", p)]], log, 300,
                cwd=directory, env=env)
        results.tap(f"qtest {device}", log, paths)
    results.tap("qtest", notify_test("qtest notify", directory))


def iotests_list(cwd, args, which):
    """Names of the tests in a group, or of those whose source has one of the words."""
    runner = ["/usr/bin/python3", "check", *args, "-n", *(["-g", which] if which == "quick" else [])]
    listing = subprocess.run(runner, cwd=cwd, text=True, stdout=subprocess.PIPE).stdout.split()
    if which != "quick":
        source_dir = (cwd / "check").resolve().parent
        listing = [t for t in listing if re.search(which, (source_dir / t).read_text(errors="replace"), re.I)]
    return [t.removeprefix("tests/") for t in listing if t.removeprefix("tests/") not in IOTESTS_OUT]


def run_iotests(directory, args, tests, log, jobs=os.cpu_count()):
    """{test: "pass", "fail" or "not run"}"""
    command(["/usr/bin/python3", "check", *args, "-j", str(jobs), *tests], log, 1800,
            cwd=directory / "tests/qemu-iotests",
            env={**build.environment(directory.parent), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    return dict(re.findall(r"^(\S+)\s+(pass|fail|not run)\s+\[", log.read_text(errors="replace"), re.M))


def check_iotests(results, stack):
    """QEMU's iotests: the series fails nothing that the base passes."""
    directory, done, unfit = built(stack), set(), set()
    put_firmware(directory)
    for args, which, least in IOTESTS:
        name = f"iotests {' '.join(args)} {'quick' if which == 'quick' else 'nested'}"
        log = LOGS / (name.replace(" ", "") + ".log")
        # what does not fit an image format does not fit it with another aio= either
        tests = [t for t in iotests_list(directory / "tests/qemu-iotests", args, which)
                 if (*args, t) not in done and (args[0], t) not in unfit]
        done.update((*args, t) for t in tests)
        found = run_iotests(directory, args, tests, log)
        ran = [t for t in tests if found.get(t) in ("pass", "fail")]
        unfit.update((args[0], t) for t in tests if found.get(t) == "not run")
        failed, on_base = [t for t in ran if found[t] == "fail"], {}
        if failed:
            base = build.build_side(stack, "base", source.base(stack).commit)
            put_firmware(base)
            on_base = run_iotests(base, args, failed, log.with_suffix(".base.log"))
        # Some tests race with themselves when the machine is busy; one that is broken fails again
        doubtful = [t for t in failed if on_base.get(t) != "fail"]
        for attempt in range(2):
            if doubtful:
                again = run_iotests(directory, args, doubtful, log.with_suffix(f".again{attempt}.log"), jobs=1)
                for t in [t for t in doubtful if again.get(t) == "pass"]:
                    progress(f"{name} {t}: failed once, see {log}, and passes alone")
                    found[t] = "pass"
                    doubtful.remove(t)
        for t in ran:
            if on_base.get(t) == "fail":
                progress(f"{name} {t}: fails on the base too, not counted")
            else:
                results.add(f"{name} {t}", None if found[t] == "pass" else f"passes on the base, see {log}")
        progress(f"{name}: QEMU says of {len(tests) - len(ran)} of {len(tests)} tests that they do not "
                 f"fit, with the reason: {log}")
        if len(ran) < least:
            results.add(name, f"only {len(ran)} tests ran, {least} were expected, see {log}")


def refused(directory, library, engine, every, depth, patience=30):
    """Read while the kernel refuses every Nth submission: all must be done nevertheless."""
    image, log = LOGS / "refused.raw", LOGS / "refused.log"
    with open(image, "wb") as f:
        f.truncate(64 << 20)
    option = {"native": ["-n"], "io_uring": ["-i", "io_uring"]}[engine]
    with setenv(LD_PRELOAD=str(library), REFUSE_EVERY=str(every)):
        status = command([directory / "qemu-img", "bench", "-t", "none", *option, "-d", str(depth), "-c", "2000",
                          "-f", "raw", image], log, patience)
    if status:
        raise ToolError("the requests never end" if status == "timeout" else f"qemu-img ended with {status}, see {log}")


def check_faults(results, stack):
    """Errors from the disk and from the kernel: the guest sees them, and the disk goes on."""
    directory = binary_of(stack).parent
    library = LOGS / "refuse.so"
    common.run(["gcc", "-Wall", "-shared", "-fPIC", "-O1", "-o", library, common.ROOT / "tests/refuse.c", "-ldl"])
    for engine in ["native", "io_uring"]:
        for depth in [1, 16, 200]:
            results.do(f"faults {engine}: every third submission is refused, depth {depth}",
                       refused, directory, library, engine, 3, depth)

    results.do("faults: requests that never end are noticed",
               must_fail, "never end", refused, directory, library, "native", 1, 16, 3)
    faults.check_faults(results, directory / "qemu-system-x86_64")


# -- a guest that writes and verifies --------------------------------------------

SMOKE_SIZE = 24         # MiB a disk
STRESS_ROUNDS = 250     # without its barrier, aio=threads hung within 100 in 10 of 10 runs; 10.2.2 within 125

SMOKE_JOB = """
[global]
ioengine=libaio
direct=1
size={size}m
bsrange=4k-64k
bs_unaligned=0
iodepth=32
verify=crc32c
verify_fatal=1
{phase}
"""


def smoke_disks(directory, aio):
    """virtio-blk and virtio-scsi, EVENT_IDX on and off, 1 and 4 queues."""
    directory.mkdir(parents=True, exist_ok=True)
    disks = []
    for driver in guest.DRIVERS:
        for event_idx in [True, False]:
            for queues in [1, 4]:
                path = directory / f"disk{len(disks)}.raw"
                with open(path, "wb") as f:
                    f.truncate(SMOKE_SIZE << 20)
                disks.append(guest.Disk(str(path), aio=aio, driver=driver, event_idx=event_idx, queues=queues))
    return disks


def fio_errors(vm, job, devices, kinds):
    """Run fio on the devices; {device: problem or None}. Each kind of I/O must have been done."""
    for dev in devices:
        job += f"\n[{pathlib.Path(dev).name}]\nfilename={dev}\n"
    vm.put_file("/smoke.fio", job)
    status, output = vm.run("fio --output-format=json /smoke.fio", timeout=300)
    try:
        jobs = json.loads(output[output.index("{\n"):output.rindex("}") + 1])["jobs"]
    except (ValueError, KeyError):
        raise ToolError(f"fio gave no result (status {status}): {output.strip()[-200:]}") from None
    found = {}
    for dev, j in zip(devices, jobs):
        idle = [k for k in kinds if not j[k]["total_ios"]]
        found[dev] = f"error {j['error']}" if j["error"] else f"no {' and no '.join(idle)}" if idle else None
    return found


def check_guest(results, stack):
    """In a guest: write and verify, and notice a block that is not what was written."""
    binary = binary_of(stack)
    for aio in guest.AIO:
        directory = LOGS / "disks"
        disks = smoke_disks(directory, aio)

        def smoke():
            # Linux uses no more queues than there are CPUs
            with guest.Guest(binary, disks, vcpus=4, label=f"smoke-{aio}", log_dir=LOGS) as vm:
                vm.wait_ready()
                devices = [vm.disk(n)[0] for n in range(len(disks))]
                for d, dev in zip(disks, devices):
                    queues = len(vm.check(f"ls /sys/block/{pathlib.Path(dev).name}/mq").split())
                    if queues != d.queues:
                        raise ToolError(f"{dev} has {queues} queues in the guest, not {d.queues}")
                write = SMOKE_JOB.format(size=SMOKE_SIZE, phase="rw=randwrite\ndo_verify=1")
                found = fio_errors(vm, write, devices, ["read", "write"])
                for n, (d, dev) in enumerate(zip(disks, devices)):
                    results.add(f"guest {aio} {d.driver} event_idx={'on' if d.event_idx else 'off'} "
                                f"queues={d.queues}: fio writes and verifies", found[dev])
                # The same test has to say no when the data is wrong, and only then
                read = SMOKE_JOB.format(size=SMOKE_SIZE, phase="rw=randwrite\nverify_only=1")
                if problem := fio_errors(vm, read, devices[:1], ["read"])[devices[0]]:
                    raise ToolError(f"fio does not verify what it wrote: {problem}")
                with open(disks[0].path, "r+b") as f:
                    f.seek(SMOKE_SIZE << 19)
                    f.write(os.urandom(64 << 10))
                    os.fsync(f.fileno())
                if (problem := fio_errors(vm, read, devices[:1], [])[devices[0]]) != f"error {errno.EILSEQ}":
                    raise ToolError(f"fio did not notice a damaged block, but: {problem}")
        results.do(f"guest {aio}: boots, ends, and fio notices a damaged block", smoke)
        shutil.rmtree(directory)


def check_stress(results, stack):
    """Stop and continue loaded guests: no notification may be lost."""
    guest.build_image()
    binary = built(stack) / "qemu-system-x86_64"
    for driver in guest.DRIVERS:   # the other engines lost none, see docs/tests.md
        results.do(f"stress {driver} threads: {STRESS_ROUNDS} rounds of stop and cont",
                   stress.stress, binary, "threads", driver, STRESS_ROUNDS)

    with setenv(**stress.LATE):
        results.do(f"stress virtio-blk-pci threads: {STRESS_ROUNDS} rounds, every 64th section ends 20 ms late, "
                   f"with sanitizers", stress.stress, build.sanitized(stack) / "qemu-system-x86_64", "threads",
                   "virtio-blk-pci", STRESS_ROUNDS)

    def notices():
        disk = stress.LOGS / "disk.raw"
        with guest.Guest(binary, [guest.Disk(str(disk), aio="threads", read_only=True)],
                         label="stress-hang", log_dir=LOGS) as vm:
            vm.wait_ready()
            vm.begin(stress.LOAD.format(vm.disk()[0]))
            stress.wait_for_progress(vm, stress.reads(vm), 0)
            vm.qmp("stop")              # and no cont: from now on it hangs
            must_fail("the disk hangs", stress.wait_for_progress, vm, stress.reads(vm), 1, 2)
    results.do("stress: a disk that hangs is noticed", notices)


def check_soak(results, stack):
    """Some operations of make soak, and what it must notice."""
    binary = binary_of(stack)
    results.do(f"soak: {', '.join(SOAK_OPS)}, SIGTERM", soak.soak, binary, .01, None, SOAK_OPS)
    for sabotage in soak.SABOTAGE:
        results.do(f"soak: {sabotage} is noticed", soak.must_notice, binary, sabotage)


def check_ring(results, stack):
    """The load generator finds no difference where there is none, a second write, and a wrong byte."""
    binary = built(stack) / "qemu-system-x86_64"
    results.do("ring: a binary against itself shows no difference", ring.check_same, binary)
    results.do("ring: a second write for each notification is found", ring.check_slowed, binary)
    results.do(f"ring: the used index wraps {ring.WRAPS} times, and no notification is lost", ring.check_wraps, binary)
    results.do("ring: aio-max-batch bounds what is submitted at once", ring.check_batches, binary)
    results.do("ring: a wrong idea of aio-max-batch is noticed", must_fail, "4 requests at once, 5 expected",
               ring.check_batches, binary, [(4, 0, 5)])
    results.do("ring: a row of used buffers is notified of once", ring.check_rows, binary, "off")
    results.do("ring: with EVENT_IDX its first buffer at once, the rest once", ring.check_rows, binary, "on")
    results.do("ring: few notifications for a batch of completions", ring.check_writes, binary)
    results.do("ring: half a notification for each is too few, which is noticed", must_fail, "0.5 allowed",
               ring.check_writes, binary, 0.5)
    results.do("ring: the driver's reaction time varies", ring.check_jitter, binary)
    results.do("ring: a reaction time that does not vary is noticed", must_fail, "do not vary",
               ring.check_jitter, binary, "off")
    results.do("ring: one wrong byte in the image is found", ring.check_corruption, binary)


def check_cost(results, stack):
    """Deferring allocates nothing in steady state, and costs the same among many calls as among few."""
    binary = built(stack, [cost.BENCH]) / cost.BENCH
    results.do("cost: nothing is allocated after the first section", cost.check_allocations, binary)
    results.do("cost: a call among 1,024 costs what one among 8 does", cost.check_growth, binary, "defer_call()")
    results.do("cost: a linear search is told from that", must_fail, "times are allowed",
               cost.check_growth, binary, "linear search")


def check_fuzz(results, stack):
    """A while of make fuzz for each device, and the mistakes that it must find."""
    binary = build.fuzzer(stack, "series")
    for driver in guest.DRIVERS:
        results.do(f"fuzz: {driver}", fuzz.check, stack, binary, driver)
        for sabotage in fuzz.SABOTAGE:
            results.do(f"fuzz: {driver}: {sabotage} is noticed", fuzz.must_notice, binary, driver, sabotage)


SUM = re.compile(r"(\d+) passed, (\d+) failed$")
TIME = re.compile(r"time: (\S+) (\S+) (\S+)\n")         # from a stack's process
PARTS = {"tools": check_tools, "series": check_series, "patches": check_patches, "unit": check_unit,
         "soak": check_soak, "faults": check_faults, "guest": check_guest, "sanitizers": check_sanitizers,
         "tsan": check_tsan, "qtest": check_qtest, "iotests": check_iotests, "stress": check_stress,
         "ring": check_ring, "cost": check_cost, "fuzz": check_fuzz}
LONG = ["fuzz"]         # clang compiles QEMU once more for it: only with FULL=1 or ONLY=
# They build nothing, so they run, one after the other, beside the parts that come next; what
# has to be done before
BESIDE = {"tools": series.update_tree, "soak": prepare_guest, "faults": prepare_guest, "guest": prepare_guest}


def cpu_seconds():
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def time_table(times):
    """Lines for the person, the part that takes most first."""
    lines = [f"{'part':12} {'stack':8} {'CPU s':>6} {'wall s':>6}"]
    lines += [f"{part:12} {stack:8} {cpu:6.0f} {wall:6.0f}" for stack, part, cpu, wall in
              sorted(times, key=lambda t: -t[2])]
    return "\n".join([*lines, f"{'all':12} {'':8} {sum(t[2] for t in times):6.0f}"])


def run_part(part, stack):
    results, start, cpu = Results(), time.monotonic(), cpu_seconds()
    progress(f"part {part}: {PARTS[part].__doc__.strip().splitlines()[0] if PARTS[part].__doc__ else ''}")
    try:
        PARTS[part](results, stack)
    except ToolError as e:
        results.add(part, str(e))
    except Exception as e:      # whatever it is, the other parts still count
        traceback.print_exc()
        results.add(part, f"{type(e).__name__}: {e}")
    results.times.append((stack, part, cpu_seconds() - cpu, time.monotonic() - start))
    return results


def run_parts(parts, stack):
    """Results of all, one after the other but for those that run beside."""
    total = Results()
    def count(results):
        total.passed += results.passed
        total.failed += results.failed
        total.times += results.times
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        beside = {}
        for part in parts:
            if part not in BESIDE:
                count(run_part(part, stack))
                continue
            try:
                BESIDE[part](stack)
                beside[part] = pool.submit(run_part, part, stack)
            except (ToolError, concurrent.futures.process.BrokenProcessPool) as e:
                total.add(part, str(e))
        for part, future in beside.items():
            try:
                count(future.result())
            except concurrent.futures.process.BrokenProcessPool:
                total.add(part, "its process was killed")
    return total


def wanted_parts(only, stack):
    """Those of ONLY=, or all, that make sense for the stack."""
    for part in only:
        if part not in PARTS:
            raise ToolError(f"ONLY={part}: no such part; there is: {' '.join(PARTS)}")
    fit = source.read_pin(stack).get("check", list(PARTS))
    default = [part for part in PARTS if part not in LONG or os.environ.get("FULL") == "1"]
    return [part for part in only or default if part in fit]


def check_stack(stack, parts):
    """Run the parts in a process that knows no other stack; its Results."""
    results = Results()
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "STACK": stack, "ONLY": " ".join(parts), "SEVERAL_STACKS": "1"}) as p:
        last = ""
        try:
            for line in p.stdout:
                if m := re.match(r"(failed: )(.*)", line):
                    results.failed.append(f"{stack} {m[2]}")
                elif m := TIME.fullmatch(line):
                    results.times.append((stack, m[1], float(m[2]), float(m[3])))
                elif not (last := line) or not SUM.match(line):
                    print(re.sub("^(ok  |FAIL) ", rf"\1 {stack} ", line), end="", flush=True)
            p.wait()
        finally:
            if p.poll() is None:
                p.terminate()
                p.wait()
    count = SUM.match(last)
    if not count or int(count[2]) != len(results.failed):
        results.failed.append(f"{stack}: ended with {p.returncode} before its last test")
    results.passed = int(count[1]) if count else 0
    return results


def main():
    only = os.environ.get("ONLY", "").split()
    start, results = time.monotonic(), Results()
    if os.environ.get("STACK"):
        stack = common.stack_name()
        parts = wanted_parts(only, stack)
        if not parts:
            raise ToolError(f"ONLY={' '.join(only)}: not for {stack}; see \"check\" in its pin.json")
        LOGS.mkdir(parents=True, exist_ok=True)
        results = run_parts(parts, stack)
    else:
        plan = {stack: parts for stack in common.stacks() if (parts := wanted_parts(only, stack))}
        for stack, parts in plan.items():
            one = check_stack(stack, parts)
            results.passed += one.passed
            results.failed += one.failed
            results.times += one.times
    if not only and os.environ.get("FULL") != "1" and not os.environ.get("SEVERAL_STACKS"):
        progress(f"left out: {' '.join(LONG)}; FULL=1 runs them")
    if os.environ.get("SEVERAL_STACKS"):
        for _, part, cpu, wall in results.times:
            print(f"time: {part} {cpu:.1f} {wall:.1f}")
    else:
        print(time_table(results.times))
    progress(f"took {(time.monotonic() - start) / 60:.1f} min")
    for name in results.failed:
        print(f"failed: {name}")
    print(f"{results.passed} passed, {len(results.failed)} failed", flush=True)
    return 1 if results.failed or not results.passed else 0


if __name__ == "__main__":
    common.main(main)
