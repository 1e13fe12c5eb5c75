/* SPDX-License-Identifier: Apache-2.0
 *
 * The fake driver's device memory and address space. See fake_cuda.h.
 *
 *   object        a memfd, sealed, named after its device; lives while a handle or mapping does
 *   reservation   an mmap() without rights
 *   mapping       an object at an address in a reservation, whole
 *   allocation    an mmap() of cuMemAlloc, read-write
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/fake_cuda/fake_internal.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct fake_object {
    struct fake_object *next;
    int fd;
    int device;
    bool created;
    uint64_t bytes;
    uint64_t handles;
    uint64_t mappings;
};

struct fake_reservation {
    struct fake_reservation *next;
    uint64_t base;
    uint64_t bytes;
};

struct fake_mapping {
    struct fake_mapping *next;
    struct fake_object *object;
    uint64_t address;
    uint64_t bytes;
    int access;
};

static struct fake_object *objects;
static struct fake_reservation *reservations;
static struct fake_mapping *mappings;
static struct fake_reservation *allocations; /* of cuMemAlloc */

static void *pointer_to(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

static void *zeroed(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (memory == NULL)
        abort();
    return memory;
}

/* ---- objects ---- */

static struct fake_object *object_find(kvi_cu_handle handle)
{
    struct fake_object *one = objects;

    while (one != NULL && ((uintptr_t)one != handle || one->handles == 0))
        one = one->next;
    return one;
}

static kvi_cu_handle object_add(int fd, int device, uint64_t bytes, bool created)
{
    struct fake_object *one = zeroed(sizeof(*one));

    *one = (struct fake_object){.next = objects,
                                .fd = fd,
                                .device = device,
                                .created = created,
                                .bytes = bytes,
                                .handles = 1};
    objects = one;
    fake_cuda_control.objects++;
    fake_cuda_control.handle_refs++;
    fake_cuda_control.used_bytes += created ? bytes : 0;
    return (uintptr_t)one;
}

static void object_settle(struct fake_object *one)
{
    struct fake_object **at = &objects;

    if (one->handles > 0 || one->mappings > 0)
        return;
    while (*at != one)
        at = &(*at)->next;
    *at = one->next;
    fake_cuda_control.objects--;
    fake_cuda_control.used_bytes -= one->created ? one->bytes : 0;
    close(one->fd);
    free(one);
}

static int allocation_check(const struct kvi_cu_allocation *allocation)
{
    if (allocation->type != KVI_CU_ALLOCATION_PINNED ||
        allocation->handle_types != KVI_CU_HANDLE_POSIX_FD ||
        allocation->location.type != KVI_CU_LOCATION_DEVICE || allocation->location.id < 0 ||
        allocation->location.id >= fake_cuda_control.device_count ||
        allocation->win32_metadata != NULL || allocation->gpu_direct_rdma_capable > 1)
        return KVI_CU_INVALID_VALUE;
    return 0;
}

int fake_memory_info(size_t *out_free, size_t *out_total)
{
    int result = fake_enter("cuMemGetInfo");

    if (result != 0)
        return result;
    if (fake_current_device() < 0)
        result = fake_misused("cuMemGetInfo", KVI_CU_INVALID_CONTEXT);
    fake_queue_drain(); /* time has passed */
    *out_total = fake_cuda_control.device_bytes;
    *out_free = fake_cuda_control.device_bytes - fake_cuda_control.used_bytes;
    fake_leave();
    return result;
}

int fake_memory_granularity(size_t *out_bytes, const struct kvi_cu_allocation *allocation,
                            int option)
{
    int result = fake_enter("cuMemGetAllocationGranularity");

    if (result != 0)
        return result;
    if (allocation_check(allocation) != 0 || option != KVI_CU_GRANULARITY_MINIMUM)
        result = fake_misused("cuMemGetAllocationGranularity", KVI_CU_INVALID_VALUE);
    *out_bytes = fake_cuda_control.granule_bytes;
    fake_leave();
    return result;
}

static int memfd_new(int device, uint64_t bytes)
{
    char name[32];
    int fd;

    snprintf(name, sizeof(name), "fake-cuda-%d", device);
    fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && (ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

int fake_memory_create(kvi_cu_handle *out, size_t bytes, const struct kvi_cu_allocation *allocation,
                       unsigned long long flags)
{
    const struct fake_cuda_control *control = &fake_cuda_control;
    int result = fake_enter("cuMemCreate");
    int fd;

    if (result != 0)
        return result;
    if (flags != 0 || allocation_check(allocation) != 0 || bytes == 0 ||
        bytes % control->granule_bytes != 0) {
        result = fake_misused("cuMemCreate", KVI_CU_INVALID_VALUE);
    } else if (bytes > control->device_bytes - control->used_bytes) {
        result = KVI_CU_OUT_OF_MEMORY;
    } else {
        fd = memfd_new(allocation->location.id, bytes);
        if (fd < 0)
            result = KVI_CU_OPERATING_SYSTEM;
        else
            *out = object_add(fd, allocation->location.id, bytes, true);
    }
    fake_leave();
    return result;
}

int fake_memory_release(kvi_cu_handle handle)
{
    int result = fake_enter("cuMemRelease");
    struct fake_object *one;

    if (result != 0)
        return result;
    one = object_find(handle);
    if (one == NULL) {
        result = fake_misused("cuMemRelease", KVI_CU_INVALID_VALUE);
    } else {
        one->handles--;
        fake_cuda_control.handle_refs--;
        object_settle(one);
    }
    fake_leave();
    return result;
}

/* Without close-on-exec: whoever asks has to see to it. */
int fake_memory_export(void *out, kvi_cu_handle handle, int type, unsigned long long flags)
{
    int result = fake_enter("cuMemExportToShareableHandle");
    struct fake_object *one;
    int fd = -1;

    if (result != 0)
        return result;
    one = object_find(handle);
    if (one == NULL || !one->created || type != KVI_CU_HANDLE_POSIX_FD || flags != 0)
        result = fake_misused("cuMemExportToShareableHandle", KVI_CU_INVALID_VALUE);
    else
        fd = fcntl(one->fd, F_DUPFD, 3);
    if (result == 0 && fd < 0)
        result = KVI_CU_OPERATING_SYSTEM;
    if (result == 0)
        memcpy(out, &fd, sizeof(fd));
    fake_leave();
    return result;
}

/* The device that the fd is memory of, or −1. */
static int fd_device(int fd)
{
    char link[64];
    char name[128];
    ssize_t length;
    int device = -1;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, name, sizeof(name) - 1);
    if (length < 0 || fcntl(fd, F_GET_SEALS) != SEALS)
        return -1;
    name[length] = '\0';
    return sscanf(name, "/memfd:fake-cuda-%d", &device) == 1 ? device : -1;
}

int fake_memory_import(kvi_cu_handle *out, void *shareable, int type)
{
    int result = fake_enter("cuMemImportFromShareableHandle");
    int from = (int)(intptr_t)shareable;
    struct stat status;
    int device;
    int fd;

    if (result != 0)
        return result;
    device = fd_device(from);
    if (type != KVI_CU_HANDLE_POSIX_FD) {
        result = fake_misused("cuMemImportFromShareableHandle", KVI_CU_INVALID_VALUE);
    } else if (device < 0 || fstat(from, &status) < 0) {
        result = KVI_CU_INVALID_VALUE;
    } else {
        fd = fcntl(from, F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
            result = KVI_CU_OPERATING_SYSTEM;
        else
            *out = object_add(fd, device, (uint64_t)status.st_size, false);
    }
    fake_leave();
    return result;
}

int fake_memory_properties(struct kvi_cu_allocation *out, kvi_cu_handle handle)
{
    int result = fake_enter("cuMemGetAllocationPropertiesFromHandle");
    const struct fake_object *one;

    if (result != 0)
        return result;
    one = object_find(handle);
    if (one == NULL)
        result = fake_misused("cuMemGetAllocationPropertiesFromHandle", KVI_CU_INVALID_VALUE);
    else
        *out = (struct kvi_cu_allocation){
            .type = KVI_CU_ALLOCATION_PINNED,
            .handle_types = KVI_CU_HANDLE_POSIX_FD,
            .location = {.type = KVI_CU_LOCATION_DEVICE, .id = one->device}};
    fake_leave();
    return result;
}

/* ---- reservations ---- */

/* The range, aligned; with ignores_alignment to no more than the granule. */
static uint64_t address_take(uint64_t bytes, uint64_t alignment)
{
    const struct fake_cuda_control *control = &fake_cuda_control;
    uint64_t granule = control->granule_bytes;
    bool askew = control->ignores_alignment && alignment > granule;
    uint64_t extra = (alignment > granule ? alignment : granule) + (askew ? granule : 0);
    uint64_t start;
    uint64_t base;
    void *memory;

    if (bytes > UINT64_MAX - extra)
        return 0;
    memory =
        mmap(NULL, bytes + extra, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return 0;
    alignment = alignment > granule ? alignment : granule;
    start = (uintptr_t)memory;
    base = ((start + alignment - 1) & ~(alignment - 1)) + (askew ? granule : 0);
    if (base > start)
        munmap(memory, base - start);
    if (start + extra > base)
        munmap(pointer_to(base + bytes), start + extra - base);
    return base;
}

int fake_address_reserve(kvi_cu_address *out, size_t bytes, size_t alignment, kvi_cu_address hint,
                         unsigned long long flags)
{
    int result = fake_enter("cuMemAddressReserve");
    struct fake_reservation *one;
    uint64_t base = 0;

    if (result != 0)
        return result;
    if (hint != 0 || flags != 0 || bytes == 0 || bytes % fake_cuda_control.granule_bytes != 0 ||
        (alignment & (alignment - 1)) != 0)
        result = fake_misused("cuMemAddressReserve", KVI_CU_INVALID_VALUE);
    else
        base = address_take(bytes, alignment);
    if (result == 0 && base == 0)
        result = KVI_CU_OUT_OF_MEMORY;
    if (result == 0) {
        one = zeroed(sizeof(*one));
        *one = (struct fake_reservation){reservations, base, bytes};
        reservations = one;
        fake_cuda_control.reservations++;
        *out = base;
    }
    fake_leave();
    return result;
}

/* The first mapping with a byte in the range. */
static struct fake_mapping *mapping_in(uint64_t address, uint64_t bytes)
{
    struct fake_mapping *one = mappings;

    while (one != NULL && (one->address >= address + bytes || one->address + one->bytes <= address))
        one = one->next;
    return one;
}

int fake_address_free(kvi_cu_address address, size_t bytes)
{
    int result = fake_enter("cuMemAddressFree");
    struct fake_reservation **at = &reservations;
    struct fake_reservation *one;

    if (result != 0)
        return result;
    while (*at != NULL && ((*at)->base != address || (*at)->bytes != bytes))
        at = &(*at)->next;
    one = *at;
    if (one == NULL || mapping_in(address, bytes) != NULL) {
        result = fake_misused("cuMemAddressFree", KVI_CU_INVALID_VALUE);
    } else {
        *at = one->next;
        free(one);
        munmap(pointer_to(address), bytes);
        fake_cuda_control.reservations--;
    }
    fake_leave();
    return result;
}

/* ---- mappings ---- */

static bool range_reserved(uint64_t address, uint64_t bytes)
{
    const struct fake_reservation *one = reservations;

    while (one != NULL && (address < one->base || address + bytes > one->base + one->bytes))
        one = one->next;
    return one != NULL;
}

/* What the driver says to such a mapping: FACTS has the codes. */
static int map_check(const struct fake_object *object, uint64_t address, uint64_t bytes,
                     uint64_t offset)
{
    if (object == NULL || !range_reserved(address, bytes) || mapping_in(address, bytes) != NULL)
        return fake_misused("cuMemMap", KVI_CU_INVALID_VALUE);
    if (offset != 0 || bytes < object->bytes)
        return KVI_CU_NOT_SUPPORTED;
    return bytes > object->bytes ? KVI_CU_INVALID_VALUE : 0;
}

int fake_map(kvi_cu_address address, size_t bytes, size_t offset, kvi_cu_handle handle,
             unsigned long long flags)
{
    int result = fake_enter("cuMemMap");
    struct fake_object *object;
    struct fake_mapping *one;

    if (result != 0)
        return result;
    object = object_find(handle);
    result = flags != 0 ? KVI_CU_INVALID_VALUE : map_check(object, address, bytes, offset);
    if (result == 0 && mmap(pointer_to(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED,
                            object->fd, 0) == MAP_FAILED)
        abort();
    if (result == 0) {
        one = zeroed(sizeof(*one));
        *one = (struct fake_mapping){mappings, object, address, bytes, 0};
        mappings = one;
        object->mappings++;
        fake_cuda_control.mappings++;
    }
    fake_leave();
    return result;
}

int fake_unmap(kvi_cu_address address, size_t bytes)
{
    int result = fake_enter("cuMemUnmap");
    struct fake_mapping **at = &mappings;
    struct fake_mapping *one;

    if (result != 0)
        return result;
    while (*at != NULL && ((*at)->address != address || (*at)->bytes != bytes))
        at = &(*at)->next;
    one = *at;
    if (one == NULL) {
        result = fake_misused("cuMemUnmap", KVI_CU_INVALID_VALUE);
    } else {
        *at = one->next;
        if (mmap(pointer_to(address), bytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
            abort();
        one->object->mappings--;
        object_settle(one->object);
        free(one);
        fake_cuda_control.mappings--;
    }
    fake_leave();
    return result;
}

static int access_set(uint64_t address, uint64_t bytes, const struct kvi_cu_access *access)
{
    uint64_t reached = address;
    int rights = access->flags == KVI_CU_ACCESS_READ ? PROT_READ : PROT_READ | PROT_WRITE;

    while (reached < address + bytes) {
        struct fake_mapping *one = mapping_in(reached, 1);

        if (one == NULL || one->address != reached || reached + one->bytes > address + bytes)
            return fake_misused("cuMemSetAccess", KVI_CU_INVALID_VALUE);
        if (one->access != 0)
            return fake_misused("cuMemSetAccess", KVI_CU_ILLEGAL_ADDRESS);
        if (mprotect(pointer_to(one->address), one->bytes, rights) < 0)
            abort();
        one->access = access->flags;
        reached += one->bytes;
    }
    return 0;
}

int fake_set_access(kvi_cu_address address, size_t bytes, const struct kvi_cu_access *access,
                    size_t count)
{
    int result = fake_enter("cuMemSetAccess");

    if (result != 0)
        return result;
    if (count != 1 || access->location.type != KVI_CU_LOCATION_DEVICE ||
        (access->flags != KVI_CU_ACCESS_READ && access->flags != KVI_CU_ACCESS_READ_WRITE))
        result = fake_misused("cuMemSetAccess", KVI_CU_INVALID_VALUE);
    else
        result = access_set(address, bytes, access);
    fake_leave();
    return result;
}

int fake_memory_retain(kvi_cu_handle *out, void *address)
{
    int result = fake_enter("cuMemRetainAllocationHandle");
    struct fake_mapping *one;

    if (result != 0)
        return result;
    one = mapping_in((uintptr_t)address, 1);
    if (one == NULL) {
        result = fake_misused("cuMemRetainAllocationHandle", KVI_CU_INVALID_VALUE);
    } else {
        one->object->handles++;
        fake_cuda_control.handle_refs++;
        *out = (uintptr_t)one->object;
    }
    fake_leave();
    return result;
}

/* ---- cuMemAlloc ---- */

int fake_device_alloc(kvi_cu_address *out, size_t bytes)
{
    struct fake_cuda_control *control = &fake_cuda_control;
    int result = fake_enter("cuMemAlloc");
    struct fake_reservation *one;
    void *memory = MAP_FAILED;

    if (result != 0)
        return result;
    if (fake_current_device() < 0 || bytes == 0)
        result = fake_misused("cuMemAlloc", KVI_CU_INVALID_VALUE);
    else if (bytes > control->device_bytes - control->used_bytes)
        result = KVI_CU_OUT_OF_MEMORY;
    else
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (result == 0 && memory == MAP_FAILED)
        abort();
    if (result == 0) {
        memset(memory, 0xa5, bytes); /* not what anybody may count on */
        one = zeroed(sizeof(*one));
        *one = (struct fake_reservation){allocations, (uintptr_t)memory, bytes};
        allocations = one;
        control->allocations++;
        control->used_bytes += bytes;
        *out = one->base;
    }
    fake_leave();
    return result;
}

int fake_device_free(kvi_cu_address address)
{
    int result = fake_enter("cuMemFree");
    struct fake_reservation **at = &allocations;
    struct fake_reservation *one;

    if (result != 0)
        return result;
    while (*at != NULL && (*at)->base != address)
        at = &(*at)->next;
    one = *at;
    if (one == NULL || fake_current_device() < 0) {
        result = fake_misused("cuMemFree", KVI_CU_INVALID_VALUE);
    } else {
        *at = one->next;
        munmap(pointer_to(address), one->bytes);
        fake_cuda_control.allocations--;
        fake_cuda_control.used_bytes -= one->bytes;
        free(one);
    }
    fake_leave();
    return result;
}

static bool range_allocated(uint64_t address, uint64_t bytes)
{
    const struct fake_reservation *one = allocations;

    while (one != NULL && (address < one->base || address + bytes > one->base + one->bytes))
        one = one->next;
    return one != NULL;
}

bool fake_range_ok(uint64_t address, uint64_t bytes, bool write)
{
    uint64_t reached = address;

    if (range_allocated(address, bytes))
        return true;
    while (reached < address + bytes) {
        const struct fake_mapping *one = mapping_in(reached, 1);

        if (one == NULL || one->access == 0 || (write && one->access != KVI_CU_ACCESS_READ_WRITE))
            return false;
        reached = one->address + one->bytes;
    }
    return true;
}
