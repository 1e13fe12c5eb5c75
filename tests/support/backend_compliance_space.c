/* SPDX-License-Identifier: Apache-2.0
 *
 * Compliance: reservations, mappings, access. See backend_compliance.h.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/backend_compliance.h"
#include "util/error.h"

#define TWIN_GRANULES 24
#define TWIN_SEGMENTS 6
#define TWIN_STEPS    6000
#define THREADS       4
#define THREAD_STEPS  150

static bool cpu_visible(const struct kvi_backend *b)
{
    return (b->info.flags & KVI_BACKEND_CPU_VISIBLE) != 0;
}

/* One segment mapped in the device at a reservation of its own. */
struct mapped {
    struct kvi_phys phys;
    uint64_t base;
    uint64_t bytes;
};

static struct mapped mapped_open(struct kvt_backend *t, uint64_t granules, enum kvi_access access)
{
    struct mapped m = {.bytes = granules * t->granule};

    m.phys = kvt_segment(t, granules);
    m.base = kvt_reserved(t, t->device, granules);
    KVT_OK(t, kvi_backend_map(t->device, m.phys, m.base, m.bytes, access));
    return m;
}

static void mapped_close(struct kvt_backend *t, const struct mapped *m)
{
    KVT_OK(t, kvi_backend_unmap(t->device, m->base, m->bytes));
    KVT_OK(t, kvi_backend_unreserve(t->device, m->base, m->bytes));
    KVT_OK(t, kvi_backend_segment_release(t->device, m->phys));
}

void kvt_backend_reserve_aligns(struct kvt_backend *t)
{
    for (uint64_t shift = 0; shift <= 8; shift++) {
        uint64_t alignment = t->granule << shift;
        uint64_t base = 0;

        KVT_OK(t, kvi_backend_reserve(t->device, 3 * t->granule, alignment, &base));
        KVT_CHECK(t, base != 0 && base % alignment == 0);
        KVT_CHECK(t, kvt_memory(t, t->device).reserved_bytes == 3 * t->granule);
        if (cpu_visible(t->device)) {
            KVT_CHECK(t, kvt_mapped_bytes(base, 3 * t->granule) == 3 * t->granule);
            KVT_CHECK(t, kvt_load_faults(base) && kvt_load_faults(base + 3 * t->granule - 1));
        }
        KVT_OK(t, kvi_backend_unreserve(t->device, base, 3 * t->granule));
    }
}

void kvt_backend_reserve_refuses_bad_arguments(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t sizes[] = {0, 1, g - 1, g + 1, UINT64_MAX, 0 - g, UINT64_C(1) << 63, INT64_MAX};
    uint64_t alignments[] = {1, g / 2, g - 1, g + 1, 3 * g, UINT64_MAX, g + g / 2};
    uint64_t base = 77;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                    kvi_backend_reserve(t->device, sizes[i], 0, &base));
    for (size_t i = 0; i < sizeof(alignments) / sizeof(alignments[0]); i++)
        KVT_REFUSED(t, KVMEM_E_INVALID, "alignment",
                    kvi_backend_reserve(t->device, g, alignments[i], &base));
    KVT_CHECK(t, base == 77);
}

void kvt_backend_reserve_too_much_changes_nothing(struct kvt_backend *t)
{
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    struct kvi_backend_memory after;
    uint64_t base = 77;
    int rc;

    rc = kvi_backend_reserve(t->device, UINT64_C(1) << 62, 0, &base);
    KVT_CHECK(t, rc == KVMEM_E_NO_MEMORY || rc == KVMEM_E_SYSTEM);
    rc = kvi_backend_reserve(t->device, t->granule, UINT64_C(1) << 63, &base);
    KVT_CHECK(t, rc == KVMEM_E_NO_MEMORY || rc == KVMEM_E_SYSTEM);
    rc = kvi_backend_reserve(t->device, (uint64_t)INT64_MAX + 1 - t->granule, UINT64_C(1) << 63,
                             &base);
    KVT_CHECK(t, rc == KVMEM_E_NO_MEMORY || rc == KVMEM_E_SYSTEM);
    KVT_CHECK(t, base == 77);
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &after));
}

