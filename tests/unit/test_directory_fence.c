/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences of publications, rule by rule: which are taken, when an entry is a hit, what a look-up
 * lists, and where a fence ends. Timelines: who is given whose page.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "directory/directory_internal.h"
#include "support/dirworld.h"

#define BLOCKS 320u

static struct kvt_world *world;
static uint32_t writer, reader, space;
static uint32_t names[BLOCKS];
static struct kvt_granted got;

static void make_world(uint32_t granules)
{
    struct kvi_dir_options options = kvt_dir_options(granules, 8);

    kvt_world_end(world);
    world = kvt_world_of_two(&options, &writer, &reader);
    space = kvt_space(world, writer, "a", KVT_SMALL, 0);
    kvt_space(world, reader, "a", KVT_SMALL, 0);
    got = kvt_get(world, writer, space, 16);
    kvt_forget(world);
}

static void set_up(void)
{
    make_world(100);
    for (uint32_t i = 0; i < BLOCKS; i++)
        names[i] = 1 + i;
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(fence, .init = set_up, .fini = tear_down, .timeout = 20);

static uint32_t timeline_of(uint32_t client, uint32_t lane)
{
    return world->dir->clients[client].session_serial * KVI_LANE_COUNT + lane;
}

static uint32_t publish_state(const struct kvi_rec_publication *record)
{
    static _Alignas(8) uint8_t buffer[1024];
    struct kvi_msg_publish *m = (void *)buffer;
    const struct kvi_rec_state *states;

    kvi_wire_begin(m, KVI_OP_PUBLISH, 1);
    m->space = space;
    m->record_count = 1;
    memcpy(kvi_wire_tail(m, 0), record, sizeof(*record));
    kvt_deliver(world, writer, m);
    states = kvi_wire_tail_const(kvt_take_as(world, writer, KVI_OP_PUBLISH_REPLY), 0);
    kvt_world_check(world);
    return states[0].state;
}

/* Publish blocks[first ...] as names first + 1 ...; all must become entries. */
static void publish(uint32_t first, uint32_t count, const struct kvt_fence *fences)
{
    uint64_t before = kvt_stats(world).published_blocks;

    kvt_publish_fenced(world, writer, space, count, names + first, got.blocks + first, fences);
    cr_assert_eq(kvt_stats(world).published_blocks - before, count);
    kvt_world_check(world);
    kvt_forget(world);
}

/* The answer to a look-up of the names 1, 2, ... */
static const struct kvi_msg_lookup_reply *look_up(uint32_t client, uint32_t count, uint32_t flags)
{
    const struct kvi_msg_lookup_reply *reply;

    kvt_forget(world);
    kvt_lookup(world, client, space, count, names, flags);
    reply = kvt_take_as(world, client, KVI_OP_LOOKUP_REPLY);
    cr_assert(reply);
    kvt_world_check(world);
    return reply;
}

static const struct kvi_rec_fence *fences_of(const struct kvi_msg_lookup_reply *reply)
{
    return kvi_wire_tail_const(reply, 1);
}

static uint32_t pending(void)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < world->dir->segment_high; i++)
        count += world->dir->segments[i].fence_count;
    return count;
}

/* ---- publishing ---- */

Test(fence, publish_takes_fences_in_their_range)
{
    struct kvi_rec_publication good = {.index = got.blocks[0],
                                       .token_count = KVT_BLOCK_TOKENS,
                                       .fence_kind = KVMEM_FENCE_TIMELINE,
                                       .fence_lane = 63,
                                       .fence_value = KVI_FENCE_LIMIT - 1};
    struct kvi_rec_publication bad = good;

    bad.fence_value = 0;
    cr_assert_eq(publish_state(&bad), KVMEM_PUBLISH_REFUSED);
    bad.fence_value = KVI_FENCE_LIMIT;
    cr_assert_eq(publish_state(&bad), KVMEM_PUBLISH_REFUSED);
    bad.fence_value = UINT64_MAX;
    cr_assert_eq(publish_state(&bad), KVMEM_PUBLISH_REFUSED);
    for (uint32_t kind = KVMEM_FENCE_NONE; kind < KVMEM_FENCE_TIMELINE; kind++) {
        bad = good;
        bad.fence_kind = kind;
        cr_assert_eq(publish_state(&bad), KVMEM_PUBLISH_REFUSED, "%u", kind);
    }
    bad = (struct kvi_rec_publication){
        .index = got.blocks[0], .token_count = KVT_BLOCK_TOKENS, .fence_lane = 1};
    cr_assert_eq(publish_state(&bad), KVMEM_PUBLISH_REFUSED);
    cr_assert_eq(kvt_stats(world).entry_blocks, 0);
    cr_assert_eq(publish_state(&good), KVMEM_PUBLISHED);
    cr_assert_eq(pending(), 1);
    good.index = got.blocks[1];
    good.name[0] = 1;
    good.fence_lane = 0;
    good.fence_value = 1;
    cr_assert_eq(publish_state(&good), KVMEM_PUBLISHED);
    cr_assert_eq(pending(), 2);
}

