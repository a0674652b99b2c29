/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The command line: one table says of each option what it takes,
 * what it is when not given, and what --help tells of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "end.h"
#include "options.h"

/* -1, any CPU, is nothing that can be given */
struct options opt = { .iothread_cpu = -1, .main_cpu = -1, .driver_cpu = -1 };

const char *const aio_names[] = { "native", "io_uring", "threads", NULL };
const char *const irq_names[] = { "each", "batch", "off", NULL };
const char *const wait_names[] = { "used", "irq", NULL };
const char *const kick_names[] = { "eventfd", "qtest", NULL };
const char *const transport_names[] = { "pci", "scsi", "vhost-user", NULL };
static const char *const switch_names[] = { "off", "on", NULL };

struct row {
    const char *name;
    const char *argument;           /* its name in --help; "": has none */
    void (*parse)(const struct row *row, const char *text);
    void *value;                    /* in opt, of the type parse() stores */
    double low, high;               /* of a number */
    const char *const *choices;     /* instead of argument */
    const char *initial;            /* parsed if it is not given */
    const char *help;
    bool pci;                       /* of no use with vhost-user */
};

/* -- parsers -------------------------------------------------------------- */

static double number(const char *name, const char *text,
                     double low, double high, bool whole)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= low && value <= high) ||
        (whole && value != (uint64_t)value)) {
        die("--%s %s: give a %snumber from %.15g to %.15g", name, text,
            whole ? "whole " : "", low, high);
    }
    return value;
}

static double whole_number(const struct row *row, const char *text)
{
    return number(row->name, text, row->low, row->high, true);
}

static unsigned choice(const struct row *row, const char *text)
{
    const char *const *list = row->choices;

    for (unsigned i = 0; list[i]; i++) {
        if (!strcmp(text, list[i])) {
            return i;
        }
    }
    fprintf(stderr, "%s: --%s %s: give %s", program_invocation_short_name,
            row->name, text, list[0]);
    for (unsigned i = 1; list[i]; i++) {
        fprintf(stderr, "%s%s", list[i + 1] ? ", " : " or ", list[i]);
    }
    fputc('\n', stderr);
    exit(1);
}

static void parse_text(const struct row *row, const char *text)
{
    *(const char **)row->value = text;
}

static void parse_flag(const struct row *row, const char *text)
{
    (void)text;
    *(bool *)row->value = true;
}

static void parse_switch(const struct row *row, const char *text)
{
    *(bool *)row->value = choice(row, text);
}

static void parse_choice(const struct row *row, const char *text)
{
    *(unsigned *)row->value = choice(row, text);
}

static void parse_unsigned(const struct row *row, const char *text)
{
    *(unsigned *)row->value = whole_number(row, text);
}

static void parse_uint64(const struct row *row, const char *text)
{
    *(uint64_t *)row->value = whole_number(row, text);
}

static void parse_cpu(const struct row *row, const char *text)
{
    *(int *)row->value = whole_number(row, text);
}

static void parse_double(const struct row *row, const char *text)
{
    *(double *)row->value = number(row->name, text, row->low, row->high, false);
}

/* Given in microseconds, stored in nanoseconds. */
static void parse_us(const struct row *row, const char *text)
{
    *(uint64_t *)row->value =
        number(row->name, text, row->low, row->high, false) * 1000;
}

/* All 64 bits, which a double does not have. */
static void parse_seed(const struct row *row, const char *text)
{
    char *end;

    errno = 0;
    *(uint64_t *)row->value = strtoull(text, &end, 10);
    if (end == text || *end || errno || *text == '-') {
        die("--%s %s: give a whole number", row->name, text);
    }
}

static void parse_bs(const struct row *row, const char *text)
{
    parse_unsigned(row, text);
    if (opt.bs % SECTOR) {
        die("--bs %s: give a multiple of %d", text, SECTOR);
    }
}

