/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A split virtqueue in guest RAM, from the driver's side.
 * Inline, because the driver does this with each request.
 */
#ifndef VIRTQUEUE_H
#define VIRTQUEUE_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>

#include "options.h"
#include "request.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "modern virtio is little endian, and so is this program"
#endif

struct queue {
    struct vring vring;
    unsigned index, in_flight;      /* index: as the device counts them */
    uint16_t avail, last_used;      /* both run freely */
    uint16_t considered;            /* avail when a kick was last considered */
    uint32_t *msi;                  /* where the MSI message arrives */
    uint64_t notify_address;
    int kick_fd, irq_fd;            /* copies of QEMU's eventfds, or -1 */
    uint64_t react_at;              /* 0: has seen nothing to react to */
    bool interrupted;
    bool going_on;                  /* left with work, for the other queues */
    struct slot slot[MAX_QD];
    unsigned idle[MAX_QD], idles;   /* slots that carry no request */
};

extern struct queue *queues;

/* The driver's side of shared fields. */
#define load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define load_relaxed(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define store_relaxed(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define full_barrier() __atomic_thread_fence(__ATOMIC_SEQ_CST)

static inline bool used_pending(struct queue *q)
{
    return load_acquire(&q->vring.used->idx) != q->last_used;
}

/* Ask for an interrupt with the next used entry. */
static inline void arm(struct queue *q)
{
    if (opt.event_idx) {
        store_relaxed(&vring_used_event(&q->vring), q->last_used);
    } else {
        store_relaxed(&q->vring.avail->flags, 0);
    }
    full_barrier();     /* before used->idx is looked at again */
}

unsigned queue_size(void);
void make_queues(void);

#endif
