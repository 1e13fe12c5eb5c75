/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables on the device, in small: what each change of a batch costs, what is refused, and that a
 * refusal changes nothing.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "client/device_table.h"
#include "client/seq.h"
#include "support/scripted.h"

enum {
    ROWS = 8,
    BLOCKS = 10
};

struct scene {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_device_table *table;
    struct kvmem_device_table_info info;
    struct kvmem_seq seqs[4]; /* 0, 4, 5 and 11 tokens: 0, 1, 2 and 3 blocks */
};

static int create(struct scene *s, uint32_t rows, uint32_t blocks)
{
    struct kvmem_device_table_options options = {
        .size = sizeof(options), .row_limit = rows, .block_limit = blocks};

    return kvmem_device_table_create(s->space, &options, &s->table);
}

static void begin(struct scene *s)
{
    static const uint32_t tokens[] = {0, 4, 5, 11};
    struct kvmem_embed_options embed = {
        .size = sizeof(embed), .device_bytes = 1 << 20, .granule_bytes = 4096};
    struct kvmem_space_options options = kvt_small_space("table");

    memset(s, 0, sizeof(*s));
    cr_assert(kvmem_client_embed(&embed, &s->client) == 0);
    cr_assert(kvmem_space_open(s->client, &options, &s->space) == 0);
    cr_assert(kvmem_space_reserve(s->space, 64, 0) == 0);
    cr_assert(kvmem_seqs_create(s->space, 4, s->seqs) == 0);
    cr_assert(kvmem_seqs_append(s->space, 4, s->seqs, tokens, kvmem_fence_none()) == 0);
    cr_assert(create(s, ROWS, BLOCKS) == 0, "%s", kvmem_error_detail()->text);
    s->info.size = sizeof(s->info);
    cr_assert(kvmem_device_table_info(s->table, &s->info) == 0);
}

static void end(struct scene *s)
{
    kvmem_device_table_destroy(s->table);
    cr_assert(kvmem_client_check(s->client) == 0);
    kvmem_client_close(s->client);
}

/* An update writes `wanted` cells, and the table then is what kvmem_table_padded says. */
static void update(struct scene *s, uint32_t n, const struct kvmem_seq *seqs, int wanted)
{
    int32_t rows[ROWS][BLOCKS], lengths[ROWS];
    int cells = kvmem_device_table_update(s->table, n, seqs, NULL);

    cr_assert(cells == wanted, "%d cells, not %d: %s", cells, wanted, kvmem_error_detail()->text);
    memset(rows, 0xff, sizeof(rows));
    memset(lengths, 0, sizeof(lengths));
    cr_assert(kvmem_table_padded(s->space, 0, n, seqs, BLOCKS, rows[0], lengths) == 0);
    cr_assert(memcmp(rows, s->info.tables, sizeof(rows)) == 0);
    cr_assert(memcmp(lengths, s->info.lengths, sizeof(lengths)) == 0);
}

static void refused(struct scene *s, int code, const char *word, int result)
{
    struct kvmem_device_table_info now = {.size = sizeof(now)};

    (void)s;
    cr_assert(result == code, "%s: %s", kvmem_error_name(result), kvmem_error_detail()->text);
    cr_assert(strstr(kvmem_error_detail()->text, word), "'%s' lacks '%s'",
              kvmem_error_detail()->text, word);
    if (s->table == NULL)
        return;
    cr_assert(kvmem_device_table_info(s->table, &now) == 0);
    cr_assert(now.updates == s->info.updates && now.cells == s->info.cells);
}

Test(device_table, it_begins_empty)
{
    struct scene s;

    begin(&s);
    cr_assert(s.info.row_limit == ROWS && s.info.block_limit == BLOCKS && s.info.rows == 0);
    cr_assert(s.info.updates == 0 && s.info.cells == 0);
    for (int i = 0; i < ROWS; i++) {
        cr_assert(s.info.lengths[i] == 0);
        for (int j = 0; j < BLOCKS; j++)
            cr_assert(s.info.tables[i * BLOCKS + j] == KVMEM_BLOCK_NONE);
    }
    update(&s, 0, NULL, 0);
    end(&s);
}

