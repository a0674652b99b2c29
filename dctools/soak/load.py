# SPDX-License-Identifier: GPL-2.0-or-later
"""The load in the guest, and whether all is well with it."""

import contextlib
import errno
import os
import pathlib
import random
import re
import time
from collections.abc import Sequence
from typing import Any

from dctools import common, fio, guest
from dctools.common import ToolError

AREA_MIB = 8            # what a round of fio writes and verifies
AREAS = 4               # rounds go around: a finished one stays for the next AREAS - 1
SIZE = AREAS * AREA_MIB << 20
PATIENCE = 30           # seconds
LOOK, LOOKS = 0.2, 3    # seconds, and how often, to see that an IOThread without requests does nothing
BUSY = 0.1              # part of the time that is too much then
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
COLLECT = ('cd /; for f in result.*; do [ -e $f ] || continue; echo "== $f"; cat $f; rm $f; done; '
           'echo "== "; ls /ended.* 2>/dev/null; true')


def judge(text: str, only_verify: bool = False) -> tuple[float, float, float, int, str]:
    """(MiB written, MiB verified, slowest request in s, errno, what fio said) of a round of fio."""
    try:
        job = fio.jobs(text)[0]
        written, verified = (job[k]["io_bytes"] / (1 << 20) for k in ["write", "read"])
        slowest = max(job[k]["lat_ns"]["max"] for k in ["write", "read"]) / 1e9
        error = job["error"]
    except (ToolError, KeyError):
        m = re.search(r"err(?:or)?=\s*(\d+)", text)
        written = verified = slowest = 0
        error = int(m[1]) if m else errno.EPROTO
    if only_verify:
        written = 0         # fio counts what it would have written
    wanted = (0 if only_verify else AREA_MIB, AREA_MIB)
    said = next((s for s in text.splitlines() if re.search("verify|error|err=", s) and '"' not in s), "")
    if not error and (written, verified) != wanted:
        error, said = errno.EPROTO, f"{written} MiB written, {verified} MiB verified"
    return written, verified, slowest, error, said.strip()


def console_problem(text: str, pulled: str = "") -> str | None:
    """The first line in which the guest's kernel complains; of a pulled disk I/O errors are none."""
    for line in text.replace("\r", "").splitlines():
        if BAD_CONSOLE.search(line) and not (pulled and "I/O error" in line and re.search(rf"\b{pulled}\b", line)):
            return line.strip()
    return None


