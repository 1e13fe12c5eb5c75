/* SPDX-License-Identifier: Apache-2.0
 *
 * Grids of attention cases: those that other libraries test their kernels with (shapes of
 * FlashAttention-3, FlashMLA and FlashInfer), and our own: masks that are exact, lengths around
 * tiles and blocks, quantised caches, layouts, trees, taints, caps. A case is a number in a grid;
 * its seed follows from both.
 */
#ifndef KVT_ATTENTION_GRID_H
#define KVT_ATTENTION_GRID_H

#include "support/attention.h"

struct kvt_attention_grid {
    const char *name; /* NULL ends the list */
    /* Case i; false behind the last one. */
    bool (*make)(uint32_t i, struct kvt_attention_case *c);
    bool is_for_cpu_only; /* shapes that no GPU kernel need take */
};

/* X(name): every grid that a GPU runs too, so that none is left out there. */
#define KVT_ATTENTION_GRIDS(X) \
    X(flash_output)            \
    X(flash_ragged)            \
    X(flash_cache)             \
    X(latent_dense)            \
    X(infer_decode)            \
    X(infer_prefill)           \
    X(infer_latent)            \
    X(edges)                   \
    X(exact_masks)             \
    X(features)                \
    X(trees)                   \
    X(quantised)               \
    X(layouts)                 \
    X(taints)                  \
    X(wild_scales)             \
    X(large_caps)

extern const struct kvt_attention_grid kvt_attention_grids[];

struct kvt_attention_plan {
    const struct kvt_memory *memory;
    const char *kernel;  /* those whose name contains it; NULL = each in the device's list */
    double cost_limit;   /* multiplications a case: larger ones are cut down to it */
    double truth_limit;  /* and of the reference: else every so many rows are compared */
    uint32_t case_limit; /* about so many cases, spread over the grid; 0 = all */
};

struct kvt_attention_count {
    uint32_t cases;
    uint32_t runs;    /* cases × kernels that took them */
    uint32_t refused; /* cases that no kernel took */
    uint32_t wrong;
    double worst;   /* largest error ÷ bound of a right one */
    char text[512]; /* the first that was wrong, else the last that was refused */
};

void kvt_attention_grid_run(const struct kvt_attention_grid *grid,
                            const struct kvt_attention_plan *plan,
                            struct kvt_attention_count *count);

/* Cut a case down. */
void kvt_attention_fit(struct kvt_attention_case *c, double cost_limit, double truth_limit);

/* Names of the kernels of a device that contain `word` (NULL: all); the i-th, or NULL. */
const char *kvt_attention_kernel(uint32_t device, const char *word, uint32_t i);

#endif
