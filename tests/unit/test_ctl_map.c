/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl's picture of the pool and its arithmetic of fragmentation, on built records.
 */
#include <criterion/criterion.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/frag.h"
#include "ctl/map.h"
#include "ctl/text.h"

/* A segment of 128 blocks of space 7, two blocks a cell. */
static struct kvi_rec_segment_info segment_of(uint32_t number, uint32_t state, uint32_t owner)
{
    struct kvi_rec_segment_info segment = {.segment = number,
                                           .space = 7,
                                           .generation = 1,
                                           .state = state,
                                           .owner = owner,
                                           .total_blocks = 128,
                                           .cell_blocks = 2};

    return segment;
}

static struct kvctl_pool pool_of(struct kvi_rec_segment_info *segments, size_t count)
{
    static struct kvi_rec_client_info client = {.client = 1, .name = "engine"};
    static struct kvi_rec_space_info space = {.space = 7,
                                              .block_tokens = 16,
                                              .blocks_per_segment = 128,
                                              .block_bytes = 8000,
                                              .index_stride_bytes = 8192,
                                              .segment_bytes = 1 << 20,
                                              .name = "llama",
                                              .domain = "default"};
    struct kvctl_pool pool = {.clients = &client,
                              .spaces = &space,
                              .segments = segments,
                              .client_count = 1,
                              .space_count = 1,
                              .segment_count = count};

    return pool;
}

static char *draw(const struct kvctl_pool *pool, bool is_all, bool has_utf8, unsigned width)
{
    const struct kvctl_style style = {.has_utf8 = has_utf8, .width_columns = width};
    const struct kvctl_map_options options = {.is_all = is_all};
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    setlocale(LC_CTYPE, "C.UTF-8");
    kvctl_map_print(out, pool, &options, &style);
    fclose(out);
    return text;
}

static void contains(const char *text, const char *wanted)
{
    cr_assert_not_null(strstr(text, wanted), "\"%s\" is not in\n%s", wanted, text);
}

static uint64_t total_of(const struct kvctl_blocks *blocks)
{
    uint64_t total = 0;

    for (int i = 0; i < KVCTL_BLOCK_CLASSES; i++)
        total += blocks->of[i];
    return total;
}

Test(ctl_map, classes_add_up_whatever_comes)
{
    unsigned seed = 7;

    for (int round = 0; round < 100000; round++) {
        struct kvi_rec_segment_info segment = segment_of(0, (uint32_t)rand_r(&seed) % 6, 1);
        struct kvctl_blocks cells[KVCTL_MAP_CELLS];
        struct kvctl_blocks blocks;
        uint64_t total = 0;
        unsigned count;

        segment.total_blocks = 1 + (uint32_t)rand_r(&seed) % 300;
        segment.cell_blocks = (segment.total_blocks + 63) / 64;
        segment.entry_blocks = (uint32_t)rand_r(&seed) % 400;
        segment.leased_blocks = (uint32_t)rand_r(&seed) % 400;
        segment.used_blocks = (uint32_t)rand_r(&seed) % 400;
        for (int i = 0; i < 64; i++) {
            segment.entry_cells[i] = (uint8_t)rand_r(&seed);
            segment.leased_cells[i] = (uint8_t)rand_r(&seed);
            segment.used_cells[i] = (uint8_t)rand_r(&seed);
        }
        blocks = kvctl_map_count(&segment);
        cr_assert_eq(total_of(&blocks), segment.total_blocks);
        count = kvctl_map_cells(&segment, cells);
        for (unsigned i = 0; i < count; i++)
            total += total_of(&cells[i]);
        cr_assert_eq(total, segment.total_blocks);
    }
}

Test(ctl_map, shares_are_exact_for_small_cells)
{
    for (uint64_t total = 1; total < 255; total++)
        for (uint64_t blocks = 0; blocks <= total; blocks++)
            cr_assert_eq(kvctl_map_from_share((uint8_t)((blocks * 255 + total / 2) / total), total),
                         blocks, "%lu of %lu", (unsigned long)blocks, (unsigned long)total);
    cr_assert_eq(kvctl_map_from_share(1, 2), 1);   /* some are not none */
    cr_assert_eq(kvctl_map_from_share(254, 2), 1); /* not all are not all */
}

Test(ctl_map, glyph_is_the_majority)
{
    struct kvctl_blocks cell = {.of = {[KVCTL_BLOCK_FREE] = 4}};

    cr_assert_eq(kvctl_map_glyph(&cell), KVCTL_BLOCK_FREE * 2);
    cell.of[KVCTL_BLOCK_USED] = 1;
    cr_assert_eq(kvctl_map_glyph(&cell), KVCTL_BLOCK_FREE * 2 + 1);
    cell.of[KVCTL_BLOCK_USED] = 4;
    cr_assert_eq(kvctl_map_glyph(&cell), KVCTL_BLOCK_USED * 2 + 1, "ties go to the first");
}

