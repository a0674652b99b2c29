/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Preloaded into QEMU, counts in the first 8 bytes of the file SUBMITTED how
 * often it submits to Linux AIO.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

static int (*real)(void *, long, void **);
static uint64_t *count;

__attribute__((constructor)) static void init(void)
{
    int fd = open(getenv("SUBMITTED"), O_RDWR);

    real = dlsym(RTLD_NEXT, "io_submit");
    count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || !real || count == MAP_FAILED) {
        abort();
    }
}

int io_submit(void *context, long n, void **iocbs)
{
    __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    return real(context, n, iocbs);
}
