/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the arrays of a scene lie: strides of each layout, shuffled tables, device memory.
 */
#include <stdlib.h>
#include <string.h>

#include "support/attention_scene.h"
#include "support/random.h"
#include "support/spawn.h"

#define SPARE_BLOCKS 3u /* that no table names */

void *kvt_attention_need(uint64_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);

    if (!memory)
        kvt_die("attention: no %llu bytes of host memory", (unsigned long long)bytes);
    return memory;
}

uint32_t kvt_attention_dtype_bytes(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32 ? 4 : dtype >= KVMEM_DTYPE_FP8_E4M3 ? 1 : 2;
}

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* ---- lengths, rows, tables ---- */

static struct kvt_attention_array array_of(uint64_t bytes, int byte)
{
    struct kvt_attention_array array = {
        .host = kvt_attention_need(bytes), .bytes = bytes, .device_bytes = bytes};

    memset(array.host, byte, bytes);
    return array;
}

static void pick_lengths(struct kvt_attention_scene *s, uint64_t *seed)
{
    const struct kvt_attention_case *c = &s->c;
    struct kva_batch *b = &s->host.batch;
    int32_t *lengths, *offsets;

    s->lengths = array_of(4ull * c->seq_count, 0);
    s->offsets = array_of(4ull * c->seq_count + 4, 0);
    lengths = s->lengths.host;
    offsets = s->offsets.host;
    b->q_max = 1;
    for (uint32_t n = 0; n < c->seq_count; n++) {
        uint32_t rows = c->rows ? c->rows[n] : c->row_count;
        uint32_t length = c->lengths ? c->lengths[n] : c->length;

        if (c->is_ragged && !c->rows && n > 0)
            rows = (uint32_t)(kvt_random(seed) % (rows + 1));
        if (c->is_ragged && !c->lengths && length)
            length = 1 + (uint32_t)(kvt_random(seed) % length);
        lengths[n] = (int32_t)length;
        offsets[n + 1] = offsets[n] + (int32_t)rows;
        b->q_max = rows > b->q_max ? rows : b->q_max;
        b->kv_max = length > b->kv_max ? length : b->kv_max;
    }
    b->seq_count = c->seq_count;
    b->q_total = (uint32_t)offsets[c->seq_count] + (c->has_padded_rows ? 3 : 0);
    b->table_stride = (b->kv_max + c->block_tokens - 1) / c->block_tokens + 2;
    b->kv_lengths = lengths;
    b->q_offsets = c->has_offsets || c->is_ragged || c->rows ? offsets : NULL;
}

static uint32_t blocks_of(const struct kvt_attention_scene *s, uint32_t n)
{
    return ((uint32_t)s->host.batch.kv_lengths[n] + s->c.block_tokens - 1) / s->c.block_tokens;
}

/* Where in 0 .. count − 1 the i-th block lies. */
static int32_t *shuffled(uint32_t count, bool is_identity, uint64_t *seed)
{
    int32_t *order = kvt_attention_need(4ull * count);

    for (uint32_t i = 0; i < count; i++)
        order[i] = (int32_t)i;
    for (uint32_t i = count; i > 1 && !is_identity; i--) {
        uint32_t j = (uint32_t)(kvt_random(seed) % i);
        int32_t other = order[j];

        order[j] = order[i - 1];
        order[i - 1] = other;
    }
    return order;
}

static void fill_tables(struct kvt_attention_scene *s, uint64_t *seed)
{
    static const int32_t garbage[] = {-1, INT32_MAX, INT32_MIN, 2147480000, -77};
    struct kva_batch *b = &s->host.batch;
    uint64_t entries = (uint64_t)b->seq_count * b->table_stride;
    uint32_t place = 0;
    int32_t *order, *tables;

    s->tables = array_of(4 * entries, 0);
    b->tables = tables = s->tables.host;
    s->block_count = SPARE_BLOCKS;
    for (uint32_t n = 0; n < b->seq_count; n++)
        s->block_count += blocks_of(s, n);
    order = shuffled(s->block_count, s->c.layout == KVT_LAYOUT_CONTIGUOUS, seed);
    for (uint32_t n = 0; n < b->seq_count; n++) {
        int32_t *table = tables + (uint64_t)n * b->table_stride;
        uint32_t shared = 0;

        if (s->c.has_shared_blocks && n > 0) {
            shared = (uint32_t)(b->kv_lengths[0] < b->kv_lengths[n] ? b->kv_lengths[0]
                                                                    : b->kv_lengths[n]);
            shared = shared / 2 / s->c.block_tokens;
        }
        for (uint32_t i = 0; i < b->table_stride; i++)
            table[i] = i < shared            ? tables[i]
                       : i < blocks_of(s, n) ? order[place++]
                                             : garbage[kvt_random(seed) % 5];
    }
    free(order);
}

