/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/prefix.h but kvmem_name_blocks (name.c).
 */
#include "client/prefix.h"

#include "api/check.h"
#include "util/hash.h"

int kvmem_name_root(const struct kvmem_space *space, const struct kvmem_root_options *options,
                    struct kvmem_name *root)
{
    if (!space || !root)
        return kvi_api_is_null(space ? "root" : "space");
    return kvi_name_root(&space->options, options, root);
}

int kvmem_prefix_lookup(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                        int32_t *blocks, struct kvmem_fence *ready)
{
    int code = space ? kvi_api_check_array(names, count, "names") : kvi_api_is_null("space");

    if (!code)
        code = kvi_api_check_array(blocks, count, "blocks");
    if (!code && ready)
        *ready = kvmem_fence_none();
    return code ? code : kvi_prefix_lookup(space, count, names, blocks, ready);
}

int kvmem_prefix_peek(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names)
{
    int code = space ? kvi_api_check_array(names, count, "names") : kvi_api_is_null("space");

    return code ? code : kvi_prefix_peek(space, count, names);
}

int kvmem_seq_attach(struct kvmem_space *space, struct kvmem_seq seq, uint32_t count,
                     const int32_t *blocks)
{
    int code = space ? kvi_api_check_array(blocks, count, "blocks") : kvi_api_is_null("space");

    return code ? code : kvi_seq_attach(space, seq, count, blocks);
}

int kvmem_prefix_release(struct kvmem_space *space, uint32_t count, const int32_t *blocks,
                         struct kvmem_fence fence)
{
    int code = space ? kvi_api_check_array(blocks, count, "blocks") : kvi_api_is_null("space");

    if (!code)
        code = kvi_api_check_fence(space, &fence);
    return code ? code : kvi_prefix_release(space, count, blocks, &fence);
}

int kvmem_seq_publish(struct kvmem_space *space, struct kvmem_seq seq, uint32_t first_block,
                      uint32_t count, const struct kvmem_name *names, struct kvmem_fence fence)
{
    int code = space ? kvi_api_check_array(names, count, "names") : kvi_api_is_null("space");

    if (!code)
        code = kvi_api_check_fence(space, &fence);
    return code ? code : kvi_seq_publish(space, seq, first_block, count, names, &fence);
}

int kvmem_publish_results(struct kvmem_space *space, uint32_t limit,
                          struct kvmem_publish_result *results)
{
    int code = space ? kvi_api_check_array(results, limit, "results") : kvi_api_is_null("space");

    return code ? code : kvi_publish_results(space, limit, results);
}

int kvmem_prefix_pin(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                     int64_t lifetime_ns, uint64_t *pin)
{
    int code = space ? kvi_api_check_array(names, count, "names") : kvi_api_is_null("space");

    if (!code && !pin)
        code = kvi_api_is_null("pin");
    if (!code && (!count || count > KVI_CLIENT_LOOKUP_NAMES))
        code = kvi_error_set(KVMEM_E_LIMIT, "count: %" PRIu32 " is outside 1..%u (names a pin)",
                             count, KVI_CLIENT_LOOKUP_NAMES);
    if (!code && lifetime_ns < 0)
        code = kvi_error_set(KVMEM_E_INVALID, "lifetime_ns: %" PRId64 " is outside 0..%" PRId64,
                             lifetime_ns, INT64_MAX);
    return code ? code : kvi_prefix_pin(space, count, names, lifetime_ns, pin);
}

int kvmem_prefix_unpin(struct kvmem_space *space, uint64_t pin)
{
    if (!space)
        return kvi_api_is_null("space");
    if (!pin)
        return kvi_error_set(KVMEM_E_INVALID, "pin: 0 is outside 1..%" PRIu64, UINT64_MAX);
    return kvi_prefix_unpin(space, pin);
}
