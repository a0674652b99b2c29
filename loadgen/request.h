/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a request looks like to virtio-blk and to virtio-scsi: a header, the
 * data and an answer.  Inline, because the driver does this with each request.
 */
#ifndef REQUEST_H
#define REQUEST_H

#include <endian.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_scsi.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "options.h"

enum { READ_16 = 0x88, WRITE_16 = 0x8a, UNIT_ATTENTION = 6 };

/* Guest RAM of a slot: the header, and where the others lie behind it. */
struct layout {
    unsigned answer_at, table_at, size;
};

static const struct layout blk_layout = { 16, 64, 128 };
static const struct layout scsi_layout = { 64, 192, 256 };

_Static_assert(sizeof(struct virtio_blk_outhdr) <= 16 &&
               sizeof(struct virtio_scsi_cmd_req) <= 64 &&
               sizeof(struct virtio_scsi_cmd_resp) <= 192 - 64 &&
               3 * sizeof(struct vring_desc) <= 64,
               "what a request needs fits into a slot");

/* The first 14 of the 16 bytes of READ(16) and WRITE(16). */
struct cdb {
    uint8_t operation, flags;
    uint64_t sector;
    uint32_t sectors;
} __attribute__((packed));

struct slot {
    void *header, *answer;
    struct vring_desc *desc;        /* of header, data and answer */
    uint16_t first;                 /* what desc[0] is called */
    bool write;
    uint8_t *data;
    uint64_t sector, submitted;
};

static inline bool is_scsi(void)
{
    return opt.transport == TRANSPORT_SCSI;
}

static inline const struct layout *slot_layout(void)
{
    return is_scsi() ? &scsi_layout : &blk_layout;
}

static inline unsigned header_size(void)
{
    return is_scsi() ? sizeof(struct virtio_scsi_cmd_req) :
        sizeof(struct virtio_blk_outhdr);
}

static inline unsigned answer_size(void)
{
    return is_scsi() ? sizeof(struct virtio_scsi_cmd_resp) : 1;
}

static inline void write_blk_request(struct slot *s)
{
    struct virtio_blk_outhdr *header = s->header;

    header->type = s->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
    header->sector = s->sector;
    s->desc[1].flags = VRING_DESC_F_NEXT | (s->write ? 0 : VRING_DESC_F_WRITE);
    *(volatile uint8_t *)s->answer = 0xff;
}

/* With a read the answer comes before the data. */
static inline void write_scsi_request(struct slot *s)
{
    struct virtio_scsi_cmd_req *header = s->header;
    volatile struct virtio_scsi_cmd_resp *answer = s->answer;
    struct cdb cdb = {
        s->write ? WRITE_16 : READ_16, 0, htobe64(s->sector),
        htobe32(opt.bs / SECTOR)
    };

    *header = (struct virtio_scsi_cmd_req) { .lun = { 1 } };
    memcpy(header->cdb, &cdb, sizeof(cdb));
    answer->response = 0xff;
    s->desc[0].next = s->first + (s->write ? 1 : 2);
    s->desc[1].flags = s->write ? VRING_DESC_F_NEXT : VRING_DESC_F_WRITE;
    s->desc[1].next = s->first + 2;
    s->desc[2].flags = VRING_DESC_F_WRITE | (s->write ? 0 : VRING_DESC_F_NEXT);
    s->desc[2].next = s->first + 1;
}

static inline bool has_failed(const struct slot *s)
{
    const volatile struct virtio_scsi_cmd_resp *answer = s->answer;

    return is_scsi() ? answer->response || answer->status :
        *(const volatile uint8_t *)s->answer != VIRTIO_BLK_S_OK;
}

/* Of a SCSI command that has failed with sense data in the fixed format. */
static inline unsigned sense_key(const struct slot *s)
{
    const struct virtio_scsi_cmd_resp *answer = s->answer;

    return answer->sense_len > 2 ? answer->sense[2] & 0xf : 0;
}

#endif
