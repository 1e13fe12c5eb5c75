/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention on random inputs against the reference, on the CPU or on a GPU, kernel by kernel.
 *
 *   case    what to compute: shapes, types, masks, layout, a seed; everything else follows
 *   memory  where the kernel's arrays lie
 *   scene   a case laid out: pool, tables, q, outputs, and what should come out
 *
 * A scene is hostile. All memory is NaN but for the tokens in use: slots behind a length, blocks
 * that no table names, other layers, paddings, rows that no sequence has. Tables are shuffled and
 * end in garbage. Outputs are poisoned before each run and everything around them must stay so.
 *
 * The rule (kvt_attention_bound): per row and head, with u = 2^−8 (bf16), 2^−11 (fp16), 2^−24
 *
 *   |out − exact| ≤ m · E + u · max|exact| + 2u · spread + 2^−21 · (1 + magnitude) · max|v|
 *
 * E is the error of the plain computation (reference.h) in the same row, m is 2, or 4 for fp8 and
 * int8. The other terms are what that may lack by luck: the last rounding; rounding P (2 × spread ×
 * u is 3 standard deviations, and more where |v| varies); scores off by a few units of fp32. Where
 * the case says is_exact, weights are 0 or 1 and sums integers, so only the last rounding is left.
 * NaN is never right where the reference has a number.
 */
#ifndef KVT_ATTENTION_H
#define KVT_ATTENTION_H

#include <stdbool.h>

#include "../../attention/internal.h"
#include "../../attention/reference.h"

/* ---- memory ---- */

struct kvt_memory {
    const char *name;
    uint32_t device;                /* enum kva_device */
    void *(*alloc)(uint64_t bytes); /* at a multiple of 256; NULL when there is too little */
    void (*release)(void *memory);
    void (*put)(void *to, const void *from, uint64_t bytes);
    void (*get)(void *to, const void *from, uint64_t bytes);
    void (*set)(void *to, int byte, uint64_t bytes);
    int (*sync)(void *stream); /* 0 or the device's error */
    void *stream;
};

extern const struct kvt_memory kvt_host_memory; /* large allocations cost only what is touched */

/* ---- cases ---- */

enum kvt_fill {
    KVT_FILL_RANDOM = 0, /* normal q and K, normal V */
    KVT_FILL_EVEN,       /* q = K = 0, V one-hot at token % dim: out counts the tokens seen */
    KVT_FILL_ONE_HOT     /* K one-hot, q picks the tokens of one residue, V small integers */
};

enum kvt_layout {
    KVT_LAYOUT_PAGE_HEAD_TOKEN = KVMEM_LAYOUT_PAGE_HEAD_TOKEN,
    KVT_LAYOUT_PAGE_TOKEN_HEAD = KVMEM_LAYOUT_PAGE_TOKEN_HEAD,
    KVT_LAYOUT_TOKEN_MAJOR = KVMEM_LAYOUT_TOKEN_MAJOR,
    KVT_LAYOUT_PER_LAYER = KVMEM_LAYOUT_PER_LAYER, /* (layer, block, K|V, head, token, dim) */
    KVT_LAYOUT_SPLIT,      /* K (layer, block, token, head, dim), V apart, the same */
    KVT_LAYOUT_CONTIGUOUS, /* as TOKEN_MAJOR, each sequence in order in one piece */
    KVT_LAYOUT_END
};

enum kvt_taint {
    KVT_TAINT_NONE = 0,
    KVT_TAINT_K_NAN,
    KVT_TAINT_V_NAN,
    KVT_TAINT_K_INF,
    KVT_TAINT_V_INF,
    KVT_TAINT_END
};

