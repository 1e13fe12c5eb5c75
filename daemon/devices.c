/* SPDX-License-Identifier: Apache-2.0
 */
#include "devices.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "util/error.h"
#include "util/geometry.h"

#define FDS_PER_GPU 64u /* what a driver keeps open for itself, amply, and anchor and spare */
#define LEAVE_NS    KVD_SECOND_NS

struct kvd_devices {
    const struct kvi_alloc *alloc;
    struct kvd_device *devices[KVI_DEVICE_LIMIT];
    uint32_t count;
    uint32_t turn; /* who answers next: none waits for another's answers */
    int wake_fd;
    uint8_t device_of[KVI_SEGMENT_LIMIT];
};

/* Milliseconds from the environment, for tests; at most `longest_ns`, which is also the default. */
static uint64_t time_ns(const char *variable, uint64_t longest_ns)
{
    const char *text = getenv(variable);

    if (text == NULL || strtoull(text, NULL, 10) >= longest_ns / KVD_MILLISECOND_NS)
        return longest_ns;
    return strtoull(text, NULL, 10) * KVD_MILLISECOND_NS;
}

static struct kvd_device_times times_get(void)
{
    struct kvd_device_times times = {
        .stuck_ns = time_ns("KVMEM_STUCK_MS", KVD_STUCK_NS),
        .spare_ns = time_ns("KVMEM_SPARE_MS", KVD_SPARE_NS),
    };

    if (times.stuck_ns == 0)
        times.stuck_ns = KVD_STUCK_NS;
    return times;
}

int kvd_devices_create(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                       uint32_t count, struct kvd_devices **out)
{
    struct kvd_devices *devices = kvi_allocate(alloc, sizeof(*devices));
    struct kvd_device_times times = times_get();
    int rc = 0;

    assert(count >= 1 && count <= KVI_DEVICE_LIMIT);
    if (devices == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "devices");
    devices->alloc = alloc;
    devices->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (devices->wake_fd < 0)
        rc = kvi_error_sys(KVMEM_E_SYSTEM, errno, "devices: eventfd");
    while (rc == 0 && devices->count < count) {
        rc = kvd_device_create(alloc, &options[devices->count], devices->wake_fd, &times,
                               &devices->devices[devices->count]);
        devices->count += rc == 0;
    }
    if (rc < 0) {
        kvd_devices_destroy(devices);
        return rc;
    }
    *out = devices;
    return 0;
}

bool kvd_devices_destroy(struct kvd_devices *devices)
{
    uint64_t deadline_ns = kvd_now_ns() + LEAVE_NS;
    bool all = true;

    if (devices == NULL)
        return true;
    kvd_devices_leave(devices);
    for (uint32_t i = 0; i < devices->count; i++)
        all &= kvd_device_destroy(devices->devices[i], deadline_ns);
    if (!all)
        return false; /* a worker is left, which writes wake_fd */
    if (devices->wake_fd >= 0)
        close(devices->wake_fd);
    kvi_release(devices->alloc, devices, sizeof(*devices));
    return true;
}

uint32_t kvd_devices_count(const struct kvd_devices *devices)
{
    return devices->count;
}

struct kvd_device *kvd_devices_at(const struct kvd_devices *devices, uint32_t index)
{
    assert(index < devices->count);
    return devices->devices[index];
}

int kvd_devices_fd(const struct kvd_devices *devices)
{
    return devices->wake_fd;
}

uint32_t kvd_devices_segment_limit(const struct kvd_devices *devices)
{
    uint32_t limit = 0;

    for (uint32_t i = 0; i < devices->count; i++)
        limit += kvd_device_segment_limit(devices->devices[i]);
    return limit < KVI_SEGMENT_LIMIT ? limit : KVI_SEGMENT_LIMIT;
}

uint32_t kvd_devices_fd_limit(const struct kvd_devices *devices)
{
    uint32_t gpus = 0;

    for (uint32_t i = 0; i < devices->count; i++)
        gpus += kvd_device_about(devices->devices[i])->kind == KVI_BACKEND_CUDA;
    return kvd_devices_segment_limit(devices) + gpus * FDS_PER_GPU;
}

/* ---- segments ---- */

void kvd_devices_segment_create(struct kvd_devices *devices, uint32_t segment, uint32_t device,
                                uint64_t bytes)
{
    assert(segment < KVI_SEGMENT_LIMIT && device < devices->count);
    devices->device_of[segment] = (uint8_t)device;
    kvd_device_segment_create(devices->devices[device], segment, bytes);
}

bool kvd_devices_next_created(struct kvd_devices *devices, uint32_t *segment, int *code)
{
    for (uint32_t i = 0; i < devices->count; i++) {
        uint32_t at = devices->turn++ % devices->count;

        if (kvd_device_next_created(devices->devices[at], segment, code))
            return true;
    }
    return false;
}

void kvd_devices_segment_release(struct kvd_devices *devices, uint32_t segment)
{
    assert(segment < KVI_SEGMENT_LIMIT);
    kvd_device_segment_release(devices->devices[devices->device_of[segment]], segment);
}

int kvd_devices_segment_export(struct kvd_devices *devices, uint32_t segment, int *out_fd)
{
    assert(segment < KVI_SEGMENT_LIMIT);
    return kvd_device_segment_export(devices->devices[devices->device_of[segment]], segment,
                                     out_fd);
}

/* ---- all of them ---- */

uint64_t kvd_devices_deadline_ns(struct kvd_devices *devices)
{
    uint64_t next_ns = KVD_NEVER_NS;

    for (uint32_t i = 0; i < devices->count; i++)
        next_ns = kvd_earlier_ns(next_ns, kvd_device_deadline_ns(devices->devices[i]));
    return next_ns;
}

void kvd_devices_look(struct kvd_devices *devices)
{
    for (uint32_t i = 0; i < devices->count; i++)
        kvd_device_look(devices->devices[i]);
}

void kvd_devices_leave(struct kvd_devices *devices)
{
    for (uint32_t i = 0; i < devices->count; i++)
        kvd_device_leave(devices->devices[i]);
}
