# SPDX-License-Identifier: GPL-2.0-or-later
"""The base: upstream QEMU out of Debian's source package, or QEMU_SRC=.

patches/<stack>/pin.json says which; what is imported is checked against it.
docs/series-tools.md has the whole.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from debian import deb822, debian_support

from dctools import common, environment
from dctools.common import ToolError, git, progress, sha256
from dctools.process import run

APT_ETC = pathlib.Path("/etc/apt")
OS_RELEASE = pathlib.Path("/etc/os-release")
BASE_DATE = "2000-01-01T00:00:00Z"      # the same commit on every machine
# What QEMU's build and unit tests take sources from: git submodules, in later releases meson's subprojects.
SUBMODULES = ["ui/keycodemapdb", "tests/fp/berkeley-softfloat-3", "tests/fp/berkeley-testfloat-3",
              "dtc", "meson"]
SUBPROJECTS = ["keycodemapdb", "berkeley-softfloat-3", "berkeley-testfloat-3"]
# What pin.json says about the build and the series; another value is not another base.
NOT_THE_BASE = ("configure", "python", "check", "gone", "series_tree", "topics", "tables")

Pin = dict[str, Any]        # what a pin.json has


def read_pin(stack: str) -> Pin:
    """What pin.json of a stack says."""
    path = common.patch_dir(stack) / "pin.json"
    try:
        pin = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ToolError(f"{path}: cannot be read as JSON ({e})") from e
    missing = {"package", "version", "files", "diffs", "upstream", "tag", "base_tree"} - set(pin)
    if missing:
        raise ToolError(f"{path}: no {', '.join(sorted(missing))} in it")
    return pin


# -- apt, with private lists ---------------------------------------------------

def chosen_suites(have: list[str], codename: str, suites: list[str] | None) -> list[str]:
    """Of the suites of an entry those for this Debian; or instead of its release the suites that are asked for."""
    if suites:
        return suites if codename in have else []
    return [s for s in have if s.startswith(codename)]


def source_lines(line: str, codename: str, kind: str = "deb-src", suites: list[str] | None = None) -> list[str]:
    """A line of a *.list file as lines of that kind, none when it is not about this Debian."""
    m = re.match(r"\s*deb(?:-src)?\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)(\s.*)?$", line)
    if not m:
        return []
    options, archive, have, components = m.groups(default="")
    return [" ".join(f"{kind} {options}{archive} {suite}{components}".split())
            for suite in chosen_suites([have], codename, suites)]


def source_stanza(stanza: str, codename: str, kind: str = "deb-src", suites: list[str] | None = None) -> str | None:
    """A stanza of a deb822 *.sources file as one of that kind, or None."""
    fields = deb822.Deb822(stanza)
    suites = chosen_suites(fields.get("Suites", "").split(), codename, suites)
    if not suites or fields.get("Enabled", "yes").lower() in ("no", "false", "0", "off"):
        return None
    fields["Types"], fields["Suites"] = kind, " ".join(suites)
    return fields.dump()


def source_lists(etc: pathlib.Path, codename: str, kind: str = "deb-src",
                 suites: list[str] | None = None) -> dict[str, str]:
    """The machine's own apt sources as {file name: text} with entries of one kind only.

    With suites, these of the archive that has the machine's own release.
    """
    out = {}
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if not path.is_file() or path.suffix not in (".list", ".sources"):
            continue
        text = path.read_text()
        if path.suffix == ".list":
            text = "\n".join(p for s in text.splitlines() for p in source_lines(s, codename, kind, suites))
        else:
            parts = [source_stanza(s, codename, kind, suites) for s in re.split(r"\n[ \t]*\n", text)]
            text = "\n".join(p for p in parts if p)
        if text:
            out[path.name] = text.rstrip("\n") + "\n"
    return out


def codename() -> str:
    """What this Debian is called, or nothing."""
    m = re.search(r'^VERSION_CODENAME="?([a-z]+)', OS_RELEASE.read_text(), re.M)
    return m[1] if m else ""


def own_sources(kind: str = "deb-src", suites: list[str] | None = None) -> dict[str, str]:
    """source_lists() of this machine, which must not be none."""
    name = codename()
    lists = source_lists(APT_ETC, name, kind, suites) if name else {}
    if not lists:
        raise ToolError(f"no apt source for {name or 'this system'} under {APT_ETC}; "
                        "give a QEMU git checkout with QEMU_SRC=")
    return lists


def apt_options(apt: pathlib.Path, kind: str = "deb-src", suites: list[str] | None = None) -> list[str]:
    """Options for apt-get that keep it off the system's lists; writes the private ones."""
    lists = own_sources(kind, suites)
    shutil.rmtree(apt / "etc", ignore_errors=True)
    for d in ["etc", "lists/partial", "cache/archives/partial"]:
        (apt / d).mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (apt / "etc" / name).write_text(text)
    return ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={apt}/etc",
            "-o", f"Dir::State::lists={apt}/lists", "-o", f"Dir::Cache={apt}/cache",
            # what is installed is no version that the archive has
            "-o", f"Dir::State::status={os.devnull}", "-o", "APT::Sandbox::User=root", "-q"]


