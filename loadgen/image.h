/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The image as a file of this machine:
 * its size, and filling it.
 */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdint.h>

uint64_t image_size(void);
void fill_image(void);

#endif