Test(fence, without_timelines_every_fence_is_refused)
{
    struct kvi_rec_publication p = {.index = got.blocks[0],
                                    .token_count = KVT_BLOCK_TOKENS,
                                    .fence_kind = KVMEM_FENCE_TIMELINE,
                                    .fence_value = 1};

    world->dir->env.timeline_reached = NULL;
    cr_assert_eq(publish_state(&p), KVMEM_PUBLISH_REFUSED);
    p.fence_kind = KVMEM_FENCE_NONE;
    p.fence_value = 0;
    cr_assert_eq(publish_state(&p), KVMEM_PUBLISHED);
}

Test(fence, a_client_of_version_1_has_no_fences)
{
    struct kvi_rec_publication p = {.index = got.blocks[0],
                                    .token_count = KVT_BLOCK_TOKENS,
                                    .fence_kind = KVMEM_FENCE_TIMELINE,
                                    .fence_value = 1};

    world->dir->clients[writer].version = 1;
    cr_assert_eq(publish_state(&p), KVMEM_PUBLISH_REFUSED);
}

Test(fence, one_that_is_reached_already_is_not_kept)
{
    world->lanes[writer][5] = 7;
    publish(0, 2, (struct kvt_fence[]){{5, 7}, {5, 8}});
    cr_assert_eq(pending(), 1);
    cr_assert_eq(look_up(reader, 1, 0)->fence_count, 0);
}

/* ---- looking up ---- */

Test(fence, a_look_up_lists_each_lane_once_with_its_highest_value)
{
    const struct kvi_msg_lookup_reply *reply;
    const struct kvi_rec_fence *fences;

    publish(0, 6, (struct kvt_fence[]){{3, 10}, {0, 0}, {3, 12}, {9, 5}, {3, 11}, {9, 5}});
    reply = look_up(reader, 6, 0);
    cr_assert_eq(reply->hit_count, 6);
    cr_assert_eq(reply->record_count, 6);
    cr_assert_eq(reply->foreign_hits, 6);
    cr_assert_eq(reply->fence_count, 2);
    fences = fences_of(reply);
    cr_assert_eq(fences[0].kind, KVMEM_FENCE_TIMELINE);
    cr_assert_eq(fences[0].timeline, timeline_of(writer, 3));
    cr_assert_eq(fences[0].value, 12);
    cr_assert_eq(fences[1].timeline, timeline_of(writer, 9));
    cr_assert_eq(fences[1].value, 5);
    cr_assert_eq(pending(), 5);
    cr_assert_eq(kvt_stats(world).lease_count, 12);
}

Test(fence, fences_that_are_reached_are_forgotten_at_a_look_up)
{
    const struct kvi_msg_lookup_reply *reply;

    publish(0, 4, (struct kvt_fence[]){{3, 10}, {3, 11}, {4, 1}, {4, 2}});
    world->lanes[writer][3] = 10;
    world->lanes[writer][4] = 100;
    cr_assert_eq(pending(), 4); /* nobody has looked */
    reply = look_up(reader, 4, 0);
    cr_assert_eq(reply->hit_count, 4);
    cr_assert_eq(reply->fence_count, 1);
    cr_assert_eq(fences_of(reply)->value, 11);
    cr_assert_eq(pending(), 1);
    world->lanes[writer][3] = 11;
    cr_assert_eq(look_up(reader, 4, 0)->fence_count, 0);
    cr_assert_eq(pending(), 0);
}

