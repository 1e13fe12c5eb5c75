/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmem_client_check(): walks everything a client has and verifies the equations of space.h,
 * seq.h, region.h, pool.h, cooling.h and outbox.h. Takes memory for a count a block; time grows
 * with the pool.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client/client.h"
#include "client/importer.h"
#include "client/region.h"
#include "client/seq.h"
#include "util/error.h"

struct walk {
    const struct kvmem_space *space;
    uint32_t *refs;   /* [index_range] as counted in tables */
    uint32_t *cools;  /* [index_range] and in cooling entries */
    uint32_t *fenced; /* [segment_limit] publications that wait */
    uint64_t *tokens; /* [segment_limit] Σ fill − Σ tail_room */
    uint64_t publishing;
};

static int wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int wrong(const char *format, ...)
{
    char text[200];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return kvi_error_set(KVMEM_E_CORRUPT, "%s", text);
}

static int check_tail(struct walk *walk, const struct kvi_seq *seq, uint32_t place)
{
    const struct kvmem_space *space = walk->space;
    uint32_t fill = kvi_space_fill(space, seq->appended);
    uint32_t tail, slot;

    if (!seq->tail_room)
        return 0;
    if (!fill || seq->tail_room != space->block_tokens - fill)
        return wrong("seq %u: tail_room %u after %" PRIu64 " tokens", place, seq->tail_room,
                     seq->appended);
    tail = (uint32_t)seq->blocks[kvi_space_whole_blocks(space, seq->appended)];
    slot = kvi_pool_slot(&space->pool, tail);
    if (space->pool.state[tail] != KVI_BLOCK_PRIVATE || space->refs[tail] != 1 + walk->cools[tail])
        return wrong("seq %u: its tail %u is writable in state %u with %u references", place, tail,
                     space->pool.state[tail], space->refs[tail]);
    if (space->pool.fill[tail] != space->block_tokens)
        return wrong("seq %u: fill of its tail %u is %u", place, tail, space->pool.fill[tail]);
    if (seq->tail_tokens != &space->pool.segments[slot].shown->tokens)
        return wrong("seq %u: counts tokens elsewhere than in segment %u", place, slot);
    walk->tokens[slot] -= seq->tail_room;
    return 0;
}

static int check_seq(struct walk *walk, uint32_t place)
{
    const struct kvmem_space *space = walk->space;
    const struct kvi_seq *seq = &space->seqs[place];
    uint32_t used = kvi_seq_used_blocks(space, seq);

    if (seq->committed > seq->appended)
        return wrong("seq %u: committed %" PRIu64 " of %" PRIu64, place, seq->committed,
                     seq->appended);
    if (used > seq->block_count || seq->block_count > kvi_table_entries(seq->table_class))
        return wrong("seq %u: %u blocks used, %u in a table of %u", place, used, seq->block_count,
                     kvi_table_entries(seq->table_class));
    if (seq->copy_block != KVMEM_BLOCK_NONE)
        return wrong("seq %u: a copy was left behind", place);
    for (uint32_t i = 0; i < seq->block_count; i++) {
        uint32_t block = (uint32_t)seq->blocks[i];

        if (block >= space->pool.index_range)
            return wrong("seq %u: entry %u is %d", place, i, seq->blocks[i]);
        walk->refs[block]++;
        if (i >= used && (space->pool.state[block] != KVI_BLOCK_PRIVATE ||
                          space->refs[block] != 1 || space->pool.fill[block]))
            return wrong("seq %u: reserved block %u is not its own", place, block);
    }
    return check_tail(walk, seq, place);
}

static int check_seqs(struct walk *walk)
{
    const struct kvmem_space *space = walk->space;
    uint32_t live = 0, free = 0;

    for (uint32_t place = 0; place < space->fresh_seqs; place++) {
        int code;

        if (!(space->seqs[place].generation & 1))
            continue;
        live++;
        code = check_seq(walk, place);
        if (code)
            return code;
    }
    if (live != space->live_seqs)
        return wrong("%u sequences are alive, counted %u", live, space->live_seqs);
    for (uint32_t place = space->first_free_seq; place != UINT32_MAX;
         place = space->seqs[place].block_count)
        if (place >= space->fresh_seqs || (space->seqs[place].generation & 1) ||
            ++free > space->fresh_seqs)
            return wrong("the list of free sequences is broken at %u", place);
    if (live + free != space->fresh_seqs)
        return wrong("%u live and %u free sequences of %u", live, free, space->fresh_seqs);
    return 0;
}

static int check_cooling_entry(struct walk *walk, const struct kvi_cooling_entry *entry)
{
    const struct kvmem_space *space = walk->space;
    const int32_t *blocks = kvi_cooling_blocks(entry);

    if (!entry->count ||
        (entry->blocks ? entry->count > kvi_table_entries(entry->table_class) : entry->count > 1))
        return wrong("cooling: an entry of %u blocks", entry->count);
    for (uint32_t i = 0; i < entry->count; i++) {
        if ((uint32_t)blocks[i] >= space->pool.index_range)
            return wrong("cooling: block %d", blocks[i]);
        walk->cools[blocks[i]]++;
        walk->fenced[kvi_pool_slot(&space->pool, (uint32_t)blocks[i])] += entry->is_publication;
    }
    return 0;
}

