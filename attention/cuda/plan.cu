/* SPDX-License-Identifier: Apache-2.0
 *
 * Building task maps: one thread block, so that neither counters nor other blocks are waited for.
 * Three passes over the units: their cost, their tasks and slots, the tasks themselves.
 */
#include "launch.cuh"
#include "plan.cuh"

#define THREADS 1024u
#define WARPS   (THREADS / 32)
#define BINS    1024u /* of tasks by their tokens, in the listed map */

void kva_plan_describe(const struct kva_attention *what, struct kva_plan *plan)
{
    *plan = {};
    plan->seq_count = what->batch.seq_count;
    plan->q_max = what->batch.q_max;
    plan->q_total = what->batch.q_total;
    plan->kv_max = what->batch.kv_max;
    plan->group = what->q_head_count / what->cache.kv_head_count;
    plan->unit_heads = what->cache.kv_head_count;
    plan->window_tokens = what->window_tokens;
    plan->is_causal = (what->flags & KVA_CAUSAL) != 0;
    plan->is_tree = what->tree_mask != nullptr;
    plan->is_invariant = (what->flags & KVA_BATCH_INVARIANT) != 0;
    plan->packed_min = 1;
    plan->packed_max = UINT32_MAX;
}

static __host__ __device__ uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

/* Tiles of a sequence, at most. */
static __host__ __device__ uint32_t tiles_max(const struct kva_plan &plan)
{
    uint64_t packed = (uint64_t)plan.q_max * plan.group;

    return (uint32_t)ceil_div(packed < plan.packed_max ? packed : plan.packed_max, plan.row_tile);
}

/* Listed: one unit's heads leave room for another part. */
static __host__ __device__ bool is_ever_cut(const struct kva_plan &plan)
{
    return !plan.is_invariant && plan.unit_heads * 2 <= plan.grid;
}

void kva_plan_limits(struct kva_plan *plan)
{
    uint64_t tiles = (uint64_t)plan->seq_count * tiles_max(*plan);
    uint64_t by_rows = (uint64_t)plan->q_total * plan->group / plan->row_tile + plan->seq_count;
    uint64_t units = tiles < by_rows ? tiles : by_rows, tasks, slots;

    if (!plan->is_balanced) {
        slots = is_ever_cut(*plan) ? 2 * (plan->grid / plan->unit_heads + 1) : 0;
        tasks = units > slots ? units : slots;
    } else if (plan->is_invariant) {
        uint32_t parts = kva_plan_fixed_parts(plan->kv_max);

        tasks = units * plan->unit_heads * parts;
        slots = parts > 1 ? tasks : 0;
    } else {
        tasks = units * plan->unit_heads + plan->grid;
        slots = 2 * plan->grid;
    }
    plan->task_limit = tasks < UINT32_MAX ? (uint32_t)tasks : UINT32_MAX;
    plan->slot_limit = slots < UINT32_MAX ? (uint32_t)slots : UINT32_MAX;
}

/* Listed maps have slots for each unit head; in tasks they are numbered for one. */
static __host__ __device__ uint64_t slots_of(const struct kva_plan &plan)
{
    return (uint64_t)plan.slot_limit * (plan.is_balanced ? 1 : plan.unit_heads);
}

struct kva_plan_layout kva_plan_layout_of(const struct kva_plan *plan)
{
    struct kva_plan_layout layout;
    uint64_t blocks = plan->is_balanced ? plan->grid : 0;

    layout.block_tasks_at = 0;
    layout.arrivals_at = ceil_div((blocks + 2) * 4, 256) * 256;
    layout.tasks_at = layout.arrivals_at + ceil_div(slots_of(*plan) * 4, 256) * 256;
    layout.partials_at =
        layout.tasks_at + ceil_div((uint64_t)plan->task_limit * sizeof(struct kva_task), 256) * 256;
    layout.bytes =
        layout.partials_at +
        ceil_div(slots_of(*plan) * plan->slot_rows * plan->slot_row_floats * 4, 256) * 256;
    return layout;
}

/* ---- units ---- */

struct arrays {
    const int32_t *kv_lengths;
    const int32_t *q_offsets;
    uint32_t *block_tasks;
    uint32_t *arrivals;
    struct kva_task *tasks;
};

static __device__ uint32_t clamped(int32_t value, uint32_t limit)
{
    return value < 0 ? 0 : (uint32_t)value < limit ? (uint32_t)value : limit;
}

