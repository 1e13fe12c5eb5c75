/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests for blocks: from the message to its last grant.
 *
 *   NONE ─message─▶ plan ─▶ all found, none to come: last grant ─▶ NONE
 *                    │  ▲
 *                    │  ├── created (the last one) ──┐
 *                    ├──┼────▶ RUNNING ──────────────┤  waits for the backend, or for the
 *                    │  └── acknowledged ────────────┘  client to acknowledge descriptors
 *                    │  ┌── memory came back ────────┐
 *                    ├──┴────▶ WAITING ──deadline──▶ error DEVICE_FULL or QUOTA ─▶ NONE
 *                    └─ nothing found, nobody to wait for: the same error ─▶ NONE
 *
 * A client has at most one request for each space that it has open; another one is BUSY. Before
 * a request waits, all other owners who could help are asked once to hand in (pressure), the
 * one with the most segments first, and an owner that does not before its deadline is counted.
 * Waiting requests are tried in order of arrival, and only when memory came back.
 *
 * dir->grant holds a message in the making; it is empty whenever no plan runs.
 */
#include "directory/directory_internal.h"

/* ---- the grant message ---- */

static void send_grant(struct kvi_dir *dir, struct kvi_dir_open *open, uint32_t flags)
{
    struct kvi_dir_client *client = &dir->clients[open->client];
    struct kvi_dir_grant *made = &dir->grant;
    struct kvi_msg_grant *grant = (void *)dir->out;

    kvi_wire_begin(grant, KVI_OP_GRANT, open->request.serial);
    grant->header.fds_received = made->fd_count;
    grant->space = kvi_dir_space_id(dir, &dir->spaces[open->space]);
    grant->flags = flags;
    grant->obtainable_blocks = kvi_dir_obtainable_blocks(dir, open);
    grant->segment_count = made->segment_count;
    grant->range_count = made->range_count;
    memcpy(kvi_wire_tail(grant, 0), made->segments,
           made->segment_count * sizeof(made->segments[0]));
    memcpy(kvi_wire_tail(grant, 1), made->ranges, made->range_count * sizeof(made->ranges[0]));
    dir->env.send(dir->env.context, client->number, grant, kvi_wire_finish(grant), made->fds,
                  made->fd_count);
    made->segment_count = 0;
    made->range_count = 0;
    made->fd_count = 0;
}

void kvi_dir_grant_segment(struct kvi_dir *dir, struct kvi_dir_open *open, uint32_t number,
                           uint32_t flags)
{
    struct kvi_dir_grant *made = &dir->grant;
    struct kvi_dir_segment *segment = &dir->segments[number];

    if (made->segment_count == KVI_DIR_GRANT_SEGMENTS || made->range_count == KVI_DIR_GRANT_RANGES)
        send_grant(dir, open, 0);
    if (!kvi_dir_segment_is_mapped_by(segment, open->client)) {
        flags |= KVI_SEGMENT_HAS_FD;
        made->fds[made->fd_count++] = number;
        dir->clients[open->client].fds_sent++;
        kvi_dir_segment_add_mapper(dir, segment, open->client);
    }
    made->segments[made->segment_count++] = (struct kvi_rec_segment_grant){
        .slot = segment->slot, .generation = segment->generation, .flags = flags};
}

/* Add blocks to the last range when they adjoin it inside the segment. */
static int extend(struct kvi_rec_block_range *last, const struct kvi_dir_segment *segment,
                  uint32_t index, uint32_t first, uint32_t count)
{
    if (last->first + last->count == index && first > 0) {
        last->count += count;
        return 1;
    }
    if (index + count == last->first && first + count < segment->block_count) {
        last->first = index;
        last->count += count;
        return 1;
    }
    return 0;
}

void kvi_dir_grant_blocks(struct kvi_dir *dir, struct kvi_dir_open *open,
                          const struct kvi_dir_segment *segment, uint32_t first, uint32_t count)
{
    struct kvi_dir_grant *made = &dir->grant;
    uint32_t index = segment->slot * segment->block_count + first;

    if (made->range_count > 0 &&
        extend(&made->ranges[made->range_count - 1], segment, index, first, count))
        return;
    if (made->range_count == KVI_DIR_GRANT_RANGES)
        send_grant(dir, open, 0);
    made->ranges[made->range_count++] =
        (struct kvi_rec_block_range){.first = index, .count = count};
}

/* ---- the waiting list ---- */

static void wait_append(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    open->request.state = KVI_DIR_REQUEST_WAITING;
    open->wait_next = NULL;
    open->wait_previous = dir->wait_last;
    if (dir->wait_last)
        dir->wait_last->wait_next = open;
    else
        dir->wait_first = open;
    dir->wait_last = open;
}

