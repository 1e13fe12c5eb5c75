/* SPDX-License-Identifier: Apache-2.0
 *
 * The n-th allocation fails, for every n, in creation and in each message: the answer is
 * NO_MEMORY, the state is what it was (the digest says so, and the check), nothing leaks, and
 * the same message passes when there is memory again. Messages of the hot path do not allocate.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "support/dirworld.h"

static struct kvt_world *world;
static uint32_t first, second, space;
static struct kvt_granted got;

static void set_up(void)
{
    struct kvi_dir_options options = kvt_dir_options(24, 4);

    world = kvt_world_of_two(&options, &first, &second);
    space = kvt_space(world, first, "a", KVT_SMALL, 0);
    got = kvt_get(world, first, space, 8);
    kvt_publish_all(world, first, space, 1, 6, got.blocks);
    kvt_forget(world);
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(alloc, .init = set_up, .fini = tear_down, .timeout = 20);

/* Let the n-th allocation of `act` fail for n = 1, 2, ...; `client` hears of each. Returns how
 * many there were; the last call of `act` went through. */
static uint32_t fail_each(void (*act)(void), uint32_t client)
{
    uint32_t count = 0;

    for (;;) {
        uint64_t digest = kvi_dir_digest(world->dir);
        uint64_t allocations = world->live_allocations;

        kvt_forget(world);
        world->failed = 0;
        world->fail_at = count + 1;
        act();
        world->fail_at = 0;
        kvt_world_check(world);
        if (world->failed == 0)
            return count;
        count++;
        cr_assert_eq(kvt_take_error(world, client, NULL), KVMEM_E_NO_MEMORY, "n = %u", count);
        cr_assert(kvt_is_quiet(world));
        cr_assert_eq(kvi_dir_digest(world->dir), digest, "n = %u", count);
        cr_assert_eq(world->live_allocations, allocations, "n = %u", count);
    }
}

/* ---- what allocates ---- */

Test(alloc, creation)
{
    struct kvi_dir_options options = kvt_dir_options(24, 4);
    struct kvi_dir_env env = kvt_dir_env(world);
    uint64_t allocations = world->live_allocations;
    struct kvi_dir *dir;
    int code, count = 0;

    do {
        world->fail_at = ++count;
        code = kvi_dir_create(&options, &env, &dir);
        cr_assert(code == 0 || code == KVMEM_E_NO_MEMORY);
        cr_assert(code == 0 || world->live_allocations == allocations);
    } while (code != 0);
    world->fail_at = 0;
    kvi_dir_destroy(dir);
    cr_assert_geq(count, 6);
}

static void open_new(void)
{
    kvt_open(world, first, "new", KVT_LARGE, 0);
}

static void open_existing(void)
{
    kvt_open(world, second, "a", KVT_SMALL, 0);
}

Test(alloc, space_open)
{
    cr_assert_geq(fail_each(open_new, first), 3);
    cr_assert(kvt_take_as(world, first, KVI_OP_SPACE_OPENED));
    cr_assert_eq(fail_each(open_existing, second), 2);
    cr_assert(kvt_take_as(world, second, KVI_OP_SPACE_OPENED));
}

static void open_smaller_stride(void)
{
    struct kvi_msg_space_open *open;
    static _Alignas(8) uint8_t buffer[1024];
    const struct kvi_rec_group group = {.layer_count = 1,
                                        .kv_head_count = 1,
                                        .head_dim_k = 8,
                                        .head_dim_v = 8,
                                        .dtype_k = KVMEM_DTYPE_BF16,
                                        .dtype_v = KVMEM_DTYPE_BF16};

    memset(buffer, 0, sizeof(buffer));
    open = (void *)buffer;
    kvi_wire_begin(open, KVI_OP_SPACE_OPEN, 3);
    memcpy(open->name, "fine", 4);
    memcpy(open->domain, "default", 7);
    open->layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    open->block_tokens = KVT_BLOCK_TOKENS;
    open->shard_count = 1;
    open->group_count = 1;
    memcpy(kvi_wire_tail(open, 0), &group, sizeof(group));
    kvt_deliver(world, first, open);
}

Test(alloc, space_open_that_makes_the_index_grow)
{
    cr_assert_eq(fail_each(open_smaller_stride, first), 4);
    cr_assert(kvt_take_as(world, first, KVI_OP_SPACE_OPENED));
    cr_assert_eq(kvt_peek(world, first, space, 1, 6), 6);
}

static void request_one(void)
{
    kvt_request(world, first, space, 1, KVI_REQUEST_MAY_WAIT);
}

Test(alloc, blocks_request)
{
    cr_assert_eq(fail_each(request_one, first), 1);
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_take_grants(world, first).block_count, 4);
}

Test(alloc, blocks_request_that_found_something_keeps_it)
{
    world->fail_at = 3;
    kvt_request(world, first, space, 16, 0);
    cr_assert_eq(world->creating_count, 2);
    kvt_world_check(world);
    kvt_create_all(world, 0);
    cr_assert_eq(kvt_take_grants(world, first).block_count, 16); /* memory was there again */
}

