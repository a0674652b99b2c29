# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench: fio in a guest, then the load generator without one."""

import dataclasses

from dctools import build, common, options, series
from dctools.common import ToolError
from dctools.measure import infio, loadgen, plan

# Who chooses a workload wants to see that one; else the load generator follows
WORKLOAD = ["aio", "iodepth", "numjobs", "rw", "bs", "vcpus", "queues", "event_idx", "disk", "fio_job"]


@dataclasses.dataclass(frozen=True)
class Options(infio.Workload):
    ring: bool | None = options.switch(None, "the load generator afterwards", "on, but off when a workload is chosen")


def chosen(given: Options) -> list[str]:
    """The variables that choose a workload in the guest."""
    return [options.variable(name) for name in WORKLOAD if name in options.given_to(given)]


def generator_parameters(given: Options) -> plan.Parameters:
    """For the load generator; a machine that is too small is told so now, not at the end."""
    try:
        return plan.parameters(plan.Options(
            iodepth=(4, 64), queues=(1,), event_idx=("on",), irq=("each", "batch"), storage=("fast",), main=("irqfd",),
            pairs=4, seconds=.5, qemu_a=given.qemu_a, qemu_b=given.qemu_b, seed=given.seed))
    except ToolError as e:
        raise ToolError(f"{e}; RING=off does without the load generator") from None


def main(given: Options) -> None:
    """fio in a guest with base and series, side by side; then the load generator without a guest.

    Prints a table of each, and names HTML pages with plots. Without hardware virtualisation
    the guest is the bottleneck and shows little of the IOThread; the load generator shows it.
    docs/bench.md has the method.

    Example: dc bench --aio io_uring --iodepth 128 --pairs 12
    """
    workload = infio.checked(given)     # nonsense shall not wait until QEMU is built
    with_ring = not chosen(given) if given.ring is None else given.ring
    generator = generator_parameters(given) if with_ring else None
    stack = common.stack_name()
    if given.qemu_a:
        series.update_tree(stack)       # for QEMU's python library
    else:
        build.build_both(stack)
    infio.bench(workload)
    if generator:
        common.progress("now without a guest, by the load generator; docs/loadgen.md")
        loadgen.bench_ring(generator)
    elif given.ring is None:
        common.progress(f"{chosen(given)[0]}= chooses a workload in the guest, so the load generator was left out; "
                        "RING=on adds it")
