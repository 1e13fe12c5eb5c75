/* SPDX-License-Identifier: Apache-2.0
 *
 * Encoding tensor maps: by the driver, whose function is looked up once.
 */
#include "hopper_map.cuh"
#include "launch.cuh"

#define STRIDE_LIMIT (UINT64_C(1) << 38) /* elements of at most 2 bytes; maps have 40 bits */

using encode_function = decltype(&cuTensorMapEncodeTiled);

static encode_function find_encode()
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t result = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                          12000, cudaEnableDefault, &found);

    if (kva_cuda_result(result, "cuTensorMapEncodeTiled") || found != cudaDriverEntryPointSuccess)
        return nullptr;
    return (encode_function)function;
}

int hopper_map_check(const struct kva_cache &c)
{
    const struct {
        const char *field;
        uint64_t value;
    } strides[] = {{"cache.block_stride", c.block_stride},
                   {"cache.k_head_stride", c.k_head_stride},
                   {"cache.k_token_stride", c.k_token_stride},
                   {"cache.v_head_stride", c.v_head_stride},
                   {"cache.v_token_stride", c.v_token_stride}};

    for (const auto &stride : strides)
        if (stride.value >= STRIDE_LIMIT)
            return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                                 "%s: %llu, Hopper's kernels take less than 2^38 elements",
                                 stride.field, (unsigned long long)stride.value);
    return 0;
}

int hopper_map_encode(const struct hopper_map &what, CUtensorMap *out)
{
    static const encode_function function = find_encode();
    const cuuint32_t steps[] = {1, 1, 1, 1, 1};
    CUresult code;

    if (!function)
        return kva_error_set(KVMEM_E_SYSTEM, "cuTensorMapEncodeTiled: the driver has none");
    code = function(out, what.type, 5, (void *)what.base, what.dims, what.strides, what.box, steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code)
        return kva_error_set(KVMEM_E_SYSTEM, "cuTensorMapEncodeTiled: the driver says %d",
                             (int)code);
    return 0;
}
