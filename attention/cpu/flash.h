/* SPDX-License-Identifier: Apache-2.0
 *
 * Flash attention on the CPU: tiles of K and V, a softmax that is put right as it goes
 * (FlashAttention-2, Dao 2023, algorithm 1), long contexts cut into chunks that are merged
 * (Flash-Decoding, Dao et al. 2023). One code for decode and prefill:
 *
 *   row     a query token and one of the heads that share a K/V head: row r of a sequence is token
 *           r ÷ group, head r % group. Rows read K and V once for all heads of a group.
 *   strip   some rows of one sequence, for some of its K/V heads: KVA_STRIP_ROWS in all. With few
 *           rows a head it has many heads, which lie side by side in a block: memory is read in
 *           long runs then, as DRAM likes it
 *   chunk   the tokens [first, end) that a task attends to; `first` is a multiple of KVA_TILE
 *   task    a strip and a chunk; a strip with one chunk is finished by its task, the chunks of
 *           another leave partial results, which are merged in the order of the chunks
 *   tile    KVA_TILE tokens, from a multiple of KVA_TILE on
 *
 *   flash.c        tasks: accepts, info, plan, run; plain C
 *   flash_tile.h   the work of a task, written once in terms of vectors; included by
 *   flash_pairs.h, flash_runs.h         parts of it: few rows and bf16 products
 *   flash_avx2.c, flash_avx512.c        all types, in floats
 *   flash_avx512_bf16.c                 bf16 products (VDPBF16PS) for q in bf16, K and V in bf16,
 *                                       fp8 or int8, which bf16 holds exactly
 *
 * What a strip's results are depends on its rows, its tokens and the chunks' bounds only: not on
 * threads, nor on which worker does what. In the batch-invariant mode the bounds are fixed.
 */
#ifndef KVA_CPU_FLASH_H
#define KVA_CPU_FLASH_H

#include "../internal.h"

#define KVA_TILE       64u  /* bits of a mask */
#define KVA_STRIP_ROWS 192u /* a strip's scores and sums stay in the L2 cache */
#define KVA_ROW_STEP   4u
#define KVA_DIM_LIMIT  1024u

#if defined(__x86_64__)
#define KVA_X86 1
#endif

/* Functions for a target that the rest of the library is not compiled for. */
#define KVA_INLINE static inline KVA_TARGET __attribute__((always_inline, unused))

struct kva_flash_task {
    uint32_t seq;
    uint32_t kv_head; /* the strip: heads [kv_head, kv_head + head_count) ... */
    uint32_t head_count;
    uint32_t row; /* ... and rows [row, row + row_count) of the sequence */
    uint32_t row_count;
    uint32_t first; /* the chunk: tokens [first, end) */
    uint32_t end;
    uint32_t kv_length;
    uint32_t partial; /* its first row among the partial results, or KVA_WHOLE */
    uint32_t chunks; /* tasks of this strip, this one and the next ones, in the first one; else 0 */
};

#define KVA_WHOLE UINT32_MAX

/* What one run is. */
struct kva_flash_run {
    const struct kva_attention *what;
    uint32_t layer;
    const void *q;
    void *out;
    float *lse;
    float *partials;   /* (row, padded dv + 2) */
    const char *zeros; /* KVA_DIM_LIMIT floats: the row of a token that is not there */
};

/* Memory of a worker, in floats (offsets into it are multiples of 16). */
struct kva_flash_scratch {
    uint64_t q;      /* (rows, words) of q; rows of a strip's heads one after the other, each from a
                        multiple of KVA_ROW_STEP on */
    uint64_t scores; /* (rows, KVA_TILE) */
    uint64_t sums;   /* (rows, padded dv) */
    uint64_t state;  /* (rows) maximum, total, factor, sum of a tile; then masks, 64 bits each */
    uint64_t k;      /* (words, KVA_TILE) a packed tile */
    uint64_t v;      /* (words of tokens, padded dv) */
    uint64_t wide;   /* (KVA_TILE, dim) rows in another type */
    uint64_t floats; /* in all */
};

/* Code for one target. */
struct kva_flash_code {
    int (*is_here)(void); /* on this processor */
    /* Attend: a strip over a chunk, to out and lse, or to its partial result. */
    void (*attend)(const struct kva_flash_run *run, const struct kva_flash_task *task,
                   float *memory);
    /* Merge the chunks of a strip, from its first task on. */
    void (*merge)(const struct kva_flash_run *run, const struct kva_flash_task *first,
                  float *memory);
};

extern const struct kva_flash_code kva_flash_avx512_bf16;
extern const struct kva_flash_code kva_flash_avx512;
extern const struct kva_flash_code kva_flash_avx2;

/* For is_here where a target does not exist at all. */
int kva_flash_nowhere(void);

struct kva_flash_scratch kva_flash_scratch(const struct kva_attention *what);

/* Floats of a row of sums, and of v packed: a multiple of 16. */
static inline uint32_t kva_padded(uint32_t dim)
{
    return (dim + 15) / 16 * 16;
}

/* Rows from one head of a strip to the next one. */
static inline uint32_t kva_head_rows(uint32_t row_count)
{
    return (row_count + KVA_ROW_STEP - 1) / KVA_ROW_STEP * KVA_ROW_STEP;
}

/* Rows of a strip, all heads, at most. */
static inline uint32_t kva_strip_rows(const struct kva_attention *what)
{
    uint64_t rows = (uint64_t)what->batch.q_max * what->q_head_count +
                    (uint64_t)what->cache.kv_head_count * KVA_ROW_STEP;

    return rows < KVA_STRIP_ROWS ? kva_padded((uint32_t)rows) : KVA_STRIP_ROWS;
}

/* ---- flash_rows.c: where K and V lie, who sees what; no vectors ---- */

/* The rows of tokens [first, first + KVA_TILE) of a K/V head in memory; `zeros` from `end` on. */
void kva_flash_rows(const struct kva_flash_run *run, const struct kva_flash_task *task,
                    uint32_t kv_head, uint32_t first, const char **k, const char **v);

/* Scales of the same tokens; 1 from `end` on. */
void kva_flash_scales(const struct kva_flash_run *run, const struct kva_flash_task *task,
                      uint32_t kv_head, uint32_t first, float *k, float *v);

/* Bit t of masks[i]: row i of each head of the strip sees token first + t. */
void kva_flash_masks(const struct kva_flash_run *run, const struct kva_flash_task *task,
                     uint32_t first, uint64_t *masks);

/* Tokens [*first, *end) of the chunk, beyond which no row of the strip sees any. */
void kva_flash_bounds(const struct kva_attention *what, const struct kva_flash_task *task,
                      uint32_t *first, uint32_t *end);

#endif
