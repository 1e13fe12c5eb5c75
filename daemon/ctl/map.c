/* SPDX-License-Identifier: Apache-2.0
 *
 * Drawing the pool: count blocks, choose column widths, make rows, fold equal ones, print.
 */
#include "map.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

static const struct class_look {
    const char *solid_utf8, *mixed_utf8;
    const char *solid_ascii, *mixed_ascii;
    enum kvctl_tone tone;
    const char *text;
} looks[KVCTL_BLOCK_CLASSES] = {
    [KVCTL_BLOCK_LEASED] = {"■", "□", "L", "l", KVCTL_TONE_LEASED, "leased entries"},
    [KVCTL_BLOCK_EVICTABLE] = {"●", "○", "E", "e", KVCTL_TONE_EVICTABLE, "evictable entries"},
    [KVCTL_BLOCK_USED] = {"◆", "◇", "U", "u", KVCTL_TONE_USED, "used, unpublished"},
    [KVCTL_BLOCK_WAITING] = {"×", "+", "X", "x", KVCTL_TONE_WAITING, "waiting"},
    [KVCTL_BLOCK_FREE] = {"·", ":", ".", ":", KVCTL_TONE_DIM, "free"},
};

/* One line of the picture: a segment, or a run of segments that look the same. */
struct row {
    uint32_t first, last; /* segment numbers */
    bool is_gap;          /* numbers without memory */
    uint32_t space_id, owner, state;
    unsigned cell_count;
    uint8_t cells[KVCTL_MAP_CELLS]; /* glyphs, see kvctl_map_glyph */
    char number[24], space[KVCTL_NAME_BYTES], owner_text[KVCTL_NAME_BYTES];
    char used[KVCTL_TEXT_BYTES];
};

/* Widths of the columns. */
struct layout {
    unsigned number, space, owner, state, cells;
};

#define USED_COLUMNS      4
#define GAP_COLUMNS       2
#define NAME_COLUMNS_MIN  9 /* "directory" */
#define SPACE_COLUMNS_MAX 24
#define OWNER_COLUMNS_MAX 24

/* ---- counting ------------------------------------------------------------------------- */

static uint32_t least_of(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

/* Blocks of one class each from what the daemon says of `total` blocks. */
static struct kvctl_blocks classify(uint32_t state, uint64_t total, uint64_t entries,
                                    uint64_t leased, uint64_t used)
{
    struct kvctl_blocks blocks = {{0}};
    bool is_memory = state != KVI_SEGMENT_CREATING && state != KVI_SEGMENT_DRAINING;
    uint64_t rest;

    entries = is_memory ? least_of(entries, total) : 0;
    leased = least_of(leased, entries);
    used = state == KVI_SEGMENT_OWNED ? least_of(used, total - entries) : 0;
    rest = total - entries - used;
    blocks.of[KVCTL_BLOCK_LEASED] = leased;
    blocks.of[KVCTL_BLOCK_EVICTABLE] = entries - leased;
    blocks.of[KVCTL_BLOCK_USED] = used;
    /* Nobody can use a quarantined segment's other blocks until its owner is proved dead. */
    if (is_memory && state != KVI_SEGMENT_QUARANTINED)
        blocks.of[KVCTL_BLOCK_FREE] = rest;
    else
        blocks.of[KVCTL_BLOCK_WAITING] = rest;
    return blocks;
}

struct kvctl_blocks kvctl_map_count(const struct kvi_rec_segment_info *segment)
{
    return classify(segment->state, segment->total_blocks, segment->entry_blocks,
                    segment->leased_blocks, segment->used_blocks);
}

static void add(struct kvctl_blocks *sum, const struct kvctl_blocks *part)
{
    for (unsigned i = 0; i < KVCTL_BLOCK_CLASSES; i++)
        sum->of[i] += part->of[i];
}

static uint64_t total_of(const struct kvctl_blocks *blocks)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < KVCTL_BLOCK_CLASSES; i++)
        total += blocks->of[i];
    return total;
}

static uint64_t used_of(const struct kvctl_blocks *blocks)
{
    return blocks->of[KVCTL_BLOCK_LEASED] + blocks->of[KVCTL_BLOCK_EVICTABLE] +
           blocks->of[KVCTL_BLOCK_USED];
}

uint64_t kvctl_map_from_share(uint8_t share, uint64_t total)
{
    uint64_t blocks = (share * total + 127) / 255;

    if (share > 0 && blocks == 0)
        return 1;
    if (share < 255 && blocks == total)
        return total - 1;
    return blocks;
}

