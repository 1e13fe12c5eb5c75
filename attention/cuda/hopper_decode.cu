/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode on Hopper, host side: what is accepted, tensor maps, launches.
 *
 * A tensor map covers one layer of the pool, so that its fifth dimension is free: two are made a
 * run, on the CPU, which takes well under a microsecond; a graph keeps them as parameters.
 */
#include "hopper_launch.cuh"
#include "hopper_map.cuh"
#include "launch.cuh"

#include <stdio.h>

#define COLUMNS_MAX 64u

/* Rows × query heads that share a K/V head. */
static uint64_t columns_of(const kva_attention *what)
{
    return (uint64_t)what->batch.q_max * (what->q_head_count / what->cache.kv_head_count);
}

/* Of an element of K and V. */
static uint32_t bytes_of(const kva_cache &c)
{
    return c.dtype == KVMEM_DTYPE_BF16 || c.dtype == KVMEM_DTYPE_FP16 ? 2 : 1;
}

static hopper_decode_kernel kernel_of(const kva_attention *what)
{
    uint32_t columns = (uint32_t)columns_of(what); /* accepts() has seen that they are few */

    if (what->dtype == KVMEM_DTYPE_BF16 && what->cache.dtype == KVMEM_DTYPE_BF16)
        return hopper_decode_bf16(what->cache.head_dim_k, columns);
    if (what->dtype == KVMEM_DTYPE_FP16 && what->cache.dtype == KVMEM_DTYPE_FP16)
        return hopper_decode_fp16(what->cache.head_dim_k, columns);
    if (what->cache.head_dim_k != 128 || what->dtype == KVMEM_DTYPE_FP32)
        return {};
    if (what->cache.dtype == KVMEM_DTYPE_FP8_E4M3)
        return hopper_decode_fp8(what->dtype, columns);
    if (what->cache.dtype == KVMEM_DTYPE_INT8)
        return hopper_decode_int8(what->dtype, columns);
    return {};
}

static int refuse(const char *field, uint64_t value, const char *range)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "%s: %llu, Hopper's decode takes %s", field,
                         (unsigned long long)value, range);
}

static int accept_cache(const kva_cache &c)
{
    if (c.head_dim_k != c.head_dim_v || (c.head_dim_k != 64 && c.head_dim_k != 128))
        return refuse("cache.head_dim_k", c.head_dim_k, "64 and 128 for K and V");
    if (c.block_tokens % 64 && (c.block_tokens & (c.block_tokens - 1) || c.block_tokens < 8))
        return refuse("cache.block_tokens", c.block_tokens,
                      "powers of two from 8 on and multiples of 64");
    return hopper_map_check(c);
}

static int accepts(const kva_attention *what)
{
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    if (code)
        return code;
    if (device.capability != 90)
        return refuse("device", (uint64_t)device.capability, "compute capability 90");
    code = accept_cache(what->cache);
    if (code)
        return code;
    if (columns_of(what) > COLUMNS_MAX)
        return refuse("batch.q_max × query heads a K/V head", columns_of(what), "1..64");
    if (what->batch.seq_count && !kernel_of(what).entry)
        return refuse("cache.dtype", what->cache.dtype,
                      "the dtype of q, and fp8 and int8 with head dim 128");
    return 0;
}

/* The balanced map: as many thread blocks as the device runs at once. The stream is looked at
 * unless `stream` is NULL, which is of any device. */
static int plan_of(const kva_attention *what, const hopper_decode_kernel &kernel, void *stream,
                   struct kva_plan *plan)
{
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    if (!code)
        code = kva_cuda_check_stream(&device, (cudaStream_t)stream);
    if (code)
        return code;
    kva_plan_describe(what, plan);
    plan->is_balanced = 1;
    plan->row_tile = kernel.columns;
    plan->kv_tile = hopper_tile_tokens;
    plan->grid = (uint32_t)device.sm_count * kernel.blocks_per_sm;
    plan->overhead = 1;
    plan->part_min = 1;
    plan->slot_rows = (uint32_t)columns_of(what);
    plan->slot_row_floats = what->cache.head_dim_v + 4;
    kva_plan_limits(plan);
    return 0;
}

static int info(const kva_attention *what, kva_info *out)
{
    hopper_decode_kernel kernel = kernel_of(what);
    struct kva_plan plan;
    int code;

    if (!what->batch.seq_count || !what->batch.q_total)
        return 0;
    code = plan_of(what, kernel, nullptr, &plan);
    if (!code)
        code = kva_cuda_prepare(kernel.entry, (int)kernel.shared_bytes);
    if (code)
        return code;
    out->task_limit = plan.task_limit;
    out->workspace_bytes = kva_plan_layout_of(&plan).bytes;
    snprintf(out->kernel, sizeof(out->kernel), "cuda hopper decode %s%s %u/%u",
             what->dtype == KVMEM_DTYPE_BF16 ? "bf16" : "fp16",
             what->cache.dtype == KVMEM_DTYPE_INT8       ? " int8"
             : what->cache.dtype == KVMEM_DTYPE_FP8_E4M3 ? " e4m3"
                                                         : "",
             what->cache.head_dim_k, what->cache.head_dim_v);
    return 0;
}

