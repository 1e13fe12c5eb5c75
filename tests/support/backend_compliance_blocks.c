/* SPDX-License-Identifier: Apache-2.0
 *
 * Compliance: lists of blocks, lists of cells, memory outside the pool. See backend_compliance.h.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/backend_compliance.h"
#include "util/error.h"

#define GRANULES   4 /* mapped: two read-write segments of two */
#define LARGE      UINT64_C(196608)
#define CELLS      600
#define CELL_BYTES (CELLS * sizeof(struct kvi_backend_cell))

/* | rw segment | rw segment | nothing: one granule | */
struct area {
    struct kvi_phys phys[2];
    uint64_t base;
    uint64_t bytes; /* of both */
};

static struct area area_of(struct kvt_backend *t, uint64_t granules)
{
    struct area area = {.bytes = granules * t->granule};

    area.base = kvt_reserved(t, t->device, granules + 1);
    for (uint64_t i = 0; i < 2; i++) {
        area.phys[i] = kvt_segment(t, granules / 2);
        KVT_OK(t, kvi_backend_map(t->device, area.phys[i], area.base + i * area.bytes / 2,
                                  area.bytes / 2, KVI_ACCESS_RW));
    }
    return area;
}

static struct area area_open(struct kvt_backend *t)
{
    return area_of(t, GRANULES);
}

/* LARGE bytes or more, also where the granule is an OS page. */
static struct area area_open_large(struct kvt_backend *t)
{
    return area_of(t, LARGE / t->granule > GRANULES ? LARGE / t->granule : GRANULES);
}

static void area_close(struct kvt_backend *t, const struct area *area)
{
    KVT_OK(t, kvi_backend_unmap(t->device, area->base, area->bytes));
    KVT_OK(t, kvi_backend_segment_release(t->device, area->phys[0]));
    KVT_OK(t, kvi_backend_segment_release(t->device, area->phys[1]));
    KVT_OK(t, kvi_backend_unreserve(t->device, area->base, area->bytes + t->granule));
}

static void *memory_new(uint64_t bytes)
{
    void *memory = malloc(bytes);

    if (memory == NULL)
        abort();
    return memory;
}

/* ---- a twin in host memory ---- */

static void twin_apply(unsigned char *twin, const struct kvi_backend_blocks *list)
{
    for (uint32_t i = 0; i < list->count; i++) {
        unsigned char *to = twin + (uint64_t)list->to[i] * list->stride_bytes;

        if (list->from == NULL)
            memset(to, 0, list->bytes);
        else
            memcpy(to, twin + (uint64_t)list->from[i] * list->stride_bytes, list->bytes);
    }
}

/* Fill the area with random bytes, run the list on both, compare every byte. */
static void list_check(struct kvt_backend *t, const struct area *area,
                       const struct kvi_backend_blocks *list, uint64_t *state)
{
    unsigned char *twin = memory_new(area->bytes);
    unsigned char *found = memory_new(area->bytes);

    for (uint64_t i = 0; i + 8 <= area->bytes; i += 8) {
        uint64_t random = kvt_next_random(state);

        memcpy(twin + i, &random, 8);
    }
    KVT_OK(t, kvi_backend_copy_in(t->device, area->base, twin, area->bytes, 0));
    KVT_OK(t, kvi_backend_blocks(t->device, list, 0));
    KVT_OK(t, kvi_backend_copy_out(t->device, found, area->base, area->bytes, 0));
    kvt_settle(t, t->device);
    twin_apply(twin + (list->to_base - area->base), list);
    KVT_CHECK(t, memcmp(twin, found, area->bytes) == 0);
    free(twin);
    free(found);
}

/* Numbers 0 … count − 1, shuffled. */
static void shuffle(int32_t *indices, uint32_t count, uint64_t *state)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t other = (uint32_t)(kvt_next_random(state) % (i + 1));

        indices[i] = indices[other];
        indices[other] = (int32_t)i;
    }
}

/* ---- blocks ---- */