static void parse_rw(const struct row *row, const char *text)
{
    unsigned *percent = row->value;

    if (!strncmp(text, "mix:", 4)) {
        *percent = number("rw mix:", text + 4, 0, 100, true);
    } else if (!strcmp(text, "write") || !strcmp(text, "read")) {
        *percent = *text == 'w' ? 100 : 0;
    } else {
        die("--rw %s: give read, write or mix:PERCENT_WRITES", text);
    }
}

static void parse_verify(const struct row *row, const char *text)
{
    uint64_t *blocks = row->value;

    if (!strcmp(text, "all")) {
        *blocks = UINT64_MAX;
    } else if (!strcmp(text, "none")) {
        *blocks = 0;
    } else {
        *blocks = whole_number(row, text);
    }
}

static void parse_qemu_arg(const struct row *row, const char *text)
{
    if (opt.qemu_args == MAX_QEMU_ARGS) {
        die("--%s: no more than %d", row->name, MAX_QEMU_ARGS);
    }
    opt.qemu_arg[opt.qemu_args++] = text;
}

static void parse_help(const struct row *row, const char *text);

/* -- the table ------------------------------------------------------------ */

static const struct row rows[] = {
    { "qemu", "BINARY", parse_text, &opt.qemu,
      .help = "the QEMU that is measured;\n"
              "with --transport vhost-user the qemu-storage-daemon" },
    { "transport", NULL, parse_choice, &opt.transport,
      .choices = transport_names, .initial = "pci",
      .help = "how the driver gets at the disk: virtio-blk-pci or\n"
              "virtio-scsi-pci of a QEMU through qtest, or a daemon's\n"
              "vhost-user-blk export" },
    { "image", "FILE", parse_text, &opt.image,
      .help = "its disk: a file with a size, or a block device" },
    { "fill", "", parse_flag, &opt.fill,
      .help = "write the pattern that is verified into the image,\n"
              "and start no QEMU" },
    { "iothread", NULL, parse_switch, &opt.iothread,
      .choices = switch_names, .initial = "on",
      .help = "the daemon does I/O in one, else in its main thread" },
    { "aio", NULL, parse_choice, &opt.aio, .choices = aio_names,
      .initial = "native", .help = "how QEMU does I/O" },
    { "cache-direct", NULL, parse_switch, &opt.cache_direct,
      .choices = switch_names, .initial = "on",
      .help = "QEMU opens the image with O_DIRECT" },
    { "poll-max-ns", "N", parse_uint64, &opt.poll_max_ns,
      .low = 0, .high = 1e9, .initial = "0",
      .help = "the IOThread polls so long" },
    { "machine", "TYPE", parse_text, &opt.machine,
      .initial = "pc-i440fx-7.2", .help = "QEMU's -machine",
      .pci = true },
    { "qemu-arg", "ARGUMENT", parse_qemu_arg,
      .help = "one more argument for QEMU (repeatable)" },
    { "qd", "N", parse_unsigned, &opt.qd, .low = 1, .high = MAX_QD,
      .initial = "64", .help = "requests in flight in each queue" },
    { "queues", "N", parse_unsigned, &opt.queues,
      .low = 1, .high = MAX_QUEUES, .initial = "1",
      .help = "virtqueues of the device" },
    { "bs", "BYTES", parse_bs, &opt.bs, .low = SECTOR, .high = 1 << 20,
      .initial = "4096", .help = "of a request, a multiple of 512" },
    { "rw", "read|write|mix:PERCENT_WRITES", parse_rw, &opt.write_percent,
      .initial = "read", .help = "what requests do" },
    { "batch", "N", parse_unsigned, &opt.batch, .low = 1, .high = MAX_QD,
      .initial = "64",
      .help = "submitted before a kick is considered\n"
              "(or when nothing is left to take)" },
    { "event-idx", NULL, parse_switch, &opt.event_idx,
      .choices = switch_names, .initial = "on",
      .help = "VIRTIO_RING_F_EVENT_IDX" },
    { "indirect", NULL, parse_switch, &opt.indirect,
      .choices = switch_names, .initial = "on",
      .help = "VIRTIO_RING_F_INDIRECT_DESC" },
    { "irq", NULL, parse_choice, &opt.irq, .choices = irq_names,
      .initial = "each",
      .help = "ask for an interrupt again after every used entry,\n"
              "after all, never" },
    { "wait", NULL, parse_choice, &opt.wait, .choices = wait_names,
      .initial = "used",
      .help = "look at the used index, or take entries only after\n"
              "an interrupt" },
    { "reaction-us", "T", parse_us, &opt.reaction_ns, .low = 0, .high = 1e6,
      .initial = "1",
      .help = "from seeing (used index or interrupt) to taking the\n"
              "first entry" },
    { "jitter", NULL, parse_switch, &opt.jitter, .choices = switch_names,
      .initial = "off",
      .help = "a different reaction time each time, evenly from 0\n"
              "to 2 T" },
    { "irqfd", NULL, parse_switch, &opt.irqfd, .choices = switch_names,
      .initial = "off",
      .help = "stop QEMU's main thread and take interrupts from the\n"
              "eventfds, as KVM does", .pci = true },
    { "kick", NULL, parse_choice, &opt.kick, .choices = kick_names,
      .initial = "eventfd",
      .help = "by QEMU's own ioeventfd, or slowly by qtest",
      .pci = true },
    { "iothread-cpu", "N", parse_cpu, &opt.iothread_cpu,
      .low = 0, .high = CPU_SETSIZE - 1, .help = "pin QEMU's IOThread" },
    { "main-cpu", "N", parse_cpu, &opt.main_cpu,
      .low = 0, .high = CPU_SETSIZE - 1, .help = "pin QEMU's main thread" },
    { "driver-cpu", "N", parse_cpu, &opt.driver_cpu,
      .low = 0, .high = CPU_SETSIZE - 1, .help = "pin this program" },
    { "seconds", "T", parse_double, &opt.seconds, .low = .01, .high = 86400,
      .initial = "2", .help = "seconds in which is measured" },
    { "warmup", "T", parse_double, &opt.warmup, .low = 0, .high = 3600,
      .initial = "0.5", .help = "seconds before that, to warm up" },
    { "count-seconds", "T", parse_double, &opt.count_seconds,
      .low = .01, .high = 3600, .initial = "0.5",
      .help = "seconds after that,\n"
              "in which system calls are counted" },
    { "timeout", "T", parse_double, &opt.timeout, .low = .1, .high = 3600,
      .initial = "10", .help = "so long without an answer is a hang" },
    { "turns", "N", parse_unsigned, &opt.turns, .low = 1, .high = 1000,
      .help = "measure in N parts and count system calls in one\n"
              "more, each when a line comes on standard input;\n"
              "a line on standard output, before the JSON, says that\n"
              "we are idle" },
    { "min-ios", "N", parse_uint64, &opt.min_ios, .low = 1, .high = 1e9,
      .initial = "1",
      .help = "a window is longer if fewer requests were finished\n"
              "in it" },
    { "verify", "BLOCKS|all|none", parse_verify, &opt.verify_blocks,
      .low = 0, .high = 1e12, .initial = "4096",
      .help = "so many of the image are verified before and,\n"
              "if it writes, after" },
    { "seed", "N", parse_seed, &opt.seed, .initial = "1",
      .help = "for the order of the blocks" },
    { "pattern-seed", "N", parse_seed, &opt.pattern_seed, .initial = "0",
      .help = "for the pattern in the image" },
    { "help", "", parse_help, .help = "print this" },
};

