/* SPDX-License-Identifier: Apache-2.0
 *
 * Two lists and a thread. A token in a list is a segment's number and what is to be done with it;
 * the links lie in the table, one for each of the two. The spare is no token: the worker looks at
 * it when its list is empty, and the loop says when.
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

/* A client that has just got a segment is about to make driver calls, which others would hold up.
 */
#define SPARE_DELAY_NS (2 * KVD_MILLISECOND_NS)
#define SPARE_NUMBER   KVI_SEGMENT_LIMIT /* in place of a segment's */

enum job {
    CREATE = 0,
    RELEASE = 1
};

struct memory {
    struct kvi_phys phys; /* id 0: none */
    int fd;               /* of it, where there is a worker; else −1 */
};

struct segment {
    struct memory memory;
    int code;              /* of its creation, once that is in `created` */
    uint64_t wanted_bytes; /* by its creation */
    uint32_t next[2];      /* by job: token in the same list; 0 at the end */
};

/* token = 2 × number + job + 1; 0: none */
struct list {
    uint32_t first;
    uint32_t last;
};

/* One at most: what is there, or what is to come.
 *
 *   none ── creation ──▶ ordered ── SPARE_DELAY_NS, then idle ──▶ there ── spare_ns ──▶ none
 *                           ▲                                       │
 *                           └────────── creation of that size ──────┘
 */
struct spare {
    struct memory memory;
    uint64_t bytes;      /* of what is there */
    uint64_t next_bytes; /* of what takes its place; 0: nothing does */
    uint64_t due_ns;     /* when that is to happen; KVD_NEVER_NS: it is not */
    bool is_due;         /* it is the worker's turn */
};

struct kvd_device {
    const struct kvi_alloc *alloc;
    struct kvi_backend *backend;
    struct kvd_anchor anchor;
    struct kvi_dir_device about;
    struct segment *segments;
    struct kvd_device_times times;
    int wake_fd;
    bool has_worker;
    pthread_t worker;
    pthread_cond_t moved; /* something for the worker, or it has ended */
    pthread_mutex_t lock; /* guards the lists, their links, and the fields below */
    struct list wanted;
    struct list created;
    struct spare spare;
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
    char name[32] = "the spare segment";

    if (number != SPARE_NUMBER)
        snprintf(name, sizeof(name), "segment %u", number);
    device->trouble_count++;
    snprintf(device->trouble, sizeof(device->trouble), "%s%s: %.200s", name, what,
             kvmem_error_detail()->text);
    wake_loop(device);
}

/* Under the lock, given up meanwhile, as below: drop handle and descriptor. */
static void memory_drop(struct kvd_device *device, uint32_t number, struct memory memory)
{
    int rc;

    call_begin(device);
    if (memory.fd >= 0)
        close(memory.fd);
    rc = kvi_backend_segment_release(device->backend, memory.phys);
    call_end(device);
    if (rc < 0)
        note_trouble(device, number, " is lost until the daemon ends");
}

/* Create, and export where there is a worker, or nothing. */
static int memory_make(struct kvd_device *device, uint32_t number, uint64_t bytes,
                       struct memory *out)
{
    struct memory memory = {.fd = -1};
    int rc;

    *out = memory;
    call_begin(device);
    rc = kvi_backend_segment_create(device->backend, bytes, &memory.phys);
    call_end(device);
    if (rc == 0 && device->has_worker) {
        call_begin(device);
        rc = kvi_backend_segment_export(device->backend, memory.phys, &memory.fd);
        call_end(device);
        if (rc < 0) {
            struct kvmem_error_detail why = *kvmem_error_detail();

            memory_drop(device, number, memory);
            return kvi_error_restore(&why);
        }
    }
    if (rc == 0)
        *out = memory;
    return rc;
}

/* ---- the spare, under the lock ---- */

/* A segment of that size was wanted just now: another one may be soon. */
static void spare_order(struct kvd_device *device, uint64_t bytes)
{
    if (!device->has_worker || device->times.spare_ns == 0)
        return;
    device->spare.next_bytes = bytes;
    device->spare.due_ns = kvd_now_ns() + SPARE_DELAY_NS;
    device->spare.is_due = false;
}

/* Answer a creation with it. False when there is none of that size. */
static bool spare_take(struct kvd_device *device, uint32_t number)
{
    struct segment *segment = &device->segments[number];
    struct spare *spare = &device->spare;

    if (spare->memory.phys.id == 0 || spare->bytes != segment->wanted_bytes)
        return false;
    segment->memory = spare->memory;
    spare->memory.phys.id = 0;
    spare_order(device, spare->bytes);
    answer(device, number, 0);
    return true;
}

