/* SPDX-License-Identifier: Apache-2.0
 *
 * The check: every equation of directory.h and of the other files here, walked from the records
 * up. The first that does not hold is named with its numbers. Changes nothing and allocates
 * nothing; takes time in proportion to blocks, and to entries × clients of their space.
 */
#include "directory/directory_internal.h"

#include <stdarg.h>
#include <stdio.h>

#include <kvmem/error.h>

/* Each pinned entry is counted against all pins only when these are few: it is quadratic. */
#define EXACT_PIN_LIMIT 4096u

struct check {
    const struct kvi_dir *dir;
    char *text;
    size_t text_bytes;
    uint64_t entries;
    uint64_t pin_refs; /* Σ pin_count of entries */
};

__attribute__((format(printf, 2, 3))) static int violated(const struct check *check,
                                                          const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (check->text && check->text_bytes > 0)
        vsnprintf(check->text, check->text_bytes, format, args);
    va_end(args);
    return KVMEM_E_CORRUPT;
}

static const struct kvi_dir_open *open_of(const struct kvi_dir *dir, uint32_t client,
                                          uint32_t space)
{
    const struct kvi_dir_open *open = dir->clients[client].opens;

    while (open && open->space != space)
        open = open->next;
    return open;
}

/* ---- entries ---- */

static uint32_t count_leases(const struct kvi_dir *dir, uint32_t space, uint64_t index)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < dir->options.client_limit; i++) {
        const struct kvi_dir_open *open = open_of(dir, i, space);

        count += open && (open->lease_bits[index / 64] >> index % 64 & 1);
    }
    return count;
}

static int check_entry(struct check *check, uint32_t number, uint32_t block)
{
    const struct kvi_dir *dir = check->dir;
    const struct kvi_dir_segment *segment = &dir->segments[number];
    const struct kvi_dir_entry *entry = &segment->entries[block];
    uint64_t index = (uint64_t)segment->slot * segment->block_count + block;
    uint32_t leases = count_leases(dir, segment->space, index);
    uint32_t found_segment, found_block;

    check->entries++;
    check->pin_refs += entry->pin_count;
    if (leases != entry->lease_count)
        return violated(check, "segment %u block %u: %u leases, but clients have %u", number, block,
                        entry->lease_count, leases);
    if (entry->tag != kvi_index_tag(&dir->index, segment->space, entry->name))
        return violated(check, "segment %u block %u: tag is not its name's", number, block);
    if (!kvi_dir_find(dir, segment->space, entry->name, &found_segment, &found_block))
        return violated(check, "segment %u block %u: is not in the index", number, block);
    if (found_segment != number || found_block != block)
        return violated(check, "segment %u block %u: its name is found at %u, %u", number, block,
                        found_segment, found_block);
    return 0;
}

static int check_list(const struct check *check, uint32_t number)
{
    const struct kvi_dir_segment *segment = &check->dir->segments[number];
    uint32_t older = KVI_DIR_NONE, count = 0, evictable = 0;
    uint64_t stamp = 0;

    for (uint32_t block = segment->oldest; block != KVI_DIR_NONE;
         older = block, block = segment->entries[block].newer) {
        const struct kvi_dir_entry *entry = &segment->entries[block];

        if (block >= segment->block_count || ++count > segment->block_count)
            return violated(check, "segment %u: its list does not end", number);
        if (!kvi_dir_is_entry(segment, block))
            return violated(check, "segment %u block %u: is on the list, but no entry", number,
                            block);
        if (entry->older != older || entry->stamp <= stamp || entry->stamp > check->dir->stamp)
            return violated(check, "segment %u block %u: link or stamp is out of order", number,
                            block);
        evictable += !kvi_dir_is_referenced(entry);
        stamp = entry->stamp;
    }
    if (segment->newest != older)
        return violated(check, "segment %u: the list ends at %u, not at %u", number, older,
                        segment->newest);
    if (evictable + segment->referenced_count != segment->entry_count)
        return violated(check, "segment %u: %u entries, but %u on the list and %u referenced",
                        number, segment->entry_count, evictable, segment->referenced_count);
    return 0;
}

