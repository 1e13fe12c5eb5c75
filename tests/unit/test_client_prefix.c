/* SPDX-License-Identifier: Apache-2.0
 *
 * The client against a scripted daemon: publications, look-ups, and segments that go; what is said
 * of them, and in which order.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "support/client_scene.h"

/* ---- publications ---- */

Test(client_prefix, publish_exists_and_refused_stay_private)
{
    struct kvmem_publish_result results[4];
    struct kvmem_seq seq, ended;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    for (uint32_t state = KVMEM_PUBLISH_EXISTS; state <= KVMEM_PUBLISH_REFUSED; state++) {
        s.script->publish_state = state;
        seq = kvt_scene_seq(&s, 8);
        ended = kvt_scene_seq(&s, 4);
        cr_assert(kvmem_seq_publish(s.space, seq, 0, 2, kvt_scene_names, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_publish(s.space, ended, 0, 1, kvt_scene_names, kvmem_fence_none()) ==
                  0);
        cr_assert(kvmem_seq_free(s.space, ended, kvmem_fence_none()) == 0);
        cr_assert(kvt_scene_capacity(&s).used_blocks == 3);
        kvt_scene_dispatch(&s, 1);
        cr_assert(kvt_scene_capacity(&s).used_blocks == 2 &&
                  kvt_scene_stats(&s).private_blocks == 2);
        cr_assert(kvmem_publish_results(s.space, 4, results) == 3);
        cr_assert(results[0].state == state && results[2].state == state);
        cr_assert(kvmem_seq_truncate(s.space, seq, 7, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_append(s.space, seq, 1, kvmem_fence_none()) == 0);
        cr_assert(kvt_scene_stats(&s).tail_copies == 0, "a private block was copied");
        cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    }
    cr_assert(kvt_scene_stats(&s).publish_exists_blocks == 3 &&
              kvt_scene_stats(&s).publish_refused_blocks == 3);
    cr_assert(kvmem_publish_results(s.space, 4, results) == 0);
    kvt_scene_end(&s);
}

Test(client_prefix, results_drop_the_oldest)
{
    struct kvmem_publish_result result;
    struct kvmem_seq seq;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    s.script->publish_state = KVMEM_PUBLISH_EXISTS;
    kvt_scene_get_blocks(&s);
    seq = kvt_scene_seq(&s, 4);
    for (int i = 0; i < 5000; i++) {
        cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, kvt_scene_names, kvmem_fence_none()) == 0);
        cr_assert(kvmem_client_dispatch(s.client, 0) == 1);
        while (kvt_script_next(s.script))
            ;
    }
    cr_assert(kvt_scene_stats(&s).publish_exists_blocks == 5000);
    for (int i = 0; i < 4096; i++)
        cr_assert(kvmem_publish_results(s.space, 1, &result) == 1);
    cr_assert(kvmem_publish_results(s.space, 1, &result) == 0);
    kvt_scene_end(&s);
}

Test(client_prefix, a_full_outbox_changes_nothing)
{
    struct kvmem_seq seqs[1024];
    struct kvt_scene s;
    int code = 0;
    uint32_t sealed = 0;

    kvt_scene_begin(&s);
    kvt_scene_dispatch(&s, 0);
    s.script->holds_publish = true;
    for (uint32_t i = 0, serial = kvt_scene_requested(&s); i < 64; i += 16)
        kvt_script_grant(s.script, &s.geometry, serial, i, 16, i == 48 ? KVI_GRANT_LAST : 0);
    kvt_scene_dispatch(&s, 4);
    /* 256 blocks published and answered again and again do not fill it; unanswered ones do. */
    for (uint32_t i = 0; i < 64; i++)
        seqs[i] = kvt_scene_seq(&s, 16);
    for (uint32_t i = 0; i < 64; i++)
        cr_assert(kvmem_seq_publish(s.space, seqs[i], 0, 4, kvt_scene_names, kvmem_fence_none()) ==
                  0);
    sealed = 256;
    s.client->outbox.limit = 256;
    cr_assert(kvmem_seq_free(s.space, seqs[0], kvmem_fence_none()) == 0, "nothing is leased");
    code = kvmem_seq_publish(s.space, seqs[1], 0, 4, kvt_scene_names, kvmem_fence_none());
    cr_assert(code == 0, "published already: passed over");
    cr_assert(kvt_scene_capacity(&s).used_blocks == sealed);
    kvmem_seq_truncate(s.space, seqs[1], 14, kvmem_fence_none());
    code = kvmem_seq_append(s.space, seqs[1], 1, kvmem_fence_none());
    cr_assert(code == KVMEM_E_REFILL_PENDING, "no block for the copy: %d", code);
    kvt_scene_end(&s);
}

