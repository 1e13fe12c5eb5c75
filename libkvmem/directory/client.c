/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients: from accept to the exit of their process.
 *
 *   FREE ─add─▶ NEW ─hello─▶ ALIVE ─goodbye─▶ GOODBYE ─end of file─▶ FREE
 *                │             │ end of file, or expelled
 *                └─────────────┴──▶ GONE ─exited─▶ FREE
 *
 * A GONE client's process may still write, and reads what it leases: its segments are
 * quarantined and it keeps leases, pins and maps until kvi_dir_client_exited. Nothing is sent to
 * a client that is not NEW or ALIVE. What it published and did not finish breaks at the end
 * (fence.c), when its own leases are gone and those of others tell what must stay.
 */
#include "directory/directory_internal.h"

/* Names of timelines hold that much of a session's serial (2^32 / lanes). */
#define SESSIONS_APART (1u << 26)

int kvi_dir_client_is_reachable(const struct kvi_dir_client *client)
{
    return client->state == KVI_DIR_CLIENT_NEW || client->state == KVI_DIR_CLIENT_ALIVE;
}

const struct kvi_dir_client *kvi_dir_client_of_session(const struct kvi_dir *dir,
                                                       uint32_t session_serial)
{
    for (uint32_t i = 0; i < dir->options.client_limit; i++)
        if (dir->clients[i].state != KVI_DIR_CLIENT_FREE &&
            dir->clients[i].session_serial == session_serial)
            return &dir->clients[i];
    return NULL;
}

int kvi_dir_client_add(struct kvi_dir *dir, const struct kvi_dir_peer *peer, uint32_t *number)
{
    if (dir->is_draining)
        return KVMEM_E_LIMIT;
    for (uint32_t i = 0; i < dir->options.client_limit; i++) {
        struct kvi_dir_client *client = &dir->clients[i];

        if (client->state != KVI_DIR_CLIENT_FREE)
            continue;
        *client = (struct kvi_dir_client){.state = KVI_DIR_CLIENT_NEW,
                                          .number = i,
                                          .peer = *peer,
                                          .connected_ns = kvi_dir_now_ns(dir)};
        *number = i;
        return 0;
    }
    return KVMEM_E_LIMIT;
}

/* ---- hello and goodbye ---- */

static int is_zero(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != 0)
            return 0;
    return 1;
}

static void send_welcome(struct kvi_dir *dir, struct kvi_dir_client *client, uint32_t serial)
{
    struct kvi_msg_welcome welcome;
    size_t bytes;

    kvi_wire_begin(&welcome, KVI_OP_WELCOME, serial);
    welcome.version = client->version;
    welcome.version_min = KVI_PROTOCOL_VERSION_MIN;
    welcome.client = client->number;
    welcome.device_count = client->version < KVI_VERSION_FENCES ? 1 : dir->options.device_count;
    memcpy(welcome.session, client->session, sizeof(welcome.session));
    welcome.device_bytes = dir->options.devices[0].device_bytes;
    welcome.granule_bytes = dir->options.devices[0].granule_bytes;
    welcome.status_bytes = dir->options.status_bytes;
    memcpy(welcome.device, dir->options.devices[0].name, sizeof(welcome.device) - 1);
    if (dir->options.status_bytes > 0) { /* the descriptor of the status page comes along */
        welcome.header.fds_received = 1;
        client->fds_sent++;
    }
    bytes = kvi_wire_finish(&welcome);
    dir->env.send(dir->env.context, client->number, &welcome, bytes, NULL, 0);
}

static void refuse_version(struct kvi_dir *dir, struct kvi_dir_client *client,
                           const struct kvi_msg_hello *hello)
{
    kvi_dir_refuse(dir, client, KVI_OP_HELLO, hello->header.serial, KVMEM_E_VERSION,
                   "hello.version: the client speaks versions %u..%u, the daemon %u..%u; update "
                   "the older one",
                   hello->version_min, hello->version, KVI_PROTOCOL_VERSION_MIN,
                   KVI_PROTOCOL_VERSION);
    client->state = KVI_DIR_CLIENT_GONE;
    dir->env.client_close(dir->env.context, client->number, KVMEM_E_VERSION,
                          "no protocol version in common");
}

static int is_taken(const struct kvi_dir *dir, uint32_t session_serial)
{
    for (uint32_t i = 0; i < dir->options.client_limit; i++)
        if (dir->clients[i].state > KVI_DIR_CLIENT_NEW &&
            dir->clients[i].session_serial % SESSIONS_APART == session_serial % SESSIONS_APART)
            return 1;
    return 0;
}

/* The next serial that no timeline of a connected client is named after. Timelines 0 to 63 are
 * nobody's: a client calls its joint fences so (client/fence.h). */