unsigned kvctl_map_cells(const struct kvi_rec_segment_info *segment,
                         struct kvctl_blocks cells[KVCTL_MAP_CELLS])
{
    uint32_t cell_blocks = segment->cell_blocks ? segment->cell_blocks : 1;
    unsigned count = 0;

    for (uint32_t first = 0; first < segment->total_blocks && count < KVCTL_MAP_CELLS; count++) {
        uint64_t total = least_of(cell_blocks, segment->total_blocks - first);

        cells[count] = classify(segment->state, total,
                                kvctl_map_from_share(segment->entry_cells[count], total),
                                kvctl_map_from_share(segment->leased_cells[count], total),
                                kvctl_map_from_share(segment->used_cells[count], total));
        first += (uint32_t)total;
    }
    return count;
}

unsigned kvctl_map_glyph(const struct kvctl_blocks *cell)
{
    unsigned most = 0;

    for (unsigned i = 1; i < KVCTL_BLOCK_CLASSES; i++)
        if (cell->of[i] > cell->of[most])
            most = i;
    return most * 2 + (cell->of[most] != total_of(cell));
}

/* ---- rows ----------------------------------------------------------------------------- */

static void name_owner(struct row *row, const struct kvctl_pool *pool, bool has_utf8)
{
    const struct kvi_rec_client_info *client;
    char name[KVCTL_NAME_BYTES];

    if (row->owner == KVI_NO_CLIENT) {
        strcpy(row->owner_text, "directory");
        return;
    }
    client = kvctl_pool_client(pool, row->owner);
    kvctl_clean(name, sizeof(name), client ? client->name : "", sizeof(client->name), has_utf8);
    snprintf(row->owner_text, sizeof(row->owner_text), "%u%s%.*s", row->owner, *name ? " " : "",
             (int)sizeof(row->owner_text) - 16, name);
}

/* How many of `cell_count` cells a glyph must stand for, so that all fit into `columns`. */
static unsigned cells_a_glyph(unsigned cell_count, unsigned columns)
{
    unsigned cells = 1;

    while ((cell_count + cells - 1) / cells > columns)
        cells *= 2;
    return cells;
}

static void make_row(struct row *row, const struct kvi_rec_segment_info *segment,
                     const struct kvctl_pool *pool, unsigned columns, bool has_utf8)
{
    const struct kvi_rec_space_info *space = kvctl_pool_space(pool, segment->space);
    struct kvctl_blocks cells[KVCTL_MAP_CELLS];
    struct kvctl_blocks count = kvctl_map_count(segment);
    unsigned cell_count = kvctl_map_cells(segment, cells);
    unsigned step = cells_a_glyph(cell_count, columns);

    memset(row, 0, sizeof(*row));
    row->first = row->last = segment->segment;
    row->space_id = segment->space;
    row->owner = segment->owner;
    row->state = segment->state;
    if (space)
        kvctl_clean(row->space, sizeof(row->space), space->name, sizeof(space->name), has_utf8);
    else
        snprintf(row->space, sizeof(row->space), "space %u", segment->space);
    name_owner(row, pool, has_utf8);
    kvctl_percent_short(row->used, used_of(&count), total_of(&count));
    for (unsigned i = 0; i < cell_count; i += step) {
        struct kvctl_blocks sum = cells[i];

        for (unsigned j = i + 1; j < i + step && j < cell_count; j++)
            add(&sum, &cells[j]);
        row->cells[row->cell_count++] = (uint8_t)kvctl_map_glyph(&sum);
    }
}

static bool looks_like(const struct row *a, const struct row *b)
{
    return !a->is_gap && !b->is_gap && a->space_id == b->space_id && a->owner == b->owner &&
           a->state == b->state && a->cell_count == b->cell_count &&
           memcmp(a->cells, b->cells, a->cell_count) == 0 && strcmp(a->used, b->used) == 0;
}

