/* SPDX-License-Identifier: Apache-2.0
 *
 * The model's blocks, promises and answers; see client_model.h.
 */
#include "support/client_model.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

uint32_t kvt_model_prompt_tag(uint32_t prompt, uint32_t position)
{
    return (uint32_t)kvt_model_mix(prompt * 1000003u + position) | 1;
}

/* ---- bytes ---- */

uint32_t *kvt_model_tag(const struct kvt_model *m, char *base, int32_t block, uint32_t position,
                        bool v)
{
    const struct kvmem_geometry *g = &m->geometry;
    char *at = base + (uint64_t)block * g->index_stride_bytes;

    at += v ? g->v_offset_bytes + position * g->v_token_stride_bytes
            : position * g->k_token_stride_bytes;
    return (uint32_t *)(void *)at;
}

void kvt_model_write_tags(struct kvt_model *m, const struct kvt_model_seq *s, uint32_t from)
{
    for (uint32_t t = from; t < s->appended; t++) {
        *kvt_model_tag(m, m->write_base, s->blocks[t / KVT_MODEL_BLOCK_TOKENS],
                       t % KVT_MODEL_BLOCK_TOKENS, false) = s->tags[t];
        *kvt_model_tag(m, m->write_base, s->blocks[t / KVT_MODEL_BLOCK_TOKENS],
                       t % KVT_MODEL_BLOCK_TOKENS, true) = ~s->tags[t];
    }
}

void kvt_model_verify_tags(const struct kvt_model *m, const struct kvt_model_seq *s)
{
    for (uint32_t t = 0; t < s->appended; t++) {
        uint32_t k = *kvt_model_tag(m, m->base, s->blocks[t / KVT_MODEL_BLOCK_TOKENS],
                                    t % KVT_MODEL_BLOCK_TOKENS, false);
        uint32_t v = *kvt_model_tag(m, m->base, s->blocks[t / KVT_MODEL_BLOCK_TOKENS],
                                    t % KVT_MODEL_BLOCK_TOKENS, true);

        KVT_ASSERT(k == s->tags[t] && v == ~s->tags[t],
                   "token %u of a sequence of %u in block %d: %08x %08x, expected %08x", t,
                   s->appended, s->blocks[t / KVT_MODEL_BLOCK_TOKENS], k, v, s->tags[t]);
    }
}

/* ---- the twin's blocks ---- */

void kvt_model_unref(struct kvt_model *m, int32_t block)
{
    KVT_ASSERT(m->refs[block] > 0);
    if (--m->refs[block] == 0 && m->state[block] != KVT_MODEL_PUBLISHING)
        m->state[block] = KVT_MODEL_NONE;
}

void kvt_model_fresh(struct kvt_model *m, int32_t block)
{
    KVT_ASSERT(block >= 0 && (uint32_t)block < m->range && m->state[block] == KVT_MODEL_NONE &&
                   block != m->scratch,
               "block %d was given in state %u", block, m->state[block]);
    m->refs[block] = 1;
    m->state[block] = KVT_MODEL_PRIVATE;
    m->fences[block] = 0;
}

uint64_t kvt_model_free_blocks(const struct kvt_model *m)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};

    KVT_ASSERT(kvmem_space_capacity(m->space, &capacity) == 0);
    return capacity.free_blocks;
}

bool kvt_model_is_lack(int code)
{
    return code == KVMEM_E_REFILL_PENDING || code == KVMEM_E_OUT_OF_BLOCKS;
}

/* ---- promises, and what waits for them ---- */

bool kvt_model_is_open(const struct kvt_model *m, uint64_t value)
{
    return value > m->reached;
}

void kvt_model_promise(struct kvt_model *m)
{
    uint32_t at = kvt_model_below(m, KVT_MODEL_PROMISES);

    if (m->promises[at].kind)
        return;
    KVT_ASSERT(kvmem_fence_promise(m->client, &m->promises[at]) == 0);
    KVT_ASSERT(m->promises[at].value == ++m->promised);
    m->timeline = m->promises[at].timeline;
}

