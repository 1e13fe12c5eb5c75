/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing and reading of the status page; see status.h.
 */
#include "client/status.h"

#include <string.h>

#define TOKENS_PER_BLOCK_MAX 4096u
#define CELL_COUNT           64u

static uint32_t slots_in(size_t bytes)
{
    if (bytes < sizeof(struct kvi_status_header))
        return 0;
    bytes = (bytes - sizeof(struct kvi_status_header)) / sizeof(struct kvi_status_slot);
    return bytes > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)bytes;
}

/* Where a segment's slots begin at best: segments in order lie side by side. */
static uint32_t home_of(uint32_t slot_count, uint32_t space, uint32_t segment, uint32_t chunks)
{
    return (uint32_t)(((uint64_t)segment * chunks + (uint64_t)space * 7919u) %
                      (slot_count - chunks + 1));
}

static uint32_t load32(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static uint64_t load64(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

uint32_t kvi_status_init(void *page, size_t bytes)
{
    struct kvi_status_header *header = page;

    if (bytes < sizeof(*header))
        return 0;
    header->version = KVI_STATUS_VERSION;
    header->slot_count = slots_in(bytes);
    header->slot_bytes = sizeof(struct kvi_status_slot);
    __atomic_store_n(&header->magic, KVI_STATUS_MAGIC, __ATOMIC_RELEASE);
    return header->slot_count;
}

static int is_free(const struct kvi_status_slot *slots, uint32_t chunks)
{
    for (uint32_t i = 0; i < chunks; i++)
        if (load32(&slots[i].generation))
            return 0;
    return 1;
}

struct kvi_status_slot *kvi_status_show(void *page, size_t bytes, uint32_t space, uint32_t segment,
                                        uint32_t generation, uint32_t block_count)
{
    uint32_t slot_count = page ? slots_in(bytes) : 0;
    uint32_t chunks = kvi_status_chunks(block_count);
    struct kvi_status_slot *slots;
    uint32_t home;

    if (!chunks || chunks > slot_count)
        return NULL;
    slots = (void *)((char *)page + sizeof(struct kvi_status_header));
    home = home_of(slot_count, space, segment, chunks);
    for (uint32_t i = 0; i < KVI_STATUS_WINDOW && home + i + chunks <= slot_count; i++) {
        struct kvi_status_slot *first = slots + home + i;

        if (!is_free(first, chunks))
            continue;
        memset(first, 0, chunks * sizeof(*first));
        for (uint32_t chunk = 0; chunk < chunks; chunk++) {
            first[chunk].space = space;
            first[chunk].segment = segment;
            first[chunk].chunk = chunk;
            __atomic_store_n(&first[chunk].generation, generation, __ATOMIC_RELEASE);
        }
        return first;
    }
    return NULL;
}

void kvi_status_hide(struct kvi_status_slot *slots, uint32_t block_count)
{
    for (uint32_t i = 0; i < kvi_status_chunks(block_count); i++)
        __atomic_store_n(&slots[i].generation, 0, __ATOMIC_RELAXED);
}

static int is_slot_of(const struct kvi_status_slot *slot, uint32_t space, uint32_t segment,
                      uint32_t generation, uint32_t chunk)
{
    return load32(&slot->generation) == generation && load32(&slot->segment) == segment &&
           load32(&slot->space) == space && load32(&slot->chunk) == chunk;
}

/* Bits [first, first + count) of the copied word, count ≤ 64. */
static uint32_t bits_in(uint64_t word, uint32_t first, uint32_t count)
{
    word >>= first;
    if (count < 64)
        word &= (UINT64_C(1) << count) - 1;
    return (uint32_t)__builtin_popcountll(word);
}

/* Used blocks of each 64th of the segment. Each word of the page is read once. */
static void count_cells(const struct kvi_status_slot *slots, uint32_t block_count,
                        uint32_t *cell_used)
{
    uint32_t cell_blocks = (block_count + CELL_COUNT - 1) / CELL_COUNT;

    for (uint32_t base = 0; base < block_count; base += 64) {
        uint32_t index = base / 64;
        uint64_t word =
            load64(&slots[index / KVI_STATUS_SLOT_WORDS].used[index % KVI_STATUS_SLOT_WORDS]);
        uint32_t end = block_count - base < 64 ? block_count : base + 64;

        for (uint32_t at = base; at < end && word;) {
            uint32_t cell = at / cell_blocks;
            uint32_t next = (cell + 1) * cell_blocks;

            if (next > end)
                next = end;
            cell_used[cell] += bits_in(word, at - base, next - at);
            at = next;
        }
    }
}

static void fill_usage(const uint32_t *cell_used, uint32_t block_count, uint64_t tokens,
                       struct kvi_dir_usage *out)
{
    uint32_t cell_blocks = (block_count + CELL_COUNT - 1) / CELL_COUNT;

    for (uint32_t cell = 0; cell < CELL_COUNT; cell++) {
        uint32_t used = cell_used[cell];
        uint32_t room = cell * cell_blocks < block_count ? block_count - cell * cell_blocks : 0;

        if (room > cell_blocks)
            room = cell_blocks;
        out->used_blocks += used;
        if (!used)
            continue;
        out->cells[cell] = (uint8_t)(used >= room ? 255 : (uint64_t)used * 255 / room);
        if (!out->cells[cell])
            out->cells[cell] = 1;
    }
    out->used_tokens = (uint64_t)out->used_blocks * TOKENS_PER_BLOCK_MAX;
    if (tokens < out->used_tokens)
        out->used_tokens = tokens;
}

int kvi_status_read(const void *page, size_t bytes, uint32_t space, uint32_t segment,
                    uint32_t generation, uint32_t block_count, struct kvi_dir_usage *out)
{
    const struct kvi_status_header *header = page;
    uint32_t slot_count = page ? slots_in(bytes) : 0;
    uint32_t chunks = kvi_status_chunks(block_count);
    const struct kvi_status_slot *slots;
    uint32_t home;

    memset(out, 0, sizeof(*out));
    if (!chunks || chunks > slot_count || !generation || load32(&header->magic) != KVI_STATUS_MAGIC)
        return 0;
    slots = (const void *)((const char *)page + sizeof(*header));
    home = home_of(slot_count, space, segment, chunks);
    for (uint32_t i = 0; i < KVI_STATUS_WINDOW && home + i + chunks <= slot_count; i++) {
        const struct kvi_status_slot *first = slots + home + i;
        uint32_t cell_used[CELL_COUNT] = {0};
        uint32_t chunk = 0;

        while (chunk < chunks && is_slot_of(&first[chunk], space, segment, generation, chunk))
            chunk++;
        if (chunk < chunks)
            continue;
        count_cells(first, block_count, cell_used);
        fill_usage(cell_used, block_count, load64(&first->tokens), out);
        return 1;
    }
    return 0;
}
