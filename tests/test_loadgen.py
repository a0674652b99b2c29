# SPDX-License-Identifier: GPL-2.0-or-later
"""The load generator: parameters, plan, bad input, statistics and report on toy data."""

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import lzma
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import common, process
from dctools import options
from dctools.measure import generator, instrument, loadgen, plan
from dctools.report import loadgen as report
from dctools.report import digest, show, signs, statistics
from dctools.common import ToolError

BACKEND = pathlib.Path(__file__).resolve().parent / "vhost_backend.py"
CPUS = mock.patch("dctools.measure.plan.cpu_list", lambda: [0, 1])


def raw(iops=1000.0, writes=0.5, cpu=3000.0, p99=80.0, source="perf tracepoints"):
    """What generator.sample returns, with round figures."""
    return {"iops": iops, "seconds": 1, "ios": iops, "verified_blocks": 9,
            "latency_us": {"mean": 50, "p50": 40, "p99": p99, "p999": 99, "max": 100},
            "batches_seen": {"number": 10, "mean": 2, "max": 4},
            "cpu_ns_per_io": {"iothread": cpu, "main": 0, "process": cpu, "driver": 1},
            "per_io": {"writes": writes, "reads": 0.1, "kicks": 0.2, "interrupts": writes},
            "syscalls": {"source": source, "rescheduling": 0.25,
                         "per_io": {"write": writes, "io_submit": 0.03, "ppoll": 0.02}},
            "took": 2.0, "others": 0.1}


def parameters(**env):
    with CPUS:
        return plan.parameters(options.load(plan.Options, {"SEED": "1", **env}))


class RunLoad(unittest.TestCase):
    def run_load(self, script):
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                return generator.run_load(["/bin/sh", "-c", script, d], 5)
            finally:
                self.tries = err.getvalue().count("trying again")

    def test_tries_again_only_when_told(self):
        once = "[ -e $0/x ] && echo '{}' && exit; touch $0/x; echo busy >&2; exit "
        self.assertEqual(self.run_load(once + "75"), {})
        with self.assertRaisesRegex(ToolError, "busy"):
            self.run_load(once + "1")
        self.assertEqual(self.tries, 0)

    def test_gives_up(self):
        with self.assertRaisesRegex(ToolError, "busy"):
            self.run_load("echo busy >&2; exit 75")
        self.assertEqual(self.tries, 2)


class RunTurns(unittest.TestCase):
    """Shell scripts in place of loadgen, which write to a file what they do, one line at a time."""

    SCRIPT = """echo idle
for turn in 1 2 3; do
    read go || exit 9
    echo "begin $1" >>"$0"; sleep 0.01; echo "end $1" >>"$0"
    [ $turn = 3 ] && echo '{"who": "'$1'"}' || echo idle
done"""

    def run_turns(self, scripts, order=("ab", "ba", "ab")):
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(io.StringIO()):
            log = pathlib.Path(d, "log")
            arguments = {role: ["/bin/sh", "-c", script, log, role] for role, script in scripts.items()}
            try:
                return generator.run_turns(arguments, [list(turn) for turn in order], 5)
            finally:
                self.log = log.read_text().splitlines() if log.exists() else []

    def test_one_at_a_time_in_the_given_order(self):
        found = self.run_turns({"a": self.SCRIPT, "b": self.SCRIPT})
        self.assertEqual(found, {"a": {"who": "a"}, "b": {"who": "b"}})
        self.assertEqual(self.log, [f"{what} {role}" for role in "abbaab" for what in ("begin", "end")])

    def test_one_that_ends_early_is_told_and_the_others_are_ended(self):
        for script in ("echo broken >&2; exit 1", "echo idle; read go; echo broken >&2; exit 1",
                       "echo idle; exec 0<&-; echo broken >&2; exit 1"):
            with self.subTest(script), self.assertRaisesRegex(ToolError, "broken"):
                self.run_turns({"a": "echo $$ >>$0; " + self.SCRIPT, "b": script})
            self.assertFalse(os.path.exists(f"/proc/{self.log[0]}"))

    def test_one_that_says_something_else(self):
        with self.assertRaisesRegex(ToolError, "should be idle, but says"):
            self.run_turns({"a": "echo hello; sleep 5", "b": self.SCRIPT})

    def test_one_that_says_nothing(self):
        with mock.patch("select.select", lambda *a: ([], [], [])), self.assertRaisesRegex(ToolError, "said nothing"):
            self.run_turns({"a": "sleep 5", "b": self.SCRIPT})

    def test_tries_again_only_when_told(self):
        once = '[ -e "$0.x" ] || { touch "$0.x"; echo busy >&2; exit 75; }; '
        self.assertEqual(len(self.run_turns({"a": once + self.SCRIPT, "b": self.SCRIPT})), 2)
        with self.assertRaisesRegex(ToolError, "busy"):
            self.run_turns({"a": "echo busy >&2; exit 75", "b": self.SCRIPT})


