/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The driver: it works the virtqueues until the job is done.
 * All that is done for each request is here or inline.
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "driver.h"
#include "end.h"
#include "latency.h"
#include "options.h"
#include "pattern.h"
#include "qtest.h"
#include "transport.h"

struct job job;
struct counts count;
static uint64_t random_state;

void set_seed(uint64_t seed)
{
    random_state = mix64(seed) | 1;
}

static inline uint64_t random64(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}

/* -- one queue ------------------------------------------------------------ */

static void submit(struct queue *q, unsigned id, uint64_t block, bool write,
                   uint64_t now)
{
    struct slot *s = &q->slot[id];
    uint64_t sector = block * (opt.bs / SECTOR);

    s->sector = sector;
    s->write = write;
    if (is_scsi()) {
        write_scsi_request(s);
    } else {
        write_blk_request(s);
    }
    if (write) {
        pattern(s->data, sector, opt.bs / SECTOR);
    }
    s->submitted = now;
    q->vring.avail->ring[q->avail % q->vring.num] = opt.indirect ? id : id * 3;
    store_release(&q->vring.avail->idx, ++q->avail);
    q->in_flight++;
}

void kick_by_qtest(struct queue *q)
{
    memory_write(2, q->notify_address, q->index);
}

static void kick(struct queue *q)
{
    static const uint64_t one = 1;

    count.kicks++;
    if (q->kick_fd < 0) {
        kick_by_qtest(q);
    } else if (write(q->kick_fd, &one, sizeof(one)) != sizeof(one)) {
        die("kick of queue %u: %s", q->index, strerror(errno));
    }
}

static bool device_wants_kick(struct queue *q)
{
    if (opt.event_idx) {
        return vring_need_event(load_relaxed(&vring_avail_event(&q->vring)),
                                q->avail, q->considered);
    }
    return !(load_relaxed(&q->vring.used->flags) & VRING_USED_F_NO_NOTIFY);
}

/* Kick if there is something new and the device asks for it. */
static void consider_kick(struct queue *q)
{
    bool wanted;

    if (q->considered == q->avail) {
        return;
    }
    full_barrier();     /* avail->idx is out before the device's wish is read */
    wanted = device_wants_kick(q);
    q->considered = q->avail;
    if (wanted) {
        kick(q);
    }
}

static void die_of_failure(struct queue *q, const struct slot *s)
{
    const struct virtio_scsi_cmd_resp *answer = s->answer;
    const char *what = s->write ? "write" : "read";

    if (is_scsi()) {
        die("queue %u: %s of sector %" PRIu64 " ends with response %u, "
            "status %u, sense key %u", q->index, what, s->sector,
            answer->response, answer->status, sense_key(s));
    }
    die("queue %u: %s of sector %" PRIu64 " ends with status %u", q->index,
        what, s->sector, *(const uint8_t *)s->answer);
}

/* Take one used entry; returns its slot. */
static unsigned take(struct queue *q)
{
    struct vring_used_elem *e =
        &q->vring.used->ring[q->last_used % q->vring.num];
    unsigned id = opt.indirect ? e->id : e->id / 3;

    if (id >= opt.qd) {
        die("queue %u: the device returns descriptor %u, which is none of ours",
            q->index, e->id);
    }
    q->last_used++;
    q->in_flight--;
    if (opt.irq == IRQ_OFF && opt.event_idx && !(q->last_used & 0x3fff)) {
        store_relaxed(&vring_used_event(&q->vring),
                      (uint16_t)(q->last_used + 0x8000));
    }
    return id;
}

/* The eventfd counts what was written to it, and is nonblocking. */
void take_interrupts(struct queue *q)
{
    uint64_t n;

    if (read(q->irq_fd, &n, sizeof(n)) == sizeof(n)) {
        count.interrupts += n;
        q->interrupted = true;
    }
}

static void look_for_interrupt(struct queue *q)
{
    if (q->irq_fd >= 0) {
        /* nobody waits for it: the kernel adds them up for read_figures() */
        if (opt.wait == WAIT_IRQ && !q->interrupted) {
            take_interrupts(q);
        }
    } else if (load_relaxed(q->msi) &&
               __atomic_exchange_n(q->msi, 0, __ATOMIC_SEQ_CST)) {
        count.interrupts++;
        q->interrupted = true;
    }
}

/* -- the job -------------------------------------------------------------- */

static bool next_request(uint64_t *block, bool *write)
{
    if (!job.endless) {
        if (!job.left) {
            return false;
        }
        job.left--;
    }
    *block = job.in_order ? job.next++ % blocks : random64() % blocks;
    *write = job.write_percent && (job.write_percent == 100 ||
                                   random64() % 100 < job.write_percent);
    return true;
}

static void issue(struct queue *q, uint64_t now)
{
    uint64_t block;
    bool write;

    if (q->idles && next_request(&block, &write)) {
        submit(q, q->idle[--q->idles], block, write, now);
        if ((uint16_t)(q->avail - q->considered) >= opt.batch) {
            consider_kick(q);
        }
    }
}

static void finish(struct queue *q, unsigned id, uint64_t now)
{
    struct slot *s = &q->slot[id];

    if (has_failed(s)) {
        die_of_failure(q, s);
    }
    count.done++;
    count.writes += s->write;
    if (job.record) {
        add_latency(now - s->submitted);
    }
    if (job.verify && !s->write) {
        int64_t wrong = pattern_differs(s->data, s->sector,
                                        opt.bs / SECTOR);

        if (wrong >= 0) {
            die("data corruption: sector %" PRId64 " was read with other "
                "content than it has to have (queue %u; if the image is not "
                "yours, fill it with --fill first)", wrong, q->index);
        }
    }
}

