/* SPDX-License-Identifier: Apache-2.0
 *
 * Appending: the hot path of a serving step.
 *
 *   1 look      every id; is there room in the tail? then nothing more (15 of 16 tokens)
 *               else count blocks and releases, and list the tails that are to be copied
 *   2 prepare   only when some have no room: are the blocks there? grow tables, copy shared
 *               tails aside. All that can fail is in 1 and 2, and can be undone.
 *   3 do        marks, counters, new blocks
 *
 * The copies of a batch are one call of the backend. On a GPU it returns before they are made: the
 * old tails cool until the stream has passed them, and when the call fails half-way, so do the
 * blocks that it may still write.
 *
 * In a space with regions (region.h) step 2 takes all blocks of the sequences that have one, and
 * maps what will be written, the copies behind everything else.
 *
 * Step 2 counts a copy for each shared tail; when two sequences of the batch share one, the
 * second may stay in place: only if the count does not fit, it is done exactly.
 */
#include <assert.h>
#include <inttypes.h>

#include "client/blocks.h"
#include "client/region.h"
#include "client/seq.h"
#include "util/error.h"

#define LIKELY(x)   __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define GROW 32u

struct plan {
    uint64_t blocks;     /* to be taken from the pool */
    uint64_t releases;   /* leases that may end */
    uint32_t copies;     /* whose and of what: space->copy_seqs, copy_from */
    uint32_t grow_count; /* tables that are too small: */
    uint32_t grow[GROW]; /* the first of them, by place in the batch */
};

static int table_limit(const struct kvmem_space *space, uint64_t blocks)
{
    return kvi_error_set(KVMEM_E_LIMIT,
                         "tokens: a table of %" PRIu64 " blocks, the space has %" PRIu32, blocks,
                         space->pool.index_range);
}

/* The sequence's tail, part full, is to be copied. */
static inline void plan_copy(const struct kvmem_space *space, const struct kvi_seq *seq,
                             uint32_t tail, struct plan *plan)
{
    space->copy_seqs[plan->copies] = (uint32_t)(seq - space->seqs);
    space->copy_from[plan->copies] = (int32_t)tail;
    plan->copies++;
    plan->releases += space->pool.state[tail] == KVI_BLOCK_LEASED;
}

/* A sequence whose tail is full before the last token: the i-th of the batch. */
static int plan_one(const struct kvmem_space *space, const struct kvi_seq *seq, uint32_t i,
                    uint32_t tokens, struct plan *plan)
{
    uint64_t after = kvi_seq_blocks_after(space, seq, tokens);
    bool copy = kvi_seq_needs_copy(space, seq);

    if (after > space->pool.index_range)
        return table_limit(space, after);
    if (copy)
        plan_copy(space, seq, kvi_seq_tail(space, seq), plan);
    plan->blocks += kvi_seq_blocks_lacking(space, seq, tokens, copy);
    if (after > kvi_table_entries(seq->table_class)) {
        if (plan->grow_count < GROW)
            plan->grow[plan->grow_count] = i;
        plan->grow_count++;
    }
    return 0;
}

/* The usual cases of it: one token, no block is reserved, and the next one goes to the table's end,
 * or into a tail that is part full. */
static inline bool plan_token(const struct kvmem_space *space, const struct kvi_seq *seq,
                              struct plan *plan)
{
    uint64_t whole = kvi_space_whole_blocks(space, seq->appended);
    uint32_t tail;

    if (!kvi_space_fill(space, seq->appended)) {
        if (whole != seq->block_count || whole >= kvi_table_entries(seq->table_class) ||
            whole >= space->pool.index_range)
            return false;
        plan->blocks++;
        return true;
    }
    if (whole + 1 != seq->block_count)
        return false;
    tail = (uint32_t)seq->blocks[whole];
    if (!kvi_seq_is_writable(space, tail)) {
        plan_copy(space, seq, tail, plan);
        plan->blocks++;
    }
    return true;
}

static int named_twice(uint32_t i)
{
    return kvi_error_set(KVMEM_E_INVALID, "seqs[%" PRIu32 "]: is named twice", i);
}

