/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl check: the daemon verifies its own books. Exit status 1 when they do not add up.
 */
#include <string.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

static void print_json(FILE *out, const struct kvi_msg_check_reply *reply)
{
    cJSON *document = cJSON_CreateObject();

    kvctl_json_u64(document, "violations", reply->violations);
    kvctl_json_u64(document, "duration_ns", reply->duration_ns);
    kvctl_json_text(document, "text", reply->text, sizeof(reply->text));
    kvctl_json_print(out, document, 0);
}

static void print_verdict(struct kvctl_run *run, const struct kvi_msg_check_reply *reply)
{
    const struct kvctl_style *style = &run->style;
    char text[sizeof(reply->text) * 3];

    kvctl_clean(text, sizeof(text), reply->text, sizeof(reply->text), style->has_utf8);
    if (reply->violations == 0) {
        fprintf(run->out, "%sok%s  %s\n    verified in %s at %s\n",
                kvctl_tone(style, KVCTL_TONE_GOOD), kvctl_plain(style),
                *text ? text : "every equation of the directory holds",
                KVCTL_DURATION(reply->duration_ns, style->has_utf8), run->session.path);
        return;
    }
    fprintf(run->out,
            "%sVIOLATION%s  %s\n"
            "           found in %s at %s\n\n"
            "This is a bug of kvmemd: its books do not add up. Please report it with the line\n"
            "above, the daemon's log, and the output of `kvmemctl map --json`. Clients can go\n"
            "on reading; restart kvmemd when they can be drained.\n",
            kvctl_tone(style, KVCTL_TONE_BAD), kvctl_plain(style), text,
            KVCTL_DURATION(reply->duration_ns, style->has_utf8), run->session.path);
}

int kvctl_cmd_check(struct kvctl_run *run)
{
    struct kvi_msg_check request;
    const struct kvi_msg_check_reply *reply;
    const void *message;

    kvi_wire_begin(&request, KVI_OP_CHECK, 0);
    if (kvctl_ask(&run->session, &request, KVI_OP_CHECK_REPLY, &message) < 0)
        return kvctl_explain(stderr, &run->session.failure);
    reply = message;
    if (run->options.is_json)
        print_json(run->out, reply);
    else
        print_verdict(run, reply);
    return reply->violations ? KVCTL_EXIT_VIOLATION : KVCTL_EXIT_OK;
}
