/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * System calls of the IOThread by their names, if tracepoints may be used.
 * Counting them costs time, so not while the IOThread is measured.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "calls.h"
#include "proc.h"
#include "process.h"

const char *const call_names[CALLS] = {
    "write", "read", "io_submit", "io_getevents", "io_uring_enter", "ppoll",
    "epoll_wait", "epoll_pwait2", "futex"
};
char calls_missing[160];
static int counter_fd[CALLS];

static bool has_call_events(const char *root)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/events/syscalls/sys_enter_write/id", root);
    return access(path, R_OK) == 0;
}

static const char *find_tracefs(void)
{
    static const char *const roots[] = {
        "/sys/kernel/tracing", "/sys/kernel/debug/tracing"
    };

    for (unsigned i = 0; i < 2; i++) {
        if (has_call_events(roots[i])) {
            return roots[i];
        }
    }
    /* mounted for this process only */
    if (!unshare(CLONE_NEWNS) &&
        !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
        !mount("tracefs", roots[0], "tracefs", 0, NULL) &&
        has_call_events(roots[0])) {
        return roots[0];
    }
    return NULL;
}

void open_call_counters(void)
{
    const char *root = find_tracefs();

    if (!root) {
        strcpy(calls_missing, "no syscalls tracepoints (is tracefs mounted, "
               "and are we root?)");
        return;
    }
    for (unsigned i = 0; i < CALLS; i++) {
        struct perf_event_attr attr = {
            .type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr), .disabled = 1
        };
        char path[128];

        counter_fd[i] = -1;
        snprintf(path, sizeof(path), "%s/events/syscalls/sys_enter_%s/id",
                 root, call_names[i]);
        if (access(path, R_OK)) {
            continue;       /* this kernel has no such call */
        }
        attr.config = first_number(path, "");
        counter_fd[i] = syscall(SYS_perf_event_open, &attr, iothread_tid, -1,
                                -1, PERF_FLAG_FD_CLOEXEC);
        if (counter_fd[i] < 0) {
            snprintf(calls_missing, sizeof(calls_missing),
                     "perf_event_open: %s", strerror(errno));
            return;
        }
    }
}

static void control_all(unsigned long request)
{
    for (unsigned i = 0; i < CALLS && !*calls_missing; i++) {
        if (counter_fd[i] >= 0) {
            ioctl(counter_fd[i], request, 0);
        }
    }
}

void enable_call_counters(void)
{
    control_all(PERF_EVENT_IOC_ENABLE);
}

void disable_call_counters(void)
{
    control_all(PERF_EVENT_IOC_DISABLE);
}

/* False if this kernel has no such call. */
bool read_call_counter(unsigned call, uint64_t *value)
{
    return counter_fd[call] >= 0 &&
        read(counter_fd[call], value, sizeof(*value)) == sizeof(*value);
}
