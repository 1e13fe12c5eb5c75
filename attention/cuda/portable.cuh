/* SPDX-License-Identifier: Apache-2.0
 *
 * The portable kernels' arguments, and what both shapes of kernel share: rows, addresses of tokens,
 * ends of tasks.
 *
 *   many rows   portable_many.cuh: 64 or 128 packed rows a thread block, all warps see all tokens
 *   few rows    portable_few.cuh: 16 packed rows, the warps share the tokens between them
 *
 * A result of a task is either final or a part: then it goes to the task's slot, and the thread
 * block that comes last for a unit adds up the slots, in order.
 */
#ifndef KVA_CUDA_PORTABLE_CUH
#define KVA_CUDA_PORTABLE_CUH

#include "plan.cuh"
#include "warp_tile.cuh"

/* K or V of one layer, in bytes. */
struct kva_side {
    const char *base;
    uint64_t block_stride;
    uint64_t head_stride;
    uint64_t token_stride;
    const char *scale; /* NULL: unquantised */
};

struct kva_portable {
    struct kva_plan plan;
    struct kva_plan_view view;
    struct kva_side k;
    struct kva_side v;
    uint64_t scale_block_stride; /* elements of scale_dtype */
    uint64_t scale_head_stride;
    uint64_t scale_token_stride;
    const int32_t *tables;
    uint32_t table_stride;
    uint32_t block_tokens;
    uint32_t block_shift; /* block_tokens = 1 << block_shift; 32: no power of two */
    uint32_t block_count;
    uint32_t scale_dtype;
    bool is_int8;        /* of a narrow cache: else e4m3 */
    bool q_is_aligned;   /* 16 bytes at a time */
    bool out_is_aligned; /* 8 bytes at a time */
    uint32_t slices;     /* of V, each of DV elements; a unit head is a K/V head's slice */
    const void *q;
    void *out;
    float *lse;
    uint64_t q_token_stride; /* elements */
    uint64_t q_head_stride;
    uint64_t out_token_stride;
    uint64_t out_head_stride;
    uint32_t q_head_count;
    const float *sinks;
    const float *alibi_slopes;
    const uint64_t *tree_mask;
    struct kva_score score;
};

static constexpr float KVA_LOG2E = 1.4426950408889634f;
static constexpr float KVA_LN2 = 0.6931471805599453f;

/* A task's rows [0, count) of its tile and what they see, by `threads` threads. Those behind the
 * task's see nothing. */
static __device__ __forceinline__ void kva_rows_set(const struct kva_portable &a,
                                                    const struct kva_task &task, uint32_t kv_head,
                                                    struct kva_row *rows, uint32_t count,
                                                    uint32_t thread, uint32_t threads)
{
    for (uint32_t r = thread; r < count; r += threads) {
        uint32_t packed = task.packed + r, token = packed / a.plan.group;
        struct kva_row row = {};

        if (r < task.packed_count) {
            row.position = task.position + (int32_t)token;
            row.head = kv_head * a.plan.group + packed % a.plan.group;
            row.token = task.row + token;
            row.high = a.plan.is_causal ? row.position + 1 : (int32_t)task.kv_length;
            row.low = kva_plan_window_begin(a.plan, row.position);
            row.slope = a.alibi_slopes ? a.alibi_slopes[row.head] * KVA_LOG2E : 0;
            row.mask = a.tree_mask ? a.tree_mask[row.token] : 0;
        }
        rows[r] = row;
    }
}

/* Tokens [*first, *end) are seen by all rows of a task: tiles inside need no mask. */
static __device__ __forceinline__ void kva_common_tokens(const struct kva_portable &a,
                                                         const struct kva_task &task,
                                                         int32_t *first, int32_t *end)
{
    int32_t low = task.position + (int32_t)(task.packed / a.plan.group);
    int32_t high = task.position + (int32_t)((task.packed + task.packed_count - 1) / a.plan.group);

    *first = kva_plan_window_begin(a.plan, high);
    *end = a.plan.is_causal ? low + 1 : a.score.has_tree ? task.position : (int32_t)task.kv_length;
}

