/* SPDX-License-Identifier: Apache-2.0
 *
 * Public face of util/hash.c: names of blocks. (kvmem_name_root is with the spaces, whose options
 * it hashes.) Pure; any thread.
 */
#include <inttypes.h>

#include "util/error.h"
#include "util/hash.h"

static int check(const struct kvmem_name *parent, uint32_t block_tokens, const uint32_t *tokens,
                 uint32_t token_count, const void *extra, uint32_t extra_bytes,
                 const struct kvmem_name *names)
{
    if (!parent)
        return kvi_error_set(KVMEM_E_INVALID, "parent: NULL");
    if (block_tokens < 1 || block_tokens > 4096)
        return kvi_error_set(KVMEM_E_INVALID, "block_tokens: %" PRIu32 " is outside 1..4096",
                             block_tokens);
    if (token_count > INT32_MAX)
        return kvi_error_set(KVMEM_E_INVALID, "token_count: %" PRIu32 " is outside 0..%" PRId32,
                             token_count, INT32_MAX);
    if (token_count >= block_tokens && !tokens)
        return kvi_error_set(KVMEM_E_INVALID, "tokens: NULL with token_count %" PRIu32,
                             token_count);
    if (token_count >= block_tokens && !names)
        return kvi_error_set(KVMEM_E_INVALID, "names: NULL, room for %" PRIu32 " is needed",
                             token_count / block_tokens);
    if (extra_bytes > KVI_HASH_EXTRA_BYTES_MAX || !extra != !extra_bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "extra_bytes: %" PRIu32 ", expected 1..%u, or 0 with extra NULL",
                             extra_bytes, KVI_HASH_EXTRA_BYTES_MAX);
    return 0;
}

int kvmem_name_blocks(const struct kvmem_name *parent, uint32_t block_tokens,
                      const uint32_t *tokens, uint32_t token_count, const void *extra,
                      uint32_t extra_bytes, struct kvmem_name *names)
{
    int rc = check(parent, block_tokens, tokens, token_count, extra, extra_bytes, names);

    if (rc)
        return rc;
    kvi_name_chain(parent, block_tokens, tokens, token_count / block_tokens, extra, extra_bytes,
                   names);
    return (int)(token_count / block_tokens);
}
