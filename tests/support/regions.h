/* SPDX-License-Identifier: Apache-2.0
 *
 * A small space with regions, for tests: token-major, 4 tokens a block, 2 layers, 2 heads of 64
 * elements of bf16. A token has 1,024 bytes, a block is a segment of 4 KiB.
 */
#ifndef KVT_REGIONS_H
#define KVT_REGIONS_H

#include <kvmem.h>

#define KVT_REGION_BLOCK_TOKENS 4u
#define KVT_REGION_TOKEN_BYTES  1024u

struct kvmem_space_options kvt_region_space(const char *name);

/* A region for up to `tokens` tokens; the code of kvmem_region_open. */
int kvt_region_open(struct kvmem_space *space, struct kvmem_seq seq, uint64_t tokens,
                    struct kvmem_region **region);

struct kvmem_region_info kvt_region_info(const struct kvmem_region *region);

/* Token `token` of the sequence, behind its table: where it is read, and written. */
const char *kvt_region_block_token(struct kvmem_space *space, struct kvmem_seq seq, uint64_t token);
char *kvt_region_block_write(struct kvmem_space *space, struct kvmem_seq seq, uint64_t token);

/* The same in its view. */
const char *kvt_region_token(const struct kvmem_region *region, uint64_t token);
char *kvt_region_write(const struct kvmem_region *region, uint64_t token);

/* Names for the first blocks of a prefix, the same in every process. */
void kvt_region_names(struct kvmem_name *names, uint32_t count);

#endif
