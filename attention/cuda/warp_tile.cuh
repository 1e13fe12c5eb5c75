/* SPDX-License-Identifier: Apache-2.0
 *
 * What one warp does with a tile of tokens, for 16 × MB packed rows:
 *
 *   scores    S = Q Kᵀ          Q and K in shared memory
 *   softmax   S becomes P, the running maximum and sum move on (Milakov and Gimelshein 2018)
 *   values    O += P V          (FlashAttention-2, Dao 2023, section 3.1)
 *
 * Rows of shared memory are padded by 16 bytes, so that the eight rows that ldmatrix reads at a
 * time begin in eight different groups of banks. Head dims are multiples of 16.
 *
 * Equations, with m the maximum of a row's scores so far, and unit the largest scale of V so far (1
 * where V is not quantised):  sum = Σ exp(score − m),  O × unit = Σ exp(score − m) V × scale.
 *
 * A row that does not see a token must not notice what lies there. Scores are replaced; but 0 × V
 * is no zero where V is infinite or NaN, so tiles with masks look for such values (isolate) and
 * give them by hand to the rows that see them.
 */
#ifndef KVA_CUDA_WARP_TILE_CUH
#define KVA_CUDA_WARP_TILE_CUH

#include <math_constants.h>

#include "mma.cuh"

/* What a packed row is, in shared memory. It sees [low, high), less what its mask says. */
struct kva_row {
    int32_t low;
    int32_t high;
    int32_t position;
    uint32_t head;  /* of q */
    uint32_t token; /* row of q */
    float slope;
    uint64_t mask; /* of a draft tree: tokens from new_first on */
};

/* How scores become logits, the same for all rows of a launch. Logits here are to base 2. */
struct kva_score {
    float scale_log2; /* softmax scale × log2 e */
    float soft_cap;   /* × log2 e; 0 = none */
    float cap_rate;   /* softmax scale ÷ cap × 2 log2 e: e^2x of tanh x is 2 to score × this */
    bool is_bent;     /* by a cap or by slopes: logits are computed before the maximum */
    bool has_slopes;
    bool has_tree;
};

/* Element of an operand tile: address of row r, column c for this lane's ldmatrix. */
template <int PITCH> static __device__ __forceinline__ uint32_t kva_a_lane(uint32_t lane)
{
    return ((lane & 15) * PITCH + (lane >> 4) * 8) * 2;
}

template <int PITCH> static __device__ __forceinline__ uint32_t kva_b_lane(uint32_t lane)
{
    return (((lane & 7) + (lane >> 4) * 8) * PITCH + ((lane >> 3) & 1) * 8) * 2;
}

