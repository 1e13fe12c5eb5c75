/* SPDX-License-Identifier: Apache-2.0
 *
 * The host backend's address space and the copies through it.
 *
 *   reservation  one anonymous PROT_NONE, MAP_NORESERVE mapping of the kernel
 *   mapping      a memfd mapped MAP_SHARED | MAP_FIXED over a part of a reservation
 *
 *      base                                              base + bytes
 *      |----- none ----|== memfd 7, rw ==|== memfd 9, ro ==|-- none --|
 *
 * Invariant: every address of a reservation belongs to the kernel mapping that this file put
 * there. A part that is unmapped becomes PROT_NONE again in the same call (MAP_FIXED replaces,
 * it never leaves a hole), else the next mmap() of the process could land in it and a stale
 * block index would read somebody's heap.
 *
 * The kernel would allow much that the driver refuses (a part of a segment, a mapping over
 * another one): the books (book.h) hold the rules of backend.h.
 *
 * Mappings are MADV_DONTFORK: a child that a client forked is not among the processes whose
 * pidfds the daemon waits for, and must not be able to write when they are gone.
 *
 * The kernel allows a process so many mappings (vm.max_map_count, 65,530) and refuses every
 * mmap() beyond, also one that would lower their number. So that unmap works there, the backend
 * holds a few mappings that it can let go: the ballast.
 *
 *      | none | read | none | read | none | read | none |     7 pages and kernel mappings, or 1
 *
 * Threads: every function takes the backend's lock; copies move bytes after dropping it (the
 * caller keeps the ranges mapped meanwhile).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/backend_host_internal.h"
#include "util/error.h"

#define ANONYMOUS     (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
#define BALLAST_PAGES 7

static int protection(enum kvi_access access)
{
    return access == KVI_ACCESS_RW ? PROT_READ | PROT_WRITE : PROT_READ;
}

/* ---- ballast ---- */

/* PROT_READ for every second page: as many kernel mappings as pages. PROT_NONE: they become one.
 * Keeps errno. At the limit the first may work in part; range_clear() then tries again. */
static void ballast_set(struct kvi_backend_host *host, int protection_of_odd)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    int error = errno;

    host->ballast_full = protection_of_odd == PROT_READ;
    for (uint64_t page = 1; page < BALLAST_PAGES && host->ballast != 0; page += 2)
        if (mprotect(kvi_backend_pointer(host->ballast + page * page_bytes), page_bytes,
                     protection_of_odd) < 0)
            host->ballast_full = false;
    errno = error;
}

