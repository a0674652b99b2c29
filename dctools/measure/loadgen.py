# SPDX-License-Identifier: GPL-2.0-or-later
"""The load generator under two QEMU binaries, in pairs."""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from dctools import build, common, fio, process, relink
from dctools.common import ToolError
from dctools.measure import compared
from dctools.measure.generator import COUNT, WARM_UP, Image, Raw, command, compare, images, place
from dctools.measure.plan import LimitKey, Options, Parameters, limit_key, parameters
from dctools.report import digest
from dctools.report.loadgen import LoadgenResults
from dctools.report.show import LATEST
from dctools.report.statistics import ROLES

__all__ = ["Options", "bench_ring", "main"]
Images = Mapping[tuple[str, str], Image]
Compare = Callable[..., dict[str, Raw]]         # compare(), or what tests have in place of it
START_UP = 0.45         # seconds, about, to start QEMU and to verify its data
LIMIT_RUNS = 3          # of fio on the host, of which the median is shown


def plan(p: Parameters) -> list[tuple[int, int, list[list[str]]]]:
    """The order of everything, fixed beforehand: [(pair, number of the configuration, roles of each turn)]."""
    rng = random.Random(p.seed)
    return [(pair, n, [rng.sample(ROLES, len(ROLES)) for _ in range(p.turns + 1)])
            for pair in range(1, p.pairs + 1) for n in rng.sample(range(len(p.configs)), len(p.configs))]


def write_run(file: TextIO, data: dict[str, Any]) -> None:
    """Write a line of JSON at once."""
    file.write(json.dumps(data, separators=(",", ":")) + "\n")
    file.flush()