template <typename Element, int DK, int DV, int MB, int NB> struct kva_warp_tile {
    static constexpr int K_PITCH = DK + 8; /* elements */
    static constexpr int V_PITCH = DV + 8;

    float s[MB][NB][4];
    float o[MB][DV / 8][4];
    float top[MB][2]; /* m, in units of s: logits if bent, else before the scale */
    float sum[MB][2]; /* this lane's columns only */
    float unit;

    __device__ __forceinline__ void begin(float first_unit)
    {
#pragma unroll
        for (int m = 0; m < MB; m++) {
#pragma unroll
            for (int d = 0; d < DV / 8; d++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    o[m][d][e] = 0;
            top[m][0] = top[m][1] = -CUDART_INF_F;
            sum[m][0] = sum[m][1] = 0;
        }
        unit = first_unit;
    }

    /* q: this lane's address of the warp's first row (kva_a_lane); k likewise (kva_b_lane). */
    __device__ __forceinline__ void scores(uint32_t q, uint32_t k)
    {
#pragma unroll
        for (int m = 0; m < MB; m++)
#pragma unroll
            for (int n = 0; n < NB; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[m][n][e] = 0;
#pragma unroll
        for (int d = 0; d < DK / 16; d++) {
            uint32_t a[MB][4];

#pragma unroll
            for (int m = 0; m < MB; m++)
                kva_load_matrix(a[m], q + (m * 16 * K_PITCH + d * 16) * 2);
#pragma unroll
            for (int n = 0; n < NB; n += 2) {
                uint32_t b[4];

                kva_load_matrix(b, k + (n * 8 * K_PITCH + d * 16) * 2);
#pragma unroll
                for (int m = 0; m < MB; m++) {
                    kva_mma<Element>(s[m][n], a[m], b[0], b[1]);
                    kva_mma<Element>(s[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    /* A scale a token on the scores. */
    __device__ __forceinline__ void scale_scores(const float *k_scale)
    {
        const float *mine = k_scale + threadIdx.x % 4 * 2;

#pragma unroll
        for (int n = 0; n < NB; n++) {
            float2 two = *(const float2 *)(mine + n * 8);

#pragma unroll
            for (int m = 0; m < MB; m++) {
                s[m][n][0] *= two.x, s[m][n][1] *= two.y;
                s[m][n][2] *= two.x, s[m][n][3] *= two.y;
            }
        }
    }

    /* Calls change(s of row r, column of a token) for all of this lane's: r counts 8-row steps. */
    template <typename Change> __device__ __forceinline__ void each_score(Change change)
    {
#pragma unroll
        for (int r = 0; r < MB * 2; r++)
#pragma unroll
            for (int n = 0; n < NB; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    change(s[r / 2][n][r % 2 * 2 + e], r,
                           n * 8 + (int32_t)(threadIdx.x % 4) * 2 + e);
    }

    /* Caps and slopes: s becomes logits. `first` is the tile's first token. */
    __device__ __forceinline__ void bend(const struct kva_score &how, const struct kva_row *rows,
                                         int32_t first)
    {
        const struct kva_row *mine = rows + threadIdx.x % 32 / 4;

        if (how.soft_cap != 0)
            each_score(
                [&](float &x, int, int32_t) { x = kva_cap(how.cap_rate * x, how.soft_cap); });
        else
            each_score([&](float &x, int, int32_t) { x *= how.scale_log2; });
        if (how.has_slopes)
            each_score([&](float &x, int r, int32_t column) {
                x += mine[r * 8].slope * (float)(first + column - mine[r * 8].position);
            });
    }

    /* Token t, without branches: they would be many. */
    static __device__ __forceinline__ bool sees(const struct kva_row &row, int32_t t,
                                                int32_t new_first, bool has_tree)
    {
        uint32_t span = row.high > row.low ? (uint32_t)(row.high - row.low) : 0;
        bool in_tree = !has_tree | (t < new_first) | (row.mask >> ((t - new_first) & 63) & 1);

        return ((uint32_t)(t - row.low) < span) & in_tree;
    }

    __device__ __forceinline__ void mask(const struct kva_row *rows, int32_t first,
                                         int32_t new_first, bool has_tree)
    {
        const struct kva_row *mine = rows + threadIdx.x % 32 / 4;

        each_score([&](float &x, int r, int32_t column) {
            int32_t low = mine[r * 8].low, high = mine[r * 8].high;
            uint32_t span = high > low ? (uint32_t)(high - low) : 0;

            x = (uint32_t)(first + column - low) < span ? x : -CUDART_INF_F;
        });
        if (has_tree)
            each_score([&](float &x, int r, int32_t column) {
                x = sees(mine[r * 8], first + column, new_first, true) ? x : -CUDART_INF_F;
            });
    }

    /* s becomes exp(score − m), sum follows; alpha: what that does to o. */
    __device__ __forceinline__ void softmax(float rate, float (&alpha)[MB][2])
    {
#pragma unroll
        for (int m = 0; m < MB; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float high = top[m][half], base, total = 0;

#pragma unroll
                for (int n = 0; n < NB; n++)
                    high = fmaxf(high, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
                high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
                high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
                base = high == -CUDART_INF_F ? 0 : high * rate; /* nothing seen so far */
                alpha[m][half] = kva_exp2(top[m][half] * rate - base);
                top[m][half] = high;
#pragma unroll
                for (int n = 0; n < NB; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float p = kva_exp2(fmaf(s[m][n][half * 2 + e], rate, -base));

                        s[m][n][half * 2 + e] = p;
                        total += p;
                    }
                sum[m][half] = sum[m][half] * alpha[m][half] + total;
            }
        }
    }

    __device__ __forceinline__ void rescale(const float (&alpha)[MB][2], float more)
    {
#pragma unroll
        for (int m = 0; m < MB; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float factor = alpha[m][half] * more;

#pragma unroll
                for (int d = 0; d < DV / 8; d++) {
                    o[m][d][half * 2] *= factor;
                    o[m][d][half * 2 + 1] *= factor;
                }
            }
    }

    /* The unit for a tile whose scales of V are these; what it does to o. */
    __device__ __forceinline__ float next_unit(const float *v_scale)
    {
        float high = 0, before = unit;
        uint32_t lane = threadIdx.x % 32;

#pragma unroll
        for (int i = 0; i < (NB * 8 + 31) / 32; i++) {
            float one = lane + i * 32 < NB * 8 ? fabsf(v_scale[lane + i * 32]) : 0;

            high = one < CUDART_INF_F ? fmaxf(high, one) : high; /* nor NaN */
        }
#pragma unroll
        for (int step = 16; step; step /= 2)
            high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
        unit = fmaxf(high, before);
        return unit == before ? 1 : before / unit;
    }

    /* P times the scale of V, in units. What is not seen stays 0 whatever the scale. */
    __device__ __forceinline__ void scale_weights(const float *v_scale)
    {
        const float *mine = v_scale + threadIdx.x % 4 * 2;
        float inverse = unit != 0 ? 1 / unit : 1;

#pragma unroll
        for (int n = 0; n < NB; n++) {
            float2 two = *(const float2 *)(mine + n * 8);

            two.x *= inverse, two.y *= inverse;
#pragma unroll
            for (int m = 0; m < MB; m++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[m][n][e] = s[m][n][e] == 0 ? 0 : s[m][n][e] * (e % 2 ? two.y : two.x);
        }
    }

    /* v: this lane's address of the tile's first row (kva_a_lane: it is loaded transposed). */
    __device__ __forceinline__ void values(uint32_t v)
    {
#pragma unroll
        for (int t = 0; t < NB / 2; t++) {
            uint32_t a[MB][4];

#pragma unroll
            for (int m = 0; m < MB; m++) {
                a[m][0] = kva_pack<Element>(s[m][2 * t][0], s[m][2 * t][1]);
                a[m][1] = kva_pack<Element>(s[m][2 * t][2], s[m][2 * t][3]);
                a[m][2] = kva_pack<Element>(s[m][2 * t + 1][0], s[m][2 * t + 1][1]);
                a[m][3] = kva_pack<Element>(s[m][2 * t + 1][2], s[m][2 * t + 1][3]);
            }
#pragma unroll
            for (int d = 0; d < DV / 8; d += 2) {
                uint32_t b[4];

                kva_load_matrix_transposed(b, v + (t * 16 * V_PITCH + d * 8) * 2);
#pragma unroll
                for (int m = 0; m < MB; m++) {
                    kva_mma<Element>(o[m][d], a[m], b[0], b[1]);
                    kva_mma<Element>(o[m][d + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    /* Infinities and NaN of V's tile, added to the rows that see them. The caller clears them.
     * word_at(t, d): elements d and d + 1 of token t of the tile. */
    template <typename Word>
    __device__ __forceinline__ void add_wild(Word word_at, const struct kva_row *rows,
                                             int32_t first, int32_t new_first, bool has_tree)
    {
#pragma unroll 1
        for (int t = 0; t < NB * 8; t++) {
            bool seen[MB * 2];

#pragma unroll
            for (int r = 0; r < MB * 2; r++)
                seen[r] = sees(rows[r * 8 + threadIdx.x % 32 / 4], first + t, new_first, has_tree);
#pragma unroll
            for (int d = 0; d < DV / 8; d++) {
                uint32_t two = word_at(t, d * 8 + threadIdx.x % 4 * 2);

#pragma unroll
                for (int e = 0; e < 2; e++) {
                    uint16_t bits = (uint16_t)(e ? two >> 16 : two);
                    float value = kva_is_wild<Element>(bits) ? kva_float_of<Element>(bits) : 0;

#pragma unroll
                    for (int r = 0; r < MB * 2; r++)
                        o[r / 2][d][r % 2 * 2 + e] += seen[r] ? value : 0;
                }
            }
        }
    }

    /* The sums of whole rows, in all of a row's four lanes. */
    __device__ __forceinline__ void finish_sums()
    {
#pragma unroll
        for (int m = 0; m < MB; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                sum[m][half] += __shfl_xor_sync(~0u, sum[m][half], 1);
                sum[m][half] += __shfl_xor_sync(~0u, sum[m][half], 2);
            }
    }
};

/* For add_wild, of a tile of padded rows. */
template <int DV, typename Element> struct kva_padded_words {
    const Element *v;

    __device__ __forceinline__ uint32_t operator()(uint32_t t, uint32_t d) const
    {
        return *(const uint32_t *)(v + t * (DV + 8) + d);
    }
};

/* Whether this thread's share of V's tile holds infinities or NaN; `clear` puts zeros there. */
template <typename Element, int DV, int TOKENS, int THREADS>
static __device__ __forceinline__ bool kva_find_wild(Element *v, uint32_t thread, bool clear)
{
    uint32_t *words = (uint32_t *)v;
    bool found = false;

    for (uint32_t i = thread; i < TOKENS * (DV / 2); i += THREADS) {
        uint32_t at = i / (DV / 2) * ((DV + 8) / 2) + i % (DV / 2), two = words[at];
        bool low = kva_is_wild<Element>(two & 0xffff), high = kva_is_wild<Element>(two >> 16);

        found |= low || high;
        if (clear && (low || high))
            words[at] = (low ? 0 : two & 0xffff) | (high ? 0 : two & 0xffff0000u);
    }
    return found;
}

#endif
