/* SPDX-License-Identifier: Apache-2.0
 *
 * The client against a scripted daemon: hello, refill and hand-in, what it does when it is told
 * something unexpected or the daemon goes, and the arguments of calls. Publishing and looking up
 * are in test_client_prefix.c.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "support/client_scene.h"

/* ---- hello ---- */

Test(client, hello)
{
    struct kvmem_client_info info = {.size = sizeof(info)};
    struct kvt_scene s;

    kvt_scene_begin(&s);
    cr_assert(kvmem_client_info(s.client, &info) == 0);
    cr_assert(info.client_number == 3 && info.protocol_version == KVI_PROTOCOL_VERSION &&
              info.device_bytes == KVT_SCENE_BYTES && info.granule_bytes == 4096);
    cr_assert(!strcmp(info.device_name, "host"));
    info.size--;
    cr_assert(kvmem_client_info(s.client, &info) == KVMEM_E_INVALID);
    kvt_scene_end(&s);
}

static int hello_with(uint32_t version, const char *device, bool is_mute)
{
    struct kvi_client_options options = {.timeout_ns = 5000000};
    struct kvt_script *script = kvt_script_create(KVT_SCENE_BYTES, 4096);
    struct kvmem_client *client = NULL;
    int code;

    script->welcome_version = version;
    script->welcome_device = device;
    script->is_mute = is_mute;
    code = kvi_client_create(&script->base, &kvi_alloc_libc, &options, &client);
    cr_assert(!client && script->is_closed);
    kvt_script_destroy(script);
    return code;
}

Test(client, hello_refused)
{
    uint32_t fds = kvt_open_fds();

    cr_assert(hello_with(KVI_PROTOCOL_VERSION + 1, "host", false) == KVMEM_E_VERSION);
    cr_assert(hello_with(KVI_PROTOCOL_VERSION, "host", true) == KVMEM_E_TIMED_OUT);
    cr_assert(kvt_open_fds() == fds);
}

/* ---- asking for blocks ---- */

Test(client, refill_and_its_codes)
{
    const struct kvi_msg_blocks_request *request;
    struct kvmem_seq seq;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    cr_assert(kvmem_seq_create(s.space, &seq) == 0);
    cr_assert(kvmem_seq_append(s.space, seq, 40, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    kvt_scene_dispatch(&s, 0);
    request = kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST);
    cr_assert(request && request->block_count == 10 && request->flags == KVI_REQUEST_MAY_WAIT);
    cr_assert(kvt_scene_capacity(&s).is_refill_pending);
    cr_assert(kvmem_seq_append(s.space, seq, 1, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    kvt_scene_dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST), "asked twice");
    kvt_script_error(s.script, request->header.serial, KVI_OP_BLOCKS_REQUEST, KVMEM_E_DEVICE_FULL);
    kvt_scene_dispatch(&s, 1);
    cr_assert(kvmem_seq_append(s.space, seq, 1, kvmem_fence_none()) == KVMEM_E_OUT_OF_BLOCKS);
    cr_assert(kvt_scene_stats(&s).out_of_blocks == 3 && kvt_scene_stats(&s).refills == 1);
    kvt_scene_dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, kvt_scene_requested(&s), 5, 1, KVI_GRANT_LAST);
    kvt_scene_dispatch(&s, 1);
    cr_assert(kvmem_seq_append(s.space, seq, 16, kvmem_fence_none()) == 0);
    cr_assert(kvt_scene_capacity(&s).obtainable_blocks == 5 &&
              kvt_scene_capacity(&s).owned_blocks == 4);
    cr_assert(kvt_scene_capacity(&s).used_blocks == 4 && kvt_scene_capacity(&s).free_blocks == 0);
    kvt_scene_end(&s);
}

