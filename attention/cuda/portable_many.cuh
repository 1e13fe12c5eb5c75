/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention of many rows (prefill): four warps of 16 × MB packed rows each see all tokens of the
 * task, BN at a time. K of the next tile comes while this one's weights meet V, V while the scores
 * are made: one buffer each, and two thread blocks an SM that cover each other's waits
 * (FlashAttention-2's shape). A narrow cache comes into a buffer of its own and is widened from
 * there; K and V of the next tile then come during all of this one.
 *
 *   places[2][BN]  where the tokens of this tile and the next lie, for K and V: thread r < BN looks
 *                  up row r, two tiles ahead
 */
#ifndef KVA_CUDA_PORTABLE_MANY_CUH
#define KVA_CUDA_PORTABLE_MANY_CUH

#include "portable.cuh"

template <typename ELEMENT, int DK_, int DV_, int MB_, int BN_, bool NARROW_> struct kva_many {
    using Element = ELEMENT;
    static constexpr int DK = DK_, DV = DV_, MB = MB_, BN = BN_;
    static constexpr bool NARROW = NARROW_;
    static constexpr int THREADS = 128;
    static constexpr int ROWS = 64 * MB;

    alignas(16) Element q[ROWS][DK + 8];
    alignas(16) Element k[BN][DK + 8];
    alignas(16) Element v[BN][DV + 8];
    alignas(16) char narrow_k[NARROW ? BN : 1][DK + 16];
    alignas(16) char narrow_v[NARROW ? BN : 1][DV + 16];
    const char *k_places[2][BN];
    const char *v_places[2][BN];
    float k_scale[2][BN];
    float v_scale[2][BN];
    struct kva_row rows[ROWS];
    struct kva_task task; /* here, not in registers, which are full of O and S */
    uint32_t is_last;
};

/* BYTES of each of BN rows, asynchronously; zeros for those from `valid` on. */
template <int BYTES, int BN, int THREADS>
static __device__ __forceinline__ void kva_load_rows(const char *const *places, uint32_t valid,
                                                     void *to, uint32_t pitch)
{
    constexpr int CHUNKS = BYTES / 16;

#pragma unroll
    for (int i = 0; i < (BN * CHUNKS + THREADS - 1) / THREADS; i++) {
        uint32_t at = i * THREADS + threadIdx.x, r = at / CHUNKS, c = at % CHUNKS;

        if (BN * CHUNKS % THREADS == 0 || r < BN)
            kva_copy16(kva_shared_address(to) + r * pitch + c * 16, places[r] + c * 16, r < valid);
    }
}

template <typename S> struct kva_many_block {
    using Tile = kva_warp_tile<typename S::Element, S::DK, S::DV, S::MB, S::BN / 8>;
    using Element = typename S::Element;

    const struct kva_portable &a;
    S &shared;
    const struct kva_task &task;
    const uint32_t unit_head;
    struct kva_place place; /* of this thread's row in the tile whose scales are loaded next */
    int32_t common_first;
    int32_t common_end;
    Tile tile;

    __device__ __forceinline__ kva_many_block(const struct kva_portable &args, S &memory)
        : a(args), shared(memory), task(memory.task), unit_head(blockIdx.x % args.plan.unit_heads)
    {
    }

    __device__ __forceinline__ uint32_t kv_head() const
    {
        return unit_head / a.slices;
    }

    __device__ __forceinline__ uint32_t slice() const
    {
        return unit_head % a.slices;
    }

    /* The table's entry for token t. */
    __device__ __forceinline__ int32_t look(uint32_t t) const
    {
        const int32_t *table = a.tables + (uint64_t)task.seq * a.table_stride;

        return t < task.kv_end ? kva_entry_of(a, table, t) : 0;
    }

    /* Where this thread's row of tile j lies, by its table entry. */
    __device__ __forceinline__ void store_place(uint32_t j, int32_t entry, uint32_t t)
    {
        constexpr uint32_t BYTES = S::NARROW ? 1 : 2;
        struct kva_place found = kva_place_of(a, entry, t);

        shared.k_places[j & 1][threadIdx.x] =
            kva_address_of(a.k, a.k.base + kv_head() * a.k.head_stride, found);
        shared.v_places[j & 1][threadIdx.x] =
            kva_address_of(a.v, a.v.base + kv_head() * a.v.head_stride, found) +
            slice() * S::DV * BYTES;
        if constexpr (S::NARROW)
            place = found;
    }

    __device__ __forceinline__ uint32_t valid(uint32_t first) const
    {
        return task.kv_end > first ? task.kv_end - first : 0;
    }

    __device__ __forceinline__ void load_k(uint32_t j)
    {
        uint32_t first = task.kv_first + j * S::BN;

        if constexpr (S::NARROW)
            kva_load_rows<S::DK, S::BN, S::THREADS>(shared.k_places[j & 1], valid(first),
                                                    shared.narrow_k, S::DK + 16);
        else
            kva_load_rows<S::DK * 2, S::BN, S::THREADS>(shared.k_places[j & 1], valid(first),
                                                        shared.k, (S::DK + 8) * 2);
    }

    __device__ __forceinline__ void load_v(uint32_t j)
    {
        uint32_t first = task.kv_first + j * S::BN;

        if constexpr (S::NARROW)
            kva_load_rows<S::DV, S::BN, S::THREADS>(shared.v_places[j & 1], valid(first),
                                                    shared.narrow_v, S::DV + 16);
        else
            kva_load_rows<S::DV * 2, S::BN, S::THREADS>(shared.v_places[j & 1], valid(first),
                                                        shared.v, (S::DV + 8) * 2);
    }

    /* Scales of token t, which is at `place`. */
    __device__ __forceinline__ float2 scales(uint32_t t) const
    {
        if (t >= task.kv_end)
            return make_float2(0, 0);
        return make_float2(kva_scale_at(a, a.k.scale, kv_head(), place),
                           kva_scale_at(a, a.v.scale, kv_head(), place));
    }

    __device__ __forceinline__ void store_scales(uint32_t j, float2 two)
    {
        shared.k_scale[j & 1][threadIdx.x] = two.x;
        shared.v_scale[j & 1][threadIdx.x] = two.y;
    }

    /* Rows, Q and the first tiles' places; the first loads are under way. */
    __device__ __forceinline__ void begin(uint32_t index)
    {
        if (threadIdx.x == 0)
            shared.task = a.view.tasks[index];
        __syncthreads();
        kva_rows_set(a, task, kv_head(), shared.rows, S::ROWS, threadIdx.x, S::THREADS);
        kva_common_tokens(a, task, &common_first, &common_end);
        if (threadIdx.x < S::BN) {
            uint32_t t = task.kv_first + threadIdx.x;
            int32_t first = look(t), second = look(t + S::BN);

            store_place(0, first, t);
            if constexpr (S::NARROW)
                store_scales(0, scales(t));
            store_place(1, second, t + S::BN);
        }
        __syncthreads();
        kva_load_q<Element, S::DK, S::ROWS, S::THREADS>(a, shared.rows, task.packed_count,
                                                        shared.q[0]);
        if (task.kv_end > task.kv_first) {
            load_k(0);
            if constexpr (S::NARROW)
                load_v(0);
        }
        kva_copy_commit();
        tile.begin(S::NARROW ? 0 : 1);
    }

    /* Values of V that must not reach all rows: rare, and only where rows differ. */
    __device__ __forceinline__ void isolate(uint32_t first)
    {
        if (!__syncthreads_or(
                kva_find_wild<Element, S::DV, S::BN, S::THREADS>(shared.v[0], threadIdx.x, false)))
            return;
        tile.add_wild(kva_padded_words<S::DV, Element>{shared.v[0]},
                      shared.rows + threadIdx.x / 32 * 16 * S::MB, (int32_t)first, task.position,
                      a.score.has_tree);
        __syncthreads();
        kva_find_wild<Element, S::DV, S::BN, S::THREADS>(shared.v[0], threadIdx.x, true);
        __syncthreads();
    }

    __device__ __forceinline__ void widen()
    {
        kva_widen_tile<Element, S::DK, S::BN, S::THREADS>(shared.narrow_k[0], shared.k[0],
                                                          threadIdx.x, a.is_int8);
        kva_widen_tile<Element, S::DV, S::BN, S::THREADS>(shared.narrow_v[0], shared.v[0],
                                                          threadIdx.x, a.is_int8);
    }

    /* From the scores of tile j to weights that V can meet. */
    __device__ __forceinline__ void weigh(uint32_t j, bool is_common)
    {
        const struct kva_row *rows = shared.rows + threadIdx.x / 32 * 16 * S::MB;
        int32_t first = (int32_t)(task.kv_first + j * S::BN);
        float alpha[S::MB][2], unit = 1;

        if constexpr (S::NARROW)
            tile.scale_scores(shared.k_scale[j & 1]);
        if (a.score.is_bent)
            tile.bend(a.score, rows, first);
        if (!is_common)
            tile.mask(rows, first, task.position, a.score.has_tree);
        if constexpr (S::NARROW)
            unit = tile.next_unit(shared.v_scale[j & 1]);
        tile.softmax(a.score.is_bent ? 1 : a.score.scale_log2, alpha);
        tile.rescale(alpha, unit);
        if constexpr (S::NARROW)
            tile.scale_weights(shared.v_scale[j & 1]);
    }

    __device__ __forceinline__ void step(uint32_t j, uint32_t tiles)
    {
        uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        uint32_t first = task.kv_first + j * S::BN, ahead = first + 2 * S::BN + threadIdx.x;
        bool is_common = (int32_t)first >= common_first && (int32_t)first + S::BN <= common_end;
        int32_t entry = 0;
        float2 next_scales = make_float2(0, 0);

        kva_copy_wait<0>();
        __syncthreads(); /* K of this tile, and all are done with V of the last one */
        if constexpr (S::NARROW) {
            widen();
            __syncthreads();
            if (j + 1 < tiles)
                load_k(j + 1);
            if (j + 1 < tiles)
                load_v(j + 1);
        } else {
            load_v(j);
        }
        kva_copy_commit();
        if (threadIdx.x < S::BN) {
            entry = look(ahead);
            if constexpr (S::NARROW)
                next_scales = scales(ahead - S::BN);
        }
        tile.scores(kva_shared_address(shared.q[warp * 16 * S::MB]) + kva_a_lane<S::DK + 8>(lane),
                    kva_shared_address(shared.k[0]) + kva_b_lane<S::DK + 8>(lane));
        weigh(j, is_common);
        if constexpr (!S::NARROW) {
            kva_copy_wait<0>();
            __syncthreads(); /* V of this tile, and all are done with K */
            if (j + 1 < tiles)
                load_k(j + 1);
            kva_copy_commit();
        }
        if (threadIdx.x < S::BN) {
            if constexpr (S::NARROW)
                store_scales(j + 1, next_scales);
            store_place(j, entry, ahead);
        }
        if (!is_common)
            isolate(first);
        tile.values(kva_shared_address(shared.v[0]) + kva_a_lane<S::DV + 8>(lane));
    }

    __device__ __forceinline__ void end()
    {
        float rate = a.score.is_bent ? 1 : a.score.scale_log2;

        tile.finish_sums();
        if (task.parts == 1) {
            kva_store_final<Element, S::DV, S::MB>(a, tile, rate, shared.rows, task.packed_count,
                                                   threadIdx.x / 32 * 16 * S::MB, slice());
            return;
        }
        kva_store_part<S::DV, S::MB>(tile, rate, kva_slot_of(a, task, unit_head, task.part),
                                     task.packed_count, threadIdx.x / 32 * 16 * S::MB);
        if (kva_plan_arrive(kva_arrivals_of(a, task, unit_head), task.parts, &shared.is_last))
            kva_add_parts<Element, S::DV, S::THREADS, false>(
                a, shared.rows, task.packed_count, kva_slot_of(a, task, unit_head, 0),
                (uint64_t)a.plan.slot_rows * a.plan.slot_row_floats, task.parts, slice(), nullptr);
    }
};

template <typename S>
static __global__ void __launch_bounds__(S::THREADS, 2)
    kva_many_kernel(const __grid_constant__ struct kva_portable a)
{
    extern __shared__ __align__(128) char memory[];
    struct kva_many_block<S> block(a, *(S *)memory);
    uint32_t index = blockIdx.x / a.plan.unit_heads, tiles;

    if (index >= a.view.block_tasks[0])
        return;
    block.begin(index);
    tiles = (block.task.kv_end - block.task.kv_first + S::BN - 1) / S::BN;
    for (uint32_t j = 0; j < tiles; j++)
        block.step(j, tiles);
    block.end();
}

#endif
