/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a client's segments are mapped, and how, against a scripted daemon: read-only at the base
 * from the grant or look-up until they go, and read-write at the write base exactly while they are
 * owned. With a helper, which does all of it, and without.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <string.h>

#include "client/space.h"
#include "support/scripted.h"
#include "support/spawn.h"

#define DEVICE_BYTES (64u * 4096u)
#define NOWHERE      "---p"
#define TO_READ      "r--s"
#define TO_WRITE     "rw-s"

struct scene {
    struct kvt_script *script;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    uint32_t fds;
};

static void begin(struct scene *s, bool has_helper)
{
    struct kvi_client_options client = {
        .timeout_ns = 20000000, .outbox_records = 1024, .has_helper = has_helper};
    struct kvmem_space_options options = kvt_small_space("aliases");

    memset(s, 0, sizeof(*s));
    s->fds = kvt_open_fds();
    s->script = kvt_script_create(DEVICE_BYTES, 4096);
    cr_assert_eq(kvi_client_create(&s->script->base, &kvi_alloc_libc, &client, &s->client), 0);
    cr_assert_eq(kvmem_space_open(s->client, &options, &s->space), 0);
    s->geometry.size = sizeof(s->geometry);
    cr_assert_eq(kvmem_space_geometry(s->space, 0, &s->geometry), 0);
}

