/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The process that has the device: its command line and its start.
 * end.h ends it.
 */
#ifndef PROCESS_H
#define PROCESS_H

#include <sys/types.h>

#include "options.h"

struct command {
    char *argv[64 + MAX_QEMU_ARGS];     /* ends with NULL */
    unsigned n;
};

extern pid_t iothread_tid;    /* of the thread that does the I/O */

__attribute__((format(printf, 2, 3)))
void add(struct command *c, const char *format, ...);
void add_words(struct command *c, const char *const *words);
void add_iothread(struct command *c);
void add_disk(struct command *c);
void start_process(struct command *c);

#endif
