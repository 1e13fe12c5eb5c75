/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference of attention/reference.h. Slow on purpose.
 */
#include "reference.h"

#include <math.h>
#include <string.h>

static double half_value(uint16_t bits)
{
    int exponent = (bits >> 10) & 31;
    double mantissa = bits & 1023;
    double magnitude;

    if (exponent == 31)
        magnitude = mantissa == 0 ? INFINITY : NAN;
    else if (exponent == 0)
        magnitude = ldexp(mantissa, -24);
    else
        magnitude = ldexp(1024 + mantissa, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

double kva_reference_element(uint32_t dtype, const void *array, uint32_t index)
{
    uint32_t word = 0;
    uint16_t half;
    float value;

    if (dtype == KVMEM_DTYPE_FP32) {
        memcpy(&word, (const char *)array + 4ull * index, 4);
    } else {
        memcpy(&half, (const char *)array + 2ull * index, 2);
        if (dtype == KVMEM_DTYPE_FP16)
            return half_value(half);
        word = (uint32_t)half << 16;
    }
    memcpy(&value, &word, 4);
    return value;
}

/* One query head over all tokens; `seen` is the running maximum, `sum` the weights' sum. */
static void attend_head(const struct kva_layer *layer, const int32_t *table, uint32_t length,
                        const float *query, uint32_t kv_head, double scale, double *out)
{
    double seen = -INFINITY;
    double sum = 0;

    for (uint32_t d = 0; d < layer->head_dim; d++)
        out[d] = 0;
    for (uint32_t t = 0; t < length; t++) {
        uint64_t block = (uint64_t)table[t / layer->block_tokens] * layer->block_stride_bytes;
        uint32_t slot = t % layer->block_tokens;
        const char *k = (const char *)layer->k + block + kv_head * layer->k_head_stride_bytes +
                        slot * layer->k_token_stride_bytes;
        const char *v = (const char *)layer->v + block + kv_head * layer->v_head_stride_bytes +
                        slot * layer->v_token_stride_bytes;
        double score = 0;

        for (uint32_t d = 0; d < layer->head_dim; d++)
            score += query[d] * kva_reference_element(layer->dtype, k, d);
        score *= scale;
        if (score > seen) {
            double shrink = exp(seen - score);

            sum *= shrink;
            for (uint32_t d = 0; d < layer->head_dim; d++)
                out[d] *= shrink;
            seen = score;
        }
        double weight = exp(score - seen);

        sum += weight;
        for (uint32_t d = 0; d < layer->head_dim; d++)
            out[d] += weight * kva_reference_element(layer->dtype, v, d);
    }
    for (uint32_t d = 0; d < layer->head_dim; d++)
        out[d] /= sum;
}

int kva_reference_decode(const struct kva_layer *layer, const int32_t *table, uint32_t length,
                         const float *query, uint32_t query_head_count, double softmax_scale,
                         double *out)
{
    uint32_t heads = layer->kv_head_count;

    if (layer->dtype < KVMEM_DTYPE_BF16 || layer->dtype > KVMEM_DTYPE_FP32 || length == 0)
        return KVMEM_E_INVALID;
    if (layer->block_tokens == 0 || heads == 0 || query_head_count % heads != 0)
        return KVMEM_E_INVALID;
    for (uint32_t i = 0; i <= (length - 1) / layer->block_tokens; i++)
        if (table[i] < 0)
            return KVMEM_E_INVALID;

    for (uint32_t h = 0; h < query_head_count; h++)
        attend_head(layer, table, length, query + (uint64_t)h * layer->head_dim,
                    h / (query_head_count / heads), softmax_scale,
                    out + (uint64_t)h * layer->head_dim);
    return 0;
}
