# SPDX-License-Identifier: GPL-2.0-or-later
"""fuzz.py: inputs, what counts as a crash and whose it is, with a toy in place of the fuzzer."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import base, build
from dctools import fuzz
from dctools import fuzz_inputs, guest, options
from dctools.common import ToolError

ASAN = """INFO: seed
#2\tINITED cov: 900 ft: 2000 corp: 60/30Kb exec/s: 0 rss: 100Mb
#77\tNEW    cov: 911 ft: 2010 corp: 61/30Kb exec/s: 0 rss: 100Mb
==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x60200 at pc 0x55 bp 0x7f sp 0x7e
READ of size 1 at 0x60200 thread T1
    #0 0x55d in __asan_memcpy (/b/qemu-fuzz-x86_64+0x1)
    #1 0x55e in virtio_blk_free_request /w/build/../src/hw/block/virtio-blk.c:77:5
    #2 0x55f in virtio_blk_rw_complete /w/build/../src/hw/block/virtio-blk.c:88:5
    #3 0x560 in start_thread nptl/pthread_create.c:442:8
SUMMARY: AddressSanitizer: heap-use-after-free (/b/qemu-fuzz-x86_64+0x1)
"""
UBSAN = "../src/util/iov.c:7:3: runtime error: shift exponent 32 is too large for 32-bit type 'int'\n" \
        "    #0 0x5 in iov_x /w/build/../src/util/iov.c:7:3\nSUMMARY: UndefinedBehaviorSanitizer\n"
ASSERT = "qemu-fuzz-x86_64: ../src/util/defer-call.c:7: void defer_call_end(void): " \
         "Assertion `t->nesting > 0' failed.\n" \
         "==7== ERROR: libFuzzer: deadly signal\n"
GLIB = "ERROR:../src/hw/x.c:12:virtio_x: assertion failed: (a == b)\n==7== ERROR: libFuzzer: deadly signal\n"
HANG = "==7== ERROR: libFuzzer: timeout after 20 seconds\n    #0 0x5 in aio_poll /w/build/../src/util/aio-posix.c:7:3\n"
FINE = "#99\tDONE cov: 12 ft: 13\nstat::number_of_executed_units: 123\nIOThreads had 456 requests\n"

# Crashes on the first of all runs whose file $CRASHES is in, or on an input of that name
TOY = """#!/bin/sh
[ "$1" = --fuzz-target=generic-fuzz ] || exit 9
for arg; do last=$arg; done
prefix=$(echo "$*" | sed 's/.*-artifact_prefix=\\([^ ]*\\).*/\\1/')
if [ -f "$last" ] && [ -f {dir}/again ]; then cat {dir}/again; exit 77; fi
if [ -d "$last" ] && [ -f {dir}/crash ]; then
    cat {dir}/crash
    : >${{prefix}}crash-1
    echo "Test unit written to ${{prefix}}crash-1"
    [ -f {dir}/always ] || rm {dir}/crash
    exit 77
