/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients and GPUs, on the fake CUDA driver: an embedded directory on one, with a helper and
 * without, every driver call failing in turn; and a scripted daemon whose GPUs the driver of this
 * process numbers in another order, or does not see.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/space.h"
#include "support/cuda_fake.h"
#include "support/scripted.h"

#define GRANULE      UINT64_C(4096)
#define DEVICE_BYTES (64 * GRANULE)
#define NAMES        8u
#define PATIENCE_NS  INT64_C(5000000000)

static void fail(const char *file, int line, const char *message)
{
    cr_assert_fail("%s:%d: %s", file, line, message);
}

static void begin(void)
{
    if (kvt_fake)
        return;
    setenv("KVMEM_FAKE_CUDA", "devices=3 granule=4096", 1);
    kvt_fake_open(fail);
}

/* ---- embedded ---- */

static struct kvmem_embed_options on_gpu(uint32_t flags)
{
    return (struct kvmem_embed_options){.size = sizeof(struct kvmem_embed_options),
                                        .device = "cuda:2",
                                        .device_bytes = DEVICE_BYTES,
                                        .flags = flags};
}

/* Sequences that come, are published and go, in a pool that has to be handed in and taken again.
 * 0, or the code of what failed first; the client is closed in any case. */
static int live(struct kvmem_client *client)
{
    struct kvmem_space_options options = kvt_small_space("gpu");
    struct kvmem_name names[NAMES] = {{{0}}};
    struct kvmem_space *space = NULL;
    struct kvmem_seq seq;
    int32_t blocks[NAMES];
    int code = kvmem_space_open(client, &options, &space);

    for (uint8_t round = 1; code >= 0 && round <= 2; round++) {
        for (uint32_t i = 0; i < NAMES; i++)
            names[i] = (struct kvmem_name){{round, (uint8_t)i}};
        code = kvmem_space_reserve(space, 100, PATIENCE_NS);
        if (code < 0 || (code = kvmem_seq_create(space, &seq)) < 0)
            break;
        code = kvmem_seq_append(space, seq, 40 * NAMES, kvmem_fence_none());
        if (code >= 0)
            code = kvmem_seq_commit(space, seq, 40 * NAMES);
        if (code >= 0)
            code = kvmem_seq_publish(space, seq, 0, NAMES, names, kvmem_fence_none());
        cr_assert_eq(kvmem_seq_free(space, seq, kvmem_fence_none()), 0);
        if (code >= 0)
            code = kvmem_client_dispatch(client, 0);
        if (code >= 0)
            code = kvmem_space_trim(space);
        if (code >= 0)
            code = kvmem_prefix_lookup(space, NAMES, names, blocks, NULL);
        if (code > 0)
            code = kvmem_prefix_release(space, (uint32_t)code, blocks, kvmem_fence_none());
        cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    }
    kvmem_client_close(client);
    return code;
}

Test(devices, an_embedded_directory_on_a_gpu, .timeout = 60)
{
    begin();
    for (uint32_t flags = 0; flags <= KVMEM_CLIENT_HELPER; flags++) {
        struct kvmem_embed_options embed = on_gpu(flags);
        struct kvmem_client_info info = {.size = sizeof(info)};
        struct kvmem_device_info device;
        struct kvmem_client *client;

        cr_assert_eq(kvmem_client_embed(&embed, &client), 0, "%s", kvmem_error_detail()->text);
        cr_assert_eq(kvmem_client_info(client, &info), 0);
        cr_assert_eq(info.granule_bytes, GRANULE);
        cr_assert_eq(kvmem_client_devices(client, 1, &device), 1);
        cr_assert_eq(device.kind, 2);
        cr_assert_str_eq((const char *)device.uuid, "fake gpu no. 2");
        cr_assert_str_eq(device.name, "cuda:2 Fake GPU 2");
        cr_assert_eq(live(client), 0, "%s", kvmem_error_detail()->text);
        kvt_fake_quiet();
    }
}

/* A refusal of embed; the detail names `word`. */
static void refused(const struct kvmem_embed_options *embed, int code, const char *word)
{
    struct kvmem_client *client = NULL;

    cr_assert_eq(kvmem_client_embed(embed, &client), code, "%s: %s", word,
                 kvmem_error_detail()->text);
    cr_assert_null(client);
    cr_assert_neq(strstr(kvmem_error_detail()->text, word), NULL, "%s", kvmem_error_detail()->text);
    kvt_fake_quiet();
}

Test(devices, options_of_embed, .timeout = 60)
{
    static const char *const wrong[] = {"cuda",    "cuda:",      "cuda:x", "cuda:-1",
                                        "cuda:0 ", "cuda:12345", "rocm:0", ""};
    struct kvmem_embed_options embed = on_gpu(0);

    begin();
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        embed.device = wrong[i];
        refused(&embed, KVMEM_E_INVALID, "device");
    }
    embed.device = "cuda:3"; /* there are three */
    refused(&embed, KVMEM_E_INVALID, "device");
    embed = on_gpu(0);
    embed.granule_bytes = GRANULE;
    refused(&embed, KVMEM_E_INVALID, "granule_bytes");
    embed = on_gpu(0);
    embed.device_bytes = 0;
    refused(&embed, KVMEM_E_INVALID, "device_bytes");
    embed.device_bytes = DEVICE_BYTES + 1;
    refused(&embed, KVMEM_E_INVALID, "device_bytes");
    embed = on_gpu(2);
    refused(&embed, KVMEM_E_INVALID, "flags");
}