Test(fence, the_publisher_gets_its_own_fences_too)
{
    const struct kvi_msg_lookup_reply *reply;

    publish(0, 1, (struct kvt_fence[]){{3, 10}});
    reply = look_up(writer, 1, 0);
    cr_assert_eq(reply->hit_count, 1);
    cr_assert_eq(reply->foreign_hits, 0);
    cr_assert_eq(reply->fence_count, 1);
}

Test(fence, a_peek_counts_entries_that_are_not_ready_and_lists_nothing)
{
    const struct kvi_msg_lookup_reply *reply;

    publish(0, 2, (struct kvt_fence[]){{3, 10}, {3, 11}});
    world->lanes[writer][3] = 10;
    reply = look_up(reader, 2, KVI_LOOKUP_PEEK);
    cr_assert_eq(reply->hit_count, 2);
    cr_assert_eq(reply->fence_count, 0);
    cr_assert_eq(reply->record_count, 0);
    cr_assert_eq(pending(), 1);
}

Test(fence, a_client_of_version_1_misses_what_is_not_ready)
{
    uint32_t old = kvt_join_old(world, KVMEM_ROLE_LEADER, 1);
    const struct kvi_msg_lookup_reply *reply;

    kvt_space(world, old, "a", KVT_SMALL, 0);
    publish(0, 4, (struct kvt_fence[]){{0, 0}, {3, 1}, {3, 2}, {0, 0}});
    world->lanes[writer][3] = 1;
    reply = look_up(old, 4, 0);
    cr_assert_eq(reply->hit_count, 2);
    cr_assert_eq(reply->record_count, 2);
    cr_assert_eq(reply->foreign_hits, 2);
    cr_assert_eq(reply->fence_count, 0);
    cr_assert_eq(look_up(old, 4, KVI_LOOKUP_PEEK)->hit_count, 2);
    cr_assert_eq(world->dir->segments[0].entries[2].lease_count, 1);
    world->lanes[writer][3] = 2;
    cr_assert_eq(look_up(old, 4, 0)->hit_count, 4);
}

/* Five producers with 64 lanes each are more than a reply holds. */
Test(fence, a_run_is_cut_before_the_fence_that_does_not_fit)
{
    const struct kvi_msg_lookup_reply *reply;

    for (uint32_t p = 0; p < 5; p++) {
        uint32_t producer = kvt_join(world, KVMEM_ROLE_LEADER);
        struct kvt_fence fences[KVI_LANE_COUNT];
        struct kvt_granted own;

        kvt_space(world, producer, "a", KVT_SMALL, 0);
        own = kvt_get(world, producer, space, KVI_LANE_COUNT);
        for (uint32_t i = 0; i < KVI_LANE_COUNT; i++)
            fences[i] = (struct kvt_fence){i, 10 + p};
        kvt_publish_fenced(world, producer, space, KVI_LANE_COUNT, names + p * KVI_LANE_COUNT,
                           own.blocks, fences);
        kvt_forget(world);
    }
    reply = look_up(reader, 320, 0);
    cr_assert_eq(reply->hit_count, 256);
    cr_assert_eq(reply->record_count, 256);
    cr_assert_eq(reply->foreign_hits, 256);
    cr_assert_eq(reply->fence_count, 256);
    cr_assert_eq(fences_of(reply)[255].value, 13);
    cr_assert_eq(kvt_stats(world).hit_blocks, 256);
    cr_assert_eq(world->dir->clients[reader].lease_count, 256); /* none for what was cut */
    cr_assert_eq(look_up(reader, 320, KVI_LOOKUP_PEEK)->hit_count, 320);
    /* One that is on the list already still fits behind the 256th. */
    names[256] = names[0];
    reply = look_up(reader, 258, 0);
    cr_assert_eq(reply->hit_count, 257);
    cr_assert_eq(reply->fence_count, 256);
}

/* ---- where a fence ends ---- */

Test(fence, eviction_takes_it_along)
{
    struct kvi_rec_publication again = {.token_count = KVT_BLOCK_TOKENS, .name = {7}};
    struct kvt_granted more;

    make_world(4); /* all of which the writer has */
    publish(0, 4, (struct kvt_fence[]){{1, 1}, {1, 2}, {1, 3}, {1, 4}});
    kvt_release(world, writer, space, 2, got.blocks);
    more = kvt_get(world, writer, space, 1);
    cr_assert_eq(more.blocks[0], got.blocks[0]);
    cr_assert_eq(pending(), 3);
    again.index = got.blocks[0];
    cr_assert_eq(publish_state(&again), KVMEM_PUBLISHED);
    cr_assert_eq(pending(), 3); /* none of the one before */
    kvt_release(world, writer, space, 4, got.blocks);
    kvt_hand_in_granted(world, writer, space, &got.segments[0]);
    more = kvt_get(world, writer, space, 4); /* the segment as a whole */
    cr_assert_eq(more.block_count, 4);
    cr_assert_eq(pending(), 0);
}