/* ---- strides ---- */

/* Strides in bytes, of a pool of `count` blocks. */
struct strides {
    uint64_t block, layer, k_head, k_token, v_head, v_token;
    uint64_t v;                /* from k; in the second pool when there are two */
    uint64_t k_scale, v_scale; /* from k, when scales lie inside */
    uint64_t bytes;            /* of a pool */
};

static uint64_t scale_count(const struct kvt_attention_case *c)
{
    return (uint64_t)c->kv_heads * (c->scale_mode == KVMEM_SCALE_TOKEN_HEAD ? c->block_tokens : 1);
}

static void page_strides(const struct kvt_attention_case *c, uint64_t k, uint64_t v,
                         struct strides *out)
{
    uint64_t room = scale_count(c) * kvt_attention_dtype_bytes(c->scale_dtype);
    uint64_t heads = c->kv_heads;
    uint64_t tokens = c->block_tokens;

    out->k_token = k;
    out->k_head = tokens * k;
    out->v_token = v;
    out->v_head = tokens * v;
    if (c->layout == KVT_LAYOUT_PAGE_TOKEN_HEAD || c->layout == KVT_LAYOUT_SPLIT) {
        out->k_head = k;
        out->k_token = heads * k;
        out->v_head = v;
        out->v_token = heads * v;
    }
    out->v = heads * tokens * k;
    out->layer = heads * tokens * (k + v);
    if (c->has_scales_inside) {
        out->k_scale = round_up(out->layer, 4);
        out->v_scale = out->k_scale + room;
        out->layer = round_up(out->v_scale + room, 16);
    }
    out->block = out->layer * c->layers;
}

static struct strides strides_of(const struct kvt_attention_case *c, uint32_t count,
                                 uint64_t block_least)
{
    uint64_t bytes = kvt_attention_dtype_bytes(c->cache_dtype);
    uint64_t k = c->dim_k * bytes;
    uint64_t v = c->is_latent ? 0 : c->dim_v * bytes;
    struct strides s = {0};
    bool is_by_layer = c->layout == KVT_LAYOUT_PER_LAYER || c->layout == KVT_LAYOUT_SPLIT;

    page_strides(c, k, v, &s);
    if (c->layout == KVT_LAYOUT_TOKEN_MAJOR || c->layout == KVT_LAYOUT_CONTIGUOUS) {
        s.layer = c->kv_heads * (k + v);
        s.k_token = s.v_token = s.layer * c->layers;
        s.k_head = k;
        s.v_head = v;
        s.v = c->kv_heads * k;
    }
    if (is_by_layer) /* the larger one of K and V in SPLIT: they have one stride */
        s.block = c->layout == KVT_LAYOUT_PER_LAYER
                      ? s.layer
                      : c->kv_heads * c->block_tokens * (k > v ? k : v);
    s.block = round_up(s.block > block_least ? s.block : block_least, bytes);
    if (is_by_layer)
        s.layer = s.block * count;
    s.bytes = s.block * count * (is_by_layer ? c->layers : 1);
    if (c->is_latent) {
        s.v_head = s.k_head;
        s.v_token = s.k_token;
        s.v = 0;
    } else if (c->layout == KVT_LAYOUT_SPLIT) {
        s.v = 0;
    }
    return s;
}

/* ---- descriptions ---- */

static void describe_scales(const struct kvt_attention_case *c, const struct strides *s,
                            uint64_t block, void *pool, void *scales, struct kva_cache *out)
{
    uint64_t bytes = kvt_attention_dtype_bytes(c->scale_dtype);
    uint64_t count = scale_count(c);

    if (c->cache_dtype < KVMEM_DTYPE_FP8_E4M3)
        return;
    out->scale_dtype = c->scale_dtype;
    out->k_scale = scales;
    if (c->scale_mode == KVMEM_SCALE_TENSOR) {
        out->v_scale = (char *)scales + c->layers * bytes;
        out->scale_layer_stride = 1;
        return;
    }
    out->scale_head_stride = c->scale_mode == KVMEM_SCALE_TOKEN_HEAD ? c->block_tokens : 1;
    out->scale_token_stride = c->scale_mode == KVMEM_SCALE_TOKEN_HEAD;
    if (c->has_scales_inside) {
        out->k_scale = (char *)pool + s->k_scale;
        out->v_scale = (char *)pool + s->v_scale;
        out->scale_block_stride = s->block / bytes;
        out->scale_layer_stride = s->layer / bytes;
        return;
    }
    out->v_scale = (char *)scales + count * bytes;
    out->scale_layer_stride = 2 * count;
    out->scale_block_stride = block / bytes;
}

