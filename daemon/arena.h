/* SPDX-License-Identifier: Apache-2.0
 *
 * An arena for the state of each connection (DESIGN rule 10): its record and its output queue.
 * When a connection goes, its arena is reset and kept for the next one, because creating and
 * destroying jemalloc arenas grows the process by 4 KiB a cycle (FACTS).
 *
 *   charged_bytes of an arena = Σ bytes asked for − Σ bytes given back; 0 when it is released
 *   arenas made = held by connections + kept for reuse ≤ most connections at one time
 *
 * Built with KVI_SANITIZE, all memory comes from libc, which the sanitizers watch; the charges
 * are the same. One thread.
 */
#ifndef KVD_ARENA_H
#define KVD_ARENA_H

#include <stdint.h>

#include "util/alloc.h"
#include "wire/protocol.h"

struct kvd_arena {
    struct kvi_alloc alloc; /* what its owner allocates from */
    uint64_t charged_bytes;
    unsigned index; /* jemalloc's */
    struct kvd_arena *next_kept;
};

struct kvd_arena_pool {
    struct kvd_arena arenas[KVI_CLIENT_LIMIT];
    uint32_t made_count;
    struct kvd_arena *kept;
};

/* An arena nobody else uses. LIMIT beyond KVI_CLIENT_LIMIT, NO_MEMORY. */
int kvd_arena_acquire(struct kvd_arena_pool *pool, struct kvd_arena **out);

/* Give it back. Aborts when something is still charged to it: a leak of ours. */
void kvd_arena_release(struct kvd_arena_pool *pool, struct kvd_arena *arena);

#endif
