/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A storage daemon with a vhost-user-blk export: its start, and setting up
 * what it exports.  Memory and eventfds are ours, and it is given them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "driver.h"
#include "end.h"
#include "options.h"
#include "proc.h"
#include "process.h"
#include "ram.h"
#include "transport.h"
#include "vhost_user.h"

static int ram_fd;

/* -- its start ------------------------------------------------------------ */

static void make_command(struct command *c, int listening)
{
    add(c, "%s", opt.qemu);
    if (opt.iothread) {
        add_iothread(c);
    }
    add_disk(c);
    add(c, "--export");
    add(c, "vhost-user-blk,id=export0,node-name=disk0,addr.type=fd,"
        "addr.str=%d,num-queues=%u,writable=%s%s", listening, opt.queues,
        opt.write_percent ? "on" : "off",
        opt.iothread ? ",iothread=iothread0,fixed-iothread=on" : "");
}

/* CPU time of each thread so far; returns how many threads there are. */
static unsigned threads(pid_t *tid, uint64_t *cpu, unsigned most)
{
    char path[64];
    struct dirent *e;
    unsigned n = 0;
    DIR *d;

    snprintf(path, sizeof(path), "/proc/%d/task", qemu_pid);
    d = opendir(path);
    if (!d) {
        die("%s: %s", path, strerror(errno));
    }
    while (n < most && (e = readdir(d))) {
        char schedstat[96];

        tid[n] = atoi(e->d_name);
        if (tid[n] > 0) {
            snprintf(schedstat, sizeof(schedstat), "%s/%d/schedstat", path,
                     tid[n]);
            cpu[n++] = first_number(schedstat, "");
        }
    }
    closedir(d);
    return n;
}

/*
 * It has no query-iothreads, and its threads need not have names.  The one
 * that answers us is the IOThread; the others have nothing to do meanwhile.
 */
static void find_iothread(void)
{
    enum { MOST = 64, QUESTIONS = 64 };
    pid_t tid[MOST], same_tid[MOST];
    uint64_t before[MOST], after[MOST], busiest = 0;
    unsigned n;

    get_number(GET_FEATURES);       /* the main thread has accepted */
    if (!opt.iothread) {
        iothread_tid = qemu_pid;
        return;
    }
    n = threads(tid, before, MOST);
    for (unsigned i = 0; i < QUESTIONS; i++) {
        get_number(GET_FEATURES);
    }
    if (threads(same_tid, after, MOST) != n ||
        memcmp(tid, same_tid, n * sizeof(*tid))) {
        die("the daemon starts threads before there is anything to do");
    }
    for (unsigned i = 0; i < n; i++) {
        if (tid[i] != qemu_pid && after[i] - before[i] > busiest) {
            busiest = after[i] - before[i];
            iothread_tid = tid[i];
        }
    }
    if (!busiest) {
        die("no thread of the daemon but its main thread answers; "
            "has this kernel /proc/PID/schedstat?");
    }
}

void start_daemon(void)
{
    struct command command = { .n = 0 };
    int listening = open_vhost_user();

    ram_fd = map_ram();
    fcntl(ram_fd, F_SETFD, FD_CLOEXEC);
    make_command(&command, listening);
    start_process(&command);
    close(listening);
    find_iothread();
}

bool daemon_is_gone(void)
{
    return has_ended() || vhost_user_is_closed();
}

/* -- what it exports ------------------------------------------------------ */

static void negotiate(void)
{
    uint64_t wanted = 1ull << PROTOCOL_F_MQ | 1ull << PROTOCOL_F_REPLY_ACK |
        1ull << PROTOCOL_F_CONFIG;
    uint64_t offered = get_number(GET_FEATURES), protocol, most;

    if (!(offered >> F_PROTOCOL_FEATURES & 1)) {
        die("the daemon has no protocol features");
    }
    protocol = get_number(GET_PROTOCOL_FEATURES);
    if ((protocol & wanted) != wanted) {
        die("the daemon lacks protocol features: it offers 0x%" PRIx64
            ", 0x%" PRIx64 " are needed", protocol, wanted);
    }
    set_protocol_features(wanted);
    most = get_number(GET_QUEUE_NUM);
    if (most < opt.queues) {
        die("the device has %" PRIu64 " queues, %u needed", most, opt.queues);
    }
    set(SET_OWNER, NULL, 0, -1);
    choose_features(offered);
    set_number(SET_FEATURES, features | 1ull << F_PROTOCOL_FEATURES, -1);
}

static uint64_t capacity(void)
{
    struct capacity_config c = { .size = sizeof(c.capacity) };

    exchange(GET_CONFIG, &c, sizeof(c));
    return c.capacity[0] | (uint64_t)c.capacity[1] << 32;
}

static void share_ram(void)
{
    struct memory_table table = {
        .regions = 1, .size = ram_size, .our_address = (uintptr_t)ram
    };

    set(SET_MEM_TABLE, &table, sizeof(table), ram_fd);
    close(ram_fd);
}

static void set_vring(enum request request, struct queue *q, uint32_t value)
{
    struct vring_number number = { q->index, value };

    set(request, &number, sizeof(number), -1);
}

static int new_eventfd(void)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    if (fd < 0) {
        die("eventfd: %s", strerror(errno));
    }
    return fd;
}

static void set_up_queue(struct queue *q)
{
    struct vring_addresses addresses = {
        .queue = q->index, .descriptors = (uintptr_t)q->vring.desc,
        .used = (uintptr_t)q->vring.used,
        .available = (uintptr_t)q->vring.avail
    };

    q->kick_fd = new_eventfd();
    q->irq_fd = new_eventfd();
    set_vring(SET_VRING_NUM, q, queue_size());
    set_vring(SET_VRING_BASE, q, 0);
    set(SET_VRING_ADDR, &addresses, sizeof(addresses), -1);
    set_number(SET_VRING_CALL, q->index, q->irq_fd);
    set_number(SET_VRING_KICK, q->index, q->kick_fd);
    set_vring(SET_VRING_ENABLE, q, 1);
    /* a back-end may begin with an interrupt that is for nothing */
    take_interrupts(q);
    q->interrupted = false;
}

void set_up_vhost_user(void)
{
    negotiate();
    set_capacity(capacity());
    share_ram();
    make_queues();
    for (unsigned i = 0; i < opt.queues; i++) {
        set_up_queue(&queues[i]);
    }
}