static int ballast_open(struct kvi_backend_host *host)
{
    void *memory;

    if (host->ballast != 0)
        return 0;
    memory = mmap(NULL, BALLAST_PAGES * (size_t)sysconf(_SC_PAGESIZE), PROT_NONE, ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return kvi_backend_host_failed(errno, "reserve: mmap");
    host->ballast = (uintptr_t)memory;
    ballast_set(host, PROT_READ);
    return 0;
}

static void ballast_close(struct kvi_backend_host *host)
{
    if (host->ballast != 0)
        munmap(kvi_backend_pointer(host->ballast), BALLAST_PAGES * (size_t)sysconf(_SC_PAGESIZE));
}

/* ---- reservations ---- */

/* Address space at a multiple of `alignment`: take more, give the ends back. */
static int address_space_take(uint64_t bytes, uint64_t alignment, uint64_t *out_base)
{
    uint64_t extra_bytes = alignment - (uint64_t)sysconf(_SC_PAGESIZE);
    void *memory = mmap(NULL, bytes + extra_bytes, PROT_NONE, ANONYMOUS, -1, 0);
    uint64_t start = (uintptr_t)memory;
    uint64_t base;
    int rc;

    if (memory == MAP_FAILED)
        return kvi_backend_host_failed(errno, "reserve: mmap");
    base = (start + alignment - 1) & ~(alignment - 1);
    if (base > start && munmap(memory, base - start) < 0) {
        rc = kvi_backend_host_failed(errno, "reserve: munmap before");
        munmap(memory, bytes + extra_bytes);
        return rc;
    }
    if (start + extra_bytes > base &&
        munmap(kvi_backend_pointer(base + bytes), start + extra_bytes - base) < 0) {
        rc = kvi_backend_host_failed(errno, "reserve: munmap after");
        munmap(kvi_backend_pointer(base), start + extra_bytes - base + bytes);
        return rc;
    }
    *out_base = base;
    return 0;
}

/* munmap() splits the kernel's mapping when two reservations have become one in its books. */
static int address_space_drop(struct kvi_backend_host *host, uint64_t base, uint64_t bytes)
{
    int rc = munmap(kvi_backend_pointer(base), bytes);

    if (rc < 0 && errno == ENOMEM) {
        ballast_set(host, PROT_NONE);
        rc = munmap(kvi_backend_pointer(base), bytes);
        ballast_set(host, PROT_READ);
    }
    return rc;
}

int kvi_backend_host_reserve(struct kvi_backend *b, uint64_t bytes, uint64_t alignment,
                             uint64_t *out_base)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_book_reservation one = {.bytes = bytes, .driver_bytes = bytes};
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = kvi_book_reservation_room(&host->book, bytes, &one);
    if (rc < 0)
        goto unlock;
    rc = ballast_open(host);
    if (rc == 0)
        rc = address_space_take(bytes, alignment, &one.base);
    if (rc < 0) {
        kvi_book_reservation_forget(&host->book, &one);
        goto unlock;
    }
    one.driver_base = one.base;
    kvi_book_reservation_add(&host->book, &one);
    *out_base = one.base;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

int kvi_backend_host_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_book_reservation *one;
    int rc = KVMEM_E_INVALID;

    pthread_mutex_lock(&host->lock);
    one = kvi_book_reservation_find(&host->book, base, bytes, "unreserve");
    if (one == NULL)
        goto unlock;
    if (address_space_drop(host, base, bytes) < 0) {
        rc = kvi_backend_host_failed(errno, "unreserve: munmap");
        goto unlock;
    }
    kvi_book_reservation_remove(&host->book, one);
    rc = 0;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* ---- mappings ---- */

static bool range_none(uint64_t address, uint64_t bytes)
{
    void *at = kvi_backend_pointer(address);

    return mmap(at, bytes, PROT_NONE, ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

/* Put reserved, inaccessible address space over the range again. */
static int range_clear(struct kvi_backend_host *host, uint64_t address, uint64_t bytes)
{
    bool done = range_none(address, bytes);

    if (!done && errno == ENOMEM) {
        ballast_set(host, PROT_NONE);
        done = range_none(address, bytes);
    }
    if (!done)
        return kvi_backend_host_failed(errno, "unmap: mmap");
    if (!host->ballast_full)
        ballast_set(host, PROT_READ);
    return 0;
}

static int range_fill(struct kvi_backend_host *host, uint64_t address, uint64_t bytes,
                      enum kvi_access access, int fd)
{
    void *at = kvi_backend_pointer(address);
    int error;

    if (mmap(at, bytes, protection(access), MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        error = errno;
        goto fail_clear; /* Linux before 6.12 may have dropped the reservation by then */
    }
    if (madvise(at, bytes, MADV_DONTFORK) < 0) {
        error = errno;
        goto fail_clear;
    }
    return 0;

fail_clear:
    (void)range_clear(host, address, bytes);
    return kvi_backend_host_failed(error, "map: mmap");
}

int kvi_backend_host_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address,
                         uint64_t bytes, enum kvi_access access)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_book_segment *segment;
    struct kvi_book_run place = {NULL, 0, 0};
    int rc = KVMEM_E_INVALID;

    pthread_mutex_lock(&host->lock);
    segment = kvi_book_segment_find(&host->book, phys, "map");
    if (segment == NULL)
        goto unlock;
    if (bytes != segment->bytes) {
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "map: bytes is %" PRIu64 ": a segment maps whole, want %" PRIu64, bytes,
                           segment->bytes);
        goto unlock;
    }
    rc = kvi_book_map_place(&host->book, address, bytes, &place);
    if (rc == 0)
        rc = range_fill(host, address, bytes, access, kvi_backend_host_fd(segment));
    if (rc == 0)
        kvi_book_map_add(&host->book, &place, segment, address, access);
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

static int mapping_protect(const struct kvi_book_mapping *mapping, enum kvi_access access)
{
    if (mprotect(kvi_backend_pointer(mapping->address), mapping->bytes, protection(access)) < 0)
        return kvi_backend_host_failed(errno, "set_access: mprotect");
    return 0;
}

int kvi_backend_host_set_access(struct kvi_backend *b, uint64_t address, uint64_t bytes,
                                enum kvi_access access)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_book_mapping *mappings;
    struct kvi_book_run run;
    size_t at;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = kvi_book_run_find(&host->book, address, bytes, "set_access", &run);
    if (rc < 0)
        goto unlock;
    mappings = run.reservation->mappings;
    for (at = run.first; at < run.last; at++) {
        rc = mapping_protect(&mappings[at], access);
        if (rc < 0)
            goto fail_access;
    }
    kvi_book_run_access(&host->book, &run, access);
    goto unlock;

fail_access:
    while (at-- > run.first) /* the detail is about the first failure: mprotect alone */
        (void)mprotect(kvi_backend_pointer(mappings[at].address), mappings[at].bytes,
                       protection(mappings[at].access));
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

int kvi_backend_host_unmap(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_book_run run;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = kvi_book_unmap_find(&host->book, address, bytes, &run);
    if (rc == 0)
        rc = range_clear(host, address, bytes);
    if (rc == 0)
        kvi_book_run_remove(&host->book, &run);
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* ---- copies ---- */

int kvi_backend_host_copy(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes,
                          uint64_t stream)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    int rc = kvi_book_span_check(&host->book, to, bytes, KVI_ACCESS_RW, "copy");

    (void)stream;
    if (rc == 0)
        rc = kvi_book_span_check(&host->book, from, bytes, KVI_ACCESS_RO, "copy");
    if (rc == 0)
        memcpy(kvi_backend_pointer(to), kvi_backend_pointer(from), bytes);
    return rc;
}

int kvi_backend_host_copy_in(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                             uint64_t stream)
{
    int rc =
        kvi_book_span_check(&kvi_backend_host_of(b)->book, to, bytes, KVI_ACCESS_RW, "copy_in");

    (void)stream;
    if (rc == 0)
        memcpy(kvi_backend_pointer(to), from, bytes);
    return rc;
}

int kvi_backend_host_copy_out(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                              uint64_t stream)
{
    int rc =
        kvi_book_span_check(&kvi_backend_host_of(b)->book, from, bytes, KVI_ACCESS_RO, "copy_out");

    (void)stream;
    if (rc == 0)
        memcpy(to, kvi_backend_pointer(from), bytes);
    return rc;
}

/* ---- blocks ---- */

int kvi_backend_host_blocks(struct kvi_backend *b, const struct kvi_backend_blocks *list,
                            uint64_t stream)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    int rc = kvi_book_blocks_check(&host->book, list);

    (void)stream;
    for (uint32_t i = 0; i < list->count && rc == 0; i++) {
        void *to = kvi_backend_pointer(list->to_base + (uint64_t)list->to[i] * list->stride_bytes);

        if (list->from == NULL)
            memset(to, 0, list->bytes);
        else
            memmove(
                to,
                kvi_backend_pointer(list->from_base + (uint64_t)list->from[i] * list->stride_bytes),
                list->bytes);
    }
    return rc;
}

/* ---- memory outside the pool ---- */

int kvi_backend_host_device_alloc(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    void *memory;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = kvi_book_allocation_room(&host->book);
    if (rc < 0)
        goto unlock;
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        rc = kvi_backend_host_failed(errno, "device_alloc: mmap");
        goto unlock;
    }
    kvi_book_allocation_add(&host->book, (uintptr_t)memory, bytes);
    *out_address = (uintptr_t)memory;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

int kvi_backend_host_device_free(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    size_t at = 0;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = kvi_allocations_find(&host->book.allocations, address, bytes, &at);
    if (rc == 0 && munmap(kvi_backend_pointer(address), bytes) < 0)
        rc = kvi_backend_host_failed(errno, "device_free: munmap");
    if (rc == 0)
        kvi_book_allocation_remove(&host->book, at);
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* ---- life ---- */

void kvi_backend_host_space_fini(struct kvi_backend_host *host)
{
    ballast_close(host); /* first: makes room if a munmap below has to split */
    for (size_t i = 0; i < host->book.reservation_count; i++)
        munmap(kvi_backend_pointer(host->book.reservations[i].base),
               host->book.reservations[i].bytes);
    for (size_t at = 0; at < host->book.allocations.count; at++)
        munmap(kvi_backend_pointer(host->book.allocations.list[at].address),
               host->book.allocations.list[at].bytes);
}
