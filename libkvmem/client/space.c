/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and closing a space, references going away; see space.h.
 */
#include "client/space.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "client/importer.h"
#include "client/region.h"
#include "client/seq.h"
#include "util/error.h"
#include "util/geometry.h"

#define DEVICE_SHIFT   8 /* of space_open.flags */
#define TABLE_SLAB_MIN (UINT64_C(4) << 20)

/* ---- references ---- */

void kvi_space_drop(struct kvmem_space *space, uint32_t block)
{
    switch (space->pool.state[block]) {
    case KVI_BLOCK_PRIVATE: kvi_pool_give(&space->pool, block); break;
    case KVI_BLOCK_LEASED:
        kvi_pool_begin_release(&space->pool, block);
        if (space->client->is_lost)
            kvi_pool_end_release(&space->pool, block);
        else
            kvi_outbox_append(space->client, KVI_OUTBOX_RELEASE, space->place, block);
        break;
    default:
        /* Its publication is on the way: kvi_space_published goes on. */
        assert(space->pool.state[block] == KVI_BLOCK_PUBLISHING);
        return;
    }
    space->is_refused = false;
}

int kvi_space_room(struct kvmem_space *space, uint64_t records)
{
    struct kvi_outbox *outbox = &space->client->outbox;

    if (records <= kvi_outbox_room(outbox) || space->client->is_lost)
        return 0;
    if (records > outbox->limit &&
        !kvi_outbox_drain(space->client, kvi_client_deadline_ns(space->client->timeout_ns)))
        return 0;
    return kvi_error_set(KVMEM_E_OUTBOX_FULL, "room for %" PRIu64 " of %" PRIu64 " records",
                         kvi_outbox_room(outbox), records);
}

int kvi_space_lack(struct kvmem_space *space, uint64_t needed)
{
    int code = kvi_client_is_lost(space->client);
    bool cools;

    if (needed > space->lacking)
        space->lacking = needed;
    space->stats.out_of_blocks++;
    if (code)
        return code;
    /* What cools comes back by itself: who has just preempted for it must not do so again. */
    cools = kvi_pool_free_blocks(&space->pool) + space->cooling.blocks >= needed;
    return kvi_error_set(
        space->is_refused && !cools ? KVMEM_E_OUT_OF_BLOCKS : KVMEM_E_REFILL_PENDING,
        "%" PRIu64 " blocks are needed, %" PRIu64 " are free, %" PRIu64 " wait for fences", needed,
        kvi_pool_free_blocks(&space->pool), space->cooling.blocks);
}

static void add_result(struct kvmem_space *space, uint32_t block, uint32_t state)
{
    struct kvmem_publish_result *result =
        &space->results[space->results_head++ % KVI_SPACE_RESULTS];

    result->block = (int32_t)block;
    result->state = state;
    if (space->results_head - space->results_tail > KVI_SPACE_RESULTS)
        space->results_tail++;
}

void kvi_space_published(struct kvmem_space *space, uint32_t block, uint32_t state)
{
    bool is_orphan = !space->refs[block];

    add_result(space, block, state);
    if (state == KVMEM_PUBLISHED) {
        space->stats.published_blocks++;
        kvi_pool_become_entry(&space->pool, block);
    } else {
        if (state == KVMEM_PUBLISH_EXISTS)
            space->stats.publish_exists_blocks++;
        else
            space->stats.publish_refused_blocks++;
        kvi_pool_unseal(&space->pool, block);
    }
    if (is_orphan)
        kvi_space_drop(space, block);
}

int32_t kvi_space_scratch(struct kvmem_space *space)
{
    if (space->scratch != KVMEM_BLOCK_NONE)
        return space->scratch;
    if (!kvi_pool_free_blocks(&space->pool))
        kvi_cooling_drain(space);
    space->scratch = kvi_pool_take(&space->pool);
    if (space->scratch == KVMEM_BLOCK_NONE)
        return kvi_space_lack(space, 1);
    space->refs[space->scratch] = 1;
    return space->scratch;
}

/* ---- opening ---- */

static const char *domain_of(const struct kvmem_space_options *options)
{
    return options->domain ? options->domain : "default";
}

static uint32_t layout_of(const struct kvmem_space_options *options)
{
    return options->layout ? options->layout : KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
}

static void *array(struct kvmem_client *client, size_t bytes)
{
    return kvi_allocate(&client->alloc, bytes);
}

