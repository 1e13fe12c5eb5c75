/* SPDX-License-Identifier: Apache-2.0
 *
 * Rings, the thread, and carrying jobs out; see mapper.h.
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
#include <inttypes.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "util/error.h"

#define NS_A_SECOND     INT64_C(1000000000)
#define PAUSE_MIN_NS    INT64_C(20000) /* between two looks at counters */
#define PAUSE_MAX_NS    INT64_C(1000000)
#define OUTCOME_WAIT_MS 10

struct waiting {
    struct kvi_mapping job;
    int64_t until_ns;
};

struct outcome {
    struct kvi_mapping job;
    struct kvmem_error_detail detail; /* of a failure */
};

struct kvi_mapper {
    struct kvi_alloc alloc;
    int64_t patience_ns;
    bool has_helper;
    int event_fd;
    pthread_t thread;
    struct kvi_mapping *jobs; /* ring [KVI_MAPPER_JOBS]: taken .. submitted */
    struct waiting *waiting;  /* [KVI_MAPPER_JOBS], in the order of submission */
    struct outcome *outcomes; /* ring [KVI_MAPPER_JOBS]: delivered .. finished */

    /* the client's thread writes */
    alignas(64) uint64_t submitted;
    uint64_t delivered;
    uint64_t inline_jobs;
    uint32_t posted; /* the futex: changes with every submit */
    uint32_t is_stopping;

    /* whoever carries jobs out writes */
    alignas(64) uint64_t taken;
    uint64_t finished;
    uint64_t helper_jobs;
    uint32_t waiting_count;
    uint32_t is_asleep;

    alignas(64) uint32_t is_signalled; /* both write */
};

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_A_SECOND + now.tv_nsec;
}

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

/* One mapping or both, or none. */
static int unmap_all(const struct kvi_mapping *job)
{
    int code = has_alias(job) ? unmap_alias(job) : 0;
    struct kvmem_error_detail detail;

    if (code)
        return code;
    code = kvi_backend_unmap(job->backend, job->address, job->bytes);
    if (!code || !has_alias(job))
        return code;
    detail = *kvmem_error_detail();
    (void)map_alias(job, job->phys);
    return kvi_error_restore(&detail);
}