enum { ROWS = sizeof(rows) / sizeof(rows[0]), HELP_COLUMN = 25 };

static void print_row(const struct row *row)
{
    int at = printf("  --%s ", row->name);
    const char *line = row->help;

    if (row->choices) {
        for (unsigned i = 0; row->choices[i]; i++) {
            at += printf("%s%s", i ? "|" : "", row->choices[i]);
        }
    } else {
        at += printf("%s", row->argument);
    }
    if (at >= HELP_COLUMN) {
        putchar('\n');
        at = 0;
    }
    for (;;) {
        int n = strcspn(line, "\n");

        printf("%*s%.*s", HELP_COLUMN - at, "", n, line);
        if (!line[n]) {
            break;
        }
        line += n + 1;
        putchar('\n');
        at = 0;
    }
    if (row->high) {
        printf(" (%.15g to %.15g)", row->low, row->high);
    }
    if (row->initial) {
        printf(" [%s]", row->initial);
    }
    putchar('\n');
}

static void parse_help(const struct row *row, const char *text)
{
    (void)row;
    (void)text;
    printf("usage: %s --qemu BINARY --image FILE [option ...]\n"
           "       %s --fill --image FILE [--pattern-seed N]\n"
           "The first measures and prints one JSON object.  "
           "Options (range) [default]:\n", program_invocation_short_name,
           program_invocation_short_name);
    for (unsigned i = 0; i < ROWS; i++) {
        print_row(&rows[i]);
    }
    exit(0);
}

