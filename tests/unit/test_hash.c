/* SPDX-License-Identifier: Apache-2.0
 *
 * Names against golden vectors, computed by Python's hashlib, which shares no code with nettle:
 *
 *   import hashlib, struct
 *   u = lambda *v: struct.pack("<%dI" % len(v), *v)
 *   sha = lambda b: hashlib.sha256(b).digest()
 *   def token(i): return (i * 2654435761 + 12345) % 2**32
 *   def root(**change):
 *       f = dict(fingerprint=bytes(range(32)), layout=1, block_tokens=16, shards=1, group=0,
 *                layers=32, heads=8, dim_k=128, dim_v=128, dtype_k=1, dtype_v=1, scale_mode=0,
 *                scale_dtype=0, window=0, adapter=b"", salt=b"")
 *       f.update(change)
 *       v = list(f.values())
 *       return sha(b"kvmemR01" + v[0] + u(*v[1:14]) +
 *                  u(1, len(v[14])) + v[14] + u(2, len(v[15])) + v[15])
 *   def names(parent, block_tokens, count, extra=b""):
 *       for b in range(count):
 *           t = [token(b * block_tokens + i) for i in range(block_tokens)]
 *           parent = sha(b"kvmemB01" + parent + u(block_tokens, len(extra)) + u(*t) + extra)
 *       return parent
 *
 * root_vectors[i].hex = root(the change that its name says).hex()
 * block_vectors[i].hex = names(root(), block_tokens, count, b"x" * extra_bytes).hex()
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "util/hash.h"

#define WANT(...)       cr_assert(__VA_ARGS__)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static const struct root_vector {
    const char *name;
    const char *hex;
} root_vectors[] = {
    {"as it is", "7ef487bc8690d24e616e4dbef65220ba0cc5c837153c2856fd4e84f1bea8766b"},
    {"fingerprint", "c2b9f84e2f060653868e6dea58f25f7c093ab90c0342a05a7cf6c0f10959924f"},
    {"layout", "83b92a0f26e59190d33772a8d135ebedc1a8725d8520527423f48ce2ff6f5e74"},
    {"block_tokens", "7d46f16d64e7070b54dac0df1fdfa14e019d4ae2c0f4c7baab573f3dafed468b"},
    {"layer_count", "4dde2858400f33e651a546d8272fc2c3faff56991c73c117ca579b582f359983"},
    {"kv_head_count", "383a054d9a1ef27074d36799d3451f6c10ef5f9f6c88d631ab4d0734567bff85"},
    {"head_dim_k", "793fa1740673733c6e97b76a8125648e661c6002ec07a377e2fcd0be1c29ca54"},
    {"head_dim_v", "8f0268ca7d4cbf1e78cf9e47d4f49c000c0aab801b303fc36dfe7a7fced29646"},
    {"dtype_k", "d48aec3391a72c4c8387647bbd68d96fceab65e74ab9903797617c5b1207bd44"},
    {"dtype_v", "3c89b5a53237e65724f9050d4d841c6001fb36b46e63daacb4685e72bd904d71"},
    {"scale_mode TENSOR", "f0111c208d61649add142e4e9969f1f60ae8062350a90ab13e8e72604be9cd50"},
    {"scale_mode HEAD", "5d719a26ca006c93f19103f8d042cba34c580b21feaa0c23370e2bea222ff82e"},
    {"scale_mode TOKEN_HEAD", "f9e22e26980d1f27a3eb6bb0f20674061199c753b29b60c8f2c1a0e9167ac0ae"},
    {"scale_dtype FP32", "86d2866e211acd17f680768b93c65242d5aa17485b6e86a918b0231d28eb256b"},
    {"latent", "d872697da38a1544ddb43d99d427dee0ad624dd044667c20f644d3fff9baeb55"},
    {"adapter", "79676692e6bcba745b0f9db5e7c1f636bbe7f48abc8301100eadb2d4211fa0ca"},
    {"salt", "ee4efa49fdfad2e05116a6753901c80593c2a81411deee31c0329c57950b24a3"},
    {"adapter and salt", "96e84c5ff5676ab52c82baf993c21362b89baa23e69a0cc128f5f733826494f8"},
    {"adapter, salt", "8ac4042ffda8351f79a3a80d5de075724ee42ecd2d320ee985ebef6de8563125"},
    {"long salt", "ff84e2a9128a1b9410915826e898430c69ff477fd4cb4bff3cf354f977e1aefe"},
    {"shard_count", "714cc444938c8559e4f6d2e0c7bb636c5b741f679dc07327da963294fbe0648c"},
    {"window_tokens", "11b59159479ab1356909de43a758ac65f82390cb9b339d738ec69542f62d1f4e"},
};

static const struct block_vector {
    uint32_t block_tokens;
    uint32_t count;
    uint32_t extra_bytes;
    const char *hex;
} block_vectors[] = {
    {1, 1, 0, "a02c72847e1e1c35a31afb2766ff5eabac2bf8de45f68d9374ca2209510dd5b7"},
    {1, 3, 0, "59ee6d76ee3849877462b2981d61440589e6394a07ba433683ec04906357fdd0"},
    {2, 1, 0, "e03406cbd7d70c7f964d7d2a732bcfb3c0a393d9a1564a35464dac9ba59eafd0"},
    {2, 3, 0, "39ecc7969311acfed86025e0055a720df70b59bf9d38aef4121b462290fa9b10"},
    {15, 1, 0, "86db321aae04f11bd25fdb27684ebab8be60f2582d625c402c37c5657adeb3a5"},
    {15, 3, 0, "c4fce92ce6e82c6e12ec7a3753e106eacc87cca56c560dd33083b44e746b0827"},
    {16, 1, 0, "552976f2062b4341d79984b2f6311359d098e80879136d4453c72557651c1325"},
    {16, 3, 0, "245cad63956e92d6872f11b0d0af26ee31591e89b095855aaf0ead242d395331"},
    {17, 1, 0, "86c0d75c20e7f2dcfba3b4003ffee529c210b0638ae09f138655e4e60800beab"},
    {17, 3, 0, "afac64f713a2aeb377d13104561563b73ee0b0cfc651ec468d04a6808296aaa1"},
    {32, 1, 0, "eeb4c63dd84754655122a3aaff9230c7670455465938fe5ca38d98844c190cd3"},
    {32, 3, 0, "536a083010254d28c00af69d28ce53c8998367f0a6e2601c0812da4e0ac2aa7b"},
    {64, 1, 0, "b085ff7103c374c094ef896f0dd76d9ae7d01ada95e9689c63e5d815697ea309"},
    {64, 3, 0, "959510be4840cb1830f3ff9db29b834b41c764238a43d57d3eb60eb217f54381"},
    {128, 1, 0, "1a76f30a09a4a7f6dfe3a92c980125107bbb7ea9eb79b8163e300ea172a552ac"},
    {128, 3, 0, "a561e65b90aa850f80715773524f1359854fc010c01f7c1627320edb78cc6227"},
    {512, 1, 0, "15f3d7ddd6a11d367eb8cc6dcfaefc975be49ad8123312270a63e645fb9c05fd"},
    {512, 3, 0, "e4558892c4de2b254b0ea2e60821c6801a86eea2f271335a78b56b723f87cd2d"},
    {4096, 1, 0, "51ac4048dd218e2c480071edfeeebe5d98f813e69d9933a294f20bf608f06ce3"},
    {4096, 3, 0, "7ab2d64f849b091c28ee13a00f9607c3200b6aac806f50b7a7d268561452425d"},
    {16, 1, 1, "e00b4da98a34b72010052d7c3d5fd2c0d900333cd3b10056cdc66d4681d48345"},
    {16, 2, 32, "716cfb247955905cfdcb644ddbfadf8d13dff7ffe7d68098b0812a199960b25c"},
    {16, 1, 4096, "e025dbefa6569b6ad204bcef662fe592c6e701857fbc27ac698a3989b7d7e184"},
    {16, 300, 0, "bbd0d13336d9732752879a12d4771d21ad113fbfbb82b315fb1aaaaef1734fca"},
    {1, 1, 4, "1d1cf8d9a58de9fbed8f80cc75618948352439fd825dc6a7be344d096c4a8727"},
    {2, 1, 4, "055d7c8194343f1d7ce87cdb7d51c23c2628ad026c4aec17fe03dcf7d5c35b52"},
};

static char long_salt[4096];
static uint32_t tokens[3 * 4096];

static uint32_t token(uint32_t i)
{
    return i * 2654435761u + 12345u;
}

static void to_hex(const struct kvmem_name *name, char hex[65])
{
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", name->bytes[i]);
}

static struct kvmem_space_options base_options(void)
{
    struct kvmem_space_options options = {
        .size = sizeof(options),
        .name = "golden",
        .block_tokens = 16,
        .group_count = 1,
        .shard_count = 1,
        .groups = {{.layer_count = 32,
                    .kv_head_count = 8,
                    .head_dim_k = 128,
                    .head_dim_v = 128,
                    .dtype_k = KVMEM_DTYPE_BF16,
                    .dtype_v = KVMEM_DTYPE_BF16}},
    };

    for (int i = 0; i < 32; i++)
        options.fingerprint[i] = (uint8_t)i;
    return options;
}

/* Make the change that vector `i` is named after. */
static void change(size_t i, struct kvmem_space_options *o, struct kvmem_root_options *r)
{
    struct kvmem_group_options *g = &o->groups[0];

    switch (i) {
    case 1: memset(o->fingerprint, 0, 31), o->fingerprint[31] = 1; break;
    case 2: o->layout = KVMEM_LAYOUT_PAGE_TOKEN_HEAD; break;
    case 3: o->block_tokens = 32; break;
    case 4: g->layer_count = 33; break;
    case 5: g->kv_head_count = 4; break;
    case 6: g->head_dim_k = 192; break;
    case 7: g->head_dim_v = 64; break;
    case 8: g->dtype_k = KVMEM_DTYPE_FP16; break;
    case 9: g->dtype_v = KVMEM_DTYPE_FP8_E4M3; break;
    case 10: g->scale_mode = KVMEM_SCALE_TENSOR; break;
    case 11: g->scale_mode = KVMEM_SCALE_HEAD, g->scale_dtype = KVMEM_DTYPE_FP16; break;
    case 12: g->scale_mode = KVMEM_SCALE_TOKEN_HEAD, g->scale_dtype = KVMEM_DTYPE_FP16; break;
    case 13: g->scale_mode = KVMEM_SCALE_TOKEN_HEAD, g->scale_dtype = KVMEM_DTYPE_FP32; break;
    case 14: g->head_dim_v = 0, g->dtype_v = KVMEM_DTYPE_NONE; break;
    case 15: r->adapter = "lora", r->adapter_bytes = 4; break;
    case 16: r->salt = "lora", r->salt_bytes = 4; break;
    case 17: r->adapter = "lo", r->adapter_bytes = 2, r->salt = "ra", r->salt_bytes = 2; break;
    case 18: r->adapter = "l", r->adapter_bytes = 1, r->salt = "ora", r->salt_bytes = 3; break;
    case 19: r->salt = long_salt, r->salt_bytes = 4096; break;
    case 20: o->shard_count = 2; break;
    case 21: g->window_tokens = 4096; break;
    default: break;
    }
}

