/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards: what a look-up's blocks wait for, when their producers were not done yet.
 *
 *   lookup ──▶ builder ──▶ guard ──▶ blocks of the look-up ──attach──▶ sequence, its forks
 *              points      number
 *
 * A guard is a number and a list of points, at most one a lane. While one of them is under way it
 * is PENDING, once a producer died before its own it is BROKEN for good, else it is REACHED and its
 * place is free: a number that is in no place has been reached, but for those up to `forgotten`,
 * the newest of the broken ones that had to make room; these are all called broken.
 *
 * Sequences and blocks keep the number alone; nothing is to be undone when they end.
 * All of it is allocated at the first look-up that needs it.
 */
#ifndef KVI_CLIENT_GUARD_H
#define KVI_CLIENT_GUARD_H

#include "client/fence.h"

#define KVI_GUARD_LIMIT  1024u /* pending at one time */
#define KVI_GUARD_PARTS  4096u /* of all of them */
#define KVI_GUARD_POINTS 256u  /* of one */
#define KVI_GUARD_NONE   0u

/* What a guard is made of, before it is one. */
struct kvi_guard_builder {
    uint32_t count;
    uint32_t broken; /* a broken guard that went in, or KVI_GUARD_NONE */
    struct kvi_point points[KVI_GUARD_POINTS];
};

static inline void kvi_guard_begin(struct kvi_guard_builder *builder)
{
    builder->count = 0;
    builder->broken = KVI_GUARD_NONE;
}

/* One point more, or the points of a guard. LIMIT: too many lanes. */
int kvi_guard_add(struct kvi_guard_builder *builder, const struct kvi_point *point);
int kvi_guard_add_guard(struct kvmem_client *client, struct kvi_guard_builder *builder,
                        uint32_t number);

/* The number of a guard of these points, KVI_GUARD_NONE when none is under way. LIMIT: too many
 * are; NO_MEMORY. */
int kvi_guard_make(struct kvmem_client *client, const struct kvi_guard_builder *builder,
                   uint32_t *number);

/* What has become of a guard. */
enum kvi_lane_state kvi_guard_state(struct kvmem_client *client, uint32_t number);

/* Was there such a guard? */
bool kvi_guard_is_known(const struct kvmem_client *client, uint64_t number);

/* Is any guard PENDING or BROKEN, as far as was looked? */
bool kvi_guard_is_any(const struct kvmem_client *client);

/* Its i-th point that is under way, in no order. False: there are no more. */
bool kvi_guard_part(struct kvmem_client *client, uint32_t number, uint32_t i,
                    struct kvi_point *point);

/* The fence to wait for: NONE, the only point, or the guard as a joint. */
struct kvmem_fence kvi_guard_fence(struct kvmem_client *client, uint32_t number);

/* Look at all of them: what has passed or broke holds no page any more. */
void kvi_guards_look(struct kvmem_client *client);

void kvi_guards_fini(struct kvmem_client *client);

#endif
