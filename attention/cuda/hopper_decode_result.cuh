/* SPDX-License-Identifier: Apache-2.0
 *
 * Results of Hopper's decode: of whole units, and of parts, merged by who finishes last.
 */
#ifndef KVA_HOPPER_DECODE_RESULT_CUH
#define KVA_HOPPER_DECODE_RESULT_CUH

#include "hopper_decode_shape.cuh"

#ifdef HOPPER_HAVE_SM90A

template <class T>
static __device__ __forceinline__ void hopper_store(void *out, uint64_t at, float x)
{
    if constexpr (std::is_same<T, __nv_bfloat16>::value)
        ((__nv_bfloat16 *)out)[at] = __float2bfloat16(x);
    else
        ((__half *)out)[at] = __float2half(x);
}

static __device__ __forceinline__ uint64_t hopper_out_at(const hopper_decode &p,
                                                         const hopper_row &at)
{
    return at.row * p.out_token_stride + at.head * p.out_head_stride;
}

static __device__ __forceinline__ void hopper_store_lse(const hopper_decode &p,
                                                        const hopper_row &at, float lse)
{
    if (p.lse)
        p.lse[at.row * p.plan.unit_heads * p.plan.group + at.head] = lse;
}

/* From (m, l) to the factor of O and the log-sum-exp, with the sink. */
static __device__ __forceinline__ float hopper_finish(const hopper_decode &p, uint32_t head,
                                                      float m, float l, float *lse)
{
    float factor = 1;

    if (p.sinks && l != 0) { /* who sees nothing has no sink either */
        float sink = p.sinks[head] * log2_of_e, top = fmaxf(m, sink);

        if (top != -INFINITY) {
            factor = hopper_exp2(m - top);
            l = l * factor + hopper_exp2(sink - top);
            m = top;
        }
    }
    *lse = l == 0 ? -INFINITY : (m + log2f(l)) * 0.693147181f;
    return l == 0 ? 0 : factor / l;
}

/* The sums of all threads' l, a column. */
template <class S>
static __device__ __forceinline__ void hopper_sum_up(hopper_decode_shared<S> &shared,
                                                     const hopper_thread &me,
                                                     hopper_state<S> &state)
{
#pragma unroll
    for (int c = 0; c < S::N / 4; c++) {
        float x = state.l[c];

        x += __shfl_xor_sync(~0u, x, 4);
        x += __shfl_xor_sync(~0u, x, 8);
        x += __shfl_xor_sync(~0u, x, 16);
        if (threadIdx.x % 32 < 4)
            shared.exchange[me.warp][c / 2 * 8 + me.column + c % 2] = x;
    }
    hopper_sync_math();
#pragma unroll
    for (int c = 0; c < S::N / 4; c++) {
        uint32_t column = c / 2 * 8 + me.column + c % 2;

        state.l[c] = (shared.exchange[0][column] + shared.exchange[1][column]) +
                     (shared.exchange[2][column] + shared.exchange[3][column]);
    }
}

/* Element of the head in register x of half h. */
template <class S>
static __device__ __forceinline__ uint32_t hopper_element(const hopper_thread &me, int h, int x)
{
    if constexpr (S::is_quantised)
        return (me.warp * 8 + me.row % 8) * 4 + h * 2 + x / 2 % 2;
    return h * 64 + me.row + x / 2 % 2 * 8;
}

template <class S>
static __device__ __forceinline__ void hopper_write_whole(const hopper_decode &p,
                                                          const kva_task &task,
                                                          const hopper_thread &me,
                                                          const hopper_state<S> &state)
{
#pragma unroll
    for (int c = 0; c < S::N / 4; c++) {
        uint32_t column = c / 2 * 8 + me.column + c % 2;
        hopper_row to = hopper_row_of(p, task, column);
        float factor, lse;

        if (column >= task.packed_count)
            continue;
        factor = hopper_finish(p, to.head, state.m[c], state.l[c], &lse);
        if (me.row == 0)
            hopper_store_lse(p, to, lse);
#pragma unroll
        for (int h = 0; h < S::halves; h++)
#pragma unroll
            for (int x = c / 2 * 4 + c % 2; x < c / 2 * 4 + 4; x += 2)
                hopper_store<typename S::T>(p.out,
                                            hopper_out_at(p, to) + hopper_element<S>(me, h, x),
                                            state.o[h][x] * factor);
    }
}

/* ---- the warpgroup: parts of a unit ---- */

/* Floats of a column's partial result: O, then m and l. */
template <class S> static constexpr uint32_t hopper_part_floats = S::D + 4;

template <class S>
static __device__ __forceinline__ float *hopper_part(const hopper_decode &p, const kva_task &task,
                                                     uint32_t part, uint32_t column)
{
    return p.work.partials +
           ((uint64_t)(task.slot + part) * p.plan.slot_rows + column) * hopper_part_floats<S>;
}

template <class S>
static __device__ __forceinline__ void hopper_write_part(const hopper_decode &p,
                                                         const kva_task &task,
                                                         const hopper_thread &me,
                                                         const hopper_state<S> &state)
{
#pragma unroll
    for (int c = 0; c < S::N / 4; c++) {
        uint32_t column = c / 2 * 8 + me.column + c % 2;
        float *to = hopper_part<S>(p, task, task.part, column);

        if (column >= task.packed_count)
            continue;
        if (me.row == 0)
            *(float2 *)(to + S::D) = {state.m[c], state.l[c]};
#pragma unroll
        for (int h = 0; h < S::halves; h++)
#pragma unroll
            for (int x = c / 2 * 4 + c % 2; x < c / 2 * 4 + 4; x += 2)
                to[hopper_element<S>(me, h, x)] = state.o[h][x];
    }
}