/* Zero is a usable value of everything but the counts. */
struct kvt_attention_case {
    uint64_t seed;
    /* The batch: rows[] and lengths[] (seq_count), or NULL: row_count and length for all of them,
     * or, when ragged, anything from 0 (rows; not of sequence 0) and 1 (tokens) up to that. */
    uint32_t seq_count;
    const uint32_t *rows;
    const uint32_t *lengths;
    uint32_t row_count;
    uint32_t length;
    bool is_ragged;
    bool has_offsets;       /* q_offsets, though rows are the same; ragged ones have them anyway */
    bool has_shared_blocks; /* sequences begin with the same blocks */
    uint32_t heads;         /* of q */
    uint32_t kv_heads;
    uint32_t dim_k;
    uint32_t dim_v;              /* 0 = dim_k */
    bool is_latent;              /* v = k */
    uint32_t dtype;              /* of q; 0 = BF16 */
    uint32_t cache_dtype;        /* 0 = as q */
    uint32_t scale_dtype;        /* 0 = FP32 */
    uint32_t scale_mode;         /* enum kvmem_scale_mode; 0 = TENSOR if quantised */
    bool has_scales_inside;      /* behind the K and V of each layer of a block (PAGE layouts) */
    uint32_t layout;             /* enum kvt_layout; 0 = PAGE_HEAD_TOKEN */
    uint32_t block_tokens;       /* 0 = 16 */
    uint32_t layers;             /* 0 = 2; the last one is computed */
    uint32_t spread;             /* use every so many block indices; 0 = 1 */
    uint64_t block_stride_bytes; /* at least; a multiple of 16 */
    uint32_t flags;              /* enum kva_flag */
    uint32_t window_tokens;
    float soft_cap;
    float softmax_scale;
    bool has_sinks;
    bool has_slopes;
    bool has_tree;
    bool has_padded_rows; /* q and out have strides larger than they must be */
    enum kvt_fill fill;
    enum kvt_taint taint; /* of one token that sequence 0 and K/V head 0 see */
    uint32_t tainted;     /* which of the tokens, from 1 on; 0 = any */
    bool is_strict;       /* a taint reaches only rows that see the token */
    bool has_wild_scales; /* of quantised tokens that a window hides, and of the last one */
    uint32_t row_step;    /* compare every so many rows; 0 = all */
    uint32_t threads;
};

/* Words about the case, for messages; valid until the next call. */
const char *kvt_attention_describe(const struct kvt_attention_case *c);

/* Work in it: multiplications of one run, and K and V. */
double kvt_attention_cost(const struct kvt_attention_case *c);

/* ---- scenes ---- */

struct kvt_attention_array {
    void *host;
    void *device;
    uint64_t bytes;        /* of the host's */
    uint64_t device_bytes; /* more, when blocks are spread */
};

struct kvt_attention_scene {
    struct kvt_attention_case c;
    const struct kvt_memory *memory;
    struct kva_attention host;   /* pointers to host memory, blocks close together */
    struct kva_attention device; /* what the kernel gets */
    uint32_t block_count;        /* in the host's pool */
    uint32_t pool_count;         /* K and V in one piece, or two */
    struct kvt_attention_array pool[2];
    struct kvt_attention_array scales;
    struct kvt_attention_array tables;
    struct kvt_attention_array lengths;
    struct kvt_attention_array offsets;
    struct kvt_attention_array sinks;
    struct kvt_attention_array slopes;
    struct kvt_attention_array tree;
    struct kvt_attention_array q;
    struct kvt_attention_array out; /* with GUARD bytes before and behind */
    struct kvt_attention_array lse; /* the same */
    double *exact;                  /* (q_total, heads, dim_v) */
    double *plain;
    struct kva_reference_row *exact_rows; /* (q_total, heads) */
    struct kva_reference_row *plain_rows;
    double worst; /* largest error ÷ bound of the last run */
    char text[512];
};

enum kvt_verdict {
    KVT_RIGHT = 0,
    KVT_WRONG = 1,  /* scene->text says what */
    KVT_REFUSED = 2 /* no kernel of that name takes the case; text says why not */
};

/* Lay a case out and compute the truth. False, with scene->text, when there is too little memory
 * on the device; without host memory the program dies. */
bool kvt_attention_begin(struct kvt_attention_scene *scene, const struct kvt_attention_case *c,
                         const struct kvt_memory *memory);
void kvt_attention_end(struct kvt_attention_scene *scene);

/* Plan and run with the first kernel whose name contains `kernel` (NULL: any), and judge. */
enum kvt_verdict kvt_attention_try(struct kvt_attention_scene *scene, const char *kernel);

/* The steps of it: outputs are poisoned, then plan and run; then they are in scene->out.host. */
enum kvt_verdict kvt_attention_run(struct kvt_attention_scene *scene, const char *kernel);
enum kvt_verdict kvt_attention_judge(struct kvt_attention_scene *scene);

/* Begin, try, end: text of what went wrong, or NULL. *verdict may be NULL. */
const char *kvt_attention_check(const struct kvt_attention_case *c, const struct kvt_memory *memory,
                                const char *kernel, enum kvt_verdict *verdict);

/* How far element d of a row and head may be from exact. */
double kvt_attention_bound(const struct kvt_attention_scene *scene, uint64_t row, uint32_t head);

/* Result in scene->out.host, and lse. */
double kvt_attention_out(const struct kvt_attention_scene *scene, uint64_t row, uint32_t head,
                         uint32_t d);
float *kvt_attention_lse(const struct kvt_attention_scene *scene, uint64_t row, uint32_t head);

/* First row of sequence n, up to the end of the last one. */
uint32_t kvt_attention_row(const struct kvt_attention_scene *scene, uint32_t n);

/* Threads that compute the reference; 0 = 1. */
extern uint32_t kvt_attention_threads;

#endif
