/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/region.h.
 */
#include "client/region.h"

#include <string.h>

#include "api/check.h"

int kvmem_region_open(struct kvmem_space *space, struct kvmem_seq seq,
                      const struct kvmem_region_options *options, struct kvmem_region **out)
{
    if (!space || !options || !out)
        return kvi_api_is_null(!space ? "space" : !options ? "options" : "out");
    if (options->size != sizeof(*options))
        return kvi_error_set(KVMEM_E_INVALID, "options.size: %" PRIu32 ", expected %zu",
                             options->size, sizeof(*options));
    if (options->ahead_blocks > KVI_REGION_AHEAD_MAX)
        return kvi_error_set(KVMEM_E_INVALID, "ahead_blocks: %" PRIu32 " is outside 0..%u",
                             options->ahead_blocks, KVI_REGION_AHEAD_MAX);
    if (!space->regions)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "space: has no regions; open it with KVMEM_SPACE_REGIONS");
    return kvi_region_open(space, seq, options, out);
}

int kvmem_region_close(struct kvmem_region *region, struct kvmem_fence fence)
{
    struct kvi_point point = {0};
    int code;

    if (!region)
        return 0;
    code = kvi_api_check_fence(region->space, &fence);
    if (!code)
        code = kvi_region_pass(region); /* the sequence keeps the blocks ahead, not their fence */
    if (!code && kvi_fence_is_pending(region->space->client, &fence))
        code =
            kvi_fence_take(region->space->client, kvi_space_backend(region->space), &fence, &point);
    if (!code)
        kvi_region_close(region, &point);
    return code;
}

int kvmem_region_info(const struct kvmem_region *region, struct kvmem_region_info *out)
{
    const struct kvmem_space *space;
    int code;

    if (!region || !out)
        return kvi_api_is_null(region ? "out" : "region");
    code = kvi_api_check_size(out->size, sizeof(*out));
    if (code)
        return code;
    space = region->space;
    memset(out, 0, sizeof(*out));
    out->size = sizeof(*out);
    out->mapped_blocks = region->mapped;
    out->base = kvi_backend_pointer(region->base);
    out->write_base = kvi_backend_pointer(region->write_base);
    out->block_bytes = space->geometry.block_bytes;
    if (space->options.layout == KVMEM_LAYOUT_TOKEN_MAJOR)
        out->token_stride_bytes = space->geometry.k_token_stride_bytes;
    out->token_limit = (uint64_t)region->block_limit * space->block_tokens;
    out->mapped_tokens = (uint64_t)region->mapped * space->block_tokens;
    out->waits = region->waits;
    out->remaps = region->remaps;
    return 0;
}