/* False when there was none. */
static bool spare_drop(struct kvd_device *device)
{
    struct memory memory = device->spare.memory;

    if (memory.phys.id == 0)
        return false;
    device->spare.memory.phys.id = 0;
    memory_drop(device, SPARE_NUMBER, memory);
    return true;
}

/* Nothing else is to be done: the spare goes, the next one comes. A device that is full has none,
 * and no other failure matters to anybody but the log. */
static bool run_spare(struct kvd_device *device)
{
    struct spare *spare = &device->spare;
    uint64_t bytes = spare->next_bytes;
    struct memory memory;
    int rc;

    if (!spare->is_due)
        return false;
    spare->is_due = false;
    spare->due_ns = KVD_NEVER_NS;
    spare->next_bytes = 0;
    spare_drop(device);
    if (bytes == 0)
        return true;
    rc = memory_make(device, SPARE_NUMBER, bytes, &memory);
    if (rc < 0 && rc != KVMEM_E_DEVICE_FULL)
        note_trouble(device, SPARE_NUMBER, "");
    if (rc < 0)
        return true;
    spare->memory = memory;
    spare->bytes = bytes;
    spare->due_ns = kvd_now_ns() + device->times.spare_ns;
    return true;
}

/* The loop: is it the worker's turn? */
static void spare_look(struct kvd_device *device, uint64_t now_ns)
{
    if (device->spare.is_due || now_ns < device->spare.due_ns)
        return;
    device->spare.is_due = true;
    pthread_cond_signal(&device->moved);
}

/* ---- what the worker does ---- */

static void run_create(struct kvd_device *device, uint32_t number)
{
    struct segment *segment = &device->segments[number];
    uint64_t bytes = segment->wanted_bytes;
    struct memory memory;
    int rc;

    if (spare_take(device, number)) {
        wake_loop(device);
        return;
    }
    device->in_flight = number + 1;
    rc = memory_make(device, number, bytes, &memory);
    if (rc == KVMEM_E_DEVICE_FULL && spare_drop(device)) /* it counts as free */
        rc = memory_make(device, number, bytes, &memory);
    if (rc < 0)
        note_trouble(device, number, "");
    if (device->in_flight == 0) { /* answered by the watchdog, and perhaps asked for again */
        if (rc == 0)
            memory_drop(device, number, memory);
        return;
    }
    device->in_flight = 0;
    segment->memory = memory;
    if (rc == 0)
        spare_order(device, bytes);
    answer(device, number, rc);
    wake_loop(device);
}

/* The number may be given new memory while the old is on its way out. */
static void run_release(struct kvd_device *device, uint32_t number)
{
    struct memory memory = device->segments[number].memory;

    device->segments[number].memory.phys.id = 0;
    memory_drop(device, number, memory);
}

/* Do what is wanted next. False when nothing is. */
static bool run_one(struct kvd_device *device)
{
    uint32_t number;
    enum job job;

    if (!list_take(device, &device->wanted, &number, &job))
        return run_spare(device);
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
                      int wake_fd, const struct kvd_device_times *times, struct kvd_device **out)
{
    struct kvd_device *device = kvi_allocate(alloc, sizeof(*device));
    int rc;

    if (device == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "device");
    device->alloc = alloc;
    device->wake_fd = wake_fd;
    device->times = *times;
    device->spare.due_ns = KVD_NEVER_NS;
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
            if (device->segments[i].memory.phys.id != 0)
                close(device->segments[i].memory.fd);
        if (device->spare.memory.phys.id != 0)
            close(device->spare.memory.fd);
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
    } else if (device->wanted.first != 0 || !spare_take(device, segment)) {
        /* behind what is wanted already, a release of this number perhaps */
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

    assert(segment < KVI_SEGMENT_LIMIT && one->memory.phys.id != 0);
    if (!device->has_worker)
        return kvi_backend_segment_export(device->backend, one->memory.phys, out_fd);
    fd = fcntl(one->memory.fd, F_DUPFD_CLOEXEC, 0);
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
        deadline_ns = device->call_start_ns + device->times.stuck_ns;
    else if ((device->wanted.first != 0 || device->spare.is_due) && !device->is_stuck)
        deadline_ns = kvd_now_ns() + device->times.stuck_ns; /* its call is about to begin */
    if (!device->spare.is_due)
        deadline_ns = kvd_earlier_ns(deadline_ns, device->spare.due_ns);
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
                     now_ns - device->call_start_ns >= device->times.stuck_ns;
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
    spare_look(device, now_ns);
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
