/* SPDX-License-Identifier: Apache-2.0
 *
 * A device on which the exit of a process proves nothing (MPS): what a dead client owned is given
 * to nobody before it was released and created afresh, and is of use in the meantime.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "directory/directory_internal.h"
#include "support/dirworld.h"

#define SEGMENTS 8u

static struct kvt_world *world;
static uint32_t dead, reader, space;
static struct kvt_granted had; /* three segments: two entries, four, none */

static struct kvi_dir_options make_options(void)
{
    struct kvi_dir_options options = kvt_dir_options(SEGMENTS, 4);

    options.devices[0].exit_proves_nothing = 1;
    return options;
}

static void make_world(struct kvi_dir_options options, uint64_t quota_bytes)
{
    kvt_world_end(world);
    world = kvt_world_of_two(&options, &dead, &reader);
    space = kvt_space(world, dead, "a", KVT_SMALL, quota_bytes);
    kvt_space(world, reader, "a", KVT_SMALL, 0);
    had = kvt_get(world, dead, space, 12);
    kvt_publish_all(world, dead, space, 1, 2, had.blocks);
    kvt_publish_all(world, dead, space, 3, 4, had.blocks + 4);
    kvt_forget(world);
}

static void set_up(void)
{
    make_world(make_options(), 0);
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(taint, .init = set_up, .fini = tear_down, .timeout = 20);

static void die(void)
{
    kvi_dir_client_eof(world->dir, dead);
    kvt_world_check(world);
    kvi_dir_client_exited(world->dir, dead);
    kvt_world_check(world);
    kvt_forget(world);
}

static uint32_t state_of(uint32_t number)
{
    return world->dir->segments[number].state;
}

static uint32_t hits_of(uint32_t first_name, uint32_t count)
{
    return kvt_peek(world, reader, space, first_name, count);
}

/* ---- what becomes tainted ---- */

Test(taint, what_a_dead_client_owned)
{
    kvi_dir_client_eof(world->dir, dead);
    for (uint32_t i = 0; i < 3; i++)
        cr_assert_eq(state_of(i), KVI_SEGMENT_QUARANTINED);
    cr_assert_eq(world->dir->tainted_count, 0);
    kvi_dir_client_exited(world->dir, dead);
    kvt_world_check(world);
    cr_assert_eq(world->dir->tainted_count, 2);
    cr_assert_eq(state_of(0), KVI_SEGMENT_HANDED_IN);
    cr_assert_eq(state_of(1), KVI_SEGMENT_HANDED_IN);
    cr_assert_eq(state_of(2), KVI_SEGMENT_FREE); /* nothing was in it */
    cr_assert_eq(kvt_stats(world).released_segments, 1);
    cr_assert_eq(kvt_stats(world).orphaned_segments, 3);
    cr_assert_eq(kvt_stats(world).evicted_blocks, 0);
}

Test(taint, not_what_it_had_handed_in)
{
    kvt_hand_in_granted(world, dead, space, &had.segments[0]);
    die();
    cr_assert_eq(world->dir->tainted_count, 1);
    cr_assert_eq(kvt_get(world, reader, space, 2).segments[0].slot, had.segments[0].slot);
}

Test(taint, not_after_a_goodbye)
{
    kvt_plain(world, dead, KVI_OP_GOODBYE, 0);
    kvi_dir_client_eof(world->dir, dead);
    cr_assert_eq(world->dir->tainted_count, 0);
    cr_assert_eq(kvt_stats(world).released_segments, 0);
    cr_assert_eq(kvt_get(world, reader, space, 6).adopted_count, 2);
}

Test(taint, not_where_an_exit_is_a_proof)
{
    make_world(kvt_dir_options(SEGMENTS, 4), 0);
    die();
    cr_assert_eq(world->dir->tainted_count, 0);
    cr_assert_eq(kvt_stats(world).released_segments, 0);
    cr_assert_eq(kvt_get(world, reader, space, 6).adopted_count, 2);
}

/* What was being created for it was never its own. */
Test(taint, not_what_it_never_got)
{
    kvt_request(world, dead, space, 4, 0);
    die();
    kvt_create_all(world, 0);
    cr_assert_eq(world->dir->tainted_count, 2);
    cr_assert_eq(kvt_get(world, reader, space, 4).adopted_count, 1);
}

/* ---- what it is good for ---- */

Test(taint, its_entries_are_found_and_leased)
{
    const struct kvi_msg_lookup_reply *reply;

    die();
    kvt_lookup(world, reader, space, 6, (uint32_t[]){1, 2, 3, 4, 5, 6}, 0);
    reply = kvt_take_as(world, reader, KVI_OP_LOOKUP_REPLY);
    cr_assert_eq(reply->hit_count, 6);
    kvt_map(world, reader, space, 1,
            &(struct kvi_rec_segment_ref){had.segments[0].slot, had.segments[0].generation});
    cr_assert(kvt_take_as(world, reader, KVI_OP_SEGMENT_FDS));
    kvt_world_check(world);
}

Test(taint, its_idle_blocks_are_given_to_nobody)
{
    struct kvt_granted got;

    die();
    got = kvt_get(world, reader, space, 24); /* six segments are free */
    cr_assert_eq(got.adopted_count, 0);
    cr_assert_eq(got.segment_count, 6);
    cr_assert_eq(world->dir->tainted_count, 2);
    cr_assert_eq(hits_of(1, 6), 6);
    cr_assert_eq(got.obtainable_blocks, 8); /* what could be made of these two */
    kvt_world_check(world);
}

/* ---- where it ends ---- */

Test(taint, when_memory_is_wanted_it_is_created_afresh)
{
    struct kvt_granted got;
    uint64_t created;

    die();
    got = kvt_get(world, reader, space, 24);
    kvt_publish_all(world, reader, space, 100, 24, got.blocks);
    kvt_release(world, reader, space, 24, got.blocks);
    kvt_lookup(world, reader, space, 1, (uint32_t[]){1}, 0); /* newer than all of these */
    kvt_release(world, reader, space, 1, had.blocks);
    created = kvt_stats(world).created_segments;
    kvt_forget(world);
    kvt_request(world, reader, space, 1, 0);
    cr_assert_eq(world->creating_count, 1);
    cr_assert_eq(world->dir->tainted_count, 1);
    kvt_create_all(world, 0);
    got = kvt_take_grants(world, reader);
    cr_assert_eq(got.block_count, 4);
    cr_assert_eq(got.segments[0].flags, KVI_SEGMENT_HAS_FD);
    cr_assert_eq(got.segments[0].generation, had.segments[0].generation + 1);
    cr_assert_eq(kvt_stats(world).created_segments, created + 1);
    cr_assert_eq(kvt_stats(world).evicted_segments, 1);
    cr_assert_eq(hits_of(1, 2), 0);
    cr_assert_eq(hits_of(3, 4), 4);
    cr_assert_eq(hits_of(100, 24), 24); /* these had to give nothing */
    kvt_world_check(world);
}

Test(taint, not_while_an_entry_is_leased)
{
    die();
    kvt_lookup(world, reader, space, 2, (uint32_t[]){1, 2}, 0);
    kvt_pin(world, reader, space, 1, (uint32_t[]){3}, 0);
    cr_assert_eq(kvt_get(world, reader, space, 32).block_count, 24);
    cr_assert_eq(hits_of(1, 6), 6);
    kvt_request(world, reader, space, 1, 0);
    cr_assert_eq(kvt_take_error(world, reader, NULL), KVMEM_E_DEVICE_FULL);
    kvt_release(world, reader, space, 2, had.blocks);
    cr_assert_eq(kvt_get(world, reader, space, 1).block_count, 4);
    kvt_world_check(world);
}

Test(taint, for_another_space_it_is_not_moved)
{
    uint32_t other;

    die();
    other = kvt_space(world, reader, "b", KVT_SMALL, 0);
    cr_assert_eq(kvt_get(world, reader, other, 32).block_count, 32);
    cr_assert_eq(world->dir->moved_segments, 0);
    cr_assert_eq(world->dir->tainted_count, 0);
    cr_assert_eq(hits_of(1, 6), 0);
    kvt_world_check(world);
}

Test(taint, under_a_quota_it_makes_room_for_its_own_space)
{
    struct kvt_granted got;

    make_world(make_options(), 3 * 4096);
    die();
    cr_assert_eq(kvt_get(world, reader, space, 1).obtainable_blocks, 8);
    got = kvt_get(world, reader, space, 8);
    cr_assert_eq(got.block_count, 8);
    cr_assert_eq(world->dir->tainted_count, 0);
    cr_assert_eq(kvt_stats(world).segment_count, 3);
    kvt_world_check(world);
}

/* Segments of others are of no use to a space at its quota. */
Test(taint, under_a_quota_others_keep_theirs)
{
    uint32_t other;

    die();
    other = kvt_space(world, reader, "b", KVT_SMALL, 4096);
    cr_assert_eq(kvt_get(world, reader, other, 32).block_count, 4);
    kvt_forget(world);
    kvt_request(world, reader, other, 1, 0);
    cr_assert_eq(kvt_take_error(world, reader, NULL), KVMEM_E_QUOTA);
    cr_assert_eq(world->dir->tainted_count, 2);
}

Test(taint, descriptors_in_flight_keep_it)
{
    struct kvi_dir_options options = make_options();

    options.unacked_fd_limit = 6;
    make_world(options, 0);
    die();
    world->is_silent[reader] = 1;
    cr_assert_eq(kvt_get(world, reader, space, 28).block_count, 24);
    cr_assert_eq(world->dir->tainted_count, 2);
    world->is_silent[reader] = 0;
    kvt_plain(world, reader, KVI_OP_ACKNOWLEDGE, 0);
    kvt_create_all(world, 0);
    cr_assert_eq(world->dir->tainted_count, 1);
    kvt_world_check(world);
}

Test(taint, where_mapped_bytes_stay_it_drains)
{
    struct kvi_dir_options options = make_options();

    options.devices[0].releases_reclaim_mapped = 0;
    make_world(options, 0);
    die();
    kvt_map(world, reader, space, 1,
            &(struct kvi_rec_segment_ref){had.segments[0].slot, had.segments[0].generation});
    kvt_forget(world);
    kvt_request(world, reader, space, 28, 0);
    cr_assert(kvt_take_as(world, reader, KVI_OP_SEGMENT_GONE));
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_take_grants(world, reader).block_count, 28); /* of the other one's bytes */
    cr_assert_eq(state_of(0), KVI_SEGMENT_DRAINING);
    cr_assert_eq(world->dir->tainted_count, 0);
    kvt_world_check(world);
}

