/* SPDX-License-Identifier: Apache-2.0
 *
 * flash_vs_standard: causal prefill of 4 sequences of 4,096 tokens, 32 query heads, 8 K/V heads of
 * 128, bf16, blocks of 16 tokens in random places: kva_attention_run against kva_standard_run, in
 * turn. At most a quarter of its time (FlashAttention, Dao et al. 2022, claims 2 to 4 times, up
 * to 7.6 on GPT-2's shape). Before that both results are compared with each other.
 *
 * On stderr: TFLOP/s of both, of the products that a causal mask leaves, and the memory each needs.
 */
#include <kvmem/attention_merge.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

#define SEQS         4u
#define TOKENS       4096u
#define HEADS        32u
#define KV_HEADS     8u
#define DIM          128u
#define BLOCK_TOKENS 16u
#define BLOCKS       (SEQS * TOKENS / BLOCK_TOKENS)
#define ROWS         (SEQS * TOKENS)
#define KV           (BLOCK_TOKENS * KV_HEADS * DIM) /* elements of a block's K */
#define SAMPLES      30u

struct run {
    struct kva_attention what;
    struct kva_info flash;
    struct kva_info standard;
    void *q;
    void *out;
    void *workspace;
    void *stream;
};

/* Multiples of 2^−6 in −1 .. 1, in device memory. */
static void *random_values(uint64_t count, uint64_t seed, void *stream)
{
    uint16_t *host = malloc(count * 2);
    void *device = kvt_gpu_alloc(count * 2);

    for (uint64_t i = 0; i < count; i++) {
        float value = (float)((double)(kvb_random(&seed) % 129) / 64 - 1);
        uint32_t bits;

        memcpy(&bits, &value, 4);
        host[i] = (uint16_t)(bits >> 16);
    }
    kvt_gpu_copy(device, host, count * 2, stream);
    kvt_gpu_sync(stream);
    free(host);
    return device;
}

static void *device_array(const int32_t *host, uint32_t count, void *stream)
{
    void *device = kvt_gpu_alloc(4ull * count);

    kvt_gpu_copy(device, host, 4ull * count, stream);
    kvt_gpu_sync(stream);
    return device;
}

static void *shuffled_tables(void *stream)
{
    static int32_t tables[BLOCKS];
    uint64_t random = 0x7ab1e;

    for (uint32_t i = 0; i < BLOCKS; i++)
        tables[i] = (int32_t)i;
    for (uint32_t i = BLOCKS - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(kvb_random(&random) % (i + 1));
        int32_t block = tables[i];

        tables[i] = tables[j];
        tables[j] = block;
    }
    return device_array(tables, BLOCKS, stream);
}

static void describe(struct run *run)
{
    const int32_t lengths[SEQS] = {TOKENS, TOKENS, TOKENS, TOKENS};
    uint16_t *pool = random_values(2ull * KV * BLOCKS, 1, run->stream);

    run->q = random_values((uint64_t)ROWS * HEADS * DIM, 2, run->stream);
    run->out = kvt_gpu_alloc(2ull * ROWS * HEADS * DIM);
    run->what =
        (struct kva_attention){.size = sizeof(run->what),
                               .device = KVA_DEVICE_CUDA,
                               .flags = KVA_CAUSAL,
                               .q_head_count = HEADS,
                               .dtype = KVMEM_DTYPE_BF16,
                               .q_token_stride = HEADS * DIM,
                               .q_head_stride = DIM,
                               .out_token_stride = HEADS * DIM,
                               .out_head_stride = DIM,
                               .cache = {.dtype = KVMEM_DTYPE_BF16,
                                         .block_tokens = BLOCK_TOKENS,
                                         .block_count = BLOCKS,
                                         .layer_count = 1,
                                         .kv_head_count = KV_HEADS,
                                         .head_dim_k = DIM,
                                         .head_dim_v = DIM,
                                         .k = pool,
                                         .v = pool + KV,
                                         .block_stride = 2 * KV,
                                         .k_head_stride = BLOCK_TOKENS * DIM,
                                         .k_token_stride = DIM,
                                         .v_head_stride = BLOCK_TOKENS * DIM,
                                         .v_token_stride = DIM},
                               .batch = {.seq_count = SEQS,
                                         .q_max = TOKENS,
                                         .q_total = ROWS,
                                         .kv_max = TOKENS,
                                         .table_stride = TOKENS / BLOCK_TOKENS,
                                         .tables = shuffled_tables(run->stream),
                                         .kv_lengths = device_array(lengths, SEQS, run->stream)}};
}

