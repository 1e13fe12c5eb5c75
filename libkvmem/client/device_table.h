/* SPDX-License-Identifier: Apache-2.0
 *
 * Block tables on the device, brought up to date by what has changed: kvmem/device_table.h.
 *
 *   device    | tables (row_limit, block_limit) | lengths (row_limit) |    one allocation of int32
 *   mirror    what each row holds there: of which sequence, at which version of its table, how
 *             many of its blocks, which length
 *   staging   | cells of update 7 | of update 8 | ............ |           pinned, a ring
 *
 * A row whose sequence and version are the mirror's has the same blocks as before and perhaps more
 * behind them (kvi_seq_table_changed): only those, and the length, are cells of an update. Any
 * other row is written whole, and cleared where it was longer.
 *
 *   cells of row i on the device that are not KVMEM_BLOCK_NONE: the first mirror[i].blocks
 *   rows from rows_high on are empty
 *
 * Each update takes a slot, with a counter that the stream raises when it has passed the launch,
 * and a piece of the staging ring, and gives both back in the order of the updates: when the
 * oldest of SLOTS is not done, or the ring has no room, the call says BUSY. The ring holds what a
 * whole table needs, so that any update fits once the device has caught up.
 *
 * Ownership: the caller has the table, before its space is closed. Threads: one at a time, the
 * client's. Not here: reading tables, more than one group.
 */
#ifndef KVI_CLIENT_DEVICE_TABLE_H
#define KVI_CLIENT_DEVICE_TABLE_H

#include <kvmem/device_table.h>

#include "client/space.h"

#define KVI_DEVICE_TABLE_SLOTS  8u
#define KVI_DEVICE_TABLE_ROWS   65536u
#define KVI_DEVICE_TABLE_BLOCKS 1048576u

/* What a row holds on the device. */
struct kvi_device_row {
    uint32_t index; /* of the sequence */
    uint32_t generation;
    uint32_t version;
    uint32_t blocks;
    int32_t length;
};

struct kvi_device_slot {
    uint64_t value; /* of its counter, when its update is done; 0: never used */
    uint64_t end;   /* of its piece of the ring: where the next one begins */
};

struct kvmem_device_table {
    struct kvmem_space *space;
    struct kvi_backend *backend;
    uint32_t row_limit;
    uint32_t block_limit;
    uint32_t lengths_at; /* cell of the first length */
    uint32_t rows;       /* of the last update */
    uint32_t rows_high;
    bool is_broken; /* an update could not be signalled */

    uint64_t device; /* address */
    uint64_t device_bytes;
    struct kvi_device_row *mirror; /* [row_limit] */

    void *pinned; /* a page of counters, one a slot, 64 bytes apart; then the cells */
    uint64_t pinned_bytes;
    struct kvi_backend_cell *cells; /* [cell_limit], the ring */
    uint64_t cell_limit;
    uint64_t begin;  /* of the oldest update that is not known to be done */
    uint64_t end;    /* of the newest; begin = end: none is under way */
    uint64_t oldest; /* updates of which the slots were given back */
    uint64_t newest; /* updates that took one */
    struct kvi_device_slot slots[KVI_DEVICE_TABLE_SLOTS];

    uint64_t updates;
    uint64_t cells_written;
};

/* kvmem_device_table_create with checked options; `backend` is the space's device. */
int kvi_device_table_create(struct kvmem_space *space, struct kvi_backend *backend,
                            const struct kvmem_device_table_options *options,
                            struct kvmem_device_table **out);
void kvi_device_table_destroy(struct kvmem_device_table *table);

/* kvmem_device_table_update: how many cells, lengths included, or a code. */
int kvi_device_table_update(struct kvmem_device_table *table, uint32_t n,
                            const struct kvmem_seq *seqs, uint64_t stream);

#endif
