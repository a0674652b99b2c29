# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux as a program on the export: parameters, plan, report, and fakes in place of daemon and guest."""

import contextlib
import io
import json
import math
import os
import pathlib
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from dctools import common, guest, options
from dctools.check import client, exports
from dctools.common import ToolError
from dctools.guest import image, storage
from dctools.guest import uml as linux
from dctools.measure import calls, compared, generator, uml
from dctools.report import show
from dctools.report import uml as report
from dctools.report.digest import digest
from dctools.report.statistics import ROLES, resolution
from test_bench import raw as raw_fio

# where QEMU's python library is
common.settings.build = pathlib.Path(os.environ.get("BUILD_DIR") or common.settings.build)
common.settings.qemu_python = os.environ.get("QEMU_PYTHON", "")

CPUS = mock.patch("dctools.measure.plan.cpu_list", lambda: [0, 1])
INTERRUPTS = [" 19:          {}     SIGIO      virtio-uml, virtio-uml.1-req.0"]


def raw(iops=1000.0, irqs=100, submits=20, cpu=900_000, source=calls.SOURCE):
    """What uml.run_sample returns, with round figures."""
    run = raw_fio(iops=iops, syscw=irqs)
    run["interrupts"] = {name: [line.format(n) for line in INTERRUPTS]
                         for name, n in (("before", 4), ("after", 4 + irqs))}
    run["counters"]["after"]["cpu_ns"] = cpu * 1000
    counts = {"io_submit": submits, "io_uring_enter": 3 * submits} if source == calls.SOURCE else {}
    return {**run, "calls": {"source": source, "fio": run["fio"], "counts": counts}}


def parameters(**env):
    return uml.checked(options.load(uml.Workload, env))


class Client(unittest.TestCase):
    """The client without a guest, on an export that answers in parts, or not at all."""

    def enters(self, *parts):
        """Let a client in whose questions are answered so."""
        with tempfile.TemporaryDirectory() as d, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{d}/s")
            listening.listen()

            def export():
                with listening.accept()[0] as connection, contextlib.suppress(OSError):
                    while connection.recv(4096) and parts:
                        for part in parts:
                            connection.sendall(part)
                            time.sleep(.05)
            thread = threading.Thread(target=export)
            thread.start()
            try:
                with client.Client(pathlib.Path(d, "s"), 5):
                    pass
            finally:
                thread.join()

    def test_an_answer_in_parts(self):
        self.enters(struct.pack("<III", client.GET_FEATURES, 5, 8), struct.pack("<Q", client.CONFIG))

    def test_no_answer(self):
        with self.assertRaisesRegex(ToolError, r"lets no client in \(it has hung up\)"):
            self.enters()


