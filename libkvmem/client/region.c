/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and closing regions, mapping ahead, truncate and attach; see region.h.
 */
#include "client/region.h"

#include <inttypes.h>

#include "util/error.h"

static uint32_t least(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

static size_t region_bytes(uint32_t block_limit)
{
    return sizeof(struct kvmem_region) + block_limit * sizeof(struct kvi_view);
}

/* ---- what a space has ---- */

int kvi_regions_init(struct kvmem_space *space)
{
    const struct kvi_alloc *alloc = &space->client->alloc;
    struct kvi_regions *regions = kvi_allocate(alloc, sizeof(*regions));

    space->regions = regions;
    if (regions) {
        regions->of_seq = kvi_allocate(alloc, space->seq_limit * sizeof(*regions->of_seq));
        regions->shown = kvi_allocate(alloc, space->pool.segment_limit * sizeof(*regions->shown));
    }
    if (regions && regions->of_seq && regions->shown)
        return 0;
    kvi_regions_fini(space);
    return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for regions of %" PRIu32 " sequences",
                         space->seq_limit);
}

static void free_list(struct kvmem_space *space, struct kvmem_region *region)
{
    while (region) {
        struct kvmem_region *next = region->next;

        kvi_release(&space->client->alloc, region, region_bytes(region->block_limit));
        region = next;
    }
}

void kvi_regions_fini(struct kvmem_space *space)
{
    const struct kvi_alloc *alloc = &space->client->alloc;
    struct kvi_regions *regions = space->regions;

    if (!regions)
        return;
    free_list(space, regions->first);
    free_list(space, regions->closing);
    kvi_release(alloc, regions->shown, space->pool.segment_limit * sizeof(*regions->shown));
    kvi_release(alloc, regions->of_seq, space->seq_limit * sizeof(*regions->of_seq));
    kvi_release(alloc, regions, sizeof(*regions));
    space->regions = NULL;
}

/* ---- ranges ---- */

/* Of both halves of its reservation together. */
static uint64_t range_bytes_of(const struct kvmem_region *region)
{
    return 2 * region->block_limit * region->space->geometry.block_bytes;
}

/* A kept range of that size, or 0. */
static uint64_t take_kept(struct kvi_regions *regions, uint64_t bytes)
{
    for (uint32_t i = regions->range_count; i-- > 0;) {
        uint64_t range = regions->ranges[i];

        if (regions->range_bytes[i] != bytes)
            continue;
        regions->ranges[i] = regions->ranges[--regions->range_count];
        regions->range_bytes[i] = regions->range_bytes[regions->range_count];
        return range;
    }
    return 0;
}

static int take_range(struct kvmem_region *region)
{
    struct kvmem_space *space = region->space;
    uint64_t bytes = range_bytes_of(region);
    uint64_t range = take_kept(space->regions, bytes);
    int code = range ? 0 : kvi_backend_reserve(kvi_space_backend(space), bytes, 0, &range);

    if (code)
        return code;
    region->write_base = range;
    region->base = range + bytes / 2;
    return 0;
}

/* Nothing is mapped there any more. */
static void give_range(const struct kvmem_region *region)
{
    struct kvmem_space *space = region->space;
    struct kvi_regions *regions = space->regions;
    uint64_t bytes = range_bytes_of(region);

    if (regions->range_count == KVI_REGION_RANGES) {
        kvi_backend_unreserve(kvi_space_backend(space), region->write_base, bytes);
        return;
    }
    regions->ranges[regions->range_count] = region->write_base;
    regions->range_bytes[regions->range_count++] = bytes;
}

/* ---- mapping ahead ---- */

/* Blocks that the table should have: those of the tokens and those ahead. */
static uint32_t wanted_blocks(const struct kvmem_region *region, const struct kvi_seq *seq)
{
    uint64_t wanted = (uint64_t)kvi_seq_used_blocks(region->space, seq) + region->ahead;

    return least(wanted, region->block_limit);
}

