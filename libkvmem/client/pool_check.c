/* SPDX-License-Identifier: Apache-2.0
 *
 * kvi_pool_check(): every equation of pool.h but that of the tokens, which sequences complete
 * (check.c).
 */
#include <inttypes.h>

#include "client/pool.h"
#include "util/error.h"

struct counts {
    uint32_t free;
    uint32_t used;
    uint32_t sealing;
    uint32_t leased;
    uint32_t held; /* LEASED alone */
    uint32_t arriving;
};

static int wrong(const char *what, uint64_t found, uint64_t expected, uint32_t where)
{
    return kvi_error_set(KVMEM_E_CORRUPT, "pool: %s of %u is %" PRIu64 ", expected %" PRIu64, what,
                         where, found, expected);
}

static int bit_at(const uint64_t *words, uint32_t at)
{
    return (int)(words[at / 64] >> (at % 64) & 1);
}

static int check_block(const struct kvi_pool *pool, uint32_t slot, uint32_t at,
                       struct counts *counts)
{
    const struct kvi_segment *segment = &pool->segments[slot];
    uint32_t index = slot * pool->blocks_per_segment + at;
    uint8_t state = pool->state[index];
    int hot = pool->hot == (int32_t)index;
    int is_used = hot || state == KVI_BLOCK_PRIVATE || state == KVI_BLOCK_PUBLISHING;
    const struct kvi_status_slot *shown;

    counts->free += state == KVI_BLOCK_FREE && !hot;
    counts->used += is_used;
    counts->sealing += state == KVI_BLOCK_PUBLISHING;
    counts->leased += state == KVI_BLOCK_LEASED || state == KVI_BLOCK_RELEASING;
    counts->held += state == KVI_BLOCK_LEASED;
    counts->arriving += state == KVI_BLOCK_ARRIVING;
    if (state > KVI_BLOCK_ARRIVING)
        return wrong("state of block", state, KVI_BLOCK_NONE, index);
    if (hot && segment != pool->current)
        return wrong("segment of hot block", slot, pool->current_base, index);
    if (hot && state != KVI_BLOCK_FREE)
        return wrong("state of hot block", state, KVI_BLOCK_FREE, index);
    if ((!is_used || hot) && pool->fill[index])
        return wrong("fill of unused block", pool->fill[index], 0, index);
    if (!segment->is_owned)
        return 0;
    shown = &segment->shown[at / KVI_STATUS_SLOT_BLOCKS];
    if (bit_at(shown->used, at % KVI_STATUS_SLOT_BLOCKS) != is_used)
        return wrong("used bit of block", (uint64_t)!is_used, (uint64_t)is_used, index);
    if (bit_at(shown->sealed, at % KVI_STATUS_SLOT_BLOCKS) != (state == KVI_BLOCK_PUBLISHING))
        return wrong("sealed bit of block", state != KVI_BLOCK_PUBLISHING,
                     state == KVI_BLOCK_PUBLISHING, index);
    if (bit_at(pool->free_words + (size_t)slot * pool->words_per_segment, at) !=
        (state == KVI_BLOCK_FREE && !hot))
        return wrong("free bit of block", state != KVI_BLOCK_FREE, state == KVI_BLOCK_FREE, index);
    if (state == KVI_BLOCK_FREE && !hot && at / 64 < segment->first_word)
        return wrong("first word of segment", segment->first_word, at / 64, slot);
    return 0;
}

static int check_class(const struct kvi_pool *pool, uint32_t slot)
{
    const struct kvi_segment *segment = &pool->segments[slot];
    uint32_t class = KVI_POOL_NO_CLASS;

    if (!segment->is_owned)
        return 0;
    if (segment->free_count && segment != pool->current)
        class = (uint32_t)(((uint64_t)(segment->free_count - 1) * pool->class_multiplier) >> 32);
    return segment->class == class ? 0 : wrong("class of segment", segment->class, class, slot);
}

static int check_segment(const struct kvi_pool *pool, uint32_t slot, struct counts *counts)
{
    const struct kvi_segment *segment = &pool->segments[slot];

    for (uint32_t at = 0; at < pool->blocks_per_segment; at++) {
        int code = check_block(pool, slot, at, counts);

        if (code)
            return code;
    }
    if (segment->free_count != counts->free)
        return wrong("free_count of segment", segment->free_count, counts->free, slot);
    if (segment->used_count != counts->used)
        return wrong("used_count of segment", segment->used_count, counts->used, slot);
    if (segment->sealing_count != counts->sealing)
        return wrong("sealing_count of segment", segment->sealing_count, counts->sealing, slot);
    if (segment->leased_count != counts->leased)
        return wrong("leased_count of segment", segment->leased_count, counts->leased, slot);
    if (segment->arriving_count != counts->arriving)
        return wrong("arriving_count of segment", segment->arriving_count, counts->arriving, slot);
    if (!segment->is_owned && (counts->free || counts->used || counts->arriving))
        return wrong("own blocks of foreign segment",
                     counts->free + counts->used + counts->arriving, 0, slot);
    if (segment->is_owned && !counts->used && !segment->is_candidate)
        return wrong("candidacy of idle segment", 0, 1, slot);
    return check_class(pool, slot);
}

static int check_lists(const struct kvi_pool *pool)
{
    uint32_t steps = 0;

    for (uint32_t class = 0; class < KVI_POOL_CLASSES; class ++) {
        uint32_t before = KVI_POOL_NO_SEGMENT;
        uint32_t slot = pool->class_first[class];

        if ((pool->class_mask >> class & 1) != (slot != KVI_POOL_NO_SEGMENT))
            return wrong("mask of class", pool->class_mask, slot, class);
        for (; slot != KVI_POOL_NO_SEGMENT; slot = pool->segments[slot].next) {
            if (pool->segments[slot].class != class || pool->segments[slot].prev != before)
                return wrong("list of class", slot, before, class);
            if (++steps > pool->segment_limit)
                return wrong("length of list of class", steps, pool->segment_limit, class);
            before = slot;
        }
    }
    steps = 0;
    for (uint32_t slot = pool->idle_first; slot != KVI_POOL_NO_SEGMENT;
         slot = pool->segments[slot].idle_next)
        if (!pool->segments[slot].is_candidate || ++steps > pool->segment_limit)
            return wrong("list of candidates", steps, pool->segment_limit, slot);
    return 0;
}

int kvi_pool_check(const struct kvi_pool *pool)
{
    struct counts total = {0};
    uint64_t owned = 0;

    for (uint32_t slot = 0; slot < pool->segment_limit; slot++) {
        struct counts counts = {0};
        int code = check_segment(pool, slot, &counts);

        if (code)
            return code;
        total.free += counts.free;
        total.used += counts.used;
        total.held += counts.held;
        total.arriving += counts.arriving;
        owned += pool->segments[slot].is_owned;
    }
    if (pool->listed_blocks != total.free)
        return wrong("free blocks", pool->listed_blocks, total.free, 0);
    if (pool->charged_blocks != total.used)
        return wrong("used blocks", pool->charged_blocks, total.used, 0);
    if (pool->leased_blocks != total.held)
        return wrong("leased blocks", pool->leased_blocks, total.held, 0);
    if (pool->arriving_blocks != total.arriving)
        return wrong("arriving blocks", pool->arriving_blocks, total.arriving, 0);
    if (pool->owned_segments != owned)
        return wrong("owned segments", pool->owned_segments, owned, 0);
    return check_lists(pool);
}
