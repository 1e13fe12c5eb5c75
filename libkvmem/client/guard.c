/* SPDX-License-Identifier: Apache-2.0
 *
 * Guards in a ring of places by number; see guard.h.
 */
#include "client/guard.h"

#include <assert.h>

#include "client/client.h"
#include "util/error.h"

#define NO_PART UINT32_MAX

struct part {
    struct kvi_point point;
    uint32_t next; /* of the guard, or free */
};

struct guard {
    uint32_t number; /* KVI_GUARD_NONE: the place is free */
    uint32_t first;  /* of its parts that are under way */
    bool is_broken;
};

struct kvi_guards {
    uint32_t last;      /* number */
    uint32_t forgotten; /* newest broken number that lost its place, or KVI_GUARD_NONE */
    uint32_t used;      /* places */
    uint32_t free_part;
    struct guard places[KVI_GUARD_LIMIT];
    struct part parts[KVI_GUARD_PARTS];
};

static struct kvi_guards *guards_of(const struct kvmem_client *client)
{
    return client->fences.guards;
}

static struct guard *find(struct kvi_guards *guards, uint32_t number)
{
    struct guard *guard = &guards->places[number % KVI_GUARD_LIMIT];

    return number != KVI_GUARD_NONE && guard->number == number ? guard : NULL;
}

/* ---- parts ---- */

static void part_add(struct kvmem_client *client, struct guard *guard,
                     const struct kvi_point *point)
{
    struct kvi_guards *guards = guards_of(client);
    uint32_t at = guards->free_part;
    struct part *part = &guards->parts[at];

    guards->free_part = part->next;
    part->point = *point;
    part->next = guard->first;
    guard->first = at;
    kvi_fence_page(client, point->timeline)->guard_parts++;
}

/* Take out the part that *link names. */
static void part_drop(struct kvmem_client *client, uint32_t *link)
{
    struct kvi_guards *guards = guards_of(client);
    uint32_t at = *link;
    struct part *part = &guards->parts[at];

    *link = part->next;
    part->next = guards->free_part;
    guards->free_part = at;
    kvi_fence_page(client, part->point.timeline)->guard_parts--;
}

static bool has_parts(const struct kvi_guards *guards, uint32_t count)
{
    uint32_t at = guards->free_part;

    while (count && at != NO_PART) {
        at = guards->parts[at].next;
        count--;
    }
    return !count;
}

/* Look at the points; those that are reached leave. */
static enum kvi_lane_state look(struct kvmem_client *client, struct guard *guard)
{
    struct kvi_guards *guards = guards_of(client);
    uint32_t *link = &guard->first;

    while (*link != NO_PART) {
        enum kvi_lane_state state = kvi_fence_state(client, &guards->parts[*link].point);

        if (state == KVI_LANE_IS_BROKEN)
            guard->is_broken = true;
        if (state == KVI_LANE_PENDING)
            link = &guards->parts[*link].next;
        else
            part_drop(client, link);
    }
    if (guard->is_broken) {
        while (guard->first != NO_PART)
            part_drop(client, &guard->first);
        return KVI_LANE_IS_BROKEN;
    }
    if (guard->first != NO_PART)
        return KVI_LANE_PENDING;
    guard->number = KVI_GUARD_NONE;
    guards->used--;
    return KVI_LANE_REACHED;
}

enum kvi_lane_state kvi_guard_state(struct kvmem_client *client, uint32_t number)
{
    struct kvi_guards *guards = guards_of(client);
    struct guard *guard;

    if (!guards || number == KVI_GUARD_NONE)
        return KVI_LANE_REACHED;
    guard = find(guards, number);
    if (guard)
        return look(client, guard);
    if (guards->forgotten != KVI_GUARD_NONE && (int32_t)(number - guards->forgotten) <= 0)
        return KVI_LANE_IS_BROKEN;
    return KVI_LANE_REACHED;
}

bool kvi_guard_is_known(const struct kvmem_client *client, uint64_t number)
{
    const struct kvi_guards *guards = guards_of(client);

    return guards && number && number <= UINT32_MAX &&
           (int32_t)((uint32_t)number - guards->last) <= 0;
}

bool kvi_guard_is_any(const struct kvmem_client *client)
{
    const struct kvi_guards *guards = guards_of(client);

    return guards && (guards->used || guards->forgotten != KVI_GUARD_NONE);
}

bool kvi_guard_part(struct kvmem_client *client, uint32_t number, uint32_t i,
                    struct kvi_point *point)
{
    struct kvi_guards *guards = guards_of(client);
    const struct guard *guard = guards ? find(guards, number) : NULL;
    uint32_t at = guard ? guard->first : NO_PART;

    while (at != NO_PART && i) {
        at = guards->parts[at].next;
        i--;
    }
    if (at == NO_PART)
        return false;
    *point = guards->parts[at].point;
    return true;
}

