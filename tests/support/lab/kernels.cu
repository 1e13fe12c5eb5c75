/* SPDX-License-Identifier: Apache-2.0
 *
 * Other ways to copy a list of blocks than kvi_kernel_copy's, each with one thing changed. One that
 * wins on a card takes its place in kernels.cu.
 *
 *   vectors   threads hold 16-byte loads, then store them: how many each, what the caches are
 *             told, which thread has which vector, whether loads overlap stores, which order of
 *             pieces
 *   bulk      one thread lets the SM's copy engine (sm_90) go through shared memory: a thread block
 *             that runs on through the pieces, or one a piece, with what L2 is told
 */
#include "backend/kernels.cuh"
#include "support/lab/lab.h"

enum load {
    LOAD_CS,      /* evict first, all caches */
    LOAD_NA,      /* not into L1 */
    LOAD_NA_256,  /* the same, and L2 fetches 256 bytes */
    LOAD_NA_FIRST /* the same, and L2 evicts it first: what kvi_kernel_copy does */
};

enum store {
    STORE_PLAIN,
    STORE_CS,
    STORE_FIRST /* L2 evicts it first: what kvi_kernel_copy does */
};

enum shape {
    BY_THREAD, /* a round of a thread block adjoins: neighbours have neighbouring vectors */
    BY_WARP,   /* what a warp loads in one round adjoins */
    PIPELINED, /* BY_THREAD; the next round is loaded before this one is stored */
    SPREAD,    /* BY_THREAD; neighbouring thread blocks have the same piece of different blocks */
    SHIFTED    /* BY_THREAD; no division where a block has a power of two of pieces */
};

static __device__ __forceinline__ uint64_t policy_first()
{
    uint64_t policy;

    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* volatile: the loads of a round stay before its stores. */
#define LOAD_ASM(modifiers)                                                   \
    asm volatile("ld.global.nc" modifiers ".v4.u32 {%0, %1, %2, %3}, [%4];"   \
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) \
                 : "l"(__cvta_generic_to_global(from)))

template <load LOAD> static __device__ __forceinline__ uint4 get(const uint4 *from, uint64_t policy)
{
    uint4 value;

    if (LOAD == LOAD_CS)
        return __ldcs(from);
    if (LOAD == LOAD_NA)
        LOAD_ASM(".L1::no_allocate");
    else if (LOAD == LOAD_NA_256)
        LOAD_ASM(".L1::no_allocate.L2::256B");
    else
        asm volatile(
            "ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
            : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
            : "l"(__cvta_generic_to_global(from)), "l"(policy));
    return value;
}

template <store STORE>
static __device__ __forceinline__ void put(uint4 *to, uint4 value, uint64_t policy)
{
    if (STORE == STORE_PLAIN)
        *to = value;
    else if (STORE == STORE_CS)
        __stcs(to, value);
    else
        asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(
                         __cvta_generic_to_global(to)),
                     "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "l"(policy)
                     : "memory");
}

/* All threads of the block: copy `vectors` of 16 bytes, UNROLL a thread and round. */
template <int UNROLL, load LOAD, store STORE, shape SHAPE>
static __device__ __forceinline__ void vectors_copy(uint4 *to, const uint4 *from, uint32_t vectors,
                                                    uint64_t policy)
{
    const uint32_t round = UNROLL * blockDim.x;
    const uint32_t step = SHAPE == BY_WARP ? 32 : blockDim.x;
    const uint32_t first =
        SHAPE == BY_WARP ? threadIdx.x / 32 * 32 * UNROLL + threadIdx.x % 32 : threadIdx.x;
    const uint32_t whole = vectors & ~(round - 1); /* threads are a power of two */
    uint4 held[UNROLL], next[UNROLL];

    if (SHAPE == PIPELINED && whole > 0)
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            next[i] = get<LOAD>(from + first + i * step, policy);
    for (uint32_t at = first; at < whole; at += round) {
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            held[i] = SHAPE == PIPELINED ? next[i] : get<LOAD>(from + at + i * step, policy);
        if (SHAPE == PIPELINED && at + round < whole)
#pragma unroll
            for (int i = 0; i < UNROLL; i++)
                next[i] = get<LOAD>(from + at + round + i * step, policy);
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            put<STORE>(to + at + i * step, held[i], policy);
    }
    for (uint32_t at = whole + threadIdx.x; at < vectors; at += blockDim.x)
        put<STORE>(to + at, get<LOAD>(from + at, policy), policy);
}

