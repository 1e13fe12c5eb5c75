/* SPDX-License-Identifier: Apache-2.0
 *
 * The pure parts of `kvmemctl stats`, for its test.
 */
#ifndef KVCTL_STATS_H
#define KVCTL_STATS_H

#include <cjson/cJSON.h>
#include <stdio.h>

#include "style.h"
#include "wire/protocol.h"

/* The groups, in lines of at most 80 columns. */
void kvctl_stats_print(FILE *out, const struct kvi_msg_stats_reply *stats, const char *title,
                       const struct kvctl_style *style);

/* Every field of stats_reply under its own name, and ratios (null when there is nothing to
 * divide by). */
cJSON *kvctl_stats_json(const struct kvi_msg_stats_reply *stats);

#endif
