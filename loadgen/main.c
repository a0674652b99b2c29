/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The load generator: a virtio-blk or virtio-scsi driver without a guest.
 * What it does, and in which order.
 *
 * It starts a QEMU with the qtest accelerator and guest RAM in a memfd.  It
 * sets up the device through the qtest protocol as a guest's driver would, and
 * then works the split virtqueues in the shared memory.  Nothing is
 * emulated in between, so the IOThread is what limits the speed.  With
 * --transport vhost-user it starts a storage daemon instead, and is the
 * front-end of what that exports, with memory and eventfds of its own.
 *
 * Two threads of QEMU matter: the IOThread, which does the I/O, and the main
 * thread.  Without KVM there is no irqfd: the eventfd that the IOThread writes
 * to interrupt the guest wakes the main thread.  That writes the MSI message,
 * to an address in guest RAM where this program sees it.  With --irqfd on the
 * main thread is stopped once all is set up, and this program takes the
 * interrupts from the eventfds, as KVM does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "calls.h"
#include "counters.h"
#include "driver.h"
#include "end.h"
#include "image.h"
#include "options.h"
#include "process.h"
#include "result.h"
#include "transport.h"

/* Seconds; caches and the branch predictor know the other processes. */
#define TURN_WARMUP 0.003

static void pin(const char *what, pid_t tid, int cpu)
{
    cpu_set_t set;

    if (cpu < 0) {
        return;
    }
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(tid, sizeof(set), &set)) {
        die("cannot pin the %s to CPU %d: %s", what, cpu, strerror(errno));
    }
}

static void set_up(void)
{
    const struct transport *transport = &transports[opt.transport];

    transport->start();
    pin("IOThread", iothread_tid, opt.iothread_cpu);
    pin("main thread", qemu_pid, opt.main_cpu);
    pin("driver", 0, opt.driver_cpu);
    transport->set_up();
    open_call_counters();
}

/* Read blocks, the whole image if they are so many; returns how many. */
static uint64_t verify(void)
{
    uint64_t n;

    job.verify = true;
    job.write_percent = 0;
    job.next = 0;
    job.in_order = opt.verify_blocks >= blocks;
    job.left = n = job.in_order ? blocks : opt.verify_blocks;
    run(0);
    job.verify = false;
    return n;
}

/*
 * With --turns: say that we are idle, and wait for a line.  Other processes
 * are measured meanwhile on the same CPUs.  So a machine that is faster now
 * and slower then is so for all of them.
 */
static void wait_for_turn(void)
{
    char line;

    if (!opt.turns) {
        return;
    }
    drain();
    if (puts("idle") == EOF || fflush(stdout)) {
        die("standard output: %s", strerror(errno));
    }
    if (read(STDIN_FILENO, &line, 1) != 1) {
        die("--turns: standard input has ended before the last turn");
    }
    job.endless = true;
    /* not only the burst with which a turn begins */
    run_at_least(TURN_WARMUP, (uint64_t)opt.qd * opt.queues);
}

static void measure_all(struct figures *measured, struct figures *counted)
{
    unsigned parts = opt.turns ? opt.turns : 1;

    job.in_order = false;
    job.endless = true;
    job.write_percent = opt.write_percent;
    run(opt.warmup);
    for (unsigned turn = 0; turn < parts; turn++) {
        wait_for_turn();
        job.record = true;
        measure(measured, opt.seconds, parts);
        job.record = false;
    }
    wait_for_turn();
    enable_call_counters();
    counted->rescheduling = -rescheduling_interrupts();
    measure(counted, opt.count_seconds, 1);
    counted->rescheduling += rescheduling_interrupts();
    disable_call_counters();
    drain();
}

int main(int argc, char **argv)
{
    struct figures measured = { 0 }, counted = { 0 };
    uint64_t verified = 0;

    parse_options(argc, argv);
    end_with_signals();
    if (opt.fill) {
        fill_image();
        return 0;
    }
    image_size();           /* complains about a wrong name before QEMU does */
    set_seed(opt.seed);
    set_up();
    if (opt.verify_blocks) {
        verified += verify();
    }
    measure_all(&measured, &counted);
    if (opt.write_percent && opt.verify_blocks) {
        verified += verify();
    }
    end_qemu();
    print_result(&measured, &counted, verified);
    if (fflush(stdout) || ferror(stdout)) {
        die("standard output: %s", strerror(errno));
    }
    return 0;
}
