/* SPDX-License-Identifier: Apache-2.0
 *
 * The host backend: the host pretending to be a device, with the driver's contract.
 *
 *   segment      a memfd, sealed SHRINK | GROW | SEAL at birth, so that no holder of an fd can
 *                make another one's mapping fault by changing its length, or add a seal. Never
 *                FUTURE_WRITE: an adopter maps it read-write later, and that seal would bar it
 *                for ever. The seal leaves hole punching possible, which is how the creator's
 *                release returns the bytes whoever still has it mapped.
 *   device       a number of bytes. Only segments created here count; pages come when touched.
 *
 * Ownership: the backend owns one fd a live handle; export gives a duplicate away, import takes
 * the caller's. Imported bytes are accounted where they were created.
 *
 * Threads: any; one mutex over the books (book.h). The device's bytes are never touched under it,
 * except by the hole punch of a release.
 *
 * Not here: address space, copies (backend_host_map.c); hugetlb; NUMA placement.
 */
#include "backend/backend_host.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backend_host_internal.h"
#include "util/error.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3; newer than Debian 12's glibc */
#endif

#define SEALS_WANTED  (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define SEALS_REFUSED (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)

static const struct kvi_backend_ops host_ops;

int kvi_backend_host_failed(int errno_value, const char *what)
{
    return kvi_error_sys(errno_value == ENOMEM ? KVMEM_E_NO_MEMORY : KVMEM_E_SYSTEM, errno_value,
                         "%s", what);
}

/* ---- segments ---- */

static int memfd_open(void)
{
    int fd = memfd_create("kvmem-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL) /* Linux before 6.3 */
        fd = memfd_create("kvmem-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd;
}

/* A sealed memfd of `bytes` without a page in it, or a code. */
static int memfd_segment(uint64_t bytes, int *out_fd)
{
    int fd = memfd_open();
    int rc;

    if (fd < 0)
        return kvi_backend_host_failed(errno, "segment_create: memfd_create");
    if (ftruncate(fd, (off_t)bytes) < 0) {
        rc = kvi_backend_host_failed(errno, "segment_create: ftruncate");
        goto fail_fd;
    }
    if (fcntl(fd, F_ADD_SEALS, SEALS_WANTED) < 0) {
        rc = kvi_backend_host_failed(errno, "segment_create: F_ADD_SEALS");
        goto fail_fd;
    }
    *out_fd = fd;
    return 0;

fail_fd:
    close(fd);
    return rc;
}

static int host_segment_create(struct kvi_backend *b, uint64_t bytes, struct kvi_phys *out)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    uint64_t left_bytes;
    int fd = -1;
    int rc;

    pthread_mutex_lock(&host->lock);
    left_bytes = b->info.device_bytes - host->book.used_bytes;
    if (bytes > left_bytes) {
        rc = kvi_error_set(KVMEM_E_DEVICE_FULL,
                           "segment_create: bytes is %" PRIu64 ", left are %" PRIu64 " of %" PRIu64,
                           bytes, left_bytes, b->info.device_bytes);
        goto unlock;
    }
    rc = kvi_book_segment_room(&host->book);
    if (rc == 0)
        rc = memfd_segment(bytes, &fd);
    if (rc == 0)
        *out = kvi_book_segment_add(&host->book, (uint64_t)fd, bytes, true);
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

static int host_segment_export(struct kvi_backend *b, struct kvi_phys phys, int *out_fd)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_book_segment *segment;
    int rc = KVMEM_E_INVALID;
    int fd;

    pthread_mutex_lock(&host->lock);
    segment = kvi_book_segment_find(&host->book, phys, "segment_export");
    if (segment == NULL)
        goto unlock;
    if (!segment->created) {
        rc = kvi_error_set(
            KVMEM_E_NOT_SUPPORTED,
            "segment_export: handle %#" PRIx64 " was imported: only the creator exports", phys.id);
        goto unlock;
    }
    fd = fcntl(kvi_backend_host_fd(segment), F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        rc = kvi_backend_host_failed(errno, "segment_export: F_DUPFD_CLOEXEC");
        goto unlock;
    }
    *out_fd = fd;
    rc = 0;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* Is `fd` the segment that was promised? Everything that could make a mapping of it fault or
 * fail later is looked at now. */
static int import_check(int fd, uint64_t bytes)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0)
        return kvi_error_sys(KVMEM_E_INVALID, errno, "segment_import: fd is %d", fd);
    if (seals < 0)
        return kvi_error_sys(KVMEM_E_CORRUPT, errno,
                             "segment_import: fd %d is no memfd: it has no seals", fd);
    if ((seals & SEALS_WANTED) != SEALS_WANTED)
        return kvi_error_set(KVMEM_E_CORRUPT,
                             "segment_import: fd %d has seals %#x: want SHRINK, GROW, SEAL (%#x)",
                             fd, (unsigned)seals, (unsigned)SEALS_WANTED);
    if ((seals & SEALS_REFUSED) != 0)
        return kvi_error_set(KVMEM_E_CORRUPT,
                             "segment_import: fd %d has seals %#x: it could never be written", fd,
                             (unsigned)seals);
    if ((flags & O_ACCMODE) != O_RDWR)
        return kvi_error_set(KVMEM_E_CORRUPT, "segment_import: fd %d is not open read-write", fd);
    if (fstat(fd, &status) < 0)
        return kvi_backend_host_failed(errno, "segment_import: fstat");
    if ((uint64_t)status.st_size != bytes)
        return kvi_error_set(KVMEM_E_CORRUPT,
                             "segment_import: fd %d has %" PRIu64 " bytes: %" PRIu64
                             " were promised",
                             fd, (uint64_t)status.st_size, bytes);
    return 0;
}

