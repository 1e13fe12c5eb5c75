/* SPDX-License-Identifier: Apache-2.0
 *
 * What the directory tells of itself: counters, clients, spaces, segments, the check.
 *
 * Everything is summed up from the records when it is asked for; only what counts events since
 * the start is kept (dir->totals). Lists come in pages of 64; `next` is the number to go on with.
 * What an owner's status page says is advisory: it is clamped to what its segment can hold and
 * shown, never used for a decision.
 */
#include "directory/directory_internal.h"

/* A check walks everything in one turn: half a second for a million entries, in which nobody else
 * is served. One that took long has the directory to itself for a tenth of the time at most. */
#define CHECK_IS_LONG_NS UINT64_C(10000000)
#define CHECK_SHARE      10u

#include <stdio.h>

#define PAGE  64u
#define CELLS 64u
#define FULL  255u

static int has_memory(const struct kvi_dir_segment *segment)
{
    return segment->state != KVI_SEGMENT_FREE && segment->state != KVI_SEGMENT_DRAINING;
}

/* ---- the owner's word ---- */

/* Used blocks of a segment as its owner shows them, clamped; zeros when it shows nothing. */
static void read_usage(const struct kvi_dir *dir, const struct kvi_dir_segment *segment,
                       struct kvi_dir_usage *usage)
{
    const struct kvi_dir_space *space = &dir->spaces[segment->space];
    uint32_t others = kvi_dir_segment_idle(segment);
    uint64_t most_tokens;

    *usage = (struct kvi_dir_usage){0};
    if (segment->state != KVI_SEGMENT_OWNED || !dir->env.usage ||
        !dir->env.usage(dir->env.context, segment->owner, kvi_dir_space_id(dir, space),
                        segment->slot, segment->generation, segment->block_count, usage)) {
        *usage = (struct kvi_dir_usage){0};
        return;
    }
    if (usage->used_blocks > others)
        usage->used_blocks = others;
    most_tokens = (uint64_t)usage->used_blocks * space->geometry.block_tokens;
    if (usage->used_tokens > most_tokens)
        usage->used_tokens = most_tokens;
}

/* ---- stats ---- */

static void add_segment(const struct kvi_dir *dir, const struct kvi_dir_segment *segment,
                        struct kvi_msg_stats_reply *out)
{
    uint32_t others = kvi_dir_segment_idle(segment);

    if (!has_memory(segment))
        return;
    out->total_blocks += segment->block_count;
    out->entry_blocks += segment->entry_count;
    out->leased_blocks += segment->referenced_count;
    if (segment->owner == KVI_NO_CLIENT)
        out->idle_blocks += others;
    else if (dir->clients[segment->owner].state == KVI_DIR_CLIENT_FREE)
        out->leaked_blocks += others;
    else
        out->owner_blocks += others;
    if (segment->owner != KVI_NO_CLIENT)
        out->owned_segments++;
}

/* All devices together; the granule is the smallest one. */
static void add_devices(const struct kvi_dir *dir, struct kvi_msg_stats_reply *out)
{
    out->granule_bytes = UINT64_MAX;
    for (uint32_t i = 0; i < dir->options.device_count; i++) {
        const struct kvi_dir_device *device = &dir->options.devices[i];

        out->device_bytes += device->device_bytes;
        out->free_bytes += dir->memory[i].free_bytes;
        out->segment_count += dir->memory[i].segment_count;
        if (device->granule_bytes < out->granule_bytes)
            out->granule_bytes = device->granule_bytes;
    }
    out->segment_bytes = out->device_bytes - out->free_bytes;
}

void kvi_dir_stats(const struct kvi_dir *dir, struct kvi_msg_stats_reply *out)
{
    const struct kvi_header header = out->header;

    *out = dir->totals;
    out->header = header;
    add_devices(dir, out);
    for (uint32_t i = 0; i < dir->segment_high; i++)
        add_segment(dir, &dir->segments[i], out);
    for (uint32_t i = 0; i < dir->options.space_limit; i++)
        out->space_count += (uint64_t)dir->spaces[i].is_used;
    for (uint32_t i = 0; i < dir->options.client_limit; i++) {
        const struct kvi_dir_client *client = &dir->clients[i];

        if (client->state == KVI_DIR_CLIENT_FREE)
            continue;
        out->client_count++;
        out->lease_count += client->lease_count;
        out->pin_count += client->pin_count;
        out->fds_in_flight += client->fds_sent - client->fds_acknowledged;
    }
    out->uptime_ns = kvi_dir_now_ns(dir) - dir->started_ns;
}

