/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend on a fake driver: the compliance suite on it and on the fault backend around
 * it, then what is particular to it: imports that are not what was promised, alignment, pins that
 * are shared, streams. What holds around every test is in tests/support/cuda_fake.h; driver calls
 * that fail have test_backend_cuda_failures.c.
 *
 * The same backend on a real device is tests/gpu/backend_cuda.c, which is run here on the fake,
 * so that it is sure to work where its time counts.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/backend_cuda_internal.h"
#include "backend/backend_fault.h"
#include "support/cuda_fake.h"
#include "support/spawn.h"
#include "util/error.h"

#define TIME_LIMIT_S 60

extern char **environ;

static void fail_here(const char *file, int line, const char *message)
{
    cr_assert_fail("%s:%d: %s", file, line, message);
    abort(); /* not reached */
}

static void run(const struct kvt_backend_factory *factory, kvt_backend_case test_case)
{
    kvt_fake_run(factory, test_case, fail_here);
}

/* ---- the compliance suite ---- */

#define COMPLIANCE_TEST(name)                         \
    Test(backend_cuda, name, .timeout = TIME_LIMIT_S) \
    {                                                 \
        run(&kvt_cuda_factory, kvt_backend_##name);   \
    }
KVT_BACKEND_CASES(COMPLIANCE_TEST)

#define FAULT_COMPLIANCE_TEST(name)                         \
    Test(backend_cuda_fault, name, .timeout = TIME_LIMIT_S) \
    {                                                       \
        run(&kvt_cuda_fault_factory, kvt_backend_##name);   \
    }
KVT_BACKEND_CASES(FAULT_COMPLIANCE_TEST)

/* Every nth call of the table, failed by the fault backend; test_backend_fault.c has it at
 * length. Here: what the suite's sequence leaves in the CUDA backend. */
static void case_the_fault_backend_leaves_it_untouched(struct kvt_backend *t)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct kvi_backend *inner = kvt_cuda_fault_inner(t->device);
    uint64_t fired;
    uint64_t nth = 0;

    KVT_OK(t, kvi_backend_host_unpin(t->device, t->counters, page)); /* the sequence pins it */
    do {
        struct kvt_sequence s = {
            .t = t, .b = t->device, .inner = inner, .code = KVMEM_E_DEVICE_FULL};
        struct kvi_backend_memory before = kvt_memory(t, inner);

        fired = kvi_backend_fault_fired(t->device);
        KVT_OK(t, kvi_backend_fault_arm(t->device, KVI_BACKEND_CALL_ANY, ++nth, KVMEM_E_DEVICE_FULL,
                                        false));
        kvt_sequence_run(&s);
        kvi_backend_fault_disarm(t->device);
        fired = kvi_backend_fault_fired(t->device) - fired;
        KVT_CHECK(t, s.failed_count == fired && kvt_memory_same(&before, &s.before));
        KVT_OK(t, kvi_backend_cuda_check(inner));
    } while (fired > 0);
    KVT_CHECK(t, nth == 27);
    KVT_OK(t, kvi_backend_host_pin(t->device, t->counters, page));
}

/* ---- what it is ---- */

static void case_it_says_what_it_is(struct kvt_backend *t)
{
    struct kvi_backend_cuda_device what;

    KVT_OK(t, kvt_cuda_query(&what));
    KVT_CHECK(t, what.driver_version == 13000 && what.device_count == 2 && what.capability == 90);
    KVT_CHECK(t, what.rdma_capable && strcmp(what.name, "Fake GPU 0") == 0);
    KVT_CHECK(t, what.granule_bytes == t->granule && what.total_bytes == UINT64_C(64) << 20);
    KVT_CHECK(t, t->device->info.kind == KVI_BACKEND_CUDA);
    KVT_CHECK(t, t->device->info.flags == KVI_BACKEND_CREATES);
    KVT_CHECK(t, strcmp(t->device->info.name, "cuda:0 Fake GPU 0") == 0);
    KVT_CHECK(t, kvt_memory(t, t->client).total_bytes == what.total_bytes);
}

/* The fake, not the backend: it tells of what would fault a kernel. */
static void case_a_change_of_access_is_told(struct kvt_backend *t)
{
    const struct kvi_cuda_driver *driver = NULL;
    struct kvi_cu_access access = {.location = {.type = KVI_CU_LOCATION_DEVICE},
                                   .flags = KVI_CU_ACCESS_READ_WRITE};
    struct kvi_phys phys = kvt_segment(t, 1);
    uint64_t base = kvt_reserved(t, t->device, 1);

    KVT_OK(t, kvi_backend_map(t->device, phys, base, t->granule, KVI_ACCESS_RO));
    KVT_CHECK(t, kvt_fake->misuse == 0);
    KVT_OK(t, kvi_cuda_driver_open(kvt_fake_path(), &driver));
    KVT_CHECK(t, driver->set_access(base, t->granule, &access, 1) == KVI_CU_ILLEGAL_ADDRESS);
    KVT_CHECK(t, kvt_fake->misuse == 1 && strcmp(kvt_fake->misused, "cuMemSetAccess") == 0);
    kvt_fake->misuse = 0;
    KVT_OK(t, kvi_backend_unmap(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

static void cuda_refuses(struct kvt_backend *t, const char *word,
                         const struct kvi_backend_cuda_options *options)
{
    struct kvi_backend *b = t->device;

    KVT_REFUSED(t, KVMEM_E_INVALID, word, kvi_backend_cuda_create(options, &b));
    KVT_CHECK(t, b == t->device);
}

static void case_options_are_checked(struct kvt_backend *t)
{
    struct kvi_backend_cuda_options good = {.options_bytes = sizeof(good),
                                            .driver_path = kvt_cuda.driver_path};
    struct kvi_backend_cuda_options options = good;
    struct kvi_backend wrapper = {0};

    options.options_bytes--;
    cuda_refuses(t, "options_bytes", &options);
    options = good;
    options.device_bytes = t->granule + 1;
    cuda_refuses(t, "device_bytes", &options);
    options.device_bytes = (UINT64_C(64) << 20) + t->granule;
    cuda_refuses(t, "device_bytes", &options);
    options = good;
    options.device_index = 2;
    cuda_refuses(t, "device_index", &options);
    options.device_index = UINT32_MAX;
    cuda_refuses(t, "device_index", &options);
    cuda_refuses(t, "options", NULL);
    KVT_REFUSED(t, KVMEM_E_INVALID, "out", kvi_backend_cuda_create(&good, NULL));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out", kvi_backend_cuda_query(&good, NULL));
    KVT_REFUSED(t, KVMEM_E_INVALID, "no CUDA backend", kvi_backend_cuda_check(NULL));
    KVT_REFUSED(t, KVMEM_E_INVALID, "no CUDA backend", kvi_backend_cuda_check(&wrapper));
}

/* ---- address space ---- */

static void case_alignment_is_had_in_any_case(struct kvt_backend *t)
{
    uint64_t base = 0;

    kvt_fake->ignores_alignment = true;
    for (uint64_t shift = 0; shift < 6; shift++) {
        uint64_t alignment = t->granule << shift;

        KVT_OK(t, kvi_backend_reserve(t->device, 3 * t->granule, alignment, &base));
        KVT_CHECK(t, base % alignment == 0);
        KVT_CHECK(t, kvt_memory(t, t->device).reserved_bytes == 3 * t->granule);
        KVT_OK(t, kvi_backend_cuda_check(t->device));
        if (shift > 0) {
            kvt_fake_fail("cuMemAddressReserve", 2, KVI_CU_OUT_OF_MEMORY);
            KVT_REFUSED(t, KVMEM_E_NO_MEMORY, "cuMemAddressReserve",
                        kvi_backend_reserve(t->device, t->granule, alignment, &base));
        }
        KVT_OK(t, kvi_backend_unreserve(t->device, base, 3 * t->granule));
        KVT_CHECK(t, kvt_fake->reservations == 0);
    }
    KVT_CHECK(t, kvi_backend_reserve(t->device, (uint64_t)INT64_MAX + 1 - t->granule,
                                     UINT64_C(1) << 63, &base) == KVMEM_E_NO_MEMORY);
    kvt_fake->ignores_alignment = false;
}

/* ---- imports ---- */

static void case_memory_of_another_device_is_refused(struct kvt_backend *t)
{
    struct kvi_backend *other = NULL;
    struct kvi_phys phys = {0};
    struct kvi_phys imported = {77};
    int fd = -1;

    kvt_cuda.device_index = 1;
    KVT_OK(t, kvt_cuda_open(4 * t->granule, &other));
    kvt_cuda.device_index = 0;
    KVT_CHECK(t, strcmp(other->info.name, "cuda:1 Fake GPU 1") == 0);
    KVT_OK(t, kvi_backend_segment_create(other, t->granule, &phys));
    KVT_OK(t, kvi_backend_segment_export(other, phys, &fd));
    KVT_REFUSED(t, KVMEM_E_CORRUPT, "memory of device 1: want device 0",
                kvi_backend_segment_import_consume(t->client, fd, t->granule, &imported));
    KVT_CHECK(t, fcntl(fd, F_GETFD) < 0 && imported.id == 77);
    KVT_CHECK(t, kvt_fake->handle_refs == 1);
    kvi_backend_destroy(other);
}

/* ---- pins ---- */

static char *pages_new(struct kvt_backend *t, uint64_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    KVT_CHECK(t, pages != MAP_FAILED);
    return pages;
}

static void case_backends_share_pins(struct kvt_backend *t)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    char *memory = pages_new(t, 4 * page);
    uint64_t *counter = (uint64_t *)(void *)(memory + page + 64);
    uint64_t registrations = kvt_fake->registrations; /* t->counters: one, for both backends */
    struct kvi_backend *other = NULL;

    KVT_CHECK(t, registrations == 1);
    kvt_cuda.device_index = 1;
    KVT_OK(t, kvt_cuda_open(0, &other));
    kvt_cuda.device_index = 0;
    KVT_OK(t, kvi_backend_host_pin(other, memory, 3 * page));
    KVT_OK(t, kvi_backend_host_pin(t->client, memory + page, page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "another backend",
                kvi_backend_host_pin(t->device, memory + 2 * page, 2 * page));
    KVT_CHECK(t, kvt_fake->registrations == registrations + 1);
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned like this",
                kvi_backend_host_unpin(t->client, memory, 3 * page));
    kvi_backend_destroy(other); /* its pin goes, ours and the registration stay */
    KVT_CHECK(t, kvt_fake->registrations == registrations + 1);
    *counter = 0;
    KVT_OK(t, kvi_backend_fence_signal(t->client, counter, 7, 0));
    KVT_CHECK(t, kvi_backend_fence_poll(counter, 7) == KVI_FENCE_REACHED);
    kvt_fake_fail("cuMemHostUnregister", 1, 999);
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "cuMemHostUnregister",
                kvi_backend_host_unpin(t->client, memory + page, page));
    KVT_OK(t, kvi_backend_fence_signal(t->client, counter, 8, 0));
    KVT_OK(t, kvi_backend_host_unpin(t->client, memory + page, page));
    KVT_CHECK(t, kvt_fake->registrations == registrations);
    KVT_OK(t, kvi_backend_host_pin(t->device, memory + 2 * page, 2 * page));
    KVT_OK(t, kvi_backend_host_unpin(t->device, memory + 2 * page, 2 * page));
    munmap(memory, 4 * page);
}

/* ---- streams ---- */

static kvi_cu_stream stream_new(struct kvt_backend *t)
{
    int (*create)(kvi_cu_stream * out, unsigned flags);
    void *function = kvi_cuda_driver_symbol(kvt_fake_driver, "cuStreamCreate");
    kvi_cu_stream stream = NULL;

    memcpy(&create, &function, sizeof(function));
    KVT_CHECK(t, create(&stream, 0) == 0);
    return stream;
}

static int stream_call(const char *name, kvi_cu_stream stream)
{
    int (*call)(kvi_cu_stream);
    void *function = kvi_cuda_driver_symbol(kvt_fake_driver, name);

    memcpy(&call, &function, sizeof(function));
    return call(stream);
}

static void case_a_stream_waits_for_its_fence(struct kvt_backend *t)
{
    kvi_cu_stream first = stream_new(t);
    kvi_cu_stream second = stream_new(t);
    uint64_t one = (uintptr_t)first;
    uint64_t two = (uintptr_t)second;
    struct kvi_phys phys = kvt_segment(t, 1);
    uint64_t base = kvt_reserved(t, t->device, 1);
    uint64_t *counter = t->counters + 8;
    char byte = 0;

    KVT_OK(t, kvi_backend_map(t->device, phys, base, t->granule, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_copy_in(t->device, base, "a", 1, 0));
    *counter = 4;
    KVT_OK(t, kvi_backend_fence_wait(t->device, counter, 4, one)); /* no driver call needed */
    KVT_CHECK(t, kvt_fake->queued == 0);
    KVT_OK(t, kvi_backend_fence_wait(t->device, counter, 5, one));
    KVT_OK(t, kvi_backend_copy_in(t->device, base, "b", 1, one));
    KVT_OK(t, kvi_backend_fence_signal(t->device, counter, 6, one));
    KVT_OK(t, kvi_backend_fence_wait(t->device, counter, 6, two));
    KVT_OK(t, kvi_backend_copy_out(t->device, &byte, base, 1, two));
    KVT_CHECK(t, kvt_fake->queued == 5 && byte == 0 && *counter == 4);
    KVT_OK(t, kvi_backend_copy_out(t->device, &byte, base, 1, 0)); /* another stream goes on */
    KVT_CHECK(t, byte == 'a');
    __atomic_store_n(counter, 5, __ATOMIC_RELEASE);
    KVT_CHECK(t, stream_call("cuStreamQuery", second) == 0);
    KVT_CHECK(t, kvt_fake->queued == 0 && byte == 'b' && *counter == 6);
    KVT_OK(t, kvi_backend_unmap(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
    stream_call("cuStreamDestroy", first);
    stream_call("cuStreamDestroy", second);
}

static void case_values_stay_below_2_63(struct kvt_backend *t)
{
    uint64_t over = (uint64_t)INT64_MAX + 1;

    KVT_REFUSED(t, KVMEM_E_INVALID, "value",
                kvi_backend_fence_signal(t->device, t->counters, over, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "value",
                kvi_backend_fence_wait(t->device, t->counters, over, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "value",
                kvi_backend_fence_wait(t->device, t->counters, UINT64_MAX, 0));
    KVT_CHECK(t, kvt_fake->queued == 0);
}

/* ---- the check checks ---- */

static void violation(struct kvt_backend *t, const char *word, uint64_t *field, uint64_t wrong)
{
    uint64_t right = *field;

    KVT_OK(t, kvi_backend_cuda_check(t->device));
    *field = wrong;
    KVT_REFUSED(t, KVMEM_E_CORRUPT, word, kvi_backend_cuda_check(t->device));
    *field = right;
}

static void case_check_names_the_violation(struct kvt_backend *t)
{
    struct kvi_book *book = &kvi_backend_cuda_of(t->device)->book;
    uint64_t g = t->granule;
    struct kvi_phys first = kvt_segment(t, 1);
    struct kvi_phys second = kvt_segment(t, 2);
    uint64_t base = kvt_reserved(t, t->device, 8);
    struct kvi_book_mapping *mappings;

    KVT_OK(t, kvi_backend_map(t->device, first, base, g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_map(t->device, second, base + g, 2 * g, KVI_ACCESS_RW));
    mappings = book->reservations[0].mappings;
    violation(t, "used_bytes", &book->used_bytes, 4 * g);
    violation(t, "device_bytes", &t->device->info.device_bytes, 2 * g);
    violation(t, "handle_count", &book->handle_count, 3);
    violation(t, "bytes of a segment", &book->segments[0].bytes, g + 1);
    violation(t, "reserved_bytes", &book->reserved_bytes, 0);
    violation(t, "mapping_count", &book->mapping_count, 1);
    violation(t, "mapped_bytes", &book->mapped_bytes, 0);
    violation(t, "disjoint", &mappings[1].address, base);
    violation(t, "granule", &mappings[1].bytes, g + 1);
    violation(t, "inside", &mappings[1].bytes, 8 * g);
    violation(t, "kept", &mappings[0].kept, 1);
    mappings[0].is_first = false;
    KVT_REFUSED(t, KVMEM_E_CORRUPT, "is the first", kvi_backend_cuda_check(t->device));
    mappings[0].is_first = true;
    violation(t, "allocation_bytes", &book->allocations.bytes, 1);
    violation(t, "a right for each", &book->reservations[0].rights_count, 7);
    for (uint32_t granule = 0; granule < 8; granule += 3) {
        uint8_t right = book->reservations[0].rights[granule];

        book->reservations[0].rights[granule] = KVI_ACCESS_RO;
        KVT_REFUSED(t, KVMEM_E_CORRUPT, "rights of a granule", kvi_backend_cuda_check(t->device));
        book->reservations[0].rights[granule] = right;
    }
    violation(t, "driver's", &book->reservations[0].driver_base, base + g);
    book->segment_free = 1;
    KVT_REFUSED(t, KVMEM_E_CORRUPT, "free list", kvi_backend_cuda_check(t->device));
    book->segment_free = 0;
    KVT_OK(t, kvi_backend_unmap(t->device, base, 3 * g));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 8 * g));
    KVT_OK(t, kvi_backend_segment_release(t->device, first));
    KVT_OK(t, kvi_backend_segment_release(t->device, second));
}

#define CUDA_TEST(name)                                    \
    Test(backend_cuda_only, name, .timeout = TIME_LIMIT_S) \
    {                                                      \
        run(&kvt_cuda_factory, case_##name);               \
    }

CUDA_TEST(it_says_what_it_is)
CUDA_TEST(a_change_of_access_is_told)
CUDA_TEST(options_are_checked)
CUDA_TEST(alignment_is_had_in_any_case)
CUDA_TEST(memory_of_another_device_is_refused)
CUDA_TEST(backends_share_pins)
CUDA_TEST(a_stream_waits_for_its_fence)
CUDA_TEST(values_stay_below_2_63)
CUDA_TEST(check_names_the_violation)

Test(backend_cuda_only, the_fault_backend_leaves_it_untouched, .timeout = TIME_LIMIT_S)
{
    run(&kvt_cuda_fault_factory, case_the_fault_backend_leaves_it_untouched);
}

/* A device that has no code for the kernels: the driver's copies and fills do the same. */
Test(backend_cuda_only, blocks_and_cells_without_kernels, .timeout = TIME_LIMIT_S)
{
    static const struct kvt_cuda_case cases[] = {
#define CASE_ROW(name) {#name, kvt_backend_##name},
        KVT_BACKEND_BLOCK_CASES(CASE_ROW)
#undef CASE_ROW
    };
    static const int results[] = {KVI_CU_NO_BINARY_FOR_GPU, KVI_CU_UNSUPPORTED_PTX_VERSION,
                                  KVI_CU_INVALID_PTX, KVI_CU_JIT_COMPILER_NOT_FOUND};

    kvt_fake_open(fail_here);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        kvt_fake_fail("cuModuleLoadDataEx", 1, results[i % 4]);
        kvt_fake->fail_always = true;
        kvt_backend_run(&kvt_cuda_factory, cases[i].test_case);
    }
    kvt_fake->fail_nth = 0;
    cr_assert_eq(kvt_fake->launches, 0);
    kvt_fake_quiet();
}

/* ---- the programs for the machine with the GPU ---- */

static void program_works(const char *program)
{
    char *arguments[] = {(char *)program, NULL};
    pid_t pid;
    int status;

    setenv("KVMEM_CUDA_DRIVER", kvt_fake_path(), 1);
    setenv("KVMEM_BACKEND_BENCH", "short", 1);
    setenv("KVMEM_FAKE_CUDA", "bytes=1073741824", 1);
    cr_assert_eq(posix_spawn(&pid, kvt_program_path(program), NULL, NULL, arguments, environ), 0);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        cr_skip_test("%s has nothing to do in this build", program);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %#x", (unsigned)status);
}

Test(backend_cuda_program, works_on_the_fake, .timeout = 4 * TIME_LIMIT_S)
{
    program_works("tests/gpu/backend_cuda");
}

Test(backend_cuda_program, the_laboratory_checks_its_kernels, .timeout = TIME_LIMIT_S)
{
    program_works("tests/gpu/blocks_lab");
}
