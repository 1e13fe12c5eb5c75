/* SPDX-License-Identifier: Apache-2.0
 *
 * The arithmetic of fragmentation, and its tables.
 */
#include "frag.h"

#include <string.h>

#include "map.h"
#include "text.h"

/* ---- arithmetic ----------------------------------------------------------------------- */

static void add_segment(const struct kvi_rec_space_info *space,
                        const struct kvi_rec_segment_info *segment, struct kvctl_frag *out)
{
    struct kvctl_blocks blocks = kvctl_map_count(segment);
    uint64_t private_blocks = blocks.of[KVCTL_BLOCK_USED];
    uint64_t private_slots = private_blocks * space->block_tokens;
    uint64_t private_tokens = segment->used_tokens;
    uint64_t used =
        blocks.of[KVCTL_BLOCK_LEASED] + blocks.of[KVCTL_BLOCK_EVICTABLE] + private_blocks;
    uint64_t free_blocks = blocks.of[KVCTL_BLOCK_FREE];

    if (private_tokens > private_slots)
        private_tokens = private_slots;
    out->segment_count++;
    out->total_blocks += segment->total_blocks;
    out->used_blocks += used;
    out->waiting_blocks += blocks.of[KVCTL_BLOCK_WAITING];
    out->unused_slot_tokens += private_slots - private_tokens;
    out->referenced_bytes += (blocks.of[KVCTL_BLOCK_LEASED] + private_blocks) * space->block_bytes;
    if (used == 0) {
        out->empty_segments += free_blocks > 0;
        out->empty_bytes += free_blocks * space->block_bytes;
    } else {
        out->partly_used_segments += free_blocks > 0;
        out->external_blocks += free_blocks;
        out->external_bytes += free_blocks * space->block_bytes;
    }
}

void kvctl_frag_space(const struct kvi_rec_space_info *space,
                      const struct kvi_rec_segment_info *segments, size_t segment_count,
                      struct kvctl_frag *out)
{
    uint64_t floor_segments;
    uint64_t stride = space->index_stride_bytes;

    memset(out, 0, sizeof(*out));
    for (size_t i = 0; i < segment_count; i++)
        if (segments[i].space == space->space)
            add_segment(space, &segments[i], out);

    out->segment_bytes = out->total_blocks * stride;
    if (stride > space->block_bytes)
        out->padding_bytes = out->total_blocks * (stride - space->block_bytes);
    out->waiting_bytes = out->waiting_blocks * space->block_bytes;
    out->internal_bytes = (uint64_t)((unsigned __int128)out->unused_slot_tokens *
                                     space->block_bytes / space->block_tokens);
    out->token_bytes = out->used_blocks * space->block_bytes - out->internal_bytes;

    floor_segments = (out->used_blocks + space->blocks_per_segment - 1) / space->blocks_per_segment;
    if (out->segment_count > floor_segments)
        out->over_floor_segments = out->segment_count - floor_segments;
    out->over_floor_bytes = out->over_floor_segments * space->blocks_per_segment * stride;
    out->saved_bytes = space->shared_saved_bytes;
    out->virtual_bytes = out->referenced_bytes + out->saved_bytes;
}

void kvctl_frag_add(struct kvctl_frag *total, const struct kvctl_frag *part)
{
    /* All fields are sums. */
    uint64_t *to = (uint64_t *)total;
    const uint64_t *from = (const uint64_t *)part;

    for (size_t i = 0; i < sizeof(*total) / sizeof(*to); i++)
        to[i] += from[i];
}

