# SPDX-License-Identifier: GPL-2.0-or-later
"""soak.py: what must not pass does not, on toy data."""

import contextlib
import errno
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import common
from dctools import soak
from dctools.common import ToolError

AREA = soak.AREA_MIB << 20


def round_of_fio(written=AREA, verified=AREA, slowest=1.0, error=0, said=""):
    side = lambda size, seconds: {"io_bytes": size, "lat_ns": {"max": int(seconds * 1e9)}}
    job = {"jobname": "soak", "error": error, "write": side(written, slowest), "read": side(verified, .5)}
    return said + json.dumps({"fio version": "fio-3.33", "jobs": [job]}, indent=2) + "\n"


class Judge(unittest.TestCase):
    def test_good_round(self):
        self.assertEqual(soak.judge(round_of_fio()), (soak.AREA_MIB, soak.AREA_MIB, 1.0, 0, ""))
        # fio counts what it would have written
        self.assertEqual(soak.judge(round_of_fio(), only_verify=True)[:2], (0, soak.AREA_MIB))

    def test_checksum_error(self):
        said = "verify: bad header offset 4096, wanted 8192 at file /dev/vda\n"
        self.assertEqual(soak.judge(round_of_fio(error=errno.EILSEQ, said=said))[3:], (errno.EILSEQ, said.strip()))

    def test_not_all_was_verified(self):
        for written, verified in [(AREA, 0), (AREA, AREA - 4096), (AREA - 4096, AREA)]:
            with self.subTest(written=written, verified=verified):
                *_, error, said = soak.judge(round_of_fio(written, verified))
                self.assertEqual(error, errno.EPROTO)
                self.assertIn("MiB verified", said)
        self.assertTrue(soak.judge(round_of_fio(verified=0), only_verify=True)[3])

    def test_no_result(self):
        self.assertEqual(soak.judge("fio: pid=0, err=2/file:filesetup.c:700, func=open(/dev/vdb)\n")[3], errno.ENOENT)
        for text in ["", "Killed\n", round_of_fio()[:80], '{\n "jobs": []\n}']:
            self.assertEqual(soak.judge(text)[3], errno.EPROTO, text)

    def test_console(self):
        for line in ["[ 99.1] INFO: task fio:77 blocked for more than 30 seconds.",
                     "[ 99.1] I/O error, dev vda, sector 8 op 0x1:(WRITE) flags 0x8800",
                     "[ 99.1] Buffer I/O error on dev vda, logical block 0, async page read",
                     "[ 99.1] Kernel panic - not syncing: Attempted to kill init!",
                     "[ 99.1] BUG: kernel NULL pointer dereference"]:
            self.assertEqual(soak.console_problem(f"good\r\n{line}\r\nmore\r\n"), line)
        self.assertIsNone(soak.console_problem("init: all is well\n"))

    def test_console_of_a_pulled_disk(self):
        line = "[ 9.1] I/O error, dev vdb, sector 8 op 0x1:(WRITE)\n"
        self.assertIsNone(soak.console_problem(line, pulled="vdb"))
        for pulled, text in [("vda", line), ("vd", line), ("vdb", "task vdb blocked for more than 30 seconds")]:
            self.assertTrue(soak.console_problem(text, pulled))


class Toy(unittest.TestCase):
    """A soak of two disks, without a guest."""

    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.soak = soak.Soak("/nothing", 1, [("virtio-blk-pci", "native"), ("virtio-scsi-pci", "threads")],
                              pathlib.Path(d.name), 30)


