/* SPDX-License-Identifier: Apache-2.0
 *
 * --self-test: does a check that finds nothing wrong look at all? Into a run that is otherwise
 * right, faults are planted where the checks look, one at a time: in a copy of a block of a
 * sequence, in its table, or in its length. Copies lie where the blocks lie, and the same functions
 * that check a run must find each fault.
 *
 *   bit         a bit of a block is flipped
 *   layer       a layer of a block holds another layer's bytes
 *   head        a head of a layer holds another head's bytes
 *   sequence    the table names another sequence's block, or another one of its own
 *   generation  the block holds what an earlier life of the same index left there
 *   length      one token too many or too few is attended to
 */
#include "replay.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bench.h"

#define KINDS 6u

static const char *const KIND_NAMES[KINDS] = {"bit",      "layer",      "head",
                                              "sequence", "generation", "length"};

enum kind {
    KIND_BIT,
    KIND_LAYER,
    KIND_HEAD,
    KIND_SEQUENCE,
    KIND_GENERATION,
    KIND_LENGTH
};

struct kvb_faults {
    struct kvb_device *device;
    const struct kvb_shape *shape;
    uint32_t requests_left;
    uint32_t planted[KINDS];
    uint32_t found[KINDS];
    uint64_t random;
    char *copy;     /* a block to spoil */
    char **earlier; /* by block index: what its last life left, or NULL */
    uint32_t earlier_count;
};

struct kvb_faults *kvb_faults_create(struct kvb_device *device, uint32_t requests)
{
    struct kvb_faults *faults = calloc(1, sizeof(*faults));

    if (faults == NULL)
        return NULL;
    faults->device = device;
    faults->shape = device->shape;
    faults->requests_left = requests;
    faults->random = 2;
    faults->copy = device->ops->allocate(device, device->shape->geometry.block_bytes);
    if (faults->copy == NULL) {
        free(faults);
        return NULL;
    }
    return faults;
}

void kvb_faults_destroy(struct kvb_faults *faults)
{
    if (faults == NULL)
        return;
    for (uint32_t i = 0; i < faults->earlier_count; i++)
        if (faults->earlier[i] != NULL)
            faults->device->ops->release(faults->device, faults->earlier[i]);
    free(faults->earlier);
    faults->device->ops->release(faults->device, faults->copy);
    free(faults);
}

static uint32_t random_below(struct kvb_faults *faults, uint64_t limit)
{
    return (uint32_t)(kvb_random(&faults->random) % limit);
}

static uint32_t planted(const struct kvb_faults *faults)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < KINDS; i++)
        sum += faults->planted[i];
    return sum;
}

static void copy(struct kvb_faults *faults, void *to, const void *from, uint64_t bytes)
{
    faults->device->ops->copy(faults->device, to, from, bytes);
}

/* 0, or −1 without memory. */
static int cover(struct kvb_faults *faults, uint32_t index)
{
    uint32_t wanted = (index + 1) * 2;
    char **grown;

    if (index < faults->earlier_count)
        return 0;
    grown = realloc(faults->earlier, sizeof(*grown) * wanted);
    if (grown == NULL)
        return -1;
    memset(grown + faults->earlier_count, 0, sizeof(*grown) * (wanted - faults->earlier_count));
    faults->earlier = grown;
    faults->earlier_count = wanted;
    return 0;
}

/* Without memory the block has no earlier life: other kinds of faults take its place. */
void kvb_faults_keep(struct kvb_faults *faults, int32_t block)
{
    const struct kvmem_geometry *g = &faults->shape->geometry;
    uint32_t index = (uint32_t)block;
    const char *bytes = faults->device->base + index * g->index_stride_bytes;
    char start[2] = {0, 0};

    copy(faults, start, bytes, sizeof(start));
    if (start[0] == 0 && start[1] == 0)
        return; /* no vector begins so: the block was never written */
    if (cover(faults, index) != 0)
        return;
    if (faults->earlier[index] == NULL)
        faults->earlier[index] = faults->device->ops->allocate(faults->device, g->block_bytes);
    if (faults->earlier[index] != NULL)
        copy(faults, faults->earlier[index], bytes, g->block_bytes);
}

