/* SPDX-License-Identifier: Apache-2.0
 *
 * A client with a helper thread: what it says and what may be used while the helper is at work on
 * a segment, against a scripted daemon. The helper is held at a gate: what the client asks for
 * comes after that.
 */
#include <criterion/criterion.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>

#include "client/importer.h"
#include "client/refill.h"
#include "client/space.h"
#include "support/gate.h"
#include "support/scripted.h"

#define DEVICE_BYTES (64u * 4096u)

struct scene {
    struct kvt_script *script;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    struct kvt_gate gate;
    uint32_t fds;
};

static void begin(struct scene *s)
{
    struct kvi_client_options client = {
        .timeout_ns = 20000000, .outbox_records = 1024, .has_helper = true};
    struct kvmem_space_options options = kvt_small_space("helped");

    memset(s, 0, sizeof(*s));
    s->fds = kvt_open_fds();
    s->script = kvt_script_create(DEVICE_BYTES, 4096);
    cr_assert_eq(kvi_client_create(&s->script->base, &kvi_alloc_libc, &client, &s->client), 0);
    cr_assert_eq(kvmem_space_open(s->client, &options, &s->space), 0);
    s->geometry.size = sizeof(s->geometry);
    cr_assert_eq(kvmem_space_geometry(s->space, 0, &s->geometry), 0);
}

static void end(struct scene *s)
{
    cr_assert_eq(kvmem_client_check(s->client), 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(s->client);
    kvt_script_destroy(s->script);
    cr_assert_eq(kvt_open_fds(), s->fds);
}

static void dispatch(struct scene *s, int expected)
{
    int code = kvmem_client_dispatch(s->client, 0);

    cr_assert_eq(code, expected, "dispatch: %d (%s)", code, kvmem_error_detail()->text);
    cr_assert_eq(kvmem_client_check(s->client), 0, "%s", kvmem_error_detail()->text);
}

/* The helper does nothing more until let_go(). A job of its own. */
static void hold(struct scene *s)
{
    kvt_gate_init(&s->gate);
    kvt_gate_submit(&s->gate, s->client->mapper);
}

static void let_go(struct scene *s)
{
    kvt_gate_open(&s->gate);
}

/* Until the helper has nothing left to do; its work is not taken in yet. */
static void wait_for_helper(struct scene *s, uint64_t jobs)
{
    struct kvmem_client_stats stats = {.size = sizeof(stats)};

    do {
        poll(NULL, 0, 1);
        cr_assert_eq(kvmem_client_stats(s->client, &stats), 0);
    } while (stats.helper_jobs < jobs);
}

static uint64_t inline_calls(struct scene *s)
{
    struct kvmem_client_stats stats = {.size = sizeof(stats)};

    cr_assert_eq(kvmem_client_stats(s->client, &stats), 0);
    return stats.driver_calls_inline;
}

static struct kvmem_capacity capacity(struct scene *s)
{
    struct kvmem_capacity out = {.size = sizeof(out)};

    cr_assert_eq(kvmem_space_capacity(s->space, &out), 0);
    return out;
}

static uint32_t requested(struct scene *s)
{
    const struct kvi_header *request = kvt_script_find(s->script, KVI_OP_BLOCKS_REQUEST);

    cr_assert_neq(request, NULL);
    return request->serial;
}

/* Segments 0 and 1 are ours and mapped: 8 free blocks. */
static void get_blocks(struct scene *s)
{
    dispatch(s, 0);
    kvt_script_grant(s->script, &s->geometry, requested(s), 0, 2, KVI_GRANT_LAST);
    dispatch(s, 1);
    kvi_mapper_drain(s->client->mapper);
    cr_assert_eq(capacity(s).free_blocks, 8);
}

Test(helper, granted_blocks_are_free_when_they_are_mapped, .timeout = 20)
{
    struct pollfd event = {.events = POLLIN};
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    event.fd = kvi_mapper_fd(s.client->mapper);
    hold(&s);
    dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 1, KVI_GRANT_LAST);
    dispatch(&s, 1);
    cr_assert_eq(capacity(&s).free_blocks, 0);
    cr_assert_eq(capacity(&s).is_refill_pending, 1);
    cr_assert_eq(s.space->pool.arriving_blocks, 4);
    cr_assert_eq(kvmem_seq_create(s.space, &seq), 0);
    cr_assert_eq(kvmem_seq_append(s.space, seq, 4, kvmem_fence_none()), KVMEM_E_REFILL_PENDING);
    cr_assert_eq(poll(&event, 1, 0), 0);
    let_go(&s);
    wait_for_helper(&s, 2);
    cr_assert_eq(poll(&event, 1, 10000), 1);
    dispatch(&s, 0);
    cr_assert_eq(capacity(&s).free_blocks, 4);
    cr_assert_eq(capacity(&s).is_refill_pending, 0);
    cr_assert_eq(kvmem_seq_append(s.space, seq, 4, kvmem_fence_none()), 0);
    cr_assert_eq(inline_calls(&s), 0);
    end(&s);
}