class Take(Toy):
    """Rounds of fio as the guest sends them."""

    def take(self, *rounds, **kw):
        self.soak.take("".join(f"== result.{n}.{r}\n{text}" for n, r, text in rounds) + "== \n/ended.1\n", **kw)

    def test_counts(self):
        self.take((0, 10, round_of_fio(slowest=2)), (0, 9, round_of_fio()), (1, 1, round_of_fio()))
        self.assertEqual([d["verified_mib"] for d in self.soak.done], [2 * soak.AREA_MIB, soak.AREA_MIB])
        self.assertEqual(self.soak.done[0]["slowest_s"], 2)
        self.assertEqual([r for _, r in self.soak.settled], [10, 1])

    def test_error(self):
        with self.assertRaisesRegex(ToolError, "virtio-scsi-pci aio=threads: fio round 3: Input/output error"):
            self.take((0, 1, round_of_fio()), (1, 3, round_of_fio(error=errno.EIO)))

    def test_errors_of_several_disks(self):
        with self.assertRaisesRegex(
                ToolError, "aio=native: fio round 2: .*; virtio-scsi-pci aio=threads: fio round 3: "):
            self.take((0, 2, round_of_fio(error=errno.EIO)), (1, 3, round_of_fio(error=errno.EIO)))

    def test_error_of_a_pulled_disk(self):
        self.take((1, 3, round_of_fio(error=errno.EIO)), pulled=1)
        self.assertEqual(self.soak.done[1]["rounds"], 0)
        with self.assertRaises(ToolError):
            self.take((0, 3, round_of_fio(error=errno.EIO)), pulled=1)

    def test_slow_request(self):
        self.take((0, 1, round_of_fio(slowest=29)))
        with self.assertRaisesRegex(ToolError, "a request took 31.0 s"):
            self.take((0, 2, round_of_fio(slowest=31)))

    def test_seed(self):
        def order(seed):
            return soak.Soak("/nothing", seed, [], self.soak.dir, 30).random.sample(soak.OPS, len(soak.OPS))
        self.assertEqual(order(5), order(5))
        self.assertGreater(len({tuple(order(s)) for s in range(10)}), 1)


class Alive(Toy):
    """Which disk does nothing, and which IOThread too much."""

    def setUp(self):
        super().setUp()
        self.soak.collect = mock.Mock()
        vm = self.soak.vm
        vm.qmp, vm.check, vm.paused, vm.busy = self.stats, mock.Mock(), contextlib.nullcontext, mock.Mock()
        vm.starved, vm.run = mock.Mock(return_value=0), mock.Mock(return_value=(0, "2 in flight"))
        self.soak.patience = 0
        self.counts = {}        # requests of each disk: these, and each time so many more

    def stats(self, command):
        self.assertEqual(command, "query-blockstats")
        self.counts = {qdev: (n + more, more) for qdev, (n, more) in self.counts.items()}
        return [{"node-name": "target", "stats": {}}] + [
            {"qdev": qdev, "stats": {"rd_operations": n, "wr_operations": 3}} for qdev, (n, _) in self.counts.items()]

    def alive(self, blk, scsi):
        """The devices as 7.2 and 10.2 name them: a virtio-blk's has no id, an scsi-hd has one."""
        self.counts = {"/machine/peripheral/disk0/virtio-backend": (10, blk), "lun1": (10, scsi)}
        self.soak.alive()

    def test_progress(self):
        self.alive(1, 1)

    def test_a_disk_that_hangs(self):
        for blk, scsi, said in [(0, 1, "^virtio-blk-pci aio=native: the disk hangs[^;]*$"),
                                (1, 0, "^virtio-scsi-pci aio=threads: the disk hangs[^;]*$"),
                                (0, 0, "^virtio-blk-pci aio=native: the disk hangs.*; "
                                       "virtio-scsi-pci aio=threads: the disk")]:
            with self.subTest(said), mock.patch("time.sleep") as sleep, self.assertRaisesRegex(ToolError, said):
                self.alive(blk, scsi)
            sleep.assert_not_called()
            self.assertEqual((self.soak.dir / "hang.txt").read_text(), "2 in flight")

    def test_a_disk_that_is_not_found(self):
        self.soak.patience = 0
        self.soak.vm.disk = mock.Mock(side_effect=ToolError("QEMU ended with -11"))
        with self.assertRaisesRegex(ToolError, "^virtio-scsi-pci aio=threads: QEMU ended with -11"):
            self.soak.find(1)
        self.soak.vm.disk = mock.Mock(return_value=("/dev/vdb", "virtio2"))
        self.assertEqual(self.soak.find(1), "vdb")

    def test_time_without_a_cpu_does_not_count(self):
        self.soak.vm.starved.side_effect = [0, 100, 100, 0]
        with mock.patch("time.sleep") as sleep, self.assertRaisesRegex(ToolError, "hangs"):
            self.alive(0, 1)
        self.assertEqual(sleep.call_count, 2)

    def test_a_hang_begins_when_stragglers_have_ended(self):
        clock, requests = iter(range(100)), mock.Mock(side_effect=[[5, 5], [5, 6], [5, 7], *[[5, 7]] * 50])
        # after the last request the time of two looks in which a thread got no CPU does not count
        starved = mock.Mock(side_effect=[0, 0, 0, 0, 0, 1, 2, *[2] * 50])
        with mock.patch.multiple(self.soak.vm, limit=mock.Mock(), requests=requests, starved=starved), \
                mock.patch("time.sleep"), mock.patch("time.monotonic", lambda: next(clock)):
            self.soak.hang()
        self.assertEqual(requests.call_count, 6)

    def test_a_disk_that_is_not_listed(self):
        self.counts = {"/machine/peripheral/disk0/virtio-backend": (10, 1), "lun10": (10, 1)}
        with self.assertRaisesRegex(ToolError, "query-blockstats does not list lun1$"):
            self.soak.alive()

    def test_idle(self):
        self.soak.vm.busy.side_effect = [[.9, .9], [0, .9], [0, .1], [.1, 0]]       # two need a moment to come to rest
        self.soak.idle()
        self.assertEqual(self.soak.vm.busy.call_count, 4)
        for looks, said in [([[.1, .9]] * 3, "^virtio-scsi-pci aio=threads: without requests its IOThread uses 90% "
                                             "of a CPU, the guest is running$"),
                            ([[0, 0]] + [[.8, 0]] * 3, "^virtio-blk-pci aio=native: .* uses 80% .* is paused$"),
                            ([[.8, .9]] * 3, "native: .*; .*threads: ")]:
            self.soak.vm.busy.side_effect = looks
            with self.subTest(said), self.assertRaisesRegex(ToolError, said):
                self.soak.idle()


