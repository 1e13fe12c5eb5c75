/* SPDX-License-Identifier: Apache-2.0
 *
 * The pool without a daemon: taking and giving back, which segment is used next, what the check
 * finds, and the status page that goes with it.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "client/pool.h"
#include "support/random.h"
#include "support/scripted.h"
#include "support/spawn.h"

static void pool_with(struct kvi_pool *pool, uint32_t segments, uint32_t blocks)
{
    cr_assert(kvi_pool_init(pool, &kvi_alloc_libc, segments, blocks) == 0);
    for (uint32_t s = 0; s < segments; s++) {
        kvi_pool_own(pool, s, NULL);
        for (uint32_t b = 0; b < blocks; b++)
            kvi_pool_add(pool, s * blocks + b);
    }
}

static void check(const struct kvi_pool *pool)
{
    cr_assert(kvi_pool_check(pool) == 0, "%s", kvmem_error_detail()->text);
}

Test(pool, indices_divide_exactly)
{
    static const uint32_t sizes[] = {1,  2,  3,  4,  5,   7,   31,   32,
                                     33, 63, 64, 65, 100, 128, 1088, 65535};

    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        uint32_t size = sizes[i];
        struct kvi_pool pool;

        cr_assert(kvi_pool_init(&pool, &kvi_alloc_libc, 2, size) == 0);
        for (uint64_t slot = 0; slot * size < INT32_MAX; slot = slot * 3 / 2 + 1) {
            cr_assert(kvi_pool_slot(&pool, (uint32_t)(slot * size)) == slot);
            cr_assert(kvi_pool_slot(&pool, (uint32_t)(slot * size + size - 1)) == slot);
        }
        cr_assert(kvi_pool_slot(&pool, INT32_MAX) == (uint32_t)INT32_MAX / size);
        kvi_pool_fini(&pool);
    }
}

Test(pool, every_block_is_taken_once)
{
    struct kvi_pool pool;
    uint8_t *seen = calloc(1, 700);

    pool_with(&pool, 7, 100);
    check(&pool);
    for (int i = 0; i < 700; i++) {
        int32_t block = kvi_pool_take(&pool);

        cr_assert(block >= 0 && block < 700 && !seen[block]++);
        cr_assert(kvi_pool_free_blocks(&pool) == (uint64_t)(699 - i));
        cr_assert(kvi_pool_used_blocks(&pool) == (uint64_t)(i + 1));
    }
    cr_assert(kvi_pool_take(&pool) == KVMEM_BLOCK_NONE);
    check(&pool);
    for (uint32_t i = 0; i < 700; i++)
        kvi_pool_give(&pool, i);
    check(&pool);
    kvi_pool_settle(&pool);
    check(&pool);
    cr_assert(kvi_pool_free_blocks(&pool) == 700 && kvi_pool_used_blocks(&pool) == 0);
    kvi_pool_fini(&pool);
    free(seen);
}

/* Give every third block back, in the same order in both. */
static void give_some(struct kvi_pool *one, struct kvi_pool *many, const int32_t *blocks,
                      uint32_t count)
{
    for (uint32_t i = 0; i < count; i += 3) {
        kvi_pool_give(one, (uint32_t)blocks[i]);
        kvi_pool_give(many, (uint32_t)blocks[i]);
    }
}

Test(pool, many_are_the_same_as_one_by_one)
{
    uint64_t seed = kvt_seed("take many");
    struct kvi_pool one, many;
    int32_t blocks[700];

    pool_with(&one, 7, 100);
    pool_with(&many, 7, 100);
    while (kvi_pool_free_blocks(&one) > 0) {
        uint32_t count = (uint32_t)(kvt_random(&seed) % 200);

        if (count > kvi_pool_free_blocks(&one))
            count = (uint32_t)kvi_pool_free_blocks(&one);
        kvi_pool_take_many(&many, count, blocks);
        for (uint32_t i = 0; i < count; i++)
            cr_assert(kvi_pool_take(&one) == blocks[i], "block %u of %u", i, count);
        cr_assert(kvi_pool_free_blocks(&one) == kvi_pool_free_blocks(&many));
        check(&many);
        if (count > 30)
            give_some(&one, &many, blocks, 30);
    }
    kvi_pool_take_many(&many, 0, NULL);
    kvi_pool_fini(&one);
    kvi_pool_fini(&many);
}

