# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Linux on the vhost-user-blk export: it writes and verifies, and everything ends while it is busy."""

import contextlib
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dctools import common, environment, guest
from dctools.check.built import binary_of, preload
from dctools.check.client import Client
from dctools.check.guests import fio_errors, notices_damage
from dctools.check.results import Results, logs, must_fail
from dctools.common import ToolError
from dctools.measure import compared

SIZE = 24               # MiB a disk
PATIENCE = 20           # seconds after which it hangs
QUEUES = [1, 2]         # that are offered; the guest has one CPU and uses one
# A system call takes long in this guest, so fio does with few of them
BATCH = "iodepth=32\niodepth_batch_submit=32\niodepth_batch_complete_min=1\niodepth_batch_complete_max=32"
VERIFY = f"""
[global]
ioengine=libaio
direct=1
size={SIZE}m
bsrange=4k-64k
bs_unaligned=0
{BATCH}
verify=crc32c
verify_fatal=1
rw=randwrite
"""
WRITE, READ = VERIFY + "do_verify=1\n", VERIFY + "verify_only=1\n"
LOAD = f"""
[load]
ioengine=libaio
direct=1
rw=randrw
bs=4k
{BATCH}
time_based
runtime=100000
"""
DRAINS = 500            # 10.2.2 hangs in one of the first 200
MOVES = 1000            # 7.2.22 and 10.2.2 crash, or hang, before that
LEFT = 2                # rounds with each engine; 10.2.2 crashes in about half of them
MODES = ["hard", "safe"]                # of block-export-del; this export counts no client as a use of it
ENDS = ["quit", "SIGTERM"]
SLOW = 1                # seconds of each request on the slow disk, and of each notification that is late
SLOW_DISK: dict[str, Any] = {"driver": "null-co", "node-name": "slow", "size": 1 << 20, "latency-ns": SLOW * 10**9}


@contextlib.contextmanager
def exported(stack: str, aio: str, label: str, queues: Sequence[int] = (1,)) -> \
        Iterator[tuple[guest.StorageDaemon, list[guest.Disk], list[pathlib.Path], list[int]]]:
    """A daemon with exports that offer so many queues: it, their disks, sockets, and the ids of their IOThreads."""
    daemon = compared.storage_daemon(str(binary_of(stack)))
    disks = [guest.Disk(common.sparse(logs() / "exports" / f"{label}-{aio}-{n}.raw", SIZE << 20), aio=aio, queues=q)
             for n, q in enumerate(queues)]
    try:
        with guest.StorageDaemon(daemon, label=f"exports-{label}-{aio}-daemon", log_dir=logs()) as d:
            tids = [d.add_iothread(f"io{n}") for n in range(len(disks))]
            for n, disk in enumerate(disks):
                d.add_disk(disk, f"disk{n}")
            yield d, disks, [d.export(disk, f"disk{n}", f"io{n}") for n, disk in enumerate(disks)], tids
    finally:
        for disk in disks:
            pathlib.Path(disk.path).unlink()


@contextlib.contextmanager
def linux_on(sockets: Sequence[pathlib.Path], label: str) -> Iterator[guest.Uml]:
    """A Linux with these disks, that takes jobs."""
    with guest.Uml(sockets, label=f"exports-{label}", log_dir=logs()) as linux:
        linux.wait_ready(2 * PATIENCE)
        yield linux


@contextlib.contextmanager
def visitor(daemon: guest.StorageDaemon, sockets: Sequence[pathlib.Path], label: str) -> Iterator[guest.Uml]:
    """Likewise, and when it has gone the daemon knows that."""
    before = daemon.connections()
    with linux_on(sockets, label) as linux:
        if daemon.connections() < before + len(sockets):
            raise ToolError(f"{daemon.label}: the guest is there, but not as {len(sockets)} more connections")
        yield linux
    common.wait_until(lambda: daemon.connections() <= before, PATIENCE,
                      f"{daemon.label}: does not let go of a guest that has gone")