/* With a time limit the caller makes the driver calls itself, and the helper is not woken. */
Test(helper, who_waits_for_blocks_maps_them, .timeout = 20)
{
    struct kvmem_client_stats stats = {.size = sizeof(stats)};
    struct scene s;

    begin(&s);
    dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 2, KVI_GRANT_LAST);
    cr_assert_eq(kvmem_space_reserve(s.space, 8, INT64_C(1000000000)), 0);
    cr_assert_eq(capacity(&s).free_blocks, 8);
    cr_assert_eq(kvmem_client_stats(s.client, &stats), 0);
    cr_assert(stats.driver_calls_inline == 2 && stats.helper_jobs == 0);
    cr_assert_eq(kvmem_space_trim(s.space), 2);
    dispatch(&s, 0);
    hold(&s);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 1, KVI_GRANT_LAST);
    cr_assert_eq(kvmem_space_reserve(s.space, 4, 0), KVMEM_E_REFILL_PENDING, "nobody waits");
    let_go(&s);
    kvi_mapper_drain(s.client->mapper);
    cr_assert_eq(capacity(&s).free_blocks, 4);
    cr_assert_eq(inline_calls(&s), 2);
    end(&s);
}

/* Its own request for more counts what arrives. */
Test(helper, arriving_blocks_are_not_asked_for_again, .timeout = 20)
{
    struct scene s;

    begin(&s);
    hold(&s);
    dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 2, KVI_GRANT_LAST);
    dispatch(&s, 1);
    dispatch(&s, 0);
    cr_assert_null(kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST));
    cr_assert_eq(kvmem_space_reserve(s.space, 8, 1000000), KVMEM_E_REFILL_PENDING);
    let_go(&s);
    wait_for_helper(&s, 3);
    cr_assert_eq(kvmem_space_reserve(s.space, 8, 1000000000), 0);
    cr_assert_null(kvt_script_find(s.script, KVI_OP_BLOCKS_REQUEST));
    end(&s);
}

/* What a reservation drops of what cools depends on the blocks that the caller could see, not on
 * how far the helper has got. */
Test(helper, a_reservation_that_lacks_drops_what_has_cooled, .timeout = 20)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};
    struct kvmem_fence promise;
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    get_blocks(&s);
    cr_assert_eq(kvmem_seq_create(s.space, &seq), 0);
    cr_assert_eq(kvmem_seq_append(s.space, seq, 16, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_fence_promise(s.client, &promise), 0);
    cr_assert_eq(kvmem_seq_free(s.space, seq, promise), 0);
    hold(&s);
    cr_assert_eq(kvmem_space_reserve(s.space, 12, 0), KVMEM_E_REFILL_PENDING);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 2, 2, KVI_GRANT_LAST);
    dispatch(&s, 1);
    cr_assert_eq(s.space->pool.arriving_blocks, 8);
    cr_assert_eq(kvmem_fence_fulfil(s.client, &promise), 0);
    let_go(&s);
    wait_for_helper(&s, 5); /* what it has mapped would be enough */
    cr_assert_eq(capacity(&s).free_blocks, 4);
    cr_assert_eq(kvmem_space_reserve(s.space, 12, 0), 0);
    cr_assert_eq(kvmem_space_stats(s.space, &stats), 0);
    cr_assert_eq(stats.cooling_blocks, 0);
    cr_assert_eq(capacity(&s).free_blocks, 16);
    end(&s);
}

