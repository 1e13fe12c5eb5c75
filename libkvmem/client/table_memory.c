/* SPDX-License-Identifier: Apache-2.0
 *
 * Recycled arrays for block tables; see table_memory.h.
 */
#include "client/table_memory.h"

#include <string.h>

#include "util/error.h"

static int slab_add(struct kvi_table_memory *memory, size_t bytes)
{
    void *slab;

    if (memory->slab_count == KVI_TABLE_SLABS)
        return KVMEM_E_NO_MEMORY;
    slab = kvi_allocate(&memory->alloc, bytes);
    if (!slab)
        return KVMEM_E_NO_MEMORY;
    memory->slabs[memory->slab_count] = slab;
    memory->slab_sizes[memory->slab_count++] = bytes;
    memory->at = slab;
    memory->left_bytes = bytes;
    return 0;
}

int kvi_table_memory_init(struct kvi_table_memory *memory, const struct kvi_alloc *alloc,
                          size_t slab_bytes)
{
    memset(memory, 0, sizeof(*memory));
    memory->alloc = *alloc;
    memory->slab_bytes = slab_bytes;
    if (slab_add(memory, slab_bytes))
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for block tables (%zu bytes)",
                             slab_bytes);
    return 0;
}

void kvi_table_memory_fini(struct kvi_table_memory *memory)
{
    while (memory->slab_count) {
        memory->slab_count--;
        kvi_release(&memory->alloc, memory->slabs[memory->slab_count],
                    memory->slab_sizes[memory->slab_count]);
    }
}

static size_t class_bytes(uint8_t class)
{
    return ((size_t)KVI_TABLE_MIN << class) * sizeof(int32_t);
}

/* What is left of the slab becomes recycled arrays, the largest first. */
static void cut_up(struct kvi_table_memory *memory)
{
    for (uint8_t class = KVI_TABLE_CLASSES; class -- > 0;) {
        while (memory->left_bytes >= class_bytes(class)) {
            char *array = memory->at;

            memory->at += class_bytes(class);
            memory->left_bytes -= class_bytes(class);
            kvi_table_give(memory, (int32_t *)(void *)array, class);
        }
    }
}

int32_t *kvi_table_cut(struct kvi_table_memory *memory, uint8_t class)
{
    size_t bytes = class_bytes(class);
    char *array;

    if (memory->left_bytes < bytes) {
        size_t slab_bytes = memory->slab_bytes << memory->slab_count / 4;

        if (memory->slab_count == KVI_TABLE_SLABS)
            return NULL;
        if (slab_bytes < bytes)
            slab_bytes = bytes;
        cut_up(memory);
        if (memory->recycled[class])
            return kvi_table_take(memory, class);
        if (slab_add(memory, slab_bytes))
            return NULL;
    }
    array = memory->at;
    memory->at += bytes;
    memory->left_bytes -= bytes;
    return (int32_t *)(void *)array;
}

void kvi_table_give(struct kvi_table_memory *memory, int32_t *array, uint8_t class)
{
    void *next;

    if (class == KVI_TABLE_NONE)
        return;
    next = memory->recycled[class];
    memcpy(array, &next, sizeof(next));
    memory->recycled[class] = array;
}