class Parameters(unittest.TestCase):
    def test_full_plan(self):
        p = parameters()
        grid = [c for c in p.configs if c.main == "irqfd"]
        self.assertEqual(len(grid), 2 * 3 * 5 * 2 * 2 * 3)
        self.assertEqual(len(set(p.configs)), len(p.configs))
        self.assertEqual({c.main for c in p.configs}, {"irqfd", "driver", "iothread"})
        self.assertEqual(p.cpus, {"driver": 0, "iothread": 1, "other": None})
        for c in p.configs:
            self.assertEqual(c.wait, plan.NATURAL_WAIT[c.irq])

    def test_quick_plan_has_what_there_are_targets_for(self):
        p = parameters(QUICK="1")
        self.assertEqual(len(set(p.configs)), len(p.configs))
        self.assertEqual({c.aio for c in p.configs if c.qd == 1}, {"native", "io_uring", "threads"})
        self.assertEqual({c.queues for c in p.configs if c.aio == "io_uring"}, {1, 4})
        self.assertIn("off", {c.event_idx for c in p.configs})
        self.assertIn("disk", {c.storage for c in p.configs})
        self.assertLess(len(p.configs) * p.pairs * 3
                        * (p.seconds + generator.WARM_UP + generator.COUNT + loadgen.START_UP), 600)

    def test_a_stack_has_a_quick_plan_of_its_own(self):
        with mock.patch.object(common.settings, "stack", "v10.2"):
            p = parameters(QUICK="1")
        self.assertEqual(len(set(p.configs)), len(p.configs))
        self.assertEqual({(c.qd, c.irq, c.poll_max_ns) for c in p.configs if c.qd < 64},
                         {(d, "batch", n) for d in (1, 4, 16) for n in (0, 32768)} | {(1, "each", 0), (4, "each", 0)})
        self.assertLess(len(p.configs), plan.MANY)

    def test_polling_is_part_of_a_configuration(self):
        p = parameters(AIO="native", IODEPTH="1", QUEUES="1", EVENT_IDX="on", IRQ="batch", STORAGE="fast",
                       POLL_MAX_NS="0 32768")
        self.assertEqual([c.poll_max_ns for c in p.configs], [0, 32768])
        self.assertEqual(len(set(map(str, p.configs))), 2)
        for c in p.configs:
            command = generator.command("qemu", c, p, generator.Image("image", True, "all"), 1)
            self.assertEqual(command[command.index("--poll-max-ns") + 1], str(c.poll_max_ns))

    def test_transport_is_part_of_a_configuration(self):
        few = {"AIO": "native", "IODEPTH": "1", "QUEUES": "1", "EVENT_IDX": "on", "IRQ": "batch", "STORAGE": "fast"}
        p = parameters(**few, TRANSPORT="pci vhost-user")
        self.assertEqual([c.transport for c in p.configs], ["pci", "vhost-user"])
        self.assertEqual([str(c).endswith(", vhost-user") for c in p.configs], [False, True])
        self.assertEqual({c.transport for c in parameters().configs}, {"pci"})
        old = dataclasses.asdict(p.configs[0])
        del old["transport"]
        self.assertEqual(plan.Config(**old), p.configs[0])
        with mock.patch("dctools.measure.compared.storage_daemon", lambda qemu: qemu + "-daemon"):
            pci, daemon = (generator.command("qemu", c, p, generator.Image("image", True, "all"), 1) for c in p.configs)
        self.assertEqual([c[c.index("--qemu") + 1] for c in (pci, daemon)], ["qemu", "qemu-daemon"])
        self.assertEqual(daemon[daemon.index("--transport") + 1], "vhost-user")
        self.assertEqual([[o in c for o in ("--machine", "--irqfd")] for c in (pci, daemon)], [[True] * 2, [False] * 2])
        p = parameters(**few, TRANSPORT="scsi")
        self.assertTrue(str(p.configs[0]).endswith(", scsi"))
        scsi = generator.command("qemu", p.configs[0], p, generator.Image("image", True, "all"), 1)
        self.assertEqual([scsi[scsi.index(o) + 1] for o in ("--qemu", "--transport", "--machine", "--irqfd")],
                         ["qemu", "scsi", p.machine, "on"])
        p = parameters(**few, TRANSPORT="vhost-user", MAIN="irqfd export")
        self.assertEqual([str(c).endswith(", main: export, vhost-user") for c in p.configs], [False, True])
        with mock.patch("dctools.measure.compared.storage_daemon", lambda qemu: qemu + "-daemon"):
            own, main = (generator.command("qemu", c, p, generator.Image("image", True, "all"), 1) for c in p.configs)
        self.assertEqual(["--iothread" in c for c in (own, main)], [False, True])
        self.assertEqual([c[c.index("--main-cpu") + 1] for c in (own, main)],
                         [str(p.cpus["driver"]), str(p.cpus["iothread"])])
        # the main thread's other places are QEMU's
        self.assertEqual({c.main for c in parameters(TRANSPORT="vhost-user").configs}, {"irqfd"})

    def test_selection(self):
        p = parameters(AIO="native,threads", IODEPTH="8 2", QUEUES="3", EVENT_IDX="off", IRQ="batch",
                       STORAGE="fast", SECONDS="0.5", PAIRS="4", BS="64k", RW="mix:30")
        self.assertEqual(len(p.configs), 4)
        self.assertEqual({(c.qd, c.queues, c.event_idx, c.irq, c.wait, c.main) for c in p.configs},
                         {(d, 3, "off", "batch", "irq", "irqfd") for d in (8, 2)})
        self.assertEqual((p.seconds, p.pairs, p.bs, p.rw), (0.5, 4, 65536, "mix:30"))

    def test_nonsense_is_one_line_that_names_it(self):
        for env in [{"AIO": "posix"}, {"AIO": "native native"}, {"IODEPTH": "0"}, {"IODEPTH": "4 4"},
                    {"IODEPTH": "2000"}, {"QUEUES": "x"}, {"QUEUES": "65"}, {"EVENT_IDX": "maybe"},
                    {"IRQ": "sometimes"}, {"WAIT": "never"}, {"WAIT": "irq"}, {"MAIN": "moon"},
                    {"MAIN": "other"}, {"STORAGE": "tape"}, {"PAIRS": "0"}, {"PAIRS": "2.5"},
                    {"SECONDS": "0"}, {"SECONDS": "nan"}, {"RW": "randread"}, {"RW": "mix:101"},
                    {"BS": "100"}, {"BS": "2m"}, {"BATCH": "0"}, {"MIN_IOS": "0"}, {"REACTION_US": "-1"},
                    {"JITTER": "some"}, {"LAYOUTS": "7"}, {"POLL_MAX_NS": "x"}, {"POLL_MAX_NS": "-1"},
                    {"POLL_MAX_NS": "0 0"}, {"INDIRECT": "perhaps"}, {"SEED": "-1"}, {"CPUS": "0"},
                    {"CPUS": "0 0"}, {"CPUS": "0 7"}, {"DISK": "/nonexistent"}, {"DISK": "/dev/null"},
                    {"QEMU_A": "/bin/true"}, {"QEMU_B": "/bin/true"}, {"QUICK": "1", "AIO": "native"},
                    {"QUICK": "perhaps"}, {"INDIRECT": "off", "IODEPTH": "512"}, {"TRANSPORT": "usb"},
                    {"TRANSPORT": "vhost-user", "QUICK": "1"}, {"MAIN": "driver", "TRANSPORT": "pci vhost-user"},
                    {"MAIN": "export"}, {"MAIN": "export", "TRANSPORT": "pci vhost-user"},
                    {"MAIN": "export", "TRANSPORT": "scsi"},
                    {"MAIN": "export", "TRANSPORT": "vhost-user", "POLL_MAX_NS": "0 32768"},
                    {"MACHINE": "q35", "TRANSPORT": "vhost-user"}]:
            with self.subTest(env), self.assertRaises(ToolError) as e:
                parameters(**env)
            self.assertNotIn("\n", str(e.exception))
            self.assertIn(list(env)[0], str(e.exception))

    def test_one_cpu_is_not_enough(self):
        with mock.patch("dctools.measure.plan.cpu_list", lambda: [3]), self.assertRaisesRegex(ToolError, "one CPU"):
            plan.parameters(options.load(plan.Options, {}))

    def test_own_disk_is_not_overwritten(self):
        with tempfile.NamedTemporaryFile() as f:
            with self.assertRaisesRegex(ToolError, "smaller than 1 MiB"):
                parameters(DISK=f.name)
            f.truncate(1 << 20)
            self.assertEqual(parameters(DISK=f.name).disk, os.path.realpath(f.name))
            with self.assertRaisesRegex(ToolError, "WRITE_OK=1"):
                parameters(DISK=f.name, RW="write")
            with self.assertRaisesRegex(ToolError, "leaves the disk out"):
                parameters(DISK=f.name, STORAGE="fast")
            self.assertTrue(parameters(DISK=f.name, RW="write", WRITE_OK="1").write_ok)

    def test_plan_is_fixed_by_the_seed_and_complete(self):
        p = parameters(QUICK="1", PAIRS="20")
        steps = loadgen.plan(p)
        self.assertEqual(steps, loadgen.plan(p))
        self.assertEqual(len({step[:2] for step in steps}), 20 * len(p.configs))
        self.assertEqual(len(steps), 20 * len(p.configs))
        for _, _, order in steps:
            self.assertEqual(len(order), p.turns + 1)
            for turn in order:
                self.assertEqual(sorted(turn), sorted(statistics.ROLES))
        for at in (0, -1):          # nobody is always first
            self.assertEqual({order[at][0] for _, _, order in steps}, set(statistics.ROLES))
        self.assertNotEqual([n for _, n, _ in steps[:13]], [n for _, n, _ in steps[13:26]])

    def test_turns_are_short(self):
        for seconds, turns in [("0.05", 1), ("0.7", 14), ("3600", 1000)]:
            self.assertEqual(parameters(SECONDS=seconds).turns, turns)

    def test_command(self):
        p = parameters(QUICK="1", REACTION_US="2", JITTER="on")
        config = p.configs[0]
        with mock.patch("dctools.measure.generator.program", lambda: "/x/loadgen"):
            words = generator.command("/q", config, p, generator.Image("/i", True, "all"), 7)
        self.assertEqual(words[words.index("--irqfd") + 1], "on")
        self.assertEqual(words[words.index("--reaction-us") + 1], "2.0")
        self.assertEqual(words[words.index("--jitter") + 1], "on")
        self.assertEqual(generator.placement(dataclasses.replace(config, main="iothread"), p.cpus)[-1], 1)

    def test_reaction_time_is_that_of_what_the_driver_waits_for(self):
        def reactions(**env):
            p = parameters(**env)
            return {c.wait: p.reaction(c) for c in p.configs}
        self.assertEqual(reactions(), {"used": (0.2, "off"), "irq": (3, "on")})
        self.assertEqual(reactions(REACTION_US="5"), {"used": (5, "off"), "irq": (5, "on")})
        self.assertEqual(reactions(JITTER="off"), {"used": (0.2, "off"), "irq": (3, "off")})
        # the targets are for a driver that reacts at once
        self.assertEqual(reactions(QUICK="1"), {"used": (0.2, "off"), "irq": (0.2, "off")})
        self.assertEqual(reactions(QUICK="1", REACTION_US="3", JITTER="on"), {"used": (3, "on"), "irq": (3, "on")})

    def test_reaction_time_is_told_of_the_drivers_there_are(self):
        def text(p):
            return report.reaction_text(dataclasses.asdict(p), p.configs)
        self.assertEqual(text(parameters()), "3 us, at random up to twice that, if it waits for interrupts; "
                                             "0.2 us, if it looks all the time")
        self.assertEqual(text(parameters(IRQ="batch")), "3 us, at random up to twice that")
        self.assertEqual(text(parameters(IRQ="batch")), text(parameters(IRQ="batch", REACTION_US="3", JITTER="on")))
        self.assertEqual(text(parameters(REACTION_US="2", JITTER="off")), "2 us")
        self.assertEqual(report.reaction_text({"reaction_us": 2.0}, parameters(IRQ="batch").configs), "2 us")


