/* SPDX-License-Identifier: Apache-2.0
 *
 * Taking and giving back blocks, in a few nanoseconds; see pool.h.
 *
 * Fullest first is the placement rule of Hoard (Berger et al., ASPLOS 2000, "emptiness groups"),
 * with one change: the segment in use stays until it is empty of free blocks, so that a steady
 * take-and-give touches no list.
 */
#include "client/pool.h"

#include <string.h>

#include "util/error.h"

#define LIKELY(x)   __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

struct place {
    struct kvi_segment *segment;
    uint32_t slot;
    uint32_t word;
    uint64_t mask;
};

static inline struct place place_of(const struct kvi_pool *pool, uint32_t index)
{
    struct place p;
    uint32_t at;

    p.slot = kvi_pool_slot(pool, index);
    p.segment = &pool->segments[p.slot];
    at = index - p.slot * pool->blocks_per_segment;
    p.word = at / 64;
    p.mask = UINT64_C(1) << (at % 64);
    return p;
}

static inline uint64_t *used_word(const struct kvi_segment *segment, uint32_t word)
{
    return &segment->shown[word / KVI_STATUS_SLOT_WORDS].used[word % KVI_STATUS_SLOT_WORDS];
}

static inline uint64_t *sealed_word(const struct kvi_segment *segment, uint32_t word)
{
    return &segment->shown[word / KVI_STATUS_SLOT_WORDS].sealed[word % KVI_STATUS_SLOT_WORDS];
}

static inline void set_bits(uint64_t *word, uint64_t mask)
{
    __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) | mask, __ATOMIC_RELAXED);
}

static inline void clear_bits(uint64_t *word, uint64_t mask)
{
    __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) & ~mask, __ATOMIC_RELAXED);
}

static size_t plain_bytes(const struct kvi_pool *pool)
{
    return (size_t)pool->segment_limit * pool->chunks_per_segment * sizeof(*pool->plain);
}

static size_t words_bytes(const struct kvi_pool *pool)
{
    return (size_t)pool->segment_limit * pool->words_per_segment * sizeof(uint64_t);
}

int kvi_pool_init(struct kvi_pool *pool, const struct kvi_alloc *alloc, uint32_t segment_limit,
                  uint32_t blocks_per_segment)
{
    memset(pool, 0, sizeof(*pool));
    pool->alloc = *alloc;
    pool->segment_limit = segment_limit;
    pool->blocks_per_segment = blocks_per_segment;
    pool->index_range = segment_limit * blocks_per_segment;
    pool->words_per_segment = (blocks_per_segment + 63) / 64;
    pool->chunks_per_segment = kvi_status_chunks(blocks_per_segment);
    pool->slot_multiplier = ((UINT64_C(1) << 62) + blocks_per_segment - 1) / blocks_per_segment;
    pool->class_multiplier = ((uint64_t)KVI_POOL_CLASSES << 32) / blocks_per_segment;
    pool->hot = KVMEM_BLOCK_NONE;
    pool->idle_first = KVI_POOL_NO_SEGMENT;
    for (uint32_t c = 0; c < KVI_POOL_CLASSES; c++)
        pool->class_first[c] = KVI_POOL_NO_SEGMENT;
    pool->segments = kvi_allocate(alloc, segment_limit * sizeof(*pool->segments));
    pool->free_words = kvi_allocate(alloc, words_bytes(pool));
    pool->plain = kvi_allocate(alloc, plain_bytes(pool));
    pool->state = kvi_allocate(alloc, pool->index_range);
    pool->fill = kvi_allocate(alloc, pool->index_range * sizeof(*pool->fill));
    if (pool->segments && pool->free_words && pool->plain && pool->state && pool->fill)
        return 0;
    kvi_pool_fini(pool);
    return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for records of %u blocks",
                         segment_limit * blocks_per_segment);
}

void kvi_pool_fini(struct kvi_pool *pool)
{
    if (!pool->segment_limit)
        return;
    kvi_release(&pool->alloc, pool->fill, pool->index_range * sizeof(*pool->fill));
    kvi_release(&pool->alloc, pool->state, pool->index_range);
    kvi_release(&pool->alloc, pool->plain, plain_bytes(pool));
    kvi_release(&pool->alloc, pool->free_words, words_bytes(pool));
    kvi_release(&pool->alloc, pool->segments, pool->segment_limit * sizeof(*pool->segments));
    memset(pool, 0, sizeof(*pool));
}

