/* SPDX-License-Identifier: Apache-2.0
 *
 * The mapper over two host backends (one creates, one imports), with a helper and without: jobs,
 * their order, failures, the rings' limit, the thread itself. Random jobs against a
 * naive twin; the same with two threads under ThreadSanitizer: tests/tsan/mapper.c.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/backend_fault.h"
#include "backend/backend_host.h"
#include "client/mapper.h"
#include "support/gate.h"
#include "support/random.h"
#include "support/spawn.h"
#include "util/error.h"

#define GRANULE    UINT64_C(4096)
#define SEGMENTS   8u
#define PLACES     16u
#define DONE_MAX   4096u
#define MODEL_SEED UINT64_C(0x6d6170)

static struct {
    struct kvi_backend *creator;
    struct kvi_backend *host;
    struct kvi_backend *fault; /* around host */
    struct kvi_backend_memory before;
    struct kvi_phys created[SEGMENTS];
    uint64_t base;       /* PLACES granules to read, */
    uint64_t write_base; /* and as many to write */
    struct kvi_mapper *mapper;
    uint32_t done_count;
    struct kvi_mapping done[DONE_MAX];
    char detail[sizeof(((struct kvmem_error_detail *)NULL)->text)]; /* of the last failure */
} world;

static void record(const struct kvi_mapping *job)
{
    cr_assert_lt(world.done_count, DONE_MAX);
    world.done[world.done_count++] = *job;
    if (job->code)
        memcpy(world.detail, kvmem_error_detail()->text, sizeof(world.detail));
    if (job->context)
        *(uint8_t *)job->context = 0;
}

static void open_world(bool has_helper)
{
    struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                               .device_bytes = SEGMENTS * GRANULE,
                                               .granule_bytes = GRANULE};
    struct kvi_mapper_options mapper = {&kvi_alloc_libc, has_helper};

    cr_assert_eq(kvi_backend_host_create(&options, &world.creator), 0);
    options.device_bytes = 0;
    cr_assert_eq(kvi_backend_host_create(&options, &world.host), 0);
    cr_assert_eq(kvi_backend_fault_create(world.host, &world.fault), 0);
    cr_assert_eq(kvi_backend_memory(world.host, &world.before), 0);
    for (uint32_t i = 0; i < SEGMENTS; i++)
        cr_assert_eq(kvi_backend_segment_create(world.creator, GRANULE, &world.created[i]), 0);
    cr_assert_eq(kvi_backend_reserve(world.fault, PLACES * GRANULE, 0, &world.base), 0);
    cr_assert_eq(kvi_backend_reserve(world.fault, PLACES * GRANULE, 0, &world.write_base), 0);
    cr_assert_eq(kvi_mapper_create(&mapper, &world.mapper), 0);
    cr_assert_eq(kvi_mapper_has_helper(world.mapper), has_helper);
}

static void close_world(void)
{
    struct kvi_backend_memory after;

    kvi_mapper_destroy(world.mapper);
    cr_assert_eq(kvi_backend_unreserve(world.fault, world.base, PLACES * GRANULE), 0);
    cr_assert_eq(kvi_backend_unreserve(world.fault, world.write_base, PLACES * GRANULE), 0);
    cr_assert_eq(kvi_backend_memory(world.host, &after), 0);
    cr_assert_eq(memcmp(&after, &world.before, sizeof(after)), 0, "something leaked");
    kvi_backend_destroy(world.fault);
    kvi_backend_destroy(world.host);
    kvi_backend_destroy(world.creator);
}

static struct kvi_mapping job_at(enum kvi_mapping_kind kind, uint32_t place)
{
    return (struct kvi_mapping){.kind = kind,
                                .access = KVI_ACCESS_RW,
                                .backend = world.fault,
                                .fd = -1,
                                .address = world.base + place * GRANULE,
                                .write_address = world.write_base + place * GRANULE,
                                .bytes = GRANULE,
                                .done = record,
                                .tag = place};
}

static struct kvi_mapping map_job(uint32_t segment, uint32_t place)
{
    struct kvi_mapping job = job_at(KVI_MAPPING_MAP, place);

    cr_assert_eq(kvi_backend_segment_export(world.creator, world.created[segment], &job.fd), 0);
    return job;
}

static void submit(const struct kvi_mapping *job)
{
    cr_assert_eq(kvi_mapper_submit(world.mapper, job), 0);
}

/* Map segment 0 and its alias at `place`, for tests that begin there. */
static struct kvi_phys mapped(uint32_t place)
{
    struct kvi_mapping job = map_job(0, place);