/* Q of the tile's rows into shared memory; zeros behind them. */
template <typename Element, int DK, int ROWS, int THREADS>
static __device__ __forceinline__ void kva_load_q(const struct kva_portable &a,
                                                  const struct kva_row *rows, uint32_t count,
                                                  Element *to)
{
    for (uint32_t i = threadIdx.x; i < ROWS * (DK / 8); i += THREADS) {
        uint32_t r = i / (DK / 8), c = i % (DK / 8);
        const Element *from = (const Element *)a.q + rows[r].token * a.q_token_stride +
                              rows[r].head * a.q_head_stride + c * 8;
        Element *at = to + r * (DK + 8) + c * 8;

        if (a.q_is_aligned) {
            kva_copy16(kva_shared_address(at), from, r < count);
            continue;
        }
        for (uint32_t e = 0; e < 8; e++)
            ((uint16_t *)at)[e] = r < count ? ((const uint16_t *)from)[e] : 0;
    }
}

/* Where a token lies. */
struct kva_place {
    uint64_t block;
    uint32_t token; /* in its block */
};

/* The entry of a table that names token t's block, wherever it points. Not called for tokens that
 * are not used: entries behind the length are not looked at. */
static __device__ __forceinline__ int32_t kva_entry_of(const struct kva_portable &a,
                                                       const int32_t *table, uint32_t t)
{
    return table[a.block_shift < 32 ? t >> a.block_shift : t / a.block_tokens];
}

static __device__ __forceinline__ struct kva_place kva_place_of(const struct kva_portable &a,
                                                                int32_t entry, uint32_t t)
{
    struct kva_place place;

    place.block = (uint32_t)entry < a.block_count ? (uint32_t)entry : a.block_count - 1;
    place.token = a.block_shift < 32 ? t & (a.block_tokens - 1) : t % a.block_tokens;
    return place;
}

static __device__ __forceinline__ const char *kva_address_of(const struct kva_side &side,
                                                             const char *head,
                                                             struct kva_place place)
{
    return head + place.block * side.block_stride + place.token * side.token_stride;
}

static __device__ __forceinline__ float kva_scale_at(const struct kva_portable &a,
                                                     const char *scales, uint32_t kv_head,
                                                     struct kva_place place)
{
    uint64_t at = place.block * a.scale_block_stride + kv_head * a.scale_head_stride +
                  place.token * a.scale_token_stride;

    if (a.scale_dtype == KVMEM_DTYPE_FP32)
        return ((const float *)scales)[at];
    if (a.scale_dtype == KVMEM_DTYPE_BF16)
        return kva_float_of<__nv_bfloat16>(((const uint16_t *)scales)[at]);
    return kva_float_of<__half>(((const uint16_t *)scales)[at]);
}

/* Rows of a narrow tile (BYTES a row, BYTES + 16 apart) become 16 bits, COLUMNS + 8 apart. */
template <typename Element, int COLUMNS, int TOKENS, int THREADS>
static __device__ __forceinline__ void kva_widen_tile(const char *from, Element *to,
                                                      uint32_t thread, bool is_int8)
{
    for (uint32_t i = thread; i < TOKENS * (COLUMNS / 8); i += THREADS) {
        uint32_t r = i / (COLUMNS / 8), c = i % (COLUMNS / 8);
        uint2 eight = *(const uint2 *)(from + r * (COLUMNS + 16) + c * 8);
        uint4 wide;

        wide.x = kva_widen<Element>(eight.x & 0xffff, is_int8);
        wide.y = kva_widen<Element>(eight.x >> 16, is_int8);
        wide.z = kva_widen<Element>(eight.y & 0xffff, is_int8);
        wide.w = kva_widen<Element>(eight.y >> 16, is_int8);
        *(uint4 *)(to + r * (COLUMNS + 8) + c * 8) = wide;
    }
}