static int host_segment_import_consume(struct kvi_backend *b, int fd, uint64_t bytes,
                                       struct kvi_phys *out)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    int rc = import_check(fd, bytes);

    if (rc < 0)
        goto fail_fd;
    /* The table may outlive an exec of this process; the kernel gives fds from recvmsg without
     * MSG_CMSG_CLOEXEC, and dup()s, without the flag. */
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        rc = kvi_backend_host_failed(errno, "segment_import: F_SETFD");
        goto fail_fd;
    }
    pthread_mutex_lock(&host->lock);
    rc = kvi_book_segment_room(&host->book);
    if (rc == 0)
        *out = kvi_book_segment_add(&host->book, (uint64_t)fd, bytes, false);
    pthread_mutex_unlock(&host->lock);
    if (rc < 0)
        goto fail_fd;
    return 0;

fail_fd:
    close(fd); /* also when it was no open fd: then this does nothing */
    return rc;
}

/* Return the pages of a created segment, whoever has it mapped. */
static int segment_empty(const struct kvi_book_segment *segment)
{
    int rc;

    do
        rc = fallocate(kvi_backend_host_fd(segment), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                       (off_t)segment->bytes);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? kvi_backend_host_failed(errno, "segment_release: punch hole") : 0;
}

static int host_segment_release(struct kvi_backend *b, struct kvi_phys phys)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_book_segment *segment;
    int rc = KVMEM_E_INVALID;

    pthread_mutex_lock(&host->lock);
    segment = kvi_book_segment_find(&host->book, phys, "segment_release");
    if (segment == NULL)
        goto unlock;
    rc = segment->created ? segment_empty(segment) : 0;
    if (rc < 0)
        goto unlock;
    close(kvi_backend_host_fd(segment));
    kvi_book_segment_remove(&host->book, segment);
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* ---- pins and fences ---- */

static int host_pin(struct kvi_backend *b, void *memory, uint64_t bytes)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_backend_pin pin = {(uintptr_t)memory, bytes};
    int rc;

    pthread_mutex_lock(&host->lock);
    for (size_t i = 0; i < host->pin_count; i++) {
        const struct kvi_backend_pin *other = &host->pins[i];

        if (pin.start < other->start + other->bytes && other->start < pin.start + pin.bytes) {
            rc = kvi_error_set(KVMEM_E_INVALID,
                               "host_pin: memory %p of %" PRIu64 " bytes overlaps a pin", memory,
                               bytes);
            goto unlock;
        }
    }
    rc = kvi_book_grow(host->alloc, &host->pins, &host->pin_capacity, host->pin_count,
                       sizeof(*host->pins));
    if (rc == 0)
        host->pins[host->pin_count++] = pin;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