static void describe_cache(const struct kvt_attention_scene *scene, const struct strides *s,
                           char *k, char *v, struct kva_cache *out)
{
    const struct kvt_attention_case *c = &scene->c;
    uint64_t bytes = kvt_attention_dtype_bytes(c->cache_dtype);

    *out = (struct kva_cache){.dtype = c->cache_dtype,
                              .block_tokens = c->block_tokens,
                              .block_count = scene->block_count,
                              .layer_count = c->layers,
                              .kv_head_count = c->kv_heads,
                              .head_dim_k = c->dim_k,
                              .head_dim_v = c->dim_v,
                              .k = k,
                              .v = v + s->v,
                              .block_stride = s->block / bytes,
                              .layer_stride = s->layer / bytes,
                              .k_head_stride = s->k_head / bytes,
                              .k_token_stride = s->k_token / bytes,
                              .v_head_stride = s->v_head / bytes,
                              .v_token_stride = s->v_token / bytes};
}

static void describe_rest(const struct kvt_attention_case *c, struct kva_attention *out)
{
    uint32_t pad = c->has_padded_rows ? 8 : 0;

    out->size = sizeof(*out);
    out->device = KVA_DEVICE_CPU;
    out->flags = c->flags;
    out->q_head_count = c->heads;
    out->dtype = c->dtype;
    out->window_tokens = c->window_tokens;
    out->softmax_scale = c->softmax_scale;
    out->soft_cap = c->soft_cap;
    out->q_head_stride = c->dim_k + pad;
    out->q_token_stride = c->heads * out->q_head_stride + 2 * pad;
    out->out_head_stride = c->dim_v + 2 * pad;
    out->out_token_stride = c->heads * out->out_head_stride + pad;
    out->threads = c->threads;
}

static uint64_t scale_block_bytes(const struct kvt_attention_case *c)
{
    return 2 * scale_count(c) * c->layers * kvt_attention_dtype_bytes(c->scale_dtype);
}

static void lay_out_pool(struct kvt_attention_scene *scene)
{
    const struct kvt_attention_case *c = &scene->c;
    struct strides s = strides_of(c, scene->block_count, 0);
    int poison = c->cache_dtype == KVMEM_DTYPE_INT8 ? 0x7f : 0xff;

    scene->pool_count = c->layout == KVT_LAYOUT_SPLIT && !c->is_latent ? 2 : 1;
    for (uint32_t i = 0; i < scene->pool_count; i++)
        scene->pool[i] = array_of(s.bytes, poison);
    scene->scales = array_of(scale_block_bytes(c) * scene->block_count, 0xff);
    describe_cache(scene, &s, scene->pool[0].host, scene->pool[scene->pool_count - 1].host,
                   &scene->host.cache);
    describe_scales(c, &s, scale_block_bytes(c), scene->pool[0].host, scene->scales.host,
                    &scene->host.cache);
}

void kvt_attention_lay_out(struct kvt_attention_scene *scene)
{
    const struct kvt_attention_case *c = &scene->c;
    struct kva_attention *what = &scene->host;
    uint64_t bytes = kvt_attention_dtype_bytes(c->dtype);
    uint64_t seed = c->seed ^ UINT64_C(0x6c61796f7574);
    uint64_t rows;

    describe_rest(c, what);
    pick_lengths(scene, &seed);
    fill_tables(scene, &seed);
    lay_out_pool(scene);
    rows = what->batch.q_total;
    scene->q = array_of(rows * what->q_token_stride * bytes, 0xff);
    scene->out = array_of(rows * what->out_token_stride * bytes + 2 * KVT_ATTENTION_GUARD, 0xff);
    scene->lse = array_of(rows * c->heads * 4 + 2 * KVT_ATTENTION_GUARD, 0xff);
    scene->sinks = array_of(4ull * c->heads, 0);
    scene->slopes = array_of(4ull * c->heads, 0);
    scene->tree = array_of(8 * rows, 0xff);
    what->sinks = c->has_sinks ? scene->sinks.host : NULL;
    what->alibi_slopes = c->has_slopes ? scene->slopes.host : NULL;
    what->tree_mask = c->has_tree ? scene->tree.host : NULL;
}

