/* SPDX-License-Identifier: Apache-2.0
 *
 * The tasks of flash.h: a step's batch is cut into them by plan(), each layer's run() hands them to
 * workers. A worker is one item of kva_parallel(), with memory of its own; it takes tasks by a
 * shared counter until none is left.
 *
 *   workspace: struct plan | tasks | partial results | memory of each worker
 *
 * Sizes follow from the number of workers, which OpenMP may answer otherwise to each thread that
 * asks: the plan keeps the number that it was made for, and runs use that one.
 */
#include <stdatomic.h>
#include <string.h>

#include "flash.h"
#include "kernels.h"
#include "parallel.h"

#define PLAN_MAGIC          0x6b766166u
#define TASKS_PER_WORKER    8u
#define LEAST_CHUNK_TOKENS  256u
#define FIXED_CHUNK_TOKENS  2048u /* batch-invariant mode, and only ... */
#define FIXED_CHUNK_Q_LIMIT 16u   /* ... for sequences with up to so many query tokens */

struct plan {
    uint32_t magic;
    uint32_t seq_count;
    uint32_t workers;
    uint32_t task_count;
    uint32_t partial_rows;
    uint32_t strip_rows;
    _Atomic uint32_t next_task;
    _Atomic uint32_t next_merge;
};

_Static_assert(sizeof(struct plan) <= KVA_PLAN_HEAD_BYTES, "planned_bytes reads no more");

/* Offsets into the workspace, in bytes, and how much room there is. */
struct layout {
    uint32_t workers;
    uint64_t task_limit;
    uint64_t partial_limit;
    uint64_t tasks;
    uint64_t partials;
    uint64_t memory;
    uint64_t memory_floats; /* of a worker */
    uint64_t bytes;
};

