/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Preloaded to User Mode Linux.  An interrupt is SIGIO there.  Before the kernel sleeps
 * it looks a last time whether there is work, and then calls sigsuspend(2).  A signal
 * that comes in between has been handled when it sleeps, and does not wake it: the
 * interrupt waits for the timer.  A processor has no such gap, so here it is closed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>

typedef void Handler(int, siginfo_t *, void *);

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static int (*real_sigsuspend)(const sigset_t *);
static Handler *theirs;
static volatile sig_atomic_t arrived;           /* since it slept */

/* Not when they are called: the kernel's stacks are small. */
__attribute__((constructor)) static void find_real(void)
{
    real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    real_sigsuspend = dlsym(RTLD_NEXT, "sigsuspend");
}

static void on_interrupt(int sig, siginfo_t *info, void *context)
{
    arrived = 1;
    theirs(sig, info, context);
}

/* What glibc has, and UML calls; it also asks for its handler, and sets that again. */
int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    struct sigaction ours;
    Handler *before = theirs;
    int result;

    if (sig == SIGIO && act && (act->sa_flags & SA_SIGINFO)) {
        ours = *act;
        theirs = act->sa_sigaction;
        ours.sa_sigaction = on_interrupt;
        act = &ours;
    }
    result = real_sigaction(sig, act, old);
    if (old && old->sa_sigaction == on_interrupt) {
        old->sa_sigaction = before;
    }
    return result;
}

/* Return at once, as if a signal had come, where one came since it slept last. */
int sigsuspend(const sigset_t *mask)
{
    sigset_t io, before;
    int result = -1;

    sigemptyset(&io);
    sigaddset(&io, SIGIO);
    sigprocmask(SIG_BLOCK, &io, &before);
    if (arrived) {
        errno = EINTR;
    } else {
        result = real_sigsuspend(mask);
    }
    arrived = 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return result;
}
