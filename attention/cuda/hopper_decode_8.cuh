/* SPDX-License-Identifier: Apache-2.0
 *
 * Quantised K and V in Hopper's decode: from 8 bits in shared memory to f16 in the registers of the
 * A operand. e4m3 and int8 are exact in f16; scales go into scores and P.
 *
 * The order of what is summed over may be any, as long as both operands have it:
 *   K   lane l of four has elements 32 (l mod 4) ..+ 31 of its tokens, two loads of 16 bytes each;
 *       word s of them is its share of step s. hopper_store_q() puts Q where that meets it.
 *   V   a thread has a word of 4 elements of each of its tokens: its 4 rows of O^T. Words of two
 *       tokens make two pairs by one permutation each.
 */
#ifndef KVA_HOPPER_DECODE_8_CUH
#define KVA_HOPPER_DECODE_8_CUH

#include "hopper_decode_shape.cuh"

#ifdef HOPPER_HAVE_SM90A

/* Two 8-bit values, the low half of `pair`, as f16. */
template <class C> static __device__ __forceinline__ uint32_t hopper_widen(uint32_t pair)
{
    uint32_t out;

    if constexpr (std::is_same<C, int8_t>::value) {
        const __half2 bias = __halves2half2(__ushort_as_half(0x6480), __ushort_as_half(0x6480));
        /* 0x6400 + u is 1,024 + u in f16; the bias is 1,024 + 128. */
        uint32_t biased = __byte_perm(pair ^ 0x8080, 0x64646464, 0x4140);
        __half2 value = __hsub2(*(__half2 *)&biased, bias);

        out = *(uint32_t *)&value;
    } else {
        asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\n"
            "cvt.rn.f16x2.e4m3x2 %0, low;\n}"
            : "=r"(out)
            : "r"(pair));
    }
    return out;
}

/* K of a tile as A (64 tokens × D). */
template <class S>
static __device__ __forceinline__ void hopper_load_k(const uint8_t *tile, const hopper_thread &me,
                                                     hopper_operand<S, S::D / 16> &out)
{
    uint32_t first = me.column * 16; /* 32 bytes a lane of four */

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint8_t *row = tile;
        uint32_t words[8];

        *(uint4 *)words = *(const uint4 *)(row + hopper_swizzle(me.row + 8 * i, first));
        *(uint4 *)(words + 4) = *(const uint4 *)(row + hopper_swizzle(me.row + 8 * i, first + 16));
#pragma unroll
        for (int step = 0; step < 8; step++) {
            out.a[step][i] = hopper_widen<typename S::C>(words[step]);
            out.a[step][i + 2] = hopper_widen<typename S::C>(words[step] >> 16);
        }
    }
}

/* V of a tile, transposed, as A: steps of half 0, then of half 1 of the rows of O^T. */
template <class S>
static __device__ __forceinline__ void hopper_load_v(const uint8_t *tile, const hopper_thread &me,
                                                     hopper_operand<S, 8> &out)
{
    uint32_t byte = (me.warp * 8 + me.row % 8) * 4;

#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
        for (int i = 0; i < 2; i++) { /* tokens 2 (l mod 4) and the next, and 8 behind them */
            uint32_t token = step * 16 + me.column + 8 * i;
            uint32_t low = *(const uint32_t *)(tile + hopper_swizzle(token, byte));
            uint32_t high = *(const uint32_t *)(tile + hopper_swizzle(token + 1, byte));
            uint32_t first = __byte_perm(low, high, 0x5140), last = __byte_perm(low, high, 0x7362);

            out.a[step][2 * i] = hopper_widen<typename S::C>(first);
            out.a[step][2 * i + 1] = hopper_widen<typename S::C>(first >> 16);
            out.a[step + 4][2 * i] = hopper_widen<typename S::C>(last);
            out.a[step + 4][2 * i + 1] = hopper_widen<typename S::C>(last >> 16);
        }
}

