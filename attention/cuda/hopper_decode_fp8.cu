/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode on Hopper, fp8 e4m3 K and V.
 */
#include <cuda_fp8.h>

#include "hopper_decode.cuh"

hopper_decode_kernel hopper_decode_fp8(uint32_t dtype, uint32_t columns)
{
    if (dtype == KVMEM_DTYPE_BF16)
        return hopper_decode_pick<__nv_bfloat16, __nv_fp8_e4m3, 128>(columns);
    return hopper_decode_pick<__half, __nv_fp8_e4m3, 128>(columns);
}
