/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine on a GPU, for tests and benchmarks: a client of a daemon that owns GPU memory, its
 * space and a stream. Blocks are 64 KiB a layer: 8 heads of 128 elements, K and V, 16 tokens,
 * bf16; 32 layers are Llama-3.1-8B's 2 MiB.
 *
 * A number names a prefix: its tokens, its names and its bytes (with the test's seed).
 */
#ifndef KVT_GPU_ENGINE_H
#define KVT_GPU_ENGINE_H

#include <kvmem.h>

#include "support/daemon.h"
#include "support/gpu/gpu.h"
#include "support/gpu/kernels.h"

#define KVT_GPU_BLOCK_TOKENS 16u
#define KVT_GPU_LAYER_BYTES  65536u /* of a block */
#define KVT_GPU_BLOCK_LIMIT  8192u  /* of a prefix */

struct kvt_gpu_engine {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    struct kvmem_name root;
    struct kvt_gpu_shape shape;
    void *stream;
    uint64_t seed; /* of all bytes; processes that share have the same */
};

struct kvt_gpu_engine_options {
    const char *socket_path;
    const char *name;   /* of the client; NULL: "engine" */
    const char *space;  /* NULL: "shared" */
    const char *domain; /* NULL: the default */
    uint64_t seed;
    uint64_t quota_bytes;
    uint32_t layers;       /* 0 = 32 */
    uint32_t client_flags; /* enum kvmem_client_flag */
    uint32_t space_flags;
    uint32_t layout; /* 0 = PAGE_TOKEN_HEAD */
    uint32_t device; /* as in kvmem_space_options */
    uint32_t low_water_blocks;
    uint32_t refill_blocks;
    uint32_t seq_limit;
};

/* Connect, open the space, make a stream; or death. */
void kvt_gpu_engine_open(struct kvt_gpu_engine *engine,
                         const struct kvt_gpu_engine_options *options);
void kvt_gpu_engine_close(struct kvt_gpu_engine *engine);

/* Whatever the checks here take of the device for themselves at their first use. */
void kvt_gpu_warm_up(struct kvt_gpu_engine *engine);

/* The API's codes, or death with what, code and detail. */
int kvt_gpu_must(int result, const char *what);

/* Rounds of a test: `count` over $KVMEM_ROUNDS_SHARE (1; on the fake GPU 10), one at least. There
 * blocks have an eighth of the layers and pools an eighth of the bytes, so that they hold as
 * many. */
uint32_t kvt_gpu_rounds(uint32_t count);

/* A kvmemd on the GPU of the test, or on several ("cuda:0,cuda:1"; NULL: the test's), with
 * --device-bytes in GiB and up to 4 further options before NULL (may be NULL); and an observer. */
void kvt_gpu_daemon_start(struct kvt_daemon *daemon, const char *devices, const char *device_bytes,
                          const char *const *options);

/* ---- memory ---- */

/* Dispatch until `blocks` are free for appending, at most `limit_ns`: 0 or the last code. */
int kvt_gpu_reserve(struct kvt_gpu_engine *engine, uint64_t blocks, int64_t limit_ns);

/* A sequence of `blocks` full blocks, appended and committed, bytes not written. */
struct kvmem_seq kvt_gpu_seq_new(struct kvt_gpu_engine *engine, uint32_t blocks);
/* Its table, which must have `count` blocks at least. Valid until the sequence changes. */
const int32_t *kvt_gpu_table(struct kvt_gpu_engine *engine, struct kvmem_seq seq, uint32_t count);
void kvt_gpu_seq_free(struct kvt_gpu_engine *engine, struct kvmem_seq seq,
                      struct kvmem_fence fence);

/* The first `count` blocks of the sequence, as those of a prefix. Valid as the table is. */
struct kvt_gpu_part kvt_gpu_part_of(struct kvt_gpu_engine *engine, struct kvmem_seq seq,
                                    uint32_t count, uint64_t prefix);

/* ---- prefixes ---- */

/* Names of the blocks [0, count). Static storage, count <= KVT_GPU_BLOCK_LIMIT. */
const struct kvmem_name *kvt_gpu_names(struct kvt_gpu_engine *engine, uint64_t prefix,
                                       uint32_t count);

/* Publish blocks [0, count) and dispatch until all are answered; all must be entries then. */
void kvt_gpu_publish(struct kvt_gpu_engine *engine, struct kvmem_seq seq, uint64_t prefix,
                     uint32_t count, struct kvmem_fence fence);

/* A sequence of `count` blocks of the prefix: appended, written, waited for, published. */
struct kvmem_seq kvt_gpu_put(struct kvt_gpu_engine *engine, uint64_t prefix, uint32_t count);

/* Look `count` blocks up; hits or death. `blocks` has room for count. */
uint32_t kvt_gpu_lookup(struct kvt_gpu_engine *engine, uint64_t prefix, uint32_t count,
                        int32_t *blocks, struct kvmem_fence *ready);
/* Until `count` hit, at most KVT_ANSWER_LIMIT. */
void kvt_gpu_lookup_all(struct kvt_gpu_engine *engine, uint64_t prefix, uint32_t count,
                        int32_t *blocks, struct kvmem_fence *ready);

/* The prefix's first blocks, which lie in `blocks`. */
struct kvt_gpu_part kvt_gpu_prefix_part(struct kvt_gpu_engine *engine, uint64_t prefix,
                                        const int32_t *blocks, uint32_t count);

/* Wrong words of the prefix's first blocks, which lie in `blocks`. Waits. */
uint64_t kvt_gpu_prefix_wrong(struct kvt_gpu_engine *engine, uint64_t prefix, const int32_t *blocks,
                              uint32_t count);

#endif
