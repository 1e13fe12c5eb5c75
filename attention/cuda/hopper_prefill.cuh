/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefill on Hopper, head dim 128, K and V of 16 bits (FlashAttention-3's structure, Shah et al.
 * 2024). A thread block an SM, tasks of the listed map in turns, 128 packed rows × 128 tokens a
 * step:
 *
 *   warpgroups 0, 1   64 rows each: scores, softmax, values. The scores of the next tile are made
 *                     while the values of this one are added, and the two warpgroups take turns, so
 *                     that one's exponentials run beside the other's products.
 *   warpgroup 2       warps 0, 1: K and V of the tiles to come, by the copy engine, a box for 8
 *                     tokens; warps 2, 3: rows and Q of the next task
 *
 * Shared memory:  q[2] k[2] v[2] of 32 KiB each, as hopper_wide.cuh says; rows[2], tasks[2].
 *
 * Each buffer has a `full` barrier (its contents may be read) and an `empty` one (all readers are
 * done). Buffers are used in turn, through all tasks: use u of a pair has buffer u % 2, and waits
 * for phase u ÷ 2 of `full`, the writer for the one before of `empty`.
 *
 * Boxes are whole groups of 8 tokens: behind a length lie slots with anything in them, and groups
 * that were not loaded. Scores there are masked; rows of V there are cleared before they are used.
 */
#ifndef KVA_HOPPER_PREFILL_CUH
#define KVA_HOPPER_PREFILL_CUH

#include "hopper_wide.cuh"
#include "portable.cuh"

static constexpr uint32_t hopper_prefill_rows = 128;
static constexpr uint32_t hopper_prefill_tokens = 128;
static constexpr uint32_t hopper_prefill_math = 256; /* threads */
static constexpr uint32_t hopper_prefill_threads = 384;
static constexpr uint32_t hopper_prefill_helpers = 64; /* that bring Q */

struct hopper_prefill {
    CUtensorMap k_map; /* (block, head, half, token, 64 elements) of one layer; a box: 8 tokens */
    CUtensorMap v_map;
    struct kva_portable a;
};

struct hopper_pair {
    uint64_t full[2];
    uint64_t empty[2];
};

struct hopper_prefill_memory {
    char q[2][128 * 256];
    char k[2][128 * 256];
    char v[2][128 * 256];
    struct kva_row rows[2][hopper_prefill_rows];
    struct kva_task tasks[2];
    struct hopper_pair q_pair;
    struct hopper_pair k_pair;
    struct hopper_pair v_pair;
    uint32_t is_last;
};

/* The kernel is asked for this much more, to begin at a multiple of 1,024. */
static constexpr uint32_t hopper_prefill_bytes = sizeof(struct hopper_prefill_memory) + 1024;

#ifdef HOPPER_HAVE_SM90A

/* The thread block's task in a turn. Tasks get shorter, so every other turn goes backwards: who had
 * the longest of one has the shortest of the next. Only in the last turn may there be none. */
