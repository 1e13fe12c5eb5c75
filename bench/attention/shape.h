/* SPDX-License-Identifier: Apache-2.0
 *
 * What bench/attention measures: a shape from the command line, or one of the rows that it knows,
 * and the arrays that belong to it. Nothing here is about one device: a device brings a
 * struct kvb_place.
 */
#ifndef KVB_ATTENTION_SHAPE_H
#define KVB_ATTENTION_SHAPE_H

#include <kvmem/attention.h>

struct kvb_shape {
    uint32_t device; /* enum kva_device; a GPU's number is $KVMEM_CUDA_DEVICE */
    uint32_t seqs;
    uint32_t rows;     /* query tokens of a sequence: 1 = decode */
    uint32_t length;   /* tokens of a sequence */
    uint32_t shortest; /* not 0: lengths are log-uniform from here to `length` */
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t dim_k;
    uint32_t dim_v;
    uint32_t dtype; /* of q and the result */
    uint32_t kv_dtype;
    uint32_t layout; /* enum kvmem_layout: PAGE_HEAD_TOKEN, PAGE_TOKEN_HEAD, PER_LAYER */
    uint32_t block_tokens;
    uint32_t layers; /* that a block has; 0 = usual: 1, on a GPU 32 */
    uint32_t flags;  /* enum kva_flag */
    uint32_t window_tokens;
    uint32_t threads;
    uint32_t samples;
    const char *kernel; /* only kernels whose name contains it; NULL = the one that is chosen */
};

/* Options of the command line into *shape, which has the defaults. Returns whether there was a
 * --shape; wrong ones end the program. */
int kvb_shape_parse(struct kvb_shape *shape, int argc, char **argv);

/* "decode_8x8192", "prefill_1x2048"; static storage. */
const char *kvb_shape_name(const struct kvb_shape *shape);

/* Bytes of K and V of all layers. */
uint64_t kvb_shape_pool_bytes(const struct kvb_shape *shape);

/* Where a device's arrays are: alloc gives memory for `bytes` (or ends the program), put copies to
 * it from the host, fill makes normal numbers of any element (32 times as large in one byte). */
struct kvb_place {
    void *(*alloc)(uint64_t bytes);
    void (*put)(void *to, const void *from, uint64_t bytes);
    void (*fill)(uint32_t dtype, void *array, uint64_t count, uint64_t seed);
};

extern const struct kvb_place kvb_host; /* huge pages where there are any */

/* A shape laid out: random K, V and q, blocks in random order. */
struct kvb_problem {
    struct kvb_shape shape;
    struct kva_attention what;
    void *q;
    void *out;
    uint64_t out_bytes;
    void *workspace;
    struct kva_info info;
    uint64_t kv_bytes; /* of K and V that a run reads; their one scale not counted */
    double operations; /* multiplications and additions of a run */
    const void *pool;  /* K and V of all layers, and how many bytes */
    uint64_t pool_bytes;
};

void kvb_problem_init(struct kvb_problem *problem, const struct kvb_shape *shape,
                      const struct kvb_place *place);

/* The same memory read in another layout: strides only. */
void kvb_problem_lay_out(struct kvb_problem *problem, uint32_t layout);

/* The kernel that will run, and a new workspace for it. */
void kvb_problem_workspace(struct kvb_problem *problem, const struct kvb_place *place);

/* On the host: compare out with the reference, in a few heads and rows of the first and the last
 * sequence; ends the program where it is wrong. */
void kvb_problem_verify(const struct kvb_problem *problem);

/* A failure of kva_*: ends the program. */
void kvb_kva_check(int result, const char *what);

#endif