/* Water marks, limits and copies of the options. */
static void set_options(struct kvmem_space *space, const struct kvmem_space_options *options)
{
    uint32_t low = options->low_water_blocks;
    uint32_t range = space->pool.index_range;

    space->options = *options;
    strncpy(space->name, options->name, sizeof(space->name) - 1);
    strncpy(space->domain, domain_of(options), sizeof(space->domain) - 1);
    space->options.name = space->name;
    space->options.domain = space->domain;
    space->options.layout = layout_of(options);
    if (!low) {
        low = range / 256;
        low = low < KVI_SPACE_LOW_MIN ? KVI_SPACE_LOW_MIN : low;
        low = low > KVI_SPACE_LOW_MAX ? KVI_SPACE_LOW_MAX : low;
    }
    space->low_water = low < range ? low : range;
    space->refill = options->refill_blocks ? options->refill_blocks : range;
    if (!options->refill_blocks && space->low_water < range / 4)
        space->refill = 4 * space->low_water;
    space->block_tokens = options->block_tokens;
    space->block_shift = UINT32_MAX;
    if (!(options->block_tokens & (options->block_tokens - 1)))
        space->block_shift = (uint32_t)__builtin_ctz(options->block_tokens);
}

static void free_arrays(struct kvmem_space *space)
{
    const struct kvi_alloc *alloc = &space->client->alloc;
    size_t range = space->pool.index_range;

    kvi_regions_fini(space);
    kvi_release(alloc, space->results, KVI_SPACE_RESULTS * sizeof(*space->results));
    kvi_release(alloc, space->seqs, space->seq_limit * sizeof(*space->seqs));
    kvi_release(alloc, space->copy_to, space->seq_limit * sizeof(*space->copy_to));
    kvi_release(alloc, space->copy_from, space->seq_limit * sizeof(*space->copy_from));
    kvi_release(alloc, space->copy_seqs, space->seq_limit * sizeof(*space->copy_seqs));
    kvi_cooling_fini(&space->cooling, alloc);
    kvi_release(alloc, space->marks, range * sizeof(*space->marks));
    kvi_release(alloc, space->guards, range * sizeof(*space->guards));
    kvi_release(alloc, space->held, range * sizeof(*space->held));
    kvi_release(alloc, space->refs, range * sizeof(*space->refs));
    kvi_table_memory_fini(&space->tables);
    kvi_pool_fini(&space->pool);
    kvi_release(alloc, space, sizeof(*space));
}

/* Arrays by block, by sequence, and the rest. */
static int make_arrays(struct kvmem_space *space)
{
    struct kvmem_client *client = space->client;
    size_t range = space->pool.index_range;
    size_t seqs = space->seq_limit;

    space->refs = array(client, range * sizeof(*space->refs));
    space->held = array(client, range * sizeof(*space->held));
    space->guards = array(client, range * sizeof(*space->guards));
    space->marks = array(client, range * sizeof(*space->marks));
    space->seqs = array(client, seqs * sizeof(*space->seqs));
    space->copy_seqs = array(client, seqs * sizeof(*space->copy_seqs));
    space->copy_from = array(client, seqs * sizeof(*space->copy_from));
    space->copy_to = array(client, seqs * sizeof(*space->copy_to));
    space->results = array(client, KVI_SPACE_RESULTS * sizeof(*space->results));
    if (!space->refs || !space->held || !space->guards || !space->marks || !space->seqs ||
        !space->copy_seqs || !space->copy_from || !space->copy_to || !space->results)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for %zu sequences and %zu blocks", seqs,
                             range);
    return kvi_cooling_init(&space->cooling, &client->alloc, space->seq_limit);
}

static size_t slab_bytes(const struct kvmem_space *space)
{
    size_t bytes = (size_t)space->pool.index_range * 16;

    if (bytes < (size_t)space->seq_limit * 256)
        bytes = (size_t)space->seq_limit * 256;
    return bytes < TABLE_SLAB_MIN ? TABLE_SLAB_MIN : bytes;
}

/* Everything that needs memory. */
static int make_space(struct kvmem_client *client, const struct kvmem_space_options *options,
                      struct kvi_backend *backend, const struct kvmem_geometry *geometry,
                      struct kvmem_space **out)
{
    struct kvmem_space *space = array(client, sizeof(*space));
    int code;

    if (!space)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a space");
    space->client = client;
    space->backend = backend;
    space->geometry = *geometry;
    space->scratch = KVMEM_BLOCK_NONE;
    space->first_free_seq = UINT32_MAX;
    space->mapped_first = KVI_POOL_NO_SEGMENT;
    space->seq_limit = options->seq_limit ? options->seq_limit : KVI_SPACE_SEQS;
    code = kvi_pool_init(&space->pool, &client->alloc, geometry->segment_limit,
                         geometry->blocks_per_segment);
    if (!code)
        code = kvi_table_memory_init(&space->tables, &client->alloc, slab_bytes(space));
    if (!code)
        code = make_arrays(space);
    if (!code && options->flags & KVMEM_SPACE_REGIONS)
        code = kvi_regions_init(space);
    if (code) {
        free_arrays(space);
        return code;
    }
    set_options(space, options);
    *out = space;
    return 0;
}

