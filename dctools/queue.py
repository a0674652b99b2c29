# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `series`: the patches to git commits and back, checks, mails."""

import dataclasses

from dctools import common, lint, mail, options, series
from dctools.common import ToolError

ACTIONS = {"tree": series.tree, "export": series.export, "check": lint.check}


@dataclasses.dataclass(frozen=True)
class Options:
    action: str = options.choice([*ACTIONS, "mail"], "", "what to do", positional="?")
    topic: str = options.text("", "one topic, such as 1-fixes", "all")
    mail_smtp: str = options.text("", "for tests: host:port of a sink on this machine")


def main(given: Options) -> int:
    """The patches: patches/STACK/TOPIC/*.patch <-> git commits in build/STACK/tree.

    tree: a git tree, the base and a commit for each patch. export: its commits back to patches/.
    check: lint, git am, export once more, checkpatch. mail: with your sign-off, up to
    git send-email --dry-run. docs/series-tools.md has more.

    Example: dc series check --stack v10.2 --topic 2-defer-call
    """
    common.settings.topic = given.topic
    if given.action == "mail":
        mail.mail(given.mail_smtp)
        return 0
    if given.action not in ACTIONS:
        raise ToolError(f"give one of {', '.join([*ACTIONS, 'mail'])}")
    return ACTIONS[given.action]() or 0
