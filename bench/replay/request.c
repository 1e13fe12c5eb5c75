/* SPDX-License-Identifier: Apache-2.0
 *
 * The life of one request: see replay.h.
 */
#include "replay.h"

#include <stdio.h>
#include <stdlib.h>

/* The sample at the end of requests: of a run of few requests, all. */
#define CHECK_EVERY  8u
#define ATTEND_EVERY 16u
#define FEW_REQUESTS 64u

int kvb_replay_fail(struct kvb_engine *engine, const char *what, int code)
{
    const struct kvmem_error_detail *detail = kvmem_error_detail();

    snprintf(engine->error, sizeof(engine->error), "%s: %s%s%s", what, kvmem_error_text(code),
             detail->code == code && detail->text[0] != '\0' ? ": " : "",
             detail->code == code ? detail->text : "");
    return -1;
}

static int fail_memory(struct kvb_engine *engine)
{
    snprintf(engine->error, sizeof(engine->error), "this process has no memory left");
    return -1;
}

int kvb_replay_dispatch(struct kvb_engine *engine, int64_t timeout_ns)
{
    int rc = kvmem_client_dispatch(engine->client, timeout_ns);

    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_client_dispatch", rc);
    if (engine->pool != NULL && kvb_pool_published(engine->pool, engine->space) != 0)
        return fail_memory(engine);
    return 0;
}

int kvb_replay_must_drain(int rc)
{
    return rc == KVMEM_E_OUTBOX_FULL || rc == KVMEM_E_BUSY;
}

int kvb_replay_drain(struct kvb_engine *engine)
{
    engine->device.ops->wait(&engine->device);
    return kvb_replay_dispatch(engine, 0);
}

/* Buffers for `tokens` tokens; what was in them is lost. */
static int make_room(struct kvb_engine *engine, struct kvb_live *live, uint32_t tokens)
{
    uint32_t block_tokens = engine->shape.model.block_tokens;

    if (tokens <= live->token_room)
        return 0;
    kvb_live_fini(live);
    live->tokens = malloc(sizeof(*live->tokens) * tokens);
    live->names = malloc(sizeof(*live->names) * (tokens / block_tokens + 1));
    if (!engine->options->is_dry)
        live->history = malloc(sizeof(*live->history) * tokens);
    if (live->tokens == NULL || live->names == NULL ||
        (!engine->options->is_dry && live->history == NULL)) {
        kvb_live_fini(live);
        return fail_memory(engine);
    }
    live->token_room = tokens;
    return 0;
}

void kvb_live_fini(struct kvb_live *live)
{
    free(live->tokens);
    free(live->history);
    free(live->names);
    live->tokens = NULL;
    live->history = NULL;
    live->names = NULL;
    live->token_room = 0;
}

/* Name the blocks that are full of known tokens. */
static int name_blocks(struct kvb_engine *engine, struct kvb_live *live)
{
    uint32_t block_tokens = engine->shape.model.block_tokens;
    uint32_t first = live->named;
    const struct kvmem_name *parent = first == 0 ? &engine->root : &live->names[first - 1];
    int rc = kvmem_name_blocks(parent, block_tokens, live->tokens + (uint64_t)first * block_tokens,
                               live->known - first * block_tokens, NULL, 0, live->names + first);

    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_name_blocks", rc);
    live->named = first + (uint32_t)rc;
    return 0;
}

int kvb_live_prepare(struct kvb_engine *engine, struct kvb_live *live, struct kvb_waiting from)
{
    const struct kvb_request *request = &engine->trace->requests[from.number];
    uint32_t output = engine->options->is_without_output ? 0 : request->output_tokens;
    uint32_t prompt = request->prompt_tokens;

    if (make_room(engine, live, prompt + output) != 0)
        return -1;
    live->number = from.number;
    live->prompt = prompt;
    live->goal = prompt + output;
    live->known = from.known > prompt ? from.known : prompt;
    live->committed = 0;
    live->published = 0;
    live->named = 0;
    live->is_guarded = 0;
    kvb_tokens_of_prompt(engine->trace, request, live->tokens);
    for (uint32_t i = prompt; i < live->known; i++)
        live->tokens[i] = kvb_token_of_output(from.number, i - prompt);
    if (live->history != NULL)
        kvb_history_fill(live->tokens, 0, live->known, live->history);
    return name_blocks(engine, live);
}

