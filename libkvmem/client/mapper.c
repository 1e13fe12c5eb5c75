/* SPDX-License-Identifier: Apache-2.0
 *
 * The ring, the thread, and carrying jobs out; see mapper.h.
 *
 * Two flags are handed over without a lock, each by the pattern "write mine, then read yours":
 *   helper asleep   submit adds to `posted`, then reads is_asleep; the helper sets is_asleep, then
 *                   sleeps only if `posted` is what it was before it looked for jobs
 *   eventfd         the helper adds to `finished`, then reads is_signalled; poll clears
 *                   is_signalled, then reads `finished`
 * These accesses are sequentially consistent: one of the two sides sees the other's write. The
 * helper writes the eventfd before it sets is_signalled, so that a poll that clears the flag finds
 * the eventfd written.
 */
#include "client/mapper.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/error.h"

#define OUTCOME_WAIT_MS 10

struct slot {
    struct kvi_mapping job;
    struct kvmem_error_detail detail; /* when it is over, and failed */
};

struct kvi_mapper {
    struct kvi_alloc alloc;
    bool has_helper;
    int event_fd;
    pthread_t thread;
    struct slot *ring; /* [KVI_MAPPER_JOBS] */

    /* the client's thread writes */
    alignas(64) uint64_t submitted;
    uint64_t delivered;
    uint64_t inline_jobs;
    uint32_t posted; /* the futex: changes with every submit */
    uint32_t is_stopping;

    /* whoever carries jobs out writes */
    alignas(64) uint64_t finished;
    uint64_t helper_jobs;
    uint32_t is_asleep;

    alignas(64) uint32_t is_signalled; /* both write */
};

/* ---- carrying out ---- */

static int map_alias(const struct kvi_mapping *job, struct kvi_phys phys)
{
    return kvi_backend_map(job->backend, phys, job->write_address, job->bytes, KVI_ACCESS_RW);
}

static int unmap_alias(const struct kvi_mapping *job)
{
    return kvi_backend_unmap(job->backend, job->write_address, job->bytes);
}

static bool has_alias(const struct kvi_mapping *job)
{
    return job->access == KVI_ACCESS_RW;
}

/* One mapping or both, or none. */
static int map_all(const struct kvi_mapping *job, struct kvi_phys phys)
{
    int code = kvi_backend_map(job->backend, phys, job->address, job->bytes, KVI_ACCESS_RO);
    struct kvmem_error_detail detail;

    if (code || !has_alias(job))
        return code;
    code = map_alias(job, phys);
    if (!code)
        return 0;
    detail = *kvmem_error_detail();
    (void)kvi_backend_unmap(job->backend, job->address, job->bytes);
    return kvi_error_restore(&detail);
}

static int do_map(struct kvi_mapping *job)
{
    struct kvi_phys phys = job->phys;
    int code = 0;

    if (job->fd >= 0)
        code = kvi_backend_segment_import_consume(job->backend, job->fd, job->bytes, &phys);
    if (code)
        return code;
    code = map_all(job, phys);
    if (!code) {
        job->phys = phys;
    } else if (job->fd >= 0) {
        struct kvmem_error_detail detail = *kvmem_error_detail();

        kvi_backend_segment_release(job->backend, phys);
        kvi_error_restore(&detail);
    }
    return code;
}

/* The alias first: when the other one cannot be unmapped after it, it is gone still. */
static int do_unmap(const struct kvi_mapping *job)
{
    int code = has_alias(job) ? unmap_alias(job) : 0;

    if (!code)
        code = kvi_backend_unmap(job->backend, job->address, job->bytes);
    return code ? code : kvi_backend_segment_release(job->backend, job->phys);
}

