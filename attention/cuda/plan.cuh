/* SPDX-License-Identifier: Apache-2.0
 *
 * The task map: a batch cut into tasks, on the device, once a step, for all layers.
 *
 *   packed row  row × group + head of the group: all query heads of a K/V head see the same
 *               tokens, so they fill one tile together
 *
 *   tile        row_tile packed rows of one sequence and one unit head
 *
 *   unit        a tile and the tokens that any of its rows sees: [kv_first, kv_end), kv_first at
 *               a multiple of kv_tile
 *
 *   unit head   a K/V head, or a slice of V of one: unit_heads = kv_head_count × slices
 *
 *   task        a part of a unit's tokens, cut at multiples of kv_tile; all parts, in order, make
 *               the unit
 *
 *   slot        room for a task's partial result (listed: one for each unit head); only units of
 *               two parts and more have slots: those of a unit are neighbours, in order of parts
 *
 * Two ways to cut, both with grids known to the host:
 *
 *   balanced    a fixed grid; thread block c runs tasks [block_tasks[c], block_tasks[c + 1]). A
 *               unit costs its tiles and `overhead`; the costs of all units, back to back, are
 *               cut into equal shares. A thread block has at most two tasks that are parts of
 *               something, its first and its last, so 2 × grid slots are enough.
 *
 *   listed      tasks with many tokens first, each for all unit heads in turn. Units are cut
 *               only where there are too few to fill the device.
 *
 * With KVA_BATCH_INVARIANT cuts depend on the unit alone: balanced, as many equal parts as
 * kva_plan_fixed_parts() says, wherever they run; listed, none.
 *
 * What is in the caller's device arrays is clamped here (lengths to 0 .. kv_max, offsets to 0 ..
 * q_total, rows to q_max), and no more tasks and slots are written than there is room for; kernels
 * trust tasks. Rows of sequences outside packed_min .. packed_max are another map's.
 */
#ifndef KVA_CUDA_PLAN_CUH
#define KVA_CUDA_PLAN_CUH

#include <cuda_runtime.h>

#include "../internal.h"

/* 48 bytes: three loads of 16. */
struct alignas(16) kva_task {
    uint32_t seq;
    uint32_t unit_head;    /* balanced only */
    uint32_t row;          /* first row of the sequence, in q */
    uint32_t packed;       /* first packed row of the tile, in the sequence */
    uint32_t packed_count; /* 1 .. row_tile */
    int32_t position;      /* of the sequence's first row; negative: it sees nothing */
    uint32_t kv_length;
    uint32_t kv_first;
    uint32_t kv_end; /* = kv_first: nothing is seen */
    uint32_t slot;   /* of the unit's first part; listed: + unit head × slot_limit */
    uint32_t part;
    uint32_t parts; /* 1: no slot */
};

/* What both sides know; by value to kernels. */
struct kva_plan {
    uint32_t seq_count;
    uint32_t q_max;
    uint32_t q_total;
    uint32_t kv_max;
    uint32_t group;
    uint32_t unit_heads;
    uint32_t row_tile;
    uint32_t kv_tile;
    uint32_t packed_min; /* sequences with so many packed rows are this map's */
    uint32_t packed_max;
    uint32_t window_tokens;
    uint8_t is_causal;
    uint8_t is_tree; /* all new tokens may be seen, and the window applies */
    uint8_t is_invariant;
    uint8_t is_balanced;
    uint32_t grid;     /* balanced: thread blocks; listed: those that the device runs at once */
    uint32_t overhead; /* of a task, in tiles; 1 or more */
    uint32_t part_min; /* tiles of a part, at least */
    uint32_t task_limit;
    uint32_t slot_limit;
    uint32_t slot_rows;       /* rows of a slot's partial result */
    uint32_t slot_row_floats; /* floats of each */
};

/* Where the parts of a map lie in the workspace. */
struct kva_plan_layout {
    uint64_t block_tasks_at; /* uint32 (grid + 1), the last counts all; listed: (1) tasks */
    uint64_t arrivals_at;    /* uint32 (slots): by the unit's first slot; 0 between runs */
    uint64_t tasks_at;       /* struct kva_task (task_limit) */
    uint64_t partials_at;    /* float (slots, slot_rows, slot_row_floats) */
    uint64_t bytes;          /* a multiple of 256 */
};

struct kva_plan_view {
    const uint32_t *block_tasks;
    uint32_t *arrivals;
    const struct kva_task *tasks;
    float *partials;
};

/* Fill in the batch's and masks' fields from a description; the others are the kernel's. */
void kva_plan_describe(const struct kva_attention *what, struct kva_plan *plan);

/* After all other fields are set: task_limit and slot_limit. */
void kva_plan_limits(struct kva_plan *plan);

struct kva_plan_layout kva_plan_layout_of(const struct kva_plan *plan);

/* Enqueue the building of the map; 0 or SYSTEM. */
int kva_plan_build(const struct kva_plan *plan, const struct kva_batch *batch, void *workspace,
                   cudaStream_t stream);

static inline __host__ __device__ struct kva_plan_view kva_plan_view_of(
    const struct kva_plan_layout layout, void *workspace)
{
    char *at = (char *)workspace;
    struct kva_plan_view view = {
        (const uint32_t *)(at + layout.block_tasks_at), (uint32_t *)(at + layout.arrivals_at),
        (const struct kva_task *)(at + layout.tasks_at), (float *)(at + layout.partials_at)};

    return view;
}

/* The first token that a row at `position` sees; 0 without a window. */
static inline __host__ __device__ int32_t kva_plan_window_begin(const struct kva_plan &plan,
                                                                int32_t position)
{
    int64_t begin = plan.window_tokens ? (int64_t)position - plan.window_tokens + 1 : 0;

    return begin < 0 ? 0 : (int32_t)begin;
}

/* Parts of a unit in the invariant mode: by its own tokens and the plan's constants. */
#define KVA_PLAN_PARTS_MAX   32u
#define KVA_PLAN_PART_TOKENS 2048u

static inline __host__ __device__ uint32_t kva_plan_fixed_parts(uint32_t tokens)
{
    uint32_t parts = tokens / KVA_PLAN_PART_TOKENS + (tokens % KVA_PLAN_PART_TOKENS != 0);

    return parts < 1 ? 1 : parts < KVA_PLAN_PARTS_MAX ? parts : KVA_PLAN_PARTS_MAX;
}

/* One more part of a unit has come; true when all have. The count is ready for the next layer then.
 */
static inline __device__ bool kva_plan_count(uint32_t *arrivals, uint32_t parts)
{
    bool is_last = atomicAdd(arrivals, 1) + 1 == parts;

    if (is_last)
        *arrivals = 0;
    return is_last;
}

/* True in all threads of the block that is the last of a unit's parts to come here; it then sees
 * what the others stored before. `scratch` is a word of shared memory. All threads call. */
static inline __device__ bool kva_plan_arrive(uint32_t *arrivals, uint32_t parts, uint32_t *scratch)
{
    __threadfence(); /* this thread's partial result, before the count below */
    __syncthreads();
    if (threadIdx.x == 0)
        *scratch = kva_plan_count(arrivals, parts);
    __syncthreads();
    __threadfence(); /* the count above, before the loads of others' results */
    return *scratch;
}

#endif
