/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences of publications: an entry may be published before the kernels that fill it have run.
 *
 *   word of a block = value << 6 | lane      of its publisher's timeline; 0 = nothing pending
 *
 *   fence_count of a segment = its words that are not 0
 *   a word that is not 0 belongs to an entry whose publisher is still known
 *
 * Words lie behind the records and are looked at only where fence_count says that there are any,
 * so look-ups of entries that are ready touch nothing more. A word is cleared when somebody finds
 * that its value is reached, and when its entry goes. Nobody is told when a fence is reached: who
 * looks an entry up gets the fence, and waits for it on the GPU.
 *
 * When a publisher is gone, what it had not reached never will be: such an entry goes, or, where
 * others hold it or own its segment, gets a name that nobody asks for and stays until it is
 * evicted. Nothing here allocates or fails.
 */
#include "directory/directory_internal.h"

#define LANE_BITS 6u

_Static_assert(1u << LANE_BITS == KVI_LANE_COUNT, "a lane fits its bits");
_Static_assert(KVI_FENCE_LIMIT << LANE_BITS != 0, "a value fits above them");

static uint32_t lane_of(uint64_t word)
{
    return (uint32_t)word & (KVI_LANE_COUNT - 1);
}

static uint64_t value_of(uint64_t word)
{
    return word >> LANE_BITS;
}

int kvi_dir_fence_is_valid(const struct kvi_dir *dir, const struct kvi_dir_client *client,
                           const struct kvi_rec_publication *p)
{
    if (p->fence_kind == KVMEM_FENCE_NONE)
        return p->fence_lane == 0 && p->fence_value == 0;
    return p->fence_kind == KVMEM_FENCE_TIMELINE && client->version >= KVI_VERSION_FENCES &&
           dir->env.timeline_reached && p->fence_lane < KVI_LANE_COUNT && p->fence_value > 0 &&
           p->fence_value < KVI_FENCE_LIMIT;
}

static int is_reached(const struct kvi_dir *dir, uint32_t client, uint64_t word)
{
    return dir->env.timeline_reached(dir->env.context, client, lane_of(word), value_of(word)) != 0;
}

void kvi_dir_fence_set(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                       const struct kvi_dir_client *client, const struct kvi_rec_publication *p)
{
    uint64_t word = p->fence_value << LANE_BITS | p->fence_lane;

    if (p->fence_kind != KVMEM_FENCE_TIMELINE || is_reached(dir, client->number, word))
        return;
    kvi_dir_fences(segment)[block] = word;
    segment->fence_count++;
}

void kvi_dir_fence_clear(struct kvi_dir_segment *segment, uint32_t block)
{
    uint64_t *words = kvi_dir_fences(segment);

    if (words[block] == 0)
        return;
    words[block] = 0;
    segment->fence_count--;
}

/* ---- the fences of a look-up ---- */

static const struct kvi_dir_client *producer_of(const struct kvi_dir *dir,
                                                struct kvi_dir_fence_list *list, uint32_t session)
{
    if (!list->producer || list->producer->session_serial != session)
        list->producer = kvi_dir_client_of_session(dir, session);
    assert(list->producer); /* no word outlives its publisher */
    return list->producer;
}

/* Add to the list, one a lane, the last ones first: neighbours mostly share theirs. 0: it is
 * full. */
static int add(struct kvi_dir_fence_list *list, uint32_t timeline, uint64_t value)
{
    for (uint32_t i = list->count; i > 0; i--) {
        struct kvi_rec_fence *fence = &list->fences[i - 1];

        if (fence->timeline != timeline)
            continue;
        if (fence->value < value)
            fence->value = value;
        return 1;
    }
    if (list->count == KVI_DIR_FENCE_LIMIT)
        return 0;
    list->fences[list->count++] =
        (struct kvi_rec_fence){.kind = KVMEM_FENCE_TIMELINE, .timeline = timeline, .value = value};
    return 1;
}

int kvi_dir_fence_admit(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                        struct kvi_dir_fence_list *list)
{
    uint64_t word = kvi_dir_fences(segment)[block];
    const struct kvi_dir_client *producer;

    if (word == 0)
        return 1;
    producer = producer_of(dir, list, segment->entries[block].publisher);
    if (is_reached(dir, producer->number, word)) {
        kvi_dir_fence_clear(segment, block);
        return 1;
    }
    switch (list->use) {
    case KVI_DIR_FENCES_COUNTED: return 1;
    case KVI_DIR_FENCES_LISTED:
        return add(list, producer->session_serial * KVI_LANE_COUNT + lane_of(word), value_of(word));
    default: return 0;
    }
}

/* ---- the end of a publisher ---- */

static void end_fence(struct kvi_dir *dir, uint32_t number, uint32_t block,
                      const struct kvi_dir_client *client)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    uint64_t word = kvi_dir_fences(segment)[block];

    if (word == 0 || segment->entries[block].publisher != client->session_serial)
        return;
    kvi_dir_fence_clear(segment, block);
    if (!is_reached(dir, client->number, word))
        kvi_dir_entry_break(dir, number, block);
}

void kvi_dir_fence_break(struct kvi_dir *dir, const struct kvi_dir_client *client)
{
    for (uint32_t number = 0; number < dir->segment_high; number++) {
        struct kvi_dir_segment *segment = &dir->segments[number];
        struct kvi_dir_space *space = &dir->spaces[segment->space];

        if (segment->fence_count == 0)
            continue;
        for (uint32_t block = 0; block < segment->block_count; block++)
            end_fence(dir, number, block, client);
        kvi_dir_space_settle(dir, space);
    }
}
