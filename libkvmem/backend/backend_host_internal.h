/* SPDX-License-Identifier: Apache-2.0
 *
 * What backend_host.c (segments, life of the backend) and backend_host_map.c (address space,
 * copies, fences) share. Nobody else includes it.
 */
#ifndef KVI_BACKEND_BACKEND_HOST_INTERNAL_H
#define KVI_BACKEND_BACKEND_HOST_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "backend/backend_host.h"
#include "backend/book.h"

struct kvi_backend_pin {
    uint64_t start;
    uint64_t bytes;
};

struct kvi_backend_host {
    struct kvi_backend base;
    const struct kvi_alloc *alloc;

    pthread_mutex_t lock; /* guards everything below */
    struct kvi_book book; /* a driver handle is the segment's fd */
    bool ballast_full;
    uint64_t ballast; /* address, 0 before the first reservation; see backend_host_map.c */

    struct kvi_backend_pin *pins;
    size_t pin_count;
    size_t pin_capacity;
};

static inline struct kvi_backend_host *kvi_backend_host_of(struct kvi_backend *b)
{
    return (struct kvi_backend_host *)(void *)b; /* base is the first member */
}

/* The code for a failed system call: ENOMEM is NO_MEMORY, all else SYSTEM. Sets the detail. */
int kvi_backend_host_failed(int errno_value, const char *what);

static inline int kvi_backend_host_fd(const struct kvi_book_segment *segment)
{
    return (int)segment->driver_handle;
}

/* backend_host_map.c's part of the table and of the life of a backend. */
int kvi_backend_host_reserve(struct kvi_backend *b, uint64_t bytes, uint64_t alignment,
                             uint64_t *out_base);
int kvi_backend_host_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes);
int kvi_backend_host_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address,
                         uint64_t bytes, enum kvi_access access);
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

void kvi_backend_host_space_fini(struct kvi_backend_host *host);

#endif
