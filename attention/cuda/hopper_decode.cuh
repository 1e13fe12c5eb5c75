/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode on Hopper: few rows against many tokens of a paged cache, at the speed of the memory.
 *
 * Tokens are the M side of the matrix products, rows × query heads of a K/V head ("columns") the N
 * side, so that 4 query heads waste half of 8 columns and not 60 of 64 rows:
 *
 *   S^T (64 tokens × N) = K (64 × D) Q^T          K as the copy engine left it in shared memory
 *   P = exp2(S − m), m the maximum so far a column; its sum l in registers
 *   O^T (D × N) = O^T exp2(m_before − m) + V^T (D × 64) P^T     V read transposed, P through memory
 *
 * A thread block is one warpgroup that computes and one warp that fills a ring of tiles (K and V
 * alternate) with boxes of the tensor map; the block index is a coordinate. Two blocks an SM keep
 * 128 KB in flight. They work off their tasks of the balanced map (plan.cuh); units of several
 * parts are merged by whoever finishes last, in the order of the parts, so that results are the
 * same from run to run. A partial result is a row of D floats and (m, l) for each column.
 *
 * Quantised K and V become f16 in registers, exactly, as the A operand (hopper_decode_8.cuh); Q is
 * divided by a power of two a column, so that it fits f16.
 *
 * What is not seen: scores are replaced, never multiplied; rows of V that no column sees, or that
 * were not loaded at all, are zeroed before they meet P = 0, since they may hold NaN.
 *
 * (On-line softmax: Milakov and Gimelshein 2018; split-KV: Flash-Decoding, Dao et al. 2023.)
 */
#ifndef KVA_HOPPER_DECODE_CUH
#define KVA_HOPPER_DECODE_CUH

#include "hopper_decode_fill.cuh"
#include "hopper_decode_result.cuh"
#include "hopper_decode_tile.cuh"

#ifdef HOPPER_HAVE_SM90A

/* S^T = K Q^T */
template <class S>
static __device__ __forceinline__ void hopper_scores_product(hopper_decode_shared<S> &shared,
                                                             const hopper_thread &me, uint32_t slot,
                                                             float (&s)[S::N / 2])
{
    uint32_t k = hopper_shared(shared.ring[slot]), q = hopper_shared(shared.q[0]);
    hopper_operand<S, S::D / 16> operand;

    if constexpr (S::is_quantised)
        hopper_load_k<S>(shared.ring[slot], me, operand);
    hopper_mma_begin();
#pragma unroll
    for (int step = 0; step < S::D / 16; step++) {
        uint64_t b = hopper_tile(q + step / 4 * S::N * 128 + step % 4 * 32, 1024);

        if constexpr (S::is_quantised)
            hopper_mma(s, operand.a[step], b, step > 0);
        else
            hopper_mma<typename S::M, 0>(
                s, hopper_tile(k + step / 4 * 1024 + step % 4 * 32, S::atom_group), b, step > 0);
    }
    hopper_mma_commit();
    hopper_mma_wait(s);
}

/* O^T += V^T P^T */
template <class S>
static __device__ __forceinline__ void hopper_values_product(hopper_decode_shared<S> &shared,
                                                             const hopper_operand<S, 8> &operand,
                                                             uint32_t slot, hopper_state<S> &state)
{
    uint32_t v = hopper_shared(shared.ring[slot]), p = hopper_shared(shared.p);

    hopper_mma_begin();
#pragma unroll
    for (int h = 0; h < S::halves; h++)
#pragma unroll
        for (int step = 0; step < 4; step++) {
            uint64_t b = hopper_tile(p + step * 32, 1024);

            if constexpr (S::is_quantised)
                hopper_mma(state.o[h], operand.a[h * 4 + step], b, 1);
            else
                hopper_mma<typename S::M, 1>(
                    state.o[h], hopper_tile(v + h * 1024 + step * 2 * S::atom_group, S::atom_group),
                    b, 1);
        }
    hopper_mma_commit();
#pragma unroll
    for (int h = 0; h < S::halves; h++)
        hopper_mma_wait(state.o[h]);
}

template <class S>
static __device__ __forceinline__ void hopper_release(hopper_decode_shared<S> &shared,
                                                      hopper_place &at)
{
    if (threadIdx.x % 32 == 0)
        hopper_arrive(hopper_shared(&shared.empty[at.slot]));
    hopper_advance<S>(at);
}

