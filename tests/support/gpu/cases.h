/* SPDX-License-Identifier: Apache-2.0
 *
 * The frame of a program of tests/gpu or bench/gpu. Each case runs in a process of its own, so
 * that one that loses its context, as some do on purpose, spoils nothing for the next; other
 * processes of a case are the same program again, in a role.
 *
 *   program                      all cases, a line each; 77 without a GPU
 *   KVMEM_CASE=word program      those whose name contains it
 *   KVMEM_SLOWDOWN=n program     with time limits n times as long
 *   program --probe              is there a GPU? 0, or 77 and why not
 *   program --case NAME          one, here
 *   program --role NAME ARGS     another process of a case: told and heard as spawn.h says
 *
 * A case fails by dying (kvt_die, KVT_REQUIRE), and skips with kvt_case_skip.
 */
#ifndef KVT_GPU_CASES_H
#define KVT_GPU_CASES_H

#include "support/spawn.h"

struct kvt_case {
    const char *name; /* NULL ends the list */
    void (*run)(void);
    int limit_s; /* 0 = 120 */
};

struct kvt_role {
    const char *name;             /* NULL ends the list */
    int (*run)(char **arguments); /* those behind the name, up to NULL; the exit status */
};

/* The beginning of main(), of programs without cases too: ends the program with 77 and a reason
 * where there is no GPU, and as a role when it is started as one. `roles` may be NULL. */
void kvt_gpu_begin(int argc, char **argv, const struct kvt_role *roles);

/* What main() returns. Begins, too. */
int kvt_cases_main(int argc, char **argv, const struct kvt_case *cases,
                   const struct kvt_role *roles);

/* The case cannot be run here. */
_Noreturn void kvt_case_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Start this program in a role; up to 10 arguments and NULL. */
void kvt_role_spawn(struct kvt_process *process, int gift, const char *role, ...)
    __attribute__((sentinel));

/* In a role: a line for the test. */
void kvt_role_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Wait for the next line from the test; false when it has hung up. */
bool kvt_role_hear(char line[KVT_LINE_BYTES]);

/* The next line of the process, which must come within KVT_ANSWER_LIMIT and begin like this. */
const char *kvt_role_expect(struct kvt_process *process, const char *beginning);
/* Hang up, and require exit status 0. */
void kvt_role_end(struct kvt_process *process);

/* Death with what the condition was and the numbers that `...` names. */
#define KVT_REQUIRE(condition, ...)                                          \
    do {                                                                     \
        if (!(condition))                                                    \
            kvt_require_failed(__FILE__, __LINE__, #condition, __VA_ARGS__); \
    } while (0)
_Noreturn void kvt_require_failed(const char *file, int line, const char *condition,
                                  const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
