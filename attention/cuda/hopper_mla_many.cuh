/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention on Hopper, many rows × heads: 64 of them a thread block are the M side of the
 * products. O (64 × 512 floats) fills the registers of two warpgroups, so that each has half of its
 * columns, and the two take turns with the tiles of 64 tokens:
 *
 *   left    S0 = Q K0^T, P0 ──┐  O_l += P0 V0_l                    O_l += P1 V1_l
 *   right        S1 = Q K1^T, └─ O_r += P0 V0_r  P1 (meanwhile) ─┘ O_r += P1 V1_r
 *
 * While one of them computes exponentials the other's products run. A tile is K and V at once; the
 * two tiles lie in two places, A and B, each of two halves of 256 elements and the last 64, which
 * are no part of V: when S is done, P is left there for the other warpgroup. Half h of a place is
 * free again when warpgroup h has added it to O, for the copy engine's next boxes.
 *
 * With 128 rows a pair of thread blocks works on one task at the same time, so that what the second
 * one fetches is in the L2. (A cluster whose blocks each fetched half for both was slower by a
 * quarter: a place is free only when both have done with it.)
 */
#ifndef KVA_HOPPER_MLA_MANY_CUH
#define KVA_HOPPER_MLA_MANY_CUH

#include "hopper_mla_result.cuh"
#include "hopper_pair.cuh"

static constexpr uint32_t many_rows = 64;
static constexpr uint32_t many_math_threads = 256;
static constexpr uint32_t many_threads = 384;
static constexpr uint32_t many_band_bytes = 4096; /* 8 tokens × 4 × 128 bytes */
static constexpr uint32_t many_half_bytes = 8 * many_band_bytes;
static constexpr uint32_t many_rest_bytes = 8192; /* 64 tokens × 128 bytes */
static constexpr float many_slack = 8;

struct many_place {
    uint8_t half[2][many_half_bytes];
    uint8_t rest[many_rest_bytes]; /* then P */
};

struct __align__(1024) many_shared
{
    many_place place[2];
    uint8_t q[9][many_rows * 128];
    float m[2][many_rows]; /* maxima after tile 0 and 1 of a pair */
    float l[2][many_rows];
    uint64_t full[2][3]; /* halves, the rest */
    uint64_t empty[2][2];
    uint32_t is_last;
};

/* Barriers of warps: 0 is the block's, left and right each have one. */
enum {
    SYNC_MATH = 1,
    SYNC_LEFT,
    SYNC_RIGHT,
    SYNC_TURN,
    SYNC_P0,
    SYNC_P1
};

#ifdef HOPPER_HAVE_SM90A

/* ---- the producer: one warp ---- */

/* How often each place was filled, or read. */
struct many_uses {
    uint32_t of[2];
};

/* Half `half` of a tile, and the rest with it if it is free with it. Lane b has band b. */
static __device__ __forceinline__ void many_fill(const hopper_decode &p, many_shared &shared,
                                                 uint32_t place, uint32_t half, uint32_t parity,
                                                 uint32_t tokens, uint32_t row, int32_t block)
{
    uint32_t lane = threadIdx.x % 32, bands = (tokens + 7) / 8, boxes = (tokens + 15) / 16;
    uint32_t full = hopper_shared(&shared.full[place][half]);
    uint32_t rest = hopper_shared(&shared.full[place][2]);
    uint32_t to = hopper_shared(shared.place[place].half[half]) + lane * many_band_bytes;
    uint32_t to_rest = hopper_shared(shared.place[place].rest) + lane / 2 * 2048;
    bool has_rest = half != place;

    hopper_wait(hopper_shared(&shared.empty[place][half]), parity);
    if (!lane) {
        hopper_arrive_expect(full, bands * many_band_bytes);
        if (has_rest)
            hopper_arrive_expect(rest, boxes * 2048);
    }
    __syncwarp();
    if (lane < bands)
        hopper_copy_box(to, &p.k_map, 0, (int)row, (int)half * 4, 0, block, full);
    if (has_rest && lane % 2 == 0 && lane / 2 < boxes)
        hopper_copy_box(to_rest, &p.v_map, 0, (int)row, 8, 0, block, rest);
}

