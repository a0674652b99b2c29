# SPDX-License-Identifier: GPL-2.0-or-later
"""How make check judges what tests print."""

import contextlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import check
from dctools.check import patches, sanitizers, sources, units
from dctools.check.results import Results, must_fail, must_say
from dctools import common, environment, options

RACE = """==================
WARNING: ThreadSanitizer: data race (pid=7)
  Write of size 4 at 0x7b by thread T1:
    #0 {0} (test+0x1)
    #1 flush ../src/util/defer-call.c:99 (test+0x2)

  Previous read of size 4 at 0x7b by main thread:
    #0 {1} (test+0x3)

SUMMARY: ThreadSanitizer: data race ../src/util/async.c:1 in somebody
==================
"""
FILES = ("/defer-call.c", "/test-defer-call.c")


class Races(unittest.TestCase):
    def test_either_side_counts(self):
        ours, other = "grow ../src/util/defer-call.c:5", "aio_bh_poll ../src/util/async.c:6"
        self.assertEqual(sanitizers.races(RACE.format(ours, other), FILES), ["grow"])
        self.assertEqual(sanitizers.races(RACE.format(other, ours), FILES), ["grow"])

    def test_others_and_mere_callers_do_not(self):
        other = "aio_bh_poll ../src/util/async.c:6"
        self.assertEqual(sanitizers.races(RACE.format(other, other), FILES), [])
        self.assertEqual(sanitizers.races("ok 1 /defer-call/order\n", FILES), [])


class Tap(unittest.TestCase):
    def judge(self, text, wanted=()):
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            log = pathlib.Path(d) / "log"
            log.write_text(text)
            results = Results()
            results.tap("t", log, wanted)
        return results.passed, results.failed

    def test_passes(self):
        self.assertEqual(self.judge("ok 1 /a\nok 2 /b\n", ["/b"]), (2, []))

    def test_says_no(self):
        self.assertEqual(self.judge("ok 1 /a\nnot ok 2 /b\n"), (1, ["t /b"]))
        self.assertEqual(self.judge("ok 1 /a # SKIP no engine\n"), (0, ["t /a"]))
        self.assertEqual(self.judge("ok 1 /a\n", ["/a", "/c"]), (1, ["t /c"]))
        self.assertEqual(self.judge("Bail out!\n"), (0, ["t"]))


class MustFail(unittest.TestCase):
    def test_says_no(self):
        def fail():
            raise common.ToolError("the disk hangs")
        must_fail("hangs", fail)
        with self.assertRaisesRegex(common.ToolError, "the disk hangs"):
            must_fail("crash", fail)
        with self.assertRaisesRegex(common.ToolError, "nothing was found wrong"):
            must_fail("hangs", lambda: None)


class MustSay(unittest.TestCase):
    def test_says_no(self):
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(io.StringIO()):
            log, results = pathlib.Path(d, "log"), Results()
            log.write_text("Assertion `!x.notify_deferred' failed\n")
            must_say(results, "a", log, "Assertion .*notify_deferred")
            must_say(results, "b", log, "AddressSanitizer")
        self.assertEqual((results.passed, results.failed), (1, ["b"]))