/* ---- ends ---- */

/* A part's row: DV floats of O, then the maximum (a logit to base 2) and the sum. */
static __host__ __device__ constexpr uint32_t kva_part_floats(uint32_t dv)
{
    return dv + 4;
}

static __device__ __forceinline__ float *kva_slot_of(const struct kva_portable &a,
                                                     const struct kva_task &task,
                                                     uint32_t unit_head, uint32_t part)
{
    uint64_t slot = task.slot + part;

    if (!a.plan.is_balanced)
        slot += (uint64_t)unit_head * a.plan.slot_limit;
    return a.view.partials + slot * a.plan.slot_rows * a.plan.slot_row_floats;
}

static __device__ __forceinline__ uint32_t *kva_arrivals_of(const struct kva_portable &a,
                                                            const struct kva_task &task,
                                                            uint32_t unit_head)
{
    uint64_t slot = task.slot;

    if (!a.plan.is_balanced)
        slot += (uint64_t)unit_head * a.plan.slot_limit;
    return a.view.arrivals + slot;
}

/* What O of a row is multiplied by, its sink included; stores the row's lse. */
static __device__ __forceinline__ float kva_end_row(const struct kva_portable &a,
                                                    const struct kva_row &row, float top, float sum,
                                                    bool stores_lse)
{
    float factor = sum == 0 ? 0 : 1 / sum, lse = sum == 0 ? -CUDART_INF_F : top + log2f(sum);

    if (a.sinks && sum != 0) {
        float sink = a.sinks[row.head] * KVA_LOG2E, high = fmaxf(top, sink);
        float own = kva_exp2(top - high), all = sum * own + kva_exp2(sink - high);

        factor = own / all;
        lse = high + log2f(all);
    }
    if (stores_lse && a.lse)
        a.lse[(uint64_t)row.token * a.q_head_count + row.head] = lse * KVA_LN2;
    return factor;
}

template <typename Element>
static __device__ __forceinline__ Element *kva_out_of(const struct kva_portable &a,
                                                      const struct kva_row &row)
{
    return (Element *)a.out + row.token * a.out_token_stride + row.head * a.out_head_stride;
}

/* Parts in shared memory, or of other SMs: those are not taken from this one's L1. */
template <bool IS_SHARED, typename Vector>
static __device__ __forceinline__ Vector kva_part_at(const float *at)
{
    if constexpr (IS_SHARED)
        return *(const Vector *)at;
    else
        return __ldcg((const Vector *)at);
}

/* The sum of `count` parts of the tile's rows, `pitch` floats apart, in order: stored as a part at
 * `end` when that is given, else final. A warp a row. */
