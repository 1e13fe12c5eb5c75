/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensor maps of a paged cache, as Hopper's copy engine takes them.
 */
#ifndef KVA_HOPPER_MAP_CUH
#define KVA_HOPPER_MAP_CUH

#include <cuda.h>

#include "../internal.h"

/* Five dimensions, the first one contiguous, rows of 128 bytes that are swizzled in shared memory.
 * Strides are bytes, of dimensions 1 to 4. */
struct hopper_map {
    CUtensorMapDataType type;
    const void *base;
    cuuint64_t dims[5];
    cuuint64_t strides[4];
    cuuint32_t box[5];
};

/* NOT_SUPPORTED when a stride of K or V is more than a tensor map can have. */
int hopper_map_check(const struct kva_cache &cache);

/* 0 or SYSTEM. */
int hopper_map_encode(const struct hopper_map &what, CUtensorMap *out);

/* Of BF16 and FP16; what has 8 bits is copied as bytes. */
static inline CUtensorMapDataType hopper_map_type(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_BF16   ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
           : dtype == KVMEM_DTYPE_FP16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

#endif
