# SPDX-License-Identifier: GPL-2.0-or-later
"""sigterm.py: what hangs is counted, what crashes is a failure; on toy guests."""

import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import guest
from dctools import sigterm
from dctools.common import ToolError


class Rounds(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)
        self.vm = mock.Mock()
        self.vm.disk.return_value = ("/dev/vda", "virtio1")
        self.vm.requests.return_value = [1] * sigterm.DISKS

    def rounds(self, ends):
        """The count of as many rounds as there are ends."""
        self.vm.shutdown.side_effect = ends
        with mock.patch.object(guest, "Guest", return_value=self.vm) as made, mock.patch("time.sleep"), \
                mock.patch("dctools.sigterm.progress"):
            try:
                return sigterm.rounds("/qemu", len(ends), self.dir)
            finally:
                self.assertEqual([d.aio for d in made.call_args[0][1]], ["native", "io_uring", "threads"] * 2 +
                                 ["native", "io_uring"])
                self.vm.save.assert_called_once_with(self.dir / "state")
                self.vm.kill.assert_called_once_with()

    def test_hangs_are_counted(self):
        self.assertEqual(self.rounds([None, guest.Hang("did not end"), None, guest.Hang("did not end")]), 2)
        self.assertEqual(self.vm.resume.mock_calls, [mock.call(self.dir / "state")] * 4)
        self.vm.shutdown.assert_called_with(sigterm.PATIENCE, "SIGTERM")

    def test_a_crash_is_no_hang(self):
        with self.assertRaisesRegex(ToolError, "ended with -11"):
            self.rounds([None, ToolError("QEMU ended with -11"), None])

    def test_a_disk_that_does_not_read(self):
        self.vm.requests.return_value = [1, 0, 1]
        with mock.patch("time.sleep"), mock.patch("time.monotonic", side_effect=[0, 0, 1000]), \
                self.assertRaisesRegex(ToolError, "disk 1 does not read"):
            sigterm.wait_for_reads(self.vm)


if __name__ == "__main__":
    unittest.main()
