/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory of device_alloc: a short list of (address, bytes) that do not overlap. Few are ever
 * alive, so it is searched from its start.
 *
 *   bytes = sum over the list
 *
 * Threads: the owner's lock. Not here: the memory itself.
 */
#ifndef KVI_BACKEND_ALLOCATIONS_H
#define KVI_BACKEND_ALLOCATIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/alloc.h"

struct kvi_allocation {
    uint64_t address;
    uint64_t bytes;
};

/* Zeroes are an empty list. */
struct kvi_allocations {
    struct kvi_allocation *list;
    size_t count;
    size_t capacity;
    uint64_t bytes;
};

void kvi_allocations_fini(struct kvi_allocations *all, const struct kvi_alloc *alloc);

/* Room for one more: the next kvi_allocations_add cannot fail. NO_MEMORY. */
int kvi_allocations_room(struct kvi_allocations *all, const struct kvi_alloc *alloc);
void kvi_allocations_add(struct kvi_allocations *all, uint64_t address, uint64_t bytes);

/* The one that was made like this: its place in the list. INVALID, with the detail. */
int kvi_allocations_find(const struct kvi_allocations *all, uint64_t address, uint64_t bytes,
                         size_t *out_at);
void kvi_allocations_remove(struct kvi_allocations *all, size_t at);

/* Does the whole range lie in one of them? */
bool kvi_allocations_hold(const struct kvi_allocations *all, uint64_t address, uint64_t bytes);

/* 0, or CORRUPT with the first violated equation. */
int kvi_allocations_check(const struct kvi_allocations *all);

#endif
