/* SPDX-License-Identifier: Apache-2.0
 *
 * Views: mapping the blocks of a sequence one behind the other; see region.h.
 */
#include <assert.h>
#include <string.h>

#include "client/mapper.h"
#include "client/region.h"
#include "util/error.h"

static uint64_t read_address(const struct kvmem_region *region, uint32_t position)
{
    return region->base + position * region->space->geometry.block_bytes;
}

static uint64_t write_address(const struct kvmem_region *region, uint32_t position)
{
    return region->write_base + position * region->space->geometry.block_bytes;
}

static uint32_t position_of(const struct kvi_view *view)
{
    return (uint32_t)(view - view->region->views);
}

static struct kvi_view **list_of(const struct kvi_view *view)
{
    struct kvmem_space *space = view->region->space;

    return &space->regions->shown[kvi_pool_slot(&space->pool, (uint32_t)view->block)];
}

static void link_view(struct kvi_view *view)
{
    struct kvi_view **list = list_of(view);

    view->prev = NULL;
    view->next = *list;
    if (*list)
        (*list)->prev = view;
    *list = view;
}

static void unlink_view(struct kvi_view *view)
{
    if (view->prev)
        view->prev->next = view->next;
    else
        *list_of(view) = view->next;
    if (view->next)
        view->next->prev = view->prev;
}

enum kvi_access kvi_region_access_of(const struct kvmem_space *space, int32_t block)
{
    bool is_own = space->pool.state[block] == KVI_BLOCK_PRIVATE && space->refs[block] == 1;

    return is_own ? KVI_ACCESS_RW : KVI_ACCESS_RO;
}

/* ---- writable or not ---- */

int kvi_region_raise(struct kvmem_region *region, uint32_t position)
{
    struct kvmem_space *space = region->space;
    struct kvi_view *view = &region->views[position];
    int code;

    assert(view->access);
    if (view->access == KVI_ACCESS_RW)
        return 0;
    kvi_mapper_count(space->client->mapper);
    code = kvi_backend_map(kvi_space_backend(space), view->phys, write_address(region, position),
                           space->geometry.block_bytes, KVI_ACCESS_RW);
    if (!code)
        view->access = KVI_ACCESS_RW;
    return code;
}

/* Of views [from, end) none is writable any more: adjoining ones in one call. */
static int lower_run(struct kvmem_region *region, uint32_t from, uint32_t end)
{
    struct kvmem_space *space = region->space;
    uint32_t i = from;
    int code = 0;

    while (!code && i < end) {
        uint32_t first = i;

        while (i < end && region->views[i].access == KVI_ACCESS_RW)
            i++;
        if (i > first) {
            kvi_mapper_count(space->client->mapper);
            code = kvi_backend_unmap(kvi_space_backend(space), write_address(region, first),
                                     (i - first) * space->geometry.block_bytes);
        }
        for (uint32_t k = first; !code && k < i; k++)
            region->views[k].access = KVI_ACCESS_RO;
        i += i == first;
    }
    return code;
}

/* Those of views [from, end) that may be written are writable again, as far as that can be had.
 * Nobody writes by the views of a closing region: its blocks may be another sequence's. The detail
 * of the error that led here stays. */
static void raise_again(struct kvmem_region *region, uint32_t from, uint32_t end)
{
    struct kvmem_space *space = region->space;
    struct kvmem_error_detail detail = *kvmem_error_detail();

    if (kvi_region_of(space, &space->seqs[region->seq.index]) != region)
        return;
    for (uint32_t i = from; i < end; i++)
        if (kvi_region_access_of(space, region->views[i].block) == KVI_ACCESS_RW)
            (void)kvi_region_raise(region, i);
    kvi_error_restore(&detail);
}

/* ---- showing, hiding ---- */

static void forget(struct kvi_view *view)
{
    unlink_view(view);
    view->access = 0;
}

/* Views [from, end), all of which show something: all of them, or none. */
static int hide_run(struct kvmem_region *region, uint32_t from, uint32_t end)
{
    struct kvmem_space *space = region->space;
    int code = lower_run(region, from, end);

    if (!code) {
        kvi_mapper_count(space->client->mapper);
        code = kvi_backend_unmap(kvi_space_backend(space), read_address(region, from),
                                 (end - from) * space->geometry.block_bytes);
    }
    if (code)
        raise_again(region, from, end);
    for (uint32_t i = from; !code && i < end; i++)
        forget(&region->views[i]);
    return code;
}

/* What maps a block at a position, twice when it may be written. */
static struct kvi_mapping job_for(struct kvmem_region *region, uint32_t position, int32_t block,
                                  enum kvi_access access)
{
    struct kvmem_space *space = region->space;
    const struct kvi_segment *segment = kvi_pool_segment(&space->pool, (uint32_t)block);
    struct kvi_view *view = &region->views[position];

