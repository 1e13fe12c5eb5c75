/* SPDX-License-Identifier: Apache-2.0
 *
 * Compliance: copies, pins and fences. See backend_compliance.h.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/backend_compliance.h"
#include "util/error.h"

#define PAIR_GRANULES 2

/* Two segments of PAIR_GRANULES, adjoining, read-write; then a granule without anything. */
struct pair {
    struct kvi_phys phys[2];
    uint64_t base;
    uint64_t bytes; /* of both */
};

static struct pair pair_open(struct kvt_backend *t)
{
    struct pair pair = {.bytes = 2 * PAIR_GRANULES * t->granule};

    pair.base = kvt_reserved(t, t->device, 2 * PAIR_GRANULES + 1);
    for (uint64_t i = 0; i < 2; i++) {
        pair.phys[i] = kvt_segment(t, PAIR_GRANULES);
        KVT_OK(t, kvi_backend_map(t->device, pair.phys[i], pair.base + i * pair.bytes / 2,
                                  pair.bytes / 2, KVI_ACCESS_RW));
    }
    return pair;
}

static void pair_close(struct kvt_backend *t, const struct pair *pair)
{
    KVT_OK(t, kvi_backend_unmap(t->device, pair->base, pair->bytes));
    KVT_OK(t, kvi_backend_segment_release(t->device, pair->phys[0]));
    KVT_OK(t, kvi_backend_segment_release(t->device, pair->phys[1]));
    KVT_OK(t, kvi_backend_unreserve(t->device, pair->base, pair->bytes + t->granule));
}

void kvt_backend_copy_moves_any_bytes(struct kvt_backend *t)
{
    struct pair pair = pair_open(t);
    uint64_t half = pair.bytes / 2;
    uint64_t sizes[] = {1, 2, 3, 7, 64, 4095, 4096, 4097, t->granule, half};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        uint64_t offset = sizes[i] < half ? 1 + i : 0;

        kvt_fill(t, t->device, pair.base, half, (uint32_t)i);
        kvt_fill(t, t->device, pair.base + half, half, 99);
        kvt_fill(t, t->device, pair.base + offset, sizes[i], (uint32_t)i + 50);
        KVT_OK(t, kvi_backend_copy(t->device, pair.base + half, pair.base + offset, sizes[i], 0));
        KVT_CHECK(t, kvt_filled(t, t->device, pair.base + half, sizes[i], (uint32_t)i + 50));
        KVT_CHECK(t, kvt_filled(t, t->device, pair.base + offset, sizes[i], (uint32_t)i + 50));
    }
    pair_close(t, &pair);
}

/* The pair once more, the first half read-only, the other one as given: one copy over both. */
static void copy_from_again(struct kvt_backend *t, const struct pair *pair, enum kvi_access second,
                            uint64_t to)
{
    uint64_t half = pair->bytes / 2;
    uint64_t again = kvt_reserved(t, t->device, 2 * PAIR_GRANULES);

    KVT_OK(t, kvi_backend_map(t->device, pair->phys[0], again, half, KVI_ACCESS_RO));
    KVT_OK(t, kvi_backend_map(t->device, pair->phys[1], again + half, half, second));
    kvt_fill(t, t->device, pair->base, pair->bytes, 20 + second);
    KVT_OK(t, kvi_backend_copy(t->device, to, again, pair->bytes, 0));
    KVT_CHECK(t, kvt_filled(t, t->device, to, pair->bytes, 20 + second));
    KVT_CHECK(t, kvt_filled(t, t->device, again, pair->bytes, 20 + second));
    KVT_OK(t, kvi_backend_unmap(t->device, again, pair->bytes));
    KVT_OK(t, kvi_backend_unreserve(t->device, again, pair->bytes));
}

void kvt_backend_copy_crosses_mappings(struct kvt_backend *t)
{
    struct pair pair = pair_open(t);
    uint64_t g = t->granule;
    uint64_t middle = pair.base + pair.bytes / 2;
    uint64_t to = 0;

    kvt_fill(t, t->device, middle - g / 2, g, 5);
    KVT_CHECK(t, kvt_filled(t, t->device, middle - g / 2, g, 5));
    KVT_OK(t, kvi_backend_copy(t->device, pair.base, middle - g / 2, g, 0));
    KVT_CHECK(t, kvt_filled(t, t->device, pair.base, g, 5));
    KVT_OK(t, kvi_backend_copy(t->device, pair.base + g, pair.base, g, 0)); /* adjoining ranges */
    KVT_CHECK(t, kvt_filled(t, t->device, pair.base + g, g, 5));
    KVT_OK(t, kvi_backend_device_alloc(t->device, pair.bytes, &to));
    copy_from_again(t, &pair, KVI_ACCESS_RO, to);
    copy_from_again(t, &pair, KVI_ACCESS_RW, to);
    KVT_OK(t, kvi_backend_device_free(t->device, to, pair.bytes));
    pair_close(t, &pair);
}

