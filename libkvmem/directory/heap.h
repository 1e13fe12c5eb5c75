/* SPDX-License-Identifier: Apache-2.0
 *
 * A binary heap of (key, value), smallest key first, in storage that the owner gives it. Equal
 * keys leave in the order of their values, so that what a plan does never depends on the heap's
 * inner order. No allocation; the capacity is the caller's affair.
 */
#ifndef KVI_DIRECTORY_HEAP_H
#define KVI_DIRECTORY_HEAP_H

#include <stdint.h>

struct kvi_heap_item {
    uint64_t key;
    uint64_t value;
};

struct kvi_heap {
    struct kvi_heap_item *items;
    uint32_t count;
};

static inline int kvi_heap_is_before(const struct kvi_heap_item *a, const struct kvi_heap_item *b)
{
    return a->key < b->key || (a->key == b->key && a->value < b->value);
}

static inline void kvi_heap_sift_down(struct kvi_heap *heap, uint32_t at)
{
    struct kvi_heap_item item = heap->items[at];

    for (;;) {
        uint32_t child = 2 * at + 1;

        if (child >= heap->count)
            break;
        if (child + 1 < heap->count &&
            kvi_heap_is_before(&heap->items[child + 1], &heap->items[child]))
            child++;
        if (!kvi_heap_is_before(&heap->items[child], &item))
            break;
        heap->items[at] = heap->items[child];
        at = child;
    }
    heap->items[at] = item;
}

/* Append without order; kvi_heap_order() is due before the first look. */
static inline void kvi_heap_append(struct kvi_heap *heap, uint64_t key, uint64_t value)
{
    heap->items[heap->count++] = (struct kvi_heap_item){key, value};
}

static inline void kvi_heap_order(struct kvi_heap *heap)
{
    for (uint32_t i = heap->count / 2; i > 0; i--)
        kvi_heap_sift_down(heap, i - 1);
}

/* Take the first one out. What it leaves behind lies at items[count], untouched until the next
 * append. */
static inline void kvi_heap_pop(struct kvi_heap *heap)
{
    struct kvi_heap_item first = heap->items[0];

    heap->items[0] = heap->items[--heap->count];
    if (heap->count > 1)
        kvi_heap_sift_down(heap, 0);
    heap->items[heap->count] = first;
}

/* Give the first one another key. */
static inline void kvi_heap_rekey(struct kvi_heap *heap, uint64_t key)
{
    heap->items[0].key = key;
    kvi_heap_sift_down(heap, 0);
}

/* Key of the second one; UINT64_MAX when there is none. */
static inline uint64_t kvi_heap_second_key(const struct kvi_heap *heap)
{
    uint64_t key = UINT64_MAX;

    if (heap->count > 1)
        key = heap->items[1].key;
    if (heap->count > 2 && heap->items[2].key < key)
        key = heap->items[2].key;
    return key;
}

#endif
