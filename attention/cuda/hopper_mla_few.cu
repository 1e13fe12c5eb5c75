/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention on Hopper, few rows × heads ("columns"): hopper_decode.cuh with one difference,
 * a tile of the ring is K and V at once.
 *
 *   S^T (64 tokens × N) = K (64 × 576) Q^T
 *   O^T (512 × N) += V^T (512 × 64) P^T           V: the first 512 elements of the same tile
 *
 * One thread block an SM; two tiles of 72 KiB, so that one is always on its way. The copy engine
 * brings boxes of 8 tokens × 9 × 64 elements: atoms of 8 rows follow each other every 9 KiB.
 */
#include "hopper_mla_result.cuh"

#define BAND_BYTES 9216u /* 8 tokens */

/* What hopper_decode.cuh's functions need to know: N columns, results of 512 elements. */
template <int N_> struct hopper_mla_few_shape {
    using T = __nv_bfloat16;
    using C = __nv_bfloat16;
    using M = __nv_bfloat16;
    static constexpr int N = N_;
    static constexpr int D = hopper_mla_v;
    static constexpr bool is_quantised = false;
    static constexpr int halves = D / 64;
    static constexpr int columns = hopper_mla_k / 64;
    static constexpr uint32_t tile_bytes = hopper_tile_tokens * hopper_mla_k * 2;
    static constexpr uint32_t tiles = 2;
    static constexpr uint32_t ring = 2;
    static constexpr uint32_t atom_group = BAND_BYTES;
};

template <int N> struct __align__(1024) hopper_decode_shared<hopper_mla_few_shape<N>>
{
    using S = hopper_mla_few_shape<N>;
    uint8_t ring[S::ring][S::tile_bytes];
    uint8_t q[S::columns][N * 128];
    uint8_t p[N * 128];
    uint64_t tree[N];
    int32_t position[N];
    float slope[N];
    float exchange[4][N];
    uint64_t full[S::ring];
    uint64_t empty[S::ring];
    uint32_t is_last;
};

#ifdef HOPPER_HAVE_SM90A

/* Lane b copies band b of a tile; its entry of the table was loaded a tile ahead. */
template <class S>
static __device__ __forceinline__ void mla_produce(const hopper_decode &p,
                                                   hopper_decode_shared<S> &shared,
                                                   const kva_task &task, hopper_place &at)
{
    uint32_t lane = threadIdx.x % 32;
    const int32_t *table = p.tables + (uint64_t)task.seq * p.table_stride;
    uint32_t mine = task.kv_first + lane * 8;
    int32_t next = lane < 8 && mine < task.kv_end ? table[mine / p.block_tokens] : 0;

    for (uint32_t token = task.kv_first; token < task.kv_end; token += hopper_tile_tokens) {
        int32_t block = min(max(next, 0), (int32_t)p.block_count - 1);
        uint32_t row = mine % p.block_tokens, full = hopper_shared(&shared.full[at.slot]);
        uint32_t bands = (min(task.kv_end - token, hopper_tile_tokens) + 7) / 8;

        mine += hopper_tile_tokens;
        next = lane < 8 && mine < task.kv_end ? table[mine / p.block_tokens] : 0;
        hopper_wait(hopper_shared(&shared.empty[at.slot]), at.parity ^ 1);
        if (!lane)
            hopper_arrive_expect(full, bands * BAND_BYTES);
        __syncwarp();
        if (lane < bands)
            hopper_copy_box(hopper_shared(shared.ring[at.slot]) + lane * BAND_BYTES, &p.k_map, 0,
                            (int)row, 0, 0, block, full);
        hopper_advance<S>(at);
    }
}

template <class S>
static __device__ __forceinline__ void mla_load_columns(const hopper_decode &p,
                                                        hopper_decode_shared<S> &shared,
                                                        const kva_task &task)
{
    mla_load_q<S::N, hopper_math_threads>(p, task, 0, shared.q);
    if (threadIdx.x < S::N) {
        hopper_row at = hopper_row_of(p, task, min(threadIdx.x, task.packed_count - 1));

        shared.position[threadIdx.x] = task.position + (int32_t)(at.row - task.row);
        shared.slope[threadIdx.x] = 0;
        shared.tree[threadIdx.x] = p.tree_mask ? p.tree_mask[at.row] : 0;
    }
    hopper_fence_stores();
}

