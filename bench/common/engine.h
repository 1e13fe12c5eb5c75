/* SPDX-License-Identifier: Apache-2.0
 *
 * A small space to measure in, and prompts that fill it: the benchmarks' stand-in for an engine.
 */
#ifndef KVB_ENGINE_H
#define KVB_ENGINE_H

#include <kvmem.h>

#define KVB_BLOCK_TOKENS 16u
#define KVB_BLOCK_BYTES  4096u /* 2 layers × (K, V) × 2 heads × 16 tokens × 16 elements × bf16 */

/* Options of that space; `name` and limits are the caller's to change. */
struct kvmem_space_options kvb_space_options(const char *name);

/* An embedded client over a host device with room for `blocks` blocks, and its space. */
void kvb_embed(uint64_t blocks, const struct kvmem_space_options *options,
               struct kvmem_client **client, struct kvmem_space **space);

/* A client of the daemon at `socket_path`. */
struct kvmem_client *kvb_connect(const char *socket_path, const char *name);

/* A sequence with `tokens` committed tokens; out of blocks is waited for. No byte is written. */
struct kvmem_seq kvb_sequence(struct kvmem_client *client, struct kvmem_space *space,
                              uint32_t tokens);

/* Publish `block_count` blocks under names made from `first_name` on, `chunk` a sequence, and
 * free them: the pool is then full of entries that nobody holds. */
void kvb_fill_with_entries(struct kvmem_client *client, struct kvmem_space *space,
                           uint64_t block_count, uint64_t first_name);

/* The name with number `number`; 32 well-mixed bytes. */
struct kvmem_name kvb_name(uint64_t number);

#endif