/* One list: its links, its order, its entries. */
static int check_cooling_list(struct walk *walk, uint32_t list, uint32_t *listed, uint64_t *blocks)
{
    const struct kvi_cooling *cooling = &walk->space->cooling;
    uint32_t before = KVI_COOLING_NONE;
    uint64_t value = 0;
    int code = 0;

    for (uint32_t at = cooling->first[list]; !code && at != KVI_COOLING_NONE;
         at = cooling->entries[at].next) {
        const struct kvi_cooling_entry *entry = &cooling->entries[at];

        if (++*listed > cooling->count || entry->prev != before || entry->list != list ||
            (list != KVI_COOLING_OTHERS && entry->point.value < value))
            return wrong("cooling: list %u is broken at %u", list, at);
        *blocks += entry->count;
        value = entry->point.value;
        before = at;
        code = check_cooling_entry(walk, entry);
    }
    if (!code && cooling->last[list] != before)
        code = wrong("cooling: list %u does not end at %u", list, cooling->last[list]);
    return code;
}

static int check_cooling(struct walk *walk)
{
    const struct kvi_cooling *cooling = &walk->space->cooling;
    uint32_t listed = 0, free = 0;
    uint64_t blocks = 0;
    int code = 0;

    for (uint32_t list = 0; !code && list < KVI_COOLING_LISTS; list++)
        code = check_cooling_list(walk, list, &listed, &blocks);
    if (code)
        return code;
    for (uint32_t at = cooling->first_free; at != KVI_COOLING_NONE; at = cooling->entries[at].next)
        if (at >= cooling->fresh || ++free > cooling->fresh)
            return wrong("cooling: the list of free entries is broken at %u", at);
    if (listed != cooling->count || listed + free != cooling->fresh || blocks != cooling->blocks)
        return wrong("cooling: %u listed and %u free of %u entries, %" PRIu64 " blocks of %" PRIu64,
                     listed, free, cooling->fresh, blocks, cooling->blocks);
    return 0;
}

static int check_block(struct walk *walk, uint32_t block)
{
    const struct kvmem_space *space = walk->space;
    const struct kvi_segment *segment = kvi_pool_segment(&space->pool, block);
    uint8_t state = space->pool.state[block];
    uint32_t refs = space->refs[block];
    int is_ours = state >= KVI_BLOCK_FREE && state <= KVI_BLOCK_PUBLISHING;

    if (refs != walk->refs[block] + space->held[block] + (space->scratch == (int32_t)block) +
                    walk->cools[block])
        return wrong("block %u: %u references, %u in tables, %u held, %u cooling", block, refs,
                     walk->refs[block], space->held[block], walk->cools[block]);
    if (refs && state != KVI_BLOCK_PRIVATE && state != KVI_BLOCK_PUBLISHING &&
        state != KVI_BLOCK_LEASED)
        return wrong("block %u: %u references in state %u", block, refs, state);
    if (!refs && (state == KVI_BLOCK_PRIVATE || state == KVI_BLOCK_LEASED))
        return wrong("block %u: no reference in state %u", block, state);
    if (is_ours && (!segment->is_owned || segment->access != KVI_ACCESS_RW || segment->job))
        return wrong("block %u: state %u in a segment that is not ours", block, state);
    if (state == KVI_BLOCK_ARRIVING && !segment->job)
        return wrong("block %u: arriving in segment that nobody maps", block);
    if (state == KVI_BLOCK_LEASED && !segment->access)
        return wrong("block %u: leased and not mapped", block);
    walk->publishing += state == KVI_BLOCK_PUBLISHING;
    walk->tokens[kvi_pool_slot(&space->pool, block)] += space->pool.fill[block];
    return 0;
}

static int check_segments(const struct walk *walk)
{
    const struct kvmem_space *space = walk->space;
    uint64_t mapped = 0, listed = 0;

    for (uint32_t slot = 0; slot < space->pool.segment_limit; slot++) {
        const struct kvi_segment *segment = &space->pool.segments[slot];

        mapped += segment->access != 0;
        if (segment->fenced_count != walk->fenced[slot])
            return wrong("segment %u: %u publications wait, counted %u", slot, walk->fenced[slot],
                         segment->fenced_count);
        if (segment->fenced_count && !segment->is_owned)
            return wrong("segment %u: handed in with %u publications that wait", slot,
                         segment->fenced_count);
        if (segment->is_owned && segment->access != KVI_ACCESS_RW && !segment->job)
            return wrong("segment %u: owned without an alias, access %u", slot, segment->access);
        if (!segment->is_owned && segment->access == KVI_ACCESS_RW)
            return wrong("segment %u: an alias of what is not owned", slot);
        if (segment->is_owned && segment->shown->tokens != walk->tokens[slot])
            return wrong("segment %u: shows %" PRIu64 " tokens, has %" PRIu64, slot,
                         segment->shown->tokens, walk->tokens[slot]);
        if (segment->is_on_page &&
            (segment->shown->space != space->id || segment->shown->segment != slot ||
             segment->shown->generation != segment->generation))
            return wrong("segment %u: its place in the status page is another's", slot);
    }
    for (uint32_t slot = space->mapped_first; slot != KVI_POOL_NO_SEGMENT;
         slot = space->pool.segments[slot].mapped_next)
        if (++listed > mapped || !space->pool.segments[slot].access)
            return wrong("the list of mapped segments is broken at %u", slot);
    if (mapped != listed || mapped != space->mapped_segments)
        return wrong("%" PRIu64 " segments are mapped, %" PRIu64 " listed, %" PRIu64 " counted",
                     mapped, listed, space->mapped_segments);
    return 0;
}

