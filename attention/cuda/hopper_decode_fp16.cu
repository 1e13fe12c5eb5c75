/* SPDX-License-Identifier: Apache-2.0
 *
 * Decode on Hopper, fp16.
 */
#include "hopper_decode.cuh"

hopper_decode_kernel hopper_decode_fp16(uint32_t head_dim, uint32_t columns)
{
    if (head_dim == 64)
        return hopper_decode_pick<__half, __half, 64>(columns);
    if (head_dim == 128)
        return hopper_decode_pick<__half, __half, 128>(columns);
    return {};
}
