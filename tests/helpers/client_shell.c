/* SPDX-License-Identifier: Apache-2.0
 *
 * A client that does what it is told: client_shell SOCKET NAME SPACE [QUOTA_BYTES [REFILL_BLOCKS]]
 * Opens the space, says "ok client=N" or "error CODE", then answers each command on stdin with a
 * line "ok key=value ..." or "error CODE ns=N text". Between commands it dispatches every 2 ms
 * while `auto 1` holds.
 *
 *   put ID BLOCKS      append, write, commit and publish a stream's blocks; keeps the sequence
 *   open ID BLOCKS     the same without publishing: open blocks
 *   late ID BLOCKS     the same as put, but published with a promise and not written yet
 *   fulfil ID          write what is late, fulfil the promise
 *   get ID BLOCKS      look up and attach                        -> hits
 *   serve ID BLOCKS    get, append the rest, publish             -> hits
 *   peek ID BLOCKS                                               -> hits
 *   more ID TOKENS     append to a kept sequence, wait for nothing
 *   verify ID          compare every byte                        -> tokens, wrong
 *   free ID
 *   reserve BLOCKS MS                                            -> free
 *   grab               take all memory there is into open blocks -> blocks
 *   drop               give that back
 *   dispatch MS        -> messages        auto 0|1        trim -> segments        check
 *   stats              this client's counters
 *   close              end the session                -> same=1: fds and mappings as before it
 *   quit
 */
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/engine.h"
#include "support/spawn.h"

#define KEPT_LIMIT  512
#define WAIT_NS     KVT_MS(2000)
#define GRAB_BLOCKS 16u

static struct kept {
    uint64_t stream;
    struct kvmem_seq seq; /* generation 0: place is free */
    uint64_t tokens;
    struct kvmem_fence promise; /* of `late` */
} kept[KEPT_LIMIT];

static struct kvt_engine engine;
static struct kvt_self before;
static struct kept grabbed; /* open blocks of `grab`, never written */
static uint64_t started_ns;
static int is_auto;

