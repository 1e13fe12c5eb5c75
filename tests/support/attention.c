/* SPDX-License-Identifier: Apache-2.0
 *
 * Cases and scenes of attention.h: from a description to a verdict.
 */
#include "support/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "support/attention_scene.h"
#include "support/spawn.h"

#define WORKSPACE_GUARD 4096u
#define ARRAYS          12u

/* ---- host memory ---- */

#define HEAD_BYTES 4096u
#define MAP_BYTES  (UINT64_C(1) << 30)

/* A head of HEAD_BYTES says how it was got: the size when it was mapped, else 0: from the heap,
 * where the address sanitizer watches the end. */
static void *host_alloc(uint64_t bytes)
{
    uint64_t size = bytes + HEAD_BYTES;
    void *memory = NULL;

    if (bytes >= MAP_BYTES) {
        memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED)
            return NULL;
    } else if (posix_memalign(&memory, HEAD_BYTES, size)) {
        return NULL;
    }
    *(uint64_t *)memory = bytes >= MAP_BYTES ? size : 0;
    return (char *)memory + HEAD_BYTES;
}

static void host_release(void *memory)
{
    char *start;

    if (!memory)
        return;
    start = (char *)memory - HEAD_BYTES;
    if (*(uint64_t *)(void *)start)
        munmap(start, *(uint64_t *)(void *)start);
    else
        free(start);
}

static void host_copy(void *to, const void *from, uint64_t bytes)
{
    memcpy(to, from, bytes);
}

static void host_set(void *to, int byte, uint64_t bytes)
{
    memset(to, byte, bytes);
}

static int host_sync(void *stream)
{
    (void)stream;
    return 0;
}

const struct kvt_memory kvt_host_memory = {
    .name = "host",
    .device = KVA_DEVICE_CPU,
    .alloc = host_alloc,
    .release = host_release,
    .put = host_copy,
    .get = host_copy,
    .set = host_set,
    .sync = host_sync,
};

/* ---- cases ---- */

void kvt_attention_resolve(struct kvt_attention_case *c)
{
    c->dim_v = c->dim_v ? c->dim_v : c->dim_k;
    c->dtype = c->dtype ? c->dtype : KVMEM_DTYPE_BF16;
    c->cache_dtype = c->cache_dtype ? c->cache_dtype : c->dtype;
    c->scale_dtype = c->scale_dtype ? c->scale_dtype : KVMEM_DTYPE_FP32;
    if (c->cache_dtype < KVMEM_DTYPE_FP8_E4M3)
        c->scale_mode = KVMEM_SCALE_NONE;
    else if (!c->scale_mode)
        c->scale_mode = KVMEM_SCALE_TENSOR;
    c->layout = c->layout ? c->layout : KVT_LAYOUT_PAGE_HEAD_TOKEN;
    c->has_scales_inside = c->has_scales_inside && c->scale_mode > KVMEM_SCALE_TENSOR &&
                           c->layout <= KVT_LAYOUT_PAGE_TOKEN_HEAD;
    c->block_tokens = c->block_tokens ? c->block_tokens : 16;
    c->layers = c->layers ? c->layers : 2;
    c->spread = c->spread ? c->spread : 1;
}

double kvt_attention_cost(const struct kvt_attention_case *c)
{
    uint32_t dims = c->dim_k + (c->dim_v ? c->dim_v : c->dim_k);
    double pairs = 0;

    for (uint32_t n = 0; n < c->seq_count; n++)
        pairs += (double)(c->rows ? c->rows[n] : c->row_count) *
                 (c->lengths ? c->lengths[n] : c->length);
    return pairs * c->heads * dims;
}

const char *kvt_attention_describe(const struct kvt_attention_case *c)
{
    static const char *const dtypes[] = {"-", "bf16", "fp16", "fp32", "e4m3", "int8"};
    static _Thread_local char text[320];

    snprintf(text, sizeof(text),
             "seed %llu: %u sequences%s, %u rows, %u tokens; heads %u/%u of %u/%u%s; %s, cache %s "
             "(scale mode %u%s); layout %u, blocks of %u%s; flags %u window %u cap %g scale "
             "%g%s%s%s; fill %d taint %d",
             (unsigned long long)c->seed, c->seq_count, c->is_ragged || c->rows ? " (ragged)" : "",
             c->rows ? c->rows[0] : c->row_count, c->lengths ? c->lengths[0] : c->length, c->heads,
             c->kv_heads, c->dim_k, c->dim_v, c->is_latent ? " latent" : "", dtypes[c->dtype % 6],
             dtypes[c->cache_dtype % 6], c->scale_mode, c->has_scales_inside ? " inside" : "",
             c->layout, c->block_tokens, c->has_shared_blocks ? " shared" : "", c->flags,
             c->window_tokens, (double)c->soft_cap, (double)c->softmax_scale,
             c->has_sinks ? " sinks" : "", c->has_slopes ? " slopes" : "",
             c->has_tree ? " tree" : "", (int)c->fill, (int)c->taint);
    return text;
}

/* ---- scenes ---- */

static void arrays_of(struct kvt_attention_scene *s, struct kvt_attention_array *arrays[ARRAYS])
{
    struct kvt_attention_array *all[ARRAYS] = {&s->pool[0], &s->pool[1], &s->scales, &s->tables,
                                               &s->lengths, &s->offsets, &s->sinks,  &s->slopes,
                                               &s->tree,    &s->q,       &s->out,    &s->lse};

    memcpy(arrays, all, sizeof(all));
}