Test(hash, roots_are_the_golden_ones_and_all_different)
{
    char hex[COUNT_OF(root_vectors)][65];
    unsigned cases = 0;

    memset(long_salt, 's', sizeof(long_salt));
    for (size_t i = 0; i < COUNT_OF(root_vectors); i++, cases++) {
        struct kvmem_space_options options = base_options();
        struct kvmem_root_options root_options = {.size = sizeof(root_options)};
        struct kvmem_name name;

        change(i, &options, &root_options);
        WANT(kvi_name_root(&options, &root_options, &name) == 0);
        to_hex(&name, hex[i]);
        WANT(strcmp(hex[i], root_vectors[i].hex) == 0, "%s: %s", root_vectors[i].name, hex[i]);
        for (size_t k = 0; k < i; k++)
            WANT(strcmp(hex[i], hex[k]) != 0);
    }
    WANT(cases >= 22);
}

Test(hash, a_root_depends_on_nothing_else)
{
    struct kvmem_space_options options = base_options();
    struct kvmem_name name;
    char hex[65];

    options.layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN; /* what 0 stands for */
    options.name = "another";
    options.domain = "another";
    options.quota_bytes = 1;
    options.low_water_blocks = 2;
    options.refill_blocks = 3;
    options.seq_limit = 4;
    options.shard_index = 5;
    WANT(kvi_name_root(&options, NULL, &name) == 0);
    to_hex(&name, hex);
    WANT(strcmp(hex, root_vectors[0].hex) == 0);
}