static void answer(int result, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "ok" and the rest, or the error; both with the time since the command came. */
static void answer(int result, const char *format, ...)
{
    const char *text = result < 0 ? kvmem_error_detail()->text : "";
    va_list args;

    if (result < 0)
        printf("error %s ns=%" PRIu64 " %s\n", kvmem_error_name(result), kvt_now_ns() - started_ns,
               text);
    else {
        printf("ok ns=%" PRIu64 " ", kvt_now_ns() - started_ns);
        va_start(args, format);
        vprintf(format, args);
        va_end(args);
        putchar('\n');
    }
    fflush(stdout);
}

static struct kept *find(uint64_t stream)
{
    for (int i = 0; i < KEPT_LIMIT; i++)
        if (kept[i].seq.generation && kept[i].stream == stream)
            return &kept[i];
    kvt_die("no stream %" PRIu64 " is kept", stream);
}

static void keep(uint64_t stream, struct kvmem_seq seq, uint64_t tokens)
{
    for (int i = 0; i < KEPT_LIMIT; i++)
        if (!kept[i].seq.generation) {
            kept[i] = (struct kept){.stream = stream, .seq = seq, .tokens = tokens};
            return;
        }
    kvt_die("more than %d streams kept", KEPT_LIMIT);
}

/* ---- commands: two numbers each, 0 where none was given ---- */

static void do_put(uint64_t stream, uint64_t blocks)
{
    struct kvmem_seq seq;
    int rc = kvt_engine_put(&engine, stream, (uint32_t)blocks, WAIT_NS, &seq);

    if (rc >= 0)
        keep(stream, seq, blocks * KVT_BLOCK_TOKENS);
    answer(rc, "blocks=%" PRIu64, blocks);
}

static void do_open(uint64_t stream, uint64_t blocks)
{
    struct kvmem_seq seq;
    int rc = kvmem_seq_create(engine.space, &seq);

    if (rc >= 0) {
        rc = kvt_engine_append(&engine, seq, stream, (uint32_t)blocks * KVT_BLOCK_TOKENS, WAIT_NS);
        if (rc < 0) /* its error is the one to tell; freeing an empty sequence cannot fail */
            kvmem_seq_free(engine.space, seq, kvmem_fence_none());
        else
            keep(stream, seq, blocks * KVT_BLOCK_TOKENS);
    }
    answer(rc, "blocks=%" PRIu64, blocks);
}

/* Published before it is written: the slots are full and committed as far as the CPU knows. */
static int publish_late(struct kvmem_seq seq, uint64_t stream, uint32_t blocks,
                        struct kvmem_fence *promise)
{
    static struct kvmem_name names[KVT_BLOCK_LIMIT];
    struct kvmem_publish_result results[KVT_BLOCK_LIMIT];
    int rc = kvmem_space_reserve(engine.space, blocks, WAIT_NS);
    uint32_t answered = 0;

    kvt_engine_names(&engine, stream, blocks, names);
    if (rc >= 0)
        rc = kvmem_seq_append(engine.space, seq, blocks * KVT_BLOCK_TOKENS, kvmem_fence_none());
    if (rc >= 0)
        rc = kvmem_seq_commit(engine.space, seq, blocks * KVT_BLOCK_TOKENS);
    if (rc >= 0)
        rc = kvmem_fence_promise(engine.client, promise);
    if (rc >= 0)
        rc = kvmem_seq_publish(engine.space, seq, 0, blocks, names, *promise);
    while (rc >= 0 && answered < blocks) {
        rc = kvmem_client_dispatch(engine.client, WAIT_NS);
        if (rc >= 0)
            answered += (uint32_t)kvt_must(
                kvmem_publish_results(engine.space, KVT_BLOCK_LIMIT, results), "results");
    }
    return rc;
}

static void do_late(uint64_t stream, uint64_t blocks)
{
    struct kvmem_fence promise;
    struct kvmem_seq seq;
    int rc = kvmem_seq_create(engine.space, &seq);

    if (rc >= 0)
        rc = publish_late(seq, stream, (uint32_t)blocks, &promise);
    if (rc >= 0) {
        keep(stream, seq, blocks * KVT_BLOCK_TOKENS);
        find(stream)->promise = promise;
    }
    answer(rc, "blocks=%" PRIu64, blocks);
}

static void do_fulfil(uint64_t stream, uint64_t unused)
{
    struct kept *one = find(stream);

    (void)unused;
    kvt_engine_write(&engine, one->seq, stream, 0, one->tokens);
    answer(kvmem_fence_fulfil(engine.client, &one->promise), "tokens=%" PRIu64, one->tokens);
}

static void do_get(uint64_t stream, uint64_t blocks)
{
    struct kvmem_seq seq;
    int hits = kvt_engine_get(&engine, stream, (uint32_t)blocks, &seq);

    if (hits > 0)
        keep(stream, seq, (uint64_t)hits * KVT_BLOCK_TOKENS);
    answer(hits, "hits=%d", hits);
}

static void do_serve(uint64_t stream, uint64_t blocks)
{
    struct kvmem_seq seq;
    int hits = kvt_engine_serve(&engine, stream, (uint32_t)blocks, WAIT_NS, &seq);

    if (hits >= 0)
        keep(stream, seq, blocks * KVT_BLOCK_TOKENS);
    answer(hits, "hits=%d", hits);
}

static void do_peek(uint64_t stream, uint64_t blocks)
{
    static struct kvmem_name names[KVT_BLOCK_LIMIT];
    int hits;

    kvt_engine_names(&engine, stream, (uint32_t)blocks, names);
    hits = kvmem_prefix_peek(engine.space, (uint32_t)blocks, names);
    answer(hits, "hits=%d", hits);
}

static void do_more(uint64_t stream, uint64_t tokens)
{
    struct kept *one = find(stream);
    int rc = kvmem_seq_append(engine.space, one->seq, (uint32_t)tokens, kvmem_fence_none());

    if (rc == 0) {
        kvt_engine_write(&engine, one->seq, stream, one->tokens, tokens);
        rc = kvmem_seq_commit(engine.space, one->seq, (uint32_t)tokens);
        one->tokens += tokens;
    }
    answer(rc, "tokens=%" PRIu64, one->tokens);
}

static void do_verify(uint64_t stream, uint64_t unused)
{
    struct kept *one = find(stream);

    (void)unused;
    answer(0, "tokens=%" PRIu64 " wrong=%" PRIu64, one->tokens,
           kvt_engine_wrong(&engine, one->seq, stream, 0, one->tokens));
}

static void do_free(uint64_t stream, uint64_t unused)
{
    struct kept *one = find(stream);
    int rc = kvt_engine_free(&engine, one->seq);

    (void)unused;
    if (rc == 0)
        one->seq.generation = 0;
    answer(rc, "freed=1");
}

static void do_reserve(uint64_t blocks, uint64_t ms)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    int rc = kvmem_space_reserve(engine.space, blocks, KVT_MS((int64_t)ms));

    if (rc >= 0)
        kvt_must(kvmem_space_capacity(engine.space, &capacity), "capacity");
    answer(rc, "free=%" PRIu64, capacity.free_blocks);
}

