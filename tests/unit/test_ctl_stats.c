/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl's words: statistics as text and as JSON, failures with what to do next, verbs that
 * are near to a typing error.
 */
#include <criterion/criterion.h>
#include <kvmem/error.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"
#include "ctl/stats.h"

static void contains(const char *text, const char *wanted)
{
    cr_assert_not_null(strstr(text, wanted), "\"%s\" is not in\n%s", wanted, text);
}

/* Every field has a number of its own. */
static struct kvi_msg_stats_reply counted(void)
{
    struct kvi_msg_stats_reply stats = {0};
    uint64_t next = (1ull << 53) + 1;

#define COUNT_U64(name, min, max, text) stats.name = next++;
#define COUNT_NONE(...)
    KVI_FIELDS_stats_reply(COUNT_NONE, COUNT_U64, COUNT_NONE, COUNT_NONE, COUNT_NONE, COUNT_NONE,
                           COUNT_NONE) return stats;
}

Test(ctl_stats, json_has_every_field_exactly)
{
    const struct kvi_msg_stats_reply stats = counted();
    cJSON *object = kvctl_stats_json(&stats);
    char *text = cJSON_PrintUnformatted(object);
    char pair[128];

#define EXPECT_U64(name, min, max, description)                                          \
    snprintf(pair, sizeof(pair), "\"" #name "\":%llu,", (unsigned long long)stats.name); \
    contains(text, pair);
    KVI_FIELDS_stats_reply(COUNT_NONE, EXPECT_U64, COUNT_NONE, COUNT_NONE, COUNT_NONE, COUNT_NONE,
                           COUNT_NONE) contains(text, "\"hit_ratio\":");
    contains(text, "\"foreign_hit_ratio\":");
    cJSON_free(text);
    cJSON_Delete(object);
}

Test(ctl_stats, nothing_to_divide_by_is_null)
{
    const struct kvi_msg_stats_reply stats = {0};
    cJSON *object = kvctl_stats_json(&stats);

    cr_assert(cJSON_IsNull(cJSON_GetObjectItem(object, "hit_ratio")));
    cJSON_Delete(object);
}

static char *page(const struct kvi_msg_stats_reply *stats, bool has_color)
{
    const struct kvctl_style style = {.has_color = has_color, .has_utf8 = true};
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    kvctl_stats_print(out, stats, "kvmemd at /x", &style);
    fclose(out);
    return text;
}

Test(ctl_stats, page_fits)
{
    const struct kvi_msg_stats_reply stats = {.refusals = 12345678, .pressure_requests = 12345678};
    char *text = page(&stats, false);

    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        cr_assert(strlen(line) <= 80, "%s", line);
    free(text);
}

Test(ctl_stats, page_is_grouped_and_cuts_no_number)
{
    const struct kvi_msg_stats_reply stats = counted();
    char *text = page(&stats, false);

    contains(text, " 9,007,199,254,741,014\n");

    contains(text, "\nmemory\n");
    contains(text, "\nblocks\n");
    contains(text, "\nsharing\n");
    contains(text, "\nmovement\n");
    contains(text, "\ntrouble\n");
    cr_assert_null(strchr(text, '\033'));
    free(text);
}

Test(ctl_stats, trouble_stands_out)
{
    struct kvi_msg_stats_reply stats = {0};
    char *text = page(&stats, true);

    cr_assert_null(strstr(text, "\033[1;31m"));
    free(text);
    stats.leaked_blocks = 2;
    text = page(&stats, true);
    contains(text, "\033[1;31m  leaked blocks ");
    contains(text, "run kvmemctl check");
    free(text);
}

/* ---- failures ------------------------------------------------------------------------- */

static void explains(const struct kvctl_failure *failure, int status, const char *first,
                     const char *second)
{
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    cr_assert_eq(kvctl_explain(out, failure), status);
    fclose(out);
    cr_assert_eq(strncmp(text, "kvmemctl: ", 10), 0);
    contains(text, first);
    contains(text, second);
    free(text);
}

Test(ctl_explain, what_to_do_next)
{
    struct kvctl_failure failure = {.path = "/x", .asked = "", .timeout_ns = 5000000000};

    failure.code = KVMEM_E_DAEMON_LOST;
    explains(&failure, 3, "no daemon listens at /x.", "kvmemd --socket /x");
    failure.is_connected = true;
    failure.asked = "stats";
    explains(&failure, 3, "ended the connection while it was asked for stats", "Start it again");
    failure.code = KVMEM_E_TIMED_OUT;
    explains(&failure, 3, "did not answer stats within 5.0 s", "--timeout 30");
    failure.code = KVMEM_E_VERSION;
    strcpy(failure.detail, "the client speaks 1 to 1, the daemon 2 to 3");
    explains(&failure, 3, "speaks protocol versions 1 to 2", "the daemon 2 to 3");
    failure.version_min = 2;
    failure.version = 3;
    explains(&failure, 3, "the daemon at /x speaks 2 to 3.", "from the same release");
    failure.code = KVMEM_E_PERMISSION;
    explains(&failure, 3, "may not connect to /x", "as root");
    failure.code = KVMEM_E_PROTOCOL;
    explains(&failure, 3, "does not speak kvmem's protocol", "--socket PATH");
    failure.code = KVMEM_E_LIMIT;
    explains(&failure, 3, "(LIMIT)", "End a client");
    failure.is_connected = false;
    failure.code = KVMEM_E_INVALID;
    explains(&failure, 2, "/x", "(INVALID)");
}

/* ---- verbs ---------------------------------------------------------------------------- */

static const char *nearest(const char *name)
{
    const struct kvctl_verb *verb = kvctl_verb_nearest(name);

    return verb ? verb->name : "";
}

Test(ctl_verbs, nearest)
{
    cr_assert_str_eq(nearest("stat"), "stats");
    cr_assert_str_eq(nearest("stast"), "stats");
    cr_assert_str_eq(nearest("mpa"), "map");
    cr_assert_str_eq(nearest("client"), "clients");
    cr_assert_str_eq(nearest("fragmentation"), "frag");
    cr_assert_str_eq(nearest("space"), "spaces");
    cr_assert_str_eq(nearest("xyzzy"), "");
    cr_assert_str_eq(nearest("x"), "");
    cr_assert_str_eq(nearest(""), "");
}

Test(ctl_verbs, help_fits)
{
    unsigned count;
    const struct kvctl_verb *all = kvctl_verbs(&count);
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    kvctl_help_general(out);
    for (unsigned i = 0; i < count; i++)
        kvctl_help_verb(out, &all[i]);
    fclose(out);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        cr_assert(strlen(line) <= (strncmp(line, "usage", 5) ? 80 : 100), "%s", line);
    free(text);
}
