/* SPDX-License-Identifier: Apache-2.0
 *
 * The scheduler of replay.h: who runs, who waits, who has to go when blocks run out.
 */
#include "replay.h"

#include <inttypes.h>
#include <stdio.h>

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

/* The message for a request that the device cannot hold even alone. */
static int fail_fit(struct kvb_engine *engine, const struct kvb_live *live)
{
    const struct kvmem_geometry *g = &engine->shape.geometry;
    uint64_t need = blocks_of(engine, live->goal) * g->index_stride_bytes;
    uint64_t mib = (need + need / 16 + 2 * g->segment_bytes) / (1 << 20) + 1;

    snprintf(engine->error, sizeof(engine->error),
             "request %" PRIu32 " needs %" PRIu32 " blocks (%" PRIu64 " bytes) at a time, which a "
             "device of %" PRIu64 " bytes cannot give; a device of %" PRIu64 "MiB would do",
             live->number + 1, blocks_of(engine, live->goal), need, engine->device_bytes, mib);
    return -1;
}

static int fits(const struct kvb_engine *engine, const struct kvb_live *live)
{
    const struct kvmem_geometry *g = &engine->shape.geometry;
    uint64_t blocks = engine->device_bytes / g->segment_bytes * g->blocks_per_segment;

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
    return kvb_replay_drain(engine);
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

/* `need` blocks were not free: wait for those that kernels still have and those on their way, else
 * preempt. FOUND: they are there
 * now, until the next dispatch, which hands in what nobody uses; 0: try again in the next step. */
#define FOUND    1
#define APPENDED 2
static int find_blocks(struct kvb_engine *engine, uint32_t need)
{
    int rc;

    engine->device.ops->wait(&engine->device);
    rc = kvmem_space_reserve(engine->space, need, RESERVE_NS);
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

static int append_batch(struct kvb_engine *engine, uint32_t count)
{
    int rc;

    do {
        rc = kvmem_seqs_append(engine->space, count, engine->batch, NULL,
                               kvb_device_fence(&engine->device));
        if (rc != KVMEM_E_REFILL_PENDING && rc != KVMEM_E_OUT_OF_BLOCKS)
            break;
        rc = find_blocks(engine, count);
        if (rc != FOUND)
            return rc;
    } while (1);
    if (kvb_replay_must_drain(rc))
        return kvb_replay_drain(engine); /* and again in the next step */
    return rc < 0 ? kvb_replay_fail(engine, "kvmem_seqs_append", rc) : APPENDED;
}

/* A token for every request whose prompt is done: appended, written at once, committed. */
static int decode(struct kvb_engine *engine)
{
    uint32_t count = gather_batch(engine);
    int rc = count == 0 ? 0 : append_batch(engine, count);

    if (rc != APPENDED)
        return rc;
    for (uint32_t i = 0; i < count; i++) {
        struct kvb_live *live = &engine->lives[engine->batch_lives[i]];
        uint32_t at = live->known++;

        live->tokens[at] = kvb_token_of_output(live->number, at - live->prompt);
        if (live->history != NULL)
            kvb_history_fill(live->tokens, at, at + 1, live->history);
        if (kvb_live_span(engine, live, 1, &engine->spans[i]) != 0)
            return -1;
    }
    kvb_replay_write(engine, engine->spans, count);
    for (uint32_t i = 0; i < count; i++)
        if (kvb_live_commit(engine, &engine->lives[engine->batch_lives[i]], 1) != 0)
            return -1;
    return 0;
}

/* Wait for the step, then look at the prefixes that were not there when it began. */
static int settle(struct kvb_engine *engine)
{
    engine->device.ops->wait(&engine->device);
    for (uint32_t i = 0; i < engine->running; i++)
        if (engine->lives[i].is_guarded && kvb_live_settle(engine, &engine->lives[i]) != 0)
            return -1;
    return 0;
}

static int end_finished(struct kvb_engine *engine)
{
    for (uint32_t i = 0; i < engine->running;) {
        if (engine->lives[i].committed < engine->lives[i].goal || engine->lives[i].is_guarded) {
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
        if (settle(engine) != 0 || end_finished(engine) != 0 || kvb_replay_dispatch(engine, 0) != 0)
            return -1;
        if (engine->device.error[0] != '\0') {
            snprintf(engine->error, sizeof(engine->error), "%s", engine->device.error);
            return -1;
        }
        engine->counts.steps++;
        show_progress(engine);
    }
    return 0;
}
