/* SPDX-License-Identifier: Apache-2.0
 *
 * A space: the geometry of a model's KV cache, and blocks of it for this client.
 *
 *   address of block i = base + i × index_stride_bytes          (64-bit arithmetic)
 *
 *   segment 0                       segment 1
 *   ├ block 0 ┬ block 1 ┬ ... n-1 ┤ ├ block n ┬ ...
 *   a block, page-major:   layer 0 [K | V | scales], layer 1 [K | V | scales], ...
 *   a block, token-major:  token 0 [layer 0 [K | V | scales], layer 1 ...], token 1 [...], ...
 *
 * Every block is mapped read-only at the base, for as long as it is mapped: a stray write kills the
 * writer alone. The blocks that this client owns are mapped once more, to be written, by the same
 * arithmetic from a base of their own:
 *
 *                  segment 0  segment 1  segment 2  segment 3
 *   base           |  read  | |  read  | |        | |  read  |    1: others' (or handed in)
 *   write base     | write  | |        | |        | | write  |    2: nobody's here
 *
 * Both bases and the strides never change while the space is open: CUDA graphs may hold them. What
 * was written at a write address is seen at the read address by kernels that come later on the
 * stream, or behind a fence; inside one kernel it is not; on the host at once. A write address is
 * there until its block's segment is handed in, which the library does by itself once no block of
 * it is used: a kernel that uses one, be it to read, must be over when the fence passes that its
 * block is published or freed with. Who reads takes read addresses: those go on.
 */
#ifndef KVMEM_SPACE_H
#define KVMEM_SPACE_H

#include <kvmem/fence.h>
#include <kvmem/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVMEM_GROUP_LIMIT 8
#define KVMEM_SHARD_LIMIT 16

/* The layers of a space that share window and bytes a token. */
struct kvmem_group_options {
    uint32_t layer_count;   /* 1 .. 1,024 */
    uint32_t kv_head_count; /* 1 .. 1,024; 1 for a latent cache */
    uint32_t head_dim_k;    /* elements, 1 .. 4,096; a latent cache: latent + rope, e.g. 576 */
    uint32_t head_dim_v;    /* elements, 0 .. 4,096; 0 = no V (with dtype_v NONE) */
    uint32_t dtype_k;       /* enum kvmem_dtype */
    uint32_t dtype_v;       /* enum kvmem_dtype */
    uint32_t scale_mode;    /* enum kvmem_scale_mode */
    uint32_t scale_dtype;   /* NONE, FP16, BF16 or FP32; NONE exactly when mode is NONE or TENSOR */
    uint32_t window_tokens; /* 0 = full attention; else not yet supported */
    uint32_t reserved;      /* 0 */
};

struct kvmem_space_options {
    uint32_t size;             /* sizeof(struct kvmem_space_options) */
    uint32_t layout;           /* enum kvmem_layout; 0 = PAGE_HEAD_TOKEN */
    const char *name;          /* 1 .. 63 bytes: clients with the same name and domain share */
    const char *domain;        /* sharing domain, at most 31 bytes; NULL = "default" */
    uint8_t fingerprint[32];   /* of the model's weights and config; part of every entry's name */
    uint32_t block_tokens;     /* 1 .. 4,096 */
    uint32_t group_count;      /* 1; more: not yet supported */
    uint32_t shard_count;      /* 1; more: not yet supported */
    uint32_t shard_index;      /* 0 .. shard_count − 1 */
    uint64_t quota_bytes;      /* of device memory, for all clients of the space; 0 = the device */
    uint32_t flags;            /* 0 or KVMEM_SPACE_REGIONS: see <kvmem/region.h> */
    uint32_t device;           /* 0 = any: where the space is, else the emptiest; 1 + index */
    uint32_t low_water_blocks; /* dispatch asks for more below this many free; 0 = automatic */
    uint32_t refill_blocks;    /* and asks for this many; 0 = automatic (4 × low water) */
    uint32_t seq_limit;        /* live sequences of this client; 0 = 4,096; at most 1,048,576 */
    uint32_t reserved;         /* 0 */
    struct kvmem_group_options groups[KVMEM_GROUP_LIMIT];
};

/* One block a segment, which sequences may be mapped from (<kvmem/region.h>). A device of more
 * than 65,534 blocks is used up to so many. */
#define KVMEM_SPACE_REGIONS 1u

/* Where everything lies; all strides and offsets in bytes. */
struct kvmem_geometry {
    uint32_t size; /* sizeof(struct kvmem_geometry), set by the caller */
    uint32_t block_tokens;
    uint64_t block_bytes;        /* bytes of a block that carry data */
    uint64_t index_stride_bytes; /* from block i to block i + 1; ≥ block_bytes */
    uint64_t segment_bytes;      /* = blocks_per_segment × index_stride_bytes exactly */
    uint32_t blocks_per_segment;
    uint32_t segment_limit;      /* index range of the space, in segments */
    uint64_t layer_stride_bytes; /* from a layer to the next inside a block (of a token) */
    uint64_t v_offset_bytes;     /* from a layer's K to its V; 0 without V */
    uint64_t k_head_stride_bytes;
    uint64_t k_token_stride_bytes;
    uint64_t v_head_stride_bytes;
    uint64_t v_token_stride_bytes;
    uint64_t k_scale_offset_bytes; /* from a layer's K to its K scales (head, token), in
                                      TOKEN_MAJOR those of one token (head); 0 = none */
    uint64_t v_scale_offset_bytes; /* from a layer's K to its V scales; 0 = none */
    double padding_ratio;          /* 1 − block_bytes ÷ index_stride_bytes; ≤ 0.01 */
};

