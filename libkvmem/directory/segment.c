/* SPDX-License-Identifier: Apache-2.0
 *
 * Segments: memory, owner, maps.
 *
 *            prepare+start      created            hand-in, close, exit
 *      FREE ───────────────▶ CREATING ──▶ OWNED ──────────────────▶ HANDED_IN ──drop──▶ FREE
 *        ▲                       │          ▲ └─eof─▶ QUARANTINED ────▲    │              ▲
 *        └───────── failed ──────┘          └──────────── adopt ───────────┘              │
 *                                      drop, where bytes in use stay ──▶ DRAINING ──unmapped
 *
 * From HANDED_IN a segment may also move to another space of the same sharing domain and become
 * OWNED there: number and memory stay, slot and generation are new.
 *
 * Where the exit of a process does not prove that its kernels have ended (MPS), the segments that
 * it owned are *tainted* for good: HANDED_IN, with entries that may be looked up and leased, but
 * never adopted or moved. They are dropped when no entry is left, or memory is wanted.
 *
 * A segment takes the lowest free number and the lowest free slot of its space; the slot's
 * generation counts up, so that a message about its predecessor is known as such. Records are
 * allocated before anything changes, and arrays of dropped segments are kept for the next one.
 *
 * A segment lies on the device of its space:
 *
 *   a device's free_bytes + Σ bytes of its segments that are not FREE = its device_bytes
 *   a client's owned_segments, owned_bytes = its CREATING, OWNED and QUARANTINED segments
 *   a client's mapped_segments = segments whose mapper set has its bit
 */
#include "directory/directory_internal.h"

/* ---- records ---- */

static size_t bit_words(uint32_t block_count)
{
    return (block_count + 63) / 64;
}

size_t kvi_dir_records_bytes(uint32_t block_count)
{
    return (sizeof(struct kvi_dir_entry) + sizeof(uint64_t)) * block_count +
           sizeof(uint64_t) * bit_words(block_count);
}

static void *take_records(struct kvi_dir *dir, size_t bytes)
{
    for (struct kvi_dir_recycled **link = &dir->recycled; *link; link = &(*link)->next) {
        struct kvi_dir_recycled *found = *link;

        if (found->bytes != bytes)
            continue;
        *link = found->next;
        dir->recycled_count--;
        return found;
    }
    return kvi_allocate(&dir->env.alloc, bytes);
}

/* Their bits are all clear, and so are their fences: with these a record has no meaning, so the
 * next user need not zero them. The first record holds the link. */
static void keep_records(struct kvi_dir *dir, void *records, size_t bytes)
{
    struct kvi_dir_recycled *kept = records;

    if (dir->recycled_count == KVI_DIR_RECYCLED_LIMIT) {
        kvi_release(&dir->env.alloc, records, bytes);
        return;
    }
    kept->next = dir->recycled;
    kept->bytes = bytes;
    dir->recycled = kept;
    dir->recycled_count++;
}

void kvi_dir_recycle_fini(struct kvi_dir *dir)
{
    struct kvi_dir_recycled *kept;

    while ((kept = dir->recycled) != NULL) {
        dir->recycled = kept->next;
        kvi_release(&dir->env.alloc, kept, kept->bytes);
    }
    dir->recycled_count = 0;
}

/* ---- numbers and slots ---- */

static uint32_t lowest_free_number(const struct kvi_dir *dir)
{
    uint32_t number = dir->segment_hint;

    while (number < dir->segment_limit && dir->segments[number].state != KVI_SEGMENT_FREE)
        number++;
    return number;
}

static uint32_t lowest_free_slot(const struct kvi_dir_space *space)
{
    uint32_t slot = space->slot_hint;

    while (slot < space->segment_limit && space->slots[slot].segment != KVI_DIR_NONE)
        slot++;
    return slot;
}

static void leave_slot(struct kvi_dir_space *space, uint32_t slot)
{
    space->slots[slot].segment = KVI_DIR_NONE;
    if (slot < space->slot_hint)
        space->slot_hint = slot;
    while (space->slot_high > 0 && space->slots[space->slot_high - 1].segment == KVI_DIR_NONE)
        space->slot_high--;
}

