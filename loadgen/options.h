/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What is asked for on the command line.
 * The table in options.c says what each option is.
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

enum { MAX_QUEUES = 64, MAX_QD = 1024, MAX_QEMU_ARGS = 32, SECTOR = 512 };
enum aio { AIO_NATIVE, AIO_IO_URING, AIO_THREADS };
enum irq { IRQ_EACH, IRQ_BATCH, IRQ_OFF };
enum wait_for { WAIT_USED, WAIT_IRQ };
enum kick { KICK_EVENTFD, KICK_QTEST };
enum transport_kind { TRANSPORT_PCI, TRANSPORT_SCSI, TRANSPORT_VHOST_USER };

struct options {
    const char *qemu, *image, *machine;
    const char *qemu_arg[MAX_QEMU_ARGS];
    unsigned qemu_args;
    bool cache_direct, event_idx, indirect, irqfd, jitter, fill;
    bool iothread;
    unsigned transport, aio, irq, wait, kick;   /* of the enums above */
    unsigned qd, queues, batch, bs, write_percent, turns;
    double seconds, warmup, count_seconds, timeout;
    uint64_t reaction_ns, poll_max_ns, verify_blocks, min_ios;
    uint64_t seed, pattern_seed;
    int iothread_cpu, main_cpu, driver_cpu;     /* -1: any */
};

extern struct options opt;

/* How the values of the enums are called. */
extern const char *const aio_names[], *const irq_names[];
extern const char *const wait_names[], *const kick_names[];
extern const char *const transport_names[];

void parse_options(int argc, char **argv);

#endif
