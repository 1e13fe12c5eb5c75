/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests for blocks that find nothing: the answer at once, waiting, pressure and its deadline,
 * what ends a wait, and the way of a segment whose bytes come back only when it is unmapped.
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

TestSuite(wait, .init = set_up, .fini = tear_down, .timeout = 20);

static int error_of(uint32_t client)
{
    return kvt_take_error(world, client, NULL);
}

/* ---- waiting ---- */

/* `first` owns the whole device in space a; `second` has b open. */
static uint32_t make_full(struct kvt_granted *got, uint32_t *b)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);

    *got = kvt_get(world, first, a, 32);
    *b = kvt_space(world, second, "b@other", KVT_SMALL, 0);
    return a;
}

Test(wait, a_full_device_is_an_answer)
{
    struct kvt_granted got;
    uint32_t b;

    make_full(&got, &b);
    kvt_request(world, second, b, 1, 0);
    cr_assert_eq(kvt_take_error(world, second, "32768 device bytes"), KVMEM_E_DEVICE_FULL);
    cr_assert(kvt_is_quiet(world)); /* who may not wait presses nobody */
    cr_assert_eq(kvi_dir_next_deadline_ns(world->dir), UINT64_MAX);
}

Test(wait, owners_are_pressed_and_what_they_hand_in_ends_the_wait)
{
    const struct kvi_msg_pressure *pressure;
    struct kvt_granted got, more;
    uint32_t b, a = make_full(&got, &b), serial;

    serial = kvt_request(world, second, b, 6, KVI_REQUEST_MAY_WAIT);
    pressure = kvt_take_as(world, first, KVI_OP_PRESSURE);
    cr_assert(pressure && pressure->space == a && pressure->segment_count == 2);
    cr_assert_eq(pressure->deadline_ns, 1000);
    cr_assert_eq(pressure->header.serial, 0);
    cr_assert_eq(kvi_dir_next_deadline_ns(world->dir), world->now_ns + 1000);
    kvt_world_check(world);
    kvt_request(world, second, b, 1, KVI_REQUEST_MAY_WAIT);
    cr_assert_eq(error_of(second), KVMEM_E_BUSY);
    kvt_hand_in_granted(world, first, a, &got.segments[3]);
    cr_assert_eq(world->creating_count, 1);
    kvt_create_all(world, 0);
    cr_assert(kvt_take_as(world, first, KVI_OP_SEGMENT_GONE));
    more = kvt_take_grants(world, second);
    cr_assert(more.is_last && more.block_count == 4); /* fewer than wanted is fine */
    cr_assert_eq(((const struct kvi_header *)world->sent[world->taken - 1].message)->serial,
                 serial);
    world->now_ns += 5000;
    kvi_dir_tick(world->dir);
    cr_assert_eq(kvt_stats(world).pressure_missed, 0);
    cr_assert_eq(kvt_stats(world).pressure_requests, 1);
    cr_assert_eq(kvi_dir_next_deadline_ns(world->dir), UINT64_MAX);
}

Test(wait, a_missed_deadline_is_counted_and_answered)
{
    struct kvt_granted got;
    uint32_t b;

    make_full(&got, &b);
    kvt_request(world, second, b, 1, KVI_REQUEST_MAY_WAIT);
    cr_assert(kvt_take_as(world, first, KVI_OP_PRESSURE));
    world->now_ns += 999;
    kvi_dir_tick(world->dir);
    cr_assert(kvt_is_quiet(world));
    world->now_ns += 1;
    kvi_dir_tick(world->dir);
    cr_assert_eq(error_of(second), KVMEM_E_DEVICE_FULL);
    cr_assert_eq(kvt_stats(world).pressure_missed, 1);
    cr_assert_eq(kvt_stats(world).refusals, 1);
    kvt_world_check(world);
    kvt_request(world, second, b, 1, KVI_REQUEST_MAY_WAIT); /* a new deadline, pressed again */
    cr_assert(kvt_take_as(world, first, KVI_OP_PRESSURE));
}

