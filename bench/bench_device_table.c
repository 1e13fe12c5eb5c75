/* SPDX-License-Identifier: Apache-2.0
 *
 * device_table: what bringing the tables of 256 sequences on the device up to date costs the CPU
 * after a decode step, on the host device (a GPU's driver calls, one launch and one stream write,
 * come on top), against filling int32 [256, 512] anew. The table is compared with the sequences
 * after each sample.
 */
#include <string.h>

#include <kvmem/device_table.h>

#include "common/bench.h"
#include "common/engine.h"

#define SEQUENCES  256u
#define MAX_BLOCKS 512u
#define STEPS      16

static int32_t tables[SEQUENCES * MAX_BLOCKS];
static int32_t lengths[SEQUENCES];
static struct kvmem_seq seqs[SEQUENCES];

struct work {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_device_table *table;
    struct kvmem_device_table_info info;
};

static void append(const struct work *w)
{
    while (kvmem_seqs_append(w->space, SEQUENCES, seqs, NULL, kvmem_fence_none()) < 0)
        kvb_check(kvmem_client_dispatch(w->client, 1000000), "kvmem_client_dispatch");
    kvb_check(kvmem_client_dispatch(w->client, 0), "kvmem_client_dispatch");
}

static double update_us(const struct work *w)
{
    uint64_t spent = 0;

    for (int i = 0; i < STEPS; i++) {
        uint64_t start;

        append(w);
        start = kvb_now_ns();
        kvb_check(kvmem_device_table_update(w->table, SEQUENCES, seqs, NULL),
                  "kvmem_device_table_update");
        spent += kvb_now_ns() - start;
    }
    return (double)spent / STEPS / 1e3;
}

static double fill_us(const struct work *w)
{
    uint64_t start = kvb_now_ns();

    for (int i = 0; i < STEPS; i++)
        kvb_check(kvmem_table_padded(w->space, 0, SEQUENCES, seqs, MAX_BLOCKS, tables, lengths),
                  "kvmem_table_padded");
    return (double)(kvb_now_ns() - start) / STEPS / 1e3;
}

static void verify(const struct work *w)
{
    if (memcmp(w->info.tables, tables, sizeof(tables)) != 0 ||
        memcmp(w->info.lengths, lengths, sizeof(lengths)) != 0)
        kvb_fail("the device's tables are not those of the sequences");
}

int main(void)
{
    static struct kvb_row row = {.bench = "device_table",
                                 .metric = "us an update of 256 sequences, one token each",
                                 .limit = 20,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX,
                                 .peer = "kvmem_table_padded"};
    struct kvmem_space_options options = kvb_space_options("device_table");
    struct kvmem_device_table_options shape = {
        .size = sizeof(shape), .row_limit = SEQUENCES, .block_limit = MAX_BLOCKS};
    struct work w = {.info = {.size = sizeof(w.info)}};
    uint64_t random = 5;

    kvb_embed(131072, &options, &w.client, &w.space);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        seqs[i] = kvb_sequence(w.client, w.space, 1 + (uint32_t)(kvb_random(&random) % 4096));
    kvb_check(kvmem_device_table_create(w.space, &shape, &w.table), "kvmem_device_table_create");
    kvb_check(kvmem_device_table_info(w.table, &w.info), "kvmem_device_table_info");
    update_us(&w);
    for (int i = 0; i < KVB_SAMPLES; i++) {
        kvb_add(&row.own, update_us(&w));
        kvb_add(&row.peer_samples, fill_us(&w));
        verify(&w);
    }
    kvmem_device_table_destroy(w.table);
    kvmem_client_close(w.client);
    return kvb_report(&row);
}
