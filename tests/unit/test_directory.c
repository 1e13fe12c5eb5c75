/* SPDX-License-Identifier: Apache-2.0
 *
 * The directory, rule by rule: options, hello, roles, bad frames and fields, spaces. Entries,
 * maps, the end of clients, reports: test_directory_entry.c. Who gets memory:
 * test_directory_grant.c. The check itself: test_directory_check.c.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

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

TestSuite(directory, .init = set_up, .fini = tear_down, .timeout = 20);

/* ---- creation ---- */

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

Test(directory, options_outside_their_range_are_named)
{
    struct kvi_dir_options good = kvt_dir_options(16, 8), bad = good;

    cr_assert_eq(create_code(good, ""), 0);
    bad.devices[0].device_bytes = 0;
    cr_assert_eq(create_code(bad, "device_bytes"), KVMEM_E_INVALID);
    bad.devices[0].device_bytes = KVT_GRANULE_BYTES + 1;
    cr_assert_eq(create_code(bad, "device_bytes"), KVMEM_E_INVALID);
    bad = good;
    bad.devices[0].granule_bytes = 0;
    cr_assert_eq(create_code(bad, "granule_bytes"), KVMEM_E_INVALID);
    bad.devices[0].granule_bytes = 3 * 4096;
    cr_assert_eq(create_code(bad, "granule_bytes"), KVMEM_E_INVALID);
    bad = good;
    bad.client_limit = 257;
    cr_assert_eq(create_code(bad, "client_limit"), KVMEM_E_INVALID);
    bad = good;
    bad.space_limit = 257;
    cr_assert_eq(create_code(bad, "space_limit"), KVMEM_E_INVALID);
    bad = good;
    bad.status_bytes = (UINT64_C(1) << 30) + 1;
    cr_assert_eq(create_code(bad, "status_bytes"), KVMEM_E_INVALID);
}

Test(directory, zero_options_mean_defaults)
{
    struct kvi_dir_options options = {
        .devices = {{.kind = 1, .device_bytes = UINT64_C(8) << 30, .granule_bytes = 65536}},
        .device_count = 1};
    struct kvi_dir_env env = kvt_dir_env(world);
    struct kvi_dir *dir;
    uint32_t client, last = 0;
    const struct kvi_dir_peer peer = {.pid = 7};

    cr_assert_eq(kvi_dir_create(&options, &env, &dir), 0);
    while (kvi_dir_client_add(dir, &peer, &client) == 0)
        last = client;
    cr_assert_eq(last, KVI_CLIENT_LIMIT - 1);
    kvi_dir_destroy(dir);
}

Test(directory, another_environment_is_refused)
{
    struct kvi_dir_options options = kvt_dir_options(16, 8);
    struct kvi_dir_env env = kvt_dir_env(world);
    struct kvi_dir *dir;

    env.version++;
    cr_assert_eq(kvi_dir_create(&options, &env, &dir), KVMEM_E_INVALID);
    env = kvt_dir_env(world);
    env.size--;
    cr_assert_eq(kvi_dir_create(&options, &env, &dir), KVMEM_E_INVALID);
    env = kvt_dir_env(world);
    env.send = NULL;
    cr_assert_eq(kvi_dir_create(&options, &env, &dir), KVMEM_E_INVALID);
    kvi_dir_destroy(NULL);
}

/* ---- hello ---- */

static uint32_t connect_raw(void)
{
    const struct kvi_dir_peer peer = {.pid = 7};
    uint32_t client;

    cr_assert_eq(kvi_dir_client_add(world->dir, &peer, &client), 0);
    return client;
}

static struct kvi_msg_hello good_hello(void)
{
    struct kvi_msg_hello hello;

    kvi_wire_begin(&hello, KVI_OP_HELLO, 9);
    hello.version = KVI_PROTOCOL_VERSION;
    hello.version_min = KVI_PROTOCOL_VERSION_MIN;
    return hello;
}

