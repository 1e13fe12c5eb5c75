/* SPDX-License-Identifier: Apache-2.0
 *
 * The check of the directory, checked: each of its equations is broken once, on purpose, in a
 * state that has a bit of everything; the check must notice and name it, and find nothing when
 * it is mended. Numbers that clients and kvmemctl see go the same way.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "directory/directory_internal.h"
#include "support/dirworld.h"

static struct kvt_world *world;
static struct kvi_dir *dir;
static struct kvi_dir_segment *full, *shared; /* all entries; entries and idle, handed in */
static struct kvi_dir_client *owner, *reader;
static struct kvi_dir_open *owned;
static struct kvi_dir_space *space;

static void set_up(void)
{
    struct kvi_dir_options options = kvt_dir_options(6, 4);
    uint32_t first, second, a, b;
    struct kvt_granted got;

    world = kvt_world_of_two(&options, &first, &second);
    dir = world->dir;
    a = kvt_space(world, first, "a", KVT_SMALL, 5 * 4096);
    b = kvt_space(world, second, "b", KVT_SMALL, 0);
    kvt_space(world, second, "a", KVT_SMALL, 0);
    got = kvt_get(world, first, a, 20);
    kvt_publish_all(world, first, a, 1, 6, got.blocks);
    kvt_release(world, first, a, 5, got.blocks);
    kvt_hand_in(world, first, a, got.segments[1].slot, got.segments[1].generation);
    kvt_lookup(world, second, a, 2, (uint32_t[]){1, 2}, 0);
    kvt_pin(world, second, a, 2, (uint32_t[]){2, 3}, 700);
    kvt_get(world, second, b, 4);
    kvt_request(world, second, b, 4, KVI_REQUEST_MAY_WAIT); /* waits; presses `first` */
    full = &dir->segments[dir->spaces[a & 255].slots[0].segment];
    shared = &dir->segments[dir->spaces[a & 255].slots[1].segment];
    owner = &dir->clients[first];
    reader = &dir->clients[second];
    owned = owner->opens;
    space = &dir->spaces[a & 255];
}

static void tear_down(void)
{
    kvt_world_end(world);
}

TestSuite(check, .init = set_up, .fini = tear_down, .timeout = 20);

static void expect(const char *word)
{
    char text[256];

    cr_assert_eq(kvi_dir_check(dir, text, sizeof(text)), KVMEM_E_CORRUPT, "%s", word);
    cr_assert(strstr(text, word), "'%s' does not name '%s'", text, word);
}

/* Set `place` to `value` for the time of a check. */
#define BREAK(place, value, word)                     \
    do {                                              \
        __typeof__(place) was = (place);              \
        (place) = (value);                            \
        expect(word);                                 \
        (place) = was;                                \
        cr_assert_eq(kvi_dir_check(dir, NULL, 0), 0); \
    } while (0)

Test(check, bytes_and_segments)
{
    BREAK(dir->memory[0].free_bytes, dir->memory[0].free_bytes + 4096, "device 0:");
    BREAK(dir->memory[0].segment_count, dir->memory[0].segment_count - 1, "device 0:");
    BREAK(dir->segment_high, 1, "exists beyond");
    BREAK(full->bytes, 8192, "records do not go");
    BREAK(full->entries, NULL, "records do not go");
    BREAK(full->owner, KVI_NO_CLIENT, "does not go with owner");
    BREAK(full->owner, 3, "does not go with owner");
    BREAK(full->state, KVI_SEGMENT_QUARANTINED, "does not go with owner");
    BREAK(shared->state, KVI_SEGMENT_OWNED, "does not go with owner");
    BREAK(shared->state, KVI_SEGMENT_FREE, "is free, but has records");
    BREAK(full->space, 3, "does not exist");
    BREAK(full->slot, 9, "slot 9");
    BREAK(full->generation, 7, "generation");
    BREAK(full->mapper_count, 3, "mappers");
    BREAK(full->mappers[0], full->mappers[0] | 8, "mapped by client 3");
}

Test(check, entries_and_their_list)
{
    struct kvi_dir_entry *e = full->entries;

    BREAK(e[0].lease_count, 2, "leases, but clients have 1");
    BREAK(e[2].pin_count, 2, "pins");
    BREAK(e[0].tag, e[0].tag ^ 1, "tag is not");
    BREAK(e[0].name[0], e[0].name[0] ^ 1, "tag is not");
    BREAK(full->entry_bits[0], full->entry_bits[0] & ~UINT64_C(8), "counts 4 entries");
    BREAK(full->entry_bits[0], full->entry_bits[0] | 16, "block 4 of 4 is an entry");
    BREAK(full->entry_count, 3, "counts 3 entries");
    BREAK(full->referenced_count, full->referenced_count + 1, "referenced");
    BREAK(full->newest, 0, "the list ends at");
    BREAK(e[3].stamp, dir->stamp + 9, "out of order");
    BREAK(e[3].older, 3, "out of order");
    BREAK(e[3].newer, 3, "list");
    BREAK(e[3].newer, 99, "does not end");
    BREAK(full->oldest, KVI_DIR_NONE, "the list ends");
}

