/* SPDX-License-Identifier: Apache-2.0
 *
 * The fault backend around a host backend: the compliance suite with nothing armed, then rules,
 * counts, and the n-th call of each kind failing for every n.
 *
 * Every test goes through kvt_backend_run(); see test_backend.c.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/backend_fault.h"
#include "backend/backend_host.h"
#include "support/backend_compliance.h"
#include "util/error.h"

#define TIME_LIMIT_S 60

/* ---- the factory ---- */

static uint64_t granule_default = KVI_BACKEND_HOST_GRANULE_DEFAULT;

static void fail_here(const char *file, int line, const char *message)
{
    cr_assert_fail("%s:%d: %s", file, line, message);
    abort(); /* not reached */
}

static int host_create(void *context, uint64_t granules, struct kvi_backend **out)
{
    uint64_t granule_bytes = *(const uint64_t *)context;
    struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                               .device_bytes = granules * granule_bytes,
                                               .granule_bytes = granule_bytes};

    return kvi_backend_host_create(&options, out);
}

/* The fault backend does not own what it wraps: remember which is whose. */
static struct {
    struct kvi_backend *fault;
    struct kvi_backend *inner;
} wrapped[8];

static size_t wrapped_find(const struct kvi_backend *fault)
{
    size_t at = 0;

    while (wrapped[at].fault != fault) {
        at++;
        cr_assert_lt(at, sizeof(wrapped) / sizeof(wrapped[0]));
    }
    return at;
}

static int fault_create(void *context, uint64_t granules, struct kvi_backend **out)
{
    struct kvi_backend *inner = NULL;
    int rc = host_create(context, granules, &inner);
    size_t at;

    if (rc < 0)
        return rc;
    rc = kvi_backend_fault_create(inner, out);
    if (rc < 0) {
        kvi_backend_destroy(inner);
        return rc;
    }
    at = wrapped_find(NULL);
    wrapped[at].fault = *out;
    wrapped[at].inner = inner;
    return 0;
}

static struct kvi_backend *fault_inner(const struct kvi_backend *b)
{
    return wrapped[wrapped_find(b)].inner;
}

static void fault_destroy(void *context, struct kvi_backend *b)
{
    size_t at = wrapped_find(b);

    (void)context;
    kvi_backend_destroy(b);
    kvi_backend_destroy(wrapped[at].inner);
    wrapped[at].fault = NULL;
    wrapped[at].inner = NULL;
}

static int fault_check(void *context, struct kvi_backend *b)
{
    (void)context;
    return kvi_backend_host_check(fault_inner(b));
}

static const struct kvt_backend_factory fault_factory = {
    .context = &granule_default,
    .create = fault_create,
    .destroy = fault_destroy,
    .check = fault_check,
    .fail = fail_here,
};

/* ---- the compliance suite ---- */

