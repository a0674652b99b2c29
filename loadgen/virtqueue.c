/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The virtqueues in guest RAM, as they are before the first request.
 * device.c or daemon.c tells the device of them, driver.c works them.
 */
#include <stdlib.h>

#include "end.h"
#include "ram.h"
#include "virtqueue.h"

struct queue *queues;

/* Without indirect tables a request takes three entries. */
unsigned queue_size(void)
{
    unsigned size = 256, need = opt.qd * (opt.indirect ? 1 : 3);

    while (size < need) {
        size *= 2;
    }
    return size;
}

/* slot: guest RAM for header, answer and indirect table. */
static void make_slot(struct queue *q, unsigned i, uint64_t slot, uint64_t data)
{
    uint64_t answer = slot + slot_layout()->answer_at;
    uint64_t table = slot + slot_layout()->table_at;
    unsigned first = opt.indirect ? 0 : i * 3;
    struct vring_desc *d = q->vring.desc + first;
    struct slot *s = &q->slot[i];

    if (opt.indirect) {
        d = (void *)(ram + table);
        q->vring.desc[i] = (struct vring_desc) {
            table, 3 * sizeof(*d), VRING_DESC_F_INDIRECT, 0
        };
    }
    d[0] = (struct vring_desc) {
        slot, header_size(), VRING_DESC_F_NEXT, first + 1
    };
    d[1] = (struct vring_desc) { data, opt.bs, 0, first + 2 };
    d[2] = (struct vring_desc) {
        answer, answer_size(), VRING_DESC_F_WRITE, 0
    };
    *s = (struct slot) {
        .header = ram + slot, .answer = ram + answer, .desc = d,
        .first = first, .data = ram + data
    };
}

static void make_queue(struct queue *q, unsigned index)
{
    unsigned size = queue_size(), slot_size = slot_layout()->size;
    uint64_t slots, data;

    q->index = index;
    q->kick_fd = q->irq_fd = -1;
    vring_init(&q->vring, size, ram + ram_alloc(vring_size(size, 4096), 4096),
               4096);
    q->msi = (uint32_t *)(ram + ram_alloc(64, 64));
    slots = ram_alloc((uint64_t)opt.qd * slot_size, slot_size);
    data = ram_alloc((uint64_t)opt.qd * opt.bs, 4096);
    for (unsigned i = 0; i < opt.qd; i++) {
        make_slot(q, i, slots + i * slot_size, data + (uint64_t)i * opt.bs);
        q->idle[q->idles++] = opt.qd - 1 - i;
    }
    if (opt.irq == IRQ_OFF) {
        /* with EVENT_IDX: an index that stays half a round away, see take() */
        q->vring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
        vring_used_event(&q->vring) = 0x8000;
    }
}

/* virtio-scsi has two queues for other things before those for requests. */
void make_queues(void)
{
    queues = calloc(opt.queues, sizeof(*queues));
    if (!queues) {
        die("out of memory");
    }
    for (unsigned i = 0; i < opt.queues; i++) {
        make_queue(&queues[i], i + (is_scsi() ? 2 : 0));
    }
}
