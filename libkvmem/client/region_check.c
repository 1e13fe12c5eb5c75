/* SPDX-License-Identifier: Apache-2.0
 *
 * Verifying the equations of region.h.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "client/region.h"
#include "util/error.h"

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
    const struct kvi_view *view = &region->views[position];
    const struct kvi_segment *segment;

    if (view->access != KVI_ACCESS_RO && view->access != KVI_ACCESS_RW)
        return wrong("view %u: access %u", position, view->access);
    if (view->region != region)
        return wrong("view %u is of another region", position);
    segment = kvi_pool_segment(&space->pool, (uint32_t)view->block);
    if (!segment->access || view->phys.id != segment->phys.id)
        return wrong("view %u shows another segment than that of block %d", position, view->block);
    if (view->access == KVI_ACCESS_RW && (!segment->is_owned || segment->access != KVI_ACCESS_RW))
        return wrong("view %u of block %d is writable, its segment is not", position, view->block);
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
    if (region->mapped > seq->block_count || region->mapped > region->block_limit)
        return wrong("seq %u: %u views of %u blocks, limit %u", region->seq.index, region->mapped,
                     seq->block_count, region->block_limit);
    if (region->mapped > region->queued || region->queued > seq->block_count ||
        (!region->pending && region->mapped != region->queued) ||
        region->pending > region->queued - region->mapped)
        return wrong("seq %u: %u views are mapped, %u asked for, %u pending", region->seq.index,
                     region->mapped, region->queued, region->pending);
    for (uint32_t i = 0; !code && i < region->block_limit; i++) {
        const struct kvi_view *view = &region->views[i];

        if (i < region->mapped ? !view->access : view->access && i >= region->queued)
            code = wrong("view %u of %u has access %u", i, region->mapped, view->access);
        else if (view->access && view->block != seq->blocks[i])
            code =
                wrong("view %u shows block %d, the table has %d", i, view->block, seq->blocks[i]);
    }
    return code;
}

static int check_views(const struct kvmem_region *first, uint64_t *shown)
{
    int code = 0;

    for (const struct kvmem_region *region = first; !code && region; region = region->next)
        for (uint32_t i = 0; !code && i < region->block_limit; i++) {
            *shown += region->views[i].access != 0;
            code = region->views[i].access ? check_view(region, i) : 0;
        }
    return code;
}

int kvi_regions_check(const struct kvmem_space *space)
{
    const struct kvi_regions *regions = space->regions;
    uint64_t shown = 0, listed = 0;
    int code = 0;

    for (const struct kvmem_region *r = regions->first; !code && r; r = r->next)
        code = check_region(r);
    if (!code)
        code = check_views(regions->first, &shown);
    if (!code)
        code = check_views(regions->closing, &shown);
    for (uint32_t slot = 0; !code && slot < space->pool.segment_limit; slot++)
        for (const struct kvi_view *view = regions->shown[slot]; view; view = view->next)
            listed++;
    if (!code && listed != shown)
        return wrong("%" PRIu64 " views are listed, %" PRIu64 " show something", listed, shown);
    return code;
}