static int carry_out(struct kvi_mapping *job)
{
    switch (job->kind) {
    case KVI_MAPPING_MAP: return do_map(job);
    case KVI_MAPPING_RAISE: return map_alias(job, job->phys);
    case KVI_MAPPING_LOWER: return unmap_alias(job);
    case KVI_MAPPING_UNMAP: return do_unmap(job);
    }
    return kvi_error_set(KVMEM_E_INVALID, "mapping.kind: %d is outside 0..3", (int)job->kind);
}

static void signal_outcome(struct kvi_mapper *mapper)
{
    uint64_t one = 1;

    if (__atomic_load_n(&mapper->is_signalled, __ATOMIC_SEQ_CST))
        return;
    /* Fails only when the count is full: then it is readable already. */
    (void)!write(mapper->event_fd, &one, sizeof(one));
    __atomic_store_n(&mapper->is_signalled, 1, __ATOMIC_SEQ_CST);
}

/* Carry out the next job, if there is one. Was there? */
static bool run_next(struct kvi_mapper *mapper)
{
    uint64_t at = mapper->finished;
    struct slot *slot = &mapper->ring[at % KVI_MAPPER_JOBS];

    if (at == __atomic_load_n(&mapper->submitted, __ATOMIC_ACQUIRE))
        return false;
    slot->job.code = carry_out(&slot->job);
    if (slot->job.code)
        slot->detail = *kvmem_error_detail();
    __atomic_store_n(&mapper->finished, at + 1, __ATOMIC_SEQ_CST);
    return true;
}

/* ---- the helper ---- */