#define COMPLIANCE_TEST(name)                                  \
    Test(backend_fault_unarmed, name, .timeout = TIME_LIMIT_S) \
    {                                                          \
        kvt_backend_run(&fault_factory, kvt_backend_##name);   \
    }

KVT_BACKEND_CASES(COMPLIANCE_TEST)

/* ---- rules and counts ---- */

static int exported(struct kvt_backend *t, struct kvi_phys phys)
{
    int fd = -1;

    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    return fd;
}

/* Calls of `memory`, the simplest operation, until one fails: how many worked, at most 20. */
static int calls_that_work(struct kvt_backend *t, int code)
{
    struct kvi_backend_memory memory;

    for (int count = 0; count < 20; count++) {
        int rc = kvi_backend_memory(t->device, &memory);

        if (rc < 0) {
            KVT_CHECK(t, rc == code && kvmem_error_detail()->code == code);
            KVT_CHECK(t, strstr(kvmem_error_detail()->text, "fails on order") != NULL);
            return count;
        }
    }
    return 20;
}

static void case_nth_call_fails_once(struct kvt_backend *t)
{
    uint64_t calls = kvi_backend_fault_calls(t->device, KVI_BACKEND_CALL_MEMORY);
    uint64_t fired = kvi_backend_fault_fired(t->device);

    for (int nth = 1; nth <= 5; nth++) {
        KVT_OK(t, kvi_backend_fault_arm(t->device, KVI_BACKEND_CALL_MEMORY, (uint64_t)nth,
                                        KVMEM_E_SYSTEM, false));
        KVT_CHECK(t, calls_that_work(t, KVMEM_E_SYSTEM) == nth - 1);
        KVT_CHECK(t, calls_that_work(t, KVMEM_E_SYSTEM) == 20);
        calls += (uint64_t)nth + 20;
        fired++;
        KVT_CHECK(t, kvi_backend_fault_calls(t->device, KVI_BACKEND_CALL_MEMORY) == calls);
        KVT_CHECK(t, kvi_backend_fault_fired(t->device) == fired);
    }
}

static void case_nth_call_fails_from_then_on(struct kvt_backend *t)
{
    KVT_OK(t,
           kvi_backend_fault_arm(t->device, KVI_BACKEND_CALL_MEMORY, 4, KVMEM_E_DEVICE_FULL, true));
    KVT_CHECK(t, calls_that_work(t, KVMEM_E_DEVICE_FULL) == 3);
    for (int i = 0; i < 10; i++)
        KVT_CHECK(t, calls_that_work(t, KVMEM_E_DEVICE_FULL) == 0);
    KVT_CHECK(t, kvi_backend_fault_fired(t->device) == 11);
    kvi_backend_fault_disarm(t->device);
    KVT_CHECK(t, calls_that_work(t, 0) == 20);
    KVT_CHECK(t, kvi_backend_fault_fired(t->device) == 11);
}

static void case_any_call_counts(struct kvt_backend *t)
{
    struct kvi_phys phys = {0};

    KVT_OK(t, kvi_backend_fault_arm(t->device, KVI_BACKEND_CALL_ANY, 3, KVMEM_E_SYSTEM, false));
    KVT_OK(t, kvi_backend_segment_create(t->device, t->granule, &phys));
    KVT_CHECK(t, kvt_memory(t, t->device).handle_count == 1);
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "segment_release", kvi_backend_segment_release(t->device, phys));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

static void case_arming_again_replaces(struct kvt_backend *t)
{
    struct kvi_backend *b = t->device;

    KVT_OK(t, kvi_backend_fault_arm(b, KVI_BACKEND_CALL_MEMORY, 1, KVMEM_E_SYSTEM, true));
    KVT_OK(t, kvi_backend_fault_arm(b, KVI_BACKEND_CALL_MEMORY, 3, KVMEM_E_CORRUPT, false));
    KVT_CHECK(t, calls_that_work(t, KVMEM_E_CORRUPT) == 2);
    KVT_CHECK(t, calls_that_work(t, 0) == 20);
    KVT_OK(t, kvi_backend_fault_arm(b, KVI_BACKEND_CALL_MEMORY, 1, KVMEM_E_CORRUPT, false));
    KVT_OK(t, kvi_backend_fault_arm(b, KVI_BACKEND_CALL_ANY, 1, KVMEM_E_SYSTEM, false));
    KVT_CHECK(t, calls_that_work(t, KVMEM_E_CORRUPT) == 0); /* its own code first; both used up */
    KVT_CHECK(t, calls_that_work(t, 0) == 20);
    KVT_OK(t, kvi_backend_fault_arm(b, KVI_BACKEND_CALL_MAP, 1, KVMEM_E_SYSTEM, false));
    KVT_CHECK(t, calls_that_work(t, 0) == 20);
    kvi_backend_fault_disarm(b);
}

static void case_failing_import_closes_the_fd(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 1);
    struct kvi_phys imported = {77};
    int fd = exported(t, phys);

    KVT_OK(t, kvi_backend_fault_arm(t->client, KVI_BACKEND_CALL_SEGMENT_IMPORT, 1,
                                    KVMEM_E_NO_MEMORY, false));
    KVT_REFUSED(t, KVMEM_E_NO_MEMORY, "segment_import",
                kvi_backend_segment_import_consume(t->client, fd, t->granule, &imported));
    KVT_CHECK(t, fcntl(fd, F_GETFD) < 0 && imported.id == 77);
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

static void case_bad_orders_are_refused(struct kvt_backend *t)
{
    int bad_calls[] = {-1, KVI_BACKEND_CALL_COUNT, INT32_MAX, INT32_MIN};
    struct kvi_backend *b = t->device;

    for (size_t i = 0; i < sizeof(bad_calls) / sizeof(bad_calls[0]); i++) {
        enum kvi_backend_call call;

        memcpy(&call, &bad_calls[i], sizeof(call));
        KVT_REFUSED(t, KVMEM_E_INVALID, "call",
                    kvi_backend_fault_arm(b, call, 1, KVMEM_E_SYSTEM, false));
        KVT_CHECK(t, kvi_backend_call_name(call) == NULL);
        KVT_CHECK(t, kvi_backend_fault_calls(b, call) == 0);
    }
    KVT_REFUSED(t, KVMEM_E_INVALID, "nth",
                kvi_backend_fault_arm(b, KVI_BACKEND_CALL_ANY, 0, KVMEM_E_SYSTEM, false));
    KVT_REFUSED(t, KVMEM_E_INVALID, "nth",
                kvi_backend_fault_arm(b, KVI_BACKEND_CALL_ANY, UINT64_MAX, KVMEM_E_SYSTEM, false));
    KVT_REFUSED(t, KVMEM_E_INVALID, "code",
                kvi_backend_fault_arm(b, KVI_BACKEND_CALL_ANY, 1, 0, false));
    KVT_REFUSED(t, KVMEM_E_INVALID, "code",
                kvi_backend_fault_arm(b, KVI_BACKEND_CALL_ANY, 1, 5, false));
    KVT_CHECK(t, calls_that_work(t, 0) == 20);
}

static void case_bad_arguments_are_not_counted(struct kvt_backend *t)
{
    struct kvi_phys phys = {0};

    KVT_OK(t, kvi_backend_fault_arm(t->device, KVI_BACKEND_CALL_SEGMENT_CREATE, 1, KVMEM_E_SYSTEM,
                                    false));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_segment_create(t->device, 1, &phys));
    KVT_CHECK(t, kvi_backend_fault_calls(t->device, KVI_BACKEND_CALL_SEGMENT_CREATE) == 0);
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "call 1 of segment_create",
                kvi_backend_segment_create(t->device, t->granule, &phys));
}

