/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/space.h and the space's part of kvmem/stats.h.
 */
#include "client/space.h"

#include <string.h>

#include "api/check.h"
#include "client/refill.h"
#include "client/seq.h"
#include "util/geometry.h"

int kvmem_space_open(struct kvmem_client *client, const struct kvmem_space_options *options,
                     struct kvmem_space **out)
{
    int code;

    if (!client || !options || !out)
        return kvi_api_is_null(!client ? "client" : !options ? "options" : "out");
    code = kvi_space_options_check(options);
    if (!code)
        code = kvi_client_is_lost(client);
    if (!code && client->is_observer)
        code = kvi_error_set(KVMEM_E_PERMISSION, "role: an OBSERVER opens no space");
    return code ? code : kvi_space_open(client, options, out);
}

void kvmem_space_close(struct kvmem_space *space)
{
    if (space)
        kvi_space_close(space, kvi_client_deadline_ns(space->client->timeout_ns));
}

int kvmem_space_geometry(const struct kvmem_space *space, uint32_t group,
                         struct kvmem_geometry *out)
{
    int code = kvi_api_check_out(space, out, sizeof(*out));

    if (!code)
        code = kvi_api_check_group(space, group);
    if (!code)
        *out = space->geometry;
    return code;
}

void *kvmem_space_base(const struct kvmem_space *space, uint32_t group, uint32_t shard)
{
    if (!space || group >= space->options.group_count || shard >= space->options.shard_count)
        return NULL;
    return kvi_backend_pointer(space->base);
}

void *kvmem_space_write_base(const struct kvmem_space *space, uint32_t group, uint32_t shard)
{
    if (!space || group >= space->options.group_count || shard >= space->options.shard_count)
        return NULL;
    return kvi_backend_pointer(space->write_base);
}

int32_t kvmem_space_scratch(struct kvmem_space *space, uint32_t group)
{
    int code;

    if (!space)
        return kvi_api_is_null("space");
    code = kvi_api_check_group(space, group);
    return code ? code : kvi_space_scratch(space);
}

int kvmem_space_capacity(const struct kvmem_space *space, struct kvmem_capacity *out)
{
    const struct kvi_pool *pool;
    int code = kvi_api_check_out(space, out, sizeof(*out));

    if (code)
        return code;
    pool = &space->pool;
    out->is_refill_pending = space->request_serial != 0 || space->pool.arriving_blocks != 0;
    out->free_blocks = kvi_pool_free_blocks(pool);
    out->used_blocks =
        kvi_pool_used_blocks(pool) + pool->leased_blocks - (space->scratch != KVMEM_BLOCK_NONE);
    out->owned_blocks = pool->owned_segments * pool->blocks_per_segment;
    out->obtainable_blocks = space->obtainable;
    return 0;
}

int kvmem_space_can_append(const struct kvmem_space *space, uint32_t n,
                           const struct kvmem_seq *seqs, const uint32_t *counts)
{
    int code;

    if (!space)
        return kvi_api_is_null("space");
    code = kvi_api_check_array(seqs, n, "seqs");
    if (code)
        return code;
    /* Marks of the batch are written and counts put back: nothing that a caller can see. */
    code = kvi_seqs_can_append((struct kvmem_space *)(uintptr_t)space, n, seqs, counts);
    return code == KVMEM_E_LIMIT ? 0 : code;
}

int kvmem_space_reserve(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns)
{
    if (!space)
        return kvi_api_is_null("space");
    if (timeout_ns < 0)
        return kvi_error_set(KVMEM_E_INVALID, "timeout_ns: %" PRId64 " is outside 0..%" PRId64,
                             timeout_ns, INT64_MAX);
    return kvi_space_reserve(space, blocks, timeout_ns);
}

int kvmem_space_trim(struct kvmem_space *space)
{
    return space ? kvi_space_trim(space) : kvi_api_is_null("space");
}

int kvmem_space_stats(const struct kvmem_space *space, struct kvmem_space_stats *out)
{
    const struct kvi_pool *pool;
    int code = kvi_api_check_out(space, out, sizeof(*out));

    if (code)
        return code;
    pool = &space->pool;
    *out = space->stats;
    out->size = sizeof(*out);
    out->live_seqs = space->live_seqs;
    out->free_blocks = kvi_pool_free_blocks(pool);
    out->private_blocks = kvi_pool_used_blocks(pool) - (space->scratch != KVMEM_BLOCK_NONE);
    out->leased_blocks = pool->leased_blocks;
    out->cooling_blocks = space->cooling.blocks;
    out->owned_segments = pool->owned_segments;
    out->mapped_segments = space->mapped_segments;
    out->appended_tokens = space->appended_tokens;
    return 0;
}
