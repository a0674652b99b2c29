# SPDX-License-Identifier: GPL-2.0-or-later
"""The tools: they build QEMU with and without a series, test it and measure it. cli.py has the commands."""
