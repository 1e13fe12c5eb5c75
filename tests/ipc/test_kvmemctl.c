/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl as a process. First against a scripted daemon, which is a child of the test: lists of
 * several messages, events in between, and all the ways in which a daemon can fail. Then against
 * kvmemd, with a client of the public API that puts something into the picture.
 *
 *   test ──fork──▶ scripted daemon ◀──socket── kvmemctl ──pipe──▶ test
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmem.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "support/daemon.h"
#include "wire/protocol.h"

#define OUTPUT_BYTES   (256 * 1024)
#define CLIENTS        70 /* more than one message holds */
#define ANSWER_SECONDS 30

/* ---- running kvmemctl ------------------------------------------------------------------ */

struct result {
    int status;
    char out[OUTPUT_BYTES];
    char err[8192];
};

static char program[512];

static void read_all(int fd, char *text, size_t limit)
{
    size_t used = 0;
    ssize_t got;

    while (used + 1 < limit && (got = read(fd, text + used, limit - used - 1)) > 0)
        used += (size_t)got;
    text[used] = 0;
    close(fd);
}

/* Run "kvmemctl WORDS" with $KVMEM_SOCKET and a locale. */
static struct result *ctl(const char *socket_path, const char *locale, const char *words)
{
    static struct result result;
    char line[512], *argv[24] = {program};
    int argc = 1, out[2], err[2], status;
    pid_t pid;

    snprintf(line, sizeof(line), "%s", words);
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    cr_assert(pipe(out) == 0 && pipe(err) == 0);
    pid = fork();
    if (pid == 0) {
        alarm(ANSWER_SECONDS);
        dup2(out[1], 1);
        dup2(err[1], 2);
        for (int fd = 3; fd < 64; fd++)
            close(fd);
        setenv("LC_ALL", locale, 1);
        setenv("KVMEM_SOCKET", socket_path, 1);
        unsetenv("COLUMNS");
        execv(program, argv);
        _exit(127);
    }
    close(out[1]);
    close(err[1]);
    read_all(out[0], result.out, sizeof(result.out));
    read_all(err[0], result.err, sizeof(result.err));
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return &result;
}

static void has(const char *text, const char *wanted)
{
    cr_assert_not_null(strstr(text, wanted), "\"%s\" is not in:\n%s", wanted, text);
}

static void ends_with(const struct result *result, int status)
{
    cr_assert_eq(result->status, status, "status %d, wanted %d:\n%s%s", result->status, status,
                 result->out, result->err);
}

/* The output as JSON, which must be nothing else. */
static cJSON *json_of(const struct result *result)
{
    const char *end = NULL;
    cJSON *document;

    ends_with(result, 0);
    document = cJSON_ParseWithOpts(result->out, &end, 0);
    cr_assert(document && strcmp(end, "\n") == 0, "not JSON:\n%s", result->out);
    return document;
}

static uint64_t number_at(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItem(object, key);

    cr_assert(cJSON_IsNumber(item), "no number \"%s\"", key);
    return (uint64_t)item->valuedouble;
}

/* ---- the scripted daemon --------------------------------------------------------------- */

enum script {
    GOOD,
    REFUSES_VERSION, /* error VERSION to the hello */
    OTHER_VERSION,   /* a welcome with a version from the future */
    FIRST_VERSION,   /* a daemon of the first release */
    SILENT,          /* never answers */
    GARBAGE,         /* answers with bytes that are no message */
    HANGS_UP,        /* closes after the hello */
    CIRCLES,         /* a list that never ends */
    REFUSES,         /* error LIMIT to everything but hello */
    WRONG_REPLY,     /* done instead of the reply */
    VIOLATED         /* check fails */
};

static struct {
    pid_t pid;
    char directory[64];
    char path[96];
} scripted;

static _Alignas(8) unsigned char reply_bytes[KVI_MESSAGE_BYTES];
static _Alignas(8) unsigned char request_bytes[KVI_MESSAGE_BYTES];