/* Look up all blocks but the one of the last token, which is always computed; live->guard is the
 * fence to wait for before they are read. */
static int look_up(struct kvb_engine *engine, struct kvb_live *live, uint32_t *hits)
{
    uint32_t count = (live->known - 1) / engine->shape.model.block_tokens;
    int rc;

    *hits = 0;
    if (count == 0)
        return 0;
    if (count > engine->hit_room) {
        int32_t *grown = realloc(engine->hits, sizeof(*grown) * count);

        if (grown == NULL)
            return fail_memory(engine);
        engine->hits = grown;
        engine->hit_room = count;
    }
    rc = kvmem_prefix_lookup(engine->space, count, live->names, engine->hits, &live->guard);
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_prefix_lookup", rc);
    *hits = (uint32_t)rc;
    engine->counts.lookup_blocks += count;
    engine->counts.hit_blocks += *hits;
    return 0;
}

/* What the device does from now on waits for the guard. One that is broken shows when it is
 * polled. */
static int order(struct kvb_engine *engine, const struct kvb_live *live)
{
    void *stream = engine->device.stream;
    int rc = stream == NULL ? kvmem_fence_wait(engine->client, &live->guard, -1)
                            : kvmem_fence_order(engine->space, stream, &live->guard);

    return rc < 0 && rc != KVMEM_E_STALE ? kvb_replay_fail(engine, "kvmem_fence_order", rc) : 0;
}

int kvb_live_attach(struct kvb_engine *engine, struct kvb_live *live)
{
    uint32_t hits;
    int rc = kvmem_seq_create(engine->space, &live->seq);

    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_seq_create", rc);
    if (look_up(engine, live, &hits) != 0)
        return -1;
    if (hits == 0)
        return 0;
    rc = kvmem_seq_attach(engine->space, live->seq, hits, engine->hits);
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_seq_attach", rc);
    live->committed = hits * engine->shape.model.block_tokens;
    live->published = hits;
    live->attached = hits;
    live->is_guarded = 1;
    if (order(engine, live) != 0)
        return -1;
    return kvb_live_settle(engine, live);
}

int kvb_live_prefill(struct kvb_engine *engine, struct kvb_live *live, uint32_t tokens)
{
    struct kvmem_fence fence = kvb_device_fence(&engine->device);
    struct kvb_span span;
    int rc = kvmem_seq_append(engine->space, live->seq, tokens, fence);

    if (kvb_replay_must_drain(rc)) {
        if (kvb_replay_drain(engine) != 0)
            return -1;
        rc = kvmem_seq_append(engine->space, live->seq, tokens, fence);
    }
    if (rc == KVMEM_E_REFILL_PENDING || rc == KVMEM_E_OUT_OF_BLOCKS)
        return KVB_NO_BLOCKS;
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_seq_append", rc);
    if (kvb_live_span(engine, live, tokens, &span) != 0)
        return -1;
    kvb_replay_write(engine, &span, 1);
    return kvb_live_commit(engine, live, tokens);
}

/* Publish what is full. A guard that is not reached, or broke, leaves that for later. */
static int publish(struct kvb_engine *engine, struct kvb_live *live)
{
    struct kvmem_fence fence = kvb_device_fence(&engine->device);
    uint32_t full = live->committed / engine->shape.model.block_tokens;
    uint32_t count = full - live->published;
    int rc;

    if (count == 0)
        return 0;
    if (full > live->named && name_blocks(engine, live) != 0)
        return -1;
    rc = kvmem_seq_publish(engine->space, live->seq, live->published, count,
                           live->names + live->published, fence);
    if (live->is_guarded && (rc == KVMEM_E_BUSY || rc == KVMEM_E_STALE))
        return 0;
    if (kvb_replay_must_drain(rc)) {
        if (kvb_replay_drain(engine) != 0)
            return -1;
        rc = kvmem_seq_publish(engine->space, live->seq, live->published, count,
                               live->names + live->published, fence);
    }
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_seq_publish", rc);
    live->published = full;
    return 0;
}