class Measure(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)
        patches = [mock.patch.object(common.settings, "build", self.dir), CPUS,
                   mock.patch("dctools.measure.loadgen.images", self.images),
                   mock.patch("dctools.measure.generator.program", lambda: "loadgen"),
                   mock.patch("dctools.common.progress", lambda _: None), mock.patch("dctools.process.run", self.fio),
                   mock.patch("dctools.measure.compared.tools_commit", lambda: "abc")]
        for p in patches:
            p.start()
            self.addCleanup(p.stop)

    @staticmethod
    @contextlib.contextmanager
    def images(p):
        yield {(c.storage, c.aio): generator.Image("/i", True, "all") for c in p.configs}

    @staticmethod
    def fio(cmd):
        """What is run but loadgen: fio on the host, and QEMU for its version."""
        return 'note\n{"jobs": [{"read": {"iops": 4000}, "write": {"iops": 0}}]}' if cmd[0] == "fio" else "v"

    def measure(self, run, **env):
        out = io.StringIO()
        env = {"SEED": "1", "QEMU_A": "/bin/true", "QEMU_B": "/bin/true", "PAIRS": "4", "STORAGE": "fast",
               "AIO": "native threads", "IODEPTH": "1 64", "QUEUES": "1", "EVENT_IDX": "on", "IRQ": "each", **env}
        with contextlib.redirect_stdout(out):
            try:
                loadgen.bench_ring(plan.parameters(options.load(plan.Options, env)), run)
            finally:
                self.text = out.getvalue()
        return self.text

    def directory(self):
        return (self.dir / "results" / show.LATEST).resolve()

    @staticmethod
    def toy(ratio=1.3, slower_writes=1, p50=1, p999=1):
        calls = []

        def one(role):
            calls.append(role)
            noise = 1 + (len(calls) * 7919 % 13 - 6) / 1000
            factor = ratio if role == "series" else 1
            run = raw(iops=1000 * factor * noise, cpu=3000 / factor * noise,
                      writes=(slower_writes if role == "series" else 0.5) * noise, p99=80 * noise)
            if role == "series":
                run["latency_us"]["p50"] *= p50
                run["latency_us"]["p999"] *= p999
            return run

        def run(binaries, config, p, image, seed, order):
            return {role: one(role) for role in order[-1]}
        return run

    @staticmethod
    def verdicts(text, metric):
        """How often each verdict stands in the table of that metric, groups left out."""
        tables = re.sub(r"(?m)^.* configurations together\n(?:  .*\n)+", "", text)
        return collections.Counter(re.findall(rf"(?m)^  {re.escape(metric)} .* (\S+)$", tables))

    def test_a_difference_is_found_and_the_rest_is_not(self):
        text = self.measure(self.toy())
        said = re.sub(r"\s+", " ", text)
        self.assertRegex(said, r"\* IOPS better in 4 of 4 configurations, most in fast \w+ qd [^*]*: 1\.30 \[")
        self.assertRegex(said, r"\* write\(2\) per I/O worse in 4 of 4 configurations, most in [^*]*: "
                               r"0\.(49|50)\d → (0\.99|1\.00)\d; ")
        self.assertGreaterEqual(self.verdicts(text, "latency p99 [us]")["none"], 3)
        page = (self.directory() / "report.html").read_text()
        self.assertEqual(page.count("<svg"), 6)
        self.assertIn("submissions per I/O", page)
        self.assertRegex(said, r"above 1\.2 in 4 of 4 configurations \(.* 2\.00, A 1\.00; ")
        self.assertIn("with plots:", text)
        self.assertEqual(text.count("fio on the host: 4,000 IOPS; A 25%, B 3"), 4)
        self.assertIn("fast native, event_idx on: 2 configurations together", text)
        self.assertRegex(text, r"2 configurations together\n +IOPS .* 1\.299 \[.*better")

    def test_each_percentile_of_latency_is_summarised(self):
        for many in [40, 3]:
            with mock.patch("dctools.measure.plan.MANY", many):
                text = self.measure(self.toy(p50=1.2, p999=.5))
            self.assertRegex(re.sub(r"\s+", " ", text),
                             r"\* worse, too: .*latency p50 in 4 of 4, most in fast \w+ qd [^*]*: 1\.20 \[")
            if many == 40:
                self.assertEqual(self.verdicts(text, "latency p50 [us]"), {"worse": 4})
                self.assertEqual(self.verdicts(text, "latency p99.9 [us]"), {"better": 4})
            page = (self.directory() / "report.html").read_text()
            for p in ["p50", "p99", "p99.9"]:
                # the groups' tables and each configuration's, or its columns
                self.assertEqual(len(re.findall(rf"^  latency {re.escape(p)} \[us\] ", text, re.M)),
                                 2 if many == 3 else 6)
                self.assertIn(f"<th>latency {p}, B/A</th>" if many == 3 else f"<td>latency {p} [us]</td>", page)
                self.assertIn(f"Latency {p} over the queue depth", page)

    def test_each_pair_has_binaries_of_its_own(self):
        toy, used = self.toy(), []

        class Objects:
            def __init__(self, binary, scratch):
                self.binary = os.path.basename(binary)

            def link(self, seed, output):
                pathlib.Path(output).write_text(f"{self.binary} {seed}")

        def run(binaries, config, *args):
            used.append((str(config), {role: pathlib.Path(path).read_text() for role, path in binaries.items()}))
            return toy(binaries, config, *args)
        with mock.patch("dctools.relink.Objects", Objects):
            text = self.measure(run, LAYOUTS="on", QEMU_B="/bin/false", PAIRS="6")
        for config in {config for config, _ in used}:
            mine = [b for c, b in used if c == config]
            self.assertEqual(len({path for b in mine for path in b.values()}), 3 * 6)
        for role, binary in [("base", "true"), ("base2", "true"), ("series", "false")]:
            self.assertEqual({b[role].split()[0] for _, b in used}, {binary})
        self.assertIn("linked in random order", text)
        self.assertEqual(list((self.dir / "loadgen").iterdir()), [])
        self.assertIn("as they were built", self.measure(self.toy()))

    def test_each_pair_has_daemons_of_its_own(self):
        """Beside a QEMU that is linked, if that is measured, too."""
        toy, used = self.toy(), []
        for side in "AB":
            (self.dir / side / "storage-daemon").mkdir(parents=True)
            for name in ("qemu", "storage-daemon/qemu-storage-daemon"):
                (self.dir / side / name).write_text(f"#!/bin/sh\necho {side} {name}\n")
                (self.dir / side / name).chmod(0o755)

        class Objects:
            def __init__(self, binary, scratch):
                self.words = pathlib.Path(binary).read_text().split()[2:]

            def link(self, seed, output):
                pathlib.Path(output).write_text(f"{self.words} {seed}")
                output.chmod(0o755)

        def run(binaries, config, p, image, *args):
            commands = {role: generator.command(path, config, p, image, 1) for role, path in binaries.items()}
            used.append((config.transport, {role: pathlib.Path(c[c.index("--qemu") + 1]).read_text()
                                            for role, c in commands.items()}))
            return toy(binaries, config, p, image, *args)
        few = {"LAYOUTS": "on", "QEMU_A": str(self.dir / "A/qemu"), "QEMU_B": str(self.dir / "B/qemu"), "PAIRS": "3",
               "IODEPTH": "1", "AIO": "native"}
        with mock.patch("dctools.relink.Objects", Objects):
            text = self.measure(run, TRANSPORT="pci scsi vhost-user", **few)
            self.assertEqual({transport for transport, _ in used}, {"pci", "scsi", "vhost-user"})
            for transport, found in used:
                name = "storage-daemon/qemu-storage-daemon" if transport == "vhost-user" else "qemu"
                for role, said in found.items():
                    self.assertIn(f"['{'B' if role == 'series' else 'A'}', '{name}'] 1 ", said)
                self.assertEqual(len({said for _, other in used if other for said in other.values()}), 2 * 3 * 3)
            self.assertEqual(text.count("its storage daemon "), 2)
            self.assertIn(", vhost-user\n", text)
            self.assertIn(", scsi\n", text)
            self.assertIn("virtio-scsi-pci with a scsi-hd", text)
            self.assertIn("the storage daemon's vhost-user-blk export", text)
            used.clear()
            text = self.measure(run, TRANSPORT="vhost-user", **few)
            self.assertEqual(len(used), 3)
            self.assertNotIn("main thread", text)
        (self.dir / "B/storage-daemon/qemu-storage-daemon").unlink()
        with self.assertRaisesRegex(ToolError, "no qemu-storage-daemon beside .*/B/qemu"):
            self.measure(run, TRANSPORT="vhost-user", **few)

    def test_packed_results_are_the_same(self):
        text = self.measure(self.toy())
        runs = self.directory() / "runs.jsonl"
        runs.with_suffix(".jsonl.xz").write_bytes(lzma.compress(runs.read_bytes()))
        runs.unlink()
        (self.directory() / "limits.jsonl").unlink()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            digest.show(report.LoadgenResults(self.directory()))
        self.assertEqual(out.getvalue(), "".join(
            line for line in text.splitlines(True) if "fio on the host" not in line))
        runs.with_suffix(".jsonl.xz").write_bytes(b"x")
        with self.assertRaisesRegex(ToolError, "damaged"):
            report.LoadgenResults(self.directory())

    def test_many_configurations_are_shown_group_by_group(self):
        with mock.patch("dctools.measure.plan.MANY", 3):
            text = self.measure(self.toy())
        self.assertIn("2 configurations together", text)
        self.assertNotIn("fast native qd 1 x 1, event_idx on, irq each\n", text)
        self.assertIn("fast native qd 1 x 1", (self.directory() / "report.html").read_text())

    def test_fio_that_gives_nothing_is_told(self):
        with mock.patch("dctools.process.run", lambda cmd: "v"), self.assertRaisesRegex(ToolError, "fio gave no JSON"):
            self.measure(self.toy())

    def test_same_binary_shows_no_difference(self):
        text = re.sub(r"\s+", " ", self.measure(self.toy(1, 0.5)))
        self.assertIn("* IOPS ", text)
        self.assertNotRegex(text, r"\* IOPS [^*]*(better|worse) in [34] of 4 configurations")
        self.assertIn("above 1.2 in 0 of 4 configurations ", text)

    def signs(self, claimed, other, there={}):
        """What signs.signs() says of two toy results."""
        directories = []
        for n, (toy, env) in enumerate(((claimed, {}), (other, there))):
            self.measure(toy, **env)
            directories.append(self.directory().rename(pathlib.Path(tempfile.mkdtemp(dir=self.dir), str(n))))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                signs.signs(*directories)
            finally:
                self.text = out.getvalue()
        return self.text

    def test_signs_are_compared(self):
        # 4 configurations in which IOPS, CPU and writes differ
        text = self.signs(self.toy(1.3), self.toy(1.1))
        self.assertEqual(text.count("reproduced: "), 12, text)
        self.assertIn("12 reproduced", text)
        text = self.signs(self.toy(1.3), self.toy(1, 0.5))
        self.assertEqual(text.count("sign, inside the noise: "), 12, text)
        with mock.patch("dctools.measure.plan.MANY", 3):        # 2 groups
            self.assertIn("6 reproduced", self.signs(self.toy(1.3), self.toy(1.1)))
        self.assertRegex(self.signs(self.toy(1, 0.5), self.toy(1.3)), r"\b[0-3] differences")

    def test_signs_of_what_is_not_decided_or_not_comparable(self):
        text = self.signs(self.toy(1.3), self.toy(0.8), there={"PAIRS": "1"})
        self.assertEqual(text.count("not measured: "), 12, text)
        text = self.signs(self.toy(1.3), self.toy(1.3), there={"IODEPTH": "1 16"})
        self.assertEqual(text.count("not measured: "), 6, text)
        with self.assertRaisesRegex(ToolError, "not comparable: rw read and write"):
            self.signs(self.toy(1.3), self.toy(1.3), there={"RW": "write"})
        with self.assertRaisesRegex(ToolError, "not comparable: reaction time .*0.2 us.* and .*2 us"):
            self.signs(self.toy(1.3), self.toy(1.3), there={"REACTION_US": "2"})

    def test_contradicted_signs_are_a_failure(self):
        with self.assertRaisesRegex(ToolError, "^8 of them go the other way"):
            self.signs(self.toy(1.3), self.toy(0.8))
        self.assertEqual(self.text.count("CONTRADICTED: "), 8)
        self.assertEqual(self.text.count("reproduced: "), 4)     # writes

    def test_interrupted_keeps_what_is_measured(self):
        toy, calls = self.toy(), []

        def run(*args):
            calls.append(1)
            if len(calls) == 10:
                raise KeyboardInterrupt
            return toy(*args)
        with self.assertRaises(KeyboardInterrupt):
            self.measure(run)
        self.assertEqual(len((self.directory() / "runs.jsonl").read_text().splitlines()), 27)
        self.assertIn("of 4 planned", self.text)

    def test_failure_of_a_run_is_told_after_the_results(self):
        def run(*args):
            raise ToolError("loadgen: hang")
        with self.assertRaisesRegex(ToolError, "hang"):
            self.measure(run)

    def test_without_tracepoints(self):
        text = self.measure(lambda *_: {role: raw(source="/proc only: no tracepoints") for role in statistics.ROLES})
        self.assertIn("/proc only", text)

    def test_damaged_results_are_named(self):
        self.measure(self.toy())
        runs = self.directory() / "runs.jsonl"
        good = runs.read_text()
        for bad in ["{", "[]", '{"pair":1}', '{"config": 99}']:
            runs.write_text(good + bad + "\n")
            with self.subTest(bad), self.assertRaisesRegex(ToolError, r"line 49 is damaged"):
                report.LoadgenResults(self.directory())
        runs.write_text("")
        with self.assertRaisesRegex(ToolError, "nothing measured"):
            report.LoadgenResults(self.directory())
        (self.directory() / "ring.json").unlink()
        with self.assertRaisesRegex(ToolError, "json is missing"):
            report.LoadgenResults(self.directory())


