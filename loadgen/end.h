/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Ending: an error is one line on standard error,
 * and QEMU does not outlive this program.
 */
#ifndef END_H
#define END_H

#include <stdbool.h>
#include <sys/types.h>

extern pid_t qemu_pid;      /* 0: there is no QEMU */
extern int qemu_stderr;     /* a file with what QEMU has said */
extern int die_status;      /* with which die() exits */

bool has_ended(void);
void end_qemu(void);
__attribute__((noreturn, format(printf, 1, 2)))
void die(const char *format, ...);
__attribute__((noreturn)) void die_of_qemu(void);
void end_with_signals(void);

#endif
