/* SPDX-License-Identifier: Apache-2.0
 *
 * A backend that passes everything to another one and fails on order, for tests: see
 * backend_fault.c.
 */
#ifndef KVI_BACKEND_BACKEND_FAULT_H
#define KVI_BACKEND_BACKEND_FAULT_H

#include <stdbool.h>

#include "backend/backend.h"

enum kvi_backend_call {
#define KVI_BACKEND_CALL_ENUM(symbol, member) KVI_BACKEND_CALL_##symbol,
    KVI_BACKEND_CALL_TABLE(KVI_BACKEND_CALL_ENUM)
#undef KVI_BACKEND_CALL_ENUM
    KVI_BACKEND_CALL_ANY, /* whichever comes next; counts all of them */
    KVI_BACKEND_CALL_COUNT
};

/* Wrap `inner`, which stays the caller's and must outlive the wrapper. NOT_SUPPORTED for a table
 * of another version, INVALID for NULL, NO_MEMORY. */
int kvi_backend_fault_create(struct kvi_backend *inner, struct kvi_backend **out);

/* Let the nth call of `call` from now on (1: the next one) fail with `code`, a negative
 * KVMEM_E_*, without reaching the inner backend; with `sticky` also every later one. Takes the
 * place of what was armed for the same `call`; others stay armed. INVALID, nothing changed. */
int kvi_backend_fault_arm(struct kvi_backend *b, enum kvi_backend_call call, uint64_t nth, int code,
                          bool sticky);

/* Nothing fails any more. Counts are kept. */
void kvi_backend_fault_disarm(struct kvi_backend *b);

/* Calls of this kind since creation, failed ones included. */
uint64_t kvi_backend_fault_calls(struct kvi_backend *b, enum kvi_backend_call call);

/* Calls that were made to fail since creation. A test of "the n-th call failing, for every n"
 * is over when this did not grow. */
uint64_t kvi_backend_fault_fired(struct kvi_backend *b);

/* "map", "any"; NULL for a number that is no kind. */
const char *kvi_backend_call_name(enum kvi_backend_call call);

#endif
