/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine of the tests. Nothing here is faster than it must be.
 */
#include "support/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/spawn.h"

#define LAYERS   2u
#define HEADS    2u
#define HEAD_DIM 16u
#define WORDS    (HEAD_DIM * 2u / sizeof(uint64_t)) /* of a head of a token */

/* ---- opening ---- */

static struct kvmem_space_options space_options(const struct kvt_engine_options *options)
{
    struct kvmem_space_options space = {.size = sizeof(space),
                                        .name = options->space ? options->space : "shared",
                                        .block_tokens = KVT_BLOCK_TOKENS,
                                        .group_count = 1,
                                        .shard_count = 1,
                                        .quota_bytes = options->quota_bytes,
                                        .refill_blocks = options->refill_blocks,
                                        .low_water_blocks = options->refill_blocks ? 1 : 0,
                                        .groups = {{.layer_count = LAYERS,
                                                    .kv_head_count = HEADS,
                                                    .head_dim_k = HEAD_DIM,
                                                    .head_dim_v = HEAD_DIM,
                                                    .dtype_k = KVMEM_DTYPE_BF16,
                                                    .dtype_v = KVMEM_DTYPE_BF16}}};

    return space;
}

int kvt_engine_open(struct kvt_engine *engine, const struct kvt_engine_options *options)
{
    struct kvmem_connect_options connect = {.size = sizeof(connect),
                                            .socket_path = options->socket_path,
                                            .name = options->name,
                                            .flags = getenv("KVT_HELPER") ? KVMEM_CLIENT_HELPER : 0,
                                            .timeout_ns = options->timeout_ns};
    struct kvmem_space_options space = space_options(options);
    struct kvmem_client_info info = {.size = sizeof(info)};
    int rc;

    memset(engine, 0, sizeof(*engine));
    engine->geometry.size = sizeof(engine->geometry);
    rc = kvmem_client_connect(&connect, &engine->client);
    if (rc < 0)
        return rc;
    rc = kvmem_space_open(engine->client, &space, &engine->space);
    if (rc < 0) {
        kvmem_client_close(engine->client);
        return rc;
    }
    kvt_must(kvmem_client_info(engine->client, &info), "client_info");
    kvt_must(kvmem_space_geometry(engine->space, 0, &engine->geometry), "space_geometry");
    kvt_must(kvmem_name_root(engine->space, NULL, &engine->root), "name_root");
    engine->number = info.client_number;
    engine->base = kvmem_space_base(engine->space, 0, 0);
    engine->write_base = kvmem_space_write_base(engine->space, 0, 0);
    return 0;
}

void kvt_engine_close(struct kvt_engine *engine)
{
    kvmem_client_close(engine->client);
    engine->client = NULL;
}

int kvt_must(int result, const char *what)
{
    if (result < 0)
        kvt_die("process %d: %s: %s: %s", getpid(), what, kvmem_error_name(result),
                kvmem_error_detail()->text);
    return result;
}

int kvt_is_full(int result)
{
    return result == KVMEM_E_OUT_OF_BLOCKS || result == KVMEM_E_REFILL_PENDING ||
           result == KVMEM_E_DEVICE_FULL;
}

/* ---- bytes ---- */

static uint64_t word(uint64_t stream, uint64_t position, uint32_t plane, uint32_t i)
{
    uint64_t state =
        stream * 0xd1342543de82ef95u + position * 0x2545f4914f6cdd1du + plane * WORDS + i;

    return kvt_random(&state);
}

/* From a base to K or V of one head and layer of the token in `slot` of the block. */
static uint64_t head_offset(const struct kvt_engine *engine, int32_t block, uint32_t slot,
                            uint32_t plane)
{
    const struct kvmem_geometry *geometry = &engine->geometry;
    uint32_t layer = plane / (2 * HEADS), is_v = plane / HEADS % 2, head = plane % HEADS;
    uint64_t offset = (uint64_t)block * geometry->index_stride_bytes;

    offset += layer * geometry->layer_stride_bytes;

    if (is_v)
        offset += geometry->v_offset_bytes + head * geometry->v_head_stride_bytes +
                  slot * geometry->v_token_stride_bytes;
    else
        offset += head * geometry->k_head_stride_bytes + slot * geometry->k_token_stride_bytes;
    return offset;
}

char *kvt_block_address(struct kvt_engine *engine, int32_t block)
{
    return engine->base + (uint64_t)block * engine->geometry.index_stride_bytes;
}

