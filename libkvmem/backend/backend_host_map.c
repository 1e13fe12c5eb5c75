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
 * another one), so both tables are kept here and the rules of backend.h are checked against
 * them: reservations sorted by base, mappings within one sorted by address.
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

/* A run of mappings of one reservation: [first, last). */
struct mapping_run {
    struct kvi_backend_reservation *reservation;
    size_t first;
    size_t last;
};

static int protection(enum kvi_access access)
{
    return access == KVI_ACCESS_RW ? PROT_READ | PROT_WRITE : PROT_READ;
}

/* ---- finding ---- */

/* Index of the first reservation that ends above `address`; reservation_count if none does. */
static size_t reservation_at(const struct kvi_backend_host *host, uint64_t address)
{
    size_t low = 0;
    size_t high = host->reservation_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct kvi_backend_reservation *r = &host->reservations[middle];

        if (r->base + r->bytes > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The reservation that holds the whole range, or NULL. */
static struct kvi_backend_reservation *reservation_find(const struct kvi_backend_host *host,
                                                        uint64_t address, uint64_t bytes)
{
    size_t index = reservation_at(host, address);
    struct kvi_backend_reservation *r;

    if (index == host->reservation_count)
        return NULL;
    r = &host->reservations[index];
    if (address < r->base || r->base + r->bytes - address < bytes)
        return NULL;
    return r;
}

/* Index of the first mapping that ends above `address`; mapping_count if none does. */
static size_t mapping_at(const struct kvi_backend_reservation *r, uint64_t address)
{
    size_t low = 0;
    size_t high = r->mapping_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (r->mappings[middle].address + r->mappings[middle].bytes > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The mappings that cover the range without a gap; the first and last may reach beyond it.
 * False if there are none such. */
static bool run_covering(const struct kvi_backend_host *host, uint64_t address, uint64_t bytes,
                         struct mapping_run *out)
{
    struct kvi_backend_reservation *r = reservation_find(host, address, bytes);
    uint64_t reached = address;
    size_t at;

    if (r == NULL)
        return false;
    at = mapping_at(r, address);
    *out = (struct mapping_run){r, at, at};
    while (at < r->mapping_count && r->mappings[at].address <= reached &&
           reached < address + bytes) {
        reached = r->mappings[at].address + r->mappings[at].bytes;
        at++;
    }
    out->last = at;
    return reached >= address + bytes;
}

/* The same, and the first and last mapping end with the range: what unmap and set_access take. */
static int run_exact(const struct kvi_backend_host *host, const char *operation, uint64_t address,
                     uint64_t bytes, struct mapping_run *out)
{
    const struct kvi_backend_mapping *mappings;

    if (!run_covering(host, address, bytes, out))
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: address %#" PRIx64 " + bytes %" PRIu64
                             " is not mapped throughout",
                             operation, address, bytes);
    mappings = out->reservation->mappings;
    if (mappings[out->first].address != address ||
        mappings[out->last - 1].address + mappings[out->last - 1].bytes != address + bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: address %#" PRIx64 " + bytes %" PRIu64
                             " cuts a mapping: want whole ones",
                             operation, address, bytes);
    return 0;
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

static void mappings_free(struct kvi_backend_host *host, struct kvi_backend_reservation *r)
{
    kvi_release(host->alloc, r->mappings, r->mapping_capacity * sizeof(*r->mappings));
}

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
    struct kvi_backend_reservation *at;
    uint64_t base = 0;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = kvi_backend_host_grow(host, &host->reservations, &host->reservation_capacity,
                               host->reservation_count, sizeof(*host->reservations));
    if (rc == 0)
        rc = ballast_open(host);
    if (rc == 0)
        rc = address_space_take(bytes, alignment, &base);
    if (rc < 0)
        goto unlock;
    at = &host->reservations[reservation_at(host, base)];
    memmove(at + 1, at, (size_t)(host->reservations + host->reservation_count - at) * sizeof(*at));
    *at = (struct kvi_backend_reservation){.base = base, .bytes = bytes};
    host->reservation_count++;
    host->reserved_bytes += bytes;
    *out_base = base;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

int kvi_backend_host_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_backend_reservation *r;
    int rc;

    pthread_mutex_lock(&host->lock);
    r = reservation_find(host, base, bytes);
    if (r == NULL || r->base != base || r->bytes != bytes) {
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "unreserve: base %#" PRIx64 " + bytes %" PRIu64
                           " was not reserved like this",
                           base, bytes);
        goto unlock;
    }
    if (r->mapping_count > 0) {
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "unreserve: base %#" PRIx64 " still has %zu mappings: unmap them first",
                           base, r->mapping_count);
        goto unlock;
    }
    if (address_space_drop(host, base, bytes) < 0) {
        rc = kvi_backend_host_failed(errno, "unreserve: munmap");
        goto unlock;
    }
    mappings_free(host, r);
    host->reservation_count--;
    host->reserved_bytes -= bytes;
    memmove(r, r + 1, (size_t)(host->reservations + host->reservation_count - r) * sizeof(*r));
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

/* Where in which reservation a new mapping goes: out->first is its index to be. */
static int map_place(struct kvi_backend_host *host, uint64_t address, uint64_t bytes,
                     struct mapping_run *out)
{
    struct kvi_backend_reservation *r = reservation_find(host, address, bytes);
    size_t at;

    if (r == NULL)
        return kvi_error_set(KVMEM_E_INVALID,
                             "map: address %#" PRIx64 " + bytes %" PRIu64 " is in no reservation",
                             address, bytes);
    at = mapping_at(r, address);
    if (at < r->mapping_count && r->mappings[at].address < address + bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "map: address %#" PRIx64 " + bytes %" PRIu64
                             " overlaps the mapping at %#" PRIx64,
                             address, bytes, r->mappings[at].address);
    *out = (struct mapping_run){r, at, at};
    return kvi_backend_host_grow(host, &r->mappings, &r->mapping_capacity, r->mapping_count,
                                 sizeof(*r->mappings));
}

int kvi_backend_host_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address,
                         uint64_t bytes, enum kvi_access access)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    const struct kvi_backend_segment *segment;
    struct kvi_backend_mapping *at;
    struct mapping_run place = {NULL, 0, 0};
    int rc = KVMEM_E_INVALID;

    pthread_mutex_lock(&host->lock);
    segment = kvi_backend_host_segment(host, phys, "map");
    if (segment == NULL)
        goto unlock;
    if (bytes != segment->bytes) {
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "map: bytes is %" PRIu64 ": a segment maps whole, want %" PRIu64, bytes,
                           segment->bytes);
        goto unlock;
    }
    rc = map_place(host, address, bytes, &place);
    if (rc == 0)
        rc = range_fill(host, address, bytes, access, segment->fd);
    if (rc < 0)
        goto unlock;
    at = &place.reservation->mappings[place.first];
    memmove(at + 1, at, (place.reservation->mapping_count - place.first) * sizeof(*at));
    *at = (struct kvi_backend_mapping){address, bytes, access};
    place.reservation->mapping_count++;
    host->mapping_count++;
    host->mapped_bytes += bytes;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

