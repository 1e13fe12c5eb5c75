/* SPDX-License-Identifier: Apache-2.0
 *
 * Launch code of the portable kernels.
 *
 * Sequences of at most KVA_PORTABLE_FEW_ROWS packed rows (query rows × heads of a group) go to the
 * few-row kernel, the others to the many-row one; a ragged batch may have both, so both have a map
 * in the workspace and are launched, one after the other:
 *
 *   [map of few rows: tasks, slots][map of many rows: tasks, slots]
 *
 * Which kernel a sequence gets depends on its own rows alone, as the invariant mode wants.
 */
#include "launch.cuh"
#include "portable_launch.cuh"
#include "portable_shapes.cuh"

#include <stdio.h>

#define TASKS_MAX ((uint32_t)INT32_MAX) /* of a map: two maps' tasks fit 32 bits */

#define KVA_PORTABLE_POINTER(dims) kva_portable_##dims,
static const struct kva_portable_shape *const tables[] = {
    KVA_PORTABLE_TABLES(KVA_PORTABLE_POINTER) nullptr};

/* What a description needs: its kernels and their maps. */
struct choice {
    const struct kva_portable_shape *shape;
    struct kva_cuda_device device;
    bool has_few;
    bool has_many;
    struct kva_plan few;
    struct kva_plan many;
    uint64_t many_at; /* in the workspace */
    uint64_t bytes;
};

static bool is_narrow(const struct kva_cache &cache)
{
    return cache.dtype == KVMEM_DTYPE_FP8_E4M3 || cache.dtype == KVMEM_DTYPE_INT8;
}

static int find_shape(const struct kva_attention *what, const struct kva_portable_shape **out)
{
    const struct kva_cache &cache = what->cache;

    if (what->dtype != KVMEM_DTYPE_BF16 && what->dtype != KVMEM_DTYPE_FP16)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "dtype: %u, kernels on a GPU take BF16 and FP16", what->dtype);
    if (!is_narrow(cache) && cache.dtype != what->dtype)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "cache.dtype: %u, kernels on a GPU need that of q (%u), FP8_E4M3 or "
                             "INT8",
                             cache.dtype, what->dtype);
    for (const struct kva_portable_shape *const *table = tables; *table; table++)
        for (const struct kva_portable_shape *shape = *table; shape < *table + 4; shape++)
            if (shape->head_dim_k == cache.head_dim_k && shape->head_dim_v == cache.head_dim_v &&
                shape->dtype == what->dtype && shape->is_narrow == is_narrow(cache)) {
                *out = shape;
                return 0;
            }
    return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                         "cache.head_dim_k, head_dim_v: %u and %u have no kernel (64, 80, 96, 128, "
                         "192, 256 both, 192 and 128, 576 and 512)",
                         cache.head_dim_k, cache.head_dim_v);
}

static int check_shared(const struct choice &choice, const struct kva_portable_kernel &kernel)
{
    if (kernel.shared_bytes <= (uint32_t)choice.device.shared_bytes)
        return 0;
    return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                         "cache.head_dim_k: %u needs %u bytes of shared memory, this device has %d",
                         choice.shape->head_dim_k, kernel.shared_bytes, choice.device.shared_bytes);
}

/* Thread blocks that run at once. */
static uint32_t resident(const struct kva_cuda_device &device,
                         const struct kva_portable_kernel &kernel)
{
    uint32_t by_shared = (uint32_t)device.sm_shared_bytes / (kernel.shared_bytes + 1024);
    uint32_t per_sm = by_shared < kernel.per_sm ? by_shared : kernel.per_sm;

    return (per_sm ? per_sm : 1) * (uint32_t)device.sm_count;
}

static struct kva_plan plan_of(const struct kva_attention *what, const struct choice &choice,
                               const struct kva_portable_kernel &kernel)
{
    const struct kva_portable_shape &shape = *choice.shape;
    uint64_t packed;
    struct kva_plan plan;

    kva_plan_describe(what, &plan);
    plan.unit_heads *= shape.slices;
    plan.row_tile = kernel.rows;
    plan.kv_tile = kernel.tokens;
    plan.grid = resident(choice.device, kernel);
    plan.overhead = 1;
    plan.part_min = 256 / kernel.tokens;
    plan.slot_row_floats = kva_part_floats(shape.head_dim_v / shape.slices);
    packed = (uint64_t)plan.q_max * plan.group;
    plan.slot_rows = (uint32_t)(packed < kernel.rows ? packed : kernel.rows);
    return plan;
}

