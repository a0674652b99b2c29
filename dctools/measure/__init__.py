# SPDX-License-Identifier: GPL-2.0-or-later
"""Measuring: fio in a guest, the load generator, instructions."""