static void token_bytes(uint64_t stream, uint64_t position, uint32_t plane, uint64_t *bytes)
{
    for (uint32_t i = 0; i < WORDS; i++)
        bytes[i] = word(stream, position, plane, i);
}

static void write_token(struct kvt_engine *engine, int32_t block, uint64_t stream,
                        uint64_t position)
{
    uint64_t bytes[WORDS];

    for (uint32_t plane = 0; plane < LAYERS * 2 * HEADS; plane++) {
        token_bytes(stream, position, plane, bytes);
        memcpy(engine->write_base +
                   head_offset(engine, block, (uint32_t)(position % KVT_BLOCK_TOKENS), plane),
               bytes, sizeof(bytes));
    }
}

static uint32_t token_is_wrong(struct kvt_engine *engine, int32_t block, uint64_t stream,
                               uint64_t position)
{
    uint64_t bytes[WORDS];

    for (uint32_t plane = 0; plane < LAYERS * 2 * HEADS; plane++) {
        token_bytes(stream, position, plane, bytes);
        if (memcmp(engine->base +
                       head_offset(engine, block, (uint32_t)(position % KVT_BLOCK_TOKENS), plane),
                   bytes, sizeof(bytes)) != 0)
            return 1;
    }
    return 0;
}

static const int32_t *table_of(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t end)
{
    const int32_t *blocks;
    int count = kvt_must(kvmem_table_view(engine->space, 0, seq, &blocks), "table_view");

    if ((uint64_t)count * KVT_BLOCK_TOKENS < end)
        kvt_die("a table of %d blocks for %" PRIu64 " tokens", count, end);
    return blocks;
}

void kvt_engine_write(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                      uint64_t first, uint64_t count)
{
    const int32_t *blocks = table_of(engine, seq, first + count);

    for (uint64_t at = first; at < first + count; at++)
        write_token(engine, blocks[at / KVT_BLOCK_TOKENS], stream, at);
}

uint64_t kvt_engine_wrong(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                          uint64_t first, uint64_t count)
{
    const int32_t *blocks = table_of(engine, seq, first + count);
    uint64_t wrong = 0;

    for (uint64_t at = first; at < first + count; at++)
        wrong += token_is_wrong(engine, blocks[at / KVT_BLOCK_TOKENS], stream, at);
    return wrong;
}

uint32_t kvt_block_wrong(struct kvt_engine *engine, int32_t block, uint64_t stream, uint64_t first)
{
    uint32_t wrong = 0;

    for (uint32_t i = 0; i < KVT_BLOCK_TOKENS; i++)
        wrong += token_is_wrong(engine, block, stream, first + i);
    return wrong;
}

/* ---- requests ---- */

void kvt_engine_names(struct kvt_engine *engine, uint64_t stream, uint32_t blocks,
                      struct kvmem_name *names)
{
    static uint32_t tokens[KVT_BLOCK_LIMIT * KVT_BLOCK_TOKENS];

    if (blocks > KVT_BLOCK_LIMIT)
        kvt_die("a stream of %u blocks", blocks);
    for (uint32_t i = 0; i < blocks * KVT_BLOCK_TOKENS; i++)
        tokens[i] = (uint32_t)word(stream, i, UINT32_MAX, 0);
    kvt_must(kvmem_name_blocks(&engine->root, KVT_BLOCK_TOKENS, tokens, blocks * KVT_BLOCK_TOKENS,
                               NULL, 0, names),
             "name_blocks");
}

/* Blocks that `tokens` more take, a copy of the tail not counted. */
static uint64_t blocks_needed(struct kvt_engine *engine, struct kvmem_seq seq, uint32_t tokens)
{
    struct kvmem_seq_info info = {.size = sizeof(info)};

    kvt_must(kvmem_seq_info(engine->space, seq, &info), "seq_info");
    return (info.appended_tokens + tokens + KVT_BLOCK_TOKENS - 1) / KVT_BLOCK_TOKENS -
           (info.appended_tokens + KVT_BLOCK_TOKENS - 1) / KVT_BLOCK_TOKENS;
}

