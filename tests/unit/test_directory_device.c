/* SPDX-License-Identifier: Apache-2.0
 *
 * Several devices, rule by rule: where a space lies, that its memory never comes from another
 * device, and what is told of each.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "directory/directory_internal.h"
#include "support/dirworld.h"

static struct kvt_world *world;
static uint32_t first, second; /* two clients */

static void make_world(struct kvi_dir_options options)
{
    kvt_world_end(world);
    world = kvt_world_of_two(&options, &first, &second);
}

/* 8 segments on the first device, 12 on the second. */
static void set_up(void)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);

    kvt_add_device(&options, 12);
    make_world(options);
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(device, .init = set_up, .fini = tear_down, .timeout = 20);

/* Open the space on that device; its id. */
static uint32_t open_on(uint32_t client, const char *name, uint32_t device)
{
    const struct kvi_msg_space_opened *opened;

    kvt_forget(world);
    kvt_open_with(world, client, name, KVT_SMALL, 0, KVT_ON_DEVICE(device));
    opened = kvt_take_as(world, client, KVI_OP_SPACE_OPENED);
    cr_assert(opened && opened->device == device);
    return opened->space;
}

/* Device of a space that may lie anywhere. */
static uint32_t device_of(uint32_t client, const char *name)
{
    const struct kvi_msg_space_opened *opened;

    kvt_forget(world);
    kvt_open(world, client, name, KVT_SMALL, 0);
    opened = kvt_take_as(world, client, KVI_OP_SPACE_OPENED);
    cr_assert(opened);
    return opened->device;
}

static void expect_refused(uint32_t client, const char *name, uint32_t flags, int code,
                           const char *word)
{
    uint64_t digest = kvi_dir_digest(world->dir);

    kvt_forget(world);
    kvt_open_with(world, client, name, KVT_SMALL, 0, flags);
    cr_assert_eq(kvt_take_error(world, client, word), code, "%s", word);
    cr_assert_eq(kvi_dir_digest(world->dir), digest, "%s", word);
}

/* Publish, release and hand in all that was granted. */
static void give(uint32_t client, uint32_t space, uint32_t first_name,
                 const struct kvt_granted *got)
{
    kvt_publish_all(world, client, space, first_name, got->block_count, got->blocks);
    kvt_release(world, client, space, got->block_count, got->blocks);
    for (uint32_t i = 0; i < got->segment_count; i++)
        kvt_hand_in_granted(world, client, space, &got->segments[i]);
}

/* ---- options ---- */

static int create_code(struct kvi_dir_options options, const char *word)
{
    struct kvi_dir_env env = kvt_dir_env(world);
    struct kvi_dir *dir;
    int code = kvi_dir_create(&options, &env, &dir);

    if (code == 0)
        kvi_dir_destroy(dir);
    else
        cr_assert(strstr(kvmem_error_detail()->text, word), "%s", kvmem_error_detail()->text);
    return code;
}

Test(device, from_1_to_16)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);

    options.device_count = 0;
    cr_assert_eq(create_code(options, "device_count"), KVMEM_E_INVALID);
    options.device_count = 1;
    while (options.device_count < KVI_DEVICE_LIMIT)
        kvt_add_device(&options, 8);
    cr_assert_eq(create_code(options, ""), 0);
    options.devices[15].device_bytes = 0;
    cr_assert_eq(create_code(options, "device_bytes"), KVMEM_E_INVALID);
    options.device_count = 17;
    cr_assert_eq(create_code(options, "device_count"), KVMEM_E_INVALID);
}

/* ---- where a space lies ---- */

Test(device, a_space_takes_the_device_with_most_free_bytes)
{
    uint32_t space;

    cr_assert_eq(device_of(first, "a"), 1);
    space = open_on(first, "b", 1);
    kvt_get(world, first, space, 16); /* 8 segments are free on both: the first one */
    cr_assert_eq(device_of(first, "c"), 0);
    kvt_get(world, first, space, 4);
    cr_assert_eq(device_of(first, "d"), 0);
    cr_assert_eq(device_of(second, "a"), 1); /* which exists, wherever bytes are free */
}

Test(device, a_space_that_exists_keeps_its_device)
{
    open_on(first, "a", 1);
    expect_refused(second, "a", KVT_ON_DEVICE(0), KVMEM_E_EXISTS, "space_open.flags (device)");
    open_on(second, "a", 1);
}

Test(device, one_that_is_not_there_is_named)
{
    expect_refused(first, "a", KVT_ON_DEVICE(2), KVMEM_E_INVALID, "device 2 is outside 0..1");
    expect_refused(first, "a", KVT_ON_DEVICE(254), KVMEM_E_INVALID, "device 254");
    expect_refused(first, "a", 2, KVMEM_E_INVALID, "space_open.flags");
}