static void wait_remove(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    if (open->wait_previous)
        open->wait_previous->wait_next = open->wait_next;
    else
        dir->wait_first = open->wait_next;
    if (open->wait_next)
        open->wait_next->wait_previous = open->wait_previous;
    else
        dir->wait_last = open->wait_previous;
    open->wait_next = NULL;
    open->wait_previous = NULL;
}

uint64_t kvi_dir_request_next_deadline(const struct kvi_dir *dir)
{
    uint64_t next = KVI_DIR_NEVER;

    for (const struct kvi_dir_open *open = dir->wait_first; open; open = open->wait_next)
        if (open->request.deadline_ns < next)
            next = open->request.deadline_ns;
    return next;
}

/* ---- pressure ---- */

/* The quota alone, not the device, keeps the request from memory: only its own space can help. */
static int is_bound_by_quota(const struct kvi_dir *dir, const struct kvi_dir_open *asker)
{
    return !kvi_dir_space_quota_allows(&dir->spaces[asker->space]);
}

static void press(struct kvi_dir *dir, struct kvi_dir_open *owner, uint64_t want_bytes,
                  uint64_t now_ns)
{
    const struct kvi_dir_space *space = &dir->spaces[owner->space];
    uint64_t segments =
        (want_bytes + space->geometry.segment_bytes - 1) / space->geometry.segment_bytes;
    uint32_t told = owner->owned_segments - owner->request.creating - owner->request.ready_count;
    struct kvi_msg_pressure pressure;

    if (owner->is_pressed || told == 0)
        return; /* asked already, and its time is not up; or it knows of none that it owns */
    owner->is_pressed = 1;
    owner->pressed_until_ns = now_ns + dir->options.pressure_ns;
    dir->pressed_count++;
    dir->totals.pressure_requests++;
    kvi_dir_tick_at(dir, owner->pressed_until_ns);
    kvi_wire_begin(&pressure, KVI_OP_PRESSURE, 0);
    pressure.deadline_ns = dir->options.pressure_ns;
    pressure.space = kvi_dir_space_id(dir, space);
    pressure.segment_count = segments < told ? (uint32_t)segments : told;
    kvi_dir_reply(dir, &dir->clients[owner->client], &pressure);
}

static int may_help(const struct kvi_dir *dir, const struct kvi_dir_open *asker,
                    const struct kvi_dir_open *owner, int same_space)
{
    return owner->client != asker->client && owner->owned_segments > 0 &&
           (!same_space || owner->space == asker->space) &&
           dir->spaces[owner->space].device == dir->spaces[asker->space].device;
}

/* Memory on its way back of which no owner must be reminded: a dead client's, a draining
 * segment's, one that is created for nobody. */
static int is_memory_coming(const struct kvi_dir *dir, const struct kvi_dir_open *asker,
                            int same_space)
{
    for (uint32_t i = 0; i < dir->segment_high; i++) {
        const struct kvi_dir_segment *segment = &dir->segments[i];

        if ((same_space && segment->space != asker->space) || segment->state == KVI_SEGMENT_FREE ||
            kvi_dir_device_of(dir, segment) != dir->spaces[asker->space].device)
            continue;
        if (segment->state == KVI_SEGMENT_DRAINING ||
            (segment->state == KVI_SEGMENT_CREATING && segment->owner == KVI_NO_CLIENT))
            return 1;
        if (segment->owner != KVI_NO_CLIENT &&
            dir->clients[segment->owner].state != KVI_DIR_CLIENT_ALIVE)
            return 1;
    }
    return 0;
}

/* Ask the owners who could help, the one with most segments first. 1 when waiting makes sense. */
static int ask_owners(struct kvi_dir *dir, struct kvi_dir_open *asker, uint64_t now_ns)
{
    const struct kvmem_geometry *geometry = &dir->spaces[asker->space].geometry;
    uint64_t want_bytes = asker->request.want * geometry->index_stride_bytes;
    int same_space = is_bound_by_quota(dir, asker);
    struct kvi_heap *heap = &dir->whole; /* of the plan that has ended */
    int is_hopeful = is_memory_coming(dir, asker, same_space);

    heap->count = 0;
    for (uint32_t i = 0; i < dir->options.client_limit; i++) {
        if (dir->clients[i].state != KVI_DIR_CLIENT_ALIVE)
            continue;
        for (struct kvi_dir_open *open = dir->clients[i].opens; open; open = open->next)
            if (may_help(dir, asker, open, same_space))
                kvi_heap_append(heap, UINT32_MAX - open->owned_segments,
                                (uint64_t)i << 32 | open->space);
    }
    kvi_heap_order(heap);
    for (; heap->count > 0; kvi_heap_pop(heap)) {
        struct kvi_dir_open *open = dir->clients[heap->items[0].value >> 32].opens;

        while (open->space != (uint32_t)heap->items[0].value)
            open = open->next;
        press(dir, open, want_bytes, now_ns);
        is_hopeful = 1;
    }
    return is_hopeful;
}

