/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The front-end's side of the vhost-user protocol, by QEMU's specification of
 * it.  Whatever the back-end refuses ends this program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "end.h"
#include "options.h"
#include "vhost_user.h"

enum flags { VERSION = 1, REPLY = 1 << 2, NEED_REPLY = 1 << 3 };

struct header {
    uint32_t request, flags, size;
};

static const char *const names[] = {
    [GET_FEATURES] = "GET_FEATURES", [SET_FEATURES] = "SET_FEATURES",
    [SET_OWNER] = "SET_OWNER", [SET_MEM_TABLE] = "SET_MEM_TABLE",
    [SET_VRING_NUM] = "SET_VRING_NUM", [SET_VRING_ADDR] = "SET_VRING_ADDR",
    [SET_VRING_BASE] = "SET_VRING_BASE", [SET_VRING_KICK] = "SET_VRING_KICK",
    [SET_VRING_CALL] = "SET_VRING_CALL",
    [GET_PROTOCOL_FEATURES] = "GET_PROTOCOL_FEATURES",
    [SET_PROTOCOL_FEATURES] = "SET_PROTOCOL_FEATURES",
    [GET_QUEUE_NUM] = "GET_QUEUE_NUM",
    [SET_VRING_ENABLE] = "SET_VRING_ENABLE", [GET_CONFIG] = "GET_CONFIG",
};

static int connection = -1;

/*
 * A connection that waits to be accepted: there is no file for the socket, and
 * no time at which it is not there yet.  Should the back-end end first, the
 * connection ends with it, once our copy of the listening socket is closed.
 */
int open_vhost_user(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    socklen_t size = sizeof(address.sun_family);    /* the kernel names it */
    struct timeval limit = {
        opt.timeout, (opt.timeout - (uint64_t)opt.timeout) * 1e6
    };
    int listening = socket(AF_UNIX, SOCK_STREAM, 0);

    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listening < 0 || connection < 0 ||
        bind(listening, (struct sockaddr *)&address, size) ||
        listen(listening, 1)) {
        die("a socket for vhost-user: %s", strerror(errno));
    }
    size = sizeof(address);
    if (getsockname(listening, (struct sockaddr *)&address, &size) ||
        connect(connection, (struct sockaddr *)&address, size) ||
        setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit,
                   sizeof(limit))) {
        die("a socket for vhost-user: %s", strerror(errno));
    }
    return listening;
}

bool vhost_user_is_closed(void)
{
    char byte;
    ssize_t n = recv(connection, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return n == 0 || (n < 0 && errno != EAGAIN);
}

static void send_message(enum request request, enum flags flags,
                         const void *payload, uint32_t size, int fd)
{
    struct header header = { request, VERSION | flags, size };
    struct iovec parts[] = {
        { &header, sizeof(header) }, { (void *)payload, size }
    };
    union {
        struct cmsghdr first;
        char space[CMSG_SPACE(sizeof(fd))];
    } control = { .first = {
        CMSG_LEN(sizeof(fd)), SOL_SOCKET, SCM_RIGHTS
    } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };

    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.first), &fd, sizeof(fd));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }
    if (sendmsg(connection, &message, MSG_NOSIGNAL) !=
        (ssize_t)(sizeof(header) + size)) {
        die_of_qemu();
    }
}

static void receive(enum request request, void *buffer, uint32_t size)
{
    ssize_t n = recv(connection, buffer, size, MSG_WAITALL);

    if (n < 0 && errno == EAGAIN) {
        die("%s does not answer %s for %g s", opt.qemu, names[request],
            opt.timeout);
    }
    if (n != size) {
        die_of_qemu();
    }
}

static void receive_answer(enum request request, void *payload, uint32_t size)
{
    struct header header;

    receive(request, &header, sizeof(header));
    if (header.request != request || header.size != size ||
        header.flags != (VERSION | REPLY)) {
        die("%s answers %s by message %" PRIu32 ", flags 0x%" PRIx32
            ", %" PRIu32 " bytes; %d, 0x%x, %" PRIu32 " expected", opt.qemu,
            names[request], header.request, header.flags, header.size,
            request, VERSION | REPLY, size);
    }
    receive(request, payload, size);
}

void exchange(enum request request, void *payload, uint32_t size)
{
    send_message(request, 0, payload, size, -1);
    receive_answer(request, payload, size);
}

uint64_t get_number(enum request request)
{
    uint64_t number;

    send_message(request, 0, NULL, 0, -1);
    receive_answer(request, &number, sizeof(number));
    return number;
}

void set(enum request request, const void *payload, uint32_t size, int fd)
{
    uint64_t failed;

    send_message(request, NEED_REPLY, payload, size, fd);
    receive_answer(request, &failed, sizeof(failed));
    if (failed) {
        die("%s refuses %s", opt.qemu, names[request]);
    }
}

void set_number(enum request request, uint64_t number, int fd)
{
    set(request, &number, sizeof(number), fd);
}

void set_protocol_features(uint64_t protocol_features)
{
    send_message(SET_PROTOCOL_FEATURES, 0, &protocol_features,
                 sizeof(protocol_features), -1);
}
