# SPDX-License-Identifier: GPL-2.0-or-later
"""Build QEMU without and with the series: build/<stack>/{base,series}/build."""

import bz2
import collections
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from dctools import base as base_
from dctools import common, environment, options, process, series
from dctools.common import ToolError, git, progress
from dctools.process import run

NOTIFY_TEST = "tests/qtest/virtio-notify-test"      # the series' own
FUZZ = "qemu-fuzz-x86_64"
# Lets tests delay the end of sections and switch the barrier off; no part of the series.
# A stack whose code is another has its own patches/<stack>/hooks.diff.
HOOKS = common.ROOT / "tests/hooks.patch"
TARGETS = ["qemu-system-x86_64", "qemu-img", "qemu-io", "qemu-nbd",
           "storage-daemon/qemu-storage-daemon"]

# One list for both sides: the x86_64 machine and what the series touches. pin.json can add to it.
# Debug information takes a quarter of the compiler's time (docs/series-tools.md has the way back).
CONFIGURE = ["--cc=ccache gcc", "--target-list=x86_64-softmmu", "--without-default-features",
             "--enable-tcg", "--enable-kvm", "--enable-linux-aio", "--enable-linux-io-uring",
             "--enable-coroutine-pool", "--enable-tools", "--disable-docs", "--disable-debug-info",
             "--disable-install-blobs", "--meson=/usr/bin/meson", "--with-git-submodules=ignore"]
# They add files and change none, so patches that were tested without them (tested.json) count as tested
EXPORTS = ["--enable-vhost-user", "--enable-vhost-user-blk-server", "--enable-libvduse", "--enable-vduse-blk-export"]
# What takes the place of an argument in releases whose configure no longer knows it
LATER: dict[str, list[str]] = {"--meson=/usr/bin/meson": [], "--with-git-submodules=ignore": [],
                               "--enable-sanitizers": ["--enable-asan", "--enable-ubsan"]}
# What the series touches as well, where the library is installed: (pkg-config name, argument, code)
OPTIONAL = [("xencontrol", "--enable-xen", "hw/block/dataplane/xen-block.c"),
            ("blkio", "--enable-blkio", "block/blkio.c")]

# Binaries that Debian's tarballs lack and meson insists on; our guests need none of them.
EXCLUDE = "/pc-bios/edk2-*.fd.bz2\n/pc-bios/dtb/*.dtb\n"


def blobs(src: pathlib.Path) -> list[str]:
    """Their names, from the files that insist."""
    def names(name, pattern):
        path = src / name
        return re.findall(pattern, path.read_text()) if path.is_file() else []
    return ([f"pc-bios/{n}.bz2" for n in names("pc-bios/meson.build", r"'(edk2-[\w-]+\.fd)'")]
            + [f"pc-bios/dtb/{n}" for n in names("pc-bios/dtb/meson.build", r"'([\w-]+\.dtb)'")])


def clean_environment(side_dir: pathlib.Path) -> dict[str, str]:
    """The same for everybody: no CFLAGS, no python or compiler from elsewhere."""
    env = {k: v for k, v in environment.variables().items()
           if k in ("HOME", "TERM", "TMPDIR", "USER") or k.startswith("CCACHE_")}
    env |= {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "NINJA_STATUS": "[%f/%t] ",
            # one side finds what the other has compiled, and so does a clone elsewhere
            "CCACHE_BASEDIR": str(common.settings.build), "CCACHE_NOHASHDIR": "1",
            # a miss costs 10 % of the compiler's time instead of 40 %
            "CCACHE_DEPEND": "1",
            "CCACHE_STATSLOG": str(side_dir / "ccache.log")}
    if (python := base_.unpacked_python(side_dir.parent)).is_dir():
        env["PYTHONPATH"] = str(python)
    return env


def configure_arguments() -> list[str]:
    """configure's arguments on this machine, of which each side gets the same."""
    args, without = [*CONFIGURE, *EXPORTS], []
    for library, argument, code in OPTIONAL:
        if subprocess.run(["pkg-config", "--exists", library]).returncode == 0:
            args.append(argument)
        else:
            without.append(f"{code} (no {library})")
    if without:
        progress(f"not compiled on this machine: {', '.join(without)}")
    return args


def known_arguments(stack: str, src: pathlib.Path, args: Sequence[str]) -> list[str]:
    """args as this release wants them, and what pin.json adds."""
    knows = (src / "configure").read_text()
    out: list[str] = []
    for arg in args:
        option = arg.partition("=")[0]
        out += LATER[arg] if arg in LATER and not re.search(rf"^\s*{option}[=)]", knows, re.M) else [arg]
    clang = any("clang" in arg for arg in args)         # the pin's flags are gcc's
    return out + [arg for arg in base_.read_pin(stack).get("configure", [])
                  if not (clang and arg.startswith("--extra-cflags="))]