/* Entry of the table for band `lane` of the tile at `token`. */
static __device__ __forceinline__ int32_t many_block(const hopper_decode &p, const kva_task &task,
                                                     uint32_t token)
{
    uint32_t mine = token + threadIdx.x % 32 * 8;
    bool is_there = threadIdx.x % 32 < 8 && mine < task.kv_end;
    const int32_t *table = p.tables + (uint64_t)task.seq * p.table_stride;
    int32_t block = is_there ? table[mine / p.block_tokens] : 0;

    return min(max(block, 0), (int32_t)p.block_count - 1);
}

static __device__ __forceinline__ void many_produce(const hopper_decode &p, many_shared &shared,
                                                    const kva_task &task, many_uses &uses)
{
    constexpr uint32_t step = hopper_tile_tokens;
    uint32_t place = 0, token = task.kv_first;
    int32_t next = many_block(p, task, token);

    for (; token < task.kv_end; token += step) {
        uint32_t tokens = min(task.kv_end - token, step), parity = uses.of[place]++ % 2 ^ 1;
        uint32_t row = (token + threadIdx.x % 32 * 8) % p.block_tokens;
        int32_t block = next;

        next = many_block(p, task, token + step);
        many_fill(p, shared, place, place, parity, tokens, row, block);
        many_fill(p, shared, place, place ^ 1, parity, tokens, row, block);
        place ^= 1;
    }
}

/* ---- the warpgroups: what a thread has ---- */

/* Rows lane ÷ 4 and + 8 of its warp's 16; columns 8j + 2 (lane mod 4) and the next. */
struct many_thread {
    uint32_t group; /* 0: left, 1: right */
    uint32_t warp;  /* of the warpgroup */
    uint32_t row;
    uint32_t column;
    uint32_t packed; /* of `row`, in the unit's tile */
};

struct many_state {
    float o[128];
    float m[2];
    float l[2];
};

static __device__ __forceinline__ many_thread many_thread_of(uint32_t rank)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    uint32_t row = warp * 16 + lane / 4;

    return {threadIdx.x / 128, warp, row, lane % 4 * 2, rank * many_rows + row};
}

/* ---- the warpgroups: one tile ---- */

/* Elements 256 half .. of Q K^T. */
static __device__ __forceinline__ void many_scores_half(many_shared &shared, uint32_t place,
                                                        uint32_t half, uint32_t parity,
                                                        float (&s)[32], bool is_first)
{
    uint32_t q = hopper_shared(shared.q[half * 4]);
    uint32_t k = hopper_shared(shared.place[place].half[half]);

    hopper_wait(hopper_shared(&shared.full[place][half]), parity);
    hopper_mma_begin();
#pragma unroll
    for (int step = 0; step < 16; step++)
        hopper_mma<__nv_bfloat16, 0>(
            s, hopper_tile(q + step / 4 * many_rows * 128 + step % 4 * 32, 1024),
            hopper_tile(k + step / 4 * 1024 + step % 4 * 32, many_band_bytes),
            !is_first || step > 0);
}

static __device__ __forceinline__ void many_scores_rest(many_shared &shared, uint32_t place,
                                                        uint32_t parity, float (&s)[32])
{
    uint32_t q = hopper_shared(shared.q[8]), k = hopper_shared(shared.place[place].rest);

    hopper_wait(hopper_shared(&shared.full[place][2]), parity);
    hopper_mma_begin();
#pragma unroll
    for (int step = 0; step < 4; step++)
        hopper_mma<__nv_bfloat16, 0>(s, hopper_tile(q + step * 32, 1024),
                                     hopper_tile(k + step * 32, 1024), 1);
}