static void list_remove(struct kvi_pool *pool, struct kvi_segment *segment)
{
    uint32_t class = segment->class;

    if (class == KVI_POOL_NO_CLASS)
        return;
    if (segment->prev != KVI_POOL_NO_SEGMENT)
        pool->segments[segment->prev].next = segment->next;
    else
        pool->class_first[class] = segment->next;
    if (segment->next != KVI_POOL_NO_SEGMENT)
        pool->segments[segment->next].prev = segment->prev;
    if (pool->class_first[class] == KVI_POOL_NO_SEGMENT)
        pool->class_mask &= ~(UINT64_C(1) << class);
    segment->class = KVI_POOL_NO_CLASS;
}

static void list_add(struct kvi_pool *pool, uint32_t slot, uint32_t class)
{
    struct kvi_segment *segment = &pool->segments[slot];
    uint32_t first = pool->class_first[class];

    segment->class = (uint8_t) class;
    segment->prev = KVI_POOL_NO_SEGMENT;
    segment->next = first;
    if (first != KVI_POOL_NO_SEGMENT)
        pool->segments[first].prev = slot;
    pool->class_first[class] = slot;
    pool->class_mask |= UINT64_C(1) << class;
}

static inline uint32_t class_of(const struct kvi_pool *pool, const struct kvi_segment *segment)
{
    return (uint32_t)(((uint64_t)(segment->free_count - 1) * pool->class_multiplier) >> 32);
}

/* The segment, not the current one, has one free block more. */
static inline void reclass(struct kvi_pool *pool, uint32_t slot)
{
    struct kvi_segment *segment = &pool->segments[slot];
    uint32_t class = class_of(pool, segment);

    if (LIKELY(class == segment->class))
        return;
    list_remove(pool, segment);
    list_add(pool, slot, class);
}

static void idle_add(struct kvi_pool *pool, uint32_t slot)
{
    struct kvi_segment *segment = &pool->segments[slot];

    pool->has_new_idle = true;
    if (segment->is_candidate)
        return;
    segment->is_candidate = true;
    segment->idle_next = pool->idle_first;
    pool->idle_first = slot;
}

/* No block is hot: it would belong to the segment that was current. */
static void set_current(struct kvi_pool *pool, struct kvi_segment *segment)
{
    assert(pool->hot == KVMEM_BLOCK_NONE);
    pool->current = segment;
    pool->current_span = segment ? pool->blocks_per_segment : 0;
    pool->current_base =
        segment ? (uint32_t)(segment - pool->segments) * pool->blocks_per_segment : 0;
}

void kvi_pool_own(struct kvi_pool *pool, uint32_t slot, struct kvi_status_slot *shown)
{
    struct kvi_segment *segment = &pool->segments[slot];

    assert(!segment->is_owned && !segment->used_count);
    segment->is_owned = true;
    segment->is_on_page = shown != NULL;
    segment->class = KVI_POOL_NO_CLASS;
    segment->first_word = pool->words_per_segment;
    segment->shown = shown;
    if (!shown) {
        segment->shown = pool->plain + (size_t)slot * pool->chunks_per_segment;
        memset(segment->shown, 0, pool->chunks_per_segment * sizeof(*segment->shown));
    }
    pool->owned_segments++;
    idle_add(pool, slot);
}

void kvi_pool_expect(struct kvi_pool *pool, uint32_t index)
{
    struct kvi_segment *segment = kvi_pool_segment(pool, index);

    assert(segment->is_owned && pool->state[index] == KVI_BLOCK_NONE);
    pool->state[index] = KVI_BLOCK_ARRIVING;
    segment->arriving_count++;
    pool->arriving_blocks++;
}

void kvi_pool_suspend(struct kvi_pool *pool, uint32_t slot)
{
    struct kvi_segment *segment = &pool->segments[slot];
    uint64_t *words = pool->free_words + (size_t)slot * pool->words_per_segment;
    uint32_t base = slot * pool->blocks_per_segment;

    assert(segment->is_owned && !segment->used_count && !segment->fenced_count);
    if (pool->current == segment)
        set_current(pool, NULL);
    list_remove(pool, segment);
    for (uint32_t w = 0; segment->free_count && w < pool->words_per_segment; w++) {
        for (uint64_t bits = words[w]; bits; bits &= bits - 1) {
            pool->state[base + w * 64 + (uint32_t)__builtin_ctzll(bits)] = KVI_BLOCK_ARRIVING;
            segment->arriving_count++;
            segment->free_count--;
            pool->arriving_blocks++;
            pool->listed_blocks--;
        }
        words[w] = 0;
    }
}

