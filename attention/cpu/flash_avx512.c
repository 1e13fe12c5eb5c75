/* SPDX-License-Identifier: Apache-2.0
 *
 * Flash attention in floats of AVX-512.
 */
#define KVA_TARGET  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define FLASH_PAIRS 0
#define FLASH_CODE  kva_flash_avx512

#include "flash.h"

#ifdef KVA_X86
#include "simd_avx512.h"

static int flash_is_here(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#include "flash_tile.h"
#else
const struct kva_flash_code FLASH_CODE = {kva_flash_nowhere, NULL, NULL};
#endif
