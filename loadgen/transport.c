/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * How the driver gets at the device,
 * and what it wants of it, whatever the way.
 */
#include <inttypes.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "end.h"
#include "options.h"
#include "request.h"
#include "transport.h"

const struct transport transports[] = {
    [TRANSPORT_PCI] = { start_qemu, set_up_pci, has_ended },
    [TRANSPORT_SCSI] = { start_qemu, set_up_pci, has_ended },
    [TRANSPORT_VHOST_USER] = {
        start_daemon, set_up_vhost_user, daemon_is_gone
    },
};

uint64_t blocks, features;

void set_capacity(uint64_t sectors)
{
    blocks = sectors / (opt.bs / SECTOR);
    if (!blocks) {
        die("the device has %" PRIu64 " sectors, less than a block", sectors);
    }
}

/* Of what the device offers, what the options ask for. */
void choose_features(uint64_t offered)
{
    features = 1ull << VIRTIO_F_VERSION_1;
    features |= opt.event_idx ? 1ull << VIRTIO_RING_F_EVENT_IDX : 0;
    features |= opt.indirect ? 1ull << VIRTIO_RING_F_INDIRECT_DESC : 0;
    features |= opt.queues > 1 && !is_scsi() ? 1ull << VIRTIO_BLK_F_MQ : 0;
    /* as Linux does; without it each write has a flush */
    features |= is_scsi() ? 0 : offered & 1ull << VIRTIO_BLK_F_FLUSH;
    if ((offered & features) != features) {
        die("the device lacks features: it offers 0x%" PRIx64 ", 0x%" PRIx64
            " are needed", offered, features);
    }
}
