/* SPDX-License-Identifier: Apache-2.0
 *
 * prefix_index: a million entries in the directory, nanoseconds an entry to insert (publish),
 * find (look-up with lease) and evict (grant of its block), whole messages with their checks
 * included; and the bytes of memory an entry. The directory is driven through its messages with
 * an environment that only counts.
 */
#include <stdlib.h>
#include <string.h>

#include "common/bench.h"
#include "common/engine.h"
#include "directory/directory.h"

#define BLOCKS  1048576u
#define ENTRIES 1000000u
#define BATCH   1024u

static uint64_t allocated_bytes;
static uint32_t created[64], created_count;
static _Alignas(8) uint8_t reply[KVI_MESSAGE_BYTES];
static uint64_t granted_blocks;
static uint32_t client, space, *granted;

static void *count_allocate(void *context, size_t bytes)
{
    (void)context;
    allocated_bytes += bytes;
    return kvi_allocate(&kvi_alloc_libc, bytes);
}

static void count_release(void *context, void *memory, size_t bytes)
{
    (void)context;
    allocated_bytes -= bytes;
    kvi_release(&kvi_alloc_libc, memory, bytes);
}

static uint64_t now(void *context)
{
    (void)context;
    return kvb_now_ns();
}

static void no_random(void *context, void *bytes, size_t count)
{
    (void)context;
    memset(bytes, 1, count);
}

static void on_send(void *context, uint32_t to, const void *datagram, size_t bytes,
                    const uint32_t *segments, uint32_t segment_count)
{
    const struct kvi_msg_grant *grant = datagram;

    (void)context, (void)to, (void)segments, (void)segment_count;
    memcpy(reply, datagram, bytes);
    if (grant->header.opcode == KVI_OP_ERROR)
        kvb_fail("error: %s", ((const struct kvi_msg_error *)datagram)->text);
    if (grant->header.opcode != KVI_OP_GRANT)
        return;
    const struct kvi_rec_block_range *ranges = kvi_wire_tail_const(datagram, 1);
    for (uint32_t i = 0; i < grant->range_count; i++)
        for (uint32_t b = 0; b < ranges[i].count; b++)
            granted[granted_blocks++] = ranges[i].first + b;
}

static void on_create(void *context, uint32_t segment, uint32_t device, uint64_t bytes)
{
    (void)context, (void)device, (void)bytes;
    created[created_count++] = segment;
}

static void on_release(void *context, uint32_t segment)
{
    (void)context, (void)segment;
}

static void on_close(void *context, uint32_t who, int code, const char *text)
{
    (void)context, (void)who;
    kvb_fail("the directory closed the connection: %d %s", code, text);
}

static struct kvi_dir *make_directory(void)
{
    struct kvi_dir_options options = {
        .devices = {{.kind = 1,
                     .device_bytes = (uint64_t)BLOCKS * KVB_BLOCK_BYTES,
                     .granule_bytes = 65536,
                     .releases_reclaim_mapped = 1,
                     .name = "host"}},
        .device_count = 1,
        .unacked_fd_limit = 1024};
    struct kvi_dir_env env = {.version = KVI_DIR_ENV_VERSION,
                              .size = sizeof(env),
                              .alloc = {NULL, count_allocate, count_release},
                              .now_ns = now,
                              .random = no_random,
                              .send = on_send,
                              .segment_create = on_create,
                              .segment_release = on_release,
                              .client_close = on_close};
    struct kvi_dir_peer peer = {1, 0, 0};
    struct kvi_dir *dir;

    kvb_check(kvi_dir_create(&options, &env, &dir), "kvi_dir_create");
    kvb_check(kvi_dir_client_add(dir, &peer, &client), "kvi_dir_client_add");
    return dir;
}

static void deliver(struct kvi_dir *dir, void *message)
{
    kvi_dir_message(dir, client, message, kvi_wire_finish(message), 0);
    while (created_count)
        kvi_dir_segment_created(dir, created[--created_count], 0);
}

static _Alignas(8) uint8_t request[KVI_MESSAGE_BYTES];

static void say_hello_and_open(struct kvi_dir *dir)
{
    struct kvi_msg_hello *hello = (void *)request;
    struct kvi_msg_space_open *open = (void *)request;
    struct kvi_rec_group group = {2, 2, 16, 16, 1, 1, 0, 0, 0, {0}};

    kvi_wire_begin(hello, KVI_OP_HELLO, 1);
    hello->version = KVI_PROTOCOL_VERSION;
    hello->version_min = KVI_PROTOCOL_VERSION_MIN;
    deliver(dir, hello);
    kvi_wire_begin(open, KVI_OP_SPACE_OPEN, 2);
    strcpy(open->name, "index");
    strcpy(open->domain, "default");
    open->layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    open->block_tokens = KVB_BLOCK_TOKENS;
    open->shard_count = open->group_count = 1;
    memcpy(kvi_wire_tail(open, 0), &group, sizeof(group));
    deliver(dir, open);
    space = ((struct kvi_msg_space_opened *)(void *)reply)->space;
}

