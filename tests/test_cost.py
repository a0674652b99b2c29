# SPDX-License-Identifier: GPL-2.0-or-later
"""How make bench-cost reads valgrind's output and judges the numbers."""

import pathlib
import sys
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools.measure import cost         # noqa: E402
from dctools.common import ToolError    # noqa: E402

CALLGRIND = "defer_call(): 10 sections\n==7== Events    : Ir\n==7== Collected : {}\n==7== \n"
MEMCHECK = "==7==   total heap usage: {} allocs, 16 frees, 92,661 bytes allocated\n"


def option(cmd, name):
    return int(cmd[cmd.index(name) + 1])


class Valgrind(unittest.TestCase):
    def setUp(self):
        for name, value in [("dctools.measure.cost.shutil.which", "valgrind"), ("dctools.measure.cost.run", None)]:
            patch = mock.patch(name, return_value=value)
            self.run_mock = patch.start()
            self.addCleanup(patch.stop)

    def test_start_up_and_warm_up_cancel(self):
        def fake(cmd):
            n, r = option(cmd, "-n"), option(cmd, "-r")
            return CALLGRIND.format(5000 + (r + 1) * (80 + n * (300 if "-d" in cmd else 200)))
        self.run_mock.side_effect = fake
        self.assertEqual(cost.costs("bench", "defer_call()", 8), (1680, 210, 100))
        self.assertEqual(cost.costs("bench", "linear search", 0), (80, None, None))
        self.assertIn("-l", self.run_mock.call_args[0][0])

    def test_nothing_ran(self):
        self.run_mock.return_value = CALLGRIND.format(0)
        with self.assertRaisesRegex(ToolError, "did not see the benchmark run"):
            cost.section("bench", 8)

    def test_allocations(self):
        self.run_mock.side_effect = lambda cmd: MEMCHECK.format(f"{1000 + option(cmd, '-n'):,}")
        self.assertEqual(cost.allocations("bench")[64], [1064, 1064])

    def test_output_without_the_number(self):
        self.run_mock.return_value = "==7== Segmentation fault\n"
        with self.assertRaisesRegex(ToolError, "printed nothing like"):
            cost.section("bench", 8)

    def test_missing(self):
        with mock.patch("dctools.measure.cost.shutil.which", return_value=None), \
                self.assertRaisesRegex(ToolError, "install the Debian package valgrind"):
            cost.section("bench", 8)


class Judge(unittest.TestCase):
    def test_growth(self):
        cost.judge_growth((1760, 220, 110), (215000, 211, 112))
        with self.assertRaisesRegex(ToolError, "a call costs 3634 .* 42.8 times"):
            cost.judge_growth((683, 85, 65), (3720767, 3634, 3620))
        with self.assertRaisesRegex(ToolError, "a duplicate costs 200 "):
            cost.judge_growth((1760, 220, 110), (215000, 211, 200))

    def test_allocations(self):
        cost.judge_allocations({8: [26, 26], 1024: [38, 38]})
        with self.assertRaisesRegex(ToolError, "1024 calls: 38 allocations in 10 rounds, 48 in 20"):
            cost.judge_allocations({8: [26, 26], 1024: [38, 48]})
        with self.assertRaisesRegex(ToolError, "did not count"):
            cost.judge_allocations({8: [26, 26], 1024: [26, 26]})


class PerRequest(unittest.TestCase):
    @staticmethod
    def dump(instructions, calls, number=7):
        return "".join([f"summary: {instructions}\n\nfn=(1) aio_poll\n1 90\n",
                        f"cfn=({number}) virtqueue_push\ncalls={calls} 5\n1 30\n"
                        "cfn=(3) virtqueue_push_more\ncalls=99 5\n"
                        f"1 2\nfn=(2) other\ncfn=({number})\ncalls=10 7\n1 8\n" if calls else "",
                        f"totals: {instructions}\n"])

    def test_dump(self):
        self.assertEqual(cost.read_dump(self.dump(5000, 40)), (5000, 50))
        self.assertEqual(cost.read_dump(self.dump(5000, 0)), (5000, 0))

    def test_start_does_not_count(self):
        dumps = [self.dump(9999, 0), self.dump(70000, 10), self.dump(1000, 90, 8), self.dump(2000, 190)]
        self.assertEqual(cost.per_request(map(cost.read_dump, dumps)), 10)

    def test_too_few(self):
        with self.assertRaisesRegex(ToolError, "in 2 of its dumps, too few"):
            cost.per_request(map(cost.read_dump, [self.dump(9999, 0), self.dump(70000, 10), self.dump(1000, 90)]))

    def test_table(self):
        lines = cost.io_table({"native": (12000, 12240), "threads": (20000, 19900)}).splitlines()
        self.assertEqual(lines[1].split(), ["native", "12,000", "12,240", "+240", "+2.0%"])
        self.assertEqual(lines[2].split()[-2:], ["-100", "-0.5%"])


class Table(unittest.TestCase):
    def test_lines_up(self):
        found = {(way, n): (1e3 * n + 88, n or None, n or None) for way in cost.WAYS for n in cost.CALLS}
        lines = cost.table(found).splitlines()
        self.assertEqual(len(lines), 1 + len(cost.CALLS))
        self.assertEqual(len({len(line) for line in lines}), 1)
        self.assertEqual(lines[1].split(), ["0", "88", "-", "-", "88", "-", "-"])


if __name__ == "__main__":
    unittest.main()
