/* SPDX-License-Identifier: Apache-2.0
 *
 * fork and exec rather than posix_spawn: the child asks to die with its parent and closes what is
 * not meant for it. Between the two only async-signal-safe calls are made.
 */
#include "support/spawn.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void kvt_die(const char *format, ...)
{
    va_list args;

    fflush(stdout);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

/* ---- time, chance, environment ---- */

uint64_t kvt_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void kvt_sleep_ns(int64_t ns)
{
    struct timespec rest = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

    while (nanosleep(&rest, &rest) && errno == EINTR)
        ;
}

uint64_t kvt_seed(const char *test)
{
    const char *given = getenv("KVMEM_SEED");
    uint64_t seed = 0;

    if (given)
        seed = strtoull(given, NULL, 0);
    else if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
        kvt_die("getrandom: %s", strerror(errno));
    printf("%s: KVMEM_SEED=%llu\n", test, (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

uint32_t kvt_count_from_env(const char *name, uint32_t usual, uint32_t least)
{
    const char *text = getenv(name);
    unsigned long count = text ? strtoul(text, NULL, 0) : usual;

    if (count < least || count > 1000000)
        kvt_die("%s=%s: expected %u to 1000000", name, text ? text : "(unset)", least);
    return (uint32_t)count;
}

const char *kvt_program_path(const char *relative)
{
    static char path[512];
    const char *build = getenv("KVMEM_BUILD_DIR");
    char self[384];
    ssize_t length;

    if (build && *build) {
        snprintf(path, sizeof(path), "%s/%s", build, relative);
        return path;
    }
    length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length < 0)
        kvt_die("readlink /proc/self/exe: %s", strerror(errno));
    self[length] = '\0';
    for (int i = 0; i < 3; i++) /* BUILD/MODE/tests/group/program */
        if (strrchr(self, '/'))
            *strrchr(self, '/') = '\0';
    snprintf(path, sizeof(path), "%s/%s", self, relative);
    return path;
}

/* ---- starting ---- */

/* In the child. `ends`: its stdin, its stdout, the gift or −1, the log or −1; all above 3. */
static _Noreturn void become(const char *path, char *const argv[], const int ends[4], int parent)
{
    struct rlimit none = {0, 0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(126); /* it was gone before we asked */
    setrlimit(RLIMIT_CORE, &none);
    dup2(ends[0], STDIN_FILENO);
    dup2(ends[1], STDOUT_FILENO);
    if (ends[3] >= 0)
        dup2(ends[3], STDERR_FILENO);
    if (ends[2] >= 0)
        dup2(ends[2], KVT_GIFT_FD);
    syscall(SYS_close_range, ends[2] >= 0 ? KVT_GIFT_FD + 1 : KVT_GIFT_FD, ~0u, 0);
    execv(path, argv);
    _exit(127);
}

/* A copy out of the way of 0 to 3, close-on-exec. */
static int lifted(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, KVT_GIFT_FD + 1);

    if (copy < 0)
        kvt_die("F_DUPFD_CLOEXEC: %s", strerror(errno));
    return copy;
}

static void make_pipe(int *read_end, int *write_end)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC))
        kvt_die("pipe2: %s", strerror(errno));
    *read_end = lifted(ends[0]);
    *write_end = lifted(ends[1]);
    close(ends[0]);
    close(ends[1]);
}