/* Tokens that a row sees: [begin, end), and of those from `young` on the ones with a bit. */
struct many_view {
    int32_t begin;
    int32_t end;
    int32_t young;
    uint64_t bits;
};

static __device__ __forceinline__ many_view many_view_of(const hopper_decode &p,
                                                         const kva_task &task, uint32_t packed)
{
    uint64_t row = hopper_row_of(p, task, min(packed, task.packed_count - 1)).row;
    int32_t position = task.position + (int32_t)(row - task.row);
    many_view view = {kva_plan_window_begin(p.plan, position), (int32_t)task.kv_end, INT32_MAX, 0};

    if (p.plan.is_causal)
        view.end = min(view.end, position + 1);
    if (p.plan.is_tree) {
        view.young = task.position;
        view.bits = p.tree_mask[row];
    }
    return view;
}

static __device__ __forceinline__ bool many_sees(const many_view &view, int32_t t)
{
    uint32_t j = (uint32_t)(t - view.young);
    bool old = t < view.young, bit = view.bits >> (j & 63) & 1;

    return (t >= view.begin) & (t < view.end) & (old | (bit & (j < 64)));
}

/* Scores in units of log 2: scaled, capped, masked. */
static __device__ __forceinline__ void many_scores(const hopper_decode &p, const kva_task &task,
                                                   const many_thread &me, uint32_t token,
                                                   bool masked, float (&s)[32])
{
#pragma unroll
    for (int x = 0; x < 32; x++)
        s[x] *= p.scale;
    if (p.soft_cap != 0) {
        float to_cap = 2 * log2_of_e / p.soft_cap;
#pragma unroll
        for (int x = 0; x < 32; x++)
            s[x] = kva_cap(s[x] * to_cap, p.soft_cap);
    }
    if (!masked)
        return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        many_view view = many_view_of(p, task, me.packed + 8 * i);
#pragma unroll
        for (int x = 2 * i; x < 32; x += x % 2 ? 3 : 1)
            if (!many_sees(view, (int32_t)(token + x / 4 * 8 + me.column + x % 2)))
                s[x] = -INFINITY;
    }
}

/* From scores to P. What P is relative to follows the maximum only when that is ahead by more than
 * 2^many_slack: P and its sums have room for as much, and O seldom has to be rescaled. (The idea of
 * FlashAttention-4's authors.) */
static __device__ __forceinline__ void many_softmax(float (&s)[32], const float (&before)[2],
                                                    float (&m)[2], float (&sum)[2],
                                                    uint32_t (&a)[4][4])
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float x = -INFINITY, base;
#pragma unroll
        for (int j = 0; j < 8; j++)
            x = fmaxf(x, fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
        m[i] = x > before[i] + many_slack ? x : before[i];
        base = m[i] == -INFINITY ? 0 : m[i];
        sum[i] = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float p0 = kva_exp2(s[4 * j + 2 * i] - base);
            float p1 = kva_exp2(s[4 * j + 2 * i + 1] - base);

            sum[i] += p0 + p1;
            a[j / 2][i + j % 2 * 2] = hopper_pack<__nv_bfloat16>(p0, p1);
        }
    }
}

/* Of what was summed up relative to `before`, when it is relative to `now`. */
static __device__ __forceinline__ float many_factor(float before, float now)
{
    return kva_exp2(before - (now == -INFINITY ? 0 : now));
}

/* Seldom: see many_slack. */
static __device__ __forceinline__ void many_rescale(float (&o)[128], const float (&factor)[2])
{
    if (!__any_sync(~0u, factor[0] != 1 || factor[1] != 1))
        return;
#pragma unroll
    for (int x = 0; x < 128; x++)
        o[x] *= factor[x / 2 % 2];
}

