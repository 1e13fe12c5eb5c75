/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of a GPU. K and V are bf16, page-major blocks of 16 tokens that hold 32 layers (2 MiB at
 * 8 heads of 128), in random order; 32 query heads.
 *
 *   decode_*          against a kernel that reads as many bytes; void where that is too slow itself
 *   decode_1x1024     µs
 *   layout_ratio      against the same memory read as a layer after the other
 *   decode_fp8, int8  against bf16: time of a step, so of a token
 *   mla_decode_*      µs that 2,500 GB/s of latent cache and 300 TFLOP/s would take
 *   prefill_*         against PyTorch's FlashAttention-2, contiguous (torch_gpu.py)
 *   flash_vs_standard against kva_standard_run, and that against PyTorch's math path
 *
 * Own and peer in turn; a sample is a graph of 32 runs, or of 3 where they are long.
 */
#include "rows.h"

#include <stdio.h>
#include <string.h>

#include "device.h"

#define ALL_MEMORY   UINT64_MAX
#define SMALL_MEMORY (UINT64_C(16) << 30) /* beside PyTorch */
#define WARM         2
#define ROOF_BYTES   (UINT64_C(256) << 20) /* of a read that shows what the card can do */

static const struct kvb_shape *base; /* what the command line says */
static struct kvb_row row;
static struct kvb_cuda_problem own, other;
static struct kvb_timed peer;

static struct kvb_row *begin_row(const char *bench, const char *metric, const char *peer_name)
{
    memset(&row, 0, sizeof(row));
    row.bench = bench;
    row.metric = metric;
    row.peer = peer_name;
    row.limit_kind = peer_name ? KVB_LIMIT_RATIO_MAX : KVB_LIMIT_MEDIAN_MAX;
    return &row;
}

/* Samples of own, and of `against` in turn unless it is NULL or does not answer. */
static void contest(struct kvb_timed *mine, struct kvb_timed *against)
{
    for (uint32_t i = 0; i < WARM + base->samples; i++) {
        double us = kvb_timed_us(mine), peer_us = against ? kvb_timed_us(against) : 0;

        if (i < WARM)
            continue;
        kvb_add(&row.own, us);
        if (peer_us > 0)
            kvb_add(&row.peer_samples, peer_us);
    }
}

static int finish(const struct kvb_problem *p)
{
    double ns = kvb_quantile(&row.own, 0.5) * 1e3;
    size_t used = strlen(row.fields);
    int is_long = p->shape.rows > KVB_CUDA_DECODE_ROWS;

    snprintf(row.fields + used, sizeof(row.fields) - used, "%s\"kernel\":\"%s\",\"%s\":%.4g",
             used ? "," : "", p->info.kernel, is_long ? "tflops" : "gbps",
             is_long ? p->operations / ns / 1e3 : (double)p->kv_bytes / ns);
    return kvb_report(&row);
}

static struct kvb_shape shape_of(uint32_t seqs, uint32_t length)
{
    struct kvb_shape shape = *base;

    shape.seqs = seqs;
    shape.length = length;
    shape.rows = 1;
    return shape;
}

/* ---- decode against reading ---- */

static void contest_reading(void)
{
    const struct kvb_problem *p = &own.problem;
    double gbps;

    kvb_cuda_reading(&peer, &own);
    contest(&own.timed, &peer);
    gbps = (double)p->kv_bytes / kvb_quantile(&row.peer_samples, 0.5) / 1e3;
    row.is_void = p->kv_bytes >= ROOF_BYTES && gbps < kvb_cuda_roof_gbps();
    snprintf(row.fields, sizeof(row.fields), "\"read_gbps\":%.4g", gbps);
}

static int decode_row(const char *bench, const struct kvb_shape *shape, double share)
{
    kvb_cuda_take(ALL_MEMORY);
    kvb_cuda_problem(&own, shape, shape->shortest ? KVB_CUDA_WITH_PLAN : 0);
    begin_row(bench, "us a layer", "plain read of the same bytes")->limit = 1 / share;
    contest_reading();
    return finish(&own.problem);
}

static int decode_rows(void)
{
    struct kvb_shape ragged = shape_of(64, 32768), one = shape_of(64, 8192);
    int failed = decode_row("decode_64x8192", &one, 0.90);

    ragged.shortest = 128;
    one = shape_of(128, 2048);
    failed |= decode_row("decode_128x2048", &one, 0.90);
    one = shape_of(16, 32768);
    failed |= decode_row("decode_16x32768", &one, 0.90);
    one = shape_of(1, 131072);
    failed |= decode_row("decode_1x131072", &one, 0.85);
    return decode_row("decode_ragged64", &ragged, 0.85) | failed;
}

/* ---- decode against a number ---- */

static int limit_row(const char *bench, const struct kvb_shape *shape)
{
    kvb_cuda_take(ALL_MEMORY);
    kvb_cuda_problem(&own, shape, 0);
    begin_row(bench, "us a layer", NULL);
    contest(&own.timed, NULL);
    return 0;
}

static int small_row(void)
{
    struct kvb_shape shape = shape_of(1, 1024);

    limit_row("decode_1x1024", &shape);
    row.limit = 9;
    return finish(&own.problem);
}

