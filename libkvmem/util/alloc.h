/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory comes in through a table, so that a daemon can serve each client from an arena of its
 * own, a sanitizer build from libc, and a test can fail the n-th call.
 */
#ifndef KVI_UTIL_ALLOC_H
#define KVI_UTIL_ALLOC_H

#include <stddef.h>

struct kvi_alloc {
    void *context;
    /* Zeroed memory, aligned to 64; NULL when there is none. `bytes` > 0. */
    void *(*allocate)(void *context, size_t bytes);
    /* `bytes` as it was asked for. NULL is allowed. */
    void (*release)(void *context, void *memory, size_t bytes);
};

/* libc's allocator. */
extern const struct kvi_alloc kvi_alloc_libc;

static inline void *kvi_allocate(const struct kvi_alloc *alloc, size_t bytes)
{
    return alloc->allocate(alloc->context, bytes);
}

static inline void kvi_release(const struct kvi_alloc *alloc, void *memory, size_t bytes)
{
    if (memory)
        alloc->release(alloc->context, memory, bytes);
}

#endif
