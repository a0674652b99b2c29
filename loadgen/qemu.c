/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Starting a QEMU with virtio-blk-pci or virtio-scsi-pci,
 * and with guest RAM that is shared with it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "end.h"
#include "options.h"
#include "process.h"
#include "qtest.h"
#include "ram.h"
#include "request.h"
#include "transport.h"
#include "virtqueue.h"

static void add_device(struct command *c)
{
    const char *event_idx = opt.event_idx ? "on" : "off";
    const char *indirect = opt.indirect ? "on" : "off";
    /* the others have the image open, too; all write the same pattern */
    const char *shared = opt.turns && opt.write_percent ? ",share-rw=on" : "";

    add(c, "-device");
    if (is_scsi()) {
        add(c, "virtio-scsi-pci,iothread=iothread0,disable-legacy=on,"
            "num_queues=%u,virtqueue_size=%u,event_idx=%s,indirect_desc=%s",
            opt.queues, queue_size(), event_idx, indirect);
        add(c, "-device");
        add(c, "scsi-hd,drive=disk0%s", shared);
    } else {
        add(c, "virtio-blk-pci,drive=disk0,iothread=iothread0,"
            "disable-legacy=on,num-queues=%u,queue-size=%u,event_idx=%s,"
            "indirect_desc=%s%s", opt.queues, queue_size(), event_idx,
            indirect, shared);
    }
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
    add_iothread(c);
    add_disk(c);
    add_device(c);
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
    int ram_fd = map_ram();
    int bios_fd = memory_file("no-bios", 65536);    /* no processor runs it */
    int qtest_fd = open_qtest();
    int qmp_fd = open_qmp();

    make_command(&command, ram_fd, bios_fd, qtest_fd, qmp_fd);
    start_process(&command);
    close(qtest_fd);
    close(qmp_fd);
    close(ram_fd);
    close(bios_fd);
    greet_qmp();
    find_iothread();
}