static int latent_row(const char *bench, uint32_t heads, double gbps, double tflops)
{
    struct kvb_shape shape = shape_of(64, 8192);
    double ns;

    shape.heads = heads;
    shape.kv_heads = 1;
    shape.dim_k = 576;
    shape.dim_v = 512;
    limit_row(bench, &shape);
    ns = kvb_quantile(&row.own, 0.5) * 1e3;
    row.limit = gbps > 0 ? (double)own.problem.kv_bytes / gbps / 1e3
                         : own.problem.operations / tflops / 1e6;
    snprintf(row.fields, sizeof(row.fields), "\"tflops\":%.4g", own.problem.operations / ns / 1e3);
    return finish(&own.problem);
}

/* ---- decode against decode ---- */

static int layout_row(void)
{
    struct kvb_shape shape = shape_of(64, 8192);

    kvb_cuda_take(ALL_MEMORY);
    kvb_cuda_problem(&own, &shape, 0);
    kvb_cuda_other_layout(&other, &own, KVMEM_LAYOUT_PER_LAYER);
    begin_row("layout_ratio", "us a layer, page-major", "per-layer layout")->limit = 1 / 0.97;
    contest(&own.timed, &other.timed);
    return finish(&own.problem);
}

static int quantised_row(const char *bench, uint32_t dtype)
{
    struct kvb_shape shape = shape_of(64, 8192);

    kvb_cuda_take(ALL_MEMORY);
    shape.kv_dtype = dtype;
    kvb_cuda_problem(&own, &shape, 0);
    shape.kv_dtype = KVMEM_DTYPE_BF16;
    kvb_cuda_problem(&other, &shape, 0);
    begin_row(bench, "us a layer, 64 x 8,192", "bf16")->limit = 1 / 1.7;
    contest(&own.timed, &other.timed);
    return finish(&own.problem);
}

/* ---- prefill ---- */

/* PyTorch's `backend` on the shape of own; absent where torch is not running. */
static struct kvb_timed *torch_as_peer(struct kvb_peer *torch, const char *backend,
                                       const struct kvb_timed *mine)
{
    const struct kvb_shape *s = &own.problem.shape;

    if (!torch->pid)
        return NULL;
    peer = (struct kvb_timed){.peer = torch};
    snprintf(peer.line, sizeof(peer.line), "%s %ux%u+%u %u", backend, s->seqs, s->rows,
             s->length - s->rows, mine->launches);
    return &peer;
}

static void prefill_problem(uint32_t seqs, uint32_t length)
{
    struct kvb_shape shape = shape_of(seqs, length);

    shape.rows = length;
    kvb_cuda_take(SMALL_MEMORY);
    kvb_cuda_problem(&own, &shape, 0);
    own.timed.is_warmed = true;
}

static int prefill_row(const char *bench, uint32_t seqs, uint32_t length, struct kvb_peer *torch)
{
    prefill_problem(seqs, length);
    begin_row(bench, "us a layer, causal", "PyTorch's FlashAttention-2")->limit = 1 / 0.9;
    contest(&own.timed, torch_as_peer(torch, "flash", &own.timed));
    return finish(&own.problem);
}

static int standard_rows(struct kvb_peer *torch)
{
    static struct kvb_timed standard;
    struct kva_info info;
    uint64_t bytes;
    int failed;

    prefill_problem(4, 4096);
    info = own.problem.info;
    kvb_cuda_standard(&standard, &own, &bytes);
    standard.is_warmed = true;
    begin_row("flash_vs_standard", "us for 4 x 4,096 causal", "kva_standard_run")->limit = 0.25;
    snprintf(row.fields, sizeof(row.fields), "\"flash_mib\":%.4g,\"standard_mib\":%.4g",
             (double)info.workspace_bytes / 1048576, (double)bytes / 1048576);
    contest(&own.timed, &standard);
    failed = finish(&own.problem);
    begin_row("standard_attention", "us for 4 x 4,096 causal", "PyTorch's math path")->limit =
        1 / 0.8;
    contest(&standard, torch_as_peer(torch, "math", &standard));
    snprintf(own.problem.info.kernel, sizeof(own.problem.info.kernel), "cuda standard");
    return finish(&own.problem) | failed;
}

static int prefill_rows(void)
{
    struct kvb_peer torch;
    char heads[32];
    int failed;

    kvb_cuda_take(SMALL_MEMORY);
    snprintf(heads, sizeof(heads), "--heads=%u/%u", base->heads, base->kv_heads);
    kvb_peer_start(&torch, "bench/attention/torch_gpu.py", heads);
    failed = prefill_row("prefill_4x4096", 4, 4096, &torch);
    failed |= prefill_row("prefill_1x16384", 1, 16384, &torch);
    failed |= standard_rows(&torch);
    kvb_peer_stop(&torch);
    return failed;
}

int kvb_cuda_rows(const struct kvb_shape *shape)
{
    int failed;

    base = shape;
    kvb_cuda_begin();
    failed = decode_rows();
    failed |= small_row();
    failed |= layout_row();
    failed |= quantised_row("decode_fp8", KVMEM_DTYPE_FP8_E4M3);
    failed |= quantised_row("decode_int8", KVMEM_DTYPE_INT8);
    failed |= latent_row("mla_decode_h16", 16, 2500, 0);
    failed |= latent_row("mla_decode_h128", 128, 0, 300);
    return prefill_rows() | failed;
}

int kvb_cuda_any(const struct kvb_shape *shape)
{
    base = shape;
    kvb_cuda_begin();
    kvb_cuda_take(ALL_MEMORY);
    kvb_cuda_problem(&own, shape, shape->shortest ? KVB_CUDA_WITH_PLAN : 0);
    begin_row(kvb_shape_name(shape), "us a layer", "plain read of the same bytes")->limit = 1e9;
    contest_reading();
    return finish(&own.problem);
}