class BadInput(unittest.TestCase):
    def test_variables(self):
        for name, value, said in [("MINUTES", "0", "MINUTES=0: give a number"),
                                  ("MINUTES", "long", "MINUTES=long: give a number"),
                                  ("MINUTES", "nan", "MINUTES=nan: give a number"),
                                  ("SEED", "x", "SEED=x: give a whole number"),
                                  ("OPS", "stops dance", "give one or more of stops")]:
            env = {k: v for k, v in os.environ.items() if k not in ("MINUTES", "SEED", "OPS")}
            p = subprocess.run([common.ROOT / "dc", "soak"], env={**env, name: value},
                               capture_output=True, text=True)
            self.assertEqual((p.returncode, p.stderr.count("\n")), (1, 1), p.stderr)
            self.assertIn(said, p.stderr)


class Notices(unittest.TestCase):
    """must_notice(), which `make check` runs in a real guest, says no itself."""

    def test_it_does(self):
        hang = [f"{driver} aio={aio}: the disk hangs: no request for 5 s"
                for driver in ["virtio-blk-pci", "virtio-scsi-pci"] for aio in ["native", "io_uring", "threads"]]
        with mock.patch.object(soak, "soak", side_effect=ToolError("; ".join(hang))) as ran:
            soak.must_notice("/nothing", "hang", "/nowhere")
        ran.assert_called_once()
        for n in range(len(hang)):
            with mock.patch.object(soak, "soak", side_effect=ToolError("; ".join(hang[:n] + hang[n + 1:]))), \
                    self.assertRaises(ToolError):
                soak.must_notice("/nothing", "hang", "/nowhere")

    def test_it_does_not(self):
        for effect, said in [(None, "found nothing wrong"), (ToolError("no space"), "no space")]:
            with mock.patch.object(soak, "soak", side_effect=effect), self.assertRaisesRegex(ToolError, said):
                soak.must_notice("/nothing", "damage", "/nowhere")

    def test_figures_of_a_failure(self):
        shown = []
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(io.StringIO()), \
                self.assertRaisesRegex(ToolError, "no QEMU at"):
            soak.soak("/nothing", 1, d, 5, show=shown.append)
        self.assertIn("seed 5: no QEMU at", soak.table(shown[0]))
        self.assertIn("virtio-scsi-pci io_uring", soak.table(shown[0]))


if __name__ == "__main__":
    unittest.main()