/* Step 1. 1 when some have not enough room in their tail, 0 when all have, or a code. */
static inline __attribute__((always_inline)) int look(struct kvmem_space *space, uint32_t n,
                                                      const struct kvmem_seq *seqs,
                                                      const uint32_t *counts, struct plan *plan)
{
    uint64_t stamp = ++space->batch_stamp;
    int slow = 0;

    plan->blocks = 0;
    plan->releases = 0;
    plan->copies = 0;
    plan->grow_count = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = kvi_seq_find(space, seqs[i]);
        uint32_t tokens = counts ? counts[i] : 1;
        int code;

        if (!LIKELY(seq != NULL))
            return kvi_seq_stale(seqs[i]);
        if (seq->stamp == stamp)
            return named_twice(i);
        seq->stamp = stamp;
        if (LIKELY(tokens <= seq->tail_room))
            continue;
        slow = 1;
        if (LIKELY(tokens == 1 && plan_token(space, seq, plan)))
            continue;
        code = plan_one(space, seq, i, tokens, plan);
        if (code)
            return code;
    }
    return slow;
}

/* What the batch takes exactly: each copy of a shared tail leaves it to fewer. */
static uint64_t exact_blocks(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                             const uint32_t *counts)
{
    uint64_t blocks = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = &space->seqs[seqs[i].index];
        uint32_t tokens = counts ? counts[i] : 1;
        bool copy = tokens && kvi_seq_needs_copy(space, seq);

        if (tokens > seq->tail_room)
            blocks += kvi_seq_blocks_lacking(space, seq, tokens, copy);
        seq->copy_block = copy ? 0 : KVMEM_BLOCK_NONE;
        if (copy)
            space->refs[kvi_seq_tail(space, seq)]--;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = &space->seqs[seqs[i].index];

        if (seq->copy_block == 0)
            space->refs[kvi_seq_tail(space, seq)]++;
        seq->copy_block = KVMEM_BLOCK_NONE;
    }
    return blocks;
}

/* A part-full tail is writable: what was said of its tokens is said anew. */
static inline void resume_tail(struct kvmem_space *space, struct kvi_seq *seq, uint32_t tail)
{
    uint32_t fill = kvi_space_fill(space, seq->appended);

    seq->tail_tokens = &kvi_pool_segment(&space->pool, tail)->shown->tokens;
    kvi_pool_count(seq->tail_tokens, (uint64_t)fill - space->pool.fill[tail]);
    space->pool.fill[tail] = (uint16_t)space->block_tokens;
    seq->tail_room = space->block_tokens - fill;
}

/* How the copies of a batch are ordered, and where what they leave waits. */
struct copying {
    uint32_t count;
    bool is_async; /* the backend returns before they are made */
    uint64_t stream;
    struct kvi_point point;         /* async: behind them */
    struct kvi_cooling_place place; /* async: for the blocks that wait for it */
};

/* The block that was reserved last, or none. */
static inline int32_t reserved_block(const struct kvmem_space *space, const struct kvi_seq *seq)
{
    return UNLIKELY(seq->block_count > kvi_seq_used_blocks(space, seq))
               ? seq->blocks[seq->block_count - 1]
               : KVMEM_BLOCK_NONE;
}

/* Whose copies are made, of those that were planned; how many have a reserved block for it. The old
 * tail's reference is gone from the count, but not yet dropped. */
static uint32_t choose_copies(struct kvmem_space *space, uint32_t planned, struct copying *copying)
{
    uint32_t count = 0, reserved = 0;

    for (uint32_t k = 0; k < planned; k++) {
        uint32_t place = space->copy_seqs[k];
        uint32_t tail = (uint32_t)space->copy_from[k];

        if (kvi_seq_is_writable(space, tail)) /* the others have left it */
            continue;
        space->refs[tail]--;
        space->copy_seqs[count] = place;
        space->copy_from[count++] = (int32_t)tail;
        reserved += reserved_block(space, &space->seqs[place]) != KVMEM_BLOCK_NONE;
    }
    copying->count = count;
    return reserved;
}

/* Choose a target for each copy: the last reserved block, or a new one. */
static void choose_targets(struct kvmem_space *space, uint32_t planned, struct copying *copying)
{
    uint32_t reserved = choose_copies(space, planned, copying);
    const int32_t *taken = space->copy_to + reserved;

    /* Taken ones lie at the end, and are read before they are written over. */
    kvi_pool_take_many(&space->pool, copying->count - reserved, space->copy_to + reserved);
    for (uint32_t k = 0; k < copying->count && (reserved || space->regions); k++) {
        struct kvi_seq *seq = &space->seqs[space->copy_seqs[k]];
        int32_t target = reserved_block(space, seq);

        space->copy_to[k] = target != KVMEM_BLOCK_NONE ? target : *taken++;
        if (space->regions)
            seq->copy_block = space->copy_to[k]; /* for map_copy */
    }
}