/* Rows [*first, *first + result) of sequence n. */
static __device__ uint32_t rows_of(const struct kva_plan &plan, const struct arrays &in, uint32_t n,
                                   uint32_t *first)
{
    uint32_t end;

    if (!in.q_offsets) {
        *first = n * plan.q_max;
        return plan.q_max;
    }
    *first = clamped(in.q_offsets[n], plan.q_total);
    end = clamped(in.q_offsets[n + 1], plan.q_total);
    return end <= *first ? 0 : end - *first < plan.q_max ? end - *first : plan.q_max;
}

/* [kv_first, kv_end) of a tile whose rows are at positions low .. high. */
static __device__ void set_tokens(const struct kva_plan &plan, int64_t low, int64_t high,
                                  struct kva_task *unit)
{
    int64_t first = plan.window_tokens ? low - (int64_t)plan.window_tokens + 1 : 0;
    int64_t end = plan.is_causal ? high + 1 : unit->kv_length;

    end = end < (int64_t)unit->kv_length ? end : unit->kv_length;
    first = first > 0 ? first / plan.kv_tile * plan.kv_tile : 0;
    if (first >= end)
        first = end = 0;
    unit->kv_first = (uint32_t)first;
    unit->kv_end = (uint32_t)end;
}

/* The unit of tile j of sequence n, uncut; false when there is none. */
static __device__ bool unit_of(const struct kva_plan &plan, const struct arrays &in, uint32_t n,
                               uint32_t j, struct kva_task *unit)
{
    uint32_t first, rows = rows_of(plan, in, n, &first), last;
    uint64_t packed = (uint64_t)rows * plan.group, begin = (uint64_t)j * plan.row_tile;

    if (packed < plan.packed_min || packed > plan.packed_max || begin >= packed)
        return false;
    unit->seq = n;
    unit->row = first;
    unit->packed = (uint32_t)begin;
    unit->packed_count =
        (uint32_t)(packed - begin < plan.row_tile ? packed - begin : plan.row_tile);
    unit->kv_length = clamped(in.kv_lengths[n], plan.kv_max);
    unit->position = (int32_t)unit->kv_length - (int32_t)rows;
    last = unit->packed + unit->packed_count - 1;
    set_tokens(plan, (int64_t)unit->position + unit->packed / plan.group,
               (int64_t)unit->position + last / plan.group, unit);
    unit->slot = unit->part = 0;
    unit->parts = 1;
    return true;
}

static __device__ uint32_t tiles_of(const struct kva_plan &plan, const struct kva_task &unit)
{
    return (uint32_t)ceil_div(unit.kv_end - unit.kv_first, plan.kv_tile);
}

static __device__ uint32_t limited(const struct kva_plan &plan, uint64_t tasks)
{
    return (uint32_t)(tasks < plan.task_limit ? tasks : plan.task_limit);
}

/* Tiles [from, to) of `unit` become task `index`. */
static __device__ void store_task(const struct kva_plan &plan, const struct arrays &in,
                                  struct kva_task unit, uint32_t from, uint32_t to, uint64_t index)
{
    uint64_t first = unit.kv_first + (uint64_t)from * plan.kv_tile;
    uint64_t end = unit.kv_first + (uint64_t)to * plan.kv_tile;

    if (index >= plan.task_limit)
        return;
    unit.kv_first = (uint32_t)first;
    unit.kv_end = (uint32_t)(end < unit.kv_end ? end : unit.kv_end);
    in.tasks[index] = unit;
}

/* ---- sums over the thread block ---- */

/* Sum of `value` over the threads before this one; *total over all. `scratch` has WARPS + 1. */
static __device__ uint64_t scan(uint64_t value, uint64_t *scratch, uint64_t *total)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t sum = value;

    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_up_sync(~0u, sum, step);

        sum += lane >= step ? other : 0;
    }
    __syncthreads();
    if (lane == 31)
        scratch[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint64_t before = 0;

        for (uint32_t i = 0; i <= WARPS; i++) {
            uint64_t own = i < WARPS ? scratch[i] : 0;

            scratch[i] = before;
            before += own;
        }
    }
    __syncthreads();
    *total = scratch[WARPS];
    return scratch[warp] + sum - value;
}

/* ---- the balanced map ---- */

/* A unit's place among the costs, and how it is cut. */
struct cut {
    uint64_t from; /* costs before it */
    uint64_t share;
    uint32_t tiles;
    uint32_t overhead;
    uint64_t first_block;
    uint32_t parts;
    uint32_t fixed; /* parts that do not depend on shares; 0: they do */
};