/* The segment's ARRIVING blocks are NONE; how many. */
static uint32_t forget_arriving(struct kvi_pool *pool, uint32_t slot)
{
    struct kvi_segment *segment = &pool->segments[slot];
    uint32_t base = slot * pool->blocks_per_segment;
    uint32_t count = segment->arriving_count;

    for (uint32_t at = 0; segment->arriving_count; at++) {
        if (pool->state[base + at] != KVI_BLOCK_ARRIVING)
            continue;
        pool->state[base + at] = KVI_BLOCK_NONE;
        segment->arriving_count--;
    }
    pool->arriving_blocks -= count;
    return count;
}

void kvi_pool_arrive(struct kvi_pool *pool, uint32_t slot)
{
    struct kvi_segment *segment = &pool->segments[slot];
    uint32_t base = slot * pool->blocks_per_segment;

    for (uint32_t at = 0; segment->arriving_count; at++) {
        if (pool->state[base + at] != KVI_BLOCK_ARRIVING)
            continue;
        pool->state[base + at] = KVI_BLOCK_NONE;
        segment->arriving_count--;
        pool->arriving_blocks--;
        kvi_pool_add(pool, base + at);
    }
}

uint32_t kvi_pool_disown(struct kvi_pool *pool, uint32_t slot)
{
    struct kvi_segment *segment = &pool->segments[slot];
    uint32_t count;

    kvi_pool_suspend(pool, slot);
    count = forget_arriving(pool, slot);
    if (segment->is_on_page)
        kvi_status_hide(segment->shown, pool->blocks_per_segment);
    segment->shown = NULL;
    segment->is_on_page = false;
    segment->is_owned = false;
    pool->owned_segments--;
    return count;
}

void kvi_pool_add(struct kvi_pool *pool, uint32_t index)
{
    struct place p = place_of(pool, index);

    assert(p.segment->is_owned && pool->state[index] == KVI_BLOCK_NONE);
    pool->state[index] = KVI_BLOCK_FREE;
    pool->free_words[(size_t)p.slot * pool->words_per_segment + p.word] |= p.mask;
    if (p.word < p.segment->first_word)
        p.segment->first_word = p.word;
    p.segment->free_count++;
    pool->listed_blocks++;
    if (p.segment != pool->current)
        reclass(pool, p.slot);
}

/* The current segment has no free block: go on with the fullest one that has. */
static struct kvi_segment *next_current(struct kvi_pool *pool)
{
    struct kvi_segment *segment;

    set_current(pool, NULL);
    if (!pool->class_mask)
        return NULL;
    segment = &pool->segments[pool->class_first[__builtin_ctzll(pool->class_mask)]];
    list_remove(pool, segment);
    set_current(pool, segment);
    return segment;
}

/* The first free blocks of the current or the next segment, `count` of them at most, but no more
 * than a word of bits has. How many: 0 when no segment has any. */
static inline __attribute__((always_inline)) uint32_t take_word(struct kvi_pool *pool,
                                                                uint32_t count, int32_t *out)
{
    struct kvi_segment *segment = pool->current;
    uint32_t slot, word, base, taken = 0;
    uint64_t *words, bits, left;

    if (UNLIKELY(!segment || !segment->free_count)) {
        segment = next_current(pool);
        if (!segment)
            return 0;
    }
    slot = (uint32_t)(segment - pool->segments);
    words = pool->free_words + (size_t)slot * pool->words_per_segment;
    for (word = segment->first_word; UNLIKELY(!words[word]); word++)
        ;
    segment->first_word = word;
    base = slot * pool->blocks_per_segment + word * 64;
    bits = words[word];
    for (left = bits; left && taken < count; left &= left - 1) {
        out[taken] = (int32_t)(base + (uint32_t)__builtin_ctzll(left));
        pool->state[out[taken++]] = KVI_BLOCK_PRIVATE;
    }
    words[word] = left;
    set_bits(used_word(segment, word), bits ^ left);
    segment->free_count -= taken;
    segment->used_count += taken;
    pool->listed_blocks -= taken;
    pool->charged_blocks += taken;
    return taken;
}

