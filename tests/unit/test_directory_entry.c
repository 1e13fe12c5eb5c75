/* SPDX-License-Identifier: Apache-2.0
 *
 * The directory, rule by rule: publishing, looking up, leases, pins, maps, the end of clients,
 * reports.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "directory/directory_internal.h"
#include "support/dirworld.h"

static struct kvt_world *world;

static void set_up(void)
{
    struct kvi_dir_options options = kvt_dir_options(16, 8);

    world = kvt_world_create(&options);
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(entry, .init = set_up, .fini = tear_down, .timeout = 20);

/* ---- entries ---- */

static const struct kvi_rec_state *publish(uint32_t client, uint32_t space, uint32_t count,
                                           const uint32_t *names, const uint32_t *blocks)
{
    const struct kvi_msg_publish_reply *reply;

    kvt_publish(world, client, space, count, names, blocks);
    reply = kvt_take_as(world, client, KVI_OP_PUBLISH_REPLY);
    cr_assert(reply && reply->record_count == count);
    return kvi_wire_tail_const(reply, 0);
}

Test(entry, publish_answers_for_each_block)
{
    uint32_t owner = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t other = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, owner, "a", KVT_SMALL, 0);
    uint32_t b[8];
    const struct kvi_rec_state *states;
    struct kvt_granted got = kvt_get(world, owner, space, 8);

    kvt_space(world, other, "a", KVT_SMALL, 0);
    memcpy(b, got.blocks, sizeof(b));
    states = publish(owner, space, 7, (uint32_t[]){1, 2, 1, 1, 3, 4, 5},
                     (uint32_t[]){b[0], b[1], b[2], b[0], b[1], 4 * 16, 1u << 30});
    cr_assert_eq(states[0].state, KVMEM_PUBLISHED);
    cr_assert_eq(states[1].state, KVMEM_PUBLISHED);
    cr_assert_eq(states[2].state, KVMEM_PUBLISH_EXISTS);  /* the name is there */
    cr_assert_eq(states[3].state, KVMEM_PUBLISH_EXISTS);  /* the same again */
    cr_assert_eq(states[4].state, KVMEM_PUBLISH_REFUSED); /* the block has another name */
    cr_assert_eq(states[5].state, KVMEM_PUBLISH_REFUSED); /* no such segment */
    cr_assert_eq(states[6].state, KVMEM_PUBLISH_REFUSED);
    states = publish(other, space, 1, (uint32_t[]){9}, &b[3]);
    cr_assert_eq(states[0].state, KVMEM_PUBLISH_REFUSED); /* not the owner */
    cr_assert_eq(kvt_stats(world).published_blocks, 2);
    cr_assert_eq(kvt_stats(world).publish_exists_blocks, 2);
    cr_assert_eq(kvt_stats(world).publish_refused_blocks, 4);
    cr_assert_eq(kvt_stats(world).lease_count, 2);
    kvt_world_check(world);
}

Test(entry, publish_refuses_other_counts)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 4);
    static _Alignas(8) uint8_t buffer[1024];
    struct kvi_msg_publish *m = (void *)buffer;
    struct kvi_rec_publication *p;
    const struct kvi_rec_state *states;

    kvi_wire_begin(m, KVI_OP_PUBLISH, 1);
    m->space = space;
    m->record_count = 1;
    p = kvi_wire_tail(m, 0);
    *p = (struct kvi_rec_publication){.index = got.blocks[0], .token_count = KVT_BLOCK_TOKENS - 1};
    kvt_deliver(world, client, m);
    states = kvi_wire_tail_const(kvt_take_as(world, client, KVI_OP_PUBLISH_REPLY), 0);
    cr_assert_eq(states[0].state, KVMEM_PUBLISH_REFUSED);
    cr_assert_eq(kvt_stats(world).entry_blocks, 0);
}