static int map_table(struct kvmem_region *region, const struct kvi_seq *seq)
{
    uint32_t end = least(seq->block_count, region->block_limit);
    int code = 0;

    while (!code && region->mapped < end) {
        int32_t block = seq->blocks[region->mapped];

        code = kvi_region_show(region, block, kvi_region_access_of(region->space, block));
    }
    return code;
}

/* False when something is lacking still. */
static bool go_ahead(struct kvmem_region *region)
{
    struct kvmem_space *space = region->space;
    struct kvi_seq *seq = &space->seqs[region->seq.index];
    uint32_t wanted = wanted_blocks(region, seq);
    uint64_t take = 0;

    /* What a refused call waits for is not taken ahead of need. */
    if (wanted > seq->block_count && !space->lacking)
        take = least(wanted - seq->block_count, kvi_pool_free_blocks(&space->pool));
    if (take && kvi_seq_table_grow(space, seq, seq->block_count + take) == 0)
        kvi_seq_take_reserved(space, seq, take);
    if (kvi_region_submit(region, least(seq->block_count, region->block_limit)))
        return region->queued >= wanted;
    return !region->pending && map_table(region, seq) == 0 && region->mapped >= wanted;
}

/* ---- closing ---- */

static void leave_list(struct kvmem_region *region, struct kvmem_region **first)
{
    if (region->prev)
        region->prev->next = region->next;
    else
        *first = region->next;
    if (region->next)
        region->next->prev = region->prev;
    region->prev = region->next = NULL;
}

static void enter_list(struct kvmem_region *region, struct kvmem_region **first)
{
    region->prev = NULL;
    region->next = *first;
    if (*first)
        (*first)->prev = region;
    *first = region;
}

/* False when its views cannot be unmapped now. */
static bool finish(struct kvmem_region *region)
{
    struct kvmem_space *space = region->space;

    if (kvi_region_hide(region, 0))
        return false;
    leave_list(region, &space->regions->closing);
    give_range(region);
    kvi_release(&space->client->alloc, region, region_bytes(region->block_limit));
    return true;
}

/* True when nothing waits any more. */
static bool finish_all(struct kvmem_space *space)
{
    struct kvmem_region *region = space->regions->closing;
    bool is_done = true;

    while (region) {
        struct kvmem_region *next = region->next;

        if (!kvi_region_is_passed(region) || !finish(region))
            is_done = false;
        region = next;
    }
    return is_done;
}

void kvi_region_close(struct kvmem_region *region, const struct kvi_point *point)
{
    struct kvmem_space *space = region->space;
    struct kvi_regions *regions = space->regions;

    kvi_region_settle(region);
    leave_list(region, &regions->first);
    enter_list(region, &regions->closing);
    regions->of_seq[region->seq.index] = NULL;
    space->seqs[region->seq.index].has_region = false;
    region->point = *point;
    regions->is_due = !finish_all(space) || regions->is_due;
}

static bool are_passed(const struct kvmem_region *region)
{
    while (region && kvi_region_is_passed(region))
        region = region->next;
    return !region;
}

int kvi_regions_wait(struct kvmem_space *space, int64_t deadline_ns)
{
    uint32_t turn = 0;

    while (!finish_all(space) || !are_passed(space->regions->first)) {
        if (!deadline_ns || kvi_client_now_ns() >= deadline_ns)
            return kvi_error_set(KVMEM_E_TIMED_OUT,
                                 "a region waits for a fence that was not reached in time");
        kvi_fence_pause(&turn);
    }
    return 0;
}

void kvi_regions_settle(struct kvmem_space *space)
{
    for (struct kvmem_region *region = space->regions->first; region; region = region->next)
        kvi_region_settle(region);
}

void kvi_regions_unmap(struct kvmem_space *space)
{
    static const struct kvi_point nothing;
    struct kvi_regions *regions = space->regions;

    while (regions->first)
        kvi_region_close(regions->first, &nothing);
    while (regions->range_count > 0) {
        uint32_t i = --regions->range_count;

        kvi_backend_unreserve(kvi_space_backend(space), regions->ranges[i],
                              regions->range_bytes[i]);
    }
}

