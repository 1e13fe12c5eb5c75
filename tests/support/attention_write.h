/* SPDX-License-Identifier: Apache-2.0
 *
 * Random cases for kva_write_run, and what must be in memory afterwards, every byte: the expected
 * bytes come from a plain loop of its own, with the conversions of the reference. Used on the CPU
 * and on a GPU.
 */
#ifndef KVT_ATTENTION_WRITE_H
#define KVT_ATTENTION_WRITE_H

#include <kvmem/attention_write.h>

/* All that a write reads and writes; on the host, or a GPU's copy of it. */
struct kvt_write_memory {
    uint8_t *pool; /* K, and V behind it or between */
    uint8_t *k_scale;
    uint8_t *v_scale;
    uint8_t *k; /* sources */
    uint8_t *v;
    int64_t *slots;
    int32_t *positions;
    float *cos_sin;
};

/* The parts of kvt_write_memory by number, for copying. */
#define KVT_WRITE_PARTS 8u

struct kvt_write_world {
    uint64_t seed;
    struct kva_write what; /* pointers into `host` */
    uint32_t layer;
    uint32_t layers;
    uint64_t k_layer_stride;
    uint64_t v_layer_stride;
    uint64_t v_offset; /* elements from K to V in the pool; 0: latent, K alone */
    uint32_t has_v;
    uint64_t bytes[KVT_WRITE_PARTS];
    struct kvt_write_memory host; /* pool and scales filled with a pattern */
};

/* A case for any device (head dims that a GPU takes), by seed. */
void kvt_write_make(struct kvt_write_world *world, uint64_t seed);
void kvt_write_drop(struct kvt_write_world *world);

/* Run it, on `device`, with the memory at `at`; the result of kva_write_run. */
int kvt_write_run(const struct kvt_write_world *world, uint32_t device,
                  const struct kvt_write_memory *at, void *stream);

/* What pool and scales must be; NULL in *text, or the first difference. `seen`: host memory. */
void kvt_write_compare(const struct kvt_write_world *world, const uint8_t *pool,
                       const uint8_t *k_scale, const uint8_t *v_scale, char text[200]);

/* "seed 7: fp16 to e4m3, ..." */
const char *kvt_write_name(const struct kvt_write_world *world, char text[200]);

/* The pointers as an array. */
static inline void **kvt_write_parts(struct kvt_write_memory *memory)
{
    return (void **)memory;
}

#endif
