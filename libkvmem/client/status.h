/* SPDX-License-Identifier: Apache-2.0
 *
 * The status page: what a client shows the daemon of the segments that it writes. A memfd made by
 * the daemon and mapped writable by one client; the client stores, the daemon reads for `map` and
 * `frag`. Advisory: nothing is ever decided by it but what a picture shows.
 *
 *   header (64 bytes) | slot 0 | slot 1 | ...            a slot: 4,096 blocks of one segment
 *
 *   slot (1,088 bytes): space, segment, generation, chunk | tokens | used 512 B | sealed 512 B
 *
 * A segment of n chunks has n consecutive slots, the first of them among the KVI_STATUS_WINDOW
 * places from the one that its number hashes to; when all are taken it is not shown. tokens
 * are counted in the first slot alone.
 *   used   = blocks in the client's sequences that are no entries (published ones leave)
 *   sealed = the used ones whose publication is not answered yet
 *
 * Threads: one writer, relaxed stores; any reader, relaxed loads, every word checked after it was
 * copied: the writer may put anything there at any time.
 */
#ifndef KVI_CLIENT_STATUS_H
#define KVI_CLIENT_STATUS_H

#include <stddef.h>
#include <stdint.h>

#include "directory/directory.h"

#define KVI_STATUS_MAGIC       0x5453564bu /* "KVST" */
#define KVI_STATUS_VERSION     1u
#define KVI_STATUS_SLOT_BLOCKS 4096u
#define KVI_STATUS_SLOT_WORDS  (KVI_STATUS_SLOT_BLOCKS / 64u)
#define KVI_STATUS_WINDOW      16u

struct kvi_status_header {
    uint32_t magic;
    uint32_t version;
    uint32_t slot_count;
    uint32_t slot_bytes;
    uint8_t reserved[48];
};

struct kvi_status_slot {
    uint32_t space;
    uint32_t segment;    /* slot of the space */
    uint32_t generation; /* 0 = nothing is shown here */
    uint32_t chunk;      /* 0 .. chunks − 1 */
    uint64_t tokens;     /* in the segment's used blocks; chunk 0 only */
    uint64_t reserved[5];
    uint64_t used[KVI_STATUS_SLOT_WORDS];
    uint64_t sealed[KVI_STATUS_SLOT_WORDS];
};

_Static_assert(sizeof(struct kvi_status_header) == 64, "laid down in the page");
_Static_assert(sizeof(struct kvi_status_slot) == 1088, "laid down in the page");

/* Slots that a segment of `block_count` blocks takes. */
static inline uint32_t kvi_status_chunks(uint32_t block_count)
{
    return (uint32_t)(((uint64_t)block_count + KVI_STATUS_SLOT_BLOCKS - 1) /
                      KVI_STATUS_SLOT_BLOCKS);
}

/* Writer: lay an empty page out in `bytes` of zeroed memory. Returns the number of slots. */
uint32_t kvi_status_init(void *page, size_t bytes);

/* Writer: slots for a segment, cleared and named; NULL when its window is full. */
struct kvi_status_slot *kvi_status_show(void *page, size_t bytes, uint32_t space, uint32_t segment,
                                        uint32_t generation, uint32_t block_count);

/* Writer: the segment is shown no more. */
void kvi_status_hide(struct kvi_status_slot *slots, uint32_t block_count);

/* Reader: what the page of `bytes` bytes says of a segment, clamped to its `block_count` blocks.
 * 1, or 0 when it says nothing (then *out is zero). Safe against any bytes, changing ones too. */
int kvi_status_read(const void *page, size_t bytes, uint32_t space, uint32_t segment,
                    uint32_t generation, uint32_t block_count, struct kvi_dir_usage *out);

#endif
