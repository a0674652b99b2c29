/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The process that has the device: its command line and its start.
 * end.c ends it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "end.h"
#include "process.h"
#include "ram.h"

pid_t iothread_tid;

/* -- the command line ----------------------------------------------------- */

void add(struct command *c, const char *format, ...)
{
    va_list ap;
    int n;

    va_start(ap, format);
    n = vasprintf(&c->argv[c->n++], format, ap);
    va_end(ap);
    if (n < 0) {
        die("out of memory");
    }
}

void add_words(struct command *c, const char *const *words)
{
    for (; *words; words++) {
        add(c, "%s", *words);
    }
}

/* The text as it stands in a JSON string; to be freed. */
static char *json_text(const char *from)
{
    char *text = malloc(2 * strlen(from) + 1), *to = text;

    if (!text) {
        die("out of memory");
    }
    for (; *from; from++) {
        if ((unsigned char)*from < 0x20) {
            die("--image: give a name without control characters");
        }
        if (*from == '"' || *from == '\\') {
            *to++ = '\\';
        }
        *to++ = *from;
    }
    *to = 0;
    return text;
}

void add_iothread(struct command *c)
{
    add(c, "--object");
    add(c, "iothread,id=iothread0,poll-max-ns=%" PRIu64, opt.poll_max_ns);
}

/* The image as the block node disk0. */
void add_disk(struct command *c)
{
    bool block = false, writes = opt.write_percent;
    char *name = json_text(opt.image);
    struct stat st;

    if (!stat(opt.image, &st)) {
        block = S_ISBLK(st.st_mode);
    }
    add(c, "--blockdev");
    add(c, "{\"driver\":\"%s\",\"node-name\":\"file0\",\"filename\":\"%s\","
        "\"aio\":\"%s\",\"read-only\":%s,\"cache\":{\"direct\":%s}}",
        block ? "host_device" : "file", name, aio_names[opt.aio],
        writes ? "false" : "true", opt.cache_direct ? "true" : "false");
    free(name);
    add(c, "--blockdev");
    add(c, "driver=raw,node-name=disk0,file=file0%s",
        writes ? "" : ",read-only=on");
}

/* -- the process ---------------------------------------------------------- */

__attribute__((noreturn))
static void become(const struct command *c, pid_t parent)
{
    int null = open("/dev/null", O_RDWR);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
    /* Ctrl-C is for us; we end QEMU */
    setpgid(0, 0);
    dup2(null, 0);
    dup2(null, 1);
    dup2(qemu_stderr, 2);
    execv(opt.qemu, c->argv);
    dprintf(2, "%s: %s\n", opt.qemu, strerror(errno));
    _exit(127);
}

/* With the arguments that are given for it, too; frees the command. */
void start_process(struct command *c)
{
    pid_t parent = getpid();

    for (unsigned i = 0; i < opt.qemu_args; i++) {
        add(c, "%s", opt.qemu_arg[i]);
    }
    if (access(opt.qemu, X_OK)) {
        die("--qemu %s: %s", opt.qemu, strerror(errno));
    }
    qemu_stderr = memory_file("qemu-stderr", 0);
    qemu_pid = fork();
    if (qemu_pid < 0) {
        die("fork: %s", strerror(errno));
    }
    if (qemu_pid == 0) {
        become(c, parent);
    }
    while (c->n) {
        free(c->argv[--c->n]);
    }
}
