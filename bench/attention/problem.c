/* SPDX-License-Identifier: Apache-2.0
 *
 * A shape of bench/attention laid out, and held against the reference.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../attention/internal.h"
#include "../../attention/reference.h"
#include "common/bench.h"
#include "shape.h"

void kvb_kva_check(int result, const char *what)
{
    if (result < 0)
        kvb_fail("%s: %s", what, kva_error());
}

/* ---- the host's memory ---- */

static void *host_alloc(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        kvb_fail("no %llu bytes of memory", (unsigned long long)bytes);
    madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

static void host_put(void *to, const void *from, uint64_t bytes)
{
    memcpy(to, from, bytes);
}

/* ---- contents ---- */

/* About normal, of variance 1. */
static double normal(uint64_t *random)
{
    uint64_t bits = kvb_random(random);
    double sum = 0;

    for (int i = 0; i < 4; i++)
        sum += (double)(bits >> 16 * i & 0xffff) / 65536 - 0.5;
    return sum * sqrt(3);
}

/* Values that repeat only after a number of elements that no row's length divides: making each of
 * them would take longer than measuring. Quantised ones are stored with a scale of 1 ÷ 32. */
#define PERIOD 1000003u

static void host_fill(uint32_t dtype, void *array, uint64_t count, uint64_t seed)
{
    uint64_t bytes = kvmem_dtype_bytes(dtype), done = count < PERIOD ? count : PERIOD;
    double factor = bytes == 1 ? 32 : 1;

    for (uint64_t i = 0; i < done; i++)
        kva_reference_store(dtype, array, i, normal(&seed) * factor);
    for (; done < count; done += PERIOD)
        memcpy((char *)array + done * bytes, array,
               (count - done < PERIOD ? count - done : PERIOD) * bytes);
}

const struct kvb_place kvb_host = {host_alloc, host_put, host_fill};

/* 0 .. count − 1 in random order. */
static int32_t *shuffled(uint32_t count)
{
    int32_t *blocks = host_alloc(4ull * count);
    uint64_t random = 1;

    for (uint32_t i = 0; i < count; i++)
        blocks[i] = (int32_t)i;
    for (uint32_t i = count - 1; i > 0 && count; i--) {
        uint32_t j = (uint32_t)(kvb_random(&random) % (i + 1));
        int32_t block = blocks[i];

        blocks[i] = blocks[j];
        blocks[j] = block;
    }
    return blocks;
}

/* ---- lengths ---- */

/* Those of ragged shapes are spread evenly over the logarithms between `shortest` and `length`. */
static uint32_t length_at(const struct kvb_shape *s, uint32_t i)
{
    if (!s->shortest)
        return s->length;
    return (uint32_t)(s->shortest *
                      pow((double)s->length / s->shortest, (i + 0.5) / (double)s->seqs));
}

static uint32_t blocks_of(const struct kvb_shape *s, uint32_t length)
{
    return (length + s->block_tokens - 1) / s->block_tokens;
}

static uint32_t all_blocks(const struct kvb_shape *s)
{
    uint32_t blocks = 0;

    for (uint32_t i = 0; i < s->seqs; i++)
        blocks += blocks_of(s, length_at(s, i));
    return blocks;
}

static uint64_t all_tokens(const struct kvb_shape *s)
{
    uint64_t tokens = 0;

    for (uint32_t i = 0; i < s->seqs; i++)
        tokens += length_at(s, i);
    return tokens;
}

/* Pairs of a row and a token that it sees, of one head. */
static double all_pairs(const struct kvb_shape *s)
{
    double pairs = 0;

    for (uint32_t n = 0; n < s->seqs; n++)
        for (uint32_t i = 0; i < s->rows; i++) {
            uint32_t length = length_at(s, n);
            uint32_t seen = s->flags & KVA_CAUSAL ? length - s->rows + i + 1 : length;

            pairs += s->window_tokens && s->window_tokens < seen ? s->window_tokens : seen;
        }
    return pairs;
}

/* ---- the description ---- */

static int is_latent(const struct kvb_shape *s)
{
    return s->dim_k == 576 && s->dim_v == 512;
}

/* Elements of a layer's K and V in a block. */
static uint64_t k_elements(const struct kvb_shape *s)
{
    return (uint64_t)s->kv_heads * s->block_tokens * s->dim_k;
}

static uint64_t v_elements(const struct kvb_shape *s)
{
    return is_latent(s) ? 0 : (uint64_t)s->kv_heads * s->block_tokens * s->dim_v;
}

uint64_t kvb_shape_pool_bytes(const struct kvb_shape *s)
{
    return (k_elements(s) + v_elements(s)) * s->layers * all_blocks(s) *
           kvmem_dtype_bytes(s->kv_dtype);
}

/* Strides in elements: a layer of a block holds K, then V. */
void kvb_problem_lay_out(struct kvb_problem *p, uint32_t layout)
{
    const struct kvb_shape *s = &p->shape;
    struct kva_cache *c = &p->what.cache;
    uint64_t both = k_elements(s) + v_elements(s);
    int is_token_first = layout == KVMEM_LAYOUT_PAGE_TOKEN_HEAD;

    p->shape.layout = layout;
    c->layer_stride = both;
    c->block_stride = both * s->layers;
    if (layout == KVMEM_LAYOUT_PER_LAYER) {
        c->block_stride = both;
        c->layer_stride = both * c->block_count;
    }
    c->k_head_stride = is_token_first ? s->dim_k : (uint64_t)s->block_tokens * s->dim_k;
    c->v_head_stride = is_token_first ? s->dim_v : (uint64_t)s->block_tokens * s->dim_v;
    c->k_token_stride = is_token_first ? (uint64_t)s->kv_heads * s->dim_k : s->dim_k;
    c->v_token_stride = is_token_first ? (uint64_t)s->kv_heads * s->dim_v : s->dim_v;
    if (is_latent(s)) {
        c->v_head_stride = c->k_head_stride;
        c->v_token_stride = c->k_token_stride;
    }
}

static void *placed(const struct kvb_place *place, const void *array, uint64_t bytes)
{
    void *there = place->alloc(bytes);

    place->put(there, array, bytes);
    return there;
}

static void place_cache(struct kvb_problem *p, const struct kvb_place *place)
{
    const struct kvb_shape *s = &p->shape;
    struct kva_cache *c = &p->what.cache;
    uint64_t element = kvmem_dtype_bytes(s->kv_dtype);
    float scale = 1.0f / 32;
    char *pool;

    p->pool_bytes = kvb_shape_pool_bytes(s);
    p->pool = pool = place->alloc(p->pool_bytes);
    place->fill(s->kv_dtype, pool, p->pool_bytes / element, 7);
    c->k = pool;
    c->v = is_latent(s) ? pool : pool + k_elements(s) * element;
    if (element == 1) {
        c->scale_dtype = KVMEM_DTYPE_FP32;
        c->k_scale = c->v_scale = placed(place, &scale, sizeof(scale));
    }
}

static void place_batch(struct kvb_problem *p, const struct kvb_place *place)
{
    const struct kvb_shape *s = &p->shape;
    struct kva_batch *b = &p->what.batch;
    int32_t *lengths = host_alloc(4ull * b->seq_count), *order = shuffled(b->seq_count);
    int32_t *tables = host_alloc(4ull * b->seq_count * b->table_stride);
    int32_t *blocks = shuffled(p->what.cache.block_count), *next = blocks;

    for (uint32_t n = 0; n < b->seq_count; n++) {
        lengths[n] = (int32_t)length_at(s, (uint32_t)order[n]);
        for (uint32_t i = 0; i < blocks_of(s, (uint32_t)lengths[n]); i++)
            tables[(uint64_t)n * b->table_stride + i] = *next++;
    }
    b->kv_lengths = placed(place, lengths, 4ull * b->seq_count);
    b->tables = placed(place, tables, 4ull * b->seq_count * b->table_stride);
    munmap(lengths, 4ull * b->seq_count);
    munmap(order, 4ull * b->seq_count);
    munmap(tables, 4ull * b->seq_count * b->table_stride);
    munmap(blocks, 4ull * p->what.cache.block_count);
}

static struct kva_attention describe(const struct kvb_shape *s)
{
    struct kva_attention what = {
        .size = sizeof(what),
        .device = s->device,
        .flags = s->flags,
        .q_head_count = s->heads,
        .dtype = s->dtype,
        .window_tokens = s->window_tokens,
        .q_token_stride = (uint64_t)s->heads * s->dim_k,
        .q_head_stride = s->dim_k,
        .out_token_stride = (uint64_t)s->heads * s->dim_v,
        .out_head_stride = s->dim_v,
        .threads = s->threads,
        .cache = {.dtype = s->kv_dtype,
                  .block_tokens = s->block_tokens,
                  .block_count = all_blocks(s),
                  .layer_count = s->layers,
                  .kv_head_count = s->kv_heads,
                  .head_dim_k = s->dim_k,
                  .head_dim_v = s->dim_v},
        .batch = {.seq_count = s->seqs,
                  .q_max = s->rows,
                  .q_total = s->seqs * s->rows,
                  .kv_max = s->length,
                  .table_stride = blocks_of(s, s->length)},
    };

    return what;
}

void kvb_problem_init(struct kvb_problem *p, const struct kvb_shape *shape,
                      const struct kvb_place *place)
{
    const struct kvb_shape *s = &p->shape;
    uint64_t places, element = kvmem_dtype_bytes(shape->dtype);

    if (shape->rows > (shape->shortest ? shape->shortest : shape->length))
        kvb_fail("--rows: %u are more than the tokens of a sequence", shape->rows);
    *p = (struct kvb_problem){.shape = *shape, .what = describe(shape)};
    kvb_problem_lay_out(p, shape->layout);
    place_cache(p, place);
    place_batch(p, place);
    places = (uint64_t)s->seqs * s->rows * s->heads;
    p->q = place->alloc(places * s->dim_k * element);
    place->fill(s->dtype, p->q, places * s->dim_k, 11);
    p->out_bytes = places * s->dim_v * element;
    p->out = place->alloc(p->out_bytes);
    p->kv_bytes = all_tokens(s) * s->kv_heads * (s->dim_k + (is_latent(s) ? 0 : s->dim_v)) *
                  kvmem_dtype_bytes(s->kv_dtype);
    p->operations = 2 * all_pairs(s) * s->heads * (s->dim_k + s->dim_v);
    kvb_problem_workspace(p, place);
}

void kvb_problem_workspace(struct kvb_problem *p, const struct kvb_place *place)
{
    kva_only_kernel = p->shape.kernel;
    p->info = (struct kva_info){.size = sizeof(p->info)};
    kvb_kva_check(kva_attention_info(&p->what, &p->info), "kva_attention_info");
    p->workspace = place->alloc(p->info.workspace_bytes);
}

/* ---- right? ---- */

/* Row r, head h: within the rounding of weights and result, 4 standard deviations of the first. */
static void verify_row(const struct kvb_problem *p, const struct kva_reference *job,
                       const void *out, uint64_t row, uint32_t h)
{
    const struct kvb_shape *s = &p->shape;
    uint64_t place = row * s->heads + h;
    double unit = kva_reference_unit(s->dtype), largest = 0, bound;

    for (uint32_t d = 0; d < s->dim_v; d++)
        largest = fmax(largest, fabs(job->out[place * s->dim_v + d]));
    bound = 2 * unit * (largest + 2 * job->rows[place].spread) + 1e-5;
    for (uint32_t d = 0; d < s->dim_v; d++) {
        double expected = job->out[place * s->dim_v + d];
        double got = kva_reference_element(s->dtype, out, place * s->dim_v + d);

        if (!(fabs(got - expected) <= bound))
            kvb_fail("%s: row %llu, head %u, element %u is %g instead of %g", p->info.kernel,
                     (unsigned long long)row, h, d, got, expected);
    }
}

void kvb_problem_verify(const struct kvb_problem *p)
{
    const struct kvb_shape *s = &p->shape;
    uint64_t places = (uint64_t)s->seqs * s->rows * s->heads;
    uint32_t step = s->rows / 8 + 1;
    struct kva_reference job = {.what = &p->what,
                                .q = p->q,
                                .layer = s->layers - 1,
                                .row_step = step,
                                .out = host_alloc(8 * places * s->dim_v),
                                .rows = host_alloc(sizeof(struct kva_reference_row) * places)};

    for (uint32_t n = 0; n<s->seqs; n += s->seqs> 1 ? s->seqs - 1 : 1)
        for (uint32_t h = 0; h<s->heads; h += s->heads> 1 ? s->heads - 1 : 1) {
            kvb_check(kva_reference_head(&job, n, h), "kva_reference_head");
            for (uint32_t i = (s->rows - 1) % step; i < s->rows; i += step)
                verify_row(p, &job, p->out, (uint64_t)n * s->rows + i, h);
        }
    munmap(job.out, 8 * places * s->dim_v);
    munmap(job.rows, sizeof(struct kva_reference_row) * places);
}