static void case_wraps_what_it_can(struct kvt_backend *t)
{
    struct kvi_backend_ops ops = *t->device->ops;
    struct kvi_backend old = {&ops, t->device->info};
    struct kvi_backend *twice = NULL;

    KVT_CHECK(t, strcmp(t->device->info.name, "fault(host)") == 0);
    ops.version = 0;
    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "version", kvi_backend_fault_create(&old, &twice));
    KVT_REFUSED(t, KVMEM_E_INVALID, "NULL", kvi_backend_fault_create(NULL, &twice));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out", kvi_backend_fault_create(t->device, NULL));
    KVT_CHECK(t, twice == NULL);
    KVT_OK(t, kvi_backend_fault_create(t->device, &twice));
    KVT_CHECK(t, strcmp(twice->info.name, "fault(fault(host))") == 0);
    KVT_OK(t, kvi_backend_fault_arm(t->device, KVI_BACKEND_CALL_MEMORY, 1, KVMEM_E_SYSTEM, false));
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "call 2 of memory", /* the first was the suite's own */
                kvi_backend_memory(twice, &(struct kvi_backend_memory){0}));
    KVT_CHECK(t, kvi_backend_fault_fired(twice) == 0);
    kvi_backend_destroy(twice);
}

/* The n-th call of a kind failing, for every n until the sequence passes untouched. The number
 * of calls of that kind in the sequence. */
static uint64_t every_nth_fails(struct kvt_backend *t, enum kvi_backend_call call)
{
    uint64_t nth = 0;
    uint64_t fired;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    KVT_OK(t, kvi_backend_host_unpin(t->device, t->counters, page)); /* the sequence pins it */
    do {
        struct kvt_sequence s = {
            .t = t, .b = t->device, .inner = fault_inner(t->device), .code = KVMEM_E_DEVICE_FULL};
        struct kvi_backend_memory before = kvt_memory(t, s.inner);

        fired = kvi_backend_fault_fired(t->device);
        KVT_OK(t, kvi_backend_fault_arm(t->device, call, ++nth, KVMEM_E_DEVICE_FULL, false));
        kvt_sequence_run(&s);
        kvi_backend_fault_disarm(t->device);
        fired = kvi_backend_fault_fired(t->device) - fired;
        KVT_CHECK(t, s.failed_count == fired && fired <= 1);
        KVT_CHECK(t, kvt_memory_same(&before, &s.before));
        KVT_OK(t, kvi_backend_host_check(s.inner));
    } while (fired > 0);
    KVT_OK(t, kvi_backend_host_pin(t->device, t->counters, page));
    return nth - 1;
}

static void case_every_nth_call_of_each_kind_fails(struct kvt_backend *t)
{
    uint64_t sum = 0;

    for (int call = 0; call < KVI_BACKEND_CALL_ANY; call++) {
        uint64_t count = every_nth_fails(t, (enum kvi_backend_call)call);

        KVT_CHECK(t, count >= 1); /* the sequence uses every operation */
        sum += count;
    }
    KVT_CHECK(t, every_nth_fails(t, KVI_BACKEND_CALL_ANY) == sum);
    KVT_CHECK(t, sum == 26);
}

#define FAULT_TEST(name)                               \
    Test(backend_fault, name, .timeout = TIME_LIMIT_S) \
    {                                                  \
        kvt_backend_run(&fault_factory, case_##name);  \
    }

FAULT_TEST(nth_call_fails_once)
FAULT_TEST(nth_call_fails_from_then_on)
FAULT_TEST(any_call_counts)
FAULT_TEST(arming_again_replaces)
FAULT_TEST(failing_import_closes_the_fd)
FAULT_TEST(bad_orders_are_refused)
FAULT_TEST(bad_arguments_are_not_counted)
FAULT_TEST(wraps_what_it_can)
FAULT_TEST(every_nth_call_of_each_kind_fails)

Test(backend_fault, calls_have_names)
{
    cr_assert_str_eq(kvi_backend_call_name(KVI_BACKEND_CALL_MEMORY), "memory");
    cr_assert_str_eq(kvi_backend_call_name(KVI_BACKEND_CALL_FENCE_WAIT), "fence_wait");
    cr_assert_str_eq(kvi_backend_call_name(KVI_BACKEND_CALL_ANY), "any");
}
