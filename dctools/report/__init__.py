# SPDX-License-Identifier: GPL-2.0-or-later
"""From raw results to tables, plots and pages."""
