/* SPDX-License-Identifier: Apache-2.0
 *
 * Who gets memory: the plan of a request for blocks.
 *
 *   1  idle blocks of HANDED_IN segments of the space, the fullest segment first
 *   2  new segments, while bytes are free and the quota allows; tainted ones are dropped for
 *      them before anything else has to go
 *   3  eviction, the coldest first:
 *        a whole segment of another space, when it is colder than everything of the own one:
 *          moved where it is of the same size and sharing domain, else dropped for a new one
 *        whole segments of the own space, for whole segments' worth of the want
 *        blocks of the own space, least recently used first, in segments that nobody or the
 *        asker owns
 *
 *   own cold     = the oldest stamp on any list of the own space that may be evicted from
 *   foreign cold = the newest stamp of a HANDED_IN segment without references (0 when it has no
 *                  entries); several, coldest first, where one does not give enough bytes
 *
 * Only memory of the space's own device counts, and only owners there are asked to give.
 *
 * A step of the third kind compares the two and takes the colder, so memory of other spaces that
 * is empty goes first, and all that may go goes last, when the own space has nothing left.
 *
 * Every step is a function of the directory's state alone. The three heaps are built at most
 * once a plan and checked when they are used: an item whose segment has changed is put right or
 * thrown away. What was found is added to dir->grant as it is found.
 */
#include "directory/directory_internal.h"

#define RUN 32u /* blocks evicted in one go */

struct plan {
    struct kvi_dir *dir;
    struct kvi_dir_open *open;
    struct kvi_dir_request *request;
    struct kvi_dir_space *space;
    struct kvi_dir_memory *memory; /* of its device, the only one that is looked at */
    struct kvi_dir_client *client;
    int has_foreign; /* heap built */
    int has_whole;
    int has_blocks;
    uint32_t chosen; /* foreign segments at foreign.items[foreign.count ...], to be taken next */
};

/* What a step came to; positive: goes on, 0: found nothing. */
enum step {
    STEP_NONE = 0,
    STEP_FOUND = 1,
    STEP_HELD = -1,
    STEP_NO_MEMORY = -2
};

static uint64_t lacking(const struct plan *plan)
{
    return plan->request->want > plan->request->granted
               ? plan->request->want - plan->request->granted
               : 0;
}

static int is_own(const struct plan *plan, const struct kvi_dir_segment *segment)
{
    return segment->space == plan->open->space;
}

/* ---- adoption ---- */

static int may_adopt(const struct kvi_dir_segment *segment)
{
    return segment->state == KVI_SEGMENT_HANDED_IN && !segment->is_tainted;
}

/* Take over a HANDED_IN segment: all idle blocks of it are granted with it. */
static enum step adopt(struct plan *plan, uint32_t number)
{
    struct kvi_dir *dir = plan->dir;
    struct kvi_dir_segment *segment = &dir->segments[number];
    uint32_t words = (segment->block_count + 63) / 64;

    if (!kvi_dir_segment_is_mapped_by(segment, plan->client->number) &&
        kvi_dir_client_fd_room(dir, plan->client) == 0)
        return STEP_HELD;
    plan->request->granted += kvi_dir_segment_idle(segment);
    kvi_dir_segment_adopt(dir, number, plan->open);
    kvi_dir_grant_segment(dir, plan->open, number, KVI_SEGMENT_ADOPTED);
    for (uint32_t w = 0; w < words; w++) {
        uint32_t count = segment->block_count - w * 64;
        uint64_t idle = ~segment->entry_bits[w];

        if (count < 64)
            idle &= (UINT64_C(1) << count) - 1;
        while (idle != 0) {
            uint32_t first = (uint32_t)__builtin_ctzll(idle);
            uint64_t rest = ~(idle >> first);
            uint32_t run = rest == 0 ? 64 - first : (uint32_t)__builtin_ctzll(rest);

            kvi_dir_grant_blocks(dir, plan->open, segment, w * 64 + first, run);
            idle = first + run == 64 ? 0 : idle >> (first + run) << (first + run);
        }
    }
    return STEP_FOUND;
}

