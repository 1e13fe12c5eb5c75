/* SPDX-License-Identifier: Apache-2.0
 *
 * The host backend: the compliance suite on it, the suite's own checks, then what is particular
 * to it: memfds, seals, pages, options, failing system calls and allocations.
 *
 * Every test goes through kvt_backend_run(), so fds, kernel mappings and what the backend says
 * is in use are compared before and after each.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backend_host_internal.h"
#include "support/backend_compliance.h"
#include "util/error.h"

#define TIME_LIMIT_S 60
#define CASES_WANTED 73 /* of the compliance suite */

/* ---- factories ---- */

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

static void host_destroy(void *context, struct kvi_backend *b)
{
    (void)context;
    kvi_backend_destroy(b);
}

static int host_check(void *context, struct kvi_backend *b)
{
    (void)context;
    return kvi_backend_host_check(b);
}

static uint64_t granule_default = KVI_BACKEND_HOST_GRANULE_DEFAULT;
static uint64_t granule_page = 4096;

static const struct kvt_backend_factory host_factory = {
    .context = &granule_default,
    .create = host_create,
    .destroy = host_destroy,
    .check = host_check,
    .fail = fail_here,
};

static const struct kvt_backend_factory page_factory = {
    .context = &granule_page,
    .create = host_create,
    .destroy = host_destroy,
    .check = host_check,
    .fail = fail_here,
};

/* ---- the compliance suite ---- */

