/* SPDX-License-Identifier: Apache-2.0
 *
 * Multi-head latent attention with the shapes of DeepSeek-V3 (DeepSeek-V2, section 2.1; V3, section
 * 2.1.1), from hidden states to outputs, for a few tokens on the CPU.
 *
 *   c_q = norm(W_DQ h)                      1,536      query's low-rank path
 *   q_nope, q_rope = W_UQ c_q               128 heads of 128 + 64, rope turned by the position
 *   c = norm(W_DKV h), k_rope = W_KR h      512 + 64, rope turned: what the cache holds, a token
 *
 * As the formula says it, each head has keys and values of its own:
 *
 *   k = W_UK c, k_rope    v = W_UV c    out = Σ softmax((q_nope k + q_rope k_rope) ÷ √192) v
 *
 * Absorbed, the heads meet in the latent space: q_nope · (W_UK c) = (W_UKᵀ q_nope) · c, so W_UK
 * goes into the query, W_UV behind the sum, and attention is one K/V head of 576 elements whose
 * first 512 are the values: kva_attention_run with v = k. Then W_O. This program computes both and
 * compares. Weights are functions of their place, so that nothing large is stored.
 *
 * Build: cc mla.c $(pkg-config --cflags --libs kvmem) -lkvmem-attention -lm
 */
#include <kvmem/attention.h>
#include <kvmem/attention_write.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HIDDEN = 7168,
    Q_RANK = 1536,
    LATENT = 512,
    ROPE = 64,
    CACHED = LATENT + ROPE,
    HEADS = 128,
    NOPE = 128,
    VALUE = 128,
    TOKENS = 6, /* 0 .. 3 were before, 4 and 5 are new */
    NEW = 2,
    BLOCK_TOKENS = 4,
    BLOCKS = 3
};

enum weight {
    W_DQ = 1,
    W_UQ,
    W_DKV,
    W_UK,
    W_UV,
    W_O,
    HIDDEN_STATES
};

/* Element (row, column) of a matrix, uniform with variance 1. */
static float element(enum weight matrix, uint32_t row, uint32_t column)
{
    uint32_t x = (uint32_t)matrix * 0x9e3779b9u + row * 0x85ebca6bu + column * 0xc2b2ae35u;

    x = (x ^ (x >> 15)) * 0x2c1b3c6du;
    x = (x ^ (x >> 12)) * 0x297a2d39u;
    return ((float)((x ^ (x >> 15)) >> 8) / (1 << 23) - 1) * 1.7320508f;
}

/* out (tokens, rows) = in (tokens, columns) × Wᵀ ÷ √columns: rows of the matrix from `first` on. */
static void project(enum weight matrix, uint32_t first, uint32_t rows, const float *in,
                    uint32_t columns, uint32_t tokens, float *out)
{
    float *row = malloc(sizeof(*row) * columns);
    float scale = 1 / sqrtf((float)columns);

    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < columns; c++)
            row[c] = element(matrix, first + r, c) * scale;
        for (uint32_t t = 0; t < tokens; t++) {
            float sum = 0;

            for (uint32_t c = 0; c < columns; c++)
                sum += row[c] * in[t * columns + c];
            out[t * rows + r] = sum;
        }
    }
    free(row);
}

/* RMS norm of the first `count` elements. */
static void normalise(float *vector, uint32_t count)
{
    float sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += vector[i] * vector[i];
    for (uint32_t i = 0; i < count; i++)
        vector[i] /= sqrtf(sum / (float)count + 1e-6f);
}

/* (TOKENS, ROPE): cosines, then sines. */
static void make_turns(float *cos_sin)
{
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0; i < ROPE / 2; i++) {
            double angle = t * pow(10000, -2.0 * i / ROPE);

            cos_sin[t * ROPE + i] = (float)cos(angle);
            cos_sin[t * ROPE + ROPE / 2 + i] = (float)sin(angle);
        }
}

/* Neighbouring pairs, as DeepSeek has them. */
static void turn(float *rope, const float *cos_sin)
{
    for (uint32_t i = 0; i < ROPE / 2; i++) {
        float a = rope[2 * i], b = rope[2 * i + 1];

        rope[2 * i] = a * cos_sin[i] - b * cos_sin[ROPE / 2 + i];
        rope[2 * i + 1] = b * cos_sin[i] + a * cos_sin[ROPE / 2 + i];
    }
}

static void must(int code)
{
    if (code == 0)
        return;
    fprintf(stderr, "%s: %s\n", kvmem_error_name(code), kva_error());
    exit(1);
}