def requests(linux: guest.Uml, device: str) -> int:
    """How many of them the guest has got back from this disk."""
    fields = linux.check(f"cat /sys/block/{pathlib.Path(device).name}/stat", PATIENCE).split()
    return int(fields[0]) + int(fields[4])


def goes_on(linux: guest.Uml, device: str, patience: float = PATIENCE) -> None:
    """A ToolError if the disk gives the guest nothing back for so long."""
    before = requests(linux, device)
    common.wait_until(lambda: requests(linux, device) > before, patience,
                      f"{linux.label}: {device} hangs: no request is done within {patience:g} s", .05)


def load(linux: guest.Uml) -> str:
    """Keep the first disk busy from now on; its name."""
    device, _ = linux.disk()
    linux.put_file("/load.fio", f"{LOAD}filename={device}\n")
    linux.check("fio --eta=never --output=/dev/null /load.fio >/dev/null 2>&1 &")
    goes_on(linux, device)
    return device


def verifies(results: Results, stack: str, aio: str) -> None:
    """fio writes and verifies on exports with one and with two queues, and notices a damaged block."""
    with exported(stack, aio, "verify", QUEUES) as (daemon, disks, sockets, _), \
            visitor(daemon, sockets, f"verify-{aio}") as linux:
        devices = [linux.disk(n)[0] for n in range(len(disks))]
        for device in devices:
            used = len(linux.check(f"ls /sys/block/{pathlib.Path(device).name}/mq").split())
            if used != 1:
                raise ToolError(f"{device} has {used} queues in a guest with one CPU")
        found = fio_errors(linux, WRITE, devices, ["read", "write"])
        for disk, device in zip(disks, devices):
            results.add(f"exports {aio} queues={disk.queues}: fio writes and verifies", found[device])
        notices_damage(linux, READ, devices[0], disks[0].path, SIZE)


def remove(daemon: guest.StorageDaemon, mode: str, tid: int, patience: float = PATIENCE) -> None:
    """Remove the export, its node and its IOThread, each within that time."""
    daemon.qmp("block-export-del", patience, id="disk0", mode=mode)
    daemon.wait_event("BLOCK_EXPORT_DELETED", patience, id="disk0")
    daemon.qmp("blockdev-del", patience, node_name="disk0")
    daemon.qmp("object-del", patience, id="io0")
    common.wait_until(lambda: tid not in daemon.threads(), patience, f"{daemon.label}: the IOThread goes on without "
                      "its object")
    if left := daemon.qmp("query-block-exports", patience):
        raise ToolError(f"{daemon.label}: {left[0]['id']} is still exported")


def removed(stack: str, aio: str, mode: str) -> None:
    """Remove an export that is busy."""
    with exported(stack, aio, f"del-{mode}") as (daemon, _, sockets, tids), \
            linux_on(sockets, f"del-{mode}-{aio}") as linux:
        load(linux)
        remove(daemon, mode, tids[0])


def drain(daemon: guest.StorageDaemon, disk: guest.Disk, times: int = DRAINS, patience: float = PATIENCE) -> None:
    """Drain the first node so often, each within that time."""
    for _ in range(times):
        daemon.qmp("blockdev-reopen", patience, options=[disk.bare("disk0")])


def drains(stack: str, aio: str) -> None:
    """A busy node is drained, and goes on."""
    with exported(stack, aio, "drains") as (daemon, disks, sockets, _), linux_on(sockets, f"drains-{aio}") as linux:
        device = load(linux)
        drain(daemon, disks[0])
        goes_on(linux, device)


def move(daemon: guest.StorageDaemon, times: int = MOVES, patience: float = PATIENCE) -> None:
    """Give the first node, and its export, another IOThread so often, each within that time."""
    for n in range(times):
        daemon.qmp("x-blockdev-set-iothread", patience, node_name="disk0", iothread=["other", "io0"][n % 2], force=True)


def moves(stack: str, aio: str) -> None:
    """A busy export changes its IOThread, and goes on."""
    with exported(stack, aio, "moves") as (daemon, _, sockets, _), linux_on(sockets, f"moves-{aio}") as linux:
        daemon.add_iothread("other")
        device = load(linux)
        move(daemon)
        goes_on(linux, device)