static uint32_t next_session(struct kvi_dir *dir)
{
    do
        dir->session_serial++;
    while (dir->session_serial % SESSIONS_APART == 0 || is_taken(dir, dir->session_serial));
    return dir->session_serial;
}

void kvi_dir_client_hello(struct kvi_dir *dir, struct kvi_dir_client *client,
                          const struct kvi_msg_hello *hello)
{
    uint32_t serial = hello->header.serial;
    uint32_t version = hello->version;

    if (version > KVI_PROTOCOL_VERSION)
        version = KVI_PROTOCOL_VERSION;
    if (version < hello->version_min || version < KVI_PROTOCOL_VERSION_MIN) {
        refuse_version(dir, client, hello);
        return;
    }
    if (hello->role == KVMEM_ROLE_MEMBER) {
        kvi_dir_refuse(dir, client, KVI_OP_HELLO, serial, KVMEM_E_NOT_SUPPORTED,
                       "hello.role: 1 (member) is not supported yet");
        return;
    }
    if (!is_zero(hello->session, sizeof(hello->session))) {
        kvi_dir_refuse(dir, client, KVI_OP_HELLO, serial, KVMEM_E_NOT_SUPPORTED,
                       "hello.session: joining or resuming a session is not supported yet");
        return;
    }
    if (dir->is_draining) {
        kvi_dir_refuse(dir, client, KVI_OP_HELLO, serial, KVMEM_E_BUSY, "the daemon is ending");
        return;
    }
    client->state = KVI_DIR_CLIENT_ALIVE;
    client->role = hello->role;
    client->version = version;
    client->session_serial = next_session(dir);
    memcpy(client->name, hello->name, sizeof(client->name));
    dir->env.random(dir->env.context, client->session, sizeof(client->session));
    send_welcome(dir, client, serial);
}

void kvi_dir_client_goodbye(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_goodbye *goodbye)
{
    for (struct kvi_dir_open *open = client->opens; open; open = open->next) {
        kvi_dir_request_drop(dir, open);
        kvi_dir_pressure_end(dir, open);
    }
    kvi_dir_done(dir, client, &goodbye->header);
    client->state = KVI_DIR_CLIENT_GOODBYE;
    dir->env.client_close(dir->env.context, client->number, 0, "goodbye");
}

/* ---- descriptors in flight ---- */

int kvi_dir_client_acknowledge(struct kvi_dir_client *client, uint32_t fds_received)
{
    uint32_t in_flight = client->fds_sent - client->fds_acknowledged;

    if (client->fds_sent - fds_received > in_flight)
        return KVMEM_E_PROTOCOL;
    client->fds_acknowledged = fds_received;
    return 0;
}

uint32_t kvi_dir_client_fd_room(const struct kvi_dir *dir, const struct kvi_dir_client *client)
{
    uint32_t taken = client->fds_sent - client->fds_acknowledged + client->fds_reserved;

    return taken < dir->options.unacked_fd_limit ? dir->options.unacked_fd_limit - taken : 0;
}

/* ---- timelines ---- */

/* The client whose timelines those are, until it is reclaimed. */
static const struct kvi_dir_client *producer_of(const struct kvi_dir *dir, uint32_t timeline)
{
    uint32_t session = timeline / KVI_LANE_COUNT;

    for (uint32_t i = 0; i < dir->options.client_limit; i++)
        if (dir->clients[i].state > KVI_DIR_CLIENT_NEW &&
            dir->clients[i].session_serial % SESSIONS_APART == session)
            return &dir->clients[i];
    return NULL;
}

static int share_domain(const struct kvi_dir *dir, const struct kvi_dir_client *one,
                        const struct kvi_dir_client *other)
{
    for (const struct kvi_dir_open *a = one->opens; a; a = a->next)
        for (const struct kvi_dir_open *b = other->opens; b; b = b->next)
            if (strcmp(dir->spaces[a->space].domain, dir->spaces[b->space].domain) == 0)
                return 1;
    return 0;
}