static int do_unmap(const struct kvi_mapping *job)
{
    int code = unmap_all(job);

    if (code || job->keeps_phys)
        return code;
    return kvi_backend_segment_release(job->backend, job->phys);
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

/* The job's counter is not reached, and will not be waited for any longer. */
static int give_up(struct kvi_mapping *job)
{
    if (job->kind == KVI_MAPPING_MAP && job->fd >= 0)
        close(job->fd);
    return kvi_error_set(KVMEM_E_TIMED_OUT,
                         "a mapping at %#" PRIx64 " waited for a counter to reach %" PRIu64
                         ", it is %" PRIu64,
                         job->address, job->value, __atomic_load_n(job->counter, __ATOMIC_RELAXED));
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

/* The job is over: into the ring of outcomes. */
static void finish(struct kvi_mapper *mapper, const struct kvi_mapping *job, int code)
{
    uint64_t at = mapper->finished;
    struct outcome *outcome = &mapper->outcomes[at % KVI_MAPPER_JOBS];

    outcome->job = *job;
    outcome->job.code = code;
    if (code)
        outcome->detail = *kvmem_error_detail();
    __atomic_store_n(&mapper->finished, at + 1, __ATOMIC_SEQ_CST);
    if (mapper->has_helper) {
        __atomic_store_n(&mapper->helper_jobs, mapper->helper_jobs + 1, __ATOMIC_RELAXED);
        signal_outcome(mapper);
    } else {
        mapper->inline_jobs++;
    }
}

static bool is_reached(const struct kvi_mapping *job)
{
    return !job->counter || __atomic_load_n(job->counter, __ATOMIC_ACQUIRE) >= job->value;
}

/* Must `later` wait for `earlier`? */
static bool is_behind(const struct kvi_mapping *later, const struct kvi_mapping *earlier)
{
    bool releases = later->kind == KVI_MAPPING_UNMAP && !later->keeps_phys;

    if (later->backend != earlier->backend)
        return false;
    if (later->address < earlier->address + earlier->bytes &&
        earlier->address < later->address + later->bytes)
        return true;
    return releases && later->phys.id == earlier->phys.id;
}

/* Carry the job out if it may begin, with the first `before` waiting ones ahead of it. */
static bool try_job(struct kvi_mapper *mapper, struct kvi_mapping *job, int64_t until_ns,
                    uint32_t before)
{
    bool is_late = until_ns && now_ns() >= until_ns;

    for (uint32_t i = 0; i < before; i++)
        if (is_behind(job, &mapper->waiting[i].job))
            return false;
    if (is_reached(job))
        finish(mapper, job, carry_out(job));
    else if (is_late)
        finish(mapper, job, give_up(job));
    else
        return false;
    return true;
}

/* Those that waited, in their order; what still waits moves together. */
static bool run_waiting(struct kvi_mapper *mapper)
{
    uint32_t left = 0;

    for (uint32_t i = 0; i < mapper->waiting_count; i++) {
        struct waiting *one = &mapper->waiting[i];

        if (try_job(mapper, &one->job, one->until_ns, left))
            continue;
        if (left != i)
            mapper->waiting[left] = *one;
        left++;
    }
    if (left == mapper->waiting_count)
        return false;
    mapper->waiting_count = left;
    return true;
}

/* Everything that can be done now. Was there anything? */
static bool run(struct kvi_mapper *mapper)
{
    uint64_t end = __atomic_load_n(&mapper->submitted, __ATOMIC_ACQUIRE);
    bool has_run = run_waiting(mapper);

    for (; mapper->taken != end; mapper->taken++) {
        struct kvi_mapping *job = &mapper->jobs[mapper->taken % KVI_MAPPER_JOBS];

        has_run = true;
        if (!try_job(mapper, job, 0, mapper->waiting_count))
            mapper->waiting[mapper->waiting_count++] =
                (struct waiting){*job, now_ns() + mapper->patience_ns};
    }
    return has_run;
}

/* ---- the helper ---- */

static void futex_wait(uint32_t *word, uint32_t seen, int64_t timeout_ns)
{
    struct timespec timeout = {timeout_ns / NS_A_SECOND, timeout_ns % NS_A_SECOND};

    /* Returns early for whatever reason: the caller looks again. */
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, timeout_ns ? &timeout : NULL, NULL, 0);
}

static void *help(void *argument)
{
    struct kvi_mapper *mapper = argument;
    int64_t pause_ns = PAUSE_MIN_NS;

    for (;;) {
        uint32_t seen = __atomic_load_n(&mapper->posted, __ATOMIC_SEQ_CST);

        if (run(mapper)) {
            pause_ns = PAUSE_MIN_NS;
            continue;
        }
        if (__atomic_load_n(&mapper->is_stopping, __ATOMIC_ACQUIRE))
            return NULL;
        __atomic_store_n(&mapper->is_asleep, 1, __ATOMIC_SEQ_CST);
        futex_wait(&mapper->posted, seen, mapper->waiting_count ? pause_ns : 0);
        __atomic_store_n(&mapper->is_asleep, 0, __ATOMIC_SEQ_CST);
        pause_ns = pause_ns * 2 < PAUSE_MAX_NS ? pause_ns * 2 : PAUSE_MAX_NS;
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
    mapper->jobs[mapper->submitted % KVI_MAPPER_JOBS] = *job;
    __atomic_store_n(&mapper->submitted, mapper->submitted + 1, __ATOMIC_RELEASE);
    if (mapper->has_helper)
        wake_helper(mapper);
    else
        run(mapper);
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

    if (!mapper->has_helper)
        run(mapper);
    else if (__atomic_exchange_n(&mapper->is_signalled, 0, __ATOMIC_SEQ_CST))
        (void)!read(mapper->event_fd, &count, sizeof(count));
    while (mapper->delivered != __atomic_load_n(&mapper->finished, __ATOMIC_SEQ_CST)) {
        struct outcome *outcome = &mapper->outcomes[mapper->delivered % KVI_MAPPER_JOBS];
        struct kvi_mapping job = outcome->job;

        if (job.code)
            kvi_error_restore(&outcome->detail);
        mapper->delivered++; /* done() may submit, even poll */
        job.done(&job);
        done++;
    }
    return done;
}

/* Until something may have happened. */
static void wait_for_outcome(struct kvi_mapper *mapper)
{
    struct pollfd event = {.fd = mapper->event_fd, .events = POLLIN};
    struct timespec pause = {0, PAUSE_MIN_NS};

    if (mapper->has_helper)
        poll(&event, 1, OUTCOME_WAIT_MS);
    else
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
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
    kvi_release(&alloc, mapper->outcomes, KVI_MAPPER_JOBS * sizeof(*mapper->outcomes));
    kvi_release(&alloc, mapper->waiting, KVI_MAPPER_JOBS * sizeof(*mapper->waiting));
    kvi_release(&alloc, mapper->jobs, KVI_MAPPER_JOBS * sizeof(*mapper->jobs));
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
    mapper->patience_ns = options->patience_ns ? options->patience_ns : KVI_MAPPER_PATIENCE_NS;
    mapper->has_helper = options->has_helper;
    mapper->event_fd = -1;
    mapper->jobs = kvi_allocate(alloc, KVI_MAPPER_JOBS * sizeof(*mapper->jobs));
    mapper->waiting = kvi_allocate(alloc, KVI_MAPPER_JOBS * sizeof(*mapper->waiting));
    mapper->outcomes = kvi_allocate(alloc, KVI_MAPPER_JOBS * sizeof(*mapper->outcomes));
    if (!mapper->jobs || !mapper->waiting || !mapper->outcomes)
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