/* The copies failed. All references are as they were before: two sequences may have copied the
 * same tail. New targets go back, once the stream has passed what it may have got. */
static void undo_copies(struct kvmem_space *space, struct copying *copying)
{
    uint32_t taken = 0;

    for (uint32_t k = 0; k < copying->count; k++) {
        struct kvi_seq *seq = &space->seqs[space->copy_seqs[k]];

        space->refs[space->copy_from[k]]++;
        if (seq->block_count == kvi_seq_used_blocks(space, seq))
            space->copy_to[taken++] = space->copy_to[k];
        seq->copy_block = KVMEM_BLOCK_NONE;
    }
    if (!copying->is_async || !taken) {
        while (taken--)
            kvi_pool_give(&space->pool, (uint32_t)space->copy_to[taken]);
        kvi_cooling_cancel(space, &copying->place);
        return;
    }
    for (uint32_t i = 0; i < taken; i++)
        space->refs[space->copy_to[i]] = 1;
    kvi_cooling_add(space, &copying->point, space->copy_to, taken, &copying->place);
}

/* Put the copies in place: from here on nothing fails, and the next tokens go in. */
static void place_copies(struct kvmem_space *space, const struct copying *copying)
{
    for (uint32_t k = 0; k < copying->count; k++) {
        struct kvi_seq *seq = &space->seqs[space->copy_seqs[k]];
        uint32_t at = (uint32_t)kvi_space_whole_blocks(space, seq->appended);
        int32_t target = space->copy_to[k];

        space->refs[space->copy_from[k]]++;
        if (UNLIKELY(seq->block_count > at + 1))
            seq->block_count--;
        seq->blocks[at] = target;
        kvi_seq_table_changed(seq);
        space->refs[target] = 1;
        seq->copy_block = KVMEM_BLOCK_NONE;
        resume_tail(space, seq, (uint32_t)target);
    }
    space->stats.tail_copies += copying->count;
}

/* The old tails' references go, now or when the copies are made. */
static void drop_tails(struct kvmem_space *space, const struct copying *copying)
{
    if (!copying->is_async) {
        for (uint32_t i = 0; i < copying->count; i++)
            kvi_space_unref(space, (uint32_t)space->copy_from[i]);
        return;
    }
    kvi_cooling_add(space, &copying->point, space->copy_from, copying->count, &copying->place);
}

/* On the host: the copies are made at once, so what they read must be there. */
static int ready_on_host(struct kvmem_space *space, const struct kvmem_fence *fence)
{
    struct kvi_point point = {fence->timeline, fence->value};

    if (fence->kind != KVMEM_FENCE_TIMELINE)
        return 0;
    if (kvi_fence_state(space->client, &point) != KVI_LANE_PENDING)
        return kvi_fence_order(space->client, kvi_space_backend(space), 0, &point);
    return kvi_error_set(KVMEM_E_BUSY,
                         "fence: value %" PRIu64 " is not reached, and a shared tail "
                         "is to be copied; wait for it first",
                         point.value);
}

/* Everything that may fail before the first copy: what they wait for, a lane, a place for what
 * waits for them. At most `limit` copies. */
static int begin_copies(struct kvmem_space *space, uint32_t limit, const struct kvmem_fence *fence,
                        struct copying *copying)
{
    struct kvi_backend *backend = kvi_space_backend(space);
    struct kvi_point before;
    int code;

    *copying = (struct copying){.place = {NULL, KVI_TABLE_NONE}};
    if (backend->info.kind == KVI_BACKEND_HOST)
        return ready_on_host(space, fence);
    copying->is_async = true;
    if (fence->kind == KVMEM_FENCE_STREAM)
        copying->stream = (uint64_t)(uintptr_t)fence->stream;
    code = kvi_fence_prepare(space->client, backend, copying->stream);
    if (!code && fence->kind == KVMEM_FENCE_TIMELINE) {
        before = (struct kvi_point){fence->timeline, fence->value};
        code = kvi_fence_order(space->client, backend, copying->stream, &before);
    }
    return code ? code : kvi_cooling_reserve(space, limit, &copying->place);
}

