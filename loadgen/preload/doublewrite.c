/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Preloaded into QEMU or a storage daemon, writes each eventfd notification
 * twice.  A test of the instrument: the load generator must find that.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t write(int fd, const void *buffer, size_t n)
{
    uint64_t one = 1;
    struct stat st;

    /* an eventfd is no kind of file; an answer to vhost-user may be a 1, too */
    if (n == sizeof(one) && !memcmp(buffer, &one, n) &&
        !fstat(fd, &st) && !(st.st_mode & S_IFMT)) {
        syscall(SYS_write, fd, buffer, n);
    }
    return syscall(SYS_write, fd, buffer, n);
}

/* libvhost-user's way; libc's does not call the write() above */
int eventfd_write(int fd, eventfd_t value)
{
    return write(fd, &value, sizeof(value)) == sizeof(value) ? 0 : -1;
}