static int check_fences(const struct check *check, uint32_t number)
{
    const struct kvi_dir_segment *segment = &check->dir->segments[number];
    const uint64_t *words = kvi_dir_fences(segment);
    uint32_t count = 0;

    for (uint32_t block = 0; block < segment->block_count; block++) {
        if (words[block] == 0)
            continue;
        count++;
        if (!kvi_dir_is_entry(segment, block))
            return violated(check, "segment %u block %u: has a fence, but is no entry", number,
                            block);
        if (!kvi_dir_client_of_session(check->dir, segment->entries[block].publisher))
            return violated(check, "segment %u block %u: its fence has outlived session %u", number,
                            block, segment->entries[block].publisher);
        if (words[block] < KVI_LANE_COUNT || words[block] / KVI_LANE_COUNT >= KVI_FENCE_LIMIT)
            return violated(check, "segment %u block %u: its fence %llu is out of range", number,
                            block, (unsigned long long)words[block]);
    }
    if (count != segment->fence_count)
        return violated(check, "segment %u: counts %u fences, has %u", number, segment->fence_count,
                        count);
    return 0;
}

static int check_entries(struct check *check, uint32_t number)
{
    const struct kvi_dir_segment *segment = &check->dir->segments[number];
    uint32_t entries = 0, referenced = 0;
    int code = 0;

    for (uint32_t w = 0; w < (segment->block_count + 63) / 64; w++)
        for (uint64_t bits = segment->entry_bits[w]; bits != 0 && code == 0; bits &= bits - 1) {
            uint32_t block = w * 64 + (uint32_t)__builtin_ctzll(bits);

            if (block >= segment->block_count)
                return violated(check, "segment %u: block %u of %u is an entry", number, block,
                                segment->block_count);
            entries++;
            referenced += (uint32_t)kvi_dir_is_referenced(&segment->entries[block]);
            code = check_entry(check, number, block);
        }
    if (code != 0)
        return code;
    if (entries != segment->entry_count || referenced != segment->referenced_count)
        return violated(check, "segment %u: counts %u entries and %u referenced, has %u and %u",
                        number, segment->entry_count, segment->referenced_count, entries,
                        referenced);
    return check_list(check, number);
}

/* ---- segments ---- */

static int is_owner_right(const struct kvi_dir *dir, const struct kvi_dir_segment *segment)
{
    uint32_t state;

    if (segment->owner == KVI_NO_CLIENT)
        return segment->state == KVI_SEGMENT_HANDED_IN || segment->state == KVI_SEGMENT_DRAINING ||
               segment->state == KVI_SEGMENT_CREATING;
    if (segment->owner >= dir->options.client_limit ||
        !open_of(dir, segment->owner, segment->space))
        return 0;
    state = dir->clients[segment->owner].state;
    switch (segment->state) {
    case KVI_SEGMENT_CREATING: return state == KVI_DIR_CLIENT_ALIVE;
    case KVI_SEGMENT_OWNED: return state == KVI_DIR_CLIENT_ALIVE || state == KVI_DIR_CLIENT_GOODBYE;
    case KVI_SEGMENT_QUARANTINED: return state == KVI_DIR_CLIENT_GONE;
    default: return 0;
    }
}

static int check_taint(const struct check *check, uint32_t number)
{
    const struct kvi_dir_segment *segment = &check->dir->segments[number];
    uint32_t device = kvi_dir_device_of(check->dir, segment);

    if (!segment->is_tainted)
        return 0;
    if (segment->state != KVI_SEGMENT_HANDED_IN || segment->entry_count == 0 ||
        !check->dir->options.devices[device].exit_proves_nothing)
        return violated(check, "segment %u: is tainted in state %u with %u entries on device %u",
                        number, segment->state, segment->entry_count, device);
    return 0;
}

