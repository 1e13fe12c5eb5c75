/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode on Hopper, bf16.
 */
#include "hopper_decode.cuh"

hopper_decode_kernel hopper_decode_bf16(uint32_t head_dim, uint32_t columns)
{
    if (head_dim == 64)
        return hopper_decode_pick<__nv_bfloat16, __nv_bfloat16, 64>(columns);
    if (head_dim == 128)
        return hopper_decode_pick<__nv_bfloat16, __nv_bfloat16, 128>(columns);
    return {};
}
