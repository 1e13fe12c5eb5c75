/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine of kvmem-replay: what a serving engine does with its KV cache, through the public
 * API, without a model.
 *
 *   queue ──admit──▶ prefill ──chunks──▶ decode ──one token a step, in a batch──▶ end
 *     ▲                 │                   │
 *     └── preempted: the youngest, when blocks run out; recomputed later
 *
 * admit    names, lookup, attach
 * prefill  append, write K and V of every layer, commit, publish full blocks
 * settle   once the fence of attached blocks has passed, each is compared with what it must be;
 *          when their producer died before it wrote them, all is computed again
 * end      a sample is compared again, tail included, and attended to; then freed
 *
 * How many run at a time: at most --concurrency; a preemption lowers the limit to those that are
 * left, the end of a request without one since the last end raises it by one.
 *
 * Invariants: requests are admitted in arrival order; at least one token of a prompt is always
 * computed; a live's names cover its full blocks, the first `published` of which were given to
 * kvmem_seq_publish or attached. One thread; an engine is a client process.
 */
#ifndef KVB_REPLAY_REPLAY_H
#define KVB_REPLAY_REPLAY_H

#include <kvmem.h>

#include "counts.h"
#include "device.h"
#include "options.h"
#include "trace.h"

struct kvb_pool;
struct kvb_faults;

/* A request that runs. The buffers are the place's and are used again by the next request. */
struct kvb_live {
    uint32_t number;    /* of the request in the trace */
    uint32_t prompt;    /* its prompt tokens */
    uint32_t goal;      /* tokens when it is done: prompt + output */
    uint32_t known;     /* tokens in `tokens`: the prompt, and output so far */
    uint32_t committed; /* tokens whose K and V are written */
    uint32_t published; /* leading blocks published or attached */
    uint32_t attached;  /* leading blocks that a lookup gave */
    uint32_t named;     /* blocks in `names` */
    int is_guarded;     /* the attached blocks have not settled */
    struct kvmem_fence guard;
    struct kvmem_seq seq;
    uint32_t *tokens;
    uint64_t *history; /* NULL when dry */
    struct kvmem_name *names;
    uint32_t token_room;
};

/* A request that waits; `known` > 0: it was preempted when it had so many tokens. */
struct kvb_waiting {
    uint32_t number;
    uint32_t known;
};

struct kvb_engine {
    const struct kvb_options *options;
    const struct kvb_trace *trace;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_name root;
    struct kvb_shape shape;
    struct kvb_device device;
    uint64_t device_bytes; /* of the device that the space is on */

    struct kvb_live *lives; /* [0, running) run, in no order */
    uint32_t running;
    uint32_t next;               /* next request of the trace that was not yet admitted */
    struct kvb_waiting *waiting; /* preempted ones; the oldest is last */
    uint32_t waiting_count;
    uint32_t place_limit; /* at most so many run; preemptions lower it, quiet ends raise it */
    int is_crowded;       /* a preemption since the last request ended */
    uint64_t starved_since_ns;

    struct kvmem_seq *batch; /* scratch, `concurrency` each */
    uint32_t *batch_lives;
    struct kvb_span *spans;
    int32_t *hits; /* scratch for lookups */
    uint32_t hit_room;

    struct kvb_pool *pool;     /* embedded only, else NULL */
    struct kvb_faults *faults; /* --self-test only, else NULL */
    struct kvb_counts counts;
    uint32_t finished;
    uint32_t total; /* requests that this engine replays */
    void (*progress)(void *context, uint32_t finished, uint32_t total);
    void *progress_context;
    uint64_t progress_ns;
    char error[512]; /* why a function returned −1 */
};

/* open.c: open a client, a space and its device; 0, or −1 and engine->error. */
int kvb_replay_open(struct kvb_engine *engine, const struct kvb_options *options,
                    const struct kvb_trace *trace);
/* Verify and close; the counts are complete then. 0, or −1 and engine->error. */
int kvb_replay_close(struct kvb_engine *engine);
/* engine.c: replay everything. 0 when every request ended, else −1 and engine->error. */
int kvb_replay_run(struct kvb_engine *engine);

/* Note in engine->error what failed, with the library's detail. Returns −1. */
int kvb_replay_fail(struct kvb_engine *engine, const char *what, int code);