/* Take the slot that lowest_free_slot() found, in its next generation. */
static void enter_slot(struct kvi_dir *dir, uint32_t number)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    struct kvi_dir_space *space = &dir->spaces[segment->space];
    struct kvi_dir_slot *slot = &space->slots[segment->slot];

    slot->segment = number;
    slot->generation = slot->generation == UINT32_MAX ? 1 : slot->generation + 1;
    segment->generation = slot->generation;
    if (space->slot_hint == segment->slot)
        space->slot_hint++;
    if (space->slot_high <= segment->slot)
        space->slot_high = segment->slot + 1;
    space->segment_count++;
}

static void free_place(struct kvi_dir *dir, uint32_t number)
{
    struct kvi_dir_segment *segment = &dir->segments[number];

    leave_slot(&dir->spaces[segment->space], segment->slot);
    *segment = (struct kvi_dir_segment){.owner = KVI_NO_CLIENT};
    if (number < dir->segment_hint)
        dir->segment_hint = number;
    while (dir->segment_high > 0 && dir->segments[dir->segment_high - 1].state == KVI_SEGMENT_FREE)
        dir->segment_high--;
}

/* A segment of the space as it begins, FREE. */
static struct kvi_dir_segment blank_segment(const struct kvi_dir *dir,
                                            const struct kvi_dir_space *space, uint32_t slot,
                                            void *records)
{
    struct kvi_dir_segment segment = {.entries = records,
                                      .bytes = space->geometry.segment_bytes,
                                      .block_count = space->geometry.blocks_per_segment,
                                      .oldest = KVI_DIR_NONE,
                                      .newest = KVI_DIR_NONE,
                                      .owner = KVI_NO_CLIENT,
                                      .slot = slot,
                                      .space = (uint16_t)(space - dir->spaces),
                                      .state = KVI_SEGMENT_FREE,
                                      .next_ready = KVI_DIR_NONE};

    segment.entry_bits = (uint64_t *)(segment.entries + segment.block_count);
    return segment;
}

/* ---- creation ---- */

int kvi_dir_segment_prepare(struct kvi_dir *dir, struct kvi_dir_space *space, uint32_t *number)
{
    uint32_t slot = lowest_free_slot(space);
    void *records;

    *number = lowest_free_number(dir);
    if (*number == dir->segment_limit || slot == space->segment_limit)
        return KVMEM_E_LIMIT;
    records = take_records(dir, kvi_dir_records_bytes(space->geometry.blocks_per_segment));
    if (!records)
        return KVMEM_E_NO_MEMORY;
    dir->segments[*number] = blank_segment(dir, space, slot, records);
    return 0;
}

void kvi_dir_segment_abandon(struct kvi_dir *dir, uint32_t number)
{
    struct kvi_dir_segment *segment = &dir->segments[number];

    keep_records(dir, segment->entries, kvi_dir_records_bytes(segment->block_count));
    *segment = (struct kvi_dir_segment){.owner = KVI_NO_CLIENT};
}

static void set_owner(struct kvi_dir *dir, struct kvi_dir_segment *segment,
                      struct kvi_dir_open *open)
{
    struct kvi_dir_client *client = &dir->clients[open->client];

    segment->owner = open->client;
    open->owned_segments++;
    client->owned_segments++;
    client->owned_bytes += segment->bytes;
}

static void clear_owner(struct kvi_dir *dir, struct kvi_dir_segment *segment)
{
    struct kvi_dir_client *client = &dir->clients[segment->owner];
    struct kvi_dir_open *open = client->opens;

    while (open->space != segment->space)
        open = open->next;
    open->owned_segments--;
    client->owned_segments--;
    client->owned_bytes -= segment->bytes;
    segment->owner = KVI_NO_CLIENT;
}

void kvi_dir_segment_start(struct kvi_dir *dir, uint32_t number, struct kvi_dir_open *open)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    struct kvi_dir_space *space = &dir->spaces[segment->space];
    struct kvi_dir_memory *memory = kvi_dir_memory_of(dir, space);

    assert(segment->bytes <= memory->free_bytes);
    segment->state = KVI_SEGMENT_CREATING;
    enter_slot(dir, number);
    if (dir->segment_hint == number) /* not when lower numbers came free since it was chosen */
        dir->segment_hint++;
    if (dir->segment_high <= number)
        dir->segment_high = number + 1;
    memory->free_bytes -= segment->bytes;
    memory->segment_count++;
    set_owner(dir, segment, open);
    dir->clients[open->client].fds_reserved++;
    dir->env.segment_create(dir->env.context, number, space->device, segment->bytes);
}

