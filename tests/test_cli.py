# SPDX-License-Identifier: GPL-2.0-or-later
"""How each command answers arguments, variables and trouble: in a line and without a traceback."""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import cli, common, environment, options
from dctools.common import ToolError


def run(*arguments, **env):
    """(exit status, stdout, stderr) of ./dc."""
    p = subprocess.run([common.ROOT / "dc", *arguments], text=True, capture_output=True, stdin=subprocess.DEVNULL,
                       env={**os.environ, **env})
    return p.returncode, p.stdout, p.stderr


def make(*arguments):
    """(exit status, last line on stderr) of make."""
    p = subprocess.run(["make", "-C", common.ROOT, "SKIP_INSTALL=1", *arguments], text=True, capture_output=True,
                       stdin=subprocess.DEVNULL, env=environment.child(without="MAKE"))
    lines = [line for line in p.stderr.splitlines() if not line.startswith("make")]
    return p.returncode, "\n".join(lines)


class Commands(unittest.TestCase):
    def test_help_lists_all_and_each_has_help(self):
        status, out, err = run("--help")
        self.assertEqual((status, err), (0, ""))
        for name, command in cli.COMMANDS.items():
            with self.subTest(name):
                self.assertRegex(out, rf"(?m)^  {name} ")
                module = importlib.import_module(command.module)
                with contextlib.redirect_stdout(io.StringIO()) as said, self.assertRaises(SystemExit):
                    cli.run([name, "--help"])
                self.assertIn(module.main.__doc__.split("\n")[0].strip(), said.getvalue())
                fields = dataclasses.fields(module.Options)
                if fields:
                    self.assertIn(f"Example: dc {name}", said.getvalue())
                for f in fields:
                    self.assertTrue(f.metadata["help"])
                    if not f.metadata["positional"]:
                        self.assertIn(options.flag(f.name), said.getvalue())

    def test_each_has_a_target_and_each_target_a_command(self):
        makefile = (common.ROOT / "Makefile").read_text()
        targets = {t for name, c in cli.COMMANDS.items() for t in (c.target or name).split()}
        known = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
        self.assertEqual(targets, known - {"install"})

    def test_bad_arguments_are_a_line(self):
        for arguments, said in [(["nonsense"], "nonsense: no such command; there is: series build"),
                                (["bench-ring"], "bench-ring: no such command; it is loadgen"),
                                (["stress", "unit"], "unrecognized arguments: unit"),
                                (["stress", "--round", "5"], "unrecognized arguments: --round"),
                                (["stress", "--rounds"], "expected one argument"),
                                (["stress", "--rounds", "0"], "--rounds 0: give a whole number from 1 to"),
                                (["series"], "give one of tree, export, check, mail"),
                                (["series", "dance"], "dance: give one of tree export"),
                                (["results", "/nonexistent"], "/nonexistent: no such results directory"),
                                (["signs"], "CLAIMED= gives the directory of the claimed results")]:
            status, out, err = run(*arguments)
            with self.subTest(arguments):
                self.assertEqual((status, out, err.count("\n")), (1, "", 1), err)
                self.assertIn(said, err)
        self.assertEqual(run()[0], 2)

    def test_trouble_with_a_file_is_a_line(self):
        with tempfile.NamedTemporaryFile() as f:
            status, _, err = run("image", BUILD_DIR=f"{f.name}/build")
        self.assertEqual((status, err.count("\n")), (1, 1), err)
        self.assertIn(f"image: {f.name}", err)
        self.assertIn("Not a directory", err)


class Variables(unittest.TestCase):
    def test_flag_before_variable_before_default(self):
        @dataclasses.dataclass(frozen=True)
        class Toy:
            pairs: int = options.number(7, 1, 9, "toy")
        self.assertEqual(options.load(Toy, {}).pairs, 7)
        self.assertEqual(options.load(Toy, {"PAIRS": ""}).pairs, 7)
        self.assertEqual(options.load(Toy, {"PAIRS": "3"}).pairs, 3)
        with self.assertRaisesRegex(ToolError, "^PAIRS=10: give"):
            options.load(Toy, {"PAIRS": "10"})
        with self.assertRaisesRegex(ToolError, "^--pairs 10: give"):
            options.load(Toy, {"PAIRS": "10"}, {"PAIRS"})
        self.assertEqual((options.given_to(options.load(Toy, {"PAIRS": "7"})), options.given_to(Toy())),
                         ({"pairs"}, frozenset()))

    def test_make_refuses_what_no_option_has(self):
        for arguments, said in [(["bench", "PAIR=12"], "PAIR=: no such variable; did you mean PAIRS=?"),
                                (["results", "DIR=x"], "DIR=: no such variable; did you mean DIRECTORY=?"),
                                (["check", "STACKS=v7.2"], "STACKS=: no such variable; did you mean STACK=?"),
                                (["stress", "SOMETHING=1"], "SOMETHING=: no such variable; there is: "),
                                (["stress", "MINUTES=5"], "MINUTES=: no such variable"),
                                (["stress", "ROUNDS=x"], "ROUNDS=x: give a whole number")]:
            with self.subTest(arguments):
                status, err = make(*arguments)
                self.assertEqual((status, err.count("\n")), (2, 0), err)
                self.assertIn(said, err)

    def test_make_with_several_targets(self):
        with mock.patch.object(options, "refuse_unknown", wraps=options.refuse_unknown) as looked:
            self.assertEqual(cli.make_variables(["--make", "ROUNDS MINUTES STACK", "soak stress", "soak"]), ["soak"])
        looked.assert_called_once()
        with self.assertRaisesRegex(ToolError, "PAIRS=: no such variable"):
            cli.make_variables(["--make", "ROUNDS PAIRS", "soak stress", "soak"])


if __name__ == "__main__":
    unittest.main()
