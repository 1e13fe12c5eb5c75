/* SPDX-License-Identifier: Apache-2.0
 *
 * Block tables as kernels read them: padded, CSR, slots, view, on sequences whose tables are known;
 * and what is refused before anything is written.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "support/scripted.h"

enum {
    N = 4
};

static const uint32_t tokens[N] = {0, 4, 5, 11};

struct scene {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_seq seqs[N];
    const int32_t *views[N];
};

static void begin(struct scene *s)
{
    struct kvmem_embed_options embed = {
        .size = sizeof(embed), .device_bytes = 1 << 20, .granule_bytes = 4096};
    struct kvmem_space_options options = kvt_small_space("table");

    cr_assert(kvmem_client_embed(&embed, &s->client) == 0);
    cr_assert(kvmem_space_open(s->client, &options, &s->space) == 0);
    cr_assert(kvmem_space_reserve(s->space, 32, 0) == 0);
    cr_assert(kvmem_seqs_create(s->space, N, s->seqs) == 0);
    cr_assert(kvmem_seqs_append(s->space, N, s->seqs, tokens, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_reserve(s->space, s->seqs[1], 8) == 0);
    for (int i = 0; i < N; i++)
        cr_assert(kvmem_table_view(s->space, 0, s->seqs[i], &s->views[i]) ==
                  (int)(tokens[i] + 3) / 4 + (i == 1 ? 2 : 0));
}

static void end(struct scene *s)
{
    cr_assert(kvmem_client_check(s->client) == 0);
    kvmem_client_close(s->client);
}

Test(table, padded)
{
    int32_t rows[N][5], lengths[N], exact[N][3];
    struct scene s;

    begin(&s);
    memset(rows, 1, sizeof(rows));
    cr_assert(kvmem_table_padded(s.space, 0, N, s.seqs, 5, rows[0], lengths) == 0);
    for (uint32_t i = 0; i < N; i++) {
        uint32_t used = (tokens[i] + 3) / 4;

        cr_assert(lengths[i] == (int32_t)tokens[i]);
        for (uint32_t j = 0; j < 5; j++)
            cr_assert(rows[i][j] == (j < used ? s.views[i][j] : KVMEM_BLOCK_NONE));
    }
    cr_assert(kvmem_table_padded(s.space, 0, N, s.seqs, 3, exact[0], NULL) == 0);
    cr_assert(exact[3][2] == s.views[3][2] && exact[2][2] == KVMEM_BLOCK_NONE);
    memset(rows, 1, sizeof(rows));
    cr_assert(kvmem_table_padded(s.space, 0, N, s.seqs, 2, rows[0], lengths) == KVMEM_E_INVALID);
    cr_assert(strstr(kvmem_error_detail()->text, "seqs[3]") && rows[0][0] == 0x01010101);
    cr_assert(kvmem_table_padded(s.space, 1, N, s.seqs, 5, rows[0], lengths) == KVMEM_E_INVALID);
    cr_assert(kvmem_table_padded(s.space, 0, 0, NULL, 5, NULL, NULL) == 0);
    cr_assert(kvmem_table_padded(s.space, 0, 1, s.seqs, 0, NULL, NULL) == 0, "an empty one fits");
    cr_assert(kvmem_table_padded(s.space, 0, 1, s.seqs, 1, NULL, NULL) == KVMEM_E_INVALID);
    end(&s);
}

Test(table, csr)
{
    int32_t indptr[N + 1], indices[8], last[N];
    struct scene s;

    begin(&s);
    cr_assert(kvmem_table_csr(s.space, 0, N, s.seqs, 8, indptr, indices, last) == 6);
    cr_assert(indptr[0] == 0 && indptr[1] == 0 && indptr[2] == 1 && indptr[3] == 3 &&
              indptr[4] == 6);
    cr_assert(last[0] == 0 && last[1] == 4 && last[2] == 1 && last[3] == 3);
    cr_assert(indices[0] == s.views[1][0] && indices[2] == s.views[2][1] &&
              indices[5] == s.views[3][2]);
    indices[0] = 77;
    cr_assert(kvmem_table_csr(s.space, 0, N, s.seqs, 5, indptr, indices, last) == KVMEM_E_INVALID);
    cr_assert(indices[0] == 77);
    cr_assert(kvmem_table_csr(s.space, 0, N, s.seqs, 6, indptr, indices, last) == 6);
    cr_assert(kvmem_table_csr(s.space, 0, 0, NULL, 0, indptr, NULL, NULL) == 0 && !indptr[0]);
    cr_assert(kvmem_table_csr(s.space, 0, N, s.seqs, 8, NULL, indices, last) == KVMEM_E_INVALID);
    end(&s);
}

Test(table, slots)
{
    uint32_t counts[N] = {0, 2, 5, 7};
    uint32_t too_many[N] = {1, 0, 0, 0};
    int64_t slots[14];
    struct scene s;

    begin(&s);
    cr_assert(kvmem_table_slots(s.space, 0, N, s.seqs, counts, 14, slots) == 14);
    cr_assert(slots[0] == s.views[1][0] * INT64_C(4) + 2 && slots[1] == slots[0] + 1);
    cr_assert(slots[2] == s.views[2][0] * INT64_C(4) && slots[6] == s.views[2][1] * INT64_C(4));
    cr_assert(slots[7] == s.views[3][1] * INT64_C(4) &&
              slots[13] == s.views[3][2] * INT64_C(4) + 2);
    cr_assert(kvmem_table_slots(s.space, 0, N - 1, s.seqs + 1, NULL, 3, slots) == 3);
    cr_assert(slots[1] == s.views[2][1] * INT64_C(4));
    cr_assert(kvmem_table_slots(s.space, 0, N, s.seqs, counts, 13, slots) == KVMEM_E_INVALID);
    cr_assert(kvmem_table_slots(s.space, 0, N, s.seqs, too_many, 14, slots) == KVMEM_E_INVALID);
    cr_assert(strstr(kvmem_error_detail()->text, "counts[0]"));
    end(&s);
}

Test(table, stale_and_null)
{
    struct kvmem_seq stale;
    const int32_t *view;
    int32_t numbers[16];
    int64_t slots[4];
    struct scene s;

    begin(&s);
    stale = s.seqs[2];
    cr_assert(kvmem_seq_free(s.space, stale, kvmem_fence_none()) == 0);
    cr_assert(kvmem_table_padded(s.space, 0, 1, &stale, 8, numbers, NULL) == KVMEM_E_STALE);
    cr_assert(kvmem_table_csr(s.space, 0, 1, &stale, 8, numbers, numbers + 2, numbers + 12) ==
              KVMEM_E_STALE);
    cr_assert(kvmem_table_slots(s.space, 0, 1, &stale, NULL, 4, slots) == KVMEM_E_STALE);
    cr_assert(kvmem_table_view(s.space, 0, stale, &view) == KVMEM_E_STALE);
    cr_assert(kvmem_table_view(s.space, 0, s.seqs[0], NULL) == KVMEM_E_INVALID);
    cr_assert(kvmem_table_view(NULL, 0, s.seqs[0], &view) == KVMEM_E_INVALID);
    cr_assert(kvmem_table_padded(s.space, 0, 1, NULL, 8, numbers, NULL) == KVMEM_E_INVALID);
    end(&s);
}
