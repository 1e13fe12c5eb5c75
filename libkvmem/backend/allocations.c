/* SPDX-License-Identifier: Apache-2.0
 *
 * The list of device_alloc's memory: see allocations.h.
 */
#include "backend/allocations.h"

#include <inttypes.h>

#include "backend/book.h"
#include "util/error.h"

void kvi_allocations_fini(struct kvi_allocations *all, const struct kvi_alloc *alloc)
{
    kvi_release(alloc, all->list, all->capacity * sizeof(*all->list));
}

int kvi_allocations_room(struct kvi_allocations *all, const struct kvi_alloc *alloc)
{
    return kvi_book_grow(alloc, &all->list, &all->capacity, all->count, sizeof(*all->list));
}

void kvi_allocations_add(struct kvi_allocations *all, uint64_t address, uint64_t bytes)
{
    all->list[all->count++] = (struct kvi_allocation){address, bytes};
    all->bytes += bytes;
}

int kvi_allocations_find(const struct kvi_allocations *all, uint64_t address, uint64_t bytes,
                         size_t *out_at)
{
    size_t at = 0;

    while (at < all->count && (all->list[at].address != address || all->list[at].bytes != bytes))
        at++;
    if (at == all->count)
        return kvi_error_set(KVMEM_E_INVALID,
                             "device_free: address %#" PRIx64 " of %" PRIu64
                             " bytes was not allocated like this",
                             address, bytes);
    *out_at = at;
    return 0;
}

void kvi_allocations_remove(struct kvi_allocations *all, size_t at)
{
    all->bytes -= all->list[at].bytes;
    all->list[at] = all->list[--all->count];
}

bool kvi_allocations_hold(const struct kvi_allocations *all, uint64_t address, uint64_t bytes)
{
    for (size_t at = 0; at < all->count; at++) {
        const struct kvi_allocation *one = &all->list[at];

        if (address >= one->address && address - one->address < one->bytes &&
            bytes <= one->bytes - (address - one->address))
            return true;
    }
    return false;
}

int kvi_allocations_check(const struct kvi_allocations *all)
{
    uint64_t bytes = 0;

    for (size_t at = 0; at < all->count; at++)
        bytes += all->list[at].bytes;
    if (bytes != all->bytes)
        return kvi_error_set(KVMEM_E_CORRUPT,
                             "backend: bytes of allocations = allocation_bytes: %#" PRIx64
                             " against %#" PRIx64,
                             bytes, all->bytes);
    return 0;
}
