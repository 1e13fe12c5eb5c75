/* SPDX-License-Identifier: Apache-2.0
 *
 * Two lists and a thread. A token in a list is a segment's number and what is to be done with it;
 * the links lie in the table, one for each of the two.
 */
#include "device.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "util/error.h"
#include "util/geometry.h"

#define TARGET_BYTES (UINT64_C(64) << 20)
#define TARGET_SHARE 64u

enum job {
    CREATE = 0,
    RELEASE = 1
};

struct segment {
    struct kvi_phys phys;  /* the worker's; id 0: no memory */
    int fd;                /* of the memory, where there is a worker */
    int code;              /* of its creation, once that is in `created` */
    uint64_t wanted_bytes; /* by its creation */
    uint32_t next[2];      /* by job: token in the same list; 0 at the end */
};

/* token = 2 × number + job + 1; 0: none */
struct list {
    uint32_t first;
    uint32_t last;
};

struct kvd_device {
    const struct kvi_alloc *alloc;
    struct kvi_backend *backend;
    struct kvd_anchor anchor;
    struct kvi_dir_device about;
    struct segment *segments;
    uint64_t stuck_ns; /* how long a driver call may take */
    int wake_fd;
    bool has_worker;
    pthread_t worker;
    pthread_cond_t moved; /* something for the worker, or it has ended */
    pthread_mutex_t lock; /* guards the lists, their links, and the fields below */
    struct list wanted;
    struct list created;
    uint64_t call_start_ns; /* 0: no driver call at the moment */
    uint64_t call_took_ns;  /* of the last one that was stuck */
    uint32_t in_flight; /* number + 1 of the segment that is being created, 0: none or given up */
    bool is_stuck;
    bool is_well_again; /* since the last look */
    bool is_leaving;
    bool has_ended;         /* the worker */
    uint32_t trouble_count; /* failures since the last look */
    char trouble[256];      /* the last of them */
};

/* ---- lists, under the lock ---- */

static void list_append(struct kvd_device *device, struct list *list, uint32_t number, enum job job)
{
    uint32_t token = 2 * number + (uint32_t)job + 1;

    device->segments[number].next[job] = 0;
    if (list->first == 0)
        list->first = token;
    else
        device->segments[(list->last - 1) / 2].next[(list->last - 1) % 2] = token;
    list->last = token;
}

static bool list_take(struct kvd_device *device, struct list *list, uint32_t *number, enum job *job)
{
    uint32_t token = list->first;

    if (token == 0)
        return false;
    *number = (token - 1) / 2;
    *job = (token - 1) % 2 == 0 ? CREATE : RELEASE;
    list->first = device->segments[*number].next[*job];
    if (list->first == 0)
        list->last = 0;
    return true;
}

static void answer(struct kvd_device *device, uint32_t number, int code)
{
    device->segments[number].code = code;
    list_append(device, &device->created, number, CREATE);
}

/* ---- driver calls ---- */

/* The lock is given up for the call, and the watchdog sees it. */
static void call_begin(struct kvd_device *device)
{
    device->call_start_ns = kvd_now_ns();
    pthread_mutex_unlock(&device->lock);
}

static void wake_loop(const struct kvd_device *device)
{
    uint64_t one = 1;

    if (device->has_worker && write(device->wake_fd, &one, sizeof(one)) < 0)
        assert(errno == EAGAIN); /* 2^64 wake-ups are waiting */
}

static void call_end(struct kvd_device *device)
{
    pthread_mutex_lock(&device->lock);
    if (device->is_stuck) {
        device->is_stuck = false;
        device->is_well_again = true;
        device->call_took_ns = kvd_now_ns() - device->call_start_ns;
        wake_loop(device);
    }
    device->call_start_ns = 0;
}

/* Take down the calling thread's last failure, for the loop to log. */
static void note_trouble(struct kvd_device *device, uint32_t number, const char *what)
{
    device->trouble_count++;
    snprintf(device->trouble, sizeof(device->trouble), "segment %u%s: %.200s", number, what,
             kvmem_error_detail()->text);
    wake_loop(device);
}

