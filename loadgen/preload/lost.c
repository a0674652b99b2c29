/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Preloaded into a storage daemon, loses the notifications of its
 * vhost-user-blk export from number LOST on; 0: none.  The driver may not need
 * a single one any more.  A test of the instrument: the load generator must
 * notice that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/eventfd.h>

int eventfd_write(int fd, eventfd_t value)
{
    static int (*real)(int, eventfd_t);
    static long n;          /* one thread notifies here, the IOThread */
    long lost = atol(getenv("LOST"));

    if (!real) {
        real = dlsym(RTLD_NEXT, "eventfd_write");
    }
    return lost && ++n >= lost ? 0 : real(fd, value);
}
