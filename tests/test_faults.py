# SPDX-License-Identifier: GPL-2.0-or-later
"""faults.py: the cases say no to toy guests that misbehave."""

import collections
import errno
import hashlib
import os
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import faults
from dctools.common import ToolError

MIB = faults.MIB


def figures(**kw):
    return {"error": 0, "errors": 0, "first": 0, "written": 4 * MIB, "read": 4 * MIB, **kw}


class Cases(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)
        self.vm = mock.Mock()
        self.figures = collections.Counter()

    def run_case(self, case, fio, driver="virtio-blk-pci"):
        made = case(self.dir, "native", driver, "qemu-img")
        self.vm.disks = [made.disk]
        with mock.patch.object(faults, "fio", side_effect=fio):
            made.run(self.vm, "/dev/vda", self.figures)

    def test_report(self):
        eio = figures(errors=4, first=errno.EIO, error=errno.EIO)
        self.run_case(faults.Report, [eio, eio])
        self.assertEqual(self.figures["errors reported to the guest"], 8)
        self.run_case(faults.Report, [figures(error=errno.ENOSPC), eio], "virtio-scsi-pci")
        for bad in [figures(), {**eio, "errors": 3}, {**eio, "errors": 5}, {**eio, "first": errno.ENOSPC}]:
            for wrong in [[bad, eio], [eio, bad]]:
                with self.assertRaisesRegex(ToolError, "the guest saw"):
                    self.run_case(faults.Report, wrong)

    def test_stop(self):
        self.vm.qmp.return_value = {"status": "io-error"}

        def event(operation, no_space, action="stop"):
            return {"event": "BLOCK_IO_ERROR", "data": {"node-name": "drive0", "operation": operation,
                                                        "nospace": no_space, "action": action}}
        write, read = event("write", True), event("read", False)
        self.vm.events.return_value = [write, read, {"event": "STOP"}, read]

        def fio(*_):
            while not self.vm.qmp.called:
                pass
            return figures()
        self.run_case(faults.Stop, fio)
        self.assertEqual(self.figures["errors that stopped QEMU"], 3)
        with self.assertRaisesRegex(ToolError, "fio writes and verifies: Input/output error"):
            self.run_case(faults.Stop, lambda *_: figures(error=errno.EIO))
        for events, said in [([write, event("read", False, "report")], "action report, not stop"),
                             ([write], "no BLOCK_IO_ERROR by a read"), ([read], "no BLOCK_IO_ERROR by a write")]:
            self.vm.events.return_value = events
            with self.assertRaisesRegex(ToolError, said):
                self.run_case(faults.Stop, fio)

    def test_rings(self):
        all_of_it = figures(written=32 * MIB, read=32 * MIB)
        with mock.patch("os.setpriority") as nice:
            self.vm.iothread_tid.return_value = tid = 1 << 30      # of no process
            self.vm.check.return_value = "       0        0\n    1000      200\n"
            self.run_case(faults.Rings, [all_of_it])
            nice.assert_called_once_with(os.PRIO_PROCESS, tid, 19)
            self.vm.check.return_value = "    1000       24\n"
            with self.assertRaisesRegex(ToolError, "no more than 1024 requests"):
                self.run_case(faults.Rings, [all_of_it])
            with self.assertRaisesRegex(ToolError, "wrote .* of 32 MiB"):
                self.run_case(faults.Rings, [{**all_of_it, "read": 31 * MIB}])

    def test_short(self):
        whole, across = figures(written=8 * MIB, read=8 * MIB), figures(read=faults.LOOPS << 16)
        good = hashlib.md5(bytes(8 * MIB)).hexdigest() + "  -\n16+0 records in\n"
        with mock.patch.object(faults, "run", return_value=(0, good)):
            self.run_case(faults.Short, [whole, whole, across])
            with self.assertRaisesRegex(ToolError, "ended with Input/output error"):
                self.run_case(faults.Short, [whole, {**whole, "error": errno.EIO}])
        for bad in ["0" * 32 + "  -\n", good + "dd: error reading '/dev/vda'\n"]:
            with mock.patch.object(faults, "run", return_value=(0, bad)), \
                    self.assertRaisesRegex(ToolError, "other data than the file's and zeros"):
                self.run_case(faults.Short, [whole, whole, across])

    def test_hang(self):
        self.vm.run.return_value = (1, "")
        with self.assertRaisesRegex(ToolError, "the disk hangs: fio did not end within 0.1 s"):
            faults.run(self.vm, "fio --name=x", .1)

    def test_fio_without_a_result(self):
        self.vm.run.return_value = (0, "127\n")
        self.vm.check.return_value = "sh: fio: not found"
        with self.assertRaisesRegex(ToolError, "fio gave no JSON, but: 'sh: fio: not found'"):
            faults.fio(self.vm, "/dev/vda", "")


if __name__ == "__main__":
    unittest.main()
