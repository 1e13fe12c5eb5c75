/* SPDX-License-Identifier: Apache-2.0
 *
 * Block tables on the device; see device_table.h. An update goes over its rows three times:
 *
 *   1  count the cells; nothing has changed, all that can be refused is refused
 *   2  write them into a piece of the ring, launch, signal
 *   3  the mirror is what the device will hold
 */
#include "client/device_table.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "client/seq.h"
#include "util/error.h"

#define SLOTS         KVI_DEVICE_TABLE_SLOTS
#define COUNTER_WORDS 8u  /* of 8 bytes: a slot's counter has a cache line of its own */
#define LENGTHS_ALIGN 64u /* cells */
#define WAIT_NS       50000
#define HEALTH_WAITS  20000u /* a second: then the device is asked whether it lives */

static uint64_t *counter_of(const struct kvmem_device_table *table, uint64_t update)
{
    return (uint64_t *)table->pinned + update % SLOTS * COUNTER_WORDS;
}

/* ---- slots and the ring ---- */

/* Give back what is done, the oldest first. */
static void slots_collect(struct kvmem_device_table *table)
{
    while (table->oldest < table->newest) {
        const struct kvi_device_slot *slot = &table->slots[table->oldest % SLOTS];

        if (kvi_backend_fence_poll(counter_of(table, table->oldest), slot->value) ==
            KVI_FENCE_PENDING)
            return;
        table->begin = slot->end;
        table->oldest++;
    }
    table->begin = 0;
    table->end = 0;
}

static int busy(const struct kvmem_device_table *table, uint64_t cells)
{
    return kvi_error_set(KVMEM_E_BUSY,
                         "device table: %" PRIu64 " updates are under way, and there is no room "
                         "for %" PRIu64 " cells: wait for the oldest of them",
                         table->newest - table->oldest, cells);
}

/* Room for `cells` side by side in the ring: where. The piece is not taken yet. 0 or BUSY.
 *
 *      begin       end                       end          begin
 *   |....|##########|.....|             |#####|.............|#####|
 */
static int ring_find(struct kvmem_device_table *table, uint64_t cells, uint64_t *at)
{
    slots_collect(table);
    if (table->newest - table->oldest == SLOTS)
        return busy(table, cells);
    if (table->end >= table->begin && table->cell_limit - table->end >= cells)
        *at = table->end;
    else if (table->end >= table->begin && table->begin > cells)
        *at = 0;
    else if (table->end < table->begin && table->begin - table->end > cells)
        *at = table->end;
    else
        return busy(table, cells);
    return 0;
}

/* ---- 1: what has changed ---- */

/* The row's blocks are those that it had, with more behind them perhaps. */
static bool row_goes_on(const struct kvi_device_row *row, struct kvmem_seq id,
                        const struct kvi_seq *seq)
{
    return row->index == id.index && row->generation == id.generation &&
           row->version == seq->table_version && row->version != KVI_SEQ_VERSION_UNKNOWN;
}

static int row_check(const struct kvmem_device_table *table, uint32_t i, const struct kvi_seq *seq)
{
    uint32_t used = kvi_seq_used_blocks(table->space, seq);

    if (used > table->block_limit)
        return kvi_error_set(KVMEM_E_INVALID,
                             "block_limit: %" PRIu32 ", seqs[%" PRIu32 "] has %" PRIu32,
                             table->block_limit, i, used);
    if (seq->appended > INT32_MAX)
        return kvi_error_set(KVMEM_E_INVALID,
                             "seqs[%" PRIu32 "]: %" PRIu64 " tokens do not fit an int32", i,
                             seq->appended);
    return 0;
}

/* Cells of a row that is to hold `used` blocks; from `first` on they are written. */
static uint64_t row_cells(const struct kvi_device_row *row, uint32_t first, uint32_t used)
{
    return (row->blocks > used ? row->blocks : used) - first;
}

/* Cells of the update, or a code. */
static int64_t cells_count(const struct kvmem_device_table *table, uint32_t n,
                           const struct kvmem_seq *seqs)
{
    uint64_t cells = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = kvi_seq_find(table->space, seqs[i]);
        const struct kvi_device_row *row = &table->mirror[i];
        int code;

        if (!seq)
            return kvi_seq_stale(seqs[i]);
        code = row_check(table, i, seq);
        if (code)
            return code;
        cells += row->length != (int32_t)seq->appended;
        cells += row_cells(row, row_goes_on(row, seqs[i], seq) ? row->blocks : 0,
                           kvi_seq_used_blocks(table->space, seq));
    }
    for (uint32_t i = n; i < table->rows_high; i++)
        cells += table->mirror[i].blocks + (table->mirror[i].length != 0);
    return (int64_t)cells;
}

/* ---- 2: cells ---- */