/* One block of a live, and the tokens in it. */
struct target {
    const struct kvb_live *live;
    struct kvb_view view;
    uint32_t at; /* block of the sequence */
    uint32_t first;
    uint32_t end;
};

static struct target choose_target(struct kvb_faults *faults, const struct kvb_engine *engine,
                                   const struct kvb_live *live)
{
    struct target target = {.live = live, .view = kvb_live_view(engine, live)};
    uint32_t block_tokens = faults->shape->model.block_tokens;

    target.at = random_below(faults, (live->committed + block_tokens - 1) / block_tokens);
    target.first = target.at * block_tokens;
    target.end = target.first + block_tokens;
    if (target.end > live->committed)
        target.end = live->committed;
    return target;
}

static const char *block_address(const struct kvb_faults *faults, const struct kvb_view *view,
                                 uint32_t at)
{
    return view->base + (uint64_t)view->table[at] * faults->shape->geometry.index_stride_bytes;
}

/* Does the check see the target's tokens as wrong when its block is `bytes`? */
static int is_seen(const struct kvb_faults *faults, const struct target *target, const char *bytes)
{
    static const int32_t zero = 0;
    uint32_t count = target->end - target->first;
    struct kvb_view view = {bytes, &zero, 1, count};

    return faults->device->ops->count_wrong(faults->device, &view,
                                            target->live->history + target->first, 0, count) != 0;
}

/* Copy the target's block and spoil its vectors: `from` of one lane over another's. */
static void copy_lane(struct kvb_faults *faults, const struct target *target, uint32_t to_layer,
                      uint32_t to_head, uint32_t from_layer, uint32_t from_head)
{
    const char *right = block_address(faults, &target->view, target->at);
    uint32_t is_v = random_below(faults, 2);

    for (uint32_t slot = 0; slot < target->end - target->first; slot++)
        copy(faults, faults->copy + kvb_vector_offset(faults->shape, slot, to_layer, is_v, to_head),
             right + kvb_vector_offset(faults->shape, slot, from_layer, is_v, from_head),
             faults->shape->vector_bytes);
}

static int plant_bit(struct kvb_faults *faults, const struct target *target)
{
    const struct kvb_model *model = &faults->shape->model;
    uint32_t slot = random_below(faults, target->end - target->first);
    char byte = 0;
    uint64_t offset =
        kvb_vector_offset(faults->shape, slot, random_below(faults, model->layers),
                          random_below(faults, 2), random_below(faults, model->kv_heads));

    offset += random_below(faults, faults->shape->vector_bytes);
    copy(faults, &byte, faults->copy + offset, 1);
    byte = (char)(byte ^ (1 << random_below(faults, 8)));
    copy(faults, faults->copy + offset, &byte, 1);
    return is_seen(faults, target, faults->copy);
}

static int plant_layer(struct kvb_faults *faults, const struct target *target)
{
    uint32_t layers = faults->shape->model.layers;
    uint32_t to = random_below(faults, layers);
    uint32_t from = (to + 1 + random_below(faults, layers - 1)) % layers;

    for (uint32_t head = 0; head < faults->shape->model.kv_heads; head++)
        copy_lane(faults, target, to, head, from, head);
    return is_seen(faults, target, faults->copy);
}

static int plant_head(struct kvb_faults *faults, const struct target *target)
{
    uint32_t heads = faults->shape->model.kv_heads;
    uint32_t to = random_below(faults, heads);
    uint32_t from = (to + 1 + random_below(faults, heads - 1)) % heads;
    uint32_t layer = random_below(faults, faults->shape->model.layers);

    copy_lane(faults, target, layer, to, layer, from);
    return is_seen(faults, target, faults->copy);
}

/* A block of another live, or of the same one further on; never one that holds the same tokens
 * by right. Returns −1 when there is none. */
