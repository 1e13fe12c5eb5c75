/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over block tables, on the CPU or on a GPU (libkvmem-attention.so). It needs nothing
 * else of kvmem: bases, strides and tables may be anybody's.
 *
 *   out[r, h] = Σ_t softmax_t(score(r, h, t)) V[t, g],      g = h ÷ (q_head_count ÷ kv_head_count)
 *   score = cap(softmax_scale · q[r, h] · K[t, g]) + slope[h] · (t − position of r)
 *
 * over the tokens t that row r sees.
 *
 * One description says it all: prefill, chunked prefill, decode and speculation differ in the rows
 * a sequence brings; MHA, GQA and MQA in the head counts; latent attention (MLA, DeepSeek-V2
 * section 2.1) has one K/V head, K of 576 elements, and V in the first 512 of them (v = k).
 * Latent attention from hidden states to outputs, absorbed and not, is tests/examples/mla.c.
 * A contiguous view is a cache whose table counts 0, 1, 2, ...
 *
 *   info    which kernel will run, and what workspace it needs: nothing falls to a slow path unseen
 *   plan    once a step: cuts the batch into tasks, in the workspace, on the stream
 *   run     once a layer
 *
 * On a GPU all arrays are in device memory, plan and run only enqueue work: no synchronisation, no
 * allocation, no copy from the host, so that both can be captured in a CUDA graph, with tables,
 * lengths and offsets changing between replays below the maxima given. On the CPU all is done on
 * return; streams are ignored. Functions are pure but for the workspace: any thread, one at a time
 * a workspace.
 *
 * Slots behind a sequence's length, blocks that it does not name and table entries behind its last
 * block may hold anything. NaN or infinity in a token that is seen reaches results of its own
 * sequence and K/V head, no others. The CPU checks lengths, offsets and used table entries and
 * answers INVALID; a GPU, whose arrays the host does not see, clamps them to what is valid.
 *
 * Results: 0, or KVMEM_E_INVALID or KVMEM_E_NOT_SUPPORTED (kva_error() names the field, its value
 * and range), KVMEM_E_SYSTEM (the device's own failure). Then nothing was enqueued.
 */
#ifndef KVMEM_ATTENTION_H
#define KVMEM_ATTENTION_H

#include <kvmem/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum kva_device {
    KVA_DEVICE_CPU = 1,
    KVA_DEVICE_CUDA = 2 /* the one of the calling thread's current context */
};

/* K and V of a group of layers. All strides in elements (those of scales in elements of
 * scale_dtype), 64-bit, not negative. Element d of token t of head g of layer l in block b:
 *   k + b × block_stride + l × layer_stride + g × k_head_stride + t × k_token_stride + d
 * Scale of it: k_scale + b × scale_block_stride + l × scale_layer_stride + g × scale_head_stride
 *   + t × scale_token_stride; a stride of 0 shares it: one a tensor has all but the layer's at 0,
 * one a head (KVMEM_SCALE_HEAD) has 0 for tokens. value = stored × scale.
 * On a GPU k and v and all strides in bytes are multiples of 16 bytes.
 * Any block_tokens will do; a GPU's fastest kernels want a power of two from 8 on (16 for latent
 * attention) or a multiple of 64, and info says which kernel it is. */
struct kva_cache {
    uint32_t dtype;        /* of K and V: enum kvmem_dtype */
    uint32_t block_tokens; /* 1 .. 4,096 */
    uint32_t block_count;  /* indices in tables are below this; greater ones are never followed */
    uint32_t layer_count;
    uint32_t kv_head_count;
    uint32_t head_dim_k;  /* 64, 80, 96, 128, 192, 256, 576; any on the CPU */
    uint32_t head_dim_v;  /* as K, or 128 for 192, 512 for 576 */
    uint32_t scale_dtype; /* FP32, FP16, BF16; NONE for unquantised */
    const void *k;
    const void *v; /* = k for latent attention */
    uint64_t block_stride;
    uint64_t layer_stride;
    uint64_t k_head_stride;
    uint64_t k_token_stride;
    uint64_t v_head_stride;
    uint64_t v_token_stride;
    const void *k_scale; /* NULL for unquantised */
    const void *v_scale;
    uint64_t scale_block_stride;
    uint64_t scale_layer_stride;
    uint64_t scale_head_stride;
    uint64_t scale_token_stride;
};