void kvt_backend_reservations_are_disjoint(struct kvt_backend *t)
{
    enum {
        COUNT = 50
    };
    uint64_t base[COUNT];
    uint64_t bytes[COUNT];
    uint64_t state = 7;

    for (int i = 0; i < COUNT; i++) {
        bytes[i] = (1 + kvt_next_random(&state) % 9) * t->granule;
        KVT_OK(t, kvi_backend_reserve(t->device, bytes[i], 0, &base[i]));
        for (int j = 0; j < i; j++)
            KVT_CHECK(t, base[i] + bytes[i] <= base[j] || base[j] + bytes[j] <= base[i]);
    }
    for (int left = COUNT; left > 0; left--) {
        int at = (int)(kvt_next_random(&state) % (uint64_t)left);

        KVT_OK(t, kvi_backend_unreserve(t->device, base[at], bytes[at]));
        base[at] = base[left - 1];
        bytes[at] = bytes[left - 1];
    }
}

void kvt_backend_unreserve_takes_exactly_what_was_reserved(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t base = kvt_reserved(t, t->device, 4);
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    struct kvi_backend_memory after;

    KVT_REFUSED(t, KVMEM_E_INVALID, "reserved", kvi_backend_unreserve(t->device, base, 3 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "reserved", kvi_backend_unreserve(t->device, base, 5 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "reserved", kvi_backend_unreserve(t->device, base + g, 3 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "reserved", kvi_backend_unreserve(t->device, base - g, 4 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "reserved", kvi_backend_unreserve(t->client, base, 4 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "address", kvi_backend_unreserve(t->device, base + 1, 4 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_unreserve(t->device, base, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64", kvi_backend_unreserve(t->device, 0 - g, 4 * g));
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &after));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 4 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "reserved", kvi_backend_unreserve(t->device, base, 4 * g));
}

void kvt_backend_unreserve_refuses_while_mapped(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 2, KVI_ACCESS_RW);

    kvt_fill(t, t->device, m.base, m.bytes, 4);
    KVT_REFUSED(t, KVMEM_E_INVALID, "unmap", kvi_backend_unreserve(t->device, m.base, m.bytes));
    KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, 4));
    mapped_close(t, &m);
}

void kvt_backend_map_read_write(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 3, KVI_ACCESS_RW);

    KVT_CHECK(t, kvt_memory(t, t->device).mapping_count == 1);
    KVT_CHECK(t, kvt_memory(t, t->device).mapped_bytes == m.bytes);
    kvt_fill(t, t->device, m.base, m.bytes, 1);
    KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, 1));
    KVT_CHECK(t, !kvt_filled(t, t->device, m.base, m.bytes, 2)); /* the check itself checks */
    if (cpu_visible(t->device)) {
        KVT_CHECK(t, !kvt_store_faults(m.base) && !kvt_store_faults(m.base + m.bytes - 1));
        memset(kvi_backend_pointer(m.base), 0x5a, m.bytes);
        KVT_CHECK(t, !kvt_filled(t, t->device, m.base, m.bytes, 1));
    }
    mapped_close(t, &m);
}

void kvt_backend_map_shows_the_same_bytes_twice(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 2, KVI_ACCESS_RW);
    uint64_t other = kvt_reserved(t, t->device, 4);
    uint64_t second = other + t->granule;

    KVT_OK(t, kvi_backend_map(t->device, m.phys, second, m.bytes, KVI_ACCESS_RO));
    KVT_CHECK(t, kvt_memory(t, t->device).mapped_bytes == 2 * m.bytes);
    KVT_CHECK(t, kvt_memory(t, t->device).created_bytes == m.bytes);
    kvt_fill(t, t->device, m.base, m.bytes, 11);
    KVT_CHECK(t, kvt_filled(t, t->device, second, m.bytes, 11));
    kvt_fill(t, t->device, m.base, m.bytes, 12);
    KVT_CHECK(t, kvt_filled(t, t->device, second, m.bytes, 12));
    KVT_OK(t, kvi_backend_unmap(t->device, second, m.bytes));
    KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, 12));
    KVT_OK(t, kvi_backend_unreserve(t->device, other, 4 * t->granule));
    mapped_close(t, &m);
}

