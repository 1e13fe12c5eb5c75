/* SPDX-License-Identifier: Apache-2.0
 *
 * The index of entries against a plain list: random insertions and removals at all loads, with
 * tags that collide on purpose, the check after each; growing keeps everything; sizes and
 * refusals of memory.
 */
#include <criterion/criterion.h>
#include <stdlib.h>

#include <kvmem/error.h>

#include "directory/index.h"
#include "support/dirworld.h"

#define MOST 400u

static const uint8_t key[32] = {1, 2, 3, 4, 5, 6, 7, 8};

static void *no_memory(void *context, size_t bytes)
{
    (void)context, (void)bytes;
    return NULL;
}

static void never(void *context, void *memory, size_t bytes)
{
    (void)context, (void)memory, (void)bytes;
    cr_assert_fail("nothing was allocated");
}

/* How many slots with the tag hold (segment, block). */
static uint32_t count(const struct kvi_index *index, uint32_t tag, uint32_t segment, uint32_t block)
{
    uint64_t position = kvi_index_home(index, tag);
    uint32_t found = 0;
    uint64_t slot;

    while ((slot = kvi_index_seek(index, tag, &position)) != 0)
        found += kvi_index_slot_segment(slot) == segment && kvi_index_slot_block(slot) == block;
    return found;
}

/* Tags from few values, at both ends of the table, so that runs are long and wrap around. */
static uint32_t random_tag(uint64_t *random)
{
    uint32_t few = (uint32_t)(kvt_random(random) % 24);

    switch (kvt_random(random) % 3) {
    case 0: return few;
    case 1: return KVI_INDEX_TAG_MASK - few;
    default: return (uint32_t)kvt_random(random) & KVI_INDEX_TAG_MASK;
    }
}

static void churn(uint64_t seed, uint64_t entries, uint32_t operations)
{
    uint32_t tags[MOST], used = 0;
    uint32_t blocks[MOST];
    struct kvi_index index;

    kvi_index_init(&index, key);
    cr_assert_eq(kvi_index_reserve(&index, &kvi_alloc_libc, entries), 0);
    for (uint32_t i = 0; i < operations; i++) {
        if (used < entries && kvt_random(&seed) % 2) {
            tags[used] = random_tag(&seed);
            blocks[used] = i;
            kvi_index_insert(&index, tags[used], i % 65534, i);
            used++;
        } else if (used > 0) {
            uint32_t victim = (uint32_t)(kvt_random(&seed) % used);

            cr_assert(
                kvi_index_remove(&index, tags[victim], blocks[victim] % 65534, blocks[victim]));
            cr_assert(
                !kvi_index_remove(&index, tags[victim], blocks[victim] % 65534, blocks[victim]));
            used--;
            tags[victim] = tags[used];
            blocks[victim] = blocks[used];
        }
        cr_assert_eq(kvi_index_check(&index), 0, "operation %u", i);
        cr_assert_eq(index.entry_count, used);
        if (i % 16 == 0)
            for (uint32_t k = 0; k < used; k++)
                cr_assert_eq(count(&index, tags[k], blocks[k] % 65534, blocks[k]), 1);
    }
    kvi_index_fini(&index, &kvi_alloc_libc);
}

Test(index, finds_what_was_inserted_and_not_removed, .timeout = 30)
{
    for (uint64_t seed = 1; seed <= 8; seed++) {
        churn(seed, 30, 20000);
        churn(seed, MOST, 20000);
    }
}

Test(index, grows_without_losing_anything)
{
    struct kvi_index index;
    uint64_t random = 3;
    uint32_t tags[300];

    kvi_index_init(&index, key);
    for (uint32_t i = 0; i < 300; i++) {
        tags[i] = random_tag(&random);
        cr_assert_eq(kvi_index_reserve(&index, &kvi_alloc_libc, i + 1), 0);
        kvi_index_insert(&index, tags[i], i, i);
        cr_assert_eq(kvi_index_check(&index), 0);
        cr_assert_leq(index.entry_count * 10, (index.mask + 1) * 6 + 10);
    }
    for (uint32_t i = 0; i < 300; i++)
        cr_assert_eq(count(&index, tags[i], i, i), 1);
    kvi_index_fini(&index, &kvi_alloc_libc);
}

