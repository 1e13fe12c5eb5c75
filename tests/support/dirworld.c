/* SPDX-License-Identifier: Apache-2.0
 *
 * See dirworld.h. Messages are copied as they are sent and checked by kvi_wire_check: whatever a
 * directory says in any test is a message that a client would accept.
 */
#include "support/dirworld.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fatal(const char *what, const char *text)
{
    fprintf(stderr, "dirworld: %s: %s\n", what, text);
    abort();
}

/* ---- the environment ---- */

static void *world_allocate(void *context, size_t bytes)
{
    struct kvt_world *world = context;
    void *memory;

    if (world->fail_at > 0 && --world->fail_at == 0) {
        world->failed++;
        return NULL;
    }
    memory = kvi_allocate(&kvi_alloc_libc, bytes);
    if (!memory)
        fatal("allocate", "out of memory");
    world->live_allocations++;
    world->live_bytes += bytes;
    return memory;
}

static void world_release(void *context, void *memory, size_t bytes)
{
    struct kvt_world *world = context;

    world->live_allocations--;
    world->live_bytes -= bytes;
    kvi_release(&kvi_alloc_libc, memory, bytes);
}

static uint64_t world_now(void *context)
{
    return ((struct kvt_world *)context)->now_ns;
}

static void world_random(void *context, void *bytes, size_t count)
{
    uint8_t *at = bytes;

    while (count-- > 0)
        *at++ = (uint8_t)kvt_random(&((struct kvt_world *)context)->random);
}

static void world_send(void *context, uint32_t client, const void *datagram, size_t bytes,
                       const uint32_t *segments, uint32_t segment_count)
{
    struct kvt_world *world = context;
    struct kvt_sent *sent = &world->sent[world->sent_count++];
    const struct kvi_header *header = datagram;
    char text[200];

    if (world->sent_count > KVT_SENT_LIMIT)
        fatal("send", "too many messages, forget some");
    if (kvi_wire_check(datagram, bytes, header->fds_received, KVI_TO_CLIENT, text, sizeof(text)) !=
        KVI_WIRE_OK)
        fatal("send", text);
    *sent = (struct kvt_sent){.client = client, .segment_count = segment_count};
    sent->message = malloc(bytes);
    memcpy(sent->message, datagram, bytes);
    if (segment_count > 0)
        memcpy(sent->segments, segments, sizeof(*segments) * segment_count);
    for (uint32_t i = 0; i < segment_count; i++)
        if (world->segment_bytes[segments[i]] == 0)
            fatal("send", "a descriptor of a segment that does not exist");
    world->fds_received[client] += header->fds_received;
}

static void world_create(void *context, uint32_t segment, uint32_t device, uint64_t bytes)
{
    struct kvt_world *world = context;

    if (world->creating_count == KVT_CREATED_LIMIT || world->segment_bytes[segment] != 0)
        fatal("create", "twice, or too many");
    world->creating[world->creating_count++] = segment;
    world->segment_bytes[segment] = bytes;
    world->segment_device[segment] = (uint8_t)device;
    world->device_bytes[device] += bytes;
    world->created_bytes += bytes;
}

static void forget_segment(struct kvt_world *world, uint32_t segment)
{
    world->created_bytes -= world->segment_bytes[segment];
    world->device_bytes[world->segment_device[segment]] -= world->segment_bytes[segment];
    world->segment_bytes[segment] = 0;
}

static void world_release_segment(void *context, uint32_t segment)
{
    struct kvt_world *world = context;

    if (world->segment_bytes[segment] == 0)
        fatal("release", "a segment that does not exist");
    forget_segment(world, segment);
}

static void world_close(void *context, uint32_t client, int code, const char *text)
{
    struct kvt_world *world = context;
    struct kvt_closed *closed = &world->closed[world->closed_count++ % 64];

    closed->client = client;
    closed->code = code;
    snprintf(closed->text, sizeof(closed->text), "%s", text);
}

static int world_usage(void *context, uint32_t client, uint32_t space, uint32_t slot,
                       uint32_t generation, uint32_t block_count, struct kvi_dir_usage *out)
{
    const struct kvt_world *world = context;

    (void)client, (void)space, (void)slot, (void)generation, (void)block_count;
    if (!world->usage)
        return 0;
    *out = *world->usage;
    return 1;
}

static int world_reached(void *context, uint32_t client, uint32_t lane, uint64_t value)
{
    return ((const struct kvt_world *)context)->lanes[client][lane] >= value;
}

