# SPDX-License-Identifier: GPL-2.0-or-later
"""report.py: counting interrupts, statistics on data with a known answer, damaged results."""

import contextlib
import io
import json
import math
import pathlib
import random
import re
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from dctools import common
from dctools.report import infio as report
from dctools.report import page as pages
from dctools.report import digest, show, statistics
from dctools.report.results import markdown
from dctools.common import ToolError
from test_bench import raw

INTERRUPTS = """\
  4:          0          2   IO-APIC   4-edge      ttyS0
 24:          5          0   PCI-MSI 131072-edge      virtio1-config
 25:          7          1   PCI-MSI 131073-edge      virtio1-req.0
 26:          0         30   PCI-MSI 131074-edge      virtio1-req.1
 28:          1          0   PCI-MSI 147457-edge      virtio2-control
 29:          1          0   PCI-MSI 147458-edge      virtio2-event
 31:        273          0   PCI-MSI 147459-edge      virtio2-request
 32:          0         13   PCI-MSI 147460-edge      virtio2-request
 33:       1000       1000   PCI-MSI 65537-edge      virtio10-req.0
 34:         16          0   PCI-MSI 65537-edge      virtio3-virtqueues
 11:          4          5   IO-APIC  11-fasteoi   virtio4, uhci_hcd
""".splitlines()


class Interrupts(unittest.TestCase):
    def test_lines(self):
        for virtio, expected in [("virtio1", 38), ("virtio2", 286), ("virtio3", 16), ("virtio4", 9),
                                 ("virtio10", 2000), ("virtio9", 0)]:
            self.assertEqual(report.count_interrupts(INTERRUPTS, virtio), expected, virtio)

    def test_metrics(self):
        m = report.metrics({"n": 1, **raw()})
        self.assertEqual(m, {"iops": 500, "p50": 2, "p99": 9, "p999": 20, "interrupts": .05, "writes": .1, "cpu": 7000})

    def test_several_jobs(self):
        r = raw()
        side = r["fio"]["jobs"][0]["mixed"]
        slow = {**side, "clat_ns": {"percentile": {"50.000000": 4000, "99.000000": 5000, "99.900000": 6000}}}
        r["fio"]["jobs"] = [{"read": side, "write": slow, "trim": {"total_ios": 0}}]
        m = report.metrics({"n": 1, **r})
        self.assertEqual((m["iops"], m["p50"], m["p99"], m["p999"], m["writes"]), (1000, 4, 9, 20, .05))

    def test_percentiles_of_the_person_s_own(self):
        r = raw()
        r["fio"]["jobs"][0]["mixed"]["clat_ns"]["percentile"] = {"99.990000": 4000}
        m = report.metrics({"n": 1, **r})
        self.assertTrue(all(math.isnan(m[p]) for p in ["p50", "p99", "p999"]))
        self.assertEqual(m["iops"], 500)

    def test_no_io(self):
        with self.assertRaisesRegex(ToolError, "no I/O"):
            report.metrics({"n": 3, **raw(ios=0)})


class Statistics(unittest.TestCase):
    def setUp(self):
        rng = random.Random(1)
        self.base = [100 * math.exp(rng.gauss(0, .2)) for _ in range(12)]
        self.noise = [math.exp(rng.gauss(0, .02)) for _ in range(12)]

    def test_known_ratio_is_found(self):
        r = statistics.paired(self.base, [x * n * 1.2 for x, n in zip(self.base, self.noise)])
        self.assertTrue(1.15 < r["low"] < 1.2 < r["high"] < 1.25, r)
        self.assertAlmostEqual(r["p"], 2 / 2 ** 12)

    def test_none_is_none(self):
        r = statistics.paired(self.base, [x * n for x, n in zip(self.base, self.noise)])
        self.assertTrue(r["low"] < 1 < r["high"])
        self.assertGreater(r["p"], .05)

    def test_by_hand(self):
        # logs of the ratios: 0.1, 0.2, 0.3; t(0.975, 2) = 4.3027; standard error 0.1/sqrt(3)
        r = statistics.paired([1, 1, 1], [math.exp(.1), math.exp(.2), math.exp(.3)])
        self.assertAlmostEqual(math.log(r["ratio"]), .2)
        self.assertAlmostEqual(math.log(r["low"]), .2 - 4.3027 * .1 / 3 ** .5, places=4)
        self.assertAlmostEqual(r["p"], 2 / 8)

    def test_zero_nan_single_and_equal(self):
        for a, b in [([0, 0], [1, 2]), ([1, 2], [0, 1]), ([math.nan, 1], [1, 1]), ([], [])]:
            self.assertIsNone(statistics.paired(a, b)["ratio"])
        one = statistics.paired([1], [2])
        self.assertEqual((one["ratio"], one["low"], one["p"]), (2, None, None))
        same = statistics.paired([1, 2, 3], [2, 4, 6])
        self.assertEqual((same["low"], same["high"]), (2, 2))

    def test_verdict(self):
        def r(ratio, low, high):
            return {"ratio": ratio, "low": low, "high": high}
        quiet, missing = r(1, .98, 1.02), r(None, None, None)
        self.assertEqual(statistics.verdict(r(1.1, 1.05, 1.15), quiet, True), "better")
        self.assertEqual(statistics.verdict(r(1.1, 1.05, 1.15), quiet, False), "worse")
        self.assertEqual(statistics.verdict(r(.5, .4, .6), quiet, False), "better")
        self.assertEqual(statistics.verdict(r(1.1, .95, 1.3), quiet, True), "none")         # holds 1
        self.assertEqual(statistics.verdict(r(1.1, 1.05, 1.15), r(1, .8, 1.2), True), "none")   # in the floor
        self.assertEqual(statistics.verdict(r(1.05, 1.02, 1.08), r(1.2, 1.1, 1.3), True), "none")
        self.assertEqual(statistics.verdict(missing, quiet, True), "n/a")
        self.assertEqual(statistics.verdict(quiet, missing, True), "n/a")