/* Compute the geometry of group `group` without opening anything, on a device of `device_bytes`
 * and `granule_bytes`. The segment is the multiple of the granule nearest to the target (the
 * smaller of 64 MiB and device_bytes ÷ 64), between half and five times of it, at which an exact
 * stride pads at most 1 %; with KVMEM_SPACE_REGIONS it is one block, a multiple of the granule
 * itself. KVMEM_E_INVALID names the field and its range; when no segment fits the detail names
 * the nearest block_tokens that works, with regions the smallest. Pure; any thread. */
KVMEM_API int kvmem_geometry_plan(const struct kvmem_space_options *options, uint32_t group,
                                  uint64_t device_bytes, uint64_t granule_bytes,
                                  struct kvmem_geometry *out);

/* Open the space `options->name`, creating it if it is new. Reserves address space, no memory.
 * INVALID (names the field and the range), NOT_SUPPORTED (names the field), EXISTS (the space
 * has another geometry: the field is named), LIMIT, QUOTA, DAEMON_LOST, TIMED_OUT, NO_MEMORY. */
KVMEM_API int kvmem_space_open(struct kvmem_client *client,
                               const struct kvmem_space_options *options, struct kvmem_space **out);

/* Free the client's sequences of the space, give its segments back, unmap. NULL is allowed. Waits
 * for fences that memory was given up with, at most the client's time limit: when one has not
 * passed by then, everything stays mapped until the process ends, and the daemon takes the memory
 * back then. */
KVMEM_API void kvmem_space_close(struct kvmem_space *space);

/* Fill *out (size set by the caller). INVALID: size or group. */
KVMEM_API int kvmem_space_geometry(const struct kvmem_space *space, uint32_t group,
                                   struct kvmem_geometry *out);

/* Address of block 0 of the group's index range in this process, to read; NULL for a wrong group or
 * shard. Blocks not held by the caller are not mapped. */
KVMEM_API void *kvmem_space_base(const struct kvmem_space *space, uint32_t group, uint32_t shard);

/* The same to write: what kernels that store K and V get. Blocks that are not the caller's alone
 * (looked up, published and handed in) are not mapped here. */
KVMEM_API void *kvmem_space_write_base(const struct kvmem_space *space, uint32_t group,
                                       uint32_t shard);

/* Index of the client's scratch block: writable, never in a sequence, for padded rows. Takes a
 * block at first use. An index, or OUT_OF_BLOCKS, REFILL_PENDING. */
KVMEM_API int32_t kvmem_space_scratch(struct kvmem_space *space, uint32_t group);

/* What a scheduler needs to admit requests; all in blocks of group 0. Filled in without IPC;
 * INVALID (size). */
struct kvmem_capacity {
    uint32_t size;              /* sizeof(struct kvmem_capacity), set by the caller */
    uint32_t is_refill_pending; /* 1: asked for more, no answer yet, or not mapped yet */
    uint64_t free_blocks;       /* can be appended to now, without any message */
    uint64_t used_blocks;       /* referenced by sequences of this client, or given up with a fence
                                   that has not passed; each counted once */
    uint64_t owned_blocks;      /* in segments that this client may write */
    uint64_t obtainable_blocks; /* upper bound of what the quota and the device could still give,
                                   as of the daemon's last answer */
};
KVMEM_API int kvmem_space_capacity(const struct kvmem_space *space, struct kvmem_capacity *out);

/* 1 when appending counts[i] tokens to seqs[i] for all i < n would succeed now, 0 when it lacks
 * blocks, or INVALID, STALE. `counts` NULL = one token each. Changes nothing. */
KVMEM_API int kvmem_space_can_append(const struct kvmem_space *space, uint32_t n,
                                     const struct kvmem_seq *seqs, const uint32_t *counts);

/* Ask for memory until at least `blocks` are free, waiting at most `timeout_ns` (0: ask and
 * return). 0 when they are; REFILL_PENDING (what comes later is kept for the caller),
 * OUT_OF_BLOCKS, QUOTA, INVALID (more than the index range), TIMED_OUT (the request could not be
 * sent), DAEMON_LOST, PROTOCOL, or what kept a segment from being created (SYSTEM, NO_MEMORY).
 * They stay until they are used or trimmed. Blocks; with a time limit it maps what it is granted on
 * the calling thread, with a helper too, and a driver call that has begun is not cut short. */
KVMEM_API int kvmem_space_reserve(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns);

/* Hand in every segment that holds no unpublished block of a live sequence, free blocks
 * included. Sends what was published first, and waits for the answers and for the fences of what
 * was given up or published, at most the client's time limit. Returns the number of segments handed
 * in, or TIMED_OUT, DAEMON_LOST. */
KVMEM_API int kvmem_space_trim(struct kvmem_space *space);

#ifdef __cplusplus
}
#endif
#endif
