/* SPDX-License-Identifier: Apache-2.0
 *
 * Views: mapping the blocks of a sequence one behind the other; see region.h.
 */
#include <assert.h>
#include <string.h>

#include "client/region.h"

static uint64_t address_of(const struct kvmem_region *region, uint32_t position)
{
    return region->base + position * region->space->geometry.block_bytes;
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

/* Map the block at a position that shows nothing. */
static int show_at(struct kvmem_region *region, uint32_t position, int32_t block,
                   enum kvi_access access)
{
    struct kvmem_space *space = region->space;
    struct kvi_view *view = &region->views[position];
    const struct kvi_segment *segment = kvi_pool_segment(&space->pool, (uint32_t)block);
    int code;

    assert(!view->access && segment->access >= access);
    code = kvi_backend_map(space->client->backend, segment->phys, address_of(region, position),
                           space->geometry.block_bytes, access);
    if (code)
        return code;
    *view = (struct kvi_view){
        .region = region, .phys = segment->phys, .block = block, .access = (uint8_t)access};
    link_view(view);
    return 0;
}

int kvi_region_show(struct kvmem_region *region, int32_t block, enum kvi_access access)
{
    int code = show_at(region, region->mapped, block, access);

    if (!code)
        region->mapped++;
    return code;
}

static void forget(struct kvi_view *view)
{
    unlink_view(view);
    view->access = 0;
}

int kvi_region_hide(struct kvmem_region *region, uint32_t from)
{
    struct kvmem_space *space = region->space;
    int code;

    if (from >= region->mapped)
        return 0;
    code = kvi_backend_unmap(space->client->backend, address_of(region, from),
                             (region->mapped - from) * space->geometry.block_bytes);
    if (code)
        return code;
    while (region->mapped > from)
        forget(&region->views[--region->mapped]);
    return 0;
}

int kvi_region_swap(struct kvmem_region *region, uint32_t position, int32_t block,
                    enum kvi_access access)
{
    struct kvmem_space *space = region->space;
    struct kvi_view *view = &region->views[position];
    struct kvi_view old = *view;
    int code;

    assert(position < region->mapped);
    code = kvi_backend_unmap(space->client->backend, address_of(region, position),
                             space->geometry.block_bytes);
    if (code)
        return code;
    forget(view);
    code = show_at(region, position, block, access);
    if (!code)
        return 0;
    if (show_at(region, position, old.block, (enum kvi_access)old.access)) {
        /* What lies behind the hole is not contiguous any more: an append or dispatch maps it. */
        uint32_t end = region->mapped;

        if (position + 1 < end)
            (void)kvi_backend_unmap(space->client->backend, address_of(region, position + 1),
                                    (end - position - 1) * space->geometry.block_bytes);
        while (region->mapped > position + 1)
            forget(&region->views[--region->mapped]);
        region->mapped = position;
        space->regions->is_due = true;
    }
    return code;
}

int kvi_region_set_access(struct kvi_view *view, enum kvi_access access)
{
    struct kvmem_region *region = view->region;
    struct kvmem_space *space = region->space;
    uint32_t position = (uint32_t)(view - region->views);
    int code;

    if (view->access == access)
        return 0;
    code = kvi_backend_set_access(space->client->backend, address_of(region, position),
                                  space->geometry.block_bytes, access);
    if (!code)
        view->access = (uint8_t)access;
    return code;
}

int kvi_regions_lower(struct kvmem_space *space, uint32_t slot)
{
    int code = 0;

    for (struct kvi_view *view = space->regions->shown[slot]; !code && view; view = view->next)
        code = kvi_region_set_access(view, KVI_ACCESS_RO);
    return code;
}