Test(directory, welcome_says_who_and_what)
{
    uint32_t client = connect_raw();
    struct kvi_msg_hello hello = good_hello();
    const struct kvi_msg_welcome *welcome;

    hello.version = 1000; /* a newer client that still speaks ours */
    kvt_deliver(world, client, &hello);
    welcome = kvt_take_as(world, client, KVI_OP_WELCOME);
    cr_assert(welcome);
    cr_assert_eq(welcome->header.serial, 9);
    cr_assert_eq(welcome->version, KVI_PROTOCOL_VERSION);
    cr_assert_eq(welcome->client, client);
    cr_assert_eq(welcome->device_bytes, 16 * KVT_GRANULE_BYTES);
    cr_assert_eq(welcome->granule_bytes, KVT_GRANULE_BYTES);
    cr_assert_str_eq(welcome->device, "host");
    cr_assert_neq(welcome->session[0] | welcome->session[7] | welcome->session[15], 0);
}

Test(directory, the_status_page_counts_as_a_descriptor)
{
    struct kvi_dir_options options = kvt_dir_options(16, 8);
    uint32_t client;

    cr_assert(kvt_world_destroy(world));
    options.status_bytes = 4096;
    world = kvt_world_create(&options);
    client = kvt_join(world, KVMEM_ROLE_LEADER);
    cr_assert_eq(world->fds_received[client], 1);
    cr_assert_eq(kvt_stats(world).fds_in_flight, 1);
    kvt_plain(world, client, KVI_OP_STATS, 0);
    cr_assert_eq(kvt_stats(world).fds_in_flight, 0);
}

Test(directory, a_version_too_new_names_both_sides)
{
    uint32_t client = connect_raw();
    struct kvi_msg_hello hello = good_hello();

    hello.version = 7;
    hello.version_min = 6;
    kvt_deliver(world, client, &hello);
    cr_assert_eq(kvt_take_error(world, client, "6..7, the daemon 1..2"), KVMEM_E_VERSION);
    cr_assert_eq(world->closed_count, 1);
    cr_assert_eq(world->closed[0].code, KVMEM_E_VERSION);
    kvi_dir_client_eof(world->dir, client);
    kvi_dir_client_exited(world->dir, client);
    cr_assert_eq(kvt_stats(world).client_count, 0);
}

Test(directory, members_and_resumed_sessions_are_not_supported)
{
    uint32_t client = connect_raw();
    struct kvi_msg_hello hello = good_hello();

    hello.role = KVMEM_ROLE_MEMBER;
    kvt_deliver(world, client, &hello);
    cr_assert_eq(kvt_take_error(world, client, "hello.role"), KVMEM_E_NOT_SUPPORTED);
    hello = good_hello();
    hello.session[15] = 1;
    kvt_deliver(world, client, &hello);
    cr_assert_eq(kvt_take_error(world, client, "hello.session"), KVMEM_E_NOT_SUPPORTED);
    hello = good_hello();
    kvt_deliver(world, client, &hello);
    cr_assert(kvt_take_as(world, client, KVI_OP_WELCOME));
}

Test(directory, anything_before_hello_ends_the_connection)
{
    uint32_t client = connect_raw();

    kvt_plain(world, client, KVI_OP_STATS, 0);
    cr_assert_eq(world->closed_count, 1);
    cr_assert_eq(world->closed[0].code, KVMEM_E_PROTOCOL);
    cr_assert_eq(kvt_stats(world).protocol_errors, 1);
    kvt_plain(world, client, KVI_OP_STATS, 0); /* too late to matter */
    cr_assert_eq(world->closed_count, 1);
    cr_assert_eq(world->sent_count, 0);
}

Test(directory, a_second_hello_ends_the_connection)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    struct kvi_msg_hello hello = good_hello();

    kvt_deliver(world, client, &hello);
    cr_assert_eq(world->closed[0].code, KVMEM_E_PROTOCOL);
}

Test(directory, an_observer_may_only_ask_for_reports)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_OBSERVER);

    kvt_open(world, client, "a", KVT_SMALL, 0);
    cr_assert_eq(kvt_take_error(world, client, "observer"), KVMEM_E_PERMISSION);
    kvt_request(world, client, 0, 1, 0);
    cr_assert_eq(kvt_take_error(world, client, "observer"), KVMEM_E_PERMISSION);
    kvt_unpin(world, client, 1);
    cr_assert_eq(kvt_take_error(world, client, "observer"), KVMEM_E_PERMISSION);
    kvt_plain(world, client, KVI_OP_STATS, 0);
    cr_assert(kvt_take_as(world, client, KVI_OP_STATS_REPLY));
    kvt_plain(world, client, KVI_OP_CLIENTS, 0);
    cr_assert(kvt_take_as(world, client, KVI_OP_CLIENTS_REPLY));
    kvt_plain(world, client, KVI_OP_SPACES, 0);
    cr_assert(kvt_take_as(world, client, KVI_OP_SPACES_REPLY));
    kvt_plain(world, client, KVI_OP_SEGMENTS, 0);
    cr_assert(kvt_take_as(world, client, KVI_OP_SEGMENTS_REPLY));
    kvt_plain(world, client, KVI_OP_CHECK, 0);
    cr_assert(kvt_take_as(world, client, KVI_OP_CHECK_REPLY));
    kvt_plain(world, client, KVI_OP_GOODBYE, 0);
    cr_assert(kvt_take_as(world, client, KVI_OP_DONE));
}

