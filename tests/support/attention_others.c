/* SPDX-License-Identifier: Apache-2.0 */
#include "support/attention_others.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_scene.h"

static enum kvt_verdict failed(struct kvt_attention_scene *s, const char *call, int code)
{
    snprintf(s->text, sizeof(s->text), "%s: %d, %s; %s", call, code, kva_error(),
             kvt_attention_describe(&s->c));
    return code == KVMEM_E_NOT_SUPPORTED ? KVT_REFUSED : KVT_WRONG;
}

static void poison(struct kvt_attention_scene *s)
{
    s->memory->set(s->out.device, 0xff, s->out.bytes);
    s->memory->set(s->lse.device, 0xff, s->lse.bytes);
}

static void fetch(struct kvt_attention_scene *s)
{
    s->memory->get(s->out.host, s->out.device, s->out.bytes);
    s->memory->get(s->lse.host, s->lse.device, s->lse.bytes);
}

static char *out_of(const struct kvt_attention_scene *s)
{
    return (char *)s->out.device + KVT_ATTENTION_GUARD;
}

static float *lse_of(const struct kvt_attention_scene *s)
{
    return (float *)(void *)((char *)s->lse.device + KVT_ATTENTION_GUARD);
}

/* ---- standard ---- */

static int run_standard(struct kvt_attention_scene *s, void *workspace, uint64_t bytes)
{
    int code = kva_standard_run(&s->device, s->c.layers - 1, s->q.device, out_of(s), workspace,
                                bytes, s->memory->stream);

    return code ? code : s->memory->sync(s->memory->stream);
}

/* A GPU rounds each weight to the type of q, after it was divided by the sum: where the rule takes
 * exact sums for granted, another rounding of the result is allowed. */
static void allow_rounded_weights(struct kvt_attention_scene *s)
{
    double u = kva_reference_unit(s->c.dtype);
    uint64_t rows = (uint64_t)kvt_attention_row(s, s->c.seq_count) * s->c.heads;

    for (uint64_t i = 0; i < rows; i++) {
        double most = 0;

        for (uint32_t d = 0; d < s->c.dim_v; d++)
            most = fmax(most, fabs(s->exact[i * s->c.dim_v + d]));
        s->exact_rows[i].value += u * most * 0x1p21;
    }
}

enum kvt_verdict kvt_standard_try(struct kvt_attention_scene *s)
{
    struct kva_info info = {.size = sizeof(info)};
    int code = kva_standard_info(&s->device, &info);
    void *workspace;

    if (code)
        return failed(s, "standard_info", code);
    workspace = s->memory->alloc(info.workspace_bytes + 256);
    s->memory->set(workspace, 0xff, info.workspace_bytes + 256);
    poison(s);
    code = run_standard(s, workspace, info.workspace_bytes);
    s->memory->release(workspace);
    if (code)
        return failed(s, "standard_run", code);
    fetch(s);
    for (uint32_t r = 0; r < kvt_attention_row(s, s->c.seq_count); r++)
        for (uint32_t h = 0; h < s->c.heads; h++)
            *kvt_attention_lse(s, r, h) = (float)s->exact_rows[(uint64_t)r * s->c.heads + h].lse;
    if (s->c.fill != KVT_FILL_RANDOM && s->memory->device == KVA_DEVICE_CUDA)
        allow_rounded_weights(s);
    return kvt_attention_judge(s);
}

/* ---- cascade ---- */

/* Blocks that all sequences begin with, and that all their rows see. */
static uint32_t shared_blocks(const struct kvt_attention_scene *s)
{
    const struct kva_batch *b = &s->host.batch;
    uint32_t count = UINT32_MAX;

    for (uint32_t n = 0; n < b->seq_count; n++) {
        const int32_t *table = b->tables + (uint64_t)n * b->table_stride;
        int32_t rows = (int32_t)(kvt_attention_row(s, n + 1) - kvt_attention_row(s, n));
        int32_t old = b->kv_lengths[n] - rows;
        uint32_t same = 0, most = old > 0 ? (uint32_t)old / s->c.block_tokens : 0;

        while (same < most && table[same] == b->tables[same])
            same++;
        count = same < count ? same : count;
    }
    return count;
}

/* What the two descriptions say differently; lengths (N + 1): the prefix's, then each one's own. */
static struct kva_cascade describe(const struct kvt_attention_scene *s, uint32_t blocks,
                                   int32_t *lengths)
{
    struct kva_cascade what = {.size = sizeof(what), .prefix = s->device, .own = s->device};
    struct kva_batch *prefix = &what.prefix.batch, *own = &what.own.batch;

    what.prefix.flags &= ~(uint32_t)KVA_CAUSAL;
    what.prefix.sinks = NULL;
    prefix->seq_count = 1;
    prefix->q_max = prefix->q_total;
    prefix->q_offsets = NULL;
    prefix->kv_max = blocks * s->c.block_tokens;
    prefix->kv_lengths = lengths;
    own->kv_lengths = lengths + 1;
    own->kv_max -= prefix->kv_max;
    own->tables += blocks;
    return what;
}

static int run_cascade(struct kvt_attention_scene *s, const struct kva_cascade *what)
{
    struct kva_info info = {.size = sizeof(info)};
    int code = kva_cascade_info(what, &info);
    void *workspace;

    if (code)
        return code;
    workspace = s->memory->alloc(info.workspace_bytes);
    s->memory->set(workspace, 0xff, info.workspace_bytes);
    code = kva_cascade_plan(what, workspace, info.workspace_bytes, s->memory->stream);
    if (!code)
        code = kva_cascade_run(what, s->c.layers - 1, s->q.device, out_of(s), lse_of(s), workspace,
                               info.workspace_bytes, s->memory->stream);
    if (!code)
        code = s->memory->sync(s->memory->stream);
    s->memory->release(workspace);
    return code;
}