Test(client, giving_back_makes_a_refusal_old)
{
    struct kvmem_seq seq, other;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    seq = kvt_scene_seq(&s, 32);
    cr_assert(kvmem_seq_create(s.space, &other) == 0);
    cr_assert(kvmem_seq_append(s.space, other, 4, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    kvt_scene_dispatch(&s, 0);
    kvt_script_error(s.script, kvt_scene_requested(&s), KVI_OP_BLOCKS_REQUEST, KVMEM_E_QUOTA);
    kvt_scene_dispatch(&s, 1);
    cr_assert(kvmem_seq_append(s.space, other, 4, kvmem_fence_none()) == KVMEM_E_OUT_OF_BLOCKS);
    cr_assert(kvmem_seq_truncate(s.space, seq, 28, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_append(s.space, other, 8, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    kvt_scene_end(&s);
}

/* Grants in parts, the next part only when the descriptors are acknowledged. */
Test(client, descriptors_are_acknowledged)
{
    struct kvt_scene s;
    uint32_t serial;

    kvt_scene_begin(&s);
    cr_assert(kvmem_space_reserve(s.space, 76, 0) == KVMEM_E_REFILL_PENDING);
    serial = kvt_scene_requested(&s);
    kvt_script_grant(s.script, &s.geometry, serial, 0, 16, 0);
    cr_assert(kvmem_space_reserve(s.space, 76, 1000000) == KVMEM_E_REFILL_PENDING);
    cr_assert(s.script->last_fds_received == 17, "%u", s.script->last_fds_received);
    kvt_script_grant(s.script, &s.geometry, serial, 16, 3, KVI_GRANT_LAST);
    cr_assert(kvmem_space_reserve(s.space, 76, 1000000) == 0);
    kvt_scene_dispatch(&s, 0);
    cr_assert(kvt_scene_capacity(&s).free_blocks == 76, "what was reserved is kept");
    kvt_scene_end(&s);
}

/* The last grant of one space is acknowledged at once while another space waits: the daemon may be
 * holding that one's segments back for want of it. */
Test(client, descriptors_are_acknowledged_for_other_spaces)
{
    struct kvmem_space_options options = kvt_small_space("other");
    struct kvmem_space *other;
    struct kvt_scene s;
    uint32_t serial;

    kvt_scene_begin(&s);
    cr_assert(kvmem_space_open(s.client, &options, &other) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_space_reserve(s.space, 8, 0) == KVMEM_E_REFILL_PENDING);
    serial = kvt_scene_requested(&s);
    cr_assert(kvmem_space_reserve(other, 8, 0) == KVMEM_E_REFILL_PENDING);
    kvt_script_grant(s.script, &s.geometry, serial, 0, 2, KVI_GRANT_LAST);
    kvt_scene_dispatch(&s, 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_ACKNOWLEDGE) != NULL);
    cr_assert(s.script->last_fds_received == 3, "%u", s.script->last_fds_received);
    kvt_scene_end(&s);
}

/* ---- handing in ---- */

Test(client, hand_in_comes_after_what_was_said_before)
{
    struct kvmem_seq seq;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    seq = kvt_scene_seq(&s, 32);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 8, kvt_scene_names, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    cr_assert(kvmem_space_trim(s.space) == 2);
    cr_assert(kvt_script_find(s.script, KVI_OP_PUBLISH));
    const struct kvi_msg_release *release = kvt_script_find(s.script, KVI_OP_RELEASE);
    cr_assert(release && release->index_count == 8);
    const struct kvi_msg_segment_hand_in *first = kvt_script_next(s.script);
    cr_assert(first && first->header.opcode == KVI_OP_SEGMENT_HAND_IN && first->generation == 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN));
    cr_assert(kvt_scene_stats(&s).owned_segments == 0 && kvt_scene_stats(&s).mapped_segments == 2);
    cr_assert(kvt_scene_stats(&s).handed_in_segments == 2 &&
              kvt_scene_stats(&s).published_blocks == 8);
    kvt_scene_end(&s);
}

Test(client, pressure_takes_what_is_idle)
{
    struct kvi_msg_pressure pressure;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    kvt_scene_seq(&s, 3);
    kvi_wire_begin(&pressure, KVI_OP_PRESSURE, 0);
    pressure.space = 7;
    pressure.segment_count = 5;
    pressure.deadline_ns = 50000000;
    kvt_script_push(s.script, &pressure, NULL, 0);
    kvt_scene_dispatch(&s, 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN));
    cr_assert(!kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN));
    cr_assert(kvt_scene_stats(&s).owned_segments == 1 && kvt_scene_capacity(&s).free_blocks == 3);
    kvt_scene_dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST), "asked again under pressure");
    kvt_scene_end(&s);
}