void kvt_backend_map_shows_the_creators_bytes_to_an_importer(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 2, KVI_ACCESS_RW);
    struct kvi_phys imported = kvt_imported(t, m.phys, 2);
    uint64_t base = kvt_reserved(t, t->client, 2);

    kvt_fill(t, t->device, m.base, m.bytes, 21);
    KVT_OK(t, kvi_backend_map(t->client, imported, base, m.bytes, KVI_ACCESS_RO));
    KVT_CHECK(t, base != m.base && kvt_filled(t, t->client, base, m.bytes, 21));
    kvt_fill(t, t->device, m.base, m.bytes, 22);
    KVT_CHECK(t, kvt_filled(t, t->client, base, m.bytes, 22));
    KVT_OK(t, kvi_backend_unmap(t->client, base, m.bytes));
    KVT_OK(t, kvi_backend_map(t->client, imported, base, m.bytes, KVI_ACCESS_RW));
    kvt_fill(t, t->client, base, m.bytes, 23);
    KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, 23));
    KVT_OK(t, kvi_backend_unmap(t->client, base, m.bytes));
    KVT_OK(t, kvi_backend_unreserve(t->client, base, m.bytes));
    KVT_OK(t, kvi_backend_segment_release(t->client, imported));
    mapped_close(t, &m);
}

void kvt_backend_map_refuses_another_size(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t base = kvt_reserved(t, t->device, 8);
    struct kvi_phys phys = kvt_segment(t, 3);
    uint64_t bad[] = {0, 1, 3 * g - 1, 3 * g + 1, g, 2 * g, 4 * g, 6 * g, UINT64_MAX, 0 - g};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                    kvi_backend_map(t->device, phys, base, bad[i], KVI_ACCESS_RW));
    KVT_CHECK(t, kvt_memory(t, t->device).mapping_count == 0);
    if (cpu_visible(t->device))
        KVT_CHECK(t, kvt_load_faults(base));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 8 * g));
}

void kvt_backend_map_refuses_bad_addresses(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t base = kvt_reserved(t, t->device, 4);
    struct kvi_phys phys = kvt_segment(t, 2);
    uint64_t inside[] = {base - g, base + 3 * g, base + 4 * g, base - 2 * g, 0};
    uint64_t odd[] = {base + 1, base + g / 2, base + g - 1};

    for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++)
        KVT_REFUSED(t, KVMEM_E_INVALID, "reservation",
                    kvi_backend_map(t->device, phys, inside[i], 2 * g, KVI_ACCESS_RW));
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++)
        KVT_REFUSED(t, KVMEM_E_INVALID, "address",
                    kvi_backend_map(t->device, phys, odd[i], 2 * g, KVI_ACCESS_RW));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64",
                kvi_backend_map(t->device, phys, 0 - g, 2 * g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 4 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "reservation",
                kvi_backend_map(t->device, phys, base, 2 * g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

void kvt_backend_map_refuses_an_overlap(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t base = kvt_reserved(t, t->device, 10);
    struct kvi_phys first = kvt_segment(t, 2);
    struct kvi_phys second = kvt_segment(t, 4);

    KVT_OK(t, kvi_backend_map(t->device, first, base + 4 * g, 2 * g, KVI_ACCESS_RW));
    kvt_fill(t, t->device, base + 4 * g, 2 * g, 6);
    KVT_REFUSED(t, KVMEM_E_INVALID, "overlaps",
                kvi_backend_map(t->device, first, base + 4 * g, 2 * g, KVI_ACCESS_RW));
    for (uint64_t at = 1; at <= 5; at++)
        KVT_REFUSED(t, KVMEM_E_INVALID, "overlaps",
                    kvi_backend_map(t->device, second, base + at * g, 4 * g, KVI_ACCESS_RW));
    KVT_CHECK(t, kvt_filled(t, t->device, base + 4 * g, 2 * g, 6));
    KVT_OK(t, kvi_backend_map(t->device, second, base, 4 * g, KVI_ACCESS_RW)); /* adjoins */
    KVT_OK(t, kvi_backend_map(t->device, second, base + 6 * g, 4 * g, KVI_ACCESS_RW));
    KVT_CHECK(t, kvt_filled(t, t->device, base + 4 * g, 2 * g, 6));
    KVT_OK(t, kvi_backend_unmap(t->device, base, 10 * g));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 10 * g));
    KVT_OK(t, kvi_backend_segment_release(t->device, first));
    KVT_OK(t, kvi_backend_segment_release(t->device, second));
}