class Parts(unittest.TestCase):
    def run_parts(self, parts, beside):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
                mock.patch.multiple(check, PARTS=parts, BESIDE=beside):
            return check.run_parts(list(parts), "stack")

    def test_all_count(self):
        def good(results, stack):
            """Passes."""
            results.add("good")

        def bad(results, stack):
            raise common.ToolError("no")
        found = self.run_parts({"a": good, "b": bad, "c": good, "d": bad},
                               {"c": lambda stack: None, "d": lambda stack: None})
        self.assertEqual((found.passed, sorted(found.failed)), (2, ["b", "d"]))
        self.assertEqual(sorted(t[:2] for t in found.times), [("stack", part) for part in "abcd"])

    def test_cpu_time_of_children_counts(self):
        def busy(results, stack):
            subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < .3: pass"], check=True)

        def idle(results, stack):
            time.sleep(.3)
        for beside in {}, dict.fromkeys(["busy", "idle"], lambda stack: None):
            times = {t[1]: t for t in self.run_parts({"busy": busy, "idle": idle}, beside).times}
            self.assertGreater(times["busy"][2], .2)
            self.assertLess(times["idle"][2], .2)
            self.assertGreaterEqual(times["idle"][3], .3)

    def test_what_runs_for_long_is_told(self):
        def slow(results, stack):
            results.do("the slow one", time.sleep, .3)
        for beside in {}, {"a": lambda stack: None}:
            with tempfile.TemporaryFile() as said, mock.patch.object(check, "SIGN_OF_LIFE", .1):
                stderr = os.dup(2)
                os.dup2(said.fileno(), 2)
                try:
                    found = self.run_parts({"a": slow, "b": lambda results, stack: results.add("quick")}, beside)
                finally:
                    os.dup2(stderr, 2)
                    os.close(stderr)
                said.seek(0)
                self.assertRegex(said.read(), rb"(\[..:..:..\] part a has run for 0 min: the slow one\n){2,}")
            self.assertEqual((found.passed, found.failed), (2, []))
            self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0, 0))

    def test_table(self):
        table = check.time_table([("v1", "unit", 1.6, 9), ("v2", "qtest", 20, 3)]).split("\n")
        self.assertEqual([line.split() for line in table[1:]],
                         [["qtest", "v2", "20", "3"], ["unit", "v1", "2", "9"], ["all", "-", "22"]])

    def test_cannot_be_prepared(self):
        def unprepared(stack):
            raise common.ToolError("no")
        found = self.run_parts({"a": lambda results, stack: results.add("never")}, {"a": unprepared})
        self.assertEqual((found.passed, found.failed), (0, ["a"]))

    def test_killed(self):
        def die(results, stack):
            os.kill(os.getpid(), signal.SIGKILL)
        found = self.run_parts({"a": die}, {"a": lambda stack: None})
        self.assertEqual((found.passed, found.failed), (0, ["a"]))


