/* SPDX-License-Identifier: Apache-2.0
 *
 * The harness of support/attention.h is itself held to account: a wrong result must fail.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "support/attention.h"

static const struct kvt_attention_case SMALL = {.seed = 1,
                                                .seq_count = 2,
                                                .row_count = 3,
                                                .length = 50,
                                                .heads = 4,
                                                .kv_heads = 2,
                                                .dim_k = 64,
                                                .flags = KVA_CAUSAL,
                                                .has_padded_rows = true,
                                                .has_offsets = true};

Test(attention_rule, a_right_result_passes)
{
    const char *text = kvt_attention_check(&SMALL, &kvt_host_memory, "portable", NULL);

    cr_assert_null(text, "%s", text);
}