static int host_unpin(struct kvi_backend *b, void *memory, uint64_t bytes)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    size_t i = 0;
    int rc = 0;

    pthread_mutex_lock(&host->lock);
    while (i < host->pin_count &&
           (host->pins[i].start != (uintptr_t)memory || host->pins[i].bytes != bytes))
        i++;
    if (i == host->pin_count)
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "host_unpin: memory %p of %" PRIu64 " bytes was not pinned like this",
                           memory, bytes);
    else
        host->pins[i] = host->pins[--host->pin_count];
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* The host could do without; but then memory that nobody pinned would fail on CUDA alone. */
static int memory_pinned(struct kvi_backend_host *host, const void *memory, uint64_t bytes,
                         const char *operation)
{
    uint64_t start = (uintptr_t)memory;
    bool found = false;

    pthread_mutex_lock(&host->lock);
    for (size_t i = 0; i < host->pin_count && !found; i++)
        found = start >= host->pins[i].start && start - host->pins[i].start < host->pins[i].bytes &&
                bytes <= host->pins[i].bytes - (start - host->pins[i].start);
    pthread_mutex_unlock(&host->lock);
    if (!found)
        return kvi_error_set(KVMEM_E_INVALID, "%s: %p of %" PRIu64 " bytes is in no pinned memory",
                             operation, memory, bytes);
    return 0;
}

static int host_cells(struct kvi_backend *b, uint64_t base, const struct kvi_backend_cell *cells,
                      uint32_t count, uint64_t stream)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    int32_t *to = kvi_backend_pointer(base);
    int rc = memory_pinned(host, cells, count * sizeof(*cells), "cells");

    (void)stream;
    if (rc == 0)
        rc = kvi_book_span_check(&host->book, base, kvi_backend_cells_bytes(cells, count),
                                 KVI_ACCESS_RW, "cells");
    for (uint32_t i = 0; i < count && rc == 0; i++)
        to[cells[i].at] = cells[i].value;
    return rc;
}

static int host_fence_signal(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                             uint64_t stream)
{
    int rc = memory_pinned(kvi_backend_host_of(b), counter, sizeof(*counter), "fence_signal");

    (void)stream; /* everything before it on the host is done */
    if (rc == 0)
        __atomic_store_n(counter, value, __ATOMIC_RELEASE); /* pairs with fence_poll's acquire */
    return rc;
}

static int host_fence_wait(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                           uint64_t stream)
{
    int rc = memory_pinned(kvi_backend_host_of(b), counter, sizeof(*counter), "fence_wait");

    (void)stream;
    return rc < 0 ? rc : (int)kvi_backend_fence_poll(counter, value);
}

/* ---- the backend ---- */

static int host_memory(struct kvi_backend *b, struct kvi_backend_memory *out)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);

    pthread_mutex_lock(&host->lock);
    *out = (struct kvi_backend_memory){
        .total_bytes = b->info.device_bytes,
        .free_bytes = b->info.device_bytes - host->book.used_bytes,
        .pin_count = host->pin_count,
    };
    kvi_book_count(&host->book, out);
    pthread_mutex_unlock(&host->lock);
    return 0;
}

static void host_destroy(struct kvi_backend *b)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);

    kvi_backend_host_space_fini(host);
    for (size_t i = 0; i < host->book.segment_slots; i++)
        if (host->book.segments[i].bytes != 0)
            close(kvi_backend_host_fd(&host->book.segments[i]));
    kvi_book_fini(&host->book);
    kvi_release(host->alloc, host->pins, host->pin_capacity * sizeof(*host->pins));
    pthread_mutex_destroy(&host->lock);
    kvi_release(host->alloc, host, sizeof(*host));
}

static const struct kvi_backend_ops host_ops = {
    .version = KVI_BACKEND_VERSION,
    .table_bytes = sizeof(struct kvi_backend_ops),
    .destroy = host_destroy,
    .memory = host_memory,
    .segment_create = host_segment_create,
    .segment_export = host_segment_export,
    .segment_import_consume = host_segment_import_consume,
    .segment_release = host_segment_release,
    .reserve = kvi_backend_host_reserve,
    .unreserve = kvi_backend_host_unreserve,
    .map = kvi_backend_host_map,
    .unmap = kvi_backend_host_unmap,
    .copy = kvi_backend_host_copy,
    .copy_in = kvi_backend_host_copy_in,
    .copy_out = kvi_backend_host_copy_out,
    .blocks = kvi_backend_host_blocks,
    .cells = host_cells,
    .device_alloc = kvi_backend_host_device_alloc,
    .device_free = kvi_backend_host_device_free,
    .host_pin = host_pin,
    .host_unpin = host_unpin,
    .fence_signal = host_fence_signal,
    .fence_wait = host_fence_wait,
};

