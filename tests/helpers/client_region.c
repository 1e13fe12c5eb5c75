/* SPDX-License-Identifier: Apache-2.0
 *
 * A client that reads a prefix of another process as a region: client_region SOCKET BLOCKS
 * Looks the names of kvt_region_names() up, attaches them to a sequence with a region, appends a
 * token and writes it through the view. Says "attached hits=N wrong=N tail=N" (tokens with a wrong
 * byte; 1 when the tail's byte is seen in its block and in the view). Then a line on stdin: "stray
 * T" writes into token T where the view is read, "overwrite T" where it is written, and should die
 * of SIGSEGV there and then (else it says "survived"); "check" says "wrong=N" anew; "end" ends it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/engine.h"
#include "support/regions.h"
#include "support/spawn.h"

/* The signal is the point: no report about it. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "handle_segv=0";
}

static int wrong_tokens(const struct kvmem_region *region, uint32_t tokens)
{
    int wrong = 0;

    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t i = 0; i < KVT_REGION_TOKEN_BYTES; i++)
            if (kvt_region_token(region, t)[i] != (char)(t + 1)) {
                wrong++;
                break;
            }
    return wrong;
}

static void write_stray(volatile char *target)
{
    *target = 1;
    printf("survived\n");
}

static void serve(const struct kvmem_region *region, uint32_t tokens)
{
    char line[64];

    while (fgets(line, sizeof(line), stdin) && strncmp(line, "end", 3) != 0) {
        if (!strncmp(line, "stray", 5)) {
            uint64_t at = strtoull(line + 5, NULL, 0) * KVT_REGION_TOKEN_BYTES;

            write_stray((char *)kvt_region_info(region).base + at);
        } else if (!strncmp(line, "overwrite", 9)) {
            write_stray(kvt_region_write(region, strtoull(line + 9, NULL, 0)));
        } else {
            printf("checked wrong=%d\n", wrong_tokens(region, tokens));
        }
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    struct kvmem_connect_options connect = {.size = sizeof(connect), .name = "region"};
    struct kvmem_space_options options = kvt_region_space("regions");
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_region *region;
    struct kvmem_seq seq;
    struct kvmem_name names[16];
    int32_t blocks[16];
    uint32_t count;
    int hits;

    if (argc != 3)
        kvt_die("usage: client_region SOCKET BLOCKS");
    connect.socket_path = argv[1];
    count = (uint32_t)strtoul(argv[2], NULL, 0);
    kvt_region_names(names, count);
    kvt_must(kvmem_client_connect(&connect, &client), "connect");
    kvt_must(kvmem_space_open(client, &options, &space), "space_open");
    kvt_must(kvmem_space_reserve(space, 4, KVT_MS(5000)), "reserve");
    kvt_must(kvmem_seq_create(space, &seq), "seq_create");
    kvt_must(kvt_region_open(space, seq, 100, &region), "region_open");
    hits = kvt_must(kvmem_prefix_lookup(space, count, names, blocks, NULL), "lookup");
    kvt_must(kvmem_seq_attach(space, seq, (uint32_t)hits, blocks), "attach");
    count = (uint32_t)hits * KVT_REGION_BLOCK_TOKENS;
    kvt_must(kvmem_seq_append(space, seq, 1, kvmem_fence_none()), "append");
    memset(kvt_region_write(region, count), 99, KVT_REGION_TOKEN_BYTES);
    kvt_must(kvmem_client_check(client), "check");
    printf("attached hits=%d wrong=%d tail=%d\n", hits, wrong_tokens(region, count),
           *kvt_region_block_token(space, seq, count) == 99 &&
               *kvt_region_token(region, count) == 99);
    fflush(stdout);
    serve(region, count);
    kvmem_client_close(client);
    return 0;
}