/* request.c: the life of one request. All return 0, or −1 and engine->error; those that need
 * blocks may return KVB_NO_BLOCKS, and then nothing has changed. */
#define KVB_NO_BLOCKS 1
int kvb_live_prepare(struct kvb_engine *engine, struct kvb_live *live, struct kvb_waiting from);
int kvb_live_attach(struct kvb_engine *engine, struct kvb_live *live);
int kvb_live_prefill(struct kvb_engine *engine, struct kvb_live *live, uint32_t tokens);
/* `tokens` more were appended: where they go; once written they are committed and published. */
int kvb_live_span(struct kvb_engine *engine, struct kvb_live *live, uint32_t tokens,
                  struct kvb_span *span);
void kvb_replay_write(struct kvb_engine *engine, const struct kvb_span *spans, uint32_t count);
int kvb_live_commit(struct kvb_engine *engine, struct kvb_live *live, uint32_t tokens);
/* Look at the guard of a guarded live. */
int kvb_live_settle(struct kvb_engine *engine, struct kvb_live *live);
int kvb_live_end(struct kvb_engine *engine, struct kvb_live *live);
int kvb_live_free(struct kvb_engine *engine, struct kvb_live *live);
void kvb_live_fini(struct kvb_live *live);
int kvb_replay_dispatch(struct kvb_engine *engine, int64_t timeout_ns);
/* Must the call be made again after a drain? The outbox is full, or what waits for fences is. */
int kvb_replay_must_drain(int rc);
/* Wait for the device and dispatch: what was given away with its fence is away then. */
int kvb_replay_drain(struct kvb_engine *engine);

/* check.c: compare what a live holds with what it must be, into engine->counts. */
struct kvb_view kvb_live_view(const struct kvb_engine *engine, const struct kvb_live *live);
void kvb_check_attached(struct kvb_engine *engine, const struct kvb_live *live, uint32_t blocks);
void kvb_check_whole(struct kvb_engine *engine, const struct kvb_live *live);
void kvb_check_attention(struct kvb_engine *engine, const struct kvb_live *live);
/* The device's attention through `view` against a second loop over regenerated values of `length`
 * tokens. Every element of every type is exact in double, and both sum in double. Returns the
 * largest absolute difference, HUGE_VAL when the view cannot be read, or −1 when there is no
 * memory. */
double kvb_attention_error(struct kvb_device *device, const struct kvb_view *view,
                           const uint64_t *history, uint32_t length, uint32_t layer);
#define KVB_ATTENTION_TOLERANCE 1e-9
/* The same, and how far the library's kernel (kva_attention_run) is from the truth, in units of
 * what its precision allows: 1 and less is right; −1: there is no kernel for this model on this
 * device, or what came before failed. */
double kvb_attention_errors(struct kvb_device *device, const struct kvb_view *view,
                            const uint64_t *history, uint32_t length, uint32_t layer,
                            double *kernel);

/* pool.c: evictions and waste of an embedded device, from what its only client sees. */
struct kvb_pool *kvb_pool_create(const struct kvmem_geometry *geometry);
void kvb_pool_destroy(struct kvb_pool *pool);
/* Blocks got new owners: those that were entries have been evicted. */
int kvb_pool_taken(struct kvb_pool *pool, const int32_t *blocks, uint32_t count);
/* Take in answers to publish. */
int kvb_pool_published(struct kvb_pool *pool, struct kvmem_space *space);
void kvb_pool_sample(struct kvb_pool *pool, const struct kvb_engine *engine);
void kvb_pool_finish(const struct kvb_pool *pool, struct kvb_counts *counts);

/* faults.c: plant faults in what the checks see, and count those that they find. */
#define KVB_FAULT_COUNT 1000
struct kvb_faults *kvb_faults_create(struct kvb_device *device, uint32_t requests);
void kvb_faults_destroy(struct kvb_faults *faults);
/* A block is about to be written: keep what an earlier life left in it. */
void kvb_faults_keep(struct kvb_faults *faults, int32_t block);
/* A live is about to end: plant this request's share. */
void kvb_faults_plant(struct kvb_faults *faults, struct kvb_engine *engine,
                      const struct kvb_live *live);
/* Planted and found by kind, as text lines. */
void kvb_faults_describe(const struct kvb_faults *faults, char *text, size_t text_bytes);

#endif
