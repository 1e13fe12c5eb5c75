/* SPDX-License-Identifier: Apache-2.0
 *
 * The n-th backend call and the n-th allocation fail, for every n, in each operation on a sequence
 * with a region: the code is the one that was ordered; tables, marks, capacity, the region's
 * numbers and every byte of its view are as before, kvmem_client_check() passes, and the same
 * operation then succeeds. When the undoing fails too, the region is shorter for a while.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "backend/backend_fault.h"
#include "backend/backend_host.h"
#include "client/region.h"
#include "support/regions.h"
#include "support/scripted.h"

#define DEVICE_BYTES (128u * 4096u)
#define BLOCK_TOKENS KVT_REGION_BLOCK_TOKENS
#define TOKEN_BYTES  KVT_REGION_TOKEN_BYTES
#define NAMES        6u

struct world {
    struct kvt_memory memory;
    struct kvi_backend *host;
    struct kvi_backend *backend;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_seq seq;  /* 10 tokens, with a region */
    struct kvmem_seq fork; /* its child: the tail is shared */
    struct kvmem_seq empty;
    struct kvmem_region *region;
    struct kvmem_region *empty_region;
    struct kvmem_name names[NAMES];
    uint32_t fds;
};

static void write_tokens(const struct world *w, struct kvmem_seq seq, uint32_t first, uint32_t end)
{
    for (uint32_t t = first; t < end; t++)
        memset(kvt_region_block_write(w->space, seq, t), (int)(t + 1), TOKEN_BYTES);
}

static int open_region(struct world *w, struct kvmem_seq seq, struct kvmem_region **region)
{
    return kvt_region_open(w->space, seq, 100, region);
}

static void world_init(struct world *w)
{
    struct kvi_backend_host_options host = {.options_bytes = sizeof(host), .granule_bytes = 4096};
    struct kvi_client_options options = {.outbox_records = 1024};
    struct kvmem_space_options space = kvt_region_space("faults");
    struct kvi_link *link;

    memset(w, 0, sizeof(*w));
    w->fds = kvt_open_fds();
    kvt_memory_init(&w->memory);
    cr_assert(kvi_backend_host_create(&host, &w->host) == 0);
    cr_assert(kvi_backend_fault_create(w->host, &w->backend) == 0);
    options.backend = w->backend;
    cr_assert(kvi_link_embed(DEVICE_BYTES, 4096, &link) == 0);
    cr_assert(kvi_client_create(link, &w->memory.alloc, &options, &w->client) == 0);
    cr_assert(kvmem_space_open(w->client, &space, &w->space) == 0, "%s",
              kvmem_error_detail()->text);
    for (uint32_t i = 0; i < NAMES; i++)
        w->names[i].bytes[0] = (uint8_t)(i + 1);
}

/* A prefix that nobody holds, a sequence of 10 tokens with a region, its fork, and an empty one
 * with a region. */