class Parameters(unittest.TestCase):
    def test_defaults(self):
        p = parameters()
        self.assertEqual((p.aio, p.iodepth, p.batch, p.rw, p.bs, p.pairs, p.queues, p.poll_max_ns),
                         (("native", "io_uring", "threads"), 32, 16, "randread", "4k", 4, 1, 0))
        self.assertIsNotNone(p.seed)

    def test_nonsense_is_one_line_that_names_it(self):
        for name, value in [("AIO", "posix"), ("IODEPTH", "0"), ("BATCH", "33"), ("RW", "randtrim"), ("BS", "100"),
                            ("QUEUES", "65"), ("PAIRS", "0"), ("RUNTIME", "0.1"), ("POLL_MAX_NS", "-1"),
                            ("SEED", "x"), ("QEMU_A", "/bin/true")]:
            with self.subTest(name=name, value=value), self.assertRaises(ToolError) as e:
                parameters(**{name: value})
            self.assertNotIn("\n", str(e.exception))
            self.assertIn(name, str(e.exception))

    def test_plan_is_fixed_by_the_seed_and_compares_neighbours(self):
        p = parameters(SEED="7", PAIRS="20")
        rounds = uml.rounds(p)
        self.assertEqual(rounds, uml.rounds(p))
        self.assertNotEqual(rounds, uml.rounds(parameters(SEED="8", PAIRS="20")))
        self.assertEqual(len(rounds), 20 * 3 * 3)
        for n in range(0, len(rounds), 3):
            three = rounds[n:n + 3]
            self.assertEqual(len({(pair, tuple(engines)) for pair, _, engines in three}), 1)
            self.assertEqual(sorted(role for _, role, _ in three), sorted(ROLES))
        self.assertEqual({rounds[n][1] for n in range(0, len(rounds), 3)}, set(ROLES))
        self.assertEqual({rounds[n][2][0] for n in range(0, len(rounds), 9)}, set(guest.AIO))

    def test_job(self):
        job = uml.job_file(parameters(IODEPTH="16", BS="8k", RW="randwrite"), "/dev/vda", .5)
        for line in ["filename=/dev/vda", "rw=randwrite", "bs=8k", "iodepth=16", "iodepth_batch_submit=8",
                     "iodepth_batch_complete_max=8", "runtime=500ms"]:
            self.assertIn(f"\n{line}\n", job)

    def test_one_cpu_is_shared(self):
        for found, expected in [([3, 1, 0], (3, 1)), ([0], (None, None))]:
            with mock.patch("dctools.measure.plan.cpu_list", lambda found=found: found):
                self.assertEqual(uml.cpus(), expected)

    def test_storage_where_tmpfs_has_no_direct_io(self):
        slow = generator.Image("/disk.raw", True, "none")
        with mock.patch.object(generator, "memory_has_direct", return_value=False), \
                mock.patch.object(common, "progress"), \
                mock.patch.object(generator, "our_file", side_effect=lambda name, _: f"/{name}"), \
                mock.patch.object(guest, "check_direct"), uml.images(("native", "io_uring")) as found:
            self.assertEqual(found["native"], slow)
            self.assertEqual([uml.where(found[aio]) for aio in ("native", "io_uring")],
                             ["from the disk", "from the page cache"])


class Calls(unittest.TestCase):
    def test_writes_are_counted(self):
        try:
            known = calls.tracepoints()
            with open("/dev/null", "wb", buffering=0) as f, calls.counted(threading.get_native_id(), known) as counts:
                self.assertEqual(counts, {})
                for _ in range(321):
                    f.write(b"x")
        except calls.NotCounted as e:       # not permitted here: then the report says so
            self.assertRegex(str(e), "tracepoints|perf_event_open")
            return
        self.assertEqual((counts["write"], counts["io_submit"]), (321, 0))

    def test_without_tracepoints(self):
        with mock.patch.object(calls, "ROOTS", ["/nonexistent"]), \
                mock.patch("dctools.process.run", side_effect=ToolError("unshare failed")), \
                self.assertRaisesRegex(calls.NotCounted, "no syscalls tracepoints"):
            calls.tracepoints()
        with self.assertRaisesRegex(calls.NotCounted, "perf_event_open: "):
            calls.open_counter(1, -5)

    def test_the_sample_goes_on_without_them(self):
        fio = raw()["fio"]
        with mock.patch.object(calls, "tracepoints", side_effect=calls.NotCounted("no syscalls tracepoints")), \
                mock.patch.object(uml, "run_fio", return_value={"fio": fio}):
            self.assertEqual(uml.count_calls(mock.Mock(), parameters(), "/dev/vda", 1),
                             {"source": "no syscalls tracepoints", "fio": fio, "counts": {}})


class End(unittest.TestCase):
    """A base that does not end has been measured all the same; a series that does not is no base."""

    def sample(self, label, hangs):
        daemon, linux = mock.MagicMock(), mock.MagicMock()
        daemon.shutdown.side_effect = guest.Hang("it did not end") if hangs else None
        linux.disk.return_value = ("/dev/vda", "virtio0")
        with contextlib.ExitStack() as stack:
            for name, made in (("StorageDaemon", daemon), ("Uml", linux)):
                stack.enter_context(mock.patch.object(guest, name)).return_value.__enter__.return_value = made
            for name, value in (("count_calls", {}), ("counters", {}), ("run_fio", {"fio": {}, "interrupts": {}})):
                stack.enter_context(mock.patch.object(uml, name, return_value=value))
            stack.enter_context(mock.patch.object(compared, "storage_daemon"))
            stack.enter_context(CPUS)
            progress = stack.enter_context(mock.patch.object(common, "progress"))
            binary = compared.Binary(label, "qemu-system-x86_64")
            self.assertIn("fio", uml.run_sample(binary, mock.Mock(), "native", parameters(), label, self.build))
        return daemon, progress

    build = pathlib.Path("/nonexistent")

    def test_base(self):
        _, progress = self.sample("base", False)
        progress.assert_not_called()
        _, progress = self.sample("base", True)
        progress.assert_called_once_with("it did not end. It is killed; what was measured counts")

    def test_series(self):
        daemon, progress = self.sample("series", True)
        daemon.shutdown.assert_not_called()     # the with block does that, and fails
        progress.assert_not_called()