/* Four elements of a lane, or two. */
template <class S> union hopper_elements {
    typename std::conditional<S::D == 128, float4, float2>::type all;
    float each[S::D / 32];
};

template <class S>
static __device__ __forceinline__ hopper_elements<S> hopper_load_part(const hopper_decode &p,
                                                                      const kva_task &task,
                                                                      uint32_t part,
                                                                      uint32_t column)
{
    using vector = decltype(hopper_elements<S>::all);
    const float *from = hopper_part<S>(p, task, min(part, task.parts - 1), column);

    return {__ldcg((const vector *)from + threadIdx.x % 32)};
}

template <class S>
static __device__ __forceinline__ float2 hopper_load_stats(const hopper_decode &p,
                                                           const kva_task &task, uint32_t part,
                                                           uint32_t column)
{
    if (part >= task.parts)
        return {-INFINITY, 0};
    return __ldcg((const float2 *)(hopper_part<S>(p, task, part, column) + S::D));
}

/* A warp: m and l of a column over all parts; `own` is of part `lane`. */
template <class S>
static __device__ __forceinline__ float2 hopper_merge_stats(const hopper_decode &p,
                                                            const kva_task &task, uint32_t column,
                                                            float2 own)
{
    uint32_t lane = threadIdx.x % 32;
    float m = own.x, l, base;

    for (uint32_t part = lane + 32; part < task.parts; part += 32)
        m = fmaxf(m, hopper_load_stats<S>(p, task, part, column).x);
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
        m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
    base = m == -INFINITY ? 0 : m;
    l = own.y == 0 ? 0 : own.y * hopper_exp2(own.x - base);
    for (uint32_t part = lane + 32; part < task.parts; part += 32) {
        float2 one = hopper_load_stats<S>(p, task, part, column);

        l += one.y == 0 ? 0 : one.y * hopper_exp2(one.x - base);
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
        l += __shfl_xor_sync(~0u, l, step);
    return {m, l};
}

/* A warp: the sum of a column's O over the parts, in their order, D / 32 elements a lane; and the
 * column's m and l. Loads of 16 parts are always under way: they are what this takes. */
template <class S>
static __device__ __forceinline__ float2 hopper_merge_column(const hopper_decode &p,
                                                             const kva_task &task, uint32_t column,
                                                             float (&sum)[S::D / 32])
{
    constexpr uint32_t ahead = 16;
    uint32_t lane = threadIdx.x % 32;
    float2 own = hopper_load_stats<S>(p, task, lane, column), stats;
    hopper_elements<S> o[ahead];
    float base;

#pragma unroll
    for (uint32_t x = 0; x < ahead; x++)
        o[x] = hopper_load_part<S>(p, task, x, column);
    stats = hopper_merge_stats<S>(p, task, column, own);
    base = stats.x == -INFINITY ? 0 : stats.x;
    for (uint32_t part = 0; part < task.parts; part += ahead) {
        if (part % 32 == 0 && part)
            own = hopper_load_stats<S>(p, task, part + lane, column);
#pragma unroll
        for (uint32_t x = 0; x < ahead; x++) {
            float m = __shfl_sync(~0u, own.x, part % 32 + x), weight = hopper_exp2(m - base);
#pragma unroll
            for (int d = 0; d < S::D / 32; d++)
                sum[d] += m == -INFINITY ? 0 : o[x].each[d] * weight;
            if (part + ahead < task.parts)
                o[x] = hopper_load_part<S>(p, task, part + ahead + x, column);
        }
    }
    return stats;
}

/* A warp a column. */
template <class S>
static __device__ __forceinline__ void hopper_merge(const hopper_decode &p, const kva_task &task)
{
    uint32_t lane = threadIdx.x % 32;

    for (uint32_t column = threadIdx.x / 32; column < task.packed_count; column += 4) {
        hopper_row to = hopper_row_of(p, task, column);
        uint64_t out = hopper_out_at(p, to) + lane * (S::D / 32);
        float sum[S::D / 32] = {}, lse, factor;
        float2 stats = hopper_merge_column<S>(p, task, column, sum);

        factor = hopper_finish(p, to.head, stats.x, stats.y, &lse);
#pragma unroll
        for (int d = 0; d < S::D / 32; d++)
            hopper_store<typename S::T>(p.out, out + d, sum[d] * factor);
        if (!lane)
            hopper_store_lse(p, to, lse);
    }
}

/* This block's part goes to the workspace; who comes last merges. */
template <class S>
static __device__ __forceinline__ void hopper_finish_part(const hopper_decode &p,
                                                          hopper_decode_shared<S> &shared,
                                                          const kva_task &task,
                                                          const hopper_thread &me,
                                                          const hopper_state<S> &state)
{
    uint32_t *arrivals = p.work.arrivals + task.slot;

    hopper_write_part<S>(p, task, me, state);
    __threadfence(); /* the part, before the count */
    hopper_sync_math();
    if (threadIdx.x == 0)
        shared.is_last = kva_plan_count(arrivals, task.parts);
    hopper_sync_math();
    if (!shared.is_last)
        return;
    __threadfence(); /* the count, before the others' parts */
    hopper_merge<S>(p, task);
}

#endif /* HOPPER_HAVE_SM90A */
#endif
