/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Starting QEMU, with guest RAM that is shared with it.
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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "end.h"
#include "options.h"
#include "qemu.h"
#include "qtest.h"
#include "virtqueue.h"

#define RAM_START (UINT64_C(16) << 20) /* above what a PC has below 1 MiB */
#define RAM_MOST (UINT64_C(2) << 30)   /* in one piece from address 0 on a PC */

uint8_t *ram;
pid_t iothread_tid;
static uint64_t ram_size, ram_used = RAM_START;

/* -- guest RAM ------------------------------------------------------------ */

uint64_t ram_alloc(uint64_t size, uint64_t align)
{
    uint64_t at = (ram_used + align - 1) / align * align;

    ram_used = at + size;
    if (ram_used > ram_size) {
        die("--qd, --queues and --bs need more than the %" PRIu64 " MiB of "
            "RAM that a guest gets here", ram_size >> 20);
    }
    return at;
}

static void set_ram_size(void)
{
    /* a slot's 128 bytes and its data; the rest is for rings and alignment */
    uint64_t slot = 128 + opt.bs + 4096;
    uint64_t rings = 65536;
    uint64_t need = RAM_START + opt.queues * (opt.qd * slot + rings);

    ram_size = (need + (16 << 20)) >> 20 << 20;
    if (ram_size > RAM_MOST) {
        die("--qd, --queues and --bs need %" PRIu64 " MiB of guest RAM; "
            "at most %" PRIu64 " are possible", ram_size >> 20,
            RAM_MOST >> 20);
    }
}

/* Not closed by exec: QEMU opens it by its number. */
static int memory_file(const char *name, uint64_t size)
{
    int fd = memfd_create(name, 0);

    if (fd < 0 || ftruncate(fd, size)) {
        die("memfd_create: %s", strerror(errno));
    }
    return fd;
}

static int map_ram(void)
{
    int fd = memory_file("guest-ram", ram_size);

    ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_POPULATE, fd, 0);
    if (ram == MAP_FAILED) {
        die("mmap of %" PRIu64 " MiB: %s", ram_size >> 20, strerror(errno));
    }
    return fd;
}

/* -- the command line ----------------------------------------------------- */

struct command {
    char *argv[64 + MAX_QEMU_ARGS];     /* ends with NULL */
    unsigned n;
};

__attribute__((format(printf, 2, 3)))
static void add(struct command *c, const char *format, ...)
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

static void add_words(struct command *c, const char *const *words)
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

static void add_disk(struct command *c)
{
    bool block = false, writes = opt.write_percent;
    char *name = json_text(opt.image);
    struct stat st;

    if (!stat(opt.image, &st)) {
        block = S_ISBLK(st.st_mode);
    }
    add(c, "-blockdev");
    add(c, "{\"driver\":\"%s\",\"node-name\":\"file0\",\"filename\":\"%s\","
        "\"aio\":\"%s\",\"read-only\":%s,\"cache\":{\"direct\":%s}}",
        block ? "host_device" : "file", name, aio_names[opt.aio],
        writes ? "false" : "true", opt.cache_direct ? "true" : "false");
    free(name);
    add(c, "-blockdev");
    add(c, "driver=raw,node-name=disk0,file=file0%s",
        writes ? "" : ",read-only=on");
    add(c, "-device");
    add(c, "virtio-blk-pci,drive=disk0,iothread=iothread0,disable-legacy=on,"
        "num-queues=%u,queue-size=%u,event_idx=%s,indirect_desc=%s%s",
        opt.queues, queue_size(), opt.event_idx ? "on" : "off",
        opt.indirect ? "on" : "off",
        /* the others have the image open, too; all write the same pattern */
        opt.turns && writes ? ",share-rw=on" : "");
}

/* What it names by their numbers are files and sockets of ours. */
static void make_command(struct command *c, int ram_fd, int bios_fd,
                         int qtest_fd, int qmp_fd)
{
    static const char *const first[] = {
        "-accel", "qtest", "-nodefaults", "-no-user-config",
        "-display", "none", NULL
    };
    static const char *const channels[] = {
        "-qtest", "chardev:qtest", "-qtest-log", "/dev/null",
        "-mon", "chardev=qmp0,mode=control", NULL
    };

    add(c, "%s", opt.qemu);
    add_words(c, first);
    add(c, "-machine");
    add(c, "%s,memory-backend=ram", opt.machine);
    add(c, "-object");
    add(c, "memory-backend-file,id=ram,share=on,size=%" PRIu64
        ",mem-path=/proc/self/fd/%d", ram_size, ram_fd);
    add(c, "-m");
    add(c, "%" PRIu64 "M", ram_size >> 20);
    add(c, "-bios");
    add(c, "/proc/self/fd/%d", bios_fd);
    add(c, "-chardev");
    add(c, "socket,id=qtest,fd=%d", qtest_fd);
    add(c, "-chardev");
    add(c, "socket,id=qmp0,fd=%d", qmp_fd);
    add_words(c, channels);
    add(c, "-object");
    add(c, "iothread,id=iothread0,poll-max-ns=%" PRIu64, opt.poll_max_ns);
    add_disk(c);
    for (unsigned i = 0; i < opt.qemu_args; i++) {
        add(c, "%s", opt.qemu_arg[i]);
    }
}

/* -- the process ---------------------------------------------------------- */

__attribute__((noreturn))
static void become_qemu(const struct command *c, pid_t parent)
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

static void find_iothread(void)
{
    static const char key[] = "\"thread-id\":";
    const char *at = strstr(qmp("{\"execute\":\"query-iothreads\"}"), key);

    iothread_tid = at ? atoi(at + strlen(key)) : 0;
    if (iothread_tid <= 0) {
        die("query-iothreads names no thread");
    }
}

void start_qemu(void)
{
    struct command command = { .n = 0 };
    int ram_fd, bios_fd, qtest_fd, qmp_fd;
    pid_t parent = getpid();

    set_ram_size();
    if (access(opt.qemu, X_OK)) {
        die("--qemu %s: %s", opt.qemu, strerror(errno));
    }
    ram_fd = map_ram();
    bios_fd = memory_file("no-bios", 65536);    /* no processor ever runs it */
    qemu_stderr = memory_file("qemu-stderr", 0);
    qtest_fd = open_qtest();
    qmp_fd = open_qmp();
    make_command(&command, ram_fd, bios_fd, qtest_fd, qmp_fd);

    qemu_pid = fork();
    if (qemu_pid < 0) {
        die("fork: %s", strerror(errno));
    }
    if (qemu_pid == 0) {
        become_qemu(&command, parent);
    }
    close(qtest_fd);
    close(qmp_fd);
    close(ram_fd);
    close(bios_fd);
    while (command.n) {
        free(command.argv[--command.n]);
    }
    greet_qmp();
    find_iothread();
}