static void ask(struct kvi_dir *dir, uint32_t blocks)
{
    struct kvi_msg_blocks_request *want = (void *)request;

    kvi_wire_begin(want, KVI_OP_BLOCKS_REQUEST, 3);
    want->space = space;
    want->block_count = blocks;
    deliver(dir, want);
}

static double publish_ns(struct kvi_dir *dir, uint64_t first_name, const uint32_t *blocks)
{
    struct kvi_msg_publish *publish = (void *)request;
    struct kvi_rec_publication *records;
    uint64_t start;

    kvi_wire_begin(publish, KVI_OP_PUBLISH, 4);
    publish->space = space;
    publish->record_count = BATCH;
    records = kvi_wire_tail(publish, 0);
    for (uint32_t i = 0; i < BATCH; i++) {
        struct kvmem_name name = kvb_name(first_name + i);

        records[i] =
            (struct kvi_rec_publication){.index = blocks[i], .token_count = KVB_BLOCK_TOKENS};
        memcpy(records[i].name, name.bytes, 32);
    }
    start = kvb_now_ns();
    deliver(dir, publish);
    return (double)(kvb_now_ns() - start) / BATCH;
}

static void release(struct kvi_dir *dir, const uint32_t *blocks, uint32_t count)
{
    struct kvi_msg_release *drop = (void *)request;

    kvi_wire_begin(drop, KVI_OP_RELEASE, 5);
    drop->space = space;
    drop->index_count = count;
    memcpy(kvi_wire_tail(drop, 0), blocks, count * sizeof(*blocks));
    deliver(dir, drop);
}

static double find_ns(struct kvi_dir *dir, uint64_t *random)
{
    struct kvi_msg_lookup *lookup = (void *)request;
    struct kvi_rec_name *names;
    const struct kvi_rec_hit *hits;
    uint32_t found[BATCH];
    uint64_t start, end;

    kvi_wire_begin(lookup, KVI_OP_LOOKUP, 6);
    lookup->space = space;
    lookup->name_count = BATCH;
    names = kvi_wire_tail(lookup, 0);
    for (uint32_t i = 0; i < BATCH; i++)
        memcpy(names[i].bytes, kvb_name(kvb_random(random) % (ENTRIES / BATCH * BATCH)).bytes, 32);
    start = kvb_now_ns();
    deliver(dir, lookup);
    end = kvb_now_ns();
    if (((struct kvi_msg_lookup_reply *)(void *)reply)->hit_count != BATCH)
        kvb_fail("%u hits", ((struct kvi_msg_lookup_reply *)(void *)reply)->hit_count);
    hits = kvi_wire_tail_const(reply, 0);
    for (uint32_t i = 0; i < BATCH; i++)
        found[i] = hits[i].index;
    release(dir, found, BATCH);
    return (double)(end - start) / BATCH;
}

static double evict_ns(struct kvi_dir *dir)
{
    uint64_t start = kvb_now_ns();

    granted_blocks = 0;
    ask(dir, BATCH);
    if (granted_blocks < BATCH)
        kvb_fail("%lu blocks granted", (unsigned long)granted_blocks);
    return (double)(kvb_now_ns() - start) / (double)granted_blocks;
}

static struct kvb_row rows[] = {
    {.bench = "prefix_index", .metric = "ns to insert an entry at 1 M", .limit = 250},
    {.bench = "prefix_index", .metric = "ns to find an entry at 1 M", .limit = 250},
    {.bench = "prefix_index", .metric = "ns to evict an entry at 1 M", .limit = 250},
    {.bench = "prefix_index", .metric = "bytes of memory an entry", .limit = 128},
};

int main(void)
{
    struct kvi_dir *dir = make_directory();
    uint64_t name = 0, random = 5;
    int failed = 0;

    granted = malloc(sizeof(*granted) * (BLOCKS + 65536));
    say_hello_and_open(dir);
    ask(dir, BLOCKS);
    for (; name < ENTRIES / BATCH * BATCH; name += BATCH) {
        double ns = publish_ns(dir, name, granted + name);

        if (name >= ENTRIES / 2 && rows[0].own.count < 400)
            kvb_add(&rows[0].own, ns);
        release(dir, granted + name, BATCH);
    }
    kvb_add(&rows[3].own, (double)allocated_bytes / ENTRIES);
    for (int i = 0; i < 200; i++)
        kvb_add(&rows[1].own, find_ns(dir, &random));
    for (int i = 0; i < 200; i++) {
        kvb_add(&rows[2].own, evict_ns(dir));
        kvb_add(&rows[0].own, publish_ns(dir, name, granted));
        release(dir, granted, BATCH);
        name += BATCH;
    }
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        failed |= kvb_report(&rows[i]);
    kvi_dir_destroy(dir);
    return failed;
}