Test(directory, places_for_clients_run_out)
{
    const struct kvi_dir_peer peer = {.pid = 7};
    uint32_t client;

    for (uint32_t i = 0; i < 8; i++)
        cr_assert_eq(connect_raw(), i);
    cr_assert_eq(kvi_dir_client_add(world->dir, &peer, &client), KVMEM_E_LIMIT);
    kvi_dir_client_exited(world->dir, 3);
    cr_assert_eq(connect_raw(), 3);
}

/* ---- frames and fields ---- */

Test(directory, a_bad_frame_ends_the_connection)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    struct kvi_msg_stats stats;

    kvi_wire_begin(&stats, KVI_OP_STATS, 5);
    kvi_wire_finish(&stats);
    kvi_dir_message(world->dir, client, &stats, sizeof(stats) - 1, 0);
    cr_assert_eq(kvt_take_error(world, client, NULL), KVMEM_E_PROTOCOL);
    cr_assert_eq(world->closed[0].code, KVMEM_E_PROTOCOL);
    cr_assert_eq(kvt_stats(world).protocol_errors, 1);
}

Test(directory, too_short_too_long_and_empty_datagrams_end_it_too)
{
    static uint8_t huge[KVI_MESSAGE_BYTES + 1];

    for (size_t bytes = 0; bytes < 16; bytes++) {
        uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);

        kvt_forget(world);
        kvi_dir_message(world->dir, client, huge, bytes, 0);
        cr_assert_eq(world->closed_count, 1, "%zu bytes", bytes);
        kvi_dir_client_exited(world->dir, client);
        kvt_forget(world);
    }
    kvt_forget(world);
    kvi_dir_message(world->dir, kvt_join(world, KVMEM_ROLE_LEADER), huge, sizeof(huge), 0);
    cr_assert_eq(world->closed_count, 1);
}

Test(directory, descriptors_from_a_client_end_it_too)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    struct kvi_msg_stats stats;

    kvi_wire_begin(&stats, KVI_OP_STATS, 5);
    kvi_dir_message(world->dir, client, &stats, kvi_wire_finish(&stats), 1);
    cr_assert_eq(world->closed[0].code, KVMEM_E_PROTOCOL);
}

Test(directory, acknowledging_what_was_not_sent_ends_it_too)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    struct kvi_msg_stats stats;

    kvi_wire_begin(&stats, KVI_OP_STATS, 5);
    stats.header.fds_received = 1;
    kvi_dir_message(world->dir, client, &stats, kvi_wire_finish(&stats), 0);
    cr_assert_eq(world->closed[0].code, KVMEM_E_PROTOCOL);
}

Test(directory, a_bad_field_is_named_and_changes_nothing)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    uint64_t digest = kvi_dir_digest(world->dir);

    kvt_request(world, client, space, 0, 0);
    cr_assert_eq(kvt_take_error(world, client, "blocks_request.block_count"), KVMEM_E_INVALID);
    cr_assert_eq(kvi_dir_digest(world->dir), digest);
    cr_assert(kvt_is_quiet(world));
}

Test(directory, messages_from_nobody_are_ignored)
{
    kvt_plain(world, 5, KVI_OP_STATS, 0);
    kvi_dir_client_eof(world->dir, 5);
    kvi_dir_client_exited(world->dir, 5);
    kvi_dir_client_eof(world->dir, 1000);
    kvi_dir_client_exited(world->dir, 1000);
    kvi_dir_segment_created(world->dir, 3, 0);
    kvi_dir_segment_created(world->dir, 99999, 0);
    cr_assert(kvt_is_quiet(world));
}