/* ---- the end of a publisher ---- */

static uint64_t hits_of(uint32_t count)
{
    return look_up(reader, count, KVI_LOOKUP_PEEK)->hit_count;
}

static void end_writer(void)
{
    kvi_dir_client_eof(world->dir, writer);
    kvt_world_check(world);
    kvi_dir_client_exited(world->dir, writer);
    kvt_world_check(world);
}

Test(fence, what_a_dead_publisher_did_not_reach_is_a_miss)
{
    publish(0, 4, (struct kvt_fence[]){{0, 0}, {1, 5}, {1, 6}, {1, 4}});
    world->lanes[writer][1] = 5;
    kvi_dir_client_eof(world->dir, writer);
    cr_assert_eq(hits_of(4), 4); /* it may still get there */
    cr_assert_eq(pending(), 1);
    world->lanes[writer][1] = 5;
    kvi_dir_client_exited(world->dir, writer);
    cr_assert_eq(hits_of(4), 2);
    cr_assert_eq(kvt_peek(world, reader, space, 4, 1), 1); /* reached, and not looked at before */
    cr_assert_eq(pending(), 0);
    cr_assert_eq(kvt_stats(world).entry_blocks, 3);
    cr_assert_eq(kvt_stats(world).evicted_blocks, 1);
    cr_assert_eq(kvt_stats(world).lease_count, 0);
    cr_assert_eq(kvt_stats(world).idle_blocks, 13);
    kvt_world_check(world);
}

Test(fence, a_goodbye_breaks_them_too)
{
    publish(0, 2, (struct kvt_fence[]){{1, 5}, {1, 6}});
    world->lanes[writer][1] = 5;
    kvt_plain(world, writer, KVI_OP_GOODBYE, 0);
    kvt_world_check(world);
    kvi_dir_client_eof(world->dir, writer);
    cr_assert_eq(hits_of(2), 1);
    cr_assert_eq(pending(), 0);
}

Test(fence, what_others_hold_of_it_stays_theirs_without_its_name)
{
    struct kvt_granted more;

    publish(0, 3, (struct kvt_fence[]){{1, 5}, {1, 6}, {1, 7}});
    cr_assert_eq(look_up(reader, 1, 0)->hit_count, 1);
    kvt_pin(world, reader, space, 1, (uint32_t[]){2}, 0);
    end_writer();
    cr_assert_eq(hits_of(3), 0);
    cr_assert_eq(kvt_peek(world, reader, space, 2, 2), 0);
    cr_assert_eq(kvt_stats(world).entry_blocks, 2); /* the third was nobody's */
    cr_assert_eq(kvt_stats(world).leased_blocks, 2);
    cr_assert_eq(kvt_stats(world).lease_count, 1);
    cr_assert_eq(kvt_stats(world).pin_count, 1);
    cr_assert_eq(pending(), 0);
    /* Its block is not given to anybody before the lease ends; then it is. */
    more = kvt_get(world, reader, space, 400);
    for (uint32_t i = 0; i < more.block_count; i++)
        cr_assert_neq(more.blocks[i], got.blocks[0]);
    kvt_release(world, reader, space, 1, got.blocks);
    cr_assert_eq(kvt_get(world, reader, space, 1).blocks[0], got.blocks[0]);
    kvt_world_check(world);
}

/* Somebody has adopted the segment meanwhile, and would not know of one more free block. */
Test(fence, in_the_segment_of_another_owner_it_stays_to_be_evicted)
{
    struct kvt_granted more;

    make_world(4);
    publish(0, 3, (struct kvt_fence[]){{1, 5}, {0, 0}, {0, 0}});
    kvt_release(world, writer, space, 3, got.blocks);
    kvt_hand_in_granted(world, writer, space, &got.segments[0]);
    cr_assert_eq(kvt_get(world, reader, space, 1).adopted_count, 1);
    end_writer();
    cr_assert_eq(hits_of(1), 0);
    cr_assert_eq(kvt_stats(world).entry_blocks, 3);
    more = kvt_get(world, reader, space, 13); /* 12 idle ones, and the oldest entry */
    cr_assert_eq(more.block_count, 13);
    cr_assert_eq(kvt_stats(world).entry_blocks, 2);
    cr_assert_eq(kvt_peek(world, reader, space, 2, 2), 2);
    kvt_world_check(world);
}

