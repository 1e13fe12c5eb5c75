/* SPDX-License-Identifier: Apache-2.0 */
#include "support/attention_write.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/reference.h"
#include "support/random.h"

#define BLOCKS 5u
#define LAYERS 3u

static const char *const dtype_names[] = {"none", "bf16", "fp16", "fp32", "e4m3", "int8"};

static uint32_t bytes_of(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32 ? 4 : dtype <= KVMEM_DTYPE_FP16 ? 2 : 1;
}

static uint32_t below(uint64_t *random, uint32_t limit)
{
    return (uint32_t)(kvt_random(random) % limit);
}

/* ---- making a case ---- */

static double random_value(uint64_t *random)
{
    double value = ldexp((double)(int64_t)kvt_random(random), -63);

    switch (below(random, 64)) {
    case 0: return 0;
    case 1: return -0.0;
    case 2: return below(random, 8) == 0 ? (double)NAN : 1;
    case 3: return below(random, 16) == 0 ? (double)INFINITY : -448;
    case 4: return ldexp(value, (int)below(random, 60) - 30);
    case 5: return ldexp(1 + 2 * (double)below(random, 16), -(int)below(random, 30));
    default: return ldexp(value, 2 - (int)below(random, 5));
    }
}

static uint8_t *fill_values(uint64_t *random, uint32_t dtype, uint64_t count)
{
    uint8_t *array = calloc(count, bytes_of(dtype));

    for (uint64_t i = 0; i < count; i++)
        kva_reference_store(dtype, array, i, random_value(random));
    return array;
}

/* Strides of `count` axes of these sizes, in random order, rows of `row` elements innermost.
 * Returns the elements in all. */
static uint64_t random_strides(uint64_t *random, const uint32_t *sizes, uint32_t count,
                               uint64_t row, uint64_t *strides)
{
    uint32_t left = (1u << count) - 1;

    while (left) {
        uint32_t axis = below(random, count);

        if (!(left >> axis & 1))
            continue;
        left &= ~(1u << axis);
        strides[axis] = row;
        row *= sizes[axis];
    }
    return row;
}

static void make_scales(struct kvt_write_world *world, uint64_t *random)
{
    struct kva_cache *c = &world->what.cache;
    const uint32_t sizes[4] = {BLOCKS, LAYERS, c->kv_head_count, c->block_tokens};
    uint64_t strides[4];
    uint64_t count = random_strides(random, sizes, 4, 1, strides);
    uint32_t mode = KVMEM_SCALE_TENSOR + below(random, 3);

    c->scale_dtype = KVMEM_DTYPE_BF16 + below(random, 3);
    c->scale_block_stride = mode == KVMEM_SCALE_TENSOR ? 0 : strides[0];
    c->scale_layer_stride = strides[1];
    c->scale_head_stride = mode == KVMEM_SCALE_TENSOR ? 0 : strides[2];
    c->scale_token_stride = mode == KVMEM_SCALE_TOKEN_HEAD ? strides[3] : 0;
    world->bytes[1] = world->bytes[2] = count * bytes_of(c->scale_dtype);
    world->host.k_scale = calloc(count, 4);
    world->host.v_scale = calloc(count, 4);
    for (uint64_t i = 0; i < count; i++) {
        kva_reference_store(c->scale_dtype, world->host.k_scale, i,
                            ldexp(1 + below(random, 100), -(int)below(random, 14)));
        kva_reference_store(c->scale_dtype, world->host.v_scale, i,
                            i % 31 ? 0.01 * (double)(1 + i) : 0);
    }
    c->k_scale = world->host.k_scale;
    c->v_scale = world->host.v_scale;
}