void kvt_backend_blocks_are_copied(struct kvt_backend *t)
{
    struct area area = area_open(t);
    const int32_t from[] = {0, 0, 3};
    const int32_t to[] = {1, 6, 2};
    uint64_t state = 1;
    struct kvi_backend_blocks list = {.to_base = area.base,
                                      .from_base = area.base,
                                      .stride_bytes = t->granule / 2,
                                      .bytes = t->granule / 2,
                                      .count = 3,
                                      .from = from,
                                      .to = to};

    list_check(t, &area, &list, &state);
    list.count = 0;
    list_check(t, &area, &list, &state);
    KVT_OK(t, kvi_backend_set_access(t->device, area.base, area.bytes / 2, KVI_ACCESS_RO));
    list.count = 1; /* a source may be read-only: that is what copy on write is for */
    KVT_OK(t, kvi_backend_blocks(t->device,
                                 &(struct kvi_backend_blocks){.to_base = area.base,
                                                              .from_base = area.base,
                                                              .stride_bytes = t->granule,
                                                              .bytes = t->granule,
                                                              .count = 1,
                                                              .from = from,
                                                              .to = to + 2},
                                 0));
    kvt_settle(t, t->device);
    area_close(t, &area);
}

/* What is read is mapped read-only, what is written in a second place: the only one that may be. */
void kvt_backend_blocks_are_written_through_an_alias(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t read_base = kvt_reserved(t, t->device, 2);
    uint64_t write_base = kvt_reserved(t, t->device, 2);
    struct kvi_phys phys = kvt_segment(t, 2);
    const int32_t from = 0;
    const int32_t to = 1;
    struct kvi_backend_blocks list = {.to_base = write_base,
                                      .from_base = read_base,
                                      .stride_bytes = g,
                                      .bytes = g,
                                      .count = 1,
                                      .from = &from,
                                      .to = &to};

    KVT_OK(t, kvi_backend_map(t->device, phys, read_base, 2 * g, KVI_ACCESS_RO));
    KVT_OK(t, kvi_backend_map(t->device, phys, write_base, 2 * g, KVI_ACCESS_RW));
    kvt_fill(t, t->device, write_base, g, 4);
    KVT_OK(t, kvi_backend_blocks(t->device, &list, 0));
    KVT_CHECK(t, kvt_filled(t, t->device, read_base + g, g, 4));
    list.to_base = read_base;
    KVT_REFUSED(t, KVMEM_E_INVALID, "to[0] is block 1", kvi_backend_blocks(t->device, &list, 0));
    list.to_base = write_base;
    KVT_OK(t, kvi_backend_unmap(t->device, write_base, 2 * g));
    KVT_REFUSED(t, KVMEM_E_INVALID, "not mapped", kvi_backend_blocks(t->device, &list, 0));
    list.to_base = read_base;
    KVT_REFUSED(t, KVMEM_E_INVALID, "read-only", kvi_backend_blocks(t->device, &list, 0));
    KVT_CHECK(t, kvt_filled(t, t->device, read_base, g, 4));
    KVT_OK(t, kvi_backend_unmap(t->device, read_base, 2 * g));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
    KVT_OK(t, kvi_backend_unreserve(t->device, write_base, 2 * g));
    KVT_OK(t, kvi_backend_unreserve(t->device, read_base, 2 * g));
}

void kvt_backend_blocks_are_cleared(struct kvt_backend *t)
{
    struct area area = area_open(t);
    const int32_t to[] = {5, 0, 7};
    uint64_t state = 2;
    struct kvi_backend_blocks list = {.to_base = area.base,
                                      .from_base = area.base,
                                      .stride_bytes = t->granule / 2,
                                      .bytes = t->granule / 2 - 16,
                                      .count = 3,
                                      .to = to};

    list_check(t, &area, &list, &state);
    area_close(t, &area);
}

