/* SPDX-License-Identifier: Apache-2.0
 *
 * The checks of replay.h: bytes against the byte function, and attention through the block table
 * against a second loop, written apart from the device's, over values made by the byte function.
 */
#include "replay.h"

#include <math.h>
#include <stdlib.h>

#include "../../attention/reference.h"

#define QUERY_HEADS_PER_KV 2u

struct kvb_view kvb_live_view(const struct kvb_engine *engine, const struct kvb_live *live)
{
    struct kvb_view view = {.base = engine->device.base};
    struct kvmem_seq_info info = {.size = sizeof(info)};
    int rc = kvmem_table_view(engine->space, 0, live->seq, &view.table);

    if (rc > 0 && kvmem_seq_info(engine->space, live->seq, &info) == 0) {
        view.block_count = (uint32_t)rc;
        view.length = (uint32_t)info.committed_tokens;
    }
    return view; /* of nothing when the library refused: all its bytes count as wrong */
}

static void check_range(struct kvb_engine *engine, const struct kvb_live *live, uint32_t end)
{
    struct kvb_view view = kvb_live_view(engine, live);
    uint32_t block_tokens = engine->shape.model.block_tokens;

    engine->counts.wrong_bytes +=
        engine->device.ops->count_wrong(&engine->device, &view, live->history, 0, end);
    engine->counts.blocks_checked += (end + block_tokens - 1) / block_tokens;
}

void kvb_check_attached(struct kvb_engine *engine, const struct kvb_live *live, uint32_t blocks)
{
    check_range(engine, live, blocks * engine->shape.model.block_tokens);
}

void kvb_check_whole(struct kvb_engine *engine, const struct kvb_live *live)
{
    check_range(engine, live, live->committed);
}

/* A query that is a function of the last token's history, in −1 .. 1, exact in every type. */
static void make_query(uint64_t history, uint32_t count, float *query)
{
    for (uint32_t i = 0; i < count; i++) {
        history = kvb_history_next(history, i);
        query[i] = (float)(history >> 56) / 128 - 1;
    }
}

/* All K or V vectors of a layer and head as doubles, (length, head_dim), from the byte function. */
static void regenerate(const struct kvb_shape *shape, const uint64_t *history, uint32_t length,
                       uint32_t layer, uint32_t is_v, uint32_t head, double *out)
{
    uint64_t vector[4096u * 4 / 8];
    uint32_t dim = shape->model.head_dim;

    for (uint32_t t = 0; t < length; t++) {
        kvb_vector(shape, history[t], layer, is_v, head, vector);
        for (uint32_t d = 0; d < dim; d++)
            out[(uint64_t)t * dim + d] = kva_reference_element(shape->model.dtype, vector, d);
    }
}

/* Textbook attention of one head: scores, their maximum, weights, sum. weights (length). */
static void attend_contiguous(const double *k, const double *v, uint32_t length, uint32_t dim,
                              const float *query, double scale, double *weights, double *out)
{
    double seen = -INFINITY;
    double sum = 0;

    for (uint32_t t = 0; t < length; t++) {
        double dot = 0;

        for (uint32_t d = dim; d-- > 0;)
            dot += k[(uint64_t)t * dim + d] * query[d];
        weights[t] = dot * scale;
        seen = fmax(seen, weights[t]);
    }
    for (uint32_t t = 0; t < length; t++)
        sum += weights[t] = exp(weights[t] - seen);
    for (uint32_t d = 0; d < dim; d++) {
        double total = 0;

        for (uint32_t t = 0; t < length; t++)
            total += weights[t] * v[(uint64_t)t * dim + d];
        out[d] = total / sum;
    }
}

static double largest_difference(const double *a, const double *b, uint32_t count)
{
    double largest = 0;

    for (uint32_t i = 0; i < count; i++) {
        double difference = fabs(a[i] - b[i]);

        if (!(difference <= largest)) /* also true for NaN */
            largest = isnan(difference) ? HUGE_VAL : difference;
    }
    return largest;
}

/* The second loop's answer for all query heads; out as the device's. Returns −1
 * without memory. */
