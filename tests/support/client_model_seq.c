/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations on sequences: predicted, done, compared. See client_model.h.
 */
#include <inttypes.h>
#include <string.h>

#include "support/client_model.h"

static bool copy_due(const struct kvt_model *m, const struct kvt_model_seq *s, uint32_t tokens)
{
    int32_t tail = s->blocks[s->appended / KVT_MODEL_BLOCK_TOKENS];

    return tokens && s->appended % KVT_MODEL_BLOCK_TOKENS &&
           (m->state[tail] != KVT_MODEL_PRIVATE || m->refs[tail] > 1);
}

static uint32_t blocks_due(const struct kvt_model_seq *s, uint32_t tokens, bool copy)
{
    uint32_t used = kvt_model_blocks_for(s->appended);
    uint32_t wanted = kvt_model_blocks_for(s->appended + tokens) - used + copy;

    return wanted > s->count - used ? wanted - (s->count - used) : 0;
}

/* The table as it is now against the one before and what must have become of it. */
static void follow_append(struct kvt_model *m, struct kvt_model_seq *s, uint32_t tokens, bool copy)
{
    uint32_t used = kvt_model_blocks_for(s->appended);
    uint32_t count = s->count;
    uint32_t after = kvt_model_blocks_for(s->appended + tokens);
    const int32_t *view;
    int seen = kvmem_table_view(m->space, 0, s->id, &view);

    if (copy) {
        int32_t old = s->blocks[used - 1];

        if (count > used)
            s->blocks[used - 1] = s->blocks[--count];
        else
            kvt_model_fresh(m, s->blocks[used - 1] = view[used - 1]);
        kvt_model_unref(m, old);
        m->copies++;
    }
    for (; count < after; count++)
        kvt_model_fresh(m, s->blocks[count] = view[count]);
    s->count = count;
    KVT_ASSERT(seen == (int)count, "a table of %d blocks, expected %u", seen, count);
    KVT_ASSERT(!count || !memcmp(view, s->blocks, count * sizeof(*view)));
    kvt_model_note(m, count ? (uint64_t)view[count - 1] : 0);
}

static void push_tokens(struct kvt_model *m, struct kvt_model_seq *s, uint32_t tokens)
{
    uint32_t from = s->appended;

    for (uint32_t i = 0; i < tokens; i++, s->appended++)
        s->tags[s->appended] = s->prompt < KVT_MODEL_PROMPTS
                                   ? kvt_model_prompt_tag(s->prompt, s->appended)
                                   : kvt_model_below(m, UINT32_MAX);
    kvt_model_write_tags(m, s, from);
    if (s->appended > 60)
        s->prompt = KVT_MODEL_PROMPTS;
}

/* ---- which ones ---- */

struct kvt_model_seq *kvt_model_any_seq(struct kvt_model *m)
{
    uint32_t start = kvt_model_below(m, KVT_MODEL_SEQS);

    for (uint32_t i = 0; i < KVT_MODEL_SEQS; i++)
        if (m->seqs[(start + i) % KVT_MODEL_SEQS].is_alive)
            return &m->seqs[(start + i) % KVT_MODEL_SEQS];
    return NULL;
}

static struct kvt_model_seq *place(struct kvt_model *m)
{
    for (uint32_t i = 0; i < KVT_MODEL_SEQS; i++)
        if (!m->seqs[i].is_alive)
            return &m->seqs[i];
    return NULL;
}

struct kvt_model_seq *kvt_model_born(struct kvt_model *m, struct kvmem_seq id)
{
    struct kvt_model_seq *s = place(m);

    memset(s, 0, sizeof(*s));
    s->is_alive = true;
    s->id = id;
    s->prompt = kvt_model_below(m, KVT_MODEL_PROMPTS);
    m->live++;
    return s;
}

/* ---- operations ---- */

void kvt_model_create(struct kvt_model *m)
{
    struct kvmem_seq ids[3];
    uint32_t n = 1 + kvt_model_below(m, 3);
    int code = kvmem_seqs_create(m->space, n, ids);

    KVT_ASSERT(code == (m->live + n > KVT_MODEL_SEQS ? KVMEM_E_LIMIT : 0));
    for (uint32_t i = 0; !code && i < n; i++)
        kvt_model_born(m, ids[i]);
}

