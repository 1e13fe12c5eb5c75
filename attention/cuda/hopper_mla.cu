/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention on Hopper, host side: what is accepted, tensor maps, launches.
 */
#include "hopper_map.cuh"
#include "hopper_mla.h"
#include "launch.cuh"

#include <stdio.h>

/* Rows × query heads of a sequence, at most. */
static uint64_t packed_of(const kva_attention *what)
{
    return (uint64_t)what->batch.q_max * what->q_head_count;
}

static hopper_mla_kernel kernel_of(const kva_attention *what)
{
    uint64_t packed = packed_of(what);
    uint32_t rows = packed < UINT32_MAX ? (uint32_t)packed : UINT32_MAX;

    return rows <= hopper_mla_few_rows ? hopper_mla_few(rows) : hopper_mla_many(rows);
}

static int refuse(const char *field, uint64_t value, const char *range)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "%s: %llu, Hopper's latent attention takes %s",
                         field, (unsigned long long)value, range);
}

static int accept_cache(const kva_cache &c)
{
    if (c.head_dim_k != hopper_mla_k || c.head_dim_v != hopper_mla_v)
        return refuse("cache.head_dim_k", c.head_dim_k, "576 with 512 for V");
    if (c.kv_head_count != 1)
        return refuse("cache.kv_head_count", c.kv_head_count, "1");
    if (c.v != c.k || c.v_token_stride != c.k_token_stride)
        return refuse("cache.v_token_stride", c.v_token_stride, "v = k");
    if (c.dtype != KVMEM_DTYPE_BF16)
        return refuse("cache.dtype", c.dtype, "bf16");
    if (c.block_tokens % 64 && (c.block_tokens & (c.block_tokens - 1) || c.block_tokens < 16))
        return refuse("cache.block_tokens", c.block_tokens,
                      "powers of two from 16 on and multiples of 64");
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
    if (what->dtype != KVMEM_DTYPE_BF16)
        return refuse("dtype", what->dtype, "bf16");
    if (what->alibi_slopes)
        return refuse("alibi_slopes", 1, "none");
    return accept_cache(what->cache);
}

/* The balanced map: as many thread blocks, or pairs, as the device runs at once. */
static int plan_of(const kva_attention *what, const hopper_mla_kernel &kernel, void *stream,
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
    plan->row_tile = kernel.rows;
    plan->kv_tile = hopper_tile_tokens;
    plan->grid = (uint32_t)device.sm_count / kernel.blocks;
    plan->overhead = kernel.blocks > 1 ? 4 : 1;
    /* A part of few rows costs the one who merges as much as some tiles. */
    plan->part_min = kernel.rows <= hopper_mla_few_rows ? 4 : 1;
    plan->slot_rows = kernel.rows;
    plan->slot_row_floats = hopper_mla_v + 4;
    kva_plan_limits(plan);
    return 0;
}

static int info(const kva_attention *what, kva_info *out)
{
    hopper_mla_kernel kernel = kernel_of(what);
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
    snprintf(out->kernel, sizeof(out->kernel), "cuda hopper mla %s bf16 %u/%u",
             packed_of(what) <= hopper_mla_few_rows ? "few" : "many", hopper_mla_k, hopper_mla_v);
    return 0;
}

static int plan(const kva_attention *what, void *workspace, void *stream)
{
    struct kva_plan plan;
    int code = plan_of(what, kernel_of(what), stream, &plan);

    return code ? code : kva_plan_build(&plan, &what->batch, workspace, (cudaStream_t)stream);
}

/* ---- run ---- */

/* One layer: 64 elements, token, ninth of the head, head, block. A box holds `columns` ninths of
 * `rows` tokens. */
static int encode(CUtensorMap *map, const kva_cache &c, uint32_t layer, uint32_t rows,
                  uint32_t columns)
{
    const hopper_map what = {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                             (const char *)c.k + layer * c.layer_stride * 2,
                             {64, c.block_tokens, hopper_mla_k / 64, 1, c.block_count},
                             {c.k_token_stride * 2, 128, hopper_mla_k * 2, c.block_stride * 2},
                             {64, rows, columns, 1, 1}};

    return hopper_map_encode(what, map);
}

static void describe(hopper_decode *p, const kva_attention *what)
{
    p->tables = what->batch.tables;
    p->table_stride = what->batch.table_stride;
    p->block_tokens = what->cache.block_tokens;
    p->block_count = what->cache.block_count;
    p->scale = kva_scale_of(what) * log2_of_e;
    p->soft_cap = what->soft_cap * log2_of_e;
    p->sinks = what->sinks;
    p->tree_mask = what->tree_mask;
    p->q_token_stride = what->q_token_stride;
    p->q_head_stride = what->q_head_stride;
    p->out_token_stride = what->out_token_stride;
    p->out_head_stride = what->out_head_stride;
}

static int launch(const hopper_mla_kernel &kernel, hopper_decode *p, cudaStream_t stream)
{
    void *arguments[] = {p};
    int code = kva_cuda_prepare(kernel.entry, (int)kernel.shared_bytes);

    if (code)
        return code;
    return kva_cuda_result(cudaLaunchKernel(kernel.entry, dim3(p->plan.grid * kernel.blocks),
                                            dim3(kernel.threads), arguments, kernel.shared_bytes,
                                            stream),
                           "Hopper's latent attention");
}

static int run(const kva_attention *what, uint32_t layer, const void *q, void *out, float *lse,
               void *workspace, void *stream)
{
    hopper_mla_kernel kernel = kernel_of(what);
    hopper_decode p = {};
    int code = plan_of(what, kernel, stream, &p.plan);

    if (!code)
        code = encode(&p.k_map, what->cache, layer, 8, kernel.box_columns);
    if (!code)
        code = encode(&p.v_map, what->cache, layer, 16, 1);
    if (code)
        return code;
    describe(&p, what);
    p.work = kva_plan_view_of(kva_plan_layout_of(&p.plan), workspace);
    p.q = q;
    p.out = out;
    p.lse = lse;
    return launch(kernel, &p, (cudaStream_t)stream);
}

extern "C" const kva_kernel kva_cuda_hopper_mla = {"cuda hopper mla", accepts, info, plan, run};
