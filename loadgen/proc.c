/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Reading files of /proc
 * and of tracefs.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "end.h"
#include "proc.h"

/* The number that follows a word; 0 if there is none. */
uint64_t first_number(const char *path, const char *after)
{
    char text[512], *at;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

    if (n < 0) {
        die("%s: %s", path, strerror(errno));
    }
    close(fd);
    text[n] = 0;
    at = strstr(text, after);
    return at ? strtoull(at + strlen(after), NULL, 10) : 0;
}
