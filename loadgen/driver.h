/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The driver: it works the virtqueues
 * until the job is done.
 */
#ifndef DRIVER_H
#define DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "virtqueue.h"

/*
 * What is to be done: blocks in order or at random, a number of them or
 * without end.
 */
struct job {
    bool in_order, verify, endless, record;
    unsigned write_percent;
    uint64_t left, next;
};

/* What is counted; the windows take differences. */
struct counts {
    uint64_t done, writes, kicks, interrupts, batches, batch_max;
};

extern struct job job;
extern struct counts count;

void set_seed(uint64_t seed);
void run(double seconds);
void run_at_least(double seconds, uint64_t ios);
void drain(void);
void one_request(struct queue *q, unsigned wait_us);
void kick_by_qtest(struct queue *q);
void take_interrupts(struct queue *q);

#endif
