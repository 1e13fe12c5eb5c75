/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's address space: reserve, map, unmap.
 *
 * All-or-nothing over a run of mappings takes some care, since the driver unmaps one a call: before
 * the first, a handle of each is taken from its address (its own may be released already), so that
 * those which are gone can be mapped again when a later one fails. A single mapping, the usual
 * case, needs none.
 *
 * cuMemSetAccess is called for what was just mapped, before anybody knows the address, and never
 * again: a kernel that reads a mapping faults when its access changes (driver 580).
 *
 * cuMemAddressReserve documents an alignment but is not bound to grant it: if the range that
 * comes is not aligned, a longer one is taken and the aligned part of it used.
 */
#include <inttypes.h>

#include "backend/backend_cuda_internal.h"
#include "util/error.h"

/* ---- reservations ---- */

static int range_reserve(struct kvi_backend_cuda *cuda, uint64_t bytes, uint64_t alignment,
                         kvi_cu_address *out)
{
    int result = cuda->driver->address_reserve(out, bytes, alignment, 0, 0);

    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_NO_MEMORY, "reserve",
                               "cuMemAddressReserve");
    return 0;
}

/* The range in `out` at a multiple of `alignment`, by taking more if need be. */
static int range_align(struct kvi_backend_cuda *cuda, uint64_t bytes, uint64_t alignment,
                       struct kvi_book_reservation *out)
{
    uint64_t mask = alignment - 1;
    int rc;

    out->base = 0;
    out->bytes = bytes;
    out->driver_bytes = bytes;
    rc = range_reserve(cuda, bytes, alignment, &out->driver_base);
    if (rc < 0)
        return rc;
    if ((out->driver_base & mask) != 0) {
        (void)cuda->driver->address_free(out->driver_base, bytes);
        out->driver_bytes = bytes + alignment; /* both at most 2^63, the bytes less: no wrap */
        rc = range_reserve(cuda, out->driver_bytes, 0, &out->driver_base);
        if (rc < 0)
            return rc;
    }
    out->base = (out->driver_base + mask) & ~mask;
    return 0;
}

int kvi_backend_cuda_reserve(struct kvi_backend *b, uint64_t bytes, uint64_t alignment,
                             uint64_t *out_base)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    struct kvi_book_reservation one = {0};
    int rc = kvi_backend_cuda_lock(cuda, "reserve");

    if (rc < 0)
        return rc;
    rc = kvi_book_reservation_room(&cuda->book, bytes, &one);
    if (rc < 0)
        goto unlock;
    rc = range_align(cuda, bytes, alignment, &one);
    if (rc < 0) {
        kvi_book_reservation_forget(&cuda->book, &one);
    } else {
        kvi_book_reservation_add(&cuda->book, &one);
        *out_base = one.base;
    }
unlock:
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

int kvi_backend_cuda_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    struct kvi_book_reservation *one;
    int rc = kvi_backend_cuda_lock(cuda, "unreserve");
    int result;

    if (rc < 0)
        return rc;
    one = kvi_book_reservation_find(&cuda->book, base, bytes, "unreserve");
    if (one == NULL) {
        rc = KVMEM_E_INVALID;
        goto unlock;
    }
    result = cuda->driver->address_free(one->driver_base, one->driver_bytes);
    if (result != 0)
        rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "unreserve", "cuMemAddressFree");
    else
        kvi_book_reservation_remove(&cuda->book, one);
unlock:
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

/* ---- map ---- */

static int range_access(struct kvi_backend_cuda *cuda, uint64_t address, uint64_t bytes,
                        enum kvi_access access)
{
    struct kvi_cu_access wanted = kvi_backend_cuda_access(cuda, access);

    return cuda->driver->set_access(address, bytes, &wanted, 1);
}

/* cuMemMap refused. At a place that is free, which the books know, these results say that the
 * handle is longer or shorter: what was imported is not what was promised. */
static int map_failed(struct kvi_backend_cuda *cuda, const struct kvi_book_segment *segment,
                      int result)
{
    if (segment->created || (result != KVI_CU_NOT_SUPPORTED && result != KVI_CU_INVALID_VALUE))
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_DEVICE_FULL, "map", "cuMemMap");
    return kvi_error_driver(KVMEM_E_CORRUPT, result,
                            "map: an imported segment has not the %" PRIu64
                            " bytes that were promised with its fd: cuMemMap: %s (%d)",
                            segment->bytes, kvi_cuda_result_name(cuda->driver, result), result);
}

