/* SPDX-License-Identifier: Apache-2.0
 *
 * A region: one sequence as a contiguous range of addresses, for code that knows nothing of
 * blocks. (The idea: vAttention, Prabhu et al., ASPLOS 2025.)
 *
 *   blocks of the space   ... [7] [8] [9] ...          each a segment
 *   base                  | 8 | 7 | 9 |  →  frontier   the same memory, mapped again, to be read
 *   write_base            | . | . | 9 |                once more, to be written
 *
 * Only in a space opened with KVMEM_SPACE_REGIONS, where a segment is one block and a block a
 * whole number of granules. In KVMEM_LAYOUT_TOKEN_MAJOR token t lies at base + t ×
 * token_stride_bytes: a plain tensor (token, layer, K|V, head, dim).
 *
 * All that is mapped at base is read-only and stays for as long as the view shows that block. At
 * write_base are the blocks that this sequence alone has and may write, from when they are mapped
 * until they are published and their segment is handed in, as at the space's own write address
 * (kvmem_space_write_base): a block that was shared when it was mapped, or attached, is not there,
 * and a stray write faults. What appended tokens go to is there when the append returns. Work that
 * uses a write address must be over when the fence of the publication, free, truncate or close has
 * passed; readers use base. Whatever was written through any of these addresses is seen through
 * all others by kernels that are launched later on the stream, or ordered behind it by a fence; on
 * the host at once.
 *
 * Blocks are mapped ahead of the frontier, by the helper thread if the client has one
 * (KVMEM_CLIENT_HELPER), else by kvmem_client_dispatch; an append that finds its block not yet
 * mapped maps it itself and counts a wait. When an append copies a shared tail, the copy takes its
 * place in the view; work that may read the view then must be ordered before the append's fence,
 * and the append waits for it. Blocks ahead are reserved blocks of the sequence: they count in its
 * block table, a truncate keeps up to ahead_blocks of those that it frees, and an attach replaces
 * them. A truncate by more waits for its fence. What a truncate keeps stays mapped and is nobody
 * else's before its fence has passed: free lets it cool, whatever else takes it away waits; work
 * that writes it anew, after an append, is to be ordered behind that fence. Appending beyond
 * token_limit is LIMIT.
 *
 * Costs: one descriptor a block, and of driver time about 60 µs to import it and 24 to 39 µs a
 * mapping: besides the space's own, one of a block that is only read, two of one that is written.
 *
 * Copy engines (cudaMemcpy): in either range all mappings have the same access, so that one copy
 * may go over many blocks.
 */
#ifndef KVMEM_REGION_H
#define KVMEM_REGION_H

#include <kvmem/fence.h>
#include <kvmem/seq.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvmem_region;

struct kvmem_region_options {
    uint32_t size;         /* sizeof(struct kvmem_region_options) */
    uint32_t ahead_blocks; /* taken and mapped beyond the frontier; 0 = 2, at most 64 */
    uint64_t token_limit;  /* address space for so many tokens, rounded up to whole blocks:
                              1 .. what the index range holds */
};

/* Map what the sequence has and follow it from now on; a sequence has at most one region (EXISTS).
 * NOT_SUPPORTED (the space has no regions), INVALID, STALE, LIMIT (more tokens than token_limit),
 * OUT_OF_BLOCKS and REFILL_PENDING (for the blocks ahead), NO_MEMORY, DEVICE_FULL, SYSTEM; then
 * nothing is mapped. Blocks for the driver's time. */
KVMEM_API int kvmem_region_open(struct kvmem_space *space, struct kvmem_seq seq,
                                const struct kvmem_region_options *options,
                                struct kvmem_region **out);

/* Take the views away once `fence`, the last work that used it, has passed; the sequence stays.
 * Freeing the sequence closes its region too, behind the fence of that call. The pointer is not
 * valid any more, unless the call fails. NULL is allowed. Codes of kvmem_fence_poll for the fence's
 * kind and timeline, TIMED_OUT (for the fence of a truncate; see above). */
KVMEM_API int kvmem_region_close(struct kvmem_region *region, struct kvmem_fence fence);

struct kvmem_region_info {
    uint32_t size; /* sizeof(struct kvmem_region_info), set by the caller */
    uint32_t mapped_blocks;
    void *base;                  /* of token 0, where it is read; device address */
    void *write_base;            /* of token 0, where it is written, while it may be */
    uint64_t block_bytes;        /* from a block to the next */
    uint64_t token_stride_bytes; /* TOKEN_MAJOR: from a token to the next; else 0 */
    uint64_t token_limit;
    uint64_t mapped_tokens; /* from base on */
    uint64_t waits;         /* appends that had to map a block, or wait for it, themselves */
    uint64_t remaps;        /* copies of a shared tail that took its place */
};

/* INVALID (size). */
KVMEM_API int kvmem_region_info(const struct kvmem_region *region, struct kvmem_region_info *out);

#ifdef __cplusplus
}
#endif
#endif
