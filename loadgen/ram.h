/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest RAM: memory that is shared with whoever has the device.
 * Rings, requests and data lie there.
 */
#ifndef RAM_H
#define RAM_H

#include <stdint.h>

extern uint8_t *ram;            /* address 0 at [0] */
extern uint64_t ram_size;

/* Both return a descriptor that exec does not close. */
int map_ram(void);
int memory_file(const char *name, uint64_t size);

uint64_t ram_alloc(uint64_t size, uint64_t align);
uint64_t offset_in_ram(const void *p);

#endif
