/* SPDX-License-Identifier: Apache-2.0
 *
 * Look-ups whose producers are not done, against a scripted daemon: joint fences, guards of blocks
 * and sequences, producers that die, and the bounds of what a client follows.
 */
#include <criterion/criterion.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/guard.h"
#include "client/space.h"
#include "support/scripted.h"

#define DEVICE_BYTES (64u * 4096u)
#define FIRST_HIT    40u /* slot 10 */
#define FENCES       300u

/* What the next look-ups get. */
static struct {
    uint32_t hits;
    uint32_t hits_after; /* and those after it, when a producer was gone */
    uint32_t first;
    uint32_t fence_count;
    struct kvi_rec_fence fences[FENCES];
    uint32_t lookups;
    int timeline_fd_bytes; /* >= 0: of the page that is sent; -1: the script's */
    uint32_t timeline_off; /* added to the timeline that is sent */
} plan;

struct scene {
    struct kvt_script *script;
    struct kvmem_client *client;
    struct kvmem_space *space;
    uint32_t fds;
};

static void answer_lookup(struct kvt_script *script, const struct kvi_msg_lookup *request)
{
    static _Alignas(8) char bytes[KVI_MESSAGE_BYTES];
    struct kvi_msg_lookup_reply *reply = (void *)bytes;
    uint32_t hits = plan.lookups++ ? plan.hits_after : plan.hits;
    struct kvi_rec_hit *rows;

    kvi_wire_begin(reply, KVI_OP_LOOKUP_REPLY, request->header.serial);
    reply->space = request->space;
    reply->hit_count = hits < request->name_count ? hits : request->name_count;
    reply->record_count = reply->hit_count;
    reply->fence_count = reply->hit_count ? plan.fence_count : 0;
    rows = kvi_wire_tail(reply, 0);
    for (uint32_t i = 0; i < reply->hit_count; i++)
        rows[i] = (struct kvi_rec_hit){plan.first + i, 9};
    memcpy(kvi_wire_tail(reply, 1), plan.fences, reply->fence_count * sizeof(*plan.fences));
    kvt_script_push(script, reply, NULL, 0);
}

static void answer_map(struct kvt_script *script, const struct kvi_msg_segment_map *request)
{
    _Alignas(8) char bytes[256];
    struct kvi_msg_segment_fds *reply = (void *)bytes;
    int fds[KVI_MESSAGE_FDS];

    kvi_wire_begin(reply, KVI_OP_SEGMENT_FDS, request->header.serial);
    reply->space = request->space;
    reply->segment_count = request->segment_count;
    memcpy(kvi_wire_tail(reply, 0), kvi_wire_tail_const(request, 0),
           request->segment_count * sizeof(struct kvi_rec_segment_ref));
    for (uint32_t i = 0; i < request->segment_count; i++)
        fds[i] = kvt_script_segment_fd(script, 4096);
    kvt_script_push(script, reply, fds, request->segment_count);
}

static void answer_timeline(struct kvt_script *script, const struct kvi_msg_timeline_map *request)
{
    struct kvi_msg_timeline_fd reply;
    int fd = memfd_create("wrong", MFD_CLOEXEC);

    cr_assert(fd >= 0 && !ftruncate(fd, plan.timeline_fd_bytes));
    kvi_wire_begin(&reply, KVI_OP_TIMELINE_FD, request->header.serial);
    reply.timeline = (request->timeline & ~63u) + plan.timeline_off;
    kvt_script_push(script, &reply, &fd, 1);
}

static bool answer(struct kvt_script *script, const void *message)
{
    const struct kvi_header *header = message;

    switch (header->opcode) {
    case KVI_OP_LOOKUP: answer_lookup(script, message); return true;
    case KVI_OP_SEGMENT_MAP: answer_map(script, message); return true;
    case KVI_OP_TIMELINE_MAP:
        if (plan.timeline_fd_bytes >= 0)
            answer_timeline(script, message);
        return plan.timeline_fd_bytes >= 0;
    default: return false;
    }
}

