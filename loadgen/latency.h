/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A histogram of latencies: 64 steps to each power of two, so within 1 %.
 * Adding is inline, because the driver does it with each request.
 */
#ifndef LATENCY_H
#define LATENCY_H

#include <stdint.h>

enum {
    LATENCY_BITS = 7,
    LATENCY_STEPS = 1 << LATENCY_BITS,
    LATENCY_BUCKETS = LATENCY_STEPS * 32
};

struct latency {
    uint64_t sum, most;
    uint64_t histogram[LATENCY_BUCKETS];
};

extern struct latency latency;

static inline void add_latency(uint64_t ns)
{
    unsigned i = ns;

    if (ns >= LATENCY_STEPS) {
        /* bits that are dropped */
        unsigned top = 64 - __builtin_clzll(ns) - LATENCY_BITS;

        i = top * (LATENCY_STEPS / 2) + (ns >> top);
    }
    latency.histogram[i < LATENCY_BUCKETS ? i : LATENCY_BUCKETS - 1]++;
    latency.sum += ns;
    latency.most = ns > latency.most ? ns : latency.most;
}

double percentile_us(double p);

#endif