Test(device_table, an_update_writes_what_has_changed)
{
    static const uint32_t one[] = {1, 1, 1, 1};
    static const uint32_t few[] = {0, 0, 3, 0};
    struct kvmem_seq turned[4];
    struct scene s;

    begin(&s);
    update(&s, 4, s.seqs, 3 + 6); /* lengths that are not 0, blocks */
    update(&s, 4, s.seqs, 0);
    cr_assert(kvmem_seqs_append(s.space, 4, s.seqs, one, kvmem_fence_none()) == 0);
    update(&s, 4, s.seqs, 4 + 2); /* of 1, 5, 6 and 12 tokens */
    cr_assert(kvmem_seqs_append(s.space, 4, s.seqs, few, kvmem_fence_none()) == 0);
    update(&s, 4, s.seqs, 1 + 1); /* of 9 tokens */
    for (int i = 0; i < 4; i++)
        turned[i] = s.seqs[3 - i];
    update(&s, 4, turned, 4 + 3 + 3 + 3 + 3); /* 1 2 3 3 blocks, where 3 3 2 1 come: rows whole */
    update(&s, 1, turned, 3 + 3 + 2 + 1);     /* rows 1 to 3 are cleared */
    update(&s, 0, NULL, 1 + 3);
    cr_assert(kvmem_device_table_info(s.table, &s.info) == 0);
    cr_assert(s.info.rows == 0 && s.info.updates == 7 && s.info.cells == 9 + 6 + 2 + 16 + 9 + 4);
    end(&s);
}

