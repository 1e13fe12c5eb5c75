/* SPDX-License-Identifier: Apache-2.0
 *
 * What fills shared memory in Hopper's decode: one warp the ring of K and V, all others Q.
 */
#ifndef KVA_HOPPER_DECODE_FILL_CUH
#define KVA_HOPPER_DECODE_FILL_CUH

#include "hopper_decode_8.cuh"

#ifdef HOPPER_HAVE_SM90A

/* ---- the producer: one warp ---- */

template <class S>
static __device__ __forceinline__ void hopper_fill(const hopper_decode &p,
                                                   hopper_decode_shared<S> &shared,
                                                   const CUtensorMap *map, uint32_t slot,
                                                   uint32_t parity, uint32_t boxes, int row,
                                                   int head, int block)
{
    uint32_t lane = threadIdx.x % 32;
    uint32_t box_bytes = p.box_rows * S::D * sizeof(typename S::C);
    uint32_t full = hopper_shared(&shared.full[slot]);

    hopper_wait(hopper_shared(&shared.empty[slot]), parity);
    if (!lane)
        hopper_arrive_expect(full, boxes * box_bytes);
    __syncwarp();
    if (lane < boxes)
        hopper_copy_box(hopper_shared(shared.ring[slot]) + lane * box_bytes, map, 0, row, 0, head,
                        block, full);
}

/* Fill the ring with the tiles of one task. Lane b copies box b; 32 entries of the table at a time
 * are held, one a lane, and the next 32 are on their way. */
template <class S>
static __device__ __forceinline__ void hopper_produce(const hopper_decode &p,
                                                      hopper_decode_shared<S> &shared,
                                                      const kva_task &task, hopper_place &at)
{
    uint32_t lane = threadIdx.x % 32;
    const int32_t *table = p.tables + (uint64_t)task.seq * p.table_stride;
    uint32_t entries = (task.kv_end + p.block_tokens - 1) / p.block_tokens;
    uint32_t held = task.kv_first / p.block_tokens;
    int32_t now = held + lane < entries ? table[held + lane] : 0;
    int32_t next = held + 32 + lane < entries ? table[held + 32 + lane] : 0;

    for (uint32_t token = task.kv_first; token < task.kv_end; token += hopper_tile_tokens) {
        uint32_t mine = token + lane * p.box_rows, left = task.kv_end - token;
        uint32_t boxes = (min(left, hopper_tile_tokens) + p.box_rows - 1) / p.box_rows;
        uint32_t row = mine % p.block_tokens;
        int32_t block;

        if (token / p.block_tokens >= held + 32) {
            held += 32;
            now = next;
            next = held + 32 + lane < entries ? table[held + 32 + lane] : 0;
        }
        now = min(max(now, 0), (int32_t)p.block_count - 1);
        block = __shfl_sync(~0u, now, mine / p.block_tokens - held);
        hopper_fill<S>(p, shared, &p.k_map, at.slot, at.parity ^ 1, boxes, row, task.unit_head,
                       block);
        if constexpr (S::is_quantised)
            hopper_fill_scales<S>(p, shared, task, at.slot, token, now, held);
        hopper_advance<S>(at);
        hopper_fill<S>(p, shared, &p.v_map, at.slot, at.parity ^ 1, boxes, row, task.unit_head,
                       block);
        hopper_advance<S>(at);
    }
}

/* ---- the warpgroup: a task's columns ---- */

/* Eight elements of 16 bits, from any even address. */
static __device__ __forceinline__ uint4 hopper_load_8(const uint16_t *from)
{
    uint16_t e[8];

    if ((uintptr_t)from % 16 == 0)
        return *(const uint4 *)from;
#pragma unroll
    for (int i = 0; i < 8; i++)
        e[i] = from[i];
    return {e[0] | (uint32_t)e[1] << 16, e[2] | (uint32_t)e[3] << 16, e[4] | (uint32_t)e[5] << 16,
            e[6] | (uint32_t)e[7] << 16};
}

/* Elements [d, d + 8) of a column of Q; 0 behind the last. */
static __device__ __forceinline__ uint4 hopper_q(const hopper_decode &p, const kva_task &task,
                                                 uint32_t column, uint32_t d)
{
    hopper_row at = hopper_row_of(p, task, column);

    if (column >= task.packed_count)
        return {0, 0, 0, 0};
    return hopper_load_8((const uint16_t *)p.q + at.row * p.q_token_stride +
                         at.head * p.q_head_stride + d);
}

/* Q of a task into shared memory; positions, slopes, tree masks of its columns. */
template <class S>
static __device__ __forceinline__ void hopper_load_q(const hopper_decode &p,
                                                     hopper_decode_shared<S> &shared,
                                                     const kva_task &task)
{
    for (uint32_t v = threadIdx.x; v < S::N * S::D / 8; v += hopper_math_threads) {
        uint32_t column = v / (S::D / 8), d = v % (S::D / 8) * 8;
        uint4 e = hopper_q(p, task, column, d);

        if constexpr (S::is_quantised)
            hopper_store_q<S>(shared, column, d, e);
        else
            *(uint4 *)(shared.q[d / 64] + hopper_swizzle(column, d % 64 * 2)) = e;
    }
    if (threadIdx.x < S::N) {
        hopper_row at = hopper_row_of(p, task, min(threadIdx.x, task.packed_count - 1));

        shared.position[threadIdx.x] = task.position + (int32_t)(at.row - task.row);
        shared.slope[threadIdx.x] = p.alibi_slopes ? p.alibi_slopes[at.head] * log2_of_e : 0.0f;
        shared.tree[threadIdx.x] = p.tree_mask ? p.tree_mask[at.row] : 0;
    }
    hopper_fence_stores();
}

#endif /* HOPPER_HAVE_SM90A */
#endif