Test(check, fences)
{
    BREAK(full->fence_count, 1, "counts 1 fences, has 0");
    BREAK(kvi_dir_fences(full)[0], 63, "out of range");
    BREAK(kvi_dir_fences(full)[0], UINT64_MAX, "out of range");
    BREAK(kvi_dir_fences(full)[0], 64, "counts 0 fences, has 1");
    BREAK(kvi_dir_fences(shared)[3], 64, "is no entry");
    kvi_dir_fences(full)[0] = 64;
    full->fence_count = 1;
    BREAK(full->entries[0].publisher, 77, "has outlived session 77");
    kvi_dir_fences(full)[0] = full->fence_count = 0;
}

Test(check, index)
{
    uint64_t position = kvi_index_home(&dir->index, full->entries[0].tag);
    uint64_t slot = dir->index.slots[position];

    BREAK(dir->index.entry_count, dir->index.entry_count + 1, "index:");
    if (slot != 0)
        BREAK(dir->index.slots[position], slot ^ (UINT64_C(1) << 24), "segment");
    BREAK(dir->index.slots[position], 0, "index");
}

Test(check, spaces)
{
    BREAK(space->segment_count, 4, "space 0: counts");
    BREAK(space->client_count, 1, "space 0: counts");
    BREAK(space->entry_count, 5, "space 0: counts");
    BREAK(space->quota_bytes, 3 * 4096, "exceed its quota");
    BREAK(space->slot_hint, 12, "below the hint");
    BREAK(space->slots[7].segment, 5, "of another place");
}

Test(check, charges)
{
    BREAK(owner->owned_segments, 3, "client 0");
    BREAK(owner->owned_bytes, 4096, "bytes");
    BREAK(owner->mapped_segments, 1, "maps");
    BREAK(owner->lease_count, 5, "leases");
    BREAK(owned->lease_count, 5, "leases");
    BREAK(owned->lease_bits[0], owned->lease_bits[0] | 1, "leases, but clients have");
    BREAK(owned->owned_segments, 3, "owned");
    BREAK(owned->request.creating, 1, "creating");
    BREAK(owned->request.state, KVI_DIR_REQUEST_RUNNING, "waits for nothing");
    BREAK(owned->request.state, KVI_DIR_REQUEST_WAITING, "waiting list");
    BREAK(owner->fds_reserved, 1, "descriptors");
    BREAK(owner->fds_sent, owner->fds_sent + 1000, "in flight");
    BREAK(reader->pin_count, 3, "pins");
    BREAK(reader->pin_objects, 0, "pins");
    BREAK(dir->pressed_count, 0, "pressed");
    BREAK(dir->wait_last, owned, "waiting list");
    BREAK(dir->wait_first->wait_previous, owned, "does not belong");
    BREAK(dir->pins[0]->refs[0].block, 0, "pins");
    BREAK(dir->pins[0]->refs[0].segment, (uint32_t)(shared - dir->segments), "pins");
}

Test(check, is_what_a_client_hears)
{
    uint32_t observer = kvt_join(world, KVMEM_ROLE_OBSERVER);
    const struct kvi_msg_check_reply *reply;

    dir->memory[0].free_bytes += 4096;
    kvt_plain(world, observer, KVI_OP_CHECK, 0);
    dir->memory[0].free_bytes -= 4096;
    reply = kvt_take_as(world, observer, KVI_OP_CHECK_REPLY);
    cr_assert(reply && reply->violations == 1);
    cr_assert(strstr(reply->text, "device 0:"));
    kvt_plain(world, observer, KVI_OP_CHECK, 0);
    reply = kvt_take_as(world, observer, KVI_OP_CHECK_REPLY);
    cr_assert(reply && reply->violations == 0);
    cr_assert(strstr(reply->text, "verified 6 segments and 6 entries"), "%s", reply->text);
}

Test(check, blocks_of_nobody_are_leaked)
{
    struct kvi_msg_stats_reply stats;
    uint32_t state = owner->state;

    cr_assert_eq(kvt_stats(world).leaked_blocks, 0);
    owner->state = KVI_DIR_CLIENT_FREE;
    stats = kvt_stats(world);
    owner->state = state;
    cr_assert_gt(stats.leaked_blocks, 0);
    cr_assert_eq(stats.leaked_blocks + stats.owner_blocks + stats.idle_blocks + stats.entry_blocks,
                 stats.total_blocks);
}

Test(check, the_digest_tells_states_apart)
{
    uint64_t digest = kvi_dir_digest(dir);

    cr_assert_eq(kvi_dir_digest(dir), digest);
    full->entries[3].stamp++;
    cr_assert_neq(kvi_dir_digest(dir), digest);
    full->entries[3].stamp--;
    reader->fds_sent++;
    cr_assert_neq(kvi_dir_digest(dir), digest);
    reader->fds_sent--;
    kvi_dir_fences(full)[1] = 64;
    cr_assert_neq(kvi_dir_digest(dir), digest);
    kvi_dir_fences(full)[1] = 0;
    dir->totals.lookups++; /* a counter of events is no state */
    cr_assert_eq(kvi_dir_digest(dir), digest);
}