Test(alloc, blocks_request_takes_nothing_from_others_in_vain)
{
    uint32_t other = kvt_space(world, second, "b", KVT_SMALL, 0);
    struct kvt_granted all = kvt_get(world, second, other, 88);
    uint32_t hungry;
    uint64_t digest;

    kvt_publish_all(world, second, other, 1, 88, all.blocks);
    kvt_release(world, second, other, 88, all.blocks);
    for (uint32_t i = 0; i < all.segment_count; i++)
        kvt_hand_in(world, second, other, all.segments[i].slot, all.segments[i].generation);
    hungry = kvt_space(world, first, "c", KVT_LARGE, 0);
    kvt_forget(world);
    digest = kvi_dir_digest(world->dir);
    world->fail_at = 1;
    kvt_request(world, first, hungry, 1, 0);
    cr_assert_eq(kvt_take_error(world, first, NULL), KVMEM_E_NO_MEMORY);
    cr_assert_eq(kvi_dir_digest(world->dir), digest);
    cr_assert_eq(kvt_peek(world, second, other, 1, 88), 88);
}

static uint32_t tiny;

static void move_one(void)
{
    kvt_request(world, second, tiny, 8, 0);
}

Test(alloc, blocks_request_that_moves_segments)
{
    struct kvt_granted rest = kvt_get(world, first, space, 88);
    uint64_t created = kvt_stats(world).created_segments;

    kvt_release(world, first, space, 8, got.blocks);
    for (uint32_t i = 0; i < got.segment_count; i++)
        kvt_hand_in(world, first, space, got.segments[i].slot, got.segments[i].generation);
    cr_assert_eq(rest.block_count, 88);
    tiny = kvt_space(world, second, "tiny", KVT_TINY, 0);
    cr_assert_eq(fail_each(move_one, second), 1); /* its records */
    cr_assert_eq(kvt_take_grants(world, second).block_count, 8);
    cr_assert_eq(kvt_stats(world).created_segments, created);
    cr_assert_eq(kvt_stats(world).released_segments, 0);
}

static void pin_two(void)
{
    kvt_pin(world, first, space, 2, (uint32_t[]){1, 2}, 0);
}

Test(alloc, pin)
{
    cr_assert_eq(fail_each(pin_two, first), 2); /* the first makes the table */
    for (int i = 1; i < 64; i++) {
        pin_two();
        kvt_forget(world);
    }
    cr_assert_eq(fail_each(pin_two, first), 2); /* the 65th makes it longer */
    cr_assert_eq(fail_each(pin_two, first), 1);
    cr_assert_eq(kvt_stats(world).pin_count, 132);
}

/* ---- what does not ---- */

static void look_up(void)
{
    kvt_lookup(world, first, space, 8, (uint32_t[]){1, 2, 3, 4, 5, 6, 7, 8}, 0);
}

/* With fences that are not reached. */
static void publish(void)
{
    kvt_publish_fenced(world, first, space, 2, (uint32_t[]){7, 8}, got.blocks + 6,
                       (struct kvt_fence[]){{1, 1}, {2, 1}});
}

static void timeline(void)
{
    struct kvi_msg_timeline_map m;

    kvi_wire_begin(&m, KVI_OP_TIMELINE_MAP, 1);
    m.is_own = 1;
    kvt_deliver(world, first, &m);
}

static void release(void)
{
    kvt_release(world, first, space, 8, got.blocks);
}

static void hand_in(void)
{
    for (int i = 0; i < 2; i++)
        kvt_hand_in(world, first, space, got.segments[i].slot, got.segments[i].generation);
}

static void adopt(void)
{
    kvt_request(world, first, space, 1, 0);
}

static void map(void)
{
    kvt_map(world, first, space, 1, &(struct kvi_rec_segment_ref){0, 1});
}

static void unmapped(void)
{
    kvt_unmapped(world, first, space, 0, 1);
}

static void report(void)
{
    kvt_plain(world, first, KVI_OP_STATS, 0);
    kvt_plain(world, first, KVI_OP_CLIENTS, 0);
    kvt_plain(world, first, KVI_OP_SPACES, 0);
    kvt_plain(world, first, KVI_OP_SEGMENTS, 0);
    kvt_plain(world, first, KVI_OP_CHECK, 0);
    kvt_plain(world, first, KVI_OP_DEVICES, 0);
}

static void close_space(void)
{
    kvt_close(world, first, space);
}

static void leave(void)
{
    kvt_plain(world, second, KVI_OP_GOODBYE, 0);
    kvi_dir_client_eof(world->dir, second);
    kvi_dir_client_eof(world->dir, first);
    kvi_dir_client_exited(world->dir, first);
}

static void join(void)
{
    kvt_join(world, KVMEM_ROLE_LEADER);
}

Test(alloc, nothing_else_allocates)
{
    void (*const acts[])(void) = {look_up,     hand_in, adopt, publish, look_up,
                                  timeline,    release, map,   report,  unmapped,
                                  close_space, join,    leave};

    for (size_t i = 0; i < sizeof(acts) / sizeof(acts[0]); i++)
        cr_assert_eq(fail_each(acts[i], first), 0, "act %zu", i);
}