class Stacks(unittest.TestCase):
    """make check without STACK=: a process for each."""

    def check(self, part):
        """The results of a part of a stack, and what is printed."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
                mock.patch.multiple(check, PARTS={"unit": part}, BESIDE={}), tempfile.TemporaryDirectory() as d, \
                mock.patch.object(common.settings, "build", pathlib.Path(d)):
            return check.in_a_process("v1", ["unit"])

    def test_counts(self):
        def part(results, stack):
            results.add(f"a of {stack} and {common.settings.stack}")
            results.add("b", "no")
        found = self.check(part)
        self.assertEqual((found.passed, found.failed, found.times[0][:2]), (1, ["v1 b"], ("v1", "unit")))
        self.assertEqual((common.settings.stack, common.settings.label), ("", ""))      # here nothing has changed

    def test_a_process_that_ends_is_a_failure(self):
        found = self.check(lambda results, stack: os.kill(os.getpid(), 9))
        self.assertEqual((found.passed, found.failed), (0, ["v1"]))

    def test_what_goes_wrong_before_a_part_is_a_failure_too(self):
        def no_space(stack):
            raise OSError("no space")
        with mock.patch.multiple(check, PARTS={"unit": None}, BESIDE={"unit": no_space}), \
                contextlib.redirect_stdout(io.StringIO()) as out, tempfile.TemporaryDirectory() as top, \
                mock.patch.object(common.settings, "build", pathlib.Path(top)):
            found = check.in_a_process("v1", ["unit"])
        self.assertEqual((found.passed, found.failed), (0, ["v1"]))
        self.assertIn("FAIL v1: OSError: no space", out.getvalue())

    def test_each_stack_and_all_its_parts_count(self):
        def one(stack, parts):
            found = Results()
            found.add(f"{stack} {' '.join(parts)}", "no" if stack == "v2" else None)
            found.left_out.append(f"half of {stack}")
            return found
        with mock.patch.object(common, "stacks", return_value=["v1", "v2"]), \
                mock.patch("dctools.base.read_pin", lambda stack: {"check": ["unit", stack]}), \
                mock.patch.object(check, "in_a_process", one), contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertEqual(check.main(check.Options()), 1)
            self.assertEqual(out.getvalue().splitlines()[-2:], ["failed: v2 unit", "1 passed, 1 failed"])
            self.assertIn("left out: half of v1; half of v2; parts fuzz. FULL=1 runs them", err.getvalue())
            with self.assertRaisesRegex(common.ToolError, "ONLY=loadgen: not for v1"), \
                    mock.patch.object(common.settings, "stack", "v1"):
                check.main(check.Options(only=("loadgen",)))

    def test_parts_that_fit(self):
        with mock.patch("dctools.base.read_pin", lambda stack: {"check": ["unit", "qtest"]}):
            self.assertEqual(check.wanted_parts([], "v1"), ["unit", "qtest"])
            self.assertEqual(check.wanted_parts(["loadgen", "qtest"], "v1"), ["qtest"])
        with mock.patch("dctools.base.read_pin", lambda stack: {}):
            self.assertEqual(check.wanted_parts([], "v1"), [p for p in check.PARTS if p not in check.LONG])
            self.assertEqual(check.wanted_parts(["fuzz"], "v1"), ["fuzz"])
            self.assertEqual(check.wanted_parts([], "v1", full=True), list(check.PARTS))
        with self.assertRaisesRegex(common.ToolError, "ONLY=nonsense: give one or more of tools"):
            options.load(check.Options, {"ONLY": "nonsense"})

    def test_oldest_first(self):
        with tempfile.TemporaryDirectory() as d, mock.patch.object(common, "ROOT", pathlib.Path(d)), \
                mock.patch.object(common.settings, "stack", ""):
            for name in ["v10.2", "v7.2", "v8.0"]:
                (pathlib.Path(d) / "patches" / name).mkdir(parents=True)
                (pathlib.Path(d) / "patches" / name / "pin.json").write_text("{}")
            self.assertEqual(common.stacks(), ["v7.2", "v8.0", "v10.2"])
            self.assertEqual(common.stack_name(), "v7.2")


class Copies(unittest.TestCase):
    def test_what_fails_twice_has_failed(self):
        with tempfile.TemporaryDirectory() as d, mock.patch.object(units, "logs", lambda: pathlib.Path(d)), \
                mock.patch.object(units, "progress") as progress:
            copies = pathlib.Path(d, "copies")
            copies.mkdir()
            for name, script in [("good", "exit 0"), ("bad", "exit 3"),
                                 ("busy", "[ -e ../again ] && exit 0; : >../again; exit 1")]:
                (copies / name).write_text(f"#!/bin/sh\n{script}\n")
                (copies / name).chmod(0o755)
            failed = units.run_copies(copies, "x", dict(os.environ))
            self.assertRegex(" ".join(failed), r"^bad: 3, see \S+x-bad.log$")
            self.assertEqual(progress.call_count, 2)
            self.assertFalse(copies.exists())


class Patches(unittest.TestCase):
    """What has been tested is left out, and nothing else is."""

    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        top = pathlib.Path(d.name)
        (top / "patches/v1").mkdir(parents=True)
        self.trees, self.built, self.broken = ["t1", "t2"], [], []
        self.pin = {}
        self.base = mock.Mock(commit="base", tree="base-tree", pinned=True)
        for p in [mock.patch.object(common, "ROOT", top), mock.patch.object(common.settings, "build", top / "build"),
                  mock.patch.object(common.settings, "full", False),
                  mock.patch("dctools.base.read_pin", lambda stack: self.pin),
                  mock.patch("dctools.series.update_tree", return_value=(self.base, "tip")),
                  mock.patch.object(patches, "git", self.git), mock.patch.object(patches.Patches, "build", self.build),
                  mock.patch.object(patches, "run_copies", return_value=[])]:
            p.start()
            self.addCleanup(p.stop)

    def git(self, repo, command, *args):
        if command == "ls-tree":
            return self.files(args[-1])
        self.assertEqual((command, args[-1]), ("log", "base..tip"))
        return "".join(f"c-{t} {t} subject of {t}\n" for t in self.trees)

    def files(self, tree):
        return f"100644 blob {tree}\tblock.c\n100644 blob 1\ttests/qemu-iotests/109.out\n"

    def build(self, name, commit):
        self.built.append(commit)
        if commit in self.broken:
            raise common.ToolError("ninja failed")
        return pathlib.Path(name), {}

    def check(self):
        """(commits that were built, what has passed, what has failed, what is left out)"""
        found, self.built = Results(), []
        with contextlib.redirect_stdout(io.StringIO()):
            patches.check_patches(found, "v1")
        return self.built, found.passed, found.failed, found.left_out

    def test_once_is_enough(self):
        self.assertEqual(self.check(), (["c-t1", "c-t2"], 2, [], []))
        left = "v1: 2 of 2 patches, whose trees have been built and tested before"
        self.assertEqual(self.check(), ([], 1, [], [left]))
        with mock.patch.object(common.settings, "full", True):
            self.assertEqual(self.check(), (["c-t1", "c-t2"], 2, [], []))

    def test_another_tree_is_tested(self):
        self.check()
        self.trees = ["t1", "t3", "t2"]
        self.assertEqual(self.check()[0], ["c-t3"])
        self.trees = ["t1", "t3"]
        self.assertEqual(self.check()[0], [])

    def test_another_way_to_build_is_tested(self):
        self.check()
        self.pin = {"configure": ["--enable-x"]}
        self.assertEqual(self.check()[0], ["c-t1", "c-t2"])

    def test_what_fails_is_not_written_down(self):
        self.broken = ["c-t2"]
        self.assertEqual(self.check(), (["c-t1", "c-t2"], 1, ["patch builds, subject of t2"], []))
        left = "v1: 1 of 2 patches, whose trees have been built and tested before"
        self.assertEqual(self.check(), (["c-t2"], 0, ["patch builds, subject of t2"], [left]))

    def test_expected_output_of_iotests_does_not_count(self):
        self.check()
        files = self.files
        for file, built in [("tests/qemu-iotests/109.out", []), ("tests/qemu-iotests/185", []),
                            ("tests/qemu-iotests/meson.build", ["c-t1", "c-t2"])]:
            with mock.patch.object(self, "files", lambda tree: files(tree) + f"100644 blob 2\t{file}\n"):
                self.assertEqual(self.check()[0], built)

    def test_another_base_leaves_the_record_alone(self):
        self.base.pinned = False
        for _ in range(2):
            self.assertEqual(len(self.check()[0]), 2)

    def test_a_damaged_record_says_nothing(self):
        self.check()
        for text in ["", "[]", "{}", '{"key": 1}']:
            (common.patch_dir("v1") / "tested.json").write_text(text)
            self.assertEqual(len(self.check()[0]), 2)


TOY = """import os, unittest
class Toy(unittest.TestCase):
    def test_good(self):
        os.write(2, b"from a process of its own, in the middle of a line\\n")
        os.system("echo so does this >&2")
    def test_bad(self): self.fail()
    def test_wrong(self): raise OSError
    @unittest.skip("not here")
    def test_left_out(self): pass
