/* SPDX-License-Identifier: Apache-2.0
 *
 * The scheduler of replay.h: who runs, who waits, who has to go when blocks run out.
 */
#include "replay.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/bench.h"

#define CHUNK_TOKENS        4096u  /* of a prompt in a step, with others running */
#define CHUNK_TOKENS_ALONE  16384u /* --sequential */
#define STEP_PREFILL_TOKENS 16384u
#define RESERVE_NS          100000000ll
#define STARVED_NS          60000000000ull
#define PROGRESS_NS         100000000ull

static uint32_t blocks_of(const struct kvb_engine *engine, uint32_t tokens)
{
    uint32_t block_tokens = engine->shape.model.block_tokens;

    return (tokens + block_tokens - 1) / block_tokens;
}

static int open_client(struct kvb_engine *engine, const struct kvb_options *options)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed), .name = "kvmem-replay"};
    struct kvmem_connect_options connect = {.size = sizeof(connect)};
    char name[32];
    int rc;

    snprintf(name, sizeof(name), "replay %" PRIu32 "/%" PRIu32, options->part + 1, options->parts);
    embed.device_bytes = options->device_bytes;
    connect.socket_path = options->socket_path;
    connect.name = name;
    rc = options->is_embedded ? kvmem_client_embed(&embed, &engine->client)
                              : kvmem_client_connect(&connect, &engine->client);
    if (rc < 0)
        return kvb_replay_fail(
            engine, options->is_embedded ? "cannot embed a device" : "cannot connect to kvmemd",
            rc);
    engine->info.size = sizeof(engine->info);
    rc = kvmem_client_info(engine->client, &engine->info);
    return rc < 0 ? kvb_replay_fail(engine, "kvmem_client_info", rc) : 0;
}

static int open_space(struct kvb_engine *engine, const struct kvb_model *model)
{
    struct kvmem_space_options options = {
        .size = sizeof(options),
        .layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN,
        .name = "kvmem-replay",
        .fingerprint = "kvmem-replay byte function 1",
        .block_tokens = model->block_tokens,
        .group_count = 1,
        .shard_count = 1,
        .groups = {{.layer_count = model->layers,
                    .kv_head_count = model->kv_heads,
                    .head_dim_k = model->head_dim,
                    .head_dim_v = model->head_dim,
                    .dtype_k = model->dtype,
                    .dtype_v = model->dtype}},
    };
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    int rc = kvmem_space_open(engine->client, &options, &engine->space);

    if (rc < 0)
        return kvb_replay_fail(engine, "cannot open the space", rc);
    rc = kvmem_space_geometry(engine->space, 0, &geometry);
    if (rc == 0)
        rc = kvmem_name_root(engine->space, NULL, &engine->root);
    if (rc < 0)
        return kvb_replay_fail(engine, "cannot name the space's root", rc);
    kvb_shape_init(&engine->shape, model, &geometry);
    engine->base = kvmem_space_base(engine->space, 0, 0);
    return 0;
}

static int allocate(struct kvb_engine *engine)
{
    uint32_t n = engine->options->concurrency;

    engine->lives = calloc(n, sizeof(*engine->lives));
    engine->waiting = calloc(n, sizeof(*engine->waiting));
    engine->batch = calloc(n, sizeof(*engine->batch));
    engine->batch_lives = calloc(n, sizeof(*engine->batch_lives));
    if (engine->options->is_embedded)
        engine->pool = kvb_pool_create(&engine->shape.geometry);
    if (engine->options->is_self_test)
        engine->faults = kvb_faults_create(&engine->shape, engine->total);
    if (engine->lives != NULL && engine->waiting != NULL && engine->batch != NULL &&
        engine->batch_lives != NULL && (engine->pool != NULL) == engine->options->is_embedded &&
        (engine->faults != NULL) == engine->options->is_self_test)
        return 0;
    snprintf(engine->error, sizeof(engine->error), "this process has no memory left");
    return -1;
}

int kvb_replay_open(struct kvb_engine *engine, const struct kvb_options *options,
                    const struct kvb_trace *trace)
{
    memset(engine, 0, sizeof(*engine));
    engine->options = options;
    engine->trace = trace;
    engine->next = options->part;
    engine->place_limit = options->concurrency;
    if (trace->request_count > options->part)
        engine->total = (trace->request_count - options->part - 1) / options->parts + 1;
    engine->counts.waste_ratio = -1;
    engine->counts.unused_slot_ratio = -1;
    if (open_client(engine, options) != 0 || open_space(engine, &options->model) != 0 ||
        allocate(engine) != 0)
        return -1;
    return 0;
}