def meson(directory: pathlib.Path) -> str:
    """The meson that a build directory was made with: later releases have their own there."""
    own = directory / "pyvenv/bin/meson"
    return str(own) if own.exists() else "meson"


def checkout(stack: str, side: str, commit: str) -> pathlib.Path:
    """build/<stack>/<side>/src at commit; keeps the times of files that do not change."""
    repo, src = common.stack_dir(stack) / "tree", common.stack_dir(stack) / side / "src"
    try:
        old = git(src, "rev-parse", "HEAD").strip() if (src / ".git").is_file() else None
    except ToolError:
        old = None              # the repository it belonged to is gone
    if old is None:
        series.remove_worktree(repo, src)
        git(repo, "worktree", "add", "-q", "--detach", str(src), commit)
    else:
        if common.settings.force:
            git(src, "reset", "-q", "--hard")
        elif git(src, "status", "--porcelain", "--untracked-files=no"):
            raise ToolError(f"{src} has changes of its own; commit them in {repo} instead, "
                            f"or FORCE=1 make build throws them away")
        if old != commit:
            git(src, "checkout", "-q", "--detach", commit)
    exclude = repo / ".git/info/exclude"
    if EXCLUDE not in exclude.read_text():
        with open(exclude, "a") as f:
            f.write(EXCLUDE)
    for name in blobs(src):
        if not (src / name).exists():
            (src / name).write_bytes(bz2.compress(b"") if name.endswith(".bz2") else b"")
    where = common.settings.qemu_src or "it"
    for wrap, path, how in [
            (True, "subprojects/keycodemapdb", "meson subprojects download keycodemapdb berkeley-softfloat-3 "
                                               "berkeley-testfloat-3"),
            (False, "ui/keycodemapdb", "git submodule update --init ui/keycodemapdb tests/fp/berkeley-softfloat-3 "
                                       "tests/fp/berkeley-testfloat-3")]:
        if (src / "subprojects/keycodemapdb.wrap").is_file() == wrap and not (src / path / "meson.build").is_file():
            raise ToolError(f"the base lacks {path}; run {how} in {where}, "
                            f"rm {common.stack_dir(stack)}/base.json, and try again")
    return src


def configure(src: pathlib.Path, build: pathlib.Path, args: Sequence[str], env: Mapping[str, str]) -> None:
    """Run configure unless it has been, with the same arguments and the same script."""
    h = hashlib.sha256()
    for name in ["configure", "scripts/meson-buildoptions.sh"]:
        h.update((src / name).read_bytes())
    marker, now = build / ".configured", json.dumps([args, str(src), h.hexdigest()])
    if marker.is_file() and marker.read_text() == now and (build / "build.ninja").is_file():
        return
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir()
    progress(f"configure in {build}")
    run(["../src/configure", *args], cwd=build, env=env, log=build.parent / "configure.log")
    marker.write_text(now)