/* ---- opening ---- */

static int check_open(const struct kvmem_space *space, const struct kvi_seq *seq,
                      const struct kvmem_region_options *options)
{
    uint64_t most = (uint64_t)space->pool.index_range * space->block_tokens;

    if (options->token_limit < 1 || options->token_limit > most)
        return kvi_error_set(KVMEM_E_INVALID,
                             "token_limit: %" PRIu64 " is outside 1..%" PRIu64
                             ", what the space has",
                             options->token_limit, most);
    if (seq->has_region)
        return kvi_error_set(KVMEM_E_EXISTS, "seq: has a region already; close it first");
    if (seq->appended > options->token_limit)
        return kvi_error_set(KVMEM_E_LIMIT,
                             "token_limit: %" PRIu64 ", the sequence has %" PRIu64 " tokens",
                             options->token_limit, seq->appended);
    return 0;
}

static struct kvmem_region *create(struct kvmem_space *space, struct kvmem_seq id,
                                   const struct kvmem_region_options *options)
{
    uint64_t tokens = options->token_limit + space->block_tokens - 1;
    uint32_t block_limit = (uint32_t)kvi_space_whole_blocks(space, tokens);
    struct kvmem_region *region = kvi_allocate(&space->client->alloc, region_bytes(block_limit));

    if (!region) {
        kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a region of %" PRIu32 " blocks",
                      block_limit);
        return NULL;
    }
    region->space = space;
    region->seq = id;
    region->block_limit = block_limit;
    region->ahead = options->ahead_blocks ? options->ahead_blocks : KVI_REGION_AHEAD;
    return region;
}

static void insert(struct kvmem_region *region)
{
    struct kvmem_space *space = region->space;
    struct kvi_regions *regions = space->regions;

    enter_list(region, &regions->first);
    regions->of_seq[region->seq.index] = region;
    space->seqs[region->seq.index].has_region = true;
}

/* Take the blocks ahead and map everything. */
static int fill(struct kvmem_region *region, struct kvi_seq *seq)
{
    struct kvmem_space *space = region->space;
    uint32_t count = seq->block_count;
    uint32_t wanted = wanted_blocks(region, seq);
    uint64_t lacking = wanted > count ? wanted - count : 0;
    int code;

    if (lacking > kvi_pool_free_blocks(&space->pool))
        return kvi_space_lack(space, lacking);
    code = kvi_seq_table_grow(space, seq, count + lacking);
    if (code)
        return code;
    kvi_seq_take_reserved(space, seq, lacking);
    code = map_table(region, seq);
    if (!code)
        return 0;
    (void)kvi_region_hide(region, 0);
    kvi_seq_drop_blocks(space, seq, count);
    return code;
}

int kvi_region_open(struct kvmem_space *space, struct kvmem_seq id,
                    const struct kvmem_region_options *options, struct kvmem_region **out)
{
    struct kvi_seq *seq = kvi_seq_find(space, id);
    struct kvmem_region *region;
    int code;

    if (!seq)
        return kvi_seq_stale(id);
    code = check_open(space, seq, options);
    if (code)
        return code;
    region = create(space, id, options);
    if (!region)
        return KVMEM_E_NO_MEMORY;
    code = take_range(region);
    if (code)
        goto no_range;
    code = fill(region, seq);
    if (code)
        goto not_mapped;
    insert(region);
    *out = region;
    return 0;

not_mapped:
    give_range(region);
no_range:
    kvi_release(&space->client->alloc, region, region_bytes(region->block_limit));
    return code;
}

/* ---- dispatch ---- */

void kvi_regions_dispatch(struct kvmem_space *space)
{
    struct kvi_regions *regions = space->regions;

    if (!regions->is_due)
        return;
    regions->is_due = !finish_all(space);
    for (struct kvmem_region *region = regions->first; region; region = region->next)
        if (!go_ahead(region))
            regions->is_due = true;
}

/* ---- truncate and attach ---- */

