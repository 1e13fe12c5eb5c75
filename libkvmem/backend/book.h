/* SPDX-License-Identifier: Apache-2.0
 *
 * The books of a backend whose driver keeps none that can be asked: which handles are live,
 * what is reserved, what is mapped where and how. The rules of backend.h are checked against
 * them, in the same words on every device, before the driver is called.
 *
 *   handle id:   63       32 31        0
 *               | generation | slot + 1 |        a released handle stays refused
 *
 *   used_bytes   = Σ bytes of live created segments
 *   live segments = handle_count;  live + released and mapped + free list = segment_slots
 *   reservations sorted by base, disjoint; mappings of one sorted by address, disjoint, inside
 *   mapping_count, mapped_bytes = sums over all reservations
 *   mapping_count of a segment = mappings with its slot, exactly one of them first, if any
 *   rights[g] of a reservation = access of the mapping over its granule g, 0 if there is none
 *
 * The rights say the same as the mappings, found without a search: a list of hundreds of blocks
 * is checked in some microseconds.
 *
 * Threads: one thread at a time changes the books, under a lock of the backend's that it may
 * hold across driver calls; pointers that it was given are valid until its next change. Any
 * thread may call kvi_book_span_check(), _blocks_check() and _count() at any time: the books' own
 * lock, never held across a driver call, is for these.
 *
 * Not here: driver calls, pins, the size of the device.
 */
#ifndef KVI_BACKEND_BOOK_H
#define KVI_BACKEND_BOOK_H

#include <pthread.h>
#include <stdbool.h>

#include "backend/allocations.h"
#include "backend/backend.h"
#include "util/alloc.h"

struct kvi_book_segment {
    uint64_t driver_handle;
    uint64_t bytes; /* 0 in a free slot */
    uint32_t generation;
    uint32_t next_free;     /* in a free slot: index + 1 of the next one, 0 the last */
    uint32_t mapping_count; /* a released slot is used again when it is 0 */
    bool created;           /* by this instance: it may export, and its release frees the bytes */
};

struct kvi_book_mapping {
    uint64_t address;
    uint64_t bytes;
    uint64_t kept; /* for the backend: a driver handle held during an unmap of several */
    uint32_t slot; /* of its segment */
    bool is_first; /* the oldest of its segment: unmapped last */
    enum kvi_access access;
};

/* The driver's range may be wider than what was asked for, to get the alignment. */
struct kvi_book_reservation {
    uint64_t base;
    uint64_t bytes;
    uint64_t driver_base;
    uint64_t driver_bytes;
    struct kvi_book_mapping *mappings;
    size_t mapping_count;
    size_t mapping_capacity;
    uint8_t *rights; /* [rights_count] enum kvi_access, one a granule */
    size_t rights_count;
};

struct kvi_book {
    const struct kvi_alloc *alloc;
    uint32_t granule_shift; /* granule = 1 << it */
    pthread_mutex_t lock;

    uint64_t used_bytes;
    struct kvi_book_segment *segments;
    size_t segment_slots; /* slots ever used: live or in the free list */
    size_t segment_capacity;
    uint32_t segment_free; /* head of the free list, index + 1; 0 none */
    uint64_t handle_count;

    struct kvi_book_reservation *reservations;
    size_t reservation_count;
    size_t reservation_capacity;
    uint64_t reserved_bytes;
    uint64_t mapping_count;
    uint64_t mapped_bytes;

    struct kvi_allocations allocations;
};

/* A run of mappings of one reservation: [first, last). */
struct kvi_book_run {
    struct kvi_book_reservation *reservation;
    size_t first;
    size_t last;
};

/* `book` is zeroed storage; `alloc` outlives it. SYSTEM. */
int kvi_book_init(struct kvi_book *book, const struct kvi_alloc *alloc, uint64_t granule_bytes);

/* Frees the tables; what the driver holds is the backend's to give back before. */
void kvi_book_fini(struct kvi_book *book);

/* Make the array at `array` (the address of a pointer) hold one element more than `count`.
 * NO_MEMORY, nothing changed. No lock is taken. */
int kvi_book_grow(const struct kvi_alloc *alloc, void *array, size_t *capacity, size_t count,
                  size_t element_bytes);

/* ---- handles ---- */

/* Room for one more handle: the next kvi_book_segment_add cannot fail. NO_MEMORY. */
int kvi_book_segment_room(struct kvi_book *book);
struct kvi_phys kvi_book_segment_add(struct kvi_book *book, uint64_t driver_handle, uint64_t bytes,
                                     bool created);

/* The live segment, or NULL with INVALID in the detail. */
struct kvi_book_segment *kvi_book_segment_find(struct kvi_book *book, struct kvi_phys phys,
                                               const char *operation);
void kvi_book_segment_remove(struct kvi_book *book, struct kvi_book_segment *segment);

/* ---- reservations ---- */

/* Room for one more reservation of `bytes`, with what `one` needs: kvi_book_reservation_add cannot
 * fail, or kvi_book_reservation_forget gives it back. NO_MEMORY. */
int kvi_book_reservation_room(struct kvi_book *book, uint64_t bytes,
                              struct kvi_book_reservation *one);
void kvi_book_reservation_forget(struct kvi_book *book, struct kvi_book_reservation *one);
void kvi_book_reservation_add(struct kvi_book *book, const struct kvi_book_reservation *one);

/* The reservation made exactly like this, with nothing mapped in it; NULL with INVALID. */
struct kvi_book_reservation *kvi_book_reservation_find(struct kvi_book *book, uint64_t base,
                                                       uint64_t bytes, const char *operation);
void kvi_book_reservation_remove(struct kvi_book *book, struct kvi_book_reservation *one);

/* ---- mappings ---- */

/* Where a new mapping goes (out->first), with room made for it: the next kvi_book_map_add
 * cannot fail. INVALID outside reservations and over another mapping; NO_MEMORY. */
int kvi_book_map_place(struct kvi_book *book, uint64_t address, uint64_t bytes,
                       struct kvi_book_run *out);
void kvi_book_map_add(struct kvi_book *book, const struct kvi_book_run *place,
                      struct kvi_book_segment *segment, uint64_t address, enum kvi_access access);

/* The whole, adjoining mappings that make up the range, when they may go: a segment's first mapping
 * not before the others. INVALID if there are none such. */
int kvi_book_unmap_find(struct kvi_book *book, uint64_t address, uint64_t bytes,
                        struct kvi_book_run *out);
void kvi_book_run_remove(struct kvi_book *book, const struct kvi_book_run *run);

/* ---- memory of device_alloc; the same rules ---- */

int kvi_book_allocation_room(struct kvi_book *book);
void kvi_book_allocation_add(struct kvi_book *book, uint64_t address, uint64_t bytes);
void kvi_book_allocation_remove(struct kvi_book *book, size_t at);

/* ---- any thread ---- */

/* May all blocks of the list be read, and the destinations written? One lock for the list.
 * INVALID names the first that may not. */
int kvi_book_blocks_check(struct kvi_book *book, const struct kvi_backend_blocks *list);

/* May the range be read, and written if `access` says so? INVALID. */
int kvi_book_span_check(struct kvi_book *book, uint64_t address, uint64_t bytes,
                        enum kvi_access access, const char *operation);

/* Fill what of `out` the books know; the rest is left. */
void kvi_book_count(struct kvi_book *book, struct kvi_backend_memory *out);

/* Walk everything. 0, or CORRUPT with the first violated equation in the detail. The caller
 * keeps changes away. */
int kvi_book_check(const struct kvi_book *book, uint64_t granule_bytes, uint64_t device_bytes);

#endif
