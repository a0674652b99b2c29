# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench: fio in a guest of QEMU, the load generator without one, fio in a real Linux on the export."""

import dataclasses

from dctools import build, common, options, series
from dctools.common import ToolError
from dctools.measure import generator, infio, loadgen, plan, uml
from dctools.report.digest import digest
from dctools.report.results import Results

# Who chooses a workload wants to see that one; else the load generator follows
WORKLOAD = ["aio", "iodepth", "numjobs", "rw", "bs", "vcpus", "queues", "event_idx", "disk", "fio_job"]


@dataclasses.dataclass(frozen=True)
class Options(infio.Workload):
    ring: bool | None = options.switch(None, "the load generator afterwards", "on, but off when a workload is chosen")
    uml: bool | None = options.switch(None, "a real Linux on the vhost-user-blk export afterwards",
                                      "on, but off when a workload is chosen that it cannot have")


def chosen(given: Options) -> list[str]:
    """The variables that choose a workload in the guest."""
    return [options.variable(name) for name in WORKLOAD if name in options.given_to(given)]


def generator_parameters(given: Options) -> plan.Parameters:
    """For the load generator; a machine that is too small is told so now, not at the end."""
    storage = "fast" if generator.memory_has_direct() else "disk"
    try:
        return plan.parameters(plan.Options(
            iodepth=(4, 64), queues=(1,), event_idx=("on",), irq=("each", "batch"), storage=(storage,), main=("irqfd",),
            poll_max_ns=(0, plan.DEFAULT_POLL), pairs=4, seconds=.3, qemu_a=given.qemu_a, qemu_b=given.qemu_b,
            seed=given.seed))
    except ToolError as e:
        raise ToolError(f"{e}; RING=off does without the load generator") from None


def uml_workload(given: Options) -> uml.Workload | None:
    """The same workload for the Linux on the export, or None if it cannot have that."""
    shared = {f.name for f in dataclasses.fields(uml.Workload)}
    wanted = options.given_to(given) - {"ring", "uml", "write_ok"}
    if given.uml is False or (given.uml is None and (not wanted <= shared or given.rw not in uml.RW)):
        return None
    if given.rw not in uml.RW:
        wanted -= {"rw"}
    try:
        # other defaults: what is not chosen is as in `make bench-uml`
        return uml.checked(uml.Workload(**{name: getattr(given, name) for name in wanted & shared}))
    except ToolError as e:
        raise ToolError(f"{e}; UML=off does without the Linux on the export") from None


def say_left_out(given: Options, with_ring: bool, with_uml: bool) -> None:
    """What was not asked for and not measured."""
    if not with_ring and given.ring is None:
        common.progress(f"{chosen(given)[0]}= chooses a workload in the guest, so the load generator was left out; "
                        "RING=on adds it")
    if not with_uml and given.uml is None:
        common.progress("the Linux on the export cannot have this workload, so it was left out; UML=on adds it")


def main(given: Options) -> None:
    """Base and series side by side: fio in a guest, a load generator without one, fio on the vhost-user-blk export.

    Prints a table of each, names HTML pages with plots, and says at the end which of the three can
    show a difference on this machine, and what each shows. Without hardware virtualisation the
    guest of QEMU is the bottleneck and shows little of the IOThread; the other two show it.
    docs/bench.md has the method.

    Example: dc bench --aio io_uring --iodepth 128 --pairs 12
    """
    workload = infio.checked(given)     # nonsense shall not wait until QEMU is built
    with_ring = not chosen(given) if given.ring is None else given.ring
    ring = generator_parameters(given) if with_ring else None
    linux = uml_workload(given)
    stack = common.stack_name()
    if given.qemu_a:
        series.update_tree(stack)       # for QEMU's python library
    else:
        build.build_both(stack)
    measured: list[Results] = []
    try:
        measured.append(infio.bench(workload))
        if ring:
            common.progress("now without a guest, by the load generator; docs/loadgen.md")
            measured.append(loadgen.bench_ring(ring))
        if linux:
            common.progress("now in a real Linux, on the vhost-user-blk export; docs/bench.md")
            measured.append(uml.bench(linux))
        say_left_out(given, with_ring, bool(linux))
    finally:        # of what was finished before an interruption, too
        if measured:
            print("\n" + digest(measured), flush=True)