/* ---- the device ---- */

static bool send(struct kvt_attention_scene *s, struct kvt_attention_array *array)
{
    array->device = s->memory->alloc(array->device_bytes ? array->device_bytes : 16);
    if (!array->device)
        return false;
    if (array->bytes == array->device_bytes && array->bytes)
        s->memory->put(array->device, array->host, array->bytes);
    return true;
}

/* Blocks of a pool one by one, where the device has them further apart. */
static void send_blocks(const struct kvt_attention_scene *s, struct kvt_attention_array *array,
                        const struct strides *host, const struct strides *device)
{
    bool is_by_layer = host->bytes != host->block * s->block_count;

    for (uint32_t l = 0; l < (is_by_layer ? s->c.layers : 1); l++)
        for (uint32_t b = 0; b < s->block_count; b++)
            s->memory->put((char *)array->device + l * device->layer * is_by_layer +
                               (uint64_t)b * s->c.spread * device->block,
                           (char *)array->host + l * host->layer * is_by_layer +
                               (uint64_t)b * host->block,
                           host->block);
}

static bool send_pools(struct kvt_attention_scene *s)
{
    const struct kvt_attention_case *c = &s->c;
    struct strides host = strides_of(c, s->block_count, 0);
    struct strides device = strides_of(c, s->block_count * c->spread, c->block_stride_bytes);
    uint64_t scale_bytes = scale_block_bytes(c);

    for (uint32_t i = 0; i < s->pool_count; i++) {
        s->pool[i].device_bytes = device.bytes;
        if (!send(s, &s->pool[i]))
            return false;
        if (device.bytes != host.bytes)
            send_blocks(s, &s->pool[i], &host, &device);
    }
    s->scales.device_bytes = s->scales.bytes * (c->scale_mode > KVMEM_SCALE_TENSOR ? c->spread : 1);
    if (!send(s, &s->scales))
        return false;
    for (uint32_t b = 0; b < s->block_count && s->scales.bytes != s->scales.device_bytes; b++)
        s->memory->put((char *)s->scales.device + b * c->spread * scale_bytes,
                       (char *)s->scales.host + b * scale_bytes, scale_bytes);
    describe_cache(s, &device, s->pool[0].device, s->pool[s->pool_count - 1].device,
                   &s->device.cache);
    describe_scales(c, &device, scale_bytes, s->pool[0].device, s->scales.device, &s->device.cache);
    s->device.cache.block_count = s->block_count * c->spread;
    return true;
}

/* Tables name blocks of the device's pool. */
static bool send_tables(struct kvt_attention_scene *s)
{
    const struct kva_batch *b = &s->host.batch;
    int32_t *spread = kvt_attention_need(s->tables.bytes);

    if (!send(s, &s->tables)) {
        free(spread);
        return false;
    }
    memcpy(spread, s->tables.host, s->tables.bytes);
    for (uint32_t n = 0; n < b->seq_count; n++)
        for (uint32_t i = 0; i < blocks_of(s, n); i++)
            spread[(uint64_t)n * b->table_stride + i] *= (int32_t)s->c.spread;
    s->memory->put(s->tables.device, spread, s->tables.bytes);
    free(spread);
    return true;
}

bool kvt_attention_send(struct kvt_attention_scene *s)
{
    struct kvt_attention_array *arrays[] = {&s->lengths, &s->offsets, &s->sinks, &s->slopes,
                                            &s->tree,    &s->q,       &s->out,   &s->lse};

    s->device = s->host;
    s->device.device = s->memory->device;
    if (!send_pools(s) || !send_tables(s))
        return false;
    for (uint32_t i = 0; i < sizeof(arrays) / sizeof(*arrays); i++)
        if (!send(s, arrays[i]))
            return false;
    s->device.batch.tables = s->tables.device;
    s->device.batch.kv_lengths = s->lengths.device;
    s->device.batch.q_offsets = s->host.batch.q_offsets ? s->offsets.device : NULL;
    s->device.sinks = s->c.has_sinks ? s->sinks.device : NULL;
    s->device.alibi_slopes = s->c.has_slopes ? s->slopes.device : NULL;
    s->device.tree_mask = s->c.has_tree ? s->tree.device : NULL;
    return true;
}