struct kvi_dir_env kvt_dir_env(struct kvt_world *world)
{
    return (struct kvi_dir_env){.version = KVI_DIR_ENV_VERSION,
                                .size = sizeof(struct kvi_dir_env),
                                .context = world,
                                .alloc = {world, world_allocate, world_release},
                                .now_ns = world_now,
                                .random = world_random,
                                .send = world_send,
                                .segment_create = world_create,
                                .segment_release = world_release_segment,
                                .client_close = world_close,
                                .usage = world_usage,
                                .timeline_reached = world_reached};
}

struct kvi_dir_options kvt_dir_options(uint32_t granules, uint32_t clients)
{
    return (struct kvi_dir_options){
        .devices = {{.kind = 1,
                     .device_bytes = (uint64_t)granules * KVT_GRANULE_BYTES,
                     .granule_bytes = KVT_GRANULE_BYTES,
                     .releases_reclaim_mapped = 1,
                     .name = "host"}},
        .device_count = 1,
        .pressure_ns = 1000,
        .client_limit = clients,
        .space_limit = 4};
}

void kvt_add_device(struct kvi_dir_options *options, uint32_t granules)
{
    struct kvi_dir_device *device = &options->devices[options->device_count];

    *device = options->devices[0];
    device->device_bytes = granules * device->granule_bytes;
    snprintf(device->name, sizeof(device->name), "host %u", options->device_count++);
}

struct kvt_world *kvt_world_create(const struct kvi_dir_options *options)
{
    struct kvt_world *world = calloc(1, sizeof(*world));
    struct kvi_dir_env env = kvt_dir_env(world);

    world->now_ns = 1000000;
    if (kvi_dir_create(options, &env, &world->dir) != 0)
        fatal("create", kvmem_error_detail()->text);
    return world;
}

int kvt_world_destroy(struct kvt_world *world)
{
    int is_clean;

    while (world->creating_count > 0)
        forget_segment(world, world->creating[--world->creating_count]);
    kvi_dir_destroy(world->dir);
    kvt_forget(world);
    is_clean = world->created_bytes == 0 && world->live_allocations == 0 && world->live_bytes == 0;
    free(world);
    return is_clean;
}

void kvt_world_check(const struct kvt_world *world)
{
    char text[256];

    if (kvi_dir_check(world->dir, text, sizeof(text)) != 0)
        fatal("check", text);
}

struct kvt_world *kvt_world_of_two(const struct kvi_dir_options *options, uint32_t *first,
                                   uint32_t *second)
{
    struct kvt_world *world = kvt_world_create(options);

    *first = kvt_join(world, KVMEM_ROLE_LEADER);
    *second = kvt_join(world, KVMEM_ROLE_LEADER);
    return world;
}

void kvt_world_end(struct kvt_world *world)
{
    if (!world)
        return;
    kvt_world_check(world);
    if (!kvt_world_destroy(world))
        fatal("end", "segments or allocations were not given back");
}

/* ---- messages ---- */

void kvt_forget(struct kvt_world *world)
{
    for (uint32_t i = 0; i < world->sent_count; i++)
        free(world->sent[i].message);
    world->sent_count = 0;
    world->taken = 0;
    world->closed_count = 0;
}

void kvt_deliver(struct kvt_world *world, uint32_t client, void *message)
{
    struct kvi_header *header = message;
    size_t bytes;

    if (!world->is_silent[client])
        world->fds_told[client] = world->fds_received[client];
    header->fds_received = world->fds_told[client];
    bytes = kvi_wire_finish(message);
    kvi_dir_message(world->dir, client, message, bytes, 0);
}

const struct kvt_sent *kvt_take(struct kvt_world *world, uint32_t client)
{
    for (uint32_t i = world->taken; i < world->sent_count; i++) {
        struct kvt_sent found = world->sent[i];

        if (found.client != client)
            continue;
        /* Move it to the front of what was not taken: others keep their order. */
        memmove(&world->sent[world->taken + 1], &world->sent[world->taken],
                sizeof(found) * (i - world->taken));
        world->sent[world->taken] = found;
        return &world->sent[world->taken++];
    }
    return NULL;
}

const void *kvt_take_as(struct kvt_world *world, uint32_t client, uint32_t opcode)
{
    const struct kvt_sent *sent = kvt_take(world, client);

    if (!sent || ((const struct kvi_header *)sent->message)->opcode != opcode)
        return NULL;
    return sent->message;
}