static int check_mappers(const struct check *check, uint32_t number)
{
    const struct kvi_dir *dir = check->dir;
    const struct kvi_dir_segment *segment = &dir->segments[number];
    uint32_t count = 0;

    for (uint32_t w = 0; w < KVI_CLIENT_LIMIT / 64; w++)
        for (uint64_t bits = segment->mappers[w]; bits != 0; bits &= bits - 1) {
            uint32_t client = w * 64 + (uint32_t)__builtin_ctzll(bits);

            count++;
            if (client >= dir->options.client_limit || !open_of(dir, client, segment->space))
                return violated(check,
                                "segment %u: mapped by client %u, which does not have its "
                                "space open",
                                number, client);
        }
    if (count != segment->mapper_count)
        return violated(check, "segment %u: %u mappers, counted %u", number, count,
                        segment->mapper_count);
    return 0;
}

static int check_segment(struct check *check, uint32_t number)
{
    const struct kvi_dir *dir = check->dir;
    const struct kvi_dir_segment *segment = &dir->segments[number];
    const struct kvi_dir_space *space = &dir->spaces[segment->space];
    const struct kvi_dir_slot *slot;
    int has_records = segment->state != KVI_SEGMENT_DRAINING;
    int code;

    if (segment->space >= dir->options.space_limit || !space->is_used ||
        space->device >= dir->options.device_count)
        return violated(check, "segment %u: its space %u does not exist", number, segment->space);
    if (segment->slot >= space->slot_high)
        return violated(check, "segment %u: slot %u is not below %u", number, segment->slot,
                        space->slot_high);
    slot = &space->slots[segment->slot];
    if (slot->segment != number || slot->generation != segment->generation)
        return violated(check, "segment %u: slot %u holds segment %u in generation %u", number,
                        segment->slot, slot->segment, slot->generation);
    if (!is_owner_right(dir, segment))
        return violated(check, "segment %u: state %u does not go with owner %u", number,
                        segment->state, segment->owner);
    if ((segment->entries != NULL) != has_records ||
        segment->block_count != space->geometry.blocks_per_segment ||
        segment->bytes != space->geometry.segment_bytes)
        return violated(check, "segment %u: records do not go with state %u", number,
                        segment->state);
    code = check_taint(check, number);
    if (code == 0)
        code = check_mappers(check, number);
    if (code == 0 && has_records)
        code = check_entries(check, number);
    if (code == 0 && has_records)
        code = check_fences(check, number);
    return code;
}

static int check_devices(const struct check *check, const struct kvi_dir_memory *used)
{
    const struct kvi_dir *dir = check->dir;

    for (uint32_t i = 0; i < dir->options.device_count; i++)
        if (dir->memory[i].free_bytes + used[i].free_bytes !=
                dir->options.devices[i].device_bytes ||
            dir->memory[i].segment_count != used[i].segment_count)
            return violated(check, "device %u: %llu free + %llu in %u of %u segments are not %llu",
                            i, (unsigned long long)dir->memory[i].free_bytes,
                            (unsigned long long)used[i].free_bytes, used[i].segment_count,
                            dir->memory[i].segment_count,
                            (unsigned long long)dir->options.devices[i].device_bytes);
    return 0;
}

static int check_segments(struct check *check)
{
    const struct kvi_dir *dir = check->dir;
    struct kvi_dir_memory used[KVI_DEVICE_LIMIT] = {{0}};
    uint32_t tainted = 0;

    for (uint32_t i = 0; i < dir->segment_limit; i++) {
        int code;

        if (dir->segments[i].state == KVI_SEGMENT_FREE) {
            if (dir->segments[i].entries)
                return violated(check, "segment %u: is free, but has records", i);
            continue;
        }
        if (i >= dir->segment_high)
            return violated(check, "segment %u: exists beyond %u", i, dir->segment_high);
        code = check_segment(check, i);
        if (code != 0)
            return code;
        used[kvi_dir_device_of(dir, &dir->segments[i])].free_bytes += dir->segments[i].bytes;
        used[kvi_dir_device_of(dir, &dir->segments[i])].segment_count++;
        tainted += dir->segments[i].is_tainted;
    }
    if (tainted != dir->tainted_count)
        return violated(check, "segments: counts %u tainted ones, has %u", dir->tainted_count,
                        tainted);
    return check_devices(check, used);
}