/* P to the rest of its tile. */
static __device__ __forceinline__ void many_store_p(many_shared &shared, uint32_t place,
                                                    const many_thread &me,
                                                    const uint32_t (&a)[4][4])
{
    uint32_t lane = threadIdx.x % 32, row = me.warp * 16 + lane % 16;

#pragma unroll
    for (int j = 0; j < 4; j++)
        hopper_store_matrices(hopper_shared(shared.place[place].rest) +
                                  hopper_swizzle(row, j * 32 + lane / 16 * 16),
                              a[j]);
}

/* Rows of V that are not loaded, or that no row of the task sees, become 0. By 128 threads. */
static __device__ __forceinline__ void many_zero(const hopper_range &range, const kva_task &task,
                                                 uint32_t token, many_place &place)
{
    uint32_t row = threadIdx.x % 128 / 2, half = threadIdx.x % 2;
    uint8_t *band = place.half[half] + row / 8 * many_band_bytes + row % 8 * 128;

    if ((int32_t)(token + row) >= range.begin && token + row < task.kv_end)
        return;
    for (int c = 0; c < 32; c++)
        *(uint4 *)(band + c / 8 * 1024 + c % 8 * 16) = {0, 0, 0, 0};
}

static __device__ __forceinline__ void many_values(many_shared &shared, uint32_t place,
                                                   uint32_t half, const uint32_t (&a)[4][4],
                                                   float (&o)[128])
{
    uint32_t v = hopper_shared(shared.place[place].half[half]);

    hopper_mma_begin();
#pragma unroll
    for (int step = 0; step < 4; step++)
        hopper_mma_values(o, a[step],
                          hopper_tile_transposed(v + step * 2 * many_band_bytes, many_band_bytes));
    hopper_mma_commit();
}

/* The same with the other warpgroup's P. */
static __device__ __forceinline__ void many_values(many_shared &shared, uint32_t place,
                                                   uint32_t half, float (&o)[128])
{
    uint32_t v = hopper_shared(shared.place[place].half[half]);
    uint32_t p = hopper_shared(shared.place[place].rest);

    hopper_mma_begin();
#pragma unroll
    for (int step = 0; step < 4; step++)
        hopper_mma_values(o, hopper_tile(p + step * 32, 1024),
                          hopper_tile_transposed(v + step * 2 * many_band_bytes, many_band_bytes));
    hopper_mma_commit();
}

static __device__ __forceinline__ void many_release(many_shared &shared, uint32_t place,
                                                    uint32_t half)
{
    if (threadIdx.x % 32 == 0)
        hopper_arrive(hopper_shared(&shared.empty[place][half]));
}

/* ---- the warpgroups: two tiles ---- */

/* What does not change over the tiles of a task. */
struct many_work {
    const hopper_decode &p;
    const kva_task &task;
    many_shared &shared;
    many_thread me;
    hopper_range range;
};

static __device__ __forceinline__ bool many_is_masked(const many_work &w, uint32_t token)
{
    return (int32_t)token < w.range.clean_begin ||
           (int32_t)(token + hopper_tile_tokens) > w.range.clean_end;
}

/* After S of `place` is done in all warps of this warpgroup: P and, where needed, zeros. */
static __device__ __forceinline__ void many_leave_p(const many_work &w, uint32_t place,
                                                    uint32_t token, bool masked,
                                                    const uint32_t (&a)[4][4], const float (&m)[2])
{
    uint32_t id = place ? SYNC_RIGHT : SYNC_LEFT;

    hopper_sync(id, 128);
    many_store_p(w.shared, place, w.me, a);
    if (w.me.column == 0) {
        w.shared.m[place][w.me.row] = m[0];
        w.shared.m[place][w.me.row + 8] = m[1];
    }
    if (masked)
        many_zero(w.range, w.task, token, w.shared.place[place]);
    hopper_fence_stores();
    if (masked)
        hopper_sync(id, 128);
}