void kvi_dir_report_stats(struct kvi_dir *dir, struct kvi_dir_client *client,
                          const struct kvi_msg_stats *m)
{
    struct kvi_msg_stats_reply reply;

    kvi_wire_begin(&reply, KVI_OP_STATS_REPLY, m->header.serial);
    kvi_dir_stats(dir, &reply);
    kvi_dir_reply(dir, client, &reply);
}

/* ---- clients ---- */

static uint32_t shown_state(const struct kvi_dir_client *client)
{
    switch (client->state) {
    case KVI_DIR_CLIENT_NEW: return 0;
    case KVI_DIR_CLIENT_ALIVE: return 1;
    case KVI_DIR_CLIENT_GONE: return client->owned_segments > 0 ? 3 : 2;
    default: return 2;
    }
}

static void add_usage(const struct kvi_dir *dir, const struct kvi_dir_client *client,
                      struct kvi_rec_client_info *info)
{
    struct kvi_dir_usage usage;

    for (const struct kvi_dir_open *open = client->opens; open; open = open->next) {
        const struct kvi_dir_space *space = &dir->spaces[open->space];

        for (uint32_t slot = 0; open->owned_segments > 0 && slot < space->slot_high; slot++) {
            uint32_t number = space->slots[slot].segment;

            if (number == KVI_DIR_NONE || dir->segments[number].owner != client->number)
                continue;
            read_usage(dir, &dir->segments[number], &usage);
            info->used_blocks += usage.used_blocks;
            info->used_tokens += usage.used_tokens;
        }
    }
}

static void fill_client(const struct kvi_dir *dir, const struct kvi_dir_client *client,
                        struct kvi_rec_client_info *info)
{
    *info = (struct kvi_rec_client_info){
        .client = client->number,
        .state = shown_state(client),
        .pid = client->peer.pid,
        .uid = client->peer.uid,
        .role = client->role,
        .fds_in_flight = client->fds_sent - client->fds_acknowledged,
        .owned_segments = client->owned_segments,
        .owned_bytes = client->owned_bytes,
        .mapped_segments = client->mapped_segments,
        .lease_count = client->lease_count,
        .pin_count = client->pin_count,
        .messages = client->messages,
        .age_ns = kvi_dir_now_ns(dir) - client->connected_ns,
    };
    memcpy(info->name, client->name, sizeof(info->name));
    add_usage(dir, client, info);
}

void kvi_dir_report_clients(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_clients *m)
{
    struct kvi_msg_clients_reply *reply = (void *)dir->out;
    struct kvi_rec_client_info *infos;

    kvi_wire_begin(reply, KVI_OP_CLIENTS_REPLY, m->header.serial);
    infos = kvi_wire_tail(reply, 0);
    for (uint32_t i = m->first; i < dir->options.client_limit; i++) {
        if (dir->clients[i].state == KVI_DIR_CLIENT_FREE)
            continue;
        if (reply->client_count == PAGE) {
            reply->next = i;
            break;
        }
        fill_client(dir, &dir->clients[i], &infos[reply->client_count++]);
    }
    kvi_dir_reply(dir, client, reply);
}

/* ---- spaces ---- */

/* (Σ leases − leased entries) × block bytes: what separate copies would take beyond these. */
static uint64_t shared_blocks(const struct kvi_dir_segment *segment)
{
    uint64_t shared = 0;

    for (uint32_t w = 0; w < (segment->block_count + 63) / 64; w++)
        for (uint64_t bits = segment->entry_bits[w]; bits != 0; bits &= bits - 1) {
            uint32_t leases =
                segment->entries[w * 64 + (uint32_t)__builtin_ctzll(bits)].lease_count;

            shared += leases > 1 ? leases - 1 : 0;
        }
    return shared;
}

