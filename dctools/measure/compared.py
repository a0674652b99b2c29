# SPDX-License-Identifier: GPL-2.0-or-later
"""What is compared, on what, and where the results go."""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import stat
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from dctools import base, common, guest, process
from dctools.common import ToolError


def check_given(qemu_a: str, qemu_b: str) -> None:
    """Both binaries are given, or none."""
    if bool(qemu_a) != bool(qemu_b):
        raise ToolError("QEMU_A= and QEMU_B= go together: give both binaries or none")


def own_disk(name: str, writes: bool, write_ok: bool, rw: str = "") -> str:
    """The real path of DISK=, after checks that it can be used the way it will be.

    With rw, a workload that writes without WRITE_OK=1 is refused and called that.
    Without rw the disk is read-only then.
    """
    path = pathlib.Path(name).resolve()
    try:
        mode = path.stat().st_mode
    except OSError as e:
        raise ToolError(f"DISK={name}: {e.strerror}") from e
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ToolError(f"DISK={name}: neither a file nor a block device")
    if rw and writes and not write_ok:
        raise ToolError(f"RW={rw} would overwrite DISK={name}; if that is meant, add WRITE_OK=1")
    read_only = not (writes and write_ok)
    # O_EXCL on a block device fails when it is mounted or otherwise taken
    flags = os.O_RDONLY if read_only else os.O_RDWR | (os.O_EXCL if stat.S_ISBLK(mode) else 0)
    try:
        fd = os.open(path, flags)
    except OSError as e:
        raise ToolError(f"DISK={name}: cannot be opened for {'reading' if read_only else 'writing'} "
                        f"({e.strerror})") from e
    try:
        if os.lseek(fd, 0, os.SEEK_END) < 1 << 20:
            raise ToolError(f"DISK={name}: smaller than 1 MiB")
    finally:
        os.close(fd)
    return str(path)


@dataclasses.dataclass
class Binary:
    """A QEMU, and what identifies it."""
    label: str
    path: str
    version: str = ""
    sha256: str = ""
    daemon_sha256: str = ""     # of the storage daemon that belongs to it, if that is measured


def binaries(qemu_a: str, qemu_b: str, stack: str) -> list[Binary]:
    """The two binaries, base first, with what identifies them."""
    if qemu_a:
        both = [Binary("A", qemu_a), Binary("B", qemu_b)]
    else:
        both = [Binary(side, str(common.stack_dir(stack) / side / "build/qemu-system-x86_64"))
                for side in ("base", "series")]
    for b in both:
        if not os.path.isfile(b.path) or not os.access(b.path, os.X_OK):
            raise ToolError(f"no QEMU at {b.path}; " +
                            (f"is QEMU_{b.label}= right?" if qemu_a else "run `make build`"))
        b.path = str(pathlib.Path(b.path).resolve())
        b.version = process.run([b.path, "--version"]).partition("\n")[0]
        b.sha256 = common.sha256(b.path)
    return both


def identify_daemons(both: list[Binary]) -> None:
    """Add what identifies the storage daemon of each."""
    for b in both:
        b.daemon_sha256 = common.sha256(storage_daemon(b.path))


def storage_daemon(qemu: str) -> str:
    """The qemu-storage-daemon that was built, or installed, with this QEMU."""
    places = [pathlib.Path(qemu).parent / name for name in ("storage-daemon/qemu-storage-daemon",
                                                            "qemu-storage-daemon")]
    for place in places:
        if os.access(place, os.X_OK):
            return str(place)
    raise ToolError(f"no qemu-storage-daemon beside {qemu}; build or install it there")


def host() -> dict[str, object]:
    """What it is measured on."""
    # a name such as "AMD EPYC" is that of several generations
    cpu = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*)$",
                          pathlib.Path("/proc/cpuinfo").read_text(), re.M))
    name = cpu.get("model name", platform.machine())
    if "cpu family" in cpu and "model" in cpu:
        name += f", family {cpu['cpu family']}, model {cpu['model']}"
    return {"cpus": len(os.sched_getaffinity(0)), "cpu": name,
            "kernel": platform.release(), "accelerator": guest.accelerator()}


def busy_seconds() -> float:
    """CPU seconds that all of the machine has used so far."""
    # all but idle and iowait; guest time is already part of user time
    ticks = [int(n) for n in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def keep(path: pathlib.Path, data: dict[str, Any]) -> None:
    """Write results without the paths of this machine, to be shown elsewhere."""
    scratch = rf"{re.escape(tempfile.gettempdir())}/dc-\w+/"       # of guest/storage.py
    text = re.sub(scratch, "", json.dumps(data).replace(f"{common.ROOT}/", ""))
    common.write_json(path, json.loads(text))


def tools_commit() -> str:
    """Of this project, "+" if files differ from it; empty where it is no git checkout."""
    try:
        changed = common.git(common.ROOT, "status", "--porcelain", "--untracked-files=no", "--", "dctools", "loadgen",
                             "patches")
        return common.git(common.ROOT, "rev-parse", "--short=12", "HEAD").strip() + "+" * bool(changed)
    except ToolError:
        return ""


def origin(stack: str) -> dict[str, Any]:
    """Of which code something is, where and when."""
    return {"stack": stack, "tools": tools_commit(), "series_tree": base.read_pin(stack).get("series_tree", ""),
            "host": host(), "date": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %z}"}


def about(parameters: Any, stack: str, both: Sequence[Binary]) -> dict[str, Any]:
    """What each kind of results says of itself."""
    return {"parameters": dataclasses.asdict(parameters), "binaries": [dataclasses.asdict(b) for b in both],
            **origin(stack)}


def new_directory(name: str, newest: str = "latest") -> pathlib.Path:
    """For results, and the link to it."""
    results = common.settings.build / "results"
    results.mkdir(parents=True, exist_ok=True)
    while True:
        out = results / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
        try:
            out.mkdir()
            break
        except FileExistsError:     # of this second: the names tell which is newer
            time.sleep(.1)
    link = results / f"{newest}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(out.name)
    link.replace(results / newest)
    return out