void kvi_dir_pressure_end(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    if (!open->is_pressed)
        return;
    open->is_pressed = 0;
    dir->pressed_count--;
}

void kvi_dir_pressure_expire(struct kvi_dir *dir, uint64_t now_ns)
{
    for (uint32_t i = 0; i < dir->options.client_limit && dir->pressed_count > 0; i++) {
        for (struct kvi_dir_open *open = dir->clients[i].opens; open; open = open->next) {
            if (!open->is_pressed)
                continue;
            if (open->pressed_until_ns > now_ns) {
                kvi_dir_tick_at(dir, open->pressed_until_ns);
                continue;
            }
            dir->totals.pressure_missed++;
            kvi_dir_pressure_end(dir, open);
        }
    }
}

/* ---- the course of a request ---- */

static void refuse_for(struct kvi_dir *dir, struct kvi_dir_open *open, int code)
{
    const struct kvi_dir_space *space = &dir->spaces[open->space];
    const struct kvi_dir_client *client = &dir->clients[open->client];
    uint32_t serial = open->request.serial;

    open->request = (struct kvi_dir_request){0};
    if (code == KVMEM_E_QUOTA) {
        dir->totals.refusals++;
        kvi_dir_refuse(dir, client, KVI_OP_BLOCKS_REQUEST, serial, code,
                       "blocks_request: the quota of %llu bytes of space '%s' is used up",
                       (unsigned long long)space->quota_bytes, space->name);
    } else if (code == KVMEM_E_DEVICE_FULL) {
        dir->totals.refusals++;
        kvi_dir_refuse(dir, client, KVI_OP_BLOCKS_REQUEST, serial, code,
                       "blocks_request: of %llu device bytes %llu are free on device %u and no "
                       "others may be taken",
                       (unsigned long long)dir->options.devices[space->device].device_bytes,
                       (unsigned long long)dir->memory[space->device].free_bytes, space->device);
    } else {
        kvi_dir_refuse(dir, client, KVI_OP_BLOCKS_REQUEST, serial, code,
                       "blocks_request: a segment could not be created on device %u: see the "
                       "daemon's log and `kvmemctl devices`",
                       space->device);
    }
}

static int exhausted_code(const struct kvi_dir *dir, const struct kvi_dir_open *open)
{
    return is_bound_by_quota(dir, open) ? KVMEM_E_QUOTA : KVMEM_E_DEVICE_FULL;
}

/* Nothing was found: wait where that helps, else refuse. */
static void request_starves(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    struct kvi_dir_request *request = &open->request;

    if (request->create_code != 0 && request->create_code != KVMEM_E_DEVICE_FULL) {
        refuse_for(dir, open, request->create_code);
        return;
    }
    if (request->flags & KVI_REQUEST_MAY_WAIT) {
        uint64_t now_ns = kvi_dir_now_ns(dir);

        if (!request->is_pressing) {
            request->is_pressing = 1;
            request->deadline_ns = now_ns + dir->options.pressure_ns;
        }
        if (now_ns < request->deadline_ns && ask_owners(dir, open, now_ns)) {
            request->create_code = 0;
            wait_append(dir, open);
            return;
        }
    }
    refuse_for(dir, open, exhausted_code(dir, open));
}

/* Plan, and do what the plan came to. The request is in no list. */
static void advance(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    struct kvi_dir_request *request = &open->request;
    enum kvi_dir_plan result = kvi_dir_plan(dir, open);

    request->state = KVI_DIR_REQUEST_RUNNING;
    request->is_held = result == KVI_DIR_PLAN_HELD;
    if (result == KVI_DIR_PLAN_HELD || result == KVI_DIR_PLAN_CREATING) {
        if (dir->grant.segment_count + dir->grant.range_count > 0)
            send_grant(dir, open, 0);
    } else if (request->granted > 0) {
        send_grant(dir, open, KVI_GRANT_LAST);
        dir->totals.grants++;
        *request = (struct kvi_dir_request){0};
    } else if (result == KVI_DIR_PLAN_NO_MEMORY) {
        refuse_for(dir, open, KVMEM_E_NO_MEMORY);
    } else {
        request_starves(dir, open);
    }
}

