/* SPDX-License-Identifier: Apache-2.0
 *
 * The client against a scripted daemon: what it says, in which order, and what it does when it is
 * told something unexpected.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "support/scripted.h"

#define DEVICE_BYTES (64u * 4096u)

struct scene {
    struct kvt_script *script;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    uint32_t fds;
};

static void begin(struct scene *s)
{
    struct kvmem_space_options options = kvt_small_space("scripted");

    memset(s, 0, sizeof(*s));
    s->fds = kvt_open_fds();
    s->script = kvt_script_create(DEVICE_BYTES, 4096);
    s->client = kvt_script_client(s->script);
    cr_assert(kvmem_space_open(s->client, &options, &s->space) == 0, "%s",
              kvmem_error_detail()->text);
    s->geometry.size = sizeof(s->geometry);
    cr_assert(kvmem_space_geometry(s->space, 0, &s->geometry) == 0);
    cr_assert(s->geometry.blocks_per_segment == 4);
}

static void end(struct scene *s)
{
    cr_assert(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(s->client);
    cr_assert(s->script->is_closed);
    kvt_script_destroy(s->script);
    cr_assert(kvt_open_fds() == s->fds, "%u descriptors, before %u", kvt_open_fds(), s->fds);
}

static void dispatch(struct scene *s, int expected)
{
    int code = kvmem_client_dispatch(s->client, 0);

    cr_assert(code == expected, "dispatch: %d (%s), expected %d", code,
              code < 0 ? kvmem_error_detail()->text : "", expected);
    if (code >= 0)
        cr_assert(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
}

/* The serial of the next request for blocks. */
static uint32_t requested(struct scene *s)
{
    const struct kvi_header *request = kvt_script_find(s->script, KVI_OP_BLOCKS_REQUEST);

    cr_assert(request != NULL);
    return request->serial;
}

/* Two segments, slots 0 and 1: 8 blocks. */
static void get_blocks(struct scene *s)
{
    dispatch(s, 0);
    kvt_script_grant(s->script, &s->geometry, requested(s), 0, 2, KVI_GRANT_LAST);
    dispatch(s, 1);
}

static struct kvmem_seq seq_of(struct scene *s, uint32_t tokens)
{
    struct kvmem_seq seq;

    cr_assert(kvmem_seq_create(s->space, &seq) == 0);
    cr_assert(kvmem_seq_append(s->space, seq, tokens, kvmem_fence_none()) == 0, "%s",
              kvmem_error_detail()->text);
    cr_assert(kvmem_seq_commit(s->space, seq, tokens) == 0);
    return seq;
}

static struct kvmem_space_stats stats(struct scene *s)
{
    struct kvmem_space_stats out = {.size = sizeof(out)};

    cr_assert(kvmem_space_stats(s->space, &out) == 0);
    return out;
}

static struct kvmem_capacity capacity(struct scene *s)
{
    struct kvmem_capacity out = {.size = sizeof(out)};

    cr_assert(kvmem_space_capacity(s->space, &out) == 0);
    return out;
}

static const struct kvmem_name some_names[16] = {{{1}}, {{2}}, {{3}}, {{4}}, {{5}},
                                                 {{6}}, {{7}}, {{8}}, {{9}}, {{10}}};

/* ---- hello ---- */

Test(client, hello)
{
    struct kvmem_client_info info = {.size = sizeof(info)};
    struct scene s;

    begin(&s);
    cr_assert(kvmem_client_info(s.client, &info) == 0);
    cr_assert(info.client_number == 3 && info.protocol_version == KVI_PROTOCOL_VERSION &&
              info.device_bytes == DEVICE_BYTES && info.granule_bytes == 4096);
    cr_assert(!strcmp(info.device_name, "host"));
    info.size--;
    cr_assert(kvmem_client_info(s.client, &info) == KVMEM_E_INVALID);
    end(&s);
}