static void fulfil(struct kvt_model *m, uint32_t at)
{
    uint64_t value = m->promises[at].value;

    KVT_ASSERT(kvmem_fence_fulfil(m->client, &m->promises[at]) == 0);
    KVT_ASSERT(kvmem_fence_fulfil(m->client, &m->promises[at]) == KVMEM_E_INVALID);
    m->promises[at] = kvmem_fence_none();
    m->reached = m->promised;
    for (uint32_t i = 0; i < KVT_MODEL_PROMISES; i++)
        if (m->promises[i].kind && m->promises[i].value <= m->reached)
            m->reached = m->promises[i].value - 1;
    kvt_model_note(m, value);
}

void kvt_model_fulfil(struct kvt_model *m)
{
    uint32_t at = kvt_model_below(m, KVT_MODEL_PROMISES);
    struct kvmem_fence some = {KVMEM_FENCE_TIMELINE, m->timeline, 0, NULL};

    if (m->promises[at].kind)
        fulfil(m, at);
    if (!m->promised)
        return;
    some.value = 1 + kvt_model_below(m, (uint32_t)m->promised);
    KVT_ASSERT(kvmem_fence_poll(m->client, &some) == !kvt_model_is_open(m, some.value));
}

void kvt_model_fulfil_all(struct kvt_model *m)
{
    for (uint32_t at = 0; at < KVT_MODEL_PROMISES; at++)
        if (m->promises[at].kind)
            fulfil(m, at);
    KVT_ASSERT(m->reached == m->promised);
}

struct kvmem_fence kvt_model_any_fence(struct kvt_model *m)
{
    struct kvmem_fence fence = m->promises[kvt_model_below(m, KVT_MODEL_PROMISES)];

    if (kvt_model_below(m, 2) == 0)
        fence.kind = KVMEM_FENCE_NONE;
    if (fence.kind == KVMEM_FENCE_NONE && m->reached && kvt_model_below(m, 2))
        return (struct kvmem_fence){KVMEM_FENCE_TIMELINE, m->timeline, m->reached, NULL};
    return fence.kind ? fence : kvmem_fence_none();
}

bool kvt_model_holds(const struct kvt_model *m, struct kvmem_fence fence)
{
    return fence.kind == KVMEM_FENCE_TIMELINE && kvt_model_is_open(m, fence.value);
}

void kvt_model_cool(struct kvt_model *m, struct kvmem_fence fence, uint32_t count,
                    const int32_t *blocks)
{
    struct kvt_model_cooling *entry;

    if (!count)
        return;
    entry = malloc(sizeof(*entry) + count * sizeof(*blocks));
    entry->value = fence.value;
    entry->count = count;
    memcpy(entry->blocks, blocks, count * sizeof(*blocks));
    entry->next = m->cooling;
    m->cooling = entry;
    m->cooling_blocks += count;
    m->cooled++;
}

void kvt_model_give_up(struct kvt_model *m, struct kvmem_fence fence, uint32_t count,
                       const int32_t *blocks)
{
    if (kvt_model_holds(m, fence)) {
        kvt_model_cool(m, fence, count, blocks);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        kvt_model_unref(m, blocks[i]);
}

void kvt_model_drain(struct kvt_model *m)
{
    struct kvt_model_cooling **at = &m->cooling;

    while (*at) {
        struct kvt_model_cooling *entry = *at;

        if (kvt_model_is_open(m, entry->value)) {
            at = &entry->next;
            continue;
        }
        for (uint32_t i = 0; i < entry->count; i++)
            kvt_model_unref(m, entry->blocks[i]);
        m->cooling_blocks -= entry->count;
        *at = entry->next;
        free(entry);
    }
}

void kvt_model_take_results(struct kvt_model *m)
{
    struct kvmem_publish_result results[64];
    int count;

    while ((count = kvmem_publish_results(m->space, 64, results)) > 0) {
        for (int i = 0; i < count; i++) {
            int32_t block = results[i].block;

            KVT_ASSERT(m->state[block] == KVT_MODEL_PUBLISHING);
            m->state[block] =
                results[i].state == KVMEM_PUBLISHED ? KVT_MODEL_LEASED : KVT_MODEL_PRIVATE;
            if (results[i].state != KVMEM_PUBLISHED)
                m->fences[block] = 0;
            if (!m->refs[block])
                m->state[block] = KVT_MODEL_NONE;
            m->late += !m->refs[block];
            m->exists += results[i].state == KVMEM_PUBLISH_EXISTS;
            KVT_ASSERT(results[i].state != KVMEM_PUBLISH_REFUSED);
        }
    }
}
