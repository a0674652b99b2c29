/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The pattern in the image,
 * by which wrong data is found.
 */
#include <string.h>

#include "options.h"
#include "pattern.h"

/* Each sector differs from every other, and from itself with another seed. */
void pattern(void *buffer, uint64_t sector, unsigned sectors)
{
    uint64_t *p = buffer;

    for (unsigned s = 0; s < sectors; s++, sector++) {
        uint64_t x = mix64(mix64(opt.pattern_seed) ^ sector);

        for (unsigned i = 0; i < SECTOR / 8; i++) {
            *p++ = x += 0x9e3779b97f4a7c15ull;
        }
    }
}

/* The first sector that differs, or -1. */
int64_t pattern_differs(const void *buffer, uint64_t sector, unsigned sectors)
{
    uint64_t expected[SECTOR / 8];

    for (unsigned s = 0; s < sectors; s++) {
        pattern(expected, sector + s, 1);
        if (memcmp((const char *)buffer + s * SECTOR, expected, SECTOR)) {
            return sector + s;
        }
    }
    return -1;
}
