/* SPDX-License-Identifier: Apache-2.0
 *
 * Client processes: this program again with --part I/N, results over a pipe each.
 *
 * A client writes JSON lines: {"finished":n} while it runs, its counts at the end. A client
 * that ends without its counts, or with another status than 0, is lost, and said so.
 */
#ifndef KVB_REPLAY_WORKERS_H
#define KVB_REPLAY_WORKERS_H

#include "report.h"

/* Run options->clients processes and merge what they report. 0, or −1 and the reason when they
 * could not be started. Blocks until all have ended. */
int kvb_workers_run(int argc, char **argv, const struct kvb_options *options,
                    uint32_t request_count, struct kvb_outcome *outcome, char *error,
                    size_t error_bytes);

#endif
