/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory for block tables: arrays of int32 in sizes that double, recycled by size.
 *
 *   slab: | 16 | 16 | 32 | 64 | 16 | ........ untouched ........ |
 *          cut from the front as they are first needed, never joined again
 *
 * Slabs are large and cost memory where touched; the first is allocated when the space opens. So
 * a steady state of sequences ending and starting allocates nothing: a further slab comes only
 * when more table entries than ever before are alive (then NO_MEMORY is possible).
 */
#ifndef KVI_CLIENT_TABLE_MEMORY_H
#define KVI_CLIENT_TABLE_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "util/alloc.h"

#define KVI_TABLE_MIN     16u /* entries of class 0; class c: 16 << c */
#define KVI_TABLE_CLASSES 28u
#define KVI_TABLE_SLABS   64u
#define KVI_TABLE_NONE    UINT8_MAX /* class of no array */

struct kvi_table_memory {
    void *recycled[KVI_TABLE_CLASSES]; /* lists through the arrays' first bytes */
    char *at;                          /* the part of the last slab that was never cut */
    size_t left_bytes;
    size_t slab_bytes;
    void *slabs[KVI_TABLE_SLABS];
    size_t slab_sizes[KVI_TABLE_SLABS];
    uint32_t slab_count;
    struct kvi_alloc alloc;
};

/* NO_MEMORY. */
int kvi_table_memory_init(struct kvi_table_memory *memory, const struct kvi_alloc *alloc,
                          size_t slab_bytes);
void kvi_table_memory_fini(struct kvi_table_memory *memory);

/* The smallest class that holds `entries`. */
static inline uint8_t kvi_table_class(uint32_t entries)
{
    if (entries <= KVI_TABLE_MIN)
        return 0;
    return (uint8_t)(28 - __builtin_clz(entries - 1));
}

static inline uint32_t kvi_table_entries(uint8_t class)
{
    return class == KVI_TABLE_NONE ? 0 : KVI_TABLE_MIN << class;
}

/* The same when none of that class can be recycled. */
int32_t *kvi_table_cut(struct kvi_table_memory *memory, uint8_t class);

/* An array of that class, contents undefined; NULL: no memory. */
static inline int32_t *kvi_table_take(struct kvi_table_memory *memory, uint8_t class)
{
    void *array = memory->recycled[class];

    if (!array)
        return kvi_table_cut(memory, class);
    memcpy(&memory->recycled[class], array, sizeof(void *));
    return array;
}

/* NULL of class KVI_TABLE_NONE is allowed. */
void kvi_table_give(struct kvi_table_memory *memory, int32_t *array, uint8_t class);

#endif