static enum step adopt_idle(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;
    struct kvi_heap *heap = &dir->blocks; /* lent before it is built */

    heap->count = 0;
    for (uint32_t slot = 0; slot < plan->space->slot_high; slot++) {
        uint32_t number = plan->space->slots[slot].segment;
        const struct kvi_dir_segment *segment;

        if (number == KVI_DIR_NONE)
            continue;
        segment = &dir->segments[number];
        if (may_adopt(segment) && kvi_dir_segment_idle(segment) > 0)
            kvi_heap_append(heap, (uint64_t)kvi_dir_segment_idle(segment) << 32 | slot, number);
    }
    kvi_heap_order(heap);
    while (heap->count > 0 && lacking(plan) > 0) {
        enum step step = adopt(plan, (uint32_t)heap->items[0].value);

        if (step != STEP_FOUND)
            return step;
        kvi_heap_pop(heap);
    }
    return STEP_FOUND;
}

/* ---- new segments ---- */

static int may_create(const struct plan *plan)
{
    return plan->request->create_code == 0 && kvi_dir_space_quota_allows(plan->space);
}

static void start(struct plan *plan, uint32_t number)
{
    plan->request->creating++;
    plan->request->granted += plan->space->geometry.blocks_per_segment;
    kvi_dir_segment_start(plan->dir, number, plan->open);
}

static enum step create_free(struct plan *plan)
{
    while (lacking(plan) > 0 && may_create(plan) &&
           plan->memory->free_bytes >= plan->space->geometry.segment_bytes) {
        uint32_t number;
        int code;

        if (kvi_dir_client_fd_room(plan->dir, plan->client) == 0)
            return STEP_HELD;
        code = kvi_dir_segment_prepare(plan->dir, plan->space, &number);
        if (code == KVMEM_E_NO_MEMORY)
            return STEP_NO_MEMORY;
        if (code != 0)
            break;
        start(plan, number);
    }
    return STEP_FOUND;
}

/* ---- memory of other spaces ---- */

static int may_take_foreign(const struct plan *plan, const struct kvi_dir_segment *segment)
{
    return segment->state == KVI_SEGMENT_HANDED_IN && !is_own(plan, segment) &&
           segment->referenced_count == 0 &&
           kvi_dir_device_of(plan->dir, segment) == plan->space->device;
}

static void build_foreign(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;

    plan->has_foreign = 1;
    dir->foreign.count = 0;
    if (plan->memory->segment_count == plan->space->segment_count)
        return;
    for (uint32_t number = 0; number < dir->segment_high; number++)
        if (may_take_foreign(plan, &dir->segments[number]))
            kvi_heap_append(&dir->foreign, kvi_dir_newest_stamp(&dir->segments[number]), number);
    kvi_heap_order(&dir->foreign);
}

/* Choose the coldest ones that together with the free bytes make a segment; the stamp of the
 * last of them, or UINT64_MAX when all together do not. */
static uint64_t foreign_cold(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;
    uint64_t bytes = plan->memory->free_bytes;

    if (!may_create(plan))
        return UINT64_MAX;
    if (!plan->has_foreign)
        build_foreign(plan);
    for (uint32_t i = 0; i < plan->chosen; i++)
        bytes += dir->segments[dir->foreign.items[dir->foreign.count + i].value].bytes;
    while (bytes < plan->space->geometry.segment_bytes && dir->foreign.count > 0) {
        bytes += dir->segments[dir->foreign.items[0].value].bytes;
        kvi_heap_pop(&dir->foreign);
        plan->chosen++;
    }
    if (bytes < plan->space->geometry.segment_bytes || plan->chosen == 0)
        return UINT64_MAX;
    return dir->foreign.items[dir->foreign.count].key;
}

/* A handle belongs to one sharing domain for life, so inside it the memory may stay what it is. */
static int may_move(const struct plan *plan, const struct kvi_dir_segment *segment)
{
    return !segment->is_tainted && segment->bytes == plan->space->geometry.segment_bytes &&
           strcmp(plan->dir->spaces[segment->space].domain, plan->space->domain) == 0;
}

