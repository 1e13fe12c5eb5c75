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
    if (to != from)
        memcpy(to, from, bytes);
}

const struct kvb_place kvb_host = {host_alloc, host_put};

/* A copy at `place`; on the host the array itself. */
static void *moved(const struct kvb_place *place, void *array, uint64_t bytes)
{
    void *there = place == &kvb_host ? array : place->alloc(bytes);

    place->put(there, array, bytes);
    return there;
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

static void fill(uint32_t dtype, void *array, uint64_t count, uint64_t seed)
{
    uint64_t bytes = kvmem_dtype_bytes(dtype), done = count < PERIOD ? count : PERIOD;
    double factor = bytes == 1 ? 32 : 1;

    for (uint64_t i = 0; i < done; i++)
        kva_reference_store(dtype, array, i, normal(&seed) * factor);
    for (; done < count; done += PERIOD)
        memcpy((char *)array + done * bytes, array,
               (count - done < PERIOD ? count - done : PERIOD) * bytes);
}

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

/* ---- the description ---- */

/* Strides in elements: a layer of a block holds K, then V. */
static void lay_out(struct kvb_problem *p, struct kva_cache *c, uint32_t block_count)
{
    const struct kvb_shape *s = &p->shape;
    uint64_t k = (uint64_t)s->kv_heads * s->block_tokens * s->dim_k;
    uint64_t v = (uint64_t)s->kv_heads * s->block_tokens * s->dim_v;
    int is_token_first = s->layout == KVMEM_LAYOUT_PAGE_TOKEN_HEAD;

    c->layer_stride = k + v;
    c->block_stride = (k + v) * s->layers;
    if (s->layout == KVMEM_LAYOUT_PER_LAYER) {
        c->block_stride = k + v;
        c->layer_stride = (k + v) * block_count;
    }
    c->k_head_stride = is_token_first ? s->dim_k : (uint64_t)s->block_tokens * s->dim_k;
    c->v_head_stride = is_token_first ? s->dim_v : (uint64_t)s->block_tokens * s->dim_v;
    c->k_token_stride = is_token_first ? (uint64_t)s->kv_heads * s->dim_k : s->dim_k;
    c->v_token_stride = is_token_first ? (uint64_t)s->kv_heads * s->dim_v : s->dim_v;
    p->pool_bytes = (k + v) * s->layers * block_count * kvmem_dtype_bytes(s->kv_dtype);
}

static void place_cache(struct kvb_problem *p, const struct kvb_place *place)
{
    struct kva_cache *c = &p->host.cache;
    uint64_t v_from_k = (uint64_t)p->shape.kv_heads * p->shape.block_tokens * p->shape.dim_k *
                        kvmem_dtype_bytes(p->shape.kv_dtype);
    float *scale = host_alloc(64);
    char *pool = host_alloc(p->pool_bytes), *there;

    fill(p->shape.kv_dtype, pool, p->pool_bytes / kvmem_dtype_bytes(p->shape.kv_dtype), 7);
    *scale = 1.0f / 32;
    c->k = pool;
    c->v = pool + v_from_k;
    c->k_scale = c->v_scale = scale;
    there = moved(place, pool, p->pool_bytes);
    p->pool = there;
    p->what = p->host;
    p->what.cache.k = there;
    p->what.cache.v = there + v_from_k;
    p->what.cache.k_scale = p->what.cache.v_scale = moved(place, scale, sizeof(*scale));
}

static void place_batch(struct kvb_problem *p, const struct kvb_place *place)
{
    struct kva_batch *b = &p->host.batch, *there = &p->what.batch;
    int32_t *lengths = host_alloc(4ull * b->seq_count);

    for (uint32_t n = 0; n < b->seq_count; n++)
        lengths[n] = (int32_t)p->shape.length;
    b->kv_lengths = lengths;
    b->tables = shuffled(b->seq_count * b->table_stride);
    there->kv_lengths = moved(place, lengths, 4ull * b->seq_count);
    there->tables = moved(place, (void *)b->tables, 4ull * b->seq_count * b->table_stride);
}

static struct kva_attention describe(const struct kvb_shape *s)
{
    uint32_t blocks = (s->length + s->block_tokens - 1) / s->block_tokens;
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
                  .block_count = s->seqs * blocks,
                  .layer_count = s->layers,
                  .kv_head_count = s->kv_heads,
                  .head_dim_k = s->dim_k,
                  .head_dim_v = s->dim_v,
                  .scale_dtype = KVMEM_DTYPE_FP32},
        .batch = {.seq_count = s->seqs,
                  .q_max = s->rows,
                  .q_total = s->seqs * s->rows,
                  .kv_max = s->length,
                  .table_stride = blocks},
    };

    return what;
}

