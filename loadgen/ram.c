/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Guest RAM: memory that is shared with whoever has the device.
 * Rings, requests and data lie there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "end.h"
#include "options.h"
#include "ram.h"
#include "request.h"

#define RAM_START (UINT64_C(16) << 20) /* above what a PC has below 1 MiB */
#define RAM_MOST (UINT64_C(2) << 30)   /* in one piece from address 0 on a PC */

uint8_t *ram;
uint64_t ram_size;
static uint64_t ram_used = RAM_START;

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

uint64_t offset_in_ram(const void *p)
{
    return (const uint8_t *)p - ram;
}

static void set_ram_size(void)
{
    /* a slot and its data; the rest is for rings and alignment */
    uint64_t slot = slot_layout()->size + opt.bs + 4096;
    uint64_t rings = 65536;
    uint64_t need = RAM_START + opt.queues * (opt.qd * slot + rings);

    ram_size = (need + (16 << 20)) >> 20 << 20;
    if (ram_size > RAM_MOST) {
        die("--qd, --queues and --bs need %" PRIu64 " MiB of guest RAM; "
            "at most %" PRIu64 " are possible", ram_size >> 20,
            RAM_MOST >> 20);
    }
}

int memory_file(const char *name, uint64_t size)
{
    int fd = memfd_create(name, 0);

    if (fd < 0 || ftruncate(fd, size)) {
        die("memfd_create: %s", strerror(errno));
    }
    return fd;
}

int map_ram(void)
{
    int fd;

    set_ram_size();
    fd = memory_file("guest-ram", ram_size);
    ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_POPULATE, fd, 0);
    if (ram == MAP_FAILED) {
        die("mmap of %" PRIu64 " MiB: %s", ram_size >> 20, strerror(errno));
    }
    return fd;
}
