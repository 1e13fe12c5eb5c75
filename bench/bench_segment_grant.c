/* SPDX-License-Identifier: Apache-2.0
 *
 * segment_grant: a connected client opens a space and has its first block, no page touched;
 * daemon and client on one processor. Limit 150 µs. The second row: the same in a space
 * that is open, without the opening.
 */
#include <stdio.h>

#include "common/bench.h"
#include "common/engine.h"

static void first_block(struct kvmem_space *space, struct kvmem_seq *seq)
{
    kvb_check(kvmem_space_reserve(space, 1, 1000000000), "kvmem_space_reserve");
    kvb_check(kvmem_seq_create(space, seq), "kvmem_seq_create");
    kvb_check(kvmem_seq_append(space, *seq, 1, kvmem_fence_none()), "kvmem_seq_append");
}

int main(void)
{
    static struct kvb_row grant = {.bench = "segment_grant",
                                   .metric = "ns from space_open to the first block",
                                   .limit = 150000,
                                   .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    static struct kvb_row refill = {.bench = "segment_grant",
                                    .metric = "ns from reserve to the first block",
                                    .limit = 150000,
                                    .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvb_daemon daemon;

    kvb_pin_to_core(0);
    kvb_daemon_start(&daemon, "1GiB");
    for (int i = 0; i < 2 * KVB_SAMPLES; i++) {
        struct kvmem_client *client = kvb_connect(daemon.socket_path, "grant");
        struct kvmem_space_options options = kvb_space_options("grant");
        struct kvmem_space *space;
        struct kvmem_seq seq;
        char name[32];
        uint64_t start = kvb_now_ns(), opened;

        snprintf(name, sizeof(name), "grant-%d", i); /* a new space: nothing to adopt */
        options.name = name;
        kvb_check(kvmem_space_open(client, &options, &space), "kvmem_space_open");
        opened = kvb_now_ns();
        first_block(space, &seq);
        kvb_add(&grant.own, (double)(kvb_now_ns() - start));
        kvb_add(&refill.own, (double)(kvb_now_ns() - opened));
        kvmem_client_close(client);
    }
    kvb_daemon_stop(&daemon);
    return kvb_report(&grant) | kvb_report(&refill);
}
