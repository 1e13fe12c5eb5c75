/* SPDX-License-Identifier: Apache-2.0
 *
 * What backend_host.c (segments, life of the backend) and backend_host_map.c (address space,
 * copies, fences) share. Nobody else includes it.
 *
 *   used_bytes    = Σ bytes of live created segments ≤ device_bytes
 *   live segments = handle_count;  live + free list = segment_slots
 *   reservations sorted by base, disjoint; mappings of one sorted by address, disjoint, inside
 *   mapping_count, mapped_bytes = sums over all reservations
 */
#ifndef KVI_BACKEND_BACKEND_HOST_INTERNAL_H
#define KVI_BACKEND_BACKEND_HOST_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "backend/allocations.h"
#include "backend/backend_host.h"

struct kvi_backend_segment {
    int fd; /* −1 in a free slot */
    uint32_t generation;
    uint32_t next_free; /* in a free slot: index + 1 of the next one, 0 the last */
    bool created;       /* by this instance: it may export, and its release frees the bytes */
    uint64_t bytes;
};

struct kvi_backend_mapping {
    uint64_t address;
    uint64_t bytes;
    enum kvi_access access;
};

struct kvi_backend_reservation {
    uint64_t base;
    uint64_t bytes;
    struct kvi_backend_mapping *mappings;
    size_t mapping_count;
    size_t mapping_capacity;
};

struct kvi_backend_pin {
    uint64_t start;
    uint64_t bytes;
};

struct kvi_backend_host {
    struct kvi_backend base;
    const struct kvi_alloc *alloc;

    pthread_mutex_t lock; /* guards everything below */
    uint64_t used_bytes;
    struct kvi_backend_segment *segments;
    size_t segment_slots; /* slots ever used: live or in the free list */
    size_t segment_capacity;
    uint32_t segment_free; /* head of the free list, index + 1; 0 none */
    uint64_t handle_count;

    struct kvi_backend_reservation *reservations;
    size_t reservation_count;
    size_t reservation_capacity;
    uint64_t reserved_bytes;
    uint64_t mapping_count;
    uint64_t mapped_bytes;
    bool ballast_full;
    uint64_t ballast; /* address, 0 before the first reservation; see backend_host_map.c */

    struct kvi_allocations allocations;
    struct kvi_backend_pin *pins;
    size_t pin_count;
    size_t pin_capacity;
};

static inline struct kvi_backend_host *kvi_backend_host_of(struct kvi_backend *b)
{
    return (struct kvi_backend_host *)(void *)b; /* base is the first member */
}

/* See to it that `array` has room for one more element than `count`. `array` is the address of
 * a pointer to elements of `element_bytes`. NO_MEMORY, nothing changed. */
int kvi_backend_host_grow(struct kvi_backend_host *host, void *array, size_t *capacity,
                          size_t count, size_t element_bytes);

/* The code for a failed system call: ENOMEM is NO_MEMORY, all else SYSTEM. Sets the detail. */
int kvi_backend_host_failed(int errno_value, const char *what);

/* The live segment of a handle, or NULL with INVALID in the detail. Under the lock; valid until
 * the next create, import or release. */
struct kvi_backend_segment *kvi_backend_host_segment(struct kvi_backend_host *host,
                                                     struct kvi_phys phys, const char *operation);

/* backend_host_map.c's part of the table and of the life of a backend. */
int kvi_backend_host_reserve(struct kvi_backend *b, uint64_t bytes, uint64_t alignment,
                             uint64_t *out_base);
int kvi_backend_host_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes);
int kvi_backend_host_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address,
                         uint64_t bytes, enum kvi_access access);
int kvi_backend_host_set_access(struct kvi_backend *b, uint64_t address, uint64_t bytes,
                                enum kvi_access access);
int kvi_backend_host_unmap(struct kvi_backend *b, uint64_t address, uint64_t bytes);
int kvi_backend_host_copy(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes,
                          uint64_t stream);
int kvi_backend_host_copy_in(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                             uint64_t stream);
int kvi_backend_host_copy_out(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                              uint64_t stream);
int kvi_backend_host_blocks(struct kvi_backend *b, const struct kvi_backend_blocks *list,
                            uint64_t stream);
int kvi_backend_host_device_alloc(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address);
int kvi_backend_host_device_free(struct kvi_backend *b, uint64_t address, uint64_t bytes);

/* May the device range be read, and written if `access` says so? INVALID. Takes the lock. */
int kvi_backend_host_span(struct kvi_backend_host *host, const char *operation, uint64_t address,
                          uint64_t bytes, enum kvi_access access);
void kvi_backend_host_space_fini(struct kvi_backend_host *host);
int kvi_backend_host_space_check(const struct kvi_backend_host *host);

#endif
