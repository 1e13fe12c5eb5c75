/* SPDX-License-Identifier: Apache-2.0
 *
 * Block tables where kernels read them: int32 tables (row_limit, block_limit) and int32 lengths
 * (row_limit) in device memory at addresses that never change, brought up to date once a step.
 *
 *   kvmem_seqs_append ──▶ kvmem_device_table_update ──▶ kernels of all layers, on the same stream
 *                             │ what differs from the last update only: cells and lengths in
 *                             └ pinned memory, one launch that puts them in place
 *
 * So a decode step of 256 sequences moves 256 lengths and some 16 cells. Rows at and beyond n
 * have length 0; unused cells are KVMEM_BLOCK_NONE. On the host device the same in main memory.
 */
#ifndef KVMEM_DEVICE_TABLE_H
#define KVMEM_DEVICE_TABLE_H

#include <kvmem/space.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvmem_device_table;

struct kvmem_device_table_options {
    uint32_t size;        /* sizeof(struct kvmem_device_table_options) */
    uint32_t group;       /* 0 */
    uint32_t row_limit;   /* sequences a step: 1 .. 65,536 */
    uint32_t block_limit; /* blocks a sequence: 1 .. 1,048,576; rows × blocks below 2^31 */
};

/* Takes device memory of its own, outside the pool. INVALID (names the field), DEVICE_FULL,
 * NO_MEMORY, SYSTEM. May wait for the device. */
KVMEM_API int kvmem_device_table_create(struct kvmem_space *space,
                                        const struct kvmem_device_table_options *options,
                                        struct kvmem_device_table **out);

/* Waits for updates that are under way. Before its space is closed. NULL is allowed. */
KVMEM_API void kvmem_device_table_destroy(struct kvmem_device_table *table);

/* Row i := blocks and appended tokens of seqs[i], i < n, ordered on `stream` (NULL: the legacy
 * default stream, and on the host device). Returns how many cells and lengths had changed. Codes of
 * kvmem_table_padded, NOT_SUPPORTED (a stream on the host device), BUSY when the device is 8
 * updates behind, or fewer that rewrote many rows (wait for the oldest step), SYSTEM; then nothing
 * was changed. No driver call but a launch and a stream write, no allocation. Updates of one table
 * on several streams are the caller's to order. Not to be captured in a graph: call it before the
 * graph is launched. */
KVMEM_API int kvmem_device_table_update(struct kvmem_device_table *table, uint32_t n,
                                        const struct kvmem_seq *seqs, void *stream);

struct kvmem_device_table_info {
    uint32_t size; /* sizeof(struct kvmem_device_table_info), set by the caller */
    uint32_t row_limit;
    uint32_t block_limit; /* stride of a row, in elements */
    uint32_t rows;        /* n of the last update */
    int32_t *tables;      /* device address, (row_limit, block_limit) */
    int32_t *lengths;     /* device address, (row_limit) */
    uint64_t updates;     /* since it was created */
    uint64_t cells;       /* written by them */
};

/* INVALID (size). */
KVMEM_API int kvmem_device_table_info(const struct kvmem_device_table *table,
                                      struct kvmem_device_table_info *out);

#ifdef __cplusplus
}
#endif
#endif