class Metrics(unittest.TestCase):
    def test_figures(self):
        self.assertEqual(report.metrics({"n": 1, **raw()}), {
            "iops": 1000, "p50": 2, "p99": 9, "p999": 20, "interrupts": .1, "writes": .1, "cpu": 900_000,
            "io_submit": .02, "io_uring_enter": .06})

    def test_not_counted(self):
        found = report.metrics({"n": 1, **raw(source="no syscalls tracepoints")})
        self.assertTrue(math.isnan(found["io_submit"]) and math.isnan(found["io_uring_enter"]))


class FakeSamples(unittest.TestCase):
    """bench() with a fake in place of daemon and guest."""

    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.build = pathlib.Path(d.name)
        images = {aio: generator.Image("/proc/1/fd/3", aio != "io_uring", "all") for aio in guest.AIO}
        for what in [mock.patch.object(common.settings, "build", self.build), CPUS,
                     mock.patch.object(common, "stack_name", return_value="toy"),
                     mock.patch.object(guest, "qemu_python"), mock.patch.object(guest, "build_image"),
                     mock.patch("dctools.base.read_pin", return_value={"series_tree": "abc"}),
                     mock.patch.object(uml, "images", lambda engines: contextlib.nullcontext(images))]:
            what.start()
            self.addCleanup(what.stop)
        for side in ("base", "series"):
            directory = self.build / "toy" / side / "build"
            (directory / "storage-daemon").mkdir(parents=True)
            for name in ("qemu-system-x86_64", "storage-daemon/qemu-storage-daemon"):
                (directory / name).write_text(f"#!/bin/sh\necho {side} version 0\n")
                (directory / name).chmod(0o755)
        self.rng = random.Random(3)

    def sample(self, fail_at=None, error=None, series=None, **base):
        count = 0

        def run(binary, image, engine, p, label, log_dir):
            nonlocal count
            count += 1
            if count == fail_at:
                raise error
            figures = {"iops": 1000.0, **base, **((series or {}) if binary.label in ("series", "B") else {})}
            return raw(**{**figures, "iops": figures["iops"] * math.exp(self.rng.gauss(0, .01))})
        return run

    def bench(self, sample, **env):
        out, err = io.StringIO(), io.StringIO()
        results = error = None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                results = uml.bench(parameters(**{"PAIRS": "4", "SEED": "1", **env}), sample)
            except (KeyboardInterrupt, ToolError) as e:
                error = e
        return out.getvalue(), err.getvalue(), results, error


