/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU's fast kernels, each by name, on random cases that fit it: every type, mask, layout and
 * length around the edges of tiles, strips and chunks.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_scene.h"
#include "support/random.h"

#define CASES 200u

static uint32_t below(uint64_t *random, uint32_t end)
{
    return (uint32_t)(kvt_random(random) % end);
}

static uint32_t pick(uint64_t *random, const uint32_t *choices, uint32_t count)
{
    return choices[below(random, count)];
}

#define PICK(...) \
    pick(random, (const uint32_t[]){__VA_ARGS__}, sizeof((uint32_t[]){__VA_ARGS__}) / 4)

static void add_masks(uint64_t *random, struct kvt_attention_case *c)
{
    uint32_t mask = below(random, 4);

    if (mask == 1 || mask == 2)
        c->flags |= KVA_CAUSAL;
    if (mask == 3 && c->row_count <= 64)
        c->has_tree = true;
    if (mask >= 2 && (c->flags || c->has_tree))
        c->window_tokens = PICK(1, 17, 64, 100, 1000);
    if (below(random, 3) == 0)
        c->flags |= KVA_BATCH_INVARIANT;
    c->soft_cap = below(random, 4) ? 0 : 5;
    c->has_sinks = below(random, 4) == 0;
    c->has_slopes = below(random, 4) == 0;
}

static void add_types(uint64_t *random, struct kvt_attention_case *c)
{
    c->dtype = PICK(KVMEM_DTYPE_BF16, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP32);
    c->cache_dtype = PICK(0, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP32,
                          KVMEM_DTYPE_FP8_E4M3, KVMEM_DTYPE_INT8);
    if (c->cache_dtype >= KVMEM_DTYPE_FP8_E4M3) {
        c->scale_dtype = PICK(KVMEM_DTYPE_FP32, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16);
        c->scale_mode = PICK(0, KVMEM_SCALE_HEAD, KVMEM_SCALE_TOKEN_HEAD);
    }
}

static void add_shapes(uint64_t *random, struct kvt_attention_case *c)
{
    c->seq_count = 1 + below(random, 4);
    c->row_count = PICK(1, 1, 2, 4, 7, 33, 64, 130);
    c->length = PICK(0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300, 1100, 2300);
    c->is_ragged = c->length && below(random, 2);
    c->kv_heads = 1 + below(random, 3);
    c->heads = c->kv_heads * PICK(1, 2, 3, 4, 8, 13);
    c->dim_k = PICK(64, 64, 80, 96, 128, 128, 192, 256, 6, 34);
    c->dim_v = c->dim_k == 192 ? 128 : below(random, 6) ? 0 : PICK(64, 24, 7, 40);
    c->layout = 1 + below(random, KVT_LAYOUT_END - 1);
    c->block_tokens = PICK(16, 16, 1, 8, 32, 64, 24, 256);
    c->has_padded_rows = below(random, 2);
    c->has_offsets = below(random, 2);
    c->threads = 1 + below(random, 3);
    c->row_step = c->row_count > 8 ? 5 : 0;
}

static struct kvt_attention_case random_case(uint64_t seed)
{
    uint64_t state = seed, *random = &state;
    struct kvt_attention_case c = {.seed = seed};

    add_shapes(random, &c);
    add_types(random, &c);
    add_masks(random, &c);
    c.taint = below(random, 6) ? 0 : below(random, KVT_TAINT_END);
    c.is_strict = true;
    c.row_step = c.taint ? 1 : c.row_step;
    c.fill = below(random, 5) ? 0 : (enum kvt_fill)PICK(KVT_FILL_EVEN, KVT_FILL_ONE_HOT);
    return c;
}

/* All cases that the kernel takes; a quarter of them at least. */
static void run_cases(const char *kernel)
{
    const char *first = getenv("KVMEM_SEED");
    uint64_t seed = first ? strtoull(first, NULL, 0) : 1;
    uint32_t done = 0, count = first ? 1 : CASES;

    for (uint64_t i = seed; i < seed + count; i++) {
        struct kvt_attention_case c = random_case(i);
        enum kvt_verdict verdict;
        const char *text = kvt_attention_check(&c, &kvt_host_memory, kernel, &verdict);

        if (verdict == KVT_REFUSED && i == seed && strstr(text, "this processor"))
            cr_skip_test("%s", text);
        cr_assert(verdict != KVT_WRONG, "KVMEM_SEED=%llu: %s", (unsigned long long)i, text);
        done += verdict == KVT_RIGHT;
    }
    cr_expect(first || done >= CASES / 4, "%s took %u cases only", kernel, done);
}

Test(attention_flash, avx512_bf16)
{
    run_cases("avx512_bf16");
}

Test(attention_flash, avx512_fp32)
{
    run_cases("avx512_fp32");
}

Test(attention_flash, avx2)
{
    run_cases("avx2");
}