Test(client, the_scratch_block_keeps_its_segment)
{
    struct kvt_scene s;
    int32_t scratch;

    kvt_scene_begin(&s);
    cr_assert(kvmem_space_scratch(s.space, 0) == KVMEM_E_REFILL_PENDING);
    kvt_scene_get_blocks(&s);
    scratch = kvmem_space_scratch(s.space, 0);
    cr_assert(scratch >= 0 && kvmem_space_scratch(s.space, 0) == scratch);
    memset((char *)kvmem_space_write_base(s.space, 0, 0) +
               (uint64_t)scratch * s.geometry.index_stride_bytes,
           1, s.geometry.block_bytes);
    cr_assert(kvmem_space_trim(s.space) == 1);
    cr_assert(kvt_scene_capacity(&s).used_blocks == 0 && kvt_scene_stats(&s).owned_segments == 1);
    kvt_scene_end(&s);
}

/* ---- wrong messages ---- */

typedef void wrong_message(struct kvt_scene *s, uint32_t serial);

static void wrong_slot(struct kvt_scene *s, uint32_t serial)
{
    kvt_script_grant(s->script, &s->geometry, serial, s->geometry.segment_limit, 1, KVI_GRANT_LAST);
}

static void wrong_serial(struct kvt_scene *s, uint32_t serial)
{
    kvt_script_grant(s->script, &s->geometry, serial + 1, 0, 1, KVI_GRANT_LAST);
}

static void wrong_twice(struct kvt_scene *s, uint32_t serial)
{
    kvt_script_grant(s->script, &s->geometry, serial, 0, 2, 0);
    kvt_script_grant(s->script, &s->geometry, serial, 1, 2, KVI_GRANT_LAST);
}

static void wrong_fds(struct kvt_scene *s, uint32_t serial)
{
    struct kvt_script_message *m = &s->script->in[s->script->in_head % KVT_SCRIPT_MESSAGES];

    kvt_script_grant(s->script, &s->geometry, serial, 0, 2, KVI_GRANT_LAST);
    m->fds[m->fd_count++] = kvt_script_segment_fd(s->script, s->geometry.segment_bytes);
}

static void wrong_publish(struct kvt_scene *s, uint32_t serial)
{
    _Alignas(8) char bytes[64];
    struct kvi_msg_publish_reply *reply = (void *)bytes;

    kvi_wire_begin(reply, KVI_OP_PUBLISH_REPLY, serial);
    reply->space = 7;
    reply->record_count = 1;
    kvt_script_push(s->script, reply, NULL, 0);
}

static void wrong_answer(struct kvt_scene *s, uint32_t serial)
{
    static const uint32_t index = 1;

    (void)serial;
    kvt_scene_push_hits(s, 12345, 1, &index, 1);
}

Test(client, a_daemon_that_breaks_the_protocol_is_lost)
{
    static wrong_message *const wrongs[] = {wrong_slot, wrong_serial,  wrong_twice,
                                            wrong_fds,  wrong_publish, wrong_answer};

    for (uint32_t i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
        struct kvt_scene s;

        kvt_scene_begin(&s);
        kvt_scene_dispatch(&s, 0);
        wrongs[i](&s, kvt_scene_requested(&s));
        cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_PROTOCOL, "message %u", i);
        cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST, "message %u", i);
        kvt_scene_end(&s);
    }
}

Test(client, hits_on_own_blocks_break_the_protocol)
{
    struct kvt_scene s;
    uint32_t index = 0;
    int32_t block;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    kvt_scene_push_hits(&s, kvt_scene_coming(&s, 1), 1, &index, 1);
    cr_assert(kvmem_prefix_lookup(s.space, 1, kvt_scene_names, &block, NULL) == KVMEM_E_PROTOCOL);
    kvt_scene_end(&s);
}

/* ---- the daemon goes ---- */