int kvt_take_error(struct kvt_world *world, uint32_t client, const char *word)
{
    const struct kvi_msg_error *error = kvt_take_as(world, client, KVI_OP_ERROR);

    if (!error)
        return 0;
    if (word && !strstr(error->text, word)) {
        fprintf(stderr, "'%s' does not name '%s'\n", error->text, word);
        return 0;
    }
    return error->code;
}

uint32_t kvt_create_one(struct kvt_world *world, uint32_t at, int code)
{
    uint32_t segment = world->creating[at];

    world->creating_count--;
    memmove(world->creating + at, world->creating + at + 1,
            sizeof(world->creating[0]) * (world->creating_count - at));
    if (code != 0)
        forget_segment(world, segment);
    kvi_dir_segment_created(world->dir, segment, code);
    return segment;
}

void kvt_create_all(struct kvt_world *world, int code)
{
    while (world->creating_count > 0)
        kvt_create_one(world, 0, code);
}

/* ---- answers ---- */

struct kvt_granted kvt_take_grants(struct kvt_world *world, uint32_t client)
{
    struct kvt_granted all = {0};
    const struct kvi_msg_grant *grant;

    while (!all.is_last && (grant = kvt_take_as(world, client, KVI_OP_GRANT)) != NULL) {
        const struct kvi_rec_segment_grant *segments = kvi_wire_tail_const(grant, 0);
        const struct kvi_rec_block_range *ranges = kvi_wire_tail_const(grant, 1);

        all.messages++;
        all.is_last = grant->flags & KVI_GRANT_LAST;
        all.obtainable_blocks = grant->obtainable_blocks;
        for (uint32_t i = 0; i < grant->segment_count; i++) {
            all.segments[all.segment_count++] = segments[i];
            all.fd_count += (segments[i].flags & KVI_SEGMENT_HAS_FD) != 0;
            all.adopted_count += (segments[i].flags & KVI_SEGMENT_ADOPTED) != 0;
        }
        for (uint32_t i = 0; i < grant->range_count; i++)
            for (uint32_t b = 0; b < ranges[i].count; b++)
                all.blocks[all.block_count++] = ranges[i].first + b;
    }
    return all;
}

/* Pass over what came before the question and was not taken. */
static void pass_over(struct kvt_world *world, uint32_t client)
{
    while (kvt_take(world, client))
        ;
}

struct kvt_granted kvt_get(struct kvt_world *world, uint32_t client, uint32_t space,
                           uint32_t blocks)
{
    pass_over(world, client);
    kvt_request(world, client, space, blocks, 0);
    kvt_create_all(world, 0);
    return kvt_take_grants(world, client);
}

uint32_t kvt_space(struct kvt_world *world, uint32_t client, const char *name,
                   enum kvt_geometry geometry, uint64_t quota_bytes)
{
    const struct kvi_msg_space_opened *opened;

    pass_over(world, client);
    kvt_open(world, client, name, geometry, quota_bytes);
    opened = kvt_take_as(world, client, KVI_OP_SPACE_OPENED);
    if (!opened)
        fatal("space", "it was not opened");
    return opened->space;
}

void kvt_publish_all(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t first_name,
                     uint32_t count, const uint32_t *blocks)
{
    const struct kvi_msg_publish_reply *reply;
    const struct kvi_rec_state *states;
    uint32_t names[512];

    for (uint32_t i = 0; i < count; i++)
        names[i] = first_name + i;
    pass_over(world, client);
    kvt_publish(world, client, space, count, names, blocks);
    reply = kvt_take_as(world, client, KVI_OP_PUBLISH_REPLY);
    if (!reply)
        fatal("publish", "no answer");
    states = kvi_wire_tail_const(reply, 0);
    for (uint32_t i = 0; i < count; i++)
        if (states[i].state != KVMEM_PUBLISHED)
            fatal("publish", "a block did not become an entry");
}

uint32_t kvt_peek(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t first_name,
                  uint32_t count)
{
    const struct kvi_msg_lookup_reply *reply;
    uint32_t names[512];

    for (uint32_t i = 0; i < count; i++)
        names[i] = first_name + i;
    pass_over(world, client);
    kvt_lookup(world, client, space, count, names, KVI_LOOKUP_PEEK);
    reply = kvt_take_as(world, client, KVI_OP_LOOKUP_REPLY);
    if (!reply)
        fatal("peek", "no answer");
    return reply->hit_count;
}

int kvt_is_quiet(const struct kvt_world *world)
{
    return world->taken == world->sent_count && world->closed_count == 0;
}