    assert(!view->access && segment->access >= access);
    *view = (struct kvi_view){.region = region, .phys = segment->phys, .block = block};
    return (struct kvi_mapping){.kind = KVI_MAPPING_MAP,
                                .access = access,
                                .backend = kvi_space_backend(space),
                                .fd = -1,
                                .phys = segment->phys,
                                .address = read_address(region, position),
                                .write_address = write_address(region, position),
                                .bytes = space->geometry.block_bytes,
                                .context = view};
}

static void shown(struct kvi_view *view, const struct kvi_mapping *job)
{
    view->access = (uint8_t)job->access;
    link_view(view);
}

/* Map the block at a position that shows nothing. */
static int show_at(struct kvmem_region *region, uint32_t position, int32_t block,
                   enum kvi_access access)
{
    struct kvi_mapping job = job_for(region, position, block, access);
    int code = kvi_mapper_do(region->space->client->mapper, &job);

    if (!code)
        shown(&region->views[position], &job);
    return code;
}

int kvi_region_show(struct kvmem_region *region, int32_t block, enum kvi_access access)
{
    int code = show_at(region, region->mapped, block, access);

    if (!code)
        region->queued = ++region->mapped;
    return code;
}

/* ---- by the helper ---- */

/* One was mapped, or not. When all are over, what shows behind a gap is unmapped again. */
static void shown_ahead(const struct kvi_mapping *job)
{
    struct kvi_view *view = job->context;
    struct kvmem_region *region = view->region;
    uint32_t end = region->queued;

    if (!job->code)
        shown(view, job);
    while (region->mapped < end && region->views[region->mapped].access)
        region->mapped++;
    if (--region->pending || region->mapped == end)
        return;
    for (uint32_t i = end; i-- > region->mapped;)
        if (region->views[i].access)
            (void)hide_run(region, i, i + 1);
    region->queued = region->mapped;
    region->space->regions->is_due = true;
}

static bool submit_view(struct kvmem_region *region, uint32_t position, int32_t block)
{
    struct kvmem_space *space = region->space;
    struct kvi_mapping job = job_for(region, position, block, kvi_region_access_of(space, block));

    job.done = shown_ahead;
    return kvi_mapper_submit(space->client->mapper, &job) == 0;
}

bool kvi_region_submit(struct kvmem_region *region, uint32_t end)
{
    const struct kvmem_space *space = region->space;
    const struct kvi_seq *seq = &space->seqs[region->seq.index];

    if (!kvi_mapper_has_helper(space->client->mapper))
        return false;
    while (region->queued < end) {
        if (region->pending == KVI_REGION_PENDING ||
            !submit_view(region, region->queued, seq->blocks[region->queued]))
            return false;
        region->queued++;
        region->pending++;
    }
    return true;
}

void kvi_region_settle(struct kvmem_region *region)
{
    if (region->pending)
        kvi_mapper_await(region->space->client->mapper, &region->pending);
}

/* ---- taking away ---- */

int kvi_region_hide(struct kvmem_region *region, uint32_t from)
{
    kvi_region_settle(region);
    while (region->mapped > from) {
        uint32_t first = region->mapped;
        int code;

        while (first > from && region->views[first - 1].access)
            first--;
        code = first < region->mapped ? hide_run(region, first, region->mapped) : 0;
        if (code)
            return code;
        /* Of a closing region single blocks may be gone already. */
        region->mapped = first;
        while (region->mapped > from && !region->views[region->mapped - 1].access)
            region->mapped--;
        region->queued = region->mapped;
    }
    return 0;
}

int kvi_region_swap(struct kvmem_region *region, uint32_t position, int32_t block,
                    enum kvi_access access)
{
    struct kvmem_space *space = region->space;
    struct kvi_view *view = &region->views[position];
    struct kvi_view old = *view;
    int code;

    assert(position < region->mapped && !region->pending);
    code = hide_run(region, position, position + 1);
    if (code)
        return code;
    code = show_at(region, position, block, access);
    if (!code)
        return 0;
    if (show_at(region, position, old.block, (enum kvi_access)old.access)) {
        /* What lies behind the hole is not contiguous any more: an append or dispatch maps it. */
        (void)kvi_region_hide(region, position);
        space->regions->is_due = true;
    }
    return code;
}

void kvi_regions_vacate(struct kvmem_space *space, uint32_t slot)
{
    struct kvi_view *view;

    while ((view = space->regions->shown[slot]) != NULL) {
        uint32_t position = position_of(view);

        /* Neither fails for what was mapped here. */
        if (hide_run(view->region, position, position + 1))
            forget(view);
    }
}

int kvi_regions_lower(struct kvmem_space *space, uint32_t slot)
{
    int code = 0;

    for (struct kvi_view *view = space->regions->shown[slot]; !code && view; view = view->next)
        code = lower_run(view->region, position_of(view), position_of(view) + 1);
    return code;
}