Test(client, local_calls_go_on_without_the_daemon)
{
    struct kvmem_seq seq, child, other;
    struct kvmem_space *space;
    struct kvmem_space_options options = kvt_small_space("late");
    int32_t block;
    char *base;
    struct kvt_scene s;
    uint64_t pin;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    seq = kvt_scene_seq(&s, 5);
    base = kvmem_space_write_base(s.space, 0, 0);
    s.script->receive_code = KVMEM_E_DAEMON_LOST;
    cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST);
    for (int i = 0; i < 2; i++) {
        cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_lookup(s.space, 1, kvt_scene_names, &block, NULL) ==
                  KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_peek(s.space, 1, kvt_scene_names) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_pin(s.space, 1, kvt_scene_names, 0, &pin) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_unpin(s.space, 1) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, kvt_scene_names, kvmem_fence_none()) ==
                  KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_space_open(s.client, &options, &space) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_space_trim(s.space) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_space_reserve(s.space, 60, 1000) == KVMEM_E_DAEMON_LOST);
    }
    cr_assert(kvmem_seq_append(s.space, seq, 4, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_fork(s.space, seq, &child) == 0);
    cr_assert(kvmem_seq_append(s.space, child, 4, kvmem_fence_none()) == 0);
    memset(base, 1, s.geometry.block_bytes);
    other = kvt_scene_seq(&s, 4);
    cr_assert(kvmem_seq_append(s.space, other, 40, kvmem_fence_none()) == KVMEM_E_DAEMON_LOST);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    cr_assert(kvmem_client_check(s.client) == 0);
    kvt_scene_end(&s);
}

Test(client, observers_open_nothing)
{
    struct kvi_client_options inner = {.role = KVMEM_ROLE_OBSERVER, .timeout_ns = 5000000};
    struct kvmem_space_options options = kvt_small_space("none");
    struct kvt_script *script = kvt_script_create(KVT_SCENE_BYTES, 4096);
    struct kvmem_client *client;
    struct kvmem_space *space;

    cr_assert(kvi_client_create(&script->base, &kvi_alloc_libc, &inner, &client) == 0);
    cr_assert(kvmem_space_open(client, &options, &space) == KVMEM_E_PERMISSION);
    kvmem_client_close(client);
    kvt_script_destroy(script);
}

/* ---- arguments ---- */

Test(client, numeric_options)
{
    static const uint32_t bad_records[] = {1, 1023, 16777217, UINT32_MAX};
    struct kvmem_embed_options embed = {.size = sizeof(embed), .device_bytes = 1 << 20};
    struct kvmem_connect_options options = {.size = sizeof(options)};
    struct kvmem_client *client;

    for (uint32_t i = 0; i < 4; i++) {
        options.outbox_records = embed.outbox_records = bad_records[i];
        cr_assert(kvmem_client_connect(&options, &client) == KVMEM_E_INVALID);
        cr_assert(strstr(kvmem_error_detail()->text, "outbox_records"));
        cr_assert(kvmem_client_embed(&embed, &client) == KVMEM_E_INVALID);
    }
    options.outbox_records = embed.outbox_records = 0;
    options.timeout_ns = -1;
    cr_assert(kvmem_client_connect(&options, &client) == KVMEM_E_INVALID);
    cr_assert(strstr(kvmem_error_detail()->text, "timeout_ns"));
    options.timeout_ns = 0;
    options.role = 3;
    cr_assert(kvmem_client_connect(&options, &client) == KVMEM_E_INVALID);
    options.role = KVMEM_ROLE_MEMBER;
    cr_assert(kvmem_client_connect(&options, &client) == KVMEM_E_NOT_SUPPORTED);
    options.role = 0;
    options.size = 0;
    cr_assert(kvmem_client_connect(&options, &client) == KVMEM_E_INVALID);
    cr_assert(kvmem_client_connect(NULL, NULL) == KVMEM_E_INVALID);
    embed.device_bytes = 0;
    cr_assert(kvmem_client_embed(&embed, &client) == KVMEM_E_INVALID);
    embed.device_bytes = UINT64_MAX;
    cr_assert(kvmem_client_embed(&embed, &client) == KVMEM_E_INVALID);
    embed.device_bytes = 1 << 20;
    embed.granule_bytes = 3000;
    cr_assert(kvmem_client_embed(&embed, &client) == KVMEM_E_INVALID);
    embed.granule_bytes = 1ull << 63;
    cr_assert(kvmem_client_embed(&embed, &client) == KVMEM_E_INVALID);
    embed.granule_bytes = 0;
    embed.device = "cuda:0";
    cr_assert(kvmem_client_embed(&embed, &client) == KVMEM_E_NOT_SUPPORTED);
    embed.device = NULL;
    embed.name = "a name of more than thirty-one bytes";
    cr_assert(kvmem_client_embed(&embed, &client) == KVMEM_E_INVALID);
}

