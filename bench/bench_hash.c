/* SPDX-License-Identifier: Apache-2.0
 *
 * hash: naming the blocks of a prompt, in nanoseconds a token at 16 tokens a block. The peer is
 * the bare SHA-256 of the same number of bytes, so the ratio is what the chain costs on top.
 */
#include <kvmem.h>
#include <nettle/sha2.h>

#include "common/bench.h"

#define TOKENS            32768u
#define BLOCK_TOKENS      16u
#define BLOCK_INPUT_BYTES 112u

static uint32_t tokens[TOKENS];
static struct kvmem_name names[TOKENS / BLOCK_TOKENS];

static double own_ns(void)
{
    struct kvmem_name root = {{1}};
    uint64_t start = kvb_now_ns();

    kvb_check(kvmem_name_blocks(&root, BLOCK_TOKENS, tokens, TOKENS, NULL, 0, names),
              "kvmem_name_blocks");
    return (double)(kvb_now_ns() - start) / TOKENS;
}

static double bare_ns(void)
{
    static uint8_t input[BLOCK_INPUT_BYTES];
    struct sha256_ctx hash;
    uint64_t start = kvb_now_ns();

    for (uint32_t i = 0; i < TOKENS / BLOCK_TOKENS; i++) {
        sha256_init(&hash);
        sha256_update(&hash, sizeof(input), input);
        sha256_digest(&hash, 32, input);
    }
    return (double)(kvb_now_ns() - start) / TOKENS;
}

int main(void)
{
    static struct kvb_row row = {.bench = "hash",
                                 .metric = "ns a token",
                                 .peer = "bare SHA-256 of 112 bytes a block",
                                 .limit = 10,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};

    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = i * 2654435761u;
    own_ns();
    for (int i = 0; i < KVB_SAMPLES; i++) {
        kvb_add(&row.own, own_ns());
        kvb_add(&row.peer_samples, bare_ns());
    }
    return kvb_report(&row);
}
