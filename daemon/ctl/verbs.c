/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of verbs and their help.
 */
#include <string.h>

#include "ctl.h"
#include "text.h"

static const struct kvctl_verb verbs[] = {
    {
        .name = "stats",
        .summary = "counters of the daemon: memory, blocks, sharing, movement, trouble",
        .help = "Shows what the daemon has counted since it started, in groups. Lines under\n"
                "`trouble` stand out when they are not 0.\n"
                "With --json: the fields of the protocol's stats_reply under their own names,\n"
                "and segment_ratio, entry_ratio, hit_ratio, foreign_hit_ratio (null when there\n"
                "is nothing to divide by).\n",
        .takes = KVCTL_TAKES_EVERY,
        .needs_daemon = true,
        .run = kvctl_cmd_stats,
    },
    {
        .name = "map",
        .summary = "a picture of the pool: segments as rows, blocks by state",
        .help = "Draws a row a segment: number, space, owner, state, its blocks, and how many\n"
                "per cent of them are used. A segment that nobody writes belongs to the\n"
                "directory. Consecutive segments that look the same share a row (--all draws\n"
                "each); numbers without memory are named so. The last row is the whole pool.\n"
                "\n"
                "  leased entries     published blocks that a client or a pin holds\n"
                "  evictable entries  published blocks kept until their memory is wanted\n"
                "  used, unpublished  blocks in sequences of the segment's owner\n"
                "  waiting            no use before a process is gone or has unmapped them\n"
                "  free               everything else\n"
                "\n"
                "A cell with several states shows the most frequent one by a lighter glyph.\n"
                "Without a UTF-8 locale the glyphs are letters: L, E, U, X, lower case if mixed.\n",
        .takes = KVCTL_TAKES_WIDTH | KVCTL_TAKES_SPACE | KVCTL_TAKES_ALL | KVCTL_TAKES_EVERY,
        .needs_daemon = true,
        .run = kvctl_cmd_map,
    },
    {
        .name = "frag",
        .summary = "fragmentation by name, in bytes and per cent, and what to do",
        .help = "Says where the bytes of each space's segments are:\n"
                "\n"
                "  tokens      slots that hold a token\n"
                "  internal    unused token slots in used blocks\n"
                "  external    free blocks in partly used segments\n"
                "  empty       segments without a used block\n"
                "  waiting     blocks nobody can use before a process is gone\n"
                "  padding     between the blocks, by the stride\n"
                "\n"
                "These add up to the space's memory. Beside them:\n"
                "\n"
                "  over floor  segments held over the packed floor, the number that the used\n"
                "              blocks would fill without a gap\n"
                "  saved       bytes that clients share instead of having copies\n"
                "  virtual     what clients hold, each counted for itself\n",
        .takes = KVCTL_TAKES_SPACE | KVCTL_TAKES_EVERY,
        .needs_daemon = true,
        .run = kvctl_cmd_frag,
    },
    {
        .name = "clients",
        .summary = "who is connected, and what each one holds",
        .help = "Lists clients: connecting, alive, ending (its connection is closed, its\n"
                "process not gone yet) or quarantined (its memory waits for that). kvmemctl\n"
                "itself is an observer. Narrow terminals show fewer columns.\n",
        .needs_daemon = true,
        .run = kvctl_cmd_clients,
    },
    {
        .name = "spaces",
        .summary = "models' geometries, quotas, and what each space holds",
        .help = "Lists spaces. `saved` is what sharing between clients saves. Narrow terminals\n"
                "show fewer columns.\n",
        .needs_daemon = true,
        .run = kvctl_cmd_spaces,
    },
    {
        .name = "devices",
        .summary = "the daemon's devices: memory, state of their drivers, MPS",
        .help = "Lists devices in the order in which they were given to kvmemd --device: what\n"
                "the daemon may take of each and what is free of that, the smallest mapping\n"
                "unit, segments that exist there, and\n"
                "\n"
                "  state  ok, or stuck: a driver call has not returned for two seconds. Nothing\n"
                "         is created there meanwhile; what to do is printed below the table\n"
                "  mps    on: engines share the GPU through MPS, so that the memory of a killed\n"
                "         one is created afresh (kvmemd --mps)\n"
                "  uuid   as nvidia-smi -L shows it\n"
                "\n"
                "Narrow terminals show fewer columns.\n",
        .needs_daemon = true,
        .run = kvctl_cmd_devices,
    },
    {
        .name = "check",
        .summary = "verify every invariant of the daemon's books; status 1 if one fails",
        .help = "The daemon walks all its structures and verifies every equation between them:\n"
                "bytes, segments, blocks, entries, leases, pins, charges, the index. It serves\n"
                "nobody else meanwhile, which takes milliseconds for a large pool.\n"
                "Exit status: 0 all hold, 1 one does not (it is printed), 3 no answer.\n",
        .needs_daemon = true,
        .run = kvctl_cmd_check,
    },
    {
        .name = "version",
        .summary = "versions of kvmemctl and of the daemon, if there is one",
        .help = "Prints the program's version, the protocol versions it speaks, and those of\n"
                "the daemon. That no daemon listens is not a failure.\n",
        .run = kvctl_cmd_version,
    },
    {
        .name = "help",
        .summary = "this text, or `help VERB`",
        .help = "`kvmemctl help VERB` and `kvmemctl VERB --help` are the same.\n",
        .takes = KVCTL_TAKES_WORD,
        .run = kvctl_cmd_help,
    },
};

