/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend: the driver's virtual memory management behind the table of backend.h.
 *
 *   segment      one handle of cuMemCreate, device memory of one GPU, exportable as an fd and
 *                flagged for GPUDirect RDMA where the device can
 *   reservation  a range of cuMemAddressReserve
 *   mapping      cuMemMap of a whole handle at offset 0, and cuMemSetAccess for this device
 *   pin          cuMemHostRegister; a fence is a 64-bit stream write or wait on pinned memory
 *
 * The driver's own books cannot be asked, and some of what it refuses it refuses late or with an
 * unspecific code: so ours (book.h) are looked at first.
 *
 * Context: the instance retains the device's primary context, the one that runtime-API programs
 * use. Every entry pushes it on the calling thread's stack and pops it again, so that the
 * caller's current context is what it was, whatever happens in between.
 *
 * Ownership: the backend owns one driver handle a live segment; the fds of exports are the
 * caller's, those of imports are closed once the driver has its handle. Imported bytes are
 * accounted where they were created.
 *
 * Figures (H200, driver 580): create 8–31 µs, map 24–39, unmap 15–21, export
 * 54–118, import 47–68; the size hardly matters from 2 to 64 MiB.
 * Calls of several processes queue up behind each other in the driver.
 *
 * Not here: fabric handles; memory pools; managed memory; which memory is worth having.
 */
#include "backend/backend_cuda.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend_cuda_internal.h"
#include "util/error.h"

static const struct kvi_backend_ops cuda_ops;

/* ---- the context ---- */

int kvi_backend_cuda_enter(struct kvi_backend_cuda *cuda, const char *operation)
{
    int result = cuda->driver->context_push(cuda->context);

    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, operation, "cuCtxPushCurrent");
    return 0;
}

void kvi_backend_cuda_leave(struct kvi_backend_cuda *cuda)
{
    kvi_cu_context context;

    (void)cuda->driver->context_pop(&context); /* fails on an empty stack alone */
}

int kvi_backend_cuda_lock(struct kvi_backend_cuda *cuda, const char *operation)
{
    int rc;

    pthread_mutex_lock(&cuda->lock);
    rc = kvi_backend_cuda_enter(cuda, operation);
    if (rc < 0)
        pthread_mutex_unlock(&cuda->lock);
    return rc;
}

void kvi_backend_cuda_unlock(struct kvi_backend_cuda *cuda)
{
    kvi_backend_cuda_leave(cuda);
    pthread_mutex_unlock(&cuda->lock);
}

struct kvi_cu_access kvi_backend_cuda_access(const struct kvi_backend_cuda *cuda,
                                             enum kvi_access access)
{
    return (struct kvi_cu_access){
        .location = cuda->allocation.location,
        .flags = access == KVI_ACCESS_RW ? KVI_CU_ACCESS_READ_WRITE : KVI_CU_ACCESS_READ,
    };
}

/* ---- what the device is ---- */

static const struct {
    int attribute;
    const char *name;
} attributes_wanted[] = {
    {KVI_CU_ATTRIBUTE_UNIFIED_ADDRESSING, "UNIFIED_ADDRESSING"},
    {KVI_CU_ATTRIBUTE_VMM, "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"},
    {KVI_CU_ATTRIBUTE_POSIX_FD, "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED"},
    {KVI_CU_ATTRIBUTE_64_BIT_STREAM_MEM_OPS, "CAN_USE_64_BIT_STREAM_MEM_OPS"},
};

static int attribute_get(const struct kvi_cuda_driver *driver, kvi_cu_device device, int attribute,
                         int *out_value)
{
    int result = driver->device_attribute(out_value, attribute, device);

    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA device",
                               "cuDeviceGetAttribute");
    return 0;
}

/* The device of this ordinal, as the driver calls it. */
static int device_open(const struct kvi_cuda_driver *driver, uint32_t device_index,
                       struct kvi_backend_cuda_device *what, kvi_cu_device *out)
{
    int count = 0;
    int result = driver->device_count(&count);

    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA device", "cuDeviceGetCount");
    if (count <= 0)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "CUDA driver %.80s sees no device: "
                             "see CUDA_VISIBLE_DEVICES, " KVI_CUDA_NO_DRIVER_HINT,
                             driver->path);
    if (device_index >= (uint32_t)count)
        return kvi_error_set(KVMEM_E_INVALID,
                             "device_index is %" PRIu32 ": the driver sees %d device%s, 0 to %d",
                             device_index, count, count == 1 ? "" : "s", count - 1);
    result = driver->device_get(out, (int)device_index);
    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA device", "cuDeviceGet");
    what->driver_version = driver->version;
    what->device_count = (uint32_t)count;
    return 0;
}

