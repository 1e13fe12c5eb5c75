#!/usr/bin/env python3
"""Speaks kvmem's protocol without the library: hello, a space, blocks written and published by one
connection, looked up and mapped read-only by another, and the counters that show it.

The numbers below come from libkvmem/wire/PROTOCOL.md and nowhere else.
"""

import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time

HELLO, SPACE_OPEN, BLOCKS_REQUEST, SEGMENT_MAP, SEGMENT_UNMAPPED = 1, 2, 4, 6, 7
LOOKUP, PUBLISH, STATS, GOODBYE = 8, 9, 13, 18
WELCOME, ERROR, DONE, SPACE_OPENED, GRANT, SEGMENT_FDS = 64, 65, 66, 67, 68, 69
LOOKUP_REPLY, PUBLISH_REPLY, STATS_REPLY = 70, 71, 73
HEADER = struct.Struct("<IIII")  # opcode, length, serial, descriptors received
BF16, PAGE_HEAD_TOKEN, BLOCK_TOKENS = 1, 1, 16


def check(condition, *what):
    if not condition:
        raise AssertionError(" ".join(map(str, what)))


class Client:
    """A connection. Requests are answered in turn, so a call waits for its reply."""

    def __init__(self, path, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(5)
        self.socket.connect(path)
        self.serial, self.received = 0, 0
        body = struct.pack("<IIII16s32s", 1, 1, 0, 0, b"", name.encode())
        reply, fds = self.call(HELLO, body, WELCOME)
        version, _, self.number, devices = struct.unpack_from("<IIII", reply)
        device_bytes, self.granule, self.status_bytes = struct.unpack_from("<QQQ", reply, 32)
        check(version == 1 and devices == 1 and len(fds) == 1, "welcome", version, devices, fds)
        check(device_bytes == 64 << 20, "device", device_bytes)
        check(os.fstat(fds[0]).st_size == self.status_bytes, "status page")
        os.close(fds[0])

    def call(self, opcode, body, expected):
        self.serial += 1
        header = HEADER.pack(opcode, HEADER.size + len(body), self.serial, self.received)
        self.socket.send(header + body)
        data, fds, flags, _ = socket.recv_fds(self.socket, 65536, 16)
        self.received += len(fds)
        got, length, serial, fd_count = HEADER.unpack_from(data)
        check(length == len(data) and fd_count == len(fds) and not flags & socket.MSG_CTRUNC,
              "frame of", got)
        if got == ERROR:
            code, refused = struct.unpack_from("<iI", data, HEADER.size)
            raise AssertionError(f"{refused} refused, {code}: {data[24:].rstrip(bytes(1))}")
        check((got, serial) == (expected, self.serial), "answer", got, serial, "to", opcode)
        return data[HEADER.size:], fds


def aligned(offset):
    """Tails begin at the next multiple of 8 from the start of the datagram."""
    return (offset + HEADER.size + 7) // 8 * 8 - HEADER.size


class Space:
    def __init__(self, client, name):
        self.client = client
        # 4 layers, 2 heads of 32 for K and V: 16 KiB a block of 16 tokens.
        group = struct.pack("<IIIIIIIIII", 4, 2, 32, 32, BF16, BF16, 0, 0, 0, 0)
        body = struct.pack("<64s32s32sQIIIIII", name, b"python", b"model", 0, PAGE_HEAD_TOKEN,
                           BLOCK_TOKENS, 1, 0, 0, 1)
        reply, _ = client.call(SPACE_OPEN, body + group, SPACE_OPENED)
        self.id, self.blocks, self.segment_bytes, self.stride = struct.unpack_from("<IIQQ", reply)
        check(self.blocks * self.stride == self.segment_bytes, "stride", self.stride)
        self.block_bytes = 4 * 2 * 2 * 32 * 2 * BLOCK_TOKENS

    def blocks_get(self, count):
        """Blocks to write: first index, generation of their segment, and its descriptor."""
        body = struct.pack("<IIII", self.id, 0, count, 0)
        reply, fds = self.client.call(BLOCKS_REQUEST, body, GRANT)
        _, flags, _, segments, ranges = struct.unpack_from("<IIQII", reply)
        check(flags == 1 and segments == 1 and ranges >= 1 and len(fds) == 1, "grant")
        at = aligned(24)
        slot, generation, segment_flags, _ = struct.unpack_from("<IIII", reply, at)
        first, granted = struct.unpack_from("<II", reply, aligned(at + 16 * segments))
        check(segment_flags & 1 and granted >= count and first // self.blocks == slot, "range")
        return first, generation, fds[0]

    def publish(self, index, name):
        record = struct.pack("<32sIIIIQ", name, index, BLOCK_TOKENS, 0, 0, 0)
        reply, _ = self.client.call(PUBLISH, struct.pack("<II", self.id, 1) + record,
                                    PUBLISH_REPLY)
        return struct.unpack_from("<I", reply, aligned(8))[0]

    def lookup(self, names):
        body = struct.pack("<IIII", self.id, 0, 0, len(names)) + b"".join(names)
        reply, _ = self.client.call(LOOKUP, body, LOOKUP_REPLY)
        _, hits, foreign, fences, records = struct.unpack_from("<IIIII", reply)
        check(hits == records and fences == 0, "lookup_reply", hits, records, fences)
        found = [struct.unpack_from("<II", reply, aligned(24) + 8 * i) for i in range(records)]
        return found, foreign

    def map_read_only(self, index, generation):
        slot = index // self.blocks
        body = struct.pack("<IIII", self.id, 1, slot, generation)
        _, fds = self.client.call(SEGMENT_MAP, body, SEGMENT_FDS)
        check(len(fds) == 1, "segment_fds")
        memory = mmap.mmap(fds[0], self.segment_bytes, prot=mmap.PROT_READ)
        os.close(fds[0])
        return memory


def stats(client):
    reply, _ = client.call(STATS, struct.pack("<II", 0, 0), STATS_REPLY)
    return struct.unpack(f"<{len(reply) // 8}Q", reply)


def conversation(path):
    writer, reader = Client(path, "writer"), Client(path, "reader")
    check(writer.number != reader.number, "client numbers")
    written, read = Space(writer, b"space"), Space(reader, b"space")
    check(written.id == read.id, "one space for both")

    index, generation, fd = written.blocks_get(4)
    content = bytes(range(256)) * (written.block_bytes // 256)
    with mmap.mmap(fd, written.segment_bytes) as memory:
        offset = index % written.blocks * written.stride
        memory[offset:offset + len(content)] = content
    os.close(fd)
    name, other = b"\x5a" * 32, b"\xa5" * 32
    check(read.lookup([name]) == ([], 0), "found before it was published")
    check(written.publish(index, name) == 0, "published")

    found, foreign = read.lookup([name, other])
    check(found == [(index, generation)] and foreign == 1, "found", found, foreign)
    memory = read.map_read_only(*found[0])
    offset = found[0][0] % read.blocks * read.stride
    check(memory[offset:offset + len(content)] == content, "other bytes than were written")
    try:
        memory[offset] = 0
        raise AssertionError("a read-only mapping was written")
    except TypeError:
        pass

    now = stats(reader)
    check(now[4] == 2 and now[5] == 1 and now[6] == 1, "clients, spaces, segments", now)
    check(now[9] == 1 and now[13] == 0, "entries and leaked blocks", now)
    check(now[20] == 1, "blocks found that another published", now)
    memory.close()
    for client in (reader, writer):
        client.call(GOODBYE, struct.pack("<II", 0, 0), DONE)


def main():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    build = os.environ.get("KVMEM_BUILD_DIR", os.path.join(root, "build", "release"))
    kvmemd = os.path.join(build, "bin", "kvmemd")
    with tempfile.TemporaryDirectory(prefix="kvmem-test-") as directory:
        path = os.path.join(directory, "kvmemd.sock")
        daemon = subprocess.Popen([kvmemd, "--device-bytes", "64MiB", "--socket", path],
                                  stderr=subprocess.PIPE, text=True)
        try:
            line = daemon.stderr.readline()
            check(line.startswith("kvmemd: ready: "), "not ready:", line)
            conversation(path)
            daemon.terminate()
            check(daemon.wait(5) == 0, "exit status", daemon.returncode)
        finally:
            daemon.kill()
            daemon.wait()
            daemon.stderr.close()
    print("hello, space, publish, lookup, read-only mapping, stats: as PROTOCOL.md says")


if __name__ == "__main__":
    start = time.monotonic()
    main()
    sys.exit(0 if time.monotonic() - start < 30 else 1)
