# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host does meanwhile, and what must not pass."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dctools import common, guest, process
from dctools.common import progress
from dctools.soak.load import AREA_MIB, AREAS, SIZE, Load

OPS = ["stops", "mirror", "backup", "commit", "snapshot", "throttle", "resize", "unplug", "unplug_paused", "rebind",
       "reset", "reset_paused", "migrate"]
# Operations that must make it fail, to see that it can: what it has to say (of each disk, if there is a {}), which
# devices and engines the disks have then. virtio-scsi's IOThread does not poll.
SABOTAGE = {"damage": ("{}: fio verifies an earlier round: [^;]*verify: bad", guest.DRIVERS, ["threads"]),
            "hang": ("{}: the disk hangs: no request for", guest.DRIVERS, guest.AIO),
            "spin": ("{}: without requests its IOThread uses", ["virtio-blk-pci"], guest.AIO),
            "crash": ("QEMU ended with -6", guest.DRIVERS, ["threads"])}
QUIET = 2       # seconds without a request, but for time in which QEMU's threads got no CPU


class Soak(Load):
    """All of it."""

    # -- what the host does

    def stops(self, most: int = 40) -> None:
        """Stop the guest and continue it, again and again."""
        for _ in range(self.random.randint(most // 4, most)):
            with self.vm.paused():
                time.sleep(self.random.random() * .02)
            time.sleep(self.random.random() * .1)
            self.did["stops"] += 1

    def any_disk(self) -> tuple[int, guest.Disk]:
        """One of the disks, and its number."""
        n = self.random.randrange(len(self.disks))
        return n, self.disks[n]

    def nodes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The node of a disk, and one like it on another file."""
        n, disk = self.any_disk()
        copy = common.sparse(self.dir / "copy.raw", SIZE)
        node = disk.blockdev(n)
        return node, {**node, "node-name": "copy", "file": {**node["file"], "filename": copy}}

    def mirror(self) -> None:
        """To a copy, go on there, and back."""
        node, there = self.nodes()
        for old, new in [(node, there), (there, node)]:
            if new is node:
                self.alive()
            self.vm.qmp("blockdev-add", args_dict=new)
            mode = self.random.choice(["background", "write-blocking"])
            # 7.2.22 crashes if a write comes before such a job runs, with or without a series (docs/hazards.md)
            fragile = mode == "write-blocking" and self.vm.qmp("query-version")["qemu"]["major"] < 8
            with self.vm.paused() if fragile else contextlib.nullcontext():
                self.vm.qmp("blockdev-mirror", job_id="mirror", device=old["node-name"], target=new["node-name"],
                            sync="full", copy_mode=mode, auto_dismiss=False)
            self.finish_job("mirror")
            self.vm.qmp("blockdev-del", node_name=old["node-name"])
            self.did["mirrors"] += 1

    def backup(self) -> None:
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
    def overlay(self) -> Iterator[None]:
        """Snapshot to a qcow2 overlay, write there meanwhile, commit it."""
        n, disk = self.any_disk()
        overlay = self.dir / "overlay.qcow2"
        process.run([self.qemu_img, "create", "-q", "-f", "qcow2", overlay, str(SIZE)])
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

    def commit(self) -> None:
        """Commit an overlay under load."""
        with self.overlay():
            time.sleep(self.random.random() * 3)

    def snapshot(self) -> None:
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

    def throttle(self) -> None:
        """Limits that hold up requests, stops meanwhile, and no limits again."""
        n, _ = self.any_disk()
        phases: list[dict[str, int]] = [{"iops": self.random.randint(50, 500)},
                                        {"bps": self.random.randint(1, 8) << 20}, {}]
        for limits in phases:
            self.vm.limit(n, **limits)
            self.stops(8)
        self.did["limits"] += 2

    def resize(self) -> None:
        """Another size under load, which the guest sees, and back."""
        n, _ = self.any_disk()

        def seen():
            return int(self.vm.check(f"cat /sys/block/{self.names[n]}/size")) * 512
        for size in [SIZE + (self.random.randint(1, 64) << 20), SIZE]:
            self.vm.qmp("block_resize", node_name=f"drive{n}", size=size)
            common.wait_until(lambda: seen() == size, self.patience,
                              lambda: f"{self.name(n)}: the guest sees {seen()} bytes, not {size}")
            self.did["resizes"] += 1

    def wait_ended(self, n: int) -> None:
        """Wait until fio has noticed that its disk is gone."""
        def look():
            self.collect(n)
            return n in self.ended
        if n not in self.ended:
            common.wait_until(look, self.patience, f"{self.name(n)}: fio does not end when the disk is gone", .2)

    def load_again(self, n: int) -> None:
        """Put load on a disk that is back."""
        self.load([n])
        self.collect(n)                         # what the kernel said of the old one meanwhile

    def unplug(self, paused: bool = False) -> None:
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

    def unplug_paused(self) -> None:
        """unplug() while the guest is paused."""
        self.unplug(paused=True)

    def rebind(self) -> None:
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

    def reset(self, paused: bool = False) -> None:
        """Push the reset button."""
        self.collect()
        self.vm.reset(4 * self.patience, paused)
        self.did["resets while paused" if paused else "resets"] += 1
        self.boot()

    def reset_paused(self) -> None:
        """reset() while the guest is paused."""
        self.reset(paused=True)

    def migrate(self) -> None:
        """Go on in another QEMU, running or paused before."""
        if self.random.random() < .5:
            self.vm.qmp("stop")
        state = self.dir / "state"
        self.vm.migrate(state)
        state.unlink()
        self.did["migrations"] += 1

    # -- what must not pass, with each disk that there is

    def damage(self) -> None:
        """Behind the guest's back, a block is not what it was."""
        self.alive()
        while not all(self.settled):
            self.collect()
        for disk, settled in zip(self.disks, self.settled):
            assert settled
            with open(disk.path, "r+b") as f:
                f.seek((settled[1] % AREAS * AREA_MIB << 20) + (AREA_MIB << 19))
                f.write(os.urandom(64 << 10))
                os.fsync(f.fileno())
        self.verify(range(len(self.disks)))

    def hang(self) -> None:
        """A disk that never finishes a request."""
        for n in range(len(self.disks)):
            self.vm.limit(n, bps=1)
        self.patience = 5
        before, starved, start = self.vm.requests(), self.vm.starved(), time.monotonic()
        # what was under way still ends, late on a busy machine
        while time.monotonic() - start < QUIET + self.vm.starved() - starved:
            if (now := self.vm.requests()) != before:
                before, starved, start = now, self.vm.starved(), time.monotonic()
            time.sleep(.2)

    def spin(self) -> None:
        """An IOThread that polls for seconds when there is nothing to do."""
        for n in range(len(self.disks)):
            for name, value in [("poll-grow", 1 << 30), ("poll-max-ns", 10 ** 11)]:
                self.vm.qmp("qom-set", path=f"/objects/iothread{n}", property=name, value=value)
        self.alive()

    def crash(self) -> None:
        """QEMU aborts."""
        assert self.vm.pid
        os.kill(self.vm.pid, signal.SIGABRT)

    # -- all of it

    def run(self, minutes: float, ops: Sequence[str]) -> None:
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

        def all_ended():
            self.collect()
            return len(self.ended) == len(self.disks)
        common.wait_until(all_ended, 4 * self.patience, f"the last rounds did not end within {4 * self.patience} s", .2)
        self.vm.check("rm /stop")
        self.load(range(len(self.disks)))
        self.alive()
        self.vm.shutdown(2 * self.patience, "SIGTERM")
        self.did["ends by SIGTERM"] += 1
        self.read_console()