struct kvi_msg_stats_reply kvt_stats(struct kvt_world *world)
{
    struct kvi_msg_stats_reply stats = {0};

    kvi_dir_stats(world->dir, &stats);
    return stats;
}

/* ---- requests ---- */

static _Alignas(8) uint8_t buffer[KVI_MESSAGE_BYTES];

static void *begin(struct kvt_world *world, enum kvi_opcode opcode)
{
    kvi_wire_begin(buffer, opcode, ++world->serial);
    return buffer;
}

uint32_t kvt_join(struct kvt_world *world, uint32_t role)
{
    return kvt_join_old(world, role, KVI_PROTOCOL_VERSION);
}

uint32_t kvt_join_old(struct kvt_world *world, uint32_t role, uint32_t version)
{
    const struct kvi_dir_peer peer = {.pid = 100, .uid = 1, .gid = 1};
    struct kvi_msg_hello *hello = begin(world, KVI_OP_HELLO);
    uint32_t client;

    if (kvi_dir_client_add(world->dir, &peer, &client) != 0)
        return KVI_NO_CLIENT;
    world->fds_received[client] = 0;
    world->fds_told[client] = 0;
    world->is_silent[client] = 0;
    memset(world->lanes[client], 0, sizeof(world->lanes[client]));
    hello->version = version;
    hello->version_min = KVI_PROTOCOL_VERSION_MIN;
    hello->role = role;
    memcpy(hello->name, "test", 4);
    kvt_deliver(world, client, hello);
    if (!kvt_take_as(world, client, KVI_OP_WELCOME))
        fatal("join", "no welcome");
    return client;
}

uint32_t kvt_open(struct kvt_world *world, uint32_t client, const char *name,
                  enum kvt_geometry geometry, uint64_t quota_bytes)
{
    return kvt_open_with(world, client, name, geometry, quota_bytes, 0);
}

uint32_t kvt_open_with(struct kvt_world *world, uint32_t client, const char *name,
                       enum kvt_geometry geometry, uint64_t quota_bytes, uint32_t flags)
{
    static const uint32_t layer_counts[] = {8, 12, 4, 32};
    const struct kvi_rec_group group = {.layer_count = layer_counts[geometry],
                                        .kv_head_count = 1,
                                        .head_dim_k = 8,
                                        .head_dim_v = 8,
                                        .dtype_k = KVMEM_DTYPE_BF16,
                                        .dtype_v = KVMEM_DTYPE_BF16};
    struct kvi_msg_space_open *open = begin(world, KVI_OP_SPACE_OPEN);

    snprintf(open->name, sizeof(open->name), "%.*s", (int)strcspn(name, "@"), name);
    snprintf(open->domain, sizeof(open->domain), "%s",
             strchr(name, '@') ? strchr(name, '@') + 1 : "default");
    open->quota_bytes = quota_bytes;
    open->flags = flags | (geometry == KVT_SINGLE ? KVI_SPACE_REGIONS : 0);
    open->layout = geometry == KVT_SINGLE ? KVMEM_LAYOUT_TOKEN_MAJOR : KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    open->block_tokens = KVT_BLOCK_TOKENS;
    open->shard_count = 1;
    open->group_count = 1;
    memcpy(kvi_wire_tail(open, 0), &group, sizeof(group));
    kvt_deliver(world, client, open);
    return world->serial;
}

uint32_t kvt_close(struct kvt_world *world, uint32_t client, uint32_t space)
{
    struct kvi_msg_space_close *close = begin(world, KVI_OP_SPACE_CLOSE);

    close->space = space;
    kvt_deliver(world, client, close);
    return world->serial;
}

uint32_t kvt_request(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t blocks,
                     uint32_t flags)
{
    struct kvi_msg_blocks_request *request = begin(world, KVI_OP_BLOCKS_REQUEST);

    request->space = space;
    request->block_count = blocks;
    request->flags = flags;
    kvt_deliver(world, client, request);
    return world->serial;
}

uint32_t kvt_hand_in(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t slot,
                     uint32_t generation)
{
    struct kvi_msg_segment_hand_in *message = begin(world, KVI_OP_SEGMENT_HAND_IN);

    message->space = space;
    message->slot = slot;
    message->generation = generation;
    kvt_deliver(world, client, message);
    return world->serial;
}

void kvt_hand_in_granted(struct kvt_world *world, uint32_t client, uint32_t space,
                         const struct kvi_rec_segment_grant *segment)
{
    kvt_hand_in(world, client, space, segment->slot, segment->generation);
    kvt_world_check(world);
}