#define COMPLIANCE_TEST(name)                               \
    Test(backend_host, name, .timeout = TIME_LIMIT_S)       \
    {                                                       \
        kvt_backend_run(&host_factory, kvt_backend_##name); \
    }

KVT_BACKEND_CASES(COMPLIANCE_TEST)

static const struct {
    const char *name;
    kvt_backend_case test_case;
} all_cases[] = {
#define CASE_ROW(name) {#name, kvt_backend_##name},
    KVT_BACKEND_CASES(CASE_ROW)
#undef CASE_ROW
};

#define CASE_COUNT (sizeof(all_cases) / sizeof(all_cases[0]))

Test(backend_suite, has_its_number_of_cases)
{
    cr_assert_eq(CASE_COUNT, CASES_WANTED, "%zu cases", CASE_COUNT);
}

Test(backend_suite, holds_with_the_os_page_as_granule, .timeout = 2 * TIME_LIMIT_S)
{
    granule_page = (uint64_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < CASE_COUNT; i++)
        kvt_backend_run(&page_factory, all_cases[i].test_case);
}

/* ---- the suite's own checks, tested: a leak of each sort must fail a case ---- */

/* A caught case leaves its backends behind, on purpose: the leak checker, where there is one, is
 * told not to look at what is allocated meanwhile. */
extern void __lsan_disable(void) __attribute__((weak));
extern void __lsan_enable(void) __attribute__((weak));

static jmp_buf caught;
static char caught_message[1024];

static void fail_caught(const char *file, int line, const char *message)
{
    snprintf(caught_message, sizeof(caught_message), "%s:%d: %s", file, line, message);
    longjmp(caught, 1);
}

/* Does the suite fail this case, with `word` in its message? */
static bool suite_catches(kvt_backend_case leaky, const char *word)
{
    static struct kvt_backend_factory factory;

    factory = host_factory;
    factory.fail = fail_caught;
    if (setjmp(caught) == 0) {
        kvt_backend_run(&factory, leaky);
        return false;
    }
    return strstr(caught_message, word) != NULL;
}

static void leak_fd(struct kvt_backend *t)
{
    KVT_CHECK(t, fcntl(1, F_DUPFD_CLOEXEC, 0) >= 0);
}

static void leak_mapping(struct kvt_backend *t)
{
    int fd = memfd_create("kvmem-leak", MFD_CLOEXEC);

    KVT_CHECK(t, fd >= 0 && ftruncate(fd, 4096) == 0);
    KVT_CHECK(t, mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
    close(fd);
}

static void leak_handle(struct kvt_backend *t)
{
    kvt_segment(t, 1);
}

static void leak_reservation(struct kvt_backend *t)
{
    kvt_reserved(t, t->client, 1);
}

static void corrupt_table(struct kvt_backend *t)
{
    struct kvi_backend_host *host = (struct kvi_backend_host *)(void *)t->device;

    KVT_OK(t, kvi_backend_segment_release(t->device, kvt_segment(t, 1)));
    host->book.segments[0].bytes = t->granule;
}

static void succeed_wrongly(struct kvt_backend *t)
{
    struct kvi_backend_memory memory;

    KVT_REFUSED(t, KVMEM_E_INVALID, "out", kvi_backend_memory(t->device, &memory));
}

static void refuse_without_a_word(struct kvt_backend *t)
{
    KVT_REFUSED(t, KVMEM_E_INVALID, "giraffe", kvi_backend_memory(t->device, NULL));
}

Test(backend_suite, catches_what_it_should, .timeout = TIME_LIMIT_S)
{
    if (__lsan_disable)
        __lsan_disable();
    cr_assert(suite_catches(leak_fd, "fds: "));
    cr_assert(suite_catches(leak_mapping, "mappings: "));
    cr_assert(suite_catches(leak_handle, "kvt_memory_same"));
    cr_assert(suite_catches(leak_reservation, "kvt_memory_same"));
    cr_assert(suite_catches(corrupt_table, "factory->check"));
    cr_assert(suite_catches(succeed_wrongly, "gave 0 OK, want -1 INVALID"));
    cr_assert(suite_catches(refuse_without_a_word, "want \"giraffe\""));
    if (__lsan_enable)
        __lsan_enable();
}

/* ---- host: options ---- */

static void host_refuses(struct kvt_backend *t, const char *word, uint64_t device_bytes,
                         uint64_t granule_bytes)
{
    struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                               .device_bytes = device_bytes,
                                               .granule_bytes = granule_bytes};
    struct kvi_backend *b = t->device;

    KVT_REFUSED(t, KVMEM_E_INVALID, word, kvi_backend_host_create(&options, &b));
    KVT_CHECK(t, b == t->device);
}

static void case_options_are_checked(struct kvt_backend *t)
{
    struct kvi_backend_host_options options = {.options_bytes = sizeof(options)};
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t granules[] = {1,        page / 2,   page - 1,           page + 1,
                           3 * page, UINT64_MAX, UINT64_MAX / 2 + 1, UINT64_C(2) << 30};
    uint64_t sizes[] = {1, 65535, 65537, UINT64_MAX, UINT64_C(1) << 63, 0 - UINT64_C(65536)};
    struct kvi_backend *b = NULL;

    for (size_t i = 0; i < sizeof(granules) / sizeof(granules[0]); i++)
        host_refuses(t, "granule_bytes", 0, granules[i]);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        host_refuses(t, "device_bytes", sizes[i], 65536);
    KVT_REFUSED(t, KVMEM_E_INVALID, "options", kvi_backend_host_create(NULL, &b));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out", kvi_backend_host_create(&options, NULL));
    options.reserved = 1;
    KVT_REFUSED(t, KVMEM_E_INVALID, "reserved", kvi_backend_host_create(&options, &b));
    options.reserved = 0;
    options.options_bytes--;
    KVT_REFUSED(t, KVMEM_E_INVALID, "options_bytes", kvi_backend_host_create(&options, &b));
    KVT_CHECK(t, b == NULL);
}

static void case_granule_is_chosen(struct kvt_backend *t)
{
    uint64_t granules[] = {0, 4096, 65536, UINT64_C(2) << 20, UINT64_C(1) << 30};

    granules[1] = (uint64_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < sizeof(granules) / sizeof(granules[0]); i++) {
        struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                                   .granule_bytes = granules[i]};
        uint64_t g = granules[i] != 0 ? granules[i] : 65536;
        struct kvi_backend *b = NULL;
        struct kvi_phys phys = {0};
        uint64_t base = 0;

        options.device_bytes = 3 * g;
        KVT_OK(t, kvi_backend_host_create(&options, &b));
        KVT_CHECK(t, b->info.granule_bytes == g && strcmp(b->info.name, "host") == 0);
        KVT_OK(t, kvi_backend_segment_create(b, 3 * g, &phys));
        KVT_OK(t, kvi_backend_reserve(b, 3 * g, 0, &base));
        KVT_OK(t, kvi_backend_map(b, phys, base, 3 * g, KVI_ACCESS_RW));
        KVT_OK(t, kvi_backend_copy_in(b, base + 3 * g - 1, "x", 1, 0));
        kvi_backend_destroy(b);
    }
}