static void send_reply(int fd)
{
    size_t bytes = kvi_wire_finish(reply_bytes);

    if (send(fd, reply_bytes, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        _exit(1);
}

static void answer_hello(int fd, enum script script, uint32_t serial)
{
    struct kvi_msg_welcome *welcome = (void *)reply_bytes;
    struct kvi_msg_error *error = (void *)reply_bytes;

    if (script == REFUSES_VERSION) {
        kvi_wire_begin(error, KVI_OP_ERROR, serial);
        error->code = KVMEM_E_VERSION;
        error->opcode = KVI_OP_HELLO;
        strcpy(error->text, "hello.version: the client speaks 1 to 1, the daemon 8 to 9");
    } else {
        kvi_wire_begin(welcome, KVI_OP_WELCOME, serial);
        welcome->version = script == OTHER_VERSION   ? 9
                           : script == FIRST_VERSION ? 1
                                                     : KVI_PROTOCOL_VERSION;
        welcome->version_min = script == OTHER_VERSION ? 8 : 1;
        welcome->device_count = 1;
        welcome->device_bytes = 64 << 20;
        welcome->granule_bytes = 65536;
        strcpy(welcome->device, "host");
    }
    send_reply(fd);
}

static void answer_clients(uint32_t serial, uint32_t first, enum script script)
{
    struct kvi_msg_clients_reply *reply = (void *)reply_bytes;
    struct kvi_rec_client_info *records;

    kvi_wire_begin(reply, KVI_OP_CLIENTS_REPLY, serial);
    reply->client_count = first ? CLIENTS - 64 : 64;
    reply->next = script == CIRCLES ? 1 : first ? 0 : 64;
    records = kvi_wire_tail(reply, 0);
    memset(records, 0, reply->client_count * sizeof(*records));
    for (uint32_t i = 0; i < reply->client_count; i++) {
        records[i].client = first + i;
        records[i].state = 1;
        records[i].pid = 1000 + i;
        records[i].owned_bytes = (1ull << 53) + 1;
        snprintf(records[i].name, sizeof(records[i].name), i ? "engine-%u" : "\033[31m%u", i);
    }
}

static void answer_spaces(uint32_t serial)
{
    struct kvi_msg_spaces_reply *reply = (void *)reply_bytes;
    struct kvi_rec_space_info *record;

    kvi_wire_begin(reply, KVI_OP_SPACES_REPLY, serial);
    reply->space_count = 1;
    record = kvi_wire_tail(reply, 0);
    memset(record, 0, sizeof(*record));
    record->space = 65536;
    record->block_tokens = 16;
    record->blocks_per_segment = 64;
    record->block_bytes = 16000;
    record->index_stride_bytes = 16384;
    record->segment_bytes = 1 << 20;
    record->segment_count = 5;
    strcpy(record->name, "llama");
    strcpy(record->domain, "default");
}

static void answer_segments(uint32_t serial)
{
    struct kvi_msg_segments_reply *reply = (void *)reply_bytes;
    struct kvi_rec_segment_info *records;

    kvi_wire_begin(reply, KVI_OP_SEGMENTS_REPLY, serial);
    reply->segment_count = 5;
    records = kvi_wire_tail(reply, 0);
    memset(records, 0, 5 * sizeof(*records));
    for (uint32_t i = 0; i < 5; i++) {
        records[i].segment = i < 4 ? i : 9;
        records[i].space = 65536;
        records[i].slot = i;
        records[i].generation = 1;
        records[i].state = i == 0 ? KVI_SEGMENT_OWNED : KVI_SEGMENT_HANDED_IN;
        records[i].owner = i == 0 ? 3 : KVI_NO_CLIENT;
        records[i].total_blocks = 64;
        records[i].cell_blocks = 1;
        records[i].entry_blocks = 32;
        memset(records[i].entry_cells, 255, 32);
    }
    records[0].used_blocks = 16;
    records[0].used_tokens = 250;
    memset(records[0].used_cells + 32, 255, 16);
}

static void answer_devices(uint32_t serial)
{
    struct kvi_msg_devices_reply *reply = (void *)reply_bytes;
    struct kvi_rec_device_info *records;

    kvi_wire_begin(reply, KVI_OP_DEVICES_REPLY, serial);
    reply->device_count = 2;
    records = kvi_wire_tail(reply, 0);
    memset(records, 0, 2 * sizeof(*records));
    for (uint32_t i = 0; i < 2; i++) {
        records[i].kind = 2;
        records[i].state = i;
        records[i].flags = i ? KVI_DEVICE_MPS : 0;
        records[i].device_bytes = (1ull << 53) + 1;
        records[i].free_bytes = 3ull << 30;
        records[i].granule_bytes = 2 << 20;
        records[i].segment_count = 1234;
        memset(records[i].uuid, 0xa0 + (int)i, sizeof(records[i].uuid));
        snprintf(records[i].name, sizeof(records[i].name), "cuda:%u NVIDIA\033[31m H200", i);
    }
}

static void answer_check(uint32_t serial, enum script script)
{
    struct kvi_msg_check_reply *reply = (void *)reply_bytes;

    kvi_wire_begin(reply, KVI_OP_CHECK_REPLY, serial);
    reply->violations = script == VIOLATED;
    reply->duration_ns = 1234567;
    strcpy(reply->text, reply->violations ? "segment 3: entries 5 + others 4 != 10"
                                          : "3 segments, 192 blocks, 7 leases");
}

static void answer_stats(uint32_t serial)
{
    struct kvi_msg_stats_reply *reply = (void *)reply_bytes;

    kvi_wire_begin(reply, KVI_OP_STATS_REPLY, serial);
    reply->device_bytes = 64 << 20;
    reply->segment_bytes = 5 << 20;
    reply->free_bytes = 59 << 20;
    reply->segment_count = 5;
    reply->lookup_blocks = 200;
    reply->hit_blocks = 50;
    reply->published_blocks = (1ull << 53) + 1;
}

static void answer(int fd, enum script script)
{
    const struct kvi_header *request = (const void *)request_bytes;
    const struct kvi_msg_clients *list = (const void *)request_bytes;
    struct kvi_msg_done *done = (void *)reply_bytes;
    struct kvi_msg_error *error = (void *)reply_bytes;

    /* An event in front of every answer must be passed over. */
    struct kvi_msg_draining *event = (void *)reply_bytes;
    kvi_wire_begin(event, KVI_OP_DRAINING, 0);
    send_reply(fd);

    if (script == REFUSES) {
        kvi_wire_begin(error, KVI_OP_ERROR, request->serial);
        error->code = KVMEM_E_LIMIT;
        strcpy(error->text, "no place \033[31mleft");
    } else if (script == WRONG_REPLY) {
        kvi_wire_begin(done, KVI_OP_DONE, request->serial);
    } else if (request->opcode == KVI_OP_CLIENTS) {
        answer_clients(request->serial, list->first, script);
    } else if (request->opcode == KVI_OP_SPACES) {
        answer_spaces(request->serial);
    } else if (request->opcode == KVI_OP_SEGMENTS) {
        answer_segments(request->serial);
    } else if (request->opcode == KVI_OP_DEVICES) {
        answer_devices(request->serial);
    } else if (request->opcode == KVI_OP_CHECK) {
        answer_check(request->serial, script);
    } else {
        answer_stats(request->serial);
    }
    send_reply(fd);
}

static void serve(int fd, enum script script)
{
    const struct kvi_header *request = (const void *)request_bytes;

    while (recv(fd, request_bytes, sizeof(request_bytes), 0) > 0) {
        if (script == SILENT)
            continue;
        if (script == GARBAGE) {
            send(fd, "garbage", 7, MSG_NOSIGNAL);
            continue;
        }
        if (request->opcode == KVI_OP_HELLO)
            answer_hello(fd, script, request->serial);
        else if (script == HANGS_UP)
            break;
        else
            answer(fd, script);
    }
    close(fd);
}

static void start(enum script script)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    strcpy(scripted.directory, "/tmp/kvmemctl-XXXXXX");
    cr_assert_not_null(mkdtemp(scripted.directory));
    snprintf(scripted.path, sizeof(scripted.path), "%s/socket", scripted.directory);
    strcpy(address.sun_path, scripted.path);
    cr_assert(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0);
    cr_assert(listen(listener, 8) == 0);
    scripted.pid = fork();
    if (scripted.pid == 0) {
        alarm(4 * ANSWER_SECONDS);
        for (;;)
            serve(accept(listener, NULL, NULL), script);
    }
    close(listener);
}

static void stop(void)
{
    if (scripted.pid > 0) {
        kill(scripted.pid, SIGKILL);
        waitpid(scripted.pid, NULL, 0);
        unlink(scripted.path);
        rmdir(scripted.directory);
    }
    scripted.pid = 0;
}

static void find_program(void)
{
    snprintf(program, sizeof(program), "%s", kvt_program_path("bin/kvmemctl"));
}

TestSuite(kvmemctl, .init = find_program, .fini = stop, .timeout = 120);

/* ---- against the scripted daemon ------------------------------------------------------- */

static struct result *scripted_ctl(const char *words)
{
    return ctl(scripted.path, "C.UTF-8", words);
}

Test(kvmemctl, lists_of_several_messages)
{
    const struct result *result;
    cJSON *document;
    const cJSON *array;

    start(GOOD);
    result = scripted_ctl("clients");
    ends_with(result, 0);
    has(result->out, "engine-1");
    has(result->out, "\n    69  engine-5");
    has(result->out, "?[31m0"); /* a name cannot paint the terminal */
    cr_assert_null(strchr(result->out, '\033'));
    document = json_of(scripted_ctl("clients --json"));
    array = cJSON_GetObjectItem(document, "clients");
    cr_assert_eq(cJSON_GetArraySize(array), CLIENTS);
    cr_assert_eq(number_at(cJSON_GetArrayItem(array, 69), "client"), 69);
    cJSON_Delete(document);
    has(scripted_ctl("clients --json")->out, "\"owned_bytes\":\t9007199254740993");
}

Test(kvmemctl, devices)
{
    const struct result *result;
    const cJSON *device;
    cJSON *document;

    start(GOOD);
    result = scripted_ctl("devices");
    ends_with(result, 0);
    has(result->out, "cuda:0 NVIDIA?[31m H200");
    has(result->out, "3.0 GiB");
    has(result->out, "1,234");
    has(result->out, "nvidia-smi");
    cr_assert_null(strchr(result->out, '\033'));
    has(scripted_ctl("devices --json")->out, "\"device_bytes\":\t9007199254740993");
    document = json_of(scripted_ctl("devices --json"));
    cr_assert_eq(cJSON_GetArraySize(cJSON_GetObjectItem(document, "devices")), 2);
    device = cJSON_GetArrayItem(cJSON_GetObjectItem(document, "devices"), 1);
    cr_assert_eq(number_at(device, "device"), 1);
    cr_assert_str_eq(cJSON_GetObjectItem(device, "state_name")->valuestring, "stuck");
    cr_assert(cJSON_IsTrue(cJSON_GetObjectItem(device, "is_under_mps")));
    cr_assert_str_eq(cJSON_GetObjectItem(device, "uuid")->valuestring,
                     "GPU-a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1");
    cJSON_Delete(document);
}

Test(kvmemctl, map)
{
    const struct result *result;

    start(GOOD);
    result = scripted_ctl("map --width 120");
    ends_with(result, 0);
    has(result->out, "  0  llama  3 engine-3  owned      "
                     "●●●●●●●●●●●●●●●●●●●●●●●●●●●●●●●●◆◆◆◆◆◆◆◆◆◆◆◆◆◆◆◆················   75%\n");
    has(result->out, "1-3  llama  directory   handed in  ●●●");
    has(result->out, "4-8  no memory\n");
    has(result->out, "A cell is 1 block.");
    cr_assert_null(strchr(result->out, '\033'));
    result = scripted_ctl("map --all --color always --space default/llama");
    ends_with(result, 0);
    has(result->out, "\033[36m◆");
    has(result->out, "\n  2  llama");
    result = ctl(scripted.path, "C", "map");
    has(result->out, "EEEEEEEEEEEEEEEEUUUUUUUU........   75%\n");
    for (const char *c = result->out; *c; c++)
        cr_assert((unsigned char)*c < 0x80);
    result = scripted_ctl("map --space nothere");
    ends_with(result, 2);
    has(result->err, "there is no such space");
    has(result->err, "llama (or default/llama)");
}

Test(kvmemctl, json_of_everything)
{
    static const struct {
        const char *words, *key;
        uint64_t value;
    } cases[] = {
        {"stats --json", "hit_blocks", 50},
        {"stats --json", "published_blocks", 1ull << 53 /* cJSON reads doubles */},
        {"map --json", "total_blocks", 320},
        {"map --json", "evictable_blocks", 160},
        {"map --json", "used_blocks", 16},
        {"check --json", "violations", 0},
        {"check --json", "duration_ns", 1234567},
        {"version --json", "protocol_version", KVI_PROTOCOL_VERSION},
    };
    cJSON *document;
    const cJSON *total;

    start(GOOD);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        document = json_of(scripted_ctl(cases[i].words));
        cr_assert_eq(number_at(document, cases[i].key), cases[i].value, "%s", cases[i].key);
        cJSON_Delete(document);
    }
    document = json_of(scripted_ctl("frag --json"));
    total = cJSON_GetObjectItem(document, "total");
    cr_assert_eq(number_at(total, "segment_bytes"), 5 << 20);
    cr_assert_eq(number_at(total, "unused_slot_tokens"), 6);
    cr_assert_eq(number_at(total, "over_floor_segments"), 2);
    cJSON_Delete(document);
    has(scripted_ctl("stats --json")->out, "\"published_blocks\":\t9007199254740993");
    document = json_of(scripted_ctl("spaces --json"));
    cr_assert_eq(cJSON_GetArraySize(cJSON_GetObjectItem(document, "spaces")), 1);
    cJSON_Delete(document);
}

