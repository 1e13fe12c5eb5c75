/* SPDX-License-Identifier: Apache-2.0
 *
 * Merging partial results on the CPU.
 */
#include "../internal.h"

int kva_merge_cpu(const struct kva_merge *what, const void *parts, const float *part_lse, void *out,
                  float *lse)
{
    (void)what, (void)parts, (void)part_lse, (void)out, (void)lse;
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "device: the CPU merges nothing in this build");
}
