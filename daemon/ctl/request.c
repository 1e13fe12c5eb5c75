/* SPDX-License-Identifier: Apache-2.0
 *
 * The connection to kvmemd: hello, request and reply.
 */
#include "request.h"

#include <kvmem/client.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "text.h"
#include "util/error.h"

/* Record a failure with the thread's detail of it. Returns `code`. */
static int fail(struct kvctl_session *session, int code, const char *asked)
{
    const struct kvmem_error_detail *detail = kvmem_error_detail();
    struct kvctl_failure *failure = &session->failure;

    failure->code = code;
    failure->asked = asked;
    failure->path = session->path;
    failure->timeout_ns = session->timeout_ns;
    failure->is_connected = session->link != NULL;
    failure->version = session->welcome.version;
    failure->version_min = session->welcome.version_min;
    /* The daemon's words are a peer's: no control characters. */
    kvctl_clean(failure->detail, sizeof(failure->detail), detail->code == code ? detail->text : "",
                sizeof(detail->text), true);
    return code;
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Take one message of any kind. Descriptors are not wanted here, but counted: the daemon keeps
 * account of those that were not acknowledged. */
static int receive(struct kvctl_session *session, int64_t timeout_ns)
{
    int fds[KVI_MESSAGE_FDS];
    uint32_t fd_count = 0;
    int rc = session->link->ops->receive(session->link, session->buffer, sizeof(session->buffer),
                                         fds, &fd_count, timeout_ns);

    for (uint32_t i = 0; rc > 0 && i < fd_count; i++)
        close(fds[i]);
    if (rc > 0)
        session->fds_received += fd_count;
    return rc;
}

/* An error before the hello was read: the daemon has no place left. */
static bool is_turned_away(const void *message)
{
    const struct kvi_msg_error *error = message;

    return error->header.opcode == KVI_OP_ERROR && error->header.serial == 0 &&
           error->opcode == KVI_OP_HELLO;
}

/* Wait for the answer to `serial`. 0 or a negative code. */
static int receive_answer(struct kvctl_session *session, uint32_t serial)
{
    const struct kvi_header *header = (const void *)session->buffer;
    int64_t deadline = now_ns() + session->timeout_ns;

    for (;;) {
        int64_t left = deadline - now_ns();
        int rc = left > 0 ? receive(session, left) : 0;

        if (rc < 0)
            return rc;
        if (rc == 0 && left <= 0)
            return kvi_error_set(KVMEM_E_TIMED_OUT, "no answer");
        if (rc == 0)
            continue;
        if (header->serial == serial || is_turned_away(session->buffer))
            return 0;
    }
}

int kvctl_ask(struct kvctl_session *session, void *request, enum kvi_opcode reply_opcode,
              const void **reply)
{
    struct kvi_header *header = request;
    const char *asked = kvi_wire_name(header->opcode);
    const struct kvi_header *answer = (const void *)session->buffer;
    const struct kvi_msg_error *error = (const void *)session->buffer;
    int rc;

    header->serial = ++session->serial;
    header->fds_received = session->fds_received;
    kvi_wire_finish(request);
    rc = session->link->ops->send(session->link, request, session->timeout_ns);
    /* Who is turned away before the hello was read finds the connection closed, and the reason. */
    if (rc >= 0 || (rc == KVMEM_E_DAEMON_LOST && header->opcode == KVI_OP_HELLO))
        rc = receive_answer(session, header->serial);
    if (rc < 0)
        return fail(session, rc, asked);
    if (answer->opcode == KVI_OP_ERROR) {
        kvi_error_set(error->code, "%s", error->text);
        return fail(session, error->code, asked);
    }
    if (answer->opcode != reply_opcode) {
        kvi_error_set(KVMEM_E_PROTOCOL, "%s was answered with %s", asked,
                      kvi_wire_name(answer->opcode));
        return fail(session, KVMEM_E_PROTOCOL, asked);
    }
    *reply = session->buffer;
    return 0;
}

static int say_hello(struct kvctl_session *session)
{
    struct kvi_msg_hello hello;
    const void *reply;
    int rc;

    kvi_wire_begin(&hello, KVI_OP_HELLO, 0);
    hello.version = KVI_PROTOCOL_VERSION;
    hello.version_min = KVI_PROTOCOL_VERSION_MIN;
    hello.role = KVMEM_ROLE_OBSERVER;
    strcpy(hello.name, "kvmemctl");
    rc = kvctl_ask(session, &hello, KVI_OP_WELCOME, &reply);
    if (rc < 0)
        return rc;
    memcpy(&session->welcome, reply, sizeof(session->welcome));
    if (session->welcome.version < KVI_PROTOCOL_VERSION_MIN ||
        session->welcome.version > KVI_PROTOCOL_VERSION) {
        kvi_error_set(KVMEM_E_VERSION, "the daemon speaks protocol versions %u to %u",
                      session->welcome.version_min, session->welcome.version);
        return fail(session, KVMEM_E_VERSION, "hello");
    }
    return 0;
}

int kvctl_session_open(struct kvctl_session *session, const struct kvctl_options *options)
{
    int rc;

    memset(session, 0, sizeof(*session));
    session->timeout_ns = options->timeout_ns;
    rc = kvi_socket_path(options->socket, session->path, sizeof(session->path));
    if (rc < 0) {
        snprintf(session->path, sizeof(session->path), "%s",
                 options->socket ? options->socket : "the default path");
        return fail(session, rc, "");
    }
    rc = kvi_link_connect(session->path, session->timeout_ns, &session->link);
    if (rc < 0) {
        session->link = NULL;
        return fail(session, rc, "");
    }
    return say_hello(session);
}

void kvctl_session_close(struct kvctl_session *session)
{
    if (session->link)
        session->link->ops->close(session->link);
    session->link = NULL;
}
