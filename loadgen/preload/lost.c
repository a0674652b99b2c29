/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Preloaded into a storage daemon, loses notification number LOST of its
 * vhost-user-blk export.  A test of the instrument: the load generator must
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

    if (!real) {
        real = dlsym(RTLD_NEXT, "eventfd_write");
    }
    return ++n == atol(getenv("LOST")) ? 0 : real(fd, value);
}