/* The n-th driver call fails, for every n: embed and what follows fail clearly or go on, and
 * nothing is left in the driver. A release that fails leaves what it was to release: those are
 * passed over. */
static void fail_each(const char *call, uint32_t flags)
{
    for (uint64_t n = 1; n < 10000; n++) {
        struct kvmem_embed_options embed = on_gpu(flags);
        uint64_t failed = kvt_fake->failed;
        struct kvmem_client *client;
        int code;

        kvt_fake_fail(call, n, KVI_CU_OUT_OF_MEMORY);
        code = kvmem_client_embed(&embed, &client);
        if (code == 0)
            code = live(client);
        cr_assert(code == 0 || code == KVMEM_E_DEVICE_FULL || code == KVMEM_E_OUT_OF_BLOCKS ||
                      code == KVMEM_E_NO_MEMORY || code == KVMEM_E_SYSTEM ||
                      code == KVMEM_E_NOT_SUPPORTED || code == KVMEM_E_DAEMON_LOST,
                  "%s %" PRIu64 ": %s", call, n, kvmem_error_detail()->text);
        kvt_fake_fail(NULL, 0, 0);
        kvt_fake_quiet();
        if (kvt_fake->failed == failed) {
            cr_assert_eq(code, 0);
            cr_assert_gt(n, 1, "%s is never called", call);
            return;
        }
    }
    cr_assert_fail("%s is called without end", call);
}

Test(devices, every_driver_call_fails_in_turn, .timeout = 300)
{
    static const char *const calls[] = {"cuDeviceGet",
                                        "cuDeviceGetUuid",
                                        "cuMemCreate",
                                        "cuMemExportToShareableHandle",
                                        "cuMemAddressReserve",
                                        "cuMemImportFromShareableHandle",
                                        "cuMemMap",
                                        "cuMemSetAccess",
                                        "cuCtxPushCurrent",
                                        "cuDevicePrimaryCtxRetain"};

    begin();
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        for (uint32_t flags = 0; flags <= KVMEM_CLIENT_HELPER; flags++)
            fail_each(calls[i], flags);
}

/* ---- a daemon's devices ---- */

static uint32_t uuid_of[2]; /* which fake GPU the scripted daemon's devices are */
static uint64_t bytes_of[2];

static bool answer_devices(struct kvt_script *script, const void *message)
{
    const struct kvi_header *header = message;
    _Alignas(8) char bytes[1024];
    struct kvi_msg_devices_reply *reply = (void *)bytes;
    struct kvi_rec_device_info *rows;

    if (header->opcode != KVI_OP_DEVICES)
        return false;
    kvi_wire_begin(reply, KVI_OP_DEVICES_REPLY, header->serial);
    reply->device_count = 2;
    rows = kvi_wire_tail(reply, 0);
    memset(rows, 0, 2 * sizeof(*rows));
    for (uint32_t i = 0; i < 2; i++) {
        rows[i].kind = 2;
        rows[i].device_bytes = bytes_of[i];
        rows[i].granule_bytes = GRANULE;
        snprintf((char *)rows[i].uuid, sizeof(rows[i].uuid), "fake gpu no. %u", uuid_of[i]);
        snprintf(rows[i].name, sizeof(rows[i].name), "cuda:%u Fake", i);
    }
    kvt_script_push(script, reply, NULL, 0);
    return true;
}

static struct kvt_script *gpus(uint32_t first, uint32_t second, struct kvmem_client **client)
{
    struct kvt_script *script = kvt_script_create(DEVICE_BYTES, GRANULE);

    begin();
    script->welcome_device = "cuda:0 Fake";
    script->welcome_devices = 2;
    script->answer = answer_devices;
    uuid_of[0] = first;
    uuid_of[1] = second;
    bytes_of[0] = bytes_of[1] = DEVICE_BYTES;
    *client = kvt_script_client(script);
    return script;
}

static void end(struct kvt_script *script, struct kvmem_client *client)
{
    kvmem_client_close(client);
    kvt_script_destroy(script);
    kvt_fake_quiet();
}