/* ---- what is computed ---- */

static float hidden[TOKENS * HIDDEN];
static float turns[TOKENS * ROPE];
static float latent[TOKENS * CACHED]; /* normed, not yet turned */
static float q[NEW * HEADS * (NOPE + ROPE)];
static float heads_out[2][NEW * HEADS * VALUE]; /* absorbed, by the formula */

static void make_queries(void)
{
    const float *fresh = hidden + (TOKENS - NEW) * HIDDEN;
    static float low[NEW * Q_RANK];

    project(W_DQ, 0, Q_RANK, fresh, HIDDEN, NEW, low);
    for (uint32_t t = 0; t < NEW; t++)
        normalise(low + t * Q_RANK, Q_RANK);
    project(W_UQ, 0, HEADS * (NOPE + ROPE), low, Q_RANK, NEW, q);
    for (uint32_t i = 0; i < NEW * HEADS; i++)
        turn(q + i * (NOPE + ROPE) + NOPE, turns + (TOKENS - NEW + i / HEADS) * ROPE);
}

/* ---- absorbed: one latent K/V head in the cache ---- */

/* The cache: one latent head, V the first 512 elements of K. */
static struct kva_cache describe_cache(float *pool)
{
    struct kva_cache cache = {.dtype = KVMEM_DTYPE_FP32,
                              .block_tokens = BLOCK_TOKENS,
                              .block_count = BLOCKS,
                              .layer_count = 1,
                              .kv_head_count = 1,
                              .head_dim_k = CACHED,
                              .head_dim_v = LATENT,
                              .k = pool,
                              .v = pool,
                              .block_stride = BLOCK_TOKENS * CACHED,
                              .k_token_stride = CACHED,
                              .v_token_stride = CACHED};

    return cache;
}

/* All tokens into blocks 2 and 0; the write turns their last 64 elements. */
static void write_cache(float *pool)
{
    static const int64_t slots[TOKENS] = {8, 9, 10, 11, 0, 1};
    static const int32_t positions[TOKENS] = {0, 1, 2, 3, 4, 5};
    struct kva_write write = {.size = sizeof(write),
                              .device = KVA_DEVICE_CPU,
                              .token_count = TOKENS,
                              .dtype = KVMEM_DTYPE_FP32,
                              .k_token_stride = CACHED,
                              .slots = slots,
                              .rotary_first = LATENT,
                              .rotary_dim = ROPE,
                              .rotary_interleaved = 1,
                              .rotary_limit = TOKENS,
                              .rotary_cos_sin = turns,
                              .positions = positions,
                              .cache = describe_cache(pool)};

    must(kva_write_run(&write, 0, 1, latent, 0, NULL, 0, NULL));
}

/* to (NEW, HEADS, 576): W_UKᵀ q_nope, then q_rope. */
static void absorb_queries(float *to)
{
    float scale = 1 / sqrtf(LATENT);

    memset(to, 0, sizeof(float) * NEW * HEADS * CACHED);
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t n = 0; n < NOPE; n++)
            for (uint32_t c = 0; c < LATENT; c++) {
                float weight = element(W_UK, h * NOPE + n, c) * scale;

                for (uint32_t t = 0; t < NEW; t++)
                    to[(t * HEADS + h) * CACHED + c] +=
                        weight * q[(t * HEADS + h) * (NOPE + ROPE) + n];
            }
    for (uint32_t i = 0; i < NEW * HEADS; i++)
        memcpy(to + i * CACHED + LATENT, q + i * (NOPE + ROPE) + NOPE, sizeof(float) * ROPE);
}

static void attend(const float *pool, const float *queries, float *out)
{
    static const int32_t table[] = {2, 0}, length = TOKENS;
    struct kva_attention what = {.size = sizeof(what),
                                 .device = KVA_DEVICE_CPU,
                                 .flags = KVA_CAUSAL,
                                 .q_head_count = HEADS,
                                 .dtype = KVMEM_DTYPE_FP32,
                                 .softmax_scale = 1 / sqrtf(NOPE + ROPE),
                                 .q_token_stride = HEADS * CACHED,
                                 .q_head_stride = CACHED,
                                 .out_token_stride = HEADS * LATENT,
                                 .out_head_stride = LATENT,
                                 .cache = describe_cache((float *)pool),
                                 .batch = {.seq_count = 1,
                                           .q_max = NEW,
                                           .q_total = NEW,
                                           .kv_max = TOKENS,
                                           .table_stride = 2,
                                           .tables = table,
                                           .kv_lengths = &length}};
    struct kva_info info = {.size = sizeof(info)};
    void *workspace;

    must(kva_attention_info(&what, &info));
    if (posix_memalign(&workspace, 256, info.workspace_bytes + 1) != 0)
        exit(1);
    must(kva_attention_plan(&what, workspace, info.workspace_bytes, NULL));
    must(kva_attention_run(&what, 0, queries, out, NULL, workspace, info.workspace_bytes, NULL));
    printf("kernel: %s\n", info.kernel);
    free(workspace);
}

