/* SPDX-License-Identifier: Apache-2.0
 *
 * A trace of requests, one JSON object a line:
 *   {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [ids]}
 * Id i of a request stands for prompt tokens [i × tokens_per_id, (i + 1) × tokens_per_id), the
 * last one for what is left. Parsed once into two arrays; arrival order is the file's.
 */
#ifndef KVB_REPLAY_TRACE_H
#define KVB_REPLAY_TRACE_H

#include <stddef.h>
#include <stdint.h>

#define KVB_PROMPT_TOKENS_LIMIT (16u << 20)
#define KVB_OUTPUT_TOKENS_LIMIT (1u << 20)

struct kvb_request {
    uint64_t first_id; /* its ids are ids[first_id .. first_id + id_count) */
    uint32_t id_count;
    uint32_t prompt_tokens;
    uint32_t output_tokens;
};

struct kvb_trace {
    struct kvb_request *requests;
    uint64_t *ids;
    uint32_t request_count;
    uint32_t request_room;
    uint64_t id_count;
    uint64_t id_room;
    uint32_t tokens_per_id;
};

/* Read at most `request_limit` requests. 0, or -1 and `error` = "FILE:LINE: expected ...". */
int kvb_trace_load(const char *path, uint32_t tokens_per_id, uint32_t request_limit,
                   struct kvb_trace *out, char *error, size_t error_bytes);
void kvb_trace_fini(struct kvb_trace *trace);

#endif
