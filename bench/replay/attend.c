/* SPDX-License-Identifier: Apache-2.0
 *
 * Geometry in bytes becomes strides in elements.
 */
#include "attend.h"

static struct kva_cache describe_cache(const struct kvb_shape *shape, const char *base)
{
    const struct kvmem_geometry *g = &shape->geometry;
    uint32_t bytes = kvmem_dtype_bytes(shape->model.dtype);
    struct kva_cache cache = {.dtype = shape->model.dtype,
                              .block_tokens = shape->model.block_tokens,
                              .block_count = INT32_MAX, /* the library hands out valid tables */
                              .layer_count = shape->model.layers,
                              .kv_head_count = shape->model.kv_heads,
                              .head_dim_k = shape->model.head_dim,
                              .head_dim_v = shape->model.head_dim,
                              .k = base,
                              .v = base + g->v_offset_bytes,
                              .block_stride = g->index_stride_bytes / bytes,
                              .layer_stride = g->layer_stride_bytes / bytes,
                              .k_head_stride = g->k_head_stride_bytes / bytes,
                              .k_token_stride = g->k_token_stride_bytes / bytes,
                              .v_head_stride = g->v_head_stride_bytes / bytes,
                              .v_token_stride = g->v_token_stride_bytes / bytes};

    return cache;
}

struct kva_attention kvb_describe_attention(const struct kvb_shape *shape,
                                            const struct kvb_attend_arrays *arrays, uint32_t tokens,
                                            uint32_t heads, uint32_t dtype, uint32_t device)
{
    uint32_t dim = shape->model.head_dim;
    struct kva_attention what = {
        .size = sizeof(what),
        .device = device,
        .flags = KVA_CAUSAL,
        .q_head_count = heads,
        .dtype = dtype,
        .q_token_stride = (uint64_t)heads * dim,
        .q_head_stride = dim,
        .out_token_stride = (uint64_t)heads * dim,
        .out_head_stride = dim,
        .threads = 1,
        .cache = describe_cache(shape, arrays->base),
        .batch = {.seq_count = 1,
                  .q_max = 1,
                  .q_total = 1,
                  .kv_max = tokens,
                  .table_stride = (tokens - 1) / shape->model.block_tokens + 1,
                  .tables = arrays->table,
                  .kv_lengths = arrays->length}};

    return what;
}