/* Tiles of the unit before the share of block k. */
static __device__ uint32_t tiles_before(const struct cut &cut, uint64_t block)
{
    uint64_t at = block * cut.share;

    if (at <= cut.from + cut.overhead)
        return 0;
    at -= cut.from + cut.overhead;
    return at < cut.tiles ? (uint32_t)at : cut.tiles;
}

static __device__ uint64_t cost_of(const struct kva_plan &plan, uint32_t tiles, uint32_t fixed)
{
    return tiles + (uint64_t)plan.overhead * (fixed ? fixed : 1);
}

static __device__ struct cut cut_of(const struct kva_plan &plan, uint32_t tiles, uint64_t from,
                                    uint64_t share)
{
    struct cut cut = {from, share, tiles, plan.overhead, from / share, 1, 0};
    uint64_t last = (from + cost_of(plan, tiles, 0) - 1) / share;

    if (plan.is_invariant) {
        cut.fixed = kva_plan_fixed_parts(tiles * plan.kv_tile);
        cut.fixed = cut.fixed < tiles ? cut.fixed : tiles ? tiles : 1;
        cut.parts = cut.fixed;
        return cut;
    }
    /* What is left of a share may be too short for any tile: it stays unused. */
    if (last > cut.first_block && tiles_before(cut, cut.first_block + 1) == 0)
        cut.first_block++;
    cut.parts = (uint32_t)(last - cut.first_block) + 1;
    return cut;
}

/* Blocks whose share begins in (from, to] start behind task `index`. */
static __device__ void start_blocks(const struct kva_plan &plan, const struct arrays &in,
                                    uint64_t from, uint64_t to, uint64_t share, uint64_t index)
{
    for (uint64_t k = from / share + 1; k <= to / share && k < plan.grid; k++)
        in.block_tasks[k] = limited(plan, index + 1);
}

static __device__ void store_fixed(const struct kva_plan &plan, const struct arrays &in,
                                   const struct cut &cut, struct kva_task unit, uint64_t index)
{
    uint64_t from = cut.from;

    for (uint32_t i = 0; i < cut.fixed; i++) {
        uint32_t begin = (uint32_t)((uint64_t)cut.tiles * i / cut.fixed);
        uint32_t end = (uint32_t)((uint64_t)cut.tiles * (i + 1) / cut.fixed);
        uint64_t to = from + cost_of(plan, end - begin, 1);

        unit.part = i;
        store_task(plan, in, unit, begin, end, index + i);
        start_blocks(plan, in, from, to, cut.share, index + i);
        from = to;
    }
}

static __device__ void store_shares(const struct kva_plan &plan, const struct arrays &in,
                                    const struct cut &cut, struct kva_task unit, uint64_t index)
{
    uint64_t end_cost = cut.from + cost_of(plan, cut.tiles, 0);

    if (cut.first_block * cut.share > cut.from && cut.first_block < plan.grid)
        in.block_tasks[cut.first_block] = limited(plan, index); /* the unused rest before it */
    for (uint32_t i = 0; i < cut.parts; i++) {
        uint64_t k = cut.first_block + i, to = (k + 1) * cut.share;
        uint64_t from = i == 0 && k * cut.share < cut.from ? cut.from : k * cut.share;

        unit.part = i;
        store_task(plan, in, unit, i == 0 ? 0 : tiles_before(cut, k),
                   i + 1 == cut.parts ? cut.tiles : tiles_before(cut, k + 1), index + i);
        start_blocks(plan, in, from, to < end_cost ? to : end_cost, cut.share, index + i);
    }
}

/* Calls visit(unit, tiles) for the units of this thread: neighbours, in order. */
template <typename Visit>
static __device__ void each_unit(const struct kva_plan &plan, const struct arrays &in, Visit visit)
{
    uint64_t per_seq = (uint64_t)tiles_max(plan) * plan.unit_heads;
    uint64_t all = plan.seq_count * per_seq, each = ceil_div(all, THREADS);
    uint64_t begin = each * threadIdx.x, end = begin + each < all ? begin + each : all;

    for (uint64_t v = begin; v < end; v++) {
        struct kva_task unit;
        uint32_t in_seq = (uint32_t)(v % per_seq);

        if (!unit_of(plan, in, (uint32_t)(v / per_seq), in_seq / plan.unit_heads, &unit))
            continue;
        unit.unit_head = in_seq % plan.unit_heads;
        visit(unit, tiles_of(plan, unit));
    }
}

