/* SPDX-License-Identifier: Apache-2.0
 *
 * Asking for blocks and handing segments in; see refill.h.
 */
#include "client/refill.h"

#include <inttypes.h>
#include <unistd.h>

#include "client/importer.h"
#include "client/region.h"
#include "util/error.h"

#define REQUEST_MAX       (UINT64_C(1) << 30)
#define PRESSURE_HOLD_OFF 10 /* deadlines during which nothing is asked for ahead of need */

static void say_hand_in(struct kvmem_space *space, uint32_t slot, uint32_t generation)
{
    kvi_outbox_append(space->client, KVI_OUTBOX_HAND_IN, space->place, slot)->generation =
        generation;
}

/* The segment could not be made writable: it goes back, and so does a mapping that was to be. */
static void give_back(struct kvmem_space *space, uint32_t slot, uint32_t generation, bool is_new)
{
    say_hand_in(space, slot, generation);
    if (is_new)
        kvi_outbox_append(space->client, KVI_OUTBOX_UNMAPPED, space->place, slot)->generation =
            generation;
}

/* The helper is done with a granted segment: its blocks are there, or it goes back. */
static void arrived(const struct kvi_mapping *job)
{
    struct kvmem_space *space = job->context;
    uint32_t slot = (uint32_t)job->tag;
    uint32_t lost;

    if (!kvi_importer_finish(job)) {
        kvi_pool_arrive(&space->pool, slot);
        return;
    }
    lost = kvi_pool_disown(&space->pool, slot);
    give_back(space, slot, space->pool.segments[slot].generation, job->kind == KVI_MAPPING_MAP);
    if (space->request_serial) {
        space->request_got -= lost < space->request_got ? lost : space->request_got;
    } else {
        space->refusal = job->code;
        space->is_refused = true;
    }
}

/* Make the segment writable here, whatever it was, or let the helper do so unless the caller waits
 * anyway: that saves two wake-ups. Codes of the backend; the descriptor is consumed. */
static int take_over(struct kvmem_space *space, const struct kvi_rec_segment_grant *record, int fd)
{
    struct kvi_segment *segment = &space->pool.segments[record->slot];
    bool is_left = !space->client->is_waiting;
    uint32_t slot = record->slot;

    if (segment->access && segment->generation == record->generation) {
        if (fd >= 0)
            close(fd);
        if (is_left && kvi_importer_submit_raise(space, slot, arrived))
            return 0;
        return kvi_importer_raise(space, slot);
    }
    if (fd < 0)
        return kvi_error_set(KVMEM_E_SYSTEM, "a segment came without its descriptor");
    if (is_left &&
        kvi_importer_submit_map(space, slot, record->generation, fd, KVI_ACCESS_RW, arrived))
        return 0;
    return kvi_importer_map(space, slot, record->generation, fd, KVI_ACCESS_RW);
}

/* One segment of a grant. When it cannot be mapped it goes back: its blocks are not taken. */
static int grant_segment(struct kvmem_space *space, const struct kvi_rec_segment_grant *record)
{
    struct kvmem_client *client = space->client;
    bool has_fd = record->flags & KVI_SEGMENT_HAS_FD;
    struct kvi_segment *segment;
    int code = 0;

    if (record->slot >= space->pool.segment_limit || space->pool.segments[record->slot].is_owned)
        return kvi_client_protocol(client, "grant.slot is outside the space or owned already");
    kvi_importer_settle(space, record->slot);
    segment = &space->pool.segments[record->slot];
    if (segment->access && segment->generation != record->generation)
        code = kvi_importer_vacate(space, record->slot);
    if (code)
        return code;
    if (take_over(space, record, has_fd ? kvi_client_steal_fd(client) : -1)) {
        give_back(space, record->slot, record->generation, has_fd && !segment->access);
        return 0;
    }
    kvi_pool_own(&space->pool, record->slot,
                 kvi_status_show(client->status_page, client->status_bytes, space->id, record->slot,
                                 record->generation, space->pool.blocks_per_segment));
    if (record->flags & KVI_SEGMENT_ADOPTED)
        space->stats.adopted_segments++;
    return 0;
}

/* Blocks of a grant. Those of a segment that is not ours (handed in meanwhile, or not mapped) are
 * the directory's again already. */