static int device_attributes(const struct kvi_cuda_driver *driver, kvi_cu_device device,
                             struct kvi_backend_cuda_device *what)
{
    int value = 0;
    int minor = 0;
    int rc = 0;

    for (size_t i = 0; i < sizeof(attributes_wanted) / sizeof(attributes_wanted[0]); i++) {
        rc = attribute_get(driver, device, attributes_wanted[i].attribute, &value);
        if (rc < 0)
            return rc;
        if (value == 0)
            return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                                 "CUDA device %d (%s) has not CU_DEVICE_ATTRIBUTE_%s: take another "
                                 "device, " KVI_CUDA_NO_DRIVER_HINT,
                                 device, what->name, attributes_wanted[i].name);
    }
    rc = attribute_get(driver, device, KVI_CU_ATTRIBUTE_RDMA_WITH_VMM, &value);
    what->rdma_capable = value != 0;
    if (rc == 0)
        rc = attribute_get(driver, device, KVI_CU_ATTRIBUTE_CAPABILITY_MAJOR, &value);
    if (rc == 0)
        rc = attribute_get(driver, device, KVI_CU_ATTRIBUTE_CAPABILITY_MINOR, &minor);
    what->capability = 10 * value + minor;
    return rc;
}

/* What tells the device from others in every process, and whether MPS stands before it. A driver
 * that does not know that attribute refuses it. */
static int device_identity(const struct kvi_cuda_driver *driver, kvi_cu_device device,
                           struct kvi_backend_cuda_device *what)
{
    struct kvi_cu_uuid uuid;
    int value = 0;
    int result = driver->device_uuid(&uuid, device);

    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA device", "cuDeviceGetUuid");
    memcpy(what->uuid, uuid.bytes, sizeof(what->uuid));
    result = driver->device_attribute(&value, KVI_CU_ATTRIBUTE_MPS_ENABLED, device);
    if (result != 0 && result != KVI_CU_INVALID_VALUE)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA device",
                               "cuDeviceGetAttribute");
    what->under_mps = result == 0 && value != 0;
    return 0;
}

static struct kvi_cu_allocation allocation_of(kvi_cu_device device, bool rdma_capable)
{
    return (struct kvi_cu_allocation){
        .type = KVI_CU_ALLOCATION_PINNED,
        .handle_types = KVI_CU_HANDLE_POSIX_FD,
        .location = {.type = KVI_CU_LOCATION_DEVICE, .id = device},
        .gpu_direct_rdma_capable = rdma_capable,
    };
}

static int device_sizes(const struct kvi_cuda_driver *driver, kvi_cu_device device,
                        struct kvi_backend_cuda_device *what)
{
    struct kvi_cu_allocation allocation = allocation_of(device, what->rdma_capable);
    size_t granule_bytes = 0;
    size_t total_bytes = 0;
    int result;

    result = driver->memory_granularity(&granule_bytes, &allocation, KVI_CU_GRANULARITY_MINIMUM);
    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA device",
                               "cuMemGetAllocationGranularity");
    if (granule_bytes == 0 || (granule_bytes & (granule_bytes - 1)) != 0)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "CUDA device %d (%s): granularity %zu is no power of two", device,
                             what->name, granule_bytes);
    result = driver->device_total(&total_bytes, device);
    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA device", "cuDeviceTotalMem");
    what->granule_bytes = granule_bytes;
    what->total_bytes = total_bytes;
    return 0;
}

/* Everything about the device, or why it will not do. */
static int device_look(const struct kvi_backend_cuda_options *options,
                       struct kvi_backend_cuda_device *what, const struct kvi_cuda_driver **driver,
                       kvi_cu_device *device)
{
    int rc = kvi_cuda_driver_open(options->driver_path, driver);
    int result;

    memset(what, 0, sizeof(*what));
    if (rc == 0)
        rc = device_open(*driver, options->device_index, what, device);
    if (rc < 0)
        return rc;
    result = (*driver)->device_name(what->name, (int)sizeof(what->name), *device);
    if (result != 0)
        return kvi_cuda_failed(*driver, result, KVMEM_E_SYSTEM, "CUDA device", "cuDeviceGetName");
    what->name[sizeof(what->name) - 1] = '\0';
    rc = device_attributes(*driver, *device, what);
    if (rc == 0)
        rc = device_identity(*driver, *device, what);
    return rc < 0 ? rc : device_sizes(*driver, *device, what);
}

