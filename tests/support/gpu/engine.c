/* SPDX-License-Identifier: Apache-2.0
 *
 * The GPU engine of the tests. Nothing here is measured.
 */
#include "support/gpu/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADS          8u
#define HEAD_DIM       128u
#define DEFAULT_LAYERS 32u
#define FAKE_SHARE     8u /* of layers and memory is left on the fake GPU */

int kvt_gpu_must(int result, const char *what)
{
    const struct kvmem_error_detail *detail = kvmem_error_detail();

    if (result < 0)
        kvt_die("process %d: %s: %s: %s (errno %d, driver %d)", getpid(), what,
                kvmem_error_name(result), detail->text, detail->system_errno,
                detail->driver_result);
    return result;
}

uint32_t kvt_gpu_rounds(uint32_t count)
{
    uint32_t share = kvt_count_from_env("KVMEM_ROUNDS_SHARE", kvt_gpu_is_fake() ? 10 : 1, 1);

    return (count + share - 1) / share;
}

static uint32_t layers_of(const struct kvt_gpu_engine_options *options)
{
    uint32_t layers = options->layers ? options->layers : DEFAULT_LAYERS;

    if (!kvt_gpu_is_fake())
        return layers;
    return layers > FAKE_SHARE ? layers / FAKE_SHARE : 1;
}

/* ---- opening ---- */

static struct kvmem_space_options space_options(const struct kvt_gpu_engine_options *options)
{
    struct kvmem_space_options space = {.size = sizeof(space),
                                        .layout = options->layout ? options->layout
                                                                  : KVMEM_LAYOUT_PAGE_TOKEN_HEAD,
                                        .name = options->space ? options->space : "shared",
                                        .domain = options->domain,
                                        .block_tokens = KVT_GPU_BLOCK_TOKENS,
                                        .group_count = 1,
                                        .shard_count = 1,
                                        .quota_bytes = options->quota_bytes,
                                        .flags = options->space_flags,
                                        .device = options->device,
                                        .low_water_blocks = options->low_water_blocks,
                                        .refill_blocks = options->refill_blocks,
                                        .seq_limit = options->seq_limit,
                                        .groups = {{.layer_count = layers_of(options),
                                                    .kv_head_count = HEADS,
                                                    .head_dim_k = HEAD_DIM,
                                                    .head_dim_v = HEAD_DIM,
                                                    .dtype_k = KVMEM_DTYPE_BF16,
                                                    .dtype_v = KVMEM_DTYPE_BF16}}};

    return space;
}

static void describe(struct kvt_gpu_engine *engine, uint32_t layout)
{
    engine->geometry.size = sizeof(engine->geometry);
    kvt_gpu_must(kvmem_space_geometry(engine->space, 0, &engine->geometry), "space_geometry");
    kvt_gpu_must(kvmem_name_root(engine->space, NULL, &engine->root), "name_root");
    engine->shape = kvt_gpu_shape_of(engine->space, &engine->geometry, (enum kvmem_layout)layout);
}

void kvt_gpu_engine_open(struct kvt_gpu_engine *engine,
                         const struct kvt_gpu_engine_options *options)
{
    struct kvmem_connect_options connect = {.size = sizeof(connect),
                                            .socket_path = options->socket_path,
                                            .name = options->name ? options->name : "engine",
                                            .flags = options->client_flags,
                                            .timeout_ns = KVT_ANSWER_LIMIT};
    struct kvmem_space_options space = space_options(options);

    memset(engine, 0, sizeof(*engine));
    engine->seed = options->seed;
    kvt_gpu_must(kvmem_client_connect(&connect, &engine->client), "client_connect");
    kvt_gpu_must(kvmem_space_open(engine->client, &space, &engine->space), "space_open");
    describe(engine, space.layout);
    engine->stream = kvt_gpu_stream_new();
}

void kvt_gpu_engine_close(struct kvt_gpu_engine *engine)
{
    kvt_gpu_sync(engine->stream);
    kvt_gpu_must(kvmem_client_check(engine->client), "client_check");
    kvmem_client_close(engine->client);
    kvt_gpu_stream_drop(engine->stream);
    engine->client = NULL;
}

void kvt_gpu_warm_up(struct kvt_gpu_engine *engine)
{
    struct kvt_gpu_part nothing = {.shape = &engine->shape};

    (void)kvt_gpu_wrong(&nothing, engine->stream);
}