static void build_open(struct kvmem_client *client, const struct kvmem_space_options *options)
{
    struct kvi_msg_space_open *message = kvi_client_begin(client, KVI_OP_SPACE_OPEN);
    struct kvi_rec_group *rows = kvi_wire_tail(message, 0);

    strncpy(message->name, options->name, sizeof(message->name) - 1);
    strncpy(message->domain, domain_of(options), sizeof(message->domain) - 1);
    memcpy(message->fingerprint, options->fingerprint, sizeof(message->fingerprint));
    message->quota_bytes = options->quota_bytes;
    message->layout = layout_of(options);
    message->block_tokens = options->block_tokens;
    message->shard_count = options->shard_count;
    message->shard_index = options->shard_index;
    message->flags = options->flags | options->device << DEVICE_SHIFT;
    message->group_count = options->group_count;
    for (uint32_t i = 0; i < options->group_count; i++) {
        const struct kvmem_group_options *group = &options->groups[i];

        memset(&rows[i], 0, sizeof(rows[i]));
        rows[i].layer_count = group->layer_count;
        rows[i].kv_head_count = group->kv_head_count;
        rows[i].head_dim_k = group->head_dim_k;
        rows[i].head_dim_v = group->head_dim_v;
        rows[i].dtype_k = group->dtype_k;
        rows[i].dtype_v = group->dtype_v;
        rows[i].scale_mode = group->scale_mode;
        rows[i].scale_dtype = group->scale_dtype;
        rows[i].window_tokens = group->window_tokens;
    }
}

static int place_for(const struct kvmem_client *client, const char *name, const char *domain)
{
    int place = -1;

    if (!domain)
        domain = "default";
    for (int i = KVI_SPACE_LIMIT; i-- > 0;) {
        if (!client->spaces[i])
            place = i;
        else if (!strcmp(client->spaces[i]->name, name) &&
                 !strcmp(client->spaces[i]->domain, domain))
            return kvi_error_set(KVMEM_E_BUSY, "name: this client has %s open already", name);
    }
    if (place < 0)
        return kvi_error_set(KVMEM_E_LIMIT, "a client has at most %u spaces", KVI_SPACE_LIMIT);
    return place;
}

static int plan_of(const struct kvmem_client *client, uint32_t device,
                   const struct kvmem_space_options *options, struct kvmem_geometry *plan)
{
    const struct kvi_rec_device_info *info = &client->devices.list[device].info;
    struct kvi_geometry_input input = {.layout = options->layout,
                                       .flags = options->flags,
                                       .block_tokens = options->block_tokens,
                                       .group = &options->groups[0],
                                       .device_bytes = info->device_bytes,
                                       .granule_bytes = info->granule_bytes};
    int code = kvi_geometry_plan(&input, plan);

    if (code)
        return code;
    if ((uint64_t)plan->segment_limit * plan->blocks_per_segment > INT32_MAX)
        return kvi_error_set(KVMEM_E_LIMIT,
                             "block_tokens: %" PRIu32 " gives more than 2^31 - 1 "
                             "blocks on this device",
                             options->block_tokens);
    return 0;
}

/* What can be refused without asking the daemon. */
static int check_open(const struct kvmem_client *client, const struct kvmem_space_options *options)
{
    struct kvmem_geometry plan;

    if (options->device > client->devices.count)
        return kvi_error_set(KVMEM_E_INVALID, "device: %" PRIu32 " is outside 0..%" PRIu32,
                             options->device, client->devices.count);
    if (!options->device && !kvi_devices_are_alike(client))
        return 0; /* where it will lie decides */
    return plan_of(client, options->device ? options->device - 1 : 0, options, &plan);
}

/* What the daemon planned must be what we plan: addresses follow from it. */
static int check_opened(struct kvmem_client *client, const struct kvi_msg_space_opened *reply,
                        const struct kvmem_space_options *options, struct kvmem_geometry *plan)
{
    int code;

    if (kvi_client_space(client, reply->space))
        return kvi_client_protocol(client, "space_opened has an id that is in use");
    if (reply->device >= client->devices.count ||
        (options->device && reply->device != options->device - 1))
        return kvi_client_protocol(client, "space_opened has another device");
    code = plan_of(client, reply->device, options, plan);
    if (code)
        return code;
    if (reply->blocks_per_segment != plan->blocks_per_segment ||
        reply->segment_bytes != plan->segment_bytes ||
        reply->index_stride_bytes != plan->index_stride_bytes ||
        reply->segment_limit != plan->segment_limit)
        return kvi_client_protocol(client, "space_opened has another geometry");
    return 0;
}