class Stratified(unittest.TestCase):
    """Coverage on made-up pairs whose truth is known, and what it does with little."""

    def test_interval_holds_the_truth_as_often_as_it_says(self):
        rng, held = numpy.random.default_rng(7), 0
        for _ in range(100):
            members = []
            for noise in [.01, .02, .05, .1] * 5:
                a = numpy.exp(rng.normal(0, noise, 3))
                members.append((a, 1.1 * numpy.exp(rng.normal(0, noise, 3))))
            r = statistics.stratified(members)
            held += r["low"] <= 1.1 <= r["high"]
        self.assertGreater(held, 88)        # 95 expected
        self.assertLess(held, 100)

    def test_a_difference_has_a_small_p_and_none_has_not(self):
        rng = numpy.random.default_rng(8)
        def members(ratio):
            return [(numpy.exp(rng.normal(0, .02, 2)), ratio * numpy.exp(rng.normal(0, .02, 2))) for _ in range(20)]
        self.assertLess(statistics.stratified(members(1.05))["p"], .01)
        self.assertGreater(statistics.stratified(members(1))["p"], .01)

    def test_configurations_that_differ_are_no_noise(self):
        r = statistics.stratified([([1, 1.01], [2, 2.02]), ([1, 1.01], [4, 4.04])])
        self.assertAlmostEqual(r["ratio"], math.sqrt(8))
        self.assertAlmostEqual(r["low"], r["high"])

    def test_zeros_and_single_pairs(self):
        self.assertIsNone(statistics.stratified([([0, 0], [1, 1])])["ratio"])
        self.assertIsNone(statistics.stratified([])["ratio"])
        one = statistics.stratified([([1], [2])])
        self.assertEqual((one["ratio"], one["low"]), (2, None))