/* W_UV behind the sum, head by head. */
static void absorbed(void)
{
    static float pool[BLOCKS * BLOCK_TOKENS * CACHED];
    static float queries[NEW * HEADS * CACHED], sums[NEW * HEADS * LATENT];

    write_cache(pool);
    absorb_queries(queries);
    attend(pool, queries, sums);
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t t = 0; t < NEW; t++)
            project(W_UV, h * VALUE, VALUE, sums + (t * HEADS + h) * LATENT, LATENT, 1,
                    heads_out[0] + (t * HEADS + h) * VALUE);
}

/* ---- by the formula: 128 heads with keys and values of their own ---- */

/* k (TOKENS, 128), v (TOKENS, 128) of this head; ropes (TOKENS, ROPE) turned. */
static void attend_head(uint32_t h, const float *k, const float *v, const float *ropes)
{
    for (uint32_t t = 0; t < NEW; t++) {
        const float *query = q + (t * HEADS + h) * (NOPE + ROPE);
        float *out = heads_out[1] + (t * HEADS + h) * VALUE;
        uint32_t seen = TOKENS - NEW + t + 1;
        double weights[TOKENS], sum = 0;

        for (uint32_t s = 0; s < seen; s++) {
            double score = 0;

            for (uint32_t d = 0; d < NOPE; d++)
                score += (double)query[d] * k[s * NOPE + d];
            for (uint32_t d = 0; d < ROPE; d++)
                score += (double)query[NOPE + d] * ropes[s * ROPE + d];
            sum += weights[s] = exp(score / sqrt(NOPE + ROPE));
        }
        for (uint32_t d = 0; d < VALUE; d++) {
            double value = 0;

            for (uint32_t s = 0; s < seen; s++)
                value += weights[s] / sum * v[s * VALUE + d];
            out[d] = (float)value;
        }
    }
}

static void by_the_formula(void)
{
    static float c[TOKENS * LATENT], ropes[TOKENS * ROPE], k[TOKENS * NOPE], v[TOKENS * VALUE];

    for (uint32_t t = 0; t < TOKENS; t++) {
        memcpy(c + t * LATENT, latent + t * CACHED, sizeof(float) * LATENT);
        memcpy(ropes + t * ROPE, latent + t * CACHED + LATENT, sizeof(float) * ROPE);
        turn(ropes + t * ROPE, turns + t * ROPE);
    }
    for (uint32_t h = 0; h < HEADS; h++) {
        project(W_UK, h * NOPE, NOPE, c, LATENT, TOKENS, k);
        project(W_UV, h * VALUE, VALUE, c, LATENT, TOKENS, v);
        attend_head(h, k, v, ropes);
    }
}

/* ---- outputs ---- */

int main(void)
{
    static float outputs[2][NEW * HIDDEN];
    double difference = 0, size = 0;

    for (uint32_t i = 0; i < TOKENS * HIDDEN; i++)
        hidden[i] = element(HIDDEN_STATES, i / HIDDEN, i % HIDDEN);
    make_turns(turns);
    project(W_DKV, 0, CACHED, hidden, HIDDEN, TOKENS, latent); /* W_KR is its last 64 rows */
    for (uint32_t t = 0; t < TOKENS; t++)
        normalise(latent + t * CACHED, LATENT);
    make_queries();
    absorbed();
    by_the_formula();
    for (uint32_t i = 0; i < 2; i++)
        project(W_O, 0, HIDDEN, heads_out[i], HEADS * VALUE, NEW, outputs[i]);
    for (uint32_t i = 0; i < NEW * HIDDEN; i++) {
        difference = fmax(difference, fabs((double)outputs[0][i] - (double)outputs[1][i]));
        size = fmax(size, fabs((double)outputs[1][i]));
    }
    printf("outputs up to %.3f; absorbed and not differ by %.2g at most\n", size, difference);
    return size > 0.1 && difference <= 1e-5 * size ? 0 : 1;
}