class Bench(FakeSamples):
    def test_all(self):
        out, err, results, error = self.bench(self.sample(series={"iops": 1500.0, "irqs": 20}))
        self.assertIsNone(error)
        latest = self.build / "results/latest-uml"
        self.assertEqual(len(list(latest.glob("run-*.json"))), 4 * 3 * 3)
        self.assertEqual(len(re.findall(r"(?m)^IOPS .* better$", out)), 3)
        self.assertEqual(len(re.findall(r"(?m)^interrupts per I/O +0\.1000 +0\.0200 .* better$", out)), 3)
        self.assertIn("User Mode Linux", out)
        self.assertIn("native from memory, io_uring from the page cache", out)
        self.assertIn("run 36 of 36: pair 4 of 4", err)
        page = (latest / "report.html").read_text()
        self.assertEqual(page.count("<svg"), 3)
        self.assertIn("a real Linux on the vhost-user-blk export", page)
        self.assertIsInstance(show.results(latest), report.UmlResults)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            show.main(show.Options())
        self.assertEqual(said.getvalue(), out)
        (where, what, code, *_), = show.index(self.build / "results")
        self.assertRegex(where, "-uml-toy$")
        self.assertEqual((what, code), ("series (0) / base (0)", "abc"))
        (self.build / "pin.json").write_text('{"series_tree": "abc"}')
        with mock.patch.object(common, "patch_dir", return_value=self.build):
            self.assertEqual(show.index(self.build / "results")[0][2], "final")

    def test_what_could_not_be_counted_is_said(self):
        out, _, _, _ = self.bench(self.sample(source="no syscalls tracepoints"), AIO="native", PAIRS="2")
        self.assertIn("system calls counted in a run of their own; no syscalls tracepoints", out)
        self.assertRegex(out, r"(?m)^io_submit per I/O +n/a +n/a +n/a .* n/a$")

    def test_interrupted_keeps_and_shows(self):
        out, _, _, error = self.bench(self.sample(8, KeyboardInterrupt()), AIO="native")
        self.assertIsInstance(error, KeyboardInterrupt)
        self.assertIn("2 pairs of 4 planned", out)

    def test_failed_at_once_has_no_table(self):
        out, _, _, error = self.bench(self.sample(1, ToolError("the daemon ended with -11")))
        self.assertIn("-11", str(error))
        self.assertEqual(out, "")

    def test_missing_daemon(self):
        (self.build / "toy/series/build/storage-daemon/qemu-storage-daemon").unlink()
        self.assertIn("no qemu-storage-daemon beside", str(self.bench(self.sample())[3]))

    def test_damage_is_named(self):
        self.bench(self.sample(), AIO="native", PAIRS="2")
        directory = (self.build / "results/latest-uml").resolve()
        run = directory / "run-002.json"
        good = json.loads(run.read_text())
        for damaged in ["{", json.dumps({**good, "calls": None}), json.dumps({**good, "interrupts": {}})]:
            run.write_text(damaged)
            with self.assertRaisesRegex(ToolError, "run-002.json is damaged"):
                show.results(directory)


class Digest(FakeSamples):
    """What is said in the end, in each case."""

    def said(self, *measured):
        return re.sub(r"\s+", " ", digest(measured))

    def run_once(self, *, env=None, **figures):
        return self.bench(self.sample(**figures), **(env or {}))[2]

    def test_a_difference(self):
        text = self.said(self.run_once(series={"iops": 1500.0, "irqs": 20}))
        self.assertRegex(text, r"\* a real Linux on the vhost-user-blk export: IOPS that differ by "
                               r"[\d.]+( to [\d.]+)? % or more are told "
                               r"from noise; by chance \d of 27 A/A intervals leave 1 out\. "
                               r"IOPS better: io_uring 1\.[45]\d \[1\.[45]\d, 1\.5\d\], native 1\.[45]")
        self.assertIn("interrupts per I/O better: io_uring 0.100 → 0.020, native 0.100 → 0.020", text)
        self.assertNotIn("bottleneck", text)
        self.assertNotIn("latency", text)           # the same on both sides, so not told

    def test_none(self):
        self.assertIn("IOPS no difference outside of the noise", self.said(self.run_once()))

    def test_a_loss_is_named(self):
        self.assertRegex(self.said(self.run_once(series={"iops": 700.0})), r"IOPS worse: io_uring 0\.[67]\d \[")

    def test_the_guest_is_the_bottleneck(self):
        text = self.said(self.run_once(cpu=300_000))
        self.assertRegex(text, r"the guest is the bottleneck \(the IOThread worked "
                               r"(29|30|31) % of the time\), so IOPS hardly"
                         .replace(" %", "%"))

    def test_it_is_not_where_a_difference_is_seen(self):
        self.assertNotIn("bottleneck", self.said(self.run_once(cpu=300_000, series={"iops": 1500.0})))

    def test_too_few_pairs(self):
        text = self.said(self.run_once(env={"PAIRS": "1"}))
        self.assertIn("fewer than two pairs: nothing is told from noise", text)
        self.assertIn("IOPS no difference", text)

    def test_what_can_show_most_is_first(self):
        good, bad = self.run_once(), self.run_once(cpu=300_000)
        for order in [(good, bad), (bad, good)]:
            self.assertRegex(self.said(*order), r"What this run can show.*told from noise.*bottleneck")

    def test_many_configurations_are_counted(self):
        results = self.run_once(series={"iops": 1500.0})
        rows = results.table["native"]
        results.table = {f"config {n}": rows for n in range(7)}
        self.assertRegex(self.said(results), r"IOPS better in 7 of 7 configurations, most in config 0: 1\.[45]\d \[")

    def test_noise_without_bounds(self):
        results = self.run_once()
        for rows in results.table.values():
            rows["iops"]["aa"]["high"] = 20.0
        self.assertIn("too noisy: IOPS that differ by less than 100 % are not told", self.said(results))
        results.table["native"]["iops"]["aa"]["high"] = 1.2
        self.assertIn("IOPS that differ by 20 to 100 % or more are told", self.said(results))

    def test_nothing_measured(self):
        self.assertEqual(digest([]), "")

    def test_resolution(self):
        def row(ab, aa):
            return {"ab": dict(zip(("ratio", "low", "high"), ab)), "aa": dict(zip(("low", "high"), aa))}
        self.assertAlmostEqual(resolution(row((2, 1.9, 2.1), (.99, 1.01))), 2 / 1.9 - 1)
        self.assertAlmostEqual(resolution(row((1, .99, 1.01), (.8, 1.1))), .25)
        self.assertIsNone(resolution(row((1, None, None), (.9, 1.1))))


