# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own tests with a driver: qtests and iotests."""

import os
import pathlib
import re
import subprocess

from dctools import base, build, guest
from dctools.check.results import Results, logs
from dctools.common import progress
from dctools.check.built import built, notify_test, put_firmware
from dctools.process import limited

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


def check_qtest(results: Results, stack: str) -> None:
    """Tests with a driver, but no guest (libqos): QEMU's own of the devices and the export, and the new one."""
    directory = built(stack, ["tests/qtest/qos-test", build.NOTIFY_TEST])
    put_firmware(directory)
    env = {**build.clean_environment(directory.parent), "QTEST_QEMU_BINARY": "./qemu-system-x86_64",
           "QTEST_QEMU_IMG": "./qemu-img", "G_TEST_DBUS_DAEMON": "/bin/false",
           "QTEST_QEMU_STORAGE_DAEMON_BINARY": "./storage-daemon/qemu-storage-daemon"}
    listing = subprocess.run(["tests/qtest/qos-test", "-l"], cwd=directory, env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.split()
    for device in [*guest.DRIVERS, "vhost-user-blk-pci"]:
        paths = [p for p in listing if p.startswith("/") and f"/{device}/" in p]
        log = logs() / f"qtest-{device}.log"
        if not paths:
            results.add(f"qtest {device}", "qos-test lists no test of it")
            continue
        limited(["tests/qtest/qos-test", "--tap", "-k", *[a for p in paths for a in ("-p", p)]], log, 300,
                cwd=directory, env=env)
        results.tap(f"qtest {device}", log, paths)
    results.tap("qtest", notify_test("qtest notify", directory))


def iotests_list(cwd: pathlib.Path, args: list[str], which: str) -> list[str]:
    """Names of the tests in a group, or of those whose source has one of the words."""
    runner = ["/usr/bin/python3", "check", *args, "-n", *(["-g", which] if which == "quick" else [])]
    listing = subprocess.run(runner, cwd=cwd, text=True, stdout=subprocess.PIPE).stdout.split()
    if which != "quick":
        source_dir = (cwd / "check").resolve().parent
        listing = [t for t in listing if re.search(which, (source_dir / t).read_text(errors="replace"), re.I)]
    return [t.removeprefix("tests/") for t in listing if t.removeprefix("tests/") not in IOTESTS_OUT]


def run_iotests(directory: pathlib.Path, args: list[str], tests: list[str], log: pathlib.Path,
                jobs: int | None = None) -> dict[str, str]:
    """{test: "pass", "fail" or "not run"}"""
    limited(["/usr/bin/python3", "check", *args, "-j", str(jobs or os.cpu_count()), *tests], log, 1800,
            cwd=directory / "tests/qemu-iotests",
            env={**build.clean_environment(directory.parent), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    return dict(re.findall(r"^(\S+)\s+(pass|fail|not run)\s+\[", log.read_text(errors="replace"), re.M))


def check_iotests(results: Results, stack: str) -> None:
    """QEMU's iotests: the series fails nothing that the base passes."""
    directory = built(stack)
    done: set[tuple[str, ...]] = set()
    unfit: set[tuple[str, str]] = set()
    put_firmware(directory)
    for args, which, least in IOTESTS:
        name = f"iotests {' '.join(args)} {'quick' if which == 'quick' else 'nested'}"
        log = logs() / (name.replace(" ", "") + ".log")
        # what does not fit an image format does not fit it with another aio= either
        tests = [t for t in iotests_list(directory / "tests/qemu-iotests", args, which)
                 if (*args, t) not in done and (args[0], t) not in unfit]
        done.update((*args, t) for t in tests)
        found = run_iotests(directory, args, tests, log)
        ran = [t for t in tests if found.get(t) in ("pass", "fail")]
        unfit.update((args[0], t) for t in tests if found.get(t) == "not run")
        failed, on_base = [t for t in ran if found[t] == "fail"], {}
        if failed:
            other = build.build_side(stack, "base", base.base(stack).commit)
            put_firmware(other)
            on_base = run_iotests(other, args, failed, log.with_suffix(".base.log"))
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
