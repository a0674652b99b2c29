/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * virtio-blk-pci or virtio-scsi-pci as its driver sets it up,
 * by the virtio specification, section 3.1.
 */
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <stddef.h>

#include "driver.h"
#include "end.h"
#include "eventfd.h"
#include "image.h"
#include "options.h"
#include "pci.h"
#include "qtest.h"
#include "ram.h"
#include "transport.h"
#include "virtqueue.h"

#define COMMON(field) \
    (pci.common + offsetof(struct virtio_pci_common_cfg, field))
#define COMMON_SIZE(field) sizeof(((struct virtio_pci_common_cfg *)0)->field)
#define READ_COMMON(field) memory_read(COMMON_SIZE(field), COMMON(field))
#define WRITE_COMMON(field, value) \
    memory_write(COMMON_SIZE(field), COMMON(field), value)

static void set_up_queue(struct queue *q)
{
    unsigned size = queue_size(), most;
    unsigned vector = q - queues + 1;   /* 0 is for configuration changes */

    WRITE_COMMON(queue_select, q->index);
    most = READ_COMMON(queue_size);
    if (most < size) {
        die("the device's queue %u has %u entries, %u needed", q->index,
            most, size);
    }
    set_msix_vector(vector, offset_in_ram(q->msi));

    WRITE_COMMON(queue_size, size);
    WRITE_COMMON(queue_msix_vector, vector);
    if (READ_COMMON(queue_msix_vector) != vector) {
        die("the device has no MSI-X vector for queue %u", q->index);
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

    for (unsigned i = 0; i < 2; i++) {
        WRITE_COMMON(device_feature_select, i);
        offered |= READ_COMMON(device_feature) << 32 * i;
    }
    choose_features(offered);
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
static void set_up_device(void)
{
    unsigned vectors;

    find_device();
    WRITE_COMMON(device_status, 0);
    WRITE_COMMON(device_status, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    WRITE_COMMON(device_status,
                 VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    negotiate_features();
    /* virtio-scsi has it in no register */
    set_capacity(is_scsi() ? image_size() / SECTOR :
                 memory_read(8, pci.config));

    vectors = msix_vectors();
    if (vectors < opt.queues + 1) {
        die("the device has %u MSI-X vectors, %u needed", vectors,
            opt.queues + 1);
    }
    enable_msix();
    make_queues();
    for (unsigned i = 0; i < opt.queues; i++) {
        set_up_queue(&queues[i]);
    }
}

void set_up_pci(void)
{
    set_up_device();
    WRITE_COMMON(device_status, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                 VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |
                 VIRTIO_CONFIG_S_DRIVER_OK);
    if (is_scsi()) {
        /* brings the news of the reset */
        one_request(&queues[0], 0);
    }
    find_eventfds();
}