/* A map whose tasks have been limited would lack some of them; a listed one is a grid. */
static int check_tasks(const struct kva_plan &plan)
{
    uint64_t tasks = (uint64_t)plan.task_limit * (plan.is_balanced ? 1 : plan.unit_heads);

    if (tasks <= TASKS_MAX)
        return 0;
    return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                         "batch.q_total: %u rows may be %llu tasks, a launch takes %u (remedy: "
                         "fewer rows a call)",
                         plan.q_total, (unsigned long long)tasks, TASKS_MAX);
}

static int choose(const struct kva_attention *what, struct choice *out)
{
    uint64_t packed =
        (uint64_t)what->batch.q_max * (what->q_head_count / what->cache.kv_head_count);
    int code = kva_cuda_device(&out->device);

    if (!code)
        code = find_shape(what, &out->shape);
    if (!code)
        code = check_shared(*out, out->shape->few);
    if (!code)
        code = check_shared(*out, out->shape->many);
    if (code)
        return code;
    out->has_many = packed > KVA_PORTABLE_FEW_ROWS;
    out->has_few = !out->has_many || what->batch.q_offsets;
    out->few = plan_of(what, *out, out->shape->few);
    out->few.packed_max = KVA_PORTABLE_FEW_ROWS;
    out->few.is_balanced = true;
    out->many = plan_of(what, *out, out->shape->many);
    out->many.packed_min = KVA_PORTABLE_FEW_ROWS + 1;
    kva_plan_limits(&out->few);
    kva_plan_limits(&out->many);
    if (out->has_few)
        code = check_tasks(out->few);
    if (!code && out->has_many)
        code = check_tasks(out->many);
    if (code)
        return code;
    out->many_at = out->has_few ? kva_plan_layout_of(&out->few).bytes : 0;
    out->bytes = out->many_at + (out->has_many ? kva_plan_layout_of(&out->many).bytes : 0);
    return 0;
}

static int prepare(const struct kva_portable_kernel &kernel)
{
    return kva_cuda_prepare(kernel.function, (int)kernel.shared_bytes);
}

static int accepts(const struct kva_attention *what)
{
    struct choice choice;

    return choose(what, &choice);
}

static int info(const struct kva_attention *what, struct kva_info *out)
{
    struct choice choice;
    int code = choose(what, &choice);

    if (code)
        return code;
    out->task_limit = (choice.has_few ? choice.few.task_limit : 0) +
                      (choice.has_many ? choice.many.task_limit * choice.many.unit_heads : 0);
    out->workspace_bytes = choice.bytes;
    snprintf(out->kernel, sizeof(out->kernel), "cuda portable %s%s %s%s %u/%u",
             choice.has_many ? "many" : "", choice.has_few ? choice.has_many ? "+few" : "few" : "",
             what->dtype == KVMEM_DTYPE_BF16 ? "bf16" : "fp16",
             !choice.shape->is_narrow                ? ""
             : what->cache.dtype == KVMEM_DTYPE_INT8 ? " int8"
                                                     : " e4m3",
             choice.shape->head_dim_k, choice.shape->head_dim_v);
    if (choice.has_few)
        code = prepare(choice.shape->few);
    if (!code && choice.has_many)
        code = prepare(choice.shape->many);
    return code;
}

static int plan(const struct kva_attention *what, void *workspace, void *stream)
{
    struct choice choice;
    int code = choose(what, &choice);

    if (!code)
        code = kva_cuda_check_stream(&choice.device, (cudaStream_t)stream);
    if (!code && choice.has_few)
        code = kva_plan_build(&choice.few, &what->batch, workspace, (cudaStream_t)stream);
    if (!code && choice.has_many)
        code = kva_plan_build(&choice.many, &what->batch, (char *)workspace + choice.many_at,
                              (cudaStream_t)stream);
    return code;
}

/* ---- running ---- */

