# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents' tables are those of the results."""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import common, docs
from dctools.common import ToolError

RESULTS = "ring-v10.2-low-depth/disk"
TABLE = f"<!-- table: {RESULTS}: iops -->"
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
        for marker, rows in (TABLE, 6), (GRID, 3):
            with self.subTest(marker):
                text = self.updated(f"# A\n{marker}\n| 1.0 |\n| 2.0 |\n\nend\n")
                self.assertEqual(text.splitlines()[:2], ["# A", marker])
                self.assertEqual(text.count("\n| "), rows + 2)
                self.assertTrue(text.endswith(" |\n\nend\n"))
                self.assertEqual(self.updated(text), text)
                self.assertNotEqual(self.updated(text.replace("1.0", "1.1", 1)), text.replace("1.0", "1.1", 1))

    def test_what_is_wanted(self):
        row = {"row": "r", "results": (common.ROOT / "results" / RESULTS).as_posix(), "depth": 4,
               "rest": "disk x 1, event_idx on, irq batch, waits for it", "iops": {"native": .5, "threads": 2}}
        file = self.path.with_suffix(".json")
        file.write_text(json.dumps([row]))
        text = self.updated(f"<!-- wanted: {file} -->\n")
        self.assertRegex(text, r"\| met: 1 of 2 \| native \| threads \|\n.*\n\| r \| \*\*1\.\d+ of 0\.5\*\* \| \d\.\d+ of 2 \|\n")
        row["depth"] = 5
        for content in (json.dumps([row]), "[{}]", "{"):
            file.write_text(content)
            with self.subTest(content), self.assertRaisesRegex(ToolError, "x.json does not fit the results"):
                self.updated(f"<!-- wanted: {file} -->\n")

    def test_markers_that_are_wrong(self):
        for marker, said in [(TABLE.replace("disk", "tape"), "no such results directory"),
                             (TABLE.replace("iops", "speed"), "speed is no metric"),
                             (GRID.replace("batch", "none"), "no configuration of disk has"),
                             (GRID.replace(RESULTS, "uml/v7.2"), "uml/v7.2 is not of the load generator"),
                             (GRID.replace(": disk x", " disk x"), "no such marker"),
                             ("<!-- tabel: x -->", "no such marker")]:
            with self.subTest(marker), self.assertRaisesRegex(ToolError, f"^x.md: .*{said}"):
                self.updated(f"{marker}\n")


if __name__ == "__main__":
    unittest.main()