/* ---- host: what a segment is ---- */

static int exported(struct kvt_backend *t, struct kvi_phys phys)
{
    int fd = -1;

    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    return fd;
}

static uint64_t file_resident_bytes(struct kvt_backend *t, int fd)
{
    struct stat status;

    KVT_CHECK(t, fstat(fd, &status) == 0);
    return (uint64_t)status.st_blocks * 512;
}

static void case_segment_is_sealed_at_birth(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 2);
    int fd = exported(t, phys);
    int seals = fcntl(fd, F_GET_SEALS);

    KVT_CHECK(t, seals & F_SEAL_SHRINK && seals & F_SEAL_GROW && seals & F_SEAL_SEAL);
    KVT_CHECK(t, !(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)));
    KVT_CHECK(t, ftruncate(fd, (off_t)t->granule) < 0);
    KVT_CHECK(t, ftruncate(fd, 3 * (off_t)t->granule) < 0);
    KVT_CHECK(t, fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0);
    close(fd);
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

static void case_no_page_is_touched(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 32);
    struct kvi_phys imported = kvt_imported(t, phys, 32);
    uint64_t ours = kvt_reserved(t, t->device, 32);
    uint64_t theirs = kvt_reserved(t, t->client, 32);
    int fd = exported(t, phys);
    uint64_t bytes = 32 * t->granule;

    KVT_OK(t, kvi_backend_map(t->device, phys, ours, bytes, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_map(t->client, imported, theirs, bytes, KVI_ACCESS_RO));
    KVT_OK(t, kvi_backend_set_access(t->client, theirs, bytes, KVI_ACCESS_RW));
    KVT_CHECK(t, file_resident_bytes(t, fd) == 0);
    KVT_OK(t, kvi_backend_copy_in(t->device, ours + 5, "x", 1, 0));
    KVT_CHECK(t, file_resident_bytes(t, fd) > 0);
    close(fd);
    KVT_OK(t, kvi_backend_unmap(t->device, ours, bytes));
    KVT_OK(t, kvi_backend_unmap(t->client, theirs, bytes));
    KVT_OK(t, kvi_backend_unreserve(t->device, ours, bytes));
    KVT_OK(t, kvi_backend_unreserve(t->client, theirs, bytes));
    KVT_OK(t, kvi_backend_segment_release(t->client, imported));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

static void case_release_punches_the_bytes_out(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 4);
    struct kvi_phys imported = kvt_imported(t, phys, 4);
    uint64_t base = kvt_reserved(t, t->client, 4);
    int fd = exported(t, phys);
    uint64_t bytes = 4 * t->granule;
    const unsigned char *byte = kvi_backend_pointer(base);

    KVT_OK(t, kvi_backend_map(t->client, imported, base, bytes, KVI_ACCESS_RW));
    kvt_fill(t, t->client, base, bytes, 1);
    KVT_CHECK(t, file_resident_bytes(t, fd) >= bytes);
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
    KVT_CHECK(t, file_resident_bytes(t, fd) == 0);
    for (uint64_t i = 0; i < bytes; i += 64)
        KVT_CHECK(t, byte[i] == 0);
    close(fd);
    KVT_OK(t, kvi_backend_unmap(t->client, base, bytes));
    KVT_OK(t, kvi_backend_unreserve(t->client, base, bytes));
    KVT_OK(t, kvi_backend_segment_release(t->client, imported));
}

