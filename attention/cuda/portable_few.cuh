/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention of few rows (decode): one tile of 16 packed rows, WARPS warps that take turns of 16
 * tokens, each with a ring of its own, so that no warp waits for another before the end of the
 * task. Then their results are added up, in order, like parts of a unit.
 *
 * A fixed grid: each thread block goes through its tasks of the balanced map.
 */
#ifndef KVA_CUDA_PORTABLE_FEW_CUH
#define KVA_CUDA_PORTABLE_FEW_CUH

#include "portable.cuh"

template <typename ELEMENT, int DK_, int DV_, int WARPS_, int STAGES_, bool NARROW_>
struct kva_few {
    using Element = ELEMENT;
    static constexpr int DK = DK_, DV = DV_, WARPS = WARPS_, STAGES = STAGES_;
    static constexpr bool NARROW = NARROW_;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int ROWS = 16;
    static constexpr int TOKENS = 16;         /* of a warp's step */
    static constexpr int BN = TOKENS * WARPS; /* of the map's tile */
    static constexpr int WIDE_STAGES = NARROW ? 1 : STAGES;
    static constexpr int PER_SM = DV > 64 ? 3 : 4; /* what registers allow */

    struct wide_stage {
        alignas(16) Element k[TOKENS][DK + 8];
        alignas(16) Element v[TOKENS][DV + 8];
    };
    struct narrow_stage {
        alignas(16) char k[TOKENS][DK + 16];
        alignas(16) char v[TOKENS][DV + 16];
    };
    struct warp_ring {
        struct wide_stage wide[WIDE_STAGES];
        struct narrow_stage narrow[NARROW ? STAGES : 1];
        float k_scale[STAGES][TOKENS];
        float v_scale[STAGES][TOKENS];
    };

    alignas(16) Element q[ROWS][DK + 8];
    union {
        struct warp_ring ring;
        alignas(16) float part[ROWS][DV + 4];
    } warps[WARPS];
    struct kva_row rows[ROWS];
    uint32_t is_last;
};