class Rows(unittest.TestCase):
    NAMES = {"U": "virtio_notify_irqfd vdev 0x1 vq 0x2", "N": "virtio_notify_irqfd_send vdev 0x1 vq 0x2",
             "s": "defer_call_run fn 0x8 opaque 0x3", "r": "defer_call_run fn 0x9 opaque 0x2"}
    NAMES["R"] = f"{NAMES['r']}\n{NAMES['r']}"

    def events(self, text):
        return instrument.trace_events("".join(self.NAMES[c] + "\n" for c in text))

    def test_events(self):
        self.assertEqual(self.events("UNUNsUURNsUNUUU"), "UNUNUURNUN")
        self.assertEqual(self.events("UrUUrNUrN"), "UUURNUrN")      # the last one ran only once
        later = {"U": "virtio_notify_batch vdev 0x1 vq 0x2 at_once 1", "N": "virtio_notify vdev 0x1 vq 0x2",
                 "s": "virtio_notify vdev 0x1 vq 0x3", "R": "virtio_notify_batch_deferred_fn vdev 0x1 vq 0x2"}
        with mock.patch.object(self, "NAMES", later):
            self.assertEqual(self.events("UNUNsUURNsUNUUU"), "UNUNUURNUN")

    def test_turns(self):
        names = {**self.NAMES, "H": "virtio_queue_notify vdev 0x1 n 0 vq 0x2"}
        for turns, said in [("HUUUUN" * 10, ""), ("HUUN" * 9 + "HUUUNUUN", "5 used buffers before the handler"),
                            ("HUUN" * 8, "9 turns of the handler")]:
            with self.subTest(turns), mock.patch.object(self, "NAMES", names), \
                    mock.patch.object(instrument, "_traced", return_value=self.events(turns)) as traced:
                if said:
                    self.assertRaisesRegex(ToolError, said, instrument.check_turns, "qemu", 4)
                else:
                    instrument.check_turns("qemu", 4)
                traced.assert_called_once_with("qemu", "off", 64, ["virtio_queue_notify"])

    def test_good(self):
        instrument.judge_rows("URNUURNUUURN" * 5, False)
        instrument.judge_rows("UNUURNUURUNURU" * 10, True)

    def test_what_is_wrong(self):
        for event_idx, rows in [(False, ["UN", "UUR", "URNN", "RN", "UNURN", "UUNURN", "URRN", "UrN"]),
                                (True, ["UNN", "UNRN", "RN", "URR", "UNUr"])]:
            for row in rows:
                with self.subTest(row), self.assertRaisesRegex(ToolError, "not notified of as they should"):
                    instrument.judge_rows(("UNUURN" if event_idx else "UURN") * 10 + row, event_idx)

    def test_too_few_to_tell(self):
        for event_idx, rows, said in [(False, "URN" * 100 + "UURN" * 9, "9 rows of more than one"),
                                      (True, "UN" * 100 + "UNURN" * 9, "9 deferred calls"),
                                      (True, "UURN" * 100 + "UNURN" * 9, "9 notifications for the first")]:
            with self.subTest(rows), self.assertRaisesRegex(ToolError, said):
                instrument.judge_rows(rows, event_idx)


