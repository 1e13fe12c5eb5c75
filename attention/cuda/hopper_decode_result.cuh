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
            factor = kva_exp2(m - top);
            l = l * factor + kva_exp2(sink - top);
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

/* Four elements of a column over all parts, in their order, eight parts in flight at a time. */
template <class S>
static __device__ __forceinline__ float4 hopper_merge_column(const hopper_decode &p,
                                                             const kva_task &task, uint32_t column,
                                                             uint32_t element, float2 &top)
{
    constexpr int batch = 8;
    float4 sum = {0, 0, 0, 0};

    top = {-INFINITY, 0};
    for (uint32_t part = 0; part < task.parts; part += batch) {
        float4 o[batch];
        float2 s[batch];
        float m = top.x, w;
#pragma unroll
        for (int x = 0; x < batch; x++) {
            const float *from = hopper_part<S>(p, task, min(part + x, task.parts - 1), column);

            s[x] = __ldcg((const float2 *)(from + S::D));
            o[x] = __ldcg((const float4 *)(from + element));
        }
#pragma unroll
        for (int x = 0; x < batch; x++)
            m = fmaxf(m, s[x].x);
        m = m == -INFINITY ? 0 : m;
        w = kva_exp2(top.x - m);
        sum = {sum.x * w, sum.y * w, sum.z * w, sum.w * w};
        top = {m, top.y * w};
#pragma unroll
        for (int x = 0; x < batch; x++) {
            if (part + x >= task.parts || s[x].y == 0)
                continue;
            w = kva_exp2(s[x].x - m);
            top.y += s[x].y * w;
            sum = {sum.x + o[x].x * w, sum.y + o[x].y * w, sum.z + o[x].z * w, sum.w + o[x].w * w};
        }
    }
    return sum;
}

template <class S>
static __device__ __forceinline__ void hopper_merge(const hopper_decode &p, const kva_task &task)
{
    for (uint32_t v = threadIdx.x; v < task.packed_count * (S::D / 4); v += hopper_math_threads) {
        uint32_t column = v / (S::D / 4), element = v % (S::D / 4) * 4;
        hopper_row to = hopper_row_of(p, task, column);
        uint64_t out = hopper_out_at(p, to) + element;
        float2 top;
        float4 sum = hopper_merge_column<S>(p, task, column, element, top);
        float lse, factor = hopper_finish(p, to.head, top.x, top.y, &lse);

        hopper_store<typename S::T>(p.out, out, sum.x * factor);
        hopper_store<typename S::T>(p.out, out + 1, sum.y * factor);
        hopper_store<typename S::T>(p.out, out + 2, sum.z * factor);
        hopper_store<typename S::T>(p.out, out + 3, sum.w * factor);
        if (element == 0)
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
