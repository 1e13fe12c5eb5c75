/* SPDX-License-Identifier: Apache-2.0
 *
 * The fault backend: every call goes to the inner backend, but those that were ordered to fail.
 *
 *   call      one operation of the table; ANY stands for all of them
 *   rule      for one call kind: the n-th call from the arming on fails, once or from then on
 *
 *   calls[ANY] = Σ calls[k];  fired ≤ calls[ANY]
 *
 * A call that fails on order does not reach the inner backend, so its state is what it was; an
 * fd that was to be consumed is closed, as the contract says. What kvi_backend_*() refuses by
 * itself (backend.c) reaches neither and is not counted. When a call's own rule and ANY's are
 * both due, both are used up and the call's own code is returned.
 *
 * Ownership: the inner backend is the caller's, and outlives the wrapper. The wrapper's info is
 * a copy of the inner one's, with the name "fault(…)".
 *
 * Threads: as any backend; one mutex over rules and counts, not held during the inner call.
 */
#include "backend/backend_fault.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "util/error.h"

struct fault_rule {
    uint64_t due; /* the value of calls[] that fails; 0 nothing is armed */
    int code;
    bool sticky;
};

struct kvi_backend_fault {
    struct kvi_backend base;
    struct kvi_backend *inner;

    pthread_mutex_t lock; /* guards everything below */
    uint64_t calls[KVI_BACKEND_CALL_COUNT];
    uint64_t fired;
    struct fault_rule rules[KVI_BACKEND_CALL_COUNT];
};

static struct kvi_backend_fault *fault_of(struct kvi_backend *b)
{
    return (struct kvi_backend_fault *)(void *)b; /* base is the first member */
}

const char *kvi_backend_call_name(enum kvi_backend_call call)
{
    static const char *const names[KVI_BACKEND_CALL_COUNT] = {
#define CALL_NAME(symbol, member) [KVI_BACKEND_CALL_##symbol] = #member,
        KVI_BACKEND_CALL_TABLE(CALL_NAME)
#undef CALL_NAME
            [KVI_BACKEND_CALL_ANY] = "any",
    };

    return (unsigned)call < KVI_BACKEND_CALL_COUNT ? names[call] : NULL;
}

/* ---- rules ---- */

/* Count a call and use up its rule. The code it is to fail with, or 0. Under the lock. */
static int rule_take(struct kvi_backend_fault *fault, enum kvi_backend_call call)
{
    struct fault_rule *rule = &fault->rules[call];

    fault->calls[call]++;
    if (rule->due == 0 || fault->calls[call] < rule->due)
        return 0;
    if (!rule->sticky)
        rule->due = 0;
    return rule->code;
}

/* 0: pass the call on. */
static int fault_before(struct kvi_backend_fault *fault, enum kvi_backend_call call)
{
    uint64_t count;
    int code;
    int any_code;

    pthread_mutex_lock(&fault->lock);
    code = rule_take(fault, call);
    any_code = rule_take(fault, KVI_BACKEND_CALL_ANY);
    if (code == 0)
        code = any_code;
    fault->fired += code != 0;
    count = fault->calls[call];
    pthread_mutex_unlock(&fault->lock);
    if (code == 0)
        return 0;
    return kvi_error_set(code, "fault backend: call %" PRIu64 " of %s fails on order", count,
                         kvi_backend_call_name(call));
}

static bool call_valid(enum kvi_backend_call call)
{
    return (unsigned)call < KVI_BACKEND_CALL_COUNT;
}