/* Its memory is gone, or never came. */
static void end_segment(struct kvi_dir *dir, uint32_t number)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    struct kvi_dir_space *space = &dir->spaces[segment->space];

    kvi_dir_memory_of(dir, space)->free_bytes += segment->bytes;
    kvi_dir_memory_of(dir, space)->segment_count--;
    space->segment_count--;
    free_place(dir, number);
    dir->memory_came_back = 1;
}

/* The request behind a segment that is CREATING, or NULL when it was dropped. */
static struct kvi_dir_open *asker_of(struct kvi_dir *dir, const struct kvi_dir_segment *segment)
{
    struct kvi_dir_open *open;

    if (segment->owner == KVI_NO_CLIENT)
        return NULL;
    open = dir->clients[segment->owner].opens;
    while (open->space != segment->space)
        open = open->next;
    return open;
}

void kvi_dir_segment_created(struct kvi_dir *dir, uint32_t number, int code)
{
    struct kvi_dir_segment *segment;
    struct kvi_dir_space *space;
    struct kvi_dir_open *open;

    if (number >= dir->segment_limit || dir->segments[number].state != KVI_SEGMENT_CREATING)
        return;
    segment = &dir->segments[number];
    space = &dir->spaces[segment->space];
    open = asker_of(dir, segment);
    if (code == 0) {
        dir->totals.created_segments++;
        segment->state = open ? KVI_SEGMENT_OWNED : KVI_SEGMENT_HANDED_IN;
        dir->memory_came_back |= !open;
    } else {
        if (open) {
            clear_owner(dir, segment);
            dir->clients[open->client].fds_reserved--;
        }
        keep_records(dir, segment->entries, kvi_dir_records_bytes(segment->block_count));
        end_segment(dir, number);
    }
    if (open)
        kvi_dir_request_created(dir, open, number, code);
    else
        kvi_dir_space_settle(dir, space);
    kvi_dir_request_retry(dir);
}

/* ---- owners ---- */

void kvi_dir_segment_adopt(struct kvi_dir *dir, uint32_t number, struct kvi_dir_open *open)
{
    struct kvi_dir_segment *segment = &dir->segments[number];

    assert(segment->state == KVI_SEGMENT_HANDED_IN && segment->owner == KVI_NO_CLIENT &&
           !segment->is_tainted);
    segment->state = KVI_SEGMENT_OWNED;
    set_owner(dir, segment, open);
    dir->totals.adopted_segments++;
}

void kvi_dir_segment_disown(struct kvi_dir *dir, struct kvi_dir_segment *segment)
{
    clear_owner(dir, segment);
    segment->state = KVI_SEGMENT_HANDED_IN;
    dir->memory_came_back = 1;
}

void kvi_dir_segment_forsake(struct kvi_dir *dir, struct kvi_dir_segment *segment)
{
    assert(segment->state == KVI_SEGMENT_CREATING);
    clear_owner(dir, segment);
}

/* ---- maps ---- */

int kvi_dir_segment_is_mapped_by(const struct kvi_dir_segment *segment, uint32_t client)
{
    return (int)(segment->mappers[client / 64] >> client % 64 & 1);
}

void kvi_dir_segment_add_mapper(struct kvi_dir *dir, struct kvi_dir_segment *segment,
                                uint32_t client)
{
    if (kvi_dir_segment_is_mapped_by(segment, client))
        return;
    segment->mappers[client / 64] |= UINT64_C(1) << client % 64;
    segment->mapper_count++;
    dir->clients[client].mapped_segments++;
}

void kvi_dir_segment_remove_mapper(struct kvi_dir *dir, uint32_t number, uint32_t client)
{
    struct kvi_dir_segment *segment = &dir->segments[number];

    if (!kvi_dir_segment_is_mapped_by(segment, client))
        return;
    segment->mappers[client / 64] &= ~(UINT64_C(1) << client % 64);
    segment->mapper_count--;
    dir->clients[client].mapped_segments--;
    if (segment->state == KVI_SEGMENT_DRAINING && segment->mapper_count == 0) {
        dir->env.segment_release(dir->env.context, number);
        dir->totals.released_segments++;
        end_segment(dir, number);
    }
}