static void must(int code, const char *what)
{
    if (code)
        kvt_die("%s: %d, %s", what, code, kva_error());
}

static void make_workspace(struct run *run)
{
    uint64_t bytes;

    run->flash.size = run->standard.size = sizeof(struct kva_info);
    must(kva_attention_info(&run->what, &run->flash), "attention_info");
    must(kva_standard_info(&run->what, &run->standard), "standard_info");
    bytes = run->flash.workspace_bytes + run->standard.workspace_bytes + 256;
    run->workspace = kvt_gpu_alloc(bytes);
}

static void attend(struct run *run)
{
    must(kva_attention_run(&run->what, 0, run->q, run->out, NULL, run->workspace,
                           run->flash.workspace_bytes, run->stream),
         "attention_run");
}

static void plan(struct run *run)
{
    must(kva_attention_plan(&run->what, run->workspace, run->flash.workspace_bytes, run->stream),
         "attention_plan");
}

/* Behind the other's workspace, whose plan must stay. */
static void attend_standard(struct run *run)
{
    char *scores = (char *)run->workspace + (run->flash.workspace_bytes + 255) / 256 * 256;

    must(kva_standard_run(&run->what, 0, run->q, run->out, scores, run->standard.workspace_bytes,
                          run->stream),
         "standard_run");
}

static double time_us(struct run *run, void (*work)(struct run *run))
{
    static struct kvb_gpu_timer timer;

    kvb_gpu_timer_begin(&timer, run->stream);
    work(run);
    return kvb_gpu_timer_end(&timer);
}

static float value_of(uint16_t bits)
{
    uint32_t word = (uint32_t)bits << 16;
    float value;

    memcpy(&value, &word, 4);
    return value;
}

/* Values of V are at most 1, so are the results. */
static void verify(struct run *run)
{
    uint64_t count = (uint64_t)ROWS * HEADS * DIM;
    uint16_t *seen[2] = {malloc(2 * count), malloc(2 * count)};
    double most = 0;

    plan(run);
    attend(run);
    kvt_gpu_copy(seen[0], run->out, 2 * count, run->stream);
    kvt_gpu_set(run->out, 0xff, 2 * count, run->stream);
    attend_standard(run);
    kvt_gpu_copy(seen[1], run->out, 2 * count, run->stream);
    kvt_gpu_sync(run->stream);
    for (uint64_t i = 0; i < count; i++) {
        double difference = fabs((double)value_of(seen[0][i]) - (double)value_of(seen[1][i]));

        if (!(difference <= 0.02))
            kvt_die("element %llu: %g and %g", (unsigned long long)i, (double)value_of(seen[0][i]),
                    (double)value_of(seen[1][i]));
        most = fmax(most, difference);
    }
    fprintf(stderr, "flash_vs_standard: largest difference %.5f\n", most);
    free(seen[0]);
    free(seen[1]);
}

static void note(const char *what, double us, const struct kva_info *info)
{
    double operations = 4.0 * SEQS * HEADS * DIM * TOKENS * (TOKENS + 1) / 2;

    fprintf(stderr, "flash_vs_standard: %s (%s): %.0f us, %.1f TFLOP/s, workspace %.1f MiB\n", what,
            info->kernel, us, operations / us * 1e-6, (double)info->workspace_bytes / 1048576);
}

int main(int argc, char **argv)
{
    static struct kvb_row row = {.bench = "flash_vs_standard",
                                 .metric = "us for 4 x 4,096 causal",
                                 .peer = "kva_standard_run",
                                 .limit = 0.25,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};
    static struct run run;

    kvb_gpu_begin(argc, argv, NULL);
    run.stream = kvt_gpu_stream_new();
    describe(&run);
    make_workspace(&run);
    verify(&run);
    for (uint32_t i = kvb_gpu_samples(SAMPLES); i > 0; i--) {
        kvb_add(&row.own, time_us(&run, attend));
        kvb_add(&row.peer_samples, time_us(&run, attend_standard));
    }
    note("flash", kvb_quantile(&row.own, 0.5), &run.flash);
    note("standard", kvb_quantile(&row.peer_samples, 0.5), &run.standard);
    return kvb_report(&row);
}
