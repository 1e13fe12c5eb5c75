/* SPDX-License-Identifier: Apache-2.0
 *
 * A session with the daemon: hello as an observer, then questions, one at a time. An observer
 * owns nothing and changes nothing, so a kvmemctl that is killed leaves nothing behind.
 *
 * Every failure is recorded in the session, in the words kvctl_explain() turns into "what is
 * wrong, what to do next".
 */
#ifndef KVCTL_REQUEST_H
#define KVCTL_REQUEST_H

#include <stdbool.h>
#include <stdio.h>

#include "client/link.h"
#include "options.h"
#include "wire/protocol.h"

/* What went wrong, for kvctl_explain. */
struct kvctl_failure {
    int code;           /* KVMEM_E_* */
    bool is_connected;  /* the socket was connected to before */
    const char *asked;  /* name of the message that was not answered, or "" */
    const char *path;   /* of the socket */
    int64_t timeout_ns; /* the limit that passed */
    uint32_t version;   /* what the daemon speaks, when it said so; else 0 */
    uint32_t version_min;
    char detail[256]; /* the daemon's or the library's words; may be empty */
};

struct kvctl_session {
    struct kvi_link *link;
    char path[256];
    int64_t timeout_ns;
    uint32_t serial;
    uint32_t fds_received;
    struct kvi_msg_welcome welcome;
    struct kvctl_failure failure;
    _Alignas(8) unsigned char buffer[KVI_MESSAGE_BYTES];
};

/* Connect and say hello. 0, or a negative code; session->failure says why. Blocks at most the
 * time limit. Close in either case. */
int kvctl_session_open(struct kvctl_session *session, const struct kvctl_options *options);
void kvctl_session_close(struct kvctl_session *session);

/* Send `request` (begun with kvi_wire_begin) and wait for the message that answers it: *reply
 * lies in the session's buffer until the next call. Events in between are passed over. 0 or a
 * negative code. */
int kvctl_ask(struct kvctl_session *session, void *request, enum kvi_opcode reply_opcode,
              const void **reply);

/* One paragraph on `err`: what is wrong and what to do next. Returns the exit status. */
int kvctl_explain(FILE *err, const struct kvctl_failure *failure);

#endif
