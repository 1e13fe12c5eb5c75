/* SPDX-License-Identifier: Apache-2.0
 *
 * Results: between processes as JSON lines, at the end for people or programs.
 */
#ifndef KVB_REPLAY_REPORT_H
#define KVB_REPLAY_REPORT_H

#include <stdio.h>

#include "counts.h"
#include "options.h"

struct kvb_outcome {
    struct kvb_counts counts;
    uint64_t cross_client_hit_blocks;
    uint64_t evictions;
    uint64_t adoptions;
    uint64_t leaked_blocks;
    uint32_t clients;
    uint32_t lost_clients; /* died or gave up */
    double seconds;
};

/* Set up counts that nothing was added to yet. */
void kvb_counts_init(struct kvb_counts *counts);
/* Add `more` to *sum. */
void kvb_counts_add(struct kvb_counts *sum, const struct kvb_counts *more);

/* {"requests":1,...} and a newline as text, freed by the caller; NULL without memory. */
char *kvb_counts_print(const struct kvb_counts *counts);
/* Back again. 0, or −1 when `text` is no such object. */
int kvb_counts_parse(const char *text, struct kvb_counts *out);

/* The last word: why the outcome is not right, or NULL when it is. */
const char *kvb_outcome_fault(const struct kvb_outcome *outcome, const struct kvb_options *options);

int kvb_outcome_print_json(const struct kvb_outcome *outcome, FILE *file);
void kvb_outcome_print_text(const struct kvb_outcome *outcome, FILE *file);

#endif
