/* SPDX-License-Identifier: Apache-2.0
 *
 * A client that writes where it must not: client_stray SOCKET SPACE STREAM BLOCKS BYTE WHERE
 * Attaches a stream that another process published, says "attached hits=N wrong=N", and at the
 * next line on stdin writes one byte into the last block, where it is read ("shared"), or where it
 * would be written if it were its own ("alias"), or into a block of its own, which it has written
 * and found right, where that is read ("own"). It should die of SIGSEGV there and then. When it
 * lives it says "survived".
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/engine.h"
#include "support/spawn.h"

/* The signal is the point: no report about it. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "handle_segv=0";
}

/* The first byte of what is not to be written. */
static char *forbidden(struct kvt_engine *engine, int32_t last, const char *where)
{
    uint64_t own_stream = UINT64_C(1) << 40;
    struct kvmem_seq own;
    const int32_t *table;

    if (strcmp(where, "own")) {
        uint64_t offset = (uint64_t)last * engine->geometry.index_stride_bytes;

        return (strcmp(where, "alias") ? engine->base : engine->write_base) + offset;
    }
    kvt_must(kvmem_seq_create(engine->space, &own), "seq_create");
    kvt_must(kvt_engine_append(engine, own, own_stream, 1, KVT_ANSWER_LIMIT), "append");
    if (kvt_engine_wrong(engine, own, own_stream, 0, 1))
        kvt_die("what was written is not what is read");
    kvt_must(kvmem_table_view(engine->space, 0, own, &table), "table_view");
    return engine->base + (uint64_t)table[0] * engine->geometry.index_stride_bytes;
}

int main(int argc, char **argv)
{
    struct kvt_engine_options options = {.name = "stray"};
    struct kvt_engine engine;
    struct kvmem_seq seq;
    const int32_t *table;
    volatile char *target;
    uint64_t stream;
    uint32_t blocks;
    int hits;

    if (argc != 7)
        kvt_die("usage: client_stray SOCKET SPACE STREAM BLOCKS BYTE WHERE");
    options.socket_path = argv[1];
    options.space = argv[2];
    stream = strtoull(argv[3], NULL, 0);
    blocks = (uint32_t)strtoul(argv[4], NULL, 0);
    kvt_must(kvt_engine_open(&engine, &options), "open");
    hits = kvt_must(kvt_engine_get(&engine, stream, blocks, &seq), "get");
    printf("attached hits=%d wrong=%" PRIu64 "\n", hits,
           hits ? kvt_engine_wrong(&engine, seq, stream, 0, (uint64_t)hits * KVT_BLOCK_TOKENS) : 0);
    fflush(stdout);
    if (hits == 0 || getchar() == EOF)
        return 1;
    kvt_must(kvmem_table_view(engine.space, 0, seq, &table), "table_view");
    target = forbidden(&engine, table[hits - 1], argv[6]) + strtoul(argv[5], NULL, 0);
    *target = (char)(*target + 1);
    printf("survived\n");
    return 1;
}
