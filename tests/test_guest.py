# SPDX-License-Identifier: GPL-2.0-or-later
"""guest.py with fakes in place of QEMU: what goes wrong is said, and no process is left."""

import contextlib
import hashlib
import io
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from dctools import common, guest
from dctools.common import ToolError
from dctools.guest.jobs import Late
from dctools.guest import qemu

# where QEMU's python library is
common.settings.build = pathlib.Path(os.environ.get("BUILD_DIR") or common.settings.build)
common.settings.qemu_python = os.environ.get("QEMU_PYTHON", "")

HANG = "#!/bin/sh\necho $$ >{0}/pid\necho stuck >&2\nexec sleep 600\n"
EXIT = "#!/bin/sh\necho $$ >{0}/pid\necho 'could not find ROM' >&2\nexit 3\n"
# A QEMU with a monitor and no guest: answers every QMP command.
MONITOR = """#!/usr/bin/python3
import json, os, re, resource, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0) if {1} else None)
open("{0}/pid", "w").write(str(os.getpid()))
console = re.search("id=console,path=([^,]+),", " ".join(sys.argv))[1]
open(console, "w").write("Booting\\r\\nKernel panic - not syncing\\r\\n")
fd = int(re.search(r"id=mon,fd=([0-9]+)", " ".join(sys.argv))[1])
sock = socket.socket(fileno=fd)
def say(what):
    sock.sendall(json.dumps(what).encode() + b"\\r\\n")
version = dict(qemu=dict(major=7, minor=2, micro=0), package="")
say(dict(QMP=dict(version=version, capabilities=[])))
while data := sock.recv(4096):          # one short command at a time, without an end of line
    ask = json.loads(data)
    say({{"return": {{}}, **{{k: ask[k] for k in ask if k == "id"}}}})
    if ask["execute"] == "quit" and {1}:
        sys.exit(0)
    if ask["execute"] == "stop":
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        if {2} and soft == hard:            # the kernel's may go elsewhere
            open("core", "w")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()
time.sleep(600)
"""


