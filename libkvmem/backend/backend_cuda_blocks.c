/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's lists of blocks and of cells, and memory outside the pool.
 *
 * A list is looked at whole, under one lock of the books, then launched as a kernel. Where there
 * are no kernels (backend_cuda_kernels.c) it is one driver call a block or cell.
 */
#include <inttypes.h>

#include "backend/backend_cuda_internal.h"
#include "util/error.h"

static kvi_cu_stream stream_of(uint64_t stream)
{
    return (kvi_cu_stream)(uintptr_t)stream;
}

/* Kernels are looked for, and the context is entered. */
static int list_begin(struct kvi_backend_cuda *cuda, const char *operation)
{
    int rc = 0;

    if (kvi_backend_cuda_kernels_state(cuda) == KVI_KERNELS_NONE)
        rc = kvi_backend_cuda_kernels_load(cuda);
    return rc < 0 ? rc : kvi_backend_cuda_enter(cuda, operation);
}

static bool has_kernels(const struct kvi_backend_cuda *cuda)
{
    return kvi_backend_cuda_kernels_state(cuda) == KVI_KERNELS_READY;
}

/* ---- blocks ---- */

static int blocks_by_copies(struct kvi_backend_cuda *cuda, const struct kvi_backend_blocks *list,
                            kvi_cu_stream stream)
{
    const struct kvi_cuda_driver *driver = cuda->driver;
    int result = 0;

    for (uint32_t i = 0; i < list->count && result == 0; i++) {
        uint64_t to = list->to_base + (uint64_t)list->to[i] * list->stride_bytes;

        if (list->from == NULL)
            result = driver->fill_8(to, 0, list->bytes, stream);
        else
            result = driver->copy_device(
                to, list->from_base + (uint64_t)list->from[i] * list->stride_bytes, list->bytes,
                stream);
    }
    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "blocks",
                               list->from == NULL ? "cuMemsetD8Async" : "cuMemcpyDtoDAsync");
    return 0;
}

int kvi_backend_cuda_blocks(struct kvi_backend *b, const struct kvi_backend_blocks *list,
                            uint64_t stream)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    int rc = kvi_book_blocks_check(&cuda->book, list);

    if (rc == 0)
        rc = list_begin(cuda, "blocks");
    if (rc < 0)
        return rc;
    rc = has_kernels(cuda) ? kvi_backend_cuda_kernels_blocks(cuda, list, stream_of(stream))
                           : blocks_by_copies(cuda, list, stream_of(stream));
    kvi_backend_cuda_leave(cuda);
    return rc;
}

/* ---- cells ---- */

static int cells_by_fills(struct kvi_backend_cuda *cuda, uint64_t base,
                          const struct kvi_backend_cell *cells, uint32_t count,
                          kvi_cu_stream stream)
{
    int result = 0;

    for (uint32_t i = 0; i < count && result == 0; i++)
        result = cuda->driver->fill_32(base + (uint64_t)cells[i].at * sizeof(int32_t),
                                       (unsigned)cells[i].value, 1, stream);
    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "cells", "cuMemsetD32Async");
    return 0;
}

int kvi_backend_cuda_cells(struct kvi_backend *b, uint64_t base,
                           const struct kvi_backend_cell *cells, uint32_t count, uint64_t stream)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    kvi_cu_address pinned = 0;
    int rc = kvi_backend_cuda_pin_find(cuda, cells, count * sizeof(*cells), "cells", &pinned);

    if (rc == 0)
        rc = kvi_book_span_check(&cuda->book, base, kvi_backend_cells_bytes(cells, count),
                                 KVI_ACCESS_RW, "cells");
    if (rc == 0)
        rc = list_begin(cuda, "cells");
    if (rc < 0)
        return rc;
    rc = has_kernels(cuda)
             ? kvi_backend_cuda_kernels_cells(cuda, base, pinned, count, stream_of(stream))
             : cells_by_fills(cuda, base, cells, count, stream_of(stream));
    kvi_backend_cuda_leave(cuda);
    return rc;
}

/* ---- memory outside the pool ---- */

int kvi_backend_cuda_device_alloc(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    kvi_cu_address address = 0;
    int rc = kvi_backend_cuda_lock(cuda, "device_alloc");
    int result;

    if (rc < 0)
        return rc;
    rc = kvi_book_allocation_room(&cuda->book);
    if (rc < 0)
        goto unlock;
    result = cuda->driver->device_alloc(&address, bytes);
    if (result != 0) {
        rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_DEVICE_FULL, "device_alloc",
                             "cuMemAlloc");
        goto unlock;
    }
    kvi_book_allocation_add(&cuda->book, address, bytes);
    *out_address = address;
unlock:
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

int kvi_backend_cuda_device_free(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    size_t at = 0;
    int rc = kvi_backend_cuda_lock(cuda, "device_free");
    int result;

    if (rc < 0)
        return rc;
    rc = kvi_allocations_find(&cuda->book.allocations, address, bytes, &at);
    if (rc < 0)
        goto unlock;
    result = cuda->driver->device_free(address);
    if (result != 0)
        rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "device_free", "cuMemFree");
    else
        kvi_book_allocation_remove(&cuda->book, at);
unlock:
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

void kvi_backend_cuda_allocations_fini(struct kvi_backend_cuda *cuda)
{
    const struct kvi_allocations *all = &cuda->book.allocations;

    for (size_t at = 0; at < all->count; at++)
        (void)cuda->driver->device_free(all->list[at].address);
}