static int plant_sequence(struct kvb_faults *faults, const struct kvb_engine *engine,
                          const struct target *target)
{
    uint32_t block_tokens = faults->shape->model.block_tokens;

    for (int attempt = 0; attempt < 16; attempt++) {
        const struct kvb_live *other = &engine->lives[random_below(faults, engine->running)];
        struct kvb_view view = kvb_live_view(engine, other);
        uint32_t full = other->committed / block_tokens;
        uint32_t at;

        if (full == 0)
            continue;
        at = random_below(faults, full);
        if (view.table[at] != target->view.table[target->at] &&
            other->history[at * block_tokens] != target->live->history[target->first])
            return is_seen(faults, target, block_address(faults, &view, at));
    }
    return -1;
}

/* Do the first vectors at two places hold the same bytes? */
static int is_same(struct kvb_faults *faults, const char *a, const char *b)
{
    char vectors[2][4096 * 4];
    uint32_t size = faults->shape->vector_bytes;

    copy(faults, vectors[0], a, size);
    copy(faults, vectors[1], b, size);
    return memcmp(vectors[0], vectors[1], size) == 0;
}

/* −1: this index had no earlier life, or the same bytes in it. */
static int plant_generation(struct kvb_faults *faults, const struct target *target)
{
    uint32_t index = (uint32_t)target->view.table[target->at];

    if (index >= faults->earlier_count || faults->earlier[index] == NULL ||
        is_same(faults, faults->earlier[index], block_address(faults, &target->view, target->at)))
        return -1;
    return is_seen(faults, target, faults->earlier[index]);
}

/* −1: nothing to compare with, or no memory. */
static int plant_length(struct kvb_faults *faults, const struct target *target)
{
    uint32_t right = target->live->committed;
    struct kvb_view view = target->view;
    double error;

    if (right < 2)
        return -1;
    view.length = random_below(faults, 2) ? right - 1 : right + 1;
    error = kvb_attention_error(faults->device, &view, target->live->history, right,
                                random_below(faults, faults->shape->model.layers));
    return error < 0 ? -1 : !(error <= KVB_ATTENTION_TOLERANCE);
}

/* 1 found, 0 missed, −1 this kind of fault has no place here. */
static int plant(struct kvb_faults *faults, const struct kvb_engine *engine,
                 const struct target *target, enum kind kind)
{
    const struct kvb_model *model = &faults->shape->model;

    copy(faults, faults->copy, block_address(faults, &target->view, target->at),
         faults->shape->geometry.block_bytes);
    switch (kind) {
    case KIND_BIT: return plant_bit(faults, target);
    case KIND_LAYER: return model->layers > 1 ? plant_layer(faults, target) : -1;
    case KIND_HEAD: return model->kv_heads > 1 ? plant_head(faults, target) : -1;
    case KIND_SEQUENCE: return plant_sequence(faults, engine, target);
    case KIND_GENERATION: return plant_generation(faults, target);
    default: return plant_length(faults, target);
    }
}

void kvb_faults_plant(struct kvb_faults *faults, struct kvb_engine *engine,
                      const struct kvb_live *live)
{
    uint32_t left = KVB_FAULT_COUNT - planted(faults);
    uint32_t share = (left + faults->requests_left - 1) / faults->requests_left;

    faults->requests_left--;
    for (uint32_t done = 0, misfits = 0; done < share && misfits < 1000;) {
        enum kind kind = (enum kind)random_below(faults, KINDS);
        struct target target = choose_target(faults, engine, live);
        int found;

        if (is_seen(faults, &target, block_address(faults, &target.view, target.at)))
            return; /* the run itself is wrong, and is reported as such */
        found = plant(faults, engine, &target, kind);
        if (found < 0) {
            misfits++;
            continue;
        }
        done++;
        faults->planted[kind]++;
        faults->found[kind] += (uint32_t)found;
        engine->counts.planted_faults++;
        engine->counts.found_faults += (uint64_t)found;
    }
}

void kvb_faults_describe(const struct kvb_faults *faults, char *text, size_t text_bytes)
{
    size_t used = 0;

    for (uint32_t i = 0; i < KINDS && used < text_bytes; i++)
        used +=
            (size_t)snprintf(text + used, text_bytes - used, "%s%s %u of %u", i == 0 ? "" : ", ",
                             KIND_NAMES[i], faults->found[i], faults->planted[i]);
}