template <typename Element, int DV, int THREADS, bool IS_SHARED>
static __device__ __forceinline__ void kva_add_parts(const struct kva_portable &a,
                                                     const struct kva_row *rows, uint32_t row_count,
                                                     const float *parts, uint64_t pitch,
                                                     uint32_t count, uint32_t slice, float *end)
{
    uint32_t lane = threadIdx.x % 32;

    for (uint32_t r = threadIdx.x / 32; r < row_count; r += THREADS / 32) {
        const float *mine = parts + r * kva_part_floats(DV);
        float top = -CUDART_INF_F, sum = 0, factor;
        float4 o[(DV + 127) / 128];

        for (uint32_t p = lane; p < count; p += 32)
            top = fmaxf(top, kva_part_at<IS_SHARED, float>(mine + p * pitch + DV));
        for (int step = 16; step; step /= 2)
            top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
        for (int i = 0; i < (DV + 127) / 128; i++)
            o[i] = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (uint32_t p = 0; p < count; p++) {
            float2 own = kva_part_at<IS_SHARED, float2>(mine + p * pitch + DV);
            float weight = own.x == -CUDART_INF_F ? 0 : kva_exp2(own.x - top);

            sum += own.y * weight;
#pragma unroll
            for (int i = 0; i < (DV + 127) / 128; i++) {
                uint32_t column = (i * 32 + lane) * 4;

                if (column < DV) {
                    float4 four = kva_part_at<IS_SHARED, float4>(mine + p * pitch + column);

                    o[i].x += four.x * weight, o[i].y += four.y * weight;
                    o[i].z += four.z * weight, o[i].w += four.w * weight;
                }
            }
        }
        factor = end ? 1 : kva_end_row(a, rows[r], top, sum, slice == 0 && lane == 0);
#pragma unroll
        for (int i = 0; i < (DV + 127) / 128; i++) {
            uint32_t column = (i * 32 + lane) * 4;

            if (column >= DV)
                continue;
            if (end) {
                *(float4 *)(end + r * kva_part_floats(DV) + column) = o[i];
            } else {
                Element *out = kva_out_of<Element>(a, rows[r]) + slice * DV + column;
                uint2 four = {kva_pack<Element>(o[i].x * factor, o[i].y * factor),
                              kva_pack<Element>(o[i].z * factor, o[i].w * factor)};

                if (a.out_is_aligned) {
                    *(uint2 *)out = four;
                } else {
                    ((uint16_t *)out)[0] = four.x & 0xffff, ((uint16_t *)out)[1] = four.x >> 16;
                    ((uint16_t *)out)[2] = four.y & 0xffff, ((uint16_t *)out)[3] = four.y >> 16;
                }
            }
        }
        if (end && lane == 0)
            *(float2 *)(end + r * kva_part_floats(DV) + DV) = make_float2(top, sum);
    }
}

/* This warp's O, maximum and sum as a part: rows [first_row, …) of the tile. */
template <int DV, int MB, typename Tile>
static __device__ __forceinline__ void kva_store_part(const Tile &tile, float rate, float *to,
                                                      uint32_t row_limit, uint32_t first_row)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int r = 0; r < MB * 2; r++) {
        uint32_t row = first_row + r * 8 + lane / 4;
        float *at = to + row * kva_part_floats(DV);

        if (row >= row_limit)
            continue;
#pragma unroll
        for (int d = 0; d < DV / 8; d++)
            *(float2 *)(at + d * 8 + lane % 4 * 2) =
                make_float2(tile.o[r / 2][d][r % 2 * 2] * tile.unit,
                            tile.o[r / 2][d][r % 2 * 2 + 1] * tile.unit);
        if (lane % 4 == 0)
            *(float2 *)(at + DV) =
                make_float2(tile.top[r / 2][r % 2] * rate, tile.sum[r / 2][r % 2]);
    }
}

/* The same rows, final, straight from registers. */
template <typename Element, int DV, int MB, typename Tile>
static __device__ __forceinline__ void kva_store_final(const struct kva_portable &a,
                                                       const Tile &tile, float rate,
                                                       const struct kva_row *rows,
                                                       uint32_t row_limit, uint32_t first_row,
                                                       uint32_t slice)
{
    uint32_t lane = threadIdx.x % 32;

#pragma unroll
    for (int r = 0; r < MB * 2; r++) {
        uint32_t index = first_row + r * 8 + lane / 4;
        const struct kva_row row = rows[index];
        float factor;

        if (index >= row_limit)
            continue;
        factor = tile.unit * kva_end_row(a, row, tile.top[r / 2][r % 2] * rate,
                                         tile.sum[r / 2][r % 2], slice == 0 && lane % 4 == 0);
        Element *out = kva_out_of<Element>(a, row) + slice * DV + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < DV / 8; d++) {
            uint32_t two = kva_pack<Element>(tile.o[r / 2][d][r % 2 * 2] * factor,
                                             tile.o[r / 2][d][r % 2 * 2 + 1] * factor);

            if (a.out_is_aligned) {
                *(uint32_t *)(out + d * 8) = two;
            } else {
                ((uint16_t *)out)[d * 8] = two & 0xffff;
                ((uint16_t *)out)[d * 8 + 1] = two >> 16;
            }
        }
    }
}

#endif
