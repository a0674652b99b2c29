/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The device on its PCI bus: where its registers are,
 * and its MSI-X vectors.
 */
#ifndef PCI_H
#define PCI_H

#include <stdint.h>

/* Addresses in guest memory. */
struct pci_device {
    uint64_t common, notify, config, msix_table;
    uint32_t notify_multiplier;
    unsigned msix_cap;          /* in configuration space */
};

extern struct pci_device pci;

void find_device(void);
unsigned msix_vectors(void);
void enable_msix(void);
void set_msix_vector(unsigned vector, uint64_t address);
void write_address(uint64_t register_low, uint64_t value);

#endif