static int plan(const kva_attention *what, void *workspace, void *stream)
{
    struct kva_plan plan;
    int code = plan_of(what, kernel_of(what), stream, &plan);

    return code ? code : kva_plan_build(&plan, &what->batch, workspace, (cudaStream_t)stream);
}

/* ---- run ---- */

/* K or V of one layer: 128 bytes, token, half of the head, head, block. A box holds 128 bytes of
 * `rows` tokens, of both halves. */
static int encode(CUtensorMap *map, const kva_cache &c, const void *base, uint64_t head_stride,
                  uint64_t token_stride, uint32_t rows)
{
    uint32_t bytes = bytes_of(c), width = 128 / bytes, halves = c.head_dim_k / width;
    const hopper_map what = {
        hopper_map_type(c.dtype),
        base,
        {width, c.block_tokens, halves, c.kv_head_count, c.block_count},
        {token_stride * bytes, 128, head_stride * bytes, c.block_stride * bytes},
        {width, rows, halves, 1, 1}};

    return hopper_map_encode(what, map);
}

static int encode_maps(hopper_decode *p, const kva_cache &c, uint32_t layer)
{
    uint64_t bytes = bytes_of(c);
    uint64_t offset = layer * c.layer_stride * bytes;
    int code;

    p->box_rows = c.head_dim_k * bytes > 128 ? 8 : c.block_tokens < 64 ? c.block_tokens : 64;
    code = encode(&p->k_map, c, (const char *)c.k + offset, c.k_head_stride, c.k_token_stride,
                  p->box_rows);
    if (code)
        return code;
    return encode(&p->v_map, c, (const char *)c.v + offset, c.v_head_stride, c.v_token_stride,
                  p->box_rows);
}

static void describe(hopper_decode *p, const kva_attention *what)
{
    const kva_cache &c = what->cache;

    p->tables = what->batch.tables;
    p->table_stride = what->batch.table_stride;
    p->block_tokens = c.block_tokens;
    p->block_count = c.block_count;
    p->scale = kva_scale_of(what) * 1.44269504f;
    p->soft_cap = what->soft_cap * 1.44269504f;
    p->sinks = what->sinks;
    p->alibi_slopes = what->alibi_slopes;
    p->tree_mask = what->tree_mask;
    p->scale_dtype = c.scale_dtype;
    p->scale_block_stride = c.scale_block_stride;
    p->scale_head_stride = c.scale_head_stride;
    p->scale_token_stride = c.scale_token_stride;
    p->q_token_stride = what->q_token_stride;
    p->q_head_stride = what->q_head_stride;
    p->out_token_stride = what->out_token_stride;
    p->out_head_stride = what->out_head_stride;
}

static const void *scales_of(const void *scales, const kva_cache &c, uint32_t layer)
{
    return (const char *)scales +
           layer * c.scale_layer_stride * (c.scale_dtype == KVMEM_DTYPE_FP32 ? 4 : 2);
}

static int launch(const hopper_decode_kernel &kernel, hopper_decode *p, cudaStream_t stream)
{
    void *arguments[] = {p};
    int code = kva_cuda_prepare(kernel.entry, (int)kernel.shared_bytes);

    if (code)
        return code;
    return kva_cuda_result(cudaLaunchKernel(kernel.entry, dim3(p->plan.grid),
                                            dim3(hopper_decode_threads), arguments,
                                            kernel.shared_bytes, stream),
                           "Hopper's decode kernel");
}

static int run(const kva_attention *what, uint32_t layer, const void *q, void *out, float *lse,
               void *workspace, void *stream)
{
    hopper_decode_kernel kernel = kernel_of(what);
    hopper_decode p = {};
    int code = plan_of(what, kernel, stream, &p.plan);

    if (!code)
        code = encode_maps(&p, what->cache, layer);
    if (code)
        return code;
    describe(&p, what);
    p.work = kva_plan_view_of(kva_plan_layout_of(&p.plan), workspace);
    p.k_scale = scales_of(what->cache.k_scale, what->cache, layer);
    p.v_scale = scales_of(what->cache.v_scale, what->cache, layer);
    p.q = q;
    p.out = out;
    p.lse = lse;
    return launch(kernel, &p, (cudaStream_t)stream);
}

extern "C" const kva_kernel kva_cuda_hopper_decode = {"cuda hopper decode", accepts, info, plan,
                                                      run};