Test(devices, ordinals_are_found_by_uuid, .timeout = 20)
{
    struct kvmem_space_options options = kvt_small_space("second");
    struct kvmem_space *spaces[3];
    struct kvmem_client *client;
    struct kvt_script *script = gpus(2, 0, &client);

    cr_assert_eq(kvt_fake->context_refs, 1, "nothing is taken before it is needed");
    options.device = 2;
    cr_assert_eq(kvmem_space_open(client, &options, &spaces[0]), 0, "%s",
                 kvmem_error_detail()->text);
    cr_assert_str_eq(spaces[0]->backend->info.name, "cuda:0 Fake GPU 0");
    options.name = "first";
    options.device = 1;
    cr_assert_eq(kvmem_space_open(client, &options, &spaces[1]), 0);
    cr_assert_str_eq(spaces[1]->backend->info.name, "cuda:2 Fake GPU 2");
    options.name = "any";
    options.device = 0;
    script->opens_on = 1;
    cr_assert_eq(kvmem_space_open(client, &options, &spaces[2]), 0);
    cr_assert_eq(spaces[2]->backend, spaces[0]->backend, "one a device");
    end(script, client);
}

Test(devices, a_gpu_that_this_process_does_not_see, .timeout = 20)
{
    struct kvmem_space_options options = kvt_small_space("unseen");
    struct kvmem_space *space = NULL;
    struct kvmem_client *client;
    struct kvt_script *script = gpus(7, 1, &client);

    options.device = 1;
    cr_assert_eq(kvmem_space_open(client, &options, &space), KVMEM_E_NOT_SUPPORTED);
    cr_assert_null(space);
    cr_assert_neq(strstr(kvmem_error_detail()->text, "GPU-66616b65-2067-7075-206e-6f2e20370000"),
                  NULL, "%s", kvmem_error_detail()->text);
    cr_assert_neq(strstr(kvmem_error_detail()->text, "CUDA_VISIBLE_DEVICES"), NULL);
    const struct kvi_msg_space_close *said = kvt_script_find(script, KVI_OP_SPACE_CLOSE);
    cr_assert(said && said->space == 7);
    options.device = 3;
    cr_assert_eq(kvmem_space_open(client, &options, &space), KVMEM_E_INVALID);
    cr_assert_neq(strstr(kvmem_error_detail()->text, "device: 3 is outside 0..2"), NULL, "%s",
                  kvmem_error_detail()->text);
    options.device = 2; /* the other is as good as ever */
    cr_assert_eq(kvmem_space_open(client, &options, &space), 0);
    end(script, client);
}

/* Where it lies decides the geometry: a client that leaves the device open takes the reply's. */
Test(devices, devices_of_different_sizes, .timeout = 20)
{
    struct kvmem_space_options options = kvt_small_space("unlike");
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    struct kvmem_space *space = NULL;
    struct kvmem_client *client;
    struct kvt_script *script = kvt_script_create(DEVICE_BYTES, GRANULE);

    begin();
    script->welcome_device = "cuda:0 Fake";
    script->welcome_devices = 2;
    script->answer = answer_devices;
    script->opens_on = 1;
    uuid_of[0] = 0;
    uuid_of[1] = 1;
    bytes_of[0] = 16 * DEVICE_BYTES;
    bytes_of[1] = DEVICE_BYTES; /* as the script plans */
    client = kvt_script_client(script);
    cr_assert_eq(kvmem_space_open(client, &options, &space), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_space_geometry(space, 0, &geometry), 0);
    cr_assert_eq(geometry.segment_limit * geometry.segment_bytes, 2 * DEVICE_BYTES);
    options.name = "elsewhere";
    script->opens_on = 0; /* with another device's geometry: the daemon is wrong */
    cr_assert_eq(kvmem_space_open(client, &options, &space), KVMEM_E_PROTOCOL);
    end(script, client);
}

Test(devices, a_daemon_on_another_device_than_was_asked_for, .timeout = 20)
{
    struct kvmem_space_options options = kvt_small_space("wrong");
    struct kvmem_space *space = NULL;
    struct kvmem_client *client;
    struct kvt_script *script = gpus(0, 1, &client);

    script->opens_on = 2;
    cr_assert_eq(kvmem_space_open(client, &options, &space), KVMEM_E_PROTOCOL);
    end(script, client);
}

/* A context that cannot be had, an old driver: said at the first space, nothing leaked. */
Test(devices, what_is_wrong_with_the_driver_is_said, .timeout = 20)
{
    struct kvmem_space_options options = kvt_small_space("driver");
    struct kvmem_space *space = NULL;
    struct kvmem_client *client;
    struct kvt_script *script = gpus(0, 1, &client);

    kvt_fake_fail("cuDevicePrimaryCtxRetain", 1, KVI_CU_OUT_OF_MEMORY);
    cr_assert_eq(kvmem_space_open(client, &options, &space), KVMEM_E_DEVICE_FULL);
    kvt_fake_quiet();
    kvt_fake->attribute_off = KVI_CU_ATTRIBUTE_VMM;
    cr_assert_eq(kvmem_space_open(client, &options, &space), KVMEM_E_NOT_SUPPORTED);
    kvt_fake->attribute_off = 0;
    kvt_fake_quiet();
    cr_assert_eq(kvmem_space_open(client, &options, &space), 0, "%s", kvmem_error_detail()->text);
    end(script, client);
}
