/* SPDX-License-Identifier: Apache-2.0
 *
 * Small spaces with regions; see regions.h.
 */
#include "support/regions.h"

#include <inttypes.h>

#include "support/spawn.h"

struct kvmem_space_options kvt_region_space(const char *name)
{
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .layout = KVMEM_LAYOUT_TOKEN_MAJOR,
                                          .flags = KVMEM_SPACE_REGIONS,
                                          .name = name,
                                          .block_tokens = KVT_REGION_BLOCK_TOKENS,
                                          .group_count = 1,
                                          .shard_count = 1,
                                          .low_water_blocks = 1,
                                          .refill_blocks = 4};

    options.groups[0] = (struct kvmem_group_options){.layer_count = 2,
                                                     .kv_head_count = 2,
                                                     .head_dim_k = 64,
                                                     .head_dim_v = 64,
                                                     .dtype_k = KVMEM_DTYPE_BF16,
                                                     .dtype_v = KVMEM_DTYPE_BF16};
    return options;
}

int kvt_region_open(struct kvmem_space *space, struct kvmem_seq seq, uint64_t tokens,
                    struct kvmem_region **region)
{
    struct kvmem_region_options options = {.size = sizeof(options), .token_limit = tokens};

    return kvmem_region_open(space, seq, &options, region);
}

struct kvmem_region_info kvt_region_info(const struct kvmem_region *region)
{
    struct kvmem_region_info info = {.size = sizeof(info)};

    if (kvmem_region_info(region, &info))
        kvt_die("region_info: %s", kvmem_error_detail()->text);
    return info;
}

static char *token_at(struct kvmem_space *space, void *base, struct kvmem_seq seq, uint64_t token)
{
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    const int32_t *table;
    int count = kvmem_table_view(space, 0, seq, &table);
    uint64_t at = token / KVT_REGION_BLOCK_TOKENS;

    if (kvmem_space_geometry(space, 0, &geometry) || count < 0 || at >= (uint64_t)count)
        kvt_die("token %" PRIu64 " of a table of %d blocks", token, count);
    return (char *)base + (uint64_t)table[at] * geometry.index_stride_bytes +
           token % KVT_REGION_BLOCK_TOKENS * geometry.k_token_stride_bytes;
}

const char *kvt_region_block_token(struct kvmem_space *space, struct kvmem_seq seq, uint64_t token)
{
    return token_at(space, kvmem_space_base(space, 0, 0), seq, token);
}

char *kvt_region_block_write(struct kvmem_space *space, struct kvmem_seq seq, uint64_t token)
{
    return token_at(space, kvmem_space_write_base(space, 0, 0), seq, token);
}

const char *kvt_region_token(const struct kvmem_region *region, uint64_t token)
{
    return (const char *)kvt_region_info(region).base + token * KVT_REGION_TOKEN_BYTES;
}

char *kvt_region_write(const struct kvmem_region *region, uint64_t token)
{
    return (char *)kvt_region_info(region).write_base + token * KVT_REGION_TOKEN_BYTES;
}

void kvt_region_names(struct kvmem_name *names, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        names[i] = (struct kvmem_name){{1, (uint8_t)i}};
}