static int hello_with(uint32_t version, const char *device, bool is_mute)
{
    struct kvi_client_options options = {.timeout_ns = 5000000};
    struct kvt_script *script = kvt_script_create(DEVICE_BYTES, 4096);
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
    struct scene s;

    begin(&s);
    cr_assert(kvmem_seq_create(s.space, &seq) == 0);
    cr_assert(kvmem_seq_append(s.space, seq, 40, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    dispatch(&s, 0);
    request = kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST);
    cr_assert(request && request->block_count == 10 && request->flags == KVI_REQUEST_MAY_WAIT);
    cr_assert(capacity(&s).is_refill_pending);
    cr_assert(kvmem_seq_append(s.space, seq, 1, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST), "asked twice");
    kvt_script_error(s.script, request->header.serial, KVI_OP_BLOCKS_REQUEST, KVMEM_E_DEVICE_FULL);
    dispatch(&s, 1);
    cr_assert(kvmem_seq_append(s.space, seq, 1, kvmem_fence_none()) == KVMEM_E_OUT_OF_BLOCKS);
    cr_assert(stats(&s).out_of_blocks == 3 && stats(&s).refills == 1);
    dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 5, 1, KVI_GRANT_LAST);
    dispatch(&s, 1);
    cr_assert(kvmem_seq_append(s.space, seq, 16, kvmem_fence_none()) == 0);
    cr_assert(capacity(&s).obtainable_blocks == 5 && capacity(&s).owned_blocks == 4);
    cr_assert(capacity(&s).used_blocks == 4 && capacity(&s).free_blocks == 0);
    end(&s);
}

Test(client, giving_back_makes_a_refusal_old)
{
    struct kvmem_seq seq, other;
    struct scene s;

    begin(&s);
    get_blocks(&s);
    seq = seq_of(&s, 32);
    cr_assert(kvmem_seq_create(s.space, &other) == 0);
    cr_assert(kvmem_seq_append(s.space, other, 4, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    dispatch(&s, 0);
    kvt_script_error(s.script, requested(&s), KVI_OP_BLOCKS_REQUEST, KVMEM_E_QUOTA);
    dispatch(&s, 1);
    cr_assert(kvmem_seq_append(s.space, other, 4, kvmem_fence_none()) == KVMEM_E_OUT_OF_BLOCKS);
    cr_assert(kvmem_seq_truncate(s.space, seq, 28, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_append(s.space, other, 8, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    end(&s);
}

/* Grants in parts, the next part only when the descriptors are acknowledged. */
Test(client, descriptors_are_acknowledged)
{
    struct scene s;
    uint32_t serial;

    begin(&s);
    cr_assert(kvmem_space_reserve(s.space, 76, 0) == KVMEM_E_REFILL_PENDING);
    serial = requested(&s);
    kvt_script_grant(s.script, &s.geometry, serial, 0, 16, 0);
    cr_assert(kvmem_space_reserve(s.space, 76, 1000000) == KVMEM_E_REFILL_PENDING);
    cr_assert(s.script->last_fds_received == 17, "%u", s.script->last_fds_received);
    kvt_script_grant(s.script, &s.geometry, serial, 16, 3, KVI_GRANT_LAST);
    cr_assert(kvmem_space_reserve(s.space, 76, 1000000) == 0);
    dispatch(&s, 0);
    cr_assert(capacity(&s).free_blocks == 76, "what was reserved is kept");
    end(&s);
}

/* The last grant of one space is acknowledged at once while another space waits: the daemon may be
 * holding that one's segments back for want of it. */
Test(client, descriptors_are_acknowledged_for_other_spaces)
{
    struct kvmem_space_options options = kvt_small_space("other");
    struct kvmem_space *other;
    struct scene s;
    uint32_t serial;

    begin(&s);
    cr_assert(kvmem_space_open(s.client, &options, &other) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_space_reserve(s.space, 8, 0) == KVMEM_E_REFILL_PENDING);
    serial = requested(&s);
    cr_assert(kvmem_space_reserve(other, 8, 0) == KVMEM_E_REFILL_PENDING);
    kvt_script_grant(s.script, &s.geometry, serial, 0, 2, KVI_GRANT_LAST);
    dispatch(&s, 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_ACKNOWLEDGE) != NULL);
    cr_assert(s.script->last_fds_received == 3, "%u", s.script->last_fds_received);
    end(&s);
}

/* ---- handing in ---- */

Test(client, hand_in_comes_after_what_was_said_before)
{
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    get_blocks(&s);
    seq = seq_of(&s, 32);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 8, some_names, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    cr_assert(kvmem_space_trim(s.space) == 2);
    cr_assert(kvt_script_find(s.script, KVI_OP_PUBLISH));
    const struct kvi_msg_release *release = kvt_script_find(s.script, KVI_OP_RELEASE);
    cr_assert(release && release->index_count == 8);
    const struct kvi_msg_segment_hand_in *first = kvt_script_next(s.script);
    cr_assert(first && first->header.opcode == KVI_OP_SEGMENT_HAND_IN && first->generation == 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN));
    cr_assert(stats(&s).owned_segments == 0 && stats(&s).mapped_segments == 2);
    cr_assert(stats(&s).handed_in_segments == 2 && stats(&s).published_blocks == 8);
    end(&s);
}

Test(client, pressure_takes_what_is_idle)
{
    struct kvi_msg_pressure pressure;
    struct scene s;

    begin(&s);
    get_blocks(&s);
    seq_of(&s, 3);
    kvi_wire_begin(&pressure, KVI_OP_PRESSURE, 0);
    pressure.space = 7;
    pressure.segment_count = 5;
    pressure.deadline_ns = 50000000;
    kvt_script_push(s.script, &pressure, NULL, 0);
    dispatch(&s, 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN));
    cr_assert(!kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN));
    cr_assert(stats(&s).owned_segments == 1 && capacity(&s).free_blocks == 3);
    dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST), "asked again under pressure");
    end(&s);
}

