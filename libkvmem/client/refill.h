/* SPDX-License-Identifier: Apache-2.0
 *
 * Refill and hand-in: how blocks come to a client and go back, a segment or more at a time.
 *
 *   free < low water, or a call lacked blocks  ⇒  one request, answered by grants or an error
 *   an idle segment (no used block)            ⇒  handed in when it has no free block, or when
 *                                                 low water + refill free blocks are left without
 *                                                 it (less would be asked for again at once)
 *                                                 and what the caller has reserved,
 *                                                 or under pressure, or by trim
 *
 * A segment is handed in when its alias is gone, behind everything that was said of it before.
 */
#ifndef KVI_CLIENT_REFILL_H
#define KVI_CLIENT_REFILL_H

#include "client/space.h"

/* A grant came: map what is new, count what is ours. Fails only with PROTOCOL. */
int kvi_refill_grant(struct kvmem_space *space, const struct kvi_msg_grant *grant);

/* The request was refused with `code`. */
void kvi_refill_refused(struct kvmem_space *space, int code);

/* A pressure event. */
void kvi_refill_pressure(struct kvmem_space *space, const struct kvi_msg_pressure *message);

/* Ask for blocks if the space needs some and no request is outstanding. 0 or DAEMON_LOST. */
int kvi_refill_ask(struct kvmem_space *space);

/* Ask for at least `blocks` now. 0, TIMED_OUT or DAEMON_LOST. */
int kvi_refill_request(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns);

/* Hand in what is not needed. Returns the number of segments. */
uint32_t kvi_refill_hand_in(struct kvmem_space *space, bool all);

/* kvmem_space_reserve and kvmem_space_trim. */
int kvi_space_reserve(struct kvmem_space *space, uint64_t blocks, int64_t timeout_ns);
int kvi_space_trim(struct kvmem_space *space);

#endif