template <class S>
static __device__ __forceinline__ void hopper_tiles(const hopper_decode &p,
                                                    hopper_decode_shared<S> &shared,
                                                    const kva_task &task, const hopper_thread &me,
                                                    hopper_place &at, hopper_state<S> &state)
{
    hopper_range range = hopper_range_of(p, task);

    for (uint32_t token = task.kv_first; token < task.kv_end; token += hopper_tile_tokens) {
        bool masked = (int32_t)token < range.clean_begin ||
                      (int32_t)(token + hopper_tile_tokens) > range.clean_end;
        float s[S::N / 2];
        hopper_factors factors;
        hopper_operand<S, 8> v;

        hopper_wait(hopper_shared(&shared.full[at.slot]), at.parity);
        if constexpr (S::is_quantised)
            hopper_load_factors<S>(shared, me, at.slot, factors);
        hopper_scores_product<S>(shared, me, at.slot, s);
        hopper_release<S>(shared, at);
        hopper_scores<S>(p, shared, task, me, token, masked, factors, s);
        hopper_softmax<S>(shared, me, factors, s, state);
        hopper_wait(hopper_shared(&shared.full[at.slot]), at.parity);
        if (masked)
            hopper_zero<S>(range, task.kv_end, token, shared.ring[at.slot]);
        hopper_fence_stores();
        hopper_sync_math();
        if constexpr (S::is_quantised)
            hopper_load_v<S>(shared.ring[at.slot], me, v);
        hopper_values_product<S>(shared, v, at.slot, state);
        hopper_release<S>(shared, at);
    }
}

template <class S>
static __device__ __forceinline__ void hopper_consume(const hopper_decode &p,
                                                      hopper_decode_shared<S> &shared,
                                                      const kva_task &task, hopper_place &at)
{
    hopper_thread me = hopper_thread_of();
    hopper_state<S> state;

    hopper_sync_math(); /* nobody reads the last task's Q, slopes and exchange any more */
    hopper_load_q<S>(p, shared, task);
#pragma unroll
    for (int h = 0; h < S::halves; h++)
#pragma unroll
        for (int x = 0; x < S::N / 2; x++)
            state.o[h][x] = 0;
#pragma unroll
    for (int c = 0; c < S::N / 4; c++) {
        state.m[c] = -INFINITY;
        state.l[c] = 0;
    }
    hopper_sync_math();
    hopper_tiles<S>(p, shared, task, me, at, state);
    hopper_sum_up<S>(shared, me, state);
    if (task.parts == 1)
        hopper_write_whole<S>(p, task, me, state);
    else
        hopper_finish_part<S>(p, shared, task, me, state);
}

#endif /* HOPPER_HAVE_SM90A */

template <class S>
__global__ void __launch_bounds__(hopper_decode_threads, S::blocks_per_sm)
    hopper_decode_run(const __grid_constant__ hopper_decode p)
{
#ifdef HOPPER_HAVE_SM90A
    extern __shared__ __align__(1024) uint8_t memory[];
    hopper_decode_shared<S> &shared = *(hopper_decode_shared<S> *)memory;
    hopper_place at = {0, 0};
    uint32_t first = p.work.block_tasks[blockIdx.x], end = p.work.block_tasks[blockIdx.x + 1];

    if (first >= end)
        return;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < S::ring; i++) {
            /* Scales come with K, by the producer's own stores. */
            hopper_barrier_init(hopper_shared(&shared.full[i]),
                                S::is_quantised && i % 2 == 0 ? 2 : 1);
            hopper_barrier_init(hopper_shared(&shared.empty[i]), 4);
        }
        hopper_barrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x >= hopper_math_threads) {
        for (uint32_t i = first; i < end; i++)
            hopper_produce<S>(p, shared, p.work.tasks[i], at);
    } else {
        for (uint32_t i = first; i < end; i++)
            hopper_consume<S>(p, shared, p.work.tasks[i], at);
    }
#endif
}

template <class T, class C, int N, int D> static hopper_decode_kernel hopper_decode_entry()
{
    using S = hopper_decode_shape<T, C, N, D>;

    return {(const void *)hopper_decode_run<S>, N, sizeof(hopper_decode_shared<S>),
            S::blocks_per_sm};
}

template <class T, class C, int D> static hopper_decode_kernel hopper_decode_pick(uint32_t columns)
{
    if (columns <= 8)
        return hopper_decode_entry<T, C, 8, D>();
    if (columns <= 16)
        return hopper_decode_entry<T, C, 16, D>();
    if (columns <= 32)
        return hopper_decode_entry<T, C, 32, D>();
    if (columns <= 64)
        return hopper_decode_entry<T, C, 64, D>();
    return {};
}

#endif
