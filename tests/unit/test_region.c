/* SPDX-License-Identifier: Apache-2.0
 *
 * Regions, one property at a time: what is refused, what a view shows and allows, what an append
 * costs, and a plain loop over a view against the path through the block table.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "../../attention/reference.h"
#include "backend/backend_fault.h"
#include "backend/backend_host.h"
#include "support/random.h"
#include "support/regions.h"
#include "support/scripted.h"
#include "support/spawn.h"

#define DEVICE_BYTES (256u * 4096u)
#define BLOCK_TOKENS KVT_REGION_BLOCK_TOKENS
#define TOKEN_BYTES  KVT_REGION_TOKEN_BYTES
#define LIMIT        400u

/* An embedded client on a backend that counts calls. */
static struct kvi_backend *host, *backend;
static struct kvmem_client *client;
static struct kvmem_space *space;
static uint32_t fds;
static bool has_helper;

static void begin_with(const struct kvmem_space_options *options)
{
    struct kvi_backend_host_options host_options = {.options_bytes = sizeof(host_options),
                                                    .granule_bytes = 4096};
    struct kvi_client_options client_options = {.outbox_records = 1024};
    struct kvi_link *link;

    fds = kvt_open_fds();
    cr_assert_eq(kvi_backend_host_create(&host_options, &host), 0);
    cr_assert_eq(kvi_backend_fault_create(host, &backend), 0);
    client_options.backend = backend;
    client_options.has_helper = has_helper;
    cr_assert_eq(kvi_link_embed(DEVICE_BYTES, 4096, &link), 0);
    cr_assert_eq(kvi_client_create(link, &kvi_alloc_libc, &client_options, &client), 0);
    cr_assert_eq(kvmem_space_open(client, options, &space), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_space_reserve(space, 100, 1000000000), 0);
}

static void begin(void)
{
    struct kvmem_space_options options = kvt_region_space("regions");

    begin_with(&options);
}

static void end(void)
{
    struct kvi_backend_memory memory;

    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(client);
    cr_assert_eq(kvi_backend_memory(backend, &memory), 0);
    cr_assert(!memory.handle_count && !memory.mapping_count && !memory.reservation_count);
    kvi_backend_destroy(backend);
    kvi_backend_destroy(host);
    cr_assert_eq(kvt_open_fds(), fds);
}

