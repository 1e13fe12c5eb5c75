/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole blocks copied and cleared inside the device, many by one launch: what beam search,
 * compaction and padding need beside the copies that appending makes by itself.
 *
 * Everything is ordered on `stream` (a CUstream of the space's device, NULL for the legacy default
 * stream; the host device wants NULL and is done on return), returns without waiting and may be
 * captured in a CUDA graph, which then repeats it with these very blocks. One launch for up to
 * 500 blocks, another for each further 500.
 */
#ifndef KVMEM_BLOCKS_H
#define KVMEM_BLOCKS_H

#include <kvmem/space.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Copy block from[i] to block to[i], all layers and scales, for i < n. from, to (n) int32. The
 * destinations are unsealed blocks of this client's sequences, each named once and no source;
 * sources are blocks that it holds. INVALID (names the place in the array and the block),
 * NOT_SUPPORTED (a stream on the host device), SYSTEM. On an error nothing was enqueued. */
KVMEM_API int kvmem_blocks_copy(struct kvmem_space *space, uint32_t group, uint32_t n,
                                const int32_t *from, const int32_t *to, void *stream);

/* Set blocks[i], i < n, int32, to zero bytes. Destinations and codes as above. */
KVMEM_API int kvmem_blocks_zero(struct kvmem_space *space, uint32_t group, uint32_t n,
                                const int32_t *blocks, void *stream);

#ifdef __cplusplus
}
#endif
#endif