def ninja(build: pathlib.Path, targets: Sequence[str], env: Mapping[str, str], name: str) -> str:
    """Run ninja, with a line of progress every 15 s; the last step that it counted, if there was one."""
    log = build.parent / "ninja.log"
    said, last, step = time.monotonic(), "", re.compile(r"^\[(\d+)/(\d+)\] ")
    failed: collections.deque[str] = collections.deque(maxlen=40)
    with open(log, "w") as out, \
            subprocess.Popen(["ninja", *targets], cwd=build, env=env, text=True, errors="replace",
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as p:
        try:
            assert p.stdout
            for line in p.stdout:
                out.write(line)
                if m := step.match(line):
                    last = m[0].strip()
                    if time.monotonic() - said >= 15:
                        said = time.monotonic()
                        progress(f"building {name} {last}")
                if line.startswith("FAILED:") or line.startswith("ninja: error") or failed:
                    failed.append(line)
            p.wait()
        finally:
            process.end(p)
    if p.returncode:
        sys.stderr.write("".join(failed))
        raise ToolError(f"ninja failed with {p.returncode} for {name}; all it said is in {log}")
    return last


def ccache_counts(log: pathlib.Path) -> tuple[int, int]:
    """(hits, misses) of one build."""
    words = collections.Counter(log.read_text().split() if log.is_file() else [])
    return words["direct_cache_hit"] + words["preprocessed_cache_hit"], words["cache_miss"]


def build_side(stack: str, side: str, commit: str, targets: Sequence[str] = TARGETS,
               args: Sequence[str] | None = None) -> pathlib.Path:
    """Build one commit in build/<stack>/<side>; the build directory."""
    with common.exclusive(stack):
        return build_alone(stack, side, commit, targets, args)


def build_alone(stack: str, side: str, commit: str, targets: Sequence[str],
                args: Sequence[str] | None) -> pathlib.Path:
    """build_side() while no other tool works on the stack's trees."""
    top = common.stack_dir(stack) / side
    common.need_space(top, 100 if (top / "build/qemu-system-x86_64").is_file() else 700)
    src = checkout(stack, side, commit)
    base_.unpack_python(stack)
    env = clean_environment(top)
    build = top / "build"
    stats = top / "ccache.log"
    stats.unlink(missing_ok=True)
    start = time.monotonic()
    configure(src, build, known_arguments(stack, src, args or configure_arguments()), env)
    last = ninja(build, targets, env, side)
    if last:
        hits, misses = ccache_counts(stats)
        progress(f"built {side} {last} in {time.monotonic() - start:.0f} s; "
                 f"ccache had {hits} of {hits + misses} files")
    return build


def hooked(stack: str, commit: str, patch: pathlib.Path | None = None) -> str:
    """That commit with the hooks, or another patch, on top, which are for tests only."""
    repo, index = common.stack_dir(stack) / "tree", common.stack_dir(stack) / "hooks-index"
    env = {"GIT_INDEX_FILE": str(index), "GIT_AUTHOR_DATE": "2000-01-01T00:00Z",
           "GIT_COMMITTER_DATE": "2000-01-01T00:00Z"}
    own = common.patch_dir(stack) / series.HOOKS
    with common.exclusive(stack):
        index.unlink(missing_ok=True)
        git(repo, "read-tree", commit, env=env)
        git(repo, "apply", "--cached", str(patch or (own if own.is_file() else HOOKS)), env=env)
        tree = git(repo, "write-tree", env=env).strip()
        return git(repo, "commit-tree", tree, "-p", commit, "-m", "hooks for tests", env=env).strip()


def sanitized(stack: str) -> pathlib.Path:
    """Build the series with the hooks for tests, ASan, UBSan and the checks of a debug build; the build directory."""
    commit = hooked(stack, series.update_tree(stack)[1])
    # configure's probe for UBSan fails with gcc 12 because of that warning, and says nothing;
    # with -O2 the compiler takes three times as long
    args = [*configure_arguments(), "--enable-sanitizers", "--enable-debug-mutex",
            "--extra-cflags=-O0 -Wno-maybe-uninitialized"]
    build = build_side(stack, "sanitizers", commit,
                       ["qemu-system-x86_64", "qemu-img", NOTIFY_TEST, "tests/unit/test-defer-call"], args)
    for option in ["-fsanitize=address", "-fsanitize=undefined"]:
        if option not in (build / "build.ninja").read_text():
            raise ToolError(f"configure has left out {option}, see {build}/config.log")
    return build


def fuzzer(stack: str, side: str) -> pathlib.Path:
    """Build QEMU's fuzz targets with clang's libFuzzer, ASan and UBSan; the binary."""
    base, commit = series.update_tree(stack)
    patch = common.ROOT / f"tests/fuzz-{stack}.patch"
    if not patch.is_file():
        raise ToolError(f"no {patch}, which lets generic-fuzz work with IOThreads")
    args = ["--cc=ccache clang" if arg.startswith("--cc=") else arg for arg in configure_arguments()]
    args += ["--cxx=clang++", "--enable-fuzzing", "--enable-sanitizers",
             "--extra-cflags=-O1 -gline-tables-only -fno-omit-frame-pointer"]
    build = build_side(stack, *{"series": ("fuzz", hooked(stack, commit, patch)),
                                "base": ("fuzz-base", hooked(stack, base.commit, patch))}[side], [FUZZ], args)
    for option in ["address", "undefined", "fuzzer"]:
        if f"-fsanitize={option}" not in (build / "build.ninja").read_text():
            raise ToolError(f"configure has left out -fsanitize={option}, see {build}/config.log")
    return build / FUZZ


def binary_to_test(stack: str, given: str = "") -> str:
    """The binary that was given, or the series' own, built now."""
    if given:
        series.update_tree(stack)       # for QEMU's python library
        return given
    build_both(stack)
    return str(common.stack_dir(stack) / "series/build/qemu-system-x86_64")


def build_both(stack: str, targets: Sequence[str] = TARGETS) -> None:
    """Base and series."""
    base, commit = series.update_tree(stack)
    if commit != series.read_state(stack).get("commit"):
        progress(f"building commits that patches/{stack} has not")
    if git(common.stack_dir(stack) / "tree", "status", "--porcelain"):
        progress(f"{common.stack_dir(stack) / 'tree'} has changes that are not committed; they are not built")
    args = configure_arguments()
    for side, what in [("base", base.commit), ("series", commit)]:
        build_side(stack, side, what, targets, args)


@dataclasses.dataclass(frozen=True)
class Options:
    targets: str = options.text("", "targets of ninja, such as tests/unit/test-aio", "what a guest needs",
                                positional="*")


def main(given: Options) -> None:
    """Build QEMU without and with the series, in build/STACK/{base,series}/build.

    Example: dc build --stack v10.2 tests/unit/test-aio
    """
    build_both(common.stack_name(), given.targets.split() or TARGETS)