static void make_cache(struct kvt_write_world *world, uint64_t *random)
{
    static const uint16_t dims[][2] = {{64, 64},   {80, 80},   {96, 96},   {128, 128}, {16, 16},
                                       {192, 128}, {256, 256}, {576, 512}, {128, 128}};
    struct kva_cache *c = &world->what.cache;
    const uint16_t *dim = dims[below(random, 9)];
    uint32_t is_latent = dim[0] == 576 && below(random, 4) != 0;
    uint32_t sizes[5] = {BLOCKS, LAYERS, 1 + below(random, is_latent ? 1 : 9),
                         8u << below(random, 3), is_latent ? 1 : 2};
    uint64_t strides[5];
    uint64_t elements = random_strides(random, sizes, 5, dim[0] + 16 * below(random, 2), strides);

    c->dtype = KVMEM_DTYPE_BF16 + below(random, 5);
    c->block_tokens = sizes[3];
    c->block_count = BLOCKS;
    c->layer_count = LAYERS;
    c->kv_head_count = sizes[2];
    c->head_dim_k = dim[0];
    c->head_dim_v = dim[1];
    c->block_stride = strides[0];
    c->layer_stride = strides[1];
    c->k_head_stride = c->v_head_stride = strides[2];
    c->k_token_stride = c->v_token_stride = strides[3];
    world->v_offset = is_latent ? 0 : strides[4];
    world->has_v = !is_latent && below(random, 8) != 0;
    world->bytes[0] = elements * bytes_of(c->dtype);
    world->host.pool = malloc(world->bytes[0]);
    for (uint64_t i = 0; i < world->bytes[0]; i++)
        world->host.pool[i] = (uint8_t)(i * 7 + 1);
    c->k = world->host.pool;
    c->v = world->host.pool + world->v_offset * bytes_of(c->dtype);
    if (c->dtype >= KVMEM_DTYPE_FP8_E4M3)
        make_scales(world, random);
}

static void make_rotary(struct kvt_write_world *world, uint64_t *random)
{
    struct kva_write *w = &world->what;
    uint32_t dim = w->cache.head_dim_k;
    uint64_t count;

    w->rotary_limit = 1 + below(random, 50);
    w->rotary_dim = dim == 576 ? 64 : dim == 192 ? 64 : below(random, 2) ? dim : dim / 32 * 16;
    w->rotary_first = dim == 576   ? 512
                      : dim == 192 ? 128
                                   : 8 * below(random, (dim - w->rotary_dim) / 8 + 1);
    w->rotary_interleaved = below(random, 2);
    count = (uint64_t)w->rotary_limit * w->rotary_dim;
    world->bytes[7] = 4 * count;
    world->host.cos_sin = malloc(world->bytes[7] + 1);
    for (uint64_t i = 0; i < count; i++) {
        double angle = (double)(i / w->rotary_dim) * pow(0.7, (double)(i % (w->rotary_dim / 2)));

        world->host.cos_sin[i] =
            (float)(i % w->rotary_dim < w->rotary_dim / 2 ? cos(angle) : sin(angle));
    }
    w->rotary_cos_sin = world->host.cos_sin;
}

/* Slots without repetition, a few negative. */
static void make_slots(struct kvt_write_world *world, uint64_t *random)
{
    struct kva_write *w = &world->what;
    uint32_t limit = BLOCKS * w->cache.block_tokens;
    int64_t all[BLOCKS * 32];

    w->token_count = 1 + below(random, limit);
    world->bytes[5] = 8ull * w->token_count;
    world->bytes[6] = 4ull * w->token_count;
    world->host.slots = malloc(world->bytes[5]);
    world->host.positions = malloc(world->bytes[6]);
    for (uint32_t i = 0; i < limit; i++)
        all[i] = i;
    for (uint32_t t = 0; t < w->token_count; t++) {
        uint32_t other = t + below(random, limit - t);
        int64_t taken = all[other];

        all[other] = all[t];
        world->host.slots[t] = below(random, 12)  ? taken
                               : below(random, 2) ? -1
                                                  : INT64_MIN + taken;
        world->host.positions[t] = (int32_t)below(random, 60) - 5;
    }
    w->slots = world->host.slots;
    w->positions = world->host.positions;
}