static int options_check(const struct kvi_backend_host_options *options, uint64_t granule_bytes)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);

    if (granule_bytes < page_bytes || granule_bytes > KVI_BACKEND_HOST_GRANULE_MAX ||
        (granule_bytes & (granule_bytes - 1)) != 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "granule_bytes is %" PRIu64 ": want a power of two from %" PRIu64
                             " (the OS page) to %" PRIu64,
                             granule_bytes, page_bytes, KVI_BACKEND_HOST_GRANULE_MAX);
    if (options->device_bytes > (uint64_t)INT64_MAX || options->device_bytes % granule_bytes != 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "device_bytes is %" PRIu64 ": want 0 (only imports) or a multiple of "
                             "the granule, %" PRIu64 ", to 2^63 - 1",
                             options->device_bytes, granule_bytes);
    if (options->reserved != 0)
        return kvi_error_set(KVMEM_E_INVALID, "reserved is %" PRIu32 ": want 0", options->reserved);
    return 0;
}

static void info_fill(struct kvi_backend_info *info, uint64_t device_bytes, uint64_t granule_bytes)
{
    info->kind = KVI_BACKEND_HOST;
    info->flags = KVI_BACKEND_RECLAIMS_MAPPED | KVI_BACKEND_CPU_VISIBLE |
                  (device_bytes > 0 ? (uint32_t)KVI_BACKEND_CREATES : 0);
    info->granule_bytes = granule_bytes;
    info->device_bytes = device_bytes;
    snprintf(info->name, sizeof(info->name), "host");
}

int kvi_backend_host_create(const struct kvi_backend_host_options *options,
                            struct kvi_backend **out)
{
    struct kvi_backend_host *host;
    const struct kvi_alloc *alloc;
    uint64_t granule_bytes;
    int rc;

    if (options == NULL || out == NULL)
        return kvi_error_set(KVMEM_E_INVALID, "options or out is NULL");
    if (options->options_bytes != sizeof(*options))
        return kvi_error_set(KVMEM_E_INVALID, "options_bytes is %" PRIu32 ": want %zu",
                             options->options_bytes, sizeof(*options));
    granule_bytes =
        options->granule_bytes != 0 ? options->granule_bytes : KVI_BACKEND_HOST_GRANULE_DEFAULT;
    rc = options_check(options, granule_bytes);
    if (rc < 0)
        return rc;
    alloc = options->alloc != NULL ? options->alloc : &kvi_alloc_libc;
    host = kvi_allocate(alloc, sizeof(*host));
    if (host == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "host backend: no memory for %zu bytes",
                             sizeof(*host));
    host->base.ops = &host_ops;
    info_fill(&host->base.info, options->device_bytes, granule_bytes);
    host->alloc = alloc;
    rc = pthread_mutex_init(&host->lock, NULL);
    if (rc != 0) {
        rc = kvi_backend_host_failed(rc, "host backend: pthread_mutex_init");
        goto fail_host;
    }
    rc = kvi_book_init(&host->book, alloc, granule_bytes);
    if (rc < 0)
        goto fail_lock;
    *out = &host->base;
    return 0;

fail_lock:
    pthread_mutex_destroy(&host->lock);
fail_host:
    kvi_release(alloc, host, sizeof(*host));
    return rc;
}

/* ---- check ---- */

int kvi_backend_host_check(struct kvi_backend *b)
{
    struct kvi_backend_host *host;
    int rc;

    if (b == NULL || b->ops != &host_ops)
        return kvi_error_set(KVMEM_E_INVALID, "this is no host backend");
    host = kvi_backend_host_of(b);
    pthread_mutex_lock(&host->lock);
    rc = kvi_book_check(&host->book, b->info.granule_bytes, b->info.device_bytes);
    pthread_mutex_unlock(&host->lock);
    return rc;
}
