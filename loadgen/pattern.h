/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The pattern in the image,
 * by which wrong data is found.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include <stdint.h>

static inline uint64_t mix64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Not inline: that would make reads dearer, which do not need it. */
void pattern(void *buffer, uint64_t sector, unsigned sectors);
int64_t pattern_differs(const void *buffer, uint64_t sector, unsigned sectors);

#endif