def left_text(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def programs(p: Parameters, qemu: str) -> list[str]:
    """What is measured of a QEMU: itself, its storage daemon, or both."""
    daemon = {c.transport == "vhost-user" for c in p.configs}
    return ([qemu] if False in daemon else []) + ([compared.storage_daemon(qemu)] if True in daemon else [])


@contextlib.contextmanager
def binaries_of_pairs(p: Parameters, both: Sequence[compared.Binary]) -> Iterator[Callable[[int], dict[str, str]]]:
    """A function that gives the binaries of a pair, {role: path}; what it gave before may be gone then."""
    if not p.layouts:
        yield lambda pair: {role: both[role == "series"].path for role in ROLES}
        return
    directory, wanted = place(), [programs(p, b.path) for b in both]
    common.need_space(directory, 5 * max(sum(map(os.path.getsize, paths)) for paths in wanted) >> 20)
    with tempfile.TemporaryDirectory(dir=directory, prefix="layouts-") as scratch, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # a daemon lies beside what is linked as it does beside the QEMU, so storage_daemon() finds it
        objects = [{os.path.relpath(path, os.path.dirname(b.path)): relink.Objects(path, scratch) for path in paths}
                   for b, paths in zip(both, wanted)]

        def link(role, name, seed):
            output = pathlib.Path(scratch, role, name)
            output.parent.mkdir(parents=True, exist_ok=True)
            objects[role == "series"][name].link(seed, output)

        @functools.lru_cache(1)
        def linked(pair):
            # in random order: who comes last may get other memory for its file
            for done in [pool.submit(link, role, name, f"{p.seed} {pair} {role}")
                         for role in random.Random(f"{p.seed} {pair}").sample(ROLES, len(ROLES))
                         for name in objects[role == "series"]]:
                done.result()
            return {role: os.path.join(scratch, role, os.path.basename(both[role == "series"].path)) for role in ROLES}
        yield linked


def measure(p: Parameters, both: Sequence[compared.Binary], found: Images, out: pathlib.Path,
            run: Compare = compare) -> None:
    """Run the plan; each result is on disk before the next begins."""
    steps, start = plan(p), time.monotonic()
    with open(out / "runs.jsonl", "w") as file, binaries_of_pairs(p, both) as binaries:
        for n, (pair, config_number, order) in enumerate(steps, 1):
            config = p.configs[config_number]
            # the same blocks in the same order within a pair
            results = run(binaries(pair), config, p, found[config.storage, config.aio], p.seed + pair, order)
            for role in order[0]:
                write_run(file, {"pair": pair, "config": config_number, "role": role, **results[role]})
            left = (time.monotonic() - start) / n * (len(steps) - n)
            iops = ", ".join(f"{results[role]['iops']:,.0f}" for role in ROLES)
            common.progress(f"{n} of {len(steps)}: pair {pair}, {config}: {iops} IOPS ({both[0].label}, again, "
                            f"{both[1].label}); {left_text(left)} left")


# -- fio without QEMU ------------------------------------------------------------

def fio_command(p: Parameters, key: LimitKey, image: Image) -> list[str]:
    """fio with the same engine, image and depth, on the IOThread's CPU alone."""
    _, aio, depth = key
    rw, _, percent = p.rw.partition(":")
    threads = aio == "threads"
    return ["fio", "--name=limit", f"--filename={image.path}", f"--direct={int(image.direct)}", "--invalidate=0",
            f"--ioengine={ {'native': 'libaio', 'threads': 'psync'}.get(aio, aio)}",
            *(["--thread", f"--numjobs={min(depth, 64)}", "--group_reporting"] if threads else
              [f"--iodepth={depth}", f"--iodepth_batch_submit={min(depth, 64)}", "--iodepth_batch_complete_min=1",
               f"--iodepth_batch_complete_max={depth}"]),
            f"--rw=rand{ {'mix': 'rw'}.get(rw, rw)}", *([f"--rwmixwrite={percent}"] if percent else []),
            f"--bs={p.bs}", "--norandommap", "--gtod_reduce=1", f"--cpus_allowed={p.cpus['iothread']}",
            "--time_based", f"--runtime={round(p.seconds * 1000)}ms", "--output-format=json"]


def measure_limits(p: Parameters, found: Images, out: pathlib.Path) -> None:
    """IOPS of fio on the host, for each engine, image and depth of the plan."""
    keys = list(dict.fromkeys(limit_key(c) for c in p.configs))
    common.progress(f"the same without QEMU: fio on the host, {len(keys)} x {LIMIT_RUNS} runs")
    with open(out / "limits.jsonl", "w") as file:
        for _ in range(LIMIT_RUNS):
            for key in random.Random(p.seed).sample(keys, len(keys)):
                text = process.run(fio_command(p, key, found[key[:2]]))
                job = fio.jobs(text)[0]
                write_run(file, {"key": key, "iops": round(job["read"]["iops"] + job["write"]["iops"], 1)})


def bench_ring(p: Parameters, run: Compare = compare) -> LoadgenResults:
    """Measure, and show what was measured, even if that was interrupted."""
    stack = common.stack_name()
    both = compared.binaries(p.qemu_a, p.qemu_b, stack)
    if any(c.transport == "vhost-user" for c in p.configs):
        compared.identify_daemons(both)
    common.need_space(common.settings.build / "results", 64)
    stopped: BaseException | None = None
    with images(p) as found:
        out = compared.new_directory("ring-" + ("A-B" if p.qemu_a else stack), LATEST)
        first = p.configs[0]
        info = {
            **compared.about(p, stack, both), "disk": p.disk or "a file of our own",
            "command": command(both[0].path, first, p, found[first.storage, first.aio], p.seed)}
        compared.keep(out / "ring.json", info)
        processes = p.pairs * len(p.configs) * len(ROLES)
        common.progress(f"{len(p.configs)} configurations x {p.pairs} pairs x (base, base again, series), "
                        f"{p.seconds:g} s each, {left_text(processes * (p.seconds + WARM_UP + COUNT + START_UP))} "
                        f"in all, seed {p.seed}; results in {out}")
        try:
            measure(p, both, found, out, run)
            measure_limits(p, found, out)
        except (KeyboardInterrupt, ToolError) as e:
            stopped = e
            common.progress(f"stopped{': ' if str(e) else ''}{e}; what is measured so far:")
    if stopped and not (out / "runs.jsonl").stat().st_size:
        raise stopped
    results = LoadgenResults(out)
    digest.show(results)
    if stopped:
        raise stopped
    return results


def main(given: Options) -> None:
    """The load generator (loadgen/) under two QEMU binaries, in pairs.

    One fresh QEMU process per sample and configuration. A round goes through all
    configurations in random order; for each it starts three processes: base, base once
    more (their ratio is the noise floor, "A/A"), series. They live side by side and are
    measured in many short turns in random order, one at a time, so that what the machine
    does meanwhile happens to all of them. In the end fio does the same on the host,
    without QEMU: how far is that limit? docs/loadgen.md has more.

    Example: dc loadgen --aio native --iodepth "1 64" --event-idx on --storage fast
    """
    p = parameters(given)       # nonsense shall not wait until QEMU is built
    if not p.qemu_a:
        build.build_both(common.stack_name())
    bench_ring(p)