Test(fence, the_name_is_free_for_the_next_publisher)
{
    struct kvt_granted own = kvt_get(world, reader, space, 4);

    publish(0, 1, (struct kvt_fence[]){{1, 5}});
    look_up(reader, 1, 0);
    kvt_publish(world, reader, space, 1, names, own.blocks);
    cr_assert_eq(kvt_stats(world).publish_exists_blocks, 1);
    end_writer();
    kvt_publish_all(world, reader, space, names[0], 1, own.blocks);
    cr_assert_eq(look_up(reader, 1, 0)->hit_count, 1);
    cr_assert_eq(kvt_stats(world).entry_blocks, 2);
}

Test(fence, a_space_that_only_broken_entries_kept_ends)
{
    publish(0, 2, (struct kvt_fence[]){{1, 5}, {1, 6}});
    kvt_close(world, reader, space);
    end_writer();
    cr_assert_eq(kvt_stats(world).space_count, 0);
    cr_assert_eq(kvt_stats(world).segment_count, 0);
}

Test(fence, fences_of_others_are_left_alone)
{
    struct kvt_granted own = kvt_get(world, reader, space, 4);

    publish(0, 1, (struct kvt_fence[]){{1, 5}});
    kvt_publish_fenced(world, reader, space, 1, (uint32_t[]){200}, own.blocks,
                       (struct kvt_fence[]){{1, 5}});
    end_writer();
    cr_assert_eq(pending(), 1);
    cr_assert_eq(kvt_peek(world, reader, space, 200, 1), 1);
}

/* Waiting requests are served from what breaks. */
Test(fence, broken_blocks_feed_those_who_wait)
{
    make_world(4);
    publish(0, 16, (const struct kvt_fence[16]){{1, 5}, {1, 5}});
    kvt_lookup(world, reader, space, 16, names, 0);
    kvt_forget(world);
    kvt_request(world, reader, space, 2, KVI_REQUEST_MAY_WAIT);
    kvt_release(world, reader, space, 2, got.blocks);
    kvt_forget(world);
    end_writer();
    cr_assert_eq(kvt_take_grants(world, reader).block_count, 2);
}

/* ---- timelines ---- */

static void ask_timeline(uint32_t client, uint32_t timeline, uint32_t is_own)
{
    struct kvi_msg_timeline_map m;

    kvt_forget(world);
    kvi_wire_begin(&m, KVI_OP_TIMELINE_MAP, 9);
    m.timeline = timeline;
    m.is_own = is_own;
    kvt_deliver(world, client, &m);
    kvt_world_check(world);
}

static void expect_refused(uint32_t client, uint32_t timeline, uint32_t is_own, int code,
                           const char *word)
{
    uint64_t digest;

    kvt_plain(world, client, KVI_OP_ACKNOWLEDGE, 0);
    digest = kvi_dir_digest(world->dir);
    ask_timeline(client, timeline, is_own);
    cr_assert_eq(kvt_take_error(world, client, word), code, "%s", word);
    cr_assert(kvt_is_quiet(world));
    cr_assert_eq(kvi_dir_digest(world->dir), digest);
}

static void expect_page(uint32_t client, uint32_t timeline, uint32_t is_own, uint32_t producer)
{
    uint64_t in_flight = kvt_stats(world).fds_in_flight;
    const struct kvi_msg_timeline_fd *reply;

    ask_timeline(client, timeline, is_own);
    reply = kvt_take_as(world, client, KVI_OP_TIMELINE_FD);
    cr_assert(reply);
    cr_assert_eq(reply->header.serial, 9);
    cr_assert_eq(reply->header.fds_received, 1);
    cr_assert_eq(reply->timeline, timeline_of(producer, 0));
    cr_assert_eq(reply->client, producer);
    cr_assert_leq(kvt_stats(world).fds_in_flight, in_flight + 1);
    cr_assert_geq(kvt_stats(world).fds_in_flight, 1);
}

