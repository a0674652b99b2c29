/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Reading files of /proc
 * and of tracefs.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
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

/* How often a CPU had the interrupt of that name; 0 if nobody counts it. */
uint64_t cpu_interrupts(const char *name, unsigned cpu)
{
    FILE *f = fopen("/proc/interrupts", "re");
    char *line = NULL, *at;
    unsigned column = 0, number;
    size_t size = 0, length = strlen(name);
    uint64_t n = 0;

    if (!f || getline(&line, &size, f) < 0) {
        die("/proc/interrupts: %s", strerror(errno));
    }
    /* the first line names the CPUs that there are */
    for (at = line; (at = strstr(at, "CPU")); column++) {
        number = strtoul(at + strlen("CPU"), &at, 10);
        if (number == cpu) {
            break;
        }
    }
    while (at && getline(&line, &size, f) >= 0) {
        char *word = line + strspn(line, " ");

        if (strncmp(word, name, length) || word[length] != ':') {
            continue;
        }
        word += length + 1;
        for (unsigned i = 0; i <= column; i++) {
            n = strtoull(word, &word, 10);
        }
        break;
    }
    free(line);
    fclose(f);
    return n;
}