static __device__ __forceinline__ place place_spread(const kvi_kernel_blocks &list, uint32_t piece)
{
    const uint32_t which = piece / list.count;

    return place_of(list, (piece - which * list.count) * list.pieces + which);
}

static __device__ __forceinline__ place place_shifted(const kvi_kernel_blocks &list, uint32_t piece)
{
    place at;

    if (list.pieces & (list.pieces - 1))
        return place_of(list, piece);
    at.block = piece >> (31 - __clz(list.pieces));
    at.offset = (uint64_t)(piece & (list.pieces - 1)) * list.piece_bytes;
    at.bytes = min((uint64_t)list.piece_bytes, list.bytes - at.offset);
    return at;
}

template <shape SHAPE>
static __device__ __forceinline__ place place_by(const kvi_kernel_blocks &list, uint32_t piece)
{
    return SHAPE == SPREAD    ? place_spread(list, piece)
           : SHAPE == SHIFTED ? place_shifted(list, piece)
                              : place_of(list, piece);
}

template <int UNROLL, load LOAD, store STORE, shape SHAPE>
static __device__ __forceinline__ void list_copy(const kvi_kernel_blocks &list)
{
    const uint32_t total = list.count * list.pieces;
    const uint64_t policy = policy_first();

    for (uint32_t piece = blockIdx.x; piece < total; piece += gridDim.x) {
        place at = place_by<SHAPE>(list, piece);

        vectors_copy<UNROLL, LOAD, STORE, SHAPE>((uint4 *)to_address(list, at),
                                                 (const uint4 *)from_address(list, at),
                                                 at.bytes / sizeof(uint4), policy);
    }
}

#define VECTORS(name, threads, ...)                                    \
    extern "C" __global__ void __launch_bounds__(threads)              \
        kvt_lab_##name(const __grid_constant__ kvi_kernel_blocks list) \
    {                                                                  \
        list_copy<__VA_ARGS__>(list);                                  \
    }

VECTORS(cs4, 256, 4, LOAD_CS, STORE_PLAIN, BY_THREAD)
VECTORS(cs4_cs, 256, 4, LOAD_CS, STORE_CS, BY_THREAD)
VECTORS(cs8, 512, 8, LOAD_CS, STORE_PLAIN, BY_THREAD)
VECTORS(cs16, 256, 16, LOAD_CS, STORE_PLAIN, BY_THREAD)
VECTORS(na4, 256, 4, LOAD_NA, STORE_PLAIN, BY_THREAD)
VECTORS(na4_cs, 256, 4, LOAD_NA, STORE_CS, BY_THREAD)
VECTORS(na4_256, 256, 4, LOAD_NA_256, STORE_PLAIN, BY_THREAD)
VECTORS(first4, 256, 4, LOAD_NA_FIRST, STORE_PLAIN, BY_THREAD)
VECTORS(na4_first, 256, 4, LOAD_NA, STORE_FIRST, BY_THREAD)
VECTORS(na8, 512, 8, LOAD_NA, STORE_PLAIN, BY_THREAD)
VECTORS(first8_first, 512, 8, LOAD_NA_FIRST, STORE_FIRST, BY_THREAD)
VECTORS(na16, 256, 16, LOAD_NA, STORE_PLAIN, BY_THREAD)
VECTORS(warp4, 256, 4, LOAD_NA, STORE_PLAIN, BY_WARP)
VECTORS(warp8, 512, 8, LOAD_NA, STORE_PLAIN, BY_WARP)
VECTORS(pipe4, 256, 4, LOAD_NA, STORE_PLAIN, PIPELINED)
VECTORS(pipe4_first, 256, 4, LOAD_NA_FIRST, STORE_FIRST, PIPELINED)
VECTORS(spread4, 256, 4, LOAD_NA, STORE_PLAIN, SPREAD)
VECTORS(shift4, 256, 4, LOAD_CS, STORE_PLAIN, SHIFTED)

/* ---- bulk copies through shared memory ---- */

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

static __device__ __forceinline__ uint64_t policy_normal()
{
    uint64_t policy;

    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

struct policies {
    uint64_t load;
    uint64_t store;
};

/* full: an mbarrier that completes when the bytes are in `stage`. */
static __device__ __forceinline__ void stage_load(uint32_t full, uint32_t stage, const char *from,
                                                  uint32_t bytes, uint64_t policy)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(stage),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(full), "l"(policy)
                 : "memory");
}

static __device__ __forceinline__ void stage_wait(uint32_t full, uint32_t parity)
{
    uint32_t done;

    do
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(full), "r"(parity)
                     : "memory");
    while (!done);
}