def verify(directory: pathlib.Path, files: Mapping[str, str]) -> None:
    """Each of the files must be there with its checksum."""
    for name, want in files.items():
        path = directory / name
        if not path.is_file():
            raise ToolError(f"{path}: apt did not bring it; is the list of files in pin.json right?")
        have = sha256(path)
        if have != want:
            raise ToolError(f"{path}: sha256 is {have}, pin.json says {want}; not used. "
                            "Remove it to have it fetched anew")


def is_fetched(directory: pathlib.Path, files: Mapping[str, str]) -> bool:
    """Whether each of the files is there with its checksum."""
    try:
        verify(directory, files)
    except ToolError:
        return False
    return True


def versions(said: str) -> list[str]:
    """Of the packages that apt-cache lists."""
    return [paragraph["Version"] for paragraph in deb822.Deb822.iter_paragraphs(said) if "Version" in paragraph]


def newest_first(known: Iterable[str]) -> list[str]:
    """In Debian's order, each once."""
    return sorted(set(known), key=debian_support.Version, reverse=True)


def release(version: str) -> str:
    """Of 1:10.2.2+ds-1 or 10.2.2: 10.2"""
    m = re.match(r"(?:\d+:)?(\d+\.\d+|.*)", version)
    assert m        # anything matches
    return m[1]


def apt_update(options: Sequence[str], env: Mapping[str, str], hint: str) -> None:
    """Fetch the private lists; the hint ends what is said on failure."""
    try:
        run(["apt-get", *options, "update"], env=env)
    except ToolError as e:
        raise ToolError(f"{e}{hint}") from e


def download(pin: Pin, apt: pathlib.Path) -> tuple[pathlib.Path, str]:
    """(directory of the source package's files, version got).

    The version is another than the pinned one only when the archive no
    longer has that, or lists it but does not serve it; the caller has to say so.
    """
    want = apt / "source"
    if is_fetched(want, pin["files"]):
        return want, pin["version"]
    common.need_space(apt, 100)
    options, env = apt_options(apt, "deb-src", pin.get("suites")), environment.child({"LC_ALL": "C"})
    package, version = pin["package"], pin["version"]
    hint = "; mend that, or give a QEMU git checkout with QEMU_SRC="
    progress(f"fetching the source of {package} {version} with apt")
    apt_update(options, env, hint)

    def fetch(directory, version):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        run(["apt-get", *options, "source", "--download-only", f"{package}={version}"], cwd=directory, env=env)

    known = versions(run(["apt-cache", *options, "showsrc", package], env=env))
    if not known:
        raise ToolError(f"apt knows no source package {package}{hint}")
    # after the pinned one, those of the same release series, then what is newest
    known = newest_first(known)
    known.sort(key=lambda v: (v != version, release(v) != release(pin["upstream"])))
    problem = None
    for v in known:
        directory = want if v == version else apt / "source-moved"
        try:
            fetch(directory, v)
        except ToolError as e:
            progress(f"{package} {v} is listed but cannot be had")
            problem = problem or e
            continue
        if v == version:
            try:
                verify(want, pin["files"])
            except ToolError as e:
                raise ToolError(f"{e}{hint}") from e
        return directory, v
    raise ToolError(f"{problem}{hint}")


