/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing K and V and merging partial results on a GPU: the random cases of the CPU's tests, every
 * byte of pool and scales, and what is refused before a launch.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_merge.h"
#include "support/attention_write.h"
#include "support/gpu/cases.h"
#include "support/gpu/gpu.h"

#define WRITE_CASES 400u
#define MERGE_CASES 200u

static uint32_t share_of(uint32_t rounds)
{
    const char *share = getenv("KVMEM_ROUNDS_SHARE");

    return share ? rounds / (uint32_t)atoi(share) + 1 : rounds;
}

/* Run it, or capture it and launch the graph. */
static void run_write(const struct kvt_write_world *world, const struct kvt_write_memory *device,
                      void *stream, bool is_graph)
{
    char name[200];
    void *graph;

    if (is_graph)
        kvt_gpu_capture_begin(stream);
    KVT_REQUIRE(kvt_write_run(world, KVA_DEVICE_CUDA, device, stream) == 0, "%s: %s",
                kvt_write_name(world, name), kva_error());
    if (!is_graph)
        return;
    graph = kvt_gpu_capture_end(stream, NULL);
    kvt_gpu_graph_launch(graph, stream);
    kvt_gpu_sync(stream);
    kvt_gpu_graph_drop(graph);
}

static void check_write(uint64_t seed, void *stream, bool is_graph)
{
    struct kvt_write_world world;
    struct kvt_write_memory device = {0};
    uint8_t *seen[3];
    char name[200], text[200];

    kvt_write_make(&world, seed);
    for (uint32_t i = 0; i < KVT_WRITE_PARTS; i++)
        if (world.bytes[i]) {
            kvt_write_parts(&device)[i] = kvt_gpu_alloc(world.bytes[i]);
            kvt_gpu_copy(kvt_write_parts(&device)[i], kvt_write_parts(&world.host)[i],
                         world.bytes[i], stream);
        }
    run_write(&world, &device, stream, is_graph);
    for (uint32_t i = 0; i < 3; i++) {
        seen[i] = malloc(world.bytes[i] + 1);
        if (world.bytes[i])
            kvt_gpu_copy(seen[i], kvt_write_parts(&device)[i], world.bytes[i], stream);
    }
    kvt_gpu_sync(stream);
    kvt_write_compare(&world, seen[0], seen[1], seen[2], text);
    KVT_REQUIRE(text[0] == '\0', "%s: %s", kvt_write_name(&world, name), text);
    for (uint32_t i = 0; i < KVT_WRITE_PARTS; i++)
        kvt_gpu_free(kvt_write_parts(&device)[i]);
    for (uint32_t i = 0; i < 3; i++)
        free(seen[i]);
    kvt_write_drop(&world);
}

static void writes(void)
{
    void *stream = kvt_gpu_stream_new();

    for (uint64_t seed = 1; seed <= share_of(WRITE_CASES); seed++)
        check_write(seed, stream, false);
    kvt_gpu_stream_drop(stream);
}

/* The first launches of this process are captured ones. */
static void writes_in_graphs(void)
{
    void *stream = kvt_gpu_stream_new();

    for (uint64_t seed = 5001; seed <= 5020; seed++)
        check_write(seed, stream, true);
    kvt_gpu_stream_drop(stream);
}

static void check_merge(uint64_t seed, void *stream)
{
    struct kvt_merge_world world;
    void *parts, *part_lse, *out, *lse;
    uint8_t *seen_out;
    float *seen_lse;
    char text[200];

    kvt_merge_make(&world, seed);
    world.what.device = KVA_DEVICE_CUDA;
    parts = kvt_gpu_alloc(world.part_bytes);
    part_lse = kvt_gpu_alloc(world.part_lse_bytes);
    out = kvt_gpu_alloc(world.out_bytes);
    lse = kvt_gpu_alloc(world.lse_bytes);
    seen_out = malloc(world.out_bytes);
    seen_lse = malloc(world.lse_bytes);
    kvt_gpu_copy(parts, world.parts, world.part_bytes, stream);
    kvt_gpu_copy(part_lse, world.part_lse, world.part_lse_bytes, stream);
    kvt_gpu_set(out, 0xff, world.out_bytes, stream);
    kvt_gpu_set(lse, 0xff, world.lse_bytes, stream);
    KVT_REQUIRE(kva_merge_run(&world.what, parts, part_lse, out, seed % 4 ? lse : NULL, stream) ==
                    0,
                "seed %llu: %s", (unsigned long long)seed, kva_error());
    kvt_gpu_copy(seen_out, out, world.out_bytes, stream);
    kvt_gpu_copy(seen_lse, lse, world.lse_bytes, stream);
    kvt_gpu_sync(stream);
    kvt_merge_compare(&world, seen_out, seed % 4 ? seen_lse : NULL, text);
    KVT_REQUIRE(text[0] == '\0', "%s", text);
    kvt_gpu_free(parts);
    kvt_gpu_free(part_lse);
    kvt_gpu_free(out);
    kvt_gpu_free(lse);
    free(seen_out);
    free(seen_lse);
    kvt_merge_drop(&world);
}