void kvt_gpu_daemon_start(struct kvt_daemon *daemon, const char *devices, const char *device_bytes,
                          const char *const *options)
{
    const char *arguments[9] = {"--device", devices, "--device-bytes"};
    unsigned long long gib = strtoull(device_bytes, NULL, 10);
    char own[16], mib[32];

    snprintf(own, sizeof(own), "cuda:%d", kvt_gpu_ordinal());
    snprintf(mib, sizeof(mib), "%lluMiB", gib * 1024 / (kvt_gpu_is_fake() ? FAKE_SHARE : 1));
    arguments[3] = mib;
    if (!devices)
        arguments[1] = own;
    for (int i = 0; options && options[i]; i++) {
        if (i == 4)
            kvt_die("more than 4 further options for kvmemd");
        arguments[4 + i] = options[i];
    }
    kvt_daemon_prepare(daemon);
    kvt_daemon_start(daemon, arguments);
    kvt_daemon_observe(daemon);
}

/* ---- memory ---- */

int kvt_gpu_reserve(struct kvt_gpu_engine *engine, uint64_t blocks, int64_t limit_ns)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)limit_ns;
    int rc;

    do {
        rc = kvmem_space_reserve(engine->space, blocks, limit_ns);
        if (rc < 0 && kvmem_error_is_retryable(rc))
            kvt_gpu_must(kvmem_client_dispatch(engine->client, KVT_MS(1)), "client_dispatch");
    } while (rc < 0 && kvmem_error_is_retryable(rc) && kvt_now_ns() < end_ns);
    return rc;
}

struct kvmem_seq kvt_gpu_seq_new(struct kvt_gpu_engine *engine, uint32_t blocks)
{
    uint32_t tokens = blocks * KVT_GPU_BLOCK_TOKENS;
    struct kvmem_seq seq;
    int rc;

    kvt_gpu_must(kvmem_seq_create(engine->space, &seq), "seq_create");
    rc = kvmem_seq_append(engine->space, seq, tokens, kvmem_fence_none());
    if (rc < 0 && kvmem_error_is_retryable(rc)) {
        kvt_gpu_must(kvt_gpu_reserve(engine, blocks, KVT_ANSWER_LIMIT), "space_reserve");
        rc = kvmem_seq_append(engine->space, seq, tokens, kvmem_fence_none());
    }
    kvt_gpu_must(rc, "seq_append");
    kvt_gpu_must(kvmem_seq_commit(engine->space, seq, tokens), "seq_commit");
    return seq;
}

const int32_t *kvt_gpu_table(struct kvt_gpu_engine *engine, struct kvmem_seq seq, uint32_t count)
{
    const int32_t *blocks = NULL;
    int have = kvt_gpu_must(kvmem_table_view(engine->space, 0, seq, &blocks), "table_view");

    if ((uint32_t)have < count)
        kvt_die("a table of %d blocks, not %u", have, count);
    return blocks;
}

void kvt_gpu_seq_free(struct kvt_gpu_engine *engine, struct kvmem_seq seq, struct kvmem_fence fence)
{
    int rc;

    while ((rc = kvmem_seq_free(engine->space, seq, fence)) == KVMEM_E_OUTBOX_FULL)
        kvt_gpu_must(kvmem_client_dispatch(engine->client, 0), "client_dispatch");
    kvt_gpu_must(rc, "seq_free");
}

static uint64_t seed_of(const struct kvt_gpu_engine *engine, uint64_t prefix)
{
    uint64_t state = engine->seed ^ prefix * UINT64_C(0x2545f4914f6cdd1d);

    return kvt_random(&state);
}

struct kvt_gpu_part kvt_gpu_prefix_part(struct kvt_gpu_engine *engine, uint64_t prefix,
                                        const int32_t *blocks, uint32_t count)
{
    struct kvt_gpu_part part = {
        .shape = &engine->shape, .blocks = blocks, .count = count, .seed = seed_of(engine, prefix)};

    return part;
}

struct kvt_gpu_part kvt_gpu_part_of(struct kvt_gpu_engine *engine, struct kvmem_seq seq,
                                    uint32_t count, uint64_t prefix)
{
    return kvt_gpu_prefix_part(engine, prefix, kvt_gpu_table(engine, seq, count), count);
}

/* ---- prefixes ---- */