void kvctl_frag_advise(const struct kvctl_frag *frag, uint32_t block_tokens, char *text,
                       size_t text_bytes)
{
    const struct {
        uint64_t bytes;
        const char *advice;
    } kinds[] = {
        {frag->internal_bytes,
         "most of the rest is the unfilled end of sequences' last blocks: a smaller block_tokens "
         "would waste less"},
        {frag->external_bytes,
         "most of the rest is free blocks between used ones, which owners fill first; "
         "kvmem_space_trim in idle clients hands segments in for others to adopt"},
        {frag->empty_bytes, "most of the rest is segments kept in reserve: kvmem_space_trim hands "
                            "them in, a lower refill_blocks asks for fewer"},
        {frag->waiting_bytes, "most of the rest comes back by itself when processes that hold it "
                              "have ended or unmapped it: `kvmemctl clients` shows them"},
        {frag->padding_bytes,
         "most of the rest is padding: another block_tokens fits the segment better, see "
         "kvmem_geometry_plan"},
    };
    unsigned most = 0;
    int used;

    if (frag->segment_bytes == 0) {
        snprintf(text, text_bytes, "It holds no segment now.");
        return;
    }
    used = snprintf(text, text_bytes, "%s of the memory holds tokens",
                    KVCTL_PERCENT(frag->token_bytes, frag->segment_bytes));
    if (frag->token_bytes >= frag->segment_bytes - frag->segment_bytes / 25) {
        snprintf(text + used, text_bytes - (size_t)used, ": packed well, nothing to do.");
        return;
    }
    for (unsigned i = 1; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (kinds[i].bytes > kinds[most].bytes)
            most = i;
    used += snprintf(text + used, text_bytes - (size_t)used, "; %s", kinds[most].advice);
    if (most == 0 && block_tokens)
        used += snprintf(text + used, text_bytes - (size_t)used, " (now %u)", block_tokens);
    snprintf(text + used, text_bytes - (size_t)used, ".");
}

/* ---- tables --------------------------------------------------------------------------- */

#define NAME_COLUMNS    12
#define MEANING_COLUMNS 45
#define BYTES_COLUMNS   11
#define PERCENT_COLUMNS 9

/* "name       what it is                         bytes     share" */
static void print_line(FILE *out, const char *name, const char *meaning, uint64_t bytes,
                       uint64_t whole, const struct kvctl_style *style)
{
    fputs("  ", out);
    kvctl_pad(out, name, NAME_COLUMNS, false, style->has_utf8);
    fputs(kvctl_tone(style, KVCTL_TONE_DIM), out);
    kvctl_pad(out, meaning, MEANING_COLUMNS, false, style->has_utf8);
    fputs(kvctl_plain(style), out);
    kvctl_pad(out, KVCTL_BYTES(bytes), BYTES_COLUMNS, true, style->has_utf8);
    kvctl_pad(out, KVCTL_PERCENT(bytes, whole), PERCENT_COLUMNS, true, style->has_utf8);
    fputc('\n', out);
}

static void print_rule(FILE *out, const struct kvctl_style *style)
{
    fprintf(out, "  %s", kvctl_tone(style, KVCTL_TONE_DIM));
    for (unsigned i = 0; i < NAME_COLUMNS + MEANING_COLUMNS + BYTES_COLUMNS + PERCENT_COLUMNS; i++)
        fputs(style->has_utf8 ? "─" : "-", out);
    fprintf(out, "%s\n", kvctl_plain(style));
}

/* Words in lines of 78 columns, two in front. */
static void print_wrapped(FILE *out, const char *text)
{
    size_t column = 0;

    while (*text) {
        size_t word = strcspn(text, " ");

        if (column > 0 && column + 1 + word > 76) {
            fputc('\n', out);
            column = 0;
        }
        fprintf(out, "%s%.*s", column ? " " : "  ", (int)word, text);
        column += word + (column > 0);
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void print_account(FILE *out, const struct kvctl_frag *frag, const struct kvctl_style *style)
{
    uint64_t whole = frag->segment_bytes;
    char text[96];

    print_line(out, "tokens", "slots that hold a token", frag->token_bytes, whole, style);
    snprintf(text, sizeof(text), "%s unused token slot%s in used blocks",
             KVCTL_COUNT(frag->unused_slot_tokens), kvctl_plural(frag->unused_slot_tokens));
    print_line(out, "internal", text, frag->internal_bytes, whole, style);
    snprintf(text, sizeof(text), "%s free block%s in %s partly used segment%s",
             KVCTL_COUNT(frag->external_blocks), kvctl_plural(frag->external_blocks),
             KVCTL_COUNT(frag->partly_used_segments), kvctl_plural(frag->partly_used_segments));
    print_line(out, "external", text, frag->external_bytes, whole, style);
    snprintf(text, sizeof(text), "%s segment%s without a used block",
             KVCTL_COUNT(frag->empty_segments), kvctl_plural(frag->empty_segments));
    print_line(out, "empty", text, frag->empty_bytes, whole, style);
    if (frag->waiting_blocks)
        print_line(out, "waiting", "blocks of processes not yet gone", frag->waiting_bytes, whole,
                   style);
    print_line(out, "padding", "between blocks, by the stride", frag->padding_bytes, whole, style);
    print_rule(out, style);
    snprintf(text, sizeof(text), "%s segment%s, %s blocks", KVCTL_COUNT(frag->segment_count),
             kvctl_plural(frag->segment_count), KVCTL_COUNT(frag->total_blocks));
    print_line(out, "together", text, whole, whole, style);
}

static void print_beside(FILE *out, const struct kvctl_frag *frag, const struct kvctl_style *style)
{
    char text[96];

    fputc('\n', out);
    snprintf(text, sizeof(text), "%s segment%s more than the packed floor",
             KVCTL_COUNT(frag->over_floor_segments), kvctl_plural(frag->over_floor_segments));
    print_line(out, "over floor", text, frag->over_floor_bytes, frag->segment_bytes, style);
    print_line(out, "saved", "by sharing between clients (% of virtual)", frag->saved_bytes,
               frag->virtual_bytes, style);
    if (frag->referenced_bytes)
        snprintf(text, sizeof(text), "what clients hold, %.2f times the physical",
                 (double)frag->virtual_bytes / (double)frag->referenced_bytes);
    else
        snprintf(text, sizeof(text), "what clients hold: nothing now");
    print_line(out, "virtual", text, frag->virtual_bytes, frag->segment_bytes, style);
}

static void print_table(FILE *out, const char *heading, const struct kvctl_frag *frag,
                        uint32_t block_tokens, const struct kvctl_style *style)
{
    char advice[400];

    fprintf(out, "%s%s%s\n", kvctl_tone(style, KVCTL_TONE_TITLE), heading, kvctl_plain(style));
    kvctl_frag_advise(frag, block_tokens, advice, sizeof(advice));
    if (frag->segment_bytes) {
        print_account(out, frag, style);
        print_beside(out, frag, style);
        fputc('\n', out);
    }
    print_wrapped(out, advice);
    fputc('\n', out);
}

void kvctl_frag_print(FILE *out, const struct kvctl_pool *pool, const char *title,
                      const struct kvctl_style *style)
{
    struct kvctl_frag total = {0};
    char heading[512];

    if (title)
        fprintf(out, "%s%s%s\n\n", kvctl_tone(style, KVCTL_TONE_TITLE), title, kvctl_plain(style));
    if (pool->space_count == 0)
        fputs("No client has opened a space yet: nothing is held, nothing is wasted.\n", out);
    for (size_t i = 0; i < pool->space_count; i++) {
        const struct kvi_rec_space_info *space = &pool->spaces[i];
        char name[KVCTL_NAME_BYTES], domain[KVCTL_NAME_BYTES];
        struct kvctl_frag frag;

        kvctl_frag_space(space, pool->segments, pool->segment_count, &frag);
        kvctl_frag_add(&total, &frag);
        kvctl_clean(name, sizeof(name), space->name, sizeof(space->name), style->has_utf8);
        kvctl_clean(domain, sizeof(domain), space->domain, sizeof(space->domain), style->has_utf8);
        snprintf(heading, sizeof(heading), "space %s in domain %s: blocks of %u tokens, %s", name,
                 domain, space->block_tokens, KVCTL_BYTES(space->block_bytes));
        print_table(out, heading, &frag, space->block_tokens, style);
    }
    if (pool->space_count > 1) {
        snprintf(heading, sizeof(heading), "all %zu spaces", pool->space_count);
        print_table(out, heading, &total, 0, style);
    }
}
