/* SPDX-License-Identifier: Apache-2.0
 *
 * The README's quick start: memory for 4,096 blocks inside this process, a sequence of 100
 * tokens, a fork that shares them, and its own copy of the tail once it grows.
 * Build: cc quickstart.c $(pkg-config --cflags --libs kvmem)
 */
#include <kvmem.h>
#include <stdio.h>
#include <stdlib.h>

static void must(int result)
{
    if (result >= 0)
        return;
    fprintf(stderr, "%s: %s\n", kvmem_error_name(result), kvmem_error_detail()->text);
    exit(1);
}

int main(void)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed), .device_bytes = 16u << 20};
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .name = "tiny",
                                          .block_tokens = 16,
                                          .group_count = 1,
                                          .shard_count = 1,
                                          .groups = {{.layer_count = 2,
                                                      .kv_head_count = 2,
                                                      .head_dim_k = 16,
                                                      .head_dim_v = 16,
                                                      .dtype_k = KVMEM_DTYPE_BF16,
                                                      .dtype_v = KVMEM_DTYPE_BF16}}};
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_seq seq, fork;
    const int32_t *blocks, *fork_blocks;

    must(kvmem_client_embed(&embed, &client));
    must(kvmem_space_open(client, &options, &space));
    must(kvmem_space_reserve(space, 16, 1000000000));

    /* README: begin */
    must(kvmem_seq_create(space, &seq));
    must(kvmem_seq_append(space, seq, 100, kvmem_fence_none())); /* slots for 100 tokens */
    must(kvmem_seq_commit(space, seq, 100));                     /* K and V are written  */
    must(kvmem_seq_fork(space, seq, &fork));                     /* shares all 7 blocks  */
    must(kvmem_seq_append(space, fork, 1, kvmem_fence_none()));  /* copies the tail only */
    int count = kvmem_table_view(space, 0, seq, &blocks);        /* what kernels read    */
    must(kvmem_table_view(space, 0, fork, &fork_blocks));
    must(kvmem_seqs_free(space, 2, (struct kvmem_seq[]){seq, fork}, kvmem_fence_none()));
    /* README: end */

    printf("%d blocks, tail %d, the fork's tail %d\n", count, blocks[count - 1],
           fork_blocks[count - 1]);
    kvmem_client_close(client);
    return 0;
}