/* What a step works on: N sequences, their new tokens' rows back to back (ragged). */
struct kva_batch {
    uint32_t seq_count;        /* N; 0 is allowed */
    uint32_t q_max;            /* rows of a sequence, at most; × query heads a K/V head < 2^31 */
    uint32_t q_total;          /* rows in all, at most */
    uint32_t kv_max;           /* tokens of a sequence, at most; ≤ table_stride × block_tokens */
    uint32_t table_stride;     /* entries of a row of `tables` */
    uint32_t reserved;         /* 0 */
    const int32_t *tables;     /* (N, table_stride) block indices; entries behind the length are
                                  never looked at */
    const int32_t *kv_lengths; /* (N) tokens to attend to, those of the rows included; 0 = none */
    const int32_t *q_offsets;  /* (N + 1) first row of each; NULL: q_max rows each */
};

enum kva_flag {
    /* Row i of n sees tokens up to kv_length − n + i (aligned at the end). */
    KVA_CAUSAL = 1u << 0,
    /* The result of a sequence does not depend on what else is in the batch, bit for bit, among
     * batches described with the same maxima, q_max and kv_max: which kernel runs, and how long
     * sequences are cut, may follow from those. seq_count, q_total and what others bring are free.
     * So an engine keeps decode and prefill in batches of their own, each with fixed maxima, or
     * gives the larger q_max always. */
    KVA_BATCH_INVARIANT = 1u << 1
};

struct kva_attention {
    uint32_t size;          /* sizeof(struct kva_attention) */
    uint32_t device;        /* enum kva_device */
    uint32_t flags;         /* enum kva_flag */
    uint32_t q_head_count;  /* a multiple of kv_head_count */
    uint32_t dtype;         /* of q and out: BF16, FP16; on the CPU also FP32 */
    uint32_t window_tokens; /* a row sees its own position and window_tokens − 1 before; 0 = all */
    float softmax_scale;    /* 0 = 1 ÷ √head_dim_k */
    float soft_cap;     /* c: score = c · tanh(score ÷ c), before masks and slopes; 0 = none */
    const float *sinks; /* (q_head_count) a logit a head without a value; NULL = none */
    const float *alibi_slopes; /* (q_head_count); NULL = none */
    const uint64_t *tree_mask; /* (q_total) bit j of row i: it sees the j-th of its sequence's new
                                  tokens; all older ones are seen. At most 64 rows a sequence,
                                  instead of KVA_CAUSAL. NULL = none */
    uint64_t q_token_stride;   /* elements; q (q_total, q_head_count, head_dim_k) */
    uint64_t q_head_stride;
    uint64_t out_token_stride; /* out (q_total, q_head_count, head_dim_v) */
    uint64_t out_head_stride;
    /* CPU: threads. parallel(context, n, work, argument) calls work(argument, i) for each i < n,
     * on whatever threads, and returns when all are done. NULL: OpenMP with `threads` threads (0 =
     * as many as it likes), or the calling thread alone where built without. With 0, info and plan
     * ask OpenMP, whose answer may differ by thread: call both on one; run may be on any. */
    void (*parallel)(void *context, uint32_t n, void (*work)(void *argument, uint32_t i),
                     void *argument);
    void *parallel_context;
    uint32_t threads;
    uint32_t reserved; /* 0 */
    struct kva_cache cache;
    struct kva_batch batch;
};

struct kva_info {
    uint32_t size;            /* sizeof(struct kva_info), set by the caller */
    uint32_t task_limit;      /* tasks that a plan may have: the grid, on a GPU */
    uint64_t workspace_bytes; /* of plan and run; at a multiple of 256 */
    char kernel[64];          /* "cuda decode sm_90 bf16", "cpu avx512_bf16", ... */
};

/* Which kernel will run for exactly this description. */
KVMEM_API int kva_attention_info(const struct kva_attention *what, struct kva_info *out);

/* Cut the batch into tasks. The workspace must stay as it is until the last run is done. */
KVMEM_API int kva_attention_plan(const struct kva_attention *what, void *workspace,
                                 uint64_t workspace_bytes, void *stream);

/* Attention of one layer (0 .. layer_count − 1), after a plan of the same description; pointers
 * may differ from those at the plan, not lengths and offsets. lse (q_total, q_head_count) float,
 * or NULL: log Σ exp(score), sinks included, natural; −∞ where nothing is seen (out is 0 then). */
KVMEM_API int kva_attention_run(const struct kva_attention *what, uint32_t layer, const void *q,
                                void *out, float *lse, void *workspace, uint64_t workspace_bytes,
                                void *stream);

/* One sentence about the calling thread's last failure here; never NULL. */
KVMEM_API const char *kva_error(void);

#ifdef __cplusplus
}
#endif
#endif
