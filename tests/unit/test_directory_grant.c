/* SPDX-License-Identifier: Apache-2.0
 *
 * Who gets memory: each step of the plan and their order, quotas, creation that fails, descriptors
 * in flight, many segments and ranges. Who has to wait for it: test_directory_wait.c.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "support/dirworld.h"

static struct kvt_world *world;
static uint32_t first, second; /* two clients */

static void make_world(struct kvi_dir_options options)
{
    kvt_world_end(world);
    world = kvt_world_of_two(&options, &first, &second);
}

static void set_up(void)
{
    make_world(kvt_dir_options(8, 4));
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(grant, .init = set_up, .fini = tear_down, .timeout = 20);

/* Publish all blocks from name first_name on, release them in order, hand all segments in. */
static void fill(uint32_t client, uint32_t space, uint32_t first_name,
                 const struct kvt_granted *got)
{
    kvt_publish_all(world, client, space, first_name, got->block_count, got->blocks);
    kvt_release(world, client, space, got->block_count, got->blocks);
    for (uint32_t i = 0; i < got->segment_count; i++)
        kvt_hand_in_granted(world, client, space, &got->segments[i]);
}

static int has_name(uint32_t client, uint32_t space, uint32_t name)
{
    return (int)kvt_peek(world, client, space, name, 1);
}

static int error_of(uint32_t client)
{
    return kvt_take_error(world, client, NULL);
}

/* ---- the steps ---- */

Test(grant, new_segments_come_whole)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, first, space, 5);

    cr_assert_eq(got.segment_count, 2);
    cr_assert_eq(got.fd_count, 2);
    cr_assert_eq(got.adopted_count, 0);
    cr_assert_eq(got.block_count, 8);
    cr_assert_eq(got.obtainable_blocks, 24);
    cr_assert_eq(kvt_stats(world).created_segments, 2);
    cr_assert_eq(kvt_stats(world).grants, 1);
}

Test(grant, idle_blocks_come_first_and_of_the_fullest_segment)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, first, space, 12), more;

    kvt_publish_all(world, first, space, 1, 1, got.blocks);     /* 3 idle in the first */
    kvt_publish_all(world, first, space, 2, 3, got.blocks + 4); /* 1 idle in the second */
    kvt_publish_all(world, first, space, 5, 4, got.blocks + 8); /* none in the third */
    for (int i = 0; i < 3; i++)
        kvt_hand_in_granted(world, first, space, &got.segments[i]);
    kvt_space(world, second, "a", KVT_SMALL, 0);
    more = kvt_get(world, second, space, 1);
    cr_assert_eq(more.segment_count, 1);
    cr_assert_eq(more.segments[0].slot, got.segments[1].slot);
    cr_assert_eq(more.segments[0].flags, KVI_SEGMENT_ADOPTED | KVI_SEGMENT_HAS_FD);
    cr_assert_eq(more.block_count, 1);
    cr_assert_eq(more.blocks[0], got.blocks[7]);
    more = kvt_get(world, second, space, 2); /* all idle blocks of it, though fewer are wanted */
    cr_assert_eq(more.segments[0].slot, got.segments[0].slot);
    cr_assert_eq(more.block_count, 3);
    cr_assert_eq(kvt_stats(world).evicted_blocks, 0);
    cr_assert_eq(kvt_stats(world).adopted_segments, 2);
}

Test(grant, a_segment_that_is_mapped_comes_without_a_descriptor)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, first, space, 4), again;

    kvt_hand_in_granted(world, first, space, &got.segments[0]);
    again = kvt_get(world, first, space, 4);
    cr_assert_eq(again.segments[0].flags, KVI_SEGMENT_ADOPTED);
    kvt_hand_in_granted(world, first, space, &got.segments[0]);
    kvt_unmapped(world, first, space, got.segments[0].slot, got.segments[0].generation);
    again = kvt_get(world, first, space, 4);
    cr_assert_eq(again.segments[0].flags, KVI_SEGMENT_ADOPTED | KVI_SEGMENT_HAS_FD);
}

