/* SPDX-License-Identifier: Apache-2.0
 *
 * Argument checks that the public functions share. Each returns 0 or INVALID (NOT_SUPPORTED for a
 * fence of a stream on the host) with the argument's name in the detail.
 */
#ifndef KVI_API_CHECK_H
#define KVI_API_CHECK_H

#include <inttypes.h>

#include "client/space.h"
#include "util/error.h"

static inline int kvi_api_is_null(const char *name)
{
    return kvi_error_set(KVMEM_E_INVALID, "%s: is NULL", name);
}

static inline int kvi_api_check_size(uint32_t size, size_t expected)
{
    if (size == expected)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID, "size: %" PRIu32 ", expected %zu", size, expected);
}

/* What a call on a space fills in. `out` begins with its size, set by the caller. */
static inline int kvi_api_check_out(const struct kvmem_space *space, const void *out,
                                    size_t expected)
{
    if (!space || !out)
        return kvi_api_is_null(space ? "out" : "space");
    return kvi_api_check_size(*(const uint32_t *)out, expected);
}

static inline int kvi_api_check_group(const struct kvmem_space *space, uint32_t group)
{
    if (group < space->options.group_count)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID, "group: %" PRIu32 " is outside 0..%" PRIu32, group,
                         space->options.group_count - 1);
}

/* Arrays of `count` elements: NULL is allowed for none. Counts that are returned fit an int. */
static inline int kvi_api_check_array(const void *array, uint32_t count, const char *name)
{
    if (count > INT32_MAX)
        return kvi_error_set(KVMEM_E_INVALID, "count of %s: %" PRIu32 " is outside 0..%d", name,
                             count, INT32_MAX);
    return !count || array ? 0 : kvi_api_is_null(name);
}

static inline int kvi_api_check_fence(struct kvmem_space *space, const struct kvmem_fence *fence)
{
    return fence->kind <= KVMEM_FENCE_HOST
               ? 0
               : kvi_fence_check(space->client, kvi_space_backend(space), fence);
}

#endif
