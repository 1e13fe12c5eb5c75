/* SPDX-License-Identifier: Apache-2.0
 *
 * The stand-in engine of the benchmarks.
 */
#include "common/engine.h"

#include <string.h>

#include "common/bench.h"

#define CHUNK_BLOCKS 512u

struct kvmem_space_options kvb_space_options(const char *name)
{
    struct kvmem_space_options options = {
        .size = sizeof(options),
        .layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN,
        .name = name,
        .block_tokens = KVB_BLOCK_TOKENS,
        .group_count = 1,
        .shard_count = 1,
        .groups = {{.layer_count = 2,
                    .kv_head_count = 2,
                    .head_dim_k = 16,
                    .head_dim_v = 16,
                    .dtype_k = KVMEM_DTYPE_BF16,
                    .dtype_v = KVMEM_DTYPE_BF16}},
    };

    return options;
}

void kvb_embed(uint64_t blocks, const struct kvmem_space_options *options,
               struct kvmem_client **client, struct kvmem_space **space)
{
    struct kvmem_embed_options embed = {
        .size = sizeof(embed), .device_bytes = blocks * KVB_BLOCK_BYTES, .name = "bench"};

    kvb_check(kvmem_client_embed(&embed, client), "kvmem_client_embed");
    kvb_check(kvmem_space_open(*client, options, space), "kvmem_space_open");
}

struct kvmem_client *kvb_connect(const char *socket_path, const char *name)
{
    struct kvmem_connect_options options = {
        .size = sizeof(options), .socket_path = socket_path, .name = name};
    struct kvmem_client *client;

    kvb_check(kvmem_client_connect(&options, &client), "kvmem_client_connect");
    return client;
}

struct kvmem_seq kvb_sequence(struct kvmem_client *client, struct kvmem_space *space,
                              uint32_t tokens)
{
    struct kvmem_seq seq;
    int result;

    kvb_check(kvmem_seq_create(space, &seq), "kvmem_seq_create");
    while ((result = kvmem_seq_append(space, seq, tokens, kvmem_fence_none())) ==
           KVMEM_E_REFILL_PENDING)
        kvb_check(kvmem_client_dispatch(client, 1000000000), "kvmem_client_dispatch");
    kvb_check(result, "kvmem_seq_append");
    kvb_check(kvmem_seq_commit(space, seq, tokens), "kvmem_seq_commit");
    return seq;
}

struct kvmem_name kvb_name(uint64_t number)
{
    struct kvmem_name name;
    uint64_t state = number, word;

    for (size_t i = 0; i < sizeof(name.bytes); i += sizeof(word)) {
        word = kvb_random(&state);
        memcpy(name.bytes + i, &word, sizeof(word));
    }
    return name;
}

void kvb_fill_with_entries(struct kvmem_client *client, struct kvmem_space *space,
                           uint64_t block_count, uint64_t first_name)
{
    struct kvmem_name names[CHUNK_BLOCKS];

    for (uint64_t done = 0; done < block_count;) {
        uint32_t count =
            block_count - done < CHUNK_BLOCKS ? (uint32_t)(block_count - done) : CHUNK_BLOCKS;
        struct kvmem_seq seq = kvb_sequence(client, space, count * KVB_BLOCK_TOKENS);

        for (uint32_t i = 0; i < count; i++)
            names[i] = kvb_name(first_name + done + i);
        kvb_check(kvmem_seq_publish(space, seq, 0, count, names, kvmem_fence_none()),
                  "kvmem_seq_publish");
        kvb_check(kvmem_client_dispatch(client, 1000000000), "kvmem_client_dispatch");
        kvb_check(kvmem_seq_free(space, seq, kvmem_fence_none()), "kvmem_seq_free");
        kvb_check(kvmem_client_dispatch(client, 0), "kvmem_client_dispatch");
        done += count;
    }
}
