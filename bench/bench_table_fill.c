/* SPDX-License-Identifier: Apache-2.0
 *
 * table_fill: block tables of 256 sequences of ragged length as int32 [256, 512], against a
 * memcpy of the same bytes. Every fill is compared with the tables of the sequences first.
 */
#include <string.h>

#include "common/bench.h"
#include "common/engine.h"

#define SEQUENCES  256u
#define MAX_BLOCKS 512u
#define REPEATS    64

static int32_t tables[SEQUENCES * MAX_BLOCKS], copy[SEQUENCES * MAX_BLOCKS];
static int32_t lengths[SEQUENCES];
static struct kvmem_seq seqs[SEQUENCES];

static double fill_ns(const struct kvmem_space *space)
{
    uint64_t start = kvb_now_ns();

    for (int i = 0; i < REPEATS; i++)
        kvb_check(kvmem_table_padded(space, 0, SEQUENCES, seqs, MAX_BLOCKS, tables, lengths),
                  "kvmem_table_padded");
    return (double)(kvb_now_ns() - start) / REPEATS;
}

static double memcpy_ns(void)
{
    uint64_t start = kvb_now_ns();

    for (int i = 0; i < REPEATS; i++) {
        memcpy(copy, tables, sizeof(tables));
        __asm__ volatile("" : : "r"(copy) : "memory");
    }
    return (double)(kvb_now_ns() - start) / REPEATS;
}

static void verify(const struct kvmem_space *space)
{
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        const int32_t *blocks;
        int count = kvmem_table_view(space, 0, seqs[s], &blocks);

        for (uint32_t i = 0; i < MAX_BLOCKS; i++)
            if (tables[s * MAX_BLOCKS + i] != (i < (uint32_t)count ? blocks[i] : -1))
                kvb_fail("row %u, column %u is wrong", s, i);
    }
}

int main(void)
{
    static struct kvb_row row = {.bench = "table_fill",
                                 .metric = "ns a table of int32 [256, 512]",
                                 .peer = "memcpy of the same bytes",
                                 .limit = 1.5,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};
    struct kvmem_space_options options = kvb_space_options("table_fill");
    struct kvmem_client *client;
    struct kvmem_space *space;
    uint64_t random = 4;

    kvb_embed(131072, &options, &client, &space);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        seqs[i] = kvb_sequence(
            client, space, 1 + (uint32_t)(kvb_random(&random) % (MAX_BLOCKS * KVB_BLOCK_TOKENS)));
    memset(tables, 0x55, sizeof(tables));
    fill_ns(space);
    verify(space);
    for (int i = 0; i < KVB_SAMPLES; i++) {
        kvb_add(&row.own, fill_ns(space));
        kvb_add(&row.peer_samples, memcpy_ns());
    }
    kvmem_client_close(client);
    return kvb_report(&row);
}