/* Under the lock, given up meanwhile: drop handle and descriptor. */
static void memory_drop(struct kvd_device *device, uint32_t number, struct kvi_phys phys, int fd)
{
    int rc;

    call_begin(device);
    if (fd >= 0)
        close(fd);
    rc = kvi_backend_segment_release(device->backend, phys);
    call_end(device);
    if (rc < 0)
        note_trouble(device, number, " is lost until the daemon ends");
}

static void run_create(struct kvd_device *device, uint32_t number)
{
    struct segment *segment = &device->segments[number];
    uint64_t bytes = segment->wanted_bytes;
    struct kvi_phys phys = {0};
    int fd = -1;
    int rc;

    device->in_flight = number + 1;
    call_begin(device);
    rc = kvi_backend_segment_create(device->backend, bytes, &phys);
    call_end(device);
    if (rc < 0)
        note_trouble(device, number, "");
    if (rc == 0 && device->has_worker && device->in_flight != 0) {
        call_begin(device);
        rc = kvi_backend_segment_export(device->backend, phys, &fd);
        call_end(device);
        if (rc < 0)
            note_trouble(device, number, "");
    }
    if (phys.id != 0 && (rc < 0 || device->in_flight == 0)) {
        memory_drop(device, number, phys, fd);
        phys.id = 0;
    }
    if (device->in_flight == 0)
        return; /* answered by the watchdog, and perhaps asked for again */
    device->in_flight = 0;
    segment->phys = phys;
    segment->fd = fd;
    answer(device, number, rc);
    wake_loop(device);
}

static void run_release(struct kvd_device *device, uint32_t number)
{
    struct segment *segment = &device->segments[number];

    memory_drop(device, number, segment->phys, device->has_worker ? segment->fd : -1);
    segment->phys.id = 0;
}

/* Do what is wanted next. False when nothing is. */
static bool run_one(struct kvd_device *device)
{
    uint32_t number;
    enum job job;

    if (!list_take(device, &device->wanted, &number, &job))
        return false;
    if (job == CREATE)
        run_create(device, number);
    else
        run_release(device, number);
    return true;
}

static void *work(void *context)
{
    struct kvd_device *device = context;

    pthread_mutex_lock(&device->lock);
    while (!device->is_leaving)
        if (!run_one(device))
            pthread_cond_wait(&device->moved, &device->lock);
    device->has_ended = true;
    pthread_cond_signal(&device->moved);
    pthread_mutex_unlock(&device->lock);
    return NULL;
}

/* ---- life ---- */

static int lock_init(struct kvd_device *device)
{
    pthread_condattr_t attributes;
    int error = pthread_condattr_init(&attributes);

    if (error == 0) {
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        error = pthread_cond_init(&device->moved, &attributes);
        pthread_condattr_destroy(&attributes);
    }
    if (error == 0 && (error = pthread_mutex_init(&device->lock, NULL)) != 0)
        pthread_cond_destroy(&device->moved);
    return error == 0 ? 0 : kvi_error_sys(KVMEM_E_SYSTEM, error, "device: its lock");
}

static int worker_start(struct kvd_device *device)
{
    int error = pthread_create(&device->worker, NULL, work, device);

    if (error != 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, error, "device %s: its thread", device->about.name);
    device->has_worker = true;
    return 0;
}

static void free_device(struct kvd_device *device)
{
    kvi_release(device->alloc, device->segments, KVI_SEGMENT_LIMIT * sizeof(*device->segments));
    kvi_release(device->alloc, device, sizeof(*device));
}

int kvd_device_create(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                      int wake_fd, uint64_t stuck_ns, struct kvd_device **out)
{
    struct kvd_device *device = kvi_allocate(alloc, sizeof(*device));
    int rc;

    if (device == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "device");
    device->alloc = alloc;
    device->wake_fd = wake_fd;
    device->stuck_ns = stuck_ns;
    device->segments = kvi_allocate(alloc, KVI_SEGMENT_LIMIT * sizeof(*device->segments));
    if (device->segments == NULL) {
        rc = kvi_error_set(KVMEM_E_NO_MEMORY, "device: table of %u segments", KVI_SEGMENT_LIMIT);
        goto fail_device;
    }
    rc = kvd_device_open(alloc, options, &device->backend, &device->anchor, &device->about);
    if (rc < 0)
        goto fail_device;
    rc = lock_init(device);
    if (rc < 0)
        goto fail_backend;
    if (options->kind == KVD_DEVICE_CUDA && (rc = worker_start(device)) < 0)
        goto fail_lock;
    *out = device;
    return 0;

fail_lock:
    pthread_mutex_destroy(&device->lock);
    pthread_cond_destroy(&device->moved);
fail_backend:
    kvi_backend_destroy(device->backend);
    kvd_anchor_close(&device->anchor);
fail_device:
    free_device(device);
    return rc;
}