/* The message for a request that the device cannot hold even alone. */
static int fail_fit(struct kvb_engine *engine, const struct kvb_live *live)
{
    const struct kvmem_geometry *g = &engine->shape.geometry;
    uint64_t need = blocks_of(engine, live->goal) * g->index_stride_bytes;
    uint64_t mib = (need + need / 16 + 2 * g->segment_bytes) / (1 << 20) + 1;

    snprintf(engine->error, sizeof(engine->error),
             "request %" PRIu32 " needs %" PRIu32 " blocks (%" PRIu64 " bytes) at a time, which a "
             "device of %" PRIu64 " bytes cannot give; a device of %" PRIu64 "MiB would do",
             live->number + 1, blocks_of(engine, live->goal), need, engine->info.device_bytes, mib);
    return -1;
}

static int fits(const struct kvb_engine *engine, const struct kvb_live *live)
{
    const struct kvmem_geometry *g = &engine->shape.geometry;
    uint64_t blocks = engine->info.device_bytes / g->segment_bytes * g->blocks_per_segment;

    return blocks_of(engine, live->goal) <= blocks;
}

/* Start requests, preempted ones first, as long as there is a place. */
static int admit(struct kvb_engine *engine)
{
    while (engine->running < engine->place_limit) {
        struct kvb_live *live = &engine->lives[engine->running];
        struct kvb_waiting from = {engine->next, 0};

        if (engine->waiting_count > 0)
            from = engine->waiting[--engine->waiting_count];
        else if (engine->next < engine->trace->request_count)
            engine->next += engine->options->parts;
        else
            return 0;
        if (kvb_live_prepare(engine, live, from) != 0)
            return -1;
        if (!fits(engine, live))
            return fail_fit(engine, live);
        if (kvb_live_attach(engine, live) != 0)
            return -1;
        engine->running++;
    }
    return 0;
}

/* The place's buffers stay with a place: swap, so that they are used again. */
static void remove_live(struct kvb_engine *engine, uint32_t index)
{
    struct kvb_live gone = engine->lives[index];

    engine->running--;
    engine->lives[index] = engine->lives[engine->running];
    engine->lives[engine->running] = gone;
}

static int preempt_youngest(struct kvb_engine *engine)
{
    uint32_t youngest = 0;

    for (uint32_t i = 1; i < engine->running; i++)
        if (engine->lives[i].number > engine->lives[youngest].number)
            youngest = i;
    if (kvb_live_free(engine, &engine->lives[youngest]) != 0)
        return -1;
    engine->waiting[engine->waiting_count++] =
        (struct kvb_waiting){engine->lives[youngest].number, engine->lives[youngest].known};
    engine->counts.preemptions++;
    remove_live(engine, youngest);
    engine->is_crowded = 1;
    engine->place_limit = engine->running > 0 ? engine->running : 1;
    return kvb_replay_dispatch(engine, 0);
}

/* The only request that runs gets no blocks: others hold them. Step back for a moment; how long
 * depends on the part, so that two clients do not keep stepping back together. */
static int step_back(struct kvb_engine *engine)
{
    uint64_t now = kvb_now_ns();

    if (engine->starved_since_ns == 0)
        engine->starved_since_ns = now;
    if (engine->options->is_embedded || now - engine->starved_since_ns > STARVED_NS)
        return fail_fit(engine, &engine->lives[0]);
    if (preempt_youngest(engine) != 0)
        return -1;
    return kvb_replay_dispatch(engine, (2 + 5 * (int64_t)engine->options->part) * 1000000);
}

/* `need` blocks were not free: wait for those on their way, else preempt. FOUND: they are there
 * now, until the next dispatch, which hands in what nobody uses; 0: try again in the next step. */
#define FOUND 1
static int find_blocks(struct kvb_engine *engine, uint32_t need)
{
    int rc = kvmem_space_reserve(engine->space, need, RESERVE_NS);

    switch (rc) {
    case 0: return FOUND;
    case KVMEM_E_OUTBOX_FULL: return kvb_replay_dispatch(engine, 0);
    case KVMEM_E_REFILL_PENDING:
    case KVMEM_E_OUT_OF_BLOCKS:
    case KVMEM_E_DEVICE_FULL:
    case KVMEM_E_QUOTA:
    case KVMEM_E_TIMED_OUT:
        return engine->running > 1 ? preempt_youngest(engine) : step_back(engine);
    default: return kvb_replay_fail(engine, "kvmem_space_reserve", rc);
    }
}

/* A chunk of each prompt that is not computed yet, up to the step's budget. */
static int prefill(struct kvb_engine *engine)
{
    uint32_t budget = STEP_PREFILL_TOKENS;
    uint32_t chunk = engine->options->concurrency > 1 ? CHUNK_TOKENS : CHUNK_TOKENS_ALONE;

    for (uint32_t i = 0; i < engine->running && budget > 0; i++) {
        struct kvb_live *live = &engine->lives[i];
        uint32_t tokens = live->known - live->committed;
        int rc;

        if (tokens > chunk)
            tokens = chunk;
        if (tokens > budget)
            tokens = budget;
        if (tokens == 0)
            continue;
        while ((rc = kvb_live_prefill(engine, live, tokens)) == KVB_NO_BLOCKS) {
            int found = find_blocks(engine, blocks_of(engine, tokens) + 1);

            if (found != FOUND)
                return found;
        }
        if (rc != 0)
            return -1;
        budget -= tokens;
    }
    return 0;
}