/* Every message with every byte set to other values: whatever happens, the check holds. */
Test(directory, survives_changed_bytes, .timeout = 60)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    static _Alignas(8) uint8_t message[KVI_MESSAGE_BYTES];
    uint64_t random = 11;
    uint32_t count;
    const struct kvi_message *all = kvi_wire_messages(&count);

    kvt_space(world, client, "a", KVT_SMALL, 0);
    for (uint32_t round = 0; round < 40000; round++) {
        const struct kvi_message *m = &all[kvt_random(&random) % count];
        size_t bytes;

        memset(message, 0, sizeof(message));
        kvi_wire_begin(message, (enum kvi_opcode)m->opcode, round);
        ((struct kvi_header *)(void *)message)->fds_received = world->fds_received[client];
        for (size_t i = 16; i < m->fixed_bytes; i++)
            if (kvt_random(&random) % 4 == 0)
                message[i] = (uint8_t)(kvt_random(&random) % 3);
        for (unsigned t = 0; t < m->tail_count; t++)
            message[m->tails[t].count_offset + 1] = message[m->tails[t].count_offset + 2] =
                message[m->tails[t].count_offset + 3] = 0;
        bytes = kvi_wire_finish(message);
        if (kvt_random(&random) % 8 == 0)
            message[kvt_random(&random) % bytes] ^= (uint8_t)(1u << kvt_random(&random) % 8);
        kvi_dir_message(world->dir, client, message, bytes, 0);
        kvt_create_all(world, 0);
        if (round % 16 == 0)
            kvt_world_check(world);
        if (world->closed_count > 0) {
            kvi_dir_client_exited(world->dir, client);
            kvt_forget(world);
            client = kvt_join(world, KVMEM_ROLE_LEADER);
            kvt_space(world, client, "a", KVT_SMALL, 0);
        }
        kvt_forget(world);
    }
}

/* ---- spaces ---- */

static struct kvi_msg_space_open *good_open(void)
{
    static _Alignas(8) uint8_t buffer[1024];
    struct kvi_msg_space_open *open = (void *)buffer;
    const struct kvi_rec_group group = {.layer_count = 8,
                                        .kv_head_count = 1,
                                        .head_dim_k = 8,
                                        .head_dim_v = 8,
                                        .dtype_k = KVMEM_DTYPE_BF16,
                                        .dtype_v = KVMEM_DTYPE_BF16};

    memset(buffer, 0, sizeof(buffer));
    kvi_wire_begin(open, KVI_OP_SPACE_OPEN, 3);
    strcpy(open->name, "a");
    strcpy(open->domain, "default");
    open->layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    open->block_tokens = KVT_BLOCK_TOKENS;
    open->shard_count = 1;
    open->group_count = 1;
    memcpy(kvi_wire_tail(open, 0), &group, sizeof(group));
    return open;
}

static void expect_refused(uint32_t client, struct kvi_msg_space_open *open, int code,
                           const char *word)
{
    uint64_t digest = kvi_dir_digest(world->dir);

    kvt_deliver(world, client, open);
    cr_assert_eq(kvt_take_error(world, client, word), code, "%s", word);
    cr_assert_eq(kvi_dir_digest(world->dir), digest, "%s", word);
}

Test(directory, a_space_that_cannot_be_names_the_field)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    struct kvi_msg_space_open *open = good_open();

    open->name[0] = '\0';
    expect_refused(client, open, KVMEM_E_INVALID, "space_open.name");
    open = good_open();
    memset(open->domain, 0, sizeof(open->domain));
    expect_refused(client, open, KVMEM_E_INVALID, "space_open.domain");
    open = good_open();
    open->shard_index = 1;
    expect_refused(client, open, KVMEM_E_INVALID, "space_open.shard_index");
    open = good_open();
    open->quota_bytes = 4095;
    expect_refused(client, open, KVMEM_E_INVALID, "space_open.quota_bytes");
    open = good_open();
    open->shard_count = 2;
    expect_refused(client, open, KVMEM_E_NOT_SUPPORTED, "shard_count");
    open = good_open();
    open->group_count = 2;
    memcpy((struct kvi_rec_group *)kvi_wire_tail(open, 0) + 1, kvi_wire_tail(open, 0),
           sizeof(struct kvi_rec_group));
    expect_refused(client, open, KVMEM_E_NOT_SUPPORTED, "group_count");
    open = good_open();
    open->flags = 2;
    expect_refused(client, open, KVMEM_E_INVALID, "space_open.flags");
    open = good_open();
    open->flags = KVI_SPACE_REGIONS;
    expect_refused(client, open, KVMEM_E_INVALID, "smallest that works: block_tokens 16");
    open = good_open();
    open->layout = KVMEM_LAYOUT_PER_LAYER;
    expect_refused(client, open, KVMEM_E_NOT_SUPPORTED, "layout");
    open = good_open();
    ((struct kvi_rec_group *)kvi_wire_tail(open, 0))->window_tokens = 8;
    expect_refused(client, open, KVMEM_E_NOT_SUPPORTED, "window_tokens");
}