class CompileC(unittest.TestCase):
    def test_compiled_again_if_a_source_or_a_header_is_newer(self):
        with tempfile.TemporaryDirectory() as d:
            directory = pathlib.Path(d)
            one, other, header, output = (directory / name for name in ("one.c", "other.c", "one.h", "output"))
            one.write_text('#include "one.h"\nint main(void) { return f(); }\n')
            other.write_text('#include "one.h"\nint f(void) { return 0; }\n')
            header.write_text("int f(void);\n")

            def is_compiled():
                with mock.patch("dctools.process.run", wraps=process.run) as run:
                    generator.compile_c([one, other], output, [])
                return run.called
            self.assertTrue(is_compiled())
            self.assertFalse(is_compiled())
            subprocess.run([output], check=True)
            for newer in (one, other, header):
                with self.subTest(newer.name):
                    os.utime(newer, (output.stat().st_mtime + 1,) * 2)
                    self.assertTrue(is_compiled())
                    os.utime(newer, (0, 0))


class Compiled(unittest.TestCase):
    """The program itself."""

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.temporary.cleanup)
        cls.dir = pathlib.Path(cls.temporary.name)
        with mock.patch.object(common.settings, "build", cls.dir):
            cls.program = generator.program()
        cls.image = cls.dir / "image"
        cls.image.write_bytes(bytes(2 << 20))

    def run_it(self, *args):
        return subprocess.run([self.program, *map(str, args)], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)

    def fails(self, expected, *args):
        p = self.run_it(*args)
        self.assertNotEqual(p.returncode, 0)
        self.assertEqual(p.stderr.count("\n"), 1, p.stderr)
        self.assertIn(expected, p.stderr)
        self.assertEqual(p.stdout, "")

    @staticmethod
    def alive(pid):
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def wait_for(self, condition):
        for _ in range(600):
            if condition():
                return
            time.sleep(0.05)
        self.fail("nothing happened within 30 s")