Test(entry, lookup_finds_the_longest_run_and_leases_it)
{
    uint32_t owner = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t reader = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, owner, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, owner, space, 4);
    const struct kvi_msg_lookup_reply *reply;
    const struct kvi_rec_hit *hits;

    kvt_space(world, reader, "a", KVT_SMALL, 0);
    kvt_publish_all(world, owner, space, 1, 3, got.blocks);
    kvt_lookup(world, reader, space, 5, (uint32_t[]){1, 2, 99, 3, 1}, 0);
    reply = kvt_take_as(world, reader, KVI_OP_LOOKUP_REPLY);
    cr_assert(reply && reply->hit_count == 2 && reply->record_count == 2);
    cr_assert_eq(reply->foreign_hits, 2);
    hits = kvi_wire_tail_const(reply, 0);
    cr_assert_eq(hits[0].index, got.blocks[0]);
    cr_assert_eq(hits[1].index, got.blocks[1]);
    cr_assert_eq(hits[1].generation, got.segments[0].generation);
    cr_assert_eq(kvt_stats(world).lease_count, 5);
    kvt_lookup(world, reader, space, 1, (uint32_t[]){1}, 0); /* leased already: no change */
    cr_assert_eq(kvt_stats(world).lease_count, 5);
    kvt_lookup(world, owner, space, 3, (uint32_t[]){1, 2, 3}, KVI_LOOKUP_PEEK);
    reply = kvt_take_as(world, owner, KVI_OP_LOOKUP_REPLY);
    cr_assert(reply && reply->hit_count == 3 && reply->record_count == 0);
    cr_assert_eq(reply->foreign_hits, 0);
    cr_assert_eq(kvt_stats(world).foreign_hit_blocks, 3);
    cr_assert_eq(kvt_stats(world).hit_blocks, 6);
    cr_assert_eq(kvt_stats(world).lookup_blocks, 9);
}

Test(entry, the_next_session_of_a_number_is_another_publisher)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 4);
    const struct kvi_msg_lookup_reply *reply;

    kvt_publish_all(world, client, space, 1, 1, got.blocks);
    kvi_dir_client_exited(world->dir, client);
    cr_assert_eq(kvt_join(world, KVMEM_ROLE_LEADER), client);
    kvt_space(world, client, "a", KVT_SMALL, 0);
    kvt_lookup(world, client, space, 1, (uint32_t[]){1}, 0);
    reply = kvt_take_as(world, client, KVI_OP_LOOKUP_REPLY);
    cr_assert(reply && reply->hit_count == 1 && reply->foreign_hits == 1);
}

Test(entry, names_are_apart_between_spaces)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t a = kvt_space(world, client, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, client, "b", KVT_SMALL, 0);
    struct kvt_granted in_a = kvt_get(world, client, a, 4);
    struct kvt_granted in_b = kvt_get(world, client, b, 4);

    kvt_publish_all(world, client, a, 1, 2, in_a.blocks);
    cr_assert_eq(kvt_peek(world, client, b, 1, 2), 0);
    kvt_publish_all(world, client, b, 1, 1, in_b.blocks);
    cr_assert_eq(kvt_peek(world, client, b, 1, 2), 1);
    cr_assert_eq(kvt_peek(world, client, a, 1, 2), 2);
}

Test(entry, releasing_what_is_not_leased_is_ignored)
{
    uint32_t owner = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t other = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, owner, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, owner, space, 4);
    uint64_t digest;

    kvt_space(world, other, "a", KVT_SMALL, 0);
    kvt_publish_all(world, owner, space, 1, 2, got.blocks);
    digest = kvi_dir_digest(world->dir);
    kvt_release(world, other, space, 3, (uint32_t[]){got.blocks[0], got.blocks[3], 1u << 30});
    kvt_release(world, owner, space, 2, (uint32_t[]){got.blocks[2], 4 * 31});
    world->is_silent[owner] = 1;
    cr_assert_eq(kvt_stats(world).lease_count, 2);
    kvt_release(world, owner, space, 2, (uint32_t[]){got.blocks[0], got.blocks[0]});
    cr_assert_eq(kvt_stats(world).lease_count, 1);
    cr_assert_eq(kvt_stats(world).leased_blocks, 1);
    cr_assert_neq(kvi_dir_digest(world->dir), digest);
}