template <class S>
static __device__ __forceinline__ void mla_scores_product(hopper_decode_shared<S> &shared,
                                                          uint32_t slot, float (&s)[S::N / 2])
{
    uint32_t k = hopper_shared(shared.ring[slot]), q = hopper_shared(shared.q[0]);

    hopper_mma_begin();
#pragma unroll
    for (int step = 0; step < (int)hopper_mla_k / 16; step++)
        hopper_mma<__nv_bfloat16, 0>(
            s, hopper_tile(k + step / 4 * 1024 + step % 4 * 32, BAND_BYTES),
            hopper_tile(q + step / 4 * S::N * 128 + step % 4 * 32, 1024), step > 0);
    hopper_mma_commit();
    hopper_mma_wait(s);
}

template <class S>
static __device__ __forceinline__ void mla_tiles(const hopper_decode &p,
                                                 hopper_decode_shared<S> &shared,
                                                 const kva_task &task, const hopper_thread &me,
                                                 hopper_place &at, hopper_state<S> &state)
{
    hopper_range range = hopper_range_of(p, task);
    hopper_operand<S, 8> none;
    hopper_factors no_factors;

    for (uint32_t token = task.kv_first; token < task.kv_end; token += hopper_tile_tokens) {
        bool masked = (int32_t)token < range.clean_begin ||
                      (int32_t)(token + hopper_tile_tokens) > range.clean_end;
        float s[S::N / 2];

        hopper_wait(hopper_shared(&shared.full[at.slot]), at.parity);
        mla_scores_product<S>(shared, at.slot, s);
        hopper_scores<S>(p, shared, task, me, token, masked, no_factors, s);
        hopper_softmax<S>(shared, me, no_factors, s, state);
        if (masked)
            hopper_zero<S>(range, task.kv_end, token, shared.ring[at.slot]);
        hopper_fence_stores();
        hopper_sync_math();
        hopper_values_product<S>(shared, none, at.slot, state);
        hopper_release<S>(shared, at);
    }
}

template <class S>
static __device__ __forceinline__ void mla_consume(const hopper_decode &p,
                                                   hopper_decode_shared<S> &shared,
                                                   const kva_task &task, hopper_place &at)
{
    hopper_thread me = hopper_thread_of();
    hopper_state<S> state;

    hopper_sync_math(); /* nobody reads the last task's Q and exchange any more */
    mla_load_columns<S>(p, shared, task);
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
    mla_tiles<S>(p, shared, task, me, at, state);
    hopper_sum_up<S>(shared, me, state);
    if (task.parts == 1) {
        hopper_write_whole<S>(p, task, me, state);
        return;
    }
    hopper_write_part<S>(p, task, me, state);
    if (mla_is_last<hopper_math_threads>(task, p.work.arrivals + task.slot, &shared.is_last))
        mla_merge<hopper_math_threads>(p, task, 0, task.packed_count);
}

#endif

template <class S>
__global__ void __launch_bounds__(hopper_decode_threads, 1)
    mla_few_run(const __grid_constant__ hopper_decode p)
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
            hopper_barrier_init(hopper_shared(&shared.full[i]), 1);
            hopper_barrier_init(hopper_shared(&shared.empty[i]), 4);
        }
        hopper_barrier_init_done();
    }
    __syncthreads();
    if (threadIdx.x >= hopper_math_threads) {
        for (uint32_t i = first; i < end; i++)
            mla_produce<S>(p, shared, p.work.tasks[i], at);
    } else {
        for (uint32_t i = first; i < end; i++)
            mla_consume<S>(p, shared, p.work.tasks[i], at);
    }
#endif
}

template <int N> static hopper_mla_kernel entry_of()
{
    using S = hopper_mla_few_shape<N>;

    return {(const void *)mla_few_run<S>,    N, hopper_decode_threads,
            sizeof(hopper_decode_shared<S>), 1, 9};
}

hopper_mla_kernel hopper_mla_few(uint32_t packed)
{
    return packed <= 8 ? entry_of<8>() : packed <= 16 ? entry_of<16>() : entry_of<32>();
}
