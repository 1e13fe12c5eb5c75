/* SPDX-License-Identifier: Apache-2.0
 *
 * Which portable kernels there are. A file a pair of head dims instantiates them, so that they are
 * compiled side by side; portable.cu finds them here.
 */
#ifndef KVA_CUDA_PORTABLE_SHAPES_CUH
#define KVA_CUDA_PORTABLE_SHAPES_CUH

#include <stdint.h>

struct kva_portable_kernel {
    const void *function;
    uint32_t shared_bytes;
    uint32_t threads;
    uint32_t rows;   /* packed rows of a tile */
    uint32_t tokens; /* of a tile of the map */
    uint32_t per_sm; /* thread blocks that registers allow */
};

struct kva_portable_shape {
    uint32_t head_dim_k;
    uint32_t head_dim_v;
    uint32_t slices;    /* of head_dim_v, one a thread block */
    uint32_t dtype;     /* of q, out, and of K and V unless is_narrow */
    uint32_t is_narrow; /* K and V are e4m3 or int8 */
    struct kva_portable_kernel few;
    struct kva_portable_kernel many;
};

#define KVA_PORTABLE_FEW_ROWS 16u

/* Each a file's; four shapes: bf16, fp16, and both over a narrow cache. */
#define KVA_PORTABLE_TABLES(X) \
    X(64_64) X(80_80) X(96_96) X(128_128) X(192_128) X(192_192) X(256_256) X(576_512)
#define KVA_PORTABLE_DECLARE(dims) extern const struct kva_portable_shape kva_portable_##dims[4];
KVA_PORTABLE_TABLES(KVA_PORTABLE_DECLARE)

#endif