static void do_grab(uint64_t unused, uint64_t unused2)
{
    int rc = 0;

    (void)unused;
    (void)unused2;
    if (!grabbed.seq.generation)
        rc = kvmem_seq_create(engine.space, &grabbed.seq);
    while (rc >= 0) {
        rc = kvmem_space_reserve(engine.space, GRAB_BLOCKS, WAIT_NS);
        if (rc == 0)
            rc = kvmem_seq_append(engine.space, grabbed.seq, GRAB_BLOCKS * KVT_BLOCK_TOKENS,
                                  kvmem_fence_none());
        if (rc == 0)
            grabbed.tokens += GRAB_BLOCKS * KVT_BLOCK_TOKENS;
    }
    answer(kvt_is_full(rc) ? 0 : rc, "blocks=%" PRIu64, grabbed.tokens / KVT_BLOCK_TOKENS);
}

static void do_drop(uint64_t unused, uint64_t unused2)
{
    int rc = 0;

    (void)unused;
    (void)unused2;
    if (grabbed.seq.generation)
        rc = kvt_engine_free(&engine, grabbed.seq);
    memset(&grabbed, 0, sizeof(grabbed));
    if (rc == 0)
        rc = kvmem_space_trim(engine.space);
    if (rc >= 0 && kvmem_client_dispatch(engine.client, 0) < 0)
        rc = kvmem_error_detail()->code;
    answer(rc, "segments=%d", rc);
}

static void do_dispatch(uint64_t ms, uint64_t unused)
{
    int rc = kvmem_client_dispatch(engine.client, KVT_MS((int64_t)ms));

    (void)unused;
    answer(rc, "messages=%d", rc);
}

static void do_auto(uint64_t on, uint64_t unused)
{
    (void)unused;
    is_auto = on != 0;
    answer(0, "auto=%d", is_auto);
}

static void do_trim(uint64_t unused, uint64_t unused2)
{
    int rc = kvmem_space_trim(engine.space);

    (void)unused;
    (void)unused2;
    answer(rc, "segments=%d", rc);
}

static void do_check(uint64_t unused, uint64_t unused2)
{
    (void)unused;
    (void)unused2;
    answer(kvmem_client_check(engine.client), "clean=1");
}