void kvt_backend_map_refuses_a_bad_access(struct kvt_backend *t)
{
    uint64_t base = kvt_reserved(t, t->device, 1);
    struct kvi_phys phys = kvt_segment(t, 1);
    int bad[] = {0, 3, 4, -1, INT32_MAX, INT32_MIN};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        enum kvi_access access;

        memcpy(&access, &bad[i], sizeof(access));
        KVT_REFUSED(t, KVMEM_E_INVALID, "access",
                    kvi_backend_map(t->device, phys, base, t->granule, access));
    }
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, t->granule));
}

void kvt_backend_mapping_outlives_its_handle(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 2, KVI_ACCESS_RW);
    struct kvi_phys imported = kvt_imported(t, m.phys, 2);
    uint64_t base = kvt_reserved(t, t->client, 4);

    kvt_fill(t, t->device, m.base, m.bytes, 31);
    KVT_OK(t, kvi_backend_map(t->client, imported, base, m.bytes, KVI_ACCESS_RO));
    KVT_OK(t, kvi_backend_map(t->client, imported, base + m.bytes, m.bytes, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_segment_release(t->client, imported));
    KVT_CHECK(t, kvt_filled(t, t->client, base, m.bytes, 31));
    kvt_fill(t, t->client, base + m.bytes, m.bytes, 32);
    KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, 32));
    KVT_OK(t, kvi_backend_unmap(t->client, base, 2 * m.bytes));
    KVT_OK(t, kvi_backend_unreserve(t->client, base, 2 * m.bytes));
    mapped_close(t, &m);
}

void kvt_backend_read_only_store_faults(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 2, KVI_ACCESS_RW);
    struct kvi_phys imported = kvt_imported(t, m.phys, 2);
    uint64_t base = kvt_reserved(t, t->client, 2);

    kvt_fill(t, t->device, m.base, m.bytes, 41);
    KVT_OK(t, kvi_backend_map(t->client, imported, base, m.bytes, KVI_ACCESS_RO));
    if (cpu_visible(t->client)) {
        KVT_CHECK(t, !kvt_load_faults(base) && !kvt_load_faults(base + m.bytes - 1));
        KVT_CHECK(t, kvt_store_faults(base) && kvt_store_faults(base + m.bytes - 1));
    } else if (t->factory->skip != NULL) {
        t->factory->skip("a store to a read-only mapping: only a kernel can make one here");
    }
    KVT_REFUSED(t, KVMEM_E_INVALID, "read-only", kvi_backend_copy_in(t->client, base, "x", 1, 0));
    KVT_CHECK(t, kvt_filled(t, t->client, base, m.bytes, 41));
    KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, 41));
    KVT_OK(t, kvi_backend_unmap(t->client, base, m.bytes));
    KVT_OK(t, kvi_backend_unreserve(t->client, base, m.bytes));
    KVT_OK(t, kvi_backend_segment_release(t->client, imported));
    mapped_close(t, &m);
}

