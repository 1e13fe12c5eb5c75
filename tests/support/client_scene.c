/* SPDX-License-Identifier: Apache-2.0
 *
 * See client_scene.h.
 */
#include "support/client_scene.h"

#include <string.h>

#include "support/assert.h"

const struct kvmem_name kvt_scene_names[16] = {{{1}}, {{2}}, {{3}}, {{4}}, {{5}},
                                               {{6}}, {{7}}, {{8}}, {{9}}, {{10}}};

void kvt_scene_begin(struct kvt_scene *s)
{
    struct kvmem_space_options options = kvt_small_space("scripted");

    memset(s, 0, sizeof(*s));
    s->fds = kvt_open_fds();
    s->script = kvt_script_create(KVT_SCENE_BYTES, 4096);
    s->client = kvt_script_client(s->script);
    KVT_ASSERT(kvmem_space_open(s->client, &options, &s->space) == 0, "%s",
               kvmem_error_detail()->text);
    s->geometry.size = sizeof(s->geometry);
    KVT_ASSERT(kvmem_space_geometry(s->space, 0, &s->geometry) == 0);
    KVT_ASSERT(s->geometry.blocks_per_segment == 4);
}

void kvt_scene_end(struct kvt_scene *s)
{
    KVT_ASSERT(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(s->client);
    KVT_ASSERT(s->script->is_closed);
    kvt_script_destroy(s->script);
    KVT_ASSERT(kvt_open_fds() == s->fds, "%u descriptors, before %u", kvt_open_fds(), s->fds);
}

void kvt_scene_dispatch(struct kvt_scene *s, int expected)
{
    int code = kvmem_client_dispatch(s->client, 0);

    KVT_ASSERT(code == expected, "dispatch: %d (%s), expected %d", code,
               code < 0 ? kvmem_error_detail()->text : "", expected);
    if (code >= 0)
        KVT_ASSERT(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
}

uint32_t kvt_scene_requested(struct kvt_scene *s)
{
    const struct kvi_header *request = kvt_script_find(s->script, KVI_OP_BLOCKS_REQUEST);

    KVT_ASSERT(request != NULL);
    return request->serial;
}

void kvt_scene_get_blocks(struct kvt_scene *s)
{
    kvt_scene_dispatch(s, 0);
    kvt_script_grant(s->script, &s->geometry, kvt_scene_requested(s), 0, 2, KVI_GRANT_LAST);
    kvt_scene_dispatch(s, 1);
}

struct kvmem_seq kvt_scene_seq(struct kvt_scene *s, uint32_t tokens)
{
    struct kvmem_seq seq;

    KVT_ASSERT(kvmem_seq_create(s->space, &seq) == 0);
    KVT_ASSERT(kvmem_seq_append(s->space, seq, tokens, kvmem_fence_none()) == 0, "%s",
               kvmem_error_detail()->text);
    KVT_ASSERT(kvmem_seq_commit(s->space, seq, tokens) == 0);
    return seq;
}

struct kvmem_space_stats kvt_scene_stats(struct kvt_scene *s)
{
    struct kvmem_space_stats out = {.size = sizeof(out)};

    KVT_ASSERT(kvmem_space_stats(s->space, &out) == 0);
    return out;
}

struct kvmem_capacity kvt_scene_capacity(struct kvt_scene *s)
{
    struct kvmem_capacity out = {.size = sizeof(out)};

    KVT_ASSERT(kvmem_space_capacity(s->space, &out) == 0);
    return out;
}

void kvt_scene_push_hits(struct kvt_scene *s, uint32_t serial, uint32_t count,
                         const uint32_t *indices, uint32_t generation)
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

void kvt_scene_push_fds(struct kvt_scene *s, uint32_t serial, uint32_t slot, uint32_t generation)
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

uint32_t kvt_scene_coming(struct kvt_scene *s, uint32_t n)
{
    return s->client->last_serial + n;
}