static void set_sides(const struct kva_cache &c, uint32_t layer, struct kva_portable *a)
{
    uint64_t element = is_narrow(c) ? 1 : 2, scale = c.scale_dtype == KVMEM_DTYPE_FP32 ? 4 : 2;
    uint64_t at = layer * c.layer_stride * element;
    uint64_t scale_at = layer * c.scale_layer_stride * scale;

    a->k = {(const char *)c.k + at, c.block_stride * element, c.k_head_stride * element,
            c.k_token_stride * element, nullptr};
    a->v = {(const char *)c.v + at, c.block_stride * element, c.v_head_stride * element,
            c.v_token_stride * element, nullptr};
    if (is_narrow(c)) {
        a->k.scale = (const char *)c.k_scale + scale_at;
        a->v.scale = (const char *)c.v_scale + scale_at;
    }
    a->scale_block_stride = c.scale_block_stride;
    a->scale_head_stride = c.scale_head_stride;
    a->scale_token_stride = c.scale_token_stride;
    a->scale_dtype = c.scale_dtype;
    a->is_int8 = c.dtype == KVMEM_DTYPE_INT8;
    a->block_tokens = c.block_tokens;
    a->block_count = c.block_count;
    a->block_shift =
        c.block_tokens & (c.block_tokens - 1) ? 32 : (uint32_t)__builtin_ctz(c.block_tokens);
}

static void set_score(const struct kva_attention *what, struct kva_score *score)
{
    float scale = kva_scale_of(what);

    score->scale_log2 = scale * KVA_LOG2E;
    score->soft_cap = what->soft_cap * KVA_LOG2E;
    score->cap_rate = what->soft_cap != 0 ? 2 * KVA_LOG2E * scale / what->soft_cap : 0;
    score->has_slopes = what->alibi_slopes != nullptr;
    score->is_bent = score->has_slopes || what->soft_cap != 0;
    score->has_tree = what->tree_mask != nullptr;
}

struct kva_portable kva_portable_arguments(const struct kva_attention *what, uint32_t layer,
                                           const void *q, void *out, float *lse)
{
    struct kva_portable a = {};

    set_sides(what->cache, layer, &a);
    set_score(what, &a.score);
    a.tables = what->batch.tables;
    a.table_stride = what->batch.table_stride;
    a.q = q;
    a.out = out;
    a.lse = lse;
    a.q_token_stride = what->q_token_stride;
    a.q_head_stride = what->q_head_stride;
    a.out_token_stride = what->out_token_stride;
    a.out_head_stride = what->out_head_stride;
    a.q_is_aligned = ((uintptr_t)q | what->q_token_stride * 2 | what->q_head_stride * 2) % 16 == 0;
    a.out_is_aligned =
        ((uintptr_t)out | what->out_token_stride * 2 | what->out_head_stride * 2) % 8 == 0;
    a.q_head_count = what->q_head_count;
    a.sinks = what->sinks;
    a.alibi_slopes = what->alibi_slopes;
    a.tree_mask = what->tree_mask;
    return a;
}

static int launch(const struct kva_portable_kernel &kernel, const struct kva_plan &plan,
                  void *workspace, struct kva_portable *a, uint32_t slices, cudaStream_t stream)
{
    uint32_t blocks = plan.is_balanced ? plan.grid : plan.task_limit * plan.unit_heads;
    void *parameters[] = {a};
    int code;

    a->plan = plan;
    a->view = kva_plan_view_of(kva_plan_layout_of(&plan), workspace);
    a->slices = slices;
    code = prepare(kernel);
    if (code)
        return code;
    return kva_cuda_result(cudaLaunchKernel(kernel.function, dim3(blocks), dim3(kernel.threads),
                                            parameters, kernel.shared_bytes, stream),
                           "the attention kernel");
}

static int run(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
               float *lse, void *workspace, void *stream)
{
    struct kva_portable a = kva_portable_arguments(what, layer, q, out, lse);
    struct choice choice;
    int code = choose(what, &choice);

    if (!code)
        code = kva_cuda_check_stream(&choice.device, (cudaStream_t)stream);
    if (!code && choice.has_many)
        code = launch(choice.shape->many, choice.many, (char *)workspace + choice.many_at, &a,
                      choice.shape->slices, (cudaStream_t)stream);
    if (!code && choice.has_few)
        code = launch(choice.shape->few, choice.few, workspace, &a, choice.shape->slices,
                      (cudaStream_t)stream);
    return code;
}

extern "C" const struct kva_kernel kva_cuda_portable;
const struct kva_kernel kva_cuda_portable = {"cuda portable", accepts, info, plan, run};