static int grant_range(struct kvmem_space *space, const struct kvi_rec_block_range *range)
{
    struct kvi_pool *pool = &space->pool;
    uint64_t end = (uint64_t)range->first + range->count;

    if (end > pool->index_range)
        return kvi_client_protocol(space->client, "grant.first is outside the space");
    for (uint32_t index = range->first; index < end; index++) {
        if (!kvi_pool_segment(pool, index)->is_owned)
            continue;
        if (pool->state[index] != KVI_BLOCK_NONE)
            return kvi_client_protocol(space->client, "a granted block is in use here");
        if (kvi_pool_segment(pool, index)->job)
            kvi_pool_expect(pool, index);
        else
            kvi_pool_add(pool, index);
        space->request_got++;
    }
    return 0;
}

static void answered(struct kvmem_space *space, int refusal)
{
    space->request_serial = 0;
    space->refusal = refusal;
    space->is_refused = refusal != 0;
    /* What a call lacked is kept for it until it comes again. */
    if (space->lacking > space->reserved_blocks)
        space->reserved_blocks = space->lacking;
    space->lacking = 0;
    space->stats.refills++;
}

int kvi_refill_grant(struct kvmem_space *space, const struct kvi_msg_grant *grant)
{
    const struct kvi_rec_segment_grant *segments = kvi_wire_tail_const(grant, 0);
    const struct kvi_rec_block_range *ranges = kvi_wire_tail_const(grant, 1);
    uint32_t fds = 0;
    int code = 0;

    if (grant->header.serial != space->request_serial)
        return kvi_client_protocol(space->client, "a grant that was not asked for");
    for (uint32_t i = 0; i < grant->segment_count; i++)
        fds += segments[i].flags & KVI_SEGMENT_HAS_FD ? 1 : 0;
    if (fds != space->client->fd_count)
        return kvi_client_protocol(space->client, "a grant that does not match its descriptors");
    for (uint32_t i = 0; !code && i < grant->segment_count; i++)
        code = grant_segment(space, &segments[i]);
    for (uint32_t i = 0; !code && i < grant->range_count; i++)
        code = grant_range(space, &ranges[i]);
    if (code)
        return code;
    space->obtainable = grant->obtainable_blocks;
    if (grant->flags & KVI_GRANT_LAST)
        answered(space, space->request_got ? 0 : KVMEM_E_DEVICE_FULL);
    return 0;
}

void kvi_refill_refused(struct kvmem_space *space, int code)
{
    answered(space, space->request_got ? 0 : code);
    space->obtainable = 0;
}

/* Segments on their way back: the helper is just taking their alias out. */
static uint32_t coming_back(const struct kvmem_space *space)
{
    uint32_t count = 0;

    for (uint32_t slot = 0; slot < space->pool.segment_limit; slot++) {
        const struct kvi_segment *segment = &space->pool.segments[slot];

        count += segment->is_owned && segment->job && segment->access == KVI_ACCESS_RW;
    }
    return count;
}

void kvi_refill_pressure(struct kvmem_space *space, const struct kvi_msg_pressure *message)
{
    uint32_t coming = coming_back(space); /* the directory cannot know of them */
    int64_t deadline_ns = message->deadline_ns > (uint64_t)INT64_C(1000000000)
                              ? INT64_C(1000000000)
                              : (int64_t)message->deadline_ns;

    space->pressure = message->segment_count > coming ? message->segment_count - coming : 0;
    space->pressure_end_ns = kvi_client_now_ns() + deadline_ns;
    space->pressed_until_ns = space->pressure_end_ns + PRESSURE_HOLD_OFF * deadline_ns;
    space->client->pressure_requests++;
}

int kvi_refill_request(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns)
{
    struct kvmem_client *client = space->client;
    struct kvi_msg_blocks_request *message = client->tx;
    int code;

    if (client->late_serial)
        return kvi_error_set(KVMEM_E_TIMED_OUT, "an earlier call is not answered yet");
    kvi_wire_begin(message, KVI_OP_BLOCKS_REQUEST, ++client->last_serial);
    message->space = space->id;
    message->block_count = (uint32_t)(blocks < REQUEST_MAX ? blocks : REQUEST_MAX);
    message->flags = KVI_REQUEST_MAY_WAIT;
    /* Before the send: the answer may be there when it returns. */
    space->request_serial = message->header.serial;
    space->request_got = 0;
    code = kvi_client_post(client, message, timeout_ns);
    if (code)
        space->request_serial = 0;
    return code;
}