static int range_map(struct kvi_backend_cuda *cuda, uint64_t address,
                     const struct kvi_book_segment *segment, enum kvi_access access)
{
    uint64_t bytes = segment->bytes;
    int result = cuda->driver->map(address, bytes, 0, segment->driver_handle, 0);
    int rc;

    if (result != 0)
        return map_failed(cuda, segment, result);
    result = range_access(cuda, address, bytes, access);
    if (result == 0)
        return 0;
    rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_DEVICE_FULL, "map", "cuMemSetAccess");
    (void)cuda->driver->unmap(address, bytes);
    return rc;
}

int kvi_backend_cuda_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address,
                         uint64_t bytes, enum kvi_access access)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    struct kvi_book_segment *segment;
    struct kvi_book_run place = {NULL, 0, 0};
    int rc = kvi_backend_cuda_lock(cuda, "map");

    if (rc < 0)
        return rc;
    segment = kvi_book_segment_find(&cuda->book, phys, "map");
    if (segment == NULL)
        rc = KVMEM_E_INVALID;
    else if (bytes != segment->bytes)
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "map: bytes is %" PRIu64 ": a segment maps whole, want %" PRIu64, bytes,
                           segment->bytes);
    else
        rc = kvi_book_map_place(&cuda->book, address, bytes, &place);
    if (rc == 0)
        rc = range_map(cuda, address, segment, access);
    if (rc == 0)
        kvi_book_map_add(&cuda->book, &place, segment, address, access);
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

/* ---- unmap ---- */

static void run_keep_drop(struct kvi_backend_cuda *cuda, const struct kvi_book_run *run)
{
    for (size_t at = run->first; at < run->last; at++) {
        struct kvi_book_mapping *mapping = &run->reservation->mappings[at];

        if (mapping->kept != 0)
            (void)cuda->driver->memory_release(mapping->kept);
        mapping->kept = 0;
    }
}

/* A handle of each mapping of the run, to map it again from. */
static int run_keep(struct kvi_backend_cuda *cuda, const struct kvi_book_run *run)
{
    for (size_t at = run->first; at < run->last; at++) {
        struct kvi_book_mapping *mapping = &run->reservation->mappings[at];
        int result = cuda->driver->memory_retain(&mapping->kept, (void *)mapping->address);

        if (result != 0) {
            int rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "unmap",
                                     "cuMemRetainAllocationHandle");

            mapping->kept = 0;
            run_keep_drop(cuda, run);
            return rc;
        }
    }
    return 0;
}

static int run_unmap(struct kvi_backend_cuda *cuda, const struct kvi_book_run *run)
{
    struct kvi_book_mapping *mappings = run->reservation->mappings;
    size_t at = run->first;
    int result = 0;
    int rc;

    while (at < run->last && result == 0) {
        result = cuda->driver->unmap(mappings[at].address, mappings[at].bytes);
        at += result == 0;
    }
    if (result == 0)
        return 0;
    rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "unmap", "cuMemUnmap");
    while (at-- > run->first)
        if (cuda->driver->map(mappings[at].address, mappings[at].bytes, 0, mappings[at].kept, 0) ==
            0)
            (void)range_access(cuda, mappings[at].address, mappings[at].bytes, mappings[at].access);
    return rc;
}

int kvi_backend_cuda_unmap(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    struct kvi_book_run run;
    int rc = kvi_backend_cuda_lock(cuda, "unmap");

    if (rc < 0)
        return rc;
    rc = kvi_book_unmap_find(&cuda->book, address, bytes, &run);
    if (rc == 0 && run.last - run.first > 1)
        rc = run_keep(cuda, &run);
    if (rc < 0)
        goto unlock;
    rc = run_unmap(cuda, &run);
    run_keep_drop(cuda, &run);
    if (rc == 0)
        kvi_book_run_remove(&cuda->book, &run);
unlock:
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

/* ---- life ---- */

void kvi_backend_cuda_space_fini(struct kvi_backend_cuda *cuda)
{
    for (size_t i = 0; i < cuda->book.reservation_count; i++) {
        const struct kvi_book_reservation *r = &cuda->book.reservations[i];

        for (size_t at = 0; at < r->mapping_count; at++)
            (void)cuda->driver->unmap(r->mappings[at].address, r->mappings[at].bytes);
        (void)cuda->driver->address_free(r->driver_base, r->driver_bytes);
    }
}