/* ---- a NaN that is alone ---- */

/* Of a chunk (2,048 tokens in the invariant mode), or of a sequence. */
static void run_alone(const char *kernel, uint32_t length, uint32_t tainted, bool has_sinks)
{
    for (uint32_t dtype = KVMEM_DTYPE_BF16; dtype <= KVMEM_DTYPE_FP32; dtype += 2) {
        struct kvt_attention_case c = {.seed = 1,
                                       .seq_count = 1,
                                       .row_count = 1,
                                       .length = length,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .dim_k = 64,
                                       .dtype = dtype,
                                       .flags = KVA_CAUSAL | KVA_BATCH_INVARIANT,
                                       .has_sinks = has_sinks,
                                       .taint = KVT_TAINT_K_NAN,
                                       .tainted = tainted};
        enum kvt_verdict verdict;
        const char *text = kvt_attention_check(&c, &kvt_host_memory, kernel, &verdict);

        cr_assert(verdict != KVT_WRONG, "%s: %s", kernel, text);
    }
}

Test(attention_flash, a_nan_that_is_alone_is_not_lost)
{
    static const char *const kernels[] = {"avx512_bf16", "avx512_fp32", "avx2", "portable"};

    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t has_sinks = 0; has_sinks < 2; has_sinks++) {
            run_alone(kernels[i], 1, 1, has_sinks);
            run_alone(kernels[i], 2049, 2049, has_sinks);
            run_alone(kernels[i], 4097, 4097, has_sinks);
            run_alone(kernels[i], 4097, 1, has_sinks);
        }
}

/* ---- the threads of OpenMP ---- */

#define GUARD 4096u

extern void omp_set_num_threads(int count) __attribute__((weak));

/* A plan made where OpenMP has `before` threads, run where it has `after`, in exactly what info
 * asked for. */
static void run_elsewhere(struct kvt_attention_scene *s, int before, int after)
{
    struct kva_info info = {.size = sizeof(info)};
    float *lse = (float *)(void *)((char *)s->lse.device + KVT_ATTENTION_GUARD);
    unsigned char *workspace;
    uint64_t bytes;

    memset(s->out.device, 0xff, s->out.bytes);
    memset(s->lse.device, 0xff, s->lse.bytes);
    omp_set_num_threads(before);
    cr_assert_eq(kva_attention_info(&s->device, &info), 0, "%s", kva_error());
    bytes = info.workspace_bytes;
    workspace = s->memory->alloc(bytes + GUARD);
    memset(workspace, 0xab, bytes + GUARD);
    cr_assert_eq(kva_attention_plan(&s->device, workspace, bytes, NULL), 0);
    omp_set_num_threads(after);
    cr_assert_eq(kva_attention_run(&s->device, 1, s->q.device,
                                   (char *)s->out.device + KVT_ATTENTION_GUARD, lse, workspace,
                                   bytes, NULL),
                 0, "%d, then %d: %s", before, after, kva_error());
    for (uint32_t i = 0; i < GUARD; i++)
        cr_assert_eq(workspace[bytes + i], 0xab, "%d, then %d", before, after);
    cr_assert_eq(kva_attention_run(&s->device, 1, s->q.device, s->out.device, lse, workspace,
                                   bytes - 1, NULL),
                 KVMEM_E_INVALID);
    s->memory->get(s->out.host, s->out.device, s->out.bytes);
    s->memory->get(s->lse.host, s->lse.device, s->lse.bytes);
    cr_assert_eq(kvt_attention_judge(s), KVT_RIGHT, "%d, then %d: %s", before, after, s->text);
    s->memory->release(workspace);
}

Test(attention_flash, a_plan_runs_where_there_are_other_threads)
{
    static const char *const kernels[] = {"avx512_bf16", "avx512_fp32", "avx2"};
    struct kvt_attention_case c = {.seed = 1,
                                   .seq_count = 2,
                                   .row_count = 3,
                                   .length = 3000,
                                   .heads = 4,
                                   .kv_heads = 2,
                                   .dim_k = 64};
    struct kvt_attention_scene scene;
    struct kva_info info = {.size = sizeof(info)};

    if (!omp_set_num_threads)
        cr_skip_test("built without OpenMP");
    cr_assert(kvt_attention_begin(&scene, &c, &kvt_host_memory), "%s", scene.text);
    scene.device.threads = 0;
    for (uint32_t i = 0; i < 3; i++) {
        kva_only_kernel = kernels[i];
        if (kva_attention_info(&scene.device, &info) == KVMEM_E_NOT_SUPPORTED)
            continue;
        run_elsewhere(&scene, 1, 7);
        run_elsewhere(&scene, 7, 1);
        run_elsewhere(&scene, 3, 3);
    }
    kva_only_kernel = NULL;
    kvt_attention_end(&scene);
}