fi
sleep {sleep}
cat {dir}/fine
"""


class Seeds(unittest.TestCase):
    def test_none_is_lost(self):
        for driver in guest.DRIVERS:
            found = fuzz.seeds(driver)
            self.assertEqual(len(found), len(set(found)))
            # an operation with the separator in it would be two
            for seed in found:
                ops = seed.split(fuzz_inputs.SEPARATOR)
                self.assertTrue(all(op and op[0] in (1, 3, 5, 10, 11) for op in ops))

    def test_split_ring(self):
        data, table, available = fuzz_inputs.split_ring(0x1000, [([b"abc", b"d"], [5]), ([b"e"], [6])])[1:]
        self.assertEqual(table[:5], b"\x0a\x00\x10\x00\x00")
        descriptors = [table[5 + n:21 + n] for n in range(0, len(table) - 5, 16)]
        flags = [int.from_bytes(d[12:14], "little") for d in descriptors]
        self.assertEqual(flags, [1, 1, 2, 1, 2])
        self.assertEqual([int.from_bytes(d[14:], "little") for d in descriptors], [1, 2, 0, 4, 0])
        self.assertEqual(available[5:], bytes([0, 0, 2, 0, 0, 0, 3, 0]))

    def test_packed_ring(self):
        table = fuzz_inputs.packed_ring(0x1000, [([b"abc"], [5, 6])])[-1][5:]
        self.assertEqual([int.from_bytes(table[n + 14:n + 16], "little") for n in range(0, len(table), 16)],
                         [0x81, 0x83, 0x82])


class Said(unittest.TestCase):
    def test_where(self):
        for text, place in [
                (ASAN, "heap-use-after-free in virtio_blk_free_request < virtio_blk_rw_complete"),
                (UBSAN, "shift exponent N is too large for N-bit type 'int' in iov_x"),
                (ASSERT, "defer_call_end: assertion t->nesting > 0"), (GLIB, "virtio_x: assertion (a == b)"),
                (HANG, "timeout in aio_poll"), ("", ""), ("Killed\n", "")]:
            self.assertEqual(fuzz.where(text), place)

    def test_numbers(self):
        result = fuzz.parse(FINE)
        self.assertEqual((result.runs, result.coverage, result.requests), (123, 12, 456))
        result = fuzz.parse(ASAN)
        self.assertEqual((result.runs, result.coverage, result.requests), (77, 911, 0))


class Run(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        for name, value in [("logs", lambda: self.dir / "logs"), ("TRIES", 2), ("REPEATED", 3)]:
            self.enterContext(mock.patch.object(fuzz, name, value))
        self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        self.series, self.base = self.toy("series"), self.toy("base")
        self.fuzzer = self.enterContext(mock.patch.object(build, "fuzzer", return_value=self.base))

    def toy(self, side, sleep=".1"):
        where = self.dir / side / "build"
        where.mkdir(parents=True)
        (where / "fine").write_text(FINE)
        binary = where / build.FUZZ
        binary.write_text(TOY.format(dir=where, sleep=sleep))
        binary.chmod(0o755)
        return binary

    def says(self, side, what, text):
        (self.dir / side / "build" / what).write_text(text)

    def run_all(self, seconds=.3):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            own = fuzz.run_all("v7.2", self.series, ["virtio-blk-pci"], ["null", "native"], seconds)
        return own, out.getvalue()

    def test_nothing_found(self):
        own, out = self.run_all()
        self.assertEqual(own, [])
        self.assertRegex(out, r"^virtio-blk-pci: \d+ runs, \d+ s, coverage 12, "
                              r"\d+ requests in the IOThread, crashes: 0\n$")
        self.fuzzer.assert_not_called()

    def test_of_the_series(self):
        self.says("series", "crash", ASAN)
        self.says("series", "again", ASAN)
        with mock.patch.object(fuzz, "SEARCH", .2):
            own, out = self.run_all()
        self.assertEqual([c.where for c in own], [fuzz.where(ASAN)])
        self.assertRegex(out, r"SERIES: heap-use-after-free in virtio_blk.*\n.*1 times, alone 2 of 2; base: not seen; "
                              r"AIO=null /.*/crash-1\n")
        self.assertTrue(own[0].path.with_name("crash-1.log").is_file())

    def test_of_the_base(self):
        self.says("series", "crash", ASSERT)
        self.says("base", "again", ASSERT)
        own, out = self.run_all()
        self.assertEqual(own, [])
        self.assertIn("base too: defer_call_end", out)
        self.assertIn("alone 0 of 2; base: 2 of 2 with this input", out)

    def test_of_the_base_after_a_while(self):
        self.says("series", "crash", ASSERT)
        self.says("base", "crash", ASSERT)
        own, out = self.run_all()
        self.assertEqual(own, [])
        self.assertIn("base: found with the corpus of the series", out)

    def test_elsewhere_on_the_base(self):
        self.says("series", "crash", ASSERT)
        self.says("base", "again", ASAN)
        with mock.patch.object(fuzz, "SEARCH", .2):
            self.assertEqual(len(self.run_all()[0]), 1)

    def test_check(self):
        check = lambda: fuzz.check("v7.2", self.series, "virtio-blk-pci", .3)
        check()
        for side in ("series", "base"):
            self.says(side, "crash", ASSERT)
        check()
        self.says("series", "crash", ASSERT)
        with mock.patch.object(fuzz, "SEARCH", .2), \
                self.assertRaisesRegex(ToolError, "defer_call_end: .*, see .*crash-1"):
            check()

    def test_again_and_again(self):
        self.says("series", "crash", HANG)
        self.says("series", "always", "")
        self.says("base", "again", HANG)
        self.assertIn(f"{2 * fuzz.REPEATED} times", self.run_all(60)[1])

    def test_no_request(self):
        self.says("series", "fine", FINE.replace("456", "0"))
        with self.assertRaisesRegex(ToolError, "virtio-blk-pci null: no request came to the IOThread"):
            self.run_all()

    def test_neither_end_nor_crash(self):
        self.says("series", "crash", "qemu-fuzz-x86_64: no such device\n")
        with self.assertRaisesRegex(ToolError, "ended with 77, see .*null.log"):
            self.run_all()

    def test_does_not_end(self):
        stuck = self.toy("stuck", 60)
        with mock.patch.object(fuzz, "GRACE", .1), self.assertRaisesRegex(ToolError, "ended with timeout"):
            fuzz.fuzz(stuck, "virtio-blk-pci", "null", .1, self.dir / "x")

    def test_sabotage(self):
        with self.assertRaisesRegex(ToolError, "`overflow` was not found in 123 runs, but nothing"):
            fuzz.must_notice(self.series, "virtio-blk-pci", "overflow")
        self.says("series", "crash", UBSAN)
        with self.assertRaisesRegex(ToolError, "`overflow` was not found .* but shift exponent"):
            fuzz.must_notice(self.series, "virtio-blk-pci", "overflow")
        self.says("series", "crash", UBSAN)
        fuzz.must_notice(self.series, "virtio-blk-pci", "undefined")


class Input(unittest.TestCase):
    def refuses(self, said, **variables):
        with mock.patch.object(build, "fuzzer") as fuzzer, self.assertRaisesRegex(ToolError, said):
            fuzz.main(options.load(fuzz.Options, variables))
        fuzzer.assert_not_called()

    def test_bad_variables(self):
        self.refuses("MINUTES=abc: give a number", MINUTES="abc")
        self.refuses("MINUTES=0: give a number", MINUTES="0")
        self.refuses("DRIVER=virtio-net-pci: give one or more of virtio-blk-pci", DRIVER="virtio-net-pci")
        self.refuses("AIO=fast: give one or more of null", AIO="fast")
        self.refuses("SIDE=both: give one of series base", SIDE="both")
        self.refuses("INPUT=/nonexistent: no such file", INPUT="/nonexistent")
        self.refuses("INPUT= wants one DRIVER= and one AIO=", INPUT=__file__)

    def test_flags_of_gcc_are_not_for_clang(self):
        with tempfile.TemporaryDirectory() as src, \
                mock.patch.object(base, "read_pin", return_value={"configure": ["--x", "--extra-cflags=-fgcc"]}):
            (pathlib.Path(src) / "configure").write_text("")
            for cc, wanted in [("--cc=clang", ["--x"]), ("--cc=gcc", ["--x", "--extra-cflags=-fgcc"])]:
                self.assertEqual(build.known_arguments("v0", pathlib.Path(src), [cc])[1:], wanted)

    def test_a_stack_without_patch(self):
        with mock.patch.object(build.series, "update_tree", return_value=(None, None)), \
                self.assertRaisesRegex(ToolError, "no .*tests/fuzz-v0.patch"):
            build.fuzzer("v0", "series")


if __name__ == "__main__":
    unittest.main()