static void end(struct scene *s)
{
    cr_assert_eq(kvmem_client_check(s->client), 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(s->client);
    kvt_script_destroy(s->script);
    cr_assert_eq(kvt_open_fds(), s->fds);
}

static void dispatch(struct scene *s, int expected)
{
    cr_assert_eq(kvmem_client_dispatch(s->client, 0), expected, "%s", kvmem_error_detail()->text);
    kvi_mapper_drain(s->client->mapper);
    cr_assert_eq(kvmem_client_check(s->client), 0, "%s", kvmem_error_detail()->text);
}

static void grant(struct scene *s, uint32_t count)
{
    const struct kvi_header *request;

    dispatch(s, 0);
    request = kvt_script_find(s->script, KVI_OP_BLOCKS_REQUEST);
    cr_assert_neq(request, NULL);
    kvt_script_grant(s->script, &s->geometry, request->serial, 0, count, KVI_GRANT_LAST);
    dispatch(s, 1);
}

/* A segment that is mapped here and was handed in becomes ours, without a descriptor. */
static void adopt(struct scene *s, uint32_t slot)
{
    _Alignas(8) char bytes[256];
    struct kvi_msg_grant *message = (void *)bytes;
    const struct kvi_header *request;

    dispatch(s, 0);
    request = kvt_script_find(s->script, KVI_OP_BLOCKS_REQUEST);
    cr_assert_neq(request, NULL);
    kvi_wire_begin(message, KVI_OP_GRANT, request->serial);
    message->space = 7;
    message->flags = KVI_GRANT_LAST;
    message->segment_count = message->range_count = 1;
    *(struct kvi_rec_segment_grant *)kvi_wire_tail(message, 0) =
        (struct kvi_rec_segment_grant){.slot = slot, .generation = 1, .flags = KVI_SEGMENT_ADOPTED};
    *(struct kvi_rec_block_range *)kvi_wire_tail(message, 1) = (struct kvi_rec_block_range){
        slot * s->geometry.blocks_per_segment, s->geometry.blocks_per_segment};
    kvt_script_push(s->script, message, NULL, 0);
    dispatch(s, 1);
}

static const char *read_at(const struct scene *s, uint32_t slot)
{
    return (const char *)kvmem_space_base(s->space, 0, 0) + slot * s->geometry.segment_bytes;
}

static char *write_at(const struct scene *s, uint32_t slot)
{
    return (char *)kvmem_space_write_base(s->space, 0, 0) + slot * s->geometry.segment_bytes;
}

/* All of the segment, at both addresses. */
static void is_mapped(const struct scene *s, uint32_t slot, const char *read, const char *write)
{
    for (uint64_t at = 0; at < s->geometry.segment_bytes; at += 4096) {
        cr_assert_str_eq(kvt_rights_at(read_at(s, slot) + at), read);
        cr_assert_str_eq(kvt_rights_at(write_at(s, slot) + at), write);
    }
}

#define WITH_AND_WITHOUT_A_HELPER(name)             \
    ParameterizedTestParameters(aliases, name)      \
    {                                               \
        static bool kinds[] = {false, true};        \
        return cr_make_param_array(bool, kinds, 2); \
    }                                               \
    ParameterizedTest(bool *has_helper, aliases, name, .timeout = 30)

WITH_AND_WITHOUT_A_HELPER(an_alias_is_there_while_the_segment_is_owned)
{
    struct scene s;

    begin(&s, *has_helper);
    is_mapped(&s, 0, NOWHERE, NOWHERE);
    grant(&s, 2);
    is_mapped(&s, 0, TO_READ, TO_WRITE);
    is_mapped(&s, 1, TO_READ, TO_WRITE);
    is_mapped(&s, 2, NOWHERE, NOWHERE);
    write_at(&s, 1)[5] = 'w';
    cr_assert_eq(read_at(&s, 1)[5], 'w', "the same memory, at once");
    for (int turn = 0; turn < 3; turn++) {
        cr_assert_eq(kvmem_space_trim(s.space), turn ? 1 : 2);
        is_mapped(&s, 0, TO_READ, NOWHERE);
        is_mapped(&s, 1, TO_READ, NOWHERE);
        adopt(&s, 1);
        is_mapped(&s, 0, TO_READ, NOWHERE);
        is_mapped(&s, 1, TO_READ, TO_WRITE);
        cr_assert_eq(read_at(&s, 1)[5], (char)('w' + turn));
        write_at(&s, 1)[5]++;
    }
    end(&s);
}

WITH_AND_WITHOUT_A_HELPER(a_segment_that_goes_is_nowhere)
{
    struct kvi_msg_segment_gone gone;
    struct scene s;

    begin(&s, *has_helper);
    grant(&s, 2);
    cr_assert_eq(kvmem_space_trim(s.space), 2);
    kvi_wire_begin(&gone, KVI_OP_SEGMENT_GONE, 0);
    gone.space = 7;
    gone.slot = 0;
    gone.generation = 1;
    kvt_script_push(s.script, &gone, NULL, 0);
    dispatch(&s, 1);
    is_mapped(&s, 0, NOWHERE, NOWHERE);
    is_mapped(&s, 1, TO_READ, NOWHERE);
    end(&s);
}

/* A used block keeps its segment, and the alias with it. */
WITH_AND_WITHOUT_A_HELPER(a_used_block_keeps_its_alias)
{
    struct kvmem_seq seq;
    struct scene s;

    begin(&s, *has_helper);
    grant(&s, 2);
    cr_assert_eq(kvmem_seq_create(s.space, &seq), 0);
    cr_assert_eq(kvmem_seq_append(s.space, seq, 1, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_space_trim(s.space), 1);
    cr_assert_eq(strcmp(kvt_rights_at(write_at(&s, 0)), TO_WRITE) == 0,
                 strcmp(kvt_rights_at(write_at(&s, 1)), NOWHERE) == 0);
    cr_assert_eq(kvmem_seq_free(s.space, seq, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_space_trim(s.space), 1);
    is_mapped(&s, 0, TO_READ, NOWHERE);
    is_mapped(&s, 1, TO_READ, NOWHERE);
    end(&s);
}

/* One for a wrong group or shard, as the base is. */
Test(aliases, the_write_base_is_another_base)
{
    struct scene s;

    begin(&s, false);
    cr_assert_neq(kvmem_space_write_base(s.space, 0, 0), NULL);
    cr_assert_neq(kvmem_space_write_base(s.space, 0, 0), kvmem_space_base(s.space, 0, 0));
    cr_assert_null(kvmem_space_write_base(s.space, 1, 0));
    cr_assert_null(kvmem_space_write_base(s.space, 0, 1));
    cr_assert_null(kvmem_space_write_base(NULL, 0, 0));
    end(&s);
}