/* Names whose tags in the index are the same are told apart by the records. */
Test(entry, names_with_the_same_tag_are_told_apart)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 4);
    uint32_t *first_with = calloc(1u << KVI_INDEX_TAG_BITS, sizeof(*first_with));
    uint32_t twins[2], count = 0;
    uint8_t name[32];
    const struct kvi_msg_lookup_reply *reply;
    const struct kvi_rec_hit *hits;

    for (uint32_t n = 1; count < 2; n++) { /* by the birthday paradox, a few thousand */
        uint32_t tag;

        kvt_name(n, name);
        tag = kvi_index_tag(&world->dir->index, space & 255, name);
        if (first_with[tag] != 0) {
            twins[0] = first_with[tag];
            twins[1] = n;
            count = 2;
        }
        first_with[tag] = n;
    }
    free(first_with);
    kvt_publish_all(world, client, space, twins[0], 1, got.blocks);
    cr_assert_eq(kvt_peek(world, client, space, twins[1], 1), 0);
    kvt_publish_all(world, client, space, twins[1], 1, got.blocks + 1);
    kvt_lookup(world, client, space, 3, (uint32_t[]){twins[1], twins[0], 0}, 0);
    reply = kvt_take_as(world, client, KVI_OP_LOOKUP_REPLY);
    cr_assert(reply && reply->hit_count == 2);
    hits = kvi_wire_tail_const(reply, 0);
    cr_assert_eq(hits[0].index, got.blocks[1]);
    cr_assert_eq(hits[1].index, got.blocks[0]);
}

/* ---- pins ---- */

static const struct kvi_msg_pin_reply *pin(uint32_t client, uint32_t space, uint32_t first,
                                           uint32_t count, uint64_t lifetime_ns)
{
    uint32_t names[16];

    for (uint32_t i = 0; i < count; i++)
        names[i] = first + i;
    kvt_pin(world, client, space, count, names, lifetime_ns);
    return kvt_take_as(world, client, KVI_OP_PIN_REPLY);
}

Test(entry, pins_end_by_unpin_deadline_close_and_exit)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t other = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 4);
    uint64_t id;

    kvt_space(world, other, "a", KVT_SMALL, 0);
    kvt_publish_all(world, client, space, 1, 4, got.blocks);
    kvt_release(world, client, space, 4, got.blocks);
    cr_assert_eq(kvt_stats(world).leased_blocks, 0);
    cr_assert_eq(pin(client, space, 1, 2, 500)->pinned_count, 2);
    cr_assert_eq(kvi_dir_next_deadline_ns(world->dir), world->now_ns + 500);
    id = pin(other, space, 2, 6, 0)->pin; /* 2, 3, 4 are there */
    cr_assert_eq(kvt_stats(world).pin_count, 5);
    cr_assert_eq(kvt_stats(world).leased_blocks, 4);
    kvt_unpin(world, client, id);
    cr_assert_eq(kvt_take_error(world, client, "unpin.pin"), KVMEM_E_NOT_FOUND);
    world->now_ns += 499;
    kvi_dir_tick(world->dir);
    cr_assert_eq(kvt_stats(world).pin_count, 5);
    world->now_ns += 1;
    kvi_dir_tick(world->dir);
    cr_assert_eq(kvt_stats(world).pin_count, 3);
    cr_assert_eq(kvi_dir_next_deadline_ns(world->dir), UINT64_MAX);
    kvt_world_check(world);
    kvt_unpin(world, other, id);
    cr_assert(kvt_take_as(world, other, KVI_OP_DONE));
    kvt_unpin(world, other, id);
    cr_assert_eq(kvt_take_error(world, other, NULL), KVMEM_E_NOT_FOUND);
    pin(other, space, 1, 4, 0);
    kvi_dir_client_eof(world->dir, other);
    cr_assert_eq(kvt_stats(world).pin_count, 4);
    kvi_dir_client_exited(world->dir, other);
    cr_assert_eq(kvt_stats(world).pin_count, 0);
    pin(client, space, 1, 4, 0);
    kvt_close(world, client, space);
    cr_assert_eq(kvt_stats(world).pin_count, 0);
}

