/* SPDX-License-Identifier: Apache-2.0
 *
 * attention: the kernels of libkvmem-attention, a JSON line a row.
 *
 *   bench/attention                       the rows of this machine's CPU
 *   bench/attention --device cuda:0       those of a GPU (cuda/rows.c)
 *   bench/attention --shape decode:64x8192 [--heads 32/8 --dim 128 --dtype bf16 --layout page ...]
 *                                         any shape on either, without a limit
 *
 * Rows: cpu_decode against a plain read of the same bytes (at most 1 ÷ 0.8 of its time) and against
 * PyTorch (at most 1 ÷ 1.5), cpu_prefill against PyTorch (at most 1 ÷ 1.2); where PyTorch cannot be
 * had a row is not met. All are measured in turn, with two threads.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../attention/cpu/parallel.h"
#include "common/bench.h"
#include "cuda/rows.h"
#include "peer.h"
#include "shape.h"

static double own_ns(struct kvb_problem *p)
{
    uint64_t start = kvb_now_ns();

    kvb_kva_check(kva_attention_run(&p->what, p->shape.layers - 1, p->q, p->out, NULL, p->workspace,
                                    p->info.workspace_bytes, NULL),
                  "kva_attention_run");
    return (double)(kvb_now_ns() - start);
}

static void begin(struct kvb_problem *p, const struct kvb_shape *shape)
{
    kvb_problem_init(p, shape, &kvb_host);
    kvb_kva_check(kva_attention_plan(&p->what, p->workspace, p->info.workspace_bytes, NULL),
                  "kva_attention_plan");
    own_ns(p);
    kvb_problem_verify(p);
    fprintf(stderr, "%s: %s, %.1f MB of K and V, %.1f MB of workspace\n", kvb_shape_name(shape),
            p->info.kernel, (double)p->kv_bytes / 1e6, (double)p->info.workspace_bytes / 1e6);
}

/* ---- the read roof: the pool from one end to the other, in a piece a thread ---- */

struct reading {
    const char *pool;
    uint64_t bytes; /* of a piece */
    uint64_t sums[64];
};

typedef uint64_t wide_word __attribute__((vector_size(64), may_alias));

