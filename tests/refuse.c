/*
 * LD_PRELOAD library: the kernel refuses some submissions, and takes others in part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * REFUSE_EVERY=N   every Nth call of io_submit() or io_uring_submit() fails
 * REFUSE_ERRNO=N   with this error (default EAGAIN)
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

static int refuse(void)
{
    static unsigned int calls, every, error;

    if (!every) {
        const char *e = getenv("REFUSE_ERRNO");

        every = atoi(getenv("REFUSE_EVERY"));
        error = e ? atoi(e) : EAGAIN;
    }
    return ++calls % every ? 0 : -error;
}

int io_uring_submit(void *ring)
{
    static int (*real)(void *);
    int ret = refuse();

    if (!real) {
        real = dlsym(RTLD_NEXT, "io_uring_submit");
    }
    return ret ? ret : real(ring);
}

int io_submit(void *context, long n, void **iocbs)
{
    static int (*real)(void *, long, void **);
    int ret = refuse();

    if (!real) {
        real = dlsym(RTLD_NEXT, "io_submit");
    }
    return ret ? ret : real(context, n > 3 ? n / 2 : n, iocbs);
}
