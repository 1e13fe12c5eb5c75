/* SPDX-License-Identifier: Apache-2.0
 *
 * The n-th allocation and the n-th backend call of each kind fail, for every n, in each public
 * operation of the client that can need one: the code is the one that was ordered, nothing that a
 * caller can see has changed, kvmem_client_check() passes, and the same operation then succeeds.
 * At the end memory, mappings and descriptors are as before the client.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend_fault.h"
#include "backend/backend_host.h"
#include "support/random.h"
#include "support/scripted.h"

#define DEVICE_BYTES (64u * 4096u)
#define NAMES        12u
#define PATIENCE_NS  INT64_C(5000000000)

struct world {
    struct kvt_memory memory;
    struct kvi_backend *host;
    struct kvi_backend *backend;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_seq seq;  /* 10 tokens */
    struct kvmem_seq fork; /* its child: the tail is shared */
    struct kvmem_name names[NAMES];
    uint32_t fds;
    bool has_helper;
};

static struct kvmem_client *connect_to(struct world *w, int *code)
{
    struct kvi_client_options options = {
        .backend = w->backend, .outbox_records = 1024, .has_helper = w->has_helper};
    struct kvmem_client *client = NULL;
    struct kvi_link *link;

    cr_assert(kvi_link_embed(DEVICE_BYTES, 4096, &link) == 0);
    *code = kvi_client_create(link, &w->memory.alloc, &options, &client);
    return client;
}

static void world_init_with(struct world *w, bool has_helper)
{
    struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                               .granule_bytes = 4096};

    memset(w, 0, sizeof(*w));
    w->has_helper = has_helper;
    w->fds = kvt_open_fds();
    kvt_memory_init(&w->memory);
    cr_assert(kvi_backend_host_create(&options, &w->host) == 0);
    cr_assert(kvi_backend_fault_create(w->host, &w->backend) == 0);
    for (uint32_t i = 0; i < NAMES; i++)
        w->names[i].bytes[0] = (uint8_t)(i + 1);
}

static void world_init(struct world *w)
{
    world_init_with(w, false);
}

/* Without a helper an embedded client has all it asked for at once. */
static int64_t patience_ns(const struct world *w)
{
    return w->has_helper ? PATIENCE_NS : 0;
}

static void world_fini(struct world *w)
{
    struct kvi_backend_memory memory;

    kvi_backend_fault_disarm(w->backend);
    if (w->space)
        kvmem_space_close(w->space);
    if (w->client)
        kvmem_client_close(w->client);
    cr_assert(w->memory.live == 0, "%" PRIu64 " allocations are left", w->memory.live);
    cr_assert(kvi_backend_memory(w->backend, &memory) == 0);
    cr_assert(memory.handle_count == 0 && memory.mapping_count == 0 &&
              memory.reservation_count == 0);
    kvi_backend_destroy(w->backend);
    kvi_backend_destroy(w->host);
    cr_assert(kvt_open_fds() == w->fds, "%u descriptors, before %u", kvt_open_fds(), w->fds);
}