/*
 * Look after one queue; false if there was nothing to do.
 *
 * The reaction time starts when the driver sees that something is finished
 * (or, with --wait irq, that the interrupt has come).  It ends when the driver
 * begins to take used entries, which it does without a pause.
 */
static bool serve(struct queue *q)
{
    uint64_t now, n = 0;
    bool ready;

    look_for_interrupt(q);
    ready = opt.wait == WAIT_IRQ ? q->interrupted : used_pending(q);
    if (ready && opt.reaction_ns && !q->going_on) {
        now = now_ns();
        if (!q->react_at) {
            /* not random64(): that decides only which blocks are next */
            q->react_at = now +
                (opt.jitter ? mix64(now) % (2 * opt.reaction_ns + 1)
                            : opt.reaction_ns);
        }
        ready = now >= q->react_at;
        if (!ready) {
            return true;
        }
    }
    if (!ready) {
        return false;
    }
    q->react_at = 0;
    q->interrupted = false;
    if (opt.irq == IRQ_BATCH && !opt.event_idx) {
        store_relaxed(&q->vring.avail->flags, VRING_AVAIL_F_NO_INTERRUPT);
    }
    do {
        while (n < opt.qd && used_pending(q)) {
            unsigned id = take(q);

            if (opt.irq == IRQ_EACH) {
                arm(q);
            }
            now = now_ns();
            finish(q, id, now);
            q->idle[q->idles++] = id;
            issue(q, now);
            n++;
        }
        consider_kick(q);
        if (opt.irq == IRQ_BATCH) {
            arm(q);
        }
        /* what came before the interrupt was armed again brings none */
    } while (n < opt.qd && used_pending(q));
    q->going_on = q->interrupted = used_pending(q);
    if (n) {
        count.batches++;
        count.batch_max = n > count.batch_max ? n : count.batch_max;
    }
    return true;
}

/* -- all queues ----------------------------------------------------------- */

static unsigned all_in_flight(void)
{
    unsigned n = 0;

    for (unsigned i = 0; i < opt.queues; i++) {
        n += queues[i].in_flight;
    }
    return n;
}

__attribute__((noreturn)) static void die_of_hang(void)
{
    struct queue *q = queues;

    while (!q->in_flight) {
        q++;
    }
    if (opt.wait == WAIT_IRQ && used_pending(q)) {
        die("lost notification: queue %u has finished requests "
            "(used index %u, seen %u), and no interrupt for %g s",
            q->index, q->vring.used->idx, q->last_used, opt.timeout);
    }
    die("hang: %u requests on queue %u without an answer for %g s "
        "(available index %u, used index %u)",
        q->in_flight, q->index, opt.timeout, q->avail, q->last_used);
}

static void fill_queues(void)
{
    for (unsigned i = 0; i < opt.queues; i++) {
        struct queue *q = &queues[i];

        for (unsigned n = 0; n < opt.qd; n++) {
            issue(q, now_ns());
        }
        consider_kick(q);
    }
}

/* The interrupt of a vCPU does not wait for the end of a time slice. */
static bool shares_cpu(void)
{
    return (opt.main_cpu == opt.driver_cpu && !opt.irqfd) ||
        opt.iothread_cpu == opt.driver_cpu;
}

/* Until the job is done, or (endless) time and requests are over. */
void run_at_least(double seconds, uint64_t ios)
{
    uint64_t end = now_ns() + (uint64_t)(seconds * NS);
    uint64_t before = count.done, done = before, progress_at = now_ns();
    bool yield = shares_cpu();

    fill_queues();
    for (unsigned round = 1; ; round++) {
        bool busy = false;

        for (unsigned i = 0; i < opt.queues; i++) {
            busy |= serve(&queues[i]);
        }
        if (!busy && yield) {
            sched_yield();
        }
        if (!job.endless && !job.left && !all_in_flight()) {
            break;
        }
        if (round % 64 == 0) {
            uint64_t now = now_ns();

            if (job.endless && now >= end && count.done - before >= ios) {
                break;
            }
            if (count.done != done) {
                done = count.done;
                progress_at = now;
            } else if (now - progress_at > opt.timeout * NS) {
                if (transports[opt.transport].is_gone()) {
                    die_of_qemu();
                }
                die_of_hang();
            }
        }
    }
}

void run(double seconds)
{
    run_at_least(seconds, opt.min_ios);
}

void drain(void)
{
    job.endless = false;
    job.left = 0;
    run(0);
}

/*
 * One request by itself.  Who asks for the next interrupt before QEMU has
 * decided about this one gets none, so wait a while.  The first one after a
 * reset of virtio-scsi brings the news of that, and does nothing.
 */
void one_request(struct queue *q, unsigned wait_us)
{
    uint64_t end = now_ns() + (uint64_t)(opt.timeout * NS);
    unsigned id;

    submit(q, q->idle[--q->idles], 0, false, now_ns());
    q->considered = q->avail;
    kick(q);
    while (!used_pending(q)) {
        if (now_ns() > end) {
            die_of_hang();
        }
        sched_yield();
    }
    usleep(wait_us);
    id = take(q);
    if (has_failed(&q->slot[id]) &&
        !(is_scsi() && sense_key(&q->slot[id]) == UNIT_ATTENTION)) {
        die_of_failure(q, &q->slot[id]);
    }
    q->idle[q->idles++] = id;
    if (opt.irq != IRQ_OFF) {
        arm(q);
    }
}