static void say_close(struct kvmem_client *client, uint32_t id)
{
    struct kvi_msg_space_close *message = kvi_client_begin(client, KVI_OP_SPACE_CLOSE);
    const void *reply;

    message->space = id;
    (void)kvi_client_call(client, KVI_OP_DONE, &reply);
}

static uint64_t range_bytes(const struct kvmem_geometry *geometry)
{
    return (uint64_t)geometry->segment_limit * geometry->segment_bytes;
}

/* Addresses to read at and to write at. */
static int reserve_ranges(struct kvmem_space *space)
{
    uint64_t bytes = range_bytes(&space->geometry);
    int code = kvi_backend_reserve(space->backend, bytes, 0, &space->base);

    if (code)
        return code;
    code = kvi_backend_reserve(space->backend, bytes, 0, &space->write_base);
    if (code)
        (void)kvi_backend_unreserve(space->backend, space->base, bytes);
    return code;
}

static void unreserve_ranges(struct kvmem_space *space)
{
    uint64_t bytes = range_bytes(&space->geometry);

    (void)kvi_backend_unreserve(space->backend, space->write_base, bytes);
    (void)kvi_backend_unreserve(space->backend, space->base, bytes);
}

/* The space as the daemon has opened it: records, a backend of its device, addresses. */
static int take_opened(struct kvmem_client *client, const struct kvi_msg_space_opened *opened,
                       const struct kvmem_space_options *options, struct kvmem_space **out)
{
    struct kvi_backend *backend = NULL;
    struct kvmem_space *space = NULL;
    struct kvmem_geometry plan;
    int code = check_opened(client, opened, options, &plan);

    if (!code)
        code = kvi_devices_backend(client, opened->device, &backend);
    if (!code)
        code = make_space(client, options, backend, &plan, &space);
    if (code)
        return code;
    code = reserve_ranges(space);
    if (code) {
        free_arrays(space);
        return code;
    }
    space->id = opened->space;
    space->obtainable = opened->obtainable_blocks;
    *out = space;
    return 0;
}

/* The daemon has it open and we cannot: it is closed again. Returns `code` with its detail. */
static int take_back(struct kvmem_client *client, uint32_t id, int code)
{
    struct kvmem_error_detail detail = *kvmem_error_detail();

    if (client->is_lost)
        return code;
    say_close(client, id);
    return kvi_error_restore(&detail);
}

int kvi_space_open(struct kvmem_client *client, const struct kvmem_space_options *options,
                   struct kvmem_space **out)
{
    int place = place_for(client, options->name, options->domain);
    struct kvi_msg_space_opened opened;
    struct kvmem_space *space = NULL;
    const void *reply;
    int code;

    if (place < 0)
        return place;
    code = check_open(client, options);
    if (code)
        return code;
    build_open(client, options);
    code = kvi_client_call(client, KVI_OP_SPACE_OPENED, &reply);
    if (code)
        return code;
    opened = *(const struct kvi_msg_space_opened *)reply;
    code = take_opened(client, &opened, options, &space);
    if (code)
        return take_back(client, opened.space, code);
    space->place = (uint32_t)place;
    client->spaces[place] = space;
    if (client->space_high <= space->place)
        client->space_high = space->place + 1;
    *out = space;
    return 0;
}

/* ---- closing ---- */

/* What it shows in the status page, no more. */
static void hide(struct kvmem_space *space)
{
    for (uint32_t slot = 0; slot < space->pool.segment_limit && space->pool.owned_segments;
         slot++) {
        struct kvi_segment *segment = &space->pool.segments[slot];

        if (segment->is_owned && segment->is_on_page)
            kvi_status_hide(segment->shown, space->pool.blocks_per_segment);
        space->pool.owned_segments -= segment->is_owned;
    }
}

void kvi_space_close(struct kvmem_space *space, int64_t deadline_ns)
{
    struct kvmem_client *client = space->client;
    bool is_quiet = !kvi_cooling_wait(space, deadline_ns) &&
                    (!space->regions || !kvi_regions_wait(space, deadline_ns));

    /* Publications of sequences that live on or ended must arrive; leases go with the space. */
    (void)kvi_outbox_drain(client, deadline_ns);
    kvi_importer_settle_all(space); /* the helper's jobs name it */
    if (space->regions)
        kvi_regions_settle(space);
    if (is_quiet && space->regions)
        kvi_regions_unmap(space);
    if (is_quiet)
        kvi_importer_fini(space);
    else
        client->is_abandoned = true;
    /* From here on what arrives for it finds no space: descriptors are closed. */
    client->spaces[space->place] = NULL;
    kvi_outbox_forget(&client->outbox, space->place);
    if (is_quiet) {
        if (!client->is_lost)
            say_close(client, space->id);
        unreserve_ranges(space);
        hide(space);
    }
    free_arrays(space);
}