void kvt_model_free(struct kvt_model *m)
{
    struct kvt_model_seq *s = kvt_model_any_seq(m);
    struct kvmem_fence fence = kvt_model_any_fence(m);
    struct kvmem_seq twice[2];

    if (!s)
        return;
    twice[0] = twice[1] = s->id;
    if (kvt_model_below(m, 8) == 0)
        KVT_ASSERT(kvmem_seqs_free(m->space, 2, twice, kvmem_fence_none()) == KVMEM_E_INVALID);
    KVT_ASSERT(kvmem_seq_free(m->space, s->id, fence) == 0);
    kvt_model_give_up(m, fence, s->count, s->blocks);
    s->is_alive = false;
    m->live--;
    KVT_ASSERT(kvmem_seq_free(m->space, s->id, kvmem_fence_none()) == KVMEM_E_STALE);
}

/* Some sequences, none twice. */
static uint32_t pick(struct kvt_model *m, struct kvt_model_seq **picked, uint32_t *counts,
                     uint32_t limit)
{
    uint32_t start = kvt_model_below(m, KVT_MODEL_SEQS);
    uint32_t n = 0;

    for (uint32_t i = 0; i < KVT_MODEL_SEQS && n < limit; i++) {
        struct kvt_model_seq *s = &m->seqs[(start + i) % KVT_MODEL_SEQS];
        uint32_t count =
            kvt_model_below(m, 5) == 0 ? kvt_model_below(m, 20) : kvt_model_below(m, 3);

        if (!s->is_alive || s->appended + count + 1 > KVT_MODEL_TOKENS)
            continue;
        counts[n] = count;
        picked[n++] = s;
    }
    return n;
}

/* What the batch takes when all who share a tail copy it: above that the client looks at what
 * cools. */
static uint64_t batch_bound(const struct kvt_model *m, uint32_t n, struct kvt_model_seq **picked,
                            const uint32_t *counts)
{
    uint64_t due = 0;

    for (uint32_t i = 0; i < n; i++)
        due += blocks_due(picked[i], counts[i], copy_due(m, picked[i], counts[i]));
    return due;
}

static uint64_t batch_due(struct kvt_model *m, uint32_t n, struct kvt_model_seq **picked,
                          const uint32_t *counts, bool *copies)
{
    uint64_t due = 0;

    for (uint32_t i = 0; i < n; i++) {
        copies[i] = copy_due(m, picked[i], counts[i]);
        due += blocks_due(picked[i], counts[i], copies[i]);
        if (copies[i])
            m->refs[picked[i]->blocks[picked[i]->appended / KVT_MODEL_BLOCK_TOKENS]]--;
    }
    for (uint32_t i = 0; i < n; i++)
        if (copies[i])
            m->refs[picked[i]->blocks[picked[i]->appended / KVT_MODEL_BLOCK_TOKENS]]++;
    return due;
}

void kvt_model_append(struct kvt_model *m)
{
    struct kvt_model_seq *picked[8];
    struct kvmem_seq ids[9];
    uint32_t counts[8];
    bool copies[8];
    bool ones = kvt_model_below(m, 2);
    uint32_t n = pick(m, picked, counts, 1 + kvt_model_below(m, 8));
    struct kvmem_fence fence = kvt_model_any_fence(m);
    bool is_held = false;
    uint64_t due;
    int code, can;

    for (uint32_t i = 0; i < n; i++) {
        ids[i] = picked[i]->id;
        if (ones)
            counts[i] = 1;
    }
    if (batch_bound(m, n, picked, counts) > kvt_model_free_blocks(m))
        kvt_model_drain(m);
    due = batch_due(m, n, picked, counts, copies);
    can = kvmem_space_can_append(m->space, n, ids, ones ? NULL : counts);
    KVT_ASSERT(can == (due <= kvt_model_free_blocks(m)),
               "can_append says %d: %" PRIu64 " due, %" PRIu64 " free", can, due,
               kvt_model_free_blocks(m));
    if (n && kvt_model_below(m, 16) == 0) {
        ids[n] = ids[kvt_model_below(m, n)];
        KVT_ASSERT(kvmem_seqs_append(m->space, n + 1, ids, NULL, kvmem_fence_none()) ==
                   KVMEM_E_INVALID);
    }
    code = kvmem_seqs_append(m->space, n, ids, ones ? NULL : counts, fence);
    kvt_model_note(m, (uint64_t)code);
    for (uint32_t i = 0; can && i < n; i++)
        is_held |= copies[i] && kvt_model_holds(m, fence);
    if (is_held)
        KVT_ASSERT(code == KVMEM_E_BUSY, "append: %s", kvmem_error_name(code));
    else
        KVT_ASSERT(can ? code == 0 : kvt_model_is_lack(code), "append: %s", kvmem_error_name(code));
    m->held_copies += is_held;
    m->refusals += kvt_model_is_lack(code);
    for (uint32_t i = 0; !code && i < n; i++) {
        follow_append(m, picked[i], counts[i], copies[i]);
        push_tokens(m, picked[i], counts[i]);
    }
}