/* Has the worker ended, or does it in time? */
static bool worker_ends(struct kvd_device *device, uint64_t deadline_ns)
{
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / KVD_SECOND_NS),
                                .tv_nsec = (long)(deadline_ns % KVD_SECOND_NS)};
    bool has_ended;
    int error = 0;

    pthread_mutex_lock(&device->lock);
    while (!device->has_ended && error != ETIMEDOUT)
        error = pthread_cond_timedwait(&device->moved, &device->lock, &deadline);
    has_ended = device->has_ended;
    pthread_mutex_unlock(&device->lock);
    return has_ended;
}

bool kvd_device_destroy(struct kvd_device *device, uint64_t deadline_ns)
{
    if (device == NULL)
        return true;
    kvd_device_leave(device);
    if (device->has_worker) {
        if (!worker_ends(device, deadline_ns)) {
            kvd_log_always("device %s: a driver call has still not returned: ending without it",
                           device->about.name);
            return false;
        }
        pthread_join(device->worker, NULL);
        for (uint32_t i = 0; i < KVI_SEGMENT_LIMIT; i++)
            if (device->segments[i].phys.id != 0)
                close(device->segments[i].fd);
    }
    pthread_mutex_destroy(&device->lock);
    pthread_cond_destroy(&device->moved);
    kvi_backend_destroy(device->backend);
    kvd_anchor_close(&device->anchor);
    free_device(device);
    return true;
}

void kvd_device_leave(struct kvd_device *device)
{
    pthread_mutex_lock(&device->lock);
    device->is_leaving = true;
    pthread_cond_signal(&device->moved);
    pthread_mutex_unlock(&device->lock);
}

/* ---- what it is ---- */

const struct kvi_dir_device *kvd_device_about(const struct kvd_device *device)
{
    return &device->about;
}

uint64_t kvd_device_target_bytes(const struct kvd_device *device)
{
    const struct kvi_dir_device *about = &device->about;
    uint64_t bytes = about->device_bytes / TARGET_SHARE;

    if (bytes > TARGET_BYTES)
        bytes = TARGET_BYTES;
    bytes -= bytes % about->granule_bytes;
    return bytes > 0 ? bytes : about->granule_bytes;
}

uint32_t kvd_device_segment_limit(const struct kvd_device *device)
{
    const struct kvi_dir_device *about = &device->about;
    uint64_t smallest = kvd_device_target_bytes(device) / 2;
    uint64_t count =
        about->device_bytes / (smallest > about->granule_bytes ? smallest : about->granule_bytes);

    return count < KVI_SEGMENT_LIMIT ? (uint32_t)count : KVI_SEGMENT_LIMIT;
}

/* ---- segments ---- */

void kvd_device_segment_create(struct kvd_device *device, uint32_t segment, uint64_t bytes)
{
    assert(segment < KVI_SEGMENT_LIMIT && bytes > 0);
    pthread_mutex_lock(&device->lock);
    device->segments[segment].wanted_bytes = bytes;
    if (device->is_stuck) {
        answer(device, segment, KVMEM_E_TIMED_OUT);
    } else {
        list_append(device, &device->wanted, segment, CREATE);
        pthread_cond_signal(&device->moved);
    }
    pthread_mutex_unlock(&device->lock);
}

bool kvd_device_next_created(struct kvd_device *device, uint32_t *segment, int *code)
{
    enum job job;
    bool is_there;

    if (!device->has_worker && device->wanted.first == 0 && device->created.first == 0)
        return false; /* no lock for nothing: this is asked after every message */
    pthread_mutex_lock(&device->lock);
    if (!device->has_worker)
        run_one(device);
    is_there = list_take(device, &device->created, segment, &job);
    if (is_there)
        *code = device->segments[*segment].code;
    pthread_mutex_unlock(&device->lock);
    return is_there;
}

