/* SPDX-License-Identifier: Apache-2.0
 *
 * Regions and work that is under way: what is shown, and what a truncate leaves as blocks ahead,
 * stays until the fences of that work have passed.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "client/client.h"
#include "support/regions.h"
#include "support/scripted.h"
#include "support/spawn.h"

#define BLOCK_TOKENS KVT_REGION_BLOCK_TOKENS
#define LIMIT        400u
#define SHORT_NS     5000000

/* An embedded client on the host. */
static struct kvmem_client *client;
static struct kvmem_space *space;
static uint32_t fds;

static void begin(void)
{
    struct kvmem_space_options options = kvt_region_space("fences");
    struct kvmem_embed_options embedded = {
        .size = sizeof(embedded), .device_bytes = 256 * 4096, .granule_bytes = 4096};

    fds = kvt_open_fds();
    cr_assert_eq(kvmem_client_embed(&embedded, &client), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_space_open(client, &options, &space), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_space_reserve(space, 100, 1000000000), 0);
}

static void end(void)
{
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(client);
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

/* ---- views ---- */

static struct kvmem_fence promise(void)
{
    struct kvmem_fence fence;

    cr_assert_eq(kvmem_fence_promise(client, &fence), 0, "%s", kvmem_error_detail()->text);
    return fence;
}

static void fulfil(const struct kvmem_fence *fence)
{
    cr_assert_eq(kvmem_fence_fulfil(client, fence), 0);
}

static void expect_in_use(int code)
{
    cr_assert_eq(code, KVMEM_E_TIMED_OUT, "%s, %s", kvmem_error_name(code),
                 kvmem_error_detail()->text);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
}

/* Of token 0 of a region that may have gone. */
static void expect_views(const struct kvmem_region_info *info, const char *read, const char *write)
{
    cr_assert_str_eq(kvt_rights_at(info->base), read);
    cr_assert_str_eq(kvt_rights_at(info->write_base), write);
}

Test(region_fence, a_closed_view_stays_until_its_fence)
{
    struct kvmem_region *region;
    struct kvmem_region_info closed;
    struct kvmem_fence fence;
    struct kvmem_seq seq;

    begin();
    seq = seq_of(6);
    region = region_of(seq);
    closed = kvt_region_info(region);
    fence = promise();
    cr_assert_eq(kvmem_region_close(region, fence), 0);
    dispatch();
    expect_views(&closed, "r--s", "rw-s");
    region = region_of(seq); /* meanwhile it may have another one */
    cr_assert(kvt_region_info(region).base != closed.base);
    fulfil(&fence);
    dispatch();
    expect_views(&closed, "---p", "---p");
    cr_assert_str_eq(kvt_rights_at(kvt_region_write(region, 5)), "rw-s");
    end();
}

Test(region_fence, the_view_of_a_freed_sequence_stays_until_its_fence)
{
    struct kvmem_region_info closed;
    struct kvmem_fence fence;
    struct kvmem_seq seq;

    begin();
    seq = seq_of(30);
    closed = kvt_region_info(region_of(seq));
    fence = promise();
    cr_assert_eq(kvmem_seq_free(space, seq, fence), 0);
    dispatch();
    expect_views(&closed, "r--s", "rw-s");
    fulfil(&fence);
    dispatch();
    expect_views(&closed, "---p", "---p");
    end();
}

/* The caller's mistake: the sequence goes before the work on its view has ended. Its memory does
 * not stay mapped writable, nor at all, once it is others'. */
Test(region_fence, a_closed_view_does_not_hold_memory)
{
    struct kvmem_space_options options = kvt_region_space("other");
    struct kvmem_space *other;
    struct kvmem_fence fence;
    struct kvmem_seq seq;
    struct kvmem_region *region;
    struct kvmem_region_info closed;

    begin();
    seq = seq_of(30);
    region = region_of(seq);
    closed = kvt_region_info(region);
    fence = promise();
    cr_assert_eq(kvmem_region_close(region, fence), 0);
    cr_assert_eq(kvmem_seq_free(space, seq, kvmem_fence_none()), 0);
    cr_assert(kvmem_space_trim(space) > 0);
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    expect_views(&closed, "r--s", "---p");
    cr_assert_eq(kvmem_space_open(client, &options, &other), 0);
    cr_assert_eq(kvmem_space_reserve(other, 256, 1000000000), 0);
    dispatch();
    expect_views(&closed, "---p", "---p");
    fulfil(&fence);
    end();
}

/* What is shown is not taken away under a kernel: the call waits, and says so in the end. */
Test(region_fence, waiting_for_fences)
{
    struct kvmem_region *region;
    struct kvmem_fence fence;
    struct kvmem_seq seq, child;

    begin();
    client->timeout_ns = SHORT_NS;
    seq = seq_of(42);
    region = region_of(seq);
    cr_assert_eq(kvmem_seq_fork(space, seq, &child), 0);
    fence = promise();
    expect_in_use(kvmem_seq_append(space, seq, 1, fence));
    expect_in_use(kvmem_seq_truncate(space, seq, 3, fence));
    cr_assert(kvt_region_info(region).remaps == 0 && kvt_region_info(region).mapped_blocks == 13);
    fulfil(&fence);
    cr_assert_eq(kvmem_seq_append(space, seq, 1, fence), 0);
    cr_assert_eq(kvt_region_info(region).remaps, 1);
    fence = promise();
    cr_assert_eq(kvmem_seq_append(space, seq, 1, fence), 0, "nothing is taken away");
    cr_assert_eq(kvmem_seq_truncate(space, seq, 40, fence), 0);
    fulfil(&fence);
    cr_assert_eq(kvmem_seq_truncate(space, seq, 3, fence), 0);
    cr_assert_eq(kvt_region_info(region).mapped_blocks, 1, "the others are shared");
    end();
}

/* ---- what a truncate leaves ---- */

static uint64_t used_blocks(void)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};

    cr_assert_eq(kvmem_space_capacity(space, &capacity), 0);
    return capacity.used_blocks;
}