# -- Python packages that a build needs newer than this Debian has them --------

def unpacked_python(top: pathlib.Path) -> pathlib.Path:
    """The directory for PYTHONPATH in build/<stack>, if there is one."""
    return top / "python/usr/lib/python3/dist-packages"


def unpack_python(stack: str) -> None:
    """The Debian packages that pin.json names, unpacked below build/<stack>; nothing is installed."""
    wanted = read_pin(stack).get("python")
    top = common.stack_dir(stack)
    out, marker = top / "python", top / "python.json"
    if not wanted:
        shutil.rmtree(out, ignore_errors=True)
        return
    try:
        if json.loads(marker.read_text()) == wanted and unpacked_python(top).is_dir():
            return
    except (OSError, ValueError):
        pass
    marker.unlink(missing_ok=True)
    debs = fetch_debs(wanted, common.settings.build / "apt" / "-".join(["deb", *wanted["suites"]]))
    shutil.rmtree(out, ignore_errors=True)
    for deb in debs:
        run(["dpkg-deb", "--extract", deb, out])
    common.write_json(marker, wanted)


def fetch_debs(wanted: dict[str, Any], apt: pathlib.Path) -> list[pathlib.Path]:
    """The .deb files that wanted names, verified; another version is said."""
    out, env = apt / "debs", environment.child({"LC_ALL": "C"})
    files = {d["file"]: d["sha256"] for d in wanted["packages"].values()}
    if is_fetched(out, files):
        return [out / name for name in files]
    common.need_space(apt, 200)
    hint = "; mend that"
    progress(f"fetching {', '.join(wanted['packages'])} with apt, to be unpacked below {common.settings.build}")
    options = apt_options(apt, "deb", wanted["suites"])
    apt_update(options, env, hint)
    shutil.rmtree(out, ignore_errors=True)
    found = []
    for package, pin in wanted["packages"].items():
        try:
            said = run(["apt-cache", *options, "show", "--all-versions", package], env=env)
        except ToolError:
            said = ""       # it has none
        known = newest_first(versions(said))
        known.sort(key=lambda v: v != pin["version"])
        for n, version in enumerate(known):
            directory = out / "new"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            try:
                run(["apt-get", *options, "download", f"{package}={version}"], cwd=directory, env=env)
                break
            except ToolError as e:
                if n == len(known) - 1:
                    raise ToolError(f"{e}{hint}") from e
        else:
            raise ToolError(f"apt knows no package {package} in {', '.join(wanted['suites'])}{hint}")
        if version == pin["version"]:
            verify(directory, {pin["file"]: pin["sha256"]})
        else:
            progress(f"NOT THE PINNED {package}: the archive has moved on to {version} (pinned: {pin['version']})")
        deb, = directory.glob("*.deb")
        found.append(deb.replace(out / deb.name))
    return found


# -- from files to a git tree --------------------------------------------------

def diff_names(pin: Pin, names: Iterable[str]) -> list[str]:
    """Those of names that take the tarball to the stable release, in order."""
    if not pin["diffs"]:
        return []
    rule = re.escape(pin["diffs"]).replace(re.escape("{}"), r"(\d+)")
    found = {int(m[1]): m[0] for m in (re.fullmatch(rule, n) for n in names) if m}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise ToolError(f"{pin['diffs']}: the package has numbers {sorted(found)}, a gap among them")
    return [found[n] for n in sorted(found)]


