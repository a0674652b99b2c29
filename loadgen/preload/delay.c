/*
 * Preloaded into QEMU, submission to Linux AIO takes DELAY_US microseconds
 * longer for each request.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

int io_submit(void *context, long n, void **iocbs)
{
    static int (*real)(void *, long, void **);
    int64_t end = now() + atol(getenv("DELAY_US")) * 1000 * n;

    if (!real) {
        real = dlsym(RTLD_NEXT, "io_submit");
    }
    while (now() < end) {
        /* a sleep would be longer than what is asked for */
    }
    return real(context, n, iocbs);
}
