/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Reading files of /proc
 * and of tracefs.
 */
#ifndef PROC_H
#define PROC_H

#include <stdint.h>

uint64_t first_number(const char *path, const char *after);
uint64_t cpu_interrupts(const char *name, unsigned cpu);

#endif
