/* SPDX-License-Identifier: Apache-2.0
 *
 * Names of entries: a chain of SHA-256 over blocks of tokens (kvmem/prefix.h). Pure.
 */
#ifndef KVI_UTIL_HASH_H
#define KVI_UTIL_HASH_H

#include <kvmem/prefix.h>
#include <kvmem/space.h>

#define KVI_HASH_EXTRA_BYTES_MAX 4096u /* of an adapter, a salt, an extra key */

/* The root of a chain: everything that is the same for all blocks of it. `options` was checked
 * with kvi_space_options_check(); `root_options` may be NULL: group 0, no adapter, no salt.
 * 0, or INVALID naming the field of `root_options`; then *root is unchanged. */
int kvi_name_root(const struct kvmem_space_options *options,
                  const struct kvmem_root_options *root_options, struct kvmem_name *root);

/* names[0 .. count): of `count` full blocks of `block_tokens` tokens, each chained to the one
 * before it, the first to *parent. `extra_bytes` of `extra` go into each. No checks. *parent may
 * be a name just before names[0], or names[0] itself. */
void kvi_name_chain(const struct kvmem_name *parent, uint32_t block_tokens, const uint32_t *tokens,
                    uint32_t count, const void *extra, uint32_t extra_bytes,
                    struct kvmem_name *names);

#endif
