# SPDX-License-Identifier: GPL-2.0-or-later
"""What every tool needs: where things lie, how to run commands, how to fail."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD_DIR") or ROOT / "build").resolve()
IDENTITY = ("defer-call series", "noreply@localhost")


class ToolError(Exception):
    """Something the person can mend; the text says what and how, in a line."""


def progress(text):
    who = f"{os.environ.get('STACK')}: " if os.environ.get("SEVERAL_STACKS") else ""
    print(f"[{time.strftime('%H:%M:%S')}] {who}{text}", file=sys.stderr, flush=True)


def stacks():
    """The stacks that there are: directories with a pin. The oldest release is first."""
    return sorted((p.parent.name for p in ROOT.glob("patches/*/pin.json")),
                  key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def stack_name():
    """The stack that STACK= names, or the first."""
    name = os.environ.get("STACK") or stacks()[0]
    if name not in stacks():
        raise ToolError(f"STACK={name}: no such stack; there is: {', '.join(stacks())}")
    return name


def logs(what):
    """Where the logs of this process's stack go."""
    return BUILD / what / (os.environ.get("STACK") or stacks()[0])


def patch_dir(stack):
    return ROOT / "patches" / stack


def stack_dir(stack):
    return BUILD / stack


def run(cmd, log=None, **kw):
    """Run cmd and return its standard output; failure is a ToolError.

    With log, both outputs go to that file and its end is shown on failure.
    """
    cmd = [str(c) for c in cmd]
    kw.setdefault("stdin", subprocess.DEVNULL)
    try:
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "wb") as out:
                p = subprocess.run(cmd, stdout=out, stderr=subprocess.STDOUT, **kw)
            if p.returncode:
                tail = log.read_text(errors="replace").splitlines()[-15:]
                print("\n".join(tail), file=sys.stderr)
                raise ToolError(f"{cmd[0]} failed with {p.returncode}; all it said is in {log}")
            return ""
        p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, errors="replace", **kw)
    except FileNotFoundError as e:
        if kw.get("cwd") and not os.path.isdir(kw["cwd"]):
            raise ToolError(f"no directory {kw['cwd']}") from e
        raise ToolError(f"command {cmd[0]} not found; run `make install`") from e
    if p.returncode:
        said = (p.stderr.strip() or p.stdout.strip() or "said nothing").splitlines()
        raise ToolError(f"{' '.join(cmd[:4])} failed with {p.returncode}: {said[-1]}")
    return p.stdout


def number(env, name, default, low, high, kind=int):
    """The number that a variable holds."""
    text = env.get(name) or str(default)
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise ToolError(f"{name}={text}: give {what} from {low} to {high}")
    return value


def block_size(env, most, default="4k"):
    """(text, bytes) of BS=."""
    text = env.get("BS") or default
    m = re.fullmatch(r"([1-9]\d{0,7})([kKmM]?)", text)
    size = m and int(m[1]) * {"": 1, "k": 1024, "m": 1 << 20}[m[2].lower()]
    if not m or size % 512 or size > most << 20:
        raise ToolError(f"BS={text}: give a multiple of 512 bytes up to {most}m, such as {default}")
    return text, size


def switch(env, name, default):
    """Whether a variable is on or off."""
    text = env.get(name) or default
    if text.lower() not in ("on", "off", "1", "0"):
        raise ToolError(f"{name}={text}: give on or off")
    return text.lower() in ("on", "1")


def write_json(path, data):
    """Whole or not at all, so that Ctrl-C leaves no half file."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(data, indent=2) + "\n")
    new.replace(path)


@contextlib.contextmanager
def setenv(**variables):
    """Set for every process that is started meanwhile."""
    old = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


# What the person's git is set to (line endings, signing, hooks, templates)
# must not change what a patch looks like, so none of it is read.
GIT_ENV = {
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
    # the first two have a default below the home directory that is read all the same
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "core.attributesFile", "GIT_CONFIG_VALUE_0": os.devnull,
    "GIT_CONFIG_KEY_1": "core.excludesFile", "GIT_CONFIG_VALUE_1": os.devnull,
    "GIT_CONFIG_KEY_2": "core.hooksPath", "GIT_CONFIG_VALUE_2": os.devnull,
    "GIT_AUTHOR_NAME": IDENTITY[0], "GIT_AUTHOR_EMAIL": IDENTITY[1],
    "GIT_COMMITTER_NAME": IDENTITY[0], "GIT_COMMITTER_EMAIL": IDENTITY[1],
    "LC_ALL": "C.UTF-8", "TZ": "UTC",
}


def git(tree, *args, env=None, **kw):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return run(["git", "-C", tree, *args], env={**kept, **GIT_ENV, **(env or {})}, **kw)


@contextlib.contextmanager
def exclusive(stack):
    """One tool at a time works on a stack's trees; another one waits for it."""
    stack_dir(stack).mkdir(parents=True, exist_ok=True)
    with open(stack_dir(stack) / "lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another tool that builds {stack}")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def need_space(path, mib):
    """Fail before a long job rather than in its middle when the disk is full."""
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free >> 20
    if free < mib:
        raise ToolError(f"{path}: {free} MiB free, {mib} MiB needed; make room or set BUILD_DIR=")


def main(func, arguments=False):
    """Run a tool: one line and exit status 1 on failure, 130 on Ctrl-C. Most tools take variables, not arguments."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = pathlib.Path(sys.argv[0]).stem
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(sys.modules["__main__"].__doc__.strip())
        sys.exit(0)
    try:
        if sys.argv[1:] and not arguments:
            raise ToolError(f"takes no arguments, but `{sys.argv[1]}` is one; {name}.py --help says more")
        sys.exit(func() or 0)
    except ToolError as e:
        print(f"{name}: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as e:
        print(f"{name}: {f'{e.filename}: ' if e.filename else ''}{e.strerror or e}", file=sys.stderr)
        sys.exit(1)