enum kvt_verdict kvt_cascade_try(struct kvt_attention_scene *s, uint32_t *prefix_tokens)
{
    uint32_t count = s->c.seq_count, blocks = shared_blocks(s);
    uint64_t rows = (uint64_t)s->host.batch.q_total * s->c.heads;
    int32_t *lengths = malloc(4ull * (count + 1));
    struct kva_cascade what;
    int32_t *device;
    int code;

    *prefix_tokens = blocks * s->c.block_tokens;
    lengths[0] = (int32_t)*prefix_tokens;
    for (uint32_t n = 0; n < count; n++)
        lengths[n + 1] = s->host.batch.kv_lengths[n] - lengths[0];
    device = s->memory->alloc(4ull * (count + 1));
    s->memory->put(device, lengths, 4ull * (count + 1));
    free(lengths);
    what = describe(s, blocks, device);
    poison(s);
    code = run_cascade(s, &what);
    s->memory->release(device);
    if (code)
        return failed(s, "cascade", code);
    fetch(s);
    for (uint64_t i = 0; i < rows; i++) /* the parts were rounded too */
        s->exact_rows[i].spread += s->exact_rows[i].value / 2;
    return kvt_attention_judge(s);
}

/* ---- cases ---- */

const char *kvt_standard_check(const struct kvt_attention_case *c, const struct kvt_memory *memory)
{
    static _Thread_local char text[512];
    struct kvt_attention_scene s;
    enum kvt_verdict verdict = KVT_REFUSED;

    if (kvt_attention_begin(&s, c, memory)) {
        verdict = kvt_standard_try(&s);
        kvt_attention_end(&s);
    }
    memcpy(text, s.text, sizeof(text));
    return verdict == KVT_RIGHT ? NULL : text;
}

const char *kvt_cascade_check(const struct kvt_attention_case *c, const struct kvt_memory *memory,
                              uint32_t *prefix_tokens)
{
    static _Thread_local char text[512];
    struct kvt_attention_scene s;
    enum kvt_verdict verdict = KVT_REFUSED;

    if (kvt_attention_begin(&s, c, memory)) {
        verdict = kvt_cascade_try(&s, prefix_tokens);
        kvt_attention_end(&s);
    }
    memcpy(text, s.text, sizeof(text));
    return verdict == KVT_RIGHT ? NULL : text;
}

/* What both kinds have in common. */
static struct kvt_attention_case base_case(uint32_t i, uint32_t device)
{
    static const uint16_t dims[][2] = {{64, 64},   {80, 80},   {96, 96},
                                       {128, 128}, {192, 128}, {256, 256}};
    static const uint8_t groups[][2] = {{8, 2}, {4, 4}, {6, 1}, {16, 2}};
    static const uint32_t types[] = {KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP32};
    struct kvt_attention_case c = {
        .seed = 1000 + i,
        .heads = groups[i % 4][0],
        .kv_heads = groups[i % 4][1],
        .dim_k = dims[i % 6][0],
        .dim_v = dims[i % 6][1],
        .dtype = types[i % (device == KVA_DEVICE_CPU ? 3 : 2)],
        .layout = KVT_LAYOUT_PAGE_HEAD_TOKEN + i / 2 % (KVT_LAYOUT_SPLIT),
        .block_tokens = 8u << i / 3 % 4,
        .flags = i % 3 ? KVA_CAUSAL : 0,
        .soft_cap = i % 7 == 3 ? 20 : 0,
        .softmax_scale = i % 5 == 2 ? 0.3f : 0,
        .has_padded_rows = i / 2 % 2,
        .is_ragged = i / 4 % 2,
    };

    return c;
}

struct kvt_attention_case kvt_standard_case(uint32_t i, uint32_t device)
{
    static const uint16_t shapes[][3] = {{1, 1, 1},    {3, 17, 40},   {2, 128, 128}, {5, 1, 300},
                                         {1, 200, 77}, {2, 129, 513}, {4, 33, 65},   {1, 150, 280},
                                         {2, 64, 0},   {3, 5, 1000}};
    struct kvt_attention_case c = base_case(i, device);

    c.seq_count = shapes[i % 10][0];
    c.row_count = shapes[i % 10][1];
    c.length = shapes[i % 10][2];
    c.row_step = c.row_count > 20 ? 5 : 0;
    c.fill = i / 10 % 3;
    if (c.fill != KVT_FILL_RANDOM)
        c.soft_cap = 0;
    if (device == KVA_DEVICE_CPU && i % 4 == 1) {
        c.cache_dtype = i % 8 == 1 ? KVMEM_DTYPE_FP8_E4M3 : KVMEM_DTYPE_INT8;
        c.scale_mode = KVMEM_SCALE_TENSOR + i / 8 % 3;
    }
    return c;
}

struct kvt_attention_case kvt_cascade_case(uint32_t i, uint32_t device)
{
    static const uint16_t shapes[][3] = {{4, 1, 300}, {3, 7, 200}, {8, 2, 513},
                                         {1, 20, 90}, {5, 4, 700}, {2, 40, 260}};
    struct kvt_attention_case c = base_case(i, device);

    c.seq_count = shapes[i % 6][0];
    c.row_count = shapes[i % 6][1];
    c.length = shapes[i % 6][2];
    c.is_ragged = i / 4 % 4 == 1;
    c.has_offsets = i % 2;
    c.row_step = c.row_count > 10 ? 3 : 0;
    c.has_shared_blocks = true;
    c.has_sinks = i % 5 == 1;
    c.layout = KVT_LAYOUT_PAGE_HEAD_TOKEN + i / 2 % 3;
    return c;
}