static int attend_regenerated(const struct kvb_shape *shape, const uint64_t *history,
                              uint32_t length, uint32_t layer, const float *query, double *out)
{
    uint32_t dim = shape->model.head_dim;
    uint64_t elements = (uint64_t)length * dim;
    double *room = malloc(sizeof(double) * (2 * elements + length));

    if (room == NULL)
        return -1;
    for (uint32_t g = 0; g < shape->model.kv_heads; g++) {
        regenerate(shape, history, length, layer, 0, g, room);
        regenerate(shape, history, length, layer, 1, g, room + elements);
        for (uint32_t i = 0; i < QUERY_HEADS_PER_KV; i++) {
            uint64_t h = (uint64_t)g * QUERY_HEADS_PER_KV + i;

            attend_contiguous(room, room + elements, length, dim, query + h * dim, 1 / sqrt(dim),
                              room + 2 * elements, out + h * dim);
        }
    }
    free(room);
    return 0;
}

/* The library's kernel against the truth: the largest difference in units of what is allowed, or −1
 * when there is no kernel or no memory. V is at most 2 in magnitude; weights and the result are
 * rounded to the kernel's type once each, sums are in fp32. */
static double kernel_error(struct kvb_device *device, const struct kvb_view *view,
                           const struct kvb_query *query, const double *right)
{
    uint32_t count = query->heads * device->shape->model.head_dim, dtype = 0;
    float *out = malloc(sizeof(*out) * count);
    double *seen = malloc(sizeof(*seen) * count);
    double error = -1;

    if (out != NULL && seen != NULL)
        switch (device->ops->attend_fast(device, view, query, out, &dtype)) {
        case 0:
            for (uint32_t i = 0; i < count; i++)
                seen[i] = out[i];
            error =
                largest_difference(right, seen, count) / (4 * kva_reference_unit(dtype) + 0x1p-17);
            break;
        case KVB_UNREADABLE: error = HUGE_VAL; break;
        }
    free(out);
    free(seen);
    return error;
}

double kvb_attention_errors(struct kvb_device *device, const struct kvb_view *view,
                            const uint64_t *history, uint32_t length, uint32_t layer,
                            double *kernel)
{
    const struct kvb_shape *shape = device->shape;
    uint32_t heads = shape->model.kv_heads * QUERY_HEADS_PER_KV;
    uint32_t count = heads * shape->model.head_dim;
    float *query = malloc(sizeof(float) * count);
    double *out = malloc(sizeof(double) * 2 * count);
    struct kvb_query asked = {query, heads, layer};
    double error = -1;

    if (kernel != NULL)
        *kernel = -1;
    if (query == NULL || out == NULL)
        goto out;
    make_query(history[length - 1], count, query);
    if (attend_regenerated(shape, history, length, layer, query, out) != 0)
        goto out;
    error = HUGE_VAL;
    if ((uint64_t)view->block_count * shape->model.block_tokens < view->length)
        goto out;
    switch (device->ops->attend(device, view, &asked, out + count)) {
    case 0: error = largest_difference(out, out + count, count); break;
    case KVB_NO_MEMORY: error = -1; break;
    }
    if (kernel != NULL && error >= 0 && error < HUGE_VAL)
        *kernel = kernel_error(device, view, &asked, out);
out:
    free(query);
    free(out);
    return error;
}

double kvb_attention_error(struct kvb_device *device, const struct kvb_view *view,
                           const uint64_t *history, uint32_t length, uint32_t layer)
{
    return kvb_attention_errors(device, view, history, length, layer, NULL);
}

void kvb_check_attention(struct kvb_engine *engine, const struct kvb_live *live)
{
    struct kvb_view view = kvb_live_view(engine, live);
    uint32_t layer = live->number / 16 % engine->shape.model.layers;
    double kernel;
    double error = kvb_attention_errors(&engine->device, &view, live->history, live->committed,
                                        layer, &kernel);

    if (error < 0)
        return; /* not checked, not counted */
    engine->counts.attention_checked++;
    engine->counts.attention_wrong += !(error <= KVB_ATTENTION_TOLERANCE);
    engine->counts.attention_max_error = fmax(engine->counts.attention_max_error, error);
    if (kernel < 0)
        return;
    engine->counts.kernels_checked++;
    engine->counts.kernels_wrong += !(kernel <= 1);
}