    submit(&job);
    kvi_mapper_drain(world.mapper);
    cr_assert_eq(world.done_count, 1);
    cr_assert_eq(world.done[0].code, 0);
    world.done_count = 0;
    return world.done[0].phys;
}

static void unmap(uint32_t place, struct kvi_phys phys)
{
    struct kvi_mapping job = job_at(KVI_MAPPING_UNMAP, place);

    job.phys = phys;
    cr_assert_eq(kvi_mapper_do(world.mapper, &job), 0);
}

static void sleep_ms(int ms)
{
    poll(NULL, 0, ms);
}

static bool is_mapped_as(uint32_t place, const char *read, const char *write)
{
    return !strcmp(kvt_rights_at(kvi_backend_pointer(world.base + place * GRANULE)), read) &&
           !strcmp(kvt_rights_at(kvi_backend_pointer(world.write_base + place * GRANULE)), write);
}

/* Submit and wait: it is over, well. */
static void carry_out(const struct kvi_mapping *job)
{
    submit(job);
    kvi_mapper_drain(world.mapper);
    cr_assert_eq(world.done[world.done_count - 1].code, 0, "%s", world.detail);
}

ParameterizedTestParameters(mapper, maps_raises_lowers_and_unmaps)
{
    static bool kinds[] = {false, true};
    return cr_make_param_array(bool, kinds, 2);
}

ParameterizedTest(bool *has_helper, mapper, maps_raises_lowers_and_unmaps, .timeout = 30)
{
    struct kvi_mapper_stats stats;
    struct kvi_mapping job;
    struct kvi_phys phys;

    open_world(*has_helper);
    job = map_job(0, 3);
    job.access = KVI_ACCESS_RO;
    carry_out(&job);
    cr_assert_eq(world.done[0].tag, 3);
    phys = world.done[0].phys;
    cr_assert_neq(phys.id, 0);
    cr_assert(is_mapped_as(3, "r--s", "---p"));
    job = job_at(KVI_MAPPING_RAISE, 3);
    job.phys = phys;
    carry_out(&job);
    cr_assert(is_mapped_as(3, "r--s", "rw-s"));
    *(volatile uint8_t *)kvi_backend_pointer(job.write_address) = 7;
    cr_assert_eq(*(volatile uint8_t *)kvi_backend_pointer(job.address), 7);
    job = job_at(KVI_MAPPING_LOWER, 3);
    job.phys = phys;
    carry_out(&job);
    cr_assert(is_mapped_as(3, "r--s", "---p"));
    job = job_at(KVI_MAPPING_UNMAP, 3);
    job.access = KVI_ACCESS_RO;
    job.phys = phys;
    carry_out(&job);
    cr_assert(is_mapped_as(3, "---p", "---p"));
    kvi_mapper_stats(world.mapper, &stats);
    cr_assert_eq(*has_helper ? stats.helper_jobs : stats.inline_jobs, 4);
    cr_assert_eq(*has_helper ? stats.inline_jobs : stats.helper_jobs, 0);
    close_world();
}

/* One job with one call of the backend failing. */
struct step {
    enum kvi_mapping_kind kind;
    enum kvi_access access; /* MAP, UNMAP */
    enum kvi_backend_call call;
    uint64_t nth;
    const char *write; /* rights at write_base before, and so after */
};

static void fail_step(const struct step *step, struct kvi_phys phys)
{
    struct kvi_backend_memory before, after;
    bool is_map = step->kind == KVI_MAPPING_MAP;
    uint32_t place = is_map ? 7 : 1;
    struct kvi_mapping job = is_map ? map_job(2, place) : job_at(step->kind, place);

    job.access = step->access;
    if (!is_map)
        job.phys = phys;
    cr_assert_eq(kvi_backend_memory(world.host, &before), 0);
    cr_assert_eq(kvi_backend_fault_arm(world.fault, step->call, step->nth, KVMEM_E_SYSTEM, false),
                 0);
    submit(&job);
    kvi_mapper_drain(world.mapper);
    cr_assert_eq(world.done[world.done_count - 1].code, KVMEM_E_SYSTEM);
    cr_assert_neq(strstr(world.detail, kvi_backend_call_name(step->call)), NULL, "%s",
                  world.detail);
    cr_assert_eq(kvi_backend_memory(world.host, &after), 0);
    cr_assert_eq(memcmp(&before, &after, sizeof(after)), 0, "kind %d, call %" PRIu64,
                 (int)step->kind, step->nth);
    cr_assert(is_mapped_as(place, is_map ? "---p" : "r--s", step->write));
}