template <typename S> struct kva_few_warp {
    using Tile = kva_warp_tile<typename S::Element, S::DK, S::DV, 1, S::TOKENS / 8>;
    using Element = typename S::Element;

    const struct kva_portable &a;
    S &shared;
    typename S::warp_ring &ring;
    struct kva_task task;
    const int32_t *table;
    const char *k;
    const char *v;
    uint32_t kv_head;
    uint32_t slice;
    int32_t common_first;
    int32_t common_end;
    int32_t entry; /* of this lane's token in the step that is issued next */
    Tile tile;

    __device__ __forceinline__ kva_few_warp(const struct kva_portable &args, S &memory)
        : a(args), shared(memory), ring(memory.warps[threadIdx.x / 32].ring)
    {
    }

    __device__ __forceinline__ uint32_t first_of(uint32_t step) const
    {
        return task.kv_first + (step * S::WARPS + threadIdx.x / 32) * S::TOKENS;
    }

    /* Lanes l and l + 16 look after token l of a step. */
    __device__ __forceinline__ void look(uint32_t step)
    {
        uint32_t t = first_of(step) + threadIdx.x % S::TOKENS;

        entry = t < task.kv_end ? kva_entry_of(a, table, t) : 0;
    }

    template <int BYTES>
    __device__ __forceinline__ void load(const char *place, uint32_t valid, void *to,
                                         uint32_t pitch)
    {
        constexpr int CHUNKS = BYTES / 16;
        uint32_t lane = threadIdx.x % 32;

#pragma unroll
        for (int i = 0; i < (S::TOKENS * CHUNKS + 31) / 32; i++) {
            uint32_t r = (i * 32 + lane) / CHUNKS, c = (i * 32 + lane) % CHUNKS;
            const char *row = (const char *)__shfl_sync(~0u, (uint64_t)place, r % S::TOKENS);

            if (S::TOKENS * CHUNKS % 32 == 0 || r < S::TOKENS)
                kva_copy16(kva_shared_address(to) + r * pitch + c * 16, row + c * 16, r < valid);
        }
    }

    __device__ __forceinline__ void load_scales(uint32_t stage, struct kva_place place, bool valid)
    {
        uint32_t lane = threadIdx.x % 32;
        const char *scales = lane < S::TOKENS ? a.k.scale : a.v.scale;
        float one = valid ? kva_scale_at(a, scales, kv_head, place) : 0;

        (lane < S::TOKENS ? ring.k_scale : ring.v_scale)[stage][lane % S::TOKENS] = one;
    }

    /* Begin the loads of a step, if there is one; a group of copies in any case. */
    __device__ __forceinline__ void issue(uint32_t step)
    {
        uint32_t first = first_of(step), stage = step % S::STAGES;

        if (first < task.kv_end) {
            uint32_t t = first + threadIdx.x % S::TOKENS, valid = task.kv_end - first;
            struct kva_place place = kva_place_of(a, entry, t);
            const char *k_place = kva_address_of(a.k, k, place);
            const char *v_place = kva_address_of(a.v, v, place);

            if constexpr (S::NARROW) {
                load<S::DK>(k_place, valid, ring.narrow[stage].k, S::DK + 16);
                load<S::DV>(v_place, valid, ring.narrow[stage].v, S::DV + 16);
                load_scales(stage, place, t < task.kv_end);
            } else {
                load<S::DK * 2>(k_place, valid, ring.wide[stage].k, (S::DK + 8) * 2);
                load<S::DV * 2>(v_place, valid, ring.wide[stage].v, (S::DV + 8) * 2);
            }
            look(step + 1);
        }
        kva_copy_commit();
    }

    __device__ __forceinline__ void isolate(typename S::wide_stage &wide, uint32_t first)
    {
        uint32_t lane = threadIdx.x % 32;

        if (!__any_sync(~0u, kva_find_wild<Element, S::DV, S::TOKENS, 32>(wide.v[0], lane, false)))
            return;
        tile.add_wild(kva_padded_words<S::DV, Element>{wide.v[0]}, shared.rows, (int32_t)first,
                      task.position, a.score.has_tree);
        __syncwarp();
        kva_find_wild<Element, S::DV, S::TOKENS, 32>(wide.v[0], lane, true);
        __syncwarp();
    }

    __device__ __forceinline__ void weigh(uint32_t stage, int32_t first, bool is_common)
    {
        float alpha[1][2], unit = 1;

        if constexpr (S::NARROW)
            tile.scale_scores(ring.k_scale[stage]);
        if (a.score.is_bent)
            tile.bend(a.score, shared.rows, first);
        if (!is_common)
            tile.mask(shared.rows, first, task.position, a.score.has_tree);
        if constexpr (S::NARROW)
            unit = tile.next_unit(ring.v_scale[stage]);
        tile.softmax(a.score.is_bent ? 1 : a.score.scale_log2, alpha);
        tile.rescale(alpha, unit);
        if constexpr (S::NARROW)
            tile.scale_weights(ring.v_scale[stage]);
    }

    __device__ __forceinline__ void step(uint32_t step)
    {
        uint32_t lane = threadIdx.x % 32, stage = step % S::STAGES, first = first_of(step);
        bool is_common = (int32_t)first >= common_first && (int32_t)first + S::TOKENS <= common_end;
        typename S::wide_stage &wide = ring.wide[S::NARROW ? 0 : stage];

        kva_copy_wait<S::STAGES - 1>();
        __syncwarp(); /* all lanes' copies of this step */
        if constexpr (S::NARROW) {
            kva_widen_tile<Element, S::DK, S::TOKENS, 32>(ring.narrow[stage].k[0], wide.k[0], lane,
                                                          a.is_int8);
            kva_widen_tile<Element, S::DV, S::TOKENS, 32>(ring.narrow[stage].v[0], wide.v[0], lane,
                                                          a.is_int8);
            __syncwarp();
        }
        tile.scores(kva_shared_address(shared.q[0]) + kva_a_lane<S::DK + 8>(lane),
                    kva_shared_address(wide.k[0]) + kva_b_lane<S::DK + 8>(lane));
        weigh(stage, (int32_t)first, is_common);
        if (!is_common)
            isolate(wide, first);
        tile.values(kva_shared_address(wide.v[0]) + kva_a_lane<S::DV + 8>(lane));
        __syncwarp(); /* all lanes are done with the stage */
        issue(step + S::STAGES);
    }

    __device__ __forceinline__ void begin()
    {
        constexpr uint32_t BYTES = S::NARROW ? 1 : 2;

        kv_head = task.unit_head / a.slices;
        slice = task.unit_head % a.slices;
        table = a.tables + (uint64_t)task.seq * a.table_stride;
        k = a.k.base + kv_head * a.k.head_stride;
        v = a.v.base + kv_head * a.v.head_stride + slice * S::DV * BYTES;
        kva_common_tokens(a, task, &common_first, &common_end);
        look(0);
        kva_rows_set(a, task, kv_head, shared.rows, S::ROWS, threadIdx.x, S::THREADS);
        __syncthreads();
        kva_load_q<Element, S::DK, S::ROWS, S::THREADS>(a, shared.rows, task.packed_count,
                                                        shared.q[0]);
        for (int i = 0; i < S::STAGES; i++)
            issue(i); /* Q is in the first group */
        kva_copy_wait<S::STAGES - 1>();
        __syncthreads();
        tile.begin(S::NARROW ? 0 : 1);
    }

    /* The warps' results are parts of the task, the task's one of the unit. */
    __device__ __forceinline__ void end()
    {
        constexpr uint64_t PITCH = sizeof(shared.warps[0]) / sizeof(float);
        float rate = a.score.is_bent ? 1 : a.score.scale_log2;
        float *slot = nullptr;

        kva_copy_wait<0>();
        __syncwarp(); /* nothing of the ring is under way or in use: parts lie over it */
        tile.finish_sums();
        kva_store_part<S::DV, 1>(tile, rate, shared.warps[threadIdx.x / 32].part[0], S::ROWS, 0);
        __syncthreads();
        if (task.parts > 1)
            slot = kva_slot_of(a, task, task.unit_head, task.part);
        kva_add_parts<Element, S::DV, S::THREADS, true>(a, shared.rows, task.packed_count,
                                                        shared.warps[0].part[0], PITCH, S::WARPS,
                                                        slice, slot);
        if (slot &&
            kva_plan_arrive(kva_arrivals_of(a, task, task.unit_head), task.parts, &shared.is_last))
            kva_add_parts<Element, S::DV, S::THREADS, false>(
                a, shared.rows, task.packed_count, kva_slot_of(a, task, task.unit_head, 0),
                (uint64_t)a.plan.slot_rows * a.plan.slot_row_floats, task.parts, slice, nullptr);
        __syncthreads(); /* before the next task's rows */
    }
};

template <typename S>
static __global__ void __launch_bounds__(S::THREADS, S::PER_SM)
    kva_few_kernel(const __grid_constant__ struct kva_portable a)
{
    extern __shared__ __align__(128) char memory[];
    struct kva_few_warp<S> warp(a, *(S *)memory);
    uint32_t end = a.view.block_tasks[blockIdx.x + 1];

    for (uint32_t i = a.view.block_tasks[blockIdx.x]; i < end; i++) {
        warp.task = a.view.tasks[i];
        warp.begin();
        for (uint32_t step = 0; warp.first_of(step) < warp.task.kv_end; step++)
            warp.step(step);
        warp.end();
    }
}

#endif
