/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies inside the device: the tails of forks, lists of blocks, zeroes; by themselves and in
 * CUDA graphs, the consumer's kernels captured once and replayed over tables that change.
 *
 *   parent  [ full ][ full ][ 8 tokens ]     256 children, each appends a token: 256 tails copied,
 *   child r [   shared    ][ 8 + its own ]   then one graph writes the new tokens and checks all
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

#define CHILDREN      256u
#define PARENT_TOKENS 40u
#define PARENT_BLOCKS 3u
#define FORK_ROUNDS   30u
#define BLOCK_LIMIT   64u
#define LIST          1300u /* three launches */
#define GRAPH_LIST    64u
#define REPLAYS       20u
#define PARENT_SEED   7u
#define CHILD_SEED    1000u
#define WORN_SEED     5u /* what is left in blocks that were used before */

struct scene {
    struct kvt_daemon daemon;
    struct kvt_gpu_engine engine;
};

static void begin(struct scene *scene, const char *name, uint32_t layers, uint32_t blocks)
{
    struct kvt_gpu_engine_options options = {
        .name = "copies", .seed = kvt_seed(name), .layers = layers};

    kvt_gpu_daemon_start(&scene->daemon, NULL, "4GiB", NULL);
    options.socket_path = scene->daemon.socket_path;
    kvt_gpu_engine_open(&scene->engine, &options);
    kvt_gpu_must(kvt_gpu_reserve(&scene->engine, blocks, KVT_ANSWER_LIMIT), "space_reserve");
}

static void end(struct scene *scene)
{
    kvt_gpu_engine_close(&scene->engine);
    kvt_daemon_end_observed(&scene->daemon);
}

/* ---- forks ---- */

struct forks {
    struct kvt_gpu_engine *engine;
    struct kvmem_device_table *table;
    struct kvt_gpu_rows rows;
    struct kvt_gpu_verdict *verdict;
    void *graph;
    struct kvmem_seq parent;
    struct kvmem_seq children[CHILDREN];
};

/* The consumer, captured once: addresses of tables and blocks never change. */
static void capture_consumer(struct forks *forks)
{
    struct kvmem_device_table_options options = {
        .size = sizeof(options), .row_limit = CHILDREN, .block_limit = BLOCK_LIMIT};
    struct kvmem_device_table_info info = {.size = sizeof(info)};
    struct kvt_gpu_engine *engine = forks->engine;

    kvt_gpu_must(kvmem_device_table_create(engine->space, &options, &forks->table),
                 "device_table_create");
    kvt_gpu_must(kvmem_device_table_info(forks->table, &info), "device_table_info");
    forks->verdict = kvt_gpu_verdict_new();
    forks->rows = (struct kvt_gpu_rows){.shape = engine->shape,
                                        .tables = info.tables,
                                        .lengths = info.lengths,
                                        .row_count = CHILDREN,
                                        .block_limit = info.block_limit,
                                        .shared_tokens = PARENT_TOKENS,
                                        .seed = PARENT_SEED,
                                        .row_seed = CHILD_SEED};
    kvt_gpu_capture_begin(engine->stream);
    kvt_gpu_rows_write(&forks->rows, engine->stream);
    kvt_gpu_rows_check(&forks->rows, forks->verdict, engine->stream);
    forks->graph = kvt_gpu_capture_end(engine->stream, NULL);
}

static struct kvt_gpu_part parent_part(struct forks *forks, uint32_t first, uint32_t count)
{
    struct kvt_gpu_part part = {
        .shape = &forks->engine->shape,
        .blocks = kvt_gpu_table(forks->engine, forks->parent, PARENT_BLOCKS) + first,
        .count = count,
        .seed = PARENT_SEED,
        .position = first};

    return part;
}

static void make_parent(struct forks *forks)
{
    struct kvt_gpu_engine *engine = forks->engine;
    struct kvt_gpu_part part;

    kvt_gpu_must(kvmem_seq_create(engine->space, &forks->parent), "seq_create");
    kvt_gpu_must(kvmem_seq_append(engine->space, forks->parent, PARENT_TOKENS, kvmem_fence_none()),
                 "seq_append");
    part = parent_part(forks, 0, 2);
    kvt_gpu_fill(&part, engine->stream);
    part = parent_part(forks, 2, 1);
    part.end_token = PARENT_TOKENS % KVT_GPU_BLOCK_TOKENS;
    kvt_gpu_fill(&part, engine->stream);
    kvt_gpu_must(kvmem_seq_commit(engine->space, forks->parent, PARENT_TOKENS), "seq_commit");
}

/* Overwrite the tails, so that the next round cannot find right bytes by luck. */
static void wear_out(struct forks *forks)
{
    static int32_t tails[CHILDREN];
    struct kvt_gpu_part part = {
        .shape = &forks->engine->shape, .blocks = tails, .count = CHILDREN, .seed = WORN_SEED};

    for (uint32_t i = 0; i < CHILDREN; i++)
        tails[i] = kvt_gpu_table(forks->engine, forks->children[i], 3)[2];
    kvt_gpu_fill(&part, forks->engine->stream);
    part = parent_part(forks, 0, PARENT_BLOCKS);
    part.seed = WORN_SEED;
    kvt_gpu_fill(&part, forks->engine->stream);
}

