/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Preloaded into a storage daemon, each notification of a vhost-user-blk
 * export takes LATE_US microseconds, so that what must wait for it has to.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

int eventfd_write(int fd, eventfd_t value)
{
    static int (*real)(int, eventfd_t);

    if (!real) {
        real = dlsym(RTLD_NEXT, "eventfd_write");
    }
    usleep(atoi(getenv("LATE_US")));
    return real(fd, value);
}