int kvi_refill_ask(struct kvmem_space *space)
{
    uint64_t free = kvi_pool_free_blocks(&space->pool) + space->pool.arriving_blocks;
    uint64_t wanted = 0;
    int code;

    if (space->request_serial)
        return 0;
    if (space->lacking > free)
        wanted = space->lacking - free;
    if (wanted < space->refill && free < space->low_water && !space->is_refused &&
        (!space->pressed_until_ns || kvi_client_now_ns() >= space->pressed_until_ns))
        wanted = space->refill;
    if (!wanted)
        return 0;
    code = kvi_refill_request(space, wanted, 0);
    return code == KVMEM_E_TIMED_OUT ? 0 : code;
}

/* Nothing can be written there by us any more: the segment is the directory's. */
static void handed_in(struct kvmem_space *space, uint32_t slot)
{
    kvi_pool_disown(&space->pool, slot);
    say_hand_in(space, slot, space->pool.segments[slot].generation);
    space->stats.handed_in_segments++;
    space->is_refused = false;
}

/* The helper is done with a segment to be handed in. If it failed, all is as it was. */
static void lowered(const struct kvi_mapping *job)
{
    struct kvmem_space *space = job->context;
    uint32_t slot = (uint32_t)job->tag;

    if (!kvi_importer_finish(job)) {
        handed_in(space, slot);
        return;
    }
    kvi_pool_arrive(&space->pool, slot);
}

/* Hand one idle segment in, or let the helper do so. False when its alias could not be taken out,
 * or is just being mapped. */
static bool hand_in(struct kvmem_space *space, uint32_t slot)
{
    if (space->pool.segments[slot].job)
        return false;
    if (space->regions && kvi_regions_lower(space, slot))
        return false;
    if (kvi_importer_submit_lower(space, slot, lowered)) {
        kvi_pool_suspend(&space->pool, slot);
        return true;
    }
    if (kvi_importer_lower(space, slot))
        return false;
    handed_in(space, slot);
    return true;
}

/* Free blocks that are not handed in: what a refill brings, what a call lacks, and what the
 * caller reserved, as long as it was not used. */
static uint64_t kept_blocks(const struct kvmem_space *space)
{
    uint64_t keep = (uint64_t)space->low_water + space->refill;

    keep = space->lacking > keep ? space->lacking : keep;
    return space->reserved_blocks > keep ? space->reserved_blocks : keep;
}

/* May it go? */
static bool is_spare(const struct kvmem_space *space, const struct kvi_segment *segment, bool all)
{
    uint64_t others = kvi_pool_free_blocks(&space->pool) - segment->free_count;

    if (all || space->pressure || !segment->free_count)
        return true;
    return others >= kept_blocks(space);
}

uint32_t kvi_refill_hand_in(struct kvmem_space *space, bool all)
{
    struct kvi_pool *pool = &space->pool;
    uint32_t count = 0;
    uint32_t slot;

    kvi_pool_settle(pool);
    if (space->reserved_blocks > kvi_pool_free_blocks(pool) + pool->arriving_blocks)
        space->reserved_blocks = kvi_pool_free_blocks(pool) + pool->arriving_blocks;
    slot = pool->idle_first;
    if (slot == KVI_POOL_NO_SEGMENT || !(all || space->pressure || pool->has_new_idle ||
                                         kvi_pool_free_blocks(pool) > kept_blocks(space)))
        return 0;
    pool->idle_first = KVI_POOL_NO_SEGMENT;
    pool->has_new_idle = false;
    while (slot != KVI_POOL_NO_SEGMENT) {
        struct kvi_segment *segment = &pool->segments[slot];
        uint32_t next = segment->idle_next;

        segment->is_candidate = false;
        if (segment->is_owned && !segment->used_count) {
            if (!segment->fenced_count && is_spare(space, segment, all) && hand_in(space, slot)) {
                count++;
                if (space->pressure)
                    space->pressure--;
            }
        }
        if (segment->is_owned && !segment->used_count) { /* still, or until the helper is done */
            segment->is_candidate = true;
            segment->idle_next = pool->idle_first;
            pool->idle_first = slot;
        }
        slot = next;
    }
    if (space->pressure && kvi_client_now_ns() >= space->pressure_end_ns)
        space->pressure = 0;
    return count;
}

