# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `series`: the patches to git commits and back, checks, mails, source packages."""

import dataclasses
from collections.abc import Callable

from dctools import common, lint, mail, options, quilt, series
from dctools.common import ToolError

ACTIONS: dict[str, Callable[..., int | None]] = {"tree": series.tree, "export": series.export, "check": lint.check,
                                                 "mail": mail.mail, "mbox": mail.mbox, "quilt": quilt.source_package}


@dataclasses.dataclass(frozen=True)
class Options:
    action: str = options.choice(ACTIONS, "", "what to do", positional="?")
    topic: str = options.text("", "one topic, such as 1-fixes", "all")
    v: int = options.number(1, 1, 99, "mail: version of the series, in the subjects")
    since: str = options.text("", "mail: the commit or tag of this project that was sent before, for a range-diff")
    mail_smtp: str = options.text("", "for tests: host:port of a sink on this machine")


def main(given: Options) -> int:
    """The patches: patches/STACK/TOPIC/*.patch <-> git commits in build/STACK/tree.

    tree: a git tree, the base and a commit for each patch. export: its commits back to patches/.
    check: lint, git am, export once more, checkpatch. mail: with your sign-off, up to
    git send-email --dry-run. mbox: each topic as one file. quilt: Debian's source package
    with the patches. docs/series-tools.md has more.

    Example: dc series check --stack v10.2 --topic 2-defer-call
    """
    common.settings.topic = given.topic
    if given.action not in ACTIONS:
        raise ToolError(f"give one of {', '.join(ACTIONS)}")
    arguments = (given.mail_smtp, given.v, given.since) if given.action == "mail" else ()
    return ACTIONS[given.action](*arguments) or 0