int32_t kvi_pool_take_cold(struct kvi_pool *pool)
{
    int32_t index;

    return take_word(pool, 1, &index) ? index : KVMEM_BLOCK_NONE;
}

void kvi_pool_take_many(struct kvi_pool *pool, uint32_t count, int32_t *out)
{
    uint32_t taken = 0;

    assert(count <= kvi_pool_free_blocks(pool));
    if (count && pool->hot != KVMEM_BLOCK_NONE)
        out[taken++] = kvi_pool_take(pool);
    while (taken < count)
        taken += take_word(pool, count - taken, out + taken);
}

void kvi_pool_clear_fill(struct kvi_pool *pool, uint32_t index)
{
    kvi_pool_count(&kvi_pool_segment(pool, index)->shown->tokens, -(uint64_t)pool->fill[index]);
    pool->fill[index] = 0;
}

/* A used block is no longer one. */
static inline void leave_used(struct kvi_pool *pool, uint32_t index, const struct place *p)
{
    clear_bits(used_word(p->segment, p->word), p->mask);
    if (pool->fill[index])
        kvi_pool_clear_fill(pool, index);
    pool->charged_blocks--;
    if (UNLIKELY(--p->segment->used_count == 0))
        idle_add(pool, p->slot);
}

void kvi_pool_give_cold(struct kvi_pool *pool, uint32_t index)
{
    struct place p = place_of(pool, index);

    assert(pool->state[index] == KVI_BLOCK_PRIVATE);
    pool->state[index] = KVI_BLOCK_FREE;
    pool->free_words[(size_t)p.slot * pool->words_per_segment + p.word] |= p.mask;
    if (p.word < p.segment->first_word)
        p.segment->first_word = p.word;
    p.segment->free_count++;
    pool->listed_blocks++;
    leave_used(pool, index, &p);
    if (p.segment != pool->current)
        reclass(pool, p.slot);
}

void kvi_pool_settle(struct kvi_pool *pool)
{
    uint32_t index = (uint32_t)pool->hot;

    if (pool->hot == KVMEM_BLOCK_NONE)
        return;
    pool->hot = KVMEM_BLOCK_NONE;
    pool->state[index] = KVI_BLOCK_PRIVATE;
    kvi_pool_give_cold(pool, index);
}

void kvi_pool_seal(struct kvi_pool *pool, uint32_t index)
{
    struct place p = place_of(pool, index);

    assert(pool->state[index] == KVI_BLOCK_PRIVATE);
    pool->state[index] = KVI_BLOCK_PUBLISHING;
    p.segment->sealing_count++;
    set_bits(sealed_word(p.segment, p.word), p.mask);
}

void kvi_pool_unseal(struct kvi_pool *pool, uint32_t index)
{
    struct place p = place_of(pool, index);

    assert(pool->state[index] == KVI_BLOCK_PUBLISHING);
    pool->state[index] = KVI_BLOCK_PRIVATE;
    p.segment->sealing_count--;
    clear_bits(sealed_word(p.segment, p.word), p.mask);
}

void kvi_pool_become_entry(struct kvi_pool *pool, uint32_t index)
{
    struct place p = place_of(pool, index);

    kvi_pool_unseal(pool, index);
    pool->state[index] = KVI_BLOCK_LEASED;
    leave_used(pool, index, &p);
    p.segment->leased_count++;
    pool->leased_blocks++;
}

void kvi_pool_lease(struct kvi_pool *pool, uint32_t index)
{
    assert(pool->state[index] == KVI_BLOCK_NONE || pool->state[index] == KVI_BLOCK_RELEASING);
    if (pool->state[index] == KVI_BLOCK_NONE)
        kvi_pool_segment(pool, index)->leased_count++;
    pool->state[index] = KVI_BLOCK_LEASED;
    pool->leased_blocks++;
}

void kvi_pool_begin_release(struct kvi_pool *pool, uint32_t index)
{
    assert(pool->state[index] == KVI_BLOCK_LEASED);
    pool->state[index] = KVI_BLOCK_RELEASING;
    pool->leased_blocks--;
}

void kvi_pool_end_release(struct kvi_pool *pool, uint32_t index)
{
    assert(pool->state[index] == KVI_BLOCK_RELEASING);
    pool->state[index] = KVI_BLOCK_NONE;
    kvi_pool_segment(pool, index)->leased_count--;
}
