/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The result:
 * one JSON object on standard output.
 */
#include <inttypes.h>
#include <stdio.h>

#include "calls.h"
#include "latency.h"
#include "options.h"
#include "result.h"
#include "transport.h"

static const char *truth(bool b)
{
    return b ? "true" : "false";
}

static void print_parameters(void)
{
    printf("{\"parameters\": {\"transport\": \"%s\", \"aio\": \"%s\", "
           "\"cache_direct\": %s, \"qd\": %u, \"queues\": %u, "
           "\"batch\": %u, ", transport_names[opt.transport],
           aio_names[opt.aio], truth(opt.cache_direct),
           opt.qd, opt.queues, opt.batch);
    if (opt.transport != TRANSPORT_VHOST_USER) {
        printf("\"machine\": \"%s\", \"irqfd\": %s, \"kick\": \"%s\", ",
               opt.machine, truth(opt.irqfd), kick_names[opt.kick]);
    }
    printf("\"write_percent\": %u, \"bs\": %u, \"seconds\": %g, "
           "\"turns\": %u, \"warmup\": %g, ",
           opt.write_percent, opt.bs, opt.seconds, opt.turns, opt.warmup);
    printf("\"event_idx\": %s, \"indirect\": %s, \"irq\": \"%s\", "
           "\"wait\": \"%s\", ", truth(opt.event_idx), truth(opt.indirect),
           irq_names[opt.irq], wait_names[opt.wait]);
    printf("\"reaction_us\": %g, \"jitter\": %s, \"count_seconds\": %g, "
           "\"min_ios\": %" PRIu64 ", \"poll_max_ns\": %" PRIu64 ", ",
           opt.reaction_ns / 1e3, truth(opt.jitter), opt.count_seconds,
           opt.min_ios, opt.poll_max_ns);
    printf("\"iothread\": %s, ", truth(opt.iothread));
    printf("\"iothread_cpu\": %d, \"main_cpu\": %d, \"driver_cpu\": %d, ",
           opt.iothread_cpu, opt.main_cpu, opt.driver_cpu);
    printf("\"seed\": %" PRIu64 ", \"pattern_seed\": %" PRIu64 "},\n",
           opt.seed, opt.pattern_seed);
}

static void print_measured(const struct figures *m)
{
    double s = m->time / 1e9, n = m->count.done, batches = m->count.batches;

    printf(" \"seconds\": %.6f, \"ios\": %.0f, \"writes\": %" PRIu64 ", "
           "\"iops\": %.1f,\n", s, n, m->count.writes, n / s);
    printf(" \"latency_us\": {\"mean\": %.3f, \"p10\": %.3f, \"p50\": %.3f, "
           "\"p99\": %.3f, \"p999\": %.3f, \"max\": %.3f},\n",
           latency.sum / n / 1e3, percentile_us(.1), percentile_us(.5),
           percentile_us(.99), percentile_us(.999), latency.most / 1e3);
    printf(" \"batches_seen\": {\"number\": %.0f, \"mean\": %.3f, "
           "\"max\": %" PRIu64 "},\n", batches, batches ? n / batches : 0,
           m->count.batch_max);
    printf(" \"cpu_ns_per_io\": {\"iothread\": %.1f, \"main\": %.1f, "
           "\"process\": %.1f, \"driver\": %.1f}, \"iothread_busy\": %.4f,\n",
           m->iothread_cpu / n, m->main_cpu / n, m->process_cpu / n,
           m->driver_cpu / n, m->iothread_cpu / 1e9 / s);
    printf(" \"per_io\": {\"writes\": %.6f, \"reads\": %.6f, "
           "\"kicks\": %.6f, \"interrupts\": %.6f},\n",
           m->syscw / n, m->syscr / n, m->count.kicks / n,
           m->count.interrupts / n);
}

static void print_calls(const struct figures *c)
{
    double n = c->count.done;
    const char *comma = "";

    printf(" \"syscalls\": {\"seconds\": %.6f, \"ios\": %.0f, ",
           c->time / 1e9, n);
    if (opt.iothread_cpu >= 0) {
        printf("\"rescheduling\": %.6f, ", c->rescheduling / n);
    }
    if (*calls_missing) {
        printf("\"source\": \"/proc only: %s\", \"per_io\": "
               "{\"write\": %.6f, \"read\": %.6f", calls_missing,
               c->syscw / n, c->syscr / n);
    } else {
        printf("\"source\": \"perf tracepoints\", \"per_io\": {");
        for (unsigned i = 0; i < CALLS; i++) {
            uint64_t value;

            if (read_call_counter(i, &value)) {
                printf("%s\"%s\": %.6f", comma, call_names[i], value / n);
                comma = ", ";
            }
        }
    }
    printf("}}}\n");
}

void print_result(const struct figures *measured,
                  const struct figures *counted, uint64_t verified)
{
    print_parameters();
    printf(" \"device\": {\"features\": \"0x%" PRIx64 "\", "
           "\"queue_size\": %u, \"blocks\": %" PRIu64 "}, "
           "\"verified_blocks\": %" PRIu64 ",\n",
           features, queue_size(), blocks, verified);
    print_measured(measured);
    print_calls(counted);
}