/* Read-only all the time at one address, read-write now and then at another. */
void kvt_backend_an_alias_comes_and_goes(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 2, KVI_ACCESS_RO);
    uint64_t alias = kvt_reserved(t, t->device, 2);

    for (uint32_t round = 0; round < 3; round++) {
        KVT_OK(t, kvi_backend_map(t->device, m.phys, alias, m.bytes, KVI_ACCESS_RW));
        kvt_fill(t, t->device, alias, m.bytes, round);
        KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, round));
        KVT_REFUSED(t, KVMEM_E_INVALID, "read-only",
                    kvi_backend_copy_in(t->device, m.base, "x", 1, 0));
        if (cpu_visible(t->device)) {
            KVT_CHECK(t, kvt_store_faults(m.base) && kvt_store_faults(m.base + m.bytes - 1));
            KVT_CHECK(t, !kvt_store_faults(alias) && !kvt_store_faults(alias + m.bytes - 1));
        }
        KVT_OK(t, kvi_backend_unmap(t->device, alias, m.bytes));
        KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_copy_in(t->device, alias, "x", 1, 0));
        if (cpu_visible(t->device))
            KVT_CHECK(t, kvt_load_faults(alias) && !kvt_load_faults(m.base));
        KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, round));
    }
    KVT_OK(t, kvi_backend_unreserve(t->device, alias, m.bytes));
    mapped_close(t, &m);
}

/* Four segments of one granule side by side. */
struct row {
    uint64_t base;
    struct kvi_phys phys[4];
};

static struct row row_open(struct kvt_backend *t)
{
    struct row row = {.base = kvt_reserved(t, t->device, 6)};

    for (uint64_t i = 0; i < 4; i++) {
        row.phys[i] = kvt_segment(t, 1);
        KVT_OK(t, kvi_backend_map(t->device, row.phys[i], row.base + i * t->granule, t->granule,
                                  KVI_ACCESS_RW));
    }
    return row;
}

static void row_close(struct kvt_backend *t, const struct row *row)
{
    KVT_CHECK(t, kvt_memory(t, t->device).mapping_count == 0);
    for (int i = 0; i < 4; i++)
        KVT_OK(t, kvi_backend_segment_release(t->device, row->phys[i]));
    KVT_OK(t, kvi_backend_unreserve(t->device, row->base, 6 * t->granule));
}

void kvt_backend_unmap_leaves_it_reserved(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 3, KVI_ACCESS_RW);
    uint64_t whole = kvt_reserved(t, t->device, 9);
    uint64_t at = whole + 3 * t->granule;
    unsigned char byte;

    KVT_OK(t, kvi_backend_map(t->device, m.phys, at, m.bytes, KVI_ACCESS_RW));
    kvt_fill(t, t->device, at, m.bytes, 8);
    KVT_OK(t, kvi_backend_unmap(t->device, at, m.bytes));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_copy_out(t->device, &byte, at, 1, 0));
    if (cpu_visible(t->device)) {
        KVT_CHECK(t, kvt_mapped_bytes(whole, 9 * t->granule) == 9 * t->granule);
        KVT_CHECK(t, kvt_load_faults(at) && kvt_load_faults(at + m.bytes - 1));
    }
    KVT_CHECK(t, kvt_memory(t, t->device).reserved_bytes == 12 * t->granule);
    KVT_CHECK(t, kvt_filled(t, t->device, m.base, m.bytes, 8));
    KVT_OK(t, kvi_backend_map(t->device, m.phys, at, m.bytes, KVI_ACCESS_RO));
    KVT_CHECK(t, kvt_filled(t, t->device, at, m.bytes, 8));
    KVT_OK(t, kvi_backend_unmap(t->device, at, m.bytes));
    KVT_OK(t, kvi_backend_unreserve(t->device, whole, 9 * t->granule));
    mapped_close(t, &m);
}

void kvt_backend_unmap_takes_a_run(struct kvt_backend *t)
{
    struct row row = row_open(t);
    uint64_t g = t->granule;

    kvt_fill(t, t->device, row.base, g, 1);
    kvt_fill(t, t->device, row.base + 3 * g, g, 2);
    KVT_OK(t, kvi_backend_unmap(t->device, row.base + g, 2 * g));
    KVT_CHECK(t, kvt_memory(t, t->device).mapping_count == 2);
    KVT_CHECK(t, kvt_filled(t, t->device, row.base, g, 1));
    KVT_CHECK(t, kvt_filled(t, t->device, row.base + 3 * g, g, 2));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_unmap(t->device, row.base, 4 * g));
    KVT_OK(t, kvi_backend_unmap(t->device, row.base, g));
    KVT_OK(t, kvi_backend_unmap(t->device, row.base + 3 * g, g));
    row_close(t, &row);
}

