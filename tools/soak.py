#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""make soak MINUTES=30: fio writes and verifies in a guest while its host gives it no rest.

Six disks, virtio-blk and virtio-scsi with each aio engine, each with an IOThread.
On the host, in random order: stop and cont, mirror to another file and back, backups
that are cancelled and one that is not, snapshot to a qcow2 overlay and commit, the
machine's state saved there and loaded again, limits of IOPS and bandwidth, another
size and back, hot-unplug and re-plug, also while the guest is paused, unbind and bind
of the guest's driver, system_reset, also while it is paused, migration to a file and
back; in the end SIGTERM under load. It fails on a checksum error, an I/O error that
unplugging does not explain, a request slower than 30 s, a disk without progress
for 30 s, an IOThread that uses CPU while there are no requests (after each operation),
a hung task or a panic in the guest, and a QEMU that ends, or does not when it has to.

MINUTES= (30), SEED= (replays the order), OPS= (some of the operations),
QEMU= (a binary other than the series'). The figures are also in
build/soak/STACK/soak.json, what the guest's kernel said in console.txt beside it.
"""

import contextlib
import errno
import json
import os
import pathlib
import random
import re
import secrets
import signal
import time

import build
import common
import guest
from common import ToolError, progress

LOGS = common.logs("soak")
AREA_MIB = 8            # what a round of fio writes and verifies
AREAS = 4               # rounds go around: a finished one stays for the next AREAS - 1
SIZE = AREAS * AREA_MIB << 20
PATIENCE = 30           # seconds
LOOK, LOOKS = 0.2, 3    # seconds, and how often, to see that an IOThread without requests does nothing
BUSY = 0.1              # part of the time that is too much then
OPS = ["stops", "mirror", "backup", "commit", "snapshot", "throttle", "resize", "unplug", "unplug_paused", "rebind",
       "reset", "reset_paused", "migrate"]
# Operations that must make it fail, to see that it can: what it has to say (of each disk, if there is a {}), which
# devices and engines the disks have then. virtio-scsi's IOThread does not poll.
SABOTAGE = {"damage": ("{}: fio verifies an earlier round: [^;]*verify: bad", guest.DRIVERS, ["threads"]),
            "hang": ("{}: the disk hangs: no request for", guest.DRIVERS, guest.AIO),
            "spin": ("{}: without requests its IOThread uses", ["virtio-blk-pci"], guest.AIO),
            "crash": ("QEMU ended with -6", guest.DRIVERS, ["threads"])}
BAD_CONSOLE = re.compile(r"blocked for more than|I/O error|Kernel panic|BUG:|Oops|invalid opcode|"
                         r"general protection|timing out command|timed out")

# randseed is in the header of each block, so that stale data does not pass for new
FIO = (f"fio --name=soak --filename=$dev --allow_file_create=0 --ioengine=libaio --direct=1 "
       f"--rw=randwrite --bsrange=4k-64k --size={AREA_MIB}m --offset=$((r % {AREAS} * {AREA_MIB}))m "
       f"--iodepth=16 --verify=crc32c --verify_fatal=1 --randseed=$((base + r)) --output-format=json")

# Round after round on one disk. It must not write over the last round that the
# host knows of, which /settled.N names.
LOOP = f"""
n=$1 dev=$2 r=$3 base=$4
until [ -e /stop ]; do
    [ ! -e /pause ] && [ $r -lt $(($(cat /settled.$n) + {AREAS})) ] || {{ sleep 0.2; continue; }}
    {FIO} --verify_backlog=64 >/run.$n 2>&1
    status=$?
    mv /run.$n /result.$n.$r
    [ $status = 0 ] || break
    r=$((r + 1))
done
touch /ended.$n
"""
# Between two rounds: a fio that gets SIGSTOP in io_getevents(2) may wait there for ever, with nothing in flight
PAUSE = "touch /pause; sleep 0.1; while pidof fio >/dev/null; do sleep 0.1; done"
GO_ON = "rm /pause"
SEEN = "ps; grep . /sys/block/[sv]d*/inflight; tail -n 3 /run.* /loop.*"     # of a disk that hangs
COLLECT = 'cd /; for f in result.*; do [ -e $f ] || continue; echo "== $f"; cat $f; rm $f; done; echo "== "; ls /ended.* 2>/dev/null; true'


def judge(text, only_verify=False):
    """(MiB written, MiB verified, slowest request in s, errno, what fio said) of a round of fio."""
    try:
        job = json.loads(text[text.index("{\n"):text.rindex("}") + 1])["jobs"][0]
        written, verified = (job[k]["io_bytes"] / (1 << 20) for k in ["write", "read"])
        slowest = max(job[k]["lat_ns"]["max"] for k in ["write", "read"]) / 1e9
        error = job["error"]
    except (ValueError, KeyError, IndexError):
        said = re.search(r"err(?:or)?=\s*(\d+)", text)
        written = verified = slowest = 0
        error = int(said[1]) if said else errno.EPROTO
    if only_verify:
        written = 0         # fio counts what it would have written
    wanted = (0 if only_verify else AREA_MIB, AREA_MIB)
    said = next((s for s in text.splitlines() if re.search("verify|error|err=", s) and '"' not in s), "")
    if not error and (written, verified) != wanted:
        error, said = errno.EPROTO, f"{written} MiB written, {verified} MiB verified"
    return written, verified, slowest, error, said.strip()


def console_problem(text, pulled=""):
    """The first line in which the guest's kernel complains; of a pulled disk I/O errors are none."""
    for line in text.replace("\r", "").splitlines():
        if BAD_CONSOLE.search(line) and not (pulled and "I/O error" in line and re.search(rf"\b{pulled}\b", line)):
            return line.strip()
    return None


class Soak:
    def __init__(self, binary, seed, disks, directory, patience):
        self.binary, self.random, self.patience = binary, random.Random(seed), patience
        self.qemu_img, self.dir = pathlib.Path(binary).parent / "qemu-img", directory
        self.disks = []
        for n, (driver, aio) in enumerate(disks):
            path = directory / f"disk{n}.raw"
            path.write_bytes(b"")
            os.truncate(path, SIZE)
            self.disks.append(guest.Disk(str(path), aio=aio, driver=driver, queues=2))
        self.vm = guest.Guest(binary, self.disks, label="soak", memory=768, log_dir=directory)
        self.names = [""] * len(disks)          # the device in the guest
        self.base = [0] * len(disks)            # of randseed: never the same again
        self.settled = [None] * len(disks)      # base and number of the last round that was verified
        self.loads = self.seen = 0              # how often load() was called; bytes of the console
        self.console = directory / "console.txt"
        self.console.write_text("")
        self.ended = set()
        self.did = dict.fromkeys(["stops", "mirrors", "backups", "cancelled backups", "snapshots", "commits",
                                  "saved states", "loaded states", "limits", "resizes", "unplugs", "lun unplugs",
                                  "unplugs while paused", "rebinds", "resets", "resets while paused",
                                  "migrations", "ends by SIGTERM"], 0)
        self.done = [{"driver": driver, "aio": aio, "rounds": 0, "written_mib": 0, "verified_mib": 0,
                      "slowest_s": 0.0} for driver, aio in disks]

    def name(self, n):
        return f"{self.disks[n].driver} aio={self.disks[n].aio}"

    # -- fio in the guest

    def boot(self):
        """After a start or a reset: the watch for hung tasks, and the load on each disk."""
        self.vm.check("echo 30 >/proc/sys/kernel/hung_task_timeout_secs")
        self.vm.put_file("/loop.sh", LOOP)
        self.load(range(len(self.disks)))

    def load(self, which):
        """Verify what these disks have, then write on."""
        self.loads += 1
        for n in which:
            self.names[n] = self.find(n)
        self.verify(which)
        script = ""
        for n in which:
            r = self.settled[n][1] if self.settled[n] else 0
            self.base[n] = self.loads * 1000000
            script += (f"rm -f /ended.{n}; echo {r} >/settled.{n}\n"
                       f"sh /loop.sh {n} /dev/{self.names[n]} {r + 1} {self.base[n]} >/loop.{n} 2>&1 &\n")
        self.ended -= set(which)
        self.vm.check(script)

    def find(self, n):
        """The name of disk n in the guest, which may need a moment to find it."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return pathlib.Path(self.vm.disk(n)[0]).name
            except ToolError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(.2)

    def verify(self, which):
        """Read again the last round of each of these disks."""
        script, known = "", [n for n in which if self.settled[n]]
        for n in known:
            base, r = self.settled[n]
            script += f"dev=/dev/{self.names[n]} r={r} base={base}; {FIO} --verify_only=1 >/verify.{n} 2>&1 &\n"
        script += "wait\n" + "\n".join(f'echo "== verify.{n}.0"; cat /verify.{n}' for n in known)
        self.take(self.vm.check(script, 300), only_verify=True)

    def take(self, output, pulled=None, only_verify=False):
        """Judge the rounds in this output; of the disk that is pulled out, errors are none."""
        problems = []
        for m in re.finditer(r"^== \w+\.(\d+)\.(\d+)\n(.*?)(?=^== |\Z)", output, re.M | re.S):
            n, r = int(m[1]), int(m[2])
            written, verified, slowest, error, said = judge(m[3], only_verify)
            done = self.done[n]
            done["slowest_s"] = max(done["slowest_s"], slowest)
            # Of a disk that is gone Linux reads 0 bytes without an error, and fio verifies
            # what was in its buffer before. The disk's data is verified when it is back.
            if error and n == pulled:
                continue
            if error:
                (self.dir / f"fio{n}.txt").write_text(m[3])
                problems.append(f"{self.name(n)}: fio {'verifies an earlier round' if only_verify else f'round {r}'}: "
                                f"{os.strerror(error)}, {said or 'nothing more'}, see {self.dir}/fio{n}.txt")
                continue
            if slowest > self.patience:
                problems.append(f"{self.name(n)}: a request took {slowest:.1f} s")
            done["rounds"] += not only_verify
            done["written_mib"] += written
            done["verified_mib"] += verified
            if not only_verify:
                self.settled[n] = max(self.settled[n] or (0, 0), (self.base[n], r))
        if problems:
            raise ToolError("; ".join(problems))

    def collect(self, pulled=None):
        """Take the rounds that are finished, look at the console."""
        known = "".join(f"echo {s[1]} >/settled.{n}; " for n, s in enumerate(self.settled) if s)
        output = self.vm.check(known + COLLECT, 120)
        self.take(output, pulled)
        self.ended = {int(n) for n in re.findall(r"^/ended\.(\d+)$", output, re.M)}
        self.read_console(self.names[pulled] if pulled is not None else "")

    def read_console(self, pulled=""):
        text = self.vm.console.read_bytes()[self.seen:].rpartition(b"\n")[0]
        self.seen += len(text)
        text = text.decode(errors="replace")
        with open(self.console, "a") as out:
            out.write(text)
        if problem := console_problem(text, pulled):
            raise ToolError(f"the guest's kernel says: {problem} (see {self.console})")

    # -- is it alive?

    def alive(self):
        """Wait until each disk has done something from now on.

        Time in which QEMU's threads wanted a CPU and got none does not count.
        """
        before, starved, start = self.vm.requests(), self.vm.starved(), time.monotonic()
        while True:
            self.collect()
            still = [n for n, c in enumerate(self.vm.requests()) if c == before[n]]
            if not still:
                return
            if time.monotonic() - start > self.patience + self.vm.starved() - starved:
                with contextlib.suppress(ToolError):
                    (self.dir / "hang.txt").write_text(self.vm.run(SEEN)[1])
                raise ToolError("; ".join(f"{self.name(n)}: the disk hangs: no request for {self.patience} s"
                                          for n in still))
            time.sleep(.3)

    def idle(self):
        """Without requests no IOThread uses CPU, be the guest running or paused."""
        self.vm.check(PAUSE, 4 * self.patience)
        self.look("running")
        with self.vm.paused():
            self.look("paused")
        self.vm.check(GO_ON)

    def look(self, state):
        """What is just at its end may need a second look."""
        for _ in range(LOOKS):
            busy = {n: part for n, part in enumerate(self.vm.busy(LOOK)) if part > BUSY}
            if not busy:
                return
        raise ToolError("; ".join(f"{self.name(n)}: without requests its IOThread uses {part:.0%} of a CPU, the guest "
                                  f"is {state}" for n, part in busy.items()))

    def wait_job(self, job, status, paused=False, cancelled=False):
        """Wait for a job; "concluded" must be without an error, unless it was cancelled."""
        deadline = time.monotonic() + 4 * self.patience
        while True:
            now = next(j for j in self.vm.qmp("query-jobs") if j["id"] == job)
            if now.get("error") and not cancelled:
                raise ToolError(f"job {job}: {now['error']}")
            if now["status"] == status:
                return
            if time.monotonic() > deadline:
                raise ToolError(f"job {job} is {now['status']}, not {status}, after {4 * self.patience} s")
            if not paused:
                self.collect()
            time.sleep(.1)

    def end_job(self, job, **kw):
        self.wait_job(job, "concluded", **kw)
        self.vm.qmp("job-dismiss", id=job)

    def finish_job(self, job):
        self.wait_job(job, "ready")
        self.vm.qmp("job-complete", id=job)
        self.end_job(job)

    # -- what the host does

    def stops(self, most=40):
        for _ in range(self.random.randint(most // 4, most)):
            with self.vm.paused():
                time.sleep(self.random.random() * .02)
            time.sleep(self.random.random() * .1)
            self.did["stops"] += 1

    def any_disk(self):
        n = self.random.randrange(len(self.disks))
        return n, self.disks[n]

    def nodes(self):
        """The node of a disk, and one like it on another file."""
        n, disk = self.any_disk()
        copy = self.dir / "copy.raw"
        copy.write_bytes(b"")
        os.truncate(copy, SIZE)
        node = disk.blockdev(n)
        return node, {**node, "node-name": "copy", "file": {**node["file"], "filename": str(copy)}}

    def mirror(self):
        """To a copy, go on there, and back."""
        node, there = self.nodes()
        for old, new in [(node, there), (there, node)]:
            if new is node:
                self.alive()
            self.vm.qmp("blockdev-add", args_dict=new)
            self.vm.qmp("blockdev-mirror", job_id="mirror", device=old["node-name"], target=new["node-name"],
                        sync="full", copy_mode=self.random.choice(["background", "write-blocking"]),
                        auto_dismiss=False)
            self.finish_job("mirror")
            self.vm.qmp("blockdev-del", node_name=old["node-name"])
            self.did["mirrors"] += 1

    def backup(self):
        """Slow ones that are cancelled, with stops meanwhile, and one that comes to its end."""
        node, there = self.nodes()
        self.vm.qmp("blockdev-add", args_dict=there)
        for speed in [1 << 20] * self.random.randint(1, 5) + [0]:
            self.vm.qmp("blockdev-backup", job_id="backup", device=node["node-name"], target="copy", sync="full",
                        speed=speed, auto_dismiss=False)
            if speed:
                self.stops(8)
                self.vm.qmp("job-cancel", id="backup")
            self.end_job("backup", cancelled=bool(speed))
            self.did["cancelled backups" if speed else "backups"] += 1
        self.vm.qmp("blockdev-del", node_name="copy")

    @contextlib.contextmanager
    def overlay(self):
        """Snapshot to a qcow2 overlay, write there meanwhile, commit it."""
        n, disk = self.any_disk()
        overlay = self.dir / "overlay.qcow2"
        common.run([self.qemu_img, "create", "-q", "-f", "qcow2", overlay, str(SIZE)])
        self.vm.qmp("blockdev-add", args_dict={
            "driver": "qcow2", "node-name": "overlay", "backing": None, "cache": disk.file()["cache"],
            "file": {**disk.file(), "filename": str(overlay)}})
        self.vm.qmp("blockdev-snapshot", node=f"drive{n}", overlay="overlay")
        self.did["snapshots"] += 1
        self.alive()
        yield
        self.vm.qmp("block-commit", job_id="commit", device="overlay", auto_dismiss=False)
        self.finish_job("commit")
        self.vm.qmp("blockdev-del", node_name="overlay")
        self.did["commits"] += 1

    def commit(self):
        with self.overlay():
            time.sleep(self.random.random() * 3)

    def snapshot(self):
        """Save the state of the machine and of a disk, and load it.

        The other disks do not go back, so the guest does not run between the two.
        """
        def job(what, **kw):
            self.vm.qmp(what, job_id="state", tag="state", devices=["overlay"],
                        **{} if what == "snapshot-delete" else {"vmstate": "overlay"})
            self.end_job("state", **kw)

        with self.overlay():
            for paused in [False, True]:
                if paused:
                    self.vm.qmp("stop")
                job("snapshot-save", paused=paused)
                self.did["saved states"] += 1
                if paused:
                    job("snapshot-load", paused=True)
                    self.did["loaded states"] += 1
                    self.vm.qmp("cont")
                job("snapshot-delete")
            self.alive()

    def limit(self, n, **limits):
        """Throttle a disk, or, without limits, do not any more."""
        none = dict.fromkeys(["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"], 0)
        self.vm.qmp("block_set_io_throttle", args_dict={"id": self.disks[n].qdev(n), **none, **limits})

    def throttle(self):
        """Limits that hold up requests, stops meanwhile, and no limits again."""
        n, _ = self.any_disk()
        for limits in [{"iops": self.random.randint(50, 500)}, {"bps": self.random.randint(1, 8) << 20}, {}]:
            self.limit(n, **limits)
            self.stops(8)
        self.did["limits"] += 2

    def resize(self):
        """Another size under load, which the guest sees, and back."""
        n, _ = self.any_disk()
        for size in [SIZE + (self.random.randint(1, 64) << 20), SIZE]:
            self.vm.qmp("block_resize", node_name=f"drive{n}", size=size)
            deadline = time.monotonic() + self.patience
            while (seen := int(self.vm.check(f"cat /sys/block/{self.names[n]}/size")) * 512) != size:
                if time.monotonic() > deadline:
                    raise ToolError(f"{self.name(n)}: the guest sees {seen} bytes, not {size}")
                time.sleep(.1)
            self.did["resizes"] += 1

    def wait_ended(self, n):
        """Wait until fio has noticed that its disk is gone."""
        deadline = time.monotonic() + self.patience
        while n not in self.ended:
            if time.monotonic() > deadline:
                raise ToolError(f"{self.name(n)}: fio does not end when the disk is gone")
            self.collect(n)
            time.sleep(.2)

    def load_again(self, n):
        self.load([n])
        self.collect(n)                         # what the kernel said of the old one meanwhile

    def unplug(self, paused=False):
        """Pull a disk out under its load: the PCI device, or the SCSI disk behind it."""
        n, disk = self.any_disk()
        devices = disk.devices(n)
        if len(devices) > 1 and self.random.random() < .5:
            devices = devices[1:]
        self.collect()
        with self.vm.paused() if paused else contextlib.nullcontext():
            self.vm.qmp("device_del", id=devices[0]["id"])
        self.vm.wait_event("DEVICE_DELETED", self.patience, {"data": {"device": devices[0]["id"]}})
        self.wait_ended(n)
        with self.vm.paused() if paused else contextlib.nullcontext():
            for device in devices:
                self.vm.qmp("device_add", args_dict=device)
        self.load_again(n)
        self.did["unplugs" if "addr" in devices[0] else "lun unplugs"] += 1
        self.did["unplugs while paused"] += paused

    def unplug_paused(self):
        self.unplug(paused=True)

    def rebind(self):
        """The guest's driver lets go of a disk under its load, and takes it again."""
        n, disk = self.any_disk()
        driver = f"/sys/bus/virtio/drivers/{disk.driver.removesuffix('-pci').replace('-', '_')}"
        device = self.vm.disk(n)[1]
        self.collect()
        self.vm.check(f"echo {device} >{driver}/unbind", 4 * self.patience)
        self.wait_ended(n)
        self.vm.check(f"echo {device} >{driver}/bind", 4 * self.patience)
        self.load_again(n)
        self.did["rebinds"] += 1

    def reset(self, paused=False):
        self.collect()
        self.vm.reset(4 * self.patience, paused)
        self.did["resets while paused" if paused else "resets"] += 1
        self.boot()

    def reset_paused(self):
        self.reset(paused=True)

    def migrate(self):
        if self.random.random() < .5:
            self.vm.qmp("stop")
        state = self.dir / "state"
        self.vm.migrate(state)
        state.unlink()
        self.did["migrations"] += 1

    # -- what must not pass, with each disk that there is

    def damage(self):
        """Behind the guest's back, a block is not what it was."""
        self.alive()
        while not all(self.settled):
            self.collect()
        for disk, settled in zip(self.disks, self.settled):
            with open(disk.path, "r+b") as f:
                f.seek((settled[1] % AREAS * AREA_MIB << 20) + (AREA_MIB << 19))
                f.write(os.urandom(64 << 10))
                os.fsync(f.fileno())
        self.verify(range(len(self.disks)))

    def hang(self):
        """A disk that never finishes a request."""
        for n in range(len(self.disks)):
            self.limit(n, bps=1)
        self.patience = 5
        before = None
        while (now := self.vm.requests()) != before:    # what was under way still ends
            before = now
            time.sleep(1)

    def spin(self):
        """An IOThread that polls for seconds when there is nothing to do."""
        for n in range(len(self.disks)):
            for name, value in [("poll-grow", 1 << 30), ("poll-max-ns", 10 ** 11)]:
                self.vm.qmp("qom-set", path=f"/objects/iothread{n}", property=name, value=value)
        self.alive()

    def crash(self):
        os.kill(self.vm.pid, signal.SIGABRT)

    # -- all of it

    def run(self, minutes, ops):
        """Until the time is over, but each operation at least once."""
        end = time.monotonic() + 60 * minutes
        self.vm.start()
        self.vm.wait_ready()
        self.boot()
        self.alive()
        first = True
        while first or time.monotonic() < end:
            for op in self.random.sample(ops, len(ops)):
                if not first and time.monotonic() > end:
                    break
                getattr(self, op)()
                self.alive()
                self.idle()
            first = False
            progress(", ".join(f"{v} {k}" for k, v in self.did.items() if v) +
                     f"; {sum(d['verified_mib'] for d in self.done):.0f} MiB verified")
        self.vm.check("touch /stop")
        deadline = time.monotonic() + 4 * self.patience
        while len(self.ended) < len(self.disks):
            if time.monotonic() > deadline:
                raise ToolError(f"the last rounds did not end within {4 * self.patience} s")
            self.collect()
            time.sleep(.2)
        self.vm.check("rm /stop")
        self.load(range(len(self.disks)))
        self.alive()
        self.vm.shutdown(2 * self.patience, "SIGTERM")
        self.did["ends by SIGTERM"] += 1
        self.read_console()


def table(figures):
    did, disks = figures["did"], figures["disks"]
    lines = [f"{'operation':<32}{'survived':>9}"]
    lines += [f"{k:<32}{v:>9}" for k, v in did.items()]
    lines += ["", f"{'disk':<24}{'rounds':>8}{'MiB written':>13}{'MiB verified':>14}{'slowest request':>17}"]
    lines += [f"{d['driver'] + ' ' + d['aio']:<24}{d['rounds']:>8}{d['written_mib']:>13.0f}"
              f"{d['verified_mib']:>14.0f}{d['slowest_s']:>15.2f} s" for d in disks]
    lines += ["", f"{figures['minutes']:.1f} minutes, seed {figures['seed']}: {figures['problem'] or 'no problem'}"]
    return "\n".join(lines)


def soak(binary, minutes, seed=None, ops=OPS, disks=None, directory=LOGS, patience=PATIENCE, show=None):
    """Run it and return its figures, after show(figures). A problem is a ToolError."""
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    directory = pathlib.Path(directory)
    common.need_space(directory, 1500)
    progress(f"soak: seed {seed}, {minutes:g} minutes, {' '.join(ops)}")
    s = Soak(binary, seed, disks or [(d, aio) for d in guest.DRIVERS for aio in guest.AIO], directory, patience)
    start, problem = time.monotonic(), "interrupted"
    try:
        s.run(minutes, ops)
        problem = None
    except ToolError as e:
        problem = str(e)
        raise
    finally:
        s.vm.kill()
        figures = {"seed": seed, "minutes": (time.monotonic() - start) / 60, "problem": problem,
                   "did": s.did, "disks": s.done}
        (directory / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
        if show:
            show(figures)
    for f in [*(d.path for d in s.disks), directory / "copy.raw", directory / "overlay.qcow2"]:
        pathlib.Path(f).unlink(missing_ok=True)
    return figures


def must_notice(binary, op, directory=LOGS / "sabotage"):
    """A ToolError unless this sabotage of all the disks ends the soak, with the right words."""
    words, drivers, engines = SABOTAGE[op]
    disks = [(driver, aio) for driver in drivers for aio in engines]
    try:
        soak(binary, .01, 1, [op], disks, directory)
    except ToolError as e:
        if not all(re.search(words.format(f"{driver} aio={aio}"), str(e)) for driver, aio in disks):
            raise
    else:
        raise ToolError(f"a soak with the sabotage `{op}` found nothing wrong")


def main():
    stack = common.stack_name()
    minutes = common.number(os.environ, "MINUTES", 30, 0.01, 10 ** 6, float)
    seed = common.number(os.environ, "SEED", 0, 0, (1 << 63) - 1) if os.environ.get("SEED") else None
    ops = os.environ.get("OPS", "").split() or OPS
    for op in ops:
        if op not in [*OPS, *SABOTAGE]:
            raise ToolError(f"OPS={op}: one or more of {' '.join([*OPS, *SABOTAGE])}")
    binary = build.binary_to_test(stack)
    guest.build_image()
    soak(binary, minutes, seed, ops, show=lambda f: print(table(f), flush=True))


if __name__ == "__main__":
    common.main(main)
