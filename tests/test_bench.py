# SPDX-License-Identifier: GPL-2.0-or-later
"""bench.py: parameters, protection of the person's disk, keeping results."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import common, guest, options
from dctools.common import ToolError
from dctools.measure import bench, compared, infio, plan, uml
from dctools.report.statistics import ROLES


def raw(syscw=100, ios=1000, iops=500.0, irqs=50):
    """What bench.run_process yields for one engine, with round figures."""
    side = {"total_ios": ios, "iops": iops,
            "clat_ns": {"percentile": {"50.000000": 2000, "99.000000": 9000, "99.900000": 20000}}}
    line = " 25:   {}   0   PCI-MSI 131073-edge      virtio1-req.0"
    machine = {"machine_cpu_s": 0, "qemu_cpu_s": 0}
    return {"device": "/dev/vda", "virtio": "virtio1", "command": ["qemu", "-x"],
            "fio": {"jobs": [{"mixed": side}]},
            "interrupts": {"before": [line.format(10)], "after": [line.format(10 + irqs)]},
            "counters": {"before": {"time": 0, "syscw": 5, "cpu_ns": 0, **machine},
                         "after": {"time": 2, "syscw": 5 + syscw, "cpu_ns": 7000 * ios, **machine}}}


def parameters(env):
    return infio.checked(options.load(infio.Workload, env))


class Parameters(unittest.TestCase):
    def test_defaults(self):
        p = parameters({})
        self.assertEqual(p.aio, ("native", "io_uring", "threads"))
        self.assertEqual((p.iodepth, p.rw, p.bs, p.event_idx, p.disk), (64, "randread", "4k", True, ""))
        self.assertEqual(p.queues, 1)
        self.assertTrue(p.read_only)

    def test_empty_is_default(self):
        names = "AIO IODEPTH NUMJOBS RW BS PAIRS RUNTIME DISK EVENT_IDX QUEUES VCPUS FIO_JOB SEED " \
                "QEMU_A QEMU_B WRITE_OK".split()
        self.assertEqual(parameters({n: "" for n in names} | {"SEED": "1"}),
                         parameters({"SEED": "1"}))

    def test_good_values(self):
        p = parameters({"AIO": "threads,native", "EVENT_IDX": "off", "VCPUS": "4", "BS": "64K",
                              "RW": "randrw", "RUNTIME": "0.5", "QUEUES": "3"})
        self.assertEqual((p.aio, p.event_idx, p.vcpus, p.queues, p.runtime),
                         (("threads", "native"), False, 4, 3, 0.5))
        self.assertTrue(p.writes)
        self.assertFalse(p.read_only)       # our own file

    def test_nonsense_is_one_line_that_names_it(self):
        for name, value in [
                ("AIO", "posix"), ("AIO", "native native"), ("IODEPTH", "0"), ("IODEPTH", "many"),
                ("IODEPTH", "6.5"), ("NUMJOBS", "-1"), ("NUMJOBS", "1000"), ("RW", "sideways"),
                ("BS", "4kk"), ("BS", "100"), ("BS", "0"), ("BS", "1g"), ("PAIRS", "0"), ("PAIRS", "x"),
                ("RUNTIME", "0"), ("RUNTIME", "nan"), ("RUNTIME", "inf"), ("RUNTIME", "5s"),
                ("EVENT_IDX", "maybe"), ("QUEUES", "0"), ("QUEUES", "3"), ("VCPUS", "0"),
                ("SEED", "abc"), ("SEED", "-1"),
                ("WRITE_OK", "please"), ("DISK", "/nonexistent/disk"), ("DISK", "/dev/null"),
                ("DISK", "/"), ("FIO_JOB", "/nonexistent/job"), ("QEMU_A", "/bin/true"),
                ("QEMU_B", "/bin/true")]:
            with self.subTest(name=name, value=value), self.assertRaises(ToolError) as e:
                parameters({name: value})
            self.assertNotIn("\n", str(e.exception))
            self.assertIn(name, str(e.exception))

    def test_plan_is_fixed_by_the_seed_and_complete(self):
        p = parameters({"SEED": "7", "PAIRS": "20"})
        rounds = infio.plan(p)
        self.assertEqual(rounds, infio.plan(p))
        self.assertNotEqual(rounds, infio.plan(parameters({"SEED": "8", "PAIRS": "20"})))
        for pair in range(1, 21):
            mine = [r for r in rounds if r[0] == pair]
            self.assertEqual(sorted(r[1] for r in mine), sorted(ROLES))
            self.assertEqual(len({tuple(r[2]) for r in mine}), 1)   # same engine order within a round
        firsts = {rounds[3 * i][1] for i in range(20)}
        self.assertEqual(firsts, set(ROLES))                  # and the order does change


class OwnFiles(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)
        self.disk = self.dir / "disk"
        self.disk.write_bytes(bytes(2 << 20))

    def job(self, text):
        path = self.dir / "job.fio"
        path.write_text(text)
        return parameters({"FIO_JOB": str(path), "DISK": str(self.disk)})

    def test_every_writing_kind_needs_write_ok(self):
        for rw in infio.RW:
            env = {"DISK": str(self.disk), "RW": rw}
            with self.subTest(rw=rw):
                if rw in ("read", "randread"):
                    self.assertTrue(parameters(env).read_only)
                    continue
                with self.assertRaisesRegex(ToolError, "WRITE_OK=1"):
                    parameters(env)
                self.assertFalse(parameters(env | {"WRITE_OK": "1"}).read_only)

    def test_read_only_even_with_write_ok_when_nothing_is_written(self):
        self.assertTrue(parameters({"DISK": str(self.disk), "WRITE_OK": "1"}).read_only)

    def test_read_only_reaches_qemu(self):
        seen = []

        class Stop(Exception):
            pass

        def fake(binary, disks, **_):
            seen.extend(disks)
            raise Stop
        for env, expected in [({}, True), ({"RW": "randwrite", "WRITE_OK": "1"}, False)]:
            p = parameters({"DISK": str(self.disk)} | env)
            seen.clear()
            with mock.patch.object(guest, "Guest", fake), self.assertRaises(Stop):
                next(infio.run_process(compared.Binary("x", "/x"), p.aio, p, str(self.disk), "x", self.dir))
            self.assertEqual([d.read_only for d in seen], [expected] * 3)
            for n, d in enumerate(seen):
                self.assertIn(f'"read-only": {str(expected).lower()}', " ".join(d.arguments(n)))
            self.assertTrue(seen[0].locking)        # QEMU's lock keeps others off the file

    def test_own_job_gets_the_disk_read_only_without_write_ok(self):
        p = self.job("[a]\nrw=randwrite\nfilename=${DISK}\n")
        self.assertTrue(p.read_only)
        self.assertTrue(infio.job_file(p, "/dev/vdb", 1).startswith("[global]\nfilename=/dev/vdb\n"))
        env = {"FIO_JOB": str(self.dir / "job.fio"), "DISK": str(self.disk), "WRITE_OK": "1"}
        self.assertFalse(parameters(env).read_only)

    def test_jobs_that_cannot_work(self):
        for text, said in [("", "section"), ("[global]\nbs=4k\n", "section"),
                           ("[a]\nfilename=/dev/vda\n", "filename"), ("[a]\ndirectory=/x\n", "directory"),
                           ("include other.fio\n[a]\n", "include"), ("[a]\nramp_time=1\n", "ramp_time")]:
            with self.subTest(text=text), self.assertRaisesRegex(ToolError, said):
                self.job(text)

    def test_too_small(self):
        self.disk.write_bytes(b"x")
        with self.assertRaisesRegex(ToolError, "smaller"):
            parameters({"DISK": str(self.disk)})

    def test_a_block_device_in_use_is_refused(self):
        env = {"DISK": str(self.disk), "WRITE_OK": "1"}
        for checked in (lambda: parameters({**env, "RW": "randwrite"}),
                        lambda: plan.parameters(options.load(plan.Options, {**env, "RW": "write"}))):
            with mock.patch("stat.S_ISBLK", return_value=True), \
                    mock.patch("dctools.measure.plan.cpu_list", lambda: [0, 1]), \
                    mock.patch("os.open", side_effect=OSError(16, "Device or resource busy")) as opened, \
                    self.assertRaisesRegex(ToolError, "busy"):
                checked()
            self.assertTrue(opened.call_args[0][1] & os.O_EXCL)


class Keeping(unittest.TestCase):
    """bench() with a fake in place of QEMU."""

    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.build = pathlib.Path(d.name)
        for what in [mock.patch.object(common.settings, "build", self.build),
                     mock.patch.object(common, "stack_name", return_value="toy"),
                     mock.patch.object(guest, "qemu_python"), mock.patch.object(guest, "build_image"),
                     mock.patch.object(guest, "check_direct"),
                     mock.patch.object(compared.base, "read_pin", return_value={"series_tree": "abc"}),
                     mock.patch.object(infio, "our_disk", return_value="/disk")]:
            what.start()
            self.addCleanup(what.stop)
        for side in ("base", "series"):
            path = self.build / "toy" / side / "build/qemu-system-x86_64"
            path.parent.mkdir(parents=True)
            path.write_text(f"#!/bin/sh\necho {side} version 0\n")
            path.chmod(0o755)
        self.closed = []

    def bench(self, run, **env):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                infio.bench(parameters({"PAIRS": "3", "AIO": "native", "SEED": "1"} | env), run)
            except (KeyboardInterrupt, ToolError) as e:
                return out.getvalue(), err.getvalue(), e
        return out.getvalue(), err.getvalue(), None

    def fake(self, fail_at=None, error=None):
        count = 0

        def run(binary, engines, p, disk, label, log_dir):
            nonlocal count
            try:
                for engine in engines:
                    count += 1
                    if count == fail_at:
                        raise error
                    yield engine, raw(syscw=50 + count if binary.label == "series" else 100 + count)
            finally:
                self.closed.append(label)
        return run

    def test_all(self):
        out, err, e = self.bench(self.fake())
        self.assertIsNone(e)
        latest = self.build / "results/latest"
        self.assertEqual(len(list(latest.glob("run-*.json"))), 9)
        self.assertTrue((latest / "report.html").is_file())
        self.assertRegex(out, r"write\(2\) per I/O .* better")
        self.assertIn("run 9 of 9", err)
        run = json.loads((latest / "run-001.json").read_text())
        self.assertEqual(len(run["binary"]["sha256"]), 64)
        self.assertEqual(run["fio"], raw()["fio"])

    def test_a_guest_that_gets_stuck_is_replaced(self):
        def run(binary, engines, p, disk, label, log_dir):
            started.append((label, list(engines)))
            stuck = len(started) in sticks
            for n, engine in enumerate(engines):
                if stuck and n == 1:
                    raise guest.Stuck(f"{label}: no answer")
                yield engine, raw()
        for sticks in [{2}, {2, 3}, {2, 4, 6}]:
            started = []
            with self.subTest(sticks):
                out, err, e = self.bench(run, AIO="native threads", PAIRS="2")
                latest = self.build / "results/latest"
                self.assertEqual(err.count("another one takes its place"), min(len(sticks), infio.MOST_STUCK))
                self.assertEqual(started[2], (started[1][0] + "-again", started[1][1]))     # at once, and all of it
                if len(sticks) > infio.MOST_STUCK:
                    self.assertIsInstance(e, guest.Stuck)
                    continue
                self.assertIsNone(e)
                runs = [json.loads(path.read_text()) for path in latest.glob("run-*.json")]
                self.assertEqual(len({(r["pair"], r["role"], r["engine"]) for r in runs}), 2 * 3 * 2)
                self.assertEqual(len(runs), 2 * 3 * 2)
                self.assertIn(f"others took their places: {started[1][0]}", out)

    def test_interrupted_keeps_and_shows(self):
        out, err, e = self.bench(self.fake(8, KeyboardInterrupt()))
        self.assertIsInstance(e, KeyboardInterrupt)
        self.assertEqual(len(list((self.build / "results/latest").glob("run-*.json"))), 7)
        self.assertIn("2 pairs of 3 planned", out)
        self.assertEqual(len(self.closed), 8)       # the process in which it happened is ended too

    def test_interrupted_outside_of_the_guest_ends_the_guest(self):
        with mock.patch.object(common, "progress", side_effect=[None, KeyboardInterrupt(), None]):
            _, _, e = self.bench(self.fake(), AIO="native threads")
        self.assertIsInstance(e, KeyboardInterrupt)
        self.assertEqual(len(self.closed), 1)

    def test_failed_run_keeps_and_fails(self):
        out, err, e = self.bench(self.fake(5, ToolError("guest did not boot")))
        self.assertIn("did not boot", str(e))
        self.assertIn("aio=native", out)

    def test_failed_at_once_has_no_table(self):
        out, err, e = self.bench(self.fake(1, ToolError("guest did not boot")))
        self.assertIn("did not boot", str(e))
        self.assertEqual(out, "")

    def test_own_binaries_are_labelled(self):
        out, err, e = self.bench(self.fake(), QEMU_A=str(self.build / "toy/base/build/qemu-system-x86_64"),
                                 QEMU_B=str(self.build / "toy/series/build/qemu-system-x86_64"))
        self.assertIsNone(e)
        self.assertIn("B/A", out)
        self.assertTrue((self.build / "results/latest").resolve().name.endswith("-A-B"))

    def test_results_say_of_which_series_and_tools_they_are(self):
        with tempfile.TemporaryDirectory() as tmp, mock.patch.object(common, "ROOT", pathlib.Path(tmp)), \
                mock.patch.object(compared.base, "read_pin", return_value={"series_tree": "abc"}) as read:
            def tools():
                return compared.about(common.settings, "v9", [])["tools"]
            self.assertEqual(tools(), "")
            read.assert_called_with("v9")
            self.assertEqual(compared.about(common.settings, "v9", [])["series_tree"], "abc")
            common.git(tmp, "init", "-q")
            pathlib.Path(tmp, "patches").mkdir()
            pathlib.Path(tmp, "patches/x").write_text("1")
            common.git(tmp, "add", ".")
            common.git(tmp, "-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "-m", "x")
            self.assertEqual(tools(), common.git(tmp, "rev-parse", "HEAD")[:12])
            pathlib.Path(tmp, "patches/x").write_text("2")
            self.assertEqual(tools(), common.git(tmp, "rev-parse", "HEAD")[:12] + "+")

    def test_two_of_a_second_have_names_of_their_own(self):
        one, two = compared.new_directory("x"), compared.new_directory("x")
        self.assertLess(one, two)
        self.assertEqual((self.build / "results/latest").resolve(), two.resolve())

    def test_results_have_no_paths_of_this_machine(self):
        with tempfile.TemporaryDirectory() as tmp:
            compared.keep(pathlib.Path(tmp, "x"), {"a": [f"initrd={common.ROOT}/build/x",
                                                         f"dir={tempfile.gettempdir()}/dc-a1_b/disk:2"]})
            self.assertEqual(json.loads(pathlib.Path(tmp, "x").read_text()), {"a": ["initrd=build/x", "dir=disk:2"]})

    def test_missing_binary(self):
        (self.build / "toy/series/build/qemu-system-x86_64").unlink()
        _, _, e = self.bench(self.fake())
        self.assertIn("make build", str(e))
        _, _, e = self.bench(self.fake(), QEMU_A="/nonexistent", QEMU_B="/bin/true")
        self.assertIn("QEMU_A", str(e))
        self.assertFalse((self.build / "results").exists() and list((self.build / "results").glob("*-*")))

    def test_storage_daemon_is_found_where_it_was_built_or_installed(self):
        with tempfile.TemporaryDirectory() as d:
            qemu, installed = pathlib.Path(d) / "qemu-system-x86_64", pathlib.Path(d) / "qemu-storage-daemon"
            with self.assertRaisesRegex(ToolError, "no qemu-storage-daemon beside"):
                compared.storage_daemon(str(qemu))
            built = pathlib.Path(d) / "storage-daemon/qemu-storage-daemon"
            built.parent.mkdir()
            for place in (installed, built):
                place.touch(0o755)
                self.assertEqual(compared.storage_daemon(str(qemu)), str(place))

    def test_load_generator_follows_unless_a_workload_was_chosen(self):
        for env, follows in [({}, True), ({"PAIRS": "3", "RUNTIME": "1"}, True), ({"RW": "read"}, False),
                             ({"RW": "read", "RING": "on"}, True), ({"RING": "off"}, False),
                             ({"QEMU_A": "/a", "QEMU_B": "/b"}, True)]:
            with self.subTest(env), mock.patch.object(infio, "bench") as guests, \
                    mock.patch("dctools.build.build_both"), mock.patch("dctools.series.update_tree"), \
                    mock.patch("dctools.common.progress") as said, \
                    mock.patch("dctools.measure.plan.cpu_list", lambda: [0, 1]), \
                    mock.patch("dctools.measure.uml.bench"), \
                    mock.patch.object(bench, "digest", return_value="") as digest, \
                    contextlib.redirect_stdout(io.StringIO()), \
                    mock.patch("dctools.measure.loadgen.bench_ring") as generator:
                bench.main(options.load(bench.Options, env))
                self.assertEqual(digest.call_count, 1)
                self.assertEqual((guests.call_count, generator.call_count), (1, int(follows)))
                self.assertEqual("RING=on adds it" in str(said.call_args_list), not follows and "RING" not in env)
                if follows:
                    p = generator.call_args[0][0]
                    self.assertEqual(p.qemu_a, env.get("QEMU_A", ""))
                    self.assertEqual({(c.aio, c.qd, c.irq) for c in p.configs},
                                     {(aio, qd, irq) for aio in guest.AIO for qd in (4, 64)
                                      for irq in ("each", "batch")})

    def test_linux_on_the_export_has_the_same_workload_or_is_left_out(self):
        for env, wanted in [({}, {}), ({"PAIRS": "3"}, {"pairs": 3}),
                            ({"RW": "read", "BS": "8k"}, {"rw": "read", "bs": "8k"}),
                            ({"AIO": "native", "IODEPTH": "4", "RUNTIME": "1"},
                             {"aio": ("native",), "iodepth": 4, "runtime": 1}),
                            ({"NUMJOBS": "2"}, None), ({"VCPUS": "4"}, None),
                            ({"RW": "trim"}, None), ({"UML": "off"}, None),
                            ({"NUMJOBS": "2", "IODEPTH": "4", "UML": "on"}, {"iodepth": 4})]:
            with self.subTest(env):
                given = bench.uml_workload(options.load(bench.Options, {"SEED": "1", **env}))
                if wanted is None:
                    self.assertIsNone(given)
                else:
                    self.assertEqual(given, uml.checked(dataclasses.replace(uml.Workload(seed=1), **wanted)))

    def test_what_is_finished_before_an_interruption_is_told(self):
        with mock.patch.object(infio, "bench", return_value="first"), mock.patch("dctools.build.build_both"), \
                mock.patch("dctools.measure.plan.cpu_list", lambda: [0, 1]), mock.patch("dctools.common.progress"), \
                mock.patch("dctools.measure.loadgen.bench_ring", side_effect=KeyboardInterrupt), \
                mock.patch.object(bench, "digest", return_value="told") as digest, \
                contextlib.redirect_stdout(io.StringIO()) as out, self.assertRaises(KeyboardInterrupt):
            bench.main(bench.Options())
        digest.assert_called_once_with(["first"])
        self.assertEqual(out.getvalue(), "\ntold\n")

    def test_load_generator_refuses_before_the_guests_run(self):
        with mock.patch.object(infio, "bench") as guests, mock.patch("dctools.build.build_both") as build, \
                mock.patch("dctools.measure.plan.cpu_list", lambda: [0]), \
                self.assertRaisesRegex(ToolError, "one CPU .*RING=off"):
            bench.main(bench.Options())
        self.assertFalse(guests.called or build.called)


if __name__ == "__main__":
    unittest.main()
