/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefill on Hopper, host side. A tensor map covers one layer of the pool: two are made a run, on
 * the CPU; a graph keeps them as parameters.
 */
#include "hopper_map.cuh"
#include "hopper_prefill.cuh"
#include "launch.cuh"
#include "portable_launch.cuh"

#include <stdio.h>

#define ROWS_MIN 64u /* packed rows of the longest sequence: decode's kernels are for fewer */

static int refuse(const char *field, uint64_t value, const char *range)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "%s: %llu, prefill on Hopper takes %s", field,
                         (unsigned long long)value, range);
}

static int plan_of(const struct kva_attention *what, struct kva_plan *plan)
{
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    if (code)
        return code;
    kva_plan_describe(what, plan);
    plan->row_tile = hopper_prefill_rows;
    plan->kv_tile = hopper_prefill_tokens;
    plan->grid = (uint32_t)device.sm_count;
    plan->overhead = 1;
    plan->part_min = 4;
    plan->slot_rows = hopper_prefill_rows;
    plan->slot_row_floats = kva_part_floats(128);
    kva_plan_limits(plan);
    return 0;
}

/* The kernel counts tasks of all heads in 32 bits. */
static int check_tasks(const struct kva_attention *what)
{
    struct kva_plan plan;
    int code = plan_of(what, &plan);

    if (code)
        return code;
    if ((uint64_t)plan.task_limit * plan.unit_heads > INT32_MAX)
        return refuse("batch.q_total", what->batch.q_total, "fewer rows a call");
    return 0;
}

static int accepts(const struct kva_attention *what)
{
    const struct kva_cache &c = what->cache;
    uint64_t packed = (uint64_t)what->batch.q_max * (what->q_head_count / c.kv_head_count);
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    if (code)
        return code;
    if (device.capability != 90)
        return refuse("device", (uint64_t)device.capability, "compute capability 90");
    if (what->dtype != c.dtype || (c.dtype != KVMEM_DTYPE_BF16 && c.dtype != KVMEM_DTYPE_FP16))
        return refuse("cache.dtype", c.dtype, "BF16 and FP16, as q");
    if (c.head_dim_k != 128 || c.head_dim_v != 128)
        return refuse("cache.head_dim_k", c.head_dim_k, "128 for K and V");
    if (c.block_tokens % 8)
        return refuse("cache.block_tokens", c.block_tokens, "multiples of 8");
    if (packed <= ROWS_MIN)
        return refuse("batch.q_max × query heads a K/V head", packed, "65 and more");
    if (what->flags & KVA_BATCH_INVARIANT)
        return refuse("flags", what->flags, "no KVA_BATCH_INVARIANT: it is chosen by the batch");
    code = hopper_map_check(c);
    return code ? code : check_tasks(what);
}

static const void *kernel_of(const struct kva_attention *what)
{
    return what->dtype == KVMEM_DTYPE_BF16 ? (const void *)hopper_prefill_kernel<__nv_bfloat16>
                                           : (const void *)hopper_prefill_kernel<__half>;
}

static int info(const struct kva_attention *what, struct kva_info *out)
{
    struct kva_plan plan;
    int code = plan_of(what, &plan);

    if (code)
        return code;
    out->task_limit = plan.task_limit * plan.unit_heads;
    out->workspace_bytes = kva_plan_layout_of(&plan).bytes;
    snprintf(out->kernel, sizeof(out->kernel), "cuda hopper prefill %s 128/128",
             what->dtype == KVMEM_DTYPE_BF16 ? "bf16" : "fp16");
    return kva_cuda_prepare(kernel_of(what), (int)hopper_prefill_bytes);
}

static int plan(const struct kva_attention *what, void *workspace, void *stream)
{
    struct kva_cuda_device device;
    struct kva_plan plan;
    int code = kva_cuda_device(&device);

    if (!code)
        code = kva_cuda_check_stream(&device, (cudaStream_t)stream);
    if (!code)
        code = plan_of(what, &plan);
    return code ? code : kva_plan_build(&plan, &what->batch, workspace, (cudaStream_t)stream);
}

/* ---- running ---- */

/* 64 elements, token, half of the head, head, block; a box has both halves of 8 tokens. */
static int encode(CUtensorMap *map, const struct kva_cache &c, const struct kva_side &side)
{
    const struct hopper_map what = {hopper_map_type(c.dtype),
                                    side.base,
                                    {64, c.block_tokens, 2, c.kv_head_count, c.block_count},
                                    {side.token_stride, 128, side.head_stride, side.block_stride},
                                    {64, 8, 2, 1, 1}};

    return hopper_map_encode(what, map);
}

static int run(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
               float *lse, void *workspace, void *stream)
{
    struct hopper_prefill p = {};
    void *arguments[] = {&p};
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    p.a = kva_portable_arguments(what, layer, q, out, lse);
    p.a.slices = 1;
    if (!code)
        code = kva_cuda_check_stream(&device, (cudaStream_t)stream);
    if (!code)
        code = plan_of(what, &p.a.plan);
    if (!code)
        code = encode(&p.k_map, what->cache, p.a.k);
    if (!code)
        code = encode(&p.v_map, what->cache, p.a.v);
    if (!code)
        code = kva_cuda_prepare(kernel_of(what), (int)hopper_prefill_bytes);
    if (code)
        return code;
    p.a.view = kva_plan_view_of(kva_plan_layout_of(&p.a.plan), workspace);
    return kva_cuda_result(cudaLaunchKernel(kernel_of(what), dim3((uint32_t)device.sm_count),
                                            dim3(hopper_prefill_threads), arguments,
                                            hopper_prefill_bytes, (cudaStream_t)stream),
                           "the prefill kernel");
}

extern "C" const struct kva_kernel kva_cuda_hopper_prefill;
const struct kva_kernel kva_cuda_hopper_prefill = {"cuda hopper prefill", accepts, info, plan, run};