void kvt_backend_unmap_refuses_bad_ranges(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 3, KVI_ACCESS_RW);
    uint64_t g = t->granule;
    struct kvi_backend *b = t->device;

    kvt_fill(t, b, m.base, m.bytes, 17);
    KVT_REFUSED(t, KVMEM_E_INVALID, "whole", kvi_backend_unmap(b, m.base, g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "whole", kvi_backend_unmap(b, m.base + g, g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "whole", kvi_backend_unmap(b, m.base + g, 2 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_unmap(b, m.base, 4 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_unmap(b, m.base - g, 4 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "address", kvi_backend_unmap(b, m.base + 1, 3 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_unmap(b, m.base, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_unmap(b, m.base, 3 * g + 1));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_unmap(b, m.base, UINT64_MAX));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64", kvi_backend_unmap(b, 0 - g, 2 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_unmap(t->client, m.base, 3 * g));
    KVT_CHECK(t, kvt_filled(t, b, m.base, m.bytes, 17));
    mapped_close(t, &m);
}

void kvt_backend_unmap_twice_is_refused(struct kvt_backend *t)
{
    struct mapped m = mapped_open(t, 1, KVI_ACCESS_RW);

    KVT_OK(t, kvi_backend_unmap(t->device, m.base, m.bytes));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_unmap(t->device, m.base, m.bytes));
    KVT_OK(t, kvi_backend_map(t->device, m.phys, m.base, m.bytes, KVI_ACCESS_RW));
    mapped_close(t, &m);
}

/* Driver 580 loses its way when the first mapping of a handle goes before the others. */
void kvt_backend_the_first_mapping_goes_last(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    struct kvi_backend *b = t->device;
    struct kvi_phys phys = kvt_segment(t, 1);
    uint64_t base = kvt_reserved(t, b, 4);

    KVT_OK(t, kvi_backend_map(b, phys, base + g, g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_map(b, phys, base, g, KVI_ACCESS_RO));
    KVT_OK(t, kvi_backend_map(b, phys, base + 2 * g, g, KVI_ACCESS_RO));
    KVT_REFUSED(t, KVMEM_E_INVALID, "first mapping", kvi_backend_unmap(b, base + g, g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "first mapping", kvi_backend_unmap(b, base, 2 * g));
    KVT_CHECK(t, kvt_memory(t, b).mapping_count == 3);
    KVT_OK(t, kvi_backend_unmap(b, base, g));
    KVT_OK(t, kvi_backend_map(b, phys, base, g, KVI_ACCESS_RO));
    KVT_OK(t, kvi_backend_segment_release(b, phys)); /* a released one keeps the rule */
    KVT_REFUSED(t, KVMEM_E_INVALID, "first mapping", kvi_backend_unmap(b, base + g, 2 * g));
    KVT_OK(t, kvi_backend_unmap(b, base, 3 * g));
    KVT_OK(t, kvi_backend_unreserve(b, base, 4 * g));
    KVT_CHECK(t, kvt_memory(t, b).mapping_count == 0 && kvt_memory(t, b).handle_count == 0);
}

/* ---- a naive twin: which mapping, starting where, covers each granule ---- */

struct twin {
    uint64_t base;
    struct kvi_phys phys[TWIN_SEGMENTS];
    int start[TWIN_GRANULES];   /* granule where the mapping that covers this one starts, or −1 */
    int segment[TWIN_GRANULES]; /* which segment that is; valid where start is */
    int first[TWIN_SEGMENTS];   /* granule where its first mapping starts; valid with mappings */
    int mappings[TWIN_SEGMENTS];
    enum kvi_access access[TWIN_GRANULES];
};

/* Segment i has 1 + i % 3 granules. */
static int twin_granules(int segment)
{
    return 1 + segment % 3;
}

static bool twin_can_map(const struct twin *w, int at, int granules)
{
    for (int i = at; i < at + granules; i++)
        if (i >= TWIN_GRANULES || w->start[i] >= 0)
            return false;
    return true;
}

/* Whole mappings, without a gap? */
static bool twin_is_run(const struct twin *w, int at, int granules)
{
    int end = at + granules;

    if (end > TWIN_GRANULES || w->start[at] != at)
        return false;
    for (int i = at; i < end; i++)
        if (w->start[i] < 0)
            return false;
    return end == TWIN_GRANULES || w->start[end] < 0 || w->start[end] == end;
}

/* Would this unmap a segment's first mapping and leave others? */
static bool twin_leaves_others(const struct twin *w, int at, int granules)
{
    int in_run[TWIN_SEGMENTS] = {0};
    bool has_first[TWIN_SEGMENTS] = {false};
    bool leaves = false;

    for (int i = at; i < at + granules; i++) {
        in_run[w->segment[i]] += w->start[i] == i;
        has_first[w->segment[i]] |= w->first[w->segment[i]] == i && w->start[i] == i;
    }
    for (int segment = 0; segment < TWIN_SEGMENTS; segment++)
        leaves |= has_first[segment] && in_run[segment] < w->mappings[segment];
    return leaves;
}

static void twin_map(struct kvt_backend *t, struct twin *w, int at, int segment,
                     enum kvi_access access)
{
    int granules = twin_granules(segment);
    bool wanted = twin_can_map(w, at, granules);
    int rc = kvi_backend_map(t->device, w->phys[segment], w->base + (uint64_t)at * t->granule,
                             (uint64_t)granules * t->granule, access);

    if (wanted)
        KVT_OK(t, rc);
    else
        KVT_CHECK(t, rc == KVMEM_E_INVALID);
    if (!wanted)
        return;
    if (w->mappings[segment]++ == 0)
        w->first[segment] = at;
    for (int i = at; i < at + granules; i++) {
        w->start[i] = at;
        w->segment[i] = segment;
        w->access[i] = access;
    }
}

static void twin_unmap(struct kvt_backend *t, struct twin *w, int at, int granules)
{
    bool wanted = twin_is_run(w, at, granules) && !twin_leaves_others(w, at, granules);
    int rc = kvi_backend_unmap(t->device, w->base + (uint64_t)at * t->granule,
                               (uint64_t)granules * t->granule);

    KVT_CHECK(t, rc == (wanted ? 0 : KVMEM_E_INVALID));
    for (int i = at; wanted && i < at + granules; i++) {
        w->mappings[w->segment[i]] -= w->start[i] == i;
        w->start[i] = -1;
    }
}

/* One granule: is it mapped, to the right part of the right segment, with the right access? */
static void twin_look(struct kvt_backend *t, const struct twin *w, int at)
{
    uint64_t address = w->base + (uint64_t)at * t->granule;
    unsigned char mark[2] = {255, 255};
    int rc = kvi_backend_copy_out(t->device, mark, address, 2, 0);

    KVT_CHECK(t, rc == (w->start[at] >= 0 ? 0 : KVMEM_E_INVALID));
    if (rc < 0)
        return;
    kvt_settle(t, t->device);
    KVT_CHECK(t, mark[0] == w->segment[at] && mark[1] == at - w->start[at]);
    rc = kvi_backend_copy_in(t->device, address, mark, 2, 0);
    KVT_CHECK(t, rc == (w->access[at] == KVI_ACCESS_RW ? 0 : KVMEM_E_INVALID));
    kvt_settle(t, t->device); /* the next step may unmap it */
}

/* Each granule of each segment starts with (segment, number of the granule in it). */
static void twin_open(struct kvt_backend *t, struct twin *w)
{
    w->base = kvt_reserved(t, t->device, TWIN_GRANULES);
    for (int i = 0; i < TWIN_GRANULES; i++)
        w->start[i] = -1;
    for (int segment = 0; segment < TWIN_SEGMENTS; segment++) {
        int granules = twin_granules(segment);

        w->phys[segment] = kvt_segment(t, (uint64_t)granules);
        twin_map(t, w, 0, segment, KVI_ACCESS_RW);
        for (int i = 0; i < granules; i++) {
            unsigned char mark[2] = {(unsigned char)segment, (unsigned char)i};

            KVT_OK(t,
                   kvi_backend_copy_in(t->device, w->base + (uint64_t)i * t->granule, mark, 2, 0));
        }
        kvt_settle(t, t->device);
        twin_unmap(t, w, 0, granules);
    }
}

void kvt_backend_random_mappings_match_a_naive_twin(struct kvt_backend *t)
{
    struct twin w = {0};
    uint64_t state = 20260101; /* the seed; a failure repeats with it */

    twin_open(t, &w);
    for (int step = 0; step < TWIN_STEPS; step++) {
        uint64_t dice = kvt_next_random(&state);
        int at = (int)(dice >> 8 & 0xff) % TWIN_GRANULES;
        int granules = 1 + (int)(dice >> 16 & 0xff) % 6;
        enum kvi_access access = dice >> 24 & 1 ? KVI_ACCESS_RW : KVI_ACCESS_RO;

        switch (dice % 3) {
        case 0:
        case 1: twin_map(t, &w, at, (int)(dice >> 32 & 0xff) % TWIN_SEGMENTS, access); break;
        case 2: twin_unmap(t, &w, at, granules); break;
        }
        twin_look(t, &w, (int)(dice >> 40 & 0xff) % TWIN_GRANULES);
    }
    for (int last = 0; last < 2; last++) /* first mappings go last */
        for (int at = 0; at < TWIN_GRANULES; at++)
            if (w.start[at] == at && (last || w.first[w.segment[at]] != at))
                twin_unmap(t, &w, at, twin_granules(w.segment[at]));
    for (int segment = 0; segment < TWIN_SEGMENTS; segment++)
        KVT_OK(t, kvi_backend_segment_release(t->device, w.phys[segment]));
    KVT_OK(t, kvi_backend_unreserve(t->device, w.base, TWIN_GRANULES * t->granule));
}

/* ---- threads ---- */

struct worker {
    struct kvt_backend *t;
    pthread_barrier_t *start;
    int failures;
};

/* Create, map, write, read, unmap, release, as one thread of several. */
static int worker_step(struct kvt_backend *t, uint64_t tag)
{
    struct kvi_backend *b = t->device;
    struct kvi_phys phys = {0};
    uint64_t base = 0;
    uint64_t found = 0;
    int failures = 0;

    if (kvi_backend_segment_create(b, 2 * t->granule, &phys) < 0 ||
        kvi_backend_reserve(b, 4 * t->granule, 0, &base) < 0)
        return 1;
    failures += kvi_backend_map(b, phys, base + t->granule, 2 * t->granule, KVI_ACCESS_RW) != 0;
    failures += kvi_backend_copy_in(b, base + t->granule, &tag, sizeof(tag), 0) != 0;
    failures += kvi_backend_copy_out(b, &found, base + t->granule, sizeof(found), 0) != 0;
    if (t->device->info.kind == KVI_BACKEND_HOST) /* elsewhere the copy may be still under way */
        failures += found != tag;
    failures += kvi_backend_unmap(b, base + t->granule, 2 * t->granule) != 0;
    failures += kvi_backend_unreserve(b, base, 4 * t->granule) != 0;
    failures += kvi_backend_segment_release(b, phys) != 0;
    return failures;
}

static void *worker_run(void *context)
{
    struct worker *worker = context;
    void *volatile warm = malloc(64); /* the thread's arena exists before anybody counts */

    pthread_barrier_wait(worker->start);
    free(warm);
    for (uint64_t i = 0; i < THREAD_STEPS; i++)
        worker->failures += worker_step(worker->t, (uintptr_t)worker + i);
    return NULL;
}

void kvt_backend_threads_map_side_by_side(struct kvt_backend *t)
{
    pthread_t threads[THREADS];
    struct worker workers[THREADS];
    pthread_barrier_t start;

    pthread_barrier_init(&start, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){t, &start, 0};
        KVT_CHECK(t, pthread_create(&threads[i], NULL, worker_run, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        KVT_CHECK(t, workers[i].failures == 0);
    }
    pthread_barrier_destroy(&start);
}