static uint64_t up_to(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static uint32_t group_of(const struct kva_attention *what)
{
    return what->q_head_count / what->cache.kv_head_count;
}

struct kva_flash_scratch kva_flash_scratch(const struct kva_attention *what)
{
    uint64_t rows = kva_strip_rows(what);
    uint64_t dim_k = kva_padded(what->cache.head_dim_k), dim_v = kva_padded(what->cache.head_dim_v);
    struct kva_flash_scratch s = {.q = 0};

    s.scores = s.q + rows * dim_k;
    s.sums = s.scores + rows * KVA_TILE;
    s.state = s.sums + rows * dim_v;
    s.k = s.state + 6 * rows;
    s.v = s.k + dim_k * KVA_TILE;
    s.wide = s.v + dim_v * KVA_TILE;
    s.floats = s.wide + (dim_k > dim_v ? dim_k : dim_v) * KVA_TILE;
    return s;
}

/* ---- how much of everything there may be ---- */

static uint64_t strip_limit(const struct kva_attention *what)
{
    const struct kva_batch *b = &what->batch;
    uint64_t rows = (uint64_t)b->q_total * group_of(what);

    return (rows / KVA_STRIP_ROWS + b->seq_count) * what->cache.kv_head_count;
}

static uint32_t is_invariant(const struct kva_attention *what)
{
    return (what->flags & KVA_BATCH_INVARIANT) != 0;
}

/* Tasks of strips that have several. By chunks of W ÷ (8 workers) tokens, W the tokens of all
 * strips, those longer than one chunk have less than twice 8 workers of them. */
static uint64_t part_limit(const struct kva_attention *what, uint32_t workers)
{
    if (!is_invariant(what))
        return 2ull * TASKS_PER_WORKER * workers;
    return (what->batch.kv_max / FIXED_CHUNK_TOKENS + 1) * strip_limit(what);
}

/* Rows of partial results. */
static uint64_t partial_limit(const struct kva_attention *what, uint32_t workers)
{
    const struct kva_batch *b = &what->batch;
    uint64_t chunks = b->kv_max / FIXED_CHUNK_TOKENS + 1;
    uint64_t q_tokens = (uint64_t)b->seq_count * FIXED_CHUNK_Q_LIMIT;

    if (!is_invariant(what))
        return part_limit(what, workers) * kva_strip_rows(what);
    q_tokens = q_tokens < b->q_total ? q_tokens : b->q_total;
    return chunks > 1 ? chunks * q_tokens * what->q_head_count : 0;
}

static struct layout layout_of(const struct kva_attention *what, uint32_t workers)
{
    uint64_t row_bytes = (kva_padded(what->cache.head_dim_v) + 2) * sizeof(float);
    struct layout l = {.workers = workers, .partial_limit = partial_limit(what, workers)};

    l.task_limit = strip_limit(what) + part_limit(what, workers);
    l.memory_floats = kva_flash_scratch(what).floats;
    l.tasks = up_to(sizeof(struct plan), 64);
    l.partials = up_to(l.tasks + l.task_limit * sizeof(struct kva_flash_task), 64);
    l.memory = up_to(l.partials + l.partial_limit * row_bytes, 64);
    l.bytes = l.memory + workers * l.memory_floats * sizeof(float);
    return l;
}

static struct layout layout_now(const struct kva_attention *what)
{
    return layout_of(what, kva_thread_count(&KVA_THREADS_OF(what)));
}

static int info(const struct kva_attention *what, struct kva_info *out)
{
    struct layout l = layout_now(what);

    if (l.task_limit > UINT32_MAX || l.partial_limit > UINT32_MAX)
        return kva_error_set(
            KVMEM_E_NOT_SUPPORTED,
            "batch.q_total: %u rows and seq_count %u are more than 2^32 tasks or parts",
            what->batch.q_total, what->batch.seq_count);
    out->task_limit = (uint32_t)l.task_limit;
    out->workspace_bytes = l.bytes;
    return 0;
}

/* ---- plan ---- */

struct planner {
    const struct kva_attention *what;
    struct plan *plan;
    struct kva_flash_task *tasks;
    uint32_t workers;
    uint32_t head_limit; /* of a strip */
    uint64_t tokens;     /* of all strips */
    uint32_t chunk_tokens;
};

static void count_strip(struct planner *p, struct kva_flash_task *strip)
{
    p->tokens += strip->end - strip->first;
}

static void add_strip(struct planner *p, struct kva_flash_task *strip)
{
    struct kva_flash_task *first = p->tasks + p->plan->task_count;
    uint32_t end = strip->end, chunk = p->chunk_tokens;
    uint32_t count = end > strip->first ? (end - strip->first - 1) / chunk + 1 : 1;

    for (uint32_t c = 0; c < count; c++) {
        struct kva_flash_task *task = p->tasks + p->plan->task_count++;

        *task = *strip;
        task->first = strip->first + c * chunk;
        task->end = c + 1 < count ? task->first + chunk : end;
        task->partial = count > 1 ? p->plan->partial_rows : KVA_WHOLE;
        p->plan->partial_rows += count > 1 ? task->head_count * task->row_count : 0;
    }
    first->chunks = count > 1 ? count : 0;
}

/* Calls add() for each strip of some rows of a sequence, with the tokens that they see. */
static void each_head(struct planner *p, struct kva_flash_task strip,
                      void (*add)(struct planner *p, struct kva_flash_task *strip))
{
    uint32_t heads = p->what->cache.kv_head_count, step;
    uint32_t first, end;

    kva_flash_bounds(p->what, &strip, &first, &end);
    strip.first = first;
    strip.end = end;
    step = KVA_STRIP_ROWS / kva_head_rows(strip.row_count);
    step = step < p->head_limit ? step : p->head_limit;
    for (; strip.kv_head < heads; strip.kv_head += step) {
        strip.head_count = heads - strip.kv_head < step ? heads - strip.kv_head : step;
        add(p, &strip);
    }
}

/* The last rows first: under KVA_CAUSAL those have the most to do. */
static void each_strip(struct planner *p, uint32_t n,
                       void (*add)(struct planner *p, struct kva_flash_task *strip))
{
    const struct kva_attention *what = p->what;
    uint32_t first, end, rows, strips;

    kva_rows_of(&what->batch, n, &first, &end);
    rows = (end - first) * group_of(what);
    strips = (rows + KVA_STRIP_ROWS - 1) / KVA_STRIP_ROWS;
    while (strips--) {
        uint32_t row = strips * KVA_STRIP_ROWS;
        struct kva_flash_task strip = {
            .seq = n,
            .row = row,
            .row_count = rows - row < KVA_STRIP_ROWS ? rows - row : KVA_STRIP_ROWS,
            .kv_length = (uint32_t)what->batch.kv_lengths[n],
            .end = (uint32_t)what->batch.kv_lengths[n],
        };

        each_head(p, strip, add);
    }
}

static void count_all(struct planner *p, uint32_t head_limit)
{
    p->tokens = 0;
    p->head_limit = head_limit;
    for (uint32_t n = 0; n < p->what->batch.seq_count; n++)
        each_strip(p, n, count_strip);
}

/* Tokens of a chunk of sequence n. */
static uint32_t chunk_tokens_of(const struct planner *p, uint32_t n)
{
    uint64_t tokens = up_to(p->tokens / (TASKS_PER_WORKER * p->workers) + 1, KVA_TILE);
    uint32_t first, end;

    kva_rows_of(&p->what->batch, n, &first, &end);
    if (is_invariant(p->what))
        return end - first <= FIXED_CHUNK_Q_LIMIT ? FIXED_CHUNK_TOKENS : 1u << 31;
    if (tokens < LEAST_CHUNK_TOKENS)
        return LEAST_CHUNK_TOKENS;
    return tokens < 1u << 31 ? (uint32_t)tokens : 1u << 31;
}

/* Heads of a strip: as many as leave half the tasks that workers should have. */
static uint32_t choose_heads(struct planner *p)
{
    uint64_t chunks, heads;

    count_all(p, 1);
    chunks = p->tokens / (is_invariant(p->what) ? FIXED_CHUNK_TOKENS : LEAST_CHUNK_TOKENS);
    heads = chunks / (TASKS_PER_WORKER / 2 * p->workers);
    heads = heads < p->what->cache.kv_head_count ? heads : p->what->cache.kv_head_count;
    return heads ? (uint32_t)heads : 1;
}

static int plan(const struct kva_attention *what, void *workspace, void *stream)
{
    struct layout l = layout_now(what);
    struct plan *plan = workspace;
    struct planner p = {.what = what,
                        .plan = plan,
                        .tasks = (void *)((char *)workspace + l.tasks),
                        .workers = l.workers};

    (void)stream;
    memset(plan, 0, sizeof(*plan));
    count_all(&p, choose_heads(&p));
    for (uint32_t n = 0; n < what->batch.seq_count; n++) {
        p.chunk_tokens = chunk_tokens_of(&p, n);
        each_strip(&p, n, add_strip);
    }
    plan->strip_rows = kva_strip_rows(what);
    plan->seq_count = what->batch.seq_count;
    plan->workers = l.workers;
    plan->magic = PLAN_MAGIC;
    return 0;
}

/* ---- run ---- */

/* As the plan has it; where there is none, check_plan says so. */
static struct layout layout_planned(const struct kva_attention *what, const void *workspace)
{
    const struct plan *plan = workspace;

    return layout_of(what, plan->magic == PLAN_MAGIC ? plan->workers : 0);
}

static uint64_t planned_bytes(const struct kva_attention *what, const void *workspace)
{
    return layout_planned(what, workspace).bytes;
}

struct work {
    struct kva_flash_run run;
    const struct kva_flash_code *code;
    struct plan *plan;
    const struct kva_flash_task *tasks;
    uint64_t task_limit;
    float *memory;
    uint64_t memory_floats;
};

static void attend_tasks(void *argument, uint32_t worker)
{
    struct work *work = argument;
    uint32_t i;

    while ((i = atomic_fetch_add(&work->plan->next_task, 1)) < work->plan->task_count)
        work->code->attend(&work->run, work->tasks + i,
                           work->memory + worker * work->memory_floats);
}

static void merge_tasks(void *argument, uint32_t worker)
{
    struct work *work = argument;
    uint32_t i;

    while ((i = atomic_fetch_add(&work->plan->next_merge, 1)) < work->plan->task_count)
        if (work->tasks[i].chunks)
            work->code->merge(&work->run, work->tasks + i,
                              work->memory + worker * work->memory_floats);
}

/* The plan must be one of this batch: else tasks might lie outside what the caller has. */
static int check_plan(const struct kva_attention *what, const struct work *work)
{
    const struct plan *plan = work->plan;
    int is_good = plan->magic == PLAN_MAGIC && plan->seq_count == what->batch.seq_count &&
                  plan->strip_rows == kva_strip_rows(what) && plan->task_count <= work->task_limit;

    for (uint32_t i = 0; is_good && i < plan->task_count; i++) {
        const struct kva_flash_task *task = work->tasks + i;
        uint32_t first, end;

        kva_rows_of(&what->batch, task->seq, &first, &end);
        is_good = task->kv_length == (uint32_t)what->batch.kv_lengths[task->seq] &&
                  task->row + task->row_count <= (end - first) * group_of(what);
    }
    if (!is_good)
        return kva_error_set(KVMEM_E_INVALID,
                             "workspace: holds no plan of this batch (remedy: kva_attention_plan "
                             "after lengths or offsets have changed)");
    return 0;
}

static int run(const struct kva_flash_code *code, const struct kva_attention *what, uint32_t layer,
               const void *q, void *out, float *lse, void *workspace)
{
    static const float zeros[KVA_DIM_LIMIT];
    struct layout l = layout_planned(what, workspace);
    char *base = workspace;
    struct kva_threads threads = KVA_THREADS_OF(what);
    struct work work = {
        .run = {what, layer, q, out, lse, (float *)(base + l.partials), (const char *)zeros},
        .code = code,
        .plan = workspace,
        .tasks = (const void *)(base + l.tasks),
        .task_limit = l.task_limit,
        .memory = (float *)(base + l.memory),
        .memory_floats = l.memory_floats,
    };
    int result = check_plan(what, &work);

    if (result)
        return result;
    atomic_store(&work.plan->next_task, 0);
    atomic_store(&work.plan->next_merge, 0);
    kva_parallel(&threads, l.workers, attend_tasks, &work);
    if (work.plan->partial_rows)
        kva_parallel(&threads, l.workers, merge_tasks, &work);
    return 0;
}

/* ---- the kernels ---- */

static int accepts(const struct kva_flash_code *code, const char *name,
                   const struct kva_attention *what)
{
    if (!code->is_here())
        return kva_error_set(KVMEM_E_NOT_SUPPORTED, "device: this processor is not one for %s",
                             name);
    if (what->cache.head_dim_k > KVA_DIM_LIMIT || what->cache.head_dim_v > KVA_DIM_LIMIT)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "cache.head_dim_k, head_dim_v: %u and %u, %s has at most %u",
                             what->cache.head_dim_k, what->cache.head_dim_v, name, KVA_DIM_LIMIT);
    return 0;
}