Test(helper, a_segment_is_handed_in_when_its_alias_is_gone, .timeout = 20)
{
    uint32_t slots = 0;
    struct scene s;

    begin(&s);
    get_blocks(&s);
    hold(&s);
    cr_assert_eq(kvi_refill_hand_in(s.space, true), 2);
    cr_assert_eq(capacity(&s).free_blocks, 0, "nothing is written there any more");
    cr_assert_eq(kvi_refill_hand_in(s.space, true), 0, "once");
    dispatch(&s, 0);
    cr_assert_null(kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN), "both have it still");
    let_go(&s);
    wait_for_helper(&s, 5);
    dispatch(&s, 0);
    for (int i = 0; i < 2; i++) {
        const struct kvi_msg_segment_hand_in *said =
            kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN);

        cr_assert(said);
        slots += 1u << said->slot;
    }
    cr_assert_eq(slots, 3);
    cr_assert_eq(inline_calls(&s), 0);
    end(&s);
}

static void push_pressure(struct scene *s, uint32_t segments)
{
    struct kvi_msg_pressure pressure;

    kvi_wire_begin(&pressure, KVI_OP_PRESSURE, 0);
    pressure.space = 7;
    pressure.segment_count = segments;
    pressure.deadline_ns = 50000000;
    kvt_script_push(s->script, &pressure, NULL, 0);
}

/* A directory that gets one of two segments asks for the other one again. */
Test(helper, pressure_counts_what_is_on_its_way, .timeout = 20)
{
    uint32_t said = 0;
    struct scene s;

    begin(&s);
    cr_assert_eq(kvmem_space_reserve(s.space, 16, 0), KVMEM_E_REFILL_PENDING);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 4, KVI_GRANT_LAST);
    dispatch(&s, 1);
    kvi_mapper_drain(s.client->mapper);
    cr_assert_eq(capacity(&s).free_blocks, 16);
    hold(&s);
    for (int i = 0; i < 2; i++) {
        push_pressure(&s, 2);
        dispatch(&s, 1);
        cr_assert_eq(capacity(&s).free_blocks, 8, "asked %d times", i + 1);
    }
    push_pressure(&s, 3); /* one more */
    dispatch(&s, 1);
    cr_assert_eq(capacity(&s).free_blocks, 4);
    cr_assert_null(kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN));
    let_go(&s);
    wait_for_helper(&s, 4 + 1 + 3);
    dispatch(&s, 0); /* the first one after the helper's work says all of it */
    while (kvt_script_find(s.script, KVI_OP_SEGMENT_HAND_IN))
        said++;
    cr_assert_eq(said, 3);
    cr_assert_eq(capacity(&s).free_blocks, 4);
    cr_assert_eq(inline_calls(&s), 0);
    end(&s);
}

static void push_gone(struct scene *s, uint32_t slot, uint32_t generation)
{
    struct kvi_msg_segment_gone gone;

    kvi_wire_begin(&gone, KVI_OP_SEGMENT_GONE, 0);
    gone.space = 7;
    gone.slot = slot;
    gone.generation = generation;
    kvt_script_push(s->script, &gone, NULL, 0);
}

/* Both segments handed in, so that they may go. */
static void give_blocks(struct scene *s)
{
    get_blocks(s);
    cr_assert_eq(kvmem_space_trim(s->space), 2);
    dispatch(s, 0);
    cr_assert_neq(kvt_script_find(s->script, KVI_OP_SEGMENT_HAND_IN), NULL);
}

Test(helper, a_segment_that_goes_is_said_to_be_unmapped_when_it_is, .timeout = 20)
{
    struct scene s;

    begin(&s);
    give_blocks(&s);
    hold(&s);
    push_gone(&s, 0, 1);
    push_gone(&s, 0, 1); /* twice: it is on its way */
    dispatch(&s, 2);
    cr_assert_eq(s.space->mapped_segments, 1);
    dispatch(&s, 0);
    cr_assert_null(kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED));
    let_go(&s);
    wait_for_helper(&s, 6);
    dispatch(&s, 0);
    const struct kvi_msg_segment_unmapped *said =
        kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED);
    cr_assert(said && said->slot == 0 && said->generation == 1);
    cr_assert_null(kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED));
    cr_assert_eq(inline_calls(&s), 0);
    end(&s);
}

