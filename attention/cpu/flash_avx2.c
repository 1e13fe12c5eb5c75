/* SPDX-License-Identifier: Apache-2.0
 *
 * Flash attention in floats of AVX2, with FMA and F16C (Haswell, 2013, Zen, 2017, and later).
 */
#define KVA_TARGET  __attribute__((target("avx2,fma,f16c")))
#define FLASH_PAIRS 0
#define FLASH_CODE  kva_flash_avx2

#include "flash.h"

#ifdef KVA_X86
#include "simd_avx2.h"

static int flash_is_here(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && v_has_f16c();
}

#include "flash_tile.h"
#else
const struct kva_flash_code FLASH_CODE = {kva_flash_nowhere, NULL, NULL};
#endif