void kvi_dir_blocks_request(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_blocks_request *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);

    if (!open)
        return;
    if (m->group != 0) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_NOT_SUPPORTED,
                       "blocks_request.group: only group 0 is supported yet");
        return;
    }
    if (open->request.state != KVI_DIR_REQUEST_NONE) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_BUSY,
                       "blocks_request: the last request for this space is not answered yet");
        return;
    }
    open->request = (struct kvi_dir_request){
        .serial = m->header.serial, .flags = m->flags, .want = m->block_count};
    advance(dir, open);
}

/* Send the segments that are ready, in the order in which they became so. */
static void grant_ready(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    struct kvi_dir_request *request = &open->request;

    while (request->ready_count > 0) {
        uint32_t number = request->ready_first;
        struct kvi_dir_segment *segment = &dir->segments[number];

        request->ready_first = segment->next_ready;
        request->ready_count--;
        segment->is_ready = 0;
        segment->next_ready = KVI_DIR_NONE;
        dir->clients[open->client].fds_reserved--;
        kvi_dir_grant_segment(dir, open, number, 0);
        kvi_dir_grant_blocks(dir, open, segment, 0, segment->block_count);
    }
}

void kvi_dir_request_created(struct kvi_dir *dir, struct kvi_dir_open *open, uint32_t number,
                             int code)
{
    struct kvi_dir_request *request = &open->request;
    struct kvi_dir_segment *segment = &dir->segments[number];

    request->creating--;
    if (code != 0) {
        request->granted -= dir->spaces[open->space].geometry.blocks_per_segment;
        request->create_code = code;
    } else {
        segment->is_ready = 1;
        segment->next_ready = KVI_DIR_NONE;
        if (request->ready_count == 0)
            request->ready_first = number;
        else
            dir->segments[request->ready_last].next_ready = number;
        request->ready_last = number;
        request->ready_count++;
    }
    if (request->creating > 0 && request->ready_count < KVI_DIR_GRANT_SEGMENTS)
        return;
    grant_ready(dir, open);
    if (request->creating == 0 && !request->is_held)
        advance(dir, open);
    else if (dir->grant.segment_count > 0)
        send_grant(dir, open, 0);
}

void kvi_dir_request_resume(struct kvi_dir *dir, struct kvi_dir_client *client)
{
    for (struct kvi_dir_open *open = client->opens; open; open = open->next)
        if (open->request.is_held && kvi_dir_client_fd_room(dir, client) > 0)
            advance(dir, open);
}

void kvi_dir_request_drop(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    struct kvi_dir_space *space = &dir->spaces[open->space];
    struct kvi_dir_request *request = &open->request;
    struct kvi_dir_client *client = &dir->clients[open->client];

    if (request->state == KVI_DIR_REQUEST_WAITING)
        wait_remove(dir, open);
    for (uint32_t slot = 0; slot < space->slot_high; slot++) {
        uint32_t number = space->slots[slot].segment;
        struct kvi_dir_segment *segment;

        if (number == KVI_DIR_NONE || dir->segments[number].owner != client->number)
            continue;
        segment = &dir->segments[number];
        if (segment->is_ready || segment->state == KVI_SEGMENT_CREATING)
            client->fds_reserved--;
        segment->is_ready = 0;
        segment->next_ready = KVI_DIR_NONE;
        if (segment->state == KVI_SEGMENT_CREATING)
            kvi_dir_segment_forsake(dir, segment);
    }
    *request = (struct kvi_dir_request){0};
}

/* ---- memory came back ---- */

/* One pass over those that wait; 1 when one of them was served. */
static int retry_all(struct kvi_dir *dir)
{
    struct kvi_dir_open *next;
    struct kvi_dir_open *last = dir->wait_last; /* those that starve again queue up behind it */
    int is_served = 0;

    for (struct kvi_dir_open *open = dir->wait_first; open; open = next) {
        uint32_t before = open->request.state;

        next = open == last ? NULL : open->wait_next;
        wait_remove(dir, open);
        advance(dir, open);
        is_served |= before != open->request.state;
    }
    return is_served;
}

void kvi_dir_request_retry(struct kvi_dir *dir)
{
    int is_served = 1;

    while (dir->wait_first && dir->memory_came_back && is_served) {
        dir->memory_came_back = 0;
        is_served = retry_all(dir);
    }
    dir->memory_came_back = 0;
}

void kvi_dir_request_expire(struct kvi_dir *dir, uint64_t now_ns)
{
    struct kvi_dir_open *next;

    for (struct kvi_dir_open *open = dir->wait_first; open; open = next) {
        next = open->wait_next;
        if (open->request.deadline_ns > now_ns)
            continue;
        wait_remove(dir, open);
        refuse_for(dir, open, exhausted_code(dir, open));
    }
}