static __device__ __forceinline__ void stage_store(char *to, uint32_t stage, uint32_t bytes,
                                                   uint64_t policy)
{
    asm volatile(
        "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;\n\t"
        "cp.async.bulk.commit_group;" ::"l"(__cvta_generic_to_global(to)),
        "r"(stage), "r"(bytes), "l"(policy)
        : "memory");
}

static __device__ __forceinline__ void barriers_init(uint32_t full)
{
    for (uint32_t s = 0; s < KVT_LAB_BULK_STAGES; s++)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + 8 * s) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ void piece_load(const kvi_kernel_blocks &list, uint32_t piece, uint32_t full,
                                  uint32_t stage, uint64_t policy)
{
    place at = place_of(list, piece);

    stage_load(full, stage, from_address(list, at), at.bytes, policy);
}

/* Loads of a thread block's pieces run STAGES ahead of its stores; a stage is loaded again when
 * the store before the last has read it: n-th use of its barrier, parity n & 1. */
static __device__ void bulk_on(const kvi_kernel_blocks &list, uint32_t memory, policies policy)
{
    const uint32_t stages = KVT_LAB_BULK_STAGES;
    const uint32_t total = list.count * list.pieces;
    const uint32_t full = memory + stages * list.piece_bytes;

    barriers_init(full);
    for (uint32_t s = 0; s < stages && blockIdx.x + s * gridDim.x < total; s++)
        piece_load(list, blockIdx.x + s * gridDim.x, full + 8 * s, memory + s * list.piece_bytes,
                   policy.load);
    for (uint32_t k = 0; blockIdx.x + k * gridDim.x < total; k++) {
        uint32_t s = k % stages;
        uint32_t before = (k + stages - 1) % stages; /* the stage of piece k − 1, to be refilled */
        uint32_t next = blockIdx.x + (k + stages - 1) * gridDim.x;
        place at = place_of(list, blockIdx.x + k * gridDim.x);

        stage_wait(full + 8 * s, k / stages & 1);
        stage_store(to_address(list, at), memory + s * list.piece_bytes, at.bytes, policy.store);
        if (k > 0 && next < total) {
            asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
            piece_load(list, next, full + 8 * before, memory + before * list.piece_bytes,
                       policy.load);
        }
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* A piece comes in STAGES parts or fewer, all asked for at once, each stored when it is there.
 * Bit s of `parity`: that of the barrier's next use. */
static __device__ void bulk_one(const kvi_kernel_blocks &list, uint32_t memory, policies policy)
{
    const uint32_t total = list.count * list.pieces;
    const uint32_t part = list.piece_bytes / KVT_LAB_BULK_STAGES;
    const uint32_t full = memory + list.piece_bytes;
    uint32_t parity = 0;

    barriers_init(full);
    for (uint32_t piece = blockIdx.x; piece < total; piece += gridDim.x) {
        place at = place_of(list, piece);

        for (uint32_t s = 0; s * part < at.bytes; s++)
            stage_load(full + 8 * s, memory + s * part, from_address(list, at) + s * part,
                       min(part, at.bytes - s * part), policy.load);
        for (uint32_t s = 0; s * part < at.bytes; s++) {
            stage_wait(full + 8 * s, parity >> s & 1);
            parity ^= 1u << s;
            stage_store(to_address(list, at) + s * part, memory + s * part,
                        min(part, at.bytes - s * part), policy.store);
        }
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

#define BULK_BODY(how, load, store)                          \
    extern __shared__ __align__(128) unsigned char memory[]; \
                                                             \
    if (threadIdx.x == 0)                                    \
    how(list, (uint32_t)__cvta_generic_to_shared(memory), policies{load(), store()})

#else
/* Not made for other devices, but right on them. */
#define BULK_BODY(how, load, store) list_copy<4, LOAD_CS, STORE_PLAIN, BY_THREAD>(list)
#endif

#define BULK(name, how, load, store)                                   \
    extern "C" __global__ void __launch_bounds__(KVT_LAB_BULK_THREADS) \
        kvt_lab_##name(const __grid_constant__ kvi_kernel_blocks list) \
    {                                                                  \
        BULK_BODY(how, load, store);                                   \
    }

BULK(bulk_on, bulk_on, policy_normal, policy_normal)
BULK(bulk_on_first, bulk_on, policy_first, policy_first)
BULK(bulk_one, bulk_one, policy_normal, policy_normal)
BULK(bulk_one_load_first, bulk_one, policy_first, policy_normal)
BULK(bulk_one_first, bulk_one, policy_first, policy_first)