void kvt_write_make(struct kvt_write_world *world, uint64_t seed)
{
    struct kva_write *w = &world->what;
    uint64_t random = seed, tokens, heads;

    memset(world, 0, sizeof(*world));
    world->seed = seed;
    w->size = sizeof(*w);
    w->dtype = KVMEM_DTYPE_BF16 + below(&random, 3);
    make_cache(world, &random);
    make_slots(world, &random);
    if (below(&random, 2))
        make_rotary(world, &random);
    tokens = w->token_count;
    heads = w->cache.kv_head_count;
    world->layer = below(&random, LAYERS);
    world->layers = 1 + below(&random, LAYERS - world->layer);
    w->k_head_stride = w->cache.head_dim_k + 8 * below(&random, 2);
    w->v_head_stride = w->cache.head_dim_v;
    w->k_token_stride = w->k_head_stride * heads;
    w->v_token_stride = w->v_head_stride * heads + 16;
    world->k_layer_stride = w->k_token_stride * tokens;
    world->v_layer_stride = w->v_token_stride * tokens + 8;
    world->bytes[3] = world->layers * world->k_layer_stride * bytes_of(w->dtype);
    world->bytes[4] = world->layers * world->v_layer_stride * bytes_of(w->dtype);
    world->host.k = fill_values(&random, w->dtype, world->layers * world->k_layer_stride);
    world->host.v = fill_values(&random, w->dtype, world->layers * world->v_layer_stride);
}

void kvt_write_drop(struct kvt_write_world *world)
{
    for (uint32_t i = 0; i < KVT_WRITE_PARTS; i++)
        free(kvt_write_parts(&world->host)[i]);
}

int kvt_write_run(const struct kvt_write_world *world, uint32_t device,
                  const struct kvt_write_memory *at, void *stream)
{
    struct kva_write what = world->what;

    what.device = device;
    what.slots = at->slots;
    what.positions = what.rotary_dim ? at->positions : NULL;
    what.rotary_cos_sin = at->cos_sin;
    what.cache.k = at->pool;
    what.cache.v = at->pool + world->v_offset * bytes_of(what.cache.dtype);
    what.cache.k_scale = at->k_scale;
    what.cache.v_scale = at->v_scale;
    return kva_write_run(&what, world->layer, world->layers, at->k, world->k_layer_stride,
                         world->has_v ? at->v : NULL, world->v_layer_stride, stream);
}

/* ---- what must come out ---- */

/* Memory that the plain loop writes: bytes, and which are its own. */
struct expected {
    uint8_t *pool;
    uint8_t *scales[2];
};

static float product(float a, float b)
{
    volatile float value = a * b;

    return value;
}

static void turn(const struct kva_write *w, uint32_t token, float *row)
{
    uint32_t half = w->rotary_dim / 2;
    int32_t last = (int32_t)w->rotary_limit - 1;
    int32_t at = w->positions[token] < 0      ? 0
                 : w->positions[token] > last ? last
                                              : w->positions[token];

    for (uint32_t i = 0; i < half; i++) {
        float c = w->rotary_cos_sin[(uint32_t)at * w->rotary_dim + i];
        float s = w->rotary_cos_sin[(uint32_t)at * w->rotary_dim + half + i];
        uint32_t x = w->rotary_first + (w->rotary_interleaved ? 2 * i : i);
        uint32_t y = w->rotary_interleaved ? x + 1 : x + half;
        float first = product(row[x], c) - product(row[y], s);
        float second = product(row[y], c) + product(row[x], s);

        row[x] = first;
        row[y] = second;
    }
}

static float inverse_scale(const struct kva_cache *c, uint8_t *scales, uint64_t at,
                           const float *row, uint32_t dim)
{
    float range = c->dtype == KVMEM_DTYPE_INT8 ? 127 : 448;
    double most = c->scale_dtype == KVMEM_DTYPE_FP16 ? 65504 : 0x1.fep127;
    float largest = 0;
    float scale;

    for (uint32_t d = 0; d < dim; d++)
        if (fabsf(row[d]) > largest)
            largest = fabsf(row[d]);
    if (c->scale_token_stride)
        kva_reference_store(c->scale_dtype, scales, at, fmin((double)(largest / range), most));
    scale = (float)kva_reference_element(c->scale_dtype, scales, at);
    return fabsf(scale) < FLT_MIN ? 0 : 1 / scale;
}