Test(grant, blocks_are_evicted_least_recently_used_first)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 8192);
    struct kvt_granted got = kvt_get(world, first, space, 8), more;
    static const uint32_t order[] = {5, 0, 7, 2, 1, 6, 3, 4};

    kvt_publish_all(world, first, space, 1, 8, got.blocks);
    for (int i = 0; i < 8; i++)
        kvt_release(world, first, space, 1, &got.blocks[order[i]]);
    kvt_lookup(world, first, space, 1, (uint32_t[]){1 + 7}, 0); /* a use makes it the newest */
    kvt_release(world, first, space, 1, &got.blocks[7]);
    more = kvt_get(world, first, space, 3);
    cr_assert_eq(more.segment_count, 0); /* it owns both */
    cr_assert_eq(more.block_count, 3);
    cr_assert(!has_name(first, space, 6) && !has_name(first, space, 1) &&
              !has_name(first, space, 3));
    cr_assert(has_name(first, space, 2) && has_name(first, space, 8));
    cr_assert_eq(kvt_stats(world).evicted_blocks, 3);
}

Test(grant, tails_that_are_released_first_go_first)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 8192);
    struct kvt_granted got = kvt_get(world, first, space, 8);
    uint32_t backwards[8];

    for (int i = 0; i < 8; i++)
        backwards[i] = got.blocks[7 - i];
    kvt_publish_all(world, first, space, 1, 8, got.blocks);
    kvt_release(world, first, space, 8, backwards);
    kvt_get(world, first, space, 3);
    cr_assert_eq(kvt_peek(world, first, space, 1, 8), 5);
}

Test(grant, leased_and_pinned_entries_stay)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 4096);
    struct kvt_granted got = kvt_get(world, first, space, 4);

    kvt_publish_all(world, first, space, 1, 4, got.blocks);
    kvt_release(world, first, space, 3, got.blocks);
    kvt_pin(world, first, space, 1, (uint32_t[]){2}, 0);
    kvt_take(world, first);
    got = kvt_get(world, first, space, 4);
    cr_assert_eq(got.block_count, 2);
    cr_assert(has_name(first, space, 2) && has_name(first, space, 4));
    kvt_request(world, first, space, 1, 0);
    cr_assert_eq(kvt_take_error(world, first, "quota of 4096"), KVMEM_E_QUOTA);
}

Test(grant, whole_segments_serve_a_want_of_whole_segments)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 4 * 4096);
    struct kvt_granted got = kvt_get(world, first, space, 16), more;

    fill(first, space, 1, &got);
    kvt_lookup(world, second, kvt_space(world, second, "a", KVT_SMALL, 0), 1, (uint32_t[]){2}, 0);
    kvt_lookup(world, first, space, 1, (uint32_t[]){5}, 0); /* in the second: now the newest */
    kvt_release(world, first, space, 1, &got.blocks[4]);
    more = kvt_get(world, first, space, 5);
    /* The first has a lease, the second was used last: the third whole, then the oldest block. */
    cr_assert_eq(more.segment_count, 2);
    cr_assert_eq(more.segments[0].slot, got.segments[2].slot);
    cr_assert_eq(more.segments[1].slot, got.segments[0].slot);
    cr_assert_eq(more.block_count, 5);
    cr_assert(!has_name(first, space, 1) && has_name(first, space, 2));
    cr_assert_eq(kvt_peek(world, first, space, 5, 4), 4);
}

Test(grant, segments_of_living_owners_are_not_evicted_from)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 8192);
    struct kvt_granted got = kvt_get(world, first, space, 8);

    kvt_publish_all(world, first, space, 1, 8, got.blocks);
    kvt_release(world, first, space, 8, got.blocks);
    kvt_space(world, second, "a", KVT_SMALL, 0);
    kvt_request(world, second, space, 1, 0);
    cr_assert_eq(error_of(second), KVMEM_E_QUOTA);
    kvt_hand_in_granted(world, first, space, &got.segments[1]);
    got = kvt_get(world, second, space, 1);
    cr_assert_eq(got.block_count, 1);
    cr_assert_eq(kvt_peek(world, second, space, 1, 8), 4); /* its oldest, though not of all */
}

/* ---- other spaces ---- */