class Directory(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)

    def fill(self, pairs=6, engines=("native", "threads"), series=lambda rng: {}, fio_job=""):
        rng = random.Random(5)
        binaries = [{"label": x, "path": f"/{x}", "version": "QEMU <0>", "sha256": "0" * 64}
                    for x in ("base", "series")]
        (self.dir / "bench.json").write_text(json.dumps({
            "stack": "toy", "disk": "/disk", "date": "2024-01-01", "binaries": binaries,
            "host": {"cpus": 2, "cpu": "x", "kernel": "6", "accelerator": "tcg"},
            "parameters": {"rw": "randread", "bs": "4k", "iodepth": 64, "numjobs": 1, "runtime": 1,
                           "vcpus": 2, "queues": 2, "event_idx": True, "pairs": pairs, "seed": 1,
                           "fio_job": fio_job}}))
        n = 0
        for pair in range(1, pairs + 1):
            for role in statistics.ROLES:
                for engine in engines:
                    n += 1
                    values = {"syscw": 500 + rng.randrange(10), "ios": 1000,
                              "iops": 500 * math.exp(rng.gauss(0, .1))}
                    if role == "series":
                        values |= series(rng)
                    (self.dir / f"run-{n:03}.json").write_text(json.dumps(
                        {"n": n, "pair": pair, "role": role, "engine": engine,
                         "binary": binaries[role == "series"], **raw(**values)}))

    def show(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            digest.show(report.FioResults(self.dir))
        return out.getvalue(), (self.dir / "report.html").read_text()

    def test_nothing_is_written_to_what_git_tracks(self):
        with mock.patch.object(common, "ROOT", self.dir), \
                mock.patch.object(common.settings, "build", self.dir / "build"):
            page = pages.page_path(self.dir / "results" / "old")
            self.assertEqual(page, (self.dir / "build/report/old.html").resolve())
            self.assertTrue(page.parent.is_dir())
            self.assertEqual(pages.page_path(self.dir / "new"), (self.dir / "new/report.html").resolve())

    def test_a_difference_is_shown_and_noise_is_not(self):
        self.fill(series=lambda rng: {"syscw": 100 + rng.randrange(5)})
        text, page = self.show()
        self.assertEqual(len(re.findall(r"^write\(2\) per I/O .* better$", text, re.M)), 2)
        self.assertEqual(len(re.findall(r"^IOPS .* none$", text, re.M)), 2)
        for p in ["p50", "p99", "p99.9"]:
            self.assertEqual(len(re.findall(rf"^latency {p} \[us\] .* none$", text, re.M)), 2)
            self.assertEqual(page.count(f"<td>latency {p} [us]</td>"), 2)
        self.assertRegex(text, r"(?s)^fio in a guest of QEMU, series/base.*"
                               r"\* write\(2\) per I/O better: native 0\.5\d\d → 0\.1.*aio=native")
        self.assertIn("<li>write(2) per I/O better: ", page)
        self.assertIn("told from noise; by chance ", text)
        self.assertLessEqual(max(map(len, text.partition("\n\n")[0].splitlines())), digest.WIDTH)
        self.assertLessEqual(max(map(len, text.partition("aio=")[2].splitlines()[:-1])), 100)
        self.assertEqual(page.count("<svg"), 3)
        self.assertIn("QEMU &lt;0&gt;", page)
        self.assertNotRegex(page, r'(src|href)="(?!#)')       # self-contained

    def test_markdown(self):
        self.fill(series=lambda rng: {"syscw": 100 + rng.randrange(5)})
        results = report.FioResults(self.dir)
        head, rule, *rows = markdown([results], ["writes", "cpu"]).splitlines()
        self.assertEqual(head, f"|  | write(2) per I/O | {results.METRICS['cpu'][0].split(' [')[0]} | A/A: IOPS |")
        self.assertEqual(len(rows), len(results.table))
        self.assertEqual({line.count("|") for line in (head, rule, *rows)}, {5})
        self.assertRegex(rows[0].split("|")[2], r"^ \*\*0\.5\d → 0\.1\d\*\* $")
        self.assertRegex(rows[0].split("|")[3], r"^ [\d.]+ \[[\d.]+, [\d.]+\] $")
        with self.assertRaisesRegex(ToolError, "speed is no metric; there are iops"):
            markdown([results], ["iops", "speed"])

    def test_a_loss_is_called_worse(self):
        self.fill(series=lambda rng: {"syscw": 900 + rng.randrange(5)})
        self.assertRegex(self.show()[0], r"(?m)^write\(2\) per I/O .* worse$")

    def test_same_data_same_page(self):
        self.fill()
        self.assertEqual(self.show()[1], self.show()[1])

    def test_zeros_show_raw_values(self):
        self.fill(series=lambda rng: {"syscw": 0})
        text, _ = self.show()
        self.assertRegex(text, r"(?m)^write\(2\) per I/O +0\.50\d+ +0\.0000 +n/a .* n/a$")

    def test_single_pair(self):
        self.fill(pairs=1, engines=("native",))
        self.assertRegex(self.show()[0], r"(?m)^IOPS .*\[n/a\].* n/a$")

    def test_unfinished_pair_is_left_out(self):
        self.fill(pairs=3, engines=("native",))
        (self.dir / "run-009.json").unlink()        # series of pair 3
        self.assertIn("2 pairs of 3 planned", self.show()[0])

    def test_several_results_are_listed(self):
        self.fill(pairs=1)
        other = self.dir / "other"
        other.mkdir()
        (self.dir / "bench.json").rename(other / "bench.json")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            show.main(show.Options(directory=str(self.dir)))
        self.assertEqual(out.getvalue(), "other: series (<0>) / base (<0>), 2024-01-01, x\n")
        (other / "bench.json").write_text("{}")
        with self.assertRaisesRegex(ToolError, "other/bench.json is damaged"):
            show.main(show.Options(directory=str(self.dir)))

    def test_only_one_side(self):
        self.fill(pairs=1, engines=("native",))
        (self.dir / "run-003.json").unlink()
        text, _ = self.show()
        self.assertRegex(text, r"(?m)^IOPS +\d+ +n/a +n/a")
        self.assertRegex(text, r"fewer than\s+two pairs: nothing is told from noise")

    def test_own_job_is_in_the_page(self):
        self.fill(fio_job="[mine]\nrw=read\n")
        text, page = self.show()
        self.assertIn("own fio job", text)
        self.assertIn("[mine]", page)

    def test_the_last_results_are_shown(self):
        top = self.dir / "build/results"
        for name in ["20260101-100000-v1", "20260101-110000-ring-v1"]:
            (top / name).mkdir(parents=True)
        with mock.patch.object(common.settings, "build", self.dir / "build"):
            self.assertEqual(show.last(), top / "latest")
            (top / "latest").symlink_to("20260101-100000-v1")
            self.assertEqual(show.last(), top / "latest")
            (top / show.LATEST).symlink_to("20260101-110000-ring-v1")
            self.assertEqual(show.last(), top / show.LATEST)

    def test_damage_is_named(self):
        def write(name, text):
            return lambda: (self.dir / name).write_text(text)
        for damage, said in [(write("run-004.json", '{"n": 4'), "run-004.json is damaged"),
                             (write("run-004.json", "{}"), "run-004.json is damaged"),
                             (write("run-004.json", "[]"), "run-004.json is damaged"),
                             (write("bench.json", ""), "bench.json is damaged"),
                             ((self.dir / "bench.json").unlink, "bench.json is missing"),
                             (lambda: [p.unlink() for p in self.dir.glob("run-*")], "nothing measured")]:
            self.fill()
            damage()
            with self.subTest(said=said), self.assertRaisesRegex(ToolError, said) as e:
                self.show()
            self.assertNotIn("\n", str(e.exception))


if __name__ == "__main__":
    unittest.main()