bool kvt_attention_begin(struct kvt_attention_scene *s, const struct kvt_attention_case *c,
                         const struct kvt_memory *memory)
{
    *s = (struct kvt_attention_scene){.c = *c, .memory = memory};
    kvt_attention_resolve(&s->c);
    kvt_attention_lay_out(s);
    kvt_attention_fill(s);
    if (!kvt_attention_send(s)) {
        snprintf(s->text, sizeof(s->text), "too little memory on %s; %s", memory->name,
                 kvt_attention_describe(&s->c));
        kvt_attention_end(s);
        return false;
    }
    kvt_attention_find_truth(s);
    return true;
}

void kvt_attention_end(struct kvt_attention_scene *s)
{
    struct kvt_attention_array *arrays[ARRAYS];

    arrays_of(s, arrays);
    for (uint32_t i = 0; i < ARRAYS; i++) {
        free(arrays[i]->host);
        s->memory->release(arrays[i]->device);
        *arrays[i] = (struct kvt_attention_array){0};
    }
    free(s->exact);
    free(s->plain);
    free(s->exact_rows);
    free(s->plain_rows);
    s->exact = s->plain = NULL;
    s->exact_rows = s->plain_rows = NULL;
}

static enum kvt_verdict failed(struct kvt_attention_scene *s, const char *call, int code)
{
    snprintf(s->text, sizeof(s->text), "%s: %d, %s; %s", call, code, kva_error(),
             kvt_attention_describe(&s->c));
    return code == KVMEM_E_NOT_SUPPORTED ? KVT_REFUSED : KVT_WRONG;
}

/* Plan and run in a workspace of just the size asked for. */
static enum kvt_verdict plan_and_run(struct kvt_attention_scene *s, const struct kva_info *info,
                                     void *workspace)
{
    char *out = (char *)s->out.device + KVT_ATTENTION_GUARD;
    float *lse = (float *)((char *)s->lse.device + KVT_ATTENTION_GUARD);
    uint64_t bytes = info->workspace_bytes;
    int code = kva_attention_plan(&s->device, workspace, bytes, s->memory->stream);

    if (code)
        return failed(s, "plan", code);
    code = kva_attention_run(&s->device, s->c.layers - 1, s->q.device, out, lse, workspace, bytes,
                             s->memory->stream);
    if (code)
        return failed(s, "run", code);
    code = s->memory->sync(s->memory->stream);
    if (code) /* nothing works on that device from now on */
        kvt_die("%s: device error %d; %s", info->kernel, code, kvt_attention_describe(&s->c));
    return KVT_RIGHT;
}

static enum kvt_verdict check_guard(struct kvt_attention_scene *s, const char *workspace,
                                    uint64_t bytes)
{
    unsigned char guard[WORKSPACE_GUARD];

    s->memory->get(guard, workspace + bytes, sizeof(guard));
    for (uint32_t i = 0; i < sizeof(guard); i++)
        if (guard[i] != 0xab) {
            snprintf(s->text, sizeof(s->text), "written %u bytes behind a workspace of %llu; %s", i,
                     (unsigned long long)bytes, kvt_attention_describe(&s->c));
            return KVT_WRONG;
        }
    return KVT_RIGHT;
}

static enum kvt_verdict run_named(struct kvt_attention_scene *s)
{
    struct kva_info info = {.size = sizeof(info)};
    enum kvt_verdict verdict;
    char *workspace;
    int code = kva_attention_info(&s->device, &info);

    if (code)
        return failed(s, "info", code);
    workspace = s->memory->alloc(info.workspace_bytes + WORKSPACE_GUARD);
    if (!workspace)
        kvt_die("attention: no workspace of %llu bytes", (unsigned long long)info.workspace_bytes);
    s->memory->set(workspace, 0xab, info.workspace_bytes + WORKSPACE_GUARD);
    s->memory->set(s->out.device, 0xff, s->out.bytes);
    s->memory->set(s->lse.device, 0xff, s->lse.bytes);
    verdict = plan_and_run(s, &info, workspace);
    if (verdict == KVT_RIGHT) {
        s->memory->get(s->out.host, s->out.device, s->out.bytes);
        s->memory->get(s->lse.host, s->lse.device, s->lse.bytes);
        verdict = check_guard(s, workspace, info.workspace_bytes);
    }
    s->memory->release(workspace);
    return verdict;
}

enum kvt_verdict kvt_attention_run(struct kvt_attention_scene *s, const char *kernel)
{
    enum kvt_verdict verdict;

    kva_only_kernel = kernel;
    verdict = run_named(s);
    kva_only_kernel = NULL;
    return verdict;
}

enum kvt_verdict kvt_attention_try(struct kvt_attention_scene *s, const char *kernel)
{
    enum kvt_verdict verdict = kvt_attention_run(s, kernel);

    return verdict == KVT_RIGHT ? kvt_attention_judge(s) : verdict;
}

const char *kvt_attention_check(const struct kvt_attention_case *c, const struct kvt_memory *memory,
                                const char *kernel, enum kvt_verdict *verdict)
{
    static _Thread_local char text[512];
    struct kvt_attention_scene s;
    enum kvt_verdict found;

    if (!kvt_attention_begin(&s, c, memory)) {
        found = KVT_REFUSED;
    } else {
        found = kvt_attention_try(&s, kernel);
        kvt_attention_end(&s);
    }
    memcpy(text, s.text, sizeof(text));
    if (verdict)
        *verdict = found;
    return found == KVT_RIGHT ? NULL : text;
}
