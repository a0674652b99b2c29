# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of documents and mails are those of the results."""

import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import base, common, docs, series
from dctools.common import ToolError

RESULTS = "ring-v10.2-low-depth/disk"
TABLE = f"<!-- table: {RESULTS}: iops -->"
STEPS, REST = "ring-v7.2/steps", "fast x 1, event_idx on, irq batch, waits for it"
GRID = f"<!-- grid: {RESULTS}: iops: disk x 1, event_idx on, irq batch, waits for it -->"


class Documents(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.path = pathlib.Path(tmp.name) / "x.md"

    def updated(self, text):
        self.path.write_text(text)
        return docs.update(self.path)

    def test_all_are_up_to_date(self):
        for path in docs.documents():
            with self.subTest(path.name):
                self.assertTrue(docs.update(path) == path.read_text(), f"`make docs` changes {path.name}")

    def test_a_table_is_made_anew_and_the_rest_stays(self):
        for marker, rows in (TABLE, 6), (GRID, 3), (f"<!-- steps: {STEPS}: iops: {REST} -->", 12):
            with self.subTest(marker):
                text = self.updated(f"# A\n{marker}\n| 1.0 |\n| 2.0 |\n\nend\n")
                self.assertEqual(text.splitlines()[:2], ["# A", marker])
                self.assertEqual(text.count("\n| "), rows + 2)
                self.assertTrue(text.endswith(" |\n\nend\n"))
                self.assertEqual(self.updated(text), text)
                self.assertNotEqual(self.updated(text.replace("1.0", "1.1", 1)), text.replace("1.0", "1.1", 1))

    def test_what_is_told_from_the_noise_is_bold(self):
        self.addCleanup(docs.results.cache_clear)
        steps = sorted(f"{STEPS}/{path.name}" for path in (common.ROOT / "results" / STEPS).iterdir())
        for verdict, bold in ("better", True), ("worse", True), ("none", False), ("n/a", False):
            for directory in RESULTS, *steps:
                for row in docs.results(directory).table.values():
                    row["iops"]["verdict"] = verdict
            for marker in f"<!-- table: {RESULTS}: iops -->", GRID, f"<!-- steps: {STEPS}: iops: {REST} -->":
                with self.subTest(verdict, marker=marker):
                    cells = [cell for line in self.updated(f"{marker}\n").splitlines()[3:]
                             for cell in line.split("|") if " [" in cell]
                    if marker.startswith("<!-- table"):
                        cells = cells[::2]                      # A/A has no verdict
                    self.assertTrue(cells)
                    self.assertEqual({cell.startswith(" **") and cell.endswith("** ") for cell in cells}, {bold})

    def test_what_is_wanted(self):
        row = {"row": "r", "results": "disk", "depth": 4, "rest": "disk x 1, event_idx on, irq batch, waits for it",
               "iops": {"native": .5, "threads": 20}}
        file, marker = self.path.with_suffix(".json"), f"<!-- wanted: {{}}: {RESULTS.rpartition('/')[0]} -->\n"
        file.write_text(json.dumps([row]))
        text = self.updated(marker.format(file))
        self.assertRegex(text, r"\| met: 1 of 2 \| native \| threads \|\n.*\n"
                               r"\| r \| \*\*\d\.\d+ of 0\.5\*\* \| \d\.\d+ of 20 \|\n")
        row["depth"] = 5
        for content in (json.dumps([row]), "[{}]", "{"):
            file.write_text(content)
            with self.subTest(content), self.assertRaisesRegex(ToolError, "x.json does not fit the results"):
                self.updated(marker.format(file))

    def test_what_a_command_has_printed(self):
        file = self.path.with_suffix(".txt")
        file.write_text("what   base  series\n  a b  1,000     2\t-3\n")
        self.assertEqual(self.updated(f"<!-- columns: {file} -->\n"), f"""<!-- columns: {file} -->
| what | base | series |  |
| --- | --- | --- | --- |
| a b | 1,000 | 2 | -3 |

""")
        with self.assertRaisesRegex(ToolError, "No such file"):
            self.updated(f"<!-- columns: {file}x -->\n")

    def test_soaks(self):
        run = {"stack": "v9", "series_tree": "abcdefabcdefabcdef", "host": {"cpu": "Q"},
               "date": "2026-01-02 03:04 +0000",
               "minutes": 1.6, "did": {"stops": 3}, "problem": None,
               "disks": [{"driver": d, "aio": "threads", "slowest_s": s, "written_mib": 8, "verified_mib": 9}
                         for d, s in [("a", .5), ("b", 1.25)]]}
        with tempfile.TemporaryDirectory() as d:
            for name, what in ("good", run), ("bad", {**run, "disks": []}):
                pathlib.Path(d, name).write_text(json.dumps(what))
            marker = f"<!-- soak: {d}/good {d}/good -->\n"
            self.assertEqual(self.updated(marker), marker + """|  | v9 | v9 |
| --- | --- | --- |
| tree of the series | abcdefabcdef | abcdefabcdef |
| CPU | Q | Q |
| day, minutes | 2026-01-02, 2 | 2026-01-02, 2 |
| stops | 3 | 3 |
| MiB written | 16 | 16 |
| MiB verified | 18 | 18 |
| slowest request | 1.25 s (b, threads) | 1.25 s (b, threads) |
| problem | none | none |

""")
            with self.assertRaisesRegex(ToolError, "not what `make soak` writes"):
                self.updated(f"<!-- soak: {d}/bad -->\n")

    def test_losses_are_those_outside_of_the_noise(self):
        table = docs.results(RESULTS).table
        self.addCleanup(docs.results.cache_clear)
        for verdict, count in ("worse", len(table)), ("none", 0):
            for row in table.values():
                for m in docs.LOSSES:
                    row[m]["verdict"] = verdict if m == "p99" else "better"
            text = self.updated(f"<!-- losses: {RESULTS} -->\n")
            self.assertEqual(text.count("| latency p99 |"), count)
            self.assertEqual(text.count("\n| "), (count or 1) + 2)

    def test_markers_that_are_wrong(self):
        for marker, said in [(TABLE.replace("disk", "tape"), "no such results directory"),
                             (TABLE.replace("iops", "speed"), "speed is no metric"),
                             (GRID.replace("batch", "none"), "no configuration of disk has"),
                             (GRID.replace(RESULTS, "uml/v7.2"), "uml/v7.2 is not of the load generator"),
                             (f"<!-- steps: {RESULTS}: iops: {REST} -->", "no results in there"),
                             (GRID.replace(": disk x", " disk x"), "no such marker"),
                             ("<!-- tabel: x -->", "no such marker")]:
            with self.subTest(marker), self.assertRaisesRegex(ToolError, f"^x.md: .*{said}"):
                self.updated(f"{marker}\n")


class Mails(unittest.TestCase):
    """The tables of cover letters and messages are those that pin.json says."""
    GRID = {"directory": RESULTS, "rest": "disk x 1, event_idx on, irq batch, waits for it"}
    ROWS = {"directories": [RESULTS], "metrics": ["iops", "writes"]}
    STEPS = {"steps": STEPS, "rest": REST}
    UML = {"directories": ["uml/v7.2"], "metrics": ["iops", "interrupts"]}

    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.path = pathlib.Path(tmp.name) / "s" / "1-topic" / series.COVER
        self.path.parent.mkdir(parents=True)

    def updated(self, about, text):
        self.path.write_text(text)
        with mock.patch.object(base, "read_pin", return_value={"tables": {"1-topic": [about]}}) as read, \
                mock.patch.object(common, "patch_dir", return_value=self.path.parent.parent), \
                mock.patch.object(common, "stacks", return_value=["s"]):
            (path, found), = docs.mails()
        read.assert_called_once_with("s")
        self.assertEqual(path, self.path)
        return found

    def test_all_are_up_to_date(self):
        found = list(docs.mails())
        self.assertTrue(found)
        for path, text in found:
            with self.subTest(path):
                self.assertTrue(text == path.read_text(), f"`make docs` changes {path}")

    def test_a_table_is_made_anew_and_the_rest_stays(self):
        cell, bare = r"\d\.\d\d \[.*", r"\d+  \w+(?: +\d\.\d\d){5}"
        for about, head, row, lines in (self.GRID, r"  depth  native +io_uring +threads\n", rf"\w.*{cell}", 2), \
                (self.ROWS, r"  depth + IOPS +write\(2\)\n", rf"\w.*{cell}", 6), \
                (self.GRID | {"metric": "writes"}, r"  depth  native +io_uring +threads\n",
                 r"\d+(?:  \d\.\d\d, \d\.\d\d)+", 2), \
                (self.ROWS | {"directories": [f"{STEPS}/1-bh"]}, r"  depth + IOPS +write\(2\)\n", rf"\w.*{cell}", 24), \
                (self.STEPS, r"  depth  engine(?: +\w+){5}\n", bare, 12), \
                (self.STEPS | {"only": ["bh", "notify"]}, r"  depth  engine +bh +notify\n", rf"\w.*{cell}{cell}", 12), \
                (self.UML, r"  engine    IOPS +interrupts\n", rf"\w.*{cell}", 3):
            with self.subTest(about):
                text = self.updated(about, "A:\n\n  depth  x\n      1  9.99\n\nRaw data: old\nand more\n\nend\n")
                self.assertRegex(text, rf"^A:\n\n{head}(?: +{row}\n){{{lines}}}\nRaw data: results/\S+\n\nend\n$")
                self.assertLessEqual(max(map(len, text.splitlines())), 76)
                self.assertEqual(self.updated(about, text), text)

    def test_what_a_command_has_printed(self):
        file = self.path.with_suffix(".txt")
        file.write_text("calls  section  per call\n    0       66         -\n 1024  113,307       111\n")
        old = "A:\n\n  calls  x\n      1  9.99\n\nend\n"
        self.assertEqual(self.updated({"name": str(file)}, old), "A:\n\n  calls  section  per call\n"
                         "      0       66         -\n   1024  113,307       111\n\nend\n")
        with self.assertRaisesRegex(ToolError, "No such file"):
            self.updated({"name": f"{file}x"}, old)

    def test_losses(self):
        table = docs.results(RESULTS).table
        self.addCleanup(docs.results.cache_clear)
        for verdict, row, lines in ("worse", r"\w.*, disk +p99 +\d\.\d\d \[.*", len(table)), ("none", "none", 1):
            for metrics in table.values():
                for m in docs.LOSSES:
                    metrics[m]["verdict"] = verdict if m == "p99" else "better"
            text = self.updated({"losses": [RESULTS]}, "A:\n\n  depth  x\n      1  9.99\n\nRaw data: \n")
            self.assertRegex(text, rf"^A:\n\n  depth + worse +ratio\n(?: +{row}\n){{{lines}}}\nRaw data: .*\n$")

    def test_where_the_raw_data_are(self):
        """A cover letter says it of each of its tables; a patch does not."""
        top, _, rest = RESULTS.partition("/")
        tables = [self.GRID, self.ROWS | {"directories": [RESULTS, f"{top}/x"]}, self.UML, {"losses": [RESULTS]}]
        found = docs.raw_data(self.path, "A:\n\nRaw data: x\ny\n\nRaw data: z\n", tables)
        self.assertEqual(" ".join(found.split()), f"A: Raw data: results/{top}/{{{rest}, x}}, results/uml/v7.2 "
                         "Raw data: z")
        self.assertLessEqual(max(map(len, found.splitlines())), 76)
        with self.assertRaisesRegex(ToolError, r'0000-cover-letter.patch: no paragraph that begins with "Raw data: "'):
            self.updated(self.GRID, "A:\n\n  depth  x\n      1  9.99\n\nend\n")

    def test_a_patch_by_its_subject(self):
        patch = self.path.parent / "0001-x.patch"
        patch.write_text("From 0\nSubject: [PATCH 1/1] x: say how\n\nA:\n\n  depth  x\n      1  9.99\n---\n")
        with mock.patch.object(base, "read_pin", return_value={"tables": {"x: say how": [self.GRID]}}) as read, \
                mock.patch.object(common, "patch_dir", return_value=self.path.parent.parent), \
                mock.patch.object(common, "stacks", return_value=["s"]):
            (path, text), = docs.mails()
            read.return_value = {"tables": {"x: say who": [self.GRID]}}
            with self.assertRaisesRegex(ToolError, 's/pin.json: tables of "x: say who", which is neither'):
                list(docs.mails())
        self.assertEqual(path, patch)
        self.assertRegex(text, r"A:\n\n  depth  native .*\n +1 .*\n +4 .*\n---\n$")

    def test_ratios_are_rounded(self):
        self.assertEqual(docs.short(docs.ratio_text({"ratio": .9961, "low": .0939, "high": 12.3456})),
                         "1.00 [0.09, 12.35]")
        self.assertEqual(docs.short(docs.ratio_text({"ratio": None})), "n/a")

    def test_what_is_wrong(self):
        for about, text, said in [(self.GRID, "A\n", "0 tables that"),
                                  ({**self.ROWS, "metrics": ["speed"]}, "  depth  x\n  1\n", "a table is of"),
                                  ({**self.STEPS, "only": ["bh", "none"]}, "  depth  x\n  1\n",
                                   "no results in there of each of bh, none"),
                                  ({"directory": RESULTS}, "  depth  x\n  1\n", "a table is of")]:
            with self.subTest(said), self.assertRaisesRegex(ToolError, said):
                self.updated(about, text)


if __name__ == "__main__":
    unittest.main()