ParameterizedTestParameters(mapper, a_step_that_fails_leaves_all_as_it_was)
{
    static bool kinds[] = {false, true};
    return cr_make_param_array(bool, kinds, 2);
}

ParameterizedTest(bool *has_helper, mapper, a_step_that_fails_leaves_all_as_it_was, .timeout = 30)
{
    static const struct step steps[] = {
        {KVI_MAPPING_MAP, KVI_ACCESS_RW, KVI_BACKEND_CALL_SEGMENT_IMPORT, 1, "---p"},
        {KVI_MAPPING_MAP, KVI_ACCESS_RW, KVI_BACKEND_CALL_MAP, 1, "---p"},
        {KVI_MAPPING_MAP, KVI_ACCESS_RW, KVI_BACKEND_CALL_MAP, 2, "---p"},
        {KVI_MAPPING_MAP, KVI_ACCESS_RO, KVI_BACKEND_CALL_MAP, 1, "---p"},
        {KVI_MAPPING_LOWER, KVI_ACCESS_RO, KVI_BACKEND_CALL_UNMAP, 1, "rw-s"},
        {KVI_MAPPING_UNMAP, KVI_ACCESS_RW, KVI_BACKEND_CALL_UNMAP, 1, "rw-s"}};
    static const struct step lowered[] = {
        {KVI_MAPPING_RAISE, KVI_ACCESS_RW, KVI_BACKEND_CALL_MAP, 1, "---p"},
        {KVI_MAPPING_UNMAP, KVI_ACCESS_RO, KVI_BACKEND_CALL_UNMAP, 1, "---p"}};
    struct kvi_mapping job;
    struct kvi_phys phys;

    open_world(*has_helper);
    phys = mapped(1);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        fail_step(&steps[i], phys);
    /* But for an alias that went before the other mapping could not. */
    job = job_at(KVI_MAPPING_UNMAP, 1);
    job.phys = phys;
    cr_assert_eq(
        kvi_backend_fault_arm(world.fault, KVI_BACKEND_CALL_UNMAP, 2, KVMEM_E_SYSTEM, false), 0);
    cr_assert_eq(kvi_mapper_do(world.mapper, &job), KVMEM_E_SYSTEM);
    cr_assert(is_mapped_as(1, "r--s", "---p"));
    for (size_t i = 0; i < sizeof(lowered) / sizeof(lowered[0]); i++)
        fail_step(&lowered[i], phys);
    job = job_at(KVI_MAPPING_UNMAP, 1);
    job.access = KVI_ACCESS_RO;
    job.phys = phys;
    carry_out(&job);
    close_world();
}

ParameterizedTestParameters(mapper, done_comes_from_poll_alone)
{
    static bool kinds[] = {false, true};
    return cr_make_param_array(bool, kinds, 2);
}

ParameterizedTest(bool *has_helper, mapper, done_comes_from_poll_alone, .timeout = 30)
{
    struct kvi_mapping job;
    uint8_t pending = 1;

    open_world(*has_helper);
    job = map_job(1, 0);
    job.context = &pending;
    submit(&job);
    sleep_ms(20);
    cr_assert_eq(world.done_count, 0);
    cr_assert_eq(kvi_mapper_pending(world.mapper), 1);
    kvi_mapper_await(world.mapper, &pending);
    cr_assert_eq(world.done_count, 1);
    cr_assert_eq(kvi_mapper_pending(world.mapper), 0);
    unmap(0, world.done[0].phys);
    close_world();
}

ParameterizedTestParameters(mapper, a_failure_keeps_its_code_and_detail)
{
    static bool kinds[] = {false, true};
    return cr_make_param_array(bool, kinds, 2);
}

ParameterizedTest(bool *has_helper, mapper, a_failure_keeps_its_code_and_detail, .timeout = 30)
{
    static const enum kvi_backend_call calls[] = {KVI_BACKEND_CALL_SEGMENT_IMPORT,
                                                  KVI_BACKEND_CALL_MAP};
    struct kvi_mapping job;

    open_world(*has_helper);
    for (uint32_t i = 0; i < 2; i++) {
        cr_assert_eq(kvi_backend_fault_arm(world.fault, calls[i], 1, KVMEM_E_DEVICE_FULL, false),
                     0);
        job = map_job(0, 0);
        submit(&job);
        kvi_error_set(KVMEM_E_BUSY, "of this thread");
        kvi_mapper_drain(world.mapper);
        cr_assert_eq(world.done[i].code, KVMEM_E_DEVICE_FULL);
        cr_assert_neq(strstr(world.detail, kvi_backend_call_name(calls[i])), NULL, "%s",
                      world.detail);
        cr_assert_eq(fcntl(job.fd, F_GETFD), -1, "the descriptor is consumed");
    }
    job = job_at(KVI_MAPPING_LOWER, 0); /* nothing is mapped there */
    submit(&job);
    kvi_mapper_drain(world.mapper);
    cr_assert_eq(world.done[2].code, KVMEM_E_INVALID);
    close_world();
}

