/* SPDX-License-Identifier: Apache-2.0
 *
 * Arithmetic of scores that all kernels share.
 */
#ifndef KVA_CUDA_SCORE_CUH
#define KVA_CUDA_SCORE_CUH

#include <cuda_runtime.h>

static __device__ __forceinline__ float kva_exp2(float x)
{
    float out;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

/* cap × tanh(a), of u = 2a log2 e. 1 − 2 ÷ (e^2a + 1) cancels where a is small, and a large cap
 * would show it: there it is a − a³/3 + 2a⁵/15, with a relative error of 17a⁶/315, 2e-7 at most. */
static __device__ __forceinline__ float kva_cap(float u, float cap)
{
    float a = u * 0.34657359f; /* ln 2 ÷ 2 */
    float square = a * a, near = a + a * square * (square * (2.0f / 15) - 1.0f / 3);
    float far = 1 - __fdividef(2.0f, kva_exp2(u) + 1);

    return cap * (fabsf(a) < 1.0f / 8 ? near : far);
}

#endif