Test(grant, empty_segments_of_other_spaces_go_before_own_entries)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, second, "b@other", KVT_SMALL, 0);
    struct kvt_granted own = kvt_get(world, first, a, 24), idle = kvt_get(world, second, b, 8);
    const struct kvi_msg_segment_gone *gone;

    fill(first, a, 1, &own);
    kvt_hand_in_granted(world, second, b, &idle.segments[1]);
    own = kvt_get(world, first, a, 2);
    cr_assert_eq(own.block_count, 4);
    cr_assert_eq(own.segments[0].flags, KVI_SEGMENT_HAS_FD);
    cr_assert_eq(kvt_peek(world, first, a, 1, 24), 24);
    gone = kvt_take_as(world, second, KVI_OP_SEGMENT_GONE);
    cr_assert(gone && gone->space == b && gone->slot == idle.segments[1].slot);
    cr_assert_eq(gone->generation, idle.segments[1].generation);
    cr_assert_eq(kvt_stats(world).evicted_segments, 0);
    cr_assert_eq(kvt_stats(world).released_segments, 1);
    kvt_unmapped(world, second, b, gone->slot, gone->generation);
    kvt_world_check(world);
}

Test(grant, the_colder_of_own_and_foreign_goes_first)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, second, "b", KVT_SMALL, 0);
    struct kvt_granted old = kvt_get(world, second, b, 4);
    struct kvt_granted own = kvt_get(world, first, a, 24);
    struct kvt_granted fresh = kvt_get(world, second, b, 4);

    fill(second, b, 1, &old);
    fill(first, a, 1, &own);
    fill(second, b, 11, &fresh);
    own = kvt_get(world, first, a, 6); /* the foreign one that is colder, then own blocks */
    cr_assert_eq(own.block_count, 6);
    cr_assert_eq(kvt_peek(world, second, b, 1, 4), 0);
    cr_assert_eq(kvt_peek(world, second, b, 11, 4), 4);
    cr_assert(!has_name(first, a, 1) && !has_name(first, a, 2) && has_name(first, a, 3));
    cr_assert_eq(kvt_stats(world).evicted_segments, 1);
    own = kvt_get(world, first, a, 4 + 24); /* all of its own, and the warmer foreign one last */
    cr_assert_eq(kvt_peek(world, second, b, 11, 4), 0);
    cr_assert_eq(own.block_count, 22 + 4);
}

Test(grant, foreign_segments_with_references_stay)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, second, "b", KVT_SMALL, 0);
    struct kvt_granted foreign = kvt_get(world, second, b, 32), got;

    kvt_publish_all(world, second, b, 1, 32, foreign.blocks);
    kvt_release(world, second, b, 28, foreign.blocks + 4);
    for (uint32_t i = 0; i < 8; i++)
        kvt_hand_in_granted(world, second, b, &foreign.segments[i]);
    got = kvt_get(world, first, a, 32);
    cr_assert_eq(got.block_count, 28);
    cr_assert_eq(got.obtainable_blocks, 0);
    cr_assert_eq(kvt_peek(world, second, b, 1, 32), 4);
}

Test(grant, several_small_foreign_segments_make_a_large_one)
{
    uint32_t a, b;
    struct kvt_granted foreign, got;

    make_world(kvt_dir_options(10, 4));
    a = kvt_space(world, first, "a", KVT_LARGE, 0);
    b = kvt_space(world, second, "b", KVT_SMALL, 0);
    foreign = kvt_get(world, second, b, 40);
    fill(second, b, 1, &foreign);
    got = kvt_get(world, first, a, 9);
    cr_assert_eq(got.block_count, 16);
    cr_assert_eq(kvt_stats(world).evicted_segments, 6);
    got = kvt_get(world, first, a, 9);
    cr_assert_eq(got.block_count, 8);
    kvt_request(world, first, a, 1, 0); /* one granule is left: not enough, so it is not taken */
    cr_assert_eq(error_of(first), KVMEM_E_DEVICE_FULL);
    cr_assert_eq(kvt_peek(world, second, b, 37, 4), 4);
}