static int memfd_sealed(struct kvt_backend *t, unsigned seals)
{
    int fd = memfd_create("kvmem-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    KVT_CHECK(t, fd >= 0 && ftruncate(fd, (off_t)t->granule) == 0);
    KVT_CHECK(t, fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}

static void case_import_looks_at_seals_and_mode(struct kvt_backend *t)
{
    unsigned full = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    unsigned bad[] = {F_SEAL_SHRINK,
                      F_SEAL_GROW,
                      F_SEAL_SEAL,
                      F_SEAL_SHRINK | F_SEAL_GROW,
                      F_SEAL_SHRINK | F_SEAL_SEAL,
                      F_SEAL_GROW | F_SEAL_SEAL,
                      full | F_SEAL_WRITE,
                      full | F_SEAL_FUTURE_WRITE};
    struct kvi_phys phys = {0};
    char path[64];
    int fd;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        KVT_REFUSED(t, KVMEM_E_CORRUPT, "seals",
                    kvi_backend_segment_import_consume(t->client, memfd_sealed(t, bad[i]),
                                                       t->granule, &phys));
    fd = memfd_sealed(t, full);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    KVT_REFUSED(t, KVMEM_E_CORRUPT, "read-write",
                kvi_backend_segment_import_consume(t->client, open(path, O_RDONLY | O_CLOEXEC),
                                                   t->granule, &phys));
    KVT_OK(t, kvi_backend_segment_import_consume(t->client, fd, t->granule, &phys));
    KVT_OK(t, kvi_backend_segment_release(t->client, phys));
}

/* The "VmFlags:" line of the kernel mapping that starts at `address`. */
static void vm_flags(struct kvt_backend *t, uint64_t address, char *flags, size_t flags_bytes)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    char wanted[32];
    char line[512];
    bool found = false;

    KVT_CHECK(t, file != NULL);
    snprintf(wanted, sizeof(wanted), "%" PRIx64 "-", address);
    flags[0] = '\0';
    while (flags[0] == '\0' && fgets(line, sizeof(line), file) != NULL) {
        found = found || strncmp(line, wanted, strlen(wanted)) == 0;
        if (found && strncmp(line, "VmFlags:", 8) == 0)
            snprintf(flags, flags_bytes, "%s", line + 8);
    }
    fclose(file);
}

static void case_a_fork_does_not_inherit_mappings(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 2);
    uint64_t base = kvt_reserved(t, t->device, 6) + 2 * t->granule;
    char flags[512];

    KVT_OK(t, kvi_backend_map(t->device, phys, base, 2 * t->granule, KVI_ACCESS_RO));
    vm_flags(t, base, flags, sizeof(flags));
    KVT_CHECK(t, strstr(flags, " dc") != NULL); /* VM_DONTCOPY */
    KVT_OK(t, kvi_backend_set_access(t->device, base, 2 * t->granule, KVI_ACCESS_RW));
    vm_flags(t, base, flags, sizeof(flags));
    KVT_CHECK(t, strstr(flags, " dc") != NULL && strstr(flags, " wr") != NULL);
    KVT_OK(t, kvi_backend_unmap(t->device, base, 2 * t->granule));
    KVT_OK(t, kvi_backend_unreserve(t->device, base - 2 * t->granule, 6 * t->granule));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* ---- host: the check checks ---- */

static void violation(struct kvt_backend *t, const char *word, uint64_t *field, uint64_t wrong)
{
    uint64_t right = *field;

    KVT_OK(t, kvi_backend_host_check(t->device));
    *field = wrong;
    KVT_REFUSED(t, KVMEM_E_CORRUPT, word, kvi_backend_host_check(t->device));
    *field = right;
}

static void case_check_names_the_violation(struct kvt_backend *t)
{
    struct kvi_backend_host *host = (struct kvi_backend_host *)(void *)t->device;
    uint64_t g = t->granule;
    struct kvi_phys first = kvt_segment(t, 1);
    struct kvi_phys second = kvt_segment(t, 2);
    uint64_t base = kvt_reserved(t, t->device, 8);
    struct kvi_book_mapping *mappings;
    struct kvi_backend wrapper = {0};

    KVT_OK(t, kvi_backend_map(t->device, first, base, g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_map(t->device, second, base + g, 2 * g, KVI_ACCESS_RW));
    mappings = host->book.reservations[0].mappings;
    violation(t, "used_bytes", &host->book.used_bytes, 4 * g);
    violation(t, "device_bytes", &host->base.info.device_bytes, 2 * g);
    violation(t, "handle_count", &host->book.handle_count, 3);
    violation(t, "bytes of a segment", &host->book.segments[0].bytes, g + 1);
    violation(t, "reserved_bytes", &host->book.reserved_bytes, 0);
    violation(t, "mapping_count", &host->book.mapping_count, 1);
    violation(t, "mapped_bytes", &host->book.mapped_bytes, 0);
    violation(t, "disjoint", &mappings[1].address, base);
    violation(t, "granule", &mappings[1].bytes, g + 1);
    violation(t, "inside", &mappings[1].bytes, 8 * g);
    host->book.segment_free = 1;
    KVT_REFUSED(t, KVMEM_E_CORRUPT, "free list", kvi_backend_host_check(t->device));
    host->book.segment_free = 0;
    KVT_REFUSED(t, KVMEM_E_INVALID, "host backend", kvi_backend_host_check(NULL));
    KVT_REFUSED(t, KVMEM_E_INVALID, "host backend", kvi_backend_host_check(&wrapper));
    KVT_OK(t, kvi_backend_unmap(t->device, base, 3 * g));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 8 * g));
    KVT_OK(t, kvi_backend_segment_release(t->device, first));
    KVT_OK(t, kvi_backend_segment_release(t->device, second));
}

