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

/* Where answer and indirect table lie behind the header. */
enum { ANSWER_AT = 64, TABLE_AT = 192, SLOT_SIZE = 256 };

enum {
    READ_16 = 0x88, WRITE_16 = 0x8a,
    CHECK_CONDITION = 2, SENSE_KEY_AT = 2, UNIT_ATTENTION = 6,
};

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

/* What virtio-blk or SCSI calls the answer; 0 if the device did as it was told. */
static inline unsigned answered(const struct slot *s)
{
    static bool once;
    bool first = !once;
    const volatile struct virtio_scsi_cmd_resp *answer = s->answer;

    if (!is_scsi()) {
        return *(const volatile uint8_t *)s->answer;
    }
    once = true;
    if (first && !answer->response && answer->status == CHECK_CONDITION &&
        (answer->sense[SENSE_KEY_AT] & 0xf) == UNIT_ATTENTION) {
        return 0;       /* it is told of the reset instead */
    }
    return answer->response ? answer->response : answer->status;
}

#endif
