/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens and K/V bytes as fixed functions, so that whoever reads a byte can say what it must be.
 *
 *   token of a prompt    = f(id, position in the id's tokens): equal ids, equal tokens
 *   token of an output   = f(request number, position): no other request has it
 *   history at position p = rolling hash of tokens 0 .. p: equal prefixes, equal histories
 *   bytes of (p, layer, K or V, head) = g(history at p, layer, K or V, head), in byte_function.h
 *
 * g gives finite values of moderate size (magnitude 1/8 to 2) in which sign, mantissa and two
 * exponent bits vary: attention over them is well conditioned, and any other vector differs.
 * Bytes are always made from here, never read from a block.
 */
#ifndef KVB_REPLAY_BYTES_H
#define KVB_REPLAY_BYTES_H

#include <kvmem.h>

#include "byte_function.h"
#include "trace.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVB_HISTORY_ROOT 0x6b766d656d000001ull

/* A sequence's K and V as someone sees them: blocks through a table. */
struct kvb_view {
    const char *base;
    const int32_t *table;
    uint32_t block_count; /* entries of table */
    uint32_t length;      /* tokens */
};

void kvb_shape_init(struct kvb_shape *shape, const struct kvb_model *model,
                    const struct kvmem_geometry *geometry);

/* Tokens of the prompt; tokens (request->prompt_tokens). */
void kvb_tokens_of_prompt(const struct kvb_trace *trace, const struct kvb_request *request,
                          uint32_t *tokens);
/* Output token `position` of request `number`. */
uint32_t kvb_token_of_output(uint32_t number, uint32_t position);

static inline uint64_t kvb_history_next(uint64_t history, uint32_t token)
{
    uint64_t mixed = (history ^ token) * 0x9fb21c651e98df25ull;

    return mixed ^ (mixed >> 32);
}

/* history[i] for i in [first, end) from tokens; history[first − 1] is there already. */
void kvb_history_fill(const uint32_t *tokens, uint32_t first, uint32_t end, uint64_t *history);

/* The vector of (history, layer, is_v, head); out (vector_bytes rounded up to 8). */
void kvb_vector(const struct kvb_shape *shape, uint64_t history, uint32_t layer, uint32_t is_v,
                uint32_t head, uint64_t *out);

/* Write K and V of tokens [first, end) of the sequence whose blocks are `table`. */
void kvb_write(const struct kvb_shape *shape, char *base, const int32_t *table,
               const uint64_t *history, uint32_t first, uint32_t end);

/* Compare tokens [first, end) with what they must be; end may not exceed view->length.
 * Returns the number of bytes that differ; a block that is not in the table counts whole. */
uint64_t kvb_count_wrong_bytes(const struct kvb_shape *shape, const struct kvb_view *view,
                               const uint64_t *history, uint32_t first, uint32_t end);

#ifdef __cplusplus
}
#endif
#endif
