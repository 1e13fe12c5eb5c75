/* SPDX-License-Identifier: Apache-2.0
 *
 * What all parts of Hopper's decode share: sizes, shared memory, who has which element.
 */
#ifndef KVA_HOPPER_DECODE_SHAPE_CUH
#define KVA_HOPPER_DECODE_SHAPE_CUH

#include "hopper.cuh"
#include "hopper_launch.cuh"
#include "score.cuh"

/* Sizes of one kernel: q and out of type T, K and V of type C, N columns, D elements a head. */
template <class T_, class C_, int N_, int D_> struct hopper_decode_shape {
    using T = T_;
    using C = C_;
    static constexpr int N = N_;
    static constexpr int D = D_;
    static constexpr bool is_quantised = sizeof(C) == 1;
    using M = typename std::conditional<is_quantised, __half, T>::type; /* what is multiplied */
    static constexpr int halves = D / 64; /* of a head, 64 elements each: atoms of M */
    static constexpr int columns = D * sizeof(C) / 128; /* of atoms in a tile */
    static constexpr uint32_t tile_bytes = hopper_tile_tokens * D * sizeof(C);
    static constexpr uint32_t blocks_per_sm = 2;
    static constexpr uint32_t tiles = 65536 / (2 * tile_bytes); /* K and V, in the ring */
    static constexpr uint32_t ring = 2 * tiles;
    /* 8 tokens of a tile: an atom, or two, one for each half of the head. */
    static constexpr uint32_t atom_group = 1024 * columns;
};

/* Scales of a tile of tokens. */
struct hopper_scales {
    float k[hopper_tile_tokens];
    float shift[hopper_tile_tokens];   /* log2 |scale of V| */
    float inverse[hopper_tile_tokens]; /* 1 ÷ scale of V */
};

template <class S> struct __align__(1024) hopper_decode_shared
{
    uint8_t ring[S::ring][S::tile_bytes];
    uint8_t q[S::halves][S::N * 128];
    uint8_t p[S::N * 128];
    hopper_scales scales[S::is_quantised ? S::tiles : 1];
    uint64_t tree[S::N];
    int32_t position[S::N];
    float slope[S::N];
    float q_factor[S::N]; /* quantised: what Q was divided by */
    float exchange[4][S::N];
    uint64_t full[S::ring];
    uint64_t empty[S::ring];
    uint32_t is_last;
};

#ifdef HOPPER_HAVE_SM90A

/* Places in the ring, filled or read in turn. */
struct hopper_place {
    uint32_t slot;
    uint32_t parity;
};

template <class S> static __device__ __forceinline__ void hopper_advance(hopper_place &at)
{
    at.slot++;
    if (at.slot == S::ring) {
        at.slot = 0;
        at.parity ^= 1;
    }
}

/* Lane l of warp w has tokens 16w + l ÷ 4 and 8 more, columns 8j + 2(l mod 4) and the next one:
 * register 4j of an accumulator, 4j + 1; + 2 for the other token. */
struct hopper_thread {
    uint32_t warp;
    uint32_t row;    /* 16 × warp + lane ÷ 4 */
    uint32_t column; /* 2 (lane mod 4) */
};

static __device__ __forceinline__ hopper_thread hopper_thread_of()
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    return {warp, warp * 16 + lane / 4, lane % 4 * 2};
}

/* Steps of 16 along K of a 64-row A operand, in registers. */
template <class S, int STEPS> struct hopper_operand {
    uint32_t a[S::is_quantised ? STEPS : 1][4];
};

/* What a thread keeps of its columns over the tiles of a part. */
template <class S> struct hopper_state {
    float o[S::halves][S::N / 2]; /* rows are elements of the head */
    float m[S::N / 4];            /* maxima, columns 2 a group of 8; all threads have the same */
    float l[S::N / 4];            /* sums over this thread's tokens */
};

static __device__ __forceinline__ void hopper_sync_math()
{
    hopper_sync(1, hopper_math_threads);
}

/* The row and query head that a column is. */
struct hopper_row {
    uint64_t row;
    uint32_t head;
};

static __device__ __forceinline__ hopper_row hopper_row_of(const hopper_decode &p,
                                                           const kva_task &task, uint32_t column)
{
    uint32_t packed = task.packed + column;

    return {(uint64_t)task.row + packed / p.plan.group,
            task.unit_head * p.plan.group + packed % p.plan.group};
}

#endif /* HOPPER_HAVE_SM90A */

#endif