Test(client, the_scratch_block_keeps_its_segment)
{
    struct scene s;
    int32_t scratch;

    begin(&s);
    cr_assert(kvmem_space_scratch(s.space, 0) == KVMEM_E_REFILL_PENDING);
    get_blocks(&s);
    scratch = kvmem_space_scratch(s.space, 0);
    cr_assert(scratch >= 0 && kvmem_space_scratch(s.space, 0) == scratch);
    memset((char *)kvmem_space_write_base(s.space, 0, 0) +
               (uint64_t)scratch * s.geometry.index_stride_bytes,
           1, s.geometry.block_bytes);
    cr_assert(kvmem_space_trim(s.space) == 1);
    cr_assert(capacity(&s).used_blocks == 0 && stats(&s).owned_segments == 1);
    end(&s);
}

/* ---- publications ---- */

Test(client, publish_exists_and_refused_stay_private)
{
    struct kvmem_publish_result results[4];
    struct kvmem_seq seq, ended;
    struct scene s;

    begin(&s);
    get_blocks(&s);
    for (uint32_t state = KVMEM_PUBLISH_EXISTS; state <= KVMEM_PUBLISH_REFUSED; state++) {
        s.script->publish_state = state;
        seq = seq_of(&s, 8);
        ended = seq_of(&s, 4);
        cr_assert(kvmem_seq_publish(s.space, seq, 0, 2, some_names, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_publish(s.space, ended, 0, 1, some_names, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_free(s.space, ended, kvmem_fence_none()) == 0);
        cr_assert(capacity(&s).used_blocks == 3);
        dispatch(&s, 1);
        cr_assert(capacity(&s).used_blocks == 2 && stats(&s).private_blocks == 2);
        cr_assert(kvmem_publish_results(s.space, 4, results) == 3);
        cr_assert(results[0].state == state && results[2].state == state);
        cr_assert(kvmem_seq_truncate(s.space, seq, 7, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_append(s.space, seq, 1, kvmem_fence_none()) == 0);
        cr_assert(stats(&s).tail_copies == 0, "a private block was copied");
        cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    }
    cr_assert(stats(&s).publish_exists_blocks == 3 && stats(&s).publish_refused_blocks == 3);
    cr_assert(kvmem_publish_results(s.space, 4, results) == 0);
    end(&s);
}

Test(client, results_drop_the_oldest)
{
    struct kvmem_publish_result result;
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    s.script->publish_state = KVMEM_PUBLISH_EXISTS;
    get_blocks(&s);
    seq = seq_of(&s, 4);
    for (int i = 0; i < 5000; i++) {
        cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, kvmem_fence_none()) == 0);
        cr_assert(kvmem_client_dispatch(s.client, 0) == 1);
        while (kvt_script_next(s.script))
            ;
    }
    cr_assert(stats(&s).publish_exists_blocks == 5000);
    for (int i = 0; i < 4096; i++)
        cr_assert(kvmem_publish_results(s.space, 1, &result) == 1);
    cr_assert(kvmem_publish_results(s.space, 1, &result) == 0);
    end(&s);
}

Test(client, a_full_outbox_changes_nothing)
{
    struct kvmem_seq seqs[1024];
    struct scene s;
    int code = 0;
    uint32_t sealed = 0;

    begin(&s);
    dispatch(&s, 0);
    s.script->holds_publish = true;
    for (uint32_t i = 0, serial = requested(&s); i < 64; i += 16)
        kvt_script_grant(s.script, &s.geometry, serial, i, 16, i == 48 ? KVI_GRANT_LAST : 0);
    dispatch(&s, 4);
    /* 256 blocks published and answered again and again do not fill it; unanswered ones do. */
    for (uint32_t i = 0; i < 64; i++)
        seqs[i] = seq_of(&s, 16);
    for (uint32_t i = 0; i < 64; i++)
        cr_assert(kvmem_seq_publish(s.space, seqs[i], 0, 4, some_names, kvmem_fence_none()) == 0);
    sealed = 256;
    s.client->outbox.limit = 256;
    cr_assert(kvmem_seq_free(s.space, seqs[0], kvmem_fence_none()) == 0, "nothing is leased");
    code = kvmem_seq_publish(s.space, seqs[1], 0, 4, some_names, kvmem_fence_none());
    cr_assert(code == 0, "published already: passed over");
    cr_assert(capacity(&s).used_blocks == sealed);
    kvmem_seq_truncate(s.space, seqs[1], 14, kvmem_fence_none());
    code = kvmem_seq_append(s.space, seqs[1], 1, kvmem_fence_none());
    cr_assert(code == KVMEM_E_REFILL_PENDING, "no block for the copy: %d", code);
    end(&s);
}

/* ---- lookups ---- */

static void push_hits(struct scene *s, uint32_t serial, uint32_t count, const uint32_t *indices,
                      uint32_t generation)
{
    _Alignas(8) char bytes[4096];
    struct kvi_msg_lookup_reply *reply = (void *)bytes;
    struct kvi_rec_hit *hits;

    kvi_wire_begin(reply, KVI_OP_LOOKUP_REPLY, serial);
    reply->space = 7;
    reply->hit_count = count;
    reply->record_count = count;
    hits = kvi_wire_tail(reply, 0);
    for (uint32_t i = 0; i < count; i++)
        hits[i] = (struct kvi_rec_hit){indices[i], generation};
    kvt_script_push(s->script, reply, NULL, 0);
}

static void push_fds(struct scene *s, uint32_t serial, uint32_t slot, uint32_t generation)
{
    _Alignas(8) char bytes[256];
    struct kvi_msg_segment_fds *reply = (void *)bytes;
    struct kvi_rec_segment_ref *refs;
    int fd = kvt_script_segment_fd(s->script, s->geometry.segment_bytes);

    kvi_wire_begin(reply, KVI_OP_SEGMENT_FDS, serial);
    reply->space = 7;
    reply->segment_count = 1;
    refs = kvi_wire_tail(reply, 0);
    refs[0] = (struct kvi_rec_segment_ref){slot, generation};
    kvt_script_push(s->script, reply, &fd, 1);
}

/* Serials count up by one: what the next calls will have. */
static uint32_t coming(struct scene *s, uint32_t n)
{
    return s->client->last_serial + n;
}

Test(client, lookup_maps_what_is_new)
{
    static const uint32_t indices[3] = {40, 41, 42};
    struct kvmem_fence ready;
    int32_t blocks[4];
    struct scene s;

    begin(&s);
    push_hits(&s, coming(&s, 1), 3, indices, 9);
    push_fds(&s, coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 4, some_names, blocks, &ready) == 3, "%s",
              kvmem_error_detail()->text);
    cr_assert(blocks[0] == 40 && blocks[2] == 42 && ready.kind == KVMEM_FENCE_NONE);
    cr_assert(stats(&s).mapped_segments == 1 && stats(&s).leased_blocks == 3);
    cr_assert(kvmem_client_check(s.client) == 0);
    push_hits(&s, coming(&s, 1), 2, indices, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 2, some_names, blocks + 2, NULL) == 2);
    cr_assert(stats(&s).leased_blocks == 3, "held already");
    blocks[2] = 41;
    cr_assert(kvmem_prefix_release(s.space, 3, blocks, kvmem_fence_none()) == 0);
    cr_assert(stats(&s).leased_blocks == 2);
    end(&s);
}