static void world_fill(struct world *w)
{
    struct kvmem_seq first;

    cr_assert(kvmem_space_reserve(w->space, 60, 0) == 0);
    cr_assert(kvmem_seq_create(w->space, &first) == 0);
    cr_assert(kvmem_seq_append(w->space, first, NAMES * BLOCK_TOKENS, kvmem_fence_none()) == 0);
    write_tokens(w, first, 0, NAMES * BLOCK_TOKENS);
    cr_assert(kvmem_seq_commit(w->space, first, NAMES * BLOCK_TOKENS) == 0);
    cr_assert(kvmem_seq_publish(w->space, first, 0, NAMES, w->names, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(w->space, first, kvmem_fence_none()) == 0);
    cr_assert(kvmem_client_dispatch(w->client, 0) > 0);
    cr_assert(kvmem_seq_create(w->space, &w->seq) == 0);
    cr_assert(kvmem_seq_append(w->space, w->seq, 10, kvmem_fence_none()) == 0);
    write_tokens(w, w->seq, 0, 10);
    cr_assert(open_region(w, w->seq, &w->region) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_seq_fork(w->space, w->seq, &w->fork) == 0);
    cr_assert(kvmem_seq_create(w->space, &w->empty) == 0);
    cr_assert(open_region(w, w->empty, &w->empty_region) == 0);
}

static void world_fini(struct world *w)
{
    struct kvi_backend_memory memory;

    kvi_backend_fault_disarm(w->backend);
    kvmem_client_close(w->client);
    cr_assert(w->memory.live == 0, "%" PRIu64 " allocations are left", w->memory.live);
    cr_assert(kvi_backend_memory(w->backend, &memory) == 0);
    cr_assert(memory.handle_count == 0 && memory.mapping_count == 0 &&
              memory.reservation_count == 0);
    kvi_backend_destroy(w->backend);
    kvi_backend_destroy(w->host);
    cr_assert(kvt_open_fds() == w->fds, "%u descriptors, before %u", kvt_open_fds(), w->fds);
}

/* ---- what a caller can see ---- */

struct view {
    struct kvmem_capacity capacity;
    struct kvmem_seq_info seqs[3];
    int32_t tables[3][16];
    struct kvmem_region_info regions[2];
};

/* What only this sequence has can be written through the view. */
static void look_at_rights(const struct world *w, const struct kvmem_region *region)
{
    for (uint32_t i = 0; i < region->mapped; i++)
        if (kvi_region_access_of(w->space, region->views[i].block) == KVI_ACCESS_RW)
            cr_assert(region->views[i].access == KVI_ACCESS_RW, "view %u", i);
}

static void look_at_bytes(const struct world *w, const struct kvmem_region_info *info,
                          struct kvmem_seq seq)
{
    struct kvmem_seq_info marks = {.size = sizeof(marks)};

    cr_assert(kvmem_seq_info(w->space, seq, &marks) == 0);
    cr_assert(info->mapped_tokens >= marks.appended_tokens);
    for (uint32_t t = 0; t < marks.appended_tokens; t++)
        for (uint32_t i = 0; i < TOKEN_BYTES; i += 64)
            cr_assert(((const char *)info->base)[t * TOKEN_BYTES + i] == (char)(t + 1),
                      "byte %u of token %u", i, t);
}

static struct view look(const struct world *w)
{
    struct kvmem_seq seqs[3] = {w->seq, w->fork, w->empty};
    struct view v;

    memset(&v, 0, sizeof(v));
    cr_assert(kvmem_client_check(w->client) == 0, "%s", kvmem_error_detail()->text);
    v.capacity.size = sizeof(v.capacity);
    cr_assert(kvmem_space_capacity(w->space, &v.capacity) == 0);
    for (int i = 0; i < 3; i++) {
        v.seqs[i].size = sizeof(v.seqs[i]);
        cr_assert(kvmem_seq_info(w->space, seqs[i], &v.seqs[i]) == 0);
        cr_assert(kvmem_table_padded(w->space, 0, 1, &seqs[i], 16, v.tables[i], NULL) == 0);
    }
    for (int i = 0; i < 2; i++) {
        v.regions[i] = kvt_region_info(i ? w->empty_region : w->region);
        look_at_bytes(w, &v.regions[i], i ? w->empty : w->seq);
        look_at_rights(w, i ? w->empty_region : w->region);
    }
    return v;
}

/* ---- operations; appended tokens are written ---- */

static int append(struct world *w, uint32_t n, uint32_t tokens)
{
    struct kvmem_seq both[2] = {w->seq, w->fork};
    uint32_t counts[2] = {tokens, 1};
    int code = kvmem_seqs_append(w->space, n, both, counts, kvmem_fence_none());

    if (!code)
        write_tokens(w, w->seq, 10, 10 + tokens);
    return code;
}

static int op_copy(struct world *w)
{
    return append(w, 2, 1);
}

static int op_copy_and_map(struct world *w)
{
    return append(w, 1, 30);
}

/* The child copies first; the parent stays in place and its view becomes writable. */
static int op_stay(struct world *w)
{
    struct kvmem_seq both[2] = {w->fork, w->seq};
    int code = kvmem_seqs_append(w->space, 2, both, NULL, kvmem_fence_none());

    if (!code)
        write_tokens(w, w->seq, 10, 11);
    return code;
}

static int op_truncate(struct world *w)
{
    return kvmem_seq_truncate(w->space, w->seq, 3, kvmem_fence_none());
}

static int op_open(struct world *w)
{
    struct kvmem_region *region = NULL;
    int code = open_region(w, w->fork, &region);

    cr_assert((code == 0) == (region != NULL));
    if (!code)
        cr_assert(kvmem_region_close(region, kvmem_fence_none()) == 0);
    return code;
}

static int op_attach(struct world *w)
{
    int32_t blocks[NAMES];
    int hits = kvmem_prefix_lookup(w->space, NAMES, w->names, blocks, NULL);
    int code;

    cr_assert(hits == NAMES);
    code = kvmem_seq_attach(w->space, w->empty, NAMES, blocks);
    if (code)
        cr_assert(kvmem_prefix_release(w->space, NAMES, blocks, kvmem_fence_none()) == 0);
    return code;
}

typedef int operation(struct world *w);

/* The n-th call of that kind fails, n = 1, 2, ..: how many there are. */
static uint64_t fail_backend(operation *op, const char *name, enum kvi_backend_call call)
{
    for (uint64_t n = 1; n < 100; n++) {
        struct view before, after;
        struct world w;
        int code;

        world_init(&w);
        world_fill(&w);
        before = look(&w);
        cr_assert(kvi_backend_fault_arm(w.backend, call, n, KVMEM_E_SYSTEM, false) == 0);
        code = op(&w);
        if (!kvi_backend_fault_fired(w.backend)) {
            cr_assert(code >= 0, "%s: %s", name, kvmem_error_detail()->text);
            look(&w);
            world_fini(&w);
            return n - 1;
        }
        cr_assert(code == KVMEM_E_SYSTEM, "%s, %s %" PRIu64 ": %d", name,
                  kvi_backend_call_name(call), n, code);
        after = look(&w);
        cr_assert(!memcmp(&before, &after, sizeof(before)), "%s, %s %" PRIu64, name,
                  kvi_backend_call_name(call), n);
        cr_assert(op(&w) >= 0, "%s", kvmem_error_detail()->text);
        look(&w);
        world_fini(&w);
    }
    cr_assert_fail("%s calls the backend without end", name);
    return 0;
}

static void fail_allocations(operation *op, const char *name)
{
    for (uint64_t n = 1; n < 100; n++) {
        struct view before, after;
        struct world w;
        int code;

        world_init(&w);
        world_fill(&w);
        before = look(&w);
        w.memory.fail_at = n;
        code = op(&w);
        w.memory.fail_at = 0;
        if (!w.memory.failed) {
            cr_assert(code >= 0);
            world_fini(&w);
            return;
        }
        cr_assert(code == KVMEM_E_NO_MEMORY, "%s, allocation %" PRIu64 ": %d", name, n, code);
        after = look(&w);
        cr_assert(!memcmp(&before, &after, sizeof(before)), "%s, allocation %" PRIu64, name, n);
        cr_assert(op(&w) >= 0);
        look(&w);
        world_fini(&w);
    }
    cr_assert_fail("%s needs no end of memory", name);
}

Test(region_fault, nth_backend_call_of_each_operation, .timeout = 120)
{
    /* the copy; two views of the block ahead and two of the tail out, two in */
    cr_assert(fail_backend(op_copy, "copy", KVI_BACKEND_CALL_ANY) == 7);
    cr_assert(fail_backend(op_copy_and_map, "copy and map", KVI_BACKEND_CALL_ANY) >= 13);
    cr_assert(fail_backend(op_stay, "stay", KVI_BACKEND_CALL_ANY) >= 1);
    cr_assert(fail_backend(op_truncate, "truncate", KVI_BACKEND_CALL_ANY) == 2);
    cr_assert(fail_backend(op_open, "open", KVI_BACKEND_CALL_MAP) == 3 + 2 * 2);
    cr_assert(fail_backend(op_open, "open", KVI_BACKEND_CALL_RESERVE) == 1);
    cr_assert(fail_backend(op_attach, "attach", KVI_BACKEND_CALL_UNMAP) == 2);
    cr_assert(fail_backend(op_attach, "attach", KVI_BACKEND_CALL_MAP) >= NAMES);
}

Test(region_fault, nth_allocation_of_each_operation, .timeout = 120)
{
    fail_allocations(op_copy_and_map, "copy and map");
    fail_allocations(op_open, "open");
    fail_allocations(op_attach, "attach");
}

/* Nothing can be mapped any more, in the middle of it: what was there is not to be had again. The
 * sequence is as it was; the region is mapped by whoever comes next. */
Test(region_fault, undoing_fails_too, .timeout = 120)
{
    operation *const operations[] = {op_copy, op_copy_and_map, op_attach};

    for (uint32_t i = 0; i < 3; i++)
        for (uint64_t n = 1; n < 12; n++) {
            struct world w;
            int code;

            world_init(&w);
            world_fill(&w);
            cr_assert(kvi_backend_fault_arm(w.backend, KVI_BACKEND_CALL_MAP, n, KVMEM_E_SYSTEM,
                                            true) == 0);
            code = operations[i](&w);
            cr_assert(code == (kvi_backend_fault_fired(w.backend) ? KVMEM_E_SYSTEM : 0));
            cr_assert(kvmem_client_check(w.client) == 0, "%s", kvmem_error_detail()->text);
            kvi_backend_fault_disarm(w.backend);
            cr_assert(kvmem_client_dispatch(w.client, 0) >= 0);
            look(&w);
            if (code)
                cr_assert(operations[i](&w) >= 0);
            look(&w);
            world_fini(&w);
        }
}

static uint64_t mappings(const struct world *w)
{
    struct kvi_backend_memory memory;

    cr_assert(kvi_backend_memory(w->backend, &memory) == 0);
    return memory.mapping_count;
}

/* A closed region whose views cannot be unmapped yet is closed by dispatch. */
Test(region_fault, closing_that_fails, .timeout = 120)
{
    bool fired = true;

    for (uint64_t n = 1; fired; n++) {
        struct world w;
        uint64_t before;

        world_init(&w);
        world_fill(&w);
        before = mappings(&w);
        cr_assert(
            kvi_backend_fault_arm(w.backend, KVI_BACKEND_CALL_ANY, n, KVMEM_E_SYSTEM, false) == 0);
        cr_assert(kvmem_region_close(w.region, kvmem_fence_none()) == 0);
        fired = kvi_backend_fault_fired(w.backend);
        kvi_backend_fault_disarm(w.backend);
        cr_assert(kvmem_client_check(w.client) == 0, "%s", kvmem_error_detail()->text);
        cr_assert(fired == (mappings(&w) > before - 10), "call %" PRIu64, n);
        cr_assert(kvmem_client_dispatch(w.client, 0) >= 0);
        cr_assert(mappings(&w) == before - 10 && (fired || n == 3), "call %" PRIu64, n);
        world_fini(&w);
    }
}

/* A writable view that cannot be taken away keeps its segment ours, until it can. */
Test(region_fault, views_that_cannot_be_lowered, .timeout = 120)
{
    for (uint64_t n = 1; n < 8; n++) {
        struct kvmem_capacity before = {.size = sizeof(before)}, after = before;
        struct world w;

        world_init(&w);
        world_fill(&w);
        cr_assert(kvmem_seq_free(w.space, w.fork, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_commit(w.space, w.seq, 10) == 0);
        w.names[0].bytes[1] = w.names[1].bytes[1] = 1;
        cr_assert(kvmem_seq_publish(w.space, w.seq, 0, 2, w.names, kvmem_fence_none()) == 0);
        cr_assert(kvmem_space_capacity(w.space, &before) == 0);
        cr_assert(
            kvi_backend_fault_arm(w.backend, KVI_BACKEND_CALL_UNMAP, n, KVMEM_E_SYSTEM, true) == 0);
        cr_assert(kvmem_client_dispatch(w.client, 0) >= 0);
        cr_assert(kvmem_client_check(w.client) == 0, "%s", kvmem_error_detail()->text);
        kvi_backend_fault_disarm(w.backend);
        cr_assert(kvmem_space_trim(w.space) >= 0);
        cr_assert(kvmem_client_check(w.client) == 0, "%s", kvmem_error_detail()->text);
        cr_assert(kvmem_space_capacity(w.space, &after) == 0);
        cr_assert(after.owned_blocks < before.owned_blocks);
        world_fini(&w);
    }
}