static int accepts_bf16(const struct kva_attention *what)
{
    uint32_t dtype = what->cache.dtype;

    if (what->dtype != KVMEM_DTYPE_BF16 || dtype == KVMEM_DTYPE_FP16 || dtype == KVMEM_DTYPE_FP32)
        return kva_error_set(
            KVMEM_E_NOT_SUPPORTED,
            "dtype, cache.dtype: cpu avx512_bf16 has bf16 over bf16, fp8 and int8");
    if (what->cache.head_dim_k % 2)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "cache.head_dim_k: %u is odd, cpu avx512_bf16 needs pairs",
                             what->cache.head_dim_k);
    return accepts(&kva_flash_avx512_bf16, "cpu avx512_bf16", what);
}

static int accepts_avx512(const struct kva_attention *what)
{
    return accepts(&kva_flash_avx512, "cpu avx512_fp32", what);
}

static int accepts_avx2(const struct kva_attention *what)
{
    return accepts(&kva_flash_avx2, "cpu avx2", what);
}

static int run_bf16(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
                    float *lse, void *workspace, void *stream)
{
    (void)stream;
    return run(&kva_flash_avx512_bf16, what, layer, q, out, lse, workspace);
}

static int run_avx512(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
                      float *lse, void *workspace, void *stream)
{
    (void)stream;
    return run(&kva_flash_avx512, what, layer, q, out, lse, workspace);
}

static int run_avx2(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
                    float *lse, void *workspace, void *stream)
{
    (void)stream;
    return run(&kva_flash_avx2, what, layer, q, out, lse, workspace);
}

const struct kva_kernel kva_cpu_avx512_bf16 = {
    "cpu avx512_bf16", accepts_bf16, info, plan, run_bf16, planned_bytes,
};
const struct kva_kernel kva_cpu_avx512 = {
    "cpu avx512_fp32", accepts_avx512, info, plan, run_avx512, planned_bytes,
};
const struct kva_kernel kva_cpu_avx2 = {
    "cpu avx2", accepts_avx2, info, plan, run_avx2, planned_bytes,
};