# A Linux whose init is ready, answers one job and then does nothing; with a child, as UML has them
READY = """#!/usr/bin/python3
import os, re, subprocess, sys, time
fd = int(re.search("ssl0=fd:([0-9]+)", " ".join(sys.argv))[1])
child = subprocess.Popen(["sleep", "600"], close_fds=False, pass_fds=[fd])
open("{0}/pids", "w").write(f"{{os.getpid()}} {{child.pid}}")
print("Kernel panic - not syncing", flush=True)
os.write(fd, b"noise\\nready\\n")
time.sleep(600)
"""
SILENT = "#!/bin/sh\necho $$ $$ >{0}/pids\necho no init found\nexec sleep 600\n"
EXITS = "#!/bin/sh\necho $$ $$ >{0}/pids\necho no init found\nexit 6\n"
# A daemon with a monitor that knows no command but answers; {1}: whether it ends when it is told to
DAEMON = """#!/usr/bin/python3
import json, os, re, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0) if {1} else None)
open("{0}/pids", "w").write(f"{{os.getpid()}} {{os.getpid()}}")
server = socket.socket(socket.AF_UNIX)
server.bind(re.search("path=([^,]+),", " ".join(sys.argv))[1])
server.listen()
sock, _ = server.accept()
def say(what):
    sock.sendall(json.dumps(what).encode() + b"\\r\\n")
say(dict(QMP=dict(version=dict(qemu=dict(major=7, minor=2, micro=0), package=""), capabilities=[])))
while data := sock.recv(4096):
    ask = json.loads(data)
    if ask["execute"] == "stop":
        os.abort()
    if ask["execute"] == "cont":
        time.sleep(600)
    if ask["execute"] == "query-events":
        say(dict(event="BLOCK_EXPORT_DELETED", data=dict(id="other"), timestamp=dict(seconds=1, microseconds=1)))
        say(dict(event="BLOCK_EXPORT_DELETED", data=dict(id="disk0"), timestamp=dict(seconds=1, microseconds=1)))
    answer = {{"return": {{}}}}
    if ask["execute"] == "bad":
        answer = {{"error": {{"class": "GenericError", "desc": "no"}}}}
    say({{**answer, **{{k: ask[k] for k in ask if k == "id"}}}})
    if ask["execute"] == "quit" and {1}:
        sys.exit(0)
time.sleep(600)
"""


