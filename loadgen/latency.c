/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A histogram of latencies:
 * what it says when all are added.
 */
#include "latency.h"

struct latency latency;

/* The middle of bucket i, in nanoseconds. */
static double middle(unsigned i)
{
    unsigned half = LATENCY_STEPS / 2;
    unsigned top = i < LATENCY_STEPS ? 0 : i / half - 1;
    uint64_t low = top ? (uint64_t)(i - top * half) << top : i;

    return low + (double)(1ull << top) / 2;
}

double percentile_us(double p)
{
    uint64_t total = 0, seen = 0;

    for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
        total += latency.histogram[i];
    }
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
        seen += latency.histogram[i];
        if (seen && seen >= p * total) {
            double ns = middle(i);

            return (ns < latency.most ? ns : latency.most) / 1000;
        }
    }
    return 0;
}