/* Blocks that are missing of `blocks`, and not on their way through the helper either. */
static uint64_t missing_blocks(const struct kvmem_space *space, uint64_t blocks)
{
    uint64_t had = kvi_pool_free_blocks(&space->pool) + space->pool.arriving_blocks;

    return had < blocks ? blocks - had : 0;
}

static int still_pending(struct kvmem_space *space, uint64_t blocks)
{
    if (blocks > space->lacking)
        space->lacking = blocks; /* what comes for it later is kept */
    return kvi_error_set(KVMEM_E_REFILL_PENDING, "%" PRIu64 " of %" PRIu64 " blocks are free",
                         kvi_pool_free_blocks(&space->pool), blocks);
}

/* What is missing is asked for. Again, when the answer was less: others may have taken it. */
static int reserve_ask(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns,
                       int64_t deadline_ns)
{
    int code = kvi_outbox_flush(space->client, deadline_ns);

    return code ? code : kvi_refill_request(space, missing_blocks(space, blocks), timeout_ns);
}

/* Until the blocks are there, or will not be. 0 tells nothing of either. */
static int reserve_wait(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns,
                        int64_t deadline_ns)
{
    struct kvmem_client *client = space->client;
    bool was_asked = false;

    while (kvi_pool_free_blocks(&space->pool) < blocks) {
        int code;

        /* Before the helper's work is taken in, which may be enough: what a call drops depends on
         * the blocks that its caller saw, not on how far a thread has got. */
        kvi_cooling_drain(space);
        kvi_mapper_poll(client->mapper);
        if (kvi_pool_free_blocks(&space->pool) >= blocks)
            break;
        code = kvi_client_is_lost(client);
        if (!code && !space->request_serial && missing_blocks(space, blocks)) {
            if (was_asked && space->refusal)
                break;
            code = reserve_ask(space, blocks, timeout_ns, deadline_ns);
            was_asked = true;
        }
        if (!code)
            code = kvi_client_pump(client, deadline_ns);
        if (code < 0 && code != KVMEM_E_TIMED_OUT)
            return code;
        if (code == 0 && deadline_ns && kvi_client_now_ns() < deadline_ns)
            continue;
        if (code <= 0 && kvi_pool_free_blocks(&space->pool) < blocks &&
            (space->request_serial || space->pool.arriving_blocks))
            return still_pending(space, blocks);
        if (code == KVMEM_E_TIMED_OUT)
            return code;
    }
    return 0;
}

int kvi_space_reserve(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns)
{
    int64_t deadline_ns = kvi_client_deadline_ns(timeout_ns);
    int code;

    if (blocks > space->pool.index_range)
        return kvi_error_set(KVMEM_E_INVALID, "blocks: %" PRIu64 " is outside 0..%" PRIu32, blocks,
                             space->pool.index_range);
    space->client->is_waiting = deadline_ns != 0;
    code = reserve_wait(space, blocks, timeout_ns, deadline_ns);
    space->client->is_waiting = false;
    if (code)
        return code;
    if (kvi_pool_free_blocks(&space->pool) >= blocks) {
        space->reserved_blocks = blocks;
        return 0;
    }
    return kvi_error_set(
        space->refusal == KVMEM_E_DEVICE_FULL ? KVMEM_E_OUT_OF_BLOCKS : space->refusal,
        "%" PRIu64 " of %" PRIu64 " blocks are free; the directory said %s",
        kvi_pool_free_blocks(&space->pool), blocks, kvmem_error_name(space->refusal));
}

int kvi_space_trim(struct kvmem_space *space)
{
    struct kvmem_client *client = space->client;
    int64_t deadline_ns = kvi_client_deadline_ns(client->timeout_ns);
    int code = kvi_outbox_drain(client, deadline_ns);
    uint64_t before;

    if (!code)
        code = kvi_cooling_wait(space, deadline_ns);
    if (code)
        return code;
    space->reserved_blocks = 0;
    kvi_importer_settle_all(space); /* what is just coming goes as well */
    before = space->stats.handed_in_segments;
    kvi_refill_hand_in(space, true);
    kvi_importer_settle_all(space);
    code = kvi_outbox_flush(client, deadline_ns);
    return code ? code : (int)(space->stats.handed_in_segments - before);
}
