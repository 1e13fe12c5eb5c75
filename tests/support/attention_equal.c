/* SPDX-License-Identifier: Apache-2.0
 *
 * attention_equal.h: a result is kept, something that must not matter is changed, and the next
 * result compared.
 */
#include "support/attention_equal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_scene.h"

static _Thread_local char text[640];

/* Outputs of a run. */
struct kept {
    void *out;
    void *lse;
};

static struct kept keep(const struct kvt_attention_scene *s)
{
    struct kept kept = {kvt_attention_need(s->out.bytes), kvt_attention_need(s->lse.bytes)};

    memcpy(kept.out, s->out.host, s->out.bytes);
    memcpy(kept.lse, s->lse.host, s->lse.bytes);
    return kept;
}

static void drop(struct kept *kept)
{
    free(kept->out);
    free(kept->lse);
}

/* Rows [first, end) of both. */
static const char *differ(const struct kvt_attention_scene *s, const struct kept *kept,
                          uint32_t first, uint32_t end, const char *when)
{
    uint64_t row_bytes = s->host.out_token_stride * kvt_attention_dtype_bytes(s->c.dtype);
    uint64_t at = KVT_ATTENTION_GUARD + first * row_bytes;
    uint64_t lse_at = KVT_ATTENTION_GUARD + first * 4ull * s->c.heads;

    if (!memcmp((char *)kept->out + at, (char *)s->out.host + at, (end - first) * row_bytes) &&
        !memcmp((char *)kept->lse + lse_at, (char *)s->lse.host + lse_at,
                (end - first) * 4ull * s->c.heads))
        return NULL;
    snprintf(text, sizeof(text), "%s: rows %u to %u differ; %s", when, first, end,
             kvt_attention_describe(&s->c));
    return text;
}

/* A verdict as the return value of a comparison. */
static const char *told(const struct kvt_attention_scene *s, enum kvt_verdict verdict,
                        bool *refused)
{
    *refused = verdict == KVT_REFUSED;
    if (verdict == KVT_RIGHT)
        return NULL;
    memcpy(text, s->text, sizeof(s->text));
    return text;
}

/* Run with some sequences left out: rows of [n, n + count) must be as they were. */
static const char *compare_part(struct kvt_attention_scene *s, const char *kernel,
                                const struct kept *all, uint32_t n, uint32_t count)
{
    struct kva_batch whole = s->device.batch;
    enum kvt_verdict verdict;
    bool refused;

    s->device.batch.seq_count = count;
    s->device.batch.tables += (uint64_t)n * whole.table_stride;
    s->device.batch.kv_lengths += n;
    s->device.batch.q_offsets += n;
    verdict = kvt_attention_run(s, kernel);
    s->device.batch = whole;
    if (verdict != KVT_RIGHT)
        return told(s, verdict, &refused);
    return differ(s, all, kvt_attention_row(s, n), kvt_attention_row(s, n + count),
                  count == 1 ? "a sequence alone" : "without the first sequence");
}

const char *kvt_attention_equal_alone(const struct kvt_attention_case *c,
                                      const struct kvt_memory *memory, const char *kernel,
                                      bool *refused)
{
    struct kvt_attention_case invariant = *c;
    struct kvt_attention_scene s;
    const char *result;
    struct kept all;

    invariant.flags |= KVA_BATCH_INVARIANT;
    invariant.has_offsets = true;
    if (!kvt_attention_begin(&s, &invariant, memory))
        return told(&s, KVT_WRONG, refused);
    result = told(&s, kvt_attention_try(&s, kernel), refused);
    all = keep(&s);
    for (uint32_t n = 0; n < c->seq_count && !result; n++)
        result = compare_part(&s, kernel, &all, n, 1);
    if (!result && c->seq_count > 2)
        result = compare_part(&s, kernel, &all, 1, c->seq_count - 1);
    drop(&all);
    kvt_attention_end(&s);
    return result;
}

const char *kvt_attention_equal_again(const struct kvt_attention_case *c,
                                      const struct kvt_memory *memory, const char *kernel,
                                      uint32_t times, bool *refused)
{
    struct kvt_attention_scene s;
    const char *result;
    struct kept first;

    if (!kvt_attention_begin(&s, c, memory))
        return told(&s, KVT_WRONG, refused);
    result = told(&s, kvt_attention_try(&s, kernel), refused);
    first = keep(&s);
    for (uint32_t i = 0; i < times && !result; i++) {
        s.device.threads = 1 + i % 3;
        result = told(&s, kvt_attention_run(&s, kernel), refused);
        if (!result)
            result = differ(&s, &first, 0, kvt_attention_row(&s, c->seq_count), "run again");
    }
    drop(&first);
    kvt_attention_end(&s);
    return result;
}

const char *kvt_attention_equal_layouts(const struct kvt_attention_case *c,
                                        const struct kvt_memory *memory, const char *kernel,
                                        bool *refused)
{
    struct kvt_attention_case in = *c;
    struct kvt_attention_scene s;
    struct kept first = {0};
    const char *result = NULL;

    for (in.layout = 1; in.layout < KVT_LAYOUT_END && !result; in.layout++) {
        if (!kvt_attention_begin(&s, &in, memory)) {
            result = told(&s, KVT_WRONG, refused);
            break;
        }
        result = told(&s, kvt_attention_try(&s, kernel), refused);
        if (!result && in.layout == 1)
            first = keep(&s);
        else if (!result)
            result = differ(&s, &first, 0, kvt_attention_row(&s, c->seq_count), "in this layout");
        kvt_attention_end(&s);
    }
    drop(&first);
    return result;
}
