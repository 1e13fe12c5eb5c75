/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies and clears of whole blocks; see blocks.h. A block that is named is marked with the stamp
 * of the call, so that a batch is checked in one pass over each of its arrays.
 */
#include "client/blocks.h"

#include <inttypes.h>

#include "util/error.h"

int kvi_blocks_move(struct kvmem_space *space, uint32_t n, const int32_t *from, const int32_t *to,
                    uint64_t stream)
{
    struct kvi_backend_blocks list = {
        .to_base = space->base,
        .from_base = space->base,
        .stride_bytes = space->geometry.index_stride_bytes,
        .bytes = space->geometry.block_bytes,
        .count = n,
        .from = from,
        .to = to,
    };

    return kvi_backend_blocks(kvi_space_backend(space), &list, stream);
}

static int wrong(const char *name, uint32_t i, int32_t block, const char *what)
{
    return kvi_error_set(KVMEM_E_INVALID, "%s[%" PRIu32 "]: block %" PRId32 " %s", name, i, block,
                         what);
}

static bool is_held(const struct kvmem_space *space, int32_t block)
{
    return block >= 0 && (uint32_t)block < space->pool.index_range && space->refs[block];
}

static int check_destinations(struct kvmem_space *space, uint32_t n, const int32_t *to,
                              const char *name)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!is_held(space, to[i]))
            return wrong(name, i, to[i], "is not held by this client");
        if (space->pool.state[to[i]] != KVI_BLOCK_PRIVATE)
            return wrong(name, i, to[i], "is published: it never changes");
        if (space->marks[to[i]] == space->mark_stamp)
            return wrong(name, i, to[i], "is named twice");
        space->marks[to[i]] = space->mark_stamp;
    }
    return 0;
}

static int check_sources(const struct kvmem_space *space, uint32_t n, const int32_t *from)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!is_held(space, from[i]))
            return wrong("from", i, from[i], "is not held by this client");
        if (space->marks[from[i]] == space->mark_stamp)
            return wrong("from", i, from[i], "is a destination too");
    }
    return 0;
}

int kvi_blocks_run(struct kvmem_space *space, uint32_t n, const int32_t *from, const int32_t *to,
                   const char *name, void *stream)
{
    int code = 0;

    if (stream && kvi_space_backend(space)->info.kind == KVI_BACKEND_HOST)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "stream: the host device has none, must be NULL");
    if (!n)
        return 0;
    space->mark_stamp++;
    code = check_destinations(space, n, to, name);
    if (!code && from)
        code = check_sources(space, n, from);
    return code ? code : kvi_blocks_move(space, n, from, to, (uint64_t)(uintptr_t)stream);
}