void kvt_spawn(struct kvt_process *process, const struct kvt_spawn_options *options)
{
    const char *path = kvt_program_path(options->program);
    const char *argv[KVT_ARGUMENTS + 2] = {path};
    int ends[4] = {-1, -1, -1, -1}, parent = getpid();

    memset(process, 0, sizeof(*process));
    for (int i = 0; i < KVT_ARGUMENTS && options->arguments[i]; i++)
        argv[i + 1] = options->arguments[i];
    make_pipe(&ends[0], &process->in);
    if (options->gift)
        ends[2] = lifted(options->gift);
    if (options->log)
        ends[3] = open(options->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    process->out = -1;
    if (options->is_output_logged)
        ends[1] = lifted(ends[3]);
    else
        make_pipe(&process->out, &ends[1]);
    fflush(stdout);
    process->pid = fork();
    if (process->pid == 0)
        become(path, (char *const *)(uintptr_t)argv, ends, parent);
    process->pidfd = (int)syscall(SYS_pidfd_open, process->pid, 0);
    if (process->pid < 0 || process->pidfd < 0)
        kvt_die("fork or pidfd_open: %s", strerror(errno));
    for (int i = 0; i < 4; i++)
        if (ends[i] >= 0)
            close(ends[i]);
}

/* ---- lines ---- */

static void tell(struct kvt_process *process, const char *format, va_list args)
{
    char line[KVT_LINE_BYTES];
    int length = vsnprintf(line, sizeof(line) - 1, format, args);

    if (length < 0 || length >= (int)sizeof(line) - 1)
        kvt_die("a line of %d bytes for a helper", length);
    line[length++] = '\n';
    signal(SIGPIPE, SIG_IGN);
    if (write(process->in, line, (size_t)length) != length)
        kvt_die("process %d does not read: %s (%.*s)", process->pid, strerror(errno), length, line);
}

void kvt_tell(struct kvt_process *process, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    tell(process, format, args);
    va_end(args);
}

/* 1 when a line was in the buffer. */
static int take_line(struct kvt_process *process, char *line)
{
    char *end = memchr(process->buffer, '\n', process->buffered_bytes);
    size_t length;

    if (!end)
        return 0;
    length = (size_t)(end - process->buffer);
    if (length >= KVT_LINE_BYTES)
        kvt_die("process %d sent a line of %zu bytes", process->pid, length);
    memcpy(line, process->buffer, length);
    line[length] = '\0';
    process->buffered_bytes -= length + 1;
    memmove(process->buffer, end + 1, process->buffered_bytes);
    return 1;
}

int kvt_hear(struct kvt_process *process, char *line, int64_t timeout_ns)
{
    uint64_t deadline = kvt_now_ns() + (uint64_t)timeout_ns;

    while (!take_line(process, line)) {
        struct pollfd state = {.fd = process->out, .events = POLLIN};
        uint64_t now = kvt_now_ns();
        int64_t left_ns = now < deadline ? (int64_t)(deadline - now) : 0;
        ssize_t got;

        if (poll(&state, 1, (int)((left_ns + 999999) / 1000000)) <= 0) {
            if (left_ns == 0)
                return -1;
            continue;
        }
        got = read(process->out, process->buffer + process->buffered_bytes,
                   sizeof(process->buffer) - process->buffered_bytes);
        if (got == 0)
            return 0;
        if (got < 0 && errno != EINTR)
            kvt_die("read from process %d: %s", process->pid, strerror(errno));
        process->buffered_bytes += got > 0 ? (size_t)got : 0;
    }
    return 1;
}

const char *kvt_ask(struct kvt_process *process, char *answer, const char *format, ...)
{
    va_list args;
    int heard;

    va_start(args, format);
    tell(process, format, args);
    va_end(args);
    heard = kvt_hear(process, answer, KVT_ANSWER_LIMIT);
    if (heard != 1)
        kvt_die("process %d %s after \"%s\"", process->pid,
                heard == 0 ? "ended" : "did not answer in time", format);
    return answer;
}

uint64_t kvt_answer_number(const char *answer, const char *key)
{
    size_t length = strlen(key);

    for (const char *at = answer; (at = strstr(at, key)) != NULL; at++)
        if (at > answer && at[-1] == ' ' && at[length] == '=')
            return strtoull(at + length + 1, NULL, 10);
    kvt_die("no %s= in \"%s\"", key, answer);
}

/* ---- ending ---- */

void kvt_kill(const struct kvt_process *process)
{
    if (syscall(SYS_pidfd_send_signal, process->pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
        kvt_die("pidfd_send_signal: %s", strerror(errno));
}

uint64_t kvt_wait_gone(const struct kvt_process *process, int64_t timeout_ns)
{
    struct pollfd state = {.fd = process->pidfd, .events = POLLIN};
    uint64_t deadline = kvt_now_ns() + (uint64_t)timeout_ns;
    int got;

    do
        got = poll(&state, 1, (int)(timeout_ns / 1000000 + 1));
    while (got < 0 && errno == EINTR && kvt_now_ns() < deadline);
    if (got != 1)
        kvt_die("process %d is still there after %lld ms", process->pid,
                (long long)(timeout_ns / 1000000));
    return kvt_now_ns();
}

void kvt_hang_up(struct kvt_process *process)
{
    close(process->in);
    process->in = -1;
}

int kvt_reap(struct kvt_process *process, int64_t timeout_ns)
{
    int status = 0;

    kvt_wait_gone(process, timeout_ns);
    if (waitpid(process->pid, &status, 0) != process->pid)
        kvt_die("waitpid: %s", strerror(errno));
    close(process->pidfd);
    if (process->in >= 0)
        close(process->in);
    if (process->out >= 0)
        close(process->out);
    memset(process, 0, sizeof(*process));
    return status;
}

/* ---- what /proc says ---- */

int kvt_process_fd_count(int pid)
{
    char path[64];
    DIR *directory;
    int count = -2; /* . and .. */

    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    directory = opendir(path);
    if (directory == NULL)
        return -1;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* The value-th word (from 0) of a file of /proc, after the last ')' if there is one. */
static int64_t proc_word(int pid, const char *file, int value)
{
    char path[64];
    char text[1024];
    char *word = text;
    ssize_t bytes;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    bytes = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    if (strrchr(text, ')') != NULL)
        word = strrchr(text, ')') + 2;
    while (value-- > 0 && word != NULL)
        word = strchr(word, ' ') != NULL ? strchr(word, ' ') + 1 : NULL;
    return word != NULL ? strtoll(word, NULL, 10) : -1;
}

int64_t kvt_process_resident_bytes(int pid)
{
    int64_t pages = proc_word(pid, "statm", 1);

    return pages < 0 ? -1 : pages * sysconf(_SC_PAGESIZE);
}

int64_t kvt_process_cpu_ms(int pid)
{
    int64_t user = proc_word(pid, "stat", 11); /* utime and stime, counted after the name */
    int64_t system = proc_word(pid, "stat", 12);

    return user < 0 || system < 0 ? -1 : (user + system) * 1000 / sysconf(_SC_CLK_TCK);
}

/* ---- time on a busy machine ---- */

static uint64_t thread_waited_ns(const char *tasks, const char *thread)
{
    unsigned long long ran = 0, waited = 0;
    char path[320];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s/schedstat", tasks, thread);
    file = fopen(path, "re");
    if (file && fscanf(file, "%llu %llu", &ran, &waited) != 2)
        waited = 0;
    if (file)
        fclose(file);
    return waited;
}

/* All threads of the process: /proc/PID/schedstat tells of the first one alone. */
static uint64_t waited_ns(int pid)
{
    struct dirent *entry;
    uint64_t waited = 0;
    char tasks[32];
    DIR *dir;

    snprintf(tasks, sizeof(tasks), "/proc/%d/task", pid);
    dir = pid ? opendir(tasks) : NULL;
    while (dir && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.')
            waited += thread_waited_ns(tasks, entry->d_name);
    if (dir)
        closedir(dir);
    return waited;
}

static uint64_t waited_by_all(const struct kvt_stopwatch *watch)
{
    return waited_ns(getpid()) + waited_ns(watch->pids[0]) + waited_ns(watch->pids[1]);
}

void kvt_stopwatch_start(struct kvt_stopwatch *watch, int pid, int other_pid)
{
    watch->pids[0] = pid;
    watch->pids[1] = other_pid;
    watch->waited_ns = waited_by_all(watch);
    watch->start_ns = kvt_now_ns();
}

struct kvt_time kvt_stopwatch_read(const struct kvt_stopwatch *watch)
{
    struct kvt_time time = {.passed_ns = kvt_now_ns() - watch->start_ns};
    uint64_t waited = waited_by_all(watch);

    waited = waited > watch->waited_ns ? waited - watch->waited_ns : 0; /* threads may have ended */
    time.net_ns = waited < time.passed_ns ? time.passed_ns - waited : 0;
    return time;
}

/* ---- this process ---- */

/* Calls visit() with every line of /proc/self/maps. */
static void each_mapping(void (*visit)(const char *line, void *context), void *context)
{
    char line[4352];
    FILE *maps = fopen("/proc/self/maps", "re");

    if (!maps)
        kvt_die("/proc/self/maps: %s", strerror(errno));
    while (fgets(line, sizeof(line), maps))
        visit(line, context);
    fclose(maps);
}

static void count_mapping(const char *line, void *context)
{
    struct kvt_self *self = context;

    if (strstr(line, "memfd:kvmem"))
        self->segment_maps++;
    else if (KVT_SLOWDOWN == 1 && strstr(line, " ---p ") && strstr(line, " 00:00 0"))
        self->reserved_maps++;
}

static void *allocate(void *unused)
{
    void *volatile memory = malloc(64); /* volatile: not to be optimised away */

    (void)unused;
    free(memory);
    return NULL;
}

/* What a process keeps once it has had it, before the first count: a driver that was opened, the
 * stack and the heap that libc keeps for the next thread. */
static void take_what_stays(void)
{
    pthread_t thread;

    if (getenv("KVT_DEVICE"))
        (void)dlopen("libcuda.so.1", RTLD_NOW);
    if (getenv("KVT_HELPER") && !pthread_create(&thread, NULL, allocate, NULL))
        pthread_join(thread, NULL);
}

struct kvt_self kvt_self_count(void)
{
    struct kvt_self self = {.fd_count = 0};
    DIR *directory = opendir("/proc/self/fd");

    take_what_stays();
    if (!directory)
        kvt_die("/proc/self/fd: %s", strerror(errno));
    while (readdir(directory))
        self.fd_count++;
    closedir(directory);
    each_mapping(count_mapping, &self);
    return self;
}

bool kvt_self_is(const struct kvt_self *expected)
{
    struct kvt_self now = kvt_self_count();
    bool is_same = now.fd_count == expected->fd_count &&
                   now.segment_maps == expected->segment_maps &&
                   now.reserved_maps == expected->reserved_maps;

    if (!is_same)
        fprintf(stderr,
                "process %d: fds %d, were %d; segment mappings %d, were %d; reserved %d, "
                "were %d\n",
                getpid(), now.fd_count, expected->fd_count, now.segment_maps,
                expected->segment_maps, now.reserved_maps, expected->reserved_maps);
    return is_same;
}

struct rights {
    uint64_t address;
    char text[8];
};

static void find_rights(const char *line, void *context)
{
    struct rights *rights = context;
    unsigned long long start, end;
    char text[8];

    if (sscanf(line, "%llx-%llx %7s", &start, &end, text) == 3 && start <= rights->address &&
        rights->address < end)
        memcpy(rights->text, text, sizeof(rights->text));
}

const char *kvt_rights_at(const void *address)
{
    static struct rights rights;

    rights = (struct rights){.address = (uint64_t)(uintptr_t)address, .text = "none"};
    each_mapping(find_rights, &rights);
    return rights.text;
}