/* Maxima after tile `place` of a pair. */
static __device__ __forceinline__ void many_take_m(const many_work &w, uint32_t place,
                                                   float (&m)[2])
{
    m[0] = w.shared.m[place][w.me.row];
    m[1] = w.shared.m[place][w.me.row + 8];
}

/* Left, tile 0 at `token`. */
static __device__ __forceinline__ void many_left_first(const many_work &w, uint32_t token,
                                                       uint32_t parity, bool is_first,
                                                       many_state &state)
{
    float s[32], m[2], sum[2], factor[2];
    uint32_t a[4][4];
    bool masked = many_is_masked(w, token);

    many_scores_half(w.shared, 0, 0, parity, s, true);
    hopper_mma_commit();
    many_scores_half(w.shared, 0, 1, parity, s, false);
    hopper_mma_commit();
    many_scores_rest(w.shared, 0, parity, s);
    hopper_mma_commit();
    hopper_mma_wait_but<3>(state.o); /* the last pair's tile 1 */
    if (!is_first)
        many_release(w.shared, 1, 0);
    hopper_mma_wait_but<1>(s);
    hopper_sync_arrive(SYNC_TURN, many_math_threads);
    hopper_mma_wait_but<0>(s);
    many_scores(w.p, w.task, w.me, token, masked, s);
    many_softmax(s, state.m, m, sum, a);
    many_leave_p(w, 0, token, masked, a, m);
    hopper_sync_arrive(SYNC_P0, many_math_threads);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        factor[i] = many_factor(state.m[i], m[i]);
        state.m[i] = m[i];
        state.l[i] = state.l[i] * factor[i] + sum[i];
    }
    many_rescale(state.o, factor);
    many_values(w.shared, 0, 0, a, state.o);
}

/* Left, tile 1; its product is still under way at the end. */
static __device__ __forceinline__ void many_left_second(const many_work &w, many_state &state)
{
    float m[2], factor[2];

    hopper_mma_wait_but<0>(state.o);
    many_release(w.shared, 0, 0);
    hopper_sync(SYNC_P1, many_math_threads);
    many_take_m(w, 1, m);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        factor[i] = many_factor(state.m[i], m[i]);
        state.m[i] = m[i];
        state.l[i] *= factor[i];
    }
    many_rescale(state.o, factor);
    many_values(w.shared, 1, 0, state.o);
}

/* Right, tile 0: its P is ready. */
static __device__ __forceinline__ void many_right_first(const many_work &w, many_state &state)
{
    float m[2], factor[2];

    hopper_sync(SYNC_P0, many_math_threads);
    many_take_m(w, 0, m);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        factor[i] = many_factor(state.m[i], m[i]);
        state.m[i] = m[i];
        state.l[i] *= factor[i];
    }
    many_rescale(state.o, factor);
    many_values(w.shared, 0, 1, state.o);
}

/* Right, both tiles; `token` is where tile 1 is. */
static __device__ __forceinline__ void many_right_pair(const many_work &w, uint32_t token,
                                                       uint32_t parity, many_state &state)
{
    float s[32], m[2], sum[2], factor[2];
    uint32_t a[4][4];
    bool masked = many_is_masked(w, token);

    hopper_sync(SYNC_TURN, many_math_threads);
    many_scores_half(w.shared, 1, 1, parity, s, true);
    many_scores_half(w.shared, 1, 0, parity, s, false);
    many_scores_rest(w.shared, 1, parity, s);
    hopper_mma_commit();
    many_right_first(w, state);
    hopper_mma_wait_but<1>(s);
    many_scores(w.p, w.task, w.me, token, masked, s);
    many_softmax(s, state.m, m, sum, a);
    many_leave_p(w, 1, token, masked, a, m);
    hopper_sync_arrive(SYNC_P1, many_math_threads);
    hopper_mma_wait_but<0>(state.o);
    many_release(w.shared, 0, 1);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        factor[i] = many_factor(state.m[i], m[i]);
        state.m[i] = m[i];
        state.l[i] = state.l[i] * factor[i] + sum[i];
    }
    many_rescale(state.o, factor);
    many_values(w.shared, 1, 1, a, state.o);
    hopper_mma_wait_but<0>(state.o);
    many_release(w.shared, 1, 1);
}