int kvi_region_wait(struct kvmem_space *space, const struct kvi_point *point)
{
    struct kvmem_fence fence = kvi_fence_of(point);
    int code = kvi_fence_wait(space->client, &fence, space->client->timeout_ns);

    return code == KVMEM_E_STALE ? 0 : code;
}

int kvi_region_wait_for(struct kvmem_space *space, const struct kvmem_fence *fence)
{
    struct kvi_point point;
    int code;

    if (!kvi_fence_is_pending(space->client, fence))
        return 0;
    code = kvi_fence_take(space->client, kvi_space_backend(space), fence, &point);
    return code ? code : kvi_region_wait(space, &point);
}

bool kvi_region_is_passed(const struct kvmem_region *region)
{
    return kvi_fence_state(region->space->client, &region->point) != KVI_LANE_PENDING;
}

int kvi_region_pass(struct kvmem_region *region)
{
    return kvi_region_is_passed(region) ? 0 : kvi_region_wait(region->space, &region->point);
}

int kvi_region_join(struct kvmem_region *region, struct kvi_point *point)
{
    const struct kvi_point *own = &region->point;

    if (kvi_region_is_passed(region))
        return 0;
    if (kvi_fence_state(region->space->client, point) != KVI_LANE_PENDING)
        *point = *own;
    if (own->timeline != point->timeline || own->timeline == KVI_TIMELINE_JOINT)
        return kvi_region_wait(region->space, own);
    if (own->value > point->value) /* a lane is passed in the order of its values */
        point->value = own->value;
    return 0;
}

/* Blocks that held tokens stay as blocks ahead: `fence` is not forgotten with those that go. */
static int leave(struct kvmem_region *region, const struct kvmem_fence *fence)
{
    struct kvmem_space *space = region->space;
    struct kvi_point point;
    int code;

    if (!kvi_fence_is_pending(space->client, fence))
        return 0;
    code = kvi_fence_take(space->client, kvi_space_backend(space), fence, &point);
    if (!code)
        code = kvi_region_join(region, &point);
    if (!code)
        region->point = point;
    return code;
}

int kvi_region_truncate(struct kvmem_region *region, uint32_t keep, const struct kvmem_fence *fence,
                        uint32_t *stay)
{
    struct kvmem_space *space = region->space;
    const struct kvi_seq *seq = &space->seqs[region->seq.index];
    uint32_t end =
        least((uint64_t)keep + region->ahead, least(seq->block_count, region->block_limit));
    int code = 0;

    *stay = keep;
    while (*stay < end && kvi_region_access_of(space, seq->blocks[*stay]) == KVI_ACCESS_RW)
        ++*stay;
    space->regions->is_due = true;
    if (seq->block_count > *stay)
        code = kvi_region_pass(region);
    if (!code && region->mapped > *stay)
        code = kvi_region_wait_for(space, fence);
    if (!code && *stay > keep && keep < kvi_seq_used_blocks(space, seq))
        code = leave(region, fence);
    return code ? code : kvi_region_hide(region, *stay);
}

void kvi_region_restore(struct kvmem_region *region)
{
    (void)map_table(region, &region->space->seqs[region->seq.index]);
}

int kvi_region_attach(struct kvmem_region *region, uint32_t count, const int32_t *blocks)
{
    struct kvmem_space *space = region->space;
    struct kvi_seq *seq = &space->seqs[region->seq.index];
    int code;

    if (count > region->block_limit)
        return kvi_error_set(KVMEM_E_LIMIT,
                             "count: %" PRIu32 " blocks are beyond the %" PRIu32
                             " that the region of the sequence was opened for",
                             count, region->block_limit);
    code = kvi_region_pass(region);
    if (code)
        return code;
    code = kvi_region_hide(region, 0);
    for (uint32_t i = 0; !code && i < count; i++)
        code = kvi_region_show(region, blocks[i], KVI_ACCESS_RO);
    space->regions->is_due = true;
    if (!code)
        kvi_seq_drop_blocks(space, seq, 0);
    else if (kvi_region_hide(region, 0) == 0)
        kvi_region_restore(region);
    return code;
}
