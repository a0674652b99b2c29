# SPDX-License-Identifier: GPL-2.0-or-later
"""The load generator, the costs in instructions, and the fuzzer: do they find what is there?"""

import functools
import pathlib

from dctools import build, fuzz, guest
from dctools.check.built import built
from dctools.check.results import Results, must_fail
from dctools.measure import cost, instrument


def check_loadgen(results: Results, stack: str) -> None:
    """The load generator finds no difference where there is none, a second write, and a wrong byte."""
    binary = built(stack) / "qemu-system-x86_64"
    results.do("loadgen: a binary against itself shows no difference", instrument.check_same, binary)
    results.do("loadgen: a second write for each notification is found", instrument.check_slowed, binary)
    results.do(f"loadgen: the used index wraps {instrument.WRAPS} times, and no notification is lost",
               instrument.check_wraps, binary)
    results.do("loadgen: aio-max-batch bounds what is submitted at once", instrument.check_batches, binary)
    results.do("loadgen: a wrong idea of aio-max-batch is noticed", must_fail, "4 requests at once, 5 expected",
               instrument.check_batches, binary, [(4, 0, 5)])
    results.do("loadgen: a row of used buffers is notified of once", instrument.check_rows, binary, "off")
    results.do("loadgen: with EVENT_IDX its first buffer at once, the rest once", instrument.check_rows, binary, "on")
    results.do("loadgen: a long row is notified of in parts", instrument.check_row_length, binary)
    results.do("loadgen: one used buffer too many in a row is noticed", must_fail,
               f"{instrument.ROW_MOST} used buffers in a row", instrument.check_row_length, binary,
               instrument.ROW_MOST - 1)
    results.do("loadgen: a handler that always finds requests returns to the event loop", instrument.check_turns,
               binary)
    results.do("loadgen: a handler that returns later than it should is noticed", must_fail,
               f"{instrument.TURN_MOST // 4} allowed", instrument.check_turns, binary, instrument.TURN_MOST // 4)
    results.do("loadgen: few notifications for a batch of completions", instrument.check_writes, binary)
    results.do("loadgen: half a notification for each is too few, which is noticed", must_fail, "0.5 allowed",
               instrument.check_writes, binary, 0.5)
    results.do("loadgen: the driver's reaction time varies", instrument.check_jitter, binary)
    results.do("loadgen: a reaction time that does not vary is noticed", must_fail, "do not vary",
               instrument.check_jitter, binary, False)
    results.do("loadgen: one wrong byte in the image is found", instrument.check_corruption, binary)
    check_scsi(results, binary)
    check_export(results, binary)


def check_scsi(results: Results, binary: pathlib.Path) -> None:
    """The same of virtio-scsi, by each engine."""
    for aio in guest.AIO:
        def do(name, function, said=None, **kw):
            check = functools.partial(function, aio=(aio,), transport=("scsi",), **kw)
            results.do(f"loadgen: virtio-scsi, {aio}: {name}", *([must_fail, said] if said else []), check, binary)
        do("a second write for each notification is found", instrument.check_slowed)
        do(f"the used index wraps {instrument.WRAPS} times, and no notification is lost", instrument.check_wraps,
           iodepth=(64,), irq=("batch",))
        do("one wrong byte in the image is found", instrument.check_corruption)
        do("a request that fails is noticed", instrument.check_refused, "response 0, status 2, sense key 5")
        for indirect in (True, False):
            do(f"what it writes is there, {'' if indirect else 'no '}indirect descriptors", instrument.check_load,
               iodepth=(16,), queues=(2,), rw="mix:30", indirect=indirect)
        do("a driver that wants no interrupts gets none", instrument.check_quiet)


def check_export(results: Results, binary: pathlib.Path) -> None:
    """The same of the storage daemon's vhost-user-blk export, by each engine."""
    for aio in guest.AIO:
        def do(name, function, *args, **kw):
            results.do(f"loadgen: vhost-user, {aio}: {name}", functools.partial(function, **kw), *args)
        do("one kick, one write and one interrupt for each request", instrument.check_export_counts, binary, aio)
        do("a second write for each notification is found", instrument.check_export_counts, binary, aio, True, 2)
        do("one write too few is noticed", must_fail, " 1.00 writes per I/O, 2 expected",
           instrument.check_export_counts, binary, aio, False, 2)
        do(f"the used index wraps {instrument.WRAPS} times, and no notification is lost",
           instrument.check_export_wraps, binary, aio)
        do("four virtqueues of 64 are served, and no notification is lost",
           instrument.check_export_wraps, binary, aio, 4)
        do("nothing is lost of itself", instrument.check_export_loses, binary, aio, 0)
        do("a lost notification is noticed", must_fail, "lost notification: queue 0 ",
           instrument.check_export_loses, binary, aio)
        do("one wrong byte in the image is found", instrument.check_corruption, binary, aio=(aio,),
           transport=("vhost-user",))


def check_cost(results: Results, stack: str) -> None:
    """Deferring allocates nothing in steady state, and costs the same among many calls as among few."""
    binary = built(stack, [cost.BENCH]) / cost.BENCH
    results.do("cost: nothing is allocated after the first section", cost.check_allocations, binary)
    results.do("cost: a call among 1,024 costs what one among 8 does", cost.check_growth, binary, "defer_call()")
    results.do("cost: a linear search is told from that", must_fail, "times are allowed",
               cost.check_growth, binary, "linear search")


def check_fuzz(results: Results, stack: str) -> None:
    """A while of make fuzz for each device, and the mistakes that it must find."""
    binary = build.fuzzer(stack, "series")
    for driver in guest.DRIVERS:
        results.do(f"fuzz: {driver}", fuzz.check, stack, binary, driver)
        for sabotage in fuzz.SABOTAGE:
            results.do(f"fuzz: {driver}: {sabotage} is noticed", fuzz.must_notice, binary, driver, sabotage)
