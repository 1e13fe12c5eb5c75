/* SPDX-License-Identifier: Apache-2.0
 *
 * What the daemon knows, fetched into plain arrays: the input of map and frag. Lists come in
 * messages of 64 records, so what changes in between may show twice or not at all: a picture of
 * a running pool, not a proof (that is `check`).
 */
#ifndef KVCTL_POOL_H
#define KVCTL_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "request.h"
#include "wire/protocol.h"

struct kvctl_pool {
    struct kvi_msg_stats_reply stats;
    struct kvi_rec_client_info *clients;
    struct kvi_rec_space_info *spaces;
    struct kvi_rec_segment_info *segments; /* in the order of their numbers */
    size_t client_count;
    size_t space_count;
    size_t segment_count;
    bool is_filtered; /* kvctl_pool_keep_space has taken segments out */
};

/* Which lists to fetch. */
enum kvctl_pool_part {
    KVCTL_POOL_STATS = 1u << 0,
    KVCTL_POOL_CLIENTS = 1u << 1,
    KVCTL_POOL_SPACES = 1u << 2,
    KVCTL_POOL_SEGMENTS = 1u << 3,
    KVCTL_POOL_ALL = 15
};

/* Fetch. 0 or a negative code (session->failure says why). Free in either case. */
int kvctl_pool_fetch(struct kvctl_session *session, unsigned parts, struct kvctl_pool *out);
void kvctl_pool_free(struct kvctl_pool *pool);

/* Is `wanted` "NAME" or "DOMAIN/NAME" of the space? */
bool kvctl_space_is_named(const struct kvi_rec_space_info *space, const char *wanted);

/* Keep the spaces so named and their segments. Returns how many spaces are left. */
size_t kvctl_pool_keep_space(struct kvctl_pool *pool, const char *name);

/* The space or client of that id, or NULL. */
const struct kvi_rec_space_info *kvctl_pool_space(const struct kvctl_pool *pool, uint32_t space);
const struct kvi_rec_client_info *kvctl_pool_client(const struct kvctl_pool *pool, uint32_t client);

/* "owned", "handed in" and so on. */
const char *kvctl_segment_state_name(uint32_t state);

#endif
