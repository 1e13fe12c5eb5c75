/* SPDX-License-Identifier: Apache-2.0
 *
 * append: a token to each of 256 sequences a step, 16 tokens a block, sequences ending and
 * starting all the time, the status page kept. Then 10 million tokens more under a tracer:
 * no system call between two marks, no call of malloc or mmap, and at the end
 * free + used = owned.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bench.h"
#include "common/engine.h"

#define SEQUENCES      256u
#define STEPS_A_SAMPLE 1024
#define COUNTED_TOKENS 10000000u
#define POOL_BLOCKS    65536u
#define SHORTEST       64u
#define CALENDAR       2048u /* more steps than the longest sequence */

/* Interposed: every allocation of this process comes through here. */
static uint64_t allocations;
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

void *malloc(size_t bytes)
{
    allocations++;
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    allocations++;
    return __libc_calloc(count, bytes);
}

void *realloc(void *memory, size_t bytes)
{
    allocations++;
    return __libc_realloc(memory, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    allocations++;
    return __libc_memalign(alignment, bytes);
}

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    allocations++;
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

struct engine {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_seq seqs[SEQUENCES];
    uint32_t ends[CALENDAR];  /* by step: the first sequence that ends then, + 1 */
    uint32_t next[SEQUENCES]; /* and the next one */
    uint32_t now;
    uint64_t random;
};

/* Sequence i ends after 64 to 1,087 tokens more. */
static void plan_end(struct engine *engine, uint32_t i)
{
    uint32_t length = SHORTEST + (uint32_t)(kvb_random(&engine->random) % 1024);
    uint32_t *first = &engine->ends[(engine->now + length) % CALENDAR];

    engine->next[i] = *first;
    *first = i + 1;
}

static void step(struct engine *engine)
{
    uint32_t ending;

    kvb_check(kvmem_seqs_append(engine->space, SEQUENCES, engine->seqs, NULL, kvmem_fence_none()),
              "kvmem_seqs_append");
    engine->now = (engine->now + 1) % CALENDAR;
    ending = engine->ends[engine->now];
    engine->ends[engine->now] = 0;
    while (ending) {
        uint32_t i = ending - 1;

        ending = engine->next[i];
        kvb_check(kvmem_seq_free(engine->space, engine->seqs[i], kvmem_fence_none()),
                  "kvmem_seq_free");
        kvb_check(kvmem_seq_create(engine->space, &engine->seqs[i]), "kvmem_seq_create");
        plan_end(engine, i);
    }
}

static void start(struct engine *engine)
{
    struct kvmem_space_options options = kvb_space_options("append");

    engine->random = 1;
    kvb_embed(POOL_BLOCKS, &options, &engine->client, &engine->space);
    kvb_check(kvmem_space_reserve(engine->space, POOL_BLOCKS / 2, 1000000000), "reserve");
    kvb_check(kvmem_seqs_create(engine->space, SEQUENCES, engine->seqs), "kvmem_seqs_create");
    for (uint32_t i = 0; i < SEQUENCES; i++)
        plan_end(engine, i);
    for (int i = 0; i < 4 * STEPS_A_SAMPLE; i++)
        step(engine);
}

static void check_conservation(const struct engine *engine)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};

    kvb_check(kvmem_space_capacity(engine->space, &capacity), "kvmem_space_capacity");
    if (capacity.free_blocks + capacity.used_blocks != capacity.owned_blocks)
        kvb_fail("free %lu + used %lu != owned %lu", (unsigned long)capacity.free_blocks,
                 (unsigned long)capacity.used_blocks, (unsigned long)capacity.owned_blocks);
    kvb_check(kvmem_client_check(engine->client), "kvmem_client_check");
}

/* The traced child: stops itself before and after `tokens` tokens. Exit status 1 when something
 * was allocated in between. */
static _Noreturn void counted_run(uint32_t tokens)
{
    static struct engine engine;
    uint64_t before;

    start(&engine);
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP);
    before = allocations;
    for (uint32_t done = 0; done < tokens; done += SEQUENCES)
        step(&engine);
    before = allocations - before;
    raise(SIGSTOP);
    check_conservation(&engine);
    _exit(before ? 1 : 0);
}

/* System calls that the child makes between its two stops, those of the stops included. */
static long traced_system_calls(uint32_t tokens)
{
    int status;
    long stops = 0;
    pid_t child = fork();

    if (child == 0)
        counted_run(tokens);
    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD);
    do {
        ptrace(PTRACE_SYSCALL, child, NULL, NULL);
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status))
            kvb_fail("the traced run ended early, status %d", status);
        stops += WSTOPSIG(status) == (SIGTRAP | 0x80);
    } while (WSTOPSIG(status) != SIGSTOP);
    ptrace(PTRACE_DETACH, child, NULL, NULL);
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        kvb_fail("the traced run failed or allocated memory, status %d", status);
    return stops / 2;
}

static int report_system_calls(void)
{
    static struct kvb_row row = {.bench = "append",
                                 .metric = "system calls and allocations in 10 million tokens",
                                 .limit = 0,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    long of_the_stops = traced_system_calls(0);

    kvb_add(&row.own, (double)(traced_system_calls(COUNTED_TOKENS) - of_the_stops));
    return kvb_report(&row);
}

int main(void)
{
    static struct kvb_row row = {.bench = "append",
                                 .metric = "ns a token, 256 sequences a step",
                                 .limit = 5,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    static struct engine engine;
    int failed = report_system_calls();

    start(&engine);
    for (int i = 0; i < KVB_SAMPLES; i++) {
        uint64_t begin = kvb_now_ns();

        for (int s = 0; s < STEPS_A_SAMPLE; s++)
            step(&engine);
        kvb_add(&row.own, (double)(kvb_now_ns() - begin) / ((double)STEPS_A_SAMPLE * SEQUENCES));
    }
    check_conservation(&engine);
    kvmem_client_close(engine.client);
    return kvb_report(&row) | failed;
}
