/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode on Hopper, int8 K and V.
 */
#include "hopper_decode.cuh"

hopper_decode_kernel hopper_decode_int8(uint32_t dtype, uint32_t columns)
{
    if (dtype == KVMEM_DTYPE_BF16)
        return hopper_decode_pick<__nv_bfloat16, int8_t, 128>(columns);
    return hopper_decode_pick<__half, int8_t, 128>(columns);
}