Test(mapper, a_full_ring_is_busy_and_takes_again, .timeout = 30)
{
    struct kvt_gate gate;
    struct kvi_phys phys;
    struct kvi_mapping job;

    open_world(true);
    phys = mapped(0);
    kvt_gate_init(&gate);
    kvt_gate_submit(&gate, world.mapper);
    job = job_at(KVI_MAPPING_LOWER, 0);
    job.phys = phys;
    for (uint32_t i = 1; i < KVI_MAPPER_JOBS; i++) {
        job.kind = i % 2 ? KVI_MAPPING_LOWER : KVI_MAPPING_RAISE;
        submit(&job);
    }
    cr_assert_eq(kvi_mapper_submit(world.mapper, &job), KVMEM_E_BUSY);
    cr_assert_eq(kvi_mapper_pending(world.mapper), KVI_MAPPER_JOBS);
    kvt_gate_open(&gate);
    kvi_mapper_drain(world.mapper);
    cr_assert_eq(world.done_count, KVI_MAPPER_JOBS - 1);
    for (uint32_t i = 0; i < world.done_count; i++) /* out of order, one would have failed */
        cr_assert_eq(world.done[i].code, 0);
    job.kind = KVI_MAPPING_RAISE;
    carry_out(&job);
    unmap(0, phys);
    close_world();
}

static bool is_readable(int fd)
{
    struct pollfd event = {.fd = fd, .events = POLLIN};

    return poll(&event, 1, 0) == 1;
}

Test(mapper, the_descriptor_is_readable_when_a_job_is_over, .timeout = 30)
{
    struct pollfd event = {.events = POLLIN};
    struct kvi_mapping job;

    open_world(true);
    event.fd = kvi_mapper_fd(world.mapper);
    for (uint32_t i = 0; i < 200; i++) {
        job = map_job(0, 0);
        submit(&job);
        cr_assert_eq(poll(&event, 1, 10000), 1);
        kvi_mapper_drain(world.mapper);
        unmap(0, world.done[i].phys);
    }
    kvi_mapper_poll(world.mapper); /* once for nothing is allowed, not twice */
    sleep_ms(20);
    kvi_mapper_poll(world.mapper);
    cr_assert_not(is_readable(event.fd));
    close_world();
}

/* The task directory of the helper, or "". */
static void find_helper(char *path, size_t bytes)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;

    cr_assert_neq(tasks, NULL);
    *path = 0;
    while ((task = readdir(tasks))) {
        char comm[300], name[32] = "";
        FILE *file;

        snprintf(comm, sizeof(comm), "/proc/self/task/%s/comm", task->d_name);
        file = fopen(comm, "r");
        if (file && fgets(name, sizeof(name), file) && !strcmp(name, "kvmem-helper\n"))
            snprintf(path, bytes, "/proc/self/task/%s/status", task->d_name);
        if (file)
            fclose(file);
    }
    closedir(tasks);
}

Test(mapper, the_helper_has_a_name_no_signals_and_an_end, .timeout = 30)
{
    unsigned long long blocked = 0;
    char path[300], line[200];
    FILE *status;

    open_world(true);
    find_helper(path, sizeof(path));
    cr_assert_neq(*path, 0, "no thread is called kvmem-helper");
    status = fopen(path, "r");
    cr_assert_neq(status, NULL);
    while (fgets(line, sizeof(line), status))
        sscanf(line, "SigBlk: %llx", &blocked);
    fclose(status);
    for (int signal = 1; signal < 32; signal++)
        if (signal != SIGKILL && signal != SIGSTOP)
            cr_assert(blocked >> (signal - 1) & 1, "signal %d", signal);
    close_world();
    find_helper(path, sizeof(path));
    cr_assert_eq(*path, 0, "the helper lives on");
}

static void *allocate_counted(void *context, size_t bytes)
{
    int *left = context;

    return (*left)-- > 0 ? kvi_allocate(&kvi_alloc_libc, bytes) : NULL;
}

static void release_counted(void *context, void *memory, size_t bytes)
{
    (void)context;
    kvi_release(&kvi_alloc_libc, memory, bytes);
}