static __device__ uint32_t fixed_of(const struct kva_plan &plan, uint32_t tiles)
{
    return plan.is_invariant ? cut_of(plan, tiles, 0, 1).fixed : 0;
}

/* Costs of a thread block: an equal share of all; or, where that is hardly more, so many that units
 * as long as the longest fit whole. */
static __device__ uint64_t share_of(const struct kva_plan &plan, uint64_t costs, uint64_t units,
                                    uint64_t longest)
{
    uint64_t share = ceil_div(costs, plan.grid), whole = ceil_div(units, plan.grid) * longest;

    share = share > plan.overhead + plan.part_min ? share : plan.overhead + plan.part_min;
    return whole > share && whole <= share + share / 16 ? whole : share;
}

/* A share, and the costs and tasks before this thread's units. */
static __global__ void __launch_bounds__(THREADS)
    build_balanced(const struct kva_plan plan, const struct arrays in)
{
    __shared__ uint64_t scratch[WARPS + 1];
    __shared__ unsigned long long longest;
    uint64_t cost = 0, counts = 0, units = 0, from, share, total, index, slot;
    unsigned long long mine = 0;

    for (uint32_t i = threadIdx.x; i < plan.slot_limit; i += THREADS)
        in.arrivals[i] = 0;
    if (threadIdx.x == 0)
        longest = 0;
    each_unit(plan, in, [&](const struct kva_task &, uint32_t tiles) {
        uint64_t own = cost_of(plan, tiles, fixed_of(plan, tiles));

        cost += own;
        units++;
        mine = own > mine ? own : mine;
    });
    scan(units, scratch, &units);
    atomicMax(&longest, mine);
    from = scan(cost, scratch, &total);
    share = share_of(plan, total, units, longest);

    cost = from; /* tasks below, slots above: one scan for both */
    each_unit(plan, in, [&](const struct kva_task &, uint32_t tiles) {
        struct cut cut = cut_of(plan, tiles, cost, share);

        cost += cost_of(plan, tiles, cut.fixed);
        counts += cut.parts + ((uint64_t)(cut.parts > 1 ? cut.parts : 0) << 32);
    });
    counts = scan(counts, scratch, &total);
    index = counts & UINT32_MAX;
    slot = counts >> 32;
    for (uint32_t k = threadIdx.x; k <= plan.grid; k += THREADS)
        in.block_tasks[k] = k ? limited(plan, total & UINT32_MAX) : 0;
    __syncthreads(); /* the defaults above, before the starts below */

    cost = from;
    each_unit(plan, in, [&](struct kva_task unit, uint32_t tiles) {
        struct cut cut = cut_of(plan, tiles, cost, share);

        cost += cost_of(plan, tiles, cut.fixed);
        unit.parts = cut.parts;
        unit.slot = (uint32_t)slot;
        if (cut.fixed)
            store_fixed(plan, in, cut, unit, index);
        else
            store_shares(plan, in, cut, unit, index);
        index += cut.parts;
        slot += cut.parts > 1 ? cut.parts : 0;
    });
}

/* ---- the listed map ---- */

struct listing {
    uint32_t starts[BINS]; /* of tasks; bin 0 has the longest */
    uint32_t slots;
};

static __device__ uint32_t parts_of(uint32_t tiles, uint64_t part_tiles)
{
    return tiles > part_tiles ? (uint32_t)ceil_div(tiles, part_tiles) : 1;
}

static __device__ uint32_t bin_of(const struct kva_plan &plan, uint32_t tiles)
{
    uint64_t longest = ceil_div(plan.kv_max, plan.kv_tile) + 1;

    return BINS - 1 - (uint32_t)((uint64_t)tiles * (BINS - 1) / longest);
}

/* Calls visit(unit, tiles) for the units of one head, dealt to the threads. */
template <typename Visit>
static __device__ void deal_units(const struct kva_plan &plan, const struct arrays &in, Visit visit)
{
    uint32_t per_seq = tiles_max(plan);
    uint64_t all = (uint64_t)plan.seq_count * per_seq;

    for (uint64_t v = threadIdx.x; v < all; v += THREADS) {
        struct kva_task unit;

        if (unit_of(plan, in, (uint32_t)(v / per_seq), (uint32_t)(v % per_seq), &unit))
            visit(unit, tiles_of(plan, unit));
    }
}