void kvt_backend_blocks_of_any_size_match_a_naive_twin(struct kvt_backend *t)
{
    enum {
        BLOCKS = 24
    };
    struct area area = area_open_large(t);
    uint64_t state = 20261125;

    for (int round = 0; round < 40; round++) {
        int32_t indices[BLOCKS];
        uint64_t bytes = 16 * (1 + kvt_next_random(&state) % (round < 20 ? 80 : 400));
        uint64_t stride = bytes + 16 * (kvt_next_random(&state) % 5);
        uint64_t slack = (area.bytes - BLOCKS * stride) / 16;
        struct kvi_backend_blocks list = {.stride_bytes = stride, .bytes = bytes};

        shuffle(indices, BLOCKS, &state);
        list.to_base = list.from_base = area.base + 16 * (kvt_next_random(&state) % slack);
        list.count = 1 + (uint32_t)(kvt_next_random(&state) % (BLOCKS / 2));
        list.to = indices;
        list.from = kvt_next_random(&state) % 4 == 0 ? NULL : indices + BLOCKS / 2;
        list_check(t, &area, &list, &state);
    }
    area_close(t, &area);
}

void kvt_backend_blocks_beyond_one_launch(struct kvt_backend *t)
{
    enum {
        BLOCKS = 2 * (2 * KVI_BACKEND_BLOCKS_MAX + 7)
    };
    struct area area = area_open_large(t);
    const uint32_t counts[] = {KVI_BACKEND_BLOCKS_MAX, KVI_BACKEND_BLOCKS_MAX + 1, BLOCKS / 2};
    int32_t *indices = memory_new(BLOCKS * sizeof(*indices));
    uint64_t state = 4;

    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct kvi_backend_blocks list = {.to_base = area.base,
                                          .from_base = area.base,
                                          .stride_bytes = 64,
                                          .bytes = 48,
                                          .count = counts[i]};

        shuffle(indices, BLOCKS, &state);
        list.to = indices;
        list.from = indices + BLOCKS / 2;
        list_check(t, &area, &list, &state);
        list.from = NULL;
        list_check(t, &area, &list, &state);
    }
    free(indices);
    area_close(t, &area);
}

void kvt_backend_blocks_refuse_bad_lists(struct kvt_backend *t)
{
    struct area area = area_open(t);
    const int32_t good[] = {0, 1};
    const int32_t bad[] = {2, -1};
    const struct kvi_backend_blocks fine = {.to_base = area.base,
                                            .from_base = area.base,
                                            .stride_bytes = 64,
                                            .bytes = 64,
                                            .count = 2,
                                            .to = good};
    struct kvi_backend_blocks list = fine;

    KVT_REFUSED(t, KVMEM_E_INVALID, "list", kvi_backend_blocks(t->device, NULL, 0));
#define BAD(member, value, word)                                                    \
    list.member = value;                                                            \
    KVT_REFUSED(t, KVMEM_E_INVALID, word, kvi_backend_blocks(t->device, &list, 0)); \
    list = fine
    BAD(to, NULL, "to is NULL");
    BAD(to, bad, "to[1] is -1");
    BAD(from, bad, "from[1] is -1");
    BAD(bytes, 0, "multiples of 16");
    BAD(bytes, 24, "multiples of 16");
    BAD(bytes, 80, "stride_bytes");
    BAD(stride_bytes, 72, "multiples of 16");
    BAD(stride_bytes, UINT64_C(1) << 33, "2^32");
    BAD(to_base, area.base + 8, "to_base is");
    BAD(to_base, UINT64_C(1) << 63, "2^63");
    list.from = good;
    BAD(from_base, area.base + 8, "from_base is");
#undef BAD
    area_close(t, &area);
}