class Fakes(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = pathlib.Path(d.name)
        (self.dir / "firmware").mkdir()
        for name in ["vmlinuz", "initrd.img", "firmware/bios-256k.bin", "firmware/linuxboot_dma.bin"]:
            (self.dir / name).touch()
        self.err = io.StringIO()
        stack = contextlib.ExitStack()
        stack.enter_context(contextlib.redirect_stderr(self.err))
        self.addCleanup(stack.close)

    def guest(self, script, **kw):
        qemu = self.dir / "qemu"
        qemu.write_text(script.format(self.dir, kw.pop("quits", True), kw.pop("core", False)))
        qemu.chmod(0o755)
        return guest.Guest(qemu, image=self.dir, log_dir=self.dir / "log",
                           qmp_timeout=1 if script == HANG else 20, **kw)

    def assert_gone(self):
        pid = int((self.dir / "pid").read_text())
        self.assertFalse(pathlib.Path(f"/proc/{pid}").exists(), f"process {pid} is left")

    def test_ends_at_once(self):
        with self.assertRaisesRegex(ToolError, "ended at once with 3; it said: could not find ROM"):
            self.guest(EXIT).start()
        self.assert_gone()

    def test_hangs(self):
        with self.assertRaisesRegex(ToolError, "no sign of life within 1 s; it said: stuck"):
            self.guest(HANG).start()
        self.assert_gone()

    def test_does_not_boot(self):
        with self.assertRaisesRegex(ToolError, "no answer in time.*still running; console: .*console"):
            with self.guest(MONITOR) as vm:
                vm.wait_ready(timeout=.3)
        self.assertIn("Kernel panic", self.err.getvalue())
        self.assert_gone()

    def test_interrupted(self):
        with self.assertRaises(KeyboardInterrupt):
            with self.guest(MONITOR):
                raise KeyboardInterrupt
        self.assert_gone()

    def test_interrupted_while_starting(self):
        g = self.guest(HANG)
        cls = qemu.machine_class(guest.qemu_python())
        with mock.patch.object(cls.__mro__[1], "_post_launch", side_effect=KeyboardInterrupt), \
                self.assertRaises(KeyboardInterrupt):
            g.start()
        self.assertIsNone(g.pid)
        with self.assertRaises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    def test_good_end(self):
        with self.guest(MONITOR) as vm:
            self.assertEqual(vm.qmp("query-status"), {})
        self.assert_gone()

    def test_ends_by_sigterm(self):
        self.guest(MONITOR).start().shutdown(how="SIGTERM")
        self.assert_gone()

    def test_does_not_end(self):
        for how in ["quit", "SIGTERM"]:
            vm = self.guest(MONITOR, quits=False).start()
            with self.assertRaisesRegex(ToolError, f"did not end within 0.5 s of `{how}`"):
                vm.shutdown(.5, how)
            self.assert_gone()

    def test_crash(self):
        with self.assertRaisesRegex(ToolError, "QEMU ended with -6"):
            with self.guest(MONITOR) as vm:
                with contextlib.suppress(ToolError):
                    vm.qmp("stop")
        self.assert_gone()

    def test_core_of_a_crash(self):
        gdb = self.dir / "gdb"
        gdb.write_text(f'#!/bin/sh\n[ -f "$2" ] && echo "#0  of $1, where it crashed"; touch {self.dir}/called\n')
        gdb.chmod(0o755)
        for core in [True, False]:
            (self.dir / "called").unlink(missing_ok=True)
            with mock.patch.dict(os.environ, PATH=f"{self.dir}:{os.environ['PATH']}"), \
                    mock.patch.object(qemu, "cores_stay_here", return_value=core) as here, \
                    self.subTest(core=core), self.assertRaises(ToolError) as e, self.guest(MONITOR, core=core) as vm:
                vm.qmp("stop")
            self.assertRegex(str(e.exception), "QEMU ended with -6")
            self.assertEqual("guest.stacks" in str(e.exception), core)
            self.assertEqual((self.dir / "called").exists(), core)
            here.assert_called_once_with()
            self.assertEqual(list((self.dir / "log").glob("core*")), [])
        self.assertEqual(self.err.getvalue().count(f"guest: #0  of {self.dir}/qemu, where it crashed"), 1)
        self.assertIn("where it crashed", (self.dir / "log/guest.stacks").read_text())

    def test_core_of_which_nothing_is_told_stays(self):
        gdb = self.dir / "gdb"
        gdb.write_text(f"#!/bin/sh\ntouch {self.dir}/called\n")
        gdb.chmod(0o755)
        core = (self.dir / "log/core").resolve()
        with mock.patch.dict(os.environ, PATH=f"{self.dir}:{os.environ['PATH']}"), \
                mock.patch.object(qemu, "cores_stay_here", return_value=True) as here, \
                self.assertRaisesRegex(ToolError, f"QEMU ended with -6.*; its core: {core}"), \
                self.guest(MONITOR, core=True) as vm:
            vm.qmp("stop")
        here.assert_called_once_with()
        self.assertTrue((self.dir / "called").exists())
        self.assertTrue(core.exists())

    def test_missing_pieces(self):
        with self.assertRaisesRegex(ToolError, "no QEMU at"):
            guest.Guest(self.dir / "nothing", image=self.dir, log_dir=self.dir).start()
        (self.dir / "firmware/bios-256k.bin").unlink()
        with self.assertRaisesRegex(ToolError, "bios-256k.bin is missing"):
            self.guest(HANG).start()

    def test_too_many_disks(self):
        with self.assertRaisesRegex(ToolError, "25 disks"):
            self.guest(HANG, disks=[guest.Disk("/x")] * 25).start()

    def test_no_direct_io(self):
        with mock.patch("os.open", side_effect=OSError(22, "Invalid argument")), \
                self.assertRaisesRegex(ToolError, "O_DIRECT.*DISK="):
            guest.check_direct("/x")


class Channel(unittest.TestCase):
    """The host's end of the job channel against a scripted guest."""

    def setUp(self):
        self.vm = guest.Guest("/nothing", log_dir="/nonexistent")
        self.vm._job, self.far = socket.socketpair()
        self.addCleanup(self.vm._job.close)
        self.addCleanup(self.far.close)

    def answer(self, make):
        def serve():
            line = b""
            while not line.endswith(b"\n"):
                line += self.far.recv(4096)
            self.far.sendall(make(line.split()[1]))
        t = threading.Thread(target=serve, daemon=True)
        t.start()
        self.addCleanup(t.join)

    @staticmethod
    def frame(job, status, data, md5=None):
        return b"done %s %d %d %s\n" % (job, status, len(data),
                                        (md5 or hashlib.md5(data).hexdigest()).encode()) + data

    def test_answer(self):
        self.answer(lambda job: self.frame(job, 7, b"two\nlines"))
        self.assertEqual(self.vm.run("x", 5), (7, "two\nlines"))

    def test_garbage_and_a_late_answer_are_passed_over(self):
        self.answer(lambda job: b"ready\ndone\n\xff\xfe\ndone x 0 0 y\n" +
                    self.frame(b"0" * 16, 0, b"done of another\n") + self.frame(job, 0, b"mine"))
        self.assertEqual(self.vm.run("x", 5), (0, "mine"))

    def test_damage(self):
        self.answer(lambda job: self.frame(job, 0, b"data", "0" * 32))
        with self.assertRaisesRegex(ToolError, "damaged"):
            self.vm.run("x", 5)

    def test_half_an_answer(self):
        self.answer(lambda job: self.frame(job, 0, b"data")[:-1])
        with self.assertRaisesRegex(ToolError, "no answer in time"):
            self.vm.run("x", .3)

    def test_no_answer_is_looked_into(self):
        for code, accel, busy, waits, kind, said, looks in [
                (None, "tcg", .9, None, guest.Stuck, "a vCPU is busy .*; no disk waits for QEMU$", 1),
                (None, "tcg", .1, None, ToolError, "its vCPUs are idle; no disk waits for QEMU$", 1),
                (None, "kvm", .9, None, ToolError, "a vCPU is busy .*; no disk waits for QEMU$", 1),
                (None, "tcg", .9, "queue 0: 3 requests do not complete", ToolError, "3 requests do not complete", 1),
                (0, "tcg", .9, None, Late, "QEMU ended with 0", 0)]:
            qemu = mock.Mock(code=code, pid=300)
            qemu.wait.side_effect = None if code == 0 else subprocess.TimeoutExpired("qemu", 1)
            qemu.wait.return_value = code
            with self.subTest(said), mock.patch.object(self.vm, "_qemu", qemu), \
                    mock.patch.object(self.vm, "accel", accel), mock.patch("dctools.common.progress"), \
                    mock.patch.object(self.vm, "_waits_for", return_value=waits), \
                    mock.patch.object(self.vm, "_examine", return_value=busy) as examine, \
                    mock.patch.object(self.vm, "_note_stacks") as stacks, \
                    self.assertRaisesRegex(ToolError, "no answer in time.*" + said) as e:
                self.vm.run("x", .1)
            self.assertIs(type(e.exception), kind)
            self.assertEqual([examine.call_count, stacks.call_count], [looks, looks])

    def test_a_damaged_answer_is_none_of_tcg(self):
        self.answer(lambda job: self.frame(job, 0, b"data", "0" * 32))
        with mock.patch.object(self.vm, "_qemu", mock.Mock(code=None)), \
                mock.patch.object(self.vm, "_dead", ToolError), self.assertRaisesRegex(ToolError, "damaged") as e:
            self.vm.run("x", 5)
        self.assertIs(type(e.exception), ToolError)

    def test_what_the_disks_wait_for(self):
        ring = {"name": "virtio-blk", "vring-num": 256, "vring-desc": 0x100, "vring-avail": 0x1000,
                "vring-used": 0x2000, "last-avail-idx": 0xffff, "inuse": 0}
        rest = (0xffff, 0xffff, 0xffff)
        for change, broken, words, said in [
                ({}, False, rest, None), ({}, True, rest, "the device is broken"),
                ({}, False, (0, 0xffff, 0xffff), "has not taken all requests"),
                ({"inuse": 2}, False, (0xffff, 0xfffd, 0xfffd), "2 requests do not complete"),
                ({}, False, (0xffff, 0xffff, 0xfffe), "the driver has not taken all used buffers"),
                ({"name": "virtio-serial"}, False, rest, "not every disk has a virtqueue"),
                ({"vring-desc": 0}, False, rest, "not every disk has a virtqueue")]:
            memory = dict(zip((0x1002, 0x2002, 0x1204), words))
            answers = {"x-query-virtio": [{"path": "/disk0"}], "x-query-virtio-queue-status": ring | change,
                       "x-query-virtio-status": {"num-vqs": 1, "broken": broken}}

            def hmp(command, memory=memory):
                address = int(command.removeprefix("xp /1xh "), 16)
                return f"{address:016x}: 0x{memory[address]:04x}\r\n"
            with self.subTest(said), mock.patch.object(self.vm, "_hmp", hmp), \
                    mock.patch.object(self.vm, "disks", [guest.Disk("x")]), \
                    mock.patch.object(self.vm, "qmp", lambda command, answers=answers, **_: answers[command]):
                found = self.vm._waits_for()
            self.assertTrue(found is None if said is None else found.endswith(said), found)
        with mock.patch.object(self.vm, "qmp", side_effect=ToolError("no such command")):
            self.assertIn("it may wait for a disk: no such command", self.vm._waits_for())
        for disk in (guest.Disk("x", driver="virtio-scsi-pci"), guest.Disk("x", event_idx=False)):
            with mock.patch.object(self.vm, "disks", [disk]):
                self.assertIn("it may wait for one", self.vm._waits_for())

    def test_gone(self):
        self.far.close()
        with self.assertRaisesRegex(ToolError, "takes no job|went away"):
            self.vm.run("x", 5)

    def test_time_without_a_cpu_does_not_count(self):
        waits = iter([0, 5, 5])
        with mock.patch.object(self.vm, "starved", lambda: next(waits)), \
                mock.patch.object(self.vm, "_examine", return_value=0) as examine:
            t = threading.Timer(.3, self.far.sendall, [b"ready\n"])
            t.start()
            self.addCleanup(t.join)
            self.vm.wait_ready(.1)
            with self.assertRaisesRegex(ToolError, "no answer in time"), \
                    mock.patch.object(self.vm, "starved", lambda: 5):
                self.vm.wait_ready(.1)
        examine.assert_called_once()

    def test_ready_at_last(self):
        def examine():
            self.far.sendall(b"ready\n")
            return 0
        with mock.patch.object(self.vm, "starved", lambda: 0), mock.patch.object(self.vm, "_examine", examine), \
                mock.patch.object(self.vm, "_press_reset") as reset:
            self.vm.wait_ready(.1)
        reset.assert_not_called()

    def test_tcg_gets_another_chance(self):
        stall = b"rcu: rcu_preempt kthread timer wakeup didn't happen for 5249 jiffies!\r\n"
        for busy, console, ready, resets, said in [
                (.9, b"", True, 1, None), (.9, b"", False, 2, "a vCPU is busy"),
                (.1, b"", True, 0, "its vCPUs are idle"), (.1, stall, True, 1, None),
                (.1, stall, False, 2, "no timer interrupts"), (.1, None, True, 0, "its vCPUs are idle")]:
            with self.subTest(busy=busy, console=console, ready=ready), tempfile.TemporaryDirectory() as d, \
                    mock.patch.object(self.vm, "console", pathlib.Path(d, "console")), \
                    mock.patch.object(self.vm, "_press_reset") as reset, mock.patch("dctools.common.progress"), \
                    mock.patch.object(self.vm, "qmp"), mock.patch.object(self.vm, "accel", "tcg"):
                self.vm.console.write_bytes(stall if console is None else b"")      # None: said before
                def examine():
                    with open(self.vm.console, "ab") as f:
                        f.write(console or b"")
                    return busy
                if ready:
                    reset.side_effect = lambda: self.far.sendall(b"ready\n")
                with mock.patch.object(self.vm, "_examine", examine), \
                        (self.assertRaisesRegex(ToolError, said) if said else contextlib.nullcontext()):
                    self.vm.wait_ready(.1)
                self.assertEqual(reset.call_count, resets)

    def test_threads_have_cpus_of_their_own(self):
        def qmp(command):
            first, count = {"query-cpus-fast": (100, vcpus), "query-iothreads": (200, 3)}[command]
            return [{"thread-id": first + n} for n in range(count)]
        for vcpus, cpus, places in [(1, [4, 6], {100: 4, 200: 6, 201: 6, 202: 6, 300: 6}),
                                    (2, [0, 1, 2, 3], {100: 0, 101: 1, 200: 2, 201: 2, 202: 2, 300: 3}),
                                    (2, [0, 1], {})]:
            with self.subTest(vcpus=vcpus), mock.patch.object(self.vm, "qmp", qmp), \
                    mock.patch.object(guest.Guest, "pid", 300), mock.patch("os.sched_setaffinity") as place:
                self.vm.pin(cpus)
                self.assertEqual({tid: cpu for (tid, (cpu,)), _ in place.call_args_list}, places)

    def test_how_busy_the_vcpus_are(self):
        spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        for p in [spin, idle]:
            self.addCleanup(p.wait)
            self.addCleanup(p.kill)
        with tempfile.TemporaryDirectory() as d, mock.patch.object(self.vm, "log_dir", pathlib.Path(d)):
            for p, low, high in [(spin, .5, 1.1), (idle, 0, .5)]:
                with mock.patch.object(guest.Guest, "pid", p.pid), \
                        mock.patch.object(self.vm, "_rings", return_value=[]), \
                        mock.patch.object(self.vm, "qmp", lambda _, p=p: [{"thread-id": p.pid}]):
                    busy = self.vm._examine()
                    self.assertTrue(low <= busy < high, busy)
            said = pathlib.Path(d, f"{self.vm.label}.hang").read_text()
            self.assertTrue("info registers" in said and f"vCPU {p.pid}: " in said, said)
            with mock.patch.object(self.vm, "qmp", side_effect=ToolError("no QMP")):
                self.assertEqual(self.vm._examine(), 0)

    def test_failed_command(self):
        self.answer(lambda job: self.frame(job, 1, b"first\nno such file\n"))
        with self.assertRaisesRegex(ToolError, "failed in the guest with 1: no such file"):
            self.vm.check("cat x", 5)


class Arguments(unittest.TestCase):
    def test_tcg_keeps_memory_barriers(self):
        for accel, vcpus, cpus in [("tcg", 1, "1,maxcpus=2"), ("tcg", 4, "4,maxcpus=4"), ("kvm", 1, "1")]:
            vm = guest.Guest("/nothing", vcpus=vcpus)
            with mock.patch.object(vm, "accel", accel):
                arguments = vm.arguments()
            self.assertEqual(arguments[arguments.index("-smp") + 1], cpus)

    def test_disks(self):
        for device in [d for driver in guest.DRIVERS for d in guest.Disk("/x", aio="native", driver=driver).devices(1)]:
            for name, value in device.items():      # newer QEMU's device_add wants QMP's types
                self.assertIs(type(value), {"event_idx": bool, "num-queues": int, "num_queues": int}.get(name, str))
        blk = " ".join(guest.Disk("/x", aio="native", queues=4, event_idx=False).arguments(1))
        for part in ["virtio-blk-pci,id=disk1,", "event_idx=off", "num-queues=4", "iothread=iothread1",
                     '"aio": "native"', '"direct": true', "drive=drive1"]:
            self.assertIn(part, blk)
        scsi = " ".join(guest.Disk("/x", driver="virtio-scsi-pci", iothread=False).arguments(0))
        self.assertIn("scsi-hd,bus=disk0.0,drive=drive0", scsi)
        self.assertIn("num_queues=1", scsi)
        self.assertNotIn("iothread", scsi)
        nvme = " ".join(guest.Disk("/x", driver="nvme", iothread=False).arguments(0))
        self.assertIn("nvme,id=disk0,", nvme)
        self.assertIn("drive=drive0", nvme)
        self.assertNotIn("event_idx", nvme)
        with self.assertRaisesRegex(ToolError, "virtio-blk-pci, virtio-scsi-pci or nvme"):
            guest.Disk("/x", driver="ide").arguments(0)

    def test_kvm_needs_the_processor_flag(self):
        for flags, writable, expected in [("vmx", True, "kvm"), ("svm", True, "kvm"), ("sse", True, "tcg"),
                                          ("vmx", False, "tcg"), ("vmxx", True, "tcg")]:
            with mock.patch("pathlib.Path.read_text", return_value=f"model\t: x\nflags\t\t: fpu {flags} de\n"), \
                    mock.patch("os.access", return_value=writable):
                self.assertEqual(guest.accelerator(), expected)

    def test_accelerator_reaches_qemu(self):
        for accel, cpu in [("kvm", "-cpu host"), ("tcg", "-cpu max")]:
            with mock.patch("dctools.guest.machine.accelerator", return_value=accel):
                args = " ".join(guest.Guest("/x").arguments())
            self.assertIn(f"-accel {accel}", args)
            self.assertIn(cpu, args)


if __name__ == "__main__":
    unittest.main()