/* Rows of all segments into `rows` (room for twice as many). Returns how many. */
static size_t make_rows(struct row *rows, const struct kvctl_pool *pool, unsigned columns,
                        bool is_all, bool has_utf8)
{
    uint32_t next = 0;
    size_t used = 0;

    for (size_t i = 0; i < pool->segment_count; i++) {
        uint32_t number = pool->segments[i].segment;

        if (number > next && !pool->is_filtered)
            rows[used++] = (struct row){.first = next, .last = number - 1, .is_gap = true};
        make_row(&rows[used], &pool->segments[i], pool, columns, has_utf8);
        if (!is_all && used > 0 && rows[used - 1].last + 1 == number &&
            looks_like(&rows[used - 1], &rows[used]))
            rows[used - 1].last = number;
        else
            used++;
        next = number + 1;
    }
    for (size_t i = 0; i < used; i++)
        snprintf(rows[i].number, sizeof(rows[i].number),
                 rows[i].first == rows[i].last ? "%u" : "%u-%u", rows[i].first, rows[i].last);
    return used;
}

/* ---- layout --------------------------------------------------------------------------- */

static void widen(unsigned *columns, const char *text, unsigned limit)
{
    size_t wanted = kvctl_columns(text);

    if (wanted > limit)
        wanted = limit;
    if (wanted > *columns)
        *columns = (unsigned)wanted;
}

/* Take columns from the wider of the two names until they fit into `room`. */
static void share(unsigned *a, unsigned *b, unsigned room)
{
    while (*a + *b > room) {
        unsigned *wider = *a > *b ? a : b;

        if (*wider <= 1)
            return;
        --*wider;
    }
}

/* Columns for the widest of everything, then as many for cells, `columns` at most, as leave
 * names readable. */
static struct layout choose_layout(const struct row *rows, size_t row_count, unsigned columns,
                                   unsigned width)
{
    struct layout layout = {.number = 3, .space = 5, .owner = 5, .state = 5};
    unsigned fixed, names;

    for (size_t i = 0; i < row_count; i++) {
        widen(&layout.number, rows[i].number, 16);
        if (rows[i].is_gap)
            continue;
        widen(&layout.space, rows[i].space, SPACE_COLUMNS_MAX);
        widen(&layout.owner, rows[i].owner_text, OWNER_COLUMNS_MAX);
        widen(&layout.state, kvctl_segment_state_name(rows[i].state), 16);
    }
    fixed = layout.number + layout.state + USED_COLUMNS + 5 * GAP_COLUMNS;
    names = least_of(layout.space, NAME_COLUMNS_MIN) + least_of(layout.owner, NAME_COLUMNS_MIN);
    layout.cells = columns;
    while (layout.cells > 8 && fixed + names + layout.cells > width)
        layout.cells = (layout.cells + 1) / 2;
    share(&layout.space, &layout.owner,
          width > fixed + layout.cells ? width - fixed - layout.cells : 0);
    return layout;
}

/* ---- printing ------------------------------------------------------------------------- */

static const char *glyph_text(unsigned glyph, bool has_utf8)
{
    const struct class_look *look = &looks[glyph / 2];

    if (has_utf8)
        return glyph & 1 ? look->mixed_utf8 : look->solid_utf8;
    return glyph & 1 ? look->mixed_ascii : look->solid_ascii;
}

/* Glyphs in their colours, padded to `columns`. */
static void print_cells(FILE *out, const uint8_t *cells, unsigned count, unsigned columns,
                        const struct kvctl_style *style)
{
    unsigned current = KVCTL_BLOCK_CLASSES;

    for (unsigned i = 0; i < count; i++) {
        if (cells[i] / 2u != current) {
            current = cells[i] / 2u;
            fprintf(out, "%s%s", i ? kvctl_plain(style) : "",
                    kvctl_tone(style, looks[current].tone));
        }
        fputs(glyph_text(cells[i], style->has_utf8), out);
    }
    fprintf(out, "%s%*s", count ? kvctl_plain(style) : "",
            (int)(columns > count ? columns - count : 0), "");
}

static void print_gap(FILE *out)
{
    fprintf(out, "%*s", GAP_COLUMNS, "");
}

static void print_row(FILE *out, const struct row *row, const struct layout *layout,
                      const struct kvctl_style *style)
{
    kvctl_pad(out, row->number, layout->number, true, style->has_utf8);
    print_gap(out);
    if (row->is_gap) {
        fprintf(out, "%sno memory%s\n", kvctl_tone(style, KVCTL_TONE_DIM), kvctl_plain(style));
        return;
    }
    kvctl_pad(out, row->space, layout->space, false, style->has_utf8);
    print_gap(out);
    kvctl_pad(out, row->owner_text, layout->owner, false, style->has_utf8);
    print_gap(out);
    kvctl_pad(out, kvctl_segment_state_name(row->state), layout->state, false, style->has_utf8);
    print_gap(out);
    print_cells(out, row->cells, row->cell_count, layout->cells, style);
    print_gap(out);
    kvctl_pad(out, row->used, USED_COLUMNS, true, style->has_utf8);
    fputc('\n', out);
}

