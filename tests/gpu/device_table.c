/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables in device memory against kvmem_table_padded, over random steps: appends, truncations,
 * sequences that come, go, fork and change places, and other numbers of rows. What is compared was
 * copied behind the update on the same stream; in bursts several updates go unseen.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

#define ROWS        64u
#define BLOCK_LIMIT 48u
#define STEPS       2500u
#define POOL_BLOCKS 6000u

struct twin {
    struct kvt_daemon daemon;
    struct kvt_gpu_engine engine;
    struct kvmem_device_table *table;
    struct kvmem_device_table_info info;
    struct kvmem_seq seqs[ROWS];
    uint32_t rows;
    uint64_t random;
    int32_t *tables; /* pinned copies of what the device has */
    int32_t *lengths;
    uint64_t compared;
};

static uint32_t below(struct twin *twin, uint32_t limit)
{
    return (uint32_t)(kvt_random(&twin->random) % limit);
}

static uint64_t tokens_of(struct twin *twin, uint32_t row)
{
    struct kvmem_seq_info info = {.size = sizeof(info)};

    kvt_gpu_must(kvmem_seq_info(twin->engine.space, twin->seqs[row], &info), "seq_info");
    return info.appended_tokens;
}

static void change_row(struct twin *twin, uint32_t row)
{
    struct kvmem_space *space = twin->engine.space;
    struct kvmem_fence fence = kvmem_fence_stream(twin->engine.stream);
    uint64_t tokens = tokens_of(twin, row);
    uint32_t more = 1 + below(twin, 40), other = below(twin, ROWS);
    struct kvmem_seq young;

    switch (below(twin, 8)) {
    case 0: /* take tokens back */
        kvt_gpu_must(kvmem_seq_truncate(space, twin->seqs[row],
                                        tokens ? below(twin, (uint32_t)tokens) : 0, fence),
                     "seq_truncate");
        return;
    case 1: /* another sequence in its place, new or forked */
        if (below(twin, 2))
            kvt_gpu_must(kvmem_seq_create(space, &young), "seq_create");
        else
            kvt_gpu_must(kvmem_seq_fork(space, twin->seqs[other], &young), "seq_fork");
        kvt_gpu_seq_free(&twin->engine, twin->seqs[row], fence);
        twin->seqs[row] = young;
        return;
    case 2: /* change places */
        young = twin->seqs[row];
        twin->seqs[row] = twin->seqs[other];
        twin->seqs[other] = young;
        return;
    default:
        if (tokens + more <= BLOCK_LIMIT * KVT_GPU_BLOCK_TOKENS)
            kvt_gpu_must(kvmem_seq_append(space, twin->seqs[row], more, fence), "seq_append");
    }
}

static void compare(struct twin *twin, uint32_t step)
{
    static int32_t tables[ROWS * BLOCK_LIMIT], lengths[ROWS];
    void *stream = twin->engine.stream;
    size_t table_bytes = sizeof(tables), length_bytes = sizeof(lengths);

    kvt_gpu_copy(twin->tables, twin->info.tables, table_bytes, stream);
    kvt_gpu_copy(twin->lengths, twin->info.lengths, length_bytes, stream);
    kvt_gpu_sync(stream);
    memset(lengths, 0, sizeof(lengths));
    kvt_gpu_must(kvmem_table_padded(twin->engine.space, 0, twin->rows, twin->seqs, BLOCK_LIMIT,
                                    tables, lengths),
                 "table_padded");
    for (uint32_t row = 0; row < ROWS; row++)
        KVT_REQUIRE(twin->lengths[row] == lengths[row], "step %u, %u rows: length %u is %d, not %d",
                    step, twin->rows, row, twin->lengths[row], lengths[row]);
    for (uint32_t i = 0; i < twin->rows * BLOCK_LIMIT; i++)
        KVT_REQUIRE(twin->tables[i] == tables[i], "step %u: cell %u of row %u is %d, not %d", step,
                    i % BLOCK_LIMIT, i / BLOCK_LIMIT, twin->tables[i], tables[i]);
    twin->compared++;
}