static __device__ __forceinline__ uint32_t hopper_task(uint32_t turn)
{
    return turn * gridDim.x + (turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

static __device__ __forceinline__ void hopper_wait_full(struct hopper_pair &pair, uint32_t use)
{
    hopper_wait(hopper_shared(&pair.full[use % 2]), use / 2 % 2);
}

static __device__ __forceinline__ void hopper_wait_empty(struct hopper_pair &pair, uint32_t use)
{
    hopper_wait(hopper_shared(&pair.empty[use % 2]), (use / 2 + 1) % 2);
}

/* ---- warpgroup 2 ---- */

/* A warp for K and one for V, so that neither waits for the other's buffers. Lanes 0..15 look after
 * a group of a tile each. */
static __device__ __forceinline__ void hopper_feed(const struct kva_portable &a,
                                                   const CUtensorMap *map, struct hopper_pair &pair,
                                                   char (*tiles)[128 * 256])
{
    uint32_t total = a.view.block_tasks[0] * a.plan.unit_heads, group = threadIdx.x % 32, use = 0;

    for (uint32_t turn = 0, x; (x = hopper_task(turn)) < total; turn++) {
        const struct kva_task *task = &a.view.tasks[x / a.plan.unit_heads];
        const int32_t *table = a.tables + (uint64_t)task->seq * a.table_stride;
        uint32_t head = x % a.plan.unit_heads, end = task->kv_end;

        for (uint32_t first = task->kv_first; first < end; first += hopper_prefill_tokens, use++) {
            uint32_t t = first + group * 8, left = (end - first + 7) / 8;
            uint32_t groups = left < 16 ? left : 16, barrier = hopper_shared(&pair.full[use % 2]);
            struct kva_place place = kva_place_of(a, t < end ? kva_entry_of(a, table, t) : 0, t);

            if (group == 0) {
                hopper_wait_empty(pair, use);
                hopper_arrive_expect(barrier, groups * hopper_group_bytes);
            }
            __syncwarp();
            if (group < groups)
                hopper_copy_wide(hopper_shared(tiles[use % 2]) + group * hopper_group_bytes, map,
                                 (int)place.token, (int)head, (int)place.block, barrier);
        }
    }
}

/* Warps 2 and 3. */
static __device__ __forceinline__ void hopper_bring_q(const struct kva_portable &a,
                                                      const struct kva_row *rows, char *q,
                                                      uint32_t thread)
{
    for (uint32_t i = thread; i < hopper_prefill_rows * 16; i += hopper_prefill_helpers) {
        uint32_t r = i / 16, c = i % 16 * 8;
        const uint16_t *from = (const uint16_t *)a.q + rows[r].token * a.q_token_stride +
                               rows[r].head * a.q_head_stride + c;
        char *at = q + hopper_wide_at(r, c);

        if (a.q_is_aligned) {
            kva_copy16(hopper_shared(at), from, true);
            continue;
        }
        for (uint32_t e = 0; e < 8; e++)
            ((uint16_t *)at)[e] = from[e];
    }
    kva_copy_commit();
    kva_copy_wait<0>();
}

static __device__ __forceinline__ void hopper_prepare(const struct kva_portable &a,
                                                      struct hopper_prefill_memory &shared)
{
    uint32_t total = a.view.block_tasks[0] * a.plan.unit_heads, use = 0;
    uint32_t thread = threadIdx.x - hopper_prefill_math - 64;

    for (uint32_t x; (x = hopper_task(use)) < total; use++) {
        const struct kva_task task = a.view.tasks[x / a.plan.unit_heads];
        struct kva_row *rows = shared.rows[use % 2];

        hopper_wait_empty(shared.q_pair, use);
        if (thread == 0)
            shared.tasks[use % 2] = task;
        kva_rows_set(a, task, x % a.plan.unit_heads, rows, hopper_prefill_rows, thread,
                     hopper_prefill_helpers);
        hopper_sync(4, hopper_prefill_helpers); /* rows, before they say where Q lies */
        hopper_bring_q(a, rows, shared.q[use % 2], thread);
        hopper_fence_stores();
        hopper_arrive(hopper_shared(&shared.q_pair.full[use % 2]));
    }
}

/* ---- warpgroups 0 and 1 ---- */

template <typename Element> struct hopper_prefill_math_group {
    using Tile = kva_warp_tile<Element, 128, 128, 1, 16>;

    const struct kva_portable &a;
    struct hopper_prefill_memory &shared;
    uint32_t q_use;
    uint32_t kv_use;      /* of this task's first tile */
    uint32_t common_from; /* tiles [common_from, common_to) need no masks */
    uint32_t common_to;
    uint64_t q;       /* this warpgroup's, as an operand */
    uint32_t p[8][4]; /* weights of the tile that V is added for next */
    float alpha[1][2];
    Tile tile;

    __device__ __forceinline__ hopper_prefill_math_group(const struct kva_portable &args,
                                                         struct hopper_prefill_memory &memory)
        : a(args), shared(memory), q_use(0), kv_use(0)
    {
    }

    __device__ __forceinline__ const struct kva_task &task() const
    {
        return shared.tasks[q_use % 2];
    }

    __device__ __forceinline__ uint32_t first_row() const
    {
        return threadIdx.x / 32 * 16;
    }

    __device__ __forceinline__ const struct kva_row *rows() const
    {
        return shared.rows[q_use % 2] + first_row();
    }

    __device__ __forceinline__ bool is_common(uint32_t j) const
    {
        return j >= common_from && j < common_to;
    }

    __device__ __forceinline__ void set_common()
    {
        int32_t first, end, from = (int32_t)task().kv_first;

        kva_common_tokens(a, task(), &first, &end);
        first -= from, end -= from;
        common_from = first <= 0 ? 0
                                 : (uint32_t)(first + (int32_t)hopper_prefill_tokens - 1) /
                                       hopper_prefill_tokens;
        common_to = end <= 0 ? 0 : (uint32_t)end / hopper_prefill_tokens;
    }

    __device__ __forceinline__ void release(struct hopper_pair &pair, uint32_t use)
    {
        if (threadIdx.x % 32 == 0)
            hopper_arrive(hopper_shared(&pair.empty[use % 2]));
    }

    /* Warpgroups take turns with their products. */
    __device__ __forceinline__ void wait_turn()
    {
        hopper_sync(1 + threadIdx.x / 128, 256);
    }

    __device__ __forceinline__ void give_turn(uint32_t to)
    {
        asm volatile("bar.arrive %0, %1;" ::"r"(1 + to), "r"(256) : "memory");
    }

    __device__ __forceinline__ void begin_scores(uint32_t j)
    {
        uint64_t k = hopper_wide_rows(hopper_shared(shared.k[(kv_use + j) % 2]));

#pragma unroll
        for (uint32_t step = 0; step < 8; step++)
            hopper_wide_scores<Element>(tile.s, q + hopper_wide_row_step(step),
                                        k + hopper_wide_row_step(step), step != 0);
        hopper_mma_commit();
    }

    __device__ __forceinline__ void begin_values(uint32_t j)
    {
        uint64_t v = hopper_wide_columns(hopper_shared(shared.v[(kv_use + j) % 2]));

#pragma unroll
        for (uint32_t step = 0; step < 8; step++)
            hopper_wide_values<Element>(tile.o, p[step], v + hopper_wide_column_step(step));
        hopper_mma_commit();
    }

    /* Scores become weights, alpha what O has to be multiplied by. */
    __device__ __forceinline__ void weigh(uint32_t j)
    {
        int32_t first = (int32_t)(task().kv_first + j * hopper_prefill_tokens);

        if (a.score.is_bent)
            tile.bend(a.score, rows(), first);
        if (!is_common(j))
            tile.mask(rows(), first, task().position, a.score.has_tree);
        tile.softmax(a.score.is_bent ? 1 : a.score.scale_log2, alpha);
    }

    __device__ __forceinline__ void pack()
    {
#pragma unroll
        for (int step = 0; step < 8; step++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[step][i] = kva_pack<Element>(tile.s[0][2 * step + i / 2][i % 2 * 2],
                                               tile.s[0][2 * step + i / 2][i % 2 * 2 + 1]);
        }
    }

    /* Halves of a word that are infinite or no numbers: all ones there. */
    static __device__ __forceinline__ uint32_t wild_halves(uint32_t two)
    {
        constexpr uint32_t ONES =
            std::is_same<Element, __nv_bfloat16>::value ? 0x7f807f80 : 0x7c007c00;

        return __vcmpeq2(two & ONES, ONES);
    }

    /* Clears V behind the task's end; looks for infinities and NaN elsewhere, or clears them. */
    __device__ __forceinline__ bool sweep(char *v, uint32_t valid, bool clear)
    {
        uint32_t found = 0;

#pragma unroll 2
        for (uint32_t i = threadIdx.x; i < hopper_prefill_tokens * 16; i += hopper_prefill_math) {
            uint4 *at = (uint4 *)(v + i * 16), eight = *at;
            uint4 wild = {wild_halves(eight.x), wild_halves(eight.y), wild_halves(eight.z),
                          wild_halves(eight.w)};

            /* 16-byte pieces are permuted within their row only: 128 of them are 8 rows */
            if (i / 128 * 8 + i % 64 / 8 >= valid) {
                *at = make_uint4(0, 0, 0, 0);
                continue;
            }
            found |= wild.x | wild.y | wild.z | wild.w;
            if (clear)
                *at = make_uint4(eight.x & ~wild.x, eight.y & ~wild.y, eight.z & ~wild.z,
                                 eight.w & ~wild.w);
        }
        return found != 0;
    }

    /* Before V of a tile with masks meets the weights: see warp_tile.cuh. */
    __device__ __forceinline__ void isolate(uint32_t j)
    {
        char *v = shared.v[(kv_use + j) % 2];
        uint32_t first = task().kv_first + j * hopper_prefill_tokens, any;
        bool found = sweep(v, task().kv_end - first, false);

        asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\n"
                     "barrier.cta.red.or.pred q, 3, 256, p;\nselp.u32 %0, 1, 0, q;\n}"
                     : "=r"(any)
                     : "r"((uint32_t)found)
                     : "memory");
        if (any) {
            tile.add_wild(
                [&](uint32_t t, uint32_t d) { return *(uint32_t *)(v + hopper_wide_at(t, d)); },
                rows(), (int32_t)first, task().position, a.score.has_tree);
            hopper_sync(3, hopper_prefill_math);
            sweep(v, task().kv_end - first, true);
        }
        hopper_fence_stores();
        hopper_sync(3, hopper_prefill_math);
    }

    __device__ __forceinline__ void values_ready(uint32_t j)
    {
        hopper_wait_full(shared.v_pair, kv_use + j);
        if (!is_common(j))
            isolate(j);
    }

    __device__ __forceinline__ void first_scores()
    {
        hopper_wait_full(shared.k_pair, kv_use);
        hopper_mma_begin();
        begin_scores(0);
        hopper_wide_wait<0>(tile.s);
        release(shared.k_pair, kv_use);
        weigh(0);
        pack();
    }

    /* Scores of tile j beside the values of the one before. */
    __device__ __forceinline__ void step(uint32_t j)
    {
        hopper_wait_full(shared.k_pair, kv_use + j);
        values_ready(j - 1);
        wait_turn();
        hopper_mma_begin();
        begin_scores(j);
        begin_values(j - 1);
        give_turn(1 - threadIdx.x / 128);
        hopper_wide_wait<1>(tile.s);
        release(shared.k_pair, kv_use + j);
        weigh(j);
        hopper_wide_wait<0>(tile.o);
        release(shared.v_pair, kv_use + j - 1);
        tile.rescale(alpha, 1);
        pack();
    }

    __device__ __forceinline__ void last_values(uint32_t j)
    {
        values_ready(j);
        hopper_mma_begin();
        begin_values(j);
        hopper_wide_wait<0>(tile.o);
        release(shared.v_pair, kv_use + j);
    }

    /* As kva_plan_arrive, for the 256 threads of the two warpgroups. */
    __device__ __forceinline__ bool is_last(uint32_t *arrivals)
    {
        __threadfence();
        hopper_sync(3, hopper_prefill_math);
        if (threadIdx.x == 0)
            shared.is_last = kva_plan_count(arrivals, task().parts);
        hopper_sync(3, hopper_prefill_math);
        __threadfence();
        return shared.is_last;
    }

    __device__ __forceinline__ void end(uint32_t head)
    {
        float rate = a.score.is_bent ? 1 : a.score.scale_log2;
        const struct kva_row *all = shared.rows[q_use % 2];

        tile.finish_sums();
        if (task().parts == 1) {
            kva_store_final<Element, 128, 1>(a, tile, rate, all, task().packed_count, first_row(),
                                             0);
            return;
        }
        kva_store_part<128, 1>(tile, rate, kva_slot_of(a, task(), head, task().part),
                               task().packed_count, first_row());
        if (is_last(kva_arrivals_of(a, task(), head)))
            kva_add_parts<Element, 128, hopper_prefill_math, false>(
                a, all, task().packed_count, kva_slot_of(a, task(), head, 0),
                (uint64_t)a.plan.slot_rows * a.plan.slot_row_floats, task().parts, 0, nullptr);
    }

    __device__ __forceinline__ void attend(uint32_t head)
    {
        uint32_t tiles;

        hopper_wait_full(shared.q_pair, q_use);
        set_common();
        q = hopper_wide_rows(hopper_shared(shared.q[q_use % 2]) +
                             threadIdx.x / 128 * 8 * hopper_group_bytes);
        tiles =
            (task().kv_end - task().kv_first + hopper_prefill_tokens - 1) / hopper_prefill_tokens;
        tile.begin(1);
        if (tiles) {
            first_scores();
            for (uint32_t j = 1; j < tiles; j++)
                step(j);
            last_values(tiles - 1);
        }
        end(head);
        release(shared.q_pair, q_use);
        q_use++;
        kv_use += tiles;
    }

    __device__ __forceinline__ void run()
    {
        uint32_t total = a.view.block_tasks[0] * a.plan.unit_heads;

        if (threadIdx.x / 128 == 1)
            give_turn(0);
        for (uint32_t turn = 0, x; (x = hopper_task(turn)) < total; turn++)
            attend(x % a.plan.unit_heads);
        if (threadIdx.x / 128 == 0)
            wait_turn(); /* what the other gave last */
    }
};

static __device__ __forceinline__ void hopper_prefill_begin(const struct hopper_prefill &p,
                                                            struct hopper_prefill_memory &shared)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            hopper_barrier_init(hopper_shared(&shared.q_pair.full[i]), hopper_prefill_helpers);
            hopper_barrier_init(hopper_shared(&shared.q_pair.empty[i]), 8);
            hopper_barrier_init(hopper_shared(&shared.k_pair.full[i]), 1);
            hopper_barrier_init(hopper_shared(&shared.k_pair.empty[i]), 8);
            hopper_barrier_init(hopper_shared(&shared.v_pair.full[i]), 1);
            hopper_barrier_init(hopper_shared(&shared.v_pair.empty[i]), 8);
        }
        hopper_barrier_init_done();
        hopper_prefetch_map(&p.k_map);
        hopper_prefetch_map(&p.v_map);
    }
    __syncthreads();
}

#endif /* HOPPER_HAVE_SM90A */

template <typename Element>
static __global__ void __launch_bounds__(hopper_prefill_threads, 1)
    hopper_prefill_kernel(const __grid_constant__ struct hopper_prefill p)
{
#ifdef HOPPER_HAVE_SM90A
    extern __shared__ char memory[];
    struct hopper_prefill_memory &shared =
        *(struct hopper_prefill_memory *)(((uintptr_t)memory + 1023) & ~(uintptr_t)1023);

    hopper_prefill_begin(p, shared);
    if (threadIdx.x < hopper_prefill_math) {
        struct hopper_prefill_math_group<Element> group(p.a, shared);

        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        group.run();
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x / 32 == hopper_prefill_math / 32)
            hopper_feed(p.a, &p.k_map, shared.k_pair, shared.k);
        else if (threadIdx.x / 32 == hopper_prefill_math / 32 + 1)
            hopper_feed(p.a, &p.v_map, shared.v_pair, shared.v);
        else
            hopper_prepare(p.a, shared);
    }
#endif
}

#endif