/* ---- the warpgroups: a task ---- */

static __device__ __forceinline__ void many_left(const many_work &w, many_uses &uses,
                                                 many_state &state)
{
    uint32_t token = w.task.kv_first, pair = 2 * hopper_tile_tokens;
    bool is_first = true;

    for (; token + hopper_tile_tokens < w.task.kv_end; token += pair) {
        many_left_first(w, token, uses.of[0]++ % 2, is_first, state);
        uses.of[1]++;
        many_left_second(w, state);
        is_first = false;
    }
    if (token < w.task.kv_end) {
        many_left_first(w, token, uses.of[0]++ % 2, is_first, state);
        hopper_mma_wait_but<0>(state.o);
        many_release(w.shared, 0, 0);
    } else {
        hopper_mma_wait_but<0>(state.o);
        if (!is_first)
            many_release(w.shared, 1, 0);
    }
}

static __device__ __forceinline__ void many_right(const many_work &w, many_uses &uses,
                                                  many_state &state)
{
    uint32_t token = w.task.kv_first, pair = 2 * hopper_tile_tokens;

    for (; token + hopper_tile_tokens < w.task.kv_end; token += pair) {
        uses.of[0]++;
        many_right_pair(w, token + hopper_tile_tokens, uses.of[1]++ % 2, state);
    }
    if (token < w.task.kv_end) {
        uses.of[0]++;
        hopper_sync(SYNC_TURN, many_math_threads);
        many_right_first(w, state);
        hopper_mma_wait_but<0>(state.o);
        many_release(w.shared, 0, 1);
    }
}

/* ---- the warpgroups: results ---- */

/* Both warpgroups' sums over all threads; the maxima are the same in both. */
static __device__ __forceinline__ void many_sum_up(const many_work &w, many_state &state)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float x = state.l[i];

        x += __shfl_xor_sync(~0u, x, 1);
        x += __shfl_xor_sync(~0u, x, 2);
        if (w.me.column == 0)
            w.shared.l[w.me.group][w.me.row + 8 * i] = x;
    }
    hopper_sync(SYNC_MATH, many_math_threads);
#pragma unroll
    for (int i = 0; i < 2; i++)
        state.l[i] = w.shared.l[0][w.me.row + 8 * i] + w.shared.l[1][w.me.row + 8 * i];
}

static __device__ __forceinline__ void many_write_row(const many_work &w, uint32_t packed,
                                                      const float *o, float m, float l)
{
    hopper_row to = hopper_row_of(w.p, w.task, packed);
    uint64_t at = hopper_out_at(w.p, to) + w.me.group * 256 + w.me.column;
    float lse, factor = hopper_finish(w.p, to.head, m, l, &lse);
    bool in_pairs = (uintptr_t)((__nv_bfloat16 *)w.p.out + at) % 4 == 0;

    if (w.me.group == 0 && w.me.column == 0)
        hopper_store_lse(w.p, to, lse);
#pragma unroll
    for (int j = 0; j < 32; j++) {
        if (in_pairs) {
            *(uint32_t *)((__nv_bfloat16 *)w.p.out + at + j * 8) =
                hopper_pack<__nv_bfloat16>(o[4 * j] * factor, o[4 * j + 1] * factor);
        } else {
            hopper_store<__nv_bfloat16>(w.p.out, at + j * 8, o[4 * j] * factor);
            hopper_store<__nv_bfloat16>(w.p.out, at + j * 8 + 1, o[4 * j + 1] * factor);
        }
    }
}