Test(kvmemctl, check_and_its_status)
{
    const struct result *result;

    start(GOOD);
    result = scripted_ctl("check");
    ends_with(result, 0);
    has(result->out, "ok  3 segments, 192 blocks, 7 leases\n    verified in 1.2 ms");
    stop();
    start(VIOLATED);
    result = scripted_ctl("check");
    ends_with(result, 1);
    has(result->out, "VIOLATION  segment 3: entries 5 + others 4 != 10");
    ends_with(scripted_ctl("check --json"), 1);
}

Test(kvmemctl, every_way_to_fail)
{
    static const struct {
        enum script script;
        const char *words, *text;
    } cases[] = {
        {REFUSES_VERSION, "stats", "the client speaks 1 to 1, the daemon 8 to 9"},
        {OTHER_VERSION, "stats", "speaks 8 to 9"},
        {FIRST_VERSION, "devices", "speaks 1 to 1"},
        {SILENT, "stats --timeout 0.2", "did not answer hello within 200.0 ms"},
        {GARBAGE, "stats", "does not speak kvmem's protocol"},
        {HANGS_UP, "map", "ended the connection while it was asked for"},
        {CIRCLES, "clients", "goes in circles"},
        {REFUSES, "stats", "no place ?[31mleft (LIMIT)"},
        {WRONG_REPLY, "spaces", "answered with done"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct result *result;

        start(cases[i].script);
        result = scripted_ctl(cases[i].words);
        ends_with(result, 3);
        has(result->err, cases[i].text);
        cr_assert_str_empty(result->out);
        stop();
    }
}

Test(kvmemctl, no_daemon)
{
    char long_path[256] = "stats --socket ";
    const struct result *result = ctl("/nowhere/socket", "C", "stats");

    ends_with(result, 3);
    has(result->err, "no daemon listens at /nowhere/socket.\n");
    has(result->err, "kvmemd --socket /nowhere/socket\n");
    result = ctl("/nowhere/socket", "C", "version");
    ends_with(result, 0);
    has(result->out, "no kvmemd at /nowhere/socket");
    memset(long_path + strlen(long_path), 'x', 200);
    ends_with(ctl("/nowhere", "C", long_path), 2);
}

Test(kvmemctl, usage)
{
    static const char *const cases[][2] = {
        {"", "usage: kvmemctl [OPTIONS] VERB"},         {"stast", "did you mean 'stats'?"},
        {"xyzzy", "`kvmemctl help` lists the verbs."},  {"help mpa", "did you mean 'map'?"},
        {"stats --width 80", "stats takes no --width"}, {"check now", "check takes no argument"},
        {"map --width 4", "columns, 40 to 1000"},       {"map --every 0", "seconds, 0.1 to 86400"},
    };
    char words[64];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct result *result = ctl("/nowhere", "C", cases[i][0]);

        ends_with(result, 2);
        has(result->err, cases[i][1]);
        cr_assert_str_empty(result->out);
    }
    for (const char *const *verb = (const char *const[]){"stats", "map", "check", "help", NULL};
         *verb; verb++) {
        snprintf(words, sizeof(words), "help %s", *verb);
        has(ctl("/nowhere", "C", words)->out, *verb);
        snprintf(words, sizeof(words), "%s --help", *verb);
        ends_with(ctl("/nowhere", "C", words), 0);
    }
    ends_with(ctl("/nowhere", "C", "--help"), 0);
    ends_with(ctl("/nowhere", "C", "--version"), 0);
}