static void dispatch(void)
{
    cr_assert(kvmem_client_dispatch(client, 0) >= 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
}

static void append(struct kvmem_seq seq, uint32_t tokens)
{
    cr_assert_eq(kvmem_seq_append(space, seq, tokens, kvmem_fence_none()), 0, "%s",
                 kvmem_error_detail()->text);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
}

static struct kvmem_seq seq_of(uint32_t tokens)
{
    struct kvmem_seq seq;

    cr_assert_eq(kvmem_seq_create(space, &seq), 0);
    append(seq, tokens);
    return seq;
}

static struct kvmem_region *region_of(struct kvmem_seq seq)
{
    struct kvmem_region *region = NULL;

    cr_assert_eq(kvt_region_open(space, seq, LIMIT, &region), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    return region;
}

/* Has it a view to be written by? The one to be read by is read-only in any case. */
static bool is_writable(const struct kvmem_region *region, uint64_t token)
{
    const char *rights = kvt_rights_at(kvt_region_token(region, token));

    cr_assert_str_eq(rights, "r--s", "token %" PRIu64 " is mapped %s", token, rights);
    rights = kvt_rights_at(kvt_region_write(region, token));
    cr_assert(!strcmp(rights, "rw-s") || rights[0] == '-', "token %" PRIu64 " is written by %s",
              token, rights);
    return rights[0] == 'r';
}

static uint64_t mappings(void)
{
    struct kvi_backend_memory memory;

    cr_assert_eq(kvi_backend_memory(backend, &memory), 0);
    return memory.mapping_count;
}

/* Publish the first `blocks` blocks under names that begin with `first`. */
static void publish(struct kvmem_seq seq, uint32_t blocks, uint8_t first, struct kvmem_name *names)
{
    memset(names, 0, blocks * sizeof(*names));
    for (uint32_t i = 0; i < blocks; i++)
        names[i].bytes[0] = (uint8_t)(first + i);
    cr_assert_eq(kvmem_seq_commit(space, seq, blocks * BLOCK_TOKENS), 0);
    cr_assert_eq(kvmem_seq_publish(space, seq, 0, blocks, names, kvmem_fence_none()), 0);
    dispatch();
    dispatch();
}

/* ---- what is refused ---- */

static void expect(int code, int expected, const char *word)
{
    cr_assert_eq(code, expected, "%s, %s", kvmem_error_name(code), kvmem_error_detail()->text);
    cr_assert(strstr(kvmem_error_detail()->text, word), "'%s' does not say %s",
              kvmem_error_detail()->text, word);
}

Test(region, bad_options)
{
    struct kvmem_region_options good = {.size = sizeof(good), .token_limit = 10}, bad = good;
    struct kvmem_region_info info = {.size = 3};
    struct kvmem_region *region = NULL;
    struct kvmem_seq seq, stale;

    begin();
    seq = seq_of(9);
    expect(kvmem_region_open(NULL, seq, &good, &region), KVMEM_E_INVALID, "space");
    expect(kvmem_region_open(space, seq, NULL, &region), KVMEM_E_INVALID, "options");
    expect(kvmem_region_open(space, seq, &good, NULL), KVMEM_E_INVALID, "out");
    bad.size--;
    expect(kvmem_region_open(space, seq, &bad, &region), KVMEM_E_INVALID, "size");
    bad = good;
    bad.ahead_blocks = 65;
    expect(kvmem_region_open(space, seq, &bad, &region), KVMEM_E_INVALID, "ahead_blocks: 65");
    bad = good;
    bad.token_limit = 0;
    expect(kvmem_region_open(space, seq, &bad, &region), KVMEM_E_INVALID, "token_limit: 0");
    bad.token_limit = 2u * 256 * BLOCK_TOKENS + 1;
    expect(kvmem_region_open(space, seq, &bad, &region), KVMEM_E_INVALID, "outside 1..2048");
    bad.token_limit = 8;
    expect(kvmem_region_open(space, seq, &bad, &region), KVMEM_E_LIMIT, "has 9 tokens");
    stale = seq;
    stale.generation += 2;
    expect(kvmem_region_open(space, stale, &good, &region), KVMEM_E_STALE, "seq");
    cr_assert_null(region);
    cr_assert_eq(kvmem_region_open(space, seq, &good, &region), 0);
    expect(kvmem_region_open(space, seq, &good, &region), KVMEM_E_EXISTS, "close it first");
    expect(kvmem_region_info(region, &info), KVMEM_E_INVALID, "size: 3");
    expect(kvmem_region_info(NULL, &info), KVMEM_E_INVALID, "region");
    expect(kvmem_region_close(region, (struct kvmem_fence){.kind = 9}), KVMEM_E_INVALID, "kind");
    cr_assert_eq(kvmem_region_close(NULL, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_region_close(region, kvmem_fence_none()), 0);
    end();
}

Test(region, a_space_without_regions)
{
    struct kvmem_space_options options = kvt_region_space("paged");
    struct kvmem_region *region;

    options.flags = 0;
    begin_with(&options);
    expect(kvt_region_open(space, seq_of(4), 10, &region), KVMEM_E_NOT_SUPPORTED, "KVMEM_SPACE_");
    end();
}

Test(region, no_blocks_for_those_ahead)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    struct kvmem_region *region = NULL;
    struct kvmem_seq seq, other;

    begin();
    seq = seq_of(4);
    cr_assert_eq(kvmem_space_capacity(space, &capacity), 0);
    other = seq_of(((uint32_t)capacity.free_blocks - 1) * BLOCK_TOKENS);
    expect(kvt_region_open(space, seq, LIMIT, &region), KVMEM_E_REFILL_PENDING, "2 blocks");
    cr_assert_eq(kvmem_seq_truncate(space, other, 4, kvmem_fence_none()), 0);
    region = region_of(seq);
    cr_assert_eq(kvt_region_info(region).mapped_blocks, 3);
    end();
}

Test(region, no_further_than_its_limit)
{
    struct kvmem_region *region;
    struct kvmem_seq seq;
    uint32_t five = 5;

    begin();
    seq = seq_of(4);
    cr_assert_eq(kvt_region_open(space, seq, 7, &region), 0);
    cr_assert_eq(kvt_region_info(region).token_limit, 8);
    cr_assert_eq(kvt_region_info(region).mapped_blocks, 2, "nothing lies ahead of the limit");
    append(seq, 4);
    cr_assert_eq(kvmem_space_can_append(space, 1, &seq, NULL), 0);
    expect(kvmem_seq_append(space, seq, 1, kvmem_fence_none()), KVMEM_E_LIMIT, "the 8 that");
    expect(kvmem_seq_reserve(space, seq, five), KVMEM_E_LIMIT, "the 8 that");
    cr_assert_eq(kvmem_region_close(region, kvmem_fence_none()), 0);
    append(seq, 1);
    end();
}

/* ---- what a view is ---- */

Test(region, the_view_is_the_table)
{
    struct kvmem_region_info info;
    struct kvmem_region *region;
    struct kvmem_seq seq;

    begin();
    seq = seq_of(9);
    region = region_of(seq);
    info = kvt_region_info(region);
    cr_assert(info.mapped_blocks == 5 && info.mapped_tokens == 20 && info.token_limit == LIMIT);
    cr_assert(info.block_bytes == 4096 && info.token_stride_bytes == TOKEN_BYTES);
    for (uint32_t t = 0; t < 9; t++)
        memset(kvt_region_block_write(space, seq, t), (int)t + 1, TOKEN_BYTES);
    for (uint32_t i = 0; i < 9 * TOKEN_BYTES; i++)
        cr_assert_eq(((char *)info.base)[i], (char)(i / TOKEN_BYTES + 1));
    append(seq, 1);
    memset(kvt_region_write(region, 9), 77, TOKEN_BYTES);
    cr_assert_eq(kvt_region_block_token(space, seq, 9)[TOKEN_BYTES - 1], 77);
    cr_assert(is_writable(region, 9));
    end();
}

/* Two mappings a block that may be written, one a block that may not. */
Test(region, what_it_maps)
{
    struct kvmem_region *region;
    struct kvmem_name names[2];
    struct kvmem_seq seq, other;
    int32_t blocks[2];
    uint64_t before;

    begin();
    seq = seq_of(9);
    before = mappings();
    region = region_of(seq);
    cr_assert_eq(mappings(), before + 2 * 5);
    cr_assert_eq((char *)kvt_region_info(region).base - (char *)kvt_region_info(region).write_base,
                 LIMIT * TOKEN_BYTES, "the lower half of the same range");
    cr_assert_eq(kvmem_region_close(region, kvmem_fence_none()), 0);
    cr_assert_eq(mappings(), before);
    publish(seq, 2, 1, names);
    before = mappings();
    region_of(seq);
    cr_assert_eq(mappings(), before + 2 + 2 * 3);
    cr_assert_eq(kvmem_seq_create(space, &other), 0);
    region_of(other);
    cr_assert_eq(mappings(), before + 2 + 2 * 3 + 2 * 2);
    cr_assert_eq(kvmem_prefix_lookup(space, 2, names, blocks, NULL), 2);
    cr_assert_eq(kvmem_seq_attach(space, other, 2, blocks), 0);
    cr_assert_eq(mappings(), before + 2 + 2 * 3 + 2, "what was ahead made way");
    end();
}

Test(region, page_layouts_are_block_strided)
{
    struct kvmem_space_options options = kvt_region_space("paged");
    struct kvmem_region *region;

    options.layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    begin_with(&options);
    region = region_of(seq_of(9));
    cr_assert_eq(kvt_region_info(region).token_stride_bytes, 0);
    cr_assert_eq(kvt_region_info(region).block_bytes, 4096);
    end();
}

/* A mapping made or taken away is one job, adjoining ones that go together are one. */
Test(region, what_it_counts)
{
    struct kvmem_client_stats before = {.size = sizeof(before)}, after = before;
    struct kvmem_region *region;
    struct kvmem_seq seq, child;

    begin();
    seq = seq_of(6);
    cr_assert_eq(kvmem_client_stats(client, &before), 0);
    region = region_of(seq);
    cr_assert_eq(kvmem_client_stats(client, &after), 0);
    cr_assert_eq(after.driver_calls_inline, before.driver_calls_inline + 4,
                 "mapped: 2 and 2 ahead");
    cr_assert_eq(kvmem_region_close(region, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_client_stats(client, &after), 0);
    cr_assert_eq(after.driver_calls_inline, before.driver_calls_inline + 6, "and unmapped");
    cr_assert_eq(kvmem_seq_fork(space, seq, &child), 0);
    region_of(seq);
    cr_assert_eq(kvmem_seq_free(space, child, kvmem_fence_none()), 0);
    append(seq, 1);
    cr_assert_eq(kvmem_client_stats(client, &after), 0);
    cr_assert_eq(after.driver_calls_inline, before.driver_calls_inline + 11, "and one raised");
    end();
}

Test(region, ranges_are_used_again)
{
    struct kvmem_seq seq;
    void *base;

    begin();
    seq = seq_of(9);
    for (uint32_t i = 0; i < 2 * 16 + 1; i++) {
        struct kvmem_region *region = region_of(seq);

        if (i == 0)
            base = kvt_region_info(region).base;
        cr_assert_eq(kvt_region_info(region).base, base);
        cr_assert_eq(kvmem_region_close(region, kvmem_fence_none()), 0);
        cr_assert_eq(kvmem_client_check(client), 0);
    }
    end();
}

Test(region, freeing_the_sequence_closes_it)
{
    struct kvmem_seq seq;
    uint64_t before;

    begin();
    before = mappings();
    seq = seq_of(30);
    region_of(seq);
    cr_assert_eq(kvmem_seq_free(space, seq, kvmem_fence_none()), 0);
    cr_assert_eq(mappings(), before);
    seq = seq_of(1);
    region_of(seq); /* the place may have one again; the space closes it */
    end();
}

/* ---- what an append costs ---- */

Test(region, no_driver_call_in_steady_state)
{
    struct kvmem_region *regions[4];
    struct kvmem_seq seqs[4];
    uint64_t calls = 0;

    begin();
    for (uint32_t i = 0; i < 4; i++) {
        seqs[i] = seq_of(1 + i);
        regions[i] = region_of(seqs[i]);
    }
    for (uint32_t step = 0; step < 80; step++) {
        uint64_t before = kvi_backend_fault_calls(backend, KVI_BACKEND_CALL_ANY);

        cr_assert_eq(kvmem_seqs_append(space, 4, seqs, NULL, kvmem_fence_none()), 0, "%s",
                     kvmem_error_detail()->text);
        calls += kvi_backend_fault_calls(backend, KVI_BACKEND_CALL_ANY) - before;
        dispatch();
    }
    cr_assert_eq(calls, 0);
    for (uint32_t i = 0; i < 4; i++)
        cr_assert(kvt_region_info(regions[i]).waits == 0 &&
                  kvt_region_info(regions[i]).mapped_tokens >= 81);
    end();
}

/* The helper maps what lies ahead; neither append nor dispatch makes a call of its own. */
Test(region, the_helper_maps_ahead)
{
    struct kvi_mapper_stats before, after;
    struct kvmem_region *region;
    struct kvmem_seq seq;

    has_helper = true;
    begin();
    seq = seq_of(1);
    region = region_of(seq);
    kvi_mapper_stats(client->mapper, &before);
    for (uint32_t step = 0; step < 300; step++) {
        append(seq, 1);
        dispatch();
        kvi_mapper_drain(client->mapper); /* faster than the model ever is */
        cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    }
    kvi_mapper_stats(client->mapper, &after);
    cr_assert_eq(kvt_region_info(region).waits, 0);
    cr_assert(after.helper_jobs - before.helper_jobs >= 75 &&
              after.inline_jobs == before.inline_jobs);
    end();
}

/* One that the helper could not map leaves a gap behind which nothing stays mapped. */
Test(region, the_helper_fails)
{
    struct kvmem_region_options options = {
        .size = sizeof(options), .token_limit = LIMIT, .ahead_blocks = 8};

    has_helper = true;
    begin();
    for (uint64_t n = 1; n <= 2 * 8; n++) {
        struct kvmem_region *region;
        struct kvmem_seq seq = seq_of(4);

        cr_assert_eq(kvmem_region_open(space, seq, &options, &region), 0);
        append(seq, 32);
        cr_assert_eq(kvi_backend_fault_arm(backend, KVI_BACKEND_CALL_MAP, n, KVMEM_E_SYSTEM, false),
                     0);
        dispatch();
        kvi_mapper_drain(client->mapper);
        cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
        cr_assert_eq(kvt_region_info(region).mapped_blocks, 9 + (n - 1) / 2);
        kvi_backend_fault_disarm(backend);
        dispatch();
        kvi_mapper_drain(client->mapper);
        cr_assert_eq(kvt_region_info(region).mapped_blocks, 17);
        cr_assert(is_writable(region, 67));
        cr_assert_eq(kvmem_seq_free(space, seq, kvmem_fence_none()), 0);
        cr_assert_eq(kvmem_space_reserve(space, 100, 1000000000), 0); /* no segment comes later */
    }
    end();
}

Test(region, without_dispatch_it_maps_itself)
{
    struct kvmem_region *region;
    struct kvmem_seq seq;

    begin();
    seq = seq_of(4);
    region = region_of(seq);
    append(seq, 2 * BLOCK_TOKENS);
    cr_assert_eq(kvt_region_info(region).waits, 0);
    append(seq, 1);
    cr_assert_eq(kvt_region_info(region).waits, 1);
    append(seq, 5 * BLOCK_TOKENS);
    cr_assert_eq(kvt_region_info(region).waits, 2);
    cr_assert(is_writable(region, 4 + 7 * BLOCK_TOKENS));
    end();
}

/* A step that takes tokens back and forth over the edge of a block maps nothing. */
Test(region, truncating_keeps_blocks_ahead)
{
    struct kvmem_region *region;
    struct kvmem_seq seq;
    uint64_t before;

    begin();
    seq = seq_of(8);
    region = region_of(seq);
    before = kvi_backend_fault_calls(backend, KVI_BACKEND_CALL_ANY);
    for (uint32_t i = 0; i < 20; i++) {
        append(seq, 4);
        cr_assert_eq(kvmem_seq_truncate(space, seq, 7, kvmem_fence_none()), 0);
        append(seq, 1);
        cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    }
    cr_assert_eq(kvi_backend_fault_calls(backend, KVI_BACKEND_CALL_ANY), before);
    append(seq, 40);
    cr_assert_eq(kvmem_seq_truncate(space, seq, 3, kvmem_fence_none()), 0);
    cr_assert_eq(kvt_region_info(region).mapped_blocks, 3);
    end();
}

/* ---- sharing ---- */

Test(region, a_copy_takes_the_place_of_the_shared_tail)
{
    struct kvmem_region *region;
    struct kvmem_seq seq, child;
    void *base;

    begin();
    seq = seq_of(6);
    for (uint32_t t = 0; t < 6; t++)
        memset(kvt_region_block_write(space, seq, t), (int)t + 1, TOKEN_BYTES);
    region = region_of(seq);
    base = kvt_region_info(region).base;
    cr_assert_eq(kvmem_seq_fork(space, seq, &child), 0);
    append(seq, 1);
    memset(kvt_region_write(region, 6), 100, TOKEN_BYTES);
    append(child, 1);
    memset(kvt_region_block_write(space, child, 6), 50, TOKEN_BYTES);
    cr_assert(kvt_region_info(region).remaps == 1 && kvt_region_info(region).base == base);
    for (uint32_t t = 0; t < 6; t++)
        cr_assert(*kvt_region_token(region, t) == (char)(t + 1) &&
                  *kvt_region_block_token(space, child, t) == (char)(t + 1));
    cr_assert_eq(*kvt_region_token(region, 6), 100);
    cr_assert_eq(*kvt_region_block_token(space, child, 6), 50);
    end();
}

Test(region, a_tail_whose_sibling_went_is_writable_again)
{
    struct kvmem_region *region;
    struct kvmem_seq seq, child;

    begin();
    seq = seq_of(6);
    cr_assert_eq(kvmem_seq_fork(space, seq, &child), 0);
    region = region_of(child);
    cr_assert(!is_writable(region, 0) && !is_writable(region, 5) && is_writable(region, 8));
    cr_assert_eq(kvmem_seq_free(space, seq, kvmem_fence_none()), 0);
    append(child, 1);
    cr_assert(is_writable(region, 6) && kvt_region_info(region).remaps == 0);
    end();
}

/* One writer: a segment has no writable view when the directory gets it. */
Test(region, views_of_what_is_handed_in_are_read_only)
{
    struct kvmem_region *region;
    struct kvmem_name names[3];
    struct kvmem_seq seq;

    begin();
    seq = seq_of(14);
    region = region_of(seq);
    cr_assert(is_writable(region, 0) && is_writable(region, 11));
    publish(seq, 3, 1, names);
    cr_assert(!is_writable(region, 0) && !is_writable(region, 11) && is_writable(region, 12));
    append(seq, 3);
    end();
}

Test(region, an_attached_prefix_is_read_only)
{
    struct kvmem_name names[4];
    struct kvmem_region *region;
    struct kvmem_seq seq, other;
    int32_t blocks[4];

    begin();
    seq = seq_of(16);
    for (uint32_t t = 0; t < 16; t++)
        memset(kvt_region_block_write(space, seq, t), (int)t + 1, TOKEN_BYTES);
    publish(seq, 4, 1, names);
    cr_assert_eq(kvmem_seq_create(space, &other), 0);
    region = region_of(other);
    cr_assert_eq(kvmem_prefix_lookup(space, 4, names, blocks, NULL), 4);
    cr_assert_eq(kvmem_seq_attach(space, other, 4, blocks), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    for (uint32_t t = 0; t < 16; t++)
        cr_assert(*kvt_region_token(region, t) == (char)(t + 1) && !is_writable(region, t));
    dispatch();
    append(other, 1);
    cr_assert(is_writable(region, 16) && kvt_region_info(region).waits == 0);
    end();
}

Test(region, attaching_no_further_than_its_limit)
{
    struct kvmem_name names[4];
    struct kvmem_region *region;
    struct kvmem_seq seq, other;
    int32_t blocks[4];

    begin();
    seq = seq_of(16);
    publish(seq, 4, 1, names);
    cr_assert_eq(kvmem_seq_create(space, &other), 0);
    cr_assert_eq(kvt_region_open(space, other, 12, &region), 0);
    cr_assert_eq(kvmem_prefix_lookup(space, 4, names, blocks, NULL), 4);
    expect(kvmem_seq_attach(space, other, 4, blocks), KVMEM_E_LIMIT, "beyond the 3");
    cr_assert_eq(kvmem_seq_attach(space, other, 3, blocks), 0);
    cr_assert_eq(kvmem_prefix_release(space, 1, blocks + 3, kvmem_fence_none()), 0);
    end();
}

/* ---- driver calls that fail ---- */

/* From the n-th call of the backend on. */
static void fail_from(uint64_t n)
{
    cr_assert_eq(kvi_backend_fault_arm(backend, KVI_BACKEND_CALL_ANY, n, KVMEM_E_SYSTEM, true), 0);
}

/* The truncate took a writable view away and could not bring it back. */
Test(region, an_append_mends_what_a_failed_truncate_left)
{
    struct kvmem_region *region;
    struct kvmem_seq seq;

    begin();
    seq = seq_of(30);
    region = region_of(seq);
    append(seq, 4);
    fail_from(2);
    expect(kvmem_seq_truncate(space, seq, 3, kvmem_fence_none()), KVMEM_E_SYSTEM, "unmap");
    kvi_backend_fault_disarm(backend);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    cr_assert(!is_writable(region, 34));
    append(seq, 1);
    cr_assert(is_writable(region, 34));
    end();
}

/* The views that could not be unmapped are not writable when the blocks are others'. */
Test(region, a_closed_view_is_not_writable_again)
{
    struct kvmem_region_info closed;
    struct kvmem_seq seq;

    begin();
    seq = seq_of(30);
    closed = kvt_region_info(region_of(seq));
    cr_assert_eq(kvi_backend_fault_arm(backend, KVI_BACKEND_CALL_UNMAP, 2, KVMEM_E_SYSTEM, false),
                 0);
    cr_assert_eq(kvmem_seq_free(space, seq, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    cr_assert_str_eq(kvt_rights_at(closed.base), "r--s");
    cr_assert_str_eq(kvt_rights_at(closed.write_base), "---p");
    dispatch();
    cr_assert_str_eq(kvt_rights_at(closed.base), "---p");
    end();
}

/* ---- a plain loop ---- */

/* Softmax attention of one query over a tensor (token, layer, K|V, head, dim) of fp32. */
static void plain_attention(const float *kv, size_t token_floats, uint32_t length, uint32_t head,
                            const float *query, double scale, double *out)
{
    enum {
        HEADS = 2,
        DIM = 32
    };
    double scores[64], most = -INFINITY, sum = 0;

    for (uint32_t t = 0; t < length; t++) {
        scores[t] = 0;
        for (uint32_t d = 0; d < DIM; d++)
            scores[t] += (double)query[d] * kv[t * token_floats + head * DIM + d];
        scores[t] *= scale;
        most = scores[t] > most ? scores[t] : most;
    }
    memset(out, 0, DIM * sizeof(*out));
    for (uint32_t t = 0; t < length; t++) {
        double weight = exp(scores[t] - most);

        sum += weight;
        for (uint32_t d = 0; d < DIM; d++)
            out[d] += weight * kv[t * token_floats + (HEADS + head) * DIM + d];
    }
    for (uint32_t d = 0; d < DIM; d++)
        out[d] /= sum;
}

/* Both K/V heads of a layer: by a loop that knows of no blocks, by the reference over the view as
 * one block, and by the reference through the block table. */
static void compare(struct kvmem_seq seq, const struct kvmem_region *region, uint32_t length,
                    uint32_t layer_index)
{
    struct kvmem_geometry g = {.size = sizeof(g)};
    const int32_t *table, zero[1] = {0};
    struct kva_layer layer;
    double paged[64], one[64], plain[32];
    float query[64];
    uint64_t state = length;
    const char *view = kvt_region_info(region).base;
    uint64_t offset;

    cr_assert_eq(kvmem_space_geometry(space, 0, &g), 0);
    offset = layer_index * g.layer_stride_bytes;
    cr_assert(kvmem_table_view(space, 0, seq, &table) > 0);
    for (uint32_t i = 0; i < 64; i++)
        query[i] = (float)(kvt_random(&state) >> 40) / 16777216.0f - 0.5f;
    layer =
        (struct kva_layer){.k = (char *)kvmem_space_base(space, 0, 0) + offset,
                           .v = (char *)kvmem_space_base(space, 0, 0) + offset + g.v_offset_bytes,
                           .block_stride_bytes = g.index_stride_bytes,
                           .k_head_stride_bytes = g.k_head_stride_bytes,
                           .k_token_stride_bytes = g.k_token_stride_bytes,
                           .v_head_stride_bytes = g.v_head_stride_bytes,
                           .v_token_stride_bytes = g.v_token_stride_bytes,
                           .dtype = KVMEM_DTYPE_FP32,
                           .block_tokens = BLOCK_TOKENS,
                           .kv_head_count = 2,
                           .head_dim = 32};
    cr_assert_eq(kva_reference_decode(&layer, table, length, query, 2, 0.2, paged), 0);
    layer.k = view + offset;
    layer.v = view + offset + g.v_offset_bytes;
    layer.block_tokens = length;
    cr_assert_eq(kva_reference_decode(&layer, zero, length, query, 2, 0.2, one), 0);
    cr_assert(!memcmp(paged, one, sizeof(paged)), "the same bytes in the same order");
    for (uint32_t head = 0; head < 2; head++) {
        plain_attention((const float *)(const void *)(view + offset),
                        kvt_region_info(region).token_stride_bytes / sizeof(float), length, head,
                        query + head * 32, 0.2, plain);
        for (uint32_t d = 0; d < 32; d++)
            cr_assert_float_eq(plain[d], paged[head * 32 + d], 1e-13);
    }
}

Test(region, a_plain_loop_sees_what_the_block_table_leads_to)
{
    struct kvmem_space_options options = kvt_region_space("fp32");
    struct kvmem_region *region, *other;
    struct kvmem_seq seq, child;
    uint64_t state = 5;

    options.groups[0].dtype_k = options.groups[0].dtype_v = KVMEM_DTYPE_FP32;
    options.groups[0].head_dim_k = options.groups[0].head_dim_v = 32;
    begin_with(&options);
    seq = seq_of(1);
    region = region_of(seq);
    for (uint32_t length = 1; length <= 40; length++) {
        float *token = (float *)(void *)kvt_region_block_write(space, seq, length - 1);

        for (uint32_t i = 0; i < TOKEN_BYTES / 4; i++)
            token[i] = (float)(kvt_random(&state) >> 40) / 16777216.0f - 0.5f;
        compare(seq, region, length, length % 2);
        append(seq, 1);
        dispatch();
    }
    cr_assert_eq(kvmem_seq_fork(space, seq, &child), 0);
    other = region_of(child);
    compare(child, other, 40, 1);
    append(child, 4);
    append(seq, 2);
    compare(child, other, 40, 0);
    compare(seq, region, 40, 1);
    end();
}