Test(client, lookup_stops_where_a_descriptor_is_missing)
{
    static const uint32_t indices[3] = {40, 44, 41};
    int32_t blocks[3];
    struct scene s;

    begin(&s);
    push_hits(&s, coming(&s, 1), 3, indices, 9);
    push_fds(&s, coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 3, some_names, blocks, NULL) == 1);
    cr_assert(stats(&s).leased_blocks == 1);
    dispatch(&s, 0);
    const struct kvi_msg_release *release = kvt_script_find(s.script, KVI_OP_RELEASE);
    cr_assert(release && release->index_count == 2);
    end(&s);
}

/* The answer to a lookup that was given up grants leases: they go back, and nothing is sent in
 * between. */
Test(client, late_hits_are_released)
{
    static const uint32_t indices[2] = {40, 41};
    struct kvmem_seq seq;
    int32_t blocks[2];
    struct scene s;
    uint32_t serial;

    begin(&s);
    get_blocks(&s);
    seq = seq_of(&s, 4);
    serial = coming(&s, 1);
    cr_assert(kvmem_prefix_lookup(s.space, 2, some_names, blocks, NULL) == KVMEM_E_TIMED_OUT);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, kvmem_fence_none()) == 0);
    dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_PUBLISH), "sent before the late answer");
    cr_assert(kvmem_prefix_peek(s.space, 2, some_names) == KVMEM_E_TIMED_OUT);
    push_hits(&s, serial, 2, indices, 9);
    dispatch(&s, 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_PUBLISH));
    dispatch(&s, 1);
    const struct kvi_msg_release *release = kvt_script_find(s.script, KVI_OP_RELEASE);
    cr_assert(release && release->index_count == 2);
    cr_assert(stats(&s).leased_blocks == 1 && stats(&s).mapped_segments == 2);
    end(&s);
}