int kvt_engine_append(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                      uint32_t tokens, int64_t timeout_ns)
{
    struct kvmem_seq_info info = {.size = sizeof(info)};
    int rc = kvmem_seq_append(engine->space, seq, tokens, kvmem_fence_none());

    if (kvt_is_full(rc)) {
        rc = kvmem_space_reserve(engine->space, blocks_needed(engine, seq, tokens), timeout_ns);
        if (rc == 0)
            rc = kvmem_seq_append(engine->space, seq, tokens, kvmem_fence_none());
    }
    if (rc < 0)
        return rc;
    kvt_must(kvmem_seq_info(engine->space, seq, &info), "seq_info");
    kvt_engine_write(engine, seq, stream, info.appended_tokens - tokens, tokens);
    return kvt_must(kvmem_seq_commit(engine->space, seq, tokens), "seq_commit");
}

int kvt_engine_publish(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                       uint32_t first, uint32_t end, struct kvt_published *published)
{
    static struct kvmem_name names[KVT_BLOCK_LIMIT];
    struct kvmem_publish_result results[64];
    uint32_t answered = 0;
    int rc;

    memset(published, 0, sizeof(*published));
    kvt_engine_names(engine, stream, end, names);
    rc = kvmem_seq_publish(engine->space, seq, first, end - first, names + first,
                           kvmem_fence_none());
    while (rc >= 0 && answered < end - first) {
        rc = kvmem_client_dispatch(engine->client, KVT_MS(1000));
        if (rc < 0)
            return rc;
        while ((rc = kvmem_publish_results(engine->space, 64, results)) > 0) {
            answered += (uint32_t)rc;
            for (int i = 0; i < rc; i++)
                published->by_state[results[i].state]++;
        }
    }
    return rc < 0 ? rc : 0;
}

int kvt_engine_free(struct kvt_engine *engine, struct kvmem_seq seq)
{
    int rc = kvmem_seq_free(engine->space, seq, kvmem_fence_none());

    if (rc == KVMEM_E_OUTBOX_FULL)
        rc = kvmem_client_dispatch(engine->client, 0);
    else
        return rc;
    return rc < 0 ? rc : kvmem_seq_free(engine->space, seq, kvmem_fence_none());
}

int kvt_engine_get(struct kvt_engine *engine, uint64_t stream, uint32_t blocks,
                   struct kvmem_seq *seq)
{
    static struct kvmem_name names[KVT_BLOCK_LIMIT];
    static int32_t found[KVT_BLOCK_LIMIT];
    struct kvmem_fence ready;
    int hits, rc;

    kvt_engine_names(engine, stream, blocks, names);
    hits = kvmem_prefix_lookup(engine->space, blocks, names, found, &ready);
    if (hits <= 0)
        return hits;
    kvt_must(kvmem_fence_wait(engine->client, &ready, KVT_MS(1000)), "fence_wait");
    rc = kvmem_seq_create(engine->space, seq);
    if (rc < 0) {
        kvmem_prefix_release(engine->space, (uint32_t)hits, found, kvmem_fence_none());
        return rc;
    }
    kvt_must(kvmem_seq_attach(engine->space, *seq, (uint32_t)hits, found), "seq_attach");
    return hits;
}

/* Append what a sequence lacks of its stream, and publish it. */
static int complete(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream, uint32_t hits,
                    uint32_t blocks, int64_t timeout_ns)
{
    struct kvt_published published;
    int rc;

    if (hits == blocks)
        return 0;
    rc = kvt_engine_append(engine, seq, stream, (blocks - hits) * KVT_BLOCK_TOKENS, timeout_ns);
    if (rc == 0)
        rc = kvt_engine_publish(engine, seq, stream, hits, blocks, &published);
    return rc;
}

int kvt_engine_serve(struct kvt_engine *engine, uint64_t stream, uint32_t blocks,
                     int64_t timeout_ns, struct kvmem_seq *seq)
{
    int hits = kvt_engine_get(engine, stream, blocks, seq), rc;

    if (hits == 0)
        hits = kvmem_seq_create(engine->space, seq);
    if (hits < 0)
        return hits;
    rc = complete(engine, *seq, stream, (uint32_t)hits, blocks, timeout_ns);
    if (rc < 0) {
        kvt_must(kvt_engine_free(engine, *seq), "seq_free");
        return rc;
    }
    return hits;
}

int kvt_engine_put(struct kvt_engine *engine, uint64_t stream, uint32_t blocks, int64_t timeout_ns,
                   struct kvmem_seq *seq)
{
    int rc = kvmem_seq_create(engine->space, seq);

    if (rc < 0)
        return rc;
    rc = complete(engine, *seq, stream, 0, blocks, timeout_ns);
    if (rc < 0)
        kvt_must(kvt_engine_free(engine, *seq), "seq_free");
    return rc;
}