static void add_space_segment(const struct kvi_dir_segment *segment,
                              const struct kvi_dir_space *space, struct kvi_rec_space_info *info)
{
    uint32_t others = kvi_dir_segment_idle(segment);

    if (!has_memory(segment))
        return;
    info->entry_blocks += segment->entry_count;
    info->leased_blocks += segment->referenced_count;
    info->shared_saved_bytes += shared_blocks(segment) * space->geometry.block_bytes;
    if (segment->owner == KVI_NO_CLIENT) {
        info->idle_blocks += others;
    } else {
        info->owned_segments++;
        info->owner_blocks += others;
    }
}

static void fill_space(const struct kvi_dir *dir, const struct kvi_dir_space *space,
                       struct kvi_rec_space_info *info)
{
    *info = (struct kvi_rec_space_info){
        .space = kvi_dir_space_id(dir, space),
        .block_tokens = space->geometry.block_tokens,
        .blocks_per_segment = space->geometry.blocks_per_segment,
        .client_count = space->client_count,
        .block_bytes = space->geometry.block_bytes,
        .index_stride_bytes = space->geometry.index_stride_bytes,
        .segment_bytes = space->geometry.segment_bytes,
        .quota_bytes = space->quota_bytes,
        .segment_count = space->segment_count,
    };
    memcpy(info->name, space->name, sizeof(info->name));
    memcpy(info->domain, space->domain, sizeof(info->domain));
    for (uint32_t slot = 0; slot < space->slot_high; slot++)
        if (space->slots[slot].segment != KVI_DIR_NONE)
            add_space_segment(&dir->segments[space->slots[slot].segment], space, info);
}

void kvi_dir_report_spaces(struct kvi_dir *dir, struct kvi_dir_client *client,
                           const struct kvi_msg_spaces *m)
{
    struct kvi_msg_spaces_reply *reply = (void *)dir->out;
    struct kvi_rec_space_info *infos;

    kvi_wire_begin(reply, KVI_OP_SPACES_REPLY, m->header.serial);
    infos = kvi_wire_tail(reply, 0);
    for (uint32_t i = m->first; i < dir->options.space_limit; i++) {
        if (!dir->spaces[i].is_used)
            continue;
        if (reply->space_count == PAGE) {
            reply->next = i;
            break;
        }
        fill_space(dir, &dir->spaces[i], &infos[reply->space_count++]);
    }
    kvi_dir_reply(dir, client, reply);
}

/* ---- segments ---- */

/* Scale counts a cell so that a full cell shows 255 and a used one never 0. */
static void scale_cells(const uint32_t *counts, const struct kvi_rec_segment_info *info,
                        uint8_t *cells)
{
    for (uint32_t c = 0; c < CELLS; c++) {
        uint64_t first = (uint64_t)c * info->cell_blocks;
        uint64_t blocks = info->cell_blocks;

        if (first >= info->total_blocks)
            break;
        if (first + blocks > info->total_blocks)
            blocks = info->total_blocks - first;
        cells[c] = (uint8_t)((counts[c] * FULL + blocks - 1) / blocks);
    }
}

static void count_entries(const struct kvi_dir_segment *segment, uint32_t cell_blocks,
                          uint32_t *entries, uint32_t *leased)
{
    for (uint32_t w = 0; w < (segment->block_count + 63) / 64; w++)
        for (uint64_t bits = segment->entry_bits[w]; bits != 0; bits &= bits - 1) {
            uint32_t block = w * 64 + (uint32_t)__builtin_ctzll(bits);
            const struct kvi_dir_entry *entry = &segment->entries[block];

            entries[block / cell_blocks]++;
            leased[block / cell_blocks] += (uint32_t)kvi_dir_is_referenced(entry);
        }
}

static void fill_segment(const struct kvi_dir *dir, uint32_t number,
                         struct kvi_rec_segment_info *info)
{
    const struct kvi_dir_segment *segment = &dir->segments[number];
    uint32_t entries[CELLS] = {0}, leased[CELLS] = {0};
    struct kvi_dir_usage usage;