static int mapping_protect(const struct kvi_backend_mapping *mapping, enum kvi_access access)
{
    if (mprotect(kvi_backend_pointer(mapping->address), mapping->bytes, protection(access)) < 0)
        return kvi_backend_host_failed(errno, "set_access: mprotect");
    return 0;
}

int kvi_backend_host_set_access(struct kvi_backend *b, uint64_t address, uint64_t bytes,
                                enum kvi_access access)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    struct kvi_backend_mapping *mappings;
    struct mapping_run run;
    size_t at;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = run_exact(host, "set_access", address, bytes, &run);
    if (rc < 0)
        goto unlock;
    mappings = run.reservation->mappings;
    for (at = run.first; at < run.last; at++) {
        rc = mapping_protect(&mappings[at], access);
        if (rc < 0)
            goto fail_access;
    }
    for (at = run.first; at < run.last; at++)
        mappings[at].access = access;
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
    struct kvi_backend_reservation *r;
    struct mapping_run run;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = run_exact(host, "unmap", address, bytes, &run);
    if (rc == 0)
        rc = range_clear(host, address, bytes);
    if (rc < 0)
        goto unlock;
    r = run.reservation;
    memmove(&r->mappings[run.first], &r->mappings[run.last],
            (r->mapping_count - run.last) * sizeof(*r->mappings));
    r->mapping_count -= run.last - run.first;
    host->mapping_count -= run.last - run.first;
    host->mapped_bytes -= bytes;