static void begin(struct scene *s)
{
    struct kvmem_space_options options = kvt_small_space("guards");

    memset(s, 0, sizeof(*s));
    memset(&plan, 0, sizeof(plan));
    plan.timeline_fd_bytes = -1;
    plan.first = FIRST_HIT;
    s->fds = kvt_open_fds();
    s->script = kvt_script_create(DEVICE_BYTES, 4096);
    s->script->answer = answer;
    s->client = kvt_script_client(s->script);
    cr_assert(kvmem_space_open(s->client, &options, &s->space) == 0);
}

static void end(struct scene *s)
{
    cr_assert(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(s->client);
    cr_assert(s->script->is_closed);
    kvt_script_destroy(s->script);
    cr_assert(kvt_open_fds() == s->fds, "%u descriptors, before %u", kvt_open_fds(), s->fds);
}

static void plan_hits(uint32_t hits, uint32_t first)
{
    plan.hits = plan.hits_after = hits;
    plan.first = first;
    plan.fence_count = 0;
    plan.lookups = 0;
}

static void plan_fence(uint32_t timeline, uint64_t value)
{
    plan.fences[plan.fence_count++] =
        (struct kvi_rec_fence){.kind = KVMEM_FENCE_TIMELINE, .timeline = timeline, .value = value};
}

static int lookup(struct scene *s, uint32_t count, int32_t *blocks, struct kvmem_fence *ready)
{
    static const struct kvmem_name names[1024] = {{{1}}};
    int hits = kvmem_prefix_lookup(s->space, count, names, blocks, ready);

    while (kvt_script_next(s->script))
        continue;
    if (!s->client->is_lost)
        cr_assert(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
    return hits;
}

static void give_back(struct scene *s, uint32_t count, const int32_t *blocks)
{
    cr_assert(kvmem_prefix_release(s->space, count, blocks, kvmem_fence_none()) == 0);
    cr_assert(kvmem_client_dispatch(s->client, 0) >= 0);
    while (kvt_script_next(s->script))
        continue;
}

static int publish(struct scene *s, struct kvmem_seq seq)
{
    static const struct kvmem_name name = {{7}};

    return kvmem_seq_publish(s->space, seq, 0, 1, &name, kvmem_fence_none());
}

static struct kvmem_seq attach(struct scene *s, uint32_t count, const int32_t *blocks)
{
    struct kvmem_seq seq;

    cr_assert(kvmem_seq_create(s->space, &seq) == 0);
    cr_assert(kvmem_seq_attach(s->space, seq, count, blocks) == 0, "%s",
              kvmem_error_detail()->text);
    return seq;
}

/* ---- fences ---- */

Test(guard, one_producer_gives_its_fence)
{
    struct kvi_lane *lanes;
    struct kvmem_fence ready;
    int32_t blocks[2];
    struct scene s;

    begin(&s);
    lanes = kvt_script_timeline(s.script, 64 * 20);
    plan_hits(2, FIRST_HIT);
    plan_fence(64 * 20 + 5, 17);
    cr_assert(lookup(&s, 2, blocks, &ready) == 2, "%s", kvmem_error_detail()->text);
    cr_assert(ready.kind == KVMEM_FENCE_TIMELINE && ready.timeline == 64 * 20 + 5 &&
              ready.value == 17);
    kvi_lane_reach(&lanes[5], 16);
    cr_assert(kvmem_fence_poll(s.client, &ready) == 0);
    cr_assert(kvmem_fence_wait(s.client, &ready, 1000000) == KVMEM_E_TIMED_OUT);
    kvi_lane_reach(&lanes[5], 18);
    cr_assert(kvmem_fence_poll(s.client, &ready) == 1 &&
              kvmem_fence_wait(s.client, &ready, 0) == 0);
    cr_assert(kvmem_fence_fulfil(s.client, &ready) == KVMEM_E_INVALID, "another's");
    cr_assert(lookup(&s, 2, blocks, &ready) == 2);
    cr_assert(ready.kind == KVMEM_FENCE_NONE, "reached meanwhile");
    cr_assert(s.script->timelines_sent == 1, "the page was asked for again");
    give_back(&s, 2, blocks);
    give_back(&s, 2, blocks);
    end(&s);
}

Test(guard, several_producers_give_a_joint_fence)
{
    struct kvi_lane *a, *b;
    struct kvmem_fence ready, wrong;
    int32_t blocks[2];
    struct scene s;

    begin(&s);
    a = kvt_script_timeline(s.script, 64 * 20);
    b = kvt_script_timeline(s.script, 64 * 21);
    plan_hits(2, FIRST_HIT);
    plan_fence(64 * 20 + 5, 17);
    plan_fence(64 * 20 + 6, 1);
    plan_fence(64 * 21, 3);
    cr_assert(lookup(&s, 2, blocks, &ready) == 2);
    cr_assert(ready.kind == KVMEM_FENCE_TIMELINE && ready.timeline == KVI_TIMELINE_JOINT);
    cr_assert(kvmem_fence_poll(s.client, &ready) == 0);
    cr_assert(kvmem_fence_order(s.space, NULL, &ready) == KVMEM_E_NOT_SUPPORTED);
    kvi_lane_reach(&b[0], 3);
    kvi_lane_reach(&a[6], 1);
    cr_assert(kvmem_fence_poll(s.client, &ready) == 0);
    kvi_lane_reach(&a[5], 17);
    cr_assert(kvmem_fence_poll(s.client, &ready) == 1);
    cr_assert(kvmem_fence_order(s.space, NULL, &ready) == 0);
    cr_assert(kvmem_fence_poll(s.client, &ready) == 1, "asked again");
    wrong = ready;
    wrong.value++;
    cr_assert(kvmem_fence_poll(s.client, &wrong) == KVMEM_E_INVALID);
    give_back(&s, 2, blocks);
    end(&s);
}

/* References may be given up with the fence of a look-up that was never waited for. */
Test(guard, a_fence_of_others_cools)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};
    struct kvmem_fence ready;
    struct kvi_lane *a, *b;
    int32_t blocks[2];
    struct scene s;

    begin(&s);
    a = kvt_script_timeline(s.script, 64 * 20);
    b = kvt_script_timeline(s.script, 64 * 21);
    plan_hits(2, FIRST_HIT);
    plan_fence(64 * 20, 17);
    plan_fence(64 * 21, 17);
    cr_assert(lookup(&s, 2, blocks, &ready) == 2);
    cr_assert(kvmem_prefix_release(s.space, 2, blocks, ready) == 0);
    cr_assert(kvmem_client_dispatch(s.client, 0) == 0);
    cr_assert(kvmem_space_stats(s.space, &stats) == 0 && stats.cooling_blocks == 2);
    cr_assert(kvmem_client_check(s.client) == 0, "%s", kvmem_error_detail()->text);
    kvi_lane_break(&a[0]);
    kvi_lane_reach(&b[0], 17);
    cr_assert(kvmem_client_dispatch(s.client, 0) == 0);
    cr_assert(kvmem_space_stats(s.space, &stats) == 0 && stats.cooling_blocks == 0);
    end(&s);
}

