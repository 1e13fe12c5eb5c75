/* SPDX-License-Identifier: Apache-2.0
 *
 * The host device. Requests wait in a list through the table of segments, so that asking cannot
 * fail for want of memory: a segment is asked for at most once at a time.
 */
#include "device.h"

#include <assert.h>

#include "backend/backend_host.h"
#include "log.h"
#include "util/error.h"
#include "util/geometry.h"

#define TARGET_BYTES (UINT64_C(64) << 20)
#define TARGET_SHARE 64u

struct segment {
    struct kvi_phys phys;  /* id 0: no memory */
    uint64_t wanted_bytes; /* > 0 while asked for */
    uint32_t next_wanted;  /* number + 1; 0 at the end */
};

struct kvd_device {
    const struct kvi_alloc *alloc;
    struct kvi_backend *backend;
    struct segment *segments;
    uint32_t wanted_first; /* number + 1; 0 for an empty list */
    uint32_t wanted_last;
    bool is_leaving;
};

int kvd_device_create(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                      struct kvd_device **out)
{
    struct kvi_backend_host_options host = {.options_bytes = sizeof(host),
                                            .device_bytes = options->device_bytes,
                                            .granule_bytes = options->granule_bytes,
                                            .alloc = alloc};
    struct kvd_device *device = kvi_allocate(alloc, sizeof(*device));
    int rc;

    if (device == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "device");
    device->alloc = alloc;
    device->segments = kvi_allocate(alloc, KVI_SEGMENT_LIMIT * sizeof(*device->segments));
    if (device->segments == NULL)
        rc = kvi_error_set(KVMEM_E_NO_MEMORY, "device: table of %u segments", KVI_SEGMENT_LIMIT);
    else
        rc = kvi_backend_host_create(&host, &device->backend);
    if (rc < 0) {
        kvd_device_destroy(device);
        return rc;
    }
    *out = device;
    return 0;
}

void kvd_device_destroy(struct kvd_device *device)
{
    if (device == NULL)
        return;
    kvi_backend_destroy(device->backend);
    kvi_release(device->alloc, device->segments, KVI_SEGMENT_LIMIT * sizeof(*device->segments));
    kvi_release(device->alloc, device, sizeof(*device));
}

const struct kvi_backend_info *kvd_device_info(const struct kvd_device *device)
{
    return &device->backend->info;
}

uint64_t kvd_device_target_bytes(const struct kvd_device *device)
{
    const struct kvi_backend_info *info = &device->backend->info;
    uint64_t bytes = info->device_bytes / TARGET_SHARE;

    if (bytes > TARGET_BYTES)
        bytes = TARGET_BYTES;
    bytes -= bytes % info->granule_bytes;
    return bytes > 0 ? bytes : info->granule_bytes;
}

uint32_t kvd_device_segment_limit(const struct kvd_device *device)
{
    const struct kvi_backend_info *info = &device->backend->info;
    uint64_t smallest = kvd_device_target_bytes(device) / 2;
    uint64_t count =
        info->device_bytes / (smallest > info->granule_bytes ? smallest : info->granule_bytes);

    return count < KVI_SEGMENT_LIMIT ? (uint32_t)count : KVI_SEGMENT_LIMIT;
}

void kvd_device_segment_create(struct kvd_device *device, uint32_t segment, uint64_t bytes)
{
    struct segment *wanted = &device->segments[segment];

    assert(segment < KVI_SEGMENT_LIMIT && bytes > 0);
    assert(wanted->phys.id == 0 && wanted->wanted_bytes == 0);
    wanted->wanted_bytes = bytes;
    wanted->next_wanted = 0;
    if (device->wanted_first == 0)
        device->wanted_first = segment + 1;
    else
        device->segments[device->wanted_last - 1].next_wanted = segment + 1;
    device->wanted_last = segment + 1;
}

bool kvd_device_next_created(struct kvd_device *device, uint32_t *segment, int *code)
{
    struct segment *wanted;

    if (device->wanted_first == 0)
        return false;
    *segment = device->wanted_first - 1;
    wanted = &device->segments[*segment];
    device->wanted_first = wanted->next_wanted;
    *code = kvi_backend_segment_create(device->backend, wanted->wanted_bytes, &wanted->phys);
    wanted->wanted_bytes = 0;
    if (*code < 0)
        kvd_log("segment %u: %s", *segment, kvmem_error_detail()->text);
    return true;
}

void kvd_device_segment_release(struct kvd_device *device, uint32_t segment)
{
    struct segment *gone = &device->segments[segment];

    assert(segment < KVI_SEGMENT_LIMIT);
    if (device->is_leaving)
        return;
    assert(gone->phys.id != 0);
    if (kvi_backend_segment_release(device->backend, gone->phys) < 0)
        kvd_log("segment %u is lost until the daemon ends: %s", segment,
                kvmem_error_detail()->text);
    gone->phys.id = 0;
}

int kvd_device_segment_export(struct kvd_device *device, uint32_t segment, int *out_fd)
{
    assert(segment < KVI_SEGMENT_LIMIT);
    return kvi_backend_segment_export(device->backend, device->segments[segment].phys, out_fd);
}

void kvd_device_leave(struct kvd_device *device)
{
    device->is_leaving = true;
}