/* ---- lookups ---- */

Test(client_prefix, lookup_maps_what_is_new)
{
    static const uint32_t indices[3] = {40, 41, 42};
    struct kvmem_fence ready;
    int32_t blocks[4];
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_push_hits(&s, kvt_scene_coming(&s, 1), 3, indices, 9);
    kvt_scene_push_fds(&s, kvt_scene_coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 4, kvt_scene_names, blocks, &ready) == 3, "%s",
              kvmem_error_detail()->text);
    cr_assert(blocks[0] == 40 && blocks[2] == 42 && ready.kind == KVMEM_FENCE_NONE);
    cr_assert(kvt_scene_stats(&s).mapped_segments == 1 && kvt_scene_stats(&s).leased_blocks == 3);
    cr_assert(kvmem_client_check(s.client) == 0);
    kvt_scene_push_hits(&s, kvt_scene_coming(&s, 1), 2, indices, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 2, kvt_scene_names, blocks + 2, NULL) == 2);
    cr_assert(kvt_scene_stats(&s).leased_blocks == 3, "held already");
    blocks[2] = 41;
    cr_assert(kvmem_prefix_release(s.space, 3, blocks, kvmem_fence_none()) == 0);
    cr_assert(kvt_scene_stats(&s).leased_blocks == 2);
    kvt_scene_end(&s);
}

Test(client_prefix, lookup_stops_where_a_descriptor_is_missing)
{
    static const uint32_t indices[3] = {40, 44, 41};
    int32_t blocks[3];
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_push_hits(&s, kvt_scene_coming(&s, 1), 3, indices, 9);
    kvt_scene_push_fds(&s, kvt_scene_coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 3, kvt_scene_names, blocks, NULL) == 1);
    cr_assert(kvt_scene_stats(&s).leased_blocks == 1);
    kvt_scene_dispatch(&s, 0);
    const struct kvi_msg_release *release = kvt_script_find(s.script, KVI_OP_RELEASE);
    cr_assert(release && release->index_count == 2);
    kvt_scene_end(&s);
}

/* The answer to a lookup that was given up grants leases: they go back, and nothing is sent in
 * between. */
Test(client_prefix, late_hits_are_released)
{
    static const uint32_t indices[2] = {40, 41};
    struct kvmem_seq seq;
    int32_t blocks[2];
    struct kvt_scene s;
    uint32_t serial;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    seq = kvt_scene_seq(&s, 4);
    serial = kvt_scene_coming(&s, 1);
    cr_assert(kvmem_prefix_lookup(s.space, 2, kvt_scene_names, blocks, NULL) == KVMEM_E_TIMED_OUT);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, kvt_scene_names, kvmem_fence_none()) == 0);
    kvt_scene_dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_PUBLISH), "sent before the late answer");
    cr_assert(kvmem_prefix_peek(s.space, 2, kvt_scene_names) == KVMEM_E_TIMED_OUT);
    kvt_scene_push_hits(&s, serial, 2, indices, 9);
    kvt_scene_dispatch(&s, 1);
    cr_assert(kvt_script_find(s.script, KVI_OP_PUBLISH));
    kvt_scene_dispatch(&s, 1);
    const struct kvi_msg_release *release = kvt_script_find(s.script, KVI_OP_RELEASE);
    cr_assert(release && release->index_count == 2);
    cr_assert(kvt_scene_stats(&s).leased_blocks == 1 && kvt_scene_stats(&s).mapped_segments == 2);
    kvt_scene_end(&s);
}