void kvt_model_commit(struct kvt_model *m)
{
    struct kvt_model_seq *s = kvt_model_any_seq(m);
    uint32_t tokens;

    if (!s)
        return;
    tokens = s->appended - s->committed;
    KVT_ASSERT(kvmem_seq_commit(m->space, s->id, tokens + 1) == KVMEM_E_INVALID);
    tokens = kvt_model_below(m, 3) ? tokens : kvt_model_below(m, tokens + 1);
    KVT_ASSERT(kvmem_seq_commit(m->space, s->id, tokens) == 0);
    s->committed += tokens;
}

void kvt_model_truncate(struct kvt_model *m)
{
    struct kvt_model_seq *s = kvt_model_any_seq(m);
    struct kvmem_fence fence = kvt_model_any_fence(m);
    uint32_t tokens, keep;

    if (!s)
        return;
    KVT_ASSERT(kvmem_seq_truncate(m->space, s->id, s->appended + 1, fence) == KVMEM_E_INVALID);
    tokens = kvt_model_below(m, 3) && s->appended > 6 ? s->appended - kvt_model_below(m, 7)
                                                      : kvt_model_below(m, s->appended + 1);
    KVT_ASSERT(kvmem_seq_truncate(m->space, s->id, tokens, fence) == 0);
    keep = kvt_model_blocks_for(tokens);
    if (s->count > keep) {
        kvt_model_give_up(m, fence, s->count - keep, s->blocks + keep);
        s->count = keep;
    }
    s->appended = tokens;
    s->committed = s->committed < tokens ? s->committed : tokens;
    if (kvt_model_below(m, 2))
        s->prompt = KVT_MODEL_PROMPTS;
}

void kvt_model_fork(struct kvt_model *m)
{
    struct kvt_model_seq *s = kvt_model_any_seq(m);
    struct kvmem_seq ids[3];
    uint32_t n = 1 + kvt_model_below(m, 3);
    int code;

    if (!s)
        return;
    code = kvmem_seqs_fork(m->space, s->id, n, ids);
    KVT_ASSERT(code == (m->live + n > KVT_MODEL_SEQS ? KVMEM_E_LIMIT : 0));
    for (uint32_t i = 0; !code && i < n; i++) {
        struct kvt_model_seq *child = place(m);

        *child = *s;
        child->id = ids[i];
        child->count = kvt_model_blocks_for(s->appended);
        if (kvt_model_below(m, 2))
            child->prompt = KVT_MODEL_PROMPTS;
        for (uint32_t b = 0; b < child->count; b++)
            m->refs[child->blocks[b]]++;
        m->live++;
    }
}

void kvt_model_reserve(struct kvt_model *m)
{
    struct kvt_model_seq *s = kvt_model_any_seq(m);
    uint32_t tokens = kvt_model_below(m, 24);
    const int32_t *view;
    uint32_t due;
    int code;

    if (!s || s->appended + tokens > KVT_MODEL_TOKENS)
        return;
    due = tokens ? blocks_due(s, tokens, copy_due(m, s, tokens)) : 0;
    if (due > kvt_model_free_blocks(m)) {
        kvt_model_drain(m);
        due = blocks_due(s, tokens, copy_due(m, s, tokens));
    }
    code = kvmem_seq_reserve(m->space, s->id, tokens);
    KVT_ASSERT(code == 0 || (kvt_model_is_lack(code) && due > kvt_model_free_blocks(m)),
               "reserve: %s, %u due", kvmem_error_name(code), due);
    m->refusals += code != 0;
    if (code)
        return;
    KVT_ASSERT(kvmem_table_view(m->space, 0, s->id, &view) == (int)(s->count + due));
    for (; due; due--, s->count++)
        kvt_model_fresh(m, s->blocks[s->count] = view[s->count]);
}