Test(ctl_map, a_row)
{
    struct kvi_rec_segment_info segment = segment_of(3, KVI_SEGMENT_OWNED, 1);
    struct kvctl_pool pool = pool_of(&segment, 1);
    char *text;

    /* 64 cells: 16 leased, 16 evictable, one half leased, 15 used, 16 free. */
    memset(segment.leased_cells, 255, 16);
    memset(segment.entry_cells, 255, 32);
    segment.entry_cells[32] = segment.leased_cells[32] = 128;
    memset(segment.used_cells + 33, 255, 15);
    segment.entry_blocks = 65;
    segment.leased_blocks = 33;
    segment.used_blocks = 30;
    text = draw(&pool, false, true, 120);
    contains(text, "0-2  no memory\n");
    contains(text, "  3  llama  1 engine  owned  "
                   "■■■■■■■■■■■■■■■■●●●●●●●●●●●●●●●●□◆◆◆◆◆◆◆◆◆◆◆◆◆◆◆················   74%\n");
    contains(text, "A cell is 2 blocks; mixed ones show the majority: □ ○ ◇ :.");
    free(text);
    /* Two cells a glyph; the half cell and its neighbour: two used, one leased, one free. */
    text = draw(&pool, false, false, 80);
    contains(text, "  3  llama  1 engine  owned  LLLLLLLLEEEEEEEEuUUUUUUU........   74%\n");
    contains(text, "L leased entries");
    contains(text, "A cell is 4 blocks");
    free(text);
}

Test(ctl_map, runs_fold_and_gaps_are_named)
{
    struct kvi_rec_segment_info segments[6];
    struct kvctl_pool pool = pool_of(segments, 6);
    char *text;

    for (uint32_t i = 0; i < 6; i++) {
        segments[i] = segment_of(i < 3 ? i : i + 4, KVI_SEGMENT_HANDED_IN, KVI_NO_CLIENT);
        memset(segments[i].entry_cells, 255, 64);
        segments[i].entry_blocks = 128;
    }
    segments[5].leased_blocks = 1;
    segments[5].leased_cells[0] = 128;
    text = draw(&pool, false, true, 80);
    contains(text, "0-2  llama  directory  handed in  ●●●");
    contains(text, "3-6  no memory\n");
    contains(text, "7-8  llama");
    contains(text, "  9  llama  directory  handed in  ○●●●");
    contains(text, "all  6 segments");
    free(text);
    text = draw(&pool, true, true, 80);
    contains(text, "  0  llama");
    contains(text, "  1  llama");
    contains(text, "  8  llama");
    free(text);
    cr_assert_eq(kvctl_pool_keep_space(&pool, "other"), 0);
    text = draw(&pool, false, true, 80);
    contains(text, "The space has no segment now.");
    free(text);
}

Test(ctl_map, hostile_names_and_states)
{
    struct kvi_rec_segment_info segment = segment_of(0, 99, 200);
    struct kvctl_pool pool = pool_of(&segment, 1);
    struct kvi_rec_client_info client = {.client = 200, .name = "\033[2J\xff"};
    char *text;

    pool.clients = &client;
    segment.cell_blocks = 0;
    text = draw(&pool, false, true, 80);
    cr_assert_null(strchr(text, '\033'));
    contains(text, "200 ?[2J");
    contains(text, "unknown");
    free(text);
}

/* No line is wider than asked for, at any width, in both alphabets. */
Test(ctl_map, fits)
{
    struct kvi_rec_segment_info segments[40];
    struct kvctl_pool pool = pool_of(segments, 40);
    struct kvi_rec_space_info space = pool.spaces[0];
    unsigned seed = 3;

    strcpy(space.name, "a-space-whose-name-is-really-quite-long-for-a-terminal");
    pool.spaces = &space;
    for (uint32_t i = 0; i < 40; i++) {
        segments[i] = segment_of(i * 1600, i % 6, i % 2 ? 1 : KVI_NO_CLIENT);
        for (int c = 0; c < 64; c++)
            segments[i].entry_cells[c] = (uint8_t)rand_r(&seed);
        segments[i].entry_blocks = 64;
    }
    for (unsigned width = 56; width <= 200; width++) {
        char *text = draw(&pool, false, width % 2, width);

        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
            cr_assert(kvctl_columns(line) <= (width < 66 ? 66 : width), "%u: %s", width, line);
        free(text);
    }
}

/* ---- frag ----------------------------------------------------------------------------- */

static uint64_t sum_of(const struct kvctl_frag *frag)
{
    return frag->token_bytes + frag->internal_bytes + frag->external_bytes + frag->empty_bytes +
           frag->waiting_bytes + frag->padding_bytes;
}