Test(index, holds_the_largest_segment_and_block)
{
    struct kvi_index index;
    uint64_t position;
    uint64_t slot;

    kvi_index_init(&index, key);
    cr_assert_eq(kvi_index_reserve(&index, &kvi_alloc_libc, 10), 0);
    kvi_index_insert(&index, KVI_INDEX_TAG_MASK, 65533, (1u << 24) - 1);
    position = kvi_index_home(&index, KVI_INDEX_TAG_MASK);
    slot = kvi_index_seek(&index, KVI_INDEX_TAG_MASK, &position);
    cr_assert_eq(kvi_index_slot_segment(slot), 65533);
    cr_assert_eq(kvi_index_slot_block(slot), (1u << 24) - 1);
    cr_assert_eq(kvi_index_seek(&index, KVI_INDEX_TAG_MASK, &position), 0);
    kvi_index_fini(&index, &kvi_alloc_libc);
}

Test(index, tables_beyond_the_tag_share_homes)
{
    struct kvi_index index;

    kvi_index_init(&index, key);
    index.bits = 26;
    cr_assert_eq(kvi_index_home(&index, 1), 4);
    cr_assert_eq(kvi_index_home(&index, KVI_INDEX_TAG_MASK), (UINT64_C(1) << 26) - 4);
    index.bits = 24;
    cr_assert_eq(kvi_index_home(&index, KVI_INDEX_TAG_MASK), KVI_INDEX_TAG_MASK);
    index.bits = 10;
    cr_assert_eq(kvi_index_home(&index, KVI_INDEX_TAG_MASK), 1023);
    index.bits = 0;
    kvi_index_fini(&index, &kvi_alloc_libc);
}

Test(index, takes_at_most_28_bytes_an_entry)
{
    cr_assert_eq(kvi_index_bytes(1048576), 16u << 20);
    for (uint64_t entries = 100; entries < 5000000; entries += entries / 7)
        cr_assert_leq(kvi_index_bytes(entries), entries * 28 + 64);
}

Test(index, without_memory_nothing_changes)
{
    const struct kvi_alloc none = {NULL, no_memory, never};
    struct kvi_index index;

    kvi_index_init(&index, key);
    cr_assert_eq(kvi_index_reserve(&index, &none, 10), KVMEM_E_NO_MEMORY);
    cr_assert_eq(kvi_index_check(&index), 0);
    cr_assert_eq(kvi_index_remove(&index, 1, 1, 1), 0);
    cr_assert_eq(kvi_index_reserve(&index, &kvi_alloc_libc, 10), 0);
    kvi_index_insert(&index, 5, 1, 2);
    cr_assert_eq(kvi_index_reserve(&index, &none, 1000), KVMEM_E_NO_MEMORY);
    cr_assert_eq(count(&index, 5, 1, 2), 1);
    cr_assert_eq(kvi_index_reserve(&index, &none, 5), 0); /* large enough already */
    kvi_index_fini(&index, &kvi_alloc_libc);
}

Test(index, tags_depend_on_key_space_and_every_byte_of_the_name)
{
    uint8_t name[32] = {0}, other_key[32] = {9};
    struct kvi_index index, other;
    uint32_t tag, same = 0;

    kvi_index_init(&index, key);
    kvi_index_init(&other, other_key);
    kvt_name(1, name);
    tag = kvi_index_tag(&index, 0, name);
    cr_assert_eq(tag, kvi_index_tag(&index, 0, name));
    cr_assert_neq(tag, kvi_index_tag(&index, 1, name));
    cr_assert_neq(tag, kvi_index_tag(&other, 0, name));
    for (int i = 0; i < 32; i++) {
        name[i] ^= 1;
        same += kvi_index_tag(&index, 0, name) == tag;
        name[i] ^= 1;
    }
    cr_assert_eq(same, 0);
}

Test(index, the_check_finds_a_slot_that_lies_wrong)
{
    struct kvi_index index;

    kvi_index_init(&index, key);
    cr_assert_eq(kvi_index_reserve(&index, &kvi_alloc_libc, 10), 0);
    kvi_index_insert(&index, 0, 1, 1); /* home 0 */
    index.slots[20] = index.slots[0];
    index.slots[0] = 0;
    cr_assert_eq(kvi_index_check(&index), 21);
    index.slots[20] = 0;
    cr_assert_neq(kvi_index_check(&index), 0); /* the count */
    kvi_index_fini(&index, &kvi_alloc_libc);
}