static void print_titles(FILE *out, const struct layout *layout, const struct kvctl_style *style)
{
    const struct {
        const char *text;
        unsigned columns;
        bool is_right;
    } titles[] = {{"seg", layout->number, true},    {"space", layout->space, false},
                  {"owner", layout->owner, false},  {"state", layout->state, false},
                  {"blocks", layout->cells, false}, {"used", USED_COLUMNS, true}};

    fputs(kvctl_tone(style, KVCTL_TONE_TITLE), out);
    for (unsigned i = 0; i < sizeof(titles) / sizeof(titles[0]); i++) {
        if (i > 0)
            print_gap(out);
        kvctl_pad(out, titles[i].text, titles[i].columns, titles[i].is_right, style->has_utf8);
    }
    fprintf(out, "%s\n", kvctl_plain(style));
}

/* All blocks as one bar: each class has its share of the columns, some never have none. */
static void print_sum(FILE *out, const struct kvctl_blocks *sum, const struct kvctl_pool *pool,
                      const struct layout *layout, const struct kvctl_style *style)
{
    uint64_t total = total_of(sum);
    uint64_t passed = 0;
    uint8_t bar[KVCTL_MAP_CELLS];
    unsigned at = 0;
    char text[64];

    for (unsigned i = 0; i < KVCTL_BLOCK_CLASSES && total; i++) {
        unsigned end, limit = layout->cells;

        passed += sum->of[i];
        for (unsigned j = i + 1; j < KVCTL_BLOCK_CLASSES; j++)
            limit -= sum->of[j] > 0;
        end = (unsigned)((double)passed / (double)total * layout->cells + 0.5);
        if (sum->of[i] && end <= at)
            end = at + 1;
        if (end > limit)
            end = limit;
        while (at < end)
            bar[at++] = (uint8_t)(i * 2);
    }
    snprintf(text, sizeof(text), "%s segment%s", KVCTL_COUNT(pool->segment_count),
             kvctl_plural(pool->segment_count));
    fputs(kvctl_tone(style, KVCTL_TONE_TITLE), out);
    kvctl_pad(out, "all", layout->number, true, style->has_utf8);
    print_gap(out);
    kvctl_pad(out, text, layout->space + layout->owner + layout->state + 2 * GAP_COLUMNS, false,
              style->has_utf8);
    fputs(kvctl_plain(style), out);
    print_gap(out);
    print_cells(out, bar, at, layout->cells, style);
    print_gap(out);
    kvctl_pad(out, kvctl_percent_short((char[KVCTL_TEXT_BYTES]){0}, used_of(sum), total),
              USED_COLUMNS, true, style->has_utf8);
    fputc('\n', out);
}

/* Glyph, meaning, blocks, share: two classes a line. Waiting blocks are named if there are any. */
static void print_legend(FILE *out, const struct kvctl_blocks *sum, const struct kvctl_style *style)
{
    bool is_two = style->width_columns >= 80;
    unsigned printed = 0;

    for (unsigned i = 0; i < KVCTL_BLOCK_CLASSES; i++) {
        const struct class_look *look = &looks[i];

        if (i == KVCTL_BLOCK_WAITING && sum->of[i] == 0)
            continue;
        fputs(printed == 0 ? "" : is_two && printed % 2 ? "    " : "\n", out);
        fprintf(out, "%s%s%s ", kvctl_tone(style, look->tone), glyph_text(i * 2, style->has_utf8),
                kvctl_plain(style));
        kvctl_pad(out, look->text, 17, false, style->has_utf8);
        fprintf(out, "%9s %8s", KVCTL_COUNT(sum->of[i]), KVCTL_PERCENT(sum->of[i], total_of(sum)));
        printed++;
    }
    fputc('\n', out);
}