Test(taint, a_broken_entry_may_be_the_last)
{
    make_world(make_options(), 0);
    kvt_publish_fenced(world, dead, space, 1, (uint32_t[]){50}, had.blocks + 8,
                       (struct kvt_fence[]){{1, 1}});
    die();
    cr_assert_eq(state_of(2), KVI_SEGMENT_FREE);
    cr_assert_eq(kvt_stats(world).released_segments, 1);
}

Test(taint, a_space_ends_with_it)
{
    kvt_close(world, reader, space);
    die();
    cr_assert_eq(kvt_stats(world).space_count, 1);
    cr_assert_eq(
        kvt_get(world, reader, kvt_space(world, reader, "b", KVT_SMALL, 0), 32).block_count, 32);
    cr_assert_eq(kvt_stats(world).space_count, 1);
    cr_assert_eq(world->dir->tainted_count, 0);
}

Test(taint, the_check_knows)
{
    char text[256];
    uint64_t digest;

    die();
    digest = kvi_dir_digest(world->dir);
    world->dir->segments[0].is_tainted = 0;
    cr_assert_neq(kvi_dir_digest(world->dir), digest);
    cr_assert_eq(kvi_dir_check(world->dir, text, sizeof(text)), KVMEM_E_CORRUPT);
    cr_assert(strstr(text, "counts 2 tainted ones, has 1"), "%s", text);
    world->dir->segments[0].is_tainted = 1;
    world->dir->options.devices[0].exit_proves_nothing = 0;
    cr_assert_eq(kvi_dir_check(world->dir, text, sizeof(text)), KVMEM_E_CORRUPT);
    cr_assert(strstr(text, "segment 0: is tainted"), "%s", text);
    world->dir->options.devices[0].exit_proves_nothing = 1;
}
