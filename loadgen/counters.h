/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a window of time took: the kernel's figures of QEMU and of this
 * program, and what the driver has counted.
 */
#ifndef COUNTERS_H
#define COUNTERS_H

#include <stdint.h>

#include "driver.h"

struct figures {
    uint64_t time, iothread_cpu, main_cpu, process_cpu, driver_cpu;
    uint64_t syscw, syscr;
    uint64_t rescheduling;      /* of the IOThread's CPU, if it has one */
    struct counts count;
};

uint64_t rescheduling_interrupts(void);
void measure(struct figures *sum, double seconds, unsigned parts);

#endif
