/* SPDX-License-Identifier: Apache-2.0
 *
 * What both kernels for latent attention do at the ends of a task: Q from global memory, and the
 * parts of a unit merged. Both wait for memory and nothing else, so that loads go out in batches.
 */
#ifndef KVA_HOPPER_MLA_RESULT_CUH
#define KVA_HOPPER_MLA_RESULT_CUH

#include "hopper_decode.cuh"
#include "hopper_mla.h"

#ifdef HOPPER_HAVE_SM90A

/* Rows [first, first + ROWS) of a tile to nine columns of atoms. */
template <int ROWS, int THREADS>
static __device__ __forceinline__ void mla_load_q(const hopper_decode &p, const kva_task &task,
                                                  uint32_t first, uint8_t (*to)[ROWS * 128])
{
    constexpr uint32_t all = ROWS * hopper_mla_k / 8, batch = 9;

    for (uint32_t base = threadIdx.x; base < all; base += batch * THREADS) {
        uint4 e[batch];
#pragma unroll
        for (uint32_t i = 0; i < batch; i++) {
            uint32_t v = min(base + i * THREADS, all - 1);

            e[i] = hopper_q(p, task, first + v / (hopper_mla_k / 8), v % (hopper_mla_k / 8) * 8);
        }
#pragma unroll
        for (uint32_t i = 0; i < batch; i++) {
            uint32_t v = base + i * THREADS, d = v % (hopper_mla_k / 8) * 8;

            if (v < all)
                *(uint4 *)(to[d / 64] + hopper_swizzle(v / (hopper_mla_k / 8), d % 64 * 2)) = e[i];
        }
    }
}

/* For hopper_part(). */
struct mla_part_shape {
    static constexpr int D = hopper_mla_v;
};

/* A running sum over parts: O relative to the maximum, and (maximum, sum). */
struct mla_sum {
    float4 o;
    float2 top;
};

static __device__ __forceinline__ void mla_add(mla_sum &sum, const float4 &o, const float2 &top)
{
    float m = fmaxf(sum.top.x, top.x), base = m == -INFINITY ? 0 : m;
    float a = kva_exp2(sum.top.x - base), b = top.y == 0 ? 0 : kva_exp2(top.x - base);

    sum.top = {m, sum.top.y * a + top.y * b};
    sum.o = {sum.o.x * a + o.x * b, sum.o.y * a + o.y * b, sum.o.z * a + o.z * b,
             sum.o.w * a + o.w * b};
}

static __device__ __forceinline__ void mla_store_merged(const hopper_decode &p,
                                                        const kva_task &task, uint32_t packed,
                                                        uint32_t element, const mla_sum &sum)
{
    hopper_row to = hopper_row_of(p, task, packed);
    __nv_bfloat16 *out = (__nv_bfloat16 *)p.out + hopper_out_at(p, to) + element;
    float lse, factor = hopper_finish(p, to.head, sum.top.x, sum.top.y, &lse);
    uint2 e = {hopper_pack<__nv_bfloat16>(sum.o.x * factor, sum.o.y * factor),
               hopper_pack<__nv_bfloat16>(sum.o.z * factor, sum.o.w * factor)};

    if ((uintptr_t)out % 8 == 0) {
        *(uint2 *)out = e;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            ((uint16_t *)out)[i] = (uint16_t)((i < 2 ? e.x : e.y) >> i % 2 * 16);
    }
    if (element == 0)
        hopper_store_lse(p, to, lse);
}

/* Rows [first, end) of a tile: all parts, in their order; `batch` places and `parts` parts at once.
 */
template <int THREADS, uint32_t batch, uint32_t parts>
static __device__ __forceinline__ void mla_merge_batches(const hopper_decode &p,
                                                         const kva_task &task, uint32_t first,
                                                         uint32_t end)
{
    constexpr uint32_t steps = hopper_mla_v / 4;
    uint32_t all = end * steps;

    for (uint32_t base = first * steps + threadIdx.x; base < all; base += batch * THREADS) {
        mla_sum sums[batch];
#pragma unroll
        for (uint32_t i = 0; i < batch; i++)
            sums[i] = {{0, 0, 0, 0}, {-INFINITY, 0}};
        for (uint32_t part = 0; part < task.parts; part += parts) {
            float4 o[batch][parts];
            float2 top[batch][parts];
#pragma unroll
            for (uint32_t x = 0; x < batch * parts; x++) {
                uint32_t v = min(base + x / parts * THREADS, all - 1);
                const float *from = hopper_part<mla_part_shape>(
                    p, task, min(part + x % parts, task.parts - 1), v / steps);

                o[x / parts][x % parts] = __ldcg((const float4 *)(from + v % steps * 4));
                top[x / parts][x % parts] = __ldcg((const float2 *)(from + hopper_mla_v));
            }
#pragma unroll
            for (uint32_t x = 0; x < batch * parts; x++)
                if (part + x % parts < task.parts)
                    mla_add(sums[x / parts], o[x / parts][x % parts], top[x / parts][x % parts]);
        }
#pragma unroll
        for (uint32_t i = 0; i < batch; i++) {
            uint32_t v = base + i * THREADS;

            if (v < all)
                mla_store_merged(p, task, v / steps, v % steps * 4, sums[i]);
        }
    }
}

template <int THREADS>
static __device__ __forceinline__ void mla_merge(const hopper_decode &p, const kva_task &task,
                                                 uint32_t first, uint32_t end)
{
    if (task.parts <= 4)
        mla_merge_batches<THREADS, 4, 2>(p, task, first, end);
    else
        mla_merge_batches<THREADS, 2, 8>(p, task, first, end);
}

/* All `THREADS` threads have stored their share of a part; true in all of them if theirs was the
 * last part of the unit: then they see the others'. */
template <int THREADS>
static __device__ __forceinline__ bool mla_is_last(const kva_task &task, uint32_t *arrivals,
                                                   uint32_t *scratch)
{
    __threadfence(); /* the part, before the count */
    hopper_sync(1, THREADS);
    if (threadIdx.x == 0)
        *scratch = kva_plan_count(arrivals, task.parts);
    hopper_sync(1, THREADS);
    if (!*scratch)
        return false;
    __threadfence(); /* the count, before the others' parts */
    return true;
}

#endif /* HOPPER_HAVE_SM90A */
#endif