def unpack(pin: Pin, files: pathlib.Path, out: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """Upstream's source in out/src, Debian's own patches in out/debian; that source, and their names."""
    shutil.rmtree(out, ignore_errors=True)
    src, debian = out / "src", out / "debian"
    for archive, to in [("*.orig.tar.*", src), ("*.debian.tar.*", debian)]:
        to.mkdir(parents=True)
        path, = files.glob(archive)
        run(["tar", "--no-same-owner", "--strip-components=1", "-C", to, "-xf", path])
    patches = debian / "patches"
    names = diff_names(pin, [p.name for p in patches.iterdir()])
    for name in names:
        with open(patches / name, "rb") as f:
            run(["patch", "-p1", "--force", "--fuzz=0", "--no-backup-if-mismatch", "--silent"],
                cwd=src, stdin=f, env=environment.child({"LC_ALL": "C"}))
    left = [p for p in src.rglob("*.rej")]
    if left:
        raise ToolError(f"{left[0].relative_to(src)}: left by patch; a diff did not apply whole")
    return src, [n for n in series_names(patches / "series") if n not in names]


def series_names(path: pathlib.Path) -> list[str]:
    """The patches that a quilt series file names."""
    return [s.split()[0] for s in path.read_text().splitlines() if s.split() and s[0] != "#"]


def init_repo(repo: pathlib.Path) -> None:
    """Make a git repository there, if there is none."""
    if (repo / ".git").is_dir():
        return
    repo.mkdir(parents=True, exist_ok=True)
    git(repo, "init", "-q", "-b", "series")
    # so that people can commit at once, with line endings as they are
    for key, value in [("user.name", common.IDENTITY[0]), ("user.email", common.IDENTITY[1]),
                       ("core.autocrlf", "false"), ("core.safecrlf", "false"), ("gc.auto", "0")]:
        git(repo, "config", key, value)


def commit_directory(repo: pathlib.Path, directory: pathlib.Path, message: str, parent: str | None = None) -> str:
    """A commit in repo with what is in directory, ignored files too."""
    env = {"GIT_DIR": str(repo / ".git"), "GIT_WORK_TREE": str(directory),
           "GIT_INDEX_FILE": str(repo / ".git/import-index"),
           "GIT_AUTHOR_DATE": BASE_DATE, "GIT_COMMITTER_DATE": BASE_DATE}
    index = pathlib.Path(env["GIT_INDEX_FILE"])
    index.unlink(missing_ok=True)
    git(directory, "add", "-A", "-f", ".", env=env)
    tree = git(directory, "write-tree", env=env).strip()
    index.unlink()
    parents = ["-p", parent] if parent else []
    return git(repo, "commit-tree", tree, *parents, "-m", message, env=env).strip()


@dataclasses.dataclass
class Base:
    key: str            # where it came from; another key means another import
    commit: str
    tree: str
    version: str
    pinned: bool
    note: str = ""      # said each time when the base is not the pinned one
    debian: str = ""    # commit with Debian's own patches on top, if known


def import_package(pin: Pin, repo: pathlib.Path, work: pathlib.Path, apt: pathlib.Path, key: str) -> Base:
    """Take the base from Debian's source package."""
    files, version = download(pin, apt)
    moved = version != pin["version"]
    if moved:
        progress(f"the archive has moved on to {pin['package']} {version} (pinned: {pin['version']}); trying it")
    progress(f"unpacking {pin['package']} {version}")
    src, own = unpack(pin, files, work)
    upstream = (src / "VERSION").read_text().strip()
    if moved and release(upstream) != release(pin["upstream"]) and not pin.get("any_release"):
        raise ToolError(f"the archive has moved on to QEMU {upstream}, another release series than "
                        f"{pin['upstream']}; give a QEMU git checkout with QEMU_SRC=")
    commit = commit_directory(repo, src, f"QEMU {upstream}")
    tree = git(repo, "rev-parse", f"{commit}^{{tree}}").strip()
    note = ""
    if moved:
        note = (f"NOT THE PINNED BASE: the archive has moved on to {pin['package']} {version}, "
                f"QEMU {upstream}, tree {tree}")
    elif tree != pin["base_tree"] or upstream != pin["upstream"]:
        raise ToolError(f"the import gives QEMU {upstream}, tree {tree}; pin.json says "
                        f"{pin['upstream']}, {pin['base_tree']}; not used")
    for name in own:
        with open(work / "debian/patches" / name, "rb") as f:
            run(["patch", "-p1", "--force", "--no-backup-if-mismatch", "--silent"], cwd=src, stdin=f)
    debian = commit_directory(repo, src, "Debian's own patches", commit)
    return Base(key, commit, tree, upstream, not moved, note, debian)


def checkout_commit(pin: Pin, path: pathlib.Path) -> tuple[str, str]:
    """(commit, how it was found) in the person's checkout."""
    try:
        # it may belong to someone else: we only read it
        look = ["-c", "safe.directory=*", "rev-parse", "--verify", "-q"]
        git(path, *look[:3], "--git-dir")
    except ToolError as e:
        raise ToolError(f"QEMU_SRC={path}: not a git checkout ({e})") from e
    try:
        return git(path, *look, f"refs/tags/{pin['tag']}^{{commit}}").strip(), f"tag {pin['tag']}"
    except ToolError:
        pass
    try:
        commit = git(path, *look, "HEAD^{commit}").strip()
    except ToolError as e:
        raise ToolError(f"QEMU_SRC={path}: neither a tag {pin['tag']} nor any commit in it") from e
    return commit, f"its HEAD, as it has no tag {pin['tag']}"


def export_checkout(path: pathlib.Path, commit: str, out: pathlib.Path) -> None:
    """The files of a commit, with those submodules in it that a build needs."""
    def archive(repo, commit, to):
        to.mkdir(parents=True, exist_ok=True)
        tar = out.with_name("export.tar")
        git(repo, "-c", "safe.directory=*", "archive", "-o", str(tar), commit)
        run(["tar", "--no-same-owner", "-C", to, "-xf", tar])
        tar.unlink()

    shutil.rmtree(out, ignore_errors=True)
    archive(path, commit, out)
    links = git(path, "-c", "safe.directory=*", "ls-tree", commit, "--", *SUBMODULES)
    for mode, _, sub, name in (re.split(r"\s", s, maxsplit=3) for s in links.splitlines()):
        if mode == "160000" and (path / name / ".git").exists():
            archive(path / name, sub, out / name)
    for name in SUBPROJECTS:
        theirs, ours = path / "subprojects" / name, out / "subprojects" / name
        # meson puts these there, git does not know of them
        if (out / f"subprojects/{name}.wrap").is_file() and theirs.is_dir() and not ours.exists():
            shutil.copytree(theirs, ours, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    if not (out / "VERSION").is_file() or not (out / "configure").is_file():
        raise ToolError(f"QEMU_SRC={path}: no QEMU in it (no VERSION or configure)")


def import_checkout(pin: Pin, repo: pathlib.Path, work: pathlib.Path, path: pathlib.Path, commit: str, how: str,
                    key: str) -> Base:
    """Take the base from a commit of the person's checkout; how says how it was found."""
    progress(f"taking QEMU from {path}, {how}")
    src = work / "src"
    work.mkdir(parents=True, exist_ok=True)
    export_checkout(path, commit, src)
    upstream = (src / "VERSION").read_text().strip()
    new = commit_directory(repo, src, f"QEMU {upstream}")
    tree = git(repo, "rev-parse", f"{new}^{{tree}}").strip()
    pinned = tree == pin["base_tree"]
    note = f"base: QEMU_SRC={path}, {how}, commit {commit}, QEMU {upstream}, tree {tree}"
    return Base(key, new, tree, upstream, pinned, note)


def base(stack: str) -> Base:
    """The base in build/<stack>/tree's repository, imported when it has to be."""
    pin = read_pin(stack)
    top = common.stack_dir(stack)
    repo, state = top / "tree", top / "base.json"
    path = pathlib.Path(common.settings.qemu_src).resolve() if common.settings.qemu_src else None
    if path:
        commit, how = checkout_commit(pin, path)
        key = f"QEMU_SRC {path} {commit}"
    else:
        about = {k: v for k, v in pin.items() if k not in NOT_THE_BASE}
        key = "pin " + hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    try:
        known = Base(**json.loads(state.read_text()))
        if known.key == key:
            git(repo, "cat-file", "-e", known.commit)
            if known.note:
                progress(known.note)
            return known
    except (OSError, ValueError, TypeError, ToolError):
        pass
    common.need_space(top, 1000)
    init_repo(repo)
    work = top / "import"
    try:
        if path:
            new = import_checkout(pin, repo, work, path, commit, how, key)
        else:
            new = import_package(pin, repo, work, common.settings.build / "apt" / "-".join(pin.get("suites", [])), key)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    # named, so that git never takes them for garbage
    git(repo, "update-ref", "refs/tool/base", new.commit)
    if new.debian:
        git(repo, "update-ref", "refs/tool/debian", new.debian)
    common.write_json(state, dataclasses.asdict(new))
    if new.note:
        progress(new.note)
    return new
