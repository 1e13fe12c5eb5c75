/* SPDX-License-Identifier: Apache-2.0
 *
 * Helper processes of tests, and what a test asks about processes, its own included.
 *
 *   test ── a command a line ──▶ stdin   helper   stdout ── an answer a line ──▶ test
 *
 * A helper dies with the test that started it, has no descriptor of the test but the three
 * standard ones and `gift` as number 3, and leaves no core file. Whatever a test waits for has a
 * time limit; one that is missed, as any failure here, ends the test: kvt_die() prints and aborts.
 *
 * One thread. No test framework here: helpers link this too.
 */
#ifndef KVT_SPAWN_H
#define KVT_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "support/random.h"

#ifdef KVI_SANITIZE
#define KVT_SLOWDOWN 5 /* of programs under a sanitizer, for time limits */
#else
#define KVT_SLOWDOWN 1
#endif

#define KVT_MS(count)    ((int64_t)(count)*1000000)
#define KVT_LINE_BYTES   512
#define KVT_GIFT_FD      3
#define KVT_ARGUMENTS    16                             /* of a program that tests start, at most */
#define KVT_ANSWER_LIMIT (KVT_SLOWDOWN * KVT_MS(20000)) /* until a helper is called hung */

_Noreturn void kvt_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t kvt_now_ns(void);
void kvt_sleep_ns(int64_t ns);

/* $KVMEM_SEED, else fresh; printed with the test's name, so that a failure can be run again. */
uint64_t kvt_seed(const char *test);

/* $name as a number of at least `least`, or `usual` when it is not set. */
uint32_t kvt_count_from_env(const char *name, uint32_t usual, uint32_t least);

/* "tests/helpers/x" or "bin/kvmemd" in the build that this program belongs to
 * ($KVMEM_BUILD_DIR, else found from /proc/self/exe). Static storage. */
const char *kvt_program_path(const char *relative);

struct kvt_process {
    int pid;   /* 0 = none */
    int pidfd; /* readable once all threads of the process are gone */
    int in;    /* its stdin; -1 after kvt_hang_up */
    int out;   /* its stdout; -1 when that goes to the log */
    size_t buffered_bytes;
    char buffer[2 * KVT_LINE_BYTES];
};

struct kvt_spawn_options {
    const char *program;                  /* relative, as for kvt_program_path */
    const char *arguments[KVT_ARGUMENTS]; /* behind argv[0], up to NULL */
    const char *log;       /* stderr goes to the end of this file; NULL: to the test's */
    bool is_output_logged; /* stdout too: nothing is heard from it */
    int gift;              /* becomes descriptor KVT_GIFT_FD; 0 = none */
};
void kvt_spawn(struct kvt_process *process, const struct kvt_spawn_options *options);

/* Send a line. */
void kvt_tell(struct kvt_process *process, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Take the next line, without its end, into `line` (KVT_LINE_BYTES). 1 = there, 0 = its stdout
 * has ended, −1 = neither within `timeout_ns`. */
int kvt_hear(struct kvt_process *process, char *line, int64_t timeout_ns);

/* Tell and hear; the process must answer within KVT_ANSWER_LIMIT. Returns `answer`. */
const char *kvt_ask(struct kvt_process *process, char *answer, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The number behind " key=" in an answer; the key must be there. */
uint64_t kvt_answer_number(const char *answer, const char *key);

/* Close its stdin, which a helper takes as the end. */
void kvt_hang_up(struct kvt_process *process);

/* Wait until the process is gone; its status as waitpid gives it. Closes what we hold of it. */
int kvt_reap(struct kvt_process *process, int64_t timeout_ns);

/* SIGKILL, without waiting. */
void kvt_kill(const struct kvt_process *process);

/* Wait until the pidfd says that the process is gone; the time when it said so. Not reaped. */
uint64_t kvt_wait_gone(const struct kvt_process *process, int64_t timeout_ns);

/* Open descriptors, resident bytes, and CPU time used, of any process. −1 when unknown. */
int kvt_process_fd_count(int pid);
int64_t kvt_process_resident_bytes(int pid);
int64_t kvt_process_cpu_ms(int pid);

/* ---- time on a busy machine ----
 *
 * A limit in milliseconds says nothing when a process gets no processor for longer than that. So
 * such times are taken twice: as they passed, and without what the threads of this process and of
 * one or two others waited in a run queue meanwhile (/proc/PID/task/TID/schedstat; where there is
 * none, both are the same). */

struct kvt_stopwatch {
    int pids[2];
    uint64_t start_ns;
    uint64_t waited_ns; /* until then, by all */
};
struct kvt_time {
    uint64_t passed_ns;
    uint64_t net_ns;
};
/* `pids`: up to two others; 0 = none. */
void kvt_stopwatch_start(struct kvt_stopwatch *watch, int pid, int other_pid);
struct kvt_time kvt_stopwatch_read(const struct kvt_stopwatch *watch);

/* ---- this process ---- */

struct kvt_self {
    int fd_count;
    int segment_maps;  /* mappings of segments and status pages */
    int reserved_maps; /* address space without rights; 0 under a sanitizer, which has its own */
};
struct kvt_self kvt_self_count(void);
bool kvt_self_is(const struct kvt_self *expected); /* prints the difference when it is not */

/* Rights of the mapping at `address`, such as "r--s"; "none" where nothing is. Static storage. */
const char *kvt_rights_at(const void *address);

#endif
