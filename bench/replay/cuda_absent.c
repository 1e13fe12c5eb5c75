/* SPDX-License-Identifier: Apache-2.0
 *
 * Takes the place of the .cu files in a build without nvcc.
 */
#include "device.h"

#include <stdio.h>

int kvb_device_open_cuda(struct kvb_device *device, const struct kvb_shape *shape,
                         struct kvb_bases bases, const struct kvmem_device_info *info)
{
    *device = (struct kvb_device){.shape = shape, .base = bases.read, .write_base = bases.write};
    snprintf(device->error, sizeof(device->error),
             "%s: this kvmem-replay was built without nvcc and has no kernels; build it where nvcc "
             "is installed, or replay with --dry",
             info->name);
    return -1;
}

int kvb_cuda_vector(const struct kvb_shape *shape, uint64_t history, uint32_t layer, uint32_t is_v,
                    uint32_t head, uint64_t *out)
{
    (void)shape;
    (void)history;
    (void)layer;
    (void)is_v;
    (void)head;
    (void)out;
    return -1;
}