static void merges(void)
{
    void *stream = kvt_gpu_stream_new();

    for (uint64_t seed = 1; seed <= share_of(MERGE_CASES); seed++)
        check_merge(seed, stream);
    kvt_gpu_stream_drop(stream);
}

/* ---- what is refused: nothing here may be read by a kernel ---- */

static struct kva_write good_write(void *memory)
{
    struct kva_write what = {.size = sizeof(what),
                             .device = KVA_DEVICE_CUDA,
                             .token_count = 4,
                             .dtype = KVMEM_DTYPE_BF16,
                             .k_token_stride = 64,
                             .k_head_stride = 64,
                             .v_token_stride = 64,
                             .v_head_stride = 64,
                             .slots = memory,
                             .cache = {.dtype = KVMEM_DTYPE_BF16,
                                       .block_tokens = 16,
                                       .block_count = 1,
                                       .layer_count = 2,
                                       .kv_head_count = 1,
                                       .head_dim_k = 64,
                                       .head_dim_v = 64,
                                       .k = memory,
                                       .v = (char *)memory + 65536,
                                       .layer_stride = 1024,
                                       .k_token_stride = 64,
                                       .v_token_stride = 64}};

    return what;
}

static void refused(const struct kva_write *what, const void *k, const void *v, int code,
                    const char *field)
{
    int seen = kva_write_run(what, 0, 2, k, 0, v, 0, NULL);

    KVT_REQUIRE(seen == code, "%s: %d, %s", field, seen, kva_error());
    KVT_REQUIRE(strncmp(kva_error(), field, strlen(field)) == 0, "%s: %s", field, kva_error());
}

static void refusals(void)
{
    char *memory = kvt_gpu_alloc(1 << 20);
    struct kva_write what = good_write(memory);
    struct kva_merge merge = {sizeof(merge),    KVA_DEVICE_CUDA, 1, 1, 1, 12,
                              KVMEM_DTYPE_BF16, KVMEM_DTYPE_BF16};

    kvt_gpu_set(memory, 0xff, 1 << 20, NULL);
    KVT_REQUIRE(kva_write_run(&what, 0, 2, memory, 0, memory, 0, NULL) == 0, "%s", kva_error());
    refused(&what, memory + 2, memory, KVMEM_E_INVALID, "k: ");
    refused(&what, memory, memory + 8, KVMEM_E_INVALID, "v: ");
    what.k_token_stride = 65;
    refused(&what, memory, memory, KVMEM_E_INVALID, "k: ");
    what = good_write(memory);
    what.cache.head_dim_k = 60;
    refused(&what, memory, memory, KVMEM_E_NOT_SUPPORTED, "cache.head_dim_k");
    what = good_write(memory);
    what.cache.head_dim_v = 2048;
    refused(&what, memory, memory, KVMEM_E_NOT_SUPPORTED, "cache.head_dim_v");
    what = good_write(memory);
    what.cache.block_stride = 12;
    refused(&what, memory, memory, KVMEM_E_INVALID, "cache.block_stride");
    what = good_write(memory);
    what.cache.k = memory + 4;
    refused(&what, memory, memory, KVMEM_E_INVALID, "cache.k");
    what = good_write(memory);
    what.rotary_dim = 24;
    what.rotary_limit = 1;
    what.rotary_cos_sin = (float *)memory;
    what.positions = (int32_t *)memory;
    refused(&what, memory, memory, KVMEM_E_NOT_SUPPORTED, "rotary_dim");
    what.rotary_dim = 32;
    what.rotary_first = 4;
    refused(&what, memory, memory, KVMEM_E_NOT_SUPPORTED, "rotary_first");
    KVT_REQUIRE(kva_merge_run(&merge, memory, (float *)memory, memory, NULL, NULL) ==
                    KVMEM_E_NOT_SUPPORTED,
                "%s", kva_error());
    merge.head_dim = 16;
    KVT_REQUIRE(kva_merge_run(&merge, memory + 2, (float *)memory, memory, NULL, NULL) ==
                    KVMEM_E_INVALID,
                "%s", kva_error());
    kvt_gpu_sync(NULL);
    kvt_gpu_free(memory);
}

static const struct kvt_case cases[] = {{"writes", writes, 0},
                                        {"writes_in_graphs", writes_in_graphs, 0},
                                        {"merges", merges, 0},
                                        {"refusals", refusals, 0},
                                        {NULL, NULL, 0}};

int main(int argc, char **argv)
{
    return kvt_cases_main(argc, argv, cases, NULL);
}
