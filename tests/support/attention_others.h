/* SPDX-License-Identifier: Apache-2.0
 *
 * Scenes of attention.h computed in other ways: with all scores in memory, and as a cascade.
 */
#ifndef KVT_ATTENTION_OTHERS_H
#define KVT_ATTENTION_OTHERS_H

#include <kvmem/attention_merge.h>

#include "support/attention.h"

/* kva_standard_run, and judge (it has no lse). */
enum kvt_verdict kvt_standard_try(struct kvt_attention_scene *scene);

/* kva_cascade_run, and judge, by a bound that leaves room for the rounding of the parts: what the
 * first blocks of all sequences have in common is the prefix, but no token that a row does not see.
 * *prefix_tokens says how long that was. */
enum kvt_verdict kvt_cascade_try(struct kvt_attention_scene *scene, uint32_t *prefix_tokens);

/* Check a case; NULL or what went wrong. Refused is wrong. */
const char *kvt_standard_check(const struct kvt_attention_case *c, const struct kvt_memory *memory);
const char *kvt_cascade_check(const struct kvt_attention_case *c, const struct kvt_memory *memory,
                              uint32_t *prefix_tokens);

/* The i-th of a row of cases that both ways take; differing in everything that matters to them. */
#define KVT_STANDARD_CASES 48u
#define KVT_CASCADE_CASES  48u
struct kvt_attention_case kvt_standard_case(uint32_t i, uint32_t device);
struct kvt_attention_case kvt_cascade_case(uint32_t i, uint32_t device);

#endif
