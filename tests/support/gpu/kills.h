/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients killed while their kernels write, over and over, and what becomes of their memory: for
 * the test and for the benchmark of it.
 *
 *   victim    context ─ "go" ─ connect, take blocks, [ scribble .......... SIGKILL
 *   witness                                                              │ pidfd
 *                                        takes the whole pool, the victim's blocks too: usable
 *                                        fills it, checks it again and again, gives it back
 *
 * The pool is created once, before the first count; from then on memory only changes hands, so
 * that the driver's free bytes must be the same at the end. Victims make their contexts ahead, a
 * few at a time: that is most of the time.
 */
#ifndef KVT_GPU_KILLS_H
#define KVT_GPU_KILLS_H

#include "support/gpu/engine.h"

#define KVT_KILLS_LIMIT 4096u

struct kvt_kills_options {
    uint32_t count;
    const char *const *daemon_options; /* further ones; may be NULL */
    uint64_t seed;
};

struct kvt_kills {
    uint32_t count;
    double usable_us[KVT_KILLS_LIMIT]; /* from the exit of the process to all blocks usable */
    double exit_us[KVT_KILLS_LIMIT];   /* from the signal to the exit */
    uint64_t reused_blocks;            /* of victims, granted again to the witness */
    uint64_t stray_words;              /* wrong in reused blocks */
    uint64_t checked_words;
    uint64_t free_bytes_before; /* as the driver counts, no victim alive */
    uint64_t free_bytes_after;
    struct kvi_msg_stats_reply stats_before, stats_after; /* of the daemon */
};

/* The role that programs which call kvt_kills_run must have. */
#define KVT_KILLS_ROLE "victim"
int kvt_kills_role(char **arguments);

/* Dies when a victim was not writing, or memory does not come back within 5 s. */
void kvt_kills_run(const struct kvt_kills_options *options, struct kvt_kills *out);

#endif