Test(grant, what_a_large_foreign_segment_leaves_over_is_used)
{
    uint32_t a, b;
    struct kvt_granted foreign, got;

    make_world(kvt_dir_options(9, 4));
    a = kvt_space(world, first, "a", KVT_SMALL, 0);
    b = kvt_space(world, second, "b", KVT_LARGE, 0);
    foreign = kvt_get(world, second, b, 24);
    fill(second, b, 1, &foreign);
    got = kvt_get(world, first, a, 12);
    cr_assert_eq(got.block_count, 12);
    cr_assert_eq(kvt_stats(world).evicted_segments, 1);
}

Test(grant, a_space_that_lost_its_last_segment_ends)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, second, "b", KVT_SMALL, 0);
    struct kvt_granted foreign = kvt_get(world, second, b, 32);

    kvt_publish_all(world, second, b, 1, 2, foreign.blocks); /* in one segment */
    kvi_dir_client_exited(world->dir, second);
    cr_assert_eq(kvt_stats(world).space_count, 2);
    kvt_get(world, first, a, 28); /* the empty ones */
    cr_assert_eq(kvt_stats(world).space_count, 2);
    kvt_get(world, first, a, 1);
    cr_assert_eq(kvt_stats(world).space_count, 1);
}

/* ---- quota and refusals ---- */

Test(grant, a_quota_bounds_segments_and_foreign_memory)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 3 * 4096 + 100);
    struct kvt_granted got = kvt_get(world, first, a, 32);

    cr_assert_eq(got.segment_count, 3);
    cr_assert_eq(got.obtainable_blocks, 0);
    kvt_request(world, first, a, 1, KVI_REQUEST_MAY_WAIT); /* nobody else can help */
    cr_assert_eq(error_of(first), KVMEM_E_QUOTA);
    cr_assert_eq(kvt_stats(world).refusals, 1);
}

Test(grant, a_second_request_is_busy)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, first, "b", KVT_SMALL, 0);

    kvt_request(world, first, a, 1, 0);
    kvt_request(world, first, a, 1, 0);
    cr_assert_eq(error_of(first), KVMEM_E_BUSY);
    kvt_request(world, first, b, 1, 0); /* a request for each space */
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_take_grants(world, first).block_count, 4);
    cr_assert_eq(kvt_take_grants(world, first).block_count, 4);
}

Test(grant, handing_in_what_is_not_owned_is_refused)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, first, a, 4);
    uint64_t digest;

    kvt_space(world, second, "a", KVT_SMALL, 0);
    digest = kvi_dir_digest(world->dir);
    kvt_hand_in(world, second, a, 0, 1);
    cr_assert_eq(error_of(second), KVMEM_E_PERMISSION);
    kvt_hand_in(world, first, a, 0, 2);
    cr_assert_eq(error_of(first), KVMEM_E_STALE);
    kvt_hand_in(world, first, a, 7, 1);
    cr_assert_eq(error_of(first), KVMEM_E_STALE);
    kvt_hand_in(world, first, a, 65534, 1);
    cr_assert_eq(error_of(first), KVMEM_E_STALE);
    cr_assert_neq(kvi_dir_digest(world->dir), 0);
    (void)digest;
    kvt_hand_in_granted(world, first, a, &got.segments[0]);
    kvt_hand_in(world, first, a, 0, 1);
    cr_assert_eq(error_of(first), KVMEM_E_PERMISSION);
    kvt_request(world, first, a, 1, 0);
    kvt_take_grants(world, first);
    kvt_request(world, first, a, 4, 0); /* slot 1 is being created */
    kvt_hand_in(world, first, a, 1, 1);
    cr_assert_eq(error_of(first), KVMEM_E_PERMISSION);
}

Test(grant, generations_of_a_slot_count_up)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, second, "b", KVT_SMALL, 0);

    for (uint32_t generation = 1; generation <= 3; generation++) {
        struct kvt_granted got = kvt_get(world, first, a, 32);

        cr_assert_eq(got.segments[0].generation, generation);
        for (int i = 0; i < 8; i++)
            kvt_hand_in_granted(world, first, a, &got.segments[i]);
        got = kvt_get(world, second, b, 32);
        cr_assert_eq(got.block_count, 32);
        for (int i = 0; i < 8; i++)
            kvt_hand_in_granted(world, second, b, &got.segments[i]);
        kvt_forget(world);
    }
}

/* ---- creation ---- */

