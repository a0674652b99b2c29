# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage daemon of toys: a vhost-user-blk back-end with the faults that the load generator must notice.

Usage: vhost_backend.py FAULT[:NUMBER] ARGUMENTS, those of qemu-storage-daemon
"""

import json
import mmap
import os
import re
import select
import socket
import struct
import sys
import threading

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR = 1, 2, 3, 5, 8, 9
SET_VRING_KICK, SET_VRING_CALL, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_CONFIG = 12, 13, 15, 17, 24
VERSION, REPLY, NEED_REPLY = 1, 4, 8
INDIRECT, EVENT_IDX, PROTOCOL, VERSION_1, MQ = 1 << 28, 1 << 29, 1 << 30, 1 << 32, 1 << 12
MQ_ACK_CONFIG = 1 << 0 | 1 << 3 | 1 << 9
NEXT, IS_INDIRECT = 1, 4


class Queue:
    """A split virtqueue: where its parts lie in the shared memory, and how far it is."""
    size = done = 0
    kick = call = -1
    descriptors = available = used = 0


class Backend:
    def __init__(self, fault, arguments):
        self.fault, _, number = fault.partition(":")
        self.number = int(number or 0)
        text = " ".join(arguments)
        listening = socket.socket(fileno=int(re.search(r"addr\.str=(\d+)", text)[1]))
        disk = json.loads(next(a for a in arguments if a.startswith("{")))
        self.image = os.open(disk["filename"], os.O_RDONLY if disk["read-only"] else os.O_RDWR)
        self.queues = [Queue() for _ in range(int(re.search(r"num-queues=(\d+)", text)[1]))]
        self.connection = listening.accept()[0]
        self.memory, self.base, self.requests, self.notified = None, 0, 0, 0

    # -- messages

    def message(self):
        """Handle one; false when there will be no other."""
        header, fds, _, _ = socket.recv_fds(self.connection, 12, 1)
        if not header:
            return False
        request, flags, size = struct.unpack("3I", header)
        payload = self.connection.recv(size, socket.MSG_WAITALL) if size else b""
        if (self.fault, self.number) == ("close", request):
            return False
        if (self.fault, self.number) == ("exit", request):
            print("toy: warning: hm\ntoy: no longer", file=sys.stderr)
            os._exit(1)
        if (self.fault, self.number) != ("silent", request):
            self.answer(request, flags, payload, fds)
        return True

    def answer(self, request, flags, payload, fds):
        answer = self.known(request, payload, fds)
        if answer is None and flags & NEED_REPLY:
            answer = struct.pack("Q", (self.fault, self.number) == ("refuse", request))
        if answer is not None:
            if (self.fault, self.number) == ("long", request):
                answer += b"1234"
            self.connection.sendall(struct.pack("3I", request, VERSION | REPLY, len(answer)) + answer)

    def known(self, request, payload, fds):
        """What is asked for, or None."""
        if request == GET_FEATURES:
            lacking = {"no-event-idx": EVENT_IDX, "no-protocol": PROTOCOL}.get(self.fault, 0)
            return struct.pack("Q", (INDIRECT | EVENT_IDX | PROTOCOL | VERSION_1 | MQ) & ~lacking)
        if request == GET_PROTOCOL_FEATURES:
            return struct.pack("Q", 0 if self.fault == "no-ack" else MQ_ACK_CONFIG)
        if request == GET_QUEUE_NUM:
            return struct.pack("Q", len(self.queues) - (self.fault == "few-queues"))
        if request == GET_CONFIG:
            return payload[:12] + struct.pack("Q", self.fault != "empty" and os.fstat(self.image).st_size // 512)
        if request == SET_MEM_TABLE:
            _, _, _, size, self.base, offset = struct.unpack("2I4Q", payload)
            self.memory = mmap.mmap(fds[0], offset + size)
            self.words = memoryview(self.memory).cast("H")      # struct.pack_into() writes a 0 first
            os.close(fds[0])
        elif request == SET_VRING_NUM:
            n, size = struct.unpack("2I", payload)
            self.queues[n].size = size
        elif request == SET_VRING_ADDR:
            n, _, descriptors, used, available, _ = struct.unpack("2I4Q", payload)
            q = self.queues[n]
            q.descriptors, q.used, q.available = (a - self.base for a in (descriptors, used, available))
        elif request in (SET_VRING_KICK, SET_VRING_CALL):
            setattr(self.queues[payload[0]], "kick" if request == SET_VRING_KICK else "call", fds[0])
        return None

    # -- requests

    def chain(self, q, head):
        """(address, length) of each descriptor of a request."""
        table = q.descriptors
        found, flags, follows = [], NEXT, head
        while flags & NEXT:
            address, length, flags, follows = struct.unpack_from("QIHH", self.memory, table + 16 * follows)
            if flags & IS_INDIRECT:
                table, follows, flags = address, 0, NEXT
            else:
                found.append((address, length))
        return found

    def transfer(self, q, head):
        (header, _), (data, length), (status, _) = self.chain(q, head)
        kind, _, sector = struct.unpack_from("2IQ", self.memory, header)
        if kind == 1:
            os.pwrite(self.image, self.memory[data:data + length], sector * 512)
        else:
            self.memory[data:data + length] = os.pread(self.image, length, sector * 512)
            if self.fault == "corrupt" and sector <= self.number < sector + length // 512:
                self.memory[data + (self.number - sector) * 512 + 99] ^= 1
        self.memory[status] = self.fault == "error" and self.requests == self.number

    def notify(self, q):
        self.notified += 1
        if not (self.fault == "lose" and self.notified >= self.number):
            os.eventfd_write(q.call, 1)

    def serve(self, q):
        """What is in the queue; notify for each, as EVENT_IDX lets a device."""
        while q.done != struct.unpack_from("H", self.memory, q.available + 2)[0]:
            head, = struct.unpack_from("H", self.memory, q.available + 4 + 2 * (q.done % q.size))
            self.requests += 1
            if self.requests == self.number and self.fault in ("die", "leave", "hang"):
                self.fail()
            self.transfer(q, head)
            returned = 999999 if self.fault == "descriptor" and self.requests == self.number else head
            struct.pack_into("2I", self.memory, q.used + 4 + 8 * (q.done % q.size), returned, 0)
            q.done = (q.done + 1) % 65536
            self.words[q.used // 2 + 1] = q.done
            self.words[(q.used + 4 + 8 * q.size) // 2] = q.done     # with EVENT_IDX: kick for the next
            self.notify(q)

    def fail(self):
        if self.fault == "die":
            os.kill(os.getpid(), 9)
        if self.fault == "leave":
            self.connection.shutdown(socket.SHUT_RDWR)
        threading.Event().wait()

    def run(self):
        while True:
            # nobody kicks for what came before the wish to be kicked was written, so look now and then
            kicks = [q.kick for q in self.queues if q.kick >= 0]
            ready = select.select([self.connection, *kicks], [], [], .001)[0]
            if self.connection in ready and not self.message():
                self.connection.close()
                return
            for q in self.queues:
                if q.kick in ready:
                    os.eventfd_read(q.kick)
                if q.kick >= 0:
                    self.serve(q)


def main():
    backend = Backend(sys.argv[1], sys.argv[2:])
    # as an IOThread; the main thread has nothing to do, also when that is over
    threading.Thread(target=backend.run).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
