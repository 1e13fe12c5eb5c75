/* SPDX-License-Identifier: Apache-2.0
 *
 * One daemon over two GPUs: a space lies on one of them, and what is written there is on that one.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

#define BLOCKS 64u

static void list_devices(struct kvmem_client *client, struct kvmem_device_info devices[2])
{
    int count = kvt_gpu_must(kvmem_client_devices(client, 2, devices), "client_devices");

    KVT_REQUIRE(count == 2, "%d devices", count);
    for (int i = 0; i < 2; i++)
        KVT_REQUIRE(devices[i].kind == 2 && !devices[i].is_stuck, "device %d, \"%s\": kind %u", i,
                    devices[i].name, devices[i].kind);
    KVT_REQUIRE(memcmp(devices[0].uuid, devices[1].uuid, 16) != 0, "the same UUID twice");
}

/* Fill and check on the device, with kernels of that device. */
static struct kvmem_seq use(struct kvt_gpu_engine *engine, int device, uint64_t prefix)
{
    struct kvmem_seq seq;

    kvt_gpu_use(device);
    seq = kvt_gpu_put(engine, prefix, BLOCKS);
    return seq;
}

static void check(struct kvt_gpu_engine *engine, int device, struct kvmem_seq seq, uint64_t prefix)
{
    kvt_gpu_use(device);
    KVT_REQUIRE(kvt_gpu_prefix_wrong(engine, prefix, kvt_gpu_table(engine, seq, BLOCKS), BLOCKS) ==
                    0,
                "device %d", device);
}

static void case_a_space_on_each(void)
{
    struct kvt_gpu_engine_options options = {.seed = kvt_seed("a_space_on_each")};
    static struct kvt_gpu_engine engines[2];
    static struct kvt_daemon daemon;
    struct kvmem_device_info before[2], after[2];
    struct kvmem_seq seqs[2];
    char names[2][8] = {"first", "second"};

    if (kvt_gpu_count() < 2)
        kvt_case_skip("one GPU here; this needs two");
    kvt_gpu_daemon_start(&daemon, "cuda:0,cuda:1", "2GiB", NULL);
    options.socket_path = daemon.socket_path;
    for (int i = 0; i < 2; i++) {
        options.space = options.name = names[i];
        options.device = 1 + (uint32_t)i;
        kvt_gpu_use(i);
        kvt_gpu_engine_open(&engines[i], &options);
    }
    list_devices(engines[0].client, before);
    for (int i = 0; i < 2; i++)
        seqs[i] = use(&engines[i], i, 1 + (uint64_t)i);
    for (int i = 0; i < 2; i++)
        check(&engines[i], i, seqs[i], 1 + (uint64_t)i);
    list_devices(engines[1].client, after);
    for (int i = 0; i < 2; i++)
        KVT_REQUIRE(after[i].free_bytes < before[i].free_bytes, "device %d lost no memory", i);
    KVT_REQUIRE(kvt_wire_is_clean(daemon.wire), "the directory is not clean");
    for (int i = 0; i < 2; i++) {
        kvt_gpu_use(i);
        kvt_gpu_seq_free(&engines[i], seqs[i], kvmem_fence_none());
        kvt_gpu_engine_close(&engines[i]);
    }
    kvt_daemon_end_observed(&daemon);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {{"a_space_on_each", case_a_space_on_each, 0},
                                            {NULL, NULL, 0}};

    return kvt_cases_main(argc, argv, cases, NULL);
}