static __device__ __forceinline__ void many_write_part(const many_work &w, uint32_t packed,
                                                       const float *o, float m, float l)
{
    float *to = hopper_part<mla_part_shape>(w.p, w.task, w.task.part, packed);

    if (w.me.group == 0 && w.me.column == 0)
        *(float2 *)(to + hopper_mla_v) = {m, l};
    to += w.me.group * 256 + w.me.column;
#pragma unroll
    for (int j = 0; j < 32; j++)
        *(float2 *)(to + j * 8) = {o[4 * j], o[4 * j + 1]};
}

/* A unit of two parts and more has a counter for each thread block of the pair. */
static __device__ __forceinline__ void many_finish_part(const many_work &w, uint32_t rank)
{
    uint32_t *arrivals = w.p.work.arrivals + w.task.slot + rank, first = rank * many_rows;

    if (mla_is_last<many_math_threads>(w.task, arrivals, &w.shared.is_last))
        mla_merge<many_math_threads>(w.p, w.task, first,
                                     min(first + many_rows, w.task.packed_count));
}

static __device__ __forceinline__ void many_consume(const hopper_decode &p, many_shared &shared,
                                                    const kva_task &task, uint32_t rank,
                                                    many_uses &uses)
{
    many_work w = {p, task, shared, many_thread_of(rank), hopper_range_of(p, task)};
    many_state state = {{}, {-INFINITY, -INFINITY}, {0, 0}};

    hopper_sync(SYNC_MATH, many_math_threads); /* nobody reads the last task's Q and l any more */
    mla_load_q<many_rows, many_math_threads>(p, task, rank * many_rows, shared.q);
    hopper_fence_stores();
    hopper_sync(SYNC_MATH, many_math_threads);
    if (w.me.group == 0)
        many_left(w, uses, state);
    else
        many_right(w, uses, state);
    many_sum_up(w, state);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float o[128];
#pragma unroll
        for (int x = 0; x < 128; x += 4)
            o[x] = state.o[x + 2 * i], o[x + 1] = state.o[x + 2 * i + 1];
        if (w.me.packed + 8 * i >= task.packed_count)
            continue;
        if (task.parts == 1)
            many_write_row(w, w.me.packed + 8 * i, o, state.m[i], state.l[i]);
        else
            many_write_part(w, w.me.packed + 8 * i, o, state.m[i], state.l[i]);
    }
    if (task.parts > 1)
        many_finish_part(w, rank);
}

static __device__ __forceinline__ void many_init(many_shared &shared)
{
    if (threadIdx.x == 0) {
        for (uint32_t place = 0; place < 2; place++) {
            for (uint32_t i = 0; i < 3; i++)
                hopper_barrier_init(hopper_shared(&shared.full[place][i]), 1);
            for (uint32_t half = 0; half < 2; half++)
                hopper_barrier_init(hopper_shared(&shared.empty[place][half]), 4);
        }
        hopper_barrier_init_done();
    }
    __syncthreads();
}

#endif /* HOPPER_HAVE_SM90A */

template <int CTAS>
__global__ void __launch_bounds__(many_threads, 1) many_run(const __grid_constant__ hopper_decode p)
{
#ifdef HOPPER_HAVE_SM90A
    extern __shared__ __align__(1024) uint8_t memory[];
    many_shared &shared = *(many_shared *)memory;
    many_uses uses = {};
    uint32_t rank = blockIdx.x % CTAS;
    uint32_t first = p.work.block_tasks[blockIdx.x / CTAS];
    uint32_t end = p.work.block_tasks[blockIdx.x / CTAS + 1];

    if (first >= end)
        return;
    many_init(shared);
    if (threadIdx.x >= many_math_threads) {
        hopper_less_registers<40>();
        if (threadIdx.x < many_math_threads + 32)
            for (uint32_t i = first; i < end; i++)
                many_produce(p, shared, p.work.tasks[i], uses);
    } else {
        hopper_more_registers<232>();
        for (uint32_t i = first; i < end; i++)
            many_consume(p, shared, p.work.tasks[i], rank, uses);
    }
#endif
}

#endif
