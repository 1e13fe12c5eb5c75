/* SPDX-License-Identifier: Apache-2.0
 *
 * How an engine begins and ends: a client, a space, the device that the space is on.
 */
#include "replay.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/bench.h"

#define DEVICE_LIMIT 16u
#define KIND_CUDA    2u /* kvmem_device_info.kind */

static int open_client(struct kvb_engine *engine, const struct kvb_options *options)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed), .name = "kvmem-replay"};
    struct kvmem_connect_options connect = {.size = sizeof(connect)};
    char name[32];
    int rc;

    snprintf(name, sizeof(name), "replay %" PRIu32 "/%" PRIu32, options->part + 1, options->parts);
    embed.device = options->device;
    embed.device_bytes = options->device_bytes;
    embed.flags = connect.flags = options->is_helped ? KVMEM_CLIENT_HELPER : 0;
    connect.socket_path = options->socket_path;
    connect.name = name;
    rc = options->is_embedded ? kvmem_client_embed(&embed, &engine->client)
                              : kvmem_client_connect(&connect, &engine->client);
    if (rc < 0)
        return kvb_replay_fail(
            engine, options->is_embedded ? "cannot embed a device" : "cannot connect to kvmemd",
            rc);
    return 0;
}

/* "cuda:0 NVIDIA H200" is called cuda:0. */
static int is_called(const struct kvmem_device_info *device, const char *name)
{
    size_t length = strcspn(device->name, " ");

    return strlen(name) == length && memcmp(device->name, name, length) == 0;
}

static int fail_device(struct kvb_engine *engine, const char *name,
                       const struct kvmem_device_info *devices, int count)
{
    size_t room = sizeof(engine->error);
    size_t used =
        (size_t)snprintf(engine->error, room, "--device: the daemon has no %s, but", name);

    for (int i = 0; i < count && used < room; i++)
        used += (size_t)snprintf(engine->error + used, room - used, "%s %s", i == 0 ? "" : ",",
                                 devices[i].name);
    return -1;
}

/* Open the space on the device that was asked for, else on the first where it is or can be: one
 * that is on another device answers EXISTS. *device: the one that it is on now. */
static int open_on_device(struct kvb_engine *engine, struct kvmem_space_options *options,
                          struct kvmem_device_info *device)
{
    const char *wanted = engine->options->is_embedded ? NULL : engine->options->device;
    struct kvmem_device_info devices[DEVICE_LIMIT];
    int count = kvmem_client_devices(engine->client, DEVICE_LIMIT, devices);
    int rc = 0, tried = 0;

    if (count < 0)
        return kvb_replay_fail(engine, "kvmem_client_devices", count);
    for (int i = 0; i < count; i++) {
        if (wanted != NULL && !is_called(&devices[i], wanted))
            continue;
        *device = devices[i];
        options->device = count == 1 ? 0 : (uint32_t)i + 1;
        tried = 1;
        rc = kvmem_space_open(engine->client, options, &engine->space);
        if (rc != KVMEM_E_EXISTS)
            break;
    }
    if (!tried)
        return fail_device(engine, wanted, devices, count);
    return rc < 0 ? kvb_replay_fail(engine, "cannot open the space", rc) : 0;
}

/* A dry run touches no block, and needs no kernels. */
static int open_device(struct kvb_engine *engine, const struct kvmem_device_info *info)
{
    struct kvb_bases bases = {kvmem_space_base(engine->space, 0, 0),
                              kvmem_space_write_base(engine->space, 0, 0)};

    engine->device_bytes = info->device_bytes;
    if (info->kind != KIND_CUDA || engine->options->is_dry)
        kvb_device_open_host(&engine->device, &engine->shape, bases);
    else if (kvb_device_open_cuda(&engine->device, &engine->shape, bases, info) != 0) {
        snprintf(engine->error, sizeof(engine->error), "%s", engine->device.error);
        return -1;
    }
    return 0;
}

static int open_space(struct kvb_engine *engine, const struct kvb_model *model)
{
    struct kvmem_space_options options = {
        .size = sizeof(options),
        .layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN,
        .name = "kvmem-replay",
        .fingerprint = "kvmem-replay byte function 1",
        .block_tokens = model->block_tokens,
        .group_count = 1,
        .shard_count = 1,
        .groups = {{.layer_count = model->layers,
                    .kv_head_count = model->kv_heads,
                    .head_dim_k = model->head_dim,
                    .head_dim_v = model->head_dim,
                    .dtype_k = model->dtype,
                    .dtype_v = model->dtype}},
    };
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    struct kvmem_device_info device;
    int rc;

    if (open_on_device(engine, &options, &device) != 0)
        return -1;
    rc = kvmem_space_geometry(engine->space, 0, &geometry);
    if (rc == 0)
        rc = kvmem_name_root(engine->space, NULL, &engine->root);
    if (rc < 0)
        return kvb_replay_fail(engine, "cannot name the space's root", rc);
    kvb_shape_init(&engine->shape, model, &geometry);
    return open_device(engine, &device);
}