/* ---- sequences ---- */

Test(guard, nobody_publishes_before_the_producer)
{
    struct kvmem_seq seq, fork;
    struct kvi_lane *lanes;
    int32_t blocks[3];
    struct scene s;

    begin(&s);
    lanes = kvt_script_timeline(s.script, 64 * 20);
    plan_hits(3, FIRST_HIT);
    plan_fence(64 * 20 + 5, 17);
    cr_assert(lookup(&s, 3, blocks, NULL) == 3);
    seq = attach(&s, 3, blocks);
    cr_assert(kvmem_seq_fork(s.space, seq, &fork) == 0);
    cr_assert(publish(&s, seq) == KVMEM_E_BUSY && publish(&s, fork) == KVMEM_E_BUSY);
    kvi_lane_reach(&lanes[5], 17);
    cr_assert(publish(&s, seq) == 0 && publish(&s, fork) == 0);
    end(&s);
}

Test(guard, a_dead_producer_makes_them_stale)
{
    struct kvmem_seq seq, fork;
    struct kvi_lane *lanes;
    struct kvmem_fence ready;
    int32_t blocks[3];
    struct scene s;

    begin(&s);
    lanes = kvt_script_timeline(s.script, 64 * 20);
    kvi_lane_reach(&lanes[5], 16);
    plan_hits(3, FIRST_HIT);
    plan_fence(64 * 20 + 5, 17);
    cr_assert(lookup(&s, 3, blocks, &ready) == 3);
    seq = attach(&s, 3, blocks);
    cr_assert(kvmem_seq_fork(s.space, seq, &fork) == 0);
    for (uint32_t i = 0; i < KVI_LANE_COUNT; i++)
        kvi_lane_break(&lanes[i]);
    cr_assert(kvmem_fence_poll(s.client, &ready) == KVMEM_E_STALE);
    cr_assert(kvmem_fence_wait(s.client, &ready, -1) == KVMEM_E_STALE);
    cr_assert(kvmem_fence_order(s.space, NULL, &ready) == KVMEM_E_STALE);
    ready.value = 16;
    cr_assert(kvmem_fence_poll(s.client, &ready) == 1, "that was reached");
    cr_assert(publish(&s, seq) == KVMEM_E_STALE && publish(&s, fork) == KVMEM_E_STALE);
    cr_assert(publish(&s, seq) == KVMEM_E_STALE, "for good");
    cr_assert(kvmem_seq_truncate(s.space, seq, 0, kvmem_fence_none()) == 0);
    cr_assert(publish(&s, seq) == KVMEM_E_INVALID, "empty, not stale");
    end(&s);
}

