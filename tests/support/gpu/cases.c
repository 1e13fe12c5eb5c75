/* SPDX-License-Identifier: Apache-2.0
 *
 * Running cases, each in a process of its own.
 */
#include "support/gpu/cases.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/gpu/gpu.h"

#define SKIPPED        77
#define USUAL_LIMIT_S  120
#define ROLE_ARGUMENTS 10
#define POLL_NS        KVT_MS(1)

/* ---- in a case ---- */

void kvt_case_skip(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    _exit(SKIPPED);
}

void kvt_require_failed(const char *file, int line, const char *condition, const char *format, ...)
{
    char text[400];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    kvt_die("%s:%d: not %s: %s", file, line, condition, text);
}

static int run_here(const struct kvt_case *one)
{
    kvt_gpu_use(kvt_gpu_ordinal());
    one->run();
    fflush(stdout);
    return 0;
}

/* ---- all cases ---- */

static pid_t start(const struct kvt_case *one)
{
    pid_t parent = getpid(), pid;

    fflush(stdout);
    pid = fork();
    if (pid < 0)
        kvt_die("fork: %s", strerror(errno));
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(126);
        execl("/proc/self/exe", "gpu-case", "--case", one->name, (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* Its status as waitpid gives it; it is killed at its limit. */
static int finish(pid_t pid, const struct kvt_case *one)
{
    uint64_t limit_s = (uint64_t)(one->limit_s ? one->limit_s : USUAL_LIMIT_S) * KVT_SLOWDOWN *
                       kvt_count_from_env("KVMEM_SLOWDOWN", 1, 1);
    uint64_t end_ns = kvt_now_ns() + limit_s * 1000000000u;
    int status = 0;
    pid_t got;

    while ((got = waitpid(pid, &status, WNOHANG)) == 0 && kvt_now_ns() < end_ns)
        kvt_sleep_ns(POLL_NS);
    if (got == pid)
        return status;
    printf("  still running after %llu s\n", (unsigned long long)limit_s);
    kill(pid, SIGKILL);
    if (waitpid(pid, &status, 0) != pid)
        kvt_die("waitpid: %s", strerror(errno));
    return status;
}

static const char *verdict_of(int status)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return "ok  ";
    return WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED ? "skip" : "FAIL";
}

static int run_all(const struct kvt_case *cases)
{
    const char *only = getenv("KVMEM_CASE");
    int passed = 0, failed = 0, skipped = 0;

    for (; cases->name; cases++) {
        uint64_t start_ns = kvt_now_ns();
        const char *verdict;

        if (only && !strstr(cases->name, only))
            continue;
        verdict = verdict_of(finish(start(cases), cases));
        printf("%s %s, %.1f s\n", verdict, cases->name, (double)(kvt_now_ns() - start_ns) / 1e9);
        passed += *verdict == 'o';
        failed += *verdict == 'F';
        skipped += *verdict == 's';
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    if (failed || passed)
        return failed > 0;
    printf("no case ran: %s\n", skipped ? "all were skipped" : "KVMEM_CASE names none here");
    return SKIPPED;
}

static int run_one(const struct kvt_case *cases, const char *name)
{
    for (; cases->name; cases++)
        if (strcmp(cases->name, name) == 0)
            return run_here(cases);
    kvt_die("no case %s", name);
}

static int run_role(const struct kvt_role *roles, char **argv)
{
    for (; roles && roles->name; roles++)
        if (strcmp(roles->name, argv[0]) == 0) {
            kvt_gpu_use(kvt_gpu_ordinal());
            return roles->run(argv + 1);
        }
    kvt_die("no role %s", argv[0]);
}

void kvt_gpu_begin(int argc, char **argv, const struct kvt_role *roles)
{
    const char *missing;

    /* All kernels at once: one that is loaded at its first launch may wait for the device, which
     * a test has stopped on purpose, and its memory would come and go in the counts. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    missing = kvt_gpu_missing();
    if (missing) {
        printf("%s\n", missing);
        exit(SKIPPED);
    }
    if (argc > 2 && strcmp(argv[1], "--role") == 0)
        exit(run_role(roles, argv + 2));
}

int kvt_cases_main(int argc, char **argv, const struct kvt_case *cases,
                   const struct kvt_role *roles)
{
    kvt_gpu_begin(argc, argv, roles);
    if (argc == 2 && strcmp(argv[1], "--probe") == 0)
        return 0;
    if (argc > 2 && strcmp(argv[1], "--case") == 0)
        return run_one(cases, argv[2]);
    return run_all(cases);
}

/* ---- roles ---- */

/* This program, relative to the build folder: its last three parts. */
static const char *own_program(void)
{
    static char path[384];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    char *at = path + (length > 0 ? length : 0);

    if (length <= 0)
        kvt_die("readlink /proc/self/exe: %s", strerror(errno));
    *at = '\0';
    for (int i = 0; i < 3; i++)
        while (at > path && *--at != '/')
            ;
    return at + 1;
}

void kvt_role_spawn(struct kvt_process *process, int gift, const char *role, ...)
{
    struct kvt_spawn_options options = {.program = own_program(), .gift = gift};
    const char *argument;
    int count = 2;
    va_list args;

    options.arguments[0] = "--role";
    options.arguments[1] = role;
    va_start(args, role);
    while ((argument = va_arg(args, const char *)) != NULL) {
        if (count == 2 + ROLE_ARGUMENTS)
            kvt_die("role %s: more than %d arguments", role, ROLE_ARGUMENTS);
        options.arguments[count++] = argument;
    }
    va_end(args);
    kvt_spawn(process, &options);
}

void kvt_role_say(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

bool kvt_role_hear(char line[KVT_LINE_BYTES])
{
    if (!fgets(line, KVT_LINE_BYTES, stdin))
        return false;
    line[strcspn(line, "\n")] = '\0';
    return true;
}

const char *kvt_role_expect(struct kvt_process *process, const char *beginning)
{
    static char line[KVT_LINE_BYTES];
    int heard;

    do /* what kvt_seed and checks print is indented or names a variable */
        heard = kvt_hear(process, line, KVT_ANSWER_LIMIT);
    while (heard == 1 && (line[0] == ' ' || strstr(line, "KVMEM_SEED=")));
    if (heard != 1)
        kvt_die("process %d %s before \"%s\"", process->pid,
                heard == 0 ? "ended" : "said nothing in time", beginning);
    if (strncmp(line, beginning, strlen(beginning)) != 0)
        kvt_die("process %d said \"%s\", not \"%s\"", process->pid, line, beginning);
    return line;
}

void kvt_role_end(struct kvt_process *process)
{
    int status;

    kvt_hang_up(process);
    status = kvt_reap(process, KVT_ANSWER_LIMIT);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        kvt_die("a role ended with status %#x, not 0", (unsigned)status);
}
