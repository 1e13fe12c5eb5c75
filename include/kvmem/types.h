/* SPDX-License-Identifier: Apache-2.0
 *
 * Ids, element types and layouts that all other headers share.
 *
 *   device   a GPU, or the host pretending to be one
 *   segment  one physical allocation of a device; written by one client at a time
 *   space    a model's KV geometry, its quota and its sharing domain
 *   block    a fixed slot in a segment: K and V of `block_tokens` tokens, all layers of a group
 *   group    the layers of a space that have the same attention window and bytes a token
 *   shard    one device's part of a space (a tensor-parallel rank)
 *   sequence a request's tokens and its block table
 *   entry    a sealed block with a name, found by other sequences and processes
 */
#ifndef KVMEM_TYPES_H
#define KVMEM_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include <kvmem/error.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvmem_client; /* a connection to a daemon, or an embedded directory */
struct kvmem_space;  /* an opened space of a client */

/* A sequence of one space. A freed id is refused with KVMEM_E_STALE, never taken for another. */
struct kvmem_seq {
    uint32_t index;
    uint32_t generation; /* 0 = no sequence */
};

/* Block index: position i lies at base + i × index_stride_bytes in every process. */
#define KVMEM_BLOCK_NONE (-1)

/* Element types of K and V, and of scales. */
enum kvmem_dtype {
    KVMEM_DTYPE_NONE = 0, /* no scales; as dtype_v: no V at all (a latent cache) */
    KVMEM_DTYPE_BF16 = 1,
    KVMEM_DTYPE_FP16 = 2,
    KVMEM_DTYPE_FP32 = 3,
    KVMEM_DTYPE_FP8_E4M3 = 4,
    KVMEM_DTYPE_INT8 = 5
};

/* Where the scales of quantised K and V lie. */
enum kvmem_scale_mode {
    KVMEM_SCALE_NONE = 0,      /* unquantised */
    KVMEM_SCALE_TENSOR = 1,    /* one scale a tensor, kept by the engine, no bytes in a block */
    KVMEM_SCALE_HEAD = 2,      /* one a block, layer and head, behind the layer's K and V */
    KVMEM_SCALE_TOKEN_HEAD = 3 /* one a token and head, behind the layer's K and V;
                                   in TOKEN_MAJOR behind those of each token */
};

/* Order of the elements inside a block; (slow, ..., fast). */
enum kvmem_layout {
    KVMEM_LAYOUT_PAGE_HEAD_TOKEN = 1, /* (layer, K|V, head, token, dim) */
    KVMEM_LAYOUT_PAGE_TOKEN_HEAD = 2, /* (layer, K|V, token, head, dim) */
    KVMEM_LAYOUT_TOKEN_MAJOR = 3,     /* (token, layer, K|V, head, dim): for regions */
    KVMEM_LAYOUT_PER_LAYER = 4        /* a block in each layer's own range; not yet built */
};

/* 256-bit name of an entry: a chained hash, see <kvmem/prefix.h>. */
struct kvmem_name {
    uint8_t bytes[32];
};

/* Identity of a client session, secret between the processes that belong to it. */
struct kvmem_session_token {
    uint8_t bytes[16];
};

/* Bytes of one element of `dtype`; 0 for KVMEM_DTYPE_NONE and for unknown values. */
KVMEM_API uint32_t kvmem_dtype_bytes(enum kvmem_dtype dtype);

/* "major.minor.patch" of the library that is loaded; static storage. */
KVMEM_API const char *kvmem_version(void);

#ifdef __cplusplus
}
#endif
#endif