/* Tell every mapper; `forget` also takes it off their maps. */
static void announce_end(struct kvi_dir *dir, uint32_t number, int forget)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    struct kvi_msg_segment_gone gone;

    for (uint32_t w = 0; w < KVI_CLIENT_LIMIT / 64; w++) {
        for (uint64_t bits = segment->mappers[w]; bits != 0; bits &= bits - 1) {
            uint32_t client = w * 64 + (uint32_t)__builtin_ctzll(bits);

            kvi_wire_begin(&gone, KVI_OP_SEGMENT_GONE, 0);
            gone.space = kvi_dir_space_id(dir, &dir->spaces[segment->space]);
            gone.slot = segment->slot;
            gone.generation = segment->generation;
            kvi_dir_reply(dir, &dir->clients[client], &gone);
            if (forget)
                kvi_dir_segment_remove_mapper(dir, number, client);
        }
    }
}

void kvi_dir_segment_drop(struct kvi_dir *dir, uint32_t number)
{
    struct kvi_dir_segment *segment = &dir->segments[number];

    assert(segment->state == KVI_SEGMENT_HANDED_IN && segment->referenced_count == 0);
    if (segment->entry_count > 0)
        dir->totals.evicted_segments++;
    dir->tainted_count -= segment->is_tainted;
    segment->is_tainted = 0;
    kvi_dir_entry_evict_all(dir, number);
    keep_records(dir, segment->entries, kvi_dir_records_bytes(segment->block_count));
    segment->entries = NULL;
    segment->entry_bits = NULL;
    announce_end(dir, number,
                 dir->options.devices[kvi_dir_device_of(dir, segment)].releases_reclaim_mapped);
    if (segment->mapper_count > 0) {
        segment->state = KVI_SEGMENT_DRAINING;
        return;
    }
    dir->env.segment_release(dir->env.context, number);
    dir->totals.released_segments++;
    end_segment(dir, number);
}

void kvi_dir_segment_taint(struct kvi_dir *dir, uint32_t client)
{
    for (uint32_t i = 0; i < dir->segment_high; i++) {
        struct kvi_dir_segment *segment = &dir->segments[i];

        if (segment->state != KVI_SEGMENT_QUARANTINED || segment->owner != client ||
            !dir->options.devices[kvi_dir_device_of(dir, segment)].exit_proves_nothing)
            continue;
        segment->is_tainted = 1;
        dir->tainted_count++;
    }
}

void kvi_dir_segment_sweep(struct kvi_dir *dir)
{
    for (uint32_t i = 0; dir->tainted_count > 0 && i < dir->segment_high; i++) {
        struct kvi_dir_segment *segment = &dir->segments[i];
        struct kvi_dir_space *space = &dir->spaces[segment->space];

        if (!segment->is_tainted || segment->state != KVI_SEGMENT_HANDED_IN ||
            segment->entry_count > 0)
            continue;
        kvi_dir_segment_drop(dir, i);
        kvi_dir_space_settle(dir, space);
    }
}

int kvi_dir_segment_move(struct kvi_dir *dir, uint32_t number, struct kvi_dir_open *open)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    struct kvi_dir_space *from = &dir->spaces[segment->space], *to = &dir->spaces[open->space];
    uint32_t slot = lowest_free_slot(to);
    void *records = segment->entries;

    assert(segment->state == KVI_SEGMENT_HANDED_IN && segment->referenced_count == 0 &&
           !segment->is_tainted);
    assert(segment->bytes == to->geometry.segment_bytes && from->device == to->device);
    if (slot == to->segment_limit)
        return KVMEM_E_LIMIT;
    if (segment->block_count != to->geometry.blocks_per_segment)
        records = take_records(dir, kvi_dir_records_bytes(to->geometry.blocks_per_segment));
    if (!records)
        return KVMEM_E_NO_MEMORY;
    if (segment->entry_count > 0)
        dir->totals.evicted_segments++;
    kvi_dir_entry_evict_all(dir, number);
    announce_end(dir, number, 1);
    if (records != segment->entries)
        keep_records(dir, segment->entries, kvi_dir_records_bytes(segment->block_count));
    leave_slot(from, segment->slot);
    from->segment_count--;
    *segment = blank_segment(dir, to, slot, records);
    segment->state = KVI_SEGMENT_OWNED;
    enter_slot(dir, number);
    set_owner(dir, segment, open);
    dir->moved_segments++;
    kvi_dir_space_settle(dir, from);
    return 0;
}

