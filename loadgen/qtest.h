/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU's qtest and QMP, both lines of text over a socket.
 * Whatever they refuse ends this program.
 */
#ifndef QTEST_H
#define QTEST_H

#include <stdint.h>

/* Both return QEMU's end of the socket. */
int open_qtest(void);
int open_qmp(void);

/* The answer stays until the next one. */
const char *qmp(const char *command);
void greet_qmp(void);

/* size: 1, 2, 4 or 8 bytes. */
uint64_t memory_read(unsigned size, uint64_t address);
void memory_write(unsigned size, uint64_t address, uint32_t value);
uint32_t port_read(unsigned size, unsigned port);
void port_write(unsigned size, unsigned port, uint32_t value);

#endif