Test(client, arguments_of_calls)
{
    struct kvmem_fence fence = {KVMEM_FENCE_STREAM, 0, 0, NULL};
    struct kvmem_name names[2] = {{{1}}, {{2}}};
    struct kvmem_seq seq;
    int32_t blocks[2] = {-1, INT32_MAX};
    uint64_t pin;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    seq = kvt_scene_seq(&s, 6);
    cr_assert(kvmem_client_dispatch(s.client, -1) == KVMEM_E_INVALID);
    cr_assert(kvmem_space_reserve(s.space, UINT64_MAX, 0) == KVMEM_E_INVALID);
    cr_assert(kvmem_space_reserve(s.space, 1, -1) == KVMEM_E_INVALID);
    cr_assert(kvmem_seqs_create(s.space, UINT32_MAX, &seq) == KVMEM_E_INVALID);
    cr_assert(kvmem_seqs_create(s.space, INT32_MAX, &seq) == KVMEM_E_LIMIT);
    cr_assert(kvmem_seq_append(s.space, seq, UINT32_MAX, kvmem_fence_none()) == KVMEM_E_LIMIT);
    cr_assert(kvmem_seq_reserve(s.space, seq, UINT32_MAX) == KVMEM_E_LIMIT);
    cr_assert(kvmem_seq_truncate(s.space, seq, UINT64_MAX, kvmem_fence_none()) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_commit(s.space, seq, UINT32_MAX) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_append(s.space, seq, 1, fence) == KVMEM_E_NOT_SUPPORTED);
    cr_assert(strstr(kvmem_error_detail()->text, "fence.kind"));
    fence.kind = 4;
    cr_assert(kvmem_seq_append(s.space, seq, 1, fence) == KVMEM_E_INVALID);
    cr_assert(kvmem_fence_poll(s.client, &fence) == KVMEM_E_INVALID);
    fence.kind = KVMEM_FENCE_HOST;
    cr_assert(kvmem_fence_poll(s.client, &fence) == 1);
    cr_assert(kvmem_fence_wait(s.client, &fence, -1) == 0);
    cr_assert(kvmem_seq_publish(s.space, seq, 1, 1, names, fence) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_publish(s.space, seq, UINT32_MAX, 1, names, fence) == KVMEM_E_INVALID);
    cr_assert(kvmem_prefix_release(s.space, 1, blocks, fence) == KVMEM_E_INVALID);
    cr_assert(kvmem_prefix_release(s.space, 1, blocks + 1, fence) == KVMEM_E_INVALID);
    cr_assert(kvmem_prefix_pin(s.space, 0, names, 0, &pin) == KVMEM_E_LIMIT);
    cr_assert(kvmem_prefix_pin(s.space, 1025, names, 0, &pin) == KVMEM_E_LIMIT);
    cr_assert(kvmem_prefix_pin(s.space, 1, names, -1, &pin) == KVMEM_E_INVALID);
    cr_assert(kvmem_prefix_unpin(s.space, 0) == KVMEM_E_INVALID);
    cr_assert(kvmem_seqs_append(s.space, 1, NULL, NULL, fence) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_create(NULL, &seq) == KVMEM_E_INVALID);
    cr_assert(kvmem_space_base(s.space, 1, 0) == NULL && kvmem_space_base(NULL, 0, 0) == NULL);
    kvmem_client_close(NULL);
    kvmem_space_close(NULL);
    kvt_scene_end(&s);
}

Test(client, a_space_is_open_once)
{
    struct kvmem_space_options options = kvt_small_space("scripted");
    struct kvmem_space *again;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    cr_assert(kvmem_space_open(s.client, &options, &again) == KVMEM_E_BUSY);
    options.seq_limit = 2000000;
    cr_assert(kvmem_space_open(s.client, &options, &again) == KVMEM_E_INVALID);
    cr_assert(strstr(kvmem_error_detail()->text, "seq_limit"));
    kvt_scene_end(&s);
}