Test(hash, blocks_are_the_golden_ones)
{
    struct kvmem_space_options options = base_options();
    static struct kvmem_name names[4096];
    static char extra[4096];
    struct kvmem_name root;
    char hex[65];
    unsigned cases = 0;

    memset(extra, 'x', sizeof(extra));
    for (uint32_t i = 0; i < COUNT_OF(tokens); i++)
        tokens[i] = token(i);
    WANT(kvi_name_root(&options, NULL, &root) == 0);
    for (size_t i = 0; i < COUNT_OF(block_vectors); i++, cases++) {
        const struct block_vector *v = &block_vectors[i];
        uint32_t rest = v->block_tokens - 1; /* tokens of a block that is not full */
        int count;

        count = kvmem_name_blocks(&root, v->block_tokens, tokens,
                                  v->count * v->block_tokens + (v->count < 3 ? rest : 0),
                                  v->extra_bytes ? extra : NULL, v->extra_bytes, names);
        WANT(count == (int)v->count);
        to_hex(&names[v->count - 1], hex);
        WANT(strcmp(hex, v->hex) == 0, "%u x %u, extra %u: %s", v->count, v->block_tokens,
             v->extra_bytes, hex);
    }
    WANT(cases >= 26);
}

/* A chain may be computed in pieces, and in place of its parent. */
Test(hash, a_chain_goes_on_where_it_stopped)
{
    struct kvmem_name whole[8];
    struct kvmem_name pieces[9] = {{{7}}};
    struct kvmem_name same = {{7}};

    for (uint32_t i = 0; i < COUNT_OF(tokens); i++)
        tokens[i] = token(i);
    WANT(kvmem_name_blocks(&pieces[0], 16, tokens, 128, NULL, 0, whole) == 8);
    for (int i = 0; i < 8; i++) {
        WANT(kvmem_name_blocks(&pieces[i], 16, tokens + 16 * i, 31, NULL, 0, &pieces[i + 1]) == 1);
        WANT(kvmem_name_blocks(&same, 16, tokens + 16 * i, 16, NULL, 0, &same) == 1);
        WANT(memcmp(&pieces[i + 1], &whole[i], 32) == 0);
        WANT(memcmp(&same, &whole[i], 32) == 0);
    }
}