def ends(stack: str, aio: str, how: str) -> None:
    """The daemon ends while its export is busy."""
    with exported(stack, aio, f"end-{how}") as (daemon, _, sockets, _), linux_on(sockets, f"end-{how}-{aio}") as linux:
        load(linux)
        daemon.shutdown(PATIENCE, how)


def ends_when_left(stack: str, aio: str) -> None:
    """The daemon ends at the moment when the guest of two exports goes."""
    for _ in range(LEFT):
        with exported(stack, aio, "left", (1, 1)) as (daemon, _, sockets, _):
            with linux_on(sockets, f"left-{aio}"):
                pass
            daemon.shutdown(PATIENCE)


def reconnects(stack: str, aio: str) -> None:
    """Another guest comes when one has gone, of itself or killed while it was busy, and finds what that one wrote."""
    with exported(stack, aio, "again") as (daemon, _, sockets, _):
        with visitor(daemon, sockets, f"again-1-{aio}") as linux:
            device, _ = linux.disk()
            if problem := fio_errors(linux, WRITE, [device], ["read", "write"])[device]:
                raise ToolError(f"the first guest: {problem}")
            linux.power_off(PATIENCE)
        with visitor(daemon, sockets, f"again-2-{aio}") as linux:
            if problem := fio_errors(linux, READ, [device], ["read"])[device]:
                raise ToolError(f"the second guest: {problem}")
            load(linux)
        with visitor(daemon, sockets, f"again-3-{aio}") as linux:
            if problem := fio_errors(linux, WRITE, [device], ["read", "write"])[device]:
                raise ToolError(f"the third guest: {problem}")


