/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Kicks and interrupts by QEMU's own eventfds, as KVM does them.
 * Which they are is seen by what they count.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "driver.h"
#include "end.h"
#include "eventfd.h"
#include "options.h"
#include "proc.h"
#include "process.h"

#define NO_EVENTFD UINT64_MAX

enum { MAX_FDS = 4096 };

/* What each eventfd of QEMU has counted, by its descriptor there. */
static uint64_t before[MAX_FDS], after[MAX_FDS];

static void read_eventfds(uint64_t *counted)
{
    char path[64];
    struct dirent *e;
    DIR *d;

    for (int fd = 0; fd < MAX_FDS; fd++) {
        counted[fd] = NO_EVENTFD;
    }
    snprintf(path, sizeof(path), "/proc/%d/fdinfo", qemu_pid);
    d = opendir(path);
    if (!d) {
        die("%s: %s", path, strerror(errno));
    }
    while ((e = readdir(d))) {
        char text[512], *at;
        int fd = atoi(e->d_name);
        int file = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
        ssize_t n = file < 0 ? 0 : read(file, text, sizeof(text) - 1);

        close(file);
        text[n > 0 ? n : 0] = 0;
        at = strstr(text, "eventfd-count:");
        if (at && fd < MAX_FDS) {
            counted[fd] = strtoull(at + strlen("eventfd-count:"), NULL, 16);
        }
    }
    closedir(d);
}

/* The one eventfd that has counted at least so many in between, or -1. */
static int which_eventfd(int64_t least)
{
    int found = -1;

    for (int fd = 0; fd < MAX_FDS; fd++) {
        if (before[fd] != NO_EVENTFD && after[fd] != NO_EVENTFD &&
            (int64_t)(after[fd] - before[fd]) >= least) {
            if (found >= 0) {
                return -1;
            }
            found = fd;
        }
    }
    return found;
}

static int copy_descriptor(int fd)
{
    int pidfd = syscall(SYS_pidfd_open, qemu_pid, 0);
    int copy = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, fd, 0);

    if (copy < 0) {
        die("cannot copy QEMU's eventfds: pidfd_getfd: %s", strerror(errno));
    }
    close(pidfd);
    return copy;
}

/* Stop one thread of QEMU; should we end before it goes on, QEMU does too. */
static void stop_thread(const char *what, pid_t tid)
{
    int status;

    if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_EXITKILL) ||
        ptrace(PTRACE_INTERRUPT, tid, 0, 0)) {
        die("cannot stop QEMU's %s: ptrace: %s", what, strerror(errno));
    }
    if (waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status)) {
        die_of_qemu();
    }
}

/*
 * Find the ioeventfd of each queue: the one that counts a kick through qtest.
 * The IOThread, which would read it, is stopped meanwhile.
 */
static void find_kick_fds(void)
{
    stop_thread("IOThread", iothread_tid);
    for (unsigned i = 0; i < opt.queues; i++) {
        int fd = -1;

        /* an eventfd of the main thread's own may happen to count as well */
        for (int tries = 0; fd < 0 && tries < 20; tries++) {
            read_eventfds(before);
            kick_by_qtest(&queues[i]);
            read_eventfds(after);
            fd = which_eventfd(1);
        }
        if (fd < 0) {
            die("the ioeventfd of queue %u is not to be found; "
                "--kick qtest does without", queues[i].index);
        }
        queues[i].kick_fd = copy_descriptor(fd);
    }
    if (ptrace(PTRACE_DETACH, iothread_tid, 0, 0)) {
        die("cannot let QEMU's IOThread go on: ptrace: %s", strerror(errno));
    }
}

/* Stop QEMU's main thread where it waits for events: it holds no lock. */
static void stop_main_thread(void)
{
    char path[64];
    int status;

    stop_thread("main thread", qemu_pid);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", qemu_pid,
             qemu_pid);
    for (int i = 0; first_number(path, "") != SYS_ppoll; i++) {
        if (i == 1000) {
            die("--irqfd on: QEMU's main thread never waits for events");
        }
        ptrace(PTRACE_CONT, qemu_pid, 0, 0);
        usleep(1000);
        if (ptrace(PTRACE_INTERRUPT, qemu_pid, 0, 0) ||
            waitpid(qemu_pid, &status, __WALL) != qemu_pid ||
            !WIFSTOPPED(status)) {
            die_of_qemu();
        }
    }
}

/*
 * Find the eventfd of each queue's interrupt.  The main thread no longer reads
 * it, so after some requests, one at a time, it has counted nearly all of them.
 */
static void find_irq_fds(void)
{
    enum { REQUESTS = 8, NEARLY = 5 };

    for (unsigned i = 0; i < opt.queues; i++) {
        struct queue *q = &queues[i];
        int fd = -1;

        for (int tries = 0; fd < 0; tries++) {
            if (tries == 50) {
                /* one QEMU in hundreds; the next one will do */
                die_status = EX_TEMPFAIL;
                die("--irqfd on: the eventfd of queue %u's interrupt is not "
                    "to be found", q->index);
            }
            read_eventfds(before);
            for (unsigned r = 0; r < REQUESTS; r++) {
                one_request(q, 100 + 1000 * tries);
            }
            read_eventfds(after);
            fd = which_eventfd(NEARLY);
        }
        q->irq_fd = copy_descriptor(fd);
        take_interrupts(q);
        q->interrupted = false;
    }
}

void find_eventfds(void)
{
    if (opt.kick == KICK_EVENTFD) {
        find_kick_fds();
    }
    if (opt.irqfd) {
        stop_main_thread();
        if (opt.irq != IRQ_OFF) {
            find_irq_fds();
        }
    }
}