static int options_check(const struct kvi_backend_cuda_options *options, const void *out)
{
    if (options == NULL || out == NULL)
        return kvi_error_set(KVMEM_E_INVALID, "options or out is NULL");
    if (options->options_bytes != sizeof(*options))
        return kvi_error_set(KVMEM_E_INVALID, "options_bytes is %" PRIu32 ": want %zu",
                             options->options_bytes, sizeof(*options));
    return 0;
}

int kvi_backend_cuda_query(const struct kvi_backend_cuda_options *options,
                           struct kvi_backend_cuda_device *out)
{
    const struct kvi_cuda_driver *driver;
    struct kvi_backend_cuda_device what;
    kvi_cu_device device;
    int rc = options_check(options, out);

    if (rc == 0)
        rc = device_look(options, &what, &driver, &device);
    if (rc == 0)
        *out = what;
    return rc;
}

/* ---- the backend ---- */

static int cuda_memory(struct kvi_backend *b, struct kvi_backend_memory *out)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    struct kvi_backend_memory memory = {0};
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    int rc = kvi_backend_cuda_enter(cuda, "memory");
    int result;

    if (rc < 0)
        return rc;
    result = cuda->driver->memory_info(&free_bytes, &total_bytes);
    kvi_backend_cuda_leave(cuda);
    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "memory", "cuMemGetInfo");
    memory.total_bytes = total_bytes;
    memory.free_bytes = free_bytes;
    kvi_book_count(&cuda->book, &memory);
    pthread_mutex_lock(&cuda->pin_lock);
    memory.pin_count = cuda->pin_count;
    pthread_mutex_unlock(&cuda->pin_lock);
    *out = memory;
    return 0;
}

static void cuda_destroy(struct kvi_backend *b)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    bool entered = cuda->driver->context_push(cuda->context) == 0 ||
                   cuda->driver->context_push(cuda->context) == 0; /* a passing failure */

    /* In a dead context every call fails, and there is nothing left to give back. */
    kvi_backend_cuda_space_fini(cuda);
    kvi_backend_cuda_segments_fini(cuda);
    kvi_backend_cuda_pins_fini(cuda);
    kvi_backend_cuda_allocations_fini(cuda);
    if (entered) {
        kvi_backend_cuda_kernels_fini(cuda);
        kvi_backend_cuda_leave(cuda);
    }
    (void)cuda->driver->context_release(cuda->device);
    kvi_book_fini(&cuda->book);
    kvi_release(cuda->alloc, cuda->pins, cuda->pin_capacity * sizeof(*cuda->pins));
    pthread_mutex_destroy(&cuda->pin_lock);
    pthread_mutex_destroy(&cuda->lock);
    kvi_release(cuda->alloc, cuda, sizeof(*cuda));
}

static const struct kvi_backend_ops cuda_ops = {
    .version = KVI_BACKEND_VERSION,
    .table_bytes = sizeof(struct kvi_backend_ops),
    .destroy = cuda_destroy,
    .memory = cuda_memory,
    .segment_create = kvi_backend_cuda_segment_create,
    .segment_export = kvi_backend_cuda_segment_export,
    .segment_import_consume = kvi_backend_cuda_segment_import_consume,
    .segment_release = kvi_backend_cuda_segment_release,
    .reserve = kvi_backend_cuda_reserve,
    .unreserve = kvi_backend_cuda_unreserve,
    .map = kvi_backend_cuda_map,
    .unmap = kvi_backend_cuda_unmap,
    .copy = kvi_backend_cuda_copy,
    .copy_in = kvi_backend_cuda_copy_in,
    .copy_out = kvi_backend_cuda_copy_out,
    .blocks = kvi_backend_cuda_blocks,
    .cells = kvi_backend_cuda_cells,
    .device_alloc = kvi_backend_cuda_device_alloc,
    .device_free = kvi_backend_cuda_device_free,
    .host_pin = kvi_backend_cuda_host_pin,
    .host_unpin = kvi_backend_cuda_host_unpin,
    .fence_signal = kvi_backend_cuda_fence_signal,
    .fence_wait = kvi_backend_cuda_fence_wait,
};

static int device_bytes_check(uint64_t device_bytes, const struct kvi_backend_cuda_device *what)
{
    if (device_bytes % what->granule_bytes != 0 || device_bytes > what->total_bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "device_bytes is %" PRIu64 ": want 0 (only imports) or a multiple of "
                             "the granule, %" PRIu64 ", to the device's %" PRIu64,
                             device_bytes, what->granule_bytes, what->total_bytes);
    return 0;
}