/* A full disk is not success. */
Test(kvmemctl, output_that_cannot_be_written)
{
    char command[1024];
    int status;

    start(GOOD);
    snprintf(command, sizeof(command), "exec '%s' --socket '%s' stats >/dev/full 2>/dev/null",
             program, scripted.path);
    status = system(command);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

/* On a terminal: colours, its width, pages over each other. Reads until two pages are there. */
Test(kvmemctl, terminal)
{
    struct winsize window = {.ws_row = 20, .ws_col = 100};
    static char text[OUTPUT_BYTES];
    size_t used = 0;
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    int slave;
    pid_t pid;

    start(GOOD);
    cr_assert(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
    cr_assert(slave >= 0 && ioctl(slave, TIOCSWINSZ, &window) == 0);
    pid = fork();
    if (pid == 0) {
        alarm(ANSWER_SECONDS);
        dup2(slave, 1);
        setenv("LC_ALL", "C.UTF-8", 1);
        setenv("TERM", "xterm", 1);
        unsetenv("NO_COLOR");
        execl(program, program, "--socket", scripted.path, "map", "--every", "0.1", NULL);
        _exit(127);
    }
    close(slave);
    while (used + 1 < sizeof(text)) {
        ssize_t got = read(master, text + used, sizeof(text) - used - 1);

        if (got <= 0)
            break;
        used += (size_t)got;
        text[used] = 0;
        if (strstr(text, "\033[J") && strstr(strstr(text, "\033[J") + 3, "\033[J"))
            break;
    }
    kill(pid, SIGTERM);
    waitpid(pid, NULL, 0);
    close(master);
    cr_assert_eq(strncmp(text, "\033[2J\033[H", 7), 0, "%s", text);
    has(text, "\033[33m●");
    has(text, "\033[K\r\n");
    cr_assert_null(strstr(text + 1, "\033[2J"), "the screen is cleared once");
}

/* ---- against kvmemd -------------------------------------------------------------------- */

static struct kvmem_space *open_space(struct kvmem_client *client)
{
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN,
                                          .name = "picture",
                                          .block_tokens = 16,
                                          .group_count = 1,
                                          .shard_count = 1};
    struct kvmem_space *space = NULL;

    options.groups[0] = (struct kvmem_group_options){.layer_count = 2,
                                                     .kv_head_count = 2,
                                                     .head_dim_k = 16,
                                                     .head_dim_v = 16,
                                                     .dtype_k = KVMEM_DTYPE_BF16,
                                                     .dtype_v = KVMEM_DTYPE_BF16};
    cr_assert_eq(kvmem_space_open(client, &options, &space), 0, "%s", kvmem_error_detail()->text);
    return space;
}

/* Append and commit, waiting for memory. */
static void append(struct kvmem_client *client, struct kvmem_space *space, struct kvmem_seq seq,
                   uint32_t tokens)
{
    int rc;

    for (int i = 0; i < 1000; i++) {
        rc = kvmem_seq_append(space, seq, tokens, kvmem_fence_none());
        if (rc != KVMEM_E_REFILL_PENDING)
            break;
        kvmem_client_dispatch(client, 10000000);
    }
    cr_assert_eq(rc, 0, "%s: %s", kvmem_error_name(rc), kvmem_error_detail()->text);
    cr_assert_eq(kvmem_seq_commit(space, seq, tokens), 0);
}

/* 100 published blocks, and a sequence of 10 that are not, the last one half full. */
static void use(struct kvmem_client *client, struct kvmem_space *space)
{
    struct kvmem_seq shared, private;
    struct kvmem_name root, names[100];
    uint32_t tokens[1600];

    for (uint32_t i = 0; i < 1600; i++)
        tokens[i] = i;
    cr_assert_eq(kvmem_space_reserve(space, 200, 2000000000), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_seq_create(space, &shared), 0);
    cr_assert_eq(kvmem_seq_create(space, &private), 0);
    append(client, space, shared, 1600);
    append(client, space, private, 152);
    cr_assert_eq(kvmem_name_root(space, NULL, &root), 0);
    cr_assert_eq(kvmem_name_blocks(&root, 16, tokens, 1600, NULL, 0, names), 100);
    cr_assert_eq(kvmem_seq_publish(space, shared, 0, 100, names, kvmem_fence_none()), 0);
    for (int i = 0; i < 5; i++)
        cr_assert_geq(kvmem_client_dispatch(client, 20000000), 0);
}

Test(kvmemctl, real_daemon)
{
    const char *const options[] = {"--device", "host", "--device-bytes", "64MiB", NULL};
    struct kvmem_connect_options connect = {.size = sizeof(connect), .name = "painter"};
    struct kvt_daemon daemon;
    struct kvmem_client *client = NULL;
    struct kvmem_space *space;
    const struct result *result;
    const cJSON *device;
    cJSON *document;

    kvt_daemon_prepare(&daemon);
    kvt_daemon_start(&daemon, options);
    connect.socket_path = daemon.socket_path;
    cr_assert_eq(kvmem_client_connect(&connect, &client), 0, "%s", kvmem_error_detail()->text);
    space = open_space(client);
    use(client, space);

    document = json_of(ctl(daemon.socket_path, "C", "map --json"));
    cr_assert_eq(number_at(document, "leased_blocks"), 100);
    cr_assert_eq(number_at(document, "used_blocks"), 10);
    cJSON_Delete(document);
    document = json_of(ctl(daemon.socket_path, "C", "frag --json"));
    cr_assert_eq(number_at(cJSON_GetObjectItem(document, "total"), "unused_slot_tokens"), 8);
    cJSON_Delete(document);
    document = json_of(ctl(daemon.socket_path, "C", "stats --json"));
    cr_assert_eq(number_at(document, "published_blocks"), 100);
    cr_assert_eq(number_at(document, "leaked_blocks"), 0);
    cJSON_Delete(document);
    document = json_of(ctl(daemon.socket_path, "C", "devices --json"));
    device = cJSON_GetArrayItem(cJSON_GetObjectItem(document, "devices"), 0);
    cr_assert_eq(number_at(device, "device_bytes"), 64 << 20);
    cr_assert_gt(number_at(device, "segment_count"), 0);
    cr_assert(cJSON_IsNull(cJSON_GetObjectItem(device, "uuid")));
    cJSON_Delete(document);
    result = ctl(daemon.socket_path, "C", "devices");
    has(result->out, "host");
    cr_assert_null(strstr(result->out, "nvidia-smi"), "advice only when it is needed");
    result = ctl(daemon.socket_path, "C.UTF-8", "map");
    ends_with(result, 0);
    has(result->out, "painter");
    has(result->out, "picture");
    has(ctl(daemon.socket_path, "C", "clients")->out, "painter");
    has(ctl(daemon.socket_path, "C", "spaces")->out, "picture");
    has(ctl(daemon.socket_path, "C", "frag")->out, "space picture in domain default");
    has(ctl(daemon.socket_path, "C", "version")->out, "device host of 64.0 MiB");
    result = ctl(daemon.socket_path, "C", "check");
    ends_with(result, 0);
    has(result->out, "ok  ");

    kvmem_client_close(client);
    kvt_daemon_end(&daemon);
    ends_with(ctl(daemon.socket_path, "C", "stats"), 3);
}
