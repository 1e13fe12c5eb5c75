/* SPDX-License-Identifier: Apache-2.0
 *
 * What the daemon counts of all its clients, asked for through kvmemctl: a replay is an engine,
 * and an engine sees itself only.
 */
#ifndef KVB_REPLAY_DAEMON_H
#define KVB_REPLAY_DAEMON_H

#include <stddef.h>
#include <stdint.h>

struct kvb_daemon_counts {
    uint64_t client_count;
    uint64_t foreign_hit_blocks;
    uint64_t evicted_blocks;
    uint64_t adopted_segments;
    uint64_t leaked_blocks;
};

/* Run "kvmemctl stats --json", the kvmemctl beside this program or else that of $PATH. 0, or −1
 * and the reason. Blocks. */
int kvb_daemon_read(const char *socket_path, struct kvb_daemon_counts *out, char *error,
                    size_t error_bytes);

/* The same once no more than `client_count` clients are left, which is waited for at most 3 s. */
int kvb_daemon_read_after(const char *socket_path, uint64_t client_count,
                          struct kvb_daemon_counts *out, char *error, size_t error_bytes);

#endif