Test(wait, the_owner_of_most_is_pressed_first_and_each_once)
{
    uint32_t third = kvt_join(world, KVMEM_ROLE_LEADER), fourth = kvt_join(world, 0);
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 0);
    uint32_t b = kvt_space(world, second, "b", KVT_SMALL, 0);
    uint32_t c = kvt_space(world, third, "c", KVT_SMALL, 0), d;

    kvt_get(world, first, a, 8);
    kvt_get(world, second, b, 20);
    kvt_get(world, first, a, 4);
    d = kvt_space(world, fourth, "c", KVT_SMALL, 0);
    kvt_forget(world);
    kvt_request(world, third, c, 1, KVI_REQUEST_MAY_WAIT);
    cr_assert_eq(world->sent_count, 2);
    cr_assert_eq(world->sent[0].client, second);
    cr_assert_eq(world->sent[1].client, first);
    kvt_request(world, fourth, d, 1, KVI_REQUEST_MAY_WAIT);
    cr_assert_eq(world->sent_count, 2); /* asked already */
    kvt_world_check(world);
}

Test(wait, those_who_wait_are_served_in_order_of_arrival)
{
    struct kvt_granted got;
    uint32_t b, third = kvt_join(world, KVMEM_ROLE_LEADER), a = make_full(&got, &b);
    uint32_t c = kvt_space(world, third, "c", KVT_SMALL, 0);

    kvt_request(world, third, c, 4, KVI_REQUEST_MAY_WAIT);
    world->now_ns += 10;
    kvt_request(world, second, b, 4, KVI_REQUEST_MAY_WAIT);
    kvt_forget(world);
    kvt_hand_in_granted(world, first, a, &got.segments[0]);
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_take_grants(world, third).block_count, 4);
    cr_assert_null(kvt_take(world, second));
    kvt_forget(world);
    kvt_hand_in_granted(world, first, a, &got.segments[1]);
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_take_grants(world, second).block_count, 4);
}

Test(wait, releases_deaths_and_unpinning_end_a_wait_too)
{
    struct kvt_granted got;
    uint32_t b, a = make_full(&got, &b);
    const struct kvi_msg_pin_reply *pin;
    uint64_t id;

    kvt_publish_all(world, first, a, 1, 8, got.blocks);
    kvt_pin(world, first, a, 1, (uint32_t[]){1}, 0);
    pin = kvt_take_as(world, first, KVI_OP_PIN_REPLY);
    id = pin->pin;
    kvt_hand_in_granted(world, first, a, &got.segments[0]);
    kvt_hand_in_granted(world, first, a, &got.segments[1]);
    kvt_request(world, second, b, 4, KVI_REQUEST_MAY_WAIT); /* two segments are leased */
    kvt_forget(world);
    kvt_release(world, first, a, 4, got.blocks); /* one is still pinned */
    cr_assert_eq(world->creating_count, 0);
    kvt_unpin(world, first, id);
    cr_assert_eq(world->creating_count, 1);
    kvt_create_all(world, 0);
    kvt_request(world, second, b, 4, KVI_REQUEST_MAY_WAIT);
    kvt_release(world, first, a, 4, got.blocks + 4);
    cr_assert_eq(world->creating_count, 1);
    kvt_create_all(world, 0);
    kvt_request(world, second, b, 24, KVI_REQUEST_MAY_WAIT);
    kvi_dir_client_eof(world->dir, first);
    cr_assert_eq(world->creating_count, 0);
    kvi_dir_client_exited(world->dir, first);
    cr_assert_eq(world->creating_count, 6);
    kvt_create_all(world, 0);
    kvt_world_check(world);
    cr_assert_eq(kvt_stats(world).space_count, 1);
}

Test(wait, a_dying_owner_is_waited_for)
{
    struct kvt_granted got;
    uint32_t b;

    make_full(&got, &b);
    kvi_dir_client_eof(world->dir, first);
    kvt_request(world, second, b, 4, KVI_REQUEST_MAY_WAIT);
    cr_assert(kvt_is_quiet(world)); /* nobody to press, but it will be over soon */
    kvi_dir_client_exited(world->dir, first);
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_take_grants(world, second).block_count, 4);
}