/* ---- spaces ---- */

struct space_sums {
    uint32_t segments;
    uint32_t handed_in;
    uint32_t clients;
    uint64_t entries;
};

static int sum_space(const struct check *check, uint32_t number, struct space_sums *sums)
{
    const struct kvi_dir *dir = check->dir;
    const struct kvi_dir_space *space = &dir->spaces[number];

    for (uint32_t slot = 0; slot < space->segment_limit; slot++) {
        const struct kvi_dir_segment *segment;

        if (space->slots[slot].segment == KVI_DIR_NONE) {
            if (slot < space->slot_hint)
                return violated(check, "space %u: slot %u is free below the hint %u", number, slot,
                                space->slot_hint);
            continue;
        }
        segment = &dir->segments[space->slots[slot].segment];
        if (segment->state == KVI_SEGMENT_FREE || segment->space != number || segment->slot != slot)
            return violated(check, "space %u: slot %u holds segment %u of another place", number,
                            slot, space->slots[slot].segment);
        sums->segments++;
        sums->handed_in += segment->state == KVI_SEGMENT_HANDED_IN;
        sums->entries += segment->entry_count;
    }
    for (uint32_t i = 0; i < dir->options.client_limit; i++)
        sums->clients += open_of(dir, i, number) != NULL;
    return 0;
}

static int check_space(const struct check *check, uint32_t number)
{
    const struct kvi_dir_space *space = &check->dir->spaces[number];
    struct space_sums sums = {0};
    int code = sum_space(check, number, &sums);

    if (code != 0)
        return code;
    if (sums.segments != space->segment_count || sums.clients != space->client_count ||
        sums.entries != space->entry_count)
        return violated(check,
                        "space %u: counts %u segments, %u clients, %llu entries; has %u, "
                        "%u, %llu",
                        number, space->segment_count, space->client_count,
                        (unsigned long long)space->entry_count, sums.segments, sums.clients,
                        (unsigned long long)sums.entries);
    if (space->quota_bytes != 0 &&
        space->segment_count * space->geometry.segment_bytes > space->quota_bytes)
        return violated(check, "space %u: %u segments exceed its quota", number,
                        space->segment_count);
    if (sums.clients == 0 && sums.segments == 0)
        return violated(check, "space %u: has neither clients nor segments", number);
    if (sums.clients == 0 && sums.entries == 0 && sums.handed_in > 0)
        return violated(check, "space %u: keeps %u segments without clients and entries", number,
                        sums.handed_in);
    return 0;
}

/* ---- clients ---- */

static int check_request(const struct check *check, const struct kvi_dir_open *open)
{
    const struct kvi_dir *dir = check->dir;
    const struct kvi_dir_request *request = &open->request;
    uint32_t creating = 0, ready = 0, owned = 0;

    for (uint32_t i = 0; i < dir->segment_high; i++) {
        const struct kvi_dir_segment *segment = &dir->segments[i];

        if (segment->state == KVI_SEGMENT_FREE || segment->space != open->space ||
            segment->owner != open->client)
            continue;
        owned++;
        creating += segment->state == KVI_SEGMENT_CREATING;
        ready += segment->is_ready;
    }
    if (creating != request->creating || ready != request->ready_count ||
        owned != open->owned_segments)
        return violated(check,
                        "client %u in space %u: counts %u creating, %u ready, %u owned; "
                        "has %u, %u, %u",
                        open->client, open->space, request->creating, request->ready_count,
                        open->owned_segments, creating, ready, owned);
    if (request->state == KVI_DIR_REQUEST_RUNNING && creating == 0 && !request->is_held)
        return violated(check, "client %u in space %u: its request runs, but waits for nothing",
                        open->client, open->space);
    return 0;
}