/* Publish records of the space are exactly its PUBLISHING blocks; RELEASING ones have a record. */
static int check_outbox(const struct walk *walk)
{
    const struct kvmem_space *space = walk->space;
    const struct kvi_outbox *outbox = &space->client->outbox;
    uint64_t publications = 0, releasing = 0, recorded = 0;

    if (outbox->tail > outbox->sent || outbox->sent > outbox->head ||
        outbox->head - outbox->tail > (uint64_t)outbox->mask + 1)
        return wrong("outbox: tail %" PRIu64 ", sent %" PRIu64 ", head %" PRIu64, outbox->tail,
                     outbox->sent, outbox->head);
    for (uint64_t at = outbox->tail; at < outbox->head; at++) {
        const struct kvi_outbox_record *record = kvi_outbox_at(outbox, at);

        if (record->space != space->place)
            continue;
        if (record->kind == KVI_OUTBOX_PUBLISH) {
            publications++;
            if (space->pool.state[record->block] != KVI_BLOCK_PUBLISHING)
                return wrong("outbox: block %u is published in state %u", record->block,
                             space->pool.state[record->block]);
        }
        if (record->kind == KVI_OUTBOX_RELEASE && at >= outbox->sent)
            recorded += space->pool.state[record->block] == KVI_BLOCK_RELEASING;
    }
    for (uint32_t block = 0; block < space->pool.index_range; block++)
        releasing += space->pool.state[block] == KVI_BLOCK_RELEASING;
    if (publications != walk->publishing)
        return wrong("outbox: %" PRIu64 " publications of %" PRIu64 " blocks", publications,
                     walk->publishing);
    if (recorded < releasing)
        return wrong("outbox: %" PRIu64 " releases of %" PRIu64 " blocks", recorded, releasing);
    return 0;
}

static int check_walk(struct walk *walk)
{
    const struct kvmem_space *space = walk->space;
    int code = kvi_pool_check(&space->pool);

    if (!code)
        code = check_cooling(walk);
    if (!code)
        code = check_seqs(walk);
    for (uint32_t block = 0; !code && block < space->pool.index_range; block++)
        code = check_block(walk, block);
    if (!code)
        code = check_segments(walk);
    if (!code && space->regions)
        code = kvi_regions_check(space);
    if (!code)
        code = check_outbox(walk);
    if (!code && space->results_head - space->results_tail > KVI_SPACE_RESULTS)
        code = wrong("results: %" PRIu64 " waiting", space->results_head - space->results_tail);
    return code;
}

int kvi_space_check(const struct kvmem_space *space)
{
    const struct kvi_alloc *alloc = &space->client->alloc;
    struct walk walk = {.space = space};
    size_t range = space->pool.index_range;
    size_t segments = space->pool.segment_limit;
    int code;

    walk.refs = kvi_allocate(alloc, range * sizeof(*walk.refs));
    walk.cools = kvi_allocate(alloc, range * sizeof(*walk.cools));
    walk.fenced = kvi_allocate(alloc, segments * sizeof(*walk.fenced));
    walk.tokens = kvi_allocate(alloc, segments * sizeof(*walk.tokens));
    if (walk.refs && walk.cools && walk.fenced && walk.tokens)
        code = check_walk(&walk);
    else
        code = kvi_error_set(KVMEM_E_NO_MEMORY, "no memory to count references");
    kvi_release(alloc, walk.tokens, segments * sizeof(*walk.tokens));
    kvi_release(alloc, walk.fenced, segments * sizeof(*walk.fenced));
    kvi_release(alloc, walk.cools, range * sizeof(*walk.cools));
    kvi_release(alloc, walk.refs, range * sizeof(*walk.refs));
    return code;
}

int kvi_client_check(const struct kvmem_client *client)
{
    for (uint32_t i = 0; i < client->space_high; i++) {
        int code = 0;

        if (client->spaces[i] && client->spaces[i]->place != i)
            code = wrong("space %u: says it is %u", i, client->spaces[i]->place);
        if (!code && client->spaces[i])
            code = kvi_space_check(client->spaces[i]);
        if (code)
            return code;
    }
    return 0;
}