/* ---- host: system calls that fail ---- */

static void case_no_fd_left(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 1);
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    struct kvi_backend_memory after;
    struct rlimit limit;
    struct rlimit none;
    struct kvi_phys another = {77};
    int fd = dup(1); /* the lowest free number; from there on nothing */

    KVT_CHECK(t, fd >= 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    close(fd);
    none = (struct rlimit){(rlim_t)fd, limit.rlim_max};
    KVT_CHECK(t, setrlimit(RLIMIT_NOFILE, &none) == 0);
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "memfd_create",
                kvi_backend_segment_create(t->device, t->granule, &another));
    KVT_CHECK(t, kvmem_error_detail()->system_errno == EMFILE);
    fd = -2;
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "DUPFD", kvi_backend_segment_export(t->device, phys, &fd));
    KVT_CHECK(t, setrlimit(RLIMIT_NOFILE, &limit) == 0);
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &after) && another.id == 77 && fd == -2);
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* The kernel allows so many mappings a process: fill them up. */
static uint64_t mappings_fill(struct kvt_backend *t, struct kvi_phys phys, uint64_t base,
                              uint64_t count)
{
    for (uint64_t at = 0; at < count; at++) {
        int rc = kvi_backend_map(t->device, phys, base + 2 * at * t->granule, t->granule,
                                 at & 1 ? KVI_ACCESS_RO : KVI_ACCESS_RW);

        if (rc < 0) {
            KVT_CHECK(t, rc == KVMEM_E_NO_MEMORY);
            KVT_CHECK(t, kvmem_error_detail()->system_errno == ENOMEM);
            return at;
        }
    }
    return count;
}