#define VERB_COUNT (sizeof(verbs) / sizeof(verbs[0]))

const struct kvctl_verb *kvctl_verbs(unsigned *count)
{
    *count = VERB_COUNT;
    return verbs;
}

const struct kvctl_verb *kvctl_verb_find(const char *name)
{
    for (unsigned i = 0; i < VERB_COUNT; i++)
        if (strcmp(verbs[i].name, name) == 0)
            return &verbs[i];
    return NULL;
}

const struct kvctl_verb *kvctl_verb_nearest(const char *name)
{
    const struct kvctl_verb *nearest = NULL;
    size_t length = strlen(name);
    unsigned best = length < 4 ? 2 : 3; /* one edit in a short word, two in a longer one */

    for (unsigned i = 0; i < VERB_COUNT; i++) {
        unsigned distance = kvctl_edit_distance(name, verbs[i].name);

        /* "frag" for "fragmentation", "stats" for "st" */
        if (length > 1 && (strncmp(verbs[i].name, name, length) == 0 ||
                           strncmp(verbs[i].name, name, strlen(verbs[i].name)) == 0))
            distance = 1;
        if (distance < best) {
            best = distance;
            nearest = &verbs[i];
        }
    }
    return nearest;
}

int kvctl_complain_verb(const char *name)
{
    const struct kvctl_verb *nearest = kvctl_verb_nearest(name);

    fprintf(stderr, "kvmemctl: there is no verb '%s'", name);
    if (nearest)
        fprintf(stderr, "; did you mean '%s'?\n", nearest->name);
    else
        fputs(".\n", stderr);
    fputs("`kvmemctl help` lists the verbs.\n", stderr);
    return KVCTL_EXIT_USAGE;
}

void kvctl_help_general(FILE *out)
{
    fputs("kvmemctl looks at a running kvmemd, the daemon that owns KV-cache memory.\n"
          "\n"
          "usage: kvmemctl [OPTIONS] VERB [OPTIONS]\n"
          "\n",
          out);
    for (unsigned i = 0; i < VERB_COUNT; i++)
        fprintf(out, "  %-9s %s\n", verbs[i].name, verbs[i].summary);
    fputs("\n"
          "options\n"
          "  --socket PATH      the daemon's socket; default: $KVMEM_SOCKET, else\n"
          "                     kvmem/kvmemd.sock in $XDG_RUNTIME_DIR or /run[/user/UID]\n"
          "  --json             one JSON object; keys are stable and end in their unit\n"
          "  --color WHEN       auto (default), always or never; NO_COLOR turns auto off\n"
          "  --timeout SECONDS  for the connection and for each answer; default 5\n"
          "  --help, -h         this text, or that of the verb\n"
          "  --version          the same as the verb\n"
          "\n"
          "options of some verbs\n"
          "  --every SECONDS    stats, map, frag: again and again, until Ctrl-C\n"
          "  --space NAME       map, frag: one space only (NAME or DOMAIN/NAME)\n"
          "  --width COLUMNS    map: instead of the terminal's, 40 to 1000\n"
          "  --all              map: a row for every segment, even when rows look the same\n"
          "\n"
          "exit status: 0 fine, 1 check found a violation, 2 usage, 3 another failure\n",
          out);
}

void kvctl_help_verb(FILE *out, const struct kvctl_verb *verb)
{
    fprintf(out, "usage: kvmemctl [OPTIONS] %s%s%s%s%s%s\n\n%s: %s\n\n", verb->name,
            verb->takes & KVCTL_TAKES_WORD ? " [VERB]" : "",
            verb->takes & KVCTL_TAKES_SPACE ? " [--space NAME]" : "",
            verb->takes & KVCTL_TAKES_ALL ? " [--all]" : "",
            verb->takes & KVCTL_TAKES_WIDTH ? " [--width COLUMNS]" : "",
            verb->takes & KVCTL_TAKES_EVERY ? " [--every SECONDS]" : "", verb->name, verb->summary);
    fprintf(out, "%s\n`kvmemctl help` lists the options that every verb takes.\n", verb->help);
}