static struct kvi_backend_cell *length_put(const struct kvmem_device_table *table,
                                           struct kvi_backend_cell *to, uint32_t i, int32_t length)
{
    if (table->mirror[i].length == length)
        return to;
    *to = (struct kvi_backend_cell){table->lengths_at + i, length};
    return to + 1;
}

/* Blocks first … used − 1, then nothing where the row was longer. */
static struct kvi_backend_cell *row_put(const struct kvmem_device_table *table,
                                        struct kvi_backend_cell *to, uint32_t i, uint32_t first,
                                        const int32_t *blocks, uint32_t used)
{
    uint32_t start = i * table->block_limit;

    for (uint32_t at = first; at < used; at++)
        *to++ = (struct kvi_backend_cell){start + at, blocks[at]};
    for (uint32_t at = used > first ? used : first; at < table->mirror[i].blocks; at++)
        *to++ = (struct kvi_backend_cell){start + at, KVMEM_BLOCK_NONE};
    return to;
}

static void cells_put(const struct kvmem_device_table *table, struct kvi_backend_cell *to,
                      uint32_t n, const struct kvmem_seq *seqs)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = &table->space->seqs[seqs[i].index];
        const struct kvi_device_row *row = &table->mirror[i];
        uint32_t first = row_goes_on(row, seqs[i], seq) ? row->blocks : 0;

        to = length_put(table, to, i, (int32_t)seq->appended);
        to = row_put(table, to, i, first, seq->blocks, kvi_seq_used_blocks(table->space, seq));
    }
    for (uint32_t i = n; i < table->rows_high; i++) {
        to = length_put(table, to, i, 0);
        to = row_put(table, to, i, 0, NULL, 0);
    }
}

/* Launch the cells at `at`, and have their slot told when the stream has passed them. */
static int cells_send(struct kvmem_device_table *table, uint64_t at, uint32_t count,
                      uint64_t stream)
{
    uint64_t value = table->newest + 1;
    int code = kvi_backend_cells(table->backend, table->device, table->cells + at, count, stream);

    if (code)
        return code;
    code =
        kvi_backend_fence_signal(table->backend, counter_of(table, table->newest), value, stream);
    if (code) {
        table->is_broken = true; /* nobody will know when the ring may be written again */
        return code;
    }
    table->slots[table->newest % SLOTS] = (struct kvi_device_slot){value, at + count};
    table->end = at + count;
    table->newest++;
    return 0;
}

/* ---- 3: the mirror ---- */

static void mirror_follow(struct kvmem_device_table *table, uint32_t n,
                          const struct kvmem_seq *seqs)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = &table->space->seqs[seqs[i].index];

        table->mirror[i] = (struct kvi_device_row){
            .index = seqs[i].index,
            .generation = seqs[i].generation,
            .version = seq->table_version,
            .blocks = kvi_seq_used_blocks(table->space, seq),
            .length = (int32_t)seq->appended,
        };
    }
    for (uint32_t i = n; i < table->rows_high; i++)
        table->mirror[i] = (struct kvi_device_row){0}; /* an even generation is no sequence's */
    table->rows_high = n;
}

static int update_check(const struct kvmem_device_table *table, uint32_t n, uint64_t stream)
{
    if (table->is_broken)
        return kvi_error_set(KVMEM_E_SYSTEM,
                             "device table: an earlier update could not be signalled; the device "
                             "has failed: make another table");
    if (n > table->row_limit)
        return kvi_error_set(KVMEM_E_INVALID,
                             "n: %" PRIu32 " is outside 0..%" PRIu32 " (row_limit)", n,
                             table->row_limit);
    if (stream != 0 && table->backend->info.kind == KVI_BACKEND_HOST)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "stream: the host device has none: want NULL");
    return 0;
}

int kvi_device_table_update(struct kvmem_device_table *table, uint32_t n,
                            const struct kvmem_seq *seqs, uint64_t stream)
{
    uint64_t at = 0;
    int64_t cells = update_check(table, n, stream);
    int code;

    if (cells == 0)
        cells = cells_count(table, n, seqs);
    if (cells < 0)
        return (int)cells;
    if (cells > 0) {
        code = ring_find(table, (uint64_t)cells, &at);
        if (code)
            return code;
        cells_put(table, table->cells + at, n, seqs);
        code = cells_send(table, at, (uint32_t)cells, stream);
        if (code)
            return code;
    }
    mirror_follow(table, n, seqs);
    table->rows = n;
    table->updates++;
    table->cells_written += (uint64_t)cells;
    return cells < INT32_MAX ? (int)cells : INT32_MAX;
}

/* ---- life ---- */

/* Until nothing is under way, or the device does not answer any more. */
static void table_wait(struct kvmem_device_table *table)
{
    const struct timespec pause = {0, WAIT_NS};
    struct kvi_backend_memory memory;

    slots_collect(table);
    for (uint32_t waits = 1; table->oldest < table->newest; waits++) {
        nanosleep(&pause, NULL);
        if (waits % HEALTH_WAITS == 0 && kvi_backend_memory(table->backend, &memory) < 0)
            return;
        slots_collect(table);
    }
}

