/* SPDX-License-Identifier: Apache-2.0
 *
 * kill_reuse: 300 clients killed while their kernels write (tests/support/gpu/kills.h; KVMEM_KILLS
 * of them). From the exit of the process until another client has all the memory: 200 ms, the
 * worst too. No stray write, and the driver's free bytes as before.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"
#include "support/gpu/kills.h"

int main(int argc, char **argv)
{
    static const struct kvt_role roles[] = {{KVT_KILLS_ROLE, kvt_kills_role}, {NULL, NULL}};
    static struct kvb_row row = {.bench = "kill_reuse",
                                 .metric = "ms from a killed client's exit to its memory usable",
                                 .limit = 200,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvt_kills_options options = {.seed = 0x4b494c4c};
    static struct kvt_kills kills;
    double worst_ms = 0;
    int missed;

    kvb_gpu_begin(argc, argv, roles);
    options.count = kvt_count_from_env("KVMEM_KILLS", 300, 1);
    kvt_kills_run(&options, &kills);
    if (!kills.reused_blocks || !kills.checked_words)
        kvt_die("no block of a victim was granted again");
    for (uint32_t i = 0; i < kills.count; i++) {
        kvb_add(&row.own, kills.usable_us[i] / 1e3);
        worst_ms = kills.usable_us[i] / 1e3 > worst_ms ? kills.usable_us[i] / 1e3 : worst_ms;
    }
    missed = kvb_report(&row);
    missed += kvb_gpu_figure("kill_reuse", "ms, the worst of them", worst_ms, 200);
    missed +=
        kvb_gpu_figure("kill_reuse", "stray words in reused blocks", (double)kills.stray_words, 0);
    missed += kvb_gpu_figure("kill_reuse", "bytes of the device missing afterwards",
                             (double)kills.free_bytes_before - (double)kills.free_bytes_after, 0);
    return missed > 0;
}