static void *help(void *argument)
{
    struct kvi_mapper *mapper = argument;

    for (;;) {
        uint32_t seen = __atomic_load_n(&mapper->posted, __ATOMIC_SEQ_CST);

        while (run_next(mapper)) {
            __atomic_store_n(&mapper->helper_jobs, mapper->helper_jobs + 1, __ATOMIC_RELAXED);
            signal_outcome(mapper);
        }
        if (__atomic_load_n(&mapper->is_stopping, __ATOMIC_ACQUIRE))
            return NULL;
        __atomic_store_n(&mapper->is_asleep, 1, __ATOMIC_SEQ_CST);
        /* Returns early for whatever reason: the next turn looks again. */
        syscall(SYS_futex, &mapper->posted, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        __atomic_store_n(&mapper->is_asleep, 0, __ATOMIC_SEQ_CST);
    }
}

static void wake_helper(struct kvi_mapper *mapper)
{
    __atomic_fetch_add(&mapper->posted, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&mapper->is_asleep, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &mapper->posted, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static int start_helper(struct kvi_mapper *mapper)
{
    sigset_t all, before;
    int result;

    mapper->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (mapper->event_fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "eventfd for the helper thread");
    /* The thread inherits the mask: no signal of the process' is ever delivered to it. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&mapper->thread, NULL, help, mapper);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result)
        return kvi_error_sys(KVMEM_E_SYSTEM, result, "the helper thread could not be started");
    pthread_setname_np(mapper->thread, "kvmem-helper");
    return 0;
}

/* ---- the client's side ---- */

int kvi_mapper_submit(struct kvi_mapper *mapper, const struct kvi_mapping *job)
{
    if (kvi_mapper_pending(mapper) == KVI_MAPPER_JOBS)
        return kvi_error_set(KVMEM_E_BUSY, "%u mappings are under way", KVI_MAPPER_JOBS);
    mapper->ring[mapper->submitted % KVI_MAPPER_JOBS].job = *job;
    __atomic_store_n(&mapper->submitted, mapper->submitted + 1, __ATOMIC_RELEASE);
    if (mapper->has_helper)
        wake_helper(mapper);
    else
        mapper->inline_jobs += run_next(mapper);
    return 0;
}

int kvi_mapper_do(struct kvi_mapper *mapper, struct kvi_mapping *job)
{
    mapper->inline_jobs++;
    job->code = carry_out(job);
    return job->code;
}

void kvi_mapper_count(struct kvi_mapper *mapper)
{
    mapper->inline_jobs++;
}

uint32_t kvi_mapper_poll(struct kvi_mapper *mapper)
{
    uint32_t done = 0;
    uint64_t count;

    if (mapper->has_helper && __atomic_exchange_n(&mapper->is_signalled, 0, __ATOMIC_SEQ_CST))
        (void)!read(mapper->event_fd, &count, sizeof(count));
    while (mapper->delivered != __atomic_load_n(&mapper->finished, __ATOMIC_SEQ_CST)) {
        const struct slot *slot = &mapper->ring[mapper->delivered % KVI_MAPPER_JOBS];
        struct kvi_mapping job = slot->job;

        if (job.code)
            kvi_error_restore(&slot->detail);
        mapper->delivered++; /* done() may submit, even poll */
        job.done(&job);
        done++;
    }
    return done;
}

/* Until something may have happened: without a helper all that was submitted is over. */
static void wait_for_outcome(struct kvi_mapper *mapper)
{
    struct pollfd event = {.fd = mapper->event_fd, .events = POLLIN};

    poll(&event, 1, OUTCOME_WAIT_MS);
}

void kvi_mapper_drain(struct kvi_mapper *mapper)
{
    for (kvi_mapper_poll(mapper); kvi_mapper_pending(mapper); kvi_mapper_poll(mapper))
        wait_for_outcome(mapper);
}

void kvi_mapper_await(struct kvi_mapper *mapper, const uint8_t *pending)
{
    for (kvi_mapper_poll(mapper); *pending; kvi_mapper_poll(mapper))
        wait_for_outcome(mapper);
}

bool kvi_mapper_has_helper(const struct kvi_mapper *mapper)
{
    return mapper->has_helper;
}

uint64_t kvi_mapper_pending(const struct kvi_mapper *mapper)
{
    return mapper->submitted - mapper->delivered;
}

int kvi_mapper_fd(const struct kvi_mapper *mapper)
{
    return mapper->event_fd;
}

void kvi_mapper_stats(const struct kvi_mapper *mapper, struct kvi_mapper_stats *out)
{
    out->helper_jobs = __atomic_load_n(&mapper->helper_jobs, __ATOMIC_RELAXED);
    out->inline_jobs = mapper->inline_jobs;
}

/* ---- life ---- */

static void stop_helper(struct kvi_mapper *mapper)
{
    __atomic_store_n(&mapper->is_stopping, 1, __ATOMIC_RELEASE);
    wake_helper(mapper);
    pthread_join(mapper->thread, NULL);
}

static void free_mapper(struct kvi_mapper *mapper)
{
    struct kvi_alloc alloc = mapper->alloc;

    if (mapper->event_fd >= 0)
        close(mapper->event_fd);
    kvi_release(&alloc, mapper->ring, KVI_MAPPER_JOBS * sizeof(*mapper->ring));
    kvi_release(&alloc, mapper, sizeof(*mapper));
}

int kvi_mapper_create(const struct kvi_mapper_options *options, struct kvi_mapper **out)
{
    const struct kvi_alloc *alloc = options->alloc;
    struct kvi_mapper *mapper = kvi_allocate(alloc, sizeof(*mapper));
    int code = 0;

    if (!mapper)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a mapper");
    mapper->alloc = *alloc;
    mapper->has_helper = options->has_helper;
    mapper->event_fd = -1;
    mapper->ring = kvi_allocate(alloc, KVI_MAPPER_JOBS * sizeof(*mapper->ring));
    if (!mapper->ring)
        code = kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for %u jobs", KVI_MAPPER_JOBS);
    if (!code && options->has_helper)
        code = start_helper(mapper);
    if (code) {
        free_mapper(mapper);
        return code;
    }
    *out = mapper;
    return 0;
}

void kvi_mapper_destroy(struct kvi_mapper *mapper)
{
    if (!mapper)
        return;
    kvi_mapper_drain(mapper);
    if (mapper->has_helper)
        stop_helper(mapper);
    free_mapper(mapper);
}