int kvi_backend_fault_arm(struct kvi_backend *b, enum kvi_backend_call call, uint64_t nth, int code,
                          bool sticky)
{
    struct kvi_backend_fault *fault = fault_of(b);

    if (!call_valid(call))
        return kvi_error_set(KVMEM_E_INVALID, "call is %d: want 0 to %d", (int)call,
                             KVI_BACKEND_CALL_COUNT - 1);
    if (nth == 0 || nth > (uint64_t)INT64_MAX)
        return kvi_error_set(KVMEM_E_INVALID, "nth is %" PRIu64 ": want 1 to 2^63 - 1", nth);
    if (code >= 0)
        return kvi_error_set(KVMEM_E_INVALID, "code is %d: want a negative KVMEM_E_ code", code);
    pthread_mutex_lock(&fault->lock);
    fault->rules[call] = (struct fault_rule){fault->calls[call] + nth, code, sticky};
    pthread_mutex_unlock(&fault->lock);
    return 0;
}

void kvi_backend_fault_disarm(struct kvi_backend *b)
{
    struct kvi_backend_fault *fault = fault_of(b);

    pthread_mutex_lock(&fault->lock);
    for (int call = 0; call < KVI_BACKEND_CALL_COUNT; call++)
        fault->rules[call].due = 0;
    pthread_mutex_unlock(&fault->lock);
}

uint64_t kvi_backend_fault_calls(struct kvi_backend *b, enum kvi_backend_call call)
{
    struct kvi_backend_fault *fault = fault_of(b);
    uint64_t calls = 0;

    pthread_mutex_lock(&fault->lock);
    if (call_valid(call))
        calls = fault->calls[call];
    pthread_mutex_unlock(&fault->lock);
    return calls;
}

uint64_t kvi_backend_fault_fired(struct kvi_backend *b)
{
    struct kvi_backend_fault *fault = fault_of(b);
    uint64_t fired;

    pthread_mutex_lock(&fault->lock);
    fired = fault->fired;
    pthread_mutex_unlock(&fault->lock);
    return fired;
}

/* ---- the table ---- */

