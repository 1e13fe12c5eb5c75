/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of the CUDA backend share: backend_cuda.c (life), _segment.c, _space.c,
 * _copy.c (copies, fences), _blocks.c (blocks, cells, allocations), _kernels.c and _pin.c. Nobody
 * else includes it, but their test.
 *
 * Locks, in the order in which they are taken:
 *   lock          held across the driver calls of one segment or address space operation
 *   pins_lock     (_pin.c, of the process) held across the registration of host memory
 *   book.lock, pin_lock   held for a look-up, never across a driver call
 * So a copy or a fence waits for no other thread's map or pin.
 */
#ifndef KVI_BACKEND_BACKEND_CUDA_INTERNAL_H
#define KVI_BACKEND_BACKEND_CUDA_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>

#include "backend/backend_cuda.h"
#include "backend/book.h"
#include "backend/cuda_driver.h"

struct kvi_backend_cuda_registration;

struct kvi_backend_cuda_pin {
    uint64_t start;
    uint64_t bytes;
    kvi_cu_address device_address; /* of `start` */
    struct kvi_backend_cuda_registration *registration;
};

enum kvi_backend_cuda_kernels_state {
    KVI_KERNELS_NONE, /* not loaded yet */
    KVI_KERNELS_READY,
    KVI_KERNELS_ABSENT,
};

struct kvi_backend_cuda_kernels {
    enum kvi_backend_cuda_kernels_state state; /* atomic; the rest is fixed when it is not NONE */
    int sm_count;
    uint32_t copy_shared_bytes; /* of a thread block of a long copy: holds others off its SM */
    kvi_cu_module module;
    kvi_cu_function copy;
    kvi_cu_function zero;
    kvi_cu_function cells;
};

struct kvi_backend_cuda {
    struct kvi_backend base;
    const struct kvi_alloc *alloc;
    const struct kvi_cuda_driver *driver;
    kvi_cu_device device;
    kvi_cu_context context;              /* the primary one, retained */
    struct kvi_cu_allocation allocation; /* of every segment that is created */
    uint64_t total_bytes;                /* of the device */

    pthread_mutex_t lock; /* guards the fields below */
    struct kvi_backend_cuda_kernels kernels;
    struct kvi_book book;

    pthread_mutex_t pin_lock; /* guards the fields below */
    struct kvi_backend_cuda_pin *pins;
    size_t pin_count;
    size_t pin_capacity;
};

static inline struct kvi_backend_cuda *kvi_backend_cuda_of(struct kvi_backend *b)
{
    return (struct kvi_backend_cuda *)(void *)b; /* base is the first member */
}

/* Make our context the current one, on top of the caller's; leave puts that back. SYSTEM. */
int kvi_backend_cuda_enter(struct kvi_backend_cuda *cuda, const char *operation);
void kvi_backend_cuda_leave(struct kvi_backend_cuda *cuda);

/* The same with the lock. On failure it is not held. */
int kvi_backend_cuda_lock(struct kvi_backend_cuda *cuda, const char *operation);
void kvi_backend_cuda_unlock(struct kvi_backend_cuda *cuda);

/* What one may do with a mapping of ours, for the driver. */
struct kvi_cu_access kvi_backend_cuda_access(const struct kvi_backend_cuda *cuda,
                                             enum kvi_access access);

/* The parts of the table, and of the life of a backend. The _fini functions are called between
 * enter and leave and go on whatever the driver says. */
int kvi_backend_cuda_segment_create(struct kvi_backend *b, uint64_t bytes, struct kvi_phys *out);
int kvi_backend_cuda_segment_export(struct kvi_backend *b, struct kvi_phys phys, int *out_fd);
int kvi_backend_cuda_segment_import_consume(struct kvi_backend *b, int fd, uint64_t bytes,
                                            struct kvi_phys *out);
int kvi_backend_cuda_segment_release(struct kvi_backend *b, struct kvi_phys phys);
void kvi_backend_cuda_segments_fini(struct kvi_backend_cuda *cuda);

int kvi_backend_cuda_reserve(struct kvi_backend *b, uint64_t bytes, uint64_t alignment,
                             uint64_t *out_base);
int kvi_backend_cuda_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes);
int kvi_backend_cuda_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address,
                         uint64_t bytes, enum kvi_access access);
int kvi_backend_cuda_unmap(struct kvi_backend *b, uint64_t address, uint64_t bytes);
void kvi_backend_cuda_space_fini(struct kvi_backend_cuda *cuda);

int kvi_backend_cuda_copy(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes,
                          uint64_t stream);
int kvi_backend_cuda_copy_in(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                             uint64_t stream);
int kvi_backend_cuda_copy_out(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                              uint64_t stream);
int kvi_backend_cuda_fence_signal(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                                  uint64_t stream);
int kvi_backend_cuda_fence_wait(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                                uint64_t stream);

int kvi_backend_cuda_blocks(struct kvi_backend *b, const struct kvi_backend_blocks *list,
                            uint64_t stream);
int kvi_backend_cuda_cells(struct kvi_backend *b, uint64_t base,
                           const struct kvi_backend_cell *cells, uint32_t count, uint64_t stream);
int kvi_backend_cuda_device_alloc(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address);
int kvi_backend_cuda_device_free(struct kvi_backend *b, uint64_t address, uint64_t bytes);
void kvi_backend_cuda_allocations_fini(struct kvi_backend_cuda *cuda);

/* Load what is not loaded. DEVICE_FULL, SYSTEM; to be tried again then. */
int kvi_backend_cuda_kernels_load(struct kvi_backend_cuda *cuda);
void kvi_backend_cuda_kernels_fini(struct kvi_backend_cuda *cuda);
static inline enum kvi_backend_cuda_kernels_state kvi_backend_cuda_kernels_state(
    const struct kvi_backend_cuda *cuda)
{
    return __atomic_load_n(&cuda->kernels.state, __ATOMIC_ACQUIRE);
}
/* Launch; only when READY, entered. `cells` is the device's address of them. SYSTEM. */
int kvi_backend_cuda_kernels_blocks(struct kvi_backend_cuda *cuda,
                                    const struct kvi_backend_blocks *list, kvi_cu_stream stream);
int kvi_backend_cuda_kernels_cells(struct kvi_backend_cuda *cuda, uint64_t base,
                                   kvi_cu_address cells, uint32_t count, kvi_cu_stream stream);

int kvi_backend_cuda_host_pin(struct kvi_backend *b, void *memory, uint64_t bytes);
int kvi_backend_cuda_host_unpin(struct kvi_backend *b, void *memory, uint64_t bytes);
int kvi_backend_cuda_pin_find(struct kvi_backend_cuda *cuda, const void *memory, uint64_t bytes,
                              const char *operation, kvi_cu_address *out_address);
void kvi_backend_cuda_pins_fini(struct kvi_backend_cuda *cuda);

#endif