/* Blocks of two look-ups in one sequence wait for both. */
Test(guard, guards_are_joined)
{
    struct kvi_lane *a, *b;
    struct kvmem_seq seq;
    int32_t blocks[4];
    struct scene s;

    begin(&s);
    a = kvt_script_timeline(s.script, 64 * 20);
    b = kvt_script_timeline(s.script, 64 * 21);
    plan_hits(2, FIRST_HIT);
    plan_fence(64 * 20, 17);
    cr_assert(lookup(&s, 2, blocks, NULL) == 2);
    plan_hits(2, FIRST_HIT + 8);
    plan_fence(64 * 21, 2);
    cr_assert(lookup(&s, 2, blocks + 2, NULL) == 2);
    seq = attach(&s, 4, blocks);
    kvi_lane_reach(&a[0], 17);
    cr_assert(publish(&s, seq) == KVMEM_E_BUSY);
    kvi_lane_reach(&b[0], 2);
    cr_assert(publish(&s, seq) == 0);

    plan_hits(2, FIRST_HIT);
    plan_fence(64 * 20, 18);
    cr_assert(lookup(&s, 2, blocks, NULL) == 2);
    plan_hits(2, FIRST_HIT + 8);
    plan_fence(64 * 21, 3);
    cr_assert(lookup(&s, 2, blocks + 2, NULL) == 2);
    kvi_lane_break(&b[0]);
    seq = attach(&s, 4, blocks);
    cr_assert(publish(&s, seq) == KVMEM_E_STALE, "one of them is broken");
    end(&s);
}

/* A later look-up of the same block tells that it is ready. */
Test(guard, the_latest_look_up_counts)
{
    struct kvmem_seq seq;
    struct kvi_lane *lanes;
    int32_t blocks[2];
    struct scene s;

    begin(&s);
    lanes = kvt_script_timeline(s.script, 64 * 20);
    plan_hits(1, FIRST_HIT);
    plan_fence(64 * 20, 17);
    cr_assert(lookup(&s, 1, blocks, NULL) == 1);
    plan_hits(1, FIRST_HIT);
    cr_assert(lookup(&s, 1, blocks, NULL) == 1);
    seq = attach(&s, 1, blocks);
    cr_assert(publish(&s, seq) == 0);
    kvi_lane_reach(&lanes[0], 17);
    end(&s);
}

/* ---- producers that are gone ---- */

