/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that goes from one space to another of the same sharing domain without being released:
 * when, what its users hear, and what stays as it was.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "directory/directory_internal.h"
#include "support/dirworld.h"

#define SEGMENTS 8u

static struct kvt_world *world;
static uint32_t first, second; /* two clients */
static uint32_t from;          /* a space of the first, which has had all of the device */
static struct kvt_granted had;

/* Publish all blocks from name first_name on, release them in order, hand all segments in. */
static void give(uint32_t client, uint32_t space, uint32_t first_name,
                 const struct kvt_granted *got)
{
    kvt_publish_all(world, client, space, first_name, got->block_count, got->blocks);
    kvt_release(world, client, space, got->block_count, got->blocks);
    for (uint32_t i = 0; i < got->segment_count; i++)
        kvt_hand_in_granted(world, client, space, &got->segments[i]);
}

static void make_world(struct kvi_dir_options options, const char *name)
{
    kvt_world_end(world);
    world = kvt_world_of_two(&options, &first, &second);
    from = kvt_space(world, first, name, KVT_SMALL, 0);
    had = kvt_get(world, first, from, 4 * SEGMENTS);
    give(first, from, 1, &had);
    kvt_forget(world);
}

static void set_up(void)
{
    make_world(kvt_dir_options(SEGMENTS, 4), "a");
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(move, .init = set_up, .fini = tear_down, .timeout = 20);

static uint64_t moved(void)
{
    return world->dir->moved_segments;
}

/* Memory was neither created nor released since all of the device was created. */
static void expect_same_memory(uint64_t count)
{
    cr_assert_eq(moved(), count);
    cr_assert_eq(kvt_stats(world).created_segments, SEGMENTS);
    cr_assert_eq(kvt_stats(world).released_segments, 0);
    cr_assert_eq(kvt_stats(world).segment_count, SEGMENTS);
    cr_assert_eq(kvt_stats(world).adopted_segments, 0);
    cr_assert_eq(kvt_stats(world).free_bytes, 0);
    cr_assert_eq(world->creating_count, 0);
    kvt_world_check(world);
}

Test(move, a_segment_of_the_same_size_and_domain_changes_its_space)
{
    uint32_t to = kvt_space(world, second, "b", KVT_SMALL, 0);
    const struct kvi_msg_segment_gone *gone;
    const struct kvt_sent *sent;
    struct kvt_granted got;

    kvt_request(world, second, to, 3, 0);
    sent = kvt_take(world, second);
    world->taken--; /* to be taken again */
    cr_assert_eq(sent->segment_count, 1);
    cr_assert_eq(sent->segments[0], 0); /* the coldest, under the number that it had */
    got = kvt_take_grants(world, second);
    cr_assert(got.is_last && got.messages == 1);
    cr_assert_eq(got.segment_count, 1);
    cr_assert_eq(got.segments[0].flags, KVI_SEGMENT_HAS_FD);
    cr_assert_eq(got.segments[0].slot, 0);
    cr_assert_eq(got.segments[0].generation, 1);
    cr_assert_eq(got.block_count, 4);
    cr_assert_eq(got.blocks[0], 0);
    cr_assert_eq(got.blocks[3], 3);
    gone = kvt_take_as(world, first, KVI_OP_SEGMENT_GONE);
    cr_assert(gone && gone->space == from && gone->slot == had.segments[0].slot);
    cr_assert_eq(gone->generation, had.segments[0].generation);
    expect_same_memory(1);
    cr_assert_eq(kvt_stats(world).evicted_blocks, 4);
    cr_assert_eq(kvt_stats(world).evicted_segments, 1);
    cr_assert_eq(kvt_stats(world).grants, 2);
    cr_assert_eq(kvt_peek(world, first, from, 1, 4), 0);
    cr_assert_eq(kvt_peek(world, first, from, 5, 28), 28);
    kvt_publish_all(world, second, to, 1, 4, got.blocks);
    cr_assert_eq(kvt_peek(world, second, to, 1, 4), 4);
    kvt_world_check(world);
}

Test(move, late_answers_about_the_old_place_are_ignored)
{
    uint32_t to = kvt_space(world, first, "b", KVT_SMALL, 0); /* the client that had it */
    struct kvt_granted got;
    uint64_t digest;

    kvt_forget(world);
    kvt_request(world, first, to, 4, 0);
    cr_assert(kvt_take_as(world, first, KVI_OP_SEGMENT_GONE)); /* first of all */
    got = kvt_take_grants(world, first);
    expect_same_memory(1);
    cr_assert_eq(got.fd_count, 1);
    kvt_plain(world, first, KVI_OP_ACKNOWLEDGE, 0);
    digest = kvi_dir_digest(world->dir);
    kvt_forget(world);
    kvt_unmapped(world, first, from, had.segments[0].slot, had.segments[0].generation);
    cr_assert_eq(kvi_dir_digest(world->dir), digest);
    cr_assert(kvt_is_quiet(world));
    cr_assert_eq(world->dir->clients[first].mapped_segments, SEGMENTS);
    kvt_hand_in(world, first, from, had.segments[0].slot, had.segments[0].generation);
    cr_assert_eq(kvt_take_error(world, first, NULL), KVMEM_E_STALE);
    kvt_world_check(world);
}

Test(move, blocks_of_another_size_get_records_of_their_own)
{
    uint32_t to = kvt_space(world, second, "b", KVT_TINY, 0);
    struct kvt_granted got = kvt_get(world, second, to, 12), back;

    cr_assert_eq(got.segment_count, 2);
    cr_assert_eq(got.block_count, 16);
    expect_same_memory(2);
    give(second, to, 1, &got);
    kvt_lookup(world, first, from, 24, (uint32_t[]){9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                                                    21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32},
               0);
    kvt_forget(world);
    back = kvt_get(world, first, from, 8);
    cr_assert_eq(back.block_count, 8);
    cr_assert_eq(back.segments[0].generation, had.segments[0].generation + 1);
    expect_same_memory(4);
    kvt_publish_all(world, first, from, 200, 8, back.blocks);
    kvt_world_check(world);
}

Test(move, no_memory_for_records_changes_nothing)
{
    uint32_t to = kvt_space(world, second, "b", KVT_TINY, 0);
    uint64_t digest;

    kvt_forget(world);
    digest = kvi_dir_digest(world->dir);
    world->fail_at = 1;
    kvt_request(world, second, to, 1, 0);
    cr_assert_eq(world->failed, 1);
    cr_assert_eq(kvt_take_error(world, second, NULL), KVMEM_E_NO_MEMORY);
    cr_assert(kvt_is_quiet(world));
    cr_assert_eq(kvi_dir_digest(world->dir), digest);
    cr_assert_eq(kvt_peek(world, first, from, 1, 32), 32);
    expect_same_memory(0);
    cr_assert_eq(kvt_get(world, second, to, 1).block_count, 8);
    expect_same_memory(1);
}

/* What was found before memory ran out is kept. */
Test(move, no_memory_for_the_second_ends_with_the_first)
{
    uint32_t to = kvt_space(world, second, "b", KVT_TINY, 0);

    kvt_forget(world);
    world->fail_at = 2;
    kvt_request(world, second, to, 16, 0);
    cr_assert_eq(kvt_take_grants(world, second).block_count, 8);
    expect_same_memory(1);
}

/* The same size needs no memory at all. */
Test(move, the_same_geometry_allocates_nothing)
{
    uint32_t to = kvt_space(world, second, "b", KVT_SMALL, 0);

    kvt_forget(world);
    world->fail_at = 1;
    kvt_request(world, second, to, 32, 0);
    world->fail_at = 0;
    cr_assert_eq(world->failed, 0);
    cr_assert_eq(kvt_take_grants(world, second).block_count, 32);
    expect_same_memory(8);
}

Test(move, an_empty_space_without_clients_ends_when_its_last_segment_leaves)
{
    uint32_t to = kvt_space(world, second, "b", KVT_SMALL, 0);

    kvt_close(world, first, from);
    cr_assert_eq(kvt_stats(world).space_count, 2);
    cr_assert_eq(kvt_get(world, second, to, 32).block_count, 32);
    expect_same_memory(8);
    cr_assert_eq(kvt_stats(world).space_count, 1);
}

Test(move, the_quota_of_the_space_holds)
{
    uint32_t to = kvt_space(world, second, "b", KVT_SMALL, 2 * 4096);

    cr_assert_eq(kvt_get(world, second, to, 32).block_count, 8);
    expect_same_memory(2);
    kvt_forget(world);
    kvt_request(world, second, to, 1, 0);
    cr_assert_eq(kvt_take_error(world, second, NULL), KVMEM_E_QUOTA);
}

Test(move, descriptors_in_flight_hold_it_back)
{
    struct kvi_dir_options options = kvt_dir_options(SEGMENTS, 4);
    struct kvt_granted got;
    uint32_t to;

    make_world(options, "a");
    world->dir->options.unacked_fd_limit = 2;
    kvt_plain(world, first, KVI_OP_ACKNOWLEDGE, 0);
    to = kvt_space(world, second, "b", KVT_SMALL, 0);
    world->is_silent[second] = 1;
    kvt_forget(world);
    kvt_request(world, second, to, 12, 0);
    got = kvt_take_grants(world, second);
    cr_assert(!got.is_last && got.block_count == 8);
    expect_same_memory(2);
    world->is_silent[second] = 0;
    kvt_plain(world, second, KVI_OP_ACKNOWLEDGE, 0);
    got = kvt_take_grants(world, second);
    cr_assert(got.is_last && got.block_count == 4);
    expect_same_memory(3);
}

/* ---- when it is released and created instead ---- */

static void expect_created(uint32_t count)
{
    cr_assert_eq(moved(), 0);
    cr_assert_gt(kvt_stats(world).released_segments, 0);
    cr_assert_eq(kvt_stats(world).created_segments, SEGMENTS + count);
    kvt_world_check(world);
}

Test(move, never_out_of_its_sharing_domain)
{
    uint32_t to = kvt_space(world, second, "a@other", KVT_SMALL, 0);

    cr_assert_eq(kvt_get(world, second, to, 4).block_count, 4);
    expect_created(1);
}

Test(move, not_into_segments_of_another_size)
{
    uint32_t to = kvt_space(world, second, "b", KVT_LARGE, 0);

    cr_assert_eq(kvt_get(world, second, to, 4).block_count, 8);
    expect_created(1);
}

Test(move, not_while_somebody_refers_to_it)
{
    uint32_t to = kvt_space(world, second, "b", KVT_SMALL, 0);
    struct kvt_granted got;

    kvt_lookup(world, first, from, 1, (uint32_t[]){1}, 0);
    kvt_pin(world, first, from, 1, (uint32_t[]){5}, 0);
    kvt_forget(world);
    got = kvt_get(world, second, to, 32);
    cr_assert_eq(got.block_count, 24);
    expect_same_memory(6);
    cr_assert_eq(kvt_peek(world, first, from, 1, 8), 8);
}

/* Where bytes in use do not come back, it need not drain. */
Test(move, mapped_memory_moves_at_once)
{
    struct kvi_dir_options options = kvt_dir_options(SEGMENTS, 4);
    uint32_t to;

    options.devices[0].releases_reclaim_mapped = 0;
    make_world(options, "a");
    to = kvt_space(world, second, "b", KVT_SMALL, 0);
    cr_assert_eq(kvt_get(world, second, to, 8).block_count, 8);
    expect_same_memory(2);
    cr_assert_eq(world->dir->clients[first].mapped_segments, SEGMENTS - 2);
    kvi_dir_client_exited(world->dir, first);
    kvt_world_check(world);
}

Test(move, only_on_its_device)
{
    struct kvi_dir_options options = kvt_dir_options(SEGMENTS, 4);
    uint32_t to, next;

    kvt_add_device(&options, SEGMENTS);
    options.devices[0].device_bytes -= 4096; /* the first space goes to the second device */
    make_world(options, "a");
    kvt_forget(world);
    kvt_open_with(world, second, "b", KVT_SMALL, 0, KVT_ON_DEVICE(0));
    to = ((const struct kvi_msg_space_opened *)kvt_take_as(world, second, KVI_OP_SPACE_OPENED))
             ->space;
    cr_assert_eq(kvt_get(world, second, to, 28).block_count, 28);
    cr_assert_eq(moved(), 0);
    kvt_forget(world);
    kvt_request(world, second, to, 1, 0);
    cr_assert_eq(kvt_take_error(world, second, "device 0"), KVMEM_E_DEVICE_FULL);
    kvt_open_with(world, second, "c", KVT_SMALL, 0, KVT_ON_DEVICE(1));
    next = ((const struct kvi_msg_space_opened *)kvt_take_as(world, second, KVI_OP_SPACE_OPENED))
               ->space;
    cr_assert_eq(kvt_get(world, second, next, 4).block_count, 4);
    cr_assert_eq(moved(), 1);
    kvt_world_check(world);
}