@contextlib.contextmanager
def stopped(daemon: guest.StorageDaemon) -> Iterator[None]:
    """The daemon does nothing meanwhile."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def notices(stack: str) -> None:
    """A daemon that hangs is noticed by each of these checks."""
    with exported(stack, "native", "hang") as (daemon, disks, sockets, tids), linux_on(sockets, "hang") as linux:
        device = load(linux)
        with stopped(daemon):
            must_fail("hangs: no request is done within 1 s", goes_on, linux, device, 1)
            must_fail("no answer to QMP blockdev-reopen within 1 s", drain, daemon, disks[0], 1, 1)
            must_fail("no answer to QMP x-blockdev-set-iothread within 1 s", move, daemon, 1, 1)
            must_fail("no answer to QMP block-export-del within 1 s", remove, daemon, "hard", tids[0], 1)


def notices_no_end(stack: str, how: str) -> None:
    """A daemon that does not end is noticed."""
    with exported(stack, "native", f"no-end-{how}") as (daemon, _, sockets, _), linux_on(sockets, "no-end") as linux:
        load(linux)
        os.kill(daemon.pid, signal.SIGSTOP)
        must_fail(f"did not end within 1 s of `{how}`", daemon.shutdown, 1, how)


@contextlib.contextmanager
def slow(stack: str, label: str) -> Iterator[tuple[guest.StorageDaemon, pathlib.Path]]:
    """A daemon whose export takes SLOW seconds for each request, and its socket."""
    with guest.StorageDaemon(compared.storage_daemon(str(binary_of(stack))), label=f"exports-{label}",
                             log_dir=logs()) as daemon:
        daemon.add_iothread()
        daemon.qmp("blockdev-add", **SLOW_DISK)
        yield daemon, daemon.export(guest.Disk("", read_only=True), "slow")


def gone(stack: str, crash: bool = False) -> None:
    """A client goes while its request is in flight, and kicks once more; the export takes the next one."""
    with slow(stack, "gone") as (daemon, path):
        before = daemon.connections()
        with Client(path, PATIENCE) as client:
            client.read()
            time.sleep(SLOW / 4)            # the daemon takes it
            client.hang_up()
            time.sleep(SLOW / 4)            # it sees that, and waits for the request
            client.read()
            if crash:
                os.kill(daemon.pid, signal.SIGABRT)
            common.wait_until(lambda: daemon.connections() <= before, PATIENCE,
                              f"{daemon.label}: does not let go of a client that has gone")
        with Client(path, PATIENCE):
            pass


def drained(stack: str, patience: float = PATIENCE) -> None:
    """The daemon drains the node while a request is in flight, whose notification takes long."""
    with environment.setenv(LD_PRELOAD=str(preload("late")), LATE_US=str(SLOW * 1000000)), \
            slow(stack, "drained") as (daemon, path), Client(path, PATIENCE) as client:
        time.sleep(2 * SLOW)                # a virtqueue that starts is notified, too
        client.read()
        time.sleep(SLOW / 4)
        daemon.qmp("blockdev-reopen", patience, options=[SLOW_DISK])
        if not client.used():
            raise ToolError("the drain did not wait for the request")


def removed_while_drained(stack: str, patience: float = PATIENCE, remove_it: bool = True) -> None:
    """An export with a client is removed while a mirror job that waits for job-finalize keeps its node drained."""
    with guest.StorageDaemon(compared.storage_daemon(str(binary_of(stack))), label="exports-mirror",
                             log_dir=logs()) as daemon:
        daemon.add_iothread()
        for name in "source", "target":
            daemon.qmp("blockdev-add", driver="null-co", node_name=name, size=1 << 20)
        path, before = daemon.export(guest.Disk("", read_only=True), "source"), daemon.connections()
        with Client(path, PATIENCE):
            def job_is(status: str) -> None:
                common.wait_until(lambda: daemon.qmp("query-jobs")[0]["status"] == status, PATIENCE,
                                  f"{daemon.label}: the mirror job is not {status}")
            daemon.qmp("blockdev-mirror", job_id="mirror", device="source", target="target", sync="none",
                       auto_finalize=False)
            job_is("ready")
            daemon.qmp("job-complete", id="mirror")
            job_is("pending")
            if remove_it:
                daemon.qmp("block-export-del", id="source", mode="hard")
            # nothing listens any more, either
            common.wait_until(lambda: daemon.connections() < before, patience,
                              f"{daemon.label}: does not let go of the client of an export that is gone")
        daemon.qmp("job-finalize", id="mirror")
        daemon.shutdown(PATIENCE)


def check_exports(results: Results, stack: str) -> None:
    """A real Linux on the vhost-user-blk export: data, removal, end and return, each while it is busy."""
    for aio in guest.AIO:
        results.do(f"exports {aio}: fio notices a damaged block", verifies, results, stack, aio)
        for mode in MODES:
            results.do(f"exports {aio}: a busy export is removed, with its node and IOThread (mode={mode})",
                       removed, stack, aio, mode)
        results.do(f"exports {aio}: a busy node is drained {DRAINS} times", drains, stack, aio)
        results.do(f"exports {aio}: a busy export changes its IOThread {MOVES} times", moves, stack, aio)
        for how in ENDS:
            results.do(f"exports {aio}: the daemon ends by {how} while it is busy", ends, stack, aio, how)
        results.do(f"exports {aio}: the daemon ends when its guest goes", ends_when_left, stack, aio)
        results.do(f"exports {aio}: another guest comes when one has gone", reconnects, stack, aio)
    results.do("exports: a daemon that hangs is noticed", notices, stack)
    for how in ENDS:
        results.do(f"exports: a daemon that does not end by {how} is noticed", notices_no_end, stack, how)
    results.do("exports: a client goes with a request in flight, and kicks", gone, stack)
    results.do("exports: a daemon that crashes then is noticed", must_fail, "lets no client in", gone, stack, True)
    results.do("exports: a drain waits for a request that is notified of late", drained, stack)
    results.do("exports: a drain that takes too long is noticed", must_fail, "no answer to QMP blockdev-reopen",
               drained, stack, SLOW / 10)
    results.do("exports: an export is removed while it is drained", removed_while_drained, stack)
    results.do("exports: a client that is kept then is noticed", must_fail, "does not let go of the client",
               removed_while_drained, stack, 1, False)
    shutil.rmtree(logs() / "exports")