Test(device, the_geometry_is_that_of_the_device)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);
    const struct kvi_msg_space_opened *opened;

    kvt_add_device(&options, 12);
    options.devices[1].granule_bytes = 65536;
    options.devices[1].device_bytes = 12 * 65536;
    make_world(options);
    kvt_open_with(world, first, "a", KVT_SMALL, 0, KVT_ON_DEVICE(0));
    opened = kvt_take_as(world, first, KVI_OP_SPACE_OPENED);
    cr_assert_eq(opened->segment_bytes, 4096);
    cr_assert_eq(opened->obtainable_blocks, 32);
    cr_assert_eq(opened->segment_limit, 16);
    kvt_open_with(world, first, "b", KVT_SMALL, 0, KVT_ON_DEVICE(1));
    opened = kvt_take_as(world, first, KVI_OP_SPACE_OPENED);
    cr_assert_eq(opened->segment_bytes, 65536);
    cr_assert_eq(opened->blocks_per_segment, 64);
    cr_assert_eq(opened->obtainable_blocks, 12 * 64);
    cr_assert_eq(opened->segment_limit, 24);
    cr_assert_eq(kvt_stats(world).granule_bytes, 4096);
    cr_assert_eq(kvt_stats(world).device_bytes, 8 * 4096 + 12 * 65536);
}

Test(device, a_client_of_version_1_knows_the_first_alone)
{
    uint32_t old = kvt_join_old(world, KVMEM_ROLE_LEADER, 1);

    cr_assert_eq(device_of(old, "a"), 0); /* though the second has more bytes */
    expect_refused(old, "b", KVT_ON_DEVICE(0), KVMEM_E_INVALID, "version 1");
    open_on(first, "b", 1);
    expect_refused(old, "b", 0, KVMEM_E_NOT_SUPPORTED, "version 2");
    open_on(first, "c", 0);
    cr_assert_eq(device_of(old, "c"), 0);
}

Test(device, welcome_counts_them_for_those_who_know)
{
    const struct kvi_dir_peer peer = {.pid = 7};
    const struct kvi_msg_welcome *welcome;
    struct kvi_msg_hello hello;

    for (uint32_t version = 1; version <= 2; version++) {
        uint32_t client;

        cr_assert_eq(kvi_dir_client_add(world->dir, &peer, &client), 0);
        kvi_wire_begin(&hello, KVI_OP_HELLO, 1);
        hello.version = version;
        hello.version_min = 1;
        kvt_deliver(world, client, &hello);
        welcome = kvt_take_as(world, client, KVI_OP_WELCOME);
        cr_assert_eq(welcome->device_count, version);
        cr_assert_eq(welcome->device_bytes, 8 * 4096);
        cr_assert_str_eq(welcome->device, "host");
    }
}

/* ---- memory ---- */

Test(device, segments_are_created_on_it)
{
    uint32_t a = open_on(first, "a", 0), b = open_on(first, "b", 1);

    cr_assert_eq(kvt_get(world, first, a, 12).block_count, 12);
    cr_assert_eq(kvt_get(world, first, b, 20).block_count, 20);
    cr_assert_eq(world->device_bytes[0], 3 * 4096);
    cr_assert_eq(world->device_bytes[1], 5 * 4096);
    cr_assert_eq(kvt_stats(world).segment_count, 8);
    cr_assert_eq(kvt_stats(world).segment_bytes, 8 * 4096);
    cr_assert_eq(kvt_stats(world).free_bytes, 12 * 4096);
    kvt_world_check(world);
}

Test(device, a_full_one_takes_nothing_from_another)
{
    uint32_t a = open_on(first, "a", 0), b = open_on(second, "b", 1), c = open_on(second, "c", 0);
    struct kvt_granted mine = kvt_get(world, first, a, 32), others = kvt_get(world, second, b, 24);

    give(second, b, 100, &others);
    kvt_forget(world);
    kvt_request(world, second, c, 1, 0);
    cr_assert_eq(kvt_take_error(world, second, "0 are free on device 0"), KVMEM_E_DEVICE_FULL);
    cr_assert_eq(kvt_peek(world, second, b, 100, 24), 24);
    give(first, a, 1, &mine);
    cr_assert_eq(kvt_get(world, second, c, 1).block_count, 4);
    cr_assert_eq(kvt_peek(world, second, b, 100, 24), 24);
    cr_assert_eq(kvt_stats(world).entry_blocks, 28 + 24);
}

Test(device, what_may_be_had_is_counted_on_it)
{
    uint32_t a = open_on(first, "a", 0), b = open_on(second, "b", 1);
    struct kvt_granted others = kvt_get(world, second, b, 24);

    give(second, b, 100, &others);
    cr_assert_eq(kvt_get(world, first, a, 4).obtainable_blocks, 28);
    cr_assert_eq(kvt_get(world, second, b, 4).obtainable_blocks, 48 - 4);
}