/* Counts by bin become starts; the sum goes to *total. */
static __device__ void starts_of(struct listing *listing, uint64_t *scratch, uint64_t *total)
{
    uint32_t own = listing->starts[threadIdx.x];
    uint64_t before = scan(own, scratch, total);

    static_assert(BINS == THREADS, "a bin a thread");
    listing->starts[threadIdx.x] = (uint32_t)before;
    __syncthreads();
}

/* Tasks of all heads when units are cut into parts of so many tiles. */
static __device__ uint64_t tasks_of(const struct kva_plan &plan, const struct arrays &in,
                                    uint64_t part_tiles, uint64_t *scratch)
{
    uint64_t parts = 0, total;

    deal_units(plan, in, [&](const struct kva_task &, uint32_t tiles) {
        parts += parts_of(tiles, part_tiles);
    });
    scan(parts, scratch, &total);
    return total * plan.unit_heads;
}

/* Where units are cut: nowhere, or so that the device runs all heads' parts at once, with little
 * to spare. All threads get the same. */
static __device__ uint64_t part_tiles_of(const struct kva_plan &plan, const struct arrays &in,
                                         uint64_t tiles, uint64_t units, uint64_t *scratch)
{
    uint64_t part;

    if (!is_ever_cut(plan) || units * plan.unit_heads * 2 > plan.grid)
        return UINT32_MAX;
    part = ceil_div(tiles * plan.unit_heads, plan.grid);
    part = part > plan.part_min ? part : plan.part_min;
    for (int i = 0; i < 16 && tasks_of(plan, in, part, scratch) > plan.grid; i++)
        part += part / 16 + 1;
    return part;
}

static __global__ void __launch_bounds__(THREADS)
    build_listed(const struct kva_plan plan, const struct arrays in)
{
    __shared__ uint64_t scratch[WARPS + 1];
    __shared__ struct listing listing;
    uint64_t tiles_sum = 0, units = 0, total, part_tiles;

    for (uint64_t i = threadIdx.x; i < slots_of(plan); i += THREADS)
        in.arrivals[i] = 0;
    listing.starts[threadIdx.x] = 0;
    deal_units(plan, in, [&](const struct kva_task &, uint32_t tiles) {
        tiles_sum += tiles;
        units++;
    });
    scan(tiles_sum, scratch, &total);
    tiles_sum = total;
    scan(units, scratch, &total);
    if (threadIdx.x == 0)
        listing.slots = 0;
    part_tiles = part_tiles_of(plan, in, tiles_sum, total, scratch);

    deal_units(plan, in, [&](const struct kva_task &, uint32_t tiles) {
        uint32_t parts = parts_of(tiles, part_tiles);

        atomicAdd(&listing.starts[bin_of(plan, tiles / parts)], parts);
    });
    __syncthreads();
    starts_of(&listing, scratch, &total);
    if (threadIdx.x == 0)
        in.block_tasks[0] = limited(plan, total);

    deal_units(plan, in, [&](struct kva_task unit, uint32_t tiles) {
        uint32_t index;

        unit.parts = parts_of(tiles, part_tiles);
        unit.slot = unit.parts > 1 ? atomicAdd(&listing.slots, unit.parts) : 0;
        index = atomicAdd(&listing.starts[bin_of(plan, tiles / unit.parts)], unit.parts);
        for (unit.part = 0; unit.part < unit.parts; unit.part++)
            store_task(plan, in, unit, (uint32_t)((uint64_t)tiles * unit.part / unit.parts),
                       (uint32_t)((uint64_t)tiles * (unit.part + 1) / unit.parts),
                       index + unit.part);
    });
}

int kva_plan_build(const struct kva_plan *plan, const struct kva_batch *batch, void *workspace,
                   cudaStream_t stream)
{
    struct kva_plan_layout layout = kva_plan_layout_of(plan);
    char *at = (char *)workspace;
    struct arrays in = {
        batch->kv_lengths, batch->q_offsets, (uint32_t *)(at + layout.block_tasks_at),
        (uint32_t *)(at + layout.arrivals_at), (struct kva_task *)(at + layout.tasks_at)};
    const void *kernel =
        plan->is_balanced ? (const void *)build_balanced : (const void *)build_listed;
    void *parameters[] = {(void *)plan, &in};

    return kva_cuda_result(cudaLaunchKernel(kernel, dim3(1), dim3(THREADS), parameters, 0, stream),
                           "the plan's kernel");
}