/* The device's memory as an empty table: from the ring, which is larger. */
static int table_clear(struct kvmem_device_table *table)
{
    uint64_t lengths_bytes = table->device_bytes - table->lengths_at * sizeof(int32_t);
    char *image = (char *)table->cells;
    int code;

    memset(image, 0xff, table->device_bytes - lengths_bytes); /* KVMEM_BLOCK_NONE */
    memset(image + table->device_bytes - lengths_bytes, 0, lengths_bytes);
    code = kvi_backend_copy_in(table->backend, table->device, image, table->device_bytes, 0);
    if (code)
        return code;
    table->slots[0] = (struct kvi_device_slot){1, 0};
    code = kvi_backend_fence_signal(table->backend, counter_of(table, 0), 1, 0);
    if (code)
        return code;
    table->newest = 1;
    table_wait(table);
    if (table->oldest == table->newest)
        return 0;
    return kvi_error_set(KVMEM_E_SYSTEM, "device table: the device does not answer");
}

/* Counters and ring, in memory that the device reads. */
static int staging_open(struct kvmem_device_table *table)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    void *memory;
    int code;

    table->pinned_bytes =
        page + (table->cell_limit * sizeof(*table->cells) + page - 1) / page * page;
    memory =
        mmap(NULL, table->pinned_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return kvi_error_set(KVMEM_E_NO_MEMORY,
                             "row_limit, block_limit: %" PRIu32 ", %" PRIu32 " need %" PRIu64
                             " bytes of staging memory",
                             table->row_limit, table->block_limit, table->pinned_bytes);
    code = kvi_backend_host_pin(table->backend, memory, table->pinned_bytes);
    if (code) {
        munmap(memory, table->pinned_bytes);
        return code;
    }
    table->pinned = memory;
    table->cells = (struct kvi_backend_cell *)(void *)((char *)memory + page);
    return 0;
}

static void staging_close(struct kvmem_device_table *table)
{
    if (kvi_backend_host_unpin(table->backend, table->pinned, table->pinned_bytes) == 0)
        munmap(table->pinned, table->pinned_bytes);
}

static void sizes_fill(struct kvmem_device_table *table,
                       const struct kvmem_device_table_options *options)
{
    uint64_t tables = (uint64_t)options->row_limit * options->block_limit;

    table->row_limit = options->row_limit;
    table->block_limit = options->block_limit;
    table->lengths_at = (uint32_t)((tables + LENGTHS_ALIGN - 1) & ~(uint64_t)(LENGTHS_ALIGN - 1));
    table->device_bytes = ((uint64_t)table->lengths_at + options->row_limit) * sizeof(int32_t);
    table->cell_limit = (uint64_t)table->lengths_at + options->row_limit;
}

static int table_open(struct kvmem_device_table *table)
{
    int code = staging_open(table);

    if (code)
        return code;
    code = kvi_backend_device_alloc(table->backend, table->device_bytes, &table->device);
    if (code)
        goto no_device;
    code = table_clear(table);
    if (code)
        goto no_clear;
    return 0;

no_clear:
    (void)kvi_backend_device_free(table->backend, table->device, table->device_bytes);
no_device:
    staging_close(table);
    return code;
}

static void table_free(struct kvmem_device_table *table, const struct kvi_alloc *alloc)
{
    kvi_release(alloc, table->mirror, table->row_limit * sizeof(*table->mirror));
    kvi_release(alloc, table, sizeof(*table));
}

int kvi_device_table_create(struct kvmem_space *space, struct kvi_backend *backend,
                            const struct kvmem_device_table_options *options,
                            struct kvmem_device_table **out)
{
    const struct kvi_alloc *alloc = &space->client->alloc;
    struct kvmem_device_table *table = kvi_allocate(alloc, sizeof(*table));
    int code;

    if (!table)
        goto no_memory;
    table->space = space;
    table->backend = backend;
    sizes_fill(table, options);
    table->mirror = kvi_allocate(alloc, table->row_limit * sizeof(*table->mirror));
    if (!table->mirror)
        goto no_memory;
    code = table_open(table);
    if (code) {
        table_free(table, alloc);
        return code;
    }
    *out = table;
    return 0;

no_memory:
    kvi_release(alloc, table, sizeof(*table));
    return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a table of %" PRIu32 " rows",
                         options->row_limit);
}

void kvi_device_table_destroy(struct kvmem_device_table *table)
{
    if (!table)
        return;
    table_wait(table);
    (void)kvi_backend_device_free(table->backend, table->device, table->device_bytes);
    staging_close(table);
    table_free(table, &table->space->client->alloc);
}
