/* SPDX-License-Identifier: Apache-2.0
 *
 * A digest of the logical state: what decides how the directory behaves from now on, and nothing
 * else. Equal inputs from equal starts give equal digests on every machine: no address, no place
 * in the index, no counter of events goes in.
 *
 * FNV-1a over 64-bit words with a finishing mix (Fowler, Noll, Vo; the mix is that of
 * SplitMix64). It finds differences, it does not resist attackers.
 */
#include "directory/directory_internal.h"

static void fold(uint64_t *digest, uint64_t value)
{
    *digest = (*digest ^ value) * UINT64_C(0x100000001b3);
    *digest ^= *digest >> 29;
}

static void fold_bytes(uint64_t *digest, const void *bytes, size_t count)
{
    const uint8_t *at = bytes;

    for (; count >= 8; count -= 8, at += 8) {
        uint64_t word;

        memcpy(&word, at, sizeof(word));
        fold(digest, word);
    }
    while (count-- > 0)
        fold(digest, *at++);
}

static void fold_entries(uint64_t *digest, const struct kvi_dir_segment *segment)
{
    for (uint32_t block = 0; block < segment->block_count; block++) {
        const struct kvi_dir_entry *entry = &segment->entries[block];

        if (!kvi_dir_is_entry(segment, block))
            continue;
        fold(digest, block);
        fold_bytes(digest, entry->name, sizeof(entry->name));
        fold(digest, (uint64_t)entry->lease_count << 32 | entry->pin_count);
        fold(digest, entry->publisher);
        fold(digest, kvi_dir_fences(segment)[block]);
    }
    for (uint32_t block = segment->oldest; block != KVI_DIR_NONE;
         block = segment->entries[block].newer) {
        if (kvi_dir_is_referenced(&segment->entries[block]))
            continue; /* how long it stays listed is no matter of logic */
        fold(digest, block);
        fold(digest, segment->entries[block].stamp);
    }
}

static void fold_segment(uint64_t *digest, const struct kvi_dir_segment *segment)
{
    fold(digest, segment->state);
    if (segment->state == KVI_SEGMENT_FREE)
        return;
    fold(digest, (uint64_t)segment->space << 32 | segment->slot);
    fold(digest, (uint64_t)segment->owner << 32 | segment->generation);
    fold(digest, (uint64_t)segment->is_tainted << 1 | segment->is_ready);
    fold_bytes(digest, segment->mappers, sizeof(segment->mappers));
    if (segment->entries)
        fold_entries(digest, segment);
}

static void fold_space(uint64_t *digest, const struct kvi_dir_space *space)
{
    fold(digest, (uint64_t)space->is_used << 32 | space->generation);
    if (!space->is_used)
        return;
    fold_bytes(digest, space->name, strlen(space->name));
    fold_bytes(digest, space->domain, strlen(space->domain));
    fold_bytes(digest, space->fingerprint, sizeof(space->fingerprint));
    fold(digest, space->device);
    fold(digest, space->quota_bytes);
    fold(digest, space->geometry.index_stride_bytes);
    fold(digest, space->client_count);
    for (uint32_t slot = 0; slot < space->segment_limit; slot++)
        fold(digest, (uint64_t)space->slots[slot].segment << 32 | space->slots[slot].generation);
}

static void fold_open(uint64_t *digest, const struct kvi_dir *dir, const struct kvi_dir_open *open)
{
    const struct kvi_dir_request *request = &open->request;
    const struct kvi_dir_space *space = &dir->spaces[open->space];
    uint64_t bits = (uint64_t)space->segment_limit * space->geometry.blocks_per_segment;

    fold(digest, open->space);
    fold_bytes(digest, open->lease_bits, (bits + 63) / 64 * 8);
    fold(digest, open->is_pressed ? open->pressed_until_ns : 0);
    fold(digest, request->state);
    if (request->state == KVI_DIR_REQUEST_NONE)
        return;
    fold(digest, (uint64_t)request->serial << 32 | request->flags);
    fold(digest, (uint64_t)request->want << 32 | request->creating);
    fold(digest, request->granted);
    fold(digest, (uint64_t)request->is_held << 32 | request->ready_count);
    fold(digest, request->deadline_ns);
}

static void fold_client(uint64_t *digest, const struct kvi_dir *dir,
                        const struct kvi_dir_client *client)
{
    fold(digest, client->state);
    if (client->state == KVI_DIR_CLIENT_FREE)
        return;
    fold(digest, (uint64_t)client->role << 32 | client->session_serial);
    fold(digest, client->version);
    fold_bytes(digest, client->name, strlen(client->name));
    fold(digest, (uint64_t)client->fds_sent << 32 | client->fds_acknowledged);
    for (const struct kvi_dir_open *open = client->opens; open; open = open->next)
        fold_open(digest, dir, open);
}

static void fold_pins(uint64_t *digest, const struct kvi_dir *dir)
{
    fold(digest, dir->pin_serial);
    for (uint64_t place = 0; place < dir->pin_slots; place++) {
        const struct kvi_dir_pin *pin = dir->pins[place];

        if (!pin)
            continue;
        fold(digest, pin->id);
        fold(digest, pin->deadline_ns);
        fold(digest, (uint64_t)pin->client << 32 | pin->space);
        fold_bytes(digest, pin->refs, sizeof(pin->refs[0]) * pin->ref_count);
    }
}

uint64_t kvi_dir_digest(const struct kvi_dir *dir)
{
    uint64_t digest = UINT64_C(0xcbf29ce484222325);

    for (uint32_t i = 0; i < dir->options.device_count; i++)
        fold(&digest, dir->memory[i].free_bytes);
    fold(&digest, dir->check_after_ns);
    fold(&digest, dir->stamp);
    fold(&digest, (uint64_t)dir->session_serial << 32 | (uint32_t)dir->is_draining);
    for (uint32_t i = 0; i < dir->segment_high; i++)
        fold_segment(&digest, &dir->segments[i]);
    for (uint32_t i = 0; i < dir->options.space_limit; i++)
        fold_space(&digest, &dir->spaces[i]);
    for (uint32_t i = 0; i < dir->options.client_limit; i++)
        fold_client(&digest, dir, &dir->clients[i]);
    fold_pins(&digest, dir);
    for (const struct kvi_dir_open *open = dir->wait_first; open; open = open->wait_next)
        fold(&digest, (uint64_t)open->client << 32 | open->space);
    digest ^= digest >> 30;
    digest *= UINT64_C(0xbf58476d1ce4e5b9);
    return digest ^ digest >> 31;
}