static void expect_all(struct forks *forks, uint32_t tokens)
{
    struct kvt_gpu_verdict seen = kvt_gpu_verdict_read(forks->verdict, forks->engine->stream);
    uint64_t words = (uint64_t)CHILDREN * tokens * forks->engine->geometry.block_bytes /
                     KVT_GPU_BLOCK_TOKENS / 8;

    KVT_REQUIRE(seen.checked == words && seen.wrong == 0,
                "%llu words of %llu are wrong (%" PRIu64 " meant); at %#llx: %#llx, not %#llx",
                seen.wrong, seen.checked, words, seen.where, seen.found, seen.expected);
}

static uint64_t tail_copies(const struct kvt_gpu_engine *engine)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};

    kvt_gpu_must(kvmem_space_stats(engine->space, &stats), "space_stats");
    return stats.tail_copies;
}

static void step(struct forks *forks, uint32_t tokens)
{
    struct kvt_gpu_engine *engine = forks->engine;
    struct kvmem_fence fence = kvmem_fence_stream(engine->stream);

    kvt_gpu_must(kvmem_seqs_append(engine->space, CHILDREN, forks->children, NULL, fence),
                 "seqs_append");
    kvt_gpu_must(kvmem_device_table_update(forks->table, CHILDREN, forks->children, engine->stream),
                 "device_table_update");
    kvt_gpu_verdict_clear(forks->verdict, engine->stream);
    kvt_gpu_graph_launch(forks->graph, engine->stream);
    kvt_gpu_must(kvmem_seqs_commit(engine->space, CHILDREN, forks->children, NULL), "seqs_commit");
    expect_all(forks, tokens);
}

static void fork_round(struct forks *forks)
{
    struct kvt_gpu_engine *engine = forks->engine;
    struct kvmem_fence fence = kvmem_fence_stream(engine->stream);
    uint64_t copies = tail_copies(engine);
    struct kvt_gpu_part tail;

    make_parent(forks);
    kvt_gpu_must(kvmem_seqs_fork(engine->space, forks->parent, CHILDREN, forks->children),
                 "seqs_fork");
    for (uint32_t i = 1; i <= 3; i++)
        step(forks, PARENT_TOKENS + i);
    KVT_REQUIRE(tail_copies(engine) == copies + CHILDREN, "%" PRIu64 " tails were copied, not %u",
                tail_copies(engine) - copies, CHILDREN);
    tail = parent_part(forks, 2, 1);
    tail.end_token = PARENT_TOKENS % KVT_GPU_BLOCK_TOKENS;
    KVT_REQUIRE(kvt_gpu_wrong(&tail, engine->stream) == 0, "the parent's tail changed");
    wear_out(forks);
    kvt_gpu_must(kvmem_seqs_free(engine->space, CHILDREN, forks->children, fence), "seqs_free");
    kvt_gpu_seq_free(engine, forks->parent, fence);
    kvt_gpu_must(kvmem_client_dispatch(engine->client, 0), "client_dispatch");
    kvt_gpu_must(kvt_gpu_reserve(engine, CHILDREN + 8, KVT_ANSWER_LIMIT), "space_reserve");
}

static void case_forks_copy_their_tails(void)
{
    static struct scene scene;
    static struct forks forks = {.engine = &scene.engine};

    begin(&scene, "forks_copy_their_tails", 32, CHILDREN + 8);
    capture_consumer(&forks);
    for (uint32_t i = 0; i < kvt_gpu_rounds(FORK_ROUNDS); i++)
        fork_round(&forks);
    kvt_gpu_sync(scene.engine.stream);
    kvt_gpu_graph_drop(forks.graph);
    kvmem_device_table_destroy(forks.table);
    end(&scene);
}

/* ---- lists of blocks ---- */

struct lists {
    struct kvmem_seq from, to;
    struct kvt_gpu_part source, target;
};

static struct lists lists_new(struct kvt_gpu_engine *engine, uint32_t count)
{
    struct lists lists;

    lists.from = kvt_gpu_seq_new(engine, count);
    lists.to = kvt_gpu_seq_new(engine, count);
    lists.source = kvt_gpu_part_of(engine, lists.from, count, 1);
    lists.target = kvt_gpu_part_of(engine, lists.to, count, 1);
    return lists;
}

static void lists_free(struct kvt_gpu_engine *engine, struct lists *lists)
{
    kvt_gpu_seq_free(engine, lists->from, kvmem_fence_none());
    kvt_gpu_seq_free(engine, lists->to, kvmem_fence_none());
}

static void copy_all(struct kvt_gpu_engine *engine, const struct lists *lists)
{
    kvt_gpu_must(kvmem_blocks_copy(engine->space, 0, lists->source.count, lists->source.blocks,
                                   lists->target.blocks, engine->stream),
                 "blocks_copy");
}

