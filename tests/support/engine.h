/* SPDX-License-Identifier: Apache-2.0
 *
 * A small engine over the public API, for tests and their helper processes.
 *
 * A stream is a number that stands for a request: its tokens and every byte of K and V are a
 * fixed function of (stream, position), in any process. So whoever holds a block of a stream can
 * tell whether each of its bytes is right, and two processes that serve the same stream share it.
 *
 *   word(stream, position, plane, i)      plane = layer, K or V, head; i = 8 bytes of the head
 *
 * A block is 4,096 bytes: 2 layers × (K, V) × 2 heads × 16 tokens × 16 elements × bf16.
 */
#ifndef KVT_ENGINE_H
#define KVT_ENGINE_H

#include <kvmem.h>

#define KVT_BLOCK_TOKENS 16u
#define KVT_BLOCK_BYTES  4096u
#define KVT_BLOCK_LIMIT  1024u /* blocks of a stream that has names */

struct kvt_engine {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    struct kvmem_name root;
    char *base;       /* where blocks are read, */
    char *write_base; /* and where own ones are written */
    uint32_t number;  /* of the client */
};

struct kvt_engine_options {
    const char *socket_path;
    const char *name;       /* of the client */
    const char *space;      /* NULL: "shared" */
    uint64_t quota_bytes;   /* 0 = none */
    int64_t timeout_ns;     /* 0 = the library's */
    uint32_t refill_blocks; /* 0 = automatic */
};

/* Connect and open the space. A code of kvmem/error.h. */
int kvt_engine_open(struct kvt_engine *engine, const struct kvt_engine_options *options);
void kvt_engine_close(struct kvt_engine *engine);

/* The public API's codes, or death with the error's text for anything negative. */
int kvt_must(int result, const char *what);

/* K and V of the tokens [first, first + count) of `seq`, which are those of `stream`. Tokens that
 * have a wrong byte are counted. */
void kvt_engine_write(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                      uint64_t first, uint64_t count);
uint64_t kvt_engine_wrong(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                          uint64_t first, uint64_t count);

/* Tokens of block `block` with a wrong byte, when it is the one from token `first` on. */
uint32_t kvt_block_wrong(struct kvt_engine *engine, int32_t block, uint64_t stream, uint64_t first);

/* Address of the first byte of a block, to read. */
char *kvt_block_address(struct kvt_engine *engine, int32_t block);

/* Names of the first `blocks` blocks of a stream. */
void kvt_engine_names(struct kvt_engine *engine, uint64_t stream, uint32_t blocks,
                      struct kvmem_name *names);

/* Append `tokens` tokens of the stream to `seq`, waiting for memory at most `timeout_ns`, write
 * and commit them. 0, or what append or reserve said. */
int kvt_engine_append(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                      uint32_t tokens, int64_t timeout_ns);

/* Publish the full blocks from `first` to `end`, and dispatch until the answers are there.
 * Counts of them by enum kvmem_publish_state. */
struct kvt_published {
    uint32_t by_state[3];
};
int kvt_engine_publish(struct kvt_engine *engine, struct kvmem_seq seq, uint64_t stream,
                       uint32_t first, uint32_t end, struct kvt_published *published);

/* A new sequence with `blocks` blocks of the stream: appended, written, committed, published. */
int kvt_engine_put(struct kvt_engine *engine, uint64_t stream, uint32_t blocks, int64_t timeout_ns,
                   struct kvmem_seq *seq);

/* Look the first `blocks` blocks of the stream up and attach the hits to a new sequence (none is
 * made without a hit). Hits, or a code. */
int kvt_engine_get(struct kvt_engine *engine, uint64_t stream, uint32_t blocks,
                   struct kvmem_seq *seq);

/* What a serving engine does: get what is there, append the rest and publish it. Returns hits. */
int kvt_engine_serve(struct kvt_engine *engine, uint64_t stream, uint32_t blocks,
                     int64_t timeout_ns, struct kvmem_seq *seq);

int kvt_engine_free(struct kvt_engine *engine, struct kvmem_seq seq);

/* 1 for the codes that mean: no memory now. */
int kvt_is_full(int result);

#endif
