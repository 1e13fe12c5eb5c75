/* SPDX-License-Identifier: Apache-2.0
 *
 * idle_neighbour: a client that does nothing any more holds the whole pool as cached prefixes;
 * another one, with a space of its own, asks for 90 % of the pool. Limit 100 ms.
 */
#include <stdio.h>

#include "common/bench.h"
#include "common/engine.h"

#define POOL_BLOCKS 262144u /* 1 GiB */
#define ROUNDS      9

static double round_ns(const char *socket_path, int round)
{
    struct kvmem_space_options options = kvb_space_options("idle");
    struct kvmem_client *idle = kvb_connect(socket_path, "idle");
    struct kvmem_client *hungry = kvb_connect(socket_path, "hungry");
    struct kvmem_space *cached, *wanted;
    char name[32];
    uint64_t start, end;

    kvb_check(kvmem_space_open(idle, &options, &cached), "kvmem_space_open");
    kvb_fill_with_entries(idle, cached, POOL_BLOCKS, 0);
    for (int i = 0; i < 4; i++)
        kvb_check(kvmem_client_dispatch(idle, 0), "kvmem_client_dispatch");
    snprintf(name, sizeof(name), "hungry-%d", round);
    options.name = name;
    kvb_check(kvmem_space_open(hungry, &options, &wanted), "kvmem_space_open");
    start = kvb_now_ns();
    kvb_check(kvmem_space_reserve(wanted, POOL_BLOCKS / 10 * 9, 5000000000), "kvmem_space_reserve");
    end = kvb_now_ns();
    kvmem_client_close(hungry);
    kvmem_client_close(idle);
    return (double)(end - start);
}

int main(void)
{
    static struct kvb_row row = {.bench = "idle_neighbour",
                                 .metric = "ns until 90 % of a full pool of 262,144 blocks is had",
                                 .limit = 100e6,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvb_daemon daemon;

    kvb_daemon_start(&daemon, "1GiB");
    for (int i = 0; i < ROUNDS; i++)
        kvb_add(&row.own, round_ns(daemon.socket_path, i));
    kvb_daemon_stop(&daemon);
    return kvb_report(&row);
}