Test(guard, a_producer_that_is_gone_is_a_miss)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};
    struct kvmem_fence ready;
    int32_t blocks[3];
    struct scene s;

    begin(&s);
    plan_hits(3, FIRST_HIT);
    plan.hits_after = 0;
    plan_fence(64 * 20, 17);
    cr_assert(lookup(&s, 3, blocks, &ready) == 0 && ready.kind == KVMEM_FENCE_NONE);
    cr_assert(plan.lookups == 2);
    plan_hits(3, FIRST_HIT); /* a directory that goes on naming it */
    plan_fence(64 * 20, 17);
    cr_assert(lookup(&s, 3, blocks, &ready) == 0);
    cr_assert(plan.lookups == 4);
    cr_assert(kvmem_client_dispatch(s.client, 0) == 0);
    cr_assert(kvmem_space_stats(s.space, &stats) == 0 && stats.leased_blocks == 0);
    end(&s);
}

Test(guard, a_broken_fence_is_a_miss)
{
    struct kvi_lane *lanes;
    int32_t blocks[3];
    struct scene s;

    begin(&s);
    lanes = kvt_script_timeline(s.script, 64 * 20);
    kvi_lane_break(&lanes[0]);
    plan_hits(3, FIRST_HIT);
    plan.hits_after = 1;
    plan_fence(64 * 20, 17);
    plan_fence(64 * 20 + 1, 1);
    cr_assert(lookup(&s, 3, blocks, NULL) == 0);
    end(&s);
}

/* ---- wrong answers ---- */

static void expect_protocol(void (*spoil)(void))
{
    int32_t blocks[1];
    struct scene s;

    begin(&s);
    kvt_script_timeline(s.script, 64 * 20);
    plan_hits(1, FIRST_HIT);
    plan_fence(64 * 20, 17);
    spoil();
    cr_assert(lookup(&s, 1, blocks, NULL) == KVMEM_E_PROTOCOL, "%s", kvmem_error_detail()->text);
    end(&s);
}

static void spoil_kind(void)
{
    plan.fences[0].kind = KVMEM_FENCE_HOST;
}

static void spoil_zero(void)
{
    plan.fences[0].value = 0;
}

static void spoil_value(void)
{
    plan.fences[0].value = KVI_FENCE_LIMIT;
}

static void spoil_page(void)
{
    plan.timeline_fd_bytes = 100;
}

static void spoil_timeline(void)
{
    plan.timeline_fd_bytes = 65536;
    plan.timeline_off = 64;
}

Test(guard, wrong_answers)
{
    expect_protocol(spoil_kind);
    expect_protocol(spoil_zero);
    expect_protocol(spoil_value);
    expect_protocol(spoil_page);
    expect_protocol(spoil_timeline);
}

/* ---- bounds ---- */

/* More producers than pages: those that are gone make room, in the order of their coming. */
Test(guard, pages_of_dead_producers_make_room)
{
    struct kvi_lane *lanes[KVI_PRODUCER_LIMIT + 2];
    struct kvmem_fence ready[2];
    int32_t block;
    struct scene s;

    begin(&s);
    for (uint32_t i = 0; i < KVI_PRODUCER_LIMIT + 2; i++)
        lanes[i] = kvt_script_timeline(s.script, 64 * (100 + i));
    for (uint32_t i = 0; i < KVI_PRODUCER_LIMIT; i++) {
        plan_hits(1, FIRST_HIT);
        plan_fence(64 * (100 + i), 1);
        cr_assert(lookup(&s, 1, &block, &ready[i == 7]) == 1, "%u: %s", i,
                  kvmem_error_detail()->text);
        give_back(&s, 1, &block);
    }
    plan_hits(1, FIRST_HIT);
    plan_fence(64 * (100 + KVI_PRODUCER_LIMIT), 1);
    cr_assert(lookup(&s, 1, &block, NULL) == KVMEM_E_LIMIT);
    kvi_lane_break(&lanes[7][0]);
    kvi_lane_break(&lanes[9][0]);
    cr_assert(kvmem_fence_poll(s.client, &ready[1]) == KVMEM_E_STALE);
    cr_assert(lookup(&s, 1, &block, NULL) == 1, "%s", kvmem_error_detail()->text);
    give_back(&s, 1, &block);
    cr_assert(kvmem_fence_poll(s.client, &ready[1]) == KVMEM_E_INVALID, "forgotten");
    plan_hits(1, FIRST_HIT);
    plan_fence(64 * (101 + KVI_PRODUCER_LIMIT), 1);
    cr_assert(lookup(&s, 1, &block, NULL) == 1);
    give_back(&s, 1, &block);
    end(&s);
}

