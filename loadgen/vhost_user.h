/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The front-end's side of the vhost-user protocol, by QEMU's specification of
 * it.  Whatever the back-end refuses ends this program.
 */
#ifndef VHOST_USER_H
#define VHOST_USER_H

#include <stdbool.h>
#include <stdint.h>

enum request {
    GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8, SET_VRING_ADDR = 9, SET_VRING_BASE = 10,
    SET_VRING_KICK = 12, SET_VRING_CALL = 13, GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16, GET_QUEUE_NUM = 17, SET_VRING_ENABLE = 18,
    GET_CONFIG = 24
};

enum { F_PROTOCOL_FEATURES = 30 };                      /* a feature */
enum { PROTOCOL_F_MQ = 0, PROTOCOL_F_REPLY_ACK = 3, PROTOCOL_F_CONFIG = 9 };

/* What follows a message's header; a single number is an uint64_t. */
struct memory_table {
    uint32_t regions, padding;      /* one region, here */
    uint64_t guest_address, size, our_address, offset_in_file;
};

struct vring_number {               /* of a queue: entries, index, on or off */
    uint32_t queue, value;
};

struct vring_addresses {            /* in our memory */
    uint32_t queue, flags;
    uint64_t descriptors, used, available, log;
};

struct capacity_config {            /* the beginning of the device's */
    uint32_t offset, size, flags;
    uint32_t capacity[2];           /* the low half first */
};

/* Connects; returns the socket on which the back-end shall listen. */
int open_vhost_user(void);
bool vhost_user_is_closed(void);

/* Send one of this size, and wait for the answer, which has the same. */
void exchange(enum request request, void *payload, uint32_t size);
uint64_t get_number(enum request request);

/* Send, and wait until the back-end has done it.  fd: goes with it, or -1. */
void set(enum request request, const void *payload, uint32_t size, int fd);
void set_number(enum request request, uint64_t number, int fd);

/* Nothing is done with it that could be waited for. */
void set_protocol_features(uint64_t protocol_features);

#endif