void kvd_device_segment_release(struct kvd_device *device, uint32_t segment)
{
    assert(segment < KVI_SEGMENT_LIMIT);
    pthread_mutex_lock(&device->lock);
    if (!device->is_leaving) {
        list_append(device, &device->wanted, segment, RELEASE);
        pthread_cond_signal(&device->moved);
        while (!device->has_worker && run_one(device))
            ;
    }
    pthread_mutex_unlock(&device->lock);
}

int kvd_device_segment_export(struct kvd_device *device, uint32_t segment, int *out_fd)
{
    const struct segment *one = &device->segments[segment];
    int fd;

    assert(segment < KVI_SEGMENT_LIMIT && one->phys.id != 0);
    if (!device->has_worker)
        return kvi_backend_segment_export(device->backend, one->phys, out_fd);
    fd = fcntl(one->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "segment %u: its descriptor", segment);
    *out_fd = fd;
    return 0;
}

/* ---- the watchdog ---- */

uint64_t kvd_device_deadline_ns(struct kvd_device *device)
{
    uint64_t deadline_ns = KVD_NEVER_NS;

    if (!device->has_worker)
        return deadline_ns;
    pthread_mutex_lock(&device->lock);
    if (device->call_start_ns != 0 && !device->is_stuck)
        deadline_ns = device->call_start_ns + device->stuck_ns;
    else if (device->wanted.first != 0 && !device->is_stuck) /* its call is about to begin */
        deadline_ns = kvd_now_ns() + device->stuck_ns;
    pthread_mutex_unlock(&device->lock);
    return deadline_ns;
}

/* Answer what waits for creation, that in the worker's hands included; releases stay. */
static void give_up(struct kvd_device *device)
{
    struct list wanted = device->wanted;
    uint32_t number;
    enum job job;

    if (device->in_flight != 0)
        answer(device, device->in_flight - 1, KVMEM_E_TIMED_OUT);
    device->in_flight = 0;
    device->wanted = (struct list){0};
    while (list_take(device, &wanted, &number, &job)) {
        if (job == CREATE)
            answer(device, number, KVMEM_E_TIMED_OUT);
        else
            list_append(device, &device->wanted, number, RELEASE);
    }
}

void kvd_device_look(struct kvd_device *device)
{
    bool is_newly_stuck;
    uint64_t now_ns;

    if (!device->has_worker && device->trouble_count == 0)
        return;
    pthread_mutex_lock(&device->lock);
    now_ns = kvd_now_ns(); /* not before a call that began meanwhile */
    is_newly_stuck = device->has_worker && device->call_start_ns != 0 && !device->is_stuck &&
                     now_ns - device->call_start_ns >= device->stuck_ns;
    if (device->is_well_again)
        kvd_log("device %s answers again: a driver call took %.1f s", device->about.name,
                (double)device->call_took_ns / (double)KVD_SECOND_NS);
    if (is_newly_stuck)
        kvd_log("device %s is stuck: a driver call has not returned for %.1f s. Nothing is created "
                "there until it does; what is there goes on being served. See nvidia-smi and the "
                "kernel's log (dmesg, Xid)",
                device->about.name,
                (double)(now_ns - device->call_start_ns) / (double)KVD_SECOND_NS);
    if (device->trouble_count > 1)
        kvd_log("device %s: %u failures, the last: %s", device->about.name, device->trouble_count,
                device->trouble);
    else if (device->trouble_count == 1)
        kvd_log("device %s: %s", device->about.name, device->trouble);
    if (is_newly_stuck) {
        device->is_stuck = true;
        give_up(device);
    }
    device->is_well_again = false;
    device->trouble_count = 0;
    pthread_mutex_unlock(&device->lock);
}

bool kvd_device_is_stuck(struct kvd_device *device)
{
    bool is_stuck;

    pthread_mutex_lock(&device->lock);
    is_stuck = device->is_stuck;
    pthread_mutex_unlock(&device->lock);
    return is_stuck;
}
