/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the tests and benchmarks. All are enqueued and return at once.
 *
 * Bytes of a block are a fixed function of (seed, position, word): whoever knows the seed and the
 * block's position in its sequence can tell, in any process, whether each of its words is right.
 * A word is 8 bytes.
 *
 *   fill, check            lists of blocks, all or some of the tokens in each
 *   watch                  check again and again, until the host says that it is enough
 *   rows_write, rows_check what the rows of a device table say, for graphs
 *   gate, spin, busy       time passes: until the host says so, for so long, as a model's step
 *   scribble, poke         writers that do harm, or try
 */
#ifndef KVT_GPU_KERNELS_H
#define KVT_GPU_KERNELS_H

#include <kvmem/space.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where blocks and tokens lie. */
struct kvt_gpu_shape {
    const void *base;      /* where blocks are read, */
    void *write_base;      /* and where own ones are written */
    uint64_t stride_bytes; /* from a block to the next */
    uint64_t block_bytes;
    uint32_t run_bytes;   /* K or V of a layer; in the token-major layout all of the block */
    uint32_t token_bytes; /* a token's share of a run */
    uint32_t block_tokens;
};

/* Of group 0 of a space without scales whose K and V have the same shape, in a layout where a
 * token's bytes of a layer are one run (PAGE_TOKEN_HEAD, TOKEN_MAJOR). */
struct kvt_gpu_shape kvt_gpu_shape_of(const struct kvmem_space *space,
                                      const struct kvmem_geometry *geometry,
                                      enum kvmem_layout layout);

struct kvt_gpu_part {
    const struct kvt_gpu_shape *shape;
    const int32_t *blocks; /* host memory, read before the call returns */
    uint32_t count;
    uint32_t first_token; /* in each block: [first_token, end_token); 0, 0 = all */
    uint32_t end_token;
    uint32_t step_words; /* look at every so many words; 0 = 1 */
    uint64_t seed;
    uint64_t position; /* of blocks[0] in its sequence; the others follow */
};

/* What checks add up; in device memory. */
struct kvt_gpu_verdict {
    unsigned long long checked; /* words looked at */
    unsigned long long wrong;
    unsigned long long where; /* address of one wrong word, */
    unsigned long long found; /* what was there, */
    unsigned long long expected;
};

struct kvt_gpu_verdict *kvt_gpu_verdict_new(void);
void kvt_gpu_verdict_clear(struct kvt_gpu_verdict *verdict, void *stream);
/* Waits for the stream. */
struct kvt_gpu_verdict kvt_gpu_verdict_read(const struct kvt_gpu_verdict *verdict, void *stream);

void kvt_gpu_fill(const struct kvt_gpu_part *part, void *stream);
void kvt_gpu_check(const struct kvt_gpu_part *part, struct kvt_gpu_verdict *verdict, void *stream);

/* Check again and again, once at least, until *flag (pinned host memory) is at least `value`, or
 * 20 s. */
void kvt_gpu_watch(const struct kvt_gpu_part *part, struct kvt_gpu_verdict *verdict,
                   const uint64_t *flag, uint64_t value, void *stream);

/* Check and wait: the number of wrong words, one of them printed; death when not every word was
 * looked at. */
uint64_t kvt_gpu_wrong(const struct kvt_gpu_part *part, void *stream);

/* A sequence a row, shared up to a token: token t of row r is that of `seed` when t <
 * shared_tokens, else that of row_seed + r. */
struct kvt_gpu_rows {
    struct kvt_gpu_shape shape;
    const int32_t *tables;  /* device memory (row_count, block_limit) */
    const int32_t *lengths; /* device memory (row_count) */
    uint32_t row_count;
    uint32_t block_limit;
    uint32_t shared_tokens;
    uint64_t seed;
    uint64_t row_seed;
};
void kvt_gpu_rows_write(const struct kvt_gpu_rows *rows, void *stream); /* the unshared tokens */
void kvt_gpu_rows_check(const struct kvt_gpu_rows *rows, struct kvt_gpu_verdict *verdict,
                        void *stream);

/* Wait until *flag (pinned host memory) is at least `value`, or 20 s. */
void kvt_gpu_gate(const uint64_t *flag, uint64_t value, void *stream);
void kvt_gpu_spin(uint64_t ns, void *stream);

/* Write all over the blocks again and again for `ns`, with bytes that no pattern has, and add one
 * to *rounds (pinned host memory) each time. */
void kvt_gpu_scribble(const struct kvt_gpu_part *part, uint64_t ns, uint64_t *rounds, void *stream);
/* One word at `address`. */
void kvt_gpu_poke(void *address, uint64_t value, void *stream);

/* A step of a model that computes, or reads and writes memory, and nothing else. */
enum kvt_gpu_busy_kind {
    KVT_GPU_COMPUTE,
    KVT_GPU_MEMORY
};
struct kvt_gpu_busy {
    enum kvt_gpu_busy_kind kind;
    uint64_t amount;
    void *buffer;
};
/* Find the amount of work that takes `us`. Waits. */
void kvt_gpu_busy_init(struct kvt_gpu_busy *busy, enum kvt_gpu_busy_kind kind, double us);
void kvt_gpu_busy_fini(struct kvt_gpu_busy *busy);
void kvt_gpu_busy_step(const struct kvt_gpu_busy *busy, void *stream);

#ifdef __cplusplus
}
#endif
#endif