uint32_t kvt_map(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                 const struct kvi_rec_segment_ref *segments)
{
    struct kvi_msg_segment_map *message = begin(world, KVI_OP_SEGMENT_MAP);

    message->space = space;
    message->segment_count = count;
    memcpy(kvi_wire_tail(message, 0), segments, sizeof(*segments) * count);
    kvt_deliver(world, client, message);
    return world->serial;
}

uint32_t kvt_unmapped(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t slot,
                      uint32_t generation)
{
    struct kvi_msg_segment_unmapped *message = begin(world, KVI_OP_SEGMENT_UNMAPPED);

    message->space = space;
    message->slot = slot;
    message->generation = generation;
    kvt_deliver(world, client, message);
    return world->serial;
}

void kvt_name(uint32_t number, uint8_t name[32])
{
    uint64_t state = number + UINT64_C(77);

    for (int i = 0; i < 4; i++) {
        uint64_t word = kvt_random(&state);

        memcpy(name + 8 * i, &word, sizeof(word));
    }
}

uint32_t kvt_lookup(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                    const uint32_t *names, uint32_t flags)
{
    struct kvi_msg_lookup *message = begin(world, KVI_OP_LOOKUP);
    struct kvi_rec_name *records = kvi_wire_tail(message, 0);

    message->space = space;
    message->flags = flags;
    message->name_count = count;
    for (uint32_t i = 0; i < count; i++)
        kvt_name(names[i], records[i].bytes);
    kvt_deliver(world, client, message);
    return world->serial;
}

uint32_t kvt_publish(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                     const uint32_t *names, const uint32_t *indices)
{
    static const struct kvt_fence none[1024];

    return kvt_publish_fenced(world, client, space, count, names, indices, none);
}

uint32_t kvt_publish_fenced(struct kvt_world *world, uint32_t client, uint32_t space,
                            uint32_t count, const uint32_t *names, const uint32_t *indices,
                            const struct kvt_fence *fences)
{
    struct kvi_msg_publish *message = begin(world, KVI_OP_PUBLISH);
    struct kvi_rec_publication *records = kvi_wire_tail(message, 0);

    message->space = space;
    message->record_count = count;
    for (uint32_t i = 0; i < count; i++) {
        records[i] =
            (struct kvi_rec_publication){.index = indices[i], .token_count = KVT_BLOCK_TOKENS};
        if (fences[i].value != 0) {
            records[i].fence_kind = KVMEM_FENCE_TIMELINE;
            records[i].fence_lane = fences[i].lane;
            records[i].fence_value = fences[i].value;
        }
        kvt_name(names[i], records[i].name);
    }
    kvt_deliver(world, client, message);
    return world->serial;
}

uint32_t kvt_timeline(struct kvt_world *world, uint32_t client, uint32_t timeline, uint32_t is_own)
{
    struct kvi_msg_timeline_map *message = begin(world, KVI_OP_TIMELINE_MAP);

    message->timeline = timeline;
    message->is_own = is_own;
    kvt_deliver(world, client, message);
    return world->serial;
}

uint32_t kvt_release(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                     const uint32_t *indices)
{
    struct kvi_msg_release *message = begin(world, KVI_OP_RELEASE);

    message->space = space;
    message->index_count = count;
    memcpy(kvi_wire_tail(message, 0), indices, sizeof(*indices) * count);
    kvt_deliver(world, client, message);
    return world->serial;
}

uint32_t kvt_pin(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                 const uint32_t *names, uint64_t lifetime_ns)
{
    struct kvi_msg_pin *message = begin(world, KVI_OP_PIN);
    struct kvi_rec_name *records = kvi_wire_tail(message, 0);

    message->space = space;
    message->name_count = count;
    message->lifetime_ns = lifetime_ns;
    for (uint32_t i = 0; i < count; i++)
        kvt_name(names[i], records[i].bytes);
    kvt_deliver(world, client, message);
    return world->serial;
}

uint32_t kvt_unpin(struct kvt_world *world, uint32_t client, uint64_t pin)
{
    struct kvi_msg_unpin *message = begin(world, KVI_OP_UNPIN);

    message->pin = pin;
    kvt_deliver(world, client, message);
    return world->serial;
}

uint32_t kvt_plain(struct kvt_world *world, uint32_t client, enum kvi_opcode opcode, uint32_t first)
{
    struct kvi_msg_clients *message = begin(world, opcode);

    message->first = first;
    kvt_deliver(world, client, message);
    return world->serial;
}
