/* SPDX-License-Identifier: Apache-2.0
 *
 * One tile of Hopper's decode: scores, softmax, V's unseen rows.
 */
#ifndef KVA_HOPPER_DECODE_TILE_CUH
#define KVA_HOPPER_DECODE_TILE_CUH

#include "hopper_decode_shape.cuh"

#ifdef HOPPER_HAVE_SM90A

/* Tokens before `loaded` are in memory; what every row of the task sees without a look is
 * [clean_begin, clean_end), what any row sees begins at `begin`. */
struct hopper_range {
    int32_t begin;
    int32_t clean_begin;
    int32_t clean_end;
};

static __device__ __forceinline__ hopper_range hopper_range_of(const hopper_decode &p,
                                                               const kva_task &task)
{
    uint32_t last = task.packed + task.packed_count - 1;
    int32_t low = task.position + (int32_t)(task.packed / p.plan.group);
    int32_t high = task.position + (int32_t)(last / p.plan.group);
    int32_t end = task.kv_end;

    if (p.plan.is_tree)
        end = min(end, task.position);
    if (p.plan.is_causal)
        end = min(end, low + 1);
    return {kva_plan_window_begin(p.plan, low), kva_plan_window_begin(p.plan, high), end};
}

template <class S>
static __device__ __forceinline__ bool hopper_sees(const hopper_decode &p,
                                                   const hopper_decode_shared<S> &shared,
                                                   const kva_task &task, int32_t t, uint32_t column)
{
    int32_t position = shared.position[column], young = t - task.position;
    bool sees = t < (int32_t)task.kv_end;

    if (p.plan.is_causal)
        sees = sees && t <= position;
    if (p.plan.is_tree && young >= 0)
        sees = sees && young < 64 && shared.tree[column] >> young & 1;
    if (p.plan.window_tokens)
        sees = sees && (int64_t)t > (int64_t)position - p.plan.window_tokens;
    return sees;
}

/* Of a thread's two tokens, where K and V are quantised. With x = score + log2(scale of V) instead
 * of the score, P = exp2(x - max x) has the scale of V in it and fits f16 whatever the scales are;
 * the sum takes it out again. */
struct hopper_factors {
    float k[2];
    float shift[2];
    float inverse[2];
};

template <class S>
static __device__ __forceinline__ void hopper_load_factors(const hopper_decode_shared<S> &shared,
                                                           const hopper_thread &me, uint32_t slot,
                                                           hopper_factors &factors)
{
    const hopper_scales &from = shared.scales[slot / 2];

#pragma unroll
    for (int i = 0; i < 2; i++) {
        factors.k[i] = from.k[me.row + 8 * i];
        factors.shift[i] = from.shift[me.row + 8 * i];
        factors.inverse[i] = from.inverse[me.row + 8 * i];
    }
}

/* Scores in units of log 2: scaled, capped, sloped, masked. */
template <class S>
static __device__ __forceinline__ void hopper_scores(const hopper_decode &p,
                                                     const hopper_decode_shared<S> &shared,
                                                     const kva_task &task, const hopper_thread &me,
                                                     uint32_t token, bool masked,
                                                     const hopper_factors &factors,
                                                     float (&s)[S::N / 2])
{
#pragma unroll
    for (int x = 0; x < S::N / 2; x++) {
        s[x] *= p.scale;
        if constexpr (S::is_quantised)
            s[x] *= shared.q_factor[x / 4 * 8 + me.column + x % 2] * factors.k[x / 2 % 2];
    }
    if (p.soft_cap != 0) {
        float to_cap = 2 * log2_of_e / p.soft_cap;
#pragma unroll
        for (int x = 0; x < S::N / 2; x++)
            s[x] = kva_cap(s[x] * to_cap, p.soft_cap);
    }
    if (!masked && !p.alibi_slopes)
        return;
#pragma unroll
    for (int x = 0; x < S::N / 2; x++) {
        uint32_t column = x / 4 * 8 + me.column + x % 2;
        int32_t t = (int32_t)(token + me.row + x / 2 % 2 * 8);

        s[x] += shared.slope[column] * (float)(t - shared.position[column]);
        if (masked && !hopper_sees<S>(p, shared, task, t, column))
            s[x] = -INFINITY;
    }
}