static int map_regions(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                       const uint32_t *counts)
{
    return space->regions ? kvi_regions_map(space, n, seqs, counts) : 0;
}

/* The copies that are on their way, whole or half; then their views. */
static int end_copies(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                      const uint32_t *counts, struct copying *copying, int code)
{
    if (copying->is_async) {
        /* Whether or not it failed: some of the copies may be under way. */
        int recorded = kvi_fence_record(space->client, kvi_space_backend(space), copying->stream,
                                        &copying->point);

        code = code ? code : recorded;
    }
    if (!code)
        code = map_regions(space, n, seqs, counts);
    if (code && copying->is_async && space->regions) /* blocks that were taken go back at once */
        (void)kvi_region_wait(space, &copying->point);
    return code;
}

/* Copy tails that may not be written aside, and put the copies in their place. */
static int make_copies(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                       const uint32_t *counts, const struct plan *plan,
                       const struct kvmem_fence *fence)
{
    struct copying copying;
    int code = begin_copies(space, plan->copies, fence, &copying);

    if (code)
        return code;
    choose_targets(space, plan->copies, &copying);
    if (!copying.count) { /* what cooled was dropped meanwhile: nobody shares the tails now */
        kvi_cooling_cancel(space, &copying.place);
        return map_regions(space, n, seqs, counts);
    }
    code = kvi_blocks_move(space, copying.count, space->copy_from, space->copy_to, copying.stream);
    code = end_copies(space, n, seqs, counts, &copying, code);
    if (code) {
        undo_copies(space, &copying);
        return code;
    }
    place_copies(space, &copying);
    drop_tails(space, &copying);
    return 0;
}

/* A table that has grown changes nothing, but the address of the view: when nothing else can fail
 * for lack of blocks or records. */
static int grow_tables(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                       const uint32_t *counts, const struct plan *plan)
{
    uint32_t todo = plan->grow_count <= GROW ? plan->grow_count : n;
    int code = 0;

    for (uint32_t k = 0; !code && k < todo; k++) {
        uint32_t i = plan->grow_count <= GROW ? plan->grow[k] : k;
        struct kvi_seq *seq = &space->seqs[seqs[i].index];

        code = kvi_seq_table_grow(space, seq,
                                  kvi_seq_blocks_after(space, seq, counts ? counts[i] : 1));
    }
    return code;
}

/* The end of step 2 in a space with regions. */
static int prepare_regions(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                           const uint32_t *counts, const struct plan *plan,
                           const struct kvmem_fence *fence)
{
    int code = kvi_regions_take(space, n, seqs, counts, fence);

    if (!code && plan->copies)
        code = make_copies(space, n, seqs, counts, plan, fence);
    else if (!code)
        code = map_regions(space, n, seqs, counts);
    if (code)
        kvi_regions_undo(space, n, seqs);
    return code;
}

/* Step 2. */
static int prepare(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                   const uint32_t *counts, const struct plan *plan, const struct kvmem_fence *fence)
{
    int code = space->regions ? kvi_regions_check_limits(space, n, seqs, counts) : 0;

    if (code)
        return code;
    if (plan->blocks > kvi_pool_free_blocks(&space->pool))
        kvi_cooling_drain(space);
    if (plan->blocks > kvi_pool_free_blocks(&space->pool)) {
        uint64_t exact = plan->copies ? exact_blocks(space, n, seqs, counts) : plan->blocks;

        if (exact > kvi_pool_free_blocks(&space->pool))
            return kvi_space_lack(space, exact);
    }
    if (plan->releases) {
        code = kvi_space_room(space, plan->releases);
        if (code)
            return code;
    }
    if (plan->grow_count) {
        code = grow_tables(space, n, seqs, counts, plan);
        if (code)
            return code;
    }
    if (space->regions)
        return prepare_regions(space, n, seqs, counts, plan, fence);
    return plan->copies ? make_copies(space, n, seqs, counts, plan, fence) : 0;
}

/* The next block of the sequence, reserved or new, is its tail now. */
static inline void open_tail(struct kvmem_space *space, struct kvi_seq *seq)
{
    uint32_t at = (uint32_t)kvi_space_whole_blocks(space, seq->appended);
    uint32_t tail;

    if (at == seq->block_count) {
        int32_t taken = kvi_pool_take(&space->pool);

        assert(taken >= 0);
        space->refs[taken] = 1;
        seq->blocks[seq->block_count++] = taken;
    }
    tail = (uint32_t)seq->blocks[at];
    space->pool.fill[tail] = (uint16_t)space->block_tokens;
    seq->tail_room = space->block_tokens;
    seq->tail_tokens = &kvi_pool_segment(&space->pool, tail)->shown->tokens;
}