static void do_stats(uint64_t unused, uint64_t unused2)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    struct kvmem_space_stats space = {.size = sizeof(space)};
    struct kvmem_client_stats client = {.size = sizeof(client)};

    (void)unused;
    (void)unused2;
    kvt_must(kvmem_space_capacity(engine.space, &capacity), "capacity");
    kvt_must(kvmem_space_stats(engine.space, &space), "space_stats");
    kvt_must(kvmem_client_stats(engine.client, &client), "client_stats");
    answer(0,
           "free=%" PRIu64 " used=%" PRIu64 " owned_blocks=%" PRIu64 " owned_segments=%" PRIu64
           " mapped_segments=%" PRIu64 " private=%" PRIu64 " leased=%" PRIu64 " published=%" PRIu64
           " handed_in=%" PRIu64 " adopted=%" PRIu64 " pressure=%" PRIu64 " pending=%u",
           capacity.free_blocks, capacity.used_blocks, capacity.owned_blocks, space.owned_segments,
           space.mapped_segments, space.private_blocks, space.leased_blocks, space.published_blocks,
           space.handed_in_segments, space.adopted_segments, client.pressure_requests,
           capacity.is_refill_pending);
}

static void do_close(uint64_t unused, uint64_t unused2)
{
    (void)unused;
    (void)unused2;
    kvt_engine_close(&engine);
    is_auto = 0;
    answer(0, "same=%d", kvt_self_is(&before));
}

static void do_quit(uint64_t unused, uint64_t unused2)
{
    (void)unused;
    (void)unused2;
    kvmem_client_close(engine.client);
    exit(0);
}

static const struct {
    const char *word;
    void (*run)(uint64_t, uint64_t);
} commands[] = {
    {"late", do_late},     {"fulfil", do_fulfil},     {"put", do_put},         {"open", do_open},
    {"get", do_get},       {"serve", do_serve},       {"peek", do_peek},       {"more", do_more},
    {"verify", do_verify}, {"free", do_free},         {"reserve", do_reserve}, {"grab", do_grab},
    {"drop", do_drop},     {"dispatch", do_dispatch}, {"auto", do_auto},       {"trim", do_trim},
    {"check", do_check},   {"stats", do_stats},       {"close", do_close},     {"quit", do_quit}};

/* ---- the loop ---- */

static void obey(const char *line)
{
    uint64_t first = 0, second = 0;
    char word[16] = "";

    if (sscanf(line, "%15s %" SCNu64 " %" SCNu64, word, &first, &second) < 1)
        kvt_die("empty command");
    started_ns = kvt_now_ns();
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(commands[i].word, word) == 0) {
            commands[i].run(first, second);
            return;
        }
    kvt_die("unknown command %s", word);
}

/* Waits for stdin, dispatching meanwhile when told to. */
static void wait_for_command(void)
{
    struct pollfd state = {.fd = STDIN_FILENO, .events = POLLIN};

    while (poll(&state, 1, is_auto ? 2 : -1) == 0)
        kvt_must(kvmem_client_dispatch(engine.client, 0), "dispatch");
}

/* Reads a line with no buffering behind it, so that poll tells the truth. 0 at the end. */
static int read_command(char *line)
{
    size_t length = 0;

    while (length < KVT_LINE_BYTES - 1 && read(STDIN_FILENO, line + length, 1) == 1)
        if (line[length++] == '\n') {
            line[length - 1] = '\0';
            return 1;
        }
    return 0;
}

int main(int argc, char **argv)
{
    struct kvt_engine_options options = {.socket_path = argv[1], .name = argv[2]};
    char line[KVT_LINE_BYTES];
    int rc;

    if (argc < 4)
        kvt_die("usage: client_shell SOCKET NAME SPACE [QUOTA_BYTES [REFILL_BLOCKS]]");
    options.space = argv[3];
    options.quota_bytes = argc > 4 ? strtoull(argv[4], NULL, 0) : 0;
    options.refill_blocks = argc > 5 ? (uint32_t)strtoul(argv[5], NULL, 0) : 0;
    before = kvt_self_count();
    started_ns = kvt_now_ns();
    rc = kvt_engine_open(&engine, &options);
    answer(rc, "client=%u", engine.number);
    if (rc < 0)
        return 1;
    while (wait_for_command(), read_command(line))
        obey(line);
    kvmem_client_close(engine.client);
    return 0;
}
