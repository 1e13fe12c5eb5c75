/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and closing regions, mapping ahead, truncate and attach; see region.h.
 */
#include "client/region.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

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

void kvi_regions_fini(struct kvmem_space *space)
{
    const struct kvi_alloc *alloc = &space->client->alloc;
    struct kvi_regions *regions = space->regions;

    if (!regions)
        return;
    while (regions->first)
        kvi_region_close(regions->first);
    while (regions->range_count-- > 0)
        kvi_backend_unreserve(space->client->backend, regions->ranges[regions->range_count],
                              regions->range_bytes[regions->range_count]);
    kvi_release(alloc, regions->shown, space->pool.segment_limit * sizeof(*regions->shown));
    kvi_release(alloc, regions->of_seq, space->seq_limit * sizeof(*regions->of_seq));
    kvi_release(alloc, regions, sizeof(*regions));
    space->regions = NULL;
}

/* ---- ranges ---- */

static int take_range(struct kvmem_space *space, uint64_t bytes, uint64_t *base)
{
    struct kvi_regions *regions = space->regions;

    for (uint32_t i = regions->range_count; i-- > 0;) {
        if (regions->range_bytes[i] != bytes)
            continue;
        *base = regions->ranges[i];
        regions->ranges[i] = regions->ranges[--regions->range_count];
        regions->range_bytes[i] = regions->range_bytes[regions->range_count];
        return 0;
    }
    return kvi_backend_reserve(space->client->backend, bytes, 0, base);
}

/* Nothing is mapped there any more. */
static void give_range(struct kvmem_space *space, uint64_t base, uint64_t bytes)
{
    struct kvi_regions *regions = space->regions;

    if (regions->range_count == KVI_REGION_RANGES) {
        kvi_backend_unreserve(space->client->backend, base, bytes);
        return;
    }
    regions->ranges[regions->range_count] = base;
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
    return map_table(region, seq) == 0 && region->mapped >= wanted;
}

void kvi_regions_dispatch(struct kvmem_space *space)
{
    struct kvi_regions *regions = space->regions;

    if (!regions->is_due)
        return;
    regions->is_due = false;
    for (struct kvmem_region *region = regions->first; region; region = region->next)
        if (!go_ahead(region))
            regions->is_due = true;
}

/* ---- open and close ---- */

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

    region->next = regions->first;
    if (regions->first)
        regions->first->prev = region;
    regions->first = region;
    regions->of_seq[region->seq.index] = region;
    space->seqs[region->seq.index].has_region = true;
}

static uint64_t range_bytes_of(const struct kvmem_region *region)
{
    return region->block_limit * region->space->geometry.block_bytes;
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
    code = take_range(space, range_bytes_of(region), &region->base);
    if (code)
        goto no_range;
    code = fill(region, seq);
    if (code)
        goto not_mapped;
    insert(region);
    *out = region;
    return 0;

not_mapped:
    give_range(space, region->base, range_bytes_of(region));
no_range:
    kvi_release(&space->client->alloc, region, region_bytes(region->block_limit));
    return code;
}

void kvi_region_close(struct kvmem_region *region)
{
    struct kvmem_space *space = region->space;
    struct kvi_regions *regions = space->regions;

    /* Unmapping does not fail for what was mapped here. */
    if (kvi_region_hide(region, 0) == 0)
        give_range(space, region->base, range_bytes_of(region));
    if (region->prev)
        region->prev->next = region->next;
    else
        regions->first = region->next;
    if (region->next)
        region->next->prev = region->prev;
    regions->of_seq[region->seq.index] = NULL;
    space->seqs[region->seq.index].has_region = false;
    kvi_release(&space->client->alloc, region, region_bytes(region->block_limit));
}

/* ---- truncate and attach ---- */

int kvi_region_truncate(struct kvmem_region *region, uint32_t keep, uint32_t *stay)
{
    struct kvmem_space *space = region->space;
    const struct kvi_seq *seq = &space->seqs[region->seq.index];
    uint32_t end =
        least((uint64_t)keep + region->ahead, least(seq->block_count, region->block_limit));

    *stay = keep;
    while (*stay < end && kvi_region_access_of(space, seq->blocks[*stay]) == KVI_ACCESS_RW)
        ++*stay;
    space->regions->is_due = true;
    return kvi_region_hide(region, *stay);
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
    code = kvi_region_hide(region, 0);
    for (uint32_t i = 0; !code && i < count; i++)
        code = kvi_region_show(region, blocks[i], KVI_ACCESS_RO);
    space->regions->is_due = true;
    if (!code)
        kvi_seq_drop_blocks(space, seq, 0);
    else if (kvi_region_hide(region, 0) == 0)
        (void)map_table(region, seq);
    return code;
}

/* ---- check ---- */

static int wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int wrong(const char *format, ...)
{
    char text[200];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return kvi_error_set(KVMEM_E_CORRUPT, "%s", text);
}

static int check_view(const struct kvmem_region *region, uint32_t position)
{
    const struct kvmem_space *space = region->space;
    const struct kvi_seq *seq = &space->seqs[region->seq.index];
    const struct kvi_view *view = &region->views[position];
    const struct kvi_segment *segment;

    if (position >= region->mapped)
        return view->access ? wrong("view %u shows block %d beyond %u", position, view->block,
                                    region->mapped)
                            : 0;
    if (view->access != KVI_ACCESS_RO && view->access != KVI_ACCESS_RW)
        return wrong("view %u: access %u", position, view->access);
    if (view->region != region || view->block != seq->blocks[position])
        return wrong("view %u shows block %d, the table has %d", position, view->block,
                     seq->blocks[position]);
    segment = kvi_pool_segment(&space->pool, (uint32_t)view->block);
    if (!segment->access || view->phys.id != segment->phys.id)
        return wrong("view %u shows another segment than that of block %d", position, view->block);
    if (view->access == KVI_ACCESS_RW && !segment->is_owned)
        return wrong("view %u of block %d is writable, its segment is not ours", position,
                     view->block);
    if (view->prev
            ? view->prev->next != view
            : space->regions->shown[kvi_pool_slot(&space->pool, (uint32_t)view->block)] != view)
        return wrong("view %u is not in the list of block %d", position, view->block);
    return 0;
}

static int check_region(const struct kvmem_region *region)
{
    const struct kvmem_space *space = region->space;
    const struct kvi_seq *seq = kvi_seq_find(space, region->seq);
    int code = 0;

    if (!seq || kvi_region_of(space, seq) != region)
        return wrong("a region is not that of its sequence %u", region->seq.index);
    if (region->mapped > least(seq->block_count, region->block_limit))
        return wrong("seq %u: %u views of %u blocks, limit %u", region->seq.index, region->mapped,
                     seq->block_count, region->block_limit);
    for (uint32_t i = 0; !code && i < region->block_limit; i++)
        code = check_view(region, i);
    return code;
}

int kvi_regions_check(const struct kvmem_space *space)
{
    const struct kvi_regions *regions = space->regions;
    uint64_t mapped = 0, listed = 0;
    int code = 0;

    for (const struct kvmem_region *r = regions->first; !code && r; r = r->next) {
        mapped += r->mapped;
        code = check_region(r);
    }
    for (uint32_t slot = 0; !code && slot < space->pool.segment_limit; slot++)
        for (const struct kvi_view *view = regions->shown[slot]; view; view = view->next)
            listed++;
    if (!code && listed != mapped)
        return wrong("%" PRIu64 " views are listed, %" PRIu64 " mapped", listed, mapped);
    return code;
}