/* ---- messages ---- */

uint32_t kvi_dir_segment_at(const struct kvi_dir_space *space, uint32_t slot, uint32_t generation)
{
    if (slot >= space->segment_limit || space->slots[slot].generation != generation)
        return KVI_DIR_NONE;
    return space->slots[slot].segment;
}

void kvi_dir_segment_hand_in(struct kvi_dir *dir, struct kvi_dir_client *client,
                             const struct kvi_msg_segment_hand_in *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);
    uint32_t number;

    if (!open)
        return;
    number = kvi_dir_segment_at(&dir->spaces[open->space], m->slot, m->generation);
    if (number == KVI_DIR_NONE) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_STALE,
                       "segment_hand_in.slot: no segment of generation %u in slot %u",
                       m->generation, m->slot);
        return;
    }
    if (dir->segments[number].owner != client->number ||
        dir->segments[number].state != KVI_SEGMENT_OWNED || dir->segments[number].is_ready) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_PERMISSION,
                       "segment_hand_in.slot: the client does not own the segment in slot %u",
                       m->slot);
        return;
    }
    kvi_dir_segment_disown(dir, &dir->segments[number]);
    dir->totals.handed_in_segments++;
    kvi_dir_pressure_end(dir, open);
}

void kvi_dir_segment_map(struct kvi_dir *dir, struct kvi_dir_client *client,
                         const struct kvi_msg_segment_map *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);
    const struct kvi_rec_segment_ref *wanted = kvi_wire_tail_const(m, 0);
    struct kvi_msg_segment_fds *fds = (void *)dir->out;
    struct kvi_rec_segment_ref *found;
    uint32_t numbers[KVI_MESSAGE_FDS];
    uint32_t count = 0;

    if (!open)
        return;
    kvi_wire_begin(fds, KVI_OP_SEGMENT_FDS, m->header.serial);
    fds->space = m->space;
    found = kvi_wire_tail(fds, 0);
    for (uint32_t i = 0; i < m->segment_count; i++) {
        uint32_t number =
            kvi_dir_segment_at(&dir->spaces[open->space], wanted[i].slot, wanted[i].generation);

        if (number == KVI_DIR_NONE || dir->segments[number].is_ready ||
            dir->segments[number].state == KVI_SEGMENT_CREATING ||
            dir->segments[number].state == KVI_SEGMENT_DRAINING)
            continue;
        found[count] = wanted[i];
        numbers[count++] = number;
    }
    if (count > kvi_dir_client_fd_room(dir, client)) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_BUSY,
                       "segment_map.segment_count: %u descriptors and %u that were not "
                       "acknowledged are more than %u",
                       count, client->fds_sent - client->fds_acknowledged,
                       dir->options.unacked_fd_limit);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        kvi_dir_segment_add_mapper(dir, &dir->segments[numbers[i]], client->number);
    fds->segment_count = count;
    fds->header.fds_received = count;
    client->fds_sent += count;
    dir->env.send(dir->env.context, client->number, fds, kvi_wire_finish(fds), numbers, count);
}

void kvi_dir_segment_unmapped(struct kvi_dir *dir, struct kvi_dir_client *client,
                              const struct kvi_msg_segment_unmapped *m)
{
    struct kvi_dir_open *open = kvi_dir_open_find(dir, client, m->space);
    uint32_t number;

    if (!open)
        return; /* the answer to a segment_gone of a space that was closed meanwhile */
    number = kvi_dir_segment_at(&dir->spaces[open->space], m->slot, m->generation);
    if (number != KVI_DIR_NONE)
        kvi_dir_segment_remove_mapper(dir, number, client->number);
}