static void info_fill(struct kvi_backend_info *info, const struct kvi_backend_cuda_options *options,
                      const struct kvi_backend_cuda_device *what)
{
    info->kind = KVI_BACKEND_CUDA;
    info->flags = options->device_bytes > 0 ? (uint32_t)KVI_BACKEND_CREATES : 0;
    info->granule_bytes = what->granule_bytes;
    info->device_bytes = options->device_bytes;
    snprintf(info->name, sizeof(info->name), "cuda:%" PRIu32 " %.34s", options->device_index,
             what->name);
}

/* Locks and books of a zeroed instance with its allocator. */
static int cuda_init(struct kvi_backend_cuda *cuda)
{
    int error = pthread_mutex_init(&cuda->lock, NULL);
    int rc;

    if (error != 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, error, "CUDA backend: pthread_mutex_init");
    error = pthread_mutex_init(&cuda->pin_lock, NULL);
    if (error != 0) {
        rc = kvi_error_sys(KVMEM_E_SYSTEM, error, "CUDA backend: pthread_mutex_init");
        goto fail_lock;
    }
    rc = kvi_book_init(&cuda->book, cuda->alloc, cuda->base.info.granule_bytes);
    if (rc < 0)
        goto fail_pin_lock;
    return 0;

fail_pin_lock:
    pthread_mutex_destroy(&cuda->pin_lock);
fail_lock:
    pthread_mutex_destroy(&cuda->lock);
    return rc;
}

/* Retain the primary context and see that it can be entered: one that a kernel's fault has
 * killed is handed out as if it were well. */
static int context_open(struct kvi_backend_cuda *cuda)
{
    const struct kvi_cuda_driver *driver = cuda->driver;
    size_t free_bytes;
    size_t total_bytes;
    int result = driver->context_retain(&cuda->context, cuda->device);
    int rc;

    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_DEVICE_FULL, "CUDA backend",
                               "cuDevicePrimaryCtxRetain");
    rc = kvi_backend_cuda_enter(cuda, "CUDA backend");
    if (rc < 0)
        goto fail_context;
    result = driver->memory_info(&free_bytes, &total_bytes);
    kvi_backend_cuda_leave(cuda);
    if (result == 0)
        return 0;
    rc = kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "CUDA backend", "cuMemGetInfo");
fail_context:
    (void)driver->context_release(cuda->device);
    return rc;
}

int kvi_backend_cuda_create(const struct kvi_backend_cuda_options *options,
                            struct kvi_backend **out)
{
    struct kvi_backend_cuda_device what;
    const struct kvi_cuda_driver *driver;
    const struct kvi_alloc *alloc;
    struct kvi_backend_cuda *cuda;
    kvi_cu_device device;
    int rc = options_check(options, out);

    if (rc == 0)
        rc = device_look(options, &what, &driver, &device);
    if (rc == 0)
        rc = device_bytes_check(options->device_bytes, &what);
    if (rc < 0)
        return rc;
    alloc = options->alloc != NULL ? options->alloc : &kvi_alloc_libc;
    cuda = kvi_allocate(alloc, sizeof(*cuda));
    if (cuda == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "CUDA backend: no memory for %zu bytes",
                             sizeof(*cuda));
    cuda->base.ops = &cuda_ops;
    info_fill(&cuda->base.info, options, &what);
    cuda->alloc = alloc;
    cuda->driver = driver;
    cuda->device = device;
    cuda->allocation = allocation_of(device, what.rdma_capable);
    cuda->total_bytes = what.total_bytes;
    rc = cuda_init(cuda);
    if (rc < 0)
        goto fail_cuda;
    rc = context_open(cuda);
    if (rc < 0)
        goto fail_init;
    if (options->device_bytes == 0) /* an engine's: not at its first list, which is captured */
        rc = kvi_backend_cuda_kernels_load(cuda);
    if (rc < 0)
        goto fail_context;
    *out = &cuda->base;
    return 0;

fail_context:
    (void)driver->context_release(cuda->device);
fail_init:
    kvi_book_fini(&cuda->book);
    pthread_mutex_destroy(&cuda->pin_lock);
    pthread_mutex_destroy(&cuda->lock);
fail_cuda:
    kvi_release(alloc, cuda, sizeof(*cuda));
    return rc;
}

int kvi_backend_cuda_check(struct kvi_backend *b)
{
    struct kvi_backend_cuda *cuda;
    int rc;

    if (b == NULL || b->ops != &cuda_ops)
        return kvi_error_set(KVMEM_E_INVALID, "this is no CUDA backend");
    cuda = kvi_backend_cuda_of(b);
    pthread_mutex_lock(&cuda->lock);
    rc = kvi_book_check(&cuda->book, b->info.granule_bytes, b->info.device_bytes);
    pthread_mutex_unlock(&cuda->lock);
    return rc;
}