/* One operation: its prototype's rest and the arguments passed on. */
#define FAULT_OPERATION(symbol, member, parameters, arguments)         \
    static int fault_##member parameters                               \
    {                                                                  \
        struct kvi_backend *inner = fault_of(b)->inner;                \
        int rc = fault_before(fault_of(b), KVI_BACKEND_CALL_##symbol); \
                                                                       \
        return rc < 0 ? rc : inner->ops->member arguments;             \
    }

FAULT_OPERATION(MEMORY, memory, (struct kvi_backend * b, struct kvi_backend_memory *out),
                (inner, out))
FAULT_OPERATION(SEGMENT_CREATE, segment_create,
                (struct kvi_backend * b, uint64_t bytes, struct kvi_phys *out), (inner, bytes, out))
FAULT_OPERATION(SEGMENT_EXPORT, segment_export,
                (struct kvi_backend * b, struct kvi_phys phys, int *out_fd), (inner, phys, out_fd))
FAULT_OPERATION(SEGMENT_RELEASE, segment_release, (struct kvi_backend * b, struct kvi_phys phys),
                (inner, phys))
FAULT_OPERATION(RESERVE, reserve,
                (struct kvi_backend * b, uint64_t bytes, uint64_t alignment, uint64_t *out_base),
                (inner, bytes, alignment, out_base))
FAULT_OPERATION(UNRESERVE, unreserve, (struct kvi_backend * b, uint64_t base, uint64_t bytes),
                (inner, base, bytes))
FAULT_OPERATION(MAP, map,
                (struct kvi_backend * b, struct kvi_phys phys, uint64_t address, uint64_t bytes,
                 enum kvi_access access),
                (inner, phys, address, bytes, access))
FAULT_OPERATION(UNMAP, unmap, (struct kvi_backend * b, uint64_t address, uint64_t bytes),
                (inner, address, bytes))
FAULT_OPERATION(COPY, copy,
                (struct kvi_backend * b, uint64_t to, uint64_t from, uint64_t bytes,
                 uint64_t stream),
                (inner, to, from, bytes, stream))
FAULT_OPERATION(COPY_IN, copy_in,
                (struct kvi_backend * b, uint64_t to, const void *from, uint64_t bytes,
                 uint64_t stream),
                (inner, to, from, bytes, stream))
FAULT_OPERATION(COPY_OUT, copy_out,
                (struct kvi_backend * b, void *to, uint64_t from, uint64_t bytes, uint64_t stream),
                (inner, to, from, bytes, stream))
FAULT_OPERATION(BLOCKS, blocks,
                (struct kvi_backend * b, const struct kvi_backend_blocks *list, uint64_t stream),
                (inner, list, stream))
FAULT_OPERATION(CELLS, cells,
                (struct kvi_backend * b, uint64_t base, const struct kvi_backend_cell *cells,
                 uint32_t count, uint64_t stream),
                (inner, base, cells, count, stream))
FAULT_OPERATION(DEVICE_ALLOC, device_alloc,
                (struct kvi_backend * b, uint64_t bytes, uint64_t *out_address),
                (inner, bytes, out_address))
FAULT_OPERATION(DEVICE_FREE, device_free,
                (struct kvi_backend * b, uint64_t address, uint64_t bytes), (inner, address, bytes))
FAULT_OPERATION(HOST_PIN, host_pin, (struct kvi_backend * b, void *memory, uint64_t bytes),
                (inner, memory, bytes))
FAULT_OPERATION(HOST_UNPIN, host_unpin, (struct kvi_backend * b, void *memory, uint64_t bytes),
                (inner, memory, bytes))
FAULT_OPERATION(FENCE_SIGNAL, fence_signal,
                (struct kvi_backend * b, uint64_t *counter, uint64_t value, uint64_t stream),
                (inner, counter, value, stream))
FAULT_OPERATION(FENCE_WAIT, fence_wait,
                (struct kvi_backend * b, uint64_t *counter, uint64_t value, uint64_t stream),
                (inner, counter, value, stream))

static int fault_segment_import_consume(struct kvi_backend *b, int fd, uint64_t bytes,
                                        struct kvi_phys *out)
{
    struct kvi_backend *inner = fault_of(b)->inner;
    int rc = fault_before(fault_of(b), KVI_BACKEND_CALL_SEGMENT_IMPORT);

    if (rc < 0) {
        close(fd);
        return rc;
    }
    return inner->ops->segment_import_consume(inner, fd, bytes, out);
}

static void fault_destroy(struct kvi_backend *b)
{
    struct kvi_backend_fault *fault = fault_of(b);

    pthread_mutex_destroy(&fault->lock);
    free(fault);
}

static const struct kvi_backend_ops fault_ops = {.version = KVI_BACKEND_VERSION,
                                                 .table_bytes = sizeof(struct kvi_backend_ops),
                                                 .destroy = fault_destroy,
#define CALL_MEMBER(symbol, member) .member = fault_##member,
                                                 KVI_BACKEND_CALL_TABLE(CALL_MEMBER)
#undef CALL_MEMBER
};

int kvi_backend_fault_create(struct kvi_backend *inner, struct kvi_backend **out)
{
    struct kvi_backend_fault *fault;
    int rc = kvi_backend_table_check(inner);

    if (rc < 0)
        return rc;
    if (out == NULL)
        return kvi_error_set(KVMEM_E_INVALID, "out is NULL");
    fault = calloc(1, sizeof(*fault));
    if (fault == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "fault backend: no memory for %zu bytes",
                             sizeof(*fault));
    fault->base.ops = &fault_ops;
    fault->base.info = inner->info;
    fault->inner = inner;
    snprintf(fault->base.info.name, sizeof(fault->base.info.name), "fault(%.*s)",
             KVI_BACKEND_NAME_BYTES - 8, inner->info.name);
    rc = pthread_mutex_init(&fault->lock, NULL);
    if (rc != 0) {
        free(fault);
        return kvi_error_sys(KVMEM_E_SYSTEM, rc, "fault backend: pthread_mutex_init");
    }
    *out = &fault->base;
    return 0;
}