Test(device_table, replaced_blocks_are_seen)
{
    struct kvmem_seq pair[2];
    struct scene s;

    begin(&s);
    pair[0] = s.seqs[3];
    cr_assert(kvmem_seq_fork(s.space, s.seqs[3], &pair[1]) == 0);
    update(&s, 2, pair, 2 + 6);
    cr_assert(kvmem_seq_append(s.space, pair[1], 1, kvmem_fence_none()) == 0); /* copies the tail */
    update(&s, 2, pair, 1 + 3);
    cr_assert(kvmem_seq_truncate(s.space, pair[0], 10, kvmem_fence_none()) == 0);
    update(&s, 2, pair, 1); /* the same blocks */
    cr_assert(kvmem_seq_truncate(s.space, pair[0], 2, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_append(s.space, pair[0], 8, kvmem_fence_none()) == 0);
    update(&s, 2, pair, 3); /* as long as before, other blocks */
    cr_assert(kvmem_seq_free(s.space, pair[0], kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_create(s.space, &pair[0]) == 0); /* at the same place */
    update(&s, 2, pair, 1 + 3);
    end(&s);
}

/* A version that was counted to its end is never trusted. */
Test(device_table, versions_do_not_wrap)
{
    struct kvi_seq *seq;
    struct scene s;

    begin(&s);
    seq = kvi_seq_find(s.space, s.seqs[3]);
    seq->table_version = KVI_SEQ_VERSION_UNKNOWN - 1;
    update(&s, 1, s.seqs + 3, 1 + 3);
    update(&s, 1, s.seqs + 3, 0);
    kvi_seq_table_changed(seq);
    update(&s, 1, s.seqs + 3, 3);
    kvi_seq_table_changed(seq);
    cr_assert(seq->table_version == KVI_SEQ_VERSION_UNKNOWN);
    update(&s, 1, s.seqs + 3, 3);
    end(&s);
}

Test(device_table, a_sequence_may_have_several_rows)
{
    struct kvmem_seq all[ROWS];
    struct scene s;

    begin(&s);
    for (int i = 0; i < ROWS; i++)
        all[i] = s.seqs[3];
    update(&s, ROWS, all, ROWS * (1 + 3)); /* all that the table has rows for */
    end(&s);
}

Test(device_table, bad_options_are_named)
{
    struct kvmem_device_table_options options = {
        .size = sizeof(options), .row_limit = 1, .block_limit = 1};
    struct kvmem_device_table_info info = {.size = 4};
    struct scene s;

    begin(&s);
    kvmem_device_table_destroy(s.table);
    kvmem_device_table_destroy(NULL);
    s.table = NULL;
    refused(&s, KVMEM_E_INVALID, "space", kvmem_device_table_create(NULL, &options, &s.table));
    refused(&s, KVMEM_E_INVALID, "options", kvmem_device_table_create(s.space, NULL, &s.table));
    refused(&s, KVMEM_E_INVALID, "out", kvmem_device_table_create(s.space, &options, NULL));
    options.size = 8;
    refused(&s, KVMEM_E_INVALID, "size", kvmem_device_table_create(s.space, &options, &s.table));
    options.size = sizeof(options);
    options.group = 1;
    refused(&s, KVMEM_E_INVALID, "group", kvmem_device_table_create(s.space, &options, &s.table));
    refused(&s, KVMEM_E_INVALID, "row_limit", create(&s, 0, 1));
    refused(&s, KVMEM_E_INVALID, "row_limit", create(&s, KVI_DEVICE_TABLE_ROWS + 1, 1));
    refused(&s, KVMEM_E_INVALID, "block_limit", create(&s, 1, 0));
    refused(&s, KVMEM_E_INVALID, "block_limit", create(&s, 1, KVI_DEVICE_TABLE_BLOCKS + 1));
    refused(&s, KVMEM_E_INVALID, "2^31", create(&s, 4096, 524288));
    cr_assert(create(&s, KVI_DEVICE_TABLE_ROWS, 1) == 0);
    refused(&s, KVMEM_E_INVALID, "table", kvmem_device_table_info(NULL, &info));
    refused(&s, KVMEM_E_INVALID, "out", kvmem_device_table_info(s.table, NULL));
    refused(&s, KVMEM_E_INVALID, "size", kvmem_device_table_info(s.table, &info));
    end(&s);
}

Test(device_table, a_refused_update_changes_nothing)
{
    struct kvmem_seq gone[2];
    struct kvi_seq *seq;
    uint64_t appended;
    struct scene s;

    begin(&s);
    update(&s, 4, s.seqs, 9);
    cr_assert(kvmem_device_table_info(s.table, &s.info) == 0);
    cr_assert(kvmem_seq_append(s.space, s.seqs[0], 4 * BLOCKS + 1, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_append(s.space, s.seqs[1], 1, kvmem_fence_none()) == 0);
    refused(&s, KVMEM_E_INVALID, "block_limit",
            kvmem_device_table_update(s.table, 4, s.seqs, NULL));
    gone[0] = s.seqs[1];
    gone[1] = (struct kvmem_seq){s.seqs[2].index, s.seqs[2].generation + 2};
    refused(&s, KVMEM_E_STALE, "does not exist", kvmem_device_table_update(s.table, 2, gone, NULL));
    refused(&s, KVMEM_E_INVALID, "seqs", kvmem_device_table_update(s.table, 1, NULL, NULL));
    refused(&s, KVMEM_E_INVALID, "table", kvmem_device_table_update(NULL, 1, gone, NULL));
    refused(&s, KVMEM_E_INVALID, "row_limit",
            kvmem_device_table_update(s.table, ROWS + 1, s.seqs, NULL));
    refused(&s, KVMEM_E_NOT_SUPPORTED, "stream",
            kvmem_device_table_update(s.table, 1, s.seqs + 1, &s));
    seq = kvi_seq_find(s.space, s.seqs[3]);
    appended = seq->appended;
    seq->appended = (uint64_t)INT32_MAX + 1;
    s.table->block_limit = UINT32_MAX;
    refused(&s, KVMEM_E_INVALID, "int32", kvmem_device_table_update(s.table, 1, s.seqs + 3, NULL));
    seq->appended = appended;
    s.table->block_limit = BLOCKS;
    cr_assert(s.info.lengths[1] == 4 && s.info.lengths[0] == 0);
    cr_assert(kvmem_seq_truncate(s.space, s.seqs[0], 0, kvmem_fence_none()) == 0);
    update(&s, 4, s.seqs, 1 + 1);
    end(&s);
}