static void read_piece(void *argument, uint32_t i)
{
    struct reading *reading = argument;
    const wide_word *words = (const wide_word *)(reading->pool + i * reading->bytes);
    wide_word a = {0}, b = {0};

    for (uint64_t w = 0; w < reading->bytes / sizeof(*words); w += 2) {
        a ^= words[w];
        b ^= words[w + 1];
    }
    a ^= b;
    reading->sums[i] = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

/* In proportion to as many bytes as K and V have. */
static double read_ns(const struct kvb_problem *p)
{
    uint32_t pieces = p->shape.threads < 64 ? p->shape.threads : 64;
    struct reading reading = {.pool = p->pool, .bytes = p->pool_bytes / pieces / 128 * 128};
    struct kva_threads threads = {.threads = pieces};
    uint64_t start = kvb_now_ns(), sum = 0;
    double ns;

    kva_parallel(&threads, pieces, read_piece, &reading);
    for (uint32_t i = 0; i < pieces; i++)
        sum ^= reading.sums[i];
    __asm__ volatile("" : : "r"(sum));
    ns = (double)(kvb_now_ns() - start);
    return ns * (double)p->kv_bytes / (double)(reading.bytes * pieces);
}

/* ---- rows ---- */

static void add_fields(struct kvb_row *row, const struct kvb_problem *p)
{
    double ns = kvb_quantile(&row->own, 0.5);

    if (p->shape.rows < 16)
        snprintf(row->fields, sizeof(row->fields), "\"kernel\":\"%s\",\"gbps\":%.4g",
                 p->info.kernel, (double)p->kv_bytes / ns);
    else
        snprintf(row->fields, sizeof(row->fields), "\"kernel\":\"%s\",\"tflops\":%.4g",
                 p->info.kernel, p->operations / ns / 1e3);
}

static void start_torch(struct kvb_peer *peer, const struct kvb_shape *s)
{
    char numbers[128];

    snprintf(numbers, sizeof(numbers), "%u,%u,%u,%u,%u,%u,%u,%u", s->seqs, s->heads, s->kv_heads,
             s->rows, s->length, s->dim_k, s->rows > 1 && s->flags & KVA_CAUSAL ? 1 : 0,
             s->threads);
    kvb_peer_start(peer, "bench/attention/torch_cpu.py", numbers);
}

static int decode_rows(const struct kvb_shape *shape)
{
    static struct kvb_row roof = {.bench = "cpu_decode",
                                  .metric = "ns",
                                  .peer = "plain read of the same bytes",
                                  .limit = 1 / 0.8,
                                  .limit_kind = KVB_LIMIT_RATIO_MAX};
    static struct kvb_row torch = {.bench = "cpu_decode",
                                   .metric = "ns",
                                   .peer = "PyTorch, the better of bf16 and fp32",
                                   .limit = 1 / 1.5,
                                   .limit_kind = KVB_LIMIT_RATIO_MAX};
    static struct kvb_problem problem;
    struct kvb_peer peer;
    int failed;

    begin(&problem, shape);
    start_torch(&peer, shape);
    for (uint32_t i = 0; i < shape->samples; i++) {
        kvb_add(&roof.own, own_ns(&problem));
        kvb_add(&roof.peer_samples, read_ns(&problem));
        kvb_add(&torch.own, own_ns(&problem));
        if (peer.pid)
            kvb_add(&torch.peer_samples, kvb_peer_ask(&peer, "run"));
    }
    kvb_peer_stop(&peer);
    add_fields(&roof, &problem);
    add_fields(&torch, &problem);
    failed = kvb_report(&roof);
    return kvb_report(&torch) | failed;
}

static int prefill_row(const struct kvb_shape *shape)
{
    static struct kvb_row row = {.bench = "cpu_prefill",
                                 .metric = "ns",
                                 .peer = "PyTorch, the better of bf16 and fp32",
                                 .limit = 1 / 1.2,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};
    static struct kvb_problem problem;
    struct kvb_peer peer;

    begin(&problem, shape);
    start_torch(&peer, shape);
    for (uint32_t i = 0; i < shape->samples; i++) {
        kvb_add(&row.own, own_ns(&problem));
        if (peer.pid)
            kvb_add(&row.peer_samples, kvb_peer_ask(&peer, "run"));
    }
    kvb_peer_stop(&peer);
    add_fields(&row, &problem);
    return kvb_report(&row);
}

/* Whatever was asked for: beside a plain read, without a limit. */
static int any_row(const struct kvb_shape *shape)
{
    static struct kvb_row row = {.metric = "ns",
                                 .peer = "plain read of the same bytes",
                                 .limit = 1e9,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};
    static struct kvb_problem problem;

    begin(&problem, shape);
    row.bench = kvb_shape_name(shape);
    for (uint32_t i = 0; i < shape->samples; i++) {
        kvb_add(&row.own, own_ns(&problem));
        kvb_add(&row.peer_samples, read_ns(&problem));
    }
    add_fields(&row, &problem);
    return kvb_report(&row);
}

/* Threads that wait must not spin beside the one that is measured next: libgomp is told by the
 * environment, before it starts. */
static void stop_spinning(char **argv)
{
    if (getenv("OMP_WAIT_POLICY"))
        return;
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    struct kvb_shape shape = {.device = KVA_DEVICE_CPU,
                              .seqs = 8,
                              .rows = 1,
                              .length = 8192,
                              .heads = 32,
                              .kv_heads = 8,
                              .dim_k = 128,
                              .dim_v = 128,
                              .dtype = KVMEM_DTYPE_BF16,
                              .kv_dtype = KVMEM_DTYPE_BF16,
                              .layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN,
                              .block_tokens = 16,
                              .flags = KVA_CAUSAL,
                              .threads = 2,
                              .samples = 31};
    int has_shape, failed;

    stop_spinning(argv);
    has_shape = kvb_shape_parse(&shape, argc, argv);
    if (!shape.layers)
        shape.layers = shape.device == KVA_DEVICE_CUDA ? 32 : 1;
    if (shape.device == KVA_DEVICE_CUDA)
        return has_shape ? kvb_cuda_any(&shape) : kvb_cuda_rows(&shape);
    if (has_shape)
        return any_row(&shape);
    failed = decode_rows(&shape);
    shape.seqs = 1;
    shape.rows = shape.length = 2048;
    return prefill_row(&shape) | failed;
}