/* Tell the accounts of blocks that the tokens [committed, end) begin. */
static int note_new_blocks(struct kvb_engine *engine, const struct kvb_live *live,
                           const int32_t *table, uint32_t end)
{
    uint32_t block_tokens = engine->shape.model.block_tokens;
    uint32_t first = (live->committed + block_tokens - 1) / block_tokens;
    uint32_t last = (end + block_tokens - 1) / block_tokens;

    if (first == last)
        return 0;
    if (engine->pool != NULL && kvb_pool_taken(engine->pool, table + first, last - first) != 0)
        return fail_memory(engine);
    if (engine->faults != NULL)
        for (uint32_t i = first; i < last; i++)
            kvb_faults_keep(engine->faults, table[i]);
    return 0;
}

int kvb_live_span(struct kvb_engine *engine, struct kvb_live *live, uint32_t tokens,
                  struct kvb_span *span)
{
    int rc;

    *span = (struct kvb_span){NULL, live->history, live->committed, live->committed + tokens};
    rc = kvmem_table_view(engine->space, 0, live->seq, &span->table);
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_table_view", rc);
    return note_new_blocks(engine, live, span->table, span->end);
}

void kvb_replay_write(struct kvb_engine *engine, const struct kvb_span *spans, uint32_t count)
{
    if (!engine->options->is_dry)
        engine->device.ops->write(&engine->device, spans, count);
}

int kvb_live_commit(struct kvb_engine *engine, struct kvb_live *live, uint32_t tokens)
{
    int rc = kvmem_seq_commit(engine->space, live->seq, tokens);

    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_seq_commit", rc);
    live->committed += tokens;
    return publish(engine, live);
}

int kvb_live_free(struct kvb_engine *engine, struct kvb_live *live)
{
    struct kvmem_fence fence = kvb_device_fence(&engine->device);
    int rc = kvmem_seq_free(engine->space, live->seq, fence);

    if (kvb_replay_must_drain(rc)) {
        if (kvb_replay_drain(engine) != 0)
            return -1;
        rc = kvmem_seq_free(engine->space, live->seq, fence);
    }
    return rc < 0 ? kvb_replay_fail(engine, "kvmem_seq_free", rc) : 0;
}

/* Compute all tokens again, those of the attached blocks too. */
static int restart(struct kvb_engine *engine, struct kvb_live *live)
{
    int rc;

    if (kvb_live_free(engine, live) != 0)
        return -1;
    rc = kvmem_seq_create(engine->space, &live->seq);
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_seq_create", rc);
    live->committed = 0;
    live->published = 0;
    engine->counts.stale_prefixes++;
    return 0;
}

int kvb_live_settle(struct kvb_engine *engine, struct kvb_live *live)
{
    int rc = kvmem_fence_poll(engine->client, &live->guard);

    if (rc == 0)
        return 0;
    live->is_guarded = 0;
    if (rc == KVMEM_E_STALE)
        return restart(engine, live);
    if (rc < 0)
        return kvb_replay_fail(engine, "kvmem_fence_poll", rc);
    if (live->history != NULL)
        kvb_check_attached(engine, live, live->attached);
    return publish(engine, live);
}

int kvb_live_end(struct kvb_engine *engine, struct kvb_live *live)
{
    if (live->history != NULL) {
        if (engine->finished % CHECK_EVERY == 0 || engine->total < FEW_REQUESTS)
            kvb_check_whole(engine, live);
        if (engine->finished % ATTEND_EVERY == 0 || engine->total < FEW_REQUESTS)
            kvb_check_attention(engine, live);
    }
    if (engine->faults != NULL)
        kvb_faults_plant(engine->faults, engine, live);
    engine->counts.requests++;
    engine->counts.prompt_tokens += live->prompt;
    engine->counts.output_tokens += live->goal - live->prompt;
    engine->finished++;
    return kvb_live_free(engine, live);
}
