/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-blk-pci as its driver sets it up,
 * by the virtio specification, section 3.1.
 */
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <stddef.h>
#include <stdlib.h>

#include "device.h"
#include "end.h"
#include "options.h"
#include "pci.h"
#include "qemu.h"
#include "qtest.h"
#include "virtqueue.h"

#define COMMON(field) \
    (pci.common + offsetof(struct virtio_pci_common_cfg, field))
#define COMMON_SIZE(field) sizeof(((struct virtio_pci_common_cfg *)0)->field)
#define READ_COMMON(field) memory_read(COMMON_SIZE(field), COMMON(field))
#define WRITE_COMMON(field, value) \
    memory_write(COMMON_SIZE(field), COMMON(field), value)

uint64_t blocks, features;

static uint64_t offset_in_ram(const void *p)
{
    return (const uint8_t *)p - ram;
}

static void set_up_queue(struct queue *q, unsigned index)
{
    unsigned size = queue_size(), most;
    unsigned vector = index + 1;    /* 0 is for configuration changes */

    WRITE_COMMON(queue_select, index);
    most = READ_COMMON(queue_size);
    if (most < size) {
        die("the device's queue %u has %u entries, %u needed", index, most,
            size);
    }
    make_queue(q, index);
    set_msix_vector(vector, offset_in_ram(q->msi));

    WRITE_COMMON(queue_size, size);
    WRITE_COMMON(queue_msix_vector, vector);
    if (READ_COMMON(queue_msix_vector) != vector) {
        die("the device has no MSI-X vector for queue %u", index);
    }
    write_address(COMMON(queue_desc_lo), offset_in_ram(q->vring.desc));
    write_address(COMMON(queue_avail_lo), offset_in_ram(q->vring.avail));
    write_address(COMMON(queue_used_lo), offset_in_ram(q->vring.used));
    q->notify_address = pci.notify +
        pci.notify_multiplier * READ_COMMON(queue_notify_off);
    WRITE_COMMON(queue_enable, 1);
}

static void negotiate_features(void)
{
    uint64_t offered = 0;

    features = 1ull << VIRTIO_F_VERSION_1;
    features |= opt.event_idx ? 1ull << VIRTIO_RING_F_EVENT_IDX : 0;
    features |= opt.indirect ? 1ull << VIRTIO_RING_F_INDIRECT_DESC : 0;
    features |= opt.queues > 1 ? 1ull << VIRTIO_BLK_F_MQ : 0;
    for (unsigned i = 0; i < 2; i++) {
        WRITE_COMMON(device_feature_select, i);
        offered |= READ_COMMON(device_feature) << 32 * i;
    }
    if ((offered & features) != features) {
        die("the device lacks features: it offers 0x%" PRIx64 ", 0x%" PRIx64
            " are needed", offered, features);
    }
    for (unsigned i = 0; i < 2; i++) {
        WRITE_COMMON(guest_feature_select, i);
        WRITE_COMMON(guest_feature, features >> 32 * i);
    }
    WRITE_COMMON(device_status, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                 VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    if (!(READ_COMMON(device_status) & VIRTIO_CONFIG_S_FEATURES_OK)) {
        die("the device does not accept the features 0x%" PRIx64, features);
    }
}

/* Everything except DRIVER_OK. */
void set_up_device(void)
{
    unsigned vectors;

    find_device();
    WRITE_COMMON(device_status, 0);
    WRITE_COMMON(device_status, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    WRITE_COMMON(device_status,
                 VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    negotiate_features();
    blocks = memory_read(8, pci.config) * SECTOR / opt.bs;

    vectors = msix_vectors();
    if (vectors < opt.queues + 1) {
        die("the device has %u MSI-X vectors, %u needed", vectors,
            opt.queues + 1);
    }
    enable_msix();
    queues = calloc(opt.queues, sizeof(*queues));
    if (!queues) {
        die("out of memory");
    }
    for (unsigned i = 0; i < opt.queues; i++) {
        set_up_queue(&queues[i], i);
    }
}

void start_device(void)
{
    WRITE_COMMON(device_status, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                 VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |
                 VIRTIO_CONFIG_S_DRIVER_OK);
}
