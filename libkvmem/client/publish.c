/* SPDX-License-Identifier: Apache-2.0
 *
 * Publishing: records in the outbox, and what holds the blocks until their fence has passed. See
 * prefix.h.
 */
#include <inttypes.h>
#include <string.h>

#include "client/prefix.h"
#include "client/seq.h"
#include "util/error.h"

/* May the sequence publish, with this fence? */
static int check_publish(struct kvmem_space *space, struct kvi_seq *seq,
                         const struct kvmem_fence *fence)
{
    if (fence->kind == KVMEM_FENCE_TIMELINE && !kvi_fence_is_own(space->client, fence->timeline))
        return kvi_error_set(KVMEM_E_INVALID,
                             "fence.timeline: %" PRIu32 " is not this client's own",
                             fence->timeline);
    switch (kvi_guard_state(space->client, seq->guard)) {
    case KVI_LANE_PENDING:
        return kvi_error_set(KVMEM_E_BUSY, "seq: blocks that it was attached to are not written "
                                           "yet; wait for the fence of their look-up");
    case KVI_LANE_IS_BROKEN:
        return kvi_error_set(KVMEM_E_STALE, "seq: the producer of blocks that it was attached to "
                                            "died before it had written them; compute them again");
    default: seq->guard = KVI_GUARD_NONE; return 0;
    }
}

/* A publication: its records, and, when its fence is not reached, where its blocks wait for it. */
struct publishing {
    uint32_t first_block;
    uint32_t count;
    uint32_t records; /* blocks that are not published yet */
    bool is_fenced;
    struct kvi_point point;
    struct kvi_cooling_place place;
};

/* All that may fail. */
static int begin_publish(struct kvmem_space *space, const struct kvi_seq *seq,
                         const struct kvmem_fence *fence, struct publishing *p)
{
    uint64_t full = kvi_space_whole_blocks(space, seq->committed);
    int code;

    if ((uint64_t)p->first_block + p->count > full)
        return kvi_error_set(KVMEM_E_INVALID,
                             "first_block, count: %" PRIu32 ", %" PRIu32
                             " reach beyond the %" PRIu64 " full and committed blocks",
                             p->first_block, p->count, full);
    for (uint32_t i = 0; i < p->count; i++)
        p->records += space->pool.state[seq->blocks[p->first_block + i]] == KVI_BLOCK_PRIVATE;
    if (p->records > kvi_outbox_room(&space->client->outbox))
        return kvi_error_set(KVMEM_E_OUTBOX_FULL, "room for %" PRIu64 " of %" PRIu32 " records",
                             kvi_outbox_room(&space->client->outbox), p->records);
    p->is_fenced = p->records && kvi_fence_is_pending(space->client, fence);
    if (!p->is_fenced)
        return 0;
    code = kvi_cooling_reserve(space, p->records, &p->place);
    if (code)
        return code;
    code = kvi_fence_take(space->client, kvi_space_backend(space), fence, &p->point);
    if (code)
        kvi_cooling_cancel(space, &p->place);
    return code;
}

static void seal(struct kvmem_space *space, uint32_t block, const struct kvmem_name *name,
                 uint64_t fence)
{
    struct kvi_outbox_record *record;

    kvi_pool_seal(&space->pool, block);
    record = kvi_outbox_append(space->client, KVI_OUTBOX_PUBLISH, space->place, block);
    memcpy(record->bytes, name->bytes, sizeof(record->bytes));
    record->fence = fence;
}

/* The same with a fence that is not reached. */
static void publish_fenced(struct kvmem_space *space, const struct kvi_seq *seq,
                           const struct kvmem_name *names, const struct publishing *p)
{
    uint64_t word = p->point.value * KVI_LANE_COUNT + p->point.timeline % KVI_LANE_COUNT;
    int32_t single;
    int32_t *sealed = p->place.array ? p->place.array : &single;
    uint32_t sealed_count = 0;

    for (uint32_t i = 0; i < p->count; i++) {
        int32_t block = seq->blocks[p->first_block + i];

        if (space->pool.state[block] != KVI_BLOCK_PRIVATE)
            continue;
        seal(space, (uint32_t)block, &names[i], word);
        sealed[sealed_count++] = block;
    }
    kvi_cooling_add_publication(space, &p->point, sealed, sealed_count, &p->place);
}

int kvi_seq_publish(struct kvmem_space *space, struct kvmem_seq id, uint32_t first_block,
                    uint32_t count, const struct kvmem_name *names, const struct kvmem_fence *fence)
{
    struct kvi_seq *seq = kvi_seq_find(space, id);
    struct publishing p = {.first_block = first_block, .count = count};
    int code;

    if (!seq)
        return kvi_seq_stale(id);
    code = kvi_client_is_lost(space->client);
    if (!code)
        code = check_publish(space, seq, fence);
    if (!code)
        code = begin_publish(space, seq, fence, &p);
    if (code)
        return code;
    if (p.is_fenced) {
        publish_fenced(space, seq, names, &p);
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = (uint32_t)seq->blocks[first_block + i];

        if (space->pool.state[block] == KVI_BLOCK_PRIVATE)
            seal(space, block, &names[i], 0);
    }
    return 0;
}

int kvi_publish_results(struct kvmem_space *space, uint32_t limit,
                        struct kvmem_publish_result *results)
{
    uint32_t taken = 0;

    while (taken < limit && space->results_tail < space->results_head)
        results[taken++] = space->results[space->results_tail++ % KVI_SPACE_RESULTS];
    return (int)taken;
}