Test(device, owners_elsewhere_are_not_asked_to_give)
{
    uint32_t a = open_on(first, "a", 0), b = open_on(second, "b", 1), c = open_on(second, "c", 0);

    kvt_get(world, first, a, 28);
    kvt_get(world, second, b, 48);
    kvt_get(world, second, c, 4);
    kvt_forget(world);
    kvt_request(world, second, c, 4, KVI_REQUEST_MAY_WAIT);
    cr_assert(kvt_take_as(world, first, KVI_OP_PRESSURE));
    cr_assert(kvt_is_quiet(world));
    kvt_request(world, second, b, 4, KVI_REQUEST_MAY_WAIT);
    cr_assert_eq(kvt_take_error(world, second, "device 1"), KVMEM_E_DEVICE_FULL);
    cr_assert(kvt_is_quiet(world));
}

/* Nor is memory on its way back there worth waiting for. */
Test(device, a_death_elsewhere_is_not_waited_for)
{
    uint32_t b = open_on(first, "b", 1), c = open_on(second, "c", 0);

    kvt_get(world, first, b, 4);
    kvt_get(world, second, c, 32);
    kvi_dir_client_eof(world->dir, first);
    kvt_forget(world);
    kvt_request(world, second, c, 1, KVI_REQUEST_MAY_WAIT);
    cr_assert_eq(kvt_take_error(world, second, NULL), KVMEM_E_DEVICE_FULL);
}

Test(device, each_says_whether_mapped_bytes_come_back)
{
    struct kvi_dir_options options = kvt_dir_options(8, 4);
    uint32_t spaces[2];

    kvt_add_device(&options, 8);
    options.devices[1].releases_reclaim_mapped = 0;
    make_world(options);
    for (uint32_t d = 0; d < 2; d++) {
        struct kvt_granted got;

        spaces[d] = open_on(first, d == 0 ? "a" : "b", d);
        got = kvt_get(world, first, spaces[d], 32);
        for (uint32_t i = 0; i < 8; i++)
            kvt_hand_in_granted(world, first, spaces[d], &got.segments[i]);
    }
    kvt_forget(world);
    cr_assert_eq(kvt_get(world, second, open_on(second, "c@other", 0), 1).block_count, 4);
    kvt_request(world, second, open_on(second, "d@other", 1), 1, KVI_REQUEST_MAY_WAIT);
    cr_assert_eq(world->creating_count, 0); /* it drains until the client has unmapped it */
    kvt_world_check(world);
}

/* ---- reports ---- */

static int is_stuck(void *context, uint32_t device)
{
    (void)context;
    return device == 1;
}

Test(device, devices_lists_them)
{
    const struct kvi_msg_devices_reply *reply;
    const struct kvi_rec_device_info *rows;

    kvt_get(world, first, open_on(first, "b", 1), 12);
    world->dir->env.device_is_stuck = is_stuck;
    world->dir->options.devices[1].exit_proves_nothing = 1;
    world->dir->options.devices[1].uuid[15] = 9;
    kvt_forget(world);
    kvt_plain(world, second, KVI_OP_DEVICES, 0);
    reply = kvt_take_as(world, second, KVI_OP_DEVICES_REPLY);
    cr_assert_eq(reply->device_count, 2);
    rows = kvi_wire_tail_const(reply, 0);
    cr_assert_eq(rows[0].device_bytes, 8 * 4096);
    cr_assert_eq(rows[0].free_bytes, 8 * 4096);
    cr_assert_eq(rows[0].segment_count, 0);
    cr_assert_eq(rows[0].state, 0);
    cr_assert_eq(rows[0].flags, 0);
    cr_assert_str_eq(rows[0].name, "host");
    cr_assert_eq(rows[1].kind, 1);
    cr_assert_eq(rows[1].device_bytes, 12 * 4096);
    cr_assert_eq(rows[1].free_bytes, 9 * 4096);
    cr_assert_eq(rows[1].segment_count, 3);
    cr_assert_eq(rows[1].granule_bytes, 4096);
    cr_assert_eq(rows[1].state, 1);
    cr_assert_eq(rows[1].flags, KVI_DEVICE_MPS);
    cr_assert_eq(rows[1].uuid[15], 9);
    cr_assert_str_eq(rows[1].name, "host 1");
    world->dir->options.devices[1].exit_proves_nothing = 0;
}

Test(device, the_check_sums_each)
{
    char text[256];

    kvt_get(world, first, open_on(first, "b", 1), 12);
    world->dir->memory[1].free_bytes += 4096;
    world->dir->memory[0].free_bytes -= 4096;
    cr_assert_eq(kvi_dir_check(world->dir, text, sizeof(text)), KVMEM_E_CORRUPT);
    cr_assert(strstr(text, "device 0:"), "%s", text);
    world->dir->memory[0].free_bytes += 4096;
    cr_assert_eq(kvi_dir_check(world->dir, text, sizeof(text)), KVMEM_E_CORRUPT);
    cr_assert(strstr(text, "device 1:"), "%s", text);
    world->dir->memory[1].free_bytes -= 4096;
    world->dir->memory[1].segment_count--;
    cr_assert_eq(kvi_dir_check(world->dir, text, sizeof(text)), KVMEM_E_CORRUPT);
    world->dir->memory[1].segment_count++;
}
