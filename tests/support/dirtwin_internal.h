/* SPDX-License-Identifier: Apache-2.0
 *
 * Between the files of the twin.
 */
#ifndef KVT_SUPPORT_DIRTWIN_INTERNAL_H
#define KVT_SUPPORT_DIRTWIN_INTERNAL_H

#include "support/dirtwin.h"

enum {
    KVT_TWIN_IDLE,
    KVT_TWIN_ENTRIES,
    KVT_TWIN_REFERENCED
}; /* what kvt_twin_count counts */

int kvt_twin_is_referenced(const struct kvt_twin_block *block);
uint32_t kvt_twin_count(const struct kvt_twin *twin, uint32_t number, int what);
uint32_t kvt_twin_space_segments(const struct kvt_twin *twin, uint32_t space);
int kvt_twin_quota_allows(const struct kvt_twin *twin, uint32_t space);
uint32_t kvt_twin_fd_room(const struct kvt_twin *twin, uint32_t client);
int kvt_twin_find_index(struct kvt_twin *twin, uint32_t space, uint32_t index,
                        struct kvt_twin_segment **segment, struct kvt_twin_block **block);
struct kvt_twin_message *kvt_twin_expect(struct kvt_twin *twin, uint32_t client, uint32_t opcode,
                                         uint32_t serial);
void kvt_twin_refuse(struct kvt_twin *twin, uint32_t client, uint32_t serial, int code,
                     uint32_t opcode);
void kvt_twin_unreferenced(struct kvt_twin *twin, struct kvt_twin_block *block);
void kvt_twin_evict(struct kvt_twin *twin, struct kvt_twin_block *block);
void kvt_twin_free_segment(struct kvt_twin *twin, uint32_t number);
void kvt_twin_empty(struct kvt_twin *twin, uint32_t number);
void kvt_twin_drop(struct kvt_twin *twin, uint32_t number);
void kvt_twin_settle(struct kvt_twin *twin, uint32_t space);
int kvt_twin_newest_open(const struct kvt_twin *twin, uint32_t client, uint64_t before);
void kvt_twin_carried_out(struct kvt_twin *twin, uint32_t client);
void kvt_twin_arrived(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged);
int kvt_twin_need(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t opcode,
                  uint32_t space_id);
void kvt_twin_done(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t opcode);
void kvt_twin_drop_pin(struct kvt_twin *twin, struct kvt_twin_pin *pin);

/* dirtwin_prefix.c */
void kvt_twin_break(struct kvt_twin *twin, uint32_t client);

/* dirtwin_plan.c */
uint64_t kvt_twin_obtainable(const struct kvt_twin *twin, uint32_t client, uint32_t space);
void kvt_twin_advance(struct kvt_twin *twin, uint32_t client, uint32_t space);
void kvt_twin_retry(struct kvt_twin *twin);
void kvt_twin_expire(struct kvt_twin *twin);

#endif
