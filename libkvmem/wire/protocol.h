/* SPDX-License-Identifier: Apache-2.0
 *
 * Structs and checks of the wire protocol, made from protocol.def.
 *
 *   struct kvi_msg_<message>   header and fixed fields, as they lie in the datagram
 *   struct kvi_rec_<record>    an element of a tail
 *   KVI_OP_<MESSAGE>           opcode
 *
 * Peer data is copied in, then checked with kvi_wire_check(), then used (DESIGN rule 15). The
 * tails of a checked message are reached through kvi_wire_tail().
 * Nothing here allocates, blocks or keeps state.
 */
#ifndef KVI_WIRE_PROTOCOL_H
#define KVI_WIRE_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#define KVI_PROTOCOL_VERSION     2u
#define KVI_PROTOCOL_VERSION_MIN 1u

#define KVI_MESSAGE_BYTES (64u * 1024u) /* longest datagram */
#define KVI_MESSAGE_FDS   16u           /* most descriptors in one */
#define KVI_CLIENT_LIMIT  256u
#define KVI_SPACE_LIMIT   256u
#define KVI_NO_CLIENT     UINT32_MAX
#define KVI_DEVICE_LIMIT  16u
#define KVI_LANE_COUNT    64u                 /* of a client's timeline */
#define KVI_FENCE_LIMIT   (UINT64_C(1) << 57) /* values of a lane are below it */

#define KVI_GRANT_LAST       1u /* grant.flags */
#define KVI_REQUEST_MAY_WAIT 1u /* blocks_request.flags */
#define KVI_LOOKUP_PEEK      1u /* lookup.flags */
#define KVI_SEGMENT_HAS_FD   1u /* segment_grant.flags: its descriptor comes along */
#define KVI_SEGMENT_ADOPTED  2u /* segment_grant.flags: it has entries of others in place */
#define KVI_SPACE_REGIONS    1u /* space_open.flags; bits 8 to 15: 1 + device, 0 = any */
#define KVI_DEVICE_MPS       1u /* device_info.flags */

#include "wire/protocol.def"

#define KVI_STRUCT_U32(name, min, max, text) uint32_t name;
#define KVI_STRUCT_U64(name, min, max, text) uint64_t name;
#define KVI_STRUCT_I32(name, min, max, text) int32_t name;
#define KVI_STRUCT_TEXT(name, bytes, text)   char name[bytes];
#define KVI_STRUCT_BYTES(name, bytes, text)  uint8_t name[bytes];
#define KVI_STRUCT_ZERO(name, bytes)         uint8_t name[bytes];
#define KVI_STRUCT_TAIL(record, count_field, limit, text)
#define KVI_STRUCT_FIELDS(message)                                                        \
    KVI_FIELDS_##message(KVI_STRUCT_U32, KVI_STRUCT_U64, KVI_STRUCT_I32, KVI_STRUCT_TEXT, \
                         KVI_STRUCT_BYTES, KVI_STRUCT_ZERO, KVI_STRUCT_TAIL)

struct kvi_header {
    KVI_STRUCT_FIELDS(header)
};

#define KVI_STRUCT_MESSAGE(lower, upper, opcode, direction, fd_limit, text) \
    struct kvi_msg_##lower {                                                \
        struct kvi_header header;                                           \
        KVI_STRUCT_FIELDS(lower)                                            \
    };
KVI_MESSAGE_TABLE(KVI_STRUCT_MESSAGE)

#define KVI_STRUCT_RECORD(lower, text) \
    struct kvi_rec_##lower {           \
        KVI_STRUCT_FIELDS(lower)       \
    };
KVI_RECORD_TABLE(KVI_STRUCT_RECORD)

enum kvi_opcode {
#define KVI_ENUM_MESSAGE(lower, upper, opcode, direction, fd_limit, text) KVI_OP_##upper = (opcode),
    KVI_MESSAGE_TABLE(KVI_ENUM_MESSAGE)
};