Test(directory, other_groups_than_0_are_not_supported)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvi_msg_blocks_request request;
    static _Alignas(8) uint8_t buffer[256];
    struct kvi_msg_lookup *lookup = (void *)buffer;
    struct kvi_msg_pin *pin = (void *)buffer;

    kvi_wire_begin(&request, KVI_OP_BLOCKS_REQUEST, 1);
    request.space = space;
    request.block_count = 1;
    request.group = 1;
    kvt_deliver(world, client, &request);
    cr_assert_eq(kvt_take_error(world, client, "blocks_request.group"), KVMEM_E_NOT_SUPPORTED);
    kvi_wire_begin(lookup, KVI_OP_LOOKUP, 1);
    lookup->space = space;
    lookup->group = 7;
    lookup->name_count = 1;
    kvt_deliver(world, client, lookup);
    cr_assert_eq(kvt_take_error(world, client, "lookup.group"), KVMEM_E_NOT_SUPPORTED);
    kvi_wire_begin(pin, KVI_OP_PIN, 1);
    pin->space = space;
    pin->group = 1;
    pin->name_count = 1;
    kvt_deliver(world, client, pin);
    cr_assert_eq(kvt_take_error(world, client, "pin.group"), KVMEM_E_NOT_SUPPORTED);
}

Test(directory, the_same_space_needs_the_same_properties)
{
    uint32_t first = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t second = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, first, "a", KVT_SMALL, 8192);
    struct kvi_msg_space_open *open = good_open();

    open->fingerprint[31] = 1;
    expect_refused(second, open, KVMEM_E_EXISTS, "space_open.fingerprint");
    open = good_open();
    open->layout = KVMEM_LAYOUT_PAGE_TOKEN_HEAD;
    expect_refused(second, open, KVMEM_E_EXISTS, "space_open.layout");
    open = good_open();
    open->block_tokens = 16;
    open->flags = KVI_SPACE_REGIONS;
    expect_refused(second, open, KVMEM_E_EXISTS, "space_open.block_tokens");
    kvt_space(world, first, "single", KVT_SINGLE, 0);
    open = good_open();
    strcpy(open->name, "single");
    open->layout = KVMEM_LAYOUT_TOKEN_MAJOR;
    ((struct kvi_rec_group *)kvi_wire_tail(open, 0))->layer_count = 32;
    expect_refused(second, open, KVMEM_E_EXISTS, "space_open.flags");
    open = good_open();
    open->quota_bytes = 12288;
    expect_refused(second, open, KVMEM_E_EXISTS, "space_open.quota_bytes");
    open = good_open();
    ((struct kvi_rec_group *)kvi_wire_tail(open, 0))->layer_count = 16;
    expect_refused(second, open, KVMEM_E_EXISTS, "space_open.group.layer_count");
    open = good_open();
    ((struct kvi_rec_group *)kvi_wire_tail(open, 0))->dtype_v = KVMEM_DTYPE_FP16;
    expect_refused(second, open, KVMEM_E_EXISTS, "space_open.group.dtype_v");
    expect_refused(first, good_open(), KVMEM_E_BUSY, "space_open.name");
    cr_assert_eq(kvt_space(world, second, "a", KVT_SMALL, 0), space);
    open = good_open();
    memcpy(open->domain, "other\0\0", 7); /* another domain, another space */
    kvt_deliver(world, second, open);
    cr_assert(kvt_take_as(world, second, KVI_OP_SPACE_OPENED));
    cr_assert_eq(kvt_stats(world).space_count, 3);
}

Test(directory, places_for_spaces_run_out)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    static const char *const names[] = {"a", "b", "c", "d"};

    for (int i = 0; i < 4; i++)
        kvt_space(world, client, names[i], KVT_SMALL, 0);
    kvt_open(world, client, "e", KVT_SMALL, 0);
    cr_assert_eq(kvt_take_error(world, client, NULL), KVMEM_E_LIMIT);
}