/* All guards pending: LIMIT. Reached ones make room, then broken ones, whose numbers stay broken.
 */
Test(guard, guards_have_a_bound)
{
    struct kvmem_seq broken, other;
    struct kvi_lane *a, *b;
    int32_t block;
    struct scene s;

    begin(&s);
    a = kvt_script_timeline(s.script, 64 * 20);
    b = kvt_script_timeline(s.script, 64 * 21);
    plan_hits(1, FIRST_HIT);
    plan_fence(64 * 21, 1);
    cr_assert(lookup(&s, 1, &block, NULL) == 1);
    broken = attach(&s, 1, &block);
    for (uint32_t i = 1; i < KVI_GUARD_LIMIT; i++) {
        plan_hits(1, FIRST_HIT);
        plan_fence(64 * 20, i);
        cr_assert(lookup(&s, 1, &block, NULL) == 1);
        give_back(&s, 1, &block);
    }
    cr_assert(lookup(&s, 1, &block, NULL) == KVMEM_E_LIMIT);
    kvi_lane_break(&b[0]);
    cr_assert(lookup(&s, 1, &block, NULL) == 1, "the broken one made room");
    cr_assert(publish(&s, broken) == KVMEM_E_STALE, "and is broken still");
    give_back(&s, 1, &block);
    cr_assert(lookup(&s, 1, &block, NULL) == KVMEM_E_LIMIT);
    kvi_lane_reach(&a[0], 10);
    for (uint32_t i = 0; i < 10; i++) {
        cr_assert(lookup(&s, 1, &block, NULL) == 1);
        give_back(&s, 1, &block);
    }
    cr_assert(lookup(&s, 1, &block, NULL) == KVMEM_E_LIMIT);
    kvi_lane_reach(&a[0], KVI_GUARD_LIMIT);
    plan_hits(1, FIRST_HIT);
    plan_fence(64 * 20, KVI_GUARD_LIMIT + 1);
    cr_assert(lookup(&s, 1, &block, NULL) == 1);
    other = attach(&s, 1, &block);
    cr_assert(publish(&s, other) == KVMEM_E_BUSY);
    kvi_lane_reach(&a[0], KVI_GUARD_LIMIT + 1);
    cr_assert(publish(&s, other) == 0);
    end(&s);
}

/* A sequence that would wait for more lanes than a guard holds. */
Test(guard, lanes_of_a_guard_have_a_bound)
{
    struct kvmem_seq seq;
    int32_t blocks[5];
    struct scene s;

    begin(&s);
    for (uint32_t p = 0; p < 5; p++)
        kvt_script_timeline(s.script, 64 * (20 + p));
    plan_hits(4, FIRST_HIT);
    for (uint32_t i = 0; i < 256; i++)
        plan_fence(64 * 20 + i, 1);
    cr_assert(lookup(&s, 4, blocks, NULL) == 4, "%s", kvmem_error_detail()->text);
    plan_hits(1, FIRST_HIT + 8);
    plan_fence(64 * 24, 1);
    cr_assert(lookup(&s, 1, blocks + 4, NULL) == 1);
    cr_assert(kvmem_seq_create(s.space, &seq) == 0);
    cr_assert(kvmem_seq_attach(s.space, seq, 5, blocks) == KVMEM_E_LIMIT);
    cr_assert(kvmem_client_check(s.client) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_seq_attach(s.space, seq, 4, blocks) == 0);
    give_back(&s, 1, blocks + 4);
    end(&s);
}