/* What each option by itself cannot know. */
static void check_options(const bool *given)
{
    if (opt.transport == TRANSPORT_VHOST_USER) {
        for (unsigned i = 0; i < ROWS; i++) {
            if (rows[i].pci && given[i]) {
                die("--%s and --transport %s: leave one of them out",
                    rows[i].name, transport_names[opt.transport]);
            }
        }
        /* no main thread between the IOThread and us */
        opt.irqfd = true;
    } else if (!opt.iothread) {
        die("--iothread off: needs --transport vhost-user");
    }
    if (!opt.iothread && opt.poll_max_ns) {
        die("--iothread off and --poll-max-ns %" PRIu64 ": the main thread "
            "does not poll; leave one of them out", opt.poll_max_ns);
    }
    if (!opt.image || (!opt.qemu && !opt.fill)) {
        die("--qemu and --image are needed; see --help");
    }
    if (!opt.cache_direct && opt.aio == AIO_NATIVE) {
        die("--aio native needs --cache-direct on");
    }
    if (opt.wait == WAIT_IRQ && opt.irq == IRQ_OFF) {
        die("--wait irq and --irq off: it would wait for ever");
    }
    if (opt.irqfd && opt.kick == KICK_QTEST) {
        die("--irqfd on and --kick qtest: the main thread, which is stopped, "
            "would have to kick");
    }
    if (!opt.indirect && opt.qd * 3 > 1024) {
        die("--qd %u with --indirect off: at most 341 requests fit in a queue",
            opt.qd);
    }
}

void parse_options(int argc, char **argv)
{
    enum { FIRST = 256 };       /* '?' is what getopt_long() complains of */
    struct option list[ROWS + 1] = { { 0 } };
    bool given[ROWS] = { false };
    int c;

    for (unsigned i = 0; i < ROWS; i++) {
        const struct row *row = &rows[i];
        bool alone = row->argument && !*row->argument;

        list[i] = (struct option) {
            row->name, alone ? no_argument : required_argument, NULL, FIRST + i
        };
        if (row->initial) {
            row->parse(row, row->initial);
        }
    }
    while ((c = getopt_long(argc, argv, "", list, NULL)) != -1) {
        if (c < FIRST) {
            exit(1);            /* getopt_long() has said why */
        }
        rows[c - FIRST].parse(&rows[c - FIRST], optarg);
        given[c - FIRST] = true;
    }
    if (optind < argc) {
        die("%s: not an option; see --help", argv[optind]);
    }
    check_options(given);
}