Test(directory, ids_of_closed_spaces_are_stale)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t old = kvt_space(world, client, "a", KVT_SMALL, 0);
    uint32_t next;

    kvt_close(world, client, old);
    cr_assert(kvt_take_as(world, client, KVI_OP_DONE));
    cr_assert_eq(kvt_stats(world).space_count, 0);
    next = kvt_space(world, client, "a", KVT_SMALL, 0);
    cr_assert_neq(old, next);
    kvt_request(world, client, old, 1, 0);
    cr_assert_eq(kvt_take_error(world, client, "blocks_request.space"), KVMEM_E_STALE);
    kvt_lookup(world, client, old, 1, (uint32_t[]){1}, 0);
    cr_assert_eq(kvt_take_error(world, client, "lookup.space"), KVMEM_E_STALE);
    kvt_publish(world, client, old, 1, (uint32_t[]){1}, (uint32_t[]){0});
    cr_assert_eq(kvt_take_error(world, client, "publish.space"), KVMEM_E_STALE);
    kvt_release(world, client, old, 1, (uint32_t[]){0});
    cr_assert_eq(kvt_take_error(world, client, "release.space"), KVMEM_E_STALE);
    kvt_pin(world, client, old, 1, (uint32_t[]){1}, 0);
    cr_assert_eq(kvt_take_error(world, client, "pin.space"), KVMEM_E_STALE);
    kvt_hand_in(world, client, old, 0, 1);
    cr_assert_eq(kvt_take_error(world, client, "segment_hand_in.space"), KVMEM_E_STALE);
    kvt_map(world, client, old, 1, &(struct kvi_rec_segment_ref){0, 1});
    cr_assert_eq(kvt_take_error(world, client, "segment_map.space"), KVMEM_E_STALE);
    kvt_close(world, client, old);
    cr_assert_eq(kvt_take_error(world, client, "space_close.space"), KVMEM_E_STALE);
    kvt_unmapped(world, client, old, 0, 1); /* the late answer to segment_gone: no error */
    cr_assert(kvt_is_quiet(world));
}

Test(directory, a_space_lives_on_for_its_entries)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);
    struct kvt_granted got = kvt_get(world, client, space, 8);

    kvt_publish_all(world, client, space, 10, 4, got.blocks);
    kvt_close(world, client, space);
    cr_assert(kvt_take_as(world, client, KVI_OP_DONE));
    cr_assert_eq(kvt_stats(world).space_count, 1);
    cr_assert_eq(kvt_stats(world).entry_blocks, 4);
    cr_assert_eq(kvt_space(world, client, "a", KVT_SMALL, 0), space);
    cr_assert_eq(kvt_peek(world, client, space, 10, 8), 4);
    kvt_world_check(world);
}

Test(directory, a_space_without_clients_and_entries_goes_at_once)
{
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t space = kvt_space(world, client, "a", KVT_SMALL, 0);

    kvt_get(world, client, space, 8);
    cr_assert_eq(kvt_stats(world).segment_count, 2);
    kvt_close(world, client, space);
    cr_assert_eq(kvt_stats(world).segment_count, 0);
    cr_assert_eq(kvt_stats(world).space_count, 0);
    cr_assert_eq(world->created_bytes, 0);
}

Test(directory, draining_tells_everybody_and_refuses_the_new)
{
    const struct kvi_dir_peer peer = {.pid = 7};
    uint32_t client = kvt_join(world, KVMEM_ROLE_LEADER);
    uint32_t late = connect_raw(), number;
    struct kvi_msg_hello hello = good_hello();
    const struct kvi_msg_draining *draining;

    kvi_dir_drain(world->dir, 12345);
    draining = kvt_take_as(world, client, KVI_OP_DRAINING);
    cr_assert(draining && draining->deadline_ns == 12345);
    cr_assert_eq(kvi_dir_client_add(world->dir, &peer, &number), KVMEM_E_LIMIT);
    kvt_open(world, client, "a", KVT_SMALL, 0);
    cr_assert_eq(kvt_take_error(world, client, "ending"), KVMEM_E_BUSY);
    kvt_deliver(world, late, &hello);
    cr_assert_eq(kvt_take_error(world, late, "ending"), KVMEM_E_BUSY);
}