/* A block published and given up is found again before its release is sent: the lease stays. */
Test(client, a_hit_takes_a_release_back)
{
    struct kvmem_seq seq;
    int32_t block;
    struct scene s;

    begin(&s);
    get_blocks(&s);
    s.script->holds_publish = true;
    seq = seq_of(&s, 4);
    const int32_t *view;
    cr_assert(kvmem_table_view(s.space, 0, seq, &view) == 1);
    uint32_t index = (uint32_t)view[0];
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    {
        _Alignas(8) char bytes[64];
        struct kvi_msg_publish_reply *reply = (void *)bytes;

        kvi_wire_begin(reply, KVI_OP_PUBLISH_REPLY, coming(&s, 1));
        reply->space = 7;
        reply->record_count = 1;
        ((struct kvi_rec_state *)kvi_wire_tail(reply, 0))->state = KVMEM_PUBLISHED;
        kvt_script_push(s.script, reply, NULL, 0);
    }
    push_hits(&s, coming(&s, 2), 1, &index, 1);
    cr_assert(kvmem_prefix_lookup(s.space, 1, some_names, &block, NULL) == 1, "%s",
              kvmem_error_detail()->text);
    dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_RELEASE));
    cr_assert(stats(&s).leased_blocks == 1);
    cr_assert(kvmem_prefix_release(s.space, 1, &block, kvmem_fence_none()) == 0);
    dispatch(&s, 0);
    cr_assert(stats(&s).leased_blocks == 0);
    end(&s);
}

