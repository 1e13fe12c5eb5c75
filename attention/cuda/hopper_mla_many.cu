/* SPDX-License-Identifier: Apache-2.0
 *
 * Latent attention on Hopper, many rows × heads: the kernels.
 */
#include "hopper_mla_many.cuh"

hopper_mla_kernel hopper_mla_many(uint32_t packed)
{
    if (packed <= many_rows)
        return {(const void *)many_run<1>, many_rows, many_threads, sizeof(many_shared), 1, 4};
    return {(const void *)many_run<2>, 2 * many_rows, many_threads, sizeof(many_shared), 2, 4};
}