/* The page's owner, or NULL after refusing. */
static const struct kvi_dir_client *find_timeline(struct kvi_dir *dir,
                                                  const struct kvi_dir_client *client,
                                                  const struct kvi_msg_timeline_map *m)
{
    const struct kvi_dir_client *producer = m->is_own ? client : producer_of(dir, m->timeline);
    uint32_t opcode = m->header.opcode, serial = m->header.serial;

    if (!dir->env.timeline_reached)
        kvi_dir_refuse(dir, client, opcode, serial, KVMEM_E_NOT_SUPPORTED,
                       "timeline_map: there are no timelines here");
    else if (m->is_own && m->timeline != 0)
        kvi_dir_refuse(dir, client, opcode, serial, KVMEM_E_INVALID,
                       "timeline_map.timeline: %u, must be 0 with is_own 1", m->timeline);
    else if (!producer)
        kvi_dir_refuse(dir, client, opcode, serial, KVMEM_E_NOT_FOUND,
                       "timeline_map.timeline: the producer of %u is gone", m->timeline);
    else if (producer != client && !share_domain(dir, client, producer))
        kvi_dir_refuse(dir, client, opcode, serial, KVMEM_E_PERMISSION,
                       "timeline_map.timeline: the producer of %u has no space open in a sharing "
                       "domain of the client's",
                       m->timeline);
    else if (kvi_dir_client_fd_room(dir, client) == 0)
        kvi_dir_refuse(dir, client, opcode, serial, KVMEM_E_BUSY,
                       "timeline_map: %u descriptors are in flight already; acknowledge some",
                       dir->options.unacked_fd_limit);
    else
        return producer;
    return NULL;
}

void kvi_dir_client_timeline(struct kvi_dir *dir, struct kvi_dir_client *client,
                             const struct kvi_msg_timeline_map *m)
{
    const struct kvi_dir_client *producer = find_timeline(dir, client, m);
    struct kvi_msg_timeline_fd reply;

    if (!producer)
        return;
    kvi_wire_begin(&reply, KVI_OP_TIMELINE_FD, m->header.serial);
    reply.header.fds_received = 1;
    reply.timeline = producer->session_serial * KVI_LANE_COUNT;
    reply.client = producer->number;
    client->fds_sent++;
    dir->env.send(dir->env.context, client->number, &reply, kvi_wire_finish(&reply), NULL, 0);
}

/* ---- the end ---- */

/* Nobody can prove yet that the client writes no more: lock what it could write. */
static void quarantine(struct kvi_dir *dir, struct kvi_dir_client *client)
{
    client->state = KVI_DIR_CLIENT_GONE;
    for (struct kvi_dir_open *open = client->opens; open; open = open->next) {
        struct kvi_dir_space *space = &dir->spaces[open->space];

        kvi_dir_request_drop(dir, open);
        kvi_dir_pressure_end(dir, open);
        for (uint32_t slot = 0; slot < space->slot_high; slot++) {
            uint32_t number = space->slots[slot].segment;

            if (number != KVI_DIR_NONE && dir->segments[number].owner == client->number &&
                dir->segments[number].state == KVI_SEGMENT_OWNED)
                dir->segments[number].state = KVI_SEGMENT_QUARANTINED;
        }
    }
}

static void reclaim(struct kvi_dir *dir, struct kvi_dir_client *client)
{
    int is_orphaned = client->state != KVI_DIR_CLIENT_GOODBYE;

    client->state = KVI_DIR_CLIENT_GONE;
    if (is_orphaned) {
        dir->totals.orphaned_segments += client->owned_segments;
        kvi_dir_segment_taint(dir, client->number);
    }
    while (client->opens)
        kvi_dir_open_close(dir, client->opens);
    kvi_dir_fence_break(dir, client);
    kvi_dir_segment_sweep(dir);
    assert(client->owned_segments == 0 && client->owned_bytes == 0 &&
           client->mapped_segments == 0 && client->lease_count == 0 && client->pin_count == 0 &&
           client->fds_reserved == 0);
    client->state = KVI_DIR_CLIENT_FREE;
    dir->totals.reclaimed_clients++;
}

void kvi_dir_client_expel(struct kvi_dir *dir, struct kvi_dir_client *client, int code,
                          const char *text)
{
    dir->totals.protocol_errors++;
    quarantine(dir, client);
    dir->env.client_close(dir->env.context, client->number, code, text);
}

void kvi_dir_client_eof(struct kvi_dir *dir, uint32_t number)
{
    struct kvi_dir_client *client;

    if (number >= dir->options.client_limit)
        return;
    client = &dir->clients[number];
    if (client->state == KVI_DIR_CLIENT_GOODBYE)
        reclaim(dir, client);
    else if (client->state != KVI_DIR_CLIENT_FREE)
        quarantine(dir, client);
    kvi_dir_request_retry(dir);
}

void kvi_dir_client_exited(struct kvi_dir *dir, uint32_t number)
{
    if (number >= dir->options.client_limit || dir->clients[number].state == KVI_DIR_CLIENT_FREE)
        return;
    if (kvi_dir_client_is_reachable(&dir->clients[number]))
        quarantine(dir, &dir->clients[number]);
    reclaim(dir, &dir->clients[number]);
    kvi_dir_request_retry(dir);
}