static void expect_vector(const struct kvt_write_world *world, struct expected *out, uint32_t is_v,
                          uint32_t l, uint32_t token, uint32_t head)
{
    const struct kva_write *w = &world->what;
    const struct kva_cache *c = &w->cache;
    uint64_t block = (uint64_t)w->slots[token] / c->block_tokens;
    uint64_t place = (uint64_t)w->slots[token] % c->block_tokens;
    uint64_t layer = world->layer + l;
    uint32_t dim = is_v ? c->head_dim_v : c->head_dim_k;
    const uint8_t *from = is_v ? world->host.v : world->host.k;
    uint64_t source =
        is_v ? l * world->v_layer_stride + token * w->v_token_stride + head * w->v_head_stride
             : l * world->k_layer_stride + token * w->k_token_stride + head * w->k_head_stride;
    uint64_t target = block * c->block_stride + layer * c->layer_stride + head * c->k_head_stride +
                      place * c->k_token_stride + (is_v ? world->v_offset : 0);
    float row[576];

    for (uint32_t d = 0; d < dim; d++)
        row[d] = (float)kva_reference_element(w->dtype, from, source + d);
    if (!is_v && w->rotary_dim)
        turn(w, token, row);
    if (c->dtype >= KVMEM_DTYPE_FP8_E4M3) {
        float inverse =
            inverse_scale(c, out->scales[is_v],
                          block * c->scale_block_stride + layer * c->scale_layer_stride +
                              head * c->scale_head_stride + place * c->scale_token_stride,
                          row, dim);

        for (uint32_t d = 0; d < dim; d++)
            row[d] = product(row[d], inverse);
    }
    for (uint32_t d = 0; d < dim; d++)
        kva_reference_store(c->dtype, out->pool, target + d, row[d]);
}

static uint8_t *copy_of(const uint8_t *bytes, uint64_t count)
{
    uint8_t *copy = malloc(count + 1);

    if (count)
        memcpy(copy, bytes, count);
    return copy;
}

/* Any NaN is as good as another. */
static void difference(const char *what, uint32_t dtype, const uint8_t *seen, const uint8_t *right,
                       uint64_t bytes, char text[200])
{
    if (text[0] || !bytes || memcmp(seen, right, bytes) == 0)
        return;
    for (uint64_t i = 0; i < bytes / bytes_of(dtype); i++) {
        double a = kva_reference_element(dtype, seen, i);
        double b = kva_reference_element(dtype, right, i);

        if (memcmp(seen + i * bytes_of(dtype), right + i * bytes_of(dtype), bytes_of(dtype)) != 0 &&
            !(isnan(a) && isnan(b))) {
            snprintf(text, 200, "%s: element %" PRIu64 " of %" PRIu64 " is %a, not %a", what, i,
                     bytes / bytes_of(dtype), a, b);
            return;
        }
    }
}

void kvt_write_compare(const struct kvt_write_world *world, const uint8_t *pool,
                       const uint8_t *k_scale, const uint8_t *v_scale, char text[200])
{
    struct expected right = {copy_of(world->host.pool, world->bytes[0]),
                             {copy_of(world->host.k_scale, world->bytes[1]),
                              copy_of(world->host.v_scale, world->bytes[2])}};

    for (uint32_t l = 0; l < world->layers; l++)
        for (uint32_t t = 0; t < world->what.token_count; t++)
            for (uint32_t g = 0; world->what.slots[t] >= 0 && g < world->what.cache.kv_head_count;
                 g++)
                for (uint32_t is_v = 0; is_v <= world->has_v; is_v++)
                    expect_vector(world, &right, is_v, l, t, g);
    text[0] = '\0';
    difference("pool", world->what.cache.dtype, pool, right.pool, world->bytes[0], text);
    difference("k_scale", world->what.cache.scale_dtype, k_scale, right.scales[0], world->bytes[1],
               text);
    difference("v_scale", world->what.cache.scale_dtype, v_scale, right.scales[1], world->bytes[2],
               text);
    free(right.pool);
    free(right.scales[0]);
    free(right.scales[1]);
}

const char *kvt_write_name(const struct kvt_write_world *world, char text[200])
{
    const struct kva_write *w = &world->what;
    const struct kva_cache *c = &w->cache;

    snprintf(text, 200,
             "seed %" PRIu64 ": %s to %s (scales %s, token stride %" PRIu64
             "), %u tokens, %u heads of %u/%u, rotary %u from %u%s, layers %u+%u%s",
             world->seed, dtype_names[w->dtype], dtype_names[c->dtype], dtype_names[c->scale_dtype],
             c->scale_token_stride, w->token_count, c->kv_head_count, c->head_dim_k, c->head_dim_v,
             w->rotary_dim, w->rotary_first, w->rotary_interleaved ? " interleaved" : "",
             world->layer, world->layers, world->has_v ? "" : ", K alone");
    return text;
}