/* Step 3 for a sequence whose tail is full before the last token. */
static void extend(struct kvmem_space *space, struct kvi_seq *seq, uint32_t tokens)
{
    if (!seq->tail_room && tokens && kvi_space_fill(space, seq->appended))
        resume_tail(space, seq, kvi_seq_tail(space, seq));
    while (tokens) {
        uint32_t part;

        if (!seq->tail_room)
            open_tail(space, seq);
        part = tokens < seq->tail_room ? tokens : seq->tail_room;
        kvi_pool_count(seq->tail_tokens, part);
        seq->tail_room -= part;
        seq->appended += part;
        tokens -= part;
    }
}

static inline __attribute__((always_inline)) int append(struct kvmem_space *space, uint32_t n,
                                                        const struct kvmem_seq *seqs,
                                                        const uint32_t *counts,
                                                        const struct kvmem_fence *fence)
{
    struct plan plan;
    uint64_t total = 0;
    int code = look(space, n, seqs, counts, &plan);

    if (code > 0)
        code = prepare(space, n, seqs, counts, &plan, fence);
    if (code)
        return code;
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = &space->seqs[seqs[i].index];
        uint32_t tokens = counts ? counts[i] : 1;

        if (LIKELY(seq->tail_room && tokens <= seq->tail_room)) {
            kvi_pool_count(seq->tail_tokens, tokens);
            seq->tail_room -= tokens;
            seq->appended += tokens;
        } else {
            extend(space, seq, tokens);
        }
        total += tokens;
    }
    space->appended_tokens += total;
    return 0;
}

int kvi_seqs_append(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts, const struct kvmem_fence *fence)
{
    return counts ? append(space, n, seqs, counts, fence) : append(space, n, seqs, NULL, fence);
}

int kvi_seqs_can_append(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                        const uint32_t *counts)
{
    struct plan plan;
    int code = look(space, n, seqs, counts, &plan);

    if (code > 0 && space->regions)
        code = kvi_regions_check_limits(space, n, seqs, counts);
    if (code < 0)
        return code;
    if (plan.blocks <= kvi_pool_free_blocks(&space->pool))
        return 1;
    kvi_cooling_drain(space); /* as append will */
    if (plan.blocks <= kvi_pool_free_blocks(&space->pool))
        return 1;
    return plan.copies &&
           exact_blocks(space, n, seqs, counts) <= kvi_pool_free_blocks(&space->pool);
}

void kvi_seq_take_reserved(struct kvmem_space *space, struct kvi_seq *seq, uint64_t count)
{
    while (count--) {
        int32_t taken = kvi_pool_take(&space->pool);

        assert(taken >= 0);
        space->refs[taken] = 1;
        seq->blocks[seq->block_count++] = taken;
    }
}

int kvi_seq_reserve(struct kvmem_space *space, struct kvmem_seq id, uint32_t tokens)
{
    struct kvi_seq *seq = kvi_seq_find(space, id);
    uint64_t after, lacking;
    int code;

    if (!seq)
        return kvi_seq_stale(id);
    if (!tokens)
        return 0;
    after = kvi_seq_blocks_after(space, seq, tokens);
    if (after > space->pool.index_range)
        return table_limit(space, after);
    code = seq->has_region ? kvi_regions_check_limits(space, 1, &id, &tokens) : 0;
    if (code)
        return code;
    lacking = kvi_seq_blocks_lacking(space, seq, tokens, kvi_seq_needs_copy(space, seq));
    if (lacking > kvi_pool_free_blocks(&space->pool)) {
        kvi_cooling_drain(space);
        lacking = kvi_seq_blocks_lacking(space, seq, tokens, kvi_seq_needs_copy(space, seq));
    }
    if (lacking > kvi_pool_free_blocks(&space->pool))
        return kvi_space_lack(space, lacking);
    code = kvi_seq_table_grow(space, seq, seq->block_count + lacking);
    if (code)
        return code;
    kvi_seq_take_reserved(space, seq, lacking);
    return 0;
}