static uint64_t mappings_limit(void)
{
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    uint64_t count = 0;

    if (file == NULL || fscanf(file, "%" SCNu64, &count) != 1)
        count = 0;
    if (file != NULL)
        fclose(file);
    return count;
}

/* How many to try: more than the kernel allows, unless that would leave a sanitizer's runtime
 * without a mapping for itself, or last too long. */
static uint64_t mappings_to_try(bool *out_refused)
{
    uint64_t limit = mappings_limit();

    *out_refused = !KVT_SANITIZED && limit > 0 && limit <= 200000;
    return *out_refused ? limit : 5000;
}

/* Map until the kernel refuses, look for holes, take everything out again. */
static void mappings_round(struct kvt_backend *t, struct kvi_phys phys, uint64_t base,
                           uint64_t count, bool refused)
{
    uint64_t g = t->granule;
    uint64_t mapped = mappings_fill(t, phys, base, refused ? count : count - 1);
    uint64_t next = base + 2 * mapped * g;

    KVT_CHECK(t, mapped > 1000 && mapped < count);
    KVT_CHECK(t, kvt_mapped_bytes(base, 2 * count * g) == 2 * count * g); /* also where it failed */
    KVT_CHECK(t, kvt_memory(t, t->device).mapping_count == mapped);
    KVT_CHECK(t, kvt_load_faults(next) && !kvt_load_faults(base));
    KVT_OK(t, kvi_backend_unmap(t->device, base + 2 * g, g));
    KVT_CHECK(t, kvt_load_faults(base + 2 * g));
    KVT_OK(t, kvi_backend_unmap(t->device, base + 6 * g, g));
    KVT_OK(t, kvi_backend_map(t->device, phys, next, g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_unmap(t->device, next, g));
    for (uint64_t at = mapped; at-- > 0;) /* the first goes last */
        if (at != 1 && at != 3)
            KVT_OK(t, kvi_backend_unmap(t->device, base + 2 * at * g, g));
}

static void case_no_mapping_left(struct kvt_backend *t)
{
    bool refused;
    uint64_t count = mappings_to_try(&refused);
    struct kvi_phys phys = kvt_segment(t, 1);
    uint64_t base = kvt_reserved(t, t->device, 2 * count);

    mappings_round(t, phys, base, count, refused);
    mappings_round(t, phys, base, count, refused);
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 2 * count * t->granule));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* ---- host: allocations that fail ---- */

struct counting_alloc {
    struct kvi_alloc alloc;
    uint64_t calls;
    uint64_t fail_nth;   /* the n-th call fails; 0 none */
    uint64_t fail_every; /* every n-th call fails; 0 none */
    uint64_t live_bytes;
};

static void *counting_allocate(void *context, size_t bytes)
{
    struct counting_alloc *counting = context;
    void *memory;

    counting->calls++;
    if (counting->calls == counting->fail_nth ||
        (counting->fail_every != 0 && counting->calls % counting->fail_every == 0))
        return NULL;
    memory = kvi_allocate(&kvi_alloc_libc, bytes);
    counting->live_bytes += bytes;
    return memory;
}

static void counting_release(void *context, void *memory, size_t bytes)
{
    struct counting_alloc *counting = context;

    counting->live_bytes -= bytes;
    kvi_release(&kvi_alloc_libc, memory, bytes);
}

static struct counting_alloc counting_new(struct counting_alloc *where)
{
    return (struct counting_alloc){
        .alloc = {.context = where, .allocate = counting_allocate, .release = counting_release}};
}

