/* SPDX-License-Identifier: Apache-2.0
 *
 * One line of a portable_K_V.cu: the four shapes of its head dims.
 *
 *   MB     rows of a warp of the many-row kernel ÷ 16, for 16-bit caches
 *   BN     tokens of its tile
 *   WARPS  of the few-row kernel
 */
#ifndef KVA_CUDA_PORTABLE_DEFINE_CUH
#define KVA_CUDA_PORTABLE_DEFINE_CUH

#include "portable_few.cuh"
#include "portable_many.cuh"
#include "portable_shapes.cuh"

template <typename S> constexpr struct kva_portable_kernel kva_few_of()
{
    return {(const void *)kva_few_kernel<S>, sizeof(S), S::THREADS, S::ROWS, S::BN, S::PER_SM};
}

template <typename S> constexpr struct kva_portable_kernel kva_many_of()
{
    return {(const void *)kva_many_kernel<S>, sizeof(S), S::THREADS, S::ROWS, S::BN, 2};
}

#define KVA_PORTABLE_SHAPE(DK, DV, SLICES, TYPE, NAME, NARROW, MB, BN, WARPS) \
    {                                                                         \
        DK, DV *SLICES, SLICES, NAME, NARROW,                                 \
            kva_few_of<kva_few<TYPE, DK, DV, WARPS, 2, NARROW>>(),            \
            kva_many_of<kva_many<TYPE, DK, DV, MB, BN, NARROW>>()             \
    }

#define KVA_PORTABLE_DEFINE(NAME, DK, DV, SLICES, MB, BN, WARPS)                                   \
    const struct kva_portable_shape kva_portable_##NAME[4] = {                                     \
        KVA_PORTABLE_SHAPE(DK, DV, SLICES, __nv_bfloat16, KVMEM_DTYPE_BF16, false, MB, BN, WARPS), \
        KVA_PORTABLE_SHAPE(DK, DV, SLICES, __half, KVMEM_DTYPE_FP16, false, MB, BN, WARPS),        \
        KVA_PORTABLE_SHAPE(DK, DV, SLICES, __nv_bfloat16, KVMEM_DTYPE_BF16, true, 1, BN, WARPS),   \
        KVA_PORTABLE_SHAPE(DK, DV, SLICES, __half, KVMEM_DTYPE_FP16, true, 1, BN, WARPS)};

#endif