/* The largest of a tile's scores, a column: its tokens in this thread, warp, then warpgroup. */
template <class S>
static __device__ __forceinline__ void hopper_maximum(hopper_decode_shared<S> &shared,
                                                      const hopper_thread &me,
                                                      const float (&s)[S::N / 2],
                                                      float (&m)[S::N / 4])
{
#pragma unroll
    for (int c = 0; c < S::N / 4; c++) {
        float x = fmaxf(s[c / 2 * 4 + c % 2], s[c / 2 * 4 + c % 2 + 2]);

        x = fmaxf(x, __shfl_xor_sync(~0u, x, 4));
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 8));
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 16));
        m[c] = x;
        if (threadIdx.x % 32 < 4)
            shared.exchange[me.warp][c / 2 * 8 + me.column + c % 2] = x;
    }
    hopper_sync_math();
#pragma unroll
    for (int c = 0; c < S::N / 4; c++)
#pragma unroll
        for (int w = 0; w < 4; w++)
            m[c] = fmaxf(m[c], shared.exchange[w][c / 2 * 8 + me.column + c % 2]);
}

template <class T> static __device__ __forceinline__ uint32_t hopper_pack(float low, float high)
{
    if constexpr (std::is_same<T, __nv_bfloat16>::value) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *(uint32_t *)&pair;
    } else {
        __half2 pair = __floats2half2_rn(low, high);
        return *(uint32_t *)&pair;
    }
}

/* P without the scale of V. What is not seen stays 0, its scale may be NaN. */
static __device__ __forceinline__ float hopper_unscaled(float p, float inverse)
{
    return p == 0 ? 0 : p * fabsf(inverse);
}

/* From scores to P in shared memory; maxima, sums and O follow. */
template <class S>
static __device__ __forceinline__ void hopper_softmax(hopper_decode_shared<S> &shared,
                                                      const hopper_thread &me,
                                                      const hopper_factors &factors,
                                                      float (&s)[S::N / 2], hopper_state<S> &state)
{
    float m[S::N / 4], alpha[S::N / 4];

    if constexpr (S::is_quantised)
#pragma unroll
        for (int x = 0; x < S::N / 2; x++)
            s[x] = s[x] == -INFINITY ? s[x] : s[x] + factors.shift[x / 2 % 2];
    hopper_maximum<S>(shared, me, s, m);
#pragma unroll
    for (int c = 0; c < S::N / 4; c++) {
        float before = state.m[c], now = fmaxf(before, m[c]);
        float base = now == -INFINITY ? 0 : now;
        int x = c / 2 * 4 + c % 2;

        state.m[c] = now;
        alpha[c] = kva_exp2(before - base);
        s[x] = kva_exp2(s[x] - base);
        s[x + 2] = kva_exp2(s[x + 2] - base);
        if constexpr (S::is_quantised) {
            state.l[c] = state.l[c] * alpha[c] + hopper_unscaled(s[x], factors.inverse[0]) +
                         hopper_unscaled(s[x + 2], factors.inverse[1]);
            s[x] = copysignf(s[x], factors.inverse[0]);
            s[x + 2] = copysignf(s[x + 2], factors.inverse[1]);
        } else {
            state.l[c] = state.l[c] * alpha[c] + s[x] + s[x + 2];
        }
    }
#pragma unroll
    for (int h = 0; h < S::halves; h++)
#pragma unroll
        for (int x = 0; x < S::N / 2; x++)
            state.o[h][x] *= alpha[x / 4 * 2 + x % 2];
#pragma unroll
    for (int j = 0; j < S::N / 8; j++) {
        uint32_t lane = threadIdx.x % 32;
        uint32_t row = hopper_shared(shared.p) + j * 1024 +
                       hopper_swizzle(lane % 8, me.warp * 32 + lane / 8 % 2 * 16);

        hopper_store_transposed(row, hopper_pack<typename S::M>(s[4 * j], s[4 * j + 1]),
                                hopper_pack<typename S::M>(s[4 * j + 2], s[4 * j + 3]));
    }
}

/* Rows of a tile of V that are not loaded, or that no row of the task sees, become 0. */
template <class S>
static __device__ __forceinline__ void hopper_zero(const hopper_range &range, uint32_t end,
                                                   uint32_t token, uint8_t *v)
{
    uint32_t row = threadIdx.x / 2;

    if ((int32_t)(token + row) >= range.begin && token + row < end)
        return;
    for (uint32_t h = 0; h < S::columns; h++) {
        uint4 *line = (uint4 *)(v + row / 8 * S::atom_group + h * 1024 + row % 8 * 128);
#pragma unroll
        for (int c = 0; c < 4; c++)
            line[threadIdx.x % 2 * 4 + c] = {0, 0, 0, 0};
    }
}

#endif /* HOPPER_HAVE_SM90A */
#endif