Test(entry, pins_are_limited_and_may_be_many)
{
    struct kvi_dir_options options = kvt_dir_options(16, 8);
    uint32_t client, space;
    struct kvt_granted got;

    cr_assert(kvt_world_destroy(world));
    options.pin_limit = 300;
    world = kvt_world_create(&options);
    client = kvt_join(world, KVMEM_ROLE_LEADER);
    space = kvt_space(world, client, "a", KVT_SMALL, 0);
    got = kvt_get(world, client, space, 4);
    kvt_publish_all(world, client, space, 1, 4, got.blocks);
    for (int i = 0; i < 148; i++)
        cr_assert_eq(pin(client, space, 1, 2, 0)->pinned_count, 2);
    cr_assert_eq(pin(client, space, 50, 4, 0)->pinned_count, 0);
    kvt_world_check(world);
    kvt_forget(world);
    kvt_pin(world, client, space, 4, (uint32_t[]){1, 2, 3, 4}, 0);
    kvt_pin(world, client, space, 1, (uint32_t[]){1}, 0);
    kvt_take(world, client);
    cr_assert_eq(kvt_take_error(world, client, "at most 300"), KVMEM_E_LIMIT);
    cr_assert_eq(kvt_stats(world).pin_count, 300);
    kvt_close(world, client, space);
    cr_assert_eq(kvt_stats(world).pin_count, 0);
}

/* ---- maps ---- */

Test(entry, maps_follow_descriptors_and_unmapping)
{
    uint32_t owner = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t reader = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, owner, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, owner, space, 8);
    struct kvi_rec_segment_ref refs[3];
    const struct kvt_sent *sent;

    kvt_space(world, reader, "a", KVT_SMALL, 0);
    refs[0] = (struct kvi_rec_segment_ref){got.segments[0].slot, got.segments[0].generation};
    refs[1] = (struct kvi_rec_segment_ref){31, 1}; /* never was */
    refs[2] = (struct kvi_rec_segment_ref){got.segments[1].slot, got.segments[1].generation + 1};
    kvt_map(world, reader, space, 3, refs);
    sent = kvt_take(world, reader);
    cr_assert(sent);
    cr_assert_eq(((const struct kvi_header *)sent->message)->opcode, KVI_OP_SEGMENT_FDS);
    cr_assert_eq(sent->segment_count, 1);
    cr_assert_eq(((const struct kvi_rec_segment_ref *)kvi_wire_tail_const(sent->message, 0))->slot,
                 refs[0].slot);
    kvt_unmapped(world, reader, space, refs[0].slot, refs[0].generation + 1); /* another */
    kvt_world_check(world);
    kvt_unmapped(world, reader, space, refs[0].slot, refs[0].generation);
    kvt_unmapped(world, reader, space, refs[0].slot, refs[0].generation);
    kvt_unmapped(world, owner, space, refs[0].slot, refs[0].generation); /* an owner may */
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).fds_in_flight, 0);
}

Test(entry, maps_beyond_the_descriptor_limit_are_busy)
{
    struct kvi_dir_options options = kvt_dir_options(16, 8);
    struct kvi_rec_segment_ref refs[3];
    uint32_t client, reader, space;
    struct kvt_granted got;

    cr_assert(kvt_world_destroy(world));
    options.unacked_fd_limit = 3;
    world = kvt_world_create(&options);
    client = kvt_join(world, KVMEM_ROLE_LEADER);
    reader = kvt_join(world, KVMEM_ROLE_LEADER);
    space = kvt_space(world, client, "a", KVT_SMALL, 0);
    kvt_space(world, reader, "a", KVT_SMALL, 0);
    got = kvt_get(world, client, space, 12);
    for (int i = 0; i < 3; i++)
        refs[i] = (struct kvi_rec_segment_ref){got.segments[i].slot, got.segments[i].generation};
    world->is_silent[reader] = 1;
    kvt_map(world, reader, space, 2, refs);
    cr_assert(kvt_take_as(world, reader, KVI_OP_SEGMENT_FDS));
    kvt_map(world, reader, space, 2, refs + 1);
    cr_assert_eq(kvt_take_error(world, reader, "segment_map.segment_count"), KVMEM_E_BUSY);
    world->is_silent[reader] = 0;
    kvt_map(world, reader, space, 2, refs + 1);
    cr_assert(kvt_take_as(world, reader, KVI_OP_SEGMENT_FDS));
}

/* ---- the end of clients ---- */

