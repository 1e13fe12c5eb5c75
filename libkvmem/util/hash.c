/* SPDX-License-Identifier: Apache-2.0
 *
 * Names of entries: what exactly is hashed. All numbers are little-endian; a change of anything
 * here is a change of the tags, since names outlive processes.
 *
 *   name i = SHA-256( "kvmemB01"                       8 bytes
 *                     name i−1, or the root           32
 *                     u32 token count                  4
 *                     u32 extra bytes                  4
 *                     tokens, u32 each                 4 × token count
 *                     extra                            extra bytes )
 *   which is 112 bytes for 16 tokens: two runs of the compression function.
 *
 *   root   = SHA-256( "kvmemR01"
 *                     fingerprint                     32
 *                     u32 layout, block_tokens, shard_count, group,
 *                         layer_count, kv_head_count, head_dim_k, head_dim_v,
 *                         dtype_k, dtype_v, scale_mode, scale_dtype, window_tokens
 *                     u32 1, u32 adapter bytes, adapter
 *                     u32 2, u32 salt bytes, salt )
 *
 * Every part has a fixed length or is preceded by its length, and the two inputs begin with
 * different tags: no two different sets of values give the same bytes. Layout 0 is written as
 * the PAGE_HEAD_TOKEN that it stands for. Not in the root, because they do not change a block's
 * bytes or are part of the directory's key: the space's name and domain, quota, tuning, and the
 * shard's index (an entry spans all shards).
 *
 * SHA-256 is nettle's, which picks the processor's SHA instructions when it is loaded. Tokens are
 * hashed where they lie, which is why the host must be little-endian.
 */
#include "util/hash.h"

#include <inttypes.h>
#include <nettle/sha2.h>
#include <string.h>

#include "util/error.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tokens are hashed as they lie");
_Static_assert(sizeof(struct kvmem_name) == SHA256_DIGEST_SIZE, "a name is a digest");

/* What precedes the tokens of a block. */
struct block_head {
    char tag[8];
    struct kvmem_name parent;
    uint32_t token_count;
    uint32_t extra_bytes;
};
_Static_assert(sizeof(struct block_head) == 48, "no padding");

/* The fixed part of a root. */
struct root_head {
    char tag[8];
    uint8_t fingerprint[32];
    uint32_t layout;
    uint32_t block_tokens;
    uint32_t shard_count;
    uint32_t group;
    uint32_t layer_count;
    uint32_t kv_head_count;
    uint32_t head_dim_k;
    uint32_t head_dim_v;
    uint32_t dtype_k;
    uint32_t dtype_v;
    uint32_t scale_mode;
    uint32_t scale_dtype;
    uint32_t window_tokens;
};
_Static_assert(sizeof(struct root_head) == 40 + 13 * 4, "no padding");

enum root_part {
    ROOT_PART_ADAPTER = 1,
    ROOT_PART_SALT = 2,
};

static void add_part(struct sha256_ctx *sha, enum root_part part, const void *bytes, uint32_t count)
{
    const uint32_t head[2] = {part, count};

    sha256_update(sha, sizeof(head), (const uint8_t *)head);
    if (count)
        sha256_update(sha, count, bytes);
}

static int check_part(const char *name, const void *bytes, uint32_t count)
{
    if (count > KVI_HASH_EXTRA_BYTES_MAX)
        return kvi_error_set(KVMEM_E_INVALID, "%s_bytes: %" PRIu32 " is outside 0..%u", name, count,
                             KVI_HASH_EXTRA_BYTES_MAX);
    if (count && !bytes)
        return kvi_error_set(KVMEM_E_INVALID, "%s: NULL with %s_bytes %" PRIu32, name, name, count);
    return 0;
}

static int check_root_options(const struct kvmem_space_options *options,
                              const struct kvmem_root_options *root)
{
    int rc;

    if (root->size != sizeof(*root))
        return kvi_error_set(KVMEM_E_INVALID, "size: %" PRIu32 ", expected %zu", root->size,
                             sizeof(*root));
    if (root->group >= options->group_count)
        return kvi_error_set(KVMEM_E_INVALID, "group: %" PRIu32 " is outside 0..%" PRIu32,
                             root->group, options->group_count - 1);
    rc = check_part("adapter", root->adapter, root->adapter_bytes);
    return rc ? rc : check_part("salt", root->salt, root->salt_bytes);
}

int kvi_name_root(const struct kvmem_space_options *options,
                  const struct kvmem_root_options *root_options, struct kvmem_name *root)
{
    static const struct kvmem_root_options none = {.size = sizeof(none)};
    const struct kvmem_group_options *group;
    struct sha256_ctx sha;
    int rc;

    if (!root_options)
        root_options = &none;
    rc = check_root_options(options, root_options);
    if (rc)
        return rc;
    group = &options->groups[root_options->group];
    struct root_head head = {
        .tag = {'k', 'v', 'm', 'e', 'm', 'R', '0', '1'},
        .layout = options->layout ? options->layout : KVMEM_LAYOUT_PAGE_HEAD_TOKEN,
        .block_tokens = options->block_tokens,
        .shard_count = options->shard_count,
        .group = root_options->group,
        .layer_count = group->layer_count,
        .kv_head_count = group->kv_head_count,
        .head_dim_k = group->head_dim_k,
        .head_dim_v = group->head_dim_v,
        .dtype_k = group->dtype_k,
        .dtype_v = group->dtype_v,
        .scale_mode = group->scale_mode,
        .scale_dtype = group->scale_dtype,
        .window_tokens = group->window_tokens,
    };
    memcpy(head.fingerprint, options->fingerprint, sizeof(head.fingerprint));
    sha256_init(&sha);
    sha256_update(&sha, sizeof(head), (const uint8_t *)&head);
    add_part(&sha, ROOT_PART_ADAPTER, root_options->adapter, root_options->adapter_bytes);
    add_part(&sha, ROOT_PART_SALT, root_options->salt, root_options->salt_bytes);
    sha256_digest(&sha, sizeof(root->bytes), root->bytes);
    return 0;
}

void kvi_name_chain(const struct kvmem_name *parent, uint32_t block_tokens, const uint32_t *tokens,
                    uint32_t count, const void *extra, uint32_t extra_bytes,
                    struct kvmem_name *names)
{
    struct block_head head = {.tag = {'k', 'v', 'm', 'e', 'm', 'B', '0', '1'},
                              .parent = *parent,
                              .token_count = block_tokens,
                              .extra_bytes = extra_bytes};
    struct sha256_ctx sha;

    sha256_init(&sha); /* a digest leaves it as new */
    for (uint32_t i = 0; i < count; i++, tokens += block_tokens) {
        sha256_update(&sha, sizeof(head), (const uint8_t *)&head);
        sha256_update(&sha, (size_t)block_tokens * sizeof(*tokens), (const uint8_t *)tokens);
        if (extra_bytes)
            sha256_update(&sha, extra_bytes, extra);
        sha256_digest(&sha, sizeof(head.parent.bytes), head.parent.bytes);
        names[i] = head.parent;
    }
}