struct kvmem_fence kvi_guard_fence(struct kvmem_client *client, uint32_t number)
{
    struct kvi_point joint = {KVI_TIMELINE_JOINT, number};
    struct kvi_point first, second;

    if (kvi_guard_part(client, number, 0, &first) && !kvi_guard_part(client, number, 1, &second))
        return kvi_fence_of(&first);
    return kvi_fence_of(&joint);
}

/* ---- making one ---- */

int kvi_guard_add(struct kvi_guard_builder *builder, const struct kvi_point *point)
{
    for (uint32_t i = 0; i < builder->count; i++) {
        if (builder->points[i].timeline != point->timeline)
            continue;
        if (builder->points[i].value < point->value)
            builder->points[i].value = point->value;
        return 0;
    }
    if (builder->count == KVI_GUARD_POINTS)
        return kvi_error_set(KVMEM_E_LIMIT,
                             "blocks of one call wait for more than %u lanes; wait for some first",
                             KVI_GUARD_POINTS);
    builder->points[builder->count++] = *point;
    return 0;
}

int kvi_guard_add_guard(struct kvmem_client *client, struct kvi_guard_builder *builder,
                        uint32_t number)
{
    struct kvi_point point;
    int code = 0;

    if (kvi_guard_state(client, number) == KVI_LANE_IS_BROKEN)
        builder->broken = number;
    for (uint32_t i = 0; !code && kvi_guard_part(client, number, i, &point); i++)
        code = kvi_guard_add(builder, &point);
    return code;
}

static int guards_init(struct kvmem_client *client)
{
    struct kvi_guards *guards = guards_of(client);

    if (guards)
        return 0;
    guards = kvi_allocate(&client->alloc, sizeof(*guards));
    if (!guards)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for guards of look-ups");
    for (uint32_t i = 0; i < KVI_GUARD_PARTS; i++)
        guards->parts[i].next = i + 1 < KVI_GUARD_PARTS ? i + 1 : NO_PART;
    client->fences.guards = guards;
    return 0;
}

static void give_up(struct kvi_guards *guards, struct guard *guard)
{
    if (guards->forgotten == KVI_GUARD_NONE || (int32_t)(guard->number - guards->forgotten) > 0)
        guards->forgotten = guard->number;
    guard->number = KVI_GUARD_NONE;
    guards->used--;
}

/* The next number whose place is free or comes free; broken guards make room in the second
 * round only. NULL: all are under way. */
static struct guard *make_place(struct kvmem_client *client)
{
    struct kvi_guards *guards = guards_of(client);

    for (uint32_t tries = 0; tries < 2 * KVI_GUARD_LIMIT; tries++) {
        struct guard *guard;

        if (++guards->last == KVI_GUARD_NONE)
            guards->last++;
        guard = &guards->places[guards->last % KVI_GUARD_LIMIT];
        if (guard->number != KVI_GUARD_NONE && look(client, guard) == KVI_LANE_IS_BROKEN &&
            tries >= KVI_GUARD_LIMIT)
            give_up(guards, guard);
        if (guard->number == KVI_GUARD_NONE)
            return guard;
    }
    return NULL;
}

void kvi_guards_look(struct kvmem_client *client)
{
    struct kvi_guards *guards = guards_of(client);

    for (uint32_t i = 0; guards && i < KVI_GUARD_LIMIT; i++)
        if (guards->places[i].number != KVI_GUARD_NONE)
            look(client, &guards->places[i]);
}

/* A place for one more guard, and parts for `count` points. */
static struct guard *make_room(struct kvmem_client *client, uint32_t count)
{
    if (!has_parts(guards_of(client), count))
        kvi_guards_look(client);
    return has_parts(guards_of(client), count) ? make_place(client) : NULL;
}

int kvi_guard_make(struct kvmem_client *client, const struct kvi_guard_builder *builder,
                   uint32_t *number)
{
    struct guard *guard;
    int code;

    *number = builder->broken;
    if (!builder->count || builder->broken)
        return 0;
    code = guards_init(client);
    if (code)
        return code;
    guard = make_room(client, builder->count);
    if (!guard)
        return kvi_error_set(KVMEM_E_LIMIT,
                             "%u look-ups wait for their producers; wait for their fences first",
                             guards_of(client)->used);
    guard->number = guards_of(client)->last;
    guard->first = NO_PART;
    guard->is_broken = false;
    guards_of(client)->used++;
    for (uint32_t i = 0; i < builder->count; i++)
        part_add(client, guard, &builder->points[i]);
    *number = guard->number;
    if (look(client, guard) == KVI_LANE_REACHED)
        *number = KVI_GUARD_NONE;
    return 0;
}

void kvi_guards_fini(struct kvmem_client *client)
{
    kvi_release(&client->alloc, client->fences.guards, sizeof(*client->fences.guards));
    client->fences.guards = NULL;
}