static void case_lists_are_copied(void)
{
    static struct scene scene;
    struct kvt_gpu_engine *engine = &scene.engine;
    struct lists lists;

    begin(&scene, "lists_are_copied", 4, 2 * LIST);
    lists = lists_new(engine, LIST);
    for (uint32_t n = 1; n <= LIST; n = n < 8 ? n + 1 : n * 3 > LIST && n < LIST ? LIST : n * 3) {
        struct kvt_gpu_part rest = lists.target;

        lists.source.count = lists.target.count = n;
        lists.source.seed = lists.target.seed = n + 1;
        kvt_gpu_fill(&lists.source, engine->stream);
        rest.count = LIST; /* what is not named stays */
        rest.seed = WORN_SEED;
        kvt_gpu_fill(&rest, engine->stream);
        copy_all(engine, &lists);
        KVT_REQUIRE(kvt_gpu_wrong(&lists.target, engine->stream) == 0, "a list of %u", n);
        rest.blocks += n;
        rest.count -= n;
        rest.position = n;
        KVT_REQUIRE(kvt_gpu_wrong(&rest, engine->stream) == 0, "beside a list of %u", n);
    }
    lists_free(engine, &lists);
    end(&scene);
}

/* One launch in the graph; each replay copies what the sources hold then. */
static void case_copies_in_a_graph(void)
{
    static struct scene scene;
    struct kvt_gpu_engine *engine = &scene.engine;
    struct lists lists;
    struct kvt_gpu_nodes nodes;
    void *graph;

    if (kvt_gpu_is_fake())
        kvt_case_skip("the fake GPU captures no launches of the library");
    begin(&scene, "copies_in_a_graph", 32, 2 * GRAPH_LIST);
    lists = lists_new(engine, GRAPH_LIST);
    kvt_gpu_capture_begin(engine->stream);
    copy_all(engine, &lists);
    graph = kvt_gpu_capture_end(engine->stream, &nodes);
    KVT_REQUIRE(nodes.all == 1, "%zu nodes for one list", nodes.all);
    for (uint64_t i = 0; i < REPLAYS; i++) {
        lists.source.seed = lists.target.seed = 100 + i;
        kvt_gpu_fill(&lists.source, engine->stream);
        kvt_gpu_graph_launch(graph, engine->stream);
        KVT_REQUIRE(kvt_gpu_wrong(&lists.target, engine->stream) == 0, "replay %" PRIu64, i);
    }
    kvt_gpu_graph_drop(graph);
    lists_free(engine, &lists);
    end(&scene);
}

static uint64_t bytes_not_zero(struct kvt_gpu_engine *engine, int32_t block)
{
    uint64_t bytes = engine->geometry.block_bytes, count = 0;
    char *host = kvt_gpu_host_alloc(bytes);

    kvt_gpu_copy(host,
                 (const char *)engine->shape.base + (uint64_t)block * engine->shape.stride_bytes,
                 bytes, engine->stream);
    kvt_gpu_sync(engine->stream);
    for (uint64_t i = 0; i < bytes; i++)
        count += host[i] != 0;
    kvt_gpu_host_free(host);
    return count;
}

static void case_blocks_are_zeroed(void)
{
    static struct scene scene;
    struct kvt_gpu_engine *engine = &scene.engine;
    struct kvt_gpu_part part;
    struct kvmem_seq seq;
    void *graph;

    if (kvt_gpu_is_fake())
        kvt_case_skip("the fake GPU captures no launches of the library");
    begin(&scene, "blocks_are_zeroed", 32, 16);
    seq = kvt_gpu_seq_new(engine, 16);
    part = kvt_gpu_part_of(engine, seq, 16, 1);
    kvt_gpu_capture_begin(engine->stream);
    kvt_gpu_must(kvmem_blocks_zero(engine->space, 0, 8, part.blocks, engine->stream),
                 "blocks_zero");
    graph = kvt_gpu_capture_end(engine->stream, NULL);
    for (int i = 0; i < 2; i++) {
        kvt_gpu_fill(&part, engine->stream);
        kvt_gpu_graph_launch(graph, engine->stream);
        for (uint32_t b = 0; b < 8; b++)
            KVT_REQUIRE(bytes_not_zero(engine, part.blocks[b]) == 0, "block %u of the list", b);
    }
    part.blocks += 8;
    part.count = 8;
    part.position = 8;
    KVT_REQUIRE(kvt_gpu_wrong(&part, engine->stream) == 0, "blocks that were not named");
    kvt_gpu_graph_drop(graph);
    kvt_gpu_seq_free(engine, seq, kvmem_fence_none());
    end(&scene);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {
        {"forks_copy_their_tails", case_forks_copy_their_tails, 0},
        {"lists_are_copied", case_lists_are_copied, 0},
        {"copies_in_a_graph", case_copies_in_a_graph, 0},
        {"blocks_are_zeroed", case_blocks_are_zeroed, 0},
        {NULL, NULL, 0}};

    return kvt_cases_main(argc, argv, cases, NULL);
}
