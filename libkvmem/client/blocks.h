/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole blocks moved and cleared inside the device (kvmem/blocks.h), and what appending needs of
 * it: one list, one call of the backend.
 */
#ifndef KVI_CLIENT_BLOCKS_H
#define KVI_CLIENT_BLOCKS_H

#include "client/space.h"

/* Copy block from[i] to block to[i] on `stream`, or clear it (from NULL). Nothing is checked. Codes
 * of kvi_backend_blocks. */
int kvi_blocks_move(struct kvmem_space *space, uint32_t n, const int32_t *from, const int32_t *to,
                    uint64_t stream);

/* kvmem_blocks_copy, and kvmem_blocks_zero (from NULL); `name` is what the caller calls `to`. */
int kvi_blocks_run(struct kvmem_space *space, uint32_t n, const int32_t *from, const int32_t *to,
                   const char *name, void *stream);

#endif