/* What one glyph stands for; spaces may differ. */
static void print_scale(FILE *out, const struct kvctl_pool *pool, const struct layout *layout,
                        const struct kvctl_style *style)
{
    uint64_t least = UINT64_MAX;
    uint64_t most = 0;

    for (size_t i = 0; i < pool->segment_count; i++) {
        const struct kvi_rec_segment_info *segment = &pool->segments[i];
        uint64_t cell = segment->cell_blocks ? segment->cell_blocks : 1;
        uint64_t cells = (segment->total_blocks + cell - 1) / cell;
        uint64_t blocks = cell * cells_a_glyph((unsigned)cells, layout->cells);

        least = blocks < least ? blocks : least;
        most = blocks > most ? blocks : most;
    }
    fputs(kvctl_tone(style, KVCTL_TONE_DIM), out);
    if (least == most)
        fprintf(out, "A cell is %s block%s", KVCTL_COUNT(least), kvctl_plural(least));
    else
        fprintf(out, "A cell is %s to %s blocks, by space", KVCTL_COUNT(least), KVCTL_COUNT(most));
    if (most > 1) {
        fputs(style->width_columns >= 80 ? "; " : ";\n", out);
        fputs("mixed ones show the majority:", out);
        for (unsigned i = 0; i < KVCTL_BLOCK_CLASSES; i++)
            if (i != KVCTL_BLOCK_WAITING)
                fprintf(out, " %s", glyph_text(i * 2 + 1, style->has_utf8));
    }
    fprintf(out, ".%s\n", kvctl_plain(style));
}

static void print_head(FILE *out, const struct kvctl_pool *pool, const char *title,
                       const struct kvctl_style *style)
{
    const struct kvi_msg_stats_reply *stats = &pool->stats;

    if (title)
        fprintf(out, "%s%s%s\n", kvctl_tone(style, KVCTL_TONE_TITLE), title, kvctl_plain(style));
    fprintf(out, "device %s: %s (%s) in %s segment%s, %s without one\n\n",
            KVCTL_BYTES(stats->device_bytes), KVCTL_BYTES(stats->segment_bytes),
            KVCTL_PERCENT(stats->segment_bytes, stats->device_bytes),
            KVCTL_COUNT(stats->segment_count), kvctl_plural(stats->segment_count),
            KVCTL_BYTES(stats->free_bytes));
}

static void print_empty(FILE *out, const struct kvctl_pool *pool)
{
    if (pool->is_filtered)
        fputs("The space has no segment now.\n", out);
    else
        fputs("No segment has memory: segments come when a client asks for its first block.\n",
              out);
}

static void print_rows(FILE *out, const struct row *rows, size_t row_count,
                       const struct layout *layout, const struct kvctl_map_options *options,
                       const struct kvctl_style *style)
{
    size_t shown = row_count;

    if (options->row_limit && row_count > options->row_limit)
        shown = options->row_limit > 1 ? options->row_limit - 1 : 1;
    for (size_t i = 0; i < shown; i++)
        print_row(out, &rows[i], layout, style);
    if (shown < row_count)
        fprintf(out, "%s%*s  %s %zu more rows: a taller terminal, --space, or no --every%s\n",
                kvctl_tone(style, KVCTL_TONE_DIM), (int)layout->number, "",
                style->has_utf8 ? "…" : "...", row_count - shown, kvctl_plain(style));
}

void kvctl_map_print(FILE *out, const struct kvctl_pool *pool,
                     const struct kvctl_map_options *options, const struct kvctl_style *style)
{
    struct row *rows = calloc(pool->segment_count * 2 + 1, sizeof(*rows));
    struct kvctl_blocks sum = {{0}};
    struct layout layout = {.cells = 6}; /* the title "blocks" */
    unsigned tried;
    size_t row_count;

    if (!rows) {
        fputs("no memory to draw with\n", out);
        return;
    }
    print_head(out, pool, options->title, style);
    for (size_t i = 0; i < pool->segment_count; i++) {
        struct kvctl_blocks cells[KVCTL_MAP_CELLS];
        struct kvctl_blocks part = kvctl_map_count(&pool->segments[i]);
        unsigned count = kvctl_map_cells(&pool->segments[i], cells);

        layout.cells = count > layout.cells ? count : layout.cells;
        add(&sum, &part);
    }
    /* Fewer glyphs a row may fold more rows, which changes the columns: until it settles. */
    do {
        tried = layout.cells;
        row_count = make_rows(rows, pool, tried, options->is_all, style->has_utf8);
        layout = choose_layout(rows, row_count, tried, style->width_columns);
    } while (layout.cells != tried);
    if (row_count == 0) {
        print_empty(out, pool);
    } else {
        print_titles(out, &layout, style);
        print_rows(out, rows, row_count, &layout, options, style);
        print_sum(out, &sum, pool, &layout, style);
        fputc('\n', out);
        print_legend(out, &sum, style);
        print_scale(out, pool, &layout, style);
    }
    free(rows);
}