static void case_nth_allocation_fails(struct kvt_backend *t)
{
    uint64_t nth = 0;
    bool reached;

    do {
        struct counting_alloc counting = counting_new(&counting);
        struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                                   .device_bytes = 4 * t->granule,
                                                   .alloc = &counting.alloc};
        struct kvt_sequence s = {.t = t, .code = KVMEM_E_NO_MEMORY};
        int rc;

        counting.fail_nth = ++nth;
        rc = kvi_backend_host_create(&options, &s.b);
        KVT_CHECK(t, rc == (nth == 1 ? KVMEM_E_NO_MEMORY : 0));
        if (rc == 0) {
            s.inner = s.b;
            kvt_sequence_run(&s);
            KVT_OK(t, kvi_backend_host_check(s.b));
            kvi_backend_destroy(s.b);
        }
        reached = counting.calls >= nth;
        KVT_CHECK(t, s.failed_count == (reached && nth > 1 ? 1 : 0));
        KVT_CHECK(t, counting.live_bytes == 0);
    } while (reached);
    KVT_CHECK(t,
              nth == 8); /* backend, pins, handles, reservations, rights, mappings, allocations */
}

/* Every third allocation fails while all four tables grow from nothing to 100 entries. */
static void case_tables_grow_or_stay(struct kvt_backend *t)
{
    enum {
        COUNT = 100
    };
    struct counting_alloc counting = counting_new(&counting);
    uint64_t g = t->granule;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct kvi_backend_host_options options = {
        .options_bytes = sizeof(options), .device_bytes = COUNT * g, .alloc = &counting.alloc};
    struct kvt_sequence s = {.t = t, .code = KVMEM_E_NO_MEMORY};
    struct kvi_phys phys = {0};
    uint64_t base = 0;
    uint64_t other = 0;

    counting.fail_every = 3;
    KVT_OK(t, kvi_backend_host_create(&options, &s.b));
    s.inner = s.b;
    s.before = kvt_memory(t, s.b);
    KVT_STEP_BACK(&s, kvi_backend_reserve(s.b, COUNT * g, 0, &base));
    for (uint64_t i = 0; i < COUNT; i++) {
        char *memory = (char *)t->counters + (i + 1) * page; /* nobody touches it */

        KVT_STEP_BACK(&s, kvi_backend_segment_create(s.b, g, &phys));
        KVT_STEP_BACK(&s, kvi_backend_reserve(s.b, g, 0, &other));
        KVT_STEP_BACK(&s, kvi_backend_map(s.b, phys, base + (COUNT - 1 - i) * g, g, KVI_ACCESS_RW));
        KVT_STEP_BACK(&s, kvi_backend_host_pin(s.b, memory, page));
    }
    KVT_CHECK(t, s.failed_count >= 10);
    KVT_CHECK(t, s.before.mapping_count == COUNT && s.before.pin_count == COUNT);
    KVT_CHECK(t, s.before.handle_count == COUNT && s.before.reservation_count == COUNT + 1);
    KVT_OK(t, kvi_backend_host_check(s.b));
    kvi_backend_destroy(s.b);
    KVT_CHECK(t, counting.live_bytes == 0);
}

#define HOST_TEST(name)                                    \
    Test(backend_host_only, name, .timeout = TIME_LIMIT_S) \
    {                                                      \
        kvt_backend_run(&host_factory, case_##name);       \
    }

HOST_TEST(options_are_checked)
HOST_TEST(granule_is_chosen)
HOST_TEST(segment_is_sealed_at_birth)
HOST_TEST(no_page_is_touched)
HOST_TEST(release_punches_the_bytes_out)
HOST_TEST(import_looks_at_seals_and_mode)
HOST_TEST(a_fork_does_not_inherit_mappings)
HOST_TEST(check_names_the_violation)
HOST_TEST(no_fd_left)
HOST_TEST(nth_allocation_fails)
HOST_TEST(tables_grow_or_stay)

Test(backend_host_only, no_mapping_left, .timeout = 2 * TIME_LIMIT_S)
{
    bool refused;
    uint64_t count = mappings_to_try(&refused);

    if (!refused)
        fprintf(stderr,
                "no_mapping_left: %" PRIu64 " mappings alone; the kernel's limit, %" PRIu64
                ", is out of reach here (sanitized: %d)\n",
                count, mappings_limit(), KVT_SANITIZED);
    kvt_backend_run(&host_factory, case_no_mapping_left);
}