static enum step failed_step(int code)
{
    return code == KVMEM_E_NO_MEMORY ? STEP_NO_MEMORY : STEP_NONE;
}

static enum step move(struct plan *plan, uint32_t number)
{
    struct kvi_dir *dir = plan->dir;
    struct kvi_dir_segment *segment = &dir->segments[number];
    int code = kvi_dir_segment_move(dir, number, plan->open);

    if (code != 0)
        return failed_step(code);
    plan->chosen = 0;
    plan->has_foreign = 0;
    plan->request->granted += segment->block_count;
    kvi_dir_grant_segment(dir, plan->open, number, 0);
    kvi_dir_grant_blocks(dir, plan->open, segment, 0, segment->block_count);
    return STEP_FOUND;
}

/* Drop those that foreign_cold() chose, and make a segment of their bytes; or move the one. */
static enum step take_foreign(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;
    uint32_t number = (uint32_t)dir->foreign.items[dir->foreign.count].value;
    int code;

    if (kvi_dir_client_fd_room(dir, plan->client) == 0)
        return STEP_HELD;
    if (plan->chosen == 1 && may_move(plan, &dir->segments[number]))
        return move(plan, number);
    code = kvi_dir_segment_prepare(dir, plan->space, &number);
    if (code != 0)
        return failed_step(code);
    for (uint32_t i = plan->chosen; i > 0; i--) {
        uint32_t victim = (uint32_t)dir->foreign.items[dir->foreign.count + i - 1].value;
        struct kvi_dir_space *space = &dir->spaces[dir->segments[victim].space];

        kvi_dir_segment_drop(dir, victim);
        kvi_dir_space_settle(dir, space);
    }
    plan->chosen = 0;
    plan->has_foreign = 0; /* settling may have dropped more of that space */
    if (plan->memory->free_bytes < plan->space->geometry.segment_bytes) {
        kvi_dir_segment_abandon(dir, number); /* they drain first: the request will wait */
        return STEP_NONE;
    }
    start(plan, number);
    return STEP_FOUND;
}

/* ---- tainted memory ---- */

/* Its bytes would help: those of the own space under a quota, too. */
static int may_drop_tainted(const struct plan *plan, const struct kvi_dir_segment *segment)
{
    return segment->is_tainted && segment->state == KVI_SEGMENT_HANDED_IN &&
           segment->referenced_count == 0 &&
           kvi_dir_device_of(plan->dir, segment) == plan->space->device &&
           (is_own(plan, segment) || kvi_dir_space_quota_allows(plan->space));
}

/* One segment, so that its bytes can be created afresh. */
static enum step drop_tainted(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;

    if (dir->tainted_count == 0 || plan->request->create_code != 0)
        return STEP_NONE;
    for (uint32_t number = 0; number < dir->segment_high; number++) {
        struct kvi_dir_space *space = &dir->spaces[dir->segments[number].space];

        if (!may_drop_tainted(plan, &dir->segments[number]))
            continue;
        if (kvi_dir_client_fd_room(dir, plan->client) == 0)
            return STEP_HELD;
        kvi_dir_segment_drop(dir, number);
        kvi_dir_space_settle(dir, space);
        plan->chosen = 0;
        plan->has_foreign = 0;
        return STEP_FOUND;
    }
    return STEP_NONE;
}

/* ---- eviction in the own space ---- */

static int may_evict_blocks(const struct plan *plan, const struct kvi_dir_segment *segment)
{
    return may_adopt(segment) ||
           (segment->state == KVI_SEGMENT_OWNED && segment->owner == plan->client->number);
}

static int may_take_whole(const struct kvi_dir_segment *segment)
{
    return may_adopt(segment) && segment->referenced_count == 0 && segment->entry_count > 0;
}