Test(grant, creation_that_fails_is_made_up_for_or_refused)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, first, a, 8);

    fill(first, a, 1, &got);
    kvt_request(world, first, a, 2, 0);
    kvt_create_all(world, KVMEM_E_DEVICE_FULL); /* then own entries must go */
    got = kvt_take_grants(world, first);
    cr_assert(got.is_last && got.block_count == 2 && got.adopted_count == 1);
    kvt_world_check(world);
    kvt_space(world, second, "b", KVT_SMALL, 0);
    kvt_request(world, second, kvt_space(world, second, "c", KVT_SMALL, 0), 1, 0);
    kvt_create_all(world, KVMEM_E_SYSTEM);
    got = kvt_take_grants(world, second); /* the other segment, which nobody owns */
    cr_assert_eq(got.block_count, 0);
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).free_bytes, 6 * 4096);
}

Test(grant, creation_that_fails_with_nothing_else_is_refused)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);

    kvt_request(world, first, a, 1, KVI_REQUEST_MAY_WAIT);
    kvt_create_all(world, KVMEM_E_SYSTEM);
    cr_assert_eq(error_of(first), KVMEM_E_SYSTEM);
    kvt_request(world, first, a, 1, 0);
    kvt_create_all(world, KVMEM_E_DEVICE_FULL);
    cr_assert_eq(error_of(first), KVMEM_E_DEVICE_FULL);
    cr_assert_eq(kvt_stats(world).free_bytes, 8 * 4096);
    cr_assert_eq(kvt_get(world, first, a, 32).block_count, 32); /* not held against it */
}

Test(grant, what_is_created_for_nobody_any_more_goes_back)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);

    kvt_space(world, second, "a", KVT_SMALL, 0);
    kvt_request(world, first, a, 8, 0);
    kvi_dir_client_eof(world->dir, first);
    kvt_world_check(world);
    kvt_create_all(world, 0);
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).idle_blocks, 8); /* a space that lives: they stay in it */
    kvt_request(world, second, a, 24, 0);
    cr_assert_eq(world->creating_count, 4);
    kvi_dir_client_exited(world->dir, first);
    kvi_dir_client_exited(world->dir, second);
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).space_count, 1);
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_stats(world).segment_count, 0);
    cr_assert_eq(kvt_stats(world).space_count, 0);
}

Test(grant, more_than_16_segments_take_several_messages)
{
    struct kvt_granted got;
    uint32_t a;

    make_world(kvt_dir_options(50, 4));
    a = kvt_space(world, first, "a", KVT_SMALL, 0);
    got = kvt_get(world, first, a, 40 * 4);
    cr_assert_eq(got.segment_count, 40);
    cr_assert_eq(got.fd_count, 40);
    cr_assert_eq(got.block_count, 160);
    cr_assert_geq(got.messages, 3);
    for (uint32_t i = 0; i < 40; i++)
        kvt_hand_in(world, first, a, got.segments[i].slot, got.segments[i].generation);
    kvt_forget(world);
    got = kvt_get(world, first, a, 160); /* adopted: the same, without descriptors */
    cr_assert_eq(got.segment_count, 40);
    cr_assert_eq(got.fd_count, 0);
    cr_assert_eq(got.messages, 3);
}

/* ---- descriptors in flight ---- */

Test(grant, descriptors_that_are_not_acknowledged_hold_the_rest_back)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);
    struct kvt_granted got;
    uint32_t a;

    options.unacked_fd_limit = 3;
    make_world(options);
    a = kvt_space(world, first, "a", KVT_SMALL, 0);
    world->is_silent[first] = 1;
    kvt_request(world, first, a, 32, 0);
    cr_assert_eq(world->creating_count, 3);
    kvt_create_all(world, 0);
    got = kvt_take_grants(world, first);
    cr_assert(!got.is_last && got.block_count == 12);
    kvt_world_check(world);
    kvt_plain(world, first, KVI_OP_STATS, 0); /* acknowledges nothing */
    kvt_forget(world);
    cr_assert_eq(world->creating_count, 0);
    world->is_silent[first] = 0;
    kvt_plain(world, first, KVI_OP_STATS, 0);
    kvt_forget(world);
    cr_assert_eq(world->creating_count, 3);
    kvt_create_all(world, 0);
    got = kvt_take_grants(world, first);
    cr_assert(!got.is_last && got.block_count == 12);
    kvt_plain(world, first, KVI_OP_STATS, 0);
    kvt_forget(world);
    kvt_create_all(world, 0);
    got = kvt_take_grants(world, first);
    cr_assert(got.is_last && got.block_count == 8);
    cr_assert_eq(kvt_stats(world).grants, 1);
}

