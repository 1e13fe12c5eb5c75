/* SPDX-License-Identifier: Apache-2.0
 *
 * Publishing and looking up: predicted, done, compared. See client_model.h.
 */
#include <inttypes.h>
#include <string.h>

#include "support/client_model.h"

static void name_of(const uint32_t *tags, uint32_t blocks, struct kvmem_name *names)
{
    uint64_t chain = 1;

    for (uint32_t b = 0; b < blocks; b++) {
        for (uint32_t t = 0; t < KVT_MODEL_BLOCK_TOKENS; t++)
            chain = kvt_model_mix(chain ^ tags[b * KVT_MODEL_BLOCK_TOKENS + t]);
        for (uint32_t w = 0; w < 4; w++) {
            uint64_t word = kvt_model_mix(chain + w);

            memcpy(names[b].bytes + w * 8, &word, 8);
        }
    }
}

void kvt_model_publish(struct kvt_model *m)
{
    struct kvt_model_seq *s = kvt_model_any_seq(m);
    struct kvmem_fence fence = kvt_model_any_fence(m);
    struct kvmem_name names[KVT_MODEL_TABLE];
    int32_t sealed[KVT_MODEL_TABLE];
    uint32_t full, first, count, sealed_count = 0;

    if (!s)
        return;
    full = s->committed / KVT_MODEL_BLOCK_TOKENS;
    name_of(s->tags, full, names);
    KVT_ASSERT(kvmem_seq_publish(m->space, s->id, 0, full + 1, names, fence) == KVMEM_E_INVALID);
    first = kvt_model_below(m, 2) ? 0 : kvt_model_below(m, full + 1);
    count = full - first;
    KVT_ASSERT(kvmem_seq_publish(m->space, s->id, first, count, names + first, fence) == 0);
    for (uint32_t i = first; i < full; i++) {
        if (m->state[s->blocks[i]] != KVT_MODEL_PRIVATE)
            continue;
        m->state[s->blocks[i]] = KVT_MODEL_PUBLISHING;
        if (!kvt_model_holds(m, fence))
            continue;
        m->fences[s->blocks[i]] = fence.value;
        m->refs[s->blocks[i]]++;
        sealed[sealed_count++] = s->blocks[i];
    }
    kvt_model_cool(m, fence, sealed_count, sealed);
}

/* What the hits wait for, and what the look-up says of it: one fence, the last promise. */
static bool check_ready(struct kvt_model *m, uint32_t hits, const int32_t *blocks,
                        struct kvmem_fence ready)
{
    uint64_t value = 0;

    for (uint32_t i = 0; i < hits; i++)
        if (kvt_model_is_open(m, m->fences[blocks[i]]) && m->fences[blocks[i]] > value)
            value = m->fences[blocks[i]];
    KVT_ASSERT(value ? ready.kind == KVMEM_FENCE_TIMELINE && ready.timeline == m->timeline &&
                           ready.value == value
                     : ready.kind == KVMEM_FENCE_NONE,
               "ready: kind %u, value %" PRIu64 ", expected %" PRIu64, ready.kind, ready.value,
               value);
    return value != 0;
}

void kvt_model_lookup(struct kvt_model *m)
{
    struct kvmem_name names[16];
    uint32_t tags[16 * KVT_MODEL_BLOCK_TOKENS];
    int32_t blocks[16];
    struct kvmem_seq id;
    uint32_t prompt = kvt_model_below(m, KVT_MODEL_PROMPTS);
    uint32_t count = 1 + kvt_model_below(m, 15);
    struct kvmem_fence ready, fence = kvt_model_any_fence(m);
    int hits, peek;

    for (uint32_t t = 0; t < count * KVT_MODEL_BLOCK_TOKENS; t++)
        tags[t] = kvt_model_prompt_tag(prompt, t);
    name_of(tags, count, names);
    peek = kvmem_prefix_peek(m->space, count, names);
    hits = kvmem_prefix_lookup(m->space, count, names, blocks, &ready);
    kvt_model_take_results(m);
    KVT_ASSERT(hits >= 0 && hits <= (int)count && peek == hits, "%d hits, peek said %d", hits,
               peek);
    kvt_model_note(m, (uint64_t)hits);
    m->hits += (uint32_t)hits;
    m->waits += check_ready(m, (uint32_t)hits, blocks, ready);
    for (int i = 0; i < hits; i++) {
        KVT_ASSERT(m->state[blocks[i]] == KVT_MODEL_NONE ||
                   m->state[blocks[i]] == KVT_MODEL_LEASED);
        m->state[blocks[i]] = KVT_MODEL_LEASED;
        m->refs[blocks[i]]++;
        for (uint32_t t = 0; t < KVT_MODEL_BLOCK_TOKENS; t++)
            KVT_ASSERT(*kvt_model_tag(m, m->base, blocks[i], t, false) ==
                       tags[(uint32_t)i * KVT_MODEL_BLOCK_TOKENS + t]);
    }
    if (hits && m->live < KVT_MODEL_SEQS && kvt_model_below(m, 4)) {
        KVT_ASSERT(kvmem_seq_create(m->space, &id) == 0);
        KVT_ASSERT(kvmem_seq_attach(m->space, id, (uint32_t)hits, blocks) == 0);
        struct kvt_model_seq *s = kvt_model_born(m, id);

        s->prompt = kvt_model_below(m, 2) ? prompt : KVT_MODEL_PROMPTS;
        s->appended = s->committed = (uint32_t)hits * KVT_MODEL_BLOCK_TOKENS;
        s->count = (uint32_t)hits;
        memcpy(s->tags, tags, s->appended * sizeof(*tags));
        memcpy(s->blocks, blocks, s->count * sizeof(*blocks));
        KVT_ASSERT(kvmem_seq_attach(m->space, id, 1, blocks) == KVMEM_E_INVALID);
    } else {
        if (kvt_model_below(m, 2))
            fence = ready;
        KVT_ASSERT(kvmem_prefix_release(m->space, (uint32_t)hits, blocks, fence) == 0);
        kvt_model_give_up(m, fence, (uint32_t)hits, blocks);
        if (hits)
            KVT_ASSERT(kvmem_prefix_release(m->space, 1, blocks, kvmem_fence_none()) ==
                       KVMEM_E_INVALID);
    }
}
