/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU's qtest and QMP, both lines of text over a socket.
 * Whatever they refuse ends this program.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "end.h"
#include "qtest.h"

struct channel {
    int fd;
    char text[65536];
    size_t n, taken;
};

static struct channel qtest_channel, qmp_channel;

static int open_channel(struct channel *c)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) {
        die("socketpair: %s", strerror(errno));
    }
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    c->fd = ends[0];
    return ends[1];
}

int open_qtest(void)
{
    return open_channel(&qtest_channel);
}

int open_qmp(void)
{
    return open_channel(&qmp_channel);
}

/* Read one line, without its end; what follows it stays for the next call. */
static char *read_line(struct channel *c)
{
    char *end;

    memmove(c->text, c->text + c->taken, c->n - c->taken);
    c->n -= c->taken;
    while (!(end = memchr(c->text, '\n', c->n))) {
        size_t room = sizeof(c->text) - c->n;
        ssize_t n = room ? read(c->fd, c->text + c->n, room) : 0;

        if (n <= 0) {
            die_of_qemu();
        }
        c->n += n;
    }
    *end = 0;
    c->taken = end + 1 - c->text;
    return c->text;
}

static void send_text(struct channel *c, const char *text)
{
    size_t n = strlen(text);

    while (n) {
        ssize_t sent = send(c->fd, text, n, MSG_NOSIGNAL);

        if (sent <= 0) {
            die_of_qemu();
        }
        text += sent;
        n -= sent;
    }
}

const char *qmp(const char *command)
{
    const char *answer;

    send_text(&qmp_channel, command);
    send_text(&qmp_channel, "\n");
    do {
        answer = read_line(&qmp_channel);
    } while (!strstr(answer, "\"return\"") && !strstr(answer, "\"error\""));
    if (strstr(answer, "\"error\"")) {
        die("QMP answers %.300s", answer);
    }
    return answer;
}

void greet_qmp(void)
{
    read_line(&qmp_channel);
    qmp("{\"execute\":\"qmp_capabilities\"}");
}

__attribute__((format(printf, 1, 2)))
static uint64_t qtest(const char *format, ...)
{
    char text[128];
    const char *answer;
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof(text) - 1, format, ap);
    va_end(ap);
    strcat(text, "\n");
    send_text(&qtest_channel, text);
    do {
        answer = read_line(&qtest_channel);
    } while (!strncmp(answer, "IRQ", 3));
    if (strncmp(answer, "OK", 2)) {
        die("qtest answers \"%s\" to %.*s", answer, (int)strcspn(text, "\n"),
            text);
    }
    return strtoull(answer + 2, NULL, 0);
}

static char letter(unsigned size)
{
    return size == 1 ? 'b' : size == 2 ? 'w' : size == 4 ? 'l' : 'q';
}

uint64_t memory_read(unsigned size, uint64_t address)
{
    return qtest("read%c 0x%" PRIx64, letter(size), address);
}

void memory_write(unsigned size, uint64_t address, uint32_t value)
{
    qtest("write%c 0x%" PRIx64 " 0x%" PRIx32, letter(size), address, value);
}

uint32_t port_read(unsigned size, unsigned port)
{
    return qtest("in%c 0x%x", letter(size), port);
}

void port_write(unsigned size, unsigned port, uint32_t value)
{
    qtest("out%c 0x%x 0x%" PRIx32, letter(size), port, value);
}
