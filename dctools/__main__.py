# SPDX-License-Identifier: GPL-2.0-or-later
"""python3 -m dctools"""

from dctools import cli

cli.main()
