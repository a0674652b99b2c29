/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Kicks and interrupts by QEMU's own eventfds,
 * as KVM does them.
 */
#ifndef EVENTFD_H
#define EVENTFD_H

void find_eventfds(void);

#endif
