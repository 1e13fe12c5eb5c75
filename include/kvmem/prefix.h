/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefix sharing: full, committed blocks get a name, and are found by it in every process.
 *
 *   root   = SHA-256(tag ‖ fingerprint ‖ geometry ‖ dtypes and scales ‖ group ‖ adapter ‖ salt)
 *   name 0 = SHA-256(tag ‖ root   ‖ token count ‖ tokens of block 0 [‖ extra key])
 *   name i = SHA-256(tag ‖ name i−1 ‖ token count ‖ tokens of block i [‖ extra key])
 *
 * Names are the same in every process and after every restart; equal names mean equal K and V.
 * (The chain over blocks as in vLLM's automatic prefix caching; cryptographic, so that a
 * collision cannot be made.)
 */
#ifndef KVMEM_PREFIX_H
#define KVMEM_PREFIX_H

#include <kvmem/seq.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvmem_root_options {
    uint32_t size;          /* sizeof(struct kvmem_root_options) */
    uint32_t group;         /* 0 */
    const void *adapter;    /* LoRA or other adapter identity, adapter_bytes of it; may be NULL */
    const void *salt;       /* isolates tenants inside a space, salt_bytes of it; may be NULL */
    uint32_t adapter_bytes; /* 0 .. 4,096 */
    uint32_t salt_bytes;    /* 0 .. 4,096 */
};

/* The root of a chain. `options` may be NULL. INVALID. Costs one hash. */
KVMEM_API int kvmem_name_root(const struct kvmem_space *space,
                              const struct kvmem_root_options *options, struct kvmem_name *root);

/* Names of the full blocks in tokens[0 .. token_count): names[i] for i < token_count ÷
 * block_tokens. `parent`: the root, or the name of the block before tokens[0]. `extra`: what
 * besides the tokens shaped these blocks, such as an image digest with its shape (NULL, or
 * extra_bytes in 1 .. 4,096; hashed into each of them). Returns the number of names. Pure. */
KVMEM_API int kvmem_name_blocks(const struct kvmem_name *parent, uint32_t block_tokens,
                                const uint32_t *tokens, uint32_t token_count, const void *extra,
                                uint32_t extra_bytes, struct kvmem_name *names);

/* Find the longest run names[0 .. hits) of entries that are there, lease them to the caller and
 * map them. blocks (count) int32: their indices. *ready (may be NULL): to wait for before reading,
 * one fence for all of them. The caller owns one reference each: give them to kvmem_seq_attach or
 * kvmem_prefix_release. Sends the outbox first. Returns hits (0 .. count), or INVALID, TIMED_OUT,
 * DAEMON_LOST, PROTOCOL, NO_MEMORY, SYSTEM (a segment could not be mapped) or LIMIT (more than
 * 1,024 look-ups, 256 lanes of one, or 512 producers are waited for); nothing stays leased then.
 * Blocks for one round trip per 1,024 names, and one more when segments or producers are new to
 * this process.
 * Blocks that another client has not written yet are guarded: a sequence that they are attached to,
 * and its forks, cannot publish before *ready has passed. */
KVMEM_API int kvmem_prefix_lookup(struct kvmem_space *space, uint32_t count,
                                  const struct kvmem_name *names, int32_t *blocks,
                                  struct kvmem_fence *ready);

/* The same without leases or mappings: how many would hit now. For routers. */
KVMEM_API int kvmem_prefix_peek(struct kvmem_space *space, uint32_t count,
                                const struct kvmem_name *names);

/* Put `count` leased blocks in front of an empty sequence; its marks become count ×
 * block_tokens. Takes the references over. INVALID when it is not empty, LIMIT as in lookup; with a
 * region LIMIT beyond its tokens, TIMED_OUT for the fence of a truncate, codes of opening one. */
KVMEM_API int kvmem_seq_attach(struct kvmem_space *space, struct kvmem_seq seq, uint32_t count,
                               const int32_t *blocks);

/* Give back references that were not attached. OUTBOX_FULL, BUSY as in kvmem_seq_free,
 * NO_MEMORY. */
KVMEM_API int kvmem_prefix_release(struct kvmem_space *space, uint32_t count, const int32_t *blocks,
                                   struct kvmem_fence fence);

/* Name the blocks [first_block, first_block + count) of the sequence. They must be full and
 * committed (INVALID); from now on they never change. A record in the outbox: the answer comes
 * with a later dispatch. Blocks that are entries already are passed over. `fence`: the work that
 * writes them, NONE, HOST, STREAM or TIMELINE of this client (INVALID else); until it has passed
 * others find them with it, and their segments stay with this client. BUSY: the sequence was
 * attached to blocks that their producer has not written yet, or as in kvmem_seq_free; STALE: that
 * producer died before. OUTBOX_FULL, NO_MEMORY, DAEMON_LOST. */
KVMEM_API int kvmem_seq_publish(struct kvmem_space *space, struct kvmem_seq seq,
                                uint32_t first_block, uint32_t count,
                                const struct kvmem_name *names, struct kvmem_fence fence);

enum kvmem_publish_state {
    KVMEM_PUBLISHED = 0,      /* the block is an entry now */
    KVMEM_PUBLISH_EXISTS = 1, /* another block has this name; this one stays private */
    KVMEM_PUBLISH_REFUSED = 2 /* not the writer of it, or a limit; this one stays private */
};

struct kvmem_publish_result {
    int32_t block;
    uint32_t state; /* enum kvmem_publish_state */
};

/* Take up to `limit` answers to publish, oldest first; when the caller never asks, the oldest
 * are dropped (the counts in kvmem_space_stats stay exact). Returns the number taken. */
KVMEM_API int kvmem_publish_results(struct kvmem_space *space, uint32_t limit,
                                    struct kvmem_publish_result *results);

/* Keep entries from being evicted: until `lifetime_ns` from now (0: until unpinned or the
 * client goes). Returns how many of the names were there and are pinned now; *pin ends it.
 * QUOTA, LIMIT, DAEMON_LOST. Blocks for a round trip. */
KVMEM_API int kvmem_prefix_pin(struct kvmem_space *space, uint32_t count,
                               const struct kvmem_name *names, int64_t lifetime_ns, uint64_t *pin);
/* End a pin. NOT_FOUND (it ended already), DAEMON_LOST, TIMED_OUT. Blocks for a round trip. */
KVMEM_API int kvmem_prefix_unpin(struct kvmem_space *space, uint64_t pin);

#ifdef __cplusplus
}
#endif
#endif
