/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference of a scene, by several threads: an item is a head of a sequence.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "support/attention_scene.h"
#include "support/spawn.h"

#define THREAD_LIMIT 64u

uint32_t kvt_attention_threads;

struct truth {
    const struct kvt_attention_scene *scene;
    struct kva_reference jobs[2]; /* exact, plain */
    atomic_uint next;
};

static void *find(void *argument)
{
    struct truth *truth = argument;
    uint32_t heads = truth->scene->c.heads;
    uint32_t count = heads * truth->scene->c.seq_count * 2;

    for (;;) {
        uint32_t i = atomic_fetch_add(&truth->next, 1);

        if (i >= count)
            return NULL;
        if (kva_reference_head(&truth->jobs[i % 2], i / 2 / heads, i / 2 % heads))
            kvt_die("attention: the reference failed");
    }
}

void kvt_attention_find_truth(struct kvt_attention_scene *s)
{
    uint64_t rows = (uint64_t)s->host.batch.q_total * s->c.heads;
    uint32_t count = kvt_attention_threads > THREAD_LIMIT ? THREAD_LIMIT : kvt_attention_threads;
    pthread_t threads[THREAD_LIMIT];
    struct truth truth = {.scene = s};

    free(s->exact);
    free(s->plain);
    free(s->exact_rows);
    free(s->plain_rows);
    s->exact = kvt_attention_need(rows * s->c.dim_v * sizeof(double));
    s->plain = kvt_attention_need(rows * s->c.dim_v * sizeof(double));
    s->exact_rows = kvt_attention_need(rows * sizeof(*s->exact_rows));
    s->plain_rows = kvt_attention_need(rows * sizeof(*s->plain_rows));
    truth.jobs[0] = (struct kva_reference){.what = &s->host,
                                           .q = s->q.host,
                                           .layer = s->c.layers - 1,
                                           .row_step = s->c.row_step,
                                           .out = s->exact,
                                           .rows = s->exact_rows};
    truth.jobs[1] = truth.jobs[0];
    truth.jobs[1].precision = KVA_PLAIN;
    truth.jobs[1].out = s->plain;
    truth.jobs[1].rows = s->plain_rows;
    for (uint32_t i = 1; i < count; i++)
        if (pthread_create(&threads[i], NULL, find, &truth))
            kvt_die("attention: no thread");
    find(&truth);
    for (uint32_t i = 1; i < count; i++)
        pthread_join(threads[i], NULL);
}