/* Inputs that would be equal if a length were missing. */
Test(hash, nothing_runs_into_its_neighbour)
{
    static const uint32_t t[4] = {1, 2, 3, 4};
    struct kvmem_name parent = {{0}};
    struct kvmem_name name[3];

    WANT(kvmem_name_blocks(&parent, 2, t, 2, NULL, 0, &name[0]) == 1);
    WANT(kvmem_name_blocks(&parent, 1, t, 1, &t[1], 4, &name[1]) == 1);
    WANT(kvmem_name_blocks(&parent, 1, t, 1, NULL, 0, &name[2]) == 1);
    WANT(memcmp(&name[0], &name[1], 32) != 0);
    WANT(memcmp(&name[0], &name[2], 32) != 0);
    WANT(memcmp(&name[1], &name[2], 32) != 0);
}

static void want_invalid(int rc, const char *name)
{
    WANT(rc == KVMEM_E_INVALID, "%s", name);
    WANT(strncmp(kvmem_error_detail()->text, name, strlen(name)) == 0, "%s",
         kvmem_error_detail()->text);
}

Test(hash, arguments_at_their_limits)
{
    struct kvmem_name parent = {{0}};
    struct kvmem_name before;
    struct kvmem_name name;

    memset(&before, 0x5a, sizeof(before));
    name = before;
    want_invalid(kvmem_name_blocks(NULL, 16, tokens, 16, NULL, 0, &name), "parent");
    want_invalid(kvmem_name_blocks(&parent, 0, tokens, 16, NULL, 0, &name), "block_tokens");
    want_invalid(kvmem_name_blocks(&parent, 4097, tokens, 16, NULL, 0, &name), "block_tokens");
    want_invalid(kvmem_name_blocks(&parent, 16, tokens, 1u << 31, NULL, 0, &name), "token_count");
    want_invalid(kvmem_name_blocks(&parent, 16, NULL, 16, NULL, 0, &name), "tokens");
    want_invalid(kvmem_name_blocks(&parent, 16, tokens, 16, NULL, 0, NULL), "names");
    want_invalid(kvmem_name_blocks(&parent, 16, tokens, 16, NULL, 1, &name), "extra_bytes");
    want_invalid(kvmem_name_blocks(&parent, 16, tokens, 16, tokens, 0, &name), "extra_bytes");
    want_invalid(kvmem_name_blocks(&parent, 16, tokens, 16, tokens, 4097, &name), "extra_bytes");
    WANT(memcmp(&name, &before, sizeof(name)) == 0);
    WANT(kvmem_name_blocks(&parent, 16, NULL, 0, NULL, 0, NULL) == 0);
    WANT(kvmem_name_blocks(&parent, 16, NULL, 15, NULL, 0, NULL) == 0);
    WANT(kvmem_name_blocks(&parent, 4096, tokens, 4096, tokens, 4096, &name) == 1);
}

Test(hash, root_options_at_their_limits)
{
    struct kvmem_space_options options = base_options();
    struct kvmem_root_options good = {.size = sizeof(good)};
    struct kvmem_root_options bad = good;
    struct kvmem_name name;

    bad.size = 0;
    want_invalid(kvi_name_root(&options, &bad, &name), "size");
    bad = good;
    bad.group = 1;
    want_invalid(kvi_name_root(&options, &bad, &name), "group");
    bad = good;
    bad.adapter_bytes = 1;
    want_invalid(kvi_name_root(&options, &bad, &name), "adapter");
    bad.adapter = long_salt;
    bad.adapter_bytes = 4097;
    want_invalid(kvi_name_root(&options, &bad, &name), "adapter_bytes");
    bad = good;
    bad.salt_bytes = UINT32_MAX;
    want_invalid(kvi_name_root(&options, &bad, &name), "salt_bytes");
    good.adapter = good.salt = long_salt;
    good.adapter_bytes = good.salt_bytes = 4096;
    WANT(kvi_name_root(&options, &good, &name) == 0);
}
