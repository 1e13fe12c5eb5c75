/* SPDX-License-Identifier: Apache-2.0
 *
 * Acting on messages that nobody waits for: grants, answers to publications, events, refusals,
 * and the answers to calls that were given up. A message about a space that was closed meanwhile
 * is dropped, its descriptors closed by the caller.
 */
#include <string.h>

#include "client/client.h"
#include "client/importer.h"
#include "client/prefix.h"
#include "client/refill.h"
#include "client/space.h"
#include "util/error.h"

static int handle_gone(struct kvmem_client *client, const struct kvi_msg_segment_gone *message)
{
    struct kvmem_space *space = kvi_client_space(client, message->space);

    if (!space)
        return 0;
    if (message->slot >= space->pool.segment_limit)
        return kvi_client_protocol(client, "segment_gone.slot is outside the space");
    if (!kvi_importer_has(space, message->slot, message->generation))
        return 0; /* said already: it could not be mapped */
    return kvi_importer_vacate_later(space, message->slot);
}

/* A refusal: of a request for blocks, of publications, or of what is never answered. */
static int handle_error(struct kvmem_client *client, const struct kvi_msg_error *error)
{
    uint32_t serial = error->header.serial;

    for (uint32_t i = 0; serial && i < client->space_high; i++) {
        struct kvmem_space *space = client->spaces[i];

        if (space && space->request_serial == serial) {
            kvi_refill_refused(space, error->code);
            return 0;
        }
    }
    if (serial && kvi_outbox_awaits(&client->outbox, serial))
        return kvi_outbox_answered(client, serial, NULL);
    client->stray_errors++;
    return 0;
}

/* The answer to a call whose caller has gone: what it granted goes back. */
static int handle_late(struct kvmem_client *client)
{
    const struct kvi_header *header = client->rx;
    const struct kvi_msg_lookup_reply *lookup = client->rx;
    const struct kvi_msg_segment_fds *fds = client->rx;
    const struct kvi_msg_pin_reply *pin = client->rx;
    const struct kvi_msg_space_opened *opened = client->rx;
    struct kvmem_space *space;

    client->late_serial = 0;
    switch (header->opcode) {
    case KVI_OP_LOOKUP_REPLY:
        space = kvi_client_space(client, lookup->space);
        return space ? kvi_prefix_late_hits(space, lookup) : 0;
    case KVI_OP_SEGMENT_FDS:
        space = kvi_client_space(client, fds->space);
        return space ? kvi_importer_late_fds(space, fds) : 0;
    case KVI_OP_PIN_REPLY:
        memcpy(kvi_outbox_append(client, KVI_OUTBOX_UNPIN, KVI_SPACE_LIMIT, 0)->bytes, &pin->pin,
               sizeof(pin->pin));
        return 0;
    case KVI_OP_SPACE_OPENED:
        kvi_outbox_append(client, KVI_OUTBOX_SPACE_CLOSE, KVI_SPACE_LIMIT, opened->space);
        return 0;
    default: return 0;
    }
}

static bool is_waiting(const struct kvmem_client *client)
{
    for (uint32_t i = 0; i < client->space_high; i++)
        if (client->spaces[i] && client->spaces[i]->request_serial)
            return true;
    return false;
}

static int handle_grant(struct kvmem_client *client, const struct kvi_msg_grant *grant)
{
    struct kvmem_space *space = kvi_client_space(client, grant->space);
    int code = space ? kvi_refill_grant(space, grant) : 0;

    /* More is to come, for this space or another, maybe held back until these descriptors are
     * acknowledged. */
    if (client->fd_count && is_waiting(client))
        client->owes_ack = true;
    return code;
}

int kvi_client_handle(struct kvmem_client *client)
{
    const struct kvi_header *header = client->rx;
    const struct kvi_msg_pressure *pressure = client->rx;
    struct kvmem_space *space;

    if (client->late_serial && header->serial == client->late_serial)
        return handle_late(client);
    switch (header->opcode) {
    case KVI_OP_GRANT: return handle_grant(client, client->rx);
    case KVI_OP_PUBLISH_REPLY: return kvi_outbox_answered(client, header->serial, client->rx);
    case KVI_OP_PRESSURE:
        space = kvi_client_space(client, pressure->space);
        if (space)
            kvi_refill_pressure(space, pressure);
        return 0;
    case KVI_OP_SEGMENT_GONE: return handle_gone(client, client->rx);
    case KVI_OP_ERROR: return handle_error(client, client->rx);
    case KVI_OP_DRAINING: /* the end of the connection follows */
    case KVI_OP_DONE: /* of an unpin or a close that was sent late */ return 0;
    default: return kvi_client_protocol(client, "an answer that nobody waits for");
    }
}
