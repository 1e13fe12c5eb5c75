/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's segments: create, export, import, release.
 *
 * The driver tells the sort of what an fd brought, not its size. But it maps a handle whole or not
 * at all: so the size that was promised is believed until the first map, which finds out.
 *
 *   fd ── import ──▶ handle ── properties: device memory of this device?
 *                          └── map(place, promised bytes): exactly that long? (_space.c)
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#include "backend/backend_cuda_internal.h"
#include "util/error.h"

/* ---- create, export, release ---- */

static int create_check(struct kvi_backend_cuda *cuda, uint64_t bytes)
{
    uint64_t left_bytes = cuda->base.info.device_bytes - cuda->book.used_bytes;

    if (bytes > left_bytes)
        return kvi_error_set(KVMEM_E_DEVICE_FULL,
                             "segment_create: bytes is %" PRIu64 ", left are %" PRIu64
                             " of %" PRIu64,
                             bytes, left_bytes, cuda->base.info.device_bytes);
    return kvi_book_segment_room(&cuda->book);
}

int kvi_backend_cuda_segment_create(struct kvi_backend *b, uint64_t bytes, struct kvi_phys *out)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    kvi_cu_handle handle = 0;
    int rc = kvi_backend_cuda_lock(cuda, "segment_create");
    int result;

    if (rc < 0)
        return rc;
    rc = create_check(cuda, bytes);
    if (rc < 0)
        goto unlock;
    result = cuda->driver->memory_create(&handle, bytes, &cuda->allocation, 0);
    if (result != 0) {
        rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_DEVICE_FULL, "segment_create",
                             "cuMemCreate");
        goto unlock;
    }
    *out = kvi_book_segment_add(&cuda->book, handle, bytes, true);
unlock:
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

/* A close-on-exec fd of the handle. */
static int handle_export(struct kvi_backend_cuda *cuda, kvi_cu_handle handle, int *out_fd)
{
    int fd = -1;
    int result = cuda->driver->memory_export(&fd, handle, KVI_CU_HANDLE_POSIX_FD, 0);
    int rc;

    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "segment_export",
                               "cuMemExportToShareableHandle");
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        rc = kvi_error_sys(KVMEM_E_SYSTEM, errno, "segment_export: F_SETFD");
        close(fd);
        return rc;
    }
    *out_fd = fd;
    return 0;
}

int kvi_backend_cuda_segment_export(struct kvi_backend *b, struct kvi_phys phys, int *out_fd)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    const struct kvi_book_segment *segment;
    int rc = kvi_backend_cuda_lock(cuda, "segment_export");

    if (rc < 0)
        return rc;
    segment = kvi_book_segment_find(&cuda->book, phys, "segment_export");
    if (segment == NULL)
        rc = KVMEM_E_INVALID;
    else if (!segment->created)
        rc = kvi_error_set(
            KVMEM_E_NOT_SUPPORTED,
            "segment_export: handle %#" PRIx64 " was imported: only the creator exports", phys.id);
    else
        rc = handle_export(cuda, segment->driver_handle, out_fd);
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

int kvi_backend_cuda_segment_release(struct kvi_backend *b, struct kvi_phys phys)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    struct kvi_book_segment *segment;
    int rc = kvi_backend_cuda_lock(cuda, "segment_release");
    int result;

    if (rc < 0)
        return rc;
    segment = kvi_book_segment_find(&cuda->book, phys, "segment_release");
    if (segment == NULL) {
        rc = KVMEM_E_INVALID;
        goto unlock;
    }
    result = cuda->driver->memory_release(segment->driver_handle);
    if (result != 0)
        rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "segment_release",
                             "cuMemRelease");
    else
        kvi_book_segment_remove(&cuda->book, segment);
unlock:
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

/* ---- import ---- */

static int import_corrupt(struct kvi_backend_cuda *cuda, int result, int fd, const char *call,
                          const char *what)
{
    if (kvi_cuda_result_is_fatal(result) || result == KVI_CU_OUT_OF_MEMORY)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_DEVICE_FULL, "segment_import", call);
    return kvi_error_driver(KVMEM_E_CORRUPT, result, "segment_import: fd %d %s: %s: %s (%d)", fd,
                            what, call, kvi_cuda_result_name(cuda->driver, result), result);
}

static int handle_check(struct kvi_backend_cuda *cuda, kvi_cu_handle handle, int fd)
{
    struct kvi_cu_allocation what = {0};
    int result = cuda->driver->memory_properties(&what, handle);

    if (result != 0)
        return import_corrupt(cuda, result, fd, "cuMemGetAllocationPropertiesFromHandle",
                              "has no properties");
    if (what.type != KVI_CU_ALLOCATION_PINNED || what.location.type != KVI_CU_LOCATION_DEVICE)
        return kvi_error_set(KVMEM_E_CORRUPT,
                             "segment_import: fd %d is memory of type %d at a location of type %d: "
                             "want %d at %d, device memory",
                             fd, what.type, what.location.type, KVI_CU_ALLOCATION_PINNED,
                             KVI_CU_LOCATION_DEVICE);
    if (what.location.id != cuda->device)
        return kvi_error_set(KVMEM_E_CORRUPT,
                             "segment_import: fd %d is memory of device %d: want device %d", fd,
                             what.location.id, cuda->device);
    return 0;
}

/* Under the lock; the fd stays the caller's. */
static int segment_import(struct kvi_backend_cuda *cuda, int fd, uint64_t bytes,
                          struct kvi_phys *out)
{
    kvi_cu_handle handle = 0;
    int result;
    int rc;

    rc = kvi_book_segment_room(&cuda->book);
    if (rc < 0)
        return rc;
    result = cuda->driver->memory_import(&handle, (void *)(intptr_t)fd, KVI_CU_HANDLE_POSIX_FD);
    if (result != 0)
        return import_corrupt(cuda, result, fd, "cuMemImportFromShareableHandle",
                              "is no segment of this driver");
    rc = handle_check(cuda, handle, fd);
    if (rc < 0)
        goto fail_handle;
    *out = kvi_book_segment_add(&cuda->book, handle, bytes, false);
    return 0;

fail_handle:
    (void)cuda->driver->memory_release(handle);
    return rc;
}

int kvi_backend_cuda_segment_import_consume(struct kvi_backend *b, int fd, uint64_t bytes,
                                            struct kvi_phys *out)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    int rc;

    if (fcntl(fd, F_GETFD) < 0) /* the driver would say no more than "invalid" */
        return kvi_error_sys(KVMEM_E_INVALID, errno, "segment_import: fd is %d", fd);
    if (bytes > cuda->total_bytes) {
        rc = kvi_error_set(KVMEM_E_CORRUPT,
                           "segment_import: fd %d was promised to have %" PRIu64
                           " bytes: the device has %" PRIu64,
                           fd, bytes, cuda->total_bytes);
        goto close_fd;
    }
    rc = kvi_backend_cuda_lock(cuda, "segment_import");
    if (rc < 0)
        goto close_fd;
    rc = segment_import(cuda, fd, bytes, out);
    kvi_backend_cuda_unlock(cuda);
close_fd:
    close(fd); /* the driver's handle keeps the memory by itself */
    return rc;
}

/* ---- life ---- */

void kvi_backend_cuda_segments_fini(struct kvi_backend_cuda *cuda)
{
    for (size_t i = 0; i < cuda->book.segment_slots; i++)
        if (cuda->book.segments[i].bytes != 0)
            (void)cuda->driver->memory_release(cuda->book.segments[i].driver_handle);
}