Test(fence, a_client_gets_its_own_page_always)
{
    uint32_t lonely = kvt_join(world, KVMEM_ROLE_LEADER);

    expect_page(lonely, 0, 1, lonely);
    expect_page(lonely, timeline_of(lonely, 17), 0, lonely);
    expect_refused(lonely, 64, 1, KVMEM_E_INVALID, "timeline_map.timeline");
}

Test(fence, another_page_needs_a_space_in_the_same_domain)
{
    uint32_t stranger = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t in_b;

    expect_page(reader, timeline_of(writer, 63), 0, writer);
    expect_page(writer, timeline_of(reader, 0), 0, reader);
    expect_refused(stranger, timeline_of(writer, 0), 0, KVMEM_E_PERMISSION, "sharing domain");
    expect_refused(writer, timeline_of(stranger, 0), 0, KVMEM_E_PERMISSION, "sharing domain");
    kvt_space(world, stranger, "a@other", KVT_SMALL, 0);
    expect_refused(stranger, timeline_of(writer, 0), 0, KVMEM_E_PERMISSION, "sharing domain");
    in_b = kvt_space(world, stranger, "b", KVT_SMALL, 0);
    expect_page(stranger, timeline_of(writer, 0), 0, writer);
    kvt_close(world, stranger, in_b);
    expect_refused(stranger, timeline_of(writer, 0), 0, KVMEM_E_PERMISSION, "sharing domain");
}

Test(fence, the_page_stays_until_its_producer_is_reclaimed)
{
    uint32_t timeline = timeline_of(writer, 5);

    kvi_dir_client_eof(world->dir, writer);
    expect_page(reader, timeline, 0, writer);
    kvi_dir_client_exited(world->dir, writer);
    expect_refused(reader, timeline, 0, KVMEM_E_NOT_FOUND, "gone");
    cr_assert_eq(kvt_join(world, KVMEM_ROLE_LEADER), writer); /* the same place, another session */
    expect_refused(reader, timeline, 0, KVMEM_E_NOT_FOUND, "gone");
    expect_refused(reader, UINT32_MAX, 0, KVMEM_E_NOT_FOUND, "gone");
    expect_refused(reader, 0, 0, KVMEM_E_NOT_FOUND, "gone");
}

Test(fence, without_timelines_there_are_no_pages)
{
    world->dir->env.timeline_reached = NULL;
    expect_refused(writer, 0, 1, KVMEM_E_NOT_SUPPORTED, "timeline_map");
}

Test(fence, pages_wait_for_descriptors_to_be_acknowledged)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);

    kvt_world_end(world);
    options.unacked_fd_limit = 2;
    world = kvt_world_of_two(&options, &writer, &reader);
    world->is_silent[writer] = 1;
    expect_page(writer, 0, 1, writer);
    expect_page(writer, 0, 1, writer);
    expect_refused(writer, 0, 1, KVMEM_E_BUSY, "acknowledge");
    world->is_silent[writer] = 0;
    expect_page(writer, 0, 1, writer);
    kvt_plain(world, writer, KVI_OP_STATS, 0);
    cr_assert_eq(kvt_stats(world).fds_in_flight, 0);
}

/* After 2^26 sessions names of timelines come round; those in use are passed over. */
Test(fence, two_clients_never_share_a_name)
{
    uint32_t first = world->dir->clients[writer].session_serial, late;

    world->dir->session_serial = (1u << 26) + first - 1;
    late = kvt_join(world, KVMEM_ROLE_LEADER);
    cr_assert_eq(world->dir->clients[late].session_serial, (1u << 26) + first + 2);
    kvt_space(world, late, "a", KVT_SMALL, 0);
    expect_page(reader, timeline_of(late, 0), 0, late);
    expect_page(reader, timeline_of(writer, 0), 0, writer);
    world->dir->session_serial = UINT32_MAX;
    late = kvt_join(world, KVMEM_ROLE_LEADER);
    cr_assert_eq(world->dir->clients[late].session_serial, first + 3);
}

Test(fence, observers_have_no_timeline)
{
    uint32_t observer = kvt_join(world, KVMEM_ROLE_OBSERVER);

    expect_refused(observer, 0, 1, KVMEM_E_PERMISSION, "observer");
}
