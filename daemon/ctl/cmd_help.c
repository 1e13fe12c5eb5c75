/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl help [VERB].
 */
#include "ctl.h"

int kvctl_cmd_help(struct kvctl_run *run)
{
    const char *word = run->options.word;
    const struct kvctl_verb *verb = word ? kvctl_verb_find(word) : NULL;

    if (word && !verb)
        return kvctl_complain_verb(word);
    if (verb)
        kvctl_help_verb(run->out, verb);
    else
        kvctl_help_general(run->out);
    return KVCTL_EXIT_OK;
}