    *info = (struct kvi_rec_segment_info){
        .segment = number,
        .space = kvi_dir_space_id(dir, &dir->spaces[segment->space]),
        .slot = segment->slot,
        .generation = segment->generation,
        .state = segment->state,
        .owner = segment->owner,
        .total_blocks = segment->block_count,
        .entry_blocks = segment->entry_count,
        .leased_blocks = segment->referenced_count,
        .mapper_count = segment->mapper_count,
        .cell_blocks = (segment->block_count + CELLS - 1) / CELLS,
    };
    if (!has_memory(segment))
        return;
    count_entries(segment, info->cell_blocks, entries, leased);
    scale_cells(entries, info, info->entry_cells);
    scale_cells(leased, info, info->leased_cells);
    read_usage(dir, segment, &usage);
    info->used_blocks = usage.used_blocks;
    info->used_tokens = usage.used_tokens;
    for (uint32_t c = 0; c < CELLS; c++) {
        uint32_t most = FULL - info->entry_cells[c];

        info->used_cells[c] = usage.cells[c] < most ? usage.cells[c] : (uint8_t)most;
    }
}

void kvi_dir_report_segments(struct kvi_dir *dir, struct kvi_dir_client *client,
                             const struct kvi_msg_segments *m)
{
    struct kvi_msg_segments_reply *reply = (void *)dir->out;
    struct kvi_rec_segment_info *infos;

    kvi_wire_begin(reply, KVI_OP_SEGMENTS_REPLY, m->header.serial);
    infos = kvi_wire_tail(reply, 0);
    for (uint32_t i = m->first; i < dir->segment_high; i++) {
        if (dir->segments[i].state == KVI_SEGMENT_FREE)
            continue;
        if (reply->segment_count == PAGE) {
            reply->next = i;
            break;
        }
        fill_segment(dir, i, &infos[reply->segment_count++]);
    }
    kvi_dir_reply(dir, client, reply);
}

/* ---- the check ---- */

static uint32_t segment_total(const struct kvi_dir *dir)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < dir->options.device_count; i++)
        count += dir->memory[i].segment_count;
    return count;
}

void kvi_dir_report_check(struct kvi_dir *dir, struct kvi_dir_client *client,
                          const struct kvi_msg_check *m)
{
    struct kvi_msg_check_reply reply;
    uint64_t start_ns = kvi_dir_now_ns(dir);
    char text[sizeof(reply.text)];
    int code;

    if (start_ns < dir->check_after_ns) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_BUSY,
                       "check: the last one held everybody up; again in %llu ms",
                       (unsigned long long)(dir->check_after_ns - start_ns) / 1000000 + 1);
        return;
    }
    code = kvi_dir_check(dir, text, sizeof(text));
    kvi_wire_begin(&reply, KVI_OP_CHECK_REPLY, m->header.serial);
    reply.violations = code != 0;
    reply.duration_ns = kvi_dir_now_ns(dir) - start_ns;
    if (reply.duration_ns >= CHECK_IS_LONG_NS)
        dir->check_after_ns = start_ns + reply.duration_ns * CHECK_SHARE;
    if (code == 0)
        snprintf(text, sizeof(text), "verified %u segments and %llu entries", segment_total(dir),
                 (unsigned long long)dir->index.entry_count);
    memcpy(reply.text, text, strnlen(text, sizeof(text) - 1));
    kvi_dir_reply(dir, client, &reply);
}

/* ---- devices ---- */

void kvi_dir_report_devices(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_devices *m)
{
    struct kvi_msg_devices_reply *reply = (void *)dir->out;
    struct kvi_rec_device_info *rows;

    kvi_wire_begin(reply, KVI_OP_DEVICES_REPLY, m->header.serial);
    rows = kvi_wire_tail(reply, 0);
    reply->device_count = dir->options.device_count;
    for (uint32_t i = 0; i < dir->options.device_count; i++) {
        const struct kvi_dir_device *device = &dir->options.devices[i];

        rows[i] = (struct kvi_rec_device_info){
            .kind = device->kind,
            .flags = device->exit_proves_nothing ? KVI_DEVICE_MPS : 0,
            .device_bytes = device->device_bytes,
            .free_bytes = dir->memory[i].free_bytes,
            .granule_bytes = device->granule_bytes,
            .segment_count = dir->memory[i].segment_count,
        };
        if (dir->env.device_is_stuck)
            rows[i].state = (uint32_t)dir->env.device_is_stuck(dir->env.context, i);
        memcpy(rows[i].uuid, device->uuid, sizeof(rows[i].uuid));
        memcpy(rows[i].name, device->name, sizeof(rows[i].name));
    }
    kvi_dir_reply(dir, client, reply);
}
