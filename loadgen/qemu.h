/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Starting QEMU, with guest RAM that is shared with it.
 * end.h ends it.
 */
#ifndef QEMU_H
#define QEMU_H

#include <stdint.h>
#include <sys/types.h>

extern uint8_t *ram;            /* guest RAM, address 0 at [0] */
extern pid_t iothread_tid;

void start_qemu(void);
uint64_t ram_alloc(uint64_t size, uint64_t align);

#endif