enum kvi_direction {
    KVI_TO_DAEMON,
    KVI_TO_CLIENT
};

/* Life of a segment as `segments` shows it. */
enum kvi_segment_state {
    KVI_SEGMENT_FREE = 0,        /* no memory */
    KVI_SEGMENT_CREATING = 1,    /* the backend was asked for memory */
    KVI_SEGMENT_OWNED = 2,       /* one client writes */
    KVI_SEGMENT_HANDED_IN = 3,   /* nobody writes; the directory may evict */
    KVI_SEGMENT_QUARANTINED = 4, /* its owner is gone or going, not yet proved dead */
    KVI_SEGMENT_DRAINING = 5     /* released; waits until its mappers have unmapped it */
};

/* Verdict of a check. */
enum kvi_wire_verdict {
    KVI_WIRE_OK = 0,
    KVI_WIRE_BAD_FIELD = 1, /* answer with `error`, keep the connection */
    KVI_WIRE_BAD_FRAME = 2  /* end the connection */
};

/* Check a datagram of `bytes` bytes and `fd_count` descriptors that came in `direction`: known
 * opcode, exact length (fixed part and tails), reserved bytes zero, as many descriptors as the
 * header says (to a client; none to the daemon), texts terminated and zero-filled (from clients:
 * UTF-8 without control characters), every field in its range, every tail record's fields in
 * theirs. `datagram` needs no alignment, and is not changed. Fills `text` (may be NULL) with
 * "message.field: value is outside min..max" on a bad verdict. */
enum kvi_wire_verdict kvi_wire_check(const void *datagram, size_t bytes, uint32_t fd_count,
                                     enum kvi_direction direction, char *text, size_t text_bytes);

/* First record of the `which`-th tail (0 or 1) of a checked or laid-out message. */
void *kvi_wire_tail(void *message, unsigned which);
const void *kvi_wire_tail_const(const void *message, unsigned which);

/* Length of the message whose count fields are set (header.opcode too): fixed part plus tails. */
size_t kvi_wire_bytes(const void *message);

/* Zero the fixed part of *message, set opcode and serial. */
void kvi_wire_begin(void *message, enum kvi_opcode opcode, uint32_t serial);

/* Set header.length_bytes from the counts; returns it. The last step before sending. Bytes
 * between tails are zeroed. */
size_t kvi_wire_finish(void *message);

/* "lookup_reply" for an opcode, "unknown" for others. */
const char *kvi_wire_name(uint32_t opcode);

/* ---- the descriptors behind the checks, for the document generator and the tests ---- */

enum kvi_field_kind {
    KVI_FIELD_U32,
    KVI_FIELD_U64,
    KVI_FIELD_I32,
    KVI_FIELD_TEXT,
    KVI_FIELD_BYTES,
    KVI_FIELD_ZERO
};

struct kvi_field {
    enum kvi_field_kind kind;
    const char *name;
    size_t offset; /* from the start of message or record */
    size_t bytes;
    int64_t min; /* numbers: range; as uint64_t for U64 and U32 */
    uint64_t max;
    const char *text;
};

struct kvi_tail {
    const char *record;
    const struct kvi_field *fields; /* of the record */
    uint32_t field_count;
    size_t record_bytes;
    size_t count_offset; /* of the u32 count field in the message */
    uint32_t limit;
    const char *text;
};

struct kvi_message {
    uint32_t opcode;
    enum kvi_direction direction;
    uint32_t fd_limit;
    const char *name;
    const char *text;
    size_t fixed_bytes;
    const struct kvi_field *fields; /* fixed fields behind the header */
    uint32_t field_count;
    const struct kvi_tail *tails;
    uint32_t tail_count;
};

/* The message with that opcode, or NULL. */
const struct kvi_message *kvi_wire_message(uint32_t opcode);
/* All messages, in the order of the table. */
const struct kvi_message *kvi_wire_messages(uint32_t *count);

#endif