/* Pairs of a row and a token that it sees, of one head. */
static double pairs_of(const struct kvb_shape *s)
{
    double pairs = 0;

    for (uint32_t i = 0; i < s->rows; i++) {
        uint32_t seen = s->flags & KVA_CAUSAL ? s->length - s->rows + i + 1 : s->length;

        pairs += s->window_tokens && s->window_tokens < seen ? s->window_tokens : seen;
    }
    return pairs * s->seqs;
}

void kvb_problem_init(struct kvb_problem *p, const struct kvb_shape *shape,
                      const struct kvb_place *place)
{
    const struct kvb_shape *s = &p->shape;
    uint64_t q_count, element = kvmem_dtype_bytes(shape->kv_dtype);
    void *q;

    if (shape->rows > shape->length)
        kvb_fail("--rows: %u are more than the %u tokens of a sequence", shape->rows,
                 shape->length);
    *p = (struct kvb_problem){.shape = *shape, .host = describe(shape)};
    lay_out(p, &p->host.cache, p->host.cache.block_count);
    place_cache(p, place);
    place_batch(p, place);
    q_count = (uint64_t)s->seqs * s->rows * s->heads * s->dim_k;
    q = host_alloc(q_count * kvmem_dtype_bytes(s->dtype));
    fill(s->dtype, q, q_count, 11);
    p->host_q = q;
    p->q = moved(place, q, q_count * kvmem_dtype_bytes(s->dtype));
    p->out = place->alloc(q_count / s->dim_k * s->dim_v * kvmem_dtype_bytes(s->dtype));
    p->kv_bytes = (uint64_t)s->seqs * s->length * s->kv_heads * (s->dim_k + s->dim_v) * element;
    p->operations = 2 * pairs_of(s) * s->heads * (s->dim_k + s->dim_v);
    kva_only_kernel = s->kernel;
    p->info.size = sizeof(p->info);
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

void kvb_problem_verify(const struct kvb_problem *p, const void *out)
{
    const struct kvb_shape *s = &p->shape;
    uint64_t places = (uint64_t)s->seqs * s->rows * s->heads;
    uint32_t step = s->rows / 8 + 1;
    struct kva_reference job = {.what = &p->host,
                                .q = p->host_q,
                                .layer = s->layers - 1,
                                .row_step = step,
                                .out = host_alloc(8 * places * s->dim_v),
                                .rows = host_alloc(sizeof(struct kva_reference_row) * places)};

    for (uint32_t n = 0; n<s->seqs; n += s->seqs> 1 ? s->seqs - 1 : 1)
        for (uint32_t h = 0; h<s->heads; h += s->heads> 1 ? s->heads - 1 : 1) {
            kvb_check(kva_reference_head(&job, n, h), "kva_reference_head");
            for (uint32_t i = (s->rows - 1) % step; i < s->rows; i += step)
                verify_row(p, &job, out, (uint64_t)n * s->rows + i, h);
        }
    munmap(job.out, 8 * places * s->dim_v);
    munmap(job.rows, sizeof(struct kva_reference_row) * places);
}