/* ---- segments that go ---- */

static void push_gone(struct scene *s, uint32_t slot, uint32_t generation)
{
    struct kvi_msg_segment_gone gone;

    kvi_wire_begin(&gone, KVI_OP_SEGMENT_GONE, 0);
    gone.space = 7;
    gone.slot = slot;
    gone.generation = generation;
    kvt_script_push(s->script, &gone, NULL, 0);
}

Test(client, gone_segments_are_unmapped)
{
    static const uint32_t index = 40;
    int32_t block;
    struct scene s;

    begin(&s);
    push_hits(&s, coming(&s, 1), 1, &index, 9);
    push_fds(&s, coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 1, some_names, &block, NULL) == 1);
    cr_assert(kvmem_prefix_release(s.space, 1, &block, kvmem_fence_none()) == 0);
    dispatch(&s, 0);
    push_gone(&s, 10, 8); /* another generation: nothing of ours */
    push_gone(&s, 10, 9);
    push_gone(&s, 10, 9); /* twice: said already */
    dispatch(&s, 3);
    const struct kvi_msg_segment_unmapped *said =
        kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED);
    cr_assert(said && said->slot == 10 && said->generation == 9);
    cr_assert(!kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED));
    cr_assert(stats(&s).mapped_segments == 0);
    end(&s);
}

Test(client, a_leased_segment_cannot_go)
{
    static const uint32_t index = 40;
    int32_t block;
    struct scene s;

    begin(&s);
    push_hits(&s, coming(&s, 1), 1, &index, 9);
    push_fds(&s, coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 1, some_names, &block, NULL) == 1);
    push_gone(&s, 10, 9);
    dispatch(&s, KVMEM_E_PROTOCOL);
    cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST);
    end(&s);
}

/* ---- wrong messages ---- */

typedef void wrong_message(struct scene *s, uint32_t serial);

static void wrong_slot(struct scene *s, uint32_t serial)
{
    kvt_script_grant(s->script, &s->geometry, serial, s->geometry.segment_limit, 1, KVI_GRANT_LAST);
}

static void wrong_serial(struct scene *s, uint32_t serial)
{
    kvt_script_grant(s->script, &s->geometry, serial + 1, 0, 1, KVI_GRANT_LAST);
}

static void wrong_twice(struct scene *s, uint32_t serial)
{
    kvt_script_grant(s->script, &s->geometry, serial, 0, 2, 0);
    kvt_script_grant(s->script, &s->geometry, serial, 1, 2, KVI_GRANT_LAST);
}

static void wrong_fds(struct scene *s, uint32_t serial)
{
    struct kvt_script_message *m = &s->script->in[s->script->in_head % KVT_SCRIPT_MESSAGES];

    kvt_script_grant(s->script, &s->geometry, serial, 0, 2, KVI_GRANT_LAST);
    m->fds[m->fd_count++] = kvt_script_segment_fd(s->script, s->geometry.segment_bytes);
}

