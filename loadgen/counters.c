/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a window of time took: the kernel's figures of QEMU and of this
 * program, and what the driver has counted.
 */
#include <stdio.h>
#include <time.h>

#include "clock.h"
#include "counters.h"
#include "end.h"
#include "options.h"
#include "proc.h"
#include "process.h"

static uint64_t cpu_clock(clockid_t clock)
{
    struct timespec t;

    if (clock_gettime(clock, &t)) {
        return 0;
    }
    return (uint64_t)t.tv_sec * NS + t.tv_nsec;
}

/* From /proc/PID/task/TID/FILE. */
static uint64_t thread_number(pid_t tid, const char *file, const char *after)
{
    char path[96];

    snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", qemu_pid, tid, file);
    return first_number(path, after);
}

/*
 * Inter-processor interrupts by which another CPU has told the IOThread's to
 * look what there is to do.  Reading them takes a while.
 */
uint64_t rescheduling_interrupts(void)
{
    return opt.iothread_cpu < 0 ? 0 : cpu_interrupts("RES", opt.iothread_cpu);
}

static struct figures read_figures(void)
{
    struct figures f;
    clockid_t clock;

    for (unsigned i = 0; i < opt.queues; i++) {
        if (queues[i].irq_fd >= 0) {
            take_interrupts(&queues[i]);
        }
    }
    f.iothread_cpu = thread_number(iothread_tid, "schedstat", "");
    f.main_cpu = thread_number(qemu_pid, "schedstat", "");
    f.syscw = thread_number(iothread_tid, "io", "syscw: ");
    f.syscr = thread_number(iothread_tid, "io", "syscr: ");
    f.process_cpu =
        clock_getcpuclockid(qemu_pid, &clock) ? 0 : cpu_clock(clock);
    f.driver_cpu = cpu_clock(CLOCK_THREAD_CPUTIME_ID);
    f.count = count;
    f.time = now_ns();
    return f;
}

/* Work for a while, and add to the sum what it took. */
void measure(struct figures *sum, double seconds, unsigned parts)
{
    struct figures a = read_figures(), b;

    count.batch_max = 0;
    run_at_least(seconds / parts, (opt.min_ios + parts - 1) / parts);
    b = read_figures();
    if (b.count.batch_max > sum->count.batch_max) {
        sum->count.batch_max = b.count.batch_max;
    }
#define ADD(field) (sum->field += b.field - a.field)
    ADD(time);
    ADD(iothread_cpu);
    ADD(main_cpu);
    ADD(process_cpu);
    ADD(driver_cpu);
    ADD(syscw);
    ADD(syscr);
    ADD(count.done);
    ADD(count.writes);
    ADD(count.kicks);
    ADD(count.interrupts);
    ADD(count.batches);
#undef ADD
}