Test(ctl_frag, by_hand)
{
    struct kvi_rec_segment_info segments[3] = {
        segment_of(0, KVI_SEGMENT_OWNED, 1),
        segment_of(1, KVI_SEGMENT_OWNED, 1),
        segment_of(2, KVI_SEGMENT_HANDED_IN, KVI_NO_CLIENT),
    };
    struct kvctl_pool pool = pool_of(segments, 3);
    struct kvctl_frag frag;
    char advice[400];

    segments[0].entry_blocks = 100; /* 10 private blocks with 150 of 160 tokens, 18 free */
    segments[0].leased_blocks = 50;
    segments[0].used_blocks = 10;
    segments[0].used_tokens = 150;
    pool.spaces[0].shared_saved_bytes = 30 * 8000;
    segments[2].entry_blocks = 8; /* segment 1 is empty */
    kvctl_frag_space(&pool.spaces[0], segments, 3, &frag);
    cr_assert_eq(frag.segment_bytes, 3u << 20);
    cr_assert_eq(frag.unused_slot_tokens, 10);
    cr_assert_eq(frag.internal_bytes, 10 * 8000 / 16);
    cr_assert_eq(frag.external_blocks, 18 + 120);
    cr_assert_eq(frag.external_bytes, 138 * 8000);
    cr_assert_eq(frag.partly_used_segments, 2);
    cr_assert_eq(frag.empty_segments, 1);
    cr_assert_eq(frag.empty_bytes, 128 * 8000);
    cr_assert_eq(frag.padding_bytes, 3 * 128 * 192);
    cr_assert_eq(frag.token_bytes, 118 * 8000 - 5000);
    cr_assert_eq(frag.over_floor_segments, 2); /* 118 used blocks fit into one */
    cr_assert_eq(frag.over_floor_bytes, 2u << 20);
    cr_assert_eq(frag.referenced_bytes, 60 * 8000);
    cr_assert_eq(frag.virtual_bytes, 90 * 8000);
    cr_assert_eq(sum_of(&frag), frag.segment_bytes);
    kvctl_frag_advise(&frag, 16, advice, sizeof(advice));
    contains(advice, "free blocks between used ones");
    pool.spaces[0].shared_saved_bytes = 0;
}

Test(ctl_frag, adds_up_whatever_comes)
{
    unsigned seed = 11;

    for (int round = 0; round < 20000; round++) {
        struct kvi_rec_segment_info segments[5];
        struct kvctl_pool pool = pool_of(segments, 5);
        struct kvctl_frag frag, total = {0};

        for (uint32_t i = 0; i < 5; i++) {
            segments[i] = segment_of(i, (uint32_t)rand_r(&seed) % 6, 1);
            segments[i].entry_blocks = (uint32_t)rand_r(&seed) % 160;
            segments[i].leased_blocks = (uint32_t)rand_r(&seed) % 160;
            segments[i].used_blocks = (uint32_t)rand_r(&seed) % 160;
            segments[i].used_tokens = (uint32_t)rand_r(&seed) % 4000;
        }
        kvctl_frag_space(&pool.spaces[0], segments, 5, &frag);
        cr_assert_eq(sum_of(&frag), frag.segment_bytes);
        kvctl_frag_add(&total, &frag);
        kvctl_frag_add(&total, &frag);
        cr_assert_eq(sum_of(&total), 2 * frag.segment_bytes);
        cr_assert_eq(total.virtual_bytes, 2 * frag.virtual_bytes);
    }
}

Test(ctl_frag, says_what_to_do)
{
    struct kvctl_frag frag = {.segment_bytes = 1000};
    char advice[400];

    kvctl_frag_advise(&(struct kvctl_frag){0}, 16, advice, sizeof(advice));
    contains(advice, "no segment");
    frag.token_bytes = 970;
    kvctl_frag_advise(&frag, 16, advice, sizeof(advice));
    contains(advice, "97.0 % of the memory holds tokens: packed well");
    frag.token_bytes = 500;
    frag.internal_bytes = 500;
    kvctl_frag_advise(&frag, 16, advice, sizeof(advice));
    contains(advice, "a smaller block_tokens would waste less (now 16).");
    frag.internal_bytes = 0;
    frag.empty_bytes = 500;
    kvctl_frag_advise(&frag, 16, advice, sizeof(advice));
    contains(advice, "kvmem_space_trim");
}

Test(ctl_frag, tables)
{
    struct kvi_rec_segment_info segments[1] = {segment_of(0, KVI_SEGMENT_OWNED, 1)};
    struct kvctl_pool pool = pool_of(segments, 1);
    const struct kvctl_style style = {.width_columns = 80};
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    kvctl_frag_print(out, &pool, "kvmemd at /x", &style);
    pool.space_count = 0;
    kvctl_frag_print(out, &pool, NULL, &style);
    fclose(out);
    contains(text, "space llama in domain default: blocks of 16 tokens, 7.8 KiB\n");
    contains(text, "  empty       1 segment without a used block");
    contains(text, "No client has opened a space yet");
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        cr_assert(strlen(line) <= 80, "%s", line);
    free(text);
}
