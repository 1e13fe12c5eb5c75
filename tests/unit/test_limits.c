/* SPDX-License-Identifier: Apache-2.0
 *
 * The edges of the public API on an embedded client: what a later version builds answers
 * NOT_SUPPORTED naming the field, the largest arguments work, and what was asked for stays.
 */
#include <criterion/criterion.h>
#include <kvmem.h>
#include <stdio.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)
#define TIB (UINT64_C(1) << 40)

static struct kvmem_space_options shape(const char *name)
{
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .name = name,
                                          .block_tokens = 16,
                                          .group_count = 1,
                                          .shard_count = 1,
                                          .groups = {{.layer_count = 2,
                                                      .kv_head_count = 2,
                                                      .head_dim_k = 16,
                                                      .head_dim_v = 16,
                                                      .dtype_k = KVMEM_DTYPE_BF16,
                                                      .dtype_v = KVMEM_DTYPE_BF16}}};

    return options;
}

static struct kvmem_client *embed(uint64_t device_bytes)
{
    struct kvmem_embed_options options = {.size = sizeof(options), .device_bytes = device_bytes};
    struct kvmem_client *client = NULL;

    cr_assert_eq(kvmem_client_embed(&options, &client), 0, "%s", kvmem_error_detail()->text);
    return client;
}

static struct kvmem_space *opened(struct kvmem_client *client, const char *name)
{
    struct kvmem_space_options options = shape(name);
    struct kvmem_space *space = NULL;

    cr_assert_eq(kvmem_space_open(client, &options, &space), 0, "%s", kvmem_error_detail()->text);
    return space;
}

/* NOT_SUPPORTED, and the detail names `field`. */
static void assert_not_yet(int code, const char *field)
{
    cr_assert_eq(code, KVMEM_E_NOT_SUPPORTED, "%s: %s", field, kvmem_error_name(code));
    cr_assert(strstr(kvmem_error_detail()->text, field), "'%s' does not name %s",
              kvmem_error_detail()->text, field);
}

static void assert_open_not_yet(struct kvmem_client *client,
                                const struct kvmem_space_options *options, const char *field)
{
    struct kvmem_space *space = NULL;

    assert_not_yet(kvmem_space_open(client, options, &space), field);
    cr_assert_null(space);
}

Test(limits, spaces_of_later_versions, .timeout = 10)
{
    struct kvmem_client *client = embed(64 * MIB);
    struct kvmem_space_options options;

    options = shape("layout");
    options.layout = KVMEM_LAYOUT_PER_LAYER;
    assert_open_not_yet(client, &options, "layout");
    options = shape("groups");
    options.group_count = 2;
    options.groups[1] = options.groups[0];
    assert_open_not_yet(client, &options, "group_count");
    options = shape("shards");
    options.shard_count = 2;
    assert_open_not_yet(client, &options, "shard_count");
    options = shape("window");
    options.groups[0].window_tokens = 4096;
    assert_open_not_yet(client, &options, "window_tokens");
    cr_assert_eq(kvmem_client_check(client), 0);
    kvmem_client_close(client);
}

