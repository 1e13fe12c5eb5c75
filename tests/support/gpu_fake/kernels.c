/* SPDX-License-Identifier: Apache-2.0
 *
 * kernels.h on the CPU: the same bytes, one word after the other.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/gpu_fake/fake_gpu.h"
#include "support/spawn.h"

#define LIST_LIMIT    16384u
#define GATE_LIMIT_NS UINT64_C(20000000000)

/* ---- bytes ---- */

static uint64_t pattern(uint64_t seed, uint64_t position, uint64_t word)
{
    uint64_t z =
        seed + position * UINT64_C(0xd1342543de82ef95) + word * UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint32_t token_of(const struct kvt_gpu_shape *shape, uint64_t word)
{
    return (uint32_t)(word * 8 % shape->run_bytes) / shape->token_bytes;
}

/* Where it is written, or read. */
static uint64_t *block_at(const struct kvt_gpu_shape *shape, int32_t block, bool is_write)
{
    uintptr_t base = (uintptr_t)(is_write ? shape->write_base : shape->base);

    return (uint64_t *)(base + (uint64_t)block * shape->stride_bytes);
}

static void look(struct kvt_gpu_verdict *verdict, const uint64_t *at, uint64_t expected)
{
    verdict->checked++;
    if (*at == expected)
        return;
    if (verdict->wrong++ == 0) {
        verdict->where = (unsigned long long)(uintptr_t)at;
        verdict->found = *at;
        verdict->expected = expected;
    }
}

/* ---- lists of blocks ---- */

struct list {
    struct kvt_gpu_part part;
    struct kvt_gpu_shape shape;
    struct kvt_gpu_verdict *verdict; /* NULL: fill */
    uint64_t *rounds;                /* not NULL: scribble */
    uint64_t end_ns;
    const uint64_t *flag; /* not NULL: check until it has the value */
    uint64_t value;
    int32_t blocks[LIST_LIMIT];
};

static bool is_meant(const struct kvt_gpu_part *part, const struct kvt_gpu_shape *shape,
                     uint64_t word)
{
    uint32_t token;

    if (part->end_token == 0)
        return true;
    token = token_of(shape, word);
    return token >= part->first_token && token < part->end_token;
}

static bool list_run(void *data)
{
    const struct list *list = data;
    const struct kvt_gpu_part *part = &list->part;
    uint64_t words = list->shape.block_bytes / 8, step = part->step_words ? part->step_words : 1;

    for (uint32_t b = 0; b < part->count; b++) {
        uint64_t *at = block_at(&list->shape, list->blocks[b], !list->verdict);

        for (uint64_t i = 0; i < words; i += list->verdict ? step : 1) {
            uint64_t expected = pattern(part->seed, part->position + b, i);

            if (!is_meant(part, &list->shape, i))
                continue;
            if (list->verdict)
                look(list->verdict, at + i, expected);
            else
                at[i] = expected;
        }
    }
    if (list->flag && __atomic_load_n(list->flag, __ATOMIC_ACQUIRE) < list->value)
        return kvt_now_ns() >= list->end_ns;
    return true;
}

/* A round each time it is asked, until its time is over. */
static bool scribble_run(void *data)
{
    const struct list *list = data;
    uint64_t round = __atomic_load_n(list->rounds, __ATOMIC_RELAXED) + 1;

    for (uint32_t b = 0; b < list->part.count; b++) {
        uint64_t *at = block_at(&list->shape, list->blocks[b], true);

        for (uint64_t i = 0; i < list->shape.block_bytes / 8; i++)
            at[i] = round;
    }
    __atomic_store_n(list->rounds, round, __ATOMIC_RELEASE);
    return kvt_now_ns() >= list->end_ns;
}

/* What is done for a list until `ns` are over, or the flag has its value. */
struct until {
    uint64_t *rounds;
    const uint64_t *flag;
    uint64_t value;
    uint64_t ns;
};

static void list_launch(const struct kvt_gpu_part *part, struct kvt_gpu_verdict *verdict,
                        const struct until *until, void *stream)
{
    static struct list list;

    if (part->count > LIST_LIMIT)
        kvt_die("%u blocks: the fake GPU takes %u", part->count, LIST_LIMIT);
    list.part = *part;
    list.shape = *part->shape;
    list.verdict = verdict;
    list.rounds = until->rounds;
    list.end_ns = kvt_now_ns() + until->ns;
    list.flag = until->flag;
    list.value = until->value;
    if (part->count)
        memcpy(list.blocks, part->blocks, part->count * sizeof(int32_t));
    kvt_fake_gpu_launch(stream, until->rounds ? scribble_run : list_run, &list, sizeof(list));
}

void kvt_gpu_fill(const struct kvt_gpu_part *part, void *stream)
{
    list_launch(part, NULL, &(struct until){0}, stream);
}

void kvt_gpu_check(const struct kvt_gpu_part *part, struct kvt_gpu_verdict *verdict, void *stream)
{
    list_launch(part, verdict, &(struct until){0}, stream);
}

void kvt_gpu_watch(const struct kvt_gpu_part *part, struct kvt_gpu_verdict *verdict,
                   const uint64_t *flag, uint64_t value, void *stream)
{
    list_launch(part, verdict, &(struct until){.flag = flag, .value = value, .ns = GATE_LIMIT_NS},
                stream);
}

void kvt_gpu_scribble(const struct kvt_gpu_part *part, uint64_t ns, uint64_t *rounds, void *stream)
{
    list_launch(part, NULL, &(struct until){.rounds = rounds, .ns = ns}, stream);
}

/* ---- rows ---- */

struct rows {
    struct kvt_gpu_rows rows;
    struct kvt_gpu_verdict *verdict; /* NULL: write */
};

static void row_word(const struct rows *what, uint32_t row, uint32_t b, uint64_t *at, uint64_t i)
{
    const struct kvt_gpu_rows *rows = &what->rows;
    uint32_t token = b * rows->shape.block_tokens + token_of(&rows->shape, i);
    bool is_shared = token < rows->shared_tokens;

    if (token >= (uint32_t)rows->lengths[row])
        return;
    if (what->verdict)
        look(what->verdict, at + i, pattern(is_shared ? rows->seed : rows->row_seed + row, b, i));
    else if (!is_shared)
        at[i] = pattern(rows->row_seed + row, b, i);
}

static bool rows_run(void *data)
{
    const struct rows *what = data;
    const struct kvt_gpu_rows *rows = &what->rows;

    for (uint32_t row = 0; row < rows->row_count; row++)
        for (uint32_t b = 0; b * rows->shape.block_tokens < (uint32_t)rows->lengths[row]; b++) {
            uint64_t *at = block_at(
                &rows->shape, rows->tables[(uint64_t)row * rows->block_limit + b], !what->verdict);

            for (uint64_t i = 0; i < rows->shape.block_bytes / 8; i++)
                row_word(what, row, b, at, i);
        }
    return true;
}

void kvt_gpu_rows_write(const struct kvt_gpu_rows *rows, void *stream)
{
    struct rows what = {*rows, NULL};

    kvt_fake_gpu_launch(stream, rows_run, &what, sizeof(what));
}

void kvt_gpu_rows_check(const struct kvt_gpu_rows *rows, struct kvt_gpu_verdict *verdict,
                        void *stream)
{
    struct rows what = {*rows, verdict};

    kvt_fake_gpu_launch(stream, rows_run, &what, sizeof(what));
}

/* ---- time ---- */

struct wait {
    const uint64_t *flag; /* NULL: time only */
    uint64_t value;
    uint64_t end_ns; /* 0 until it is asked first */
    uint64_t ns;
};

static bool wait_run(void *data)
{
    struct wait *wait = data;

    if (wait->end_ns == 0)
        wait->end_ns = kvt_now_ns() + wait->ns;
    if (wait->flag && __atomic_load_n(wait->flag, __ATOMIC_ACQUIRE) >= wait->value)
        return true;
    return kvt_now_ns() >= wait->end_ns;
}

void kvt_gpu_gate(const uint64_t *flag, uint64_t value, void *stream)
{
    struct wait wait = {flag, value, 0, GATE_LIMIT_NS};

    kvt_fake_gpu_launch(stream, wait_run, &wait, sizeof(wait));
}

void kvt_gpu_spin(uint64_t ns, void *stream)
{
    struct wait wait = {NULL, 0, 0, ns};

    kvt_fake_gpu_launch(stream, wait_run, &wait, sizeof(wait));
}

void kvt_gpu_poke(void *address, uint64_t value, void *stream)
{
    (void)stream;
    *(volatile uint64_t *)address = value;
}

/* ---- a model's step: only time passes ---- */

void kvt_gpu_busy_init(struct kvt_gpu_busy *busy, enum kvt_gpu_busy_kind kind, double us)
{
    *busy = (struct kvt_gpu_busy){.kind = kind, .amount = (uint64_t)(us * 1e3)};
}

void kvt_gpu_busy_fini(struct kvt_gpu_busy *busy)
{
    kvt_gpu_sync(NULL);
    busy->amount = 0;
}

void kvt_gpu_busy_step(const struct kvt_gpu_busy *busy, void *stream)
{
    kvt_gpu_spin(busy->amount, stream);
}
