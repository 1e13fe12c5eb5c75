/* SPDX-License-Identifier: Apache-2.0
 *
 * Each of four threads has an embedded client of its own and uses it at full speed: clients share
 * nothing but the error table, and error details are a thread's own. Run under ThreadSanitizer by
 * `make test-tsan`; without it, it still checks that no thread sees another's bytes or errors.
 */
#include <kvmem.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define THREADS 4
#define ROUNDS  2000
#define TOKENS  40u

struct worker {
    pthread_t thread;
    uint8_t number;
    const char *failure;
};

static int open_space(struct kvmem_client **client, struct kvmem_space **space)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed), .device_bytes = 4u << 20};
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .name = "tsan",
                                          .block_tokens = 16,
                                          .group_count = 1,
                                          .shard_count = 1,
                                          .groups = {{.layer_count = 1,
                                                      .kv_head_count = 1,
                                                      .head_dim_k = 64,
                                                      .head_dim_v = 64,
                                                      .dtype_k = KVMEM_DTYPE_BF16,
                                                      .dtype_v = KVMEM_DTYPE_BF16}}};

    if (kvmem_client_embed(&embed, client))
        return -1;
    return kvmem_space_open(*client, &options, space);
}

/* One sequence, filled with the worker's number, forked, and compared. */
static const char *one_round(struct worker *worker, struct kvmem_space *space)
{
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    struct kvmem_seq seqs[2];
    const int32_t *blocks;
    const uint8_t *base = kvmem_space_base(space, 0, 0);
    uint8_t *write_base = kvmem_space_write_base(space, 0, 0);
    int count;

    kvmem_space_geometry(space, 0, &geometry);
    if (kvmem_seq_create(space, &seqs[0]) ||
        kvmem_seq_append(space, seqs[0], TOKENS, kvmem_fence_none()))
        return "append";
    count = kvmem_table_view(space, 0, seqs[0], &blocks);
    for (int i = 0; i < count; i++)
        memset(write_base + (uint64_t)blocks[i] * geometry.index_stride_bytes, worker->number,
               geometry.block_bytes);
    if (kvmem_seq_commit(space, seqs[0], TOKENS) || kvmem_seq_fork(space, seqs[0], &seqs[1]) ||
        kvmem_seq_append(space, seqs[1], 1, kvmem_fence_none()))
        return "fork";
    count = kvmem_table_view(space, 0, seqs[1], &blocks);
    for (int i = 0; i < count; i++)
        if (base[(uint64_t)blocks[i] * geometry.index_stride_bytes] != worker->number)
            return "another thread's bytes";
    if (kvmem_seqs_free(space, 2, seqs, kvmem_fence_none()))
        return "free";
    if (kvmem_seq_commit(space, seqs[0], 1) != KVMEM_E_STALE ||
        kvmem_error_detail()->code != KVMEM_E_STALE)
        return "the error detail is not this thread's";
    return NULL;
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct kvmem_client *client;
    struct kvmem_space *space;

    if (open_space(&client, &space) || kvmem_space_reserve(space, 64, 1000000000)) {
        worker->failure = "open";
        return NULL;
    }
    for (int i = 0; i < ROUNDS && !worker->failure; i++) {
        worker->failure = one_round(worker, space);
        if (kvmem_client_dispatch(client, 0) < 0)
            worker->failure = "dispatch";
    }
    if (!worker->failure && kvmem_client_check(client))
        worker->failure = "check";
    kvmem_client_close(client);
    return NULL;
}

int main(void)
{
    struct worker workers[THREADS] = {{.number = 0}};
    int failed = 0;

    for (int i = 0; i < THREADS; i++) {
        workers[i].number = (uint8_t)(i + 1);
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
            return 1;
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        if (workers[i].failure)
            failed = printf("thread %d: %s\n", i, workers[i].failure);
    }
    printf("%d threads, %d rounds each\n", THREADS, ROUNDS);
    return failed ? 1 : 0;
}
