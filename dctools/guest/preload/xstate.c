/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Preloaded to User Mode Linux.  It saves the floating point state of its programs in
 * 2,696 bytes, as much as there was before AMX.  A processor with AMX has more, and
 * the kernel takes all of it or nothing, so the rest is made up here: it is the state
 * of tiles that nobody has used.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST = 65536 };

/* Like the kernel's ptrace(2), but with the end of the state added if it wants more. */
static long set_state(long pid, const struct iovec *given)
{
    static _Alignas(64) char state[MOST];
    struct iovec all = { state, MOST };

    if (!syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, given)) {
        return 0;
    }
    if (errno != EFAULT || given->iov_len >= MOST) {
        return -1;
    }
    /* how much is it? */
    if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all)) {
        return -1;
    }
    memset(state + given->iov_len, 0, MOST - given->iov_len);
    memcpy(state, given->iov_base, given->iov_len);
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

/* What glibc has, and UML calls. */
long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    long pid, result;
    void *address, *data;

    va_start(arguments, request);
    pid = va_arg(arguments, int);
    address = va_arg(arguments, void *);
    data = va_arg(arguments, void *);
    va_end(arguments);
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
        return set_state(pid, data);
    }
    /* glibc returns what PEEK finds */
    if (request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSER) {
        long word;

        result = syscall(SYS_ptrace, request, pid, address, &word);
        if (!result) {
            errno = 0;
            return word;
        }
        return result;
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}
