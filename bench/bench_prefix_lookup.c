/* SPDX-License-Identifier: Apache-2.0
 *
 * prefix_lookup: 128 random hits among a million entries, leases taken, daemon and client on
 * one processor. The peer is a bare blocking ping-pong of datagrams of the same sizes between
 * two processes on that processor; the limit is the peer + 13 µs.
 */
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bench.h"
#include "common/engine.h"
#include "wire/protocol.h"

#define ENTRIES       1000000u
#define NAMES         128u
#define ROUNDS        401
#define ADDED_NS      13000.0
#define REQUEST_BYTES (sizeof(struct kvi_msg_lookup) + NAMES * sizeof(struct kvi_rec_name))
#define REPLY_BYTES   (sizeof(struct kvi_msg_lookup_reply) + NAMES * sizeof(struct kvi_rec_hit))

static uint8_t datagram[REQUEST_BYTES];

static pid_t start_echo(int *end)
{
    int ends[2];
    pid_t child;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends))
        kvb_fail("socketpair");
    child = fork();
    if (child == 0) {
        close(ends[0]);
        while (read(ends[1], datagram, sizeof(datagram)) > 0)
            if (write(ends[1], datagram, REPLY_BYTES) < 0)
                break;
        _exit(0);
    }
    close(ends[1]);
    *end = ends[0];
    return child;
}

static double ping_pong_ns(int end)
{
    uint64_t start = kvb_now_ns();

    if (write(end, datagram, REQUEST_BYTES) < 0 || read(end, datagram, sizeof(datagram)) < 0)
        kvb_fail("ping-pong");
    return (double)(kvb_now_ns() - start);
}

static double lookup_ns(struct kvmem_client *client, struct kvmem_space *space, uint64_t *random)
{
    struct kvmem_name names[NAMES];
    int32_t blocks[NAMES];
    uint64_t start, end;
    int hits;

    for (uint32_t i = 0; i < NAMES; i++)
        names[i] = kvb_name(kvb_random(random) % ENTRIES);
    start = kvb_now_ns();
    hits = kvmem_prefix_lookup(space, NAMES, names, blocks, NULL);
    end = kvb_now_ns();
    if (hits != (int)NAMES)
        kvb_fail("%d hits of %u", hits, NAMES);
    kvb_check(kvmem_prefix_release(space, NAMES, blocks, kvmem_fence_none()), "release");
    kvb_check(kvmem_client_dispatch(client, 0), "kvmem_client_dispatch");
    return (double)(end - start);
}

int main(void)
{
    static struct kvb_row row = {.bench = "prefix_lookup",
                                 .metric = "ns a look-up of 128 names, 1 M entries",
                                 .peer = "ping-pong of the same sizes; limit = peer + 13,000",
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvmem_space_options options = kvb_space_options("lookup");
    struct kvb_daemon daemon;
    struct kvmem_client *client;
    struct kvmem_space *space;
    uint64_t random = 7;
    pid_t echo;
    int end;

    kvb_pin_to_core(0);
    kvb_daemon_start(&daemon, "4GiB"); /* 1,048,576 blocks, none of them touched */
    echo = start_echo(&end);
    client = kvb_connect(daemon.socket_path, "lookup");
    kvb_check(kvmem_space_open(client, &options, &space), "kvmem_space_open");
    kvb_fill_with_entries(client, space, ENTRIES, 0);
    for (int i = 0; i < 2000; i++) /* every segment mapped once, before it is timed */
        lookup_ns(client, space, &random);
    for (int i = 0; i < ROUNDS; i++) {
        kvb_add(&row.own, lookup_ns(client, space, &random));
        kvb_add(&row.peer_samples, ping_pong_ns(end));
    }
    kvmem_client_close(client);
    close(end);
    waitpid(echo, NULL, 0);
    kvb_daemon_stop(&daemon);
    row.limit = kvb_quantile(&row.peer_samples, 0.5) + ADDED_NS;
    return kvb_report(&row);
}