/* A block published and given up is found again before its release is sent: the lease stays. */
Test(client_prefix, a_hit_takes_a_release_back)
{
    struct kvmem_seq seq;
    int32_t block;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_get_blocks(&s);
    s.script->holds_publish = true;
    seq = kvt_scene_seq(&s, 4);
    const int32_t *view;
    cr_assert(kvmem_table_view(s.space, 0, seq, &view) == 1);
    uint32_t index = (uint32_t)view[0];
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, kvt_scene_names, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    {
        _Alignas(8) char bytes[64];
        struct kvi_msg_publish_reply *reply = (void *)bytes;

        kvi_wire_begin(reply, KVI_OP_PUBLISH_REPLY, kvt_scene_coming(&s, 1));
        reply->space = 7;
        reply->record_count = 1;
        ((struct kvi_rec_state *)kvi_wire_tail(reply, 0))->state = KVMEM_PUBLISHED;
        kvt_script_push(s.script, reply, NULL, 0);
    }
    kvt_scene_push_hits(&s, kvt_scene_coming(&s, 2), 1, &index, 1);
    cr_assert(kvmem_prefix_lookup(s.space, 1, kvt_scene_names, &block, NULL) == 1, "%s",
              kvmem_error_detail()->text);
    kvt_scene_dispatch(&s, 0);
    cr_assert(!kvt_script_find(s.script, KVI_OP_RELEASE));
    cr_assert(kvt_scene_stats(&s).leased_blocks == 1);
    cr_assert(kvmem_prefix_release(s.space, 1, &block, kvmem_fence_none()) == 0);
    kvt_scene_dispatch(&s, 0);
    cr_assert(kvt_scene_stats(&s).leased_blocks == 0);
    kvt_scene_end(&s);
}

/* ---- segments that go ---- */

static void push_gone(struct kvt_scene *s, uint32_t slot, uint32_t generation)
{
    struct kvi_msg_segment_gone gone;

    kvi_wire_begin(&gone, KVI_OP_SEGMENT_GONE, 0);
    gone.space = 7;
    gone.slot = slot;
    gone.generation = generation;
    kvt_script_push(s->script, &gone, NULL, 0);
}

Test(client_prefix, gone_segments_are_unmapped)
{
    static const uint32_t index = 40;
    int32_t block;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_push_hits(&s, kvt_scene_coming(&s, 1), 1, &index, 9);
    kvt_scene_push_fds(&s, kvt_scene_coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 1, kvt_scene_names, &block, NULL) == 1);
    cr_assert(kvmem_prefix_release(s.space, 1, &block, kvmem_fence_none()) == 0);
    kvt_scene_dispatch(&s, 0);
    push_gone(&s, 10, 8); /* another generation: nothing of ours */
    push_gone(&s, 10, 9);
    push_gone(&s, 10, 9); /* twice: said already */
    kvt_scene_dispatch(&s, 3);
    const struct kvi_msg_segment_unmapped *said =
        kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED);
    cr_assert(said && said->slot == 10 && said->generation == 9);
    cr_assert(!kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED));
    cr_assert(kvt_scene_stats(&s).mapped_segments == 0);
    kvt_scene_end(&s);
}

Test(client_prefix, a_leased_segment_cannot_go)
{
    static const uint32_t index = 40;
    int32_t block;
    struct kvt_scene s;

    kvt_scene_begin(&s);
    kvt_scene_push_hits(&s, kvt_scene_coming(&s, 1), 1, &index, 9);
    kvt_scene_push_fds(&s, kvt_scene_coming(&s, 2), 10, 9);
    cr_assert(kvmem_prefix_lookup(s.space, 1, kvt_scene_names, &block, NULL) == 1);
    push_gone(&s, 10, 9);
    kvt_scene_dispatch(&s, KVMEM_E_PROTOCOL);
    cr_assert(kvmem_client_dispatch(s.client, 0) == KVMEM_E_DAEMON_LOST);
    kvt_scene_end(&s);
}
