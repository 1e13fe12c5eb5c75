/* SPDX-License-Identifier: Apache-2.0
 *
 * Fills any message with a fixed pattern, through its descriptors: numbers inside their range,
 * texts with the field's name, bytes that count up, three records in a first tail and two in a
 * second one. The golden file and the tests of the check start from it.
 */
#ifndef KVT_WIRE_PATTERN_H
#define KVT_WIRE_PATTERN_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "wire/protocol.h"

#define KVT_PATTERN_BYTES (2 * KVI_MESSAGE_BYTES)

/* A step of a 64-bit linear congruential generator (Knuth's constants), its upper half. */
static inline uint64_t kvt_pattern_next(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 32 | *state << 32;
}

static inline void kvt_pattern_fill_field(const struct kvi_field *field, uint8_t *at,
                                          uint64_t *state)
{
    uint64_t span = field->max - (uint64_t)field->min + 1;
    uint64_t value = kvt_pattern_next(state);

    switch (field->kind) {
    case KVI_FIELD_U32:
    case KVI_FIELD_U64:
    case KVI_FIELD_I32:
        value = (uint64_t)field->min + (span ? value % span : value);
        memcpy(at, &value, field->bytes);
        break;
    case KVI_FIELD_TEXT:
        memset(at, 0, field->bytes);
        snprintf((char *)at, field->bytes, "%s-é", field->name);
        break;
    case KVI_FIELD_BYTES:
        for (size_t i = 0; i < field->bytes; i++)
            at[i] = (uint8_t)(value + i);
        break;
    case KVI_FIELD_ZERO: memset(at, 0, field->bytes); break;
    }
}

static inline void kvt_pattern_fill_record(const struct kvi_tail *tail, uint8_t *at,
                                           uint64_t *state)
{
    for (uint32_t f = 0; f < tail->field_count; f++)
        kvt_pattern_fill_field(&tail->fields[f], at + tail->fields[f].offset, state);
}

/* Fill `message` (8-aligned, KVT_PATTERN_BYTES of room) with counts[i] records in tail i; returns
 * its length. */
static inline size_t kvt_pattern_fill_counts(const struct kvi_message *m, const uint32_t *counts,
                                             uint8_t *message)
{
    uint64_t state = m->opcode;
    size_t bytes;

    kvi_wire_begin(message, (enum kvi_opcode)m->opcode, 0x01020304);
    for (uint32_t f = 0; f < m->field_count; f++)
        kvt_pattern_fill_field(&m->fields[f], message + m->fields[f].offset, &state);
    for (uint32_t t = 0; t < m->tail_count; t++)
        memcpy(message + m->tails[t].count_offset, &counts[t], sizeof(counts[t]));
    bytes = kvi_wire_finish(message);
    for (uint32_t t = 0; t < m->tail_count; t++)
        for (uint32_t i = 0; i < counts[t]; i++)
            kvt_pattern_fill_record(
                &m->tails[t], (uint8_t *)kvi_wire_tail(message, t) + i * m->tails[t].record_bytes,
                &state);
    return bytes;
}

static inline size_t kvt_pattern_fill(const struct kvi_message *m, uint8_t *message)
{
    static const uint32_t counts[2] = {3, 2};

    return kvt_pattern_fill_counts(m, counts, message);
}

#endif