static void *let_go_soon(void *scene)
{
    poll(NULL, 0, 30);
    let_go(scene);
    return NULL;
}

/* The answer to the next request: entries in these blocks, of segments of generation 1. */
static void push_hits(struct scene *s, uint32_t count, const uint32_t *blocks)
{
    _Alignas(8) char bytes[256];
    struct kvi_msg_lookup_reply *reply = (void *)bytes;

    kvi_wire_begin(reply, KVI_OP_LOOKUP_REPLY, s->client->last_serial + 1);
    reply->space = 7;
    reply->hit_count = reply->record_count = count;
    for (uint32_t i = 0; i < count; i++)
        ((struct kvi_rec_hit *)kvi_wire_tail(reply, 0))[i] = (struct kvi_rec_hit){blocks[i], 1};
    kvt_script_push(s->script, reply, NULL, 0);
}

/* And that to the one after it: no segment can be had. */
static void push_no_fds(struct scene *s)
{
    struct kvi_msg_segment_fds reply;

    kvi_wire_begin(&reply, KVI_OP_SEGMENT_FDS, s->client->last_serial + 2);
    reply.space = 7;
    kvt_script_push(s->script, &reply, NULL, 0);
}

/* A hit in a segment that the helper is just mapping: the look-up waits for that. */
Test(helper, a_lookup_waits_for_the_job_of_its_segment, .timeout = 20)
{
    struct kvmem_name name = {{1}};
    pthread_t thread;
    struct scene s;
    int32_t block;

    begin(&s);
    hold(&s);
    dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 2, 1, KVI_GRANT_LAST);
    dispatch(&s, 1);
    /* Of its four granted blocks one is found as an entry: not a grant that a daemon makes, but
     * the mapping is what counts. */
    s.space->pool.state[8] = KVI_BLOCK_NONE;
    s.space->pool.segments[2].arriving_count--;
    s.space->pool.arriving_blocks--;
    push_hits(&s, 1, (uint32_t[]){8});
    cr_assert_eq(pthread_create(&thread, NULL, let_go_soon, &s), 0);
    cr_assert_eq(kvmem_prefix_lookup(s.space, 1, &name, &block, NULL), 1, "%s",
                 kvmem_error_detail()->text);
    cr_assert_eq(s.space->pool.segments[2].access, KVI_ACCESS_RW);
    cr_assert_eq(capacity(&s).free_blocks, 3);
    pthread_join(thread, NULL);
    cr_assert_eq(kvmem_prefix_release(s.space, 1, &block, kvmem_fence_none()), 0);
    end(&s);
}

/* What is mapped stays readable while its segment loses the alias: another hit's segment alone is
 * asked for. */
Test(helper, a_lookup_does_not_wait_for_an_alias, .timeout = 20)
{
    struct kvmem_name names[2] = {{{1}}, {{2}}};
    const int32_t *table;
    struct kvmem_seq seq;
    struct scene s;
    int32_t blocks[2];

    begin(&s);
    get_blocks(&s);
    cr_assert_eq(kvmem_seq_create(s.space, &seq), 0);
    cr_assert_eq(kvmem_seq_append(s.space, seq, 4, kvmem_fence_none()), 0);
    cr_assert_eq(kvmem_seq_commit(s.space, seq, 4), 0);
    cr_assert_eq(kvmem_seq_publish(s.space, seq, 0, 1, names, kvmem_fence_none()), 0);
    for (int i = 0; i < 2; i++)
        cr_assert_geq(kvmem_client_dispatch(s.client, 0), 0);
    cr_assert_eq(kvmem_table_view(s.space, 0, seq, &table), 1);
    hold(&s);
    cr_assert_eq(kvi_refill_hand_in(s.space, true), 2);
    push_hits(&s, 2, (uint32_t[]){(uint32_t)table[0], 20});
    push_no_fds(&s);
    cr_assert_eq(kvmem_prefix_lookup(s.space, 2, names, blocks, NULL), 1, "%s",
                 kvmem_error_detail()->text);
    cr_assert_eq(s.space->pool.segments[table[0] / 4].job, 1);
    let_go(&s);
    kvi_mapper_drain(s.client->mapper);
    cr_assert_eq(kvmem_prefix_release(s.space, 1, blocks, kvmem_fence_none()), 0);
    end(&s);
}