/* A client with a space, 8 published blocks of a sequence that ended, a sequence and its fork. */
static void world_fill(struct world *w)
{
    struct kvmem_space_options options = kvt_small_space("faults");
    struct kvmem_seq first;
    int code;

    w->client = connect_to(w, &code);
    cr_assert(code == 0);
    cr_assert(kvmem_space_open(w->client, &options, &w->space) == 0);
    cr_assert(kvmem_space_reserve(w->space, 24, patience_ns(w)) == 0);
    cr_assert(kvmem_seq_create(w->space, &first) == 0);
    cr_assert(kvmem_seq_append(w->space, first, 32, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_commit(w->space, first, 32) == 0);
    cr_assert(kvmem_seq_publish(w->space, first, 0, 8, w->names, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(w->space, first, kvmem_fence_none()) == 0);
    cr_assert(kvmem_client_dispatch(w->client, 0) > 0);
    cr_assert(kvmem_seq_create(w->space, &w->seq) == 0);
    cr_assert(kvmem_seq_append(w->space, w->seq, 10, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_fork(w->space, w->seq, &w->fork) == 0);
}

/* The same space, closed and opened again: entries are there, nothing is mapped. */
static void world_reopen(struct world *w)
{
    struct kvmem_space_options options = kvt_small_space("faults");

    kvmem_space_close(w->space);
    cr_assert(kvmem_space_open(w->client, &options, &w->space) == 0);
}

/* What a caller can see. */
struct view {
    struct kvmem_capacity capacity;
    struct kvmem_space_stats stats;
    struct kvmem_seq_info seqs[2];
    int32_t tables[2][8];
};

static struct view look(const struct world *w)
{
    struct view v;

    memset(&v, 0, sizeof(v));
    v.capacity.size = sizeof(v.capacity);
    v.stats.size = sizeof(v.stats);
    cr_assert(kvmem_client_check(w->client) == 0, "%s", kvmem_error_detail()->text);
    if (!w->space)
        return v;
    cr_assert(kvmem_space_capacity(w->space, &v.capacity) == 0);
    cr_assert(kvmem_space_stats(w->space, &v.stats) == 0);
    v.stats.out_of_blocks = 0;
    for (int i = 0; i < 2; i++) {
        v.seqs[i].size = sizeof(v.seqs[i]);
        if (kvmem_seq_info(w->space, i ? w->fork : w->seq, &v.seqs[i]) == 0)
            cr_assert(kvmem_table_padded(w->space, 0, 1, i ? &w->fork : &w->seq, 8, v.tables[i],
                                         NULL) == 0);
    }
    return v;
}

/* ---- operations: 0 or a count when they worked ---- */

static int op_open(struct world *w)
{
    struct kvmem_space_options options = kvt_small_space("another");
    struct kvmem_space *other = NULL;
    int code = kvmem_space_open(w->client, &options, &other);

    kvmem_space_close(other);
    return code;
}

static int op_append(struct world *w)
{
    struct kvmem_seq both[2] = {w->seq, w->fork};
    uint32_t counts[2] = {3, 1};

    return kvmem_seqs_append(w->space, 2, both, counts, kvmem_fence_none());
}

static int op_append_much(struct world *w)
{
    return kvmem_seq_append(w->space, w->seq, 20, kvmem_fence_none());
}

static int op_fork(struct world *w)
{
    struct kvmem_seq children[3];
    int code = kvmem_seqs_fork(w->space, w->seq, 3, children);

    return code ? code : kvmem_seqs_free(w->space, 3, children, kvmem_fence_none());
}

static int op_lookup(struct world *w)
{
    int32_t blocks[8];
    int hits = kvmem_prefix_lookup(w->space, 8, w->names, blocks, NULL);

    if (hits < 0)
        return hits;
    cr_assert(hits == 8);
    cr_assert(kvmem_prefix_release(w->space, 8, blocks, kvmem_fence_none()) == 0);
    return hits;
}

static int op_attach(struct world *w)
{
    struct kvmem_seq seq;
    int32_t blocks[8];
    int hits = kvmem_prefix_lookup(w->space, 8, w->names, blocks, NULL);
    int code;

    cr_assert(hits == 8);
    cr_assert(kvmem_seq_create(w->space, &seq) == 0);
    code = kvmem_seq_attach(w->space, seq, 8, blocks);
    if (code)
        cr_assert(kvmem_prefix_release(w->space, 8, blocks, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(w->space, seq, kvmem_fence_none()) == 0);
    return code;
}

static int op_reserve(struct world *w)
{
    return kvmem_seq_reserve(w->space, w->seq, 20);
}

static int op_truncate(struct world *w)
{
    return kvmem_seq_truncate(w->space, w->seq, 9, kvmem_fence_none());
}

/* With a promise that is open: what is given up cools, and is looked at again. */
static struct kvmem_fence open_promise(struct world *w)
{
    struct kvmem_fence fence;

    cr_assert(kvmem_fence_promise(w->client, &fence) == 0, "%s", kvmem_error_detail()->text);
    return fence;
}

static void keep_promise(struct world *w, struct kvmem_fence fence)
{
    cr_assert(kvmem_fence_fulfil(w->client, &fence) == 0);
    cr_assert(kvmem_client_dispatch(w->client, 0) >= 0);
}

static int op_truncate_later(struct world *w)
{
    struct kvmem_fence fence = open_promise(w);
    int code = kvmem_seq_truncate(w->space, w->seq, 1, fence);

    keep_promise(w, fence);
    return code;
}

static int op_free_later(struct world *w)
{
    struct kvmem_fence fence = open_promise(w);
    struct kvmem_seq child;
    int code = kvmem_seq_fork(w->space, w->seq, &child);

    if (!code)
        cr_assert(kvmem_seq_free(w->space, child, fence) == 0, "needs no memory");
    keep_promise(w, fence);
    return code;
}

static int op_publish_later(struct world *w)
{
    struct kvmem_fence fence = open_promise(w);
    struct kvmem_name names[2] = {{{90}}, {{91}}};
    int code;

    cr_assert(kvmem_seq_commit(w->space, w->seq, 8) == 0 ||
              kvmem_error_detail()->code == KVMEM_E_INVALID);
    code = kvmem_seq_publish(w->space, w->seq, 0, 2, names, fence);
    keep_promise(w, fence);
    return code;
}

static int op_release_later(struct world *w)
{
    struct kvmem_fence fence = open_promise(w);
    int32_t blocks[8];
    int hits = kvmem_prefix_lookup(w->space, 8, w->names, blocks, NULL);
    int code;

    cr_assert(hits < 0 || hits == 8);
    code = hits < 0 ? hits : kvmem_prefix_release(w->space, 8, blocks, fence);
    if (hits > 0 && code)
        cr_assert(kvmem_prefix_release(w->space, 8, blocks, kvmem_fence_none()) == 0);
    keep_promise(w, fence);
    return code;
}

typedef int operation(struct world *w);

static void fail_allocations(operation *op, const char *name, bool is_reopened)
{
    for (uint64_t n = 1; n < 1000; n++) {
        struct world w;
        struct view before, after;
        int code;

        world_init(&w);
        world_fill(&w);
        if (is_reopened)
            world_reopen(&w);
        before = look(&w);
        w.memory.fail_at = n;
        code = op(&w);
        w.memory.fail_at = 0;
        if (!w.memory.failed) {
            cr_assert(code >= 0, "%s: %s", name, kvmem_error_detail()->text);
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

static uint64_t fail_backend(operation *op, const char *name, enum kvi_backend_call call,
                             bool is_reopened)
{
    for (uint64_t n = 1; n < 1000; n++) {
        struct world w;
        struct view before, after;
        uint64_t fired;
        int code;

        world_init(&w);
        world_fill(&w);
        if (is_reopened)
            world_reopen(&w);
        before = look(&w);
        fired = kvi_backend_fault_fired(w.backend);
        cr_assert(kvi_backend_fault_arm(w.backend, call, n, KVMEM_E_SYSTEM, false) == 0);
        code = op(&w);
        kvi_backend_fault_disarm(w.backend);
        if (kvi_backend_fault_fired(w.backend) == fired) {
            cr_assert(code >= 0, "%s: %s", name, kvmem_error_detail()->text);
            world_fini(&w);
            return n - 1;
        }
        cr_assert(code == KVMEM_E_SYSTEM, "%s, %s %" PRIu64 ": %d", name,
                  kvi_backend_call_name(call), n, code);
        if (is_reopened) /* what was mapped stays so; leases are given back */
            cr_assert(kvmem_client_dispatch(w.client, 0) >= 0);
        after = look(&w);
        before.stats.mapped_segments = after.stats.mapped_segments;
        if (is_reopened) /* the dispatch asked for its refill */
            before.capacity = after.capacity, before.stats = after.stats;
        cr_assert(!memcmp(&before, &after, sizeof(before)), "%s, %s %" PRIu64, name,
                  kvi_backend_call_name(call), n);
        cr_assert(op(&w) >= 0, "%s", kvmem_error_detail()->text);
        look(&w);
        world_fini(&w);
    }
    cr_assert_fail("%s calls the backend without end", name);
    return 0;
}

Test(client_fault, nth_allocation_of_each_operation, .timeout = 120)
{
    fail_allocations(op_open, "open", false);
    fail_allocations(op_append, "append", false);
    fail_allocations(op_append_much, "append_much", false);
    fail_allocations(op_fork, "fork", false);
    fail_allocations(op_lookup, "lookup", true);
    fail_allocations(op_attach, "attach", true);
    fail_allocations(op_reserve, "reserve", false);
    fail_allocations(op_truncate, "truncate", false);
}

/* Once the own timeline is there. What a table needs comes from slabs: none is taken. */
Test(client_fault, nth_allocation_with_a_promise, .timeout = 120)
{
    fail_allocations(op_truncate_later, "truncate_later", false);
    fail_allocations(op_free_later, "free_later", false);
    fail_allocations(op_publish_later, "publish_later", false);
    fail_allocations(op_release_later, "release_later", true);
}

Test(client_fault, nth_allocation_of_creation, .timeout = 60)
{
    for (uint64_t n = 1;; n++) {
        struct world w;
        int code;

        world_init(&w);
        w.memory.fail_at = n;
        w.client = connect_to(&w, &code);
        if (!w.memory.failed) {
            cr_assert(code == 0 && n > 5);
            world_fini(&w);
            return;
        }
        cr_assert(code == KVMEM_E_NO_MEMORY && !w.client);
        world_fini(&w);
    }
}

Test(client_fault, nth_backend_call_of_each_operation, .timeout = 120)
{
    cr_assert(fail_backend(op_open, "open", KVI_BACKEND_CALL_RESERVE, false) == 2);
    cr_assert(fail_backend(op_append, "append", KVI_BACKEND_CALL_BLOCKS, false) == 1);
    cr_assert(fail_backend(op_append_much, "append_much", KVI_BACKEND_CALL_ANY, false) == 1);
    cr_assert(fail_backend(op_lookup, "lookup", KVI_BACKEND_CALL_SEGMENT_IMPORT, true) >= 2);
    cr_assert(fail_backend(op_lookup, "lookup", KVI_BACKEND_CALL_MAP, true) >= 2);
    cr_assert(fail_backend(op_fork, "fork", KVI_BACKEND_CALL_ANY, false) == 0);
    cr_assert(fail_backend(op_truncate, "truncate", KVI_BACKEND_CALL_ANY, false) == 0);
}

/* A segment whose mapping or alias cannot be made goes back; the client lives and gets it at the
 * next request. */
static void grants_go_back(bool has_helper)
{
    static const enum kvi_backend_call calls[] = {KVI_BACKEND_CALL_SEGMENT_IMPORT,
                                                  KVI_BACKEND_CALL_MAP};

    for (uint32_t i = 0; i < 2; i++) {
        for (uint64_t n = 1; n <= (calls[i] == KVI_BACKEND_CALL_MAP ? 8 : 4); n++) {
            struct kvmem_capacity capacity = {.size = sizeof(capacity)};
            struct world w;

            world_init_with(&w, has_helper);
            world_fill(&w);
            cr_assert(kvi_backend_fault_arm(w.backend, calls[i], n, KVMEM_E_SYSTEM, false) == 0);
            (void)kvmem_space_reserve(w.space, 40, patience_ns(&w));
            cr_assert(kvi_backend_fault_fired(w.backend) == 1);
            look(&w);
            cr_assert(kvmem_client_dispatch(w.client, 0) >= 0);
            cr_assert(kvmem_space_reserve(w.space, 48, patience_ns(&w)) == 0, "%s",
                      kvmem_error_detail()->text);
            cr_assert(kvmem_space_capacity(w.space, &capacity) == 0);
            cr_assert(capacity.free_blocks >= 48);
            look(&w);
            world_fini(&w);
        }
    }
}

Test(client_fault, grants_that_cannot_be_mapped_go_back, .timeout = 60)
{
    grants_go_back(false);
    grants_go_back(true);
}

/* A segment whose alias cannot be taken out stays ours; one whose alias cannot be made again is
 * handed in again. */
static void aliases_stay(bool has_helper)
{
    for (uint64_t n = 1; n < 8; n++) {
        struct world w;
        int trimmed, all;

        world_init_with(&w, has_helper);
        world_fill(&w);
        cr_assert(kvmem_seq_free(w.space, w.seq, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_free(w.space, w.fork, kvmem_fence_none()) == 0);
        cr_assert(kvi_backend_fault_arm(w.backend, KVI_BACKEND_CALL_UNMAP, n, KVMEM_E_SYSTEM,
                                        false) == 0);
        trimmed = kvmem_space_trim(w.space);
        look(&w);
        all = kvmem_space_trim(w.space);
        kvi_backend_fault_disarm(w.backend);
        cr_assert(trimmed >= 0 && all >= 0);
        cr_assert(look(&w).stats.owned_segments == 0);
        cr_assert(kvi_backend_fault_arm(w.backend, KVI_BACKEND_CALL_MAP, n, KVMEM_E_SYSTEM, true) ==
                  0);
        (void)kvmem_space_reserve(w.space, 8, 0);
        look(&w);
        kvi_backend_fault_disarm(w.backend);
        cr_assert(kvmem_client_dispatch(w.client, 0) >= 0);
        cr_assert(kvmem_space_reserve(w.space, 8, patience_ns(&w)) == 0, "%s",
                  kvmem_error_detail()->text);
        look(&w);
        world_fini(&w);
    }
}

Test(client_fault, aliases_that_cannot_be_changed, .timeout = 120)
{
    aliases_stay(false);
    aliases_stay(true);
}

/* Any backend call of the helper fails now and then while an engine goes on: after each step the
 * client's equations hold, and once nothing fails any more it gets its memory. */
static void one_step(struct world *w, uint64_t *seed)
{
    struct kvmem_seq seq;
    int32_t blocks[8];
    int hits;

    switch (kvt_random(seed) % 6) {
    case 0:
    case 1:
        if (kvmem_seq_create(w->space, &seq) == 0) {
            uint32_t tokens = (uint32_t)(kvt_random(seed) % 160);

            if (kvmem_seq_append(w->space, seq, tokens, kvmem_fence_none()) == 0 && tokens >= 16) {
                cr_assert(kvmem_seq_commit(w->space, seq, tokens) == 0);
                (void)kvmem_seq_publish(w->space, seq, 0, 4, w->names, kvmem_fence_none());
            }
            cr_assert(kvmem_seq_free(w->space, seq, kvmem_fence_none()) == 0);
        }
        break;
    case 2: (void)kvmem_space_trim(w->space); break;
    case 3: (void)kvmem_space_reserve(w->space, kvt_random(seed) % 120, 0); break;
    case 4:
        hits = kvmem_prefix_lookup(w->space, 8, w->names, blocks, NULL);
        if (hits > 0)
            cr_assert(kvmem_prefix_release(w->space, (uint32_t)hits, blocks, kvmem_fence_none()) ==
                      0);
        break;
    default: cr_assert(kvmem_client_dispatch(w->client, 0) >= 0);
    }
}

static void random_failures(bool has_helper, uint64_t seed)
{
    static const enum kvi_backend_call calls[] = {KVI_BACKEND_CALL_SEGMENT_IMPORT,
                                                  KVI_BACKEND_CALL_MAP, KVI_BACKEND_CALL_UNMAP};
    struct world w;

    printf("client faults: helper %d, seed %#" PRIx64 "\n", has_helper, seed);
    world_init_with(&w, has_helper);
    world_fill(&w);
    for (uint32_t step = 0; step < 2000; step++) {
        if (kvt_random(&seed) % 4 == 0) { /* one at a time: what is undone must not fail */
            kvi_backend_fault_disarm(w.backend);
            cr_assert(kvi_backend_fault_arm(w.backend, calls[kvt_random(&seed) % 3],
                                            1 + kvt_random(&seed) % 3, KVMEM_E_DEVICE_FULL,
                                            false) == 0);
        }
        one_step(&w, &seed);
        cr_assert(kvmem_client_check(w.client) == 0, "step %u: %s", step,
                  kvmem_error_detail()->text);
    }
    cr_assert(kvi_backend_fault_fired(w.backend) >= 100);
    kvi_backend_fault_disarm(w.backend);
    cr_assert(kvmem_client_dispatch(w.client, 0) >= 0);
    cr_assert(kvmem_space_trim(w.space) >= 0);
    cr_assert(kvmem_space_reserve(w.space, 40, PATIENCE_NS) == 0, "%s", kvmem_error_detail()->text);
    look(&w);
    world_fini(&w);
}

Test(client_fault, calls_that_fail_at_random, .timeout = 120)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        random_failures(false, seed);
        random_failures(true, seed);
    }
}