static uint32_t gather_batch(struct kvb_engine *engine)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < engine->running; i++) {
        const struct kvb_live *live = &engine->lives[i];

        if (live->committed == live->known && live->known < live->goal) {
            engine->batch_lives[count] = i;
            engine->batch[count++] = live->seq;
        }
    }
    return count;
}

/* A token for every request whose prompt is done. */
static int decode(struct kvb_engine *engine)
{
    uint32_t count = gather_batch(engine);
    int rc;

    if (count == 0)
        return 0;
    do {
        rc = kvmem_seqs_append(engine->space, count, engine->batch, NULL, kvmem_fence_none());
        if (rc != KVMEM_E_REFILL_PENDING && rc != KVMEM_E_OUT_OF_BLOCKS)
            break;
        rc = find_blocks(engine, count);
        if (rc != FOUND)
            return rc;
    } while (1);
    if (rc == KVMEM_E_OUTBOX_FULL)
        return kvb_replay_dispatch(engine, 0); /* and again in the next step */
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_seqs_append", rc);

    for (uint32_t i = 0; i < count; i++) {
        struct kvb_live *live = &engine->lives[engine->batch_lives[i]];
        uint32_t at = live->known++;

        live->tokens[at] = kvb_token_of_output(live->number, at - live->prompt);
        if (live->history != NULL)
            kvb_history_fill(live->tokens, at, at + 1, live->history);
        if (kvb_live_fill(engine, live, 1) != 0)
            return -1;
    }
    return 0;
}

static int end_finished(struct kvb_engine *engine)
{
    for (uint32_t i = 0; i < engine->running;) {
        if (engine->lives[i].committed < engine->lives[i].goal) {
            i++;
            continue;
        }
        if (kvb_live_end(engine, &engine->lives[i]) != 0)
            return -1;
        remove_live(engine, i);
        if (!engine->is_crowded && engine->place_limit < engine->options->concurrency)
            engine->place_limit++;
        engine->is_crowded = 0;
        engine->starved_since_ns = 0;
    }
    return 0;
}

static void show_progress(struct kvb_engine *engine)
{
    uint64_t now;

    if (engine->progress == NULL || (now = kvb_now_ns()) - engine->progress_ns < PROGRESS_NS)
        return;
    engine->progress_ns = now;
    engine->progress(engine->progress_context, engine->finished, engine->total);
}

int kvb_replay_run(struct kvb_engine *engine)
{
    while (engine->finished < engine->total) {
        if (admit(engine) != 0 || prefill(engine) != 0 || decode(engine) != 0)
            return -1;
        if (engine->pool != NULL)
            kvb_pool_sample(engine->pool, engine);
        if (end_finished(engine) != 0 || kvb_replay_dispatch(engine, 0) != 0)
            return -1;
        engine->counts.steps++;
        show_progress(engine);
    }
    return 0;
}

/* After the last request nothing may be held; answers under way are waited for. */
static int verify(struct kvb_engine *engine)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};
    uint64_t deadline = kvb_now_ns() + 2000000000ull;
    int rc;

    do {
        if (kvb_replay_dispatch(engine, 0) != 0)
            return -1;
        rc = kvmem_space_stats(engine->space, &stats);
        if (rc < 0)
            return kvb_replay_fail(engine, "kvmem_space_stats", rc);
        if (stats.private_blocks + stats.leased_blocks == 0)
            break;
    } while (kvmem_client_dispatch(engine->client, 10000000) >= 0 && kvb_now_ns() < deadline);
    engine->counts.held_blocks_at_end = stats.private_blocks + stats.leased_blocks;
    engine->counts.published_blocks = stats.published_blocks;
    engine->counts.publish_exists_blocks = stats.publish_exists_blocks;
    engine->counts.publish_refused_blocks = stats.publish_refused_blocks;
    engine->counts.adopted_segments = stats.adopted_segments;
    rc = kvmem_client_check(engine->client);
    return rc < 0 ? kvb_replay_fail(engine, "kvmem_client_check", rc) : 0;
}

int kvb_replay_close(struct kvb_engine *engine)
{
    struct rusage usage;
    int rc = 0;

    if (engine->space != NULL && engine->finished == engine->total && engine->error[0] == '\0')
        rc = verify(engine);
    if (engine->pool != NULL)
        kvb_pool_finish(engine->pool, &engine->counts);
    kvmem_space_close(engine->space);
    kvmem_client_close(engine->client);
    kvb_pool_destroy(engine->pool);
    kvb_faults_destroy(engine->faults);
    if (engine->lives != NULL)
        for (uint32_t i = 0; i < engine->options->concurrency; i++)
            kvb_live_fini(&engine->lives[i]);
    free(engine->lives);
    free(engine->waiting);
    free(engine->batch);
    free(engine->batch_lives);
    free(engine->hits);
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        engine->counts.peak_resident_bytes = (uint64_t)usage.ru_maxrss * 1024;
    return rc;
}
