/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-blk-pci as its driver sets it up,
 * by the virtio specification, section 3.1.
 */
#ifndef DEVICE_H
#define DEVICE_H

#include <stdint.h>

extern uint64_t blocks;         /* of --bs bytes, of the disk */
extern uint64_t features;       /* negotiated */

void set_up_device(void);
void start_device(void);

#endif