class Unprepared(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError
    def test_never_runs(self): pass
"""


class Tools(unittest.TestCase):
    """The part that runs the other files here."""

    def told(self, **files):
        with tempfile.TemporaryDirectory() as d, mock.patch.object(common, "ROOT", pathlib.Path(d)) as root, \
                mock.patch.object(sources, "logs", lambda: root / "logs"):
            (root / "tests").mkdir()
            for name, text in files.items():
                (root / "tests" / f"{name}.py").write_text(text)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                sources.check_tools(Results(), "v0")
            self.assertIn("test session starts", (root / "logs/tools.log").read_text())
            return [re.sub(", see .*", "", line) for line in out.getvalue().splitlines()]

    def test_each_counts_whatever_is_printed_in_between(self):
        self.assertCountEqual(self.told(test_toy=TOY), [
            "ok   tools test_toy.Toy.test_good", "FAIL tools test_toy.Toy.test_bad: failure",
            "FAIL tools test_toy.Toy.test_wrong: failure", "FAIL tools test_toy.Toy.test_left_out: skipped",
            "FAIL tools test_toy.Unprepared.test_never_runs: error"])

    def test_a_file_that_cannot_be_read_is_a_failure(self):
        self.assertIn("FAIL tools test_torn: error", self.told(test_toy=TOY, test_torn="import nothing_of_this_name\n"))

    def test_none_is_a_failure(self):
        self.assertEqual(self.told(), ["FAIL tools: pytest ends with 5 after 0 tests"])

    def test_one_that_ends_all_is_a_failure(self):
        self.assertEqual(self.told(test_toy="import os\ndef test_kills(): os._exit(0)\n"),
                         ["FAIL tools: pytest ends with 0 after 0 tests"])


class Alone(unittest.TestCase):
    def test_other_processes_are_out_of_reach(self):
        look = ("import os\nprint(sorted(filter(str.isdigit, os.listdir('/proc'))))\n"
                "try: os.kill({}, 0)\nexcept ProcessLookupError: print('gone')")
        # the look has few processes, so that of all of these numbers one is none of them
        others = [subprocess.Popen(["sleep", "60"]) for _ in range(8)]
        try:
            p = subprocess.run(sources.alone([sys.executable, "-c", look.format(others[-1].pid)]),
                               stdout=subprocess.PIPE, text=True)
        finally:
            for other in others:
                other.kill()
                other.wait()
        self.assertEqual((p.returncode, p.stdout.splitlines()), (0, ["['1', '2']", "gone"]))
        self.assertEqual(subprocess.run(sources.alone(["sh", "-c", "exit 7"])).returncode, 7)


class Setenv(unittest.TestCase):
    def test_is_as_before_afterwards(self):
        with environment.setenv(DEFER_CALL_DELAY="1"):
            self.assertEqual(os.environ["DEFER_CALL_DELAY"], "1")
        self.assertNotIn("DEFER_CALL_DELAY", os.environ)


if __name__ == "__main__":
    unittest.main()
