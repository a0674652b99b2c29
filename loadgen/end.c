/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Ending: an error is one line on standard error,
 * and QEMU does not outlive this program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "end.h"
#include "options.h"

pid_t qemu_pid;
int qemu_stderr = -1;
int die_status = EXIT_FAILURE;
static int wait_status;     /* of a QEMU that has ended by itself */

/* Whether QEMU has ended by itself; then nobody kills that number any more. */
bool has_ended(void)
{
    int status = 0;

    /* a traced main thread may have stopped only; -1: its end was seen before */
    if (qemu_pid > 0 && waitpid(qemu_pid, &status, WNOHANG) &&
        !WIFSTOPPED(status)) {
        wait_status = status;
        qemu_pid = 0;
    }
    return qemu_pid <= 0;
}

void end_qemu(void)
{
    pid_t ended;

    if (qemu_pid <= 0) {
        return;
    }
    kill(qemu_pid, SIGKILL);
    /* a traced thread has to be waited for before its process */
    do {
        ended = waitpid(-1, NULL, __WALL);
    } while (ended != qemu_pid && (ended > 0 || errno == EINTR));
    qemu_pid = 0;
}

void die(const char *format, ...)
{
    va_list ap;

    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    end_qemu();
    exit(die_status);
}

/* The peer has gone: say what QEMU said last, in one line. */
void die_of_qemu(void)
{
    char text[4096], *line, *last = NULL, *save;
    ssize_t n;

    /* it may have closed its sockets just before its end */
    for (int i = 0; i < 100 && !has_ended(); i++) {
        usleep(10000);
    }
    n = pread(qemu_stderr, text, sizeof(text) - 1, 0);
    text[n > 0 ? n : 0] = 0;
    line = strtok_r(text, "\n", &save);
    for (; line; line = strtok_r(NULL, "\n", &save)) {
        /* the first complaint, unless only warnings came */
        if (!last ||
            (strstr(last, "warning:") && !strstr(line, "warning:"))) {
            last = line;
        }
    }
    if (!last && WIFSIGNALED(wait_status)) {
        die("%s was ended by signal %d", opt.qemu, WTERMSIG(wait_status));
    }
    die("%s %s: %s", opt.qemu, has_ended() ? "ended" : "closed its socket",
        last ? last : "it said nothing");
}

/* From a blocked read of the set-up or from the spinning driver. */
static void on_signal(int number)
{
    if (qemu_pid > 0) {
        kill(qemu_pid, SIGKILL);
    }
    signal(number, SIG_DFL);
    raise(number);
}

void end_with_signals(void)
{
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal);
}