Test(pool, the_current_segment_stays_until_it_is_used_up)
{
    struct kvi_pool pool;
    int32_t first;

    pool_with(&pool, 4, 64);
    first = kvi_pool_take(&pool) / 64;
    for (int i = 1; i < 64; i++) {
        int32_t block = kvi_pool_take(&pool);

        cr_assert(block / 64 == first);
        if (i % 3)
            kvi_pool_give(&pool, (uint32_t)block);
        check(&pool);
    }
    kvi_pool_fini(&pool);
}

Test(pool, fullest_by_class_after_the_current_is_used_up)
{
    struct kvi_pool pool;
    uint32_t expected[] = {2, 2, 2, 1, 1, 1, 1, 1, 3};

    pool_with(&pool, 4, 64);
    while (kvi_pool_take(&pool) >= 0)
        ;
    cr_assert(pool.current == NULL, "nothing is current when nothing is free");
    for (uint32_t i = 0; i < 5; i++)
        kvi_pool_give(&pool, 64 + i);
    for (uint32_t i = 0; i < 3; i++)
        kvi_pool_give(&pool, 128 + i);
    for (uint32_t i = 0; i < 30; i++)
        kvi_pool_give(&pool, 192 + i);
    check(&pool);
    for (uint32_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
        cr_assert((uint32_t)kvi_pool_take(&pool) / 64 == expected[i], "take %u", i);
    check(&pool);
    kvi_pool_fini(&pool);
}

Test(pool, states_of_a_publication)
{
    struct kvi_pool pool;
    uint32_t block;

    pool_with(&pool, 2, 8);
    block = (uint32_t)kvi_pool_take(&pool);
    kvi_pool_seal(&pool, block);
    check(&pool);
    kvi_pool_unseal(&pool, block);
    check(&pool);
    kvi_pool_seal(&pool, block);
    pool.fill[block] = 5;
    kvi_pool_count(&kvi_pool_segment(&pool, block)->shown->tokens, 5);
    kvi_pool_become_entry(&pool, block);
    cr_assert(kvi_pool_segment(&pool, block)->shown->tokens == 0);
    check(&pool);
    kvi_pool_begin_release(&pool, block);
    check(&pool);
    kvi_pool_lease(&pool, block);
    kvi_pool_begin_release(&pool, block);
    kvi_pool_end_release(&pool, block);
    check(&pool);
    kvi_pool_add(&pool, block);
    check(&pool);
    cr_assert(kvi_pool_free_blocks(&pool) == 16);
    kvi_pool_disown(&pool, 0);
    kvi_pool_disown(&pool, 1);
    check(&pool);
    cr_assert(kvi_pool_free_blocks(&pool) == 0 && kvi_pool_take(&pool) == KVMEM_BLOCK_NONE);
    kvi_pool_fini(&pool);
}

Test(pool, random_sequences_leave_whole_segments_free)
{
    enum {
        SEQS = 400,
        SEGMENTS = 400,
        BLOCKS = 32
    };
    static int32_t blocks[SEQS][64];
    static uint32_t counts[SEQS];
    uint64_t random = 5;
    uint32_t live = 0, whole = 0, ideal;
    struct kvi_pool pool;

    pool_with(&pool, SEGMENTS, BLOCKS);
    for (uint32_t round = 0; round < 40000; round++) {
        uint32_t i = (uint32_t)(kvt_random(&random) % SEQS);

        live -= counts[i];
        while (counts[i])
            kvi_pool_give(&pool, (uint32_t)blocks[i][--counts[i]]);
        if (live > SEGMENTS * BLOCKS * 7 / 10)
            continue;
        for (uint32_t n = 1 + (uint32_t)(kvt_random(&random) % 50); n; n--)
            blocks[i][counts[i]++] = kvi_pool_take(&pool);
        live += counts[i];
    }
    kvi_pool_settle(&pool);
    check(&pool);
    for (uint32_t slot = 0; slot < SEGMENTS; slot++)
        whole += !pool.segments[slot].used_count;
    ideal = SEGMENTS - (live + BLOCKS - 1) / BLOCKS;
    cr_assert(whole * 100 >= ideal * 95, "%u of %u wholly free segments", whole, ideal);
    kvi_pool_fini(&pool);
}

/* Each number that the equations name, made wrong: the check must say so. */
Test(pool, the_check_finds_what_is_wrong)
{
    struct kvi_pool pool;
    uint32_t *numbers[5];

    pool_with(&pool, 3, 70);
    for (int i = 0; i < 80; i++)
        kvi_pool_take(&pool);
    numbers[0] = &pool.segments[0].free_count;
    numbers[1] = &pool.segments[1].used_count;
    numbers[2] = &pool.segments[1].sealing_count;
    numbers[3] = &pool.segments[2].leased_count;
    numbers[4] = (uint32_t *)&pool.listed_blocks;
    for (uint32_t i = 0; i < 5; i++) {
        ++*numbers[i];
        cr_assert(kvi_pool_check(&pool) == KVMEM_E_CORRUPT, "number %u", i);
        --*numbers[i];
    }
    for (uint32_t state = 0; state < 8; state++) {
        uint8_t was = pool.state[69];

        pool.state[69] = (uint8_t)state;
        cr_assert((kvi_pool_check(&pool) == 0) == (state == was), "state %u", state);
        pool.state[69] = was;
    }
    pool.free_words[0] ^= 1;
    cr_assert(kvi_pool_check(&pool) == KVMEM_E_CORRUPT);
    pool.free_words[0] ^= 1;
    pool.segments[0].shown->used[0] ^= 2;
    cr_assert(kvi_pool_check(&pool) == KVMEM_E_CORRUPT);
    pool.segments[0].shown->used[0] ^= 2;
    pool.class_mask ^= UINT64_C(1) << 40;
    cr_assert(kvi_pool_check(&pool) == KVMEM_E_CORRUPT);
    pool.class_mask ^= UINT64_C(1) << 40;
    check(&pool);
    kvi_pool_fini(&pool);
}

Test(pool, nth_allocation_of_init)
{
    struct kvt_memory memory;
    struct kvi_pool pool;
    uint64_t n;

    kvt_memory_init(&memory);
    for (n = 1; n < 100; n++) {
        memory.fail_at = n;
        if (kvi_pool_init(&pool, &memory.alloc, 10, 10) == 0)
            break;
        cr_assert(memory.live == 0);
    }
    cr_assert(n == 6);
    kvi_pool_fini(&pool);
    kvi_pool_fini(&pool);
    cr_assert(memory.live == 0);
}

/* ---- the status page ---- */

enum {
    PAGE_BYTES = 64 + 20 * 1088
};

Test(status, shows_what_the_pool_has)
{
    char *page = calloc(1, PAGE_BYTES);
    struct kvi_dir_usage usage;
    struct kvi_pool pool;

    cr_assert(kvi_status_init(page, PAGE_BYTES) == 20);
    cr_assert(kvi_pool_init(&pool, &kvi_alloc_libc, 4, 5000) == 0);
    kvi_pool_own(&pool, 2, kvi_status_show(page, PAGE_BYTES, 7, 2, 3, 5000));
    cr_assert(pool.segments[2].is_on_page);
    for (uint32_t i = 0; i < 5000; i++)
        kvi_pool_add(&pool, 10000 + i);
    for (uint32_t i = 0; i < 4500; i++)
        kvi_pool_take(&pool);
    kvi_pool_count(&pool.segments[2].shown->tokens, 70000);
    check(&pool);
    cr_assert(kvi_status_read(page, PAGE_BYTES, 7, 2, 3, 5000, &usage) == 1);
    cr_assert(usage.used_blocks == 4500 && usage.used_tokens == 70000);
    cr_assert(usage.cells[0] == 255 && usage.cells[63] == 0);
    cr_assert(kvi_status_read(page, PAGE_BYTES, 7, 2, 4, 5000, &usage) == 0);
    cr_assert(kvi_status_read(page, PAGE_BYTES, 8, 2, 3, 5000, &usage) == 0);
    cr_assert(usage.used_blocks == 0);
    for (uint32_t i = 0; i < 4500; i++)
        kvi_pool_give(&pool, 10000 + i);
    kvi_pool_settle(&pool);
    kvi_pool_disown(&pool, 2);
    cr_assert(kvi_status_read(page, PAGE_BYTES, 7, 2, 3, 5000, &usage) == 0);
    kvi_pool_fini(&pool);
    free(page);
}

Test(status, cells_sum_up_64ths)
{
    char *page = calloc(1, PAGE_BYTES);
    struct kvi_status_slot *slot;
    struct kvi_dir_usage usage;

    kvi_status_init(page, PAGE_BYTES);
    for (uint32_t blocks = 1; blocks < 300; blocks++) {
        uint32_t cell = (blocks + 63) / 64;

        slot = kvi_status_show(page, PAGE_BYTES, 1, 5, 1, blocks);
        slot->used[(blocks - 1) / 64] |= UINT64_C(1) << (blocks - 1) % 64;
        cr_assert(kvi_status_read(page, PAGE_BYTES, 1, 5, 1, blocks, &usage) == 1);
        cr_assert(usage.used_blocks == 1);
        for (uint32_t i = 0; i < 64; i++)
            cr_assert((usage.cells[i] != 0) == (i == (blocks - 1) / cell), "%u blocks, cell %u",
                      blocks, i);
        memset(slot->used, 0xff, sizeof(slot->used)); /* more than there is: clamped */
        slot->tokens = UINT64_MAX;
        cr_assert(kvi_status_read(page, PAGE_BYTES, 1, 5, 1, blocks, &usage) == 1);
        cr_assert(usage.used_blocks == blocks && usage.used_tokens == blocks * UINT64_C(4096));
        cr_assert(usage.cells[0] == 255);
        kvi_status_hide(slot, blocks);
    }
    free(page);
}

Test(status, a_full_page_shows_no_more)
{
    char *page = calloc(1, PAGE_BYTES);
    uint32_t shown = 0;

    kvi_status_init(page, PAGE_BYTES);
    for (uint32_t segment = 0; segment < 40; segment++)
        shown += kvi_status_show(page, PAGE_BYTES, 1, segment, 1, 64) != NULL;
    cr_assert(shown >= 16 && shown <= 20, "%u", shown);
    cr_assert(kvi_status_show(NULL, 0, 1, 0, 1, 64) == NULL);
    cr_assert(kvi_status_show(page, PAGE_BYTES, 1, 0, 1, 4096 * 21) == NULL);
    free(page);
}

Test(status, any_bytes_are_read_safely)
{
    static const size_t sizes[] = {0, 1, 63, 64, 65, 1151, 1152, 1153, PAGE_BYTES};
    uint64_t random = 9;
    struct kvi_dir_usage usage;

    for (uint32_t round = 0; round < 3000; round++) {
        size_t bytes = sizes[round % 9];
        char *page = malloc(bytes + 1); /* exactly: a sanitizer sees a step too far */
        uint32_t blocks = (uint32_t)(kvt_random(&random) % 20000);
        uint32_t magic = KVI_STATUS_MAGIC;

        for (size_t i = 0; i < bytes; i++)
            page[i] = (char)(round % 3 ? kvt_random(&random) & 3 : kvt_random(&random));
        if (bytes >= 4)
            memcpy(page, &magic, 4);
        if (kvi_status_read(page, bytes, round % 3, round % 4, 1 + round % 2, blocks, &usage))
            cr_assert(usage.used_blocks <= blocks &&
                      usage.used_tokens <= (uint64_t)usage.used_blocks * 4096);
        free(page);
    }
    cr_assert(kvi_status_read(NULL, 100, 0, 0, 1, 10, &usage) == 0);
}