void kvt_backend_copy_refuses_bad_ranges(struct kvt_backend *t)
{
    struct pair pair = pair_open(t);
    uint64_t g = t->granule;
    uint64_t end = pair.base + pair.bytes;

    kvt_fill(t, t->device, pair.base, pair.bytes, 3);
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                kvi_backend_copy(t->device, pair.base, pair.base + g, 0, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                kvi_backend_copy(t->device, pair.base, pair.base + g, UINT64_MAX, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64",
                kvi_backend_copy(t->device, UINT64_MAX - 3, pair.base, 8, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64",
                kvi_backend_copy(t->device, pair.base, UINT64_MAX - 3, 8, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "apart",
                kvi_backend_copy(t->device, pair.base, pair.base + 1, 2, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "apart",
                kvi_backend_copy(t->device, pair.base + 1, pair.base, 2, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "apart",
                kvi_backend_copy(t->device, pair.base, pair.base, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy(t->device, end - 1, pair.base, 2, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy(t->device, pair.base, end - 1, 2, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_copy(t->device, pair.base, end, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_copy(t->device, pair.base, 64, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy(t->device, pair.base, pair.base - 1, 1, 0));
    KVT_CHECK(t, kvt_filled(t, t->device, pair.base, pair.bytes, 3));
    pair_close(t, &pair);
}

void kvt_backend_copy_refuses_read_only_destinations(struct kvt_backend *t)
{
    struct pair pair = pair_open(t);
    uint64_t half = pair.bytes / 2;
    unsigned char bytes[16] = {1, 2, 3};

    kvt_fill(t, t->device, pair.base, pair.bytes, 3);
    kvt_remap_read_only(t, t->device, pair.phys[1], pair.base + half, half);
    KVT_REFUSED(t, KVMEM_E_INVALID, "read-only",
                kvi_backend_copy(t->device, pair.base + half, pair.base, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "read-only",
                kvi_backend_copy_in(t->device, pair.base + half, bytes, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "read-only", /* the last byte alone */
                kvi_backend_copy_in(t->device, pair.base + half - 15, bytes, 16, 0));
    KVT_CHECK(t, kvt_filled(t, t->device, pair.base, pair.bytes, 3));
    KVT_OK(t, kvi_backend_copy(t->device, pair.base, pair.base + half, 16, 0));
    kvt_settle(t, t->device);
    KVT_OK(t, kvi_backend_copy_in(t->device, pair.base + half - 16, bytes, 16, 0));
    KVT_CHECK(t, !kvt_filled(t, t->device, pair.base, pair.bytes, 3));
    pair_close(t, &pair);
}

void kvt_backend_copy_in_and_out_refuse_bad_ranges(struct kvt_backend *t)
{
    struct pair pair = pair_open(t);
    uint64_t end = pair.base + pair.bytes;
    unsigned char bytes[16] = {0};
    void *top = (void *)(UINTPTR_MAX - 3);

    KVT_REFUSED(t, KVMEM_E_INVALID, "from", kvi_backend_copy_in(t->device, pair.base, NULL, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "to", kvi_backend_copy_out(t->device, NULL, pair.base, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                kvi_backend_copy_in(t->device, pair.base, bytes, 0, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                kvi_backend_copy_out(t->device, bytes, pair.base, 0, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "from", kvi_backend_copy_in(t->device, pair.base, top, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "to", kvi_backend_copy_out(t->device, top, pair.base, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64",
                kvi_backend_copy_in(t->device, UINT64_MAX - 3, bytes, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64",
                kvi_backend_copy_out(t->device, bytes, UINT64_MAX - 3, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy_in(t->device, end - 15, bytes, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy_out(t->device, bytes, end - 15, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_copy_out(t->device, bytes, end, 16, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy_out(t->client, bytes, pair.base, 16, 0));
    pair_close(t, &pair);
}

void kvt_backend_fence_is_reached_in_order(struct kvt_backend *t)
{
    uint64_t *counter = t->counters + 8;

    *counter = 0;
    KVT_CHECK(t, kvi_backend_fence_poll(counter, 0) == KVI_FENCE_REACHED);
    KVT_CHECK(t, kvi_backend_fence_poll(counter, 1) == KVI_FENCE_PENDING);
    if (t->device->info.kind == KVI_BACKEND_HOST) /* a stream would wait, this one answers */
        KVT_CHECK(t, kvi_backend_fence_wait(t->client, counter, 1, 0) == KVI_FENCE_PENDING);
    for (uint64_t value = 1; value < 200; value++) {
        KVT_OK(t, kvi_backend_fence_signal(t->device, counter, value, 0));
        kvt_settle(t, t->device);
        KVT_OK(t, kvi_backend_fence_wait(t->client, counter, value, 0));
        KVT_CHECK(t, kvi_backend_fence_poll(counter, value) == KVI_FENCE_REACHED);
        KVT_CHECK(t, kvi_backend_fence_poll(counter, value + 1) == KVI_FENCE_PENDING);
    }
    /* The most that every device takes: CUDA compares (int64_t)(counter - value) with 0. */
    KVT_OK(t, kvi_backend_fence_signal(t->device, counter, INT64_MAX, 0));
    kvt_settle(t, t->device);
    KVT_OK(t, kvi_backend_fence_wait(t->client, counter, INT64_MAX, 0));
    KVT_CHECK(t, kvi_backend_fence_poll(counter, INT64_MAX) == KVI_FENCE_REACHED);
}

void kvt_backend_fence_refuses_bad_counters(struct kvt_backend *t)
{
    uint64_t page_words = (uint64_t)sysconf(_SC_PAGESIZE) / 8;
    uint64_t *odd = (uint64_t *)(void *)((char *)t->counters + 4);
    _Alignas(8) uint64_t stranger = 0;

    KVT_REFUSED(t, KVMEM_E_INVALID, "counter", kvi_backend_fence_signal(t->device, NULL, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "counter", kvi_backend_fence_wait(t->device, NULL, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "multiple of 8",
                kvi_backend_fence_signal(t->device, odd, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "multiple of 8", kvi_backend_fence_wait(t->device, odd, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned", kvi_backend_fence_signal(t->device, &stranger, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned", kvi_backend_fence_wait(t->device, &stranger, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned",
                kvi_backend_fence_signal(t->device, t->counters + page_words, 1, 0));
    KVT_OK(t, kvi_backend_fence_signal(t->device, t->counters + page_words - 1, 1, 0));
    kvt_settle(t, t->device);
    KVT_CHECK(t, stranger == 0);
}

static char *pages_new(struct kvt_backend *t, uint64_t bytes)
{
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    KVT_CHECK(t, pages != MAP_FAILED);
    return pages;
}

void kvt_backend_pin_refuses_bad_memory(struct kvt_backend *t)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    char *memory = pages_new(t, 4 * page);
    void *top = (void *)(UINTPTR_MAX - page + 1);

    KVT_REFUSED(t, KVMEM_E_INVALID, "memory", kvi_backend_host_pin(t->device, NULL, page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_host_pin(t->device, memory, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "page", kvi_backend_host_pin(t->device, memory, page + 1));
    KVT_REFUSED(t, KVMEM_E_INVALID, "page", kvi_backend_host_pin(t->device, memory + 8, page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_host_pin(t->device, memory, UINT64_MAX));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^64", kvi_backend_host_pin(t->device, top, 2 * page));
    KVT_OK(t, kvi_backend_host_pin(t->device, memory + page, 2 * page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "overlaps",
                kvi_backend_host_pin(t->device, memory + page, 2 * page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "overlaps", kvi_backend_host_pin(t->device, memory, 2 * page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "overlaps",
                kvi_backend_host_pin(t->device, memory + 2 * page, 2 * page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "overlaps", kvi_backend_host_pin(t->device, memory, 4 * page));
    KVT_OK(t, kvi_backend_host_pin(t->device, memory, page));
    KVT_OK(t, kvi_backend_host_unpin(t->device, memory, page));
    KVT_OK(t, kvi_backend_host_unpin(t->device, memory + page, 2 * page));
    munmap(memory, 4 * page);
}

void kvt_backend_pin_is_undone_exactly(struct kvt_backend *t)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    char *memory = pages_new(t, 4 * page);
    uint64_t before_count = kvt_memory(t, t->device).pin_count;

    KVT_OK(t, kvi_backend_host_pin(t->device, memory, 2 * page));
    KVT_CHECK(t, kvt_memory(t, t->device).pin_count == before_count + 1);
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned", kvi_backend_host_unpin(t->device, memory, page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned", kvi_backend_host_unpin(t->device, memory, 3 * page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned",
                kvi_backend_host_unpin(t->device, memory + page, page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "memory", kvi_backend_host_unpin(t->device, NULL, page));
    KVT_OK(t, kvi_backend_host_unpin(t->device, memory, 2 * page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned", kvi_backend_host_unpin(t->device, memory, 2 * page));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned",
                kvi_backend_fence_signal(t->device, (uint64_t *)(void *)memory, 1, 0));
    for (uint64_t i = 0; i < 3; i++)
        KVT_OK(t, kvi_backend_host_pin(t->device, memory + i * page, page));
    for (uint64_t i = 0; i < 3; i++) { /* one going leaves the others */
        KVT_OK(t, kvi_backend_host_unpin(t->device, memory + i * page, page));
        for (uint64_t j = i + 1; j < 3; j++)
            KVT_OK(t, kvi_backend_fence_signal(t->device, (uint64_t *)(void *)(memory + j * page),
                                               1, 0));
        kvt_settle(t, t->device);
    }
    munmap(memory, 4 * page);
}