void kvt_backend_blocks_refuse_what_is_not_theirs(struct kvt_backend *t)
{
    struct area area = area_open(t);
    uint64_t half = t->granule / 2;
    const int32_t inside[] = {7, 6};
    const int32_t beyond[] = {5, 8}; /* the granule after the mappings */
    const int32_t first[] = {4, 0};
    struct kvi_backend_blocks list = {.to_base = area.base,
                                      .from_base = area.base,
                                      .stride_bytes = half,
                                      .bytes = half,
                                      .count = 2,
                                      .to = beyond};
    struct kvi_backend_blocks cut = {.to_base = area.base + half,
                                     .from_base = area.base + half,
                                     .stride_bytes = t->granule,
                                     .bytes = t->granule,
                                     .count = 1};
    const int32_t last = GRANULES - 1; /* half of it is mapped */

    kvt_fill(t, t->device, area.base, area.bytes, 3);
    KVT_REFUSED(t, KVMEM_E_INVALID, "to[1] is block 8", kvi_backend_blocks(t->device, &list, 0));
    list.to = inside;
    list.from = beyond;
    KVT_REFUSED(t, KVMEM_E_INVALID, "from[1] is block 8", kvi_backend_blocks(t->device, &list, 0));
    cut.to = &last;
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_blocks(t->device, &cut, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_blocks(t->client, &list, 0));
    KVT_OK(t, kvi_backend_set_access(t->device, area.base, area.bytes / 2, KVI_ACCESS_RO));
    list.to = first;
    list.from = NULL;
    KVT_REFUSED(t, KVMEM_E_INVALID, "to[1] is block 0", kvi_backend_blocks(t->device, &list, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "read-only", kvi_backend_blocks(t->device, &list, 0));
    KVT_CHECK(t, kvt_filled(t, t->device, area.base, area.bytes, 3));
    area_close(t, &area);
}

/* ---- cells ---- */

static struct kvi_backend_cell *cells_new(struct kvt_backend *t, uint64_t *out_bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    void *memory;

    *out_bytes = (CELL_BYTES + page - 1) / page * page;
    memory = mmap(NULL, *out_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KVT_CHECK(t, memory != MAP_FAILED);
    KVT_OK(t, kvi_backend_host_pin(t->device, memory, *out_bytes));
    return memory;
}

static void cells_drop(struct kvt_backend *t, struct kvi_backend_cell *cells, uint64_t bytes)
{
    KVT_OK(t, kvi_backend_host_unpin(t->device, cells, bytes));
    munmap(cells, bytes);
}

void kvt_backend_cells_are_stored(struct kvt_backend *t)
{
    uint64_t pinned_bytes = 0;
    struct kvi_backend_cell *cells = cells_new(t, &pinned_bytes);
    int32_t table[2 * CELLS];
    int32_t found[2 * CELLS];
    uint64_t address = 0;
    uint64_t state = 5;

    KVT_OK(t, kvi_backend_device_alloc(t->device, sizeof(table), &address));
    memset(table, 7, sizeof(table));
    KVT_OK(t, kvi_backend_copy_in(t->device, address, table, sizeof(table), 0));
    kvt_settle(t, t->device);
    for (uint32_t count = 0; count <= CELLS; count = 3 * count + 1) {
        for (uint32_t i = 0; i < count; i++) {
            uint32_t at = 2 * i + (uint32_t)(kvt_next_random(&state) % 2);

            cells[i] = (struct kvi_backend_cell){at, (int32_t)kvt_next_random(&state)};
            table[at] = cells[i].value;
        }
        KVT_OK(t, kvi_backend_cells(t->device, address, cells, count, 0));
        KVT_OK(t, kvi_backend_copy_out(t->device, found, address, sizeof(found), 0));
        kvt_settle(t, t->device);
        KVT_CHECK(t, memcmp(table, found, sizeof(table)) == 0);
    }
    KVT_OK(t, kvi_backend_device_free(t->device, address, sizeof(table)));
    cells_drop(t, cells, pinned_bytes);
}

void kvt_backend_cells_refuse_bad_places(struct kvt_backend *t)
{
    uint64_t pinned_bytes = 0;
    struct kvi_backend_cell *cells = cells_new(t, &pinned_bytes);
    struct kvi_backend_cell stranger = {0, 1};
    struct area area = area_open(t);
    uint64_t address = 0;
    uint64_t bytes = 4096;

    KVT_OK(t, kvi_backend_device_alloc(t->device, bytes, &address));
    cells[0] = (struct kvi_backend_cell){0, 1};
    cells[1] = (struct kvi_backend_cell){(uint32_t)bytes / 4, 1};
    KVT_REFUSED(t, KVMEM_E_INVALID, "cells", kvi_backend_cells(t->device, address, NULL, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "multiple of 4",
                kvi_backend_cells(t->device, address + 2, cells, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "2^63",
                kvi_backend_cells(t->device, UINT64_C(1) << 63, cells, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned",
                kvi_backend_cells(t->device, address, &stranger, 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "pinned",
                kvi_backend_cells(t->device, address, cells,
                                  (uint32_t)(pinned_bytes / sizeof(*cells)) + 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped", kvi_backend_cells(t->device, address, cells, 2, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_cells(t->device, area.base + area.bytes, cells, 1, 0));
    KVT_OK(t, kvi_backend_cells(t->device, area.base, cells, 2, 0)); /* a mapping will do */
    kvt_settle(t, t->device);
    KVT_OK(t, kvi_backend_set_access(t->device, area.base, area.bytes, KVI_ACCESS_RO));
    KVT_REFUSED(t, KVMEM_E_INVALID, "read-only",
                kvi_backend_cells(t->device, area.base, cells, 1, 0));
    KVT_OK(t, kvi_backend_device_free(t->device, address, bytes));
    area_close(t, &area);
    cells_drop(t, cells, pinned_bytes);
}

/* ---- memory outside the pool ---- */

void kvt_backend_device_memory_is_counted(struct kvt_backend *t)
{
    struct kvi_backend_memory before = kvt_memory(t, t->client);
    struct kvi_backend_memory now;
    uint64_t bytes[3] = {1, 4097, 2 * t->granule};
    uint64_t address[3] = {0};

    for (uint64_t i = 0; i < 3; i++) {
        KVT_OK(t, kvi_backend_device_alloc(t->client, bytes[i], &address[i]));
        KVT_CHECK(t, address[i] != 0 && address[i] % 256 == 0);
        kvt_fill(t, t->client, address[i], bytes[i], (uint32_t)i);
    }
    for (uint64_t i = 0; i < 3; i++)
        KVT_CHECK(t, kvt_filled(t, t->client, address[i], bytes[i], (uint32_t)i));
    now = kvt_memory(t, t->client);
    KVT_CHECK(t, now.allocation_count == before.allocation_count + 3);
    KVT_CHECK(t, now.allocation_bytes == before.allocation_bytes + bytes[0] + bytes[1] + bytes[2]);
    KVT_CHECK(t, now.mapping_count == before.mapping_count);
    KVT_OK(t, kvi_backend_copy(t->client, address[2], address[1], bytes[1], 0));
    KVT_CHECK(t, kvt_filled(t, t->client, address[2], bytes[1], 1));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy(t->client, address[2], address[1], bytes[1] + 1, 0));
    KVT_REFUSED(t, KVMEM_E_INVALID, "mapped",
                kvi_backend_copy(t->device, address[2], address[1], bytes[1], 0));
    for (uint64_t i = 0; i < 3; i++)
        KVT_OK(t, kvi_backend_device_free(t->client, address[i], bytes[i]));
}

void kvt_backend_device_memory_is_freed_as_it_was_made(struct kvt_backend *t)
{
    uint64_t address = 77;

    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_device_alloc(t->device, 0, &address));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                kvi_backend_device_alloc(t->device, UINT64_MAX, &address));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out_address", kvi_backend_device_alloc(t->device, 4096, NULL));
    KVT_CHECK(t, kvi_backend_device_alloc(t->device, INT64_MAX, &address) < 0 && address == 77);
    KVT_OK(t, kvi_backend_device_alloc(t->device, 4096, &address));
    KVT_REFUSED(t, KVMEM_E_INVALID, "allocated", kvi_backend_device_free(t->device, address, 4095));
    KVT_REFUSED(t, KVMEM_E_INVALID, "allocated",
                kvi_backend_device_free(t->device, address + 256, 4096));
    KVT_REFUSED(t, KVMEM_E_INVALID, "allocated", kvi_backend_device_free(t->client, address, 4096));
    KVT_OK(t, kvi_backend_device_free(t->device, address, 4096));
    KVT_REFUSED(t, KVMEM_E_INVALID, "allocated", kvi_backend_device_free(t->device, address, 4096));
}

void kvt_backend_device_memory_left_goes_with_the_backend(struct kvt_backend *t)
{
    struct kvi_backend *third = NULL;
    uint64_t address = 0;

    KVT_OK(t, t->factory->create(t->factory->context, 0, &third));
    for (int i = 0; i < 20; i++)
        KVT_OK(t, kvi_backend_device_alloc(third, 4096, &address));
    t->factory->destroy(t->factory->context, third);
}