static int check_opens(const struct check *check, const struct kvi_dir_client *client)
{
    const struct kvi_dir *dir = check->dir;
    uint64_t leases = 0;
    uint32_t reserved = 0, owned = 0;

    for (const struct kvi_dir_open *open = client->opens; open; open = open->next) {
        const struct kvi_dir_space *space = &dir->spaces[open->space];
        uint64_t words =
            ((uint64_t)space->segment_limit * space->geometry.blocks_per_segment + 63) / 64;
        uint64_t bits = 0;
        int code;

        if (open->client != client->number || !space->is_used)
            return violated(check, "client %u: has a space open that does not exist",
                            client->number);
        for (uint64_t w = 0; w < words; w++)
            bits += (uint64_t)__builtin_popcountll(open->lease_bits[w]);
        if (bits != open->lease_count)
            return violated(check, "client %u: %llu leases in space %u, counted %llu",
                            client->number, (unsigned long long)bits, open->space,
                            (unsigned long long)open->lease_count);
        code = check_request(check, open);
        if (code != 0)
            return code;
        leases += bits;
        owned += open->owned_segments;
        reserved += open->request.creating + open->request.ready_count;
    }
    if (leases != client->lease_count || owned != client->owned_segments ||
        reserved != client->fds_reserved)
        return violated(check,
                        "client %u: charged %llu leases, %u segments, %u descriptors; has "
                        "%llu, %u, %u",
                        client->number, (unsigned long long)client->lease_count,
                        client->owned_segments, client->fds_reserved, (unsigned long long)leases,
                        owned, reserved);
    return 0;
}

static int check_client(const struct check *check, const struct kvi_dir_client *client)
{
    const struct kvi_dir *dir = check->dir;
    uint64_t bytes = 0, mapped = 0, pins = 0, objects = 0;

    if (client->state == KVI_DIR_CLIENT_FREE && client->opens)
        return violated(check, "client %u: is gone, but has spaces open", client->number);
    if (client->state == KVI_DIR_CLIENT_FREE)
        return 0;
    for (uint32_t i = 0; i < dir->segment_high; i++) {
        const struct kvi_dir_segment *segment = &dir->segments[i];

        if (segment->state == KVI_SEGMENT_FREE)
            continue;
        bytes += segment->owner == client->number ? segment->bytes : 0;
        mapped += (uint64_t)kvi_dir_segment_is_mapped_by(segment, client->number);
    }
    for (uint64_t i = 0; i < dir->pin_slots; i++)
        if (dir->pins[i] && dir->pins[i]->client == client->number) {
            objects++;
            pins += dir->pins[i]->ref_count;
        }
    if (bytes != client->owned_bytes || mapped != client->mapped_segments ||
        pins != client->pin_count || objects != client->pin_objects)
        return violated(check,
                        "client %u: charged %llu bytes, %llu maps, %llu pins; has %llu, "
                        "%llu, %llu",
                        client->number, (unsigned long long)client->owned_bytes,
                        (unsigned long long)client->mapped_segments,
                        (unsigned long long)client->pin_count, (unsigned long long)bytes,
                        (unsigned long long)mapped, (unsigned long long)pins);
    if (client->fds_sent - client->fds_acknowledged + client->fds_reserved >
        dir->options.unacked_fd_limit)
        return violated(check, "client %u: %u descriptors in flight exceed %u", client->number,
                        client->fds_sent - client->fds_acknowledged, dir->options.unacked_fd_limit);
    return check_opens(check, client);
}