class Program(Compiled):
    """As far as it goes without QEMU."""

    def test_interrupts_of_a_cpu(self):
        main = self.dir / "main.c"
        main.write_text('#include <stdio.h>\n#include <stdlib.h>\n#include "end.h"\n#include "proc.h"\n'
                        'void die(const char *format, ...) { abort(); }\n'
                        'int main(int n, char **v) { return n != 3 || !printf("%llu", '
                        '(unsigned long long)cpu_interrupts(v[1], atoi(v[2]))); }\n')
        generator.compile_c([main, generator.SOURCES / "proc.c"], self.dir / "interrupts",
                            [f"-I{generator.SOURCES}", "-Wno-unused-parameter"])

        def counted(name, cpu):
            head, *lines = pathlib.Path("/proc/interrupts").read_text().splitlines()
            column = head.split().index(f"CPU{cpu}")
            return next((int(line.split()[1 + column]) for line in lines if line.split()[0] == f"{name}:"), 0)
        for name in ["RES", "LOC", "ES"]:
            for cpu in os.sched_getaffinity(0):
                before = counted(name, cpu)
                found = int(process.run([self.dir / "interrupts", name, cpu]))
                self.assertTrue(before <= found <= counted(name, cpu), (name, cpu, before, found))
        self.assertGreater(counted("LOC", cpu), 0)

    def test_bad_options(self):
        good = ["--qemu", "/bin/false", "--image", self.image]
        for args in [["--qd", "0"], ["--qd", "x"], ["--qd", "1.5"], ["--qd", "9999"], ["--queues", "0"],
                     ["--bs", "100"], ["--bs", "0"], ["--rw", "sideways"], ["--rw", "mix:101"],
                     ["--aio", "posix"], ["--event-idx", "maybe"], ["--irq", "some"], ["--wait", "x"],
                     ["--seconds", "0"], ["--seconds", "nan"], ["--reaction-us", "-1"], ["--jitter", "x"],
                     ["--seed", "-1"], ["--seed", "x"], ["--verify", "some"], ["--driver-cpu", "-1"],
                     ["--kick", "foot"], ["--turns", "0"], ["--irqfd", "x"], ["--transport", "mmio"],
                     ["--iothread", "x"]]:
            with self.subTest(args):
                self.fails(args[0], *good, *args)

    def test_options_that_contradict_each_other(self):
        good = ["--qemu", "/bin/false", "--image", self.image]
        for args in [["--wait", "irq", "--irq", "off"], ["--cache-direct", "off"],
                     ["--indirect", "off", "--qd", "512"], ["--irqfd", "on", "--kick", "qtest"],
                     ["--iothread", "off"],
                     ["--iothread", "off", "--transport", "vhost-user", "--poll-max-ns", "9"]]:
            with self.subTest(args):
                self.fails("--", *good, *args)
        for args in [["--machine", "q35"], ["--kick", "eventfd"], ["--irqfd", "off"]]:
            with self.subTest(args):
                self.fails(f"{args[0]} and --transport vhost-user", *good, *args, "--transport", "vhost-user")
        self.fails("needed", "--image", self.image)
        self.fails("not an option", *good, "extra")
        self.fails("unrecognized", *good, "--nonsense")

    def test_bad_image(self):
        self.fails("No such file", "--qemu", "/bin/false", "--image", self.dir / "none")
        self.fails("neither a file", "--qemu", "/bin/false", "--image", "/dev/null")
        small = self.dir / "small"
        small.write_bytes(bytes(512))
        self.fails("smaller than", "--qemu", "/bin/false", "--image", small)

    def test_bad_qemu(self):
        self.fails("No such file", "--qemu", "/nonexistent/qemu", "--image", self.image)
        self.fails("said nothing", "--qemu", "/bin/false", "--image", self.image)
        script = self.dir / "qemu"
        script.write_text("#!/bin/sh\necho qemu: warning: hm >&2\necho qemu: no such machine >&2\n")
        script.chmod(0o755)
        self.fails("no such machine", "--qemu", script, "--image", self.image)

    def test_qemu_is_ended_with_us(self):
        script, pid_file = self.dir / "sleeper", self.dir / "pid"
        script.write_text(f"#!/bin/sh\necho $$ >{pid_file}.new\nmv {pid_file}.new {pid_file}\nexec sleep 1000\n")
        script.chmod(0o755)
        for signal, transport in itertools.product(("TERM", "KILL"), ("pci", "vhost-user")):
            pid_file.unlink(missing_ok=True)
            p = subprocess.Popen([self.program, "--qemu", script, "--image", self.image, "--transport", transport])
            try:
                self.wait_for(pid_file.exists)
                subprocess.run(["kill", f"-{signal}", str(p.pid)], check=True)
                p.wait(30)
                pid = int(pid_file.read_text())
                self.wait_for(lambda: not self.alive(pid))
            finally:
                p.kill()
                p.wait()

    def test_fill_is_the_same_for_the_same_seed(self):
        def content(*args):
            self.assertEqual(self.run_it("--fill", "--image", self.image, *args).returncode, 0)
            return self.image.read_bytes()
        first = content()
        self.assertEqual(len(first), 2 << 20)
        self.assertEqual(first, content("--pattern-seed", "0"))
        self.assertNotEqual(first, content("--pattern-seed", "1"))
        self.assertEqual(len({first[n:n + 512] for n in range(0, len(first), 512)}), 4096)