/* An update, waiting for the device when it is too far behind. */
static void update(struct twin *twin)
{
    int rc;

    while ((rc = kvmem_device_table_update(twin->table, twin->rows, twin->seqs,
                                           twin->engine.stream)) == KVMEM_E_BUSY)
        kvt_gpu_sync(twin->engine.stream);
    kvt_gpu_must(rc, "device_table_update");
}

static void step(struct twin *twin, uint32_t number)
{
    for (uint32_t i = below(twin, 2 * ROWS); i > 0; i--)
        change_row(twin, below(twin, ROWS));
    if (below(twin, 10) == 0)
        twin->rows = 1 + below(twin, ROWS);
    update(twin);
    if (below(twin, 16) != 0) /* else the next update comes at once */
        compare(twin, number);
    kvt_gpu_must(kvmem_client_dispatch(twin->engine.client, 0), "client_dispatch");
    kvt_gpu_must(kvt_gpu_reserve(&twin->engine, 512, KVT_ANSWER_LIMIT), "space_reserve");
}

static void begin(struct twin *twin)
{
    struct kvt_gpu_engine_options options = {.name = "table",
                                             .layers = 1,
                                             .seed = kvt_seed("device_table"),
                                             .refill_blocks = POOL_BLOCKS,
                                             .low_water_blocks = 512};
    struct kvmem_device_table_options table = {
        .size = sizeof(table), .row_limit = ROWS, .block_limit = BLOCK_LIMIT};

    twin->random = options.seed;
    twin->rows = ROWS;
    kvt_gpu_daemon_start(&twin->daemon, NULL, "4GiB", NULL);
    options.socket_path = twin->daemon.socket_path;
    kvt_gpu_engine_open(&twin->engine, &options);
    kvt_gpu_must(kvt_gpu_reserve(&twin->engine, POOL_BLOCKS, KVT_ANSWER_LIMIT), "space_reserve");
    kvt_gpu_must(kvmem_device_table_create(twin->engine.space, &table, &twin->table),
                 "device_table_create");
    twin->info.size = sizeof(twin->info);
    kvt_gpu_must(kvmem_device_table_info(twin->table, &twin->info), "device_table_info");
    kvt_gpu_must(kvmem_seqs_create(twin->engine.space, ROWS, twin->seqs), "seqs_create");
    twin->tables = kvt_gpu_host_alloc(ROWS * BLOCK_LIMIT * sizeof(int32_t));
    twin->lengths = kvt_gpu_host_alloc(ROWS * sizeof(int32_t));
}

static void case_equal_to_padded_tables(void)
{
    static struct twin twin;
    struct kvmem_device_table_info after = {.size = sizeof(after)};

    begin(&twin);
    KVT_REQUIRE(twin.info.block_limit == BLOCK_LIMIT && twin.info.row_limit == ROWS,
                "a table of %u by %u", twin.info.row_limit, twin.info.block_limit);
    for (uint32_t i = 0; i < STEPS; i++)
        step(&twin, i);
    kvt_gpu_must(kvmem_device_table_info(twin.table, &after), "device_table_info");
    KVT_REQUIRE(after.tables == twin.info.tables && after.lengths == twin.info.lengths,
                "the addresses changed after %" PRIu64 " updates", after.updates);
    KVT_REQUIRE(after.updates >= STEPS && twin.compared >= 2000,
                "%" PRIu64 " updates, %" PRIu64 " compared", after.updates, twin.compared);
    printf("  %" PRIu64 " updates, %" PRIu64 " compared, %" PRIu64 " cells written\n",
           after.updates, twin.compared, after.cells);
    kvmem_device_table_destroy(twin.table);
    kvt_gpu_must(
        kvmem_seqs_free(twin.engine.space, ROWS, twin.seqs, kvmem_fence_stream(twin.engine.stream)),
        "seqs_free");
    kvt_gpu_engine_close(&twin.engine);
    kvt_daemon_end_observed(&twin.daemon);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {
        {"equal_to_padded_tables", case_equal_to_padded_tables, 0}, {NULL, NULL, 0}};

    return kvt_cases_main(argc, argv, cases, NULL);
}