static int allocate(struct kvb_engine *engine)
{
    uint32_t n = engine->options->concurrency;

    engine->lives = calloc(n, sizeof(*engine->lives));
    engine->waiting = calloc(n, sizeof(*engine->waiting));
    engine->batch = calloc(n, sizeof(*engine->batch));
    engine->batch_lives = calloc(n, sizeof(*engine->batch_lives));
    engine->spans = calloc(n, sizeof(*engine->spans));
    if (engine->options->is_embedded)
        engine->pool = kvb_pool_create(&engine->shape.geometry);
    if (engine->options->is_self_test)
        engine->faults = kvb_faults_create(&engine->device, engine->total);
    if (engine->lives != NULL && engine->waiting != NULL && engine->batch != NULL &&
        engine->batch_lives != NULL && engine->spans != NULL &&
        (engine->pool != NULL) == engine->options->is_embedded &&
        (engine->faults != NULL) == engine->options->is_self_test)
        return 0;
    snprintf(engine->error, sizeof(engine->error), "this process has no memory left");
    return -1;
}

int kvb_replay_open(struct kvb_engine *engine, const struct kvb_options *options,
                    const struct kvb_trace *trace)
{
    memset(engine, 0, sizeof(*engine));
    engine->options = options;
    engine->trace = trace;
    engine->next = options->part;
    engine->place_limit = options->concurrency;
    if (trace->request_count > options->part)
        engine->total = (trace->request_count - options->part - 1) / options->parts + 1;
    engine->counts.waste_ratio = -1;
    engine->counts.unused_slot_ratio = -1;
    if (open_client(engine, options) != 0 || open_space(engine, &options->model) != 0 ||
        allocate(engine) != 0)
        return -1;
    return 0;
}

/* After the last request nothing may be held; answers under way are waited for. */
static int verify(struct kvb_engine *engine)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};
    uint64_t deadline = kvb_now_ns() + 2000000000ull;
    int rc;

    do {
        if (kvb_replay_dispatch(engine, 0) != 0)
            return -1;
        rc = kvmem_space_stats(engine->space, &stats);
        if (rc < 0)
            return kvb_replay_fail(engine, "kvmem_space_stats", rc);
        if (stats.private_blocks + stats.leased_blocks == 0)
            break;
    } while (kvmem_client_dispatch(engine->client, 10000000) >= 0 && kvb_now_ns() < deadline);
    engine->counts.held_blocks_at_end = stats.private_blocks + stats.leased_blocks;
    engine->counts.published_blocks = stats.published_blocks;
    engine->counts.publish_exists_blocks = stats.publish_exists_blocks;
    engine->counts.publish_refused_blocks = stats.publish_refused_blocks;
    engine->counts.adopted_segments = stats.adopted_segments;
    rc = kvmem_client_check(engine->client);
    return rc < 0 ? kvb_replay_fail(engine, "kvmem_client_check", rc) : 0;
}

int kvb_replay_close(struct kvb_engine *engine)
{
    struct rusage usage;
    int rc = 0;

    if (engine->space != NULL && engine->finished == engine->total && engine->error[0] == '\0')
        rc = verify(engine);
    if (engine->pool != NULL)
        kvb_pool_finish(engine->pool, &engine->counts);
    if (engine->device.ops != NULL)
        engine->device.ops->wait(&engine->device); /* nothing touches what is unmapped next */
    kvmem_space_close(engine->space);
    kvmem_client_close(engine->client);
    kvb_pool_destroy(engine->pool);
    kvb_faults_destroy(engine->faults);
    kvb_device_close(&engine->device);
    if (engine->lives != NULL)
        for (uint32_t i = 0; i < engine->options->concurrency; i++)
            kvb_live_fini(&engine->lives[i]);
    free(engine->lives);
    free(engine->waiting);
    free(engine->batch);
    free(engine->batch_lives);
    free(engine->spans);
    free(engine->hits);
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        engine->counts.peak_resident_bytes = (uint64_t)usage.ru_maxrss * 1024;
    return rc;
}