static struct kvi_alloc counted(int *left)
{
    return (struct kvi_alloc){left, allocate_counted, release_counted};
}

Test(mapper, no_memory_at_any_allocation)
{
    int left;
    struct kvi_alloc alloc = counted(&left);
    struct kvi_mapper_options options = {&alloc, true};
    struct kvi_mapper *mapper;
    int n = 0;

    for (;; n++) {
        left = n;
        if (!kvi_mapper_create(&options, &mapper))
            break;
        cr_assert_eq(kvmem_error_detail()->code, KVMEM_E_NO_MEMORY);
    }
    cr_assert_eq(n, 2);
    kvi_mapper_destroy(mapper);
}

/* ---- the twin: what is mapped where, in the order of submission ---- */

struct twin {
    struct kvi_phys phys[PLACES]; /* 0: nothing */
    bool has_alias[PLACES];
    uint64_t sent;
    uint64_t seed;
};

/* A handle of its own for the place: the first mapping of a handle goes last (backend.h). */
static struct kvi_phys import_for(uint32_t place)
{
    struct kvi_phys phys;
    int fd;

    cr_assert_eq(kvi_backend_segment_export(world.creator, world.created[place % SEGMENTS], &fd),
                 0);
    cr_assert_eq(kvi_backend_segment_import_consume(world.fault, fd, GRANULE, &phys), 0);
    return phys;
}

static void random_job(struct twin *twin)
{
    uint32_t place = (uint32_t)(kvt_random(&twin->seed) % PLACES);
    struct kvi_mapping job = job_at(KVI_MAPPING_MAP, place);

    if (!twin->phys[place].id) {
        twin->phys[place] = import_for(place);
        twin->has_alias[place] = kvt_random(&twin->seed) % 2;
        job.access = twin->has_alias[place] ? KVI_ACCESS_RW : KVI_ACCESS_RO;
    } else if (kvt_random(&twin->seed) % 2) {
        job.kind = twin->has_alias[place] ? KVI_MAPPING_LOWER : KVI_MAPPING_RAISE;
        twin->has_alias[place] = !twin->has_alias[place];
    } else {
        job.kind = KVI_MAPPING_UNMAP;
        job.access = twin->has_alias[place] ? KVI_ACCESS_RW : KVI_ACCESS_RO;
    }
    job.phys = twin->phys[place];
    if (job.kind == KVI_MAPPING_UNMAP) {
        twin->phys[place].id = 0;
        twin->has_alias[place] = false;
    }
    submit(&job);
    twin->sent++;
}

ParameterizedTestParameters(mapper, random_jobs_match_a_naive_twin)
{
    static bool kinds[] = {false, true};
    return cr_make_param_array(bool, kinds, 2);
}

ParameterizedTest(bool *has_helper, mapper, random_jobs_match_a_naive_twin, .timeout = 60)
{
    struct twin twin = {.seed = MODEL_SEED};
    uint32_t mapped_count = 0;
    struct kvi_backend_memory now;

    open_world(*has_helper);
    for (uint32_t step = 0; step < 3000; step++) {
        if (kvi_mapper_pending(world.mapper) == KVI_MAPPER_JOBS)
            kvi_mapper_drain(world.mapper);
        random_job(&twin);
        if (kvt_random(&twin.seed) % 3 == 0)
            kvi_mapper_poll(world.mapper);
    }
    kvi_mapper_drain(world.mapper);
    cr_assert_eq(world.done_count, twin.sent, "seed %#" PRIx64, MODEL_SEED);
    for (uint32_t i = 0; i < world.done_count; i++) /* out of order, one would have failed */
        cr_assert_eq(world.done[i].code, 0, "job %u, seed %#" PRIx64, i, MODEL_SEED);
    for (uint32_t i = 0; i < PLACES; i++)
        mapped_count += (twin.phys[i].id != 0) + twin.has_alias[i];
    cr_assert_eq(kvi_backend_memory(world.host, &now), 0);
    cr_assert_eq(now.mapping_count, mapped_count);
    for (uint32_t i = 0; i < PLACES; i++) {
        struct kvi_mapping job = job_at(KVI_MAPPING_UNMAP, i);

        cr_assert(is_mapped_as(i, twin.phys[i].id ? "r--s" : "---p",
                               twin.has_alias[i] ? "rw-s" : "---p"));
        job.access = twin.has_alias[i] ? KVI_ACCESS_RW : KVI_ACCESS_RO;
        job.phys = twin.phys[i];
        if (twin.phys[i].id)
            cr_assert_eq(kvi_mapper_do(world.mapper, &job), 0);
    }
    close_world();
}