Test(wait, a_wait_ends_when_nobody_is_left_to_wait_for)
{
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 4096);
    struct kvt_granted got = kvt_get(world, first, space, 4);

    kvt_space(world, second, "a", KVT_SMALL, 0);
    kvt_publish_all(world, first, space, 1, 4, got.blocks);
    kvt_lookup(world, second, space, 4, (uint32_t[]){1, 2, 3, 4}, 0);
    kvt_request(world, second, space, 1, KVI_REQUEST_MAY_WAIT);
    kvt_forget(world);
    kvt_hand_in_granted(world, first, space,
                        &got.segments[0]); /* all leased: of no use, and no owner is left */
    cr_assert_eq(error_of(second), KVMEM_E_QUOTA);
}

Test(wait, under_a_quota_only_owners_in_the_space_are_pressed)
{
    uint32_t a = kvt_space(world, first, "a", KVT_SMALL, 8192);
    uint32_t b = kvt_space(world, first, "b", KVT_SMALL, 0);

    kvt_get(world, first, a, 8);
    kvt_get(world, first, b, 8);
    kvt_space(world, second, "a", KVT_SMALL, 0);
    kvt_forget(world);
    kvt_request(world, second, a, 1, KVI_REQUEST_MAY_WAIT);
    cr_assert_eq(world->sent_count, 1);
    cr_assert_eq(((const struct kvi_msg_pressure *)world->sent[0].message)->space, a);
    kvt_close(world, first, b); /* of no help */
    cr_assert_eq(world->creating_count, 0);
    world->now_ns += 1000;
    kvi_dir_tick(world->dir);
    kvt_forget(world);
}

Test(wait, who_goes_waits_no_more)
{
    struct kvt_granted got;
    uint32_t b;

    make_full(&got, &b);
    kvt_request(world, second, b, 1, KVI_REQUEST_MAY_WAIT);
    kvt_close(world, second, b);
    kvt_world_check(world);
    b = kvt_space(world, second, "b@other", KVT_SMALL, 0);
    kvt_request(world, second, b, 1, KVI_REQUEST_MAY_WAIT);
    kvt_plain(world, second, KVI_OP_GOODBYE, 0);
    kvt_world_check(world);
    cr_assert_neq(kvi_dir_next_deadline_ns(world->dir), 0);
    kvi_dir_client_eof(world->dir, second);
    kvt_world_check(world);
}

/* ---- where bytes in use do not come back ---- */

Test(wait, a_mapped_segment_drains_before_its_bytes_are_free)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);
    const struct kvi_msg_segment_gone *gone;
    struct kvt_granted got;
    uint32_t a, b;

    options.devices[0].releases_reclaim_mapped = 0;
    make_world(options);
    a = make_full(&got, &b);
    kvt_publish_all(world, first, a, 1, 4, got.blocks);
    kvt_release(world, first, a, 4, got.blocks);
    kvt_hand_in_granted(world, first, a, &got.segments[0]);
    kvt_request(world, second, b, 4, KVI_REQUEST_MAY_WAIT);
    kvt_world_check(world);
    gone = kvt_take_as(world, first, KVI_OP_SEGMENT_GONE);
    cr_assert(gone);
    cr_assert_eq(kvt_stats(world).free_bytes, 0);
    cr_assert_eq(kvt_stats(world).entry_blocks, 0);
    cr_assert_eq(world->creating_count, 0);
    kvt_unmapped(world, first, a, gone->slot, gone->generation);
    cr_assert_eq(world->creating_count, 1);
    kvt_create_all(world, 0);
    while (kvt_take_as(world, first, KVI_OP_PRESSURE))
        ;
    cr_assert_eq(kvt_take_grants(world, second).block_count, 4);
    kvt_world_check(world);
}

Test(wait, a_draining_segment_is_freed_by_the_exit_of_its_mapper)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);
    struct kvt_granted got;
    uint32_t a, b;

    options.devices[0].releases_reclaim_mapped = 0;
    make_world(options);
    a = make_full(&got, &b);
    kvt_hand_in_granted(world, first, a, &got.segments[0]);
    kvt_request(world, second, b, 4, 0); /* may not wait: full for now */
    kvt_forget(world);
    kvt_world_check(world);
    kvi_dir_client_exited(world->dir, first);
    kvt_world_check(world);
    cr_assert_eq(kvt_get(world, second, b, 32).block_count, 32);
}