/* The slot of a segment that is being unmapped is granted again. */
Test(helper, a_grant_waits_for_the_unmap_before_it, .timeout = 20)
{
    pthread_t thread;
    struct scene s;

    begin(&s);
    give_blocks(&s);
    push_gone(&s, 0, 1);
    hold(&s);
    dispatch(&s, 1);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 1, KVI_GRANT_LAST);
    cr_assert_eq(pthread_create(&thread, NULL, let_go_soon, &s), 0);
    dispatch(&s, 1);
    kvi_mapper_drain(s.client->mapper);
    pthread_join(thread, NULL);
    cr_assert_eq(capacity(&s).free_blocks, 4);
    dispatch(&s, 0);
    cr_assert_neq(kvt_script_find(s.script, KVI_OP_SEGMENT_UNMAPPED), NULL);
    cr_assert_eq(inline_calls(&s), 0);
    end(&s);
}

Test(helper, close_waits_for_what_is_under_way, .timeout = 20)
{
    pthread_t thread;
    struct scene s;

    begin(&s);
    hold(&s);
    dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 2, KVI_GRANT_LAST);
    dispatch(&s, 1);
    cr_assert_eq(pthread_create(&thread, NULL, let_go_soon, &s), 0);
    end(&s);
    pthread_join(thread, NULL);
}

/* What was granted before the daemon went stays ours, and comes. */
Test(helper, blocks_arrive_after_the_daemon_is_lost, .timeout = 20)
{
    struct scene s;

    begin(&s);
    hold(&s);
    dispatch(&s, 0);
    kvt_script_grant(s.script, &s.geometry, requested(&s), 0, 1, KVI_GRANT_LAST);
    dispatch(&s, 1);
    s.script->receive_code = KVMEM_E_DAEMON_LOST;
    cr_assert_eq(kvmem_client_dispatch(s.client, 0), KVMEM_E_DAEMON_LOST);
    let_go(&s);
    wait_for_helper(&s, 2);
    cr_assert_eq(kvmem_client_dispatch(s.client, 0), KVMEM_E_DAEMON_LOST);
    cr_assert_eq(capacity(&s).free_blocks, 4);
    end(&s);
}

/* The client's own descriptor, over an embedded directory. */
Test(helper, the_clients_descriptor_tells_of_the_helper, .timeout = 20)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed),
                                        .device_bytes = DEVICE_BYTES,
                                        .granule_bytes = 4096,
                                        .flags = KVMEM_CLIENT_HELPER};
    struct kvmem_space_options options = kvt_small_space("polled");
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    struct pollfd event = {.events = POLLIN};
    struct kvmem_client *client;
    struct kvmem_space *space;

    cr_assert_eq(kvmem_client_embed(&embed, &client), 0);
    cr_assert_eq(kvmem_space_open(client, &options, &space), 0);
    event.fd = kvmem_client_fd(client);
    cr_assert_geq(event.fd, 0);
    cr_assert_eq(kvmem_client_fd(client), event.fd);
    cr_assert_geq(kvmem_client_dispatch(client, 0), 0);
    while (kvmem_space_capacity(space, &capacity) == 0 && !capacity.free_blocks) {
        cr_assert_eq(poll(&event, 1, 10000), 1);
        cr_assert_geq(kvmem_client_dispatch(client, 0), 0);
    }
    /* And no more when there is nothing; the helper may get no processor for a while just before or
     * after it has written the descriptor. */
    kvi_mapper_drain(client->mapper);
    while (poll(&event, 1, 100) == 1)
        cr_assert_geq(kvmem_client_dispatch(client, 0), 0);
    for (int i = 0; i < 3; i++)
        cr_assert_geq(kvmem_client_dispatch(client, 0), 0);
    cr_assert_eq(poll(&event, 1, 0), 0);
    kvmem_client_close(client);
}
