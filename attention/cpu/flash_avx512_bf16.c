/* SPDX-License-Identifier: Apache-2.0
 *
 * Flash attention with bf16 products of AVX-512 (VDPBF16PS: 32 a instruction, summed in fp32).
 */
#define KVA_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")))
#define FLASH_PAIRS 1
#define FLASH_CODE  kva_flash_avx512_bf16

#include "flash.h"

#ifdef KVA_X86
#include "simd_avx512.h"

static int flash_is_here(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}

#include "flash_tile.h"
#else
const struct kva_flash_code FLASH_CODE = {kva_flash_nowhere, NULL, NULL};
#endif