class Load:
    """Six disks of a guest under load; what goes wrong with them is a ToolError."""

    def __init__(self, binary: pathlib.Path | str, seed: int, disks: Sequence[tuple[str, str]],
                 directory: pathlib.Path, patience: float) -> None:
        self.binary, self.random, self.patience = binary, random.Random(seed), patience
        self.qemu_img, self.dir = pathlib.Path(binary).parent / "qemu-img", directory
        self.disks = []
        for n, (driver, aio) in enumerate(disks):
            path = directory / f"disk{n}.raw"
            self.disks.append(guest.Disk(common.sparse(path, SIZE), aio=aio, driver=driver, queues=2))
        self.vm = guest.Guest(binary, self.disks, label="soak", memory=768, log_dir=directory)
        self.names = [""] * len(disks)          # the device in the guest
        self.base = [0] * len(disks)            # of randseed: never the same again
        # base and number of the last round that was verified
        self.settled: list[tuple[int, int] | None] = [None] * len(disks)
        self.loads = self.seen = 0              # how often load() was called; bytes of the console
        self.console = directory / "console.txt"
        self.console.write_text("")
        self.ended: set[int] = set()
        self.did = dict.fromkeys(["stops", "mirrors", "backups", "cancelled backups", "snapshots", "commits",
                                  "saved states", "loaded states", "limits", "resizes", "unplugs", "lun unplugs",
                                  "unplugs while paused", "rebinds", "resets", "resets while paused",
                                  "migrations", "ends by SIGTERM"], 0)
        self.done: list[dict[str, Any]] = [
            {"driver": driver, "aio": aio, "rounds": 0, "written_mib": 0, "verified_mib": 0, "slowest_s": 0.0}
            for driver, aio in disks]

    def name(self, n: int) -> str:
        """What messages call disk n."""
        return f"{self.disks[n].driver} aio={self.disks[n].aio}"

    # -- fio in the guest

    def boot(self) -> None:
        """After a start or a reset: the watch for hung tasks, and the load on each disk."""
        self.vm.check("echo 30 >/proc/sys/kernel/hung_task_timeout_secs")
        self.vm.put_file("/loop.sh", LOOP)
        self.load(range(len(self.disks)))

    def load(self, which: Sequence[int]) -> None:
        """Verify what these disks have, then write on."""
        self.loads += 1
        for n in which:
            self.names[n] = self.find(n)
        self.verify(which)
        script = ""
        for n in which:
            settled = self.settled[n]
            r = settled[1] if settled else 0
            self.base[n] = self.loads * 1000000
            script += (f"rm -f /ended.{n}; echo {r} >/settled.{n}\n"
                       f"sh /loop.sh {n} /dev/{self.names[n]} {r + 1} {self.base[n]} >/loop.{n} 2>&1 &\n")
        self.ended -= set(which)
        self.vm.check(script)

    def find(self, n: int) -> str:
        """The name of disk n in the guest, which may need a moment to find it."""
        why = ""

        def look() -> str:
            nonlocal why
            try:
                return pathlib.Path(self.vm.disk(n)[0]).name
            except ToolError as e:
                why = str(e)
                return ""
        return common.wait_until(look, self.patience, lambda: f"{self.name(n)}: {why}", .2)

    def verify(self, which: Sequence[int]) -> None:
        """Read again the last round of each of these disks."""
        script, known = "", [(n, settled) for n in which if (settled := self.settled[n])]
        for n, (base, r) in known:
            script += f"dev=/dev/{self.names[n]} r={r} base={base}; {FIO} --verify_only=1 >/verify.{n} 2>&1 &\n"
        script += "wait\n" + "\n".join(f'echo "== verify.{n}.0"; cat /verify.{n}' for n, _ in known)
        self.take(self.vm.check(script, 300), only_verify=True)

    def take(self, output: str, pulled: int | None = None, only_verify: bool = False) -> None:
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

    def collect(self, pulled: int | None = None) -> None:
        """Take the rounds that are finished, look at the console."""
        known = "".join(f"echo {s[1]} >/settled.{n}; " for n, s in enumerate(self.settled) if s)
        output = self.vm.check(known + COLLECT, 120)
        self.take(output, pulled)
        self.ended = {int(n) for n in re.findall(r"^/ended\.(\d+)$", output, re.M)}
        self.read_console(self.names[pulled] if pulled is not None else "")

    def read_console(self, pulled: str = "") -> None:
        """Note what the guest's kernel has said since; a complaint is a ToolError."""
        new = self.vm.console.read_bytes()[self.seen:].rpartition(b"\n")[0]
        self.seen += len(new)
        text = new.decode(errors="replace")
        with open(self.console, "a") as out:
            out.write(text)
        if problem := console_problem(text, pulled):
            raise ToolError(f"the guest's kernel says: {problem} (see {self.console})")

    # -- is it alive?

    def alive(self) -> None:
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

    def idle(self) -> None:
        """Without requests no IOThread uses CPU, be the guest running or paused."""
        self.vm.check(PAUSE, 4 * self.patience)
        self.look("running")
        with self.vm.paused():
            self.look("paused")
        self.vm.check(GO_ON)

    def look(self, state: str) -> None:
        """A ToolError if an IOThread uses CPU now. What is just at its end may need a second look."""
        for _ in range(LOOKS):
            busy = {n: part for n, part in enumerate(self.vm.busy(LOOK)) if part > BUSY}
            if not busy:
                return
        raise ToolError("; ".join(f"{self.name(n)}: without requests its IOThread uses {part:.0%} of a CPU, the guest "
                                  f"is {state}" for n, part in busy.items()))

    def wait_job(self, job: str, status: str, paused: bool = False, cancelled: bool = False) -> None:
        """Wait for a job; "concluded" must be without an error, unless it was cancelled."""
        seen = ""

        def look():
            nonlocal seen
            now = next(j for j in self.vm.qmp("query-jobs") if j["id"] == job)
            seen = now["status"]
            if now.get("error") and not cancelled:
                raise ToolError(f"job {job}: {now['error']}")
            if seen != status and not paused:
                self.collect()
            return seen == status
        common.wait_until(look, 4 * self.patience,
                          lambda: f"job {job} is {seen}, not {status}, after {4 * self.patience} s")

    def end_job(self, job: str, **kw: bool) -> None:
        """Wait until a job is over, like wait_job(), and forget it."""
        self.wait_job(job, "concluded", **kw)
        self.vm.qmp("job-dismiss", id=job)

    def finish_job(self, job: str) -> None:
        """Let a job that goes on until it is told to end do so."""
        self.wait_job(job, "ready")
        self.vm.qmp("job-complete", id=job)
        self.end_job(job)
