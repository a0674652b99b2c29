/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * How the driver gets at the device,
 * and what it has found there.
 */
#ifndef TRANSPORT_H
#define TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>

struct transport {
    void (*start)(void);        /* the process that has the device */
    void (*set_up)(void);       /* the device, its queues and eventfds */
    bool (*is_gone)(void);      /* nobody will answer any more */
};

extern const struct transport transports[];     /* by opt.transport */

extern uint64_t blocks;         /* of --bs bytes, of the disk */
extern uint64_t features;       /* negotiated */

void choose_features(uint64_t offered);
void set_capacity(uint64_t sectors);

/* virtio-blk-pci or virtio-scsi-pci of a QEMU, through qtest. */
void start_qemu(void);
void set_up_pci(void);

/* vhost-user-blk of a storage daemon. */
void start_daemon(void);
void set_up_vhost_user(void);
bool daemon_is_gone(void);

#endif