static void build_own(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;

    plan->has_blocks = 1;
    dir->blocks.count = 0;
    for (uint32_t slot = 0; slot < plan->space->slot_high; slot++) {
        uint32_t number = plan->space->slots[slot].segment;

        uint64_t stamp = UINT64_MAX;

        if (number != KVI_DIR_NONE && may_evict_blocks(plan, &dir->segments[number]))
            stamp = kvi_dir_trim(&dir->segments[number]);
        if (stamp != UINT64_MAX)
            kvi_heap_append(&dir->blocks, stamp, number);
    }
    kvi_heap_order(&dir->blocks);
}

static void build_whole(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;

    plan->has_whole = 1;
    dir->whole.count = 0;
    for (uint32_t slot = 0; slot < plan->space->slot_high; slot++) {
        uint32_t number = plan->space->slots[slot].segment;

        if (number != KVI_DIR_NONE && may_take_whole(&dir->segments[number]))
            kvi_heap_append(&dir->whole, kvi_dir_newest_stamp(&dir->segments[number]), number);
    }
    kvi_heap_order(&dir->whole);
}

/* Stamp of the least recently used entry that may be evicted; its segment becomes the first of
 * the heap. UINT64_MAX: there is none. */
static uint64_t own_cold(struct plan *plan)
{
    struct kvi_heap *heap = &plan->dir->blocks;

    if (!plan->has_blocks)
        build_own(plan);
    while (heap->count > 0) {
        uint64_t stamp = kvi_dir_trim(&plan->dir->segments[heap->items[0].value]);

        if (stamp == heap->items[0].key)
            return stamp;
        if (stamp == UINT64_MAX)
            kvi_heap_pop(heap);
        else
            kvi_heap_rekey(heap, stamp);
    }
    return UINT64_MAX;
}

static enum step take_whole(struct plan *plan)
{
    struct kvi_dir *dir = plan->dir;
    struct kvi_heap *heap = &dir->whole;

    if (!plan->has_whole)
        build_whole(plan);
    while (heap->count > 0) {
        uint32_t number = (uint32_t)heap->items[0].value;
        struct kvi_dir_segment *segment = &dir->segments[number];

        if (!may_take_whole(segment)) { /* adopted since */
            kvi_heap_pop(heap);
            continue;
        }
        if (!kvi_dir_segment_is_mapped_by(segment, plan->client->number) &&
            kvi_dir_client_fd_room(dir, plan->client) == 0)
            return STEP_HELD;
        kvi_heap_pop(heap);
        kvi_dir_entry_evict_all(dir, number);
        return adopt(plan, number);
    }
    return STEP_NONE;
}

/* The oldest entries of the segment with stamps below `limit`, at most `most`. */
static uint32_t collect_run(const struct kvi_dir *dir, const struct kvi_dir_segment *segment,
                            uint64_t limit, uint64_t most, uint32_t *blocks)
{
    uint32_t block = segment->oldest;
    uint32_t count = 0;

    while (count < RUN && count < most && block != KVI_DIR_NONE &&
           segment->entries[block].stamp < limit &&
           !kvi_dir_is_referenced(&segment->entries[block])) {
        kvi_index_prefetch(&dir->index, segment->entries[block].tag);
        blocks[count++] = block;
        block = segment->entries[block].newer;
    }
    return count;
}

/* Get what comes after the run into the cache: its segment is looked at again when its stamp is
 * the lowest, maybe much later. */
static void prefetch_next(const struct kvi_dir *dir, const struct kvi_dir_segment *segment)
{
    const struct kvi_dir_entry *entry;

    if (segment->oldest == KVI_DIR_NONE)
        return;
    entry = &segment->entries[segment->oldest];
    kvi_index_prefetch(&dir->index, entry->tag);
    if (entry->newer != KVI_DIR_NONE)
        __builtin_prefetch(&segment->entries[entry->newer], 1);
}

/* Evict block by block while that is colder than `limit`. */
static enum step evict_blocks(struct plan *plan, uint64_t limit)
{
    struct kvi_dir *dir = plan->dir;
    struct kvi_heap *heap = &dir->blocks;
    uint32_t blocks[RUN];