/* Streams are a GPU's; a timeline must be the client's own, or of a look-up that it made. */
Test(limits, fences_of_gpus_and_strangers, .timeout = 10)
{
    struct kvmem_client *client = embed(64 * MIB);
    struct kvmem_space *space = opened(client, "fences");
    struct kvmem_fence fence = kvmem_fence_stream(NULL);
    struct kvmem_fence unknown = {.kind = KVMEM_FENCE_TIMELINE, .timeline = 6400, .value = 1};
    struct kvmem_name name = {{1}};
    struct kvmem_seq seq;

    cr_assert_eq(kvmem_space_reserve(space, 4, 1000000000), 0);
    cr_assert_eq(kvmem_seq_create(space, &seq), 0);
    cr_assert_eq(kvmem_seq_append(space, seq, 16, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_seq_commit(space, seq, 16), 0);
    assert_not_yet(kvmem_seq_append(space, seq, 1, fence), "fence.kind");
    assert_not_yet(kvmem_seqs_append(space, 1, &seq, NULL, fence), "fence.kind");
    assert_not_yet(kvmem_seq_truncate(space, seq, 1, fence), "fence.kind");
    assert_not_yet(kvmem_seq_publish(space, seq, 0, 1, &name, fence), "fence.kind");
    assert_not_yet(kvmem_prefix_release(space, 0, NULL, fence), "fence.kind");
    assert_not_yet(kvmem_seq_free(space, seq, fence), "fence.kind");
    assert_not_yet(kvmem_seqs_free(space, 1, &seq, fence), "fence.kind");
    assert_not_yet(kvmem_fence_poll(client, &fence), "fence.kind");
    assert_not_yet(kvmem_fence_wait(client, &fence, 0), "fence.kind");
    cr_assert_eq(kvmem_seq_append(space, seq, 1, unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_seqs_append(space, 1, &seq, NULL, unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_seq_truncate(space, seq, 1, unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_seq_publish(space, seq, 0, 1, &name, unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_prefix_release(space, 0, NULL, unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_seq_free(space, seq, unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_seqs_free(space, 1, &seq, unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_fence_poll(client, &unknown), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_fence_wait(client, &unknown, 0), KVMEM_E_INVALID);
    cr_assert_eq(kvmem_client_check(client), 0);
    kvmem_client_close(client);
}

Test(limits, sessions_of_later_versions, .timeout = 10)
{
    struct kvmem_session_token token = {{1}};
    struct kvmem_connect_options options = {.size = sizeof(options), .role = KVMEM_ROLE_MEMBER};
    struct kvmem_client *client = NULL;

    assert_not_yet(kvmem_client_connect(&options, &client), "role");
    options.role = KVMEM_ROLE_LEADER;
    options.session = &token;
    assert_not_yet(kvmem_client_connect(&options, &client), "session");
    cr_assert_null(client);
}

Test(limits, the_largest_devices, .timeout = 20)
{
    for (unsigned shift = 0; shift < 3; shift++) {
        struct kvmem_client *client = embed(TIB << shift);
        struct kvmem_space *space = opened(client, "large");
        struct kvmem_seq seq;

        cr_assert_eq(kvmem_space_reserve(space, 1, 1000000000), 0);
        cr_assert_eq(kvmem_seq_create(space, &seq), 0);
        cr_assert_eq(kvmem_seq_append(space, seq, 1, kvmem_fence_none()), 0);
        kvmem_client_close(client);
    }
}

Test(limits, the_longest_waits, .timeout = 10)
{
    struct kvmem_client *client = embed(64 * MIB);
    struct kvmem_space *space = opened(client, "waits");

    cr_assert_eq(kvmem_space_reserve(space, 16, INT64_MAX), 0);
    cr_assert_eq(kvmem_space_reserve(space, 16, INT64_MIN), KVMEM_E_INVALID);
    cr_assert(strstr(kvmem_error_detail()->text, "timeout_ns"));
    cr_assert_eq(kvmem_client_check(client), 0);
    kvmem_client_close(client);
}

/* What reserve asked for without waiting is not handed back by the dispatch that brings it. */
Test(limits, blocks_asked_for_stay, .timeout = 10)
{
    struct kvmem_client *client = embed(64 * MIB);
    struct kvmem_space *space = opened(client, "asked");
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    int code = kvmem_space_reserve(space, 4096, 0);

    cr_assert(code == 0 || code == KVMEM_E_REFILL_PENDING, "%s", kvmem_error_name(code));
    for (int i = 0; i < 4; i++)
        cr_assert_geq(kvmem_client_dispatch(client, 0), 0);
    cr_assert_eq(kvmem_space_capacity(space, &capacity), 0);
    cr_assert_geq(capacity.free_blocks, 4096);
    kvmem_client_close(client);
}