# It sleeps as UML does: after an interrupt, without one, with one meanwhile, and without one again
SLEEPER = r"""
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>

static volatile sig_atomic_t interrupts, timeouts, interrupt_at_timeout;

static void on_interrupt(int sig, siginfo_t *info, void *context)
{
    interrupts += info->si_signo == sig && context;
}

static void on_other(int sig, siginfo_t *info, void *context)
{
    interrupts += 100;
}

static void on_timer(int sig)
{
    timeouts++;
    if (interrupt_at_timeout) {
        raise(SIGIO);
    }
}

static void nap(void)
{
    struct itimerval soon = { .it_value = { .tv_usec = 50000 } }, never = { 0 };
    sigset_t none;
    int before = timeouts;

    sigemptyset(&none);
    setitimer(ITIMER_REAL, &soon, NULL);
    sigsuspend(&none);
    setitimer(ITIMER_REAL, &never, NULL);
    printf("%s ", timeouts > before ? "slept" : "awake");
}

int main(void)
{
    struct sigaction io = { .sa_sigaction = on_interrupt, .sa_flags = SA_SIGINFO }, other, old;
    struct sigaction timer = { .sa_handler = on_timer };

    sigaction(SIGALRM, &timer, NULL);
    sigaction(SIGIO, &io, NULL);
    /* UML tries another handler, and goes back */
    sigaction(SIGIO, NULL, &old);
    other = old;
    other.sa_sigaction = on_other;
    sigaction(SIGIO, &other, NULL);
    sigaction(SIGIO, &old, NULL);

    raise(SIGIO);
    nap();
    nap();
    interrupt_at_timeout = 1;
    nap();
    interrupt_at_timeout = 0;
    nap();
    printf("%d\n", interrupts);
    return 0;
}
"""


class Preload(unittest.TestCase):
    def test_an_interrupt_before_the_sleep_ends_it(self):
        with tempfile.TemporaryDirectory() as d:
            source, program, library = (pathlib.Path(d, name) for name in ("sleeper.c", "sleeper", "idle.so"))
            source.write_text(SLEEPER)
            subprocess.run(["gcc", "-o", program, source], check=True)
            image.build_preload(image.PRELOAD / "idle.c", library)
            for preload, said in [("", "slept slept slept slept 2"), (str(library), "awake slept slept slept 2")]:
                with self.subTest(preload=preload):
                    run = subprocess.run([program], env={"LD_PRELOAD": preload}, capture_output=True, text=True,
                                         check=True, timeout=30)
                    self.assertEqual((run.stdout.strip(), run.stderr), (said, ""))


class Fakes(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)
        for name in ["initrd.img", "xstate.so", "idle.so"]:
            (self.dir / name).touch()
        self.err = io.StringIO()
        stack = contextlib.ExitStack()
        stack.enter_context(contextlib.redirect_stderr(self.err))
        (self.dir / "tmp").mkdir()
        stack.enter_context(mock.patch.object(tempfile, "tempdir", str(self.dir / "tmp")))
        self.addCleanup(stack.close)

    def linux(self, script):
        program = self.dir / "linux.uml"
        program.write_text(script.format(self.dir))
        program.chmod(0o755)
        return guest.Uml(image=self.dir, log_dir=self.dir / "log", memory=1)

    def daemon(self, script, ends=True, **kw):
        program = self.dir / "daemon"
        program.write_text(script.format(self.dir, ends))
        program.chmod(0o755)
        return guest.StorageDaemon(program, log_dir=self.dir / "log", **kw)

    def assert_gone(self):
        for pid in map(int, (self.dir / "pids").read_text().split()):
            stat = pathlib.Path(f"/proc/{pid}/stat")
            common.wait_until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", 5,
                              f"process {pid} is left")
        self.assertEqual(list((self.dir / "tmp").iterdir()), [])