static __device__ __forceinline__ float hopper_float(uint32_t bits, __half)
{
    return __half2float(__ushort_as_half((uint16_t)bits));
}

static __device__ __forceinline__ float hopper_float(uint32_t bits, __nv_bfloat16)
{
    return __uint_as_float(bits << 16);
}

/* Elements [d, d + 8) of a column of Q, divided by the power of two of the column's largest. The 16
 * lanes that have a column of it call together. */
template <class S>
static __device__ __forceinline__ void hopper_store_q(hopper_decode_shared<S> &shared,
                                                      uint32_t column, uint32_t d, uint4 packed)
{
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
    uint32_t largest = 0, inverse;
    float e[8];

#pragma unroll
    for (int i = 0; i < 8; i++) {
        e[i] = hopper_float(words[i / 2] >> i % 2 * 16 & 0xffff, typename S::T());
        largest = max(largest, __float_as_uint(e[i]) & 0x7fffffff);
    }
#pragma unroll
    for (int step = 1; step < S::D / 8; step *= 2)
        largest = max(largest, __shfl_xor_sync(~0u, largest, step));
    largest &= 0x7f800000;
    if (largest == 0x7f800000) /* infinity or NaN: they reach the scores as they are */
        largest = 0x3f800000;
    inverse = largest ? 0x7f000000 - largest : 0;
    if (d == 0)
        shared.q_factor[column] = __uint_as_float(largest);
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        uint32_t step = (d + i) % 32 / 4, lane = (d + i) / 32;
        uint32_t k = step * 16 + lane * 2 + i % 4 / 2 * 8;
        float scale = __uint_as_float(inverse);

        *(__half2 *)(shared.q[k / 64] + hopper_swizzle(column, k % 64 * 2)) =
            __floats2half2_rn(e[i] * scale, e[i + 1] * scale);
    }
}

/* ---- scales, by the producer ---- */

static __device__ __forceinline__ float hopper_load_scale(const void *from, uint32_t dtype,
                                                          uint64_t at)
{
    if (dtype == KVMEM_DTYPE_FP32)
        return __ldg((const float *)from + at);
    if (dtype == KVMEM_DTYPE_FP16)
        return __half2float(__ldg((const __half *)from + at));
    return __bfloat162float(__ldg((const __nv_bfloat16 *)from + at));
}

/* Scales of the tile at `token` beside K in `slot`, which is empty. Lane x holds the block at entry
 * held + x of the table. */
template <class S>
static __device__ __forceinline__ void hopper_fill_scales(const hopper_decode &p,
                                                          hopper_decode_shared<S> &shared,
                                                          const kva_task &task, uint32_t slot,
                                                          uint32_t token, int32_t blocks,
                                                          uint32_t held)
{
    uint32_t lane = threadIdx.x % 32;
    hopper_scales &to = shared.scales[slot / 2];
    float k[2] = {1, 1}, v[2] = {1, 1};

#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t t = token + lane + 32 * i;
        int32_t block = __shfl_sync(~0u, blocks, t / p.block_tokens - held);
        uint64_t at = (uint64_t)block * p.scale_block_stride +
                      task.unit_head * p.scale_head_stride +
                      t % p.block_tokens * p.scale_token_stride;

        if (t < task.kv_end) {
            k[i] = hopper_load_scale(p.k_scale, p.scale_dtype, at);
            v[i] = hopper_load_scale(p.v_scale, p.scale_dtype, at);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        /* A scale of 0 must not become an infinity in the sum. */
        float size = fabsf(v[i]) < 1e-30f ? 1e-30f : fabsf(v[i]);

        to.k[lane + 32 * i] = k[i];
        to.shift[lane + 32 * i] = log2f(size);
        to.inverse[lane + 32 * i] = copysignf(1 / size, v[i]);
    }
    __syncwarp();
    if (!lane)
        hopper_arrive(hopper_shared(&shared.full[slot]));
}

#endif /* HOPPER_HAVE_SM90A */
#endif