static void wrong_publish(struct scene *s, uint32_t serial)
{
    _Alignas(8) char bytes[64];
    struct kvi_msg_publish_reply *reply = (void *)bytes;

    kvi_wire_begin(reply, KVI_OP_PUBLISH_REPLY, serial);
    reply->space = 7;
    reply->record_count = 1;
    kvt_script_push(s->script, reply, NULL, 0);
}

static void wrong_answer(struct scene *s, uint32_t serial)
{
    static const uint32_t index = 1;

    (void)serial;
    push_hits(s, 12345, 1, &index, 1);
}

Test(client, a_daemon_that_breaks_the_protocol_is_lost)
{
    static wrong_message *const wrongs[] = {wrong_slot, wrong_serial,  wrong_twice,
                                            wrong_fds,  wrong_publish, wrong_answer};

    for (uint32_t i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
        struct scene s;

        begin(&s);
        dispatch(&s, 0);
        wrongs[i](&s, requested(&s));
        cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_PROTOCOL, "message %u", i);
        cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST, "message %u", i);
        end(&s);
    }
}

Test(client, hits_on_own_blocks_break_the_protocol)
{
    struct scene s;
    uint32_t index = 0;
    int32_t block;

    begin(&s);
    get_blocks(&s);
    push_hits(&s, coming(&s, 1), 1, &index, 1);
    cr_assert(kvmem_prefix_lookup(s.space, 1, some_names, &block, NULL) == KVMEM_E_PROTOCOL);
    end(&s);
}

/* ---- the daemon goes ---- */

Test(client, local_calls_go_on_without_the_daemon)
{
    struct kvmem_seq seq, child, other;
    struct kvmem_space *space;
    struct kvmem_space_options options = kvt_small_space("late");
    int32_t block;
    char *base;
    struct scene s;
    uint64_t pin;

    begin(&s);
    get_blocks(&s);
    seq = seq_of(&s, 5);
    base = kvmem_space_write_base(s.space, 0, 0);
    s.script->receive_code = KVMEM_E_DAEMON_LOST;
    cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST);
    for (int i = 0; i < 2; i++) {
        cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_lookup(s.space, 1, some_names, &block, NULL) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_peek(s.space, 1, some_names) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_pin(s.space, 1, some_names, 0, &pin) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_prefix_unpin(s.space, 1) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, kvmem_fence_none()) ==
                  KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_space_open(s.client, &options, &space) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_space_trim(s.space) == KVMEM_E_DAEMON_LOST);
        cr_assert(kvmem_space_reserve(s.space, 60, 1000) == KVMEM_E_DAEMON_LOST);
    }
    cr_assert(kvmem_seq_append(s.space, seq, 4, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_fork(s.space, seq, &child) == 0);
    cr_assert(kvmem_seq_append(s.space, child, 4, kvmem_fence_none()) == 0);
    memset(base, 1, s.geometry.block_bytes);
    other = seq_of(&s, 4);
    cr_assert(kvmem_seq_append(s.space, other, 40, kvmem_fence_none()) == KVMEM_E_DAEMON_LOST);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    cr_assert(kvmem_client_check(s.client) == 0);
    end(&s);
}

Test(client, observers_open_nothing)
{
    struct kvi_client_options inner = {.role = KVMEM_ROLE_OBSERVER, .timeout_ns = 5000000};
    struct kvmem_space_options options = kvt_small_space("none");
    struct kvt_script *script = kvt_script_create(DEVICE_BYTES, 4096);
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
    struct scene s;

    begin(&s);
    get_blocks(&s);
    seq = seq_of(&s, 6);
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
    end(&s);
}

Test(client, a_space_is_open_once)
{
    struct kvmem_space_options options = kvt_small_space("scripted");
    struct kvmem_space *again;
    struct scene s;

    begin(&s);
    cr_assert(kvmem_space_open(s.client, &options, &again) == KVMEM_E_BUSY);
    options.seq_limit = 2000000;
    cr_assert(kvmem_space_open(s.client, &options, &again) == KVMEM_E_INVALID);
    cr_assert(strstr(kvmem_error_detail()->text, "seq_limit"));
    end(&s);
}