class VhostUser(Compiled):
    """As a front-end, with a back-end of toys in place of a storage daemon: tests/vhost_backend.py."""

    def setUp(self):
        self.assertEqual(self.run_it("--fill", "--image", self.image).returncode, 0)

    def arguments(self, fault, *args):
        script = self.dir / "daemon"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{BACKEND}" {fault} "$@"\n')
        script.chmod(0o755)
        return ["--transport", "vhost-user", "--qemu", script, "--image", self.image, "--seconds", ".05",
                "--warmup", "0", "--count-seconds", ".05", "--timeout", ".5", "--wait", "irq", *args]

    def works(self, *args):
        p = self.run_it(*self.arguments("none", *args))
        self.assertEqual((p.returncode, p.stderr), (0, ""))
        return json.loads(p.stdout)

    def notices(self, expected, fault, *args):
        with self.subTest(fault):
            self.fails(expected, *self.arguments(fault, *args))

    def test_all_blocks_are_verified(self):
        for args in [[], ["--queues", "3", "--indirect", "off"], ["--event-idx", "off", "--irq", "batch"],
                     ["--aio", "threads", "--rw", "mix:30"]]:
            with self.subTest(args):
                found = self.works(*args)
                self.assertEqual(found["verified_blocks"], 2 * 512 if "--rw" in args else 512)
                self.assertGreater(found["ios"], 0)
                self.assertEqual(found["writes"] > 0, "--rw" in args)

    def test_features_are_those_asked_for(self):
        for args, bits in [([], 1 << 28 | 1 << 29), (["--event-idx", "off"], 1 << 28), (["--indirect", "off"], 1 << 29),
                           (["--queues", "2"], 1 << 12 | 1 << 28 | 1 << 29)]:
            with self.subTest(args):
                self.assertEqual(int(self.works(*args)["device"]["features"], 16), 1 << 32 | bits)

    def test_io_in_the_main_thread(self):
        given = self.dir / "given"
        for iothread in ("on", "off"):
            arguments = self.arguments("none", "--iothread", iothread)
            script = self.dir / "daemon"
            script.write_text(script.read_text().replace("exec", f'echo "$@" >"{given}"\nexec'))
            found = self.run_it(*arguments)
            self.assertEqual((found.returncode, found.stderr), (0, ""))
            self.assertEqual("iothread" in given.read_text(), iothread == "on")
            cpu = json.loads(found.stdout)["cpu_ns_per_io"]
            # the toy's main thread has nothing to do: what is looked at is another one
            self.assertEqual(cpu["iothread"] == cpu["main"], iothread == "off")

    def test_kicks_and_interrupts_are_counted(self):
        found = self.works("--qd", "1")
        # one may belong to the last request before the window
        self.assertAlmostEqual(found["per_io"]["kicks"], 1, delta=.01)
        self.assertAlmostEqual(found["per_io"]["interrupts"], 1, delta=.01)
        # one write(2) for each is all that the back-end's thread does: it is the one that was found
        self.assertAlmostEqual(found["syscalls"]["per_io"]["write"], 1, delta=.01)

    def test_turns(self):
        with generator.Load([self.program, *map(str, self.arguments("none", "--turns", "2"))], 30) as load:
            for _ in range(3):
                load.wait_idle()
                load.turn()
            self.assertGreater(load.result()["ios"], 0)

    def test_a_back_end_that_lacks_something(self):
        for fault, expected in [("no-event-idx", "lacks features"), ("no-protocol", "no protocol features"),
                                ("no-ack", "lacks protocol features: it offers 0x0"),
                                ("few-queues", "the device has 0 queues, 1 needed"), ("empty", "less than a block")]:
            self.notices(expected, fault)

    def test_a_back_end_that_breaks_the_protocol(self):
        for number, name in [(1, "GET_FEATURES"), (15, "GET_PROTOCOL_FEATURES"), (24, "GET_CONFIG"),
                             (9, "SET_VRING_ADDR")]:
            self.notices(f"answers {name} by message {number}, flags 0x5", f"long:{number}")
            self.notices(f"does not answer {name} for 0.5 s", f"silent:{number}")
            self.notices("ended: toy: no longer", f"exit:{number}")
        self.notices("closed its socket: it said nothing", "close:24")
        for number, name in [(3, "SET_OWNER"), (5, "SET_MEM_TABLE"), (12, "SET_VRING_KICK"), (18, "SET_VRING_ENABLE")]:
            self.notices(f"refuses {name}", f"refuse:{number}")

    def test_wrong_data_is_noticed(self):
        self.notices("data corruption: sector 777 ", "corrupt:777")
        self.notices("ends with status 1", "error:100")
        self.notices("descriptor 999999, which is none of ours", "descriptor:100")

    def test_what_does_not_come_is_noticed(self):
        self.notices("lost notification: queue 0 has finished requests", "lose:100")
        self.notices("hang: 64 requests on queue 0 without an answer", "hang:100")
        self.notices("was ended by signal 9", "die:100")
        self.notices("closed its socket: it said nothing", "leave:100")


if __name__ == "__main__":
    unittest.main()