/* A sequence whose last two blocks are given up behind `fence`, and stay as blocks ahead. */
static struct kvmem_seq left_behind(uint32_t tokens, const struct kvmem_fence *fence,
                                    struct kvmem_region_info *info)
{
    struct kvmem_region *region;
    struct kvmem_seq seq;

    client->timeout_ns = SHORT_NS;
    seq = seq_of(tokens);
    region = region_of(seq);
    append(seq, 2 * BLOCK_TOKENS);
    cr_assert_eq(kvmem_seq_truncate(space, seq, tokens, *fence), 0, "it does not wait");
    *info = kvt_region_info(region);
    return seq;
}

Test(region_fence, attach_waits_for_what_was_left)
{
    struct kvmem_name names[2] = {{{1}}, {{2}}};
    struct kvmem_region_info info;
    struct kvmem_fence fence;
    struct kvmem_seq seq;
    int32_t blocks[2];

    begin();
    seq = seq_of(8);
    cr_assert_eq(kvmem_seq_commit(space, seq, 8), 0);
    cr_assert_eq(kvmem_seq_publish(space, seq, 0, 2, names, kvmem_fence_none()), 0);
    dispatch();
    dispatch();
    fence = promise();
    seq = left_behind(0, &fence, &info);
    cr_assert_eq(kvmem_prefix_lookup(space, 2, names, blocks, NULL), 2);
    expect_in_use(kvmem_seq_attach(space, seq, 2, blocks));
    expect_views(&info, "r--s", "rw-s");
    fulfil(&fence);
    cr_assert_eq(kvmem_seq_attach(space, seq, 2, blocks), 0, "%s", kvmem_error_detail()->text);
    expect_views(&info, "r--s", "---p");
    end();
}

Test(region_fence, what_was_left_cools_when_its_sequence_goes)
{
    struct kvmem_region_info info;
    struct kvmem_fence fence;
    struct kvmem_seq seqs[2];

    begin();
    fence = promise();
    cr_assert_eq(kvmem_seq_create(space, &seqs[0]), 0);
    seqs[1] = left_behind(0, &fence, &info);
    cr_assert_eq(kvmem_seqs_free(space, 2, seqs, kvmem_fence_none()), 0);
    dispatch();
    expect_views(&info, "r--s", "rw-s");
    cr_assert_eq(used_blocks(), 2);
    fulfil(&fence);
    dispatch();
    expect_views(&info, "---p", "---p");
    cr_assert_eq(used_blocks(), 0);
    end();
}