Test(entry, end_of_file_quarantines_and_exit_hands_in)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t other = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 16 * 4);

    kvt_space(world, other, "a", KVT_SMALL, 0);
    kvt_publish_all(world, client, space, 1, 6, got.blocks);
    kvi_dir_client_eof(world->dir, client);
    kvi_dir_client_eof(world->dir, client);
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).lease_count, 6); /* it may still read */
    cr_assert_eq(kvt_peek(world, other, space, 1, 6), 6);
    kvt_request(world, other, space, 1, 0); /* all is quarantined */
    cr_assert_eq(kvt_take_error(world, other, NULL), KVMEM_E_DEVICE_FULL);
    kvi_dir_client_exited(world->dir, client);
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).orphaned_segments, 16);
    cr_assert_eq(kvt_stats(world).reclaimed_clients, 1);
    cr_assert_eq(kvt_stats(world).idle_blocks, 58);
    cr_assert_eq(kvt_stats(world).owner_blocks, 0);
    cr_assert_eq(kvt_stats(world).lease_count, 0);
    got = kvt_get(world, other, space, 58);
    cr_assert_eq(got.block_count, 58);
    cr_assert_eq(got.adopted_count, 15); /* the one full of entries is left alone */
    cr_assert_eq(kvt_peek(world, other, space, 1, 6), 6);
}

Test(entry, goodbye_reclaims_at_the_end_of_file)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 4);
    const struct kvi_msg_done *done;

    kvt_publish_all(world, client, space, 1, 1, got.blocks);
    kvt_plain(world, client, KVI_OP_GOODBYE, 0);
    done = kvt_take_as(world, client, KVI_OP_DONE);
    cr_assert(done && done->opcode == KVI_OP_GOODBYE);
    cr_assert_eq(world->closed_count, 1);
    cr_assert_eq(world->closed[0].code, 0);
    kvt_request(world, client, space, 1, 0); /* too late */
    cr_assert_eq(world->sent_count, world->taken);
    cr_assert_eq(kvt_stats(world).client_count, 1);
    kvt_world_check(world);
    kvi_dir_client_eof(world->dir, client);
    cr_assert_eq(kvt_stats(world).client_count, 0);
    cr_assert_eq(kvt_stats(world).orphaned_segments, 0);
    cr_assert_eq(kvt_stats(world).entry_blocks, 1);
    cr_assert_eq(kvt_stats(world).idle_blocks, 3);
}

Test(entry, leases_of_the_dead_end_with_the_highest_index_first)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 4096);
    struct kvt_granted got = kvt_get(world, client, space, 4);

    kvt_publish_all(world, client, space, 1, 4, got.blocks);
    kvi_dir_client_exited(world->dir, client);
    client = kvt_join(world, KVMEM_ROLE_LEADER);
    kvt_space(world, client, "a", KVT_SMALL, 0);
    got = kvt_get(world, client, space, 1);
    cr_assert_eq(got.block_count, 1);
    cr_assert_eq(kvt_peek(world, client, space, 1, 4), 3); /* the tail went */
}

/* ---- reports ---- */