Test(grant, adoption_is_held_back_too_and_a_dead_client_holds_nothing)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);
    struct kvt_granted got;
    uint32_t a;

    options.unacked_fd_limit = 2;
    make_world(options);
    a = kvt_space(world, first, "a", KVT_SMALL, 0);
    kvt_space(world, second, "a", KVT_SMALL, 0);
    for (uint32_t i = 0; i < 8; i++) {
        got = kvt_get(world, first, a, 4);
        fill(first, a, 4 * i, &got);
    }
    world->is_silent[second] = 1;
    kvt_request(world, second, a, 32, 0);
    got = kvt_take_grants(world, second);
    cr_assert(!got.is_last && got.fd_count == 2);
    kvt_world_check(world);
    kvi_dir_client_eof(world->dir, second);
    kvi_dir_client_exited(world->dir, second);
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).fds_in_flight, 0);
}

/* ---- ranges ---- */

/* Small blocks, every second one an entry: more ranges than a message holds. */
Test(grant, many_ranges_take_several_messages)
{
    static _Alignas(8) uint8_t buffer[65536];
    struct kvi_dir_options options = kvt_dir_options(64, 4);
    struct kvi_msg_space_open *open = (void *)buffer;
    const struct kvi_rec_group group = {1, 1, 8, 8, 1, 1, 0, 0, 0, {0}};
    struct kvi_msg_publish *publish = (void *)buffer;
    const struct kvi_msg_space_opened *opened;
    const struct kvi_msg_grant *grant;
    uint32_t space, bps, ranges = 0, messages = 0, segments = 0;

    options.devices[0].device_bytes = 64u << 16;
    options.devices[0].granule_bytes = 65536;
    make_world(options);
    kvi_wire_begin(open, KVI_OP_SPACE_OPEN, 1);
    memcpy(open->name, "r", 1);
    memcpy(open->domain, "d", 1);
    open->layout = 1;
    open->block_tokens = 1;
    open->shard_count = open->group_count = 1;
    memcpy(kvi_wire_tail(open, 0), &group, sizeof(group));
    kvt_deliver(world, first, open);
    opened = kvt_take_as(world, first, KVI_OP_SPACE_OPENED);
    cr_assert(opened);
    space = opened->space;
    bps = opened->blocks_per_segment;
    cr_assert_eq(bps, 2048);
    kvt_request(world, first, space, 5 * bps, 0);
    kvt_create_all(world, 0);
    kvt_forget(world);
    for (uint32_t i = 0; i < 5 * bps / 2; i += 512) {
        struct kvi_rec_publication *p;

        kvi_wire_begin(publish, KVI_OP_PUBLISH, 1);
        publish->space = space;
        publish->record_count = 512;
        p = kvi_wire_tail(publish, 0);
        for (uint32_t k = 0; k < 512; k++) {
            p[k] = (struct kvi_rec_publication){.index = 2 * (i + k), .token_count = 1};
            kvt_name(i + k, p[k].name);
        }
        kvt_deliver(world, first, publish);
    }
    for (uint32_t slot = 0; slot < 5; slot++)
        kvt_hand_in(world, first, space, slot, 1);
    kvt_world_check(world);
    kvt_forget(world);
    kvt_request(world, first, space, 5 * bps / 2, 0);
    while ((grant = kvt_take_as(world, first, KVI_OP_GRANT)) != NULL) {
        messages++;
        ranges += grant->range_count;
        segments += grant->segment_count;
        cr_assert_eq(grant->flags, ranges == 5 * bps / 2);
    }
    cr_assert_eq(messages, 2);
    cr_assert_eq(ranges, 5 * bps / 2);
    cr_assert_eq(segments, 5);
    kvt_world_check(world);
}
