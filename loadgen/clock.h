/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The time, in nanoseconds.
 * Inline, because the driver asks for it with each request.
 */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS 1000000000ull

static inline uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS + t.tv_nsec;
}

#endif