Test(entry, reports_show_clients_spaces_and_segments)
{
    struct kvi_dir_usage usage = {.used_blocks = 99, .used_tokens = 9999};
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t other = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 8);
    const struct kvi_msg_clients_reply *clients;
    const struct kvi_rec_client_info *c;
    const struct kvi_msg_spaces_reply *spaces;
    const struct kvi_rec_space_info *s;
    const struct kvi_msg_segments_reply *segments;
    const struct kvi_rec_segment_info *g;

    kvt_space(world, other, "a", KVT_SMALL, 0);
    kvt_publish_all(world, client, space, 1, 2, got.blocks);
    kvt_lookup(world, other, space, 1, (uint32_t[]){1}, 0);
    kvt_release(world, client, space, 1, &got.blocks[1]);
    kvt_forget(world);
    memset(usage.cells, 255, sizeof(usage.cells));
    world->usage = &usage;
    kvt_plain(world, client, KVI_OP_CLIENTS, 0);
    clients = kvt_take_as(world, client, KVI_OP_CLIENTS_REPLY);
    cr_assert(clients && clients->client_count == 2 && clients->next == 0);
    c = kvi_wire_tail_const(clients, 0);
    cr_assert_eq(c->owned_segments, 2);
    cr_assert_eq(c->mapped_segments, 2);
    cr_assert_eq(c->lease_count, 1);
    cr_assert_eq(c->used_blocks, 6); /* clamped */
    cr_assert_eq(c->used_tokens, 24);
    cr_assert_eq(c->state, 1);
    cr_assert_str_eq(c->name, "test");
    kvt_plain(world, client, KVI_OP_SPACES, 0);
    spaces = kvt_take_as(world, client, KVI_OP_SPACES_REPLY);
    cr_assert(spaces && spaces->space_count == 1);
    s = kvi_wire_tail_const(spaces, 0);
    cr_assert_eq(s->client_count, 2);
    cr_assert_eq(s->entry_blocks, 2);
    cr_assert_eq(s->leased_blocks, 1);
    cr_assert_eq(s->owner_blocks, 6);
    cr_assert_eq(s->shared_saved_bytes, 1024); /* two leases on one block */
    kvt_plain(world, client, KVI_OP_SEGMENTS, 0);
    segments = kvt_take_as(world, client, KVI_OP_SEGMENTS_REPLY);
    cr_assert(segments && segments->segment_count == 2 && segments->next == 0);
    g = kvi_wire_tail_const(segments, 0);
    cr_assert_eq(g->owner, client);
    cr_assert_eq(g->state, KVI_SEGMENT_OWNED);
    cr_assert_eq(g->cell_blocks, 1);
    cr_assert_eq(g->entry_cells[0], 255);
    cr_assert_eq(g->leased_cells[0], 255);
    cr_assert_eq(g->leased_cells[1], 0);
    cr_assert_eq(g->used_cells[0], 0);
    cr_assert_eq(g->used_cells[2], 255);
    cr_assert_eq(g->used_blocks, 2);
    kvt_plain(world, client, KVI_OP_CHECK, 0);
    cr_assert_eq(
        ((const struct kvi_msg_check_reply *)kvt_take_as(world, client, KVI_OP_CHECK_REPLY))
            ->violations,
        0);
    kvi_dir_client_eof(world->dir, other);
    kvt_plain(world, client, KVI_OP_CLIENTS, 1);
    clients = kvt_take_as(world, client, KVI_OP_CLIENTS_REPLY);
    c = kvi_wire_tail_const(clients, 0);
    cr_assert(clients->client_count == 1 && c->client == other && c->state == 2);
    world->usage = NULL;
}

Test(entry, long_lists_come_in_pages)
{
    struct kvi_dir_options options = kvt_dir_options(90, 80);
    const struct kvi_msg_segments_reply *segments;
    const struct kvi_msg_clients_reply *clients;
    uint32_t client;

    cr_assert(kvt_world_destroy(world));
    options.unacked_fd_limit = 200;
    world = kvt_world_create(&options);
    client = kvt_join(world, KVMEM_ROLE_LEADER);
    for (int i = 1; i < 70; i++)
        kvt_join(world, KVMEM_ROLE_OBSERVER);
    kvt_request(world, client, kvt_space(world, client, "a", KVT_SMALL, 0), 70 * 4, 0);
    kvt_create_all(world, 0);
    kvt_forget(world);
    kvt_plain(world, client, KVI_OP_SEGMENTS, 0);
    segments = kvt_take_as(world, client, KVI_OP_SEGMENTS_REPLY);
    cr_assert(segments && segments->segment_count == 64 && segments->next == 64);
    kvt_plain(world, client, KVI_OP_SEGMENTS, 64);
    segments = kvt_take_as(world, client, KVI_OP_SEGMENTS_REPLY);
    cr_assert(segments && segments->segment_count == 6 && segments->next == 0);
    kvt_plain(world, client, KVI_OP_CLIENTS, 0);
    clients = kvt_take_as(world, client, KVI_OP_CLIENTS_REPLY);
    cr_assert(clients && clients->client_count == 64 && clients->next == 64);
    kvt_plain(world, client, KVI_OP_CLIENTS, 64);
    clients = kvt_take_as(world, client, KVI_OP_CLIENTS_REPLY);
    cr_assert(clients && clients->client_count == 6 && clients->next == 0);
}