const struct kvmem_name *kvt_gpu_names(struct kvt_gpu_engine *engine, uint64_t prefix,
                                       uint32_t count)
{
    static struct kvmem_name names[KVT_GPU_BLOCK_LIMIT];
    static uint32_t tokens[KVT_GPU_BLOCK_LIMIT * KVT_GPU_BLOCK_TOKENS];
    uint64_t state = seed_of(engine, prefix);

    if (count > KVT_GPU_BLOCK_LIMIT)
        kvt_die("a prefix of %u blocks: at most %u", count, KVT_GPU_BLOCK_LIMIT);
    for (uint32_t i = 0; i < count * KVT_GPU_BLOCK_TOKENS; i++)
        tokens[i] = (uint32_t)kvt_random(&state);
    kvt_gpu_must(kvmem_name_blocks(&engine->root, KVT_GPU_BLOCK_TOKENS, tokens,
                                   count * KVT_GPU_BLOCK_TOKENS, NULL, 0, names),
                 "name_blocks");
    return names;
}

/* Answers so far that say PUBLISHED; any other is death. */
static uint32_t take_answers(struct kvt_gpu_engine *engine)
{
    struct kvmem_publish_result results[64];
    uint32_t taken = 0;
    int count;

    while ((count = kvmem_publish_results(engine->space, 64, results)) > 0)
        for (int i = 0; i < count; i++, taken++)
            if (results[i].state != KVMEM_PUBLISHED)
                kvt_die("publishing block %" PRId32 " was answered %" PRIu32, results[i].block,
                        results[i].state);
    kvt_gpu_must(count, "publish_results");
    return taken;
}

void kvt_gpu_publish(struct kvt_gpu_engine *engine, struct kvmem_seq seq, uint64_t prefix,
                     uint32_t count, struct kvmem_fence fence)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)KVT_ANSWER_LIMIT;
    uint32_t answered = 0;

    kvt_gpu_must(kvmem_seq_publish(engine->space, seq, 0, count,
                                   kvt_gpu_names(engine, prefix, count), fence),
                 "seq_publish");
    while (answered < count) {
        kvt_gpu_must(kvmem_client_dispatch(engine->client, KVT_MS(100)), "client_dispatch");
        answered += take_answers(engine);
        if (kvt_now_ns() > end_ns)
            kvt_die("%u of %u publications were answered in time", answered, count);
    }
}

struct kvmem_seq kvt_gpu_put(struct kvt_gpu_engine *engine, uint64_t prefix, uint32_t count)
{
    struct kvmem_seq seq = kvt_gpu_seq_new(engine, count);
    struct kvt_gpu_part part = kvt_gpu_part_of(engine, seq, count, prefix);

    kvt_gpu_fill(&part, engine->stream);
    kvt_gpu_sync(engine->stream);
    kvt_gpu_publish(engine, seq, prefix, count, kvmem_fence_none());
    return seq;
}

uint32_t kvt_gpu_lookup(struct kvt_gpu_engine *engine, uint64_t prefix, uint32_t count,
                        int32_t *blocks, struct kvmem_fence *ready)
{
    return (uint32_t)kvt_gpu_must(kvmem_prefix_lookup(engine->space, count,
                                                      kvt_gpu_names(engine, prefix, count), blocks,
                                                      ready),
                                  "prefix_lookup");
}

void kvt_gpu_lookup_all(struct kvt_gpu_engine *engine, uint64_t prefix, uint32_t count,
                        int32_t *blocks, struct kvmem_fence *ready)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)KVT_ANSWER_LIMIT;
    uint32_t hits;

    while ((hits = kvt_gpu_lookup(engine, prefix, count, blocks, ready)) < count) {
        kvt_gpu_must(kvmem_prefix_release(engine->space, hits, blocks, kvmem_fence_none()),
                     "prefix_release");
        kvt_gpu_must(kvmem_client_dispatch(engine->client, KVT_MS(1)), "client_dispatch");
        if (kvt_now_ns() > end_ns)
            kvt_die("%u of %u blocks of prefix %" PRIu64 " are found", hits, count, prefix);
    }
}

uint64_t kvt_gpu_prefix_wrong(struct kvt_gpu_engine *engine, uint64_t prefix, const int32_t *blocks,
                              uint32_t count)
{
    struct kvt_gpu_part part = kvt_gpu_prefix_part(engine, prefix, blocks, count);

    return kvt_gpu_wrong(&part, engine->stream);
}