    while (lacking(plan) > 0 && own_cold(plan) < limit) {
        uint32_t number = (uint32_t)heap->items[0].value;
        struct kvi_dir_segment *segment = &dir->segments[number];
        uint64_t second = kvi_heap_second_key(heap);
        uint32_t count;

        if (segment->state == KVI_SEGMENT_HANDED_IN && adopt(plan, number) == STEP_HELD)
            return STEP_HELD;
        assert(lacking(plan) > 0); /* what had idle blocks was adopted before */
        count = collect_run(dir, segment, second < limit ? second : limit, lacking(plan), blocks);
        kvi_dir_entry_evict_oldest(dir, number, blocks, count);
        for (uint32_t i = 0; i < count; i++)
            kvi_dir_grant_blocks(dir, plan->open, segment, blocks[i], 1);
        plan->request->granted += count;
        prefetch_next(dir, segment);
    }
    return STEP_FOUND;
}

static enum step create_or_evict(struct plan *plan)
{
    for (;;) {
        enum step step = create_free(plan); /* of what a larger foreign segment left over, too */
        uint64_t own, foreign;

        if (step != STEP_FOUND || lacking(plan) == 0)
            return step;
        step = drop_tainted(plan);
        if (step == STEP_HELD)
            return step;
        if (step == STEP_FOUND)
            continue;
        own = own_cold(plan);
        foreign = foreign_cold(plan);
        step = STEP_NONE;
        if (foreign < own)
            step = take_foreign(plan);
        else if (own == UINT64_MAX)
            return STEP_FOUND;
        else if (lacking(plan) >= plan->space->geometry.blocks_per_segment)
            step = take_whole(plan);
        if (step == STEP_NONE && own != UINT64_MAX)
            step = evict_blocks(plan, foreign < own ? UINT64_MAX : foreign);
        if (step < STEP_FOUND)
            return step;
    }
}

/* ---- the plan ---- */

enum kvi_dir_plan kvi_dir_plan(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    struct plan plan = {.dir = dir,
                        .open = open,
                        .request = &open->request,
                        .space = &dir->spaces[open->space],
                        .memory = kvi_dir_memory_of(dir, &dir->spaces[open->space]),
                        .client = &dir->clients[open->client]};
    enum step step = adopt_idle(&plan);

    if (step == STEP_FOUND)
        step = create_or_evict(&plan);
    if (step == STEP_HELD)
        return KVI_DIR_PLAN_HELD;
    if (open->request.creating > 0)
        return KVI_DIR_PLAN_CREATING;
    if (step == STEP_NO_MEMORY && open->request.granted == 0)
        return KVI_DIR_PLAN_NO_MEMORY;
    return KVI_DIR_PLAN_ENDED;
}

uint64_t kvi_dir_obtainable_blocks(const struct kvi_dir *dir, const struct kvi_dir_open *open)
{
    const struct kvi_dir_space *space = &dir->spaces[open->space];
    uint64_t segment_bytes = space->geometry.segment_bytes;
    uint64_t bytes = dir->memory[space->device].free_bytes;
    uint64_t used = space->segment_count;
    uint64_t segments;
    uint64_t blocks = 0;

    for (uint32_t i = 0; i < dir->segment_high; i++) {
        const struct kvi_dir_segment *s = &dir->segments[i];

        if (s->space != open->space || s->is_tainted) {
            if (s->state == KVI_SEGMENT_HANDED_IN && s->referenced_count == 0 &&
                kvi_dir_device_of(dir, s) == space->device) {
                bytes += s->bytes;
                used -= s->space == open->space;
            }
        } else if (s->state == KVI_SEGMENT_HANDED_IN) {
            blocks += s->block_count - s->referenced_count;
        } else if (s->state == KVI_SEGMENT_OWNED && s->owner == open->client) {
            blocks += s->entry_count - s->referenced_count;
        }
    }
    segments = bytes / segment_bytes;
    if (space->quota_bytes != 0) {
        uint64_t allowed = space->quota_bytes / segment_bytes;
        uint64_t room = allowed > used ? allowed - used : 0;

        if (segments > room)
            segments = room;
    }
    if (segments > space->segment_limit - used)
        segments = space->segment_limit - used;
    return blocks + segments * space->geometry.blocks_per_segment;
}