unlock:
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* ---- copies ---- */

/* May the range of mappings be read, and written if `access` says so? Under the lock. */
static int span_mapped(struct kvi_backend_host *host, const char *operation, uint64_t address,
                       uint64_t bytes, enum kvi_access access)
{
    struct mapping_run run;

    if (!run_covering(host, address, bytes, &run))
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: address %#" PRIx64 " + bytes %" PRIu64
                             " is not mapped throughout",
                             operation, address, bytes);
    for (size_t at = run.first; at < run.last && access == KVI_ACCESS_RW; at++)
        if (run.reservation->mappings[at].access != KVI_ACCESS_RW)
            return kvi_error_set(KVMEM_E_INVALID, "%s: address %#" PRIx64 " is mapped read-only",
                                 operation, run.reservation->mappings[at].address);
    return 0;
}

int kvi_backend_host_span(struct kvi_backend_host *host, const char *operation, uint64_t address,
                          uint64_t bytes, enum kvi_access access)
{
    int rc = 0;

    pthread_mutex_lock(&host->lock);
    if (!kvi_allocations_hold(&host->allocations, address, bytes))
        rc = span_mapped(host, operation, address, bytes, access);
    pthread_mutex_unlock(&host->lock);
    return rc;
}

int kvi_backend_host_copy(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes,
                          uint64_t stream)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    int rc = kvi_backend_host_span(host, "copy", to, bytes, KVI_ACCESS_RW);

    (void)stream;
    if (rc == 0)
        rc = kvi_backend_host_span(host, "copy", from, bytes, KVI_ACCESS_RO);
    if (rc == 0)
        memcpy(kvi_backend_pointer(to), kvi_backend_pointer(from), bytes);
    return rc;
}

int kvi_backend_host_copy_in(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                             uint64_t stream)
{
    int rc = kvi_backend_host_span(kvi_backend_host_of(b), "copy_in", to, bytes, KVI_ACCESS_RW);

    (void)stream;
    if (rc == 0)
        memcpy(kvi_backend_pointer(to), from, bytes);
    return rc;
}

int kvi_backend_host_copy_out(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                              uint64_t stream)
{
    int rc = kvi_backend_host_span(kvi_backend_host_of(b), "copy_out", from, bytes, KVI_ACCESS_RO);

    (void)stream;
    if (rc == 0)
        memcpy(to, kvi_backend_pointer(from), bytes);
    return rc;
}

/* ---- blocks ---- */

static uint64_t block_address(const struct kvi_backend_blocks *list, int32_t block)
{
    return list->base + (uint64_t)block * list->stride_bytes;
}

/* Under the lock. */
static int blocks_mapped(struct kvi_backend_host *host, const struct kvi_backend_blocks *list,
                         const char *name, const int32_t *indices, enum kvi_access access)
{
    for (uint32_t i = 0; i < list->count; i++) {
        char operation[64];

        if (span_mapped(host, "blocks", block_address(list, indices[i]), list->bytes, access) == 0)
            continue;
        snprintf(operation, sizeof(operation), "blocks: %s[%" PRIu32 "] is block %" PRId32, name, i,
                 indices[i]);
        return span_mapped(host, operation, block_address(list, indices[i]), list->bytes, access);
    }
    return 0;
}

int kvi_backend_host_blocks(struct kvi_backend *b, const struct kvi_backend_blocks *list,
                            uint64_t stream)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    int rc;

    (void)stream;
    pthread_mutex_lock(&host->lock);
    rc = blocks_mapped(host, list, "to", list->to, KVI_ACCESS_RW);
    if (rc == 0 && list->from != NULL)
        rc = blocks_mapped(host, list, "from", list->from, KVI_ACCESS_RO);
    pthread_mutex_unlock(&host->lock);
    for (uint32_t i = 0; i < list->count && rc == 0; i++) {
        void *to = kvi_backend_pointer(block_address(list, list->to[i]));

        if (list->from == NULL)
            memset(to, 0, list->bytes);
        else
            memmove(to, kvi_backend_pointer(block_address(list, list->from[i])), list->bytes);
    }
    return rc;
}

/* ---- memory outside the pool ---- */