class FakeLinux(Fakes):
    def test_good_end(self):
        with self.linux(READY) as vm:
            vm.wait_ready(20)
            self.assertGreaterEqual(vm.cpu_seconds(), 0)
        self.assert_gone()

    def test_interrupted(self):
        with self.assertRaises(KeyboardInterrupt), self.linux(READY) as vm:
            vm.wait_ready(20)
            raise KeyboardInterrupt
        self.assert_gone()

    def test_interrupted_while_starting(self):
        with mock.patch("subprocess.Popen", side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
            self.linux(READY).start()
        self.assertEqual(list((self.dir / "tmp").iterdir()), [])

    def test_does_not_boot(self):
        with self.assertRaisesRegex(ToolError, "no answer in time from the guest to its start; it is still running"):
            with self.linux(SILENT) as vm:
                vm.wait_ready(.5)
        self.assertIn("no init found", self.err.getvalue())
        self.assert_gone()

    def test_ends_at_once(self):
        with self.assertRaisesRegex(ToolError, "the guest went away during its start; it ended with 6"):
            with self.linux(EXITS) as vm:
                time.sleep(.2)
                vm.wait_ready(5)
        self.assert_gone()

    def test_does_not_power_off(self):
        with self.linux(READY) as vm, self.assertRaisesRegex(ToolError, "poweroff did not end it within 0.2 s"):
            vm.wait_ready(20)
            vm.power_off(.2)
        self.assert_gone()

    def test_what_it_preloads(self):
        (self.dir / "linux.uml").touch()
        for lost_wakeups, names in [(False, ["xstate.so", "idle.so"]), (True, ["xstate.so"])]:
            with mock.patch("subprocess.Popen", side_effect=KeyboardInterrupt) as popen, \
                    self.assertRaises(KeyboardInterrupt):
                guest.Uml(image=self.dir, log_dir=self.dir / "log", memory=1, lost_wakeups=lost_wakeups).start()
            self.assertEqual(popen.call_args[1]["env"]["LD_PRELOAD"], ":".join(f"{self.dir}/{name}" for name in names))

    def test_missing_pieces(self):
        with self.assertRaisesRegex(ToolError, "linux.uml is missing; run `make image`"):
            guest.Uml(image=self.dir, log_dir=self.dir).start()
        (self.dir / "linux.uml").touch()
        (self.dir / "idle.so").unlink()
        with self.assertRaisesRegex(ToolError, "idle.so is missing; run `make image`"):
            guest.Uml(image=self.dir, log_dir=self.dir).start()

    def test_command_line(self):
        command = guest.Uml([pathlib.Path("/a"), pathlib.Path("/b")], image=self.dir, cpu=1).arguments("/d", 9)
        self.assertEqual(command[:4], ["taskset", "-c", "1", f"{self.dir}/linux.uml"])
        for argument in ["ssl0=fd:9", "uml_dir=/d/", "virtio_uml.device=/a:2:1", "virtio_uml.device=/b:2:2"]:
            self.assertIn(argument, command)
        self.assertNotIn("taskset", guest.Uml(image=self.dir).arguments("/d", 9))

    def test_memory(self):
        self.assertTrue(linux.can_hold(self.dir, 1))
        self.assertFalse(linux.can_hold(self.dir, 1 << 40))
        self.assertFalse(linux.can_hold(self.dir / "nothing", 1))
        with mock.patch("mmap.mmap", side_effect=PermissionError(1, "noexec")):
            self.assertFalse(linux.can_hold(self.dir, 1))
        self.assertEqual(linux.memory_place(1, [self.dir / "nothing", self.dir]), self.dir)
        with self.assertRaisesRegex(ToolError, "no room for a guest of 1099511627776 MiB in .*noexec, or too small"):
            linux.memory_place(1 << 40, [self.dir])


class FakeDaemon(Fakes):
    def test_good_end(self):
        for how in ["quit", "SIGTERM"]:
            with self.daemon(DAEMON) as daemon:
                self.assertEqual(daemon.qmp("query-status"), {})
                with self.assertRaisesRegex(ToolError, "QMP bad: no"):
                    daemon.qmp("bad")
                daemon.shutdown(5, how)
            self.assert_gone()

    def test_interrupted(self):
        with self.assertRaises(KeyboardInterrupt), self.daemon(DAEMON):
            raise KeyboardInterrupt
        self.assert_gone()

    def test_events(self):
        with self.daemon(DAEMON) as daemon:
            daemon.qmp("query-events")
            self.assertEqual(daemon.wait_event("BLOCK_EXPORT_DELETED", 5, id="disk0")["data"]["id"], "disk0")
            with self.assertRaisesRegex(guest.Hang, "no QMP event BLOCK_EXPORT_DELETED within 0.2 s"):
                daemon.wait_event("BLOCK_EXPORT_DELETED", .2)

    def test_hangs(self):
        with self.assertRaisesRegex(ToolError, "gave no sign of life within 0.5 s; it said: no init found"):
            self.daemon(SILENT, patience=.5).start()
        self.assert_gone()
        for how in ["quit", "SIGTERM"]:
            with self.assertRaisesRegex(guest.Hang, f"did not end within 0.5 s of `{how}`"), \
                    self.daemon(DAEMON, ends=False) as daemon:
                daemon.shutdown(.5, how)
            self.assert_gone()
        with self.assertRaisesRegex(guest.Hang, "no answer to QMP cont within 0.5 s .*still running"), \
                self.daemon(DAEMON) as daemon:
            daemon.qmp("cont", .5)
        self.assert_gone()

    def test_crash(self):
        with self.assertRaisesRegex(ToolError, "ended with -6|still running"), self.daemon(DAEMON) as daemon:
            with contextlib.suppress(ToolError):
                daemon.qmp("stop", 5)
            daemon.shutdown(5)
        self.assert_gone()

    def test_ends_at_once(self):
        with self.assertRaisesRegex(ToolError, "ended at once with 6; it said: no init found"):
            self.daemon(EXITS).start()
        self.assert_gone()

    def test_missing(self):
        with self.assertRaisesRegex(ToolError, "no qemu-storage-daemon at"):
            guest.StorageDaemon(self.dir / "nothing", log_dir=self.dir).start()

    def test_iothread(self):
        with self.daemon(DAEMON) as daemon:
            with self.assertRaisesRegex(ToolError, "object-add has made 0 threads"):
                daemon.add_iothread()
            with mock.patch.object(daemon, "threads", side_effect=[{1, 2}, {1, 2, 7}]):
                self.assertEqual(daemon.add_iothread(), 7)

    def test_names_of_sockets(self):
        for name in ["x" * 100, "a:b", "a b", "a,b"]:
            (self.dir / name).mkdir()
            with self.subTest(name), mock.patch.object(tempfile, "tempdir", str(self.dir / name)), \
                    self.assertRaisesRegex(ToolError, "for the name of a socket; set TMPDIR=/tmp"):
                storage.scratch()
            self.assertEqual(list((self.dir / name).iterdir()), [])


class Checks(unittest.TestCase):
    """The checks of the part exports say no."""

    def test_a_disk_that_hangs(self):
        vm = mock.Mock(label="vm")
        vm.check.return_value = "5 0 0 0 7 0\n"
        with self.assertRaisesRegex(ToolError, "vm: /dev/vda hangs: no request is done within 0.2 s"):
            exports.goes_on(vm, "/dev/vda", .2)
        vm.check.side_effect = [f"{n} 0 0 0 7 0\n" for n in (5, 5, 6)]
        exports.goes_on(vm, "/dev/vda", 5)

    def test_what_is_left_after_removal(self):
        for threads, left, said in [({1, 2}, [], "the IOThread goes on without its object"),
                                    ({1}, [{"id": "disk0"}], "disk0 is still exported"), ({1}, [], None)]:
            daemon = mock.Mock(label="d")
            daemon.threads.return_value = threads
            daemon.qmp.side_effect = (
                lambda command, *_, left=left, **kw: left if command == "query-block-exports" else {})
            with self.subTest(said), (self.assertRaisesRegex(ToolError, said) if said else contextlib.nullcontext()):
                exports.remove(daemon, "hard", 2, .2)

    def test_a_guest_that_the_daemon_does_not_let_go(self):
        for connections, said in [([2, 2], "not as 1 more connections"), ([2, 3] + [3] * 99, "does not let go"),
                                  ([2, 4, 2], None)]:
            daemon = mock.Mock(label="d")
            daemon.connections.side_effect = connections
            with self.subTest(said), mock.patch.object(exports, "PATIENCE", .2), \
                    mock.patch.object(exports, "linux_on", lambda *_: contextlib.nullcontext()), \
                    (self.assertRaisesRegex(ToolError, said) if said else contextlib.nullcontext()):
                with exports.visitor(daemon, ["/s"], "x"):
                    pass


if __name__ == "__main__":
    unittest.main()