static int check_clients(const struct check *check)
{
    const struct kvi_dir *dir = check->dir;
    uint32_t pressed = 0, waiting = 0, listed = 0;
    const struct kvi_dir_open *previous = NULL;

    for (uint32_t i = 0; i < dir->options.client_limit; i++) {
        int code = check_client(check, &dir->clients[i]);

        if (code != 0)
            return code;
        for (const struct kvi_dir_open *open = dir->clients[i].opens; open; open = open->next) {
            pressed += (uint32_t)open->is_pressed;
            waiting += open->request.state == KVI_DIR_REQUEST_WAITING;
        }
    }
    for (const struct kvi_dir_open *open = dir->wait_first; open; open = open->wait_next) {
        if (open->wait_previous != previous || ++listed > waiting ||
            open->request.state != KVI_DIR_REQUEST_WAITING)
            return violated(check, "waiting list: client %u does not belong there", open->client);
        previous = open;
    }
    if (dir->wait_last != previous || listed != waiting || pressed != dir->pressed_count)
        return violated(check, "waiting list: %u of %u requests; %u pressed owners, counted %u",
                        listed, waiting, pressed, dir->pressed_count);
    return 0;
}

/* ---- pins and index ---- */

static int check_pin_ref(const struct check *check, const struct kvi_dir_pin_ref *ref,
                         uint64_t total)
{
    const struct kvi_dir *dir = check->dir;
    const struct kvi_dir_segment *segment = &dir->segments[ref->segment];
    uint32_t count = 0;

    if (!segment->entries || !kvi_dir_is_entry(segment, ref->block))
        return violated(check, "segment %u block %u: is pinned, but no entry", ref->segment,
                        ref->block);
    if (total > EXACT_PIN_LIMIT)
        return 0;
    for (uint64_t i = 0; i < dir->pin_slots; i++)
        for (uint32_t r = 0; dir->pins[i] && r < dir->pins[i]->ref_count; r++)
            count += dir->pins[i]->refs[r].segment == ref->segment &&
                     dir->pins[i]->refs[r].block == ref->block;
    if (count != segment->entries[ref->block].pin_count)
        return violated(check, "segment %u block %u: %u pins, counted %u", ref->segment, ref->block,
                        count, segment->entries[ref->block].pin_count);
    return 0;
}

static int check_pins(const struct check *check)
{
    const struct kvi_dir *dir = check->dir;
    uint64_t total = 0;

    for (uint64_t i = 0; i < dir->pin_slots; i++)
        total += dir->pins[i] ? dir->pins[i]->ref_count : 0;
    if (total != check->pin_refs)
        return violated(check, "pins: %llu references, but entries count %llu",
                        (unsigned long long)total, (unsigned long long)check->pin_refs);
    for (uint64_t i = 0; i < dir->pin_slots; i++)
        for (uint32_t r = 0; dir->pins[i] && r < dir->pins[i]->ref_count; r++) {
            int code = check_pin_ref(check, &dir->pins[i]->refs[r], total);

            if (code != 0)
                return code;
        }
    return 0;
}

static int check_index(const struct check *check)
{
    const struct kvi_index *index = &check->dir->index;
    uint64_t at = kvi_index_check(index);

    if (at != 0)
        return violated(check, "index: slot %llu lies wrong", (unsigned long long)(at - 1));
    if (index->entry_count != check->entries)
        return violated(check, "index: %llu slots in use for %llu entries",
                        (unsigned long long)index->entry_count, (unsigned long long)check->entries);
    return 0;
}

int kvi_dir_check(const struct kvi_dir *dir, char *text, size_t text_bytes)
{
    struct check check = {.dir = dir, .text = text, .text_bytes = text_bytes};
    int code;

    if (text && text_bytes > 0)
        text[0] = '\0';
    code = check_segments(&check);
    for (uint32_t i = 0; i < dir->options.space_limit && code == 0; i++)
        if (dir->spaces[i].is_used)
            code = check_space(&check, i);
    if (code == 0)
        code = check_clients(&check);
    if (code == 0)
        code = check_pins(&check);
    if (code == 0)
        code = check_index(&check);
    return code;
}
