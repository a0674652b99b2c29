/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * System calls of the IOThread by their names, if tracepoints may be used.
 * Counting them costs time, so not while the IOThread is measured.
 */
#ifndef CALLS_H
#define CALLS_H

#include <stdbool.h>
#include <stdint.h>

enum { CALLS = 9 };

extern const char *const call_names[CALLS];
extern char calls_missing[160];     /* why they are not counted, or "" */

void open_call_counters(void);
void enable_call_counters(void);
void disable_call_counters(void);
bool read_call_counter(unsigned call, uint64_t *value);

#endif
