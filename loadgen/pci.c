/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The device on its PCI bus: where its registers are,
 * and its MSI-X vectors.
 */
#include <linux/pci_regs.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_pci.h>
#include <stdbool.h>
#include <stddef.h>

#include "end.h"
#include "pci.h"
#include "qtest.h"
#include "request.h"

#define BAR_START 0xe0000000ull     /* the PCI hole of i440fx and q35 */
#define MODERN_DEVICE(id) ((0x1040u + (id)) << 16 | 0x1af4)

struct pci_device pci;
static unsigned devfn;

static void select_register(unsigned at)
{
    port_write(4, 0xcf8, 1u << 31 | devfn << 8 | (at & ~3u));
}

static uint32_t pci_read(unsigned at, unsigned size)
{
    select_register(at);
    return port_read(size, 0xcfc + (at & 3));
}

static void pci_write(unsigned at, unsigned size, uint32_t value)
{
    select_register(at);
    port_write(size, 0xcfc + (at & 3), value);
}

/* Give all memory BARs an address; fills bar[]. */
static void program_bars(uint64_t *bar)
{
    uint64_t next = BAR_START;

    for (int i = 0; i < 6; i++) {
        unsigned at = PCI_BASE_ADDRESS_0 + 4 * i;
        uint32_t low, size;
        bool wide;

        pci_write(at, 4, ~0u);
        low = pci_read(at, 4);
        if (!low || low & PCI_BASE_ADDRESS_SPACE_IO) {
            continue;
        }
        wide = (low & PCI_BASE_ADDRESS_MEM_TYPE_MASK) ==
            PCI_BASE_ADDRESS_MEM_TYPE_64;
        size = ~(low & ~0xfu) + 1;
        next = (next + size - 1) / size * size;
        bar[i] = next;
        next += size;
        pci_write(at, 4, bar[i]);
        if (wide) {
            pci_write(at + 4, 4, bar[i] >> 32);
            i++;
        }
    }
}

static void read_virtio_capability(unsigned cap, const uint64_t *bar)
{
    unsigned b = pci_read(cap + offsetof(struct virtio_pci_cap, bar), 1);
    uint64_t at = b < 6 ? bar[b] : 0;

    at += pci_read(cap + offsetof(struct virtio_pci_cap, offset), 4);
    switch (pci_read(cap + offsetof(struct virtio_pci_cap, cfg_type), 1)) {
    case VIRTIO_PCI_CAP_COMMON_CFG:
        pci.common = at;
        break;
    case VIRTIO_PCI_CAP_DEVICE_CFG:
        pci.config = at;
        break;
    case VIRTIO_PCI_CAP_NOTIFY_CFG:
        pci.notify = at;
        cap += offsetof(struct virtio_pci_notify_cap, notify_off_multiplier);
        pci.notify_multiplier = pci_read(cap, 4);
        break;
    }
}

static void read_msix_capability(unsigned cap, const uint64_t *bar)
{
    uint32_t table = pci_read(cap + PCI_MSIX_TABLE, 4);

    pci.msix_cap = cap;
    pci.msix_table = bar[table & PCI_MSIX_TABLE_BIR] +
        (table & PCI_MSIX_TABLE_OFFSET);
}

void find_device(void)
{
    uint64_t bar[PCI_MSIX_TABLE_BIR + 1] = { 0 };
    uint32_t wanted =
        MODERN_DEVICE(is_scsi() ? VIRTIO_ID_SCSI : VIRTIO_ID_BLOCK);
    unsigned cap, command;

    while (pci_read(PCI_VENDOR_ID, 4) != wanted) {
        devfn += 8;
        if (devfn > 0xff) {
            die("no modern virtio-%s device on PCI bus 0 of this machine",
                is_scsi() ? "scsi" : "blk");
        }
    }
    program_bars(bar);
    cap = pci_read(PCI_CAPABILITY_LIST, 1);
    while (cap) {
        unsigned id = pci_read(cap, 1);

        if (id == PCI_CAP_ID_MSIX) {
            read_msix_capability(cap, bar);
        } else if (id == PCI_CAP_ID_VNDR) {
            read_virtio_capability(cap, bar);
        }
        cap = pci_read(cap + PCI_CAP_LIST_NEXT, 1);
    }
    if (!pci.common || !pci.config || !pci.notify || !pci.msix_cap) {
        die("the device lacks a capability that a modern one with MSI-X has");
    }
    command = pci_read(PCI_COMMAND, 2);
    pci_write(PCI_COMMAND, 2, command | PCI_COMMAND_MEMORY |
              PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
}

unsigned msix_vectors(void)
{
    unsigned flags = pci_read(pci.msix_cap + PCI_MSIX_FLAGS, 2);

    return (flags & PCI_MSIX_FLAGS_QSIZE) + 1;
}

void enable_msix(void)
{
    pci_write(pci.msix_cap + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
}

/* An interrupt is a 1 that is stored at the address. */
void set_msix_vector(unsigned vector, uint64_t address)
{
    uint64_t entry = pci.msix_table + vector * PCI_MSIX_ENTRY_SIZE;

    write_address(entry + PCI_MSIX_ENTRY_LOWER_ADDR, address);
    memory_write(4, entry + PCI_MSIX_ENTRY_DATA, 1);
    memory_write(4, entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
}

/* Two registers, as virtio and MSI-X have them for an address. */
void write_address(uint64_t register_low, uint64_t value)
{
    memory_write(4, register_low, value);
    memory_write(4, register_low + 4, value >> 32);
}
