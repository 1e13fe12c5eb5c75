/* SPDX-License-Identifier: Apache-2.0
 *
 * Arenas over jemalloc's mallctl, or over libc.
 */
#include "arena.h"

#include <assert.h>
#include <stdio.h>

#include "util/error.h"

#ifdef KVI_SANITIZE

static void *backing_allocate(const struct kvd_arena *arena, size_t bytes)
{
    (void)arena;
    return kvi_allocate(&kvi_alloc_libc, bytes);
}

static void backing_release(const struct kvd_arena *arena, void *memory, size_t bytes)
{
    (void)arena;
    kvi_release(&kvi_alloc_libc, memory, bytes);
}

static int backing_create(struct kvd_arena *arena)
{
    (void)arena;
    return 0;
}

static void backing_reset(const struct kvd_arena *arena)
{
    (void)arena;
}

#else

#include <jemalloc/jemalloc.h>

#define ALIGNMENT 64u

/* No thread cache: it would keep memory of one client for the next. */
static int backing_flags(const struct kvd_arena *arena)
{
    return (int)(MALLOCX_ARENA(arena->index) | MALLOCX_TCACHE_NONE | MALLOCX_ALIGN(ALIGNMENT));
}

static void *backing_allocate(const struct kvd_arena *arena, size_t bytes)
{
    return mallocx(bytes, backing_flags(arena) | MALLOCX_ZERO);
}

static void backing_release(const struct kvd_arena *arena, void *memory, size_t bytes)
{
    sdallocx(memory, bytes, backing_flags(arena));
}

static int backing_create(struct kvd_arena *arena)
{
    size_t bytes = sizeof(arena->index);
    int rc = mallctl("arenas.create", &arena->index, &bytes, NULL, 0);

    if (rc != 0)
        return kvi_error_sys(KVMEM_E_NO_MEMORY, rc, "arenas.create");
    return 0;
}

static void backing_reset(const struct kvd_arena *arena)
{
    char name[32];

    snprintf(name, sizeof(name), "arena.%u.reset", arena->index);
    mallctl(name, NULL, NULL, NULL, 0);
    /* Pages of a long output queue go back to the system, not to the next client's. */
    snprintf(name, sizeof(name), "arena.%u.purge", arena->index);
    mallctl(name, NULL, NULL, NULL, 0);
}

#endif

static void *arena_allocate(void *context, size_t bytes)
{
    struct kvd_arena *arena = context;
    void *memory = backing_allocate(arena, bytes);

    if (memory != NULL)
        arena->charged_bytes += bytes;
    return memory;
}

static void arena_free(void *context, void *memory, size_t bytes)
{
    struct kvd_arena *arena = context;

    if (memory == NULL)
        return;
    assert(arena->charged_bytes >= bytes);
    arena->charged_bytes -= bytes;
    backing_release(arena, memory, bytes);
}

int kvd_arena_acquire(struct kvd_arena_pool *pool, struct kvd_arena **out)
{
    struct kvd_arena *arena = pool->kept;
    int rc;

    if (arena != NULL) {
        pool->kept = arena->next_kept;
        *out = arena;
        return 0;
    }
    if (pool->made_count == KVI_CLIENT_LIMIT)
        return kvi_error_set(KVMEM_E_LIMIT, "%u connections are open", KVI_CLIENT_LIMIT);
    arena = &pool->arenas[pool->made_count];
    rc = backing_create(arena);
    if (rc < 0)
        return rc;
    pool->made_count++;
    arena->alloc = (struct kvi_alloc){arena, arena_allocate, arena_free};
    *out = arena;
    return 0;
}

void kvd_arena_release(struct kvd_arena_pool *pool, struct kvd_arena *arena)
{
    assert(arena->charged_bytes == 0);
    backing_reset(arena);
    arena->next_kept = pool->kept;
    pool->kept = arena;
}