/* Two fences of a timeline: whichever is later counts. */
Test(region_fence, the_later_fence_counts)
{
    struct kvmem_region_info info;
    struct kvmem_fence fences[2];
    struct kvmem_seq seq;

    begin();
    for (uint32_t late = 0; late < 2; late++) {
        fences[0] = promise();
        fences[1] = promise();
        seq = left_behind(0, &fences[late], &info);
        cr_assert_eq(kvmem_seq_free(space, seq, fences[!late]), 0);
        fulfil(&fences[0]);
        dispatch();
        expect_views(&info, "r--s", "rw-s");
        cr_assert_eq(used_blocks(), 2);
        fulfil(&fences[1]);
        dispatch();
        expect_views(&info, "---p", "---p");
        cr_assert_eq(used_blocks(), 0);
    }
    end();
}

/* Nothing is later than both when they are of two timelines: the first is waited for. */
Test(region_fence, fences_of_two_timelines)
{
    struct kvi_fences *fences;
    struct kvmem_region_info info;
    struct kvmem_fence fence, other;
    struct kvmem_seq seq;

    begin();
    fences = &client->fences;
    fence = promise();
    other = (struct kvmem_fence){KVMEM_FENCE_TIMELINE, fences->own.timeline + 1, 1, NULL};
    fences->lane_count = 2;
    fences->lanes[1].last = 1;
    seq = left_behind(0, &fence, &info);
    expect_in_use(kvmem_seq_free(space, seq, other));
    expect_views(&info, "r--s", "rw-s");
    fulfil(&fence);
    cr_assert_eq(kvmem_seq_free(space, seq, other), 0);
    dispatch();
    cr_assert_eq(used_blocks(), 2);
    kvi_lane_reach(&fences->own.lanes[1], 1);
    dispatch();
    cr_assert_eq(used_blocks(), 0);
    end();
}

Test(region_fence, a_later_truncate_waits_for_what_was_left)
{
    struct kvmem_region_info info;
    struct kvmem_fence fence;
    struct kvmem_seq seq;

    begin();
    fence = promise();
    seq = left_behind(2 * BLOCK_TOKENS, &fence, &info);
    append(seq, 2 * BLOCK_TOKENS);
    expect_in_use(kvmem_seq_truncate(space, seq, 0, kvmem_fence_none()));
    cr_assert_eq(used_blocks(), 4);
    fulfil(&fence);
    cr_assert_eq(kvmem_seq_truncate(space, seq, 0, kvmem_fence_none()), 0);
    cr_assert_eq(used_blocks(), 2);
    end();
}

Test(region_fence, what_was_left_becomes_no_copy_in_use)
{
    struct kvmem_region_info info;
    struct kvmem_seq seq, child;
    struct kvmem_fence fence;

    begin();
    fence = promise();
    seq = left_behind(BLOCK_TOKENS + 2, &fence, &info);
    cr_assert_eq(kvmem_seq_fork(space, seq, &child), 0);
    expect_in_use(kvmem_seq_append(space, seq, 1, kvmem_fence_none()));
    cr_assert_eq(used_blocks(), 4);
    fulfil(&fence);
    append(seq, 1);
    end();
}

Test(region_fence, closing_waits_for_what_was_left)
{
    struct kvmem_region *region;
    struct kvmem_fence fence;
    struct kvmem_seq seq;

    begin();
    client->timeout_ns = SHORT_NS;
    seq = seq_of(0);
    region = region_of(seq);
    append(seq, 2 * BLOCK_TOKENS);
    fence = promise();
    cr_assert_eq(kvmem_seq_truncate(space, seq, 0, fence), 0);
    expect_in_use(kvmem_region_close(region, kvmem_fence_none()));
    fulfil(&fence);
    cr_assert_eq(kvmem_region_close(region, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_seq_free(space, seq, kvmem_fence_none()), 0);
    cr_assert_eq(used_blocks(), 0);
    end();
}

/* A client that ends before its work has ended leaves everything mapped. */
Test(region_fence, ending_does_not_unmap_what_was_left)
{
    struct kvmem_region_info info;
    struct kvmem_fence fence;

    begin();
    fence = promise();
    left_behind(0, &fence, &info);
    kvmem_client_close(client);
    expect_views(&info, "r--s", "rw-s");
}