static int memory_take(struct kvi_backend_host *host, uint64_t bytes, uint64_t *out_address)
{
    int rc = kvi_allocations_room(&host->allocations, host->alloc);
    void *memory;

    if (rc < 0)
        return rc;
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return kvi_backend_host_failed(errno, "device_alloc: mmap");
    kvi_allocations_add(&host->allocations, (uintptr_t)memory, bytes);
    *out_address = (uintptr_t)memory;
    return 0;
}

int kvi_backend_host_device_alloc(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = memory_take(host, bytes, out_address);
    pthread_mutex_unlock(&host->lock);
    return rc;
}

int kvi_backend_host_device_free(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    struct kvi_backend_host *host = kvi_backend_host_of(b);
    size_t at = 0;
    int rc;

    pthread_mutex_lock(&host->lock);
    rc = kvi_allocations_find(&host->allocations, address, bytes, &at);
    if (rc == 0 && munmap(kvi_backend_pointer(address), bytes) < 0)
        rc = kvi_backend_host_failed(errno, "device_free: munmap");
    if (rc == 0)
        kvi_allocations_remove(&host->allocations, at);
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* ---- life and check ---- */

void kvi_backend_host_space_fini(struct kvi_backend_host *host)
{
    ballast_close(host); /* first: makes room if a munmap below has to split */
    for (size_t i = 0; i < host->reservation_count; i++) {
        munmap(kvi_backend_pointer(host->reservations[i].base), host->reservations[i].bytes);
        mappings_free(host, &host->reservations[i]);
    }
    for (size_t at = 0; at < host->allocations.count; at++)
        munmap(kvi_backend_pointer(host->allocations.list[at].address),
               host->allocations.list[at].bytes);
    kvi_allocations_fini(&host->allocations, host->alloc);
    kvi_release(host->alloc, host->reservations,
                host->reservation_capacity * sizeof(*host->reservations));
}

static int violated(const char *equation, uint64_t left, uint64_t right)
{
    return kvi_error_set(KVMEM_E_CORRUPT, "host backend: %s: %#" PRIx64 " against %#" PRIx64,
                         equation, left, right);
}

/* Adds the reservation's mapped bytes to `mapped_bytes`. */
static int reservation_check(const struct kvi_backend_reservation *r, uint64_t granule_bytes,
                             uint64_t *mapped_bytes)
{
    uint64_t reached = r->base;

    for (size_t i = 0; i < r->mapping_count; i++) {
        const struct kvi_backend_mapping *mapping = &r->mappings[i];

        if (mapping->address < reached)
            return violated("mappings sorted and disjoint", reached, mapping->address);
        if ((mapping->address | mapping->bytes) % granule_bytes != 0 || mapping->bytes == 0)
            return violated("mapping on the granule", mapping->address, mapping->bytes);
        reached = mapping->address + mapping->bytes;
        *mapped_bytes += mapping->bytes;
    }
    if (reached > r->base + r->bytes)
        return violated("mappings inside the reservation", reached, r->base + r->bytes);
    return 0;
}

int kvi_backend_host_space_check(const struct kvi_backend_host *host)
{
    uint64_t reached = 0;
    uint64_t reserved_bytes = 0;
    uint64_t mapped_bytes = 0;
    uint64_t mapping_count = 0;
    int rc;

    for (size_t i = 0; i < host->reservation_count; i++) {
        const struct kvi_backend_reservation *r = &host->reservations[i];

        if (r->base < reached)
            return violated("reservations sorted and disjoint", reached, r->base);
        rc = reservation_check(r, host->base.info.granule_bytes, &mapped_bytes);
        if (rc < 0)
            return rc;
        reached = r->base + r->bytes;
        reserved_bytes += r->bytes;
        mapping_count += r->mapping_count;
    }
    if (reserved_bytes != host->reserved_bytes)
        return violated("bytes of reservations = reserved_bytes", reserved_bytes,
                        host->reserved_bytes);
    if (mapping_count != host->mapping_count)
        return violated("mappings = mapping_count", mapping_count, host->mapping_count);
    if (mapped_bytes != host->mapped_bytes)
        return violated("bytes of mappings = mapped_bytes", mapped_bytes, host->mapped_bytes);
    return kvi_allocations_check(&host->allocations);
}
