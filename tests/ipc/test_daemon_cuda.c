/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemd on GPUs of the fake driver, as a process: what its options come to, memory that comes and
 * goes, drivers that fail at any call and that hang, and what the operator sees of it.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <kvmem/error.h>

#include "backend/backend_cuda.h"
#include "support/cuda_fake.h"
#include "support/daemon.h"
#include "support/raw_client.h"

#define SEGMENT_BLOCKS 56u /* of 16 KiB, where a segment is 896 KiB */

static struct kvt_daemon daemon_;
static struct kvt_raw client;
static struct kvt_raw_message message;
static char text[64 * 1024];

static void prepare(void)
{
    kvt_daemon_prepare(&daemon_);
    kvt_daemon_fake_cuda("");
    client = (struct kvt_raw){.fd = -1, .status_fd = -1};
}

static void end(void)
{
    kvt_raw_close(&client);
    kvt_daemon_end(&daemon_);
}

TestSuite(daemon_cuda, .init = prepare, .fini = end, .timeout = 120);

static void start(const char *devices, const char *words)
{
    const char *const options[] = {"--device", devices, NULL};

    kvt_daemon_fake_cuda(words);
    setenv("KVMEM_SPARE_MS", "0", 1); /* calls, segments and descriptors are counted here */
    kvt_daemon_start(&daemon_, options);
}

static void join(const char *name, uint32_t device, uint32_t *space)
{
    cr_assert(kvt_raw_join(&client, daemon_.socket_path, name));
    cr_assert(kvt_raw_space_open_on(&client, name, device, space), "device %u", device);
}

static void is_logged(const char *words)
{
    if (kvt_daemon_logged(&daemon_, words, KVT_MS(5000)))
        return;
    kvt_daemon_log(&daemon_, text, sizeof(text));
    cr_assert(false, "\"%s\" is not in the log: %s", words, text);
}

static void stop(void)
{
    kvt_raw_close(&client);
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0);
}

static void is_clean(void)
{
    struct kvi_msg_check check;

    kvi_wire_begin(&check, KVI_OP_CHECK, 0);
    cr_assert_eq(kvt_raw_call(&client, &check, &message), KVT_RAW_MESSAGE);
    cr_assert_eq(message.as.check.violations, 0, "%.256s", message.as.check.text);
}

static struct kvi_rec_device_info device(uint32_t index)
{
    struct kvi_rec_device_info info;

    cr_assert(kvt_raw_device(&client, index, &info));
    return info;
}

/* The code that a request for blocks is answered with; 0 when some were granted. Waits for the
 * last grant. */
static int blocks(uint32_t space, uint32_t count)
{
    bool is_granted = kvt_raw_blocks(&client, space, count, &message);

    if (!is_granted && message.as.header.opcode == KVI_OP_ERROR)
        return message.as.error.code;
    while (message.as.header.opcode == KVI_OP_GRANT &&
           (message.as.grant.flags & KVI_GRANT_LAST) == 0) {
        cr_assert_eq(kvt_raw_receive(&client, &message, KVT_RAW_TIMEOUT_MS), KVT_RAW_MESSAGE);
        kvt_raw_close_fds(&message);
    }
    cr_assert(message.as.header.opcode == KVI_OP_GRANT, "opcode %u", message.as.header.opcode);
    return 0;
}

/* The daemon has at most so many descriptors open, or soon will. */
static void fds_come_down_to(int count)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)KVT_MS(5000);

    while (kvt_process_fd_count(daemon_.process.pid) > count && kvt_now_ns() < end_ns)
        kvt_sleep_ns(KVT_MS(1));
    cr_assert_leq(kvt_process_fd_count(daemon_.process.pid), count);
}

/* ---- starting ---- */

Test(daemon_cuda, one_device)
{
    struct kvi_rec_device_info info;
    uint32_t space;

    start("cuda:0", "");
    is_logged("ready: device cuda:0 Fake GPU 0, 0.1 GiB (90 % of what was free) in 65 segments of "
              "896 KiB, granule 64 KiB, loop");
    join("one", 0, &space);
    info = device(0);
    cr_assert_str_eq(info.name, "cuda:0 Fake GPU 0");
    cr_assert(info.kind == 2 && info.state == 0 && info.flags == 0);
    cr_assert_eq(memcmp(info.uuid, "fake gpu no. 0", 15), 0);
    cr_assert_eq(info.free_bytes, info.device_bytes);
    cr_assert_eq(blocks(space, 3 * SEGMENT_BLOCKS), 0);
    info = device(0);
    cr_assert(info.segment_count >= 3 && info.free_bytes < info.device_bytes);
    is_clean();
    stop();
}

/* No memory for the anchor, but a size that the operator wants: it may come free. */
Test(daemon_cuda, a_full_device_with_a_size)
{
    const char *const options[] = {"--device", "cuda:0", "--device-bytes", "16MiB", NULL};
    uint32_t space;

    kvt_daemon_fake_cuda("fail=cuMemCreate:1:2");
    kvt_daemon_start(&daemon_, options);
    is_logged("cuda:0: not a granule is free now");
    is_logged("ready: device cuda:0");
    join("full", 0, &space);
    cr_assert_eq(blocks(space, SEGMENT_BLOCKS), 0);
    is_clean();
    stop();
}

Test(daemon_cuda, two_devices_have_memory_of_their_own)
{
    uint32_t spaces[2];

    start("cuda:1,cuda:0", "");
    is_logged("device 0: cuda:1 Fake GPU 1, ");
    is_logged("device 1: cuda:0 Fake GPU 0, ");
    is_logged("ready: devices, 2 of them, loop");
    join("first", 0, &spaces[0]);
    cr_assert(kvt_raw_space_open_on(&client, "second", 1, &spaces[1]));
    cr_assert_eq(blocks(spaces[1], SEGMENT_BLOCKS), 0);
    cr_assert_eq(device(0).segment_count, 0);
    cr_assert_gt(device(1).segment_count, 0);
    cr_assert_str_eq(device(0).name, "cuda:1 Fake GPU 1");
    cr_assert_eq(memcmp(device(1).uuid, "fake gpu no. 0", 15), 0);
    cr_assert_eq(blocks(spaces[0], SEGMENT_BLOCKS), 0);
    cr_assert_gt(device(0).segment_count, 0);
    is_clean();
    stop();
}

Test(daemon_cuda, the_size_is_of_each_device)
{
    const char *const options[] = {
        "--device", "cuda:0,cuda:1", "--device-bytes", "16MiB", "--mps", "on", NULL};
    uint32_t space;

    kvt_daemon_start(&daemon_, options);
    is_logged("device 1: cuda:1 Fake GPU 1, 0.0 GiB in 64 segments of 256 KiB, granule 64 KiB, "
              "under MPS");
    join("one", 0, &space);
    cr_assert(device(0).device_bytes == 16 << 20 && device(1).device_bytes == 16 << 20);
    cr_assert(device(0).flags == KVI_DEVICE_MPS && device(1).flags == KVI_DEVICE_MPS);
    stop();
}

Test(daemon_cuda, mps_is_found_out)
{
    uint32_t space;

    start("cuda:0", "mps=1");
    is_logged(", under MPS, loop");
    join("one", 0, &space);
    cr_assert_eq(device(0).flags, KVI_DEVICE_MPS);
    stop();
}

/* A daemon that does not start: status 1, and one line with all of this. */
static void does_not_start(const char *devices, const char *size, const char *fake,
                           const char *words, const char *other)
{
    const char *const arguments[] = {
        "--socket", daemon_.socket_path, "--device", devices, size ? "--device-bytes" : NULL, size,
        NULL};

    kvt_daemon_fake_cuda(fake);
    unlink(daemon_.log_path);
    cr_expect_eq(kvt_daemon_run_other(&daemon_, arguments), 1);
    kvt_daemon_log(&daemon_, text, sizeof(text));
    cr_expect(strstr(text, words) && strstr(text, other), "'%s' and '%s' in: %s", words, other,
              text);
    cr_expect_eq(strchr(text, '\n'), text + strlen(text) - 1, "one line: %s", text);
}

Test(daemon_cuda, what_cannot_be_had_is_said)
{
    does_not_start("cuda:2", NULL, "", "device_index is 2", "0 to 1");
    does_not_start("cuda:0,cuda:9", NULL, "", "--device cuda:9", "device_index is 9");
    does_not_start("cuda:0", NULL, "version=11080", "is 11.8: want 12.0", "--device host");
    does_not_start("cuda:0", NULL, "off=102", "VIRTUAL_MEMORY_MANAGEMENT", "--device host");
    does_not_start("cuda:0", NULL, "off=103", "POSIX_FILE_DESCRIPTOR", "--device host");
    does_not_start("cuda:0", NULL, "init=100", "CUDA_VISIBLE_DEVICES", "--device host");
    does_not_start("cuda:0", NULL, "devices=0", "sees no device", "--device host");
    does_not_start("cuda:0", NULL, "bytes=65536", ": 0 bytes are free", "nvidia-smi");
    does_not_start("cuda:0", "65MiB", "", "device_bytes is 68157440", "67108864");
    does_not_start("cuda:0", "1048577", "", "a multiple of", "65536");
    does_not_start("cuda:0", NULL, "fail=cuDevicePrimaryCtxRetain:1:2", "OUT_OF_MEMORY", "cuda:0");
    does_not_start("cuda:0", NULL, "fail=cuMemCreate:1:2", "OUT_OF_MEMORY", "nvidia-smi");
    does_not_start("cuda:1", NULL, "fail=cuMemExportToShareableHandle:1:999", "(999)", "cuda:1");
    does_not_start("cuda:0", NULL, NULL, "libcuda.so.1", "--device host");
}

/* ---- memory ---- */

Test(daemon_cuda, memory_comes_and_goes)
{
    uint32_t space;
    int fds_before;

    start("cuda:0", "");
    fds_before = kvt_process_fd_count(daemon_.process.pid);
    for (int round = 0; round < 6; round++) {
        char name[16];

        /* Memory does not change its domain: most is released and created afresh. */
        snprintf(name, sizeof(name), "d%d/x", round);
        join("one", 0, &space);
        cr_assert(kvt_raw_space_open_on(&client, name, 0, &space));
        cr_assert_eq(blocks(space, 50 * SEGMENT_BLOCKS), 0);
        cr_assert_geq(device(0).segment_count, 50);
        cr_assert_eq(device(0).free_bytes,
                     device(0).device_bytes - device(0).segment_count * SEGMENT_BLOCKS * 16384);
        is_clean();
        cr_assert(kvt_raw_goodbye(&client));
        kvt_raw_close(&client);
    }
    /* Each of at most 65 segments is a memfd of the fake's and a descriptor that is kept. */
    fds_come_down_to(fds_before + 2 * 65);
    stop();
}

/* Import and map what a grant brought, on the device of this process' own driver; written bytes. */
static uint64_t import_and_write(struct kvi_backend *backend, uint64_t bytes)
{
    struct kvi_phys phys;
    uint64_t base;

    cr_assert_eq(kvi_backend_segment_import_consume(backend, message.fds[0], bytes, &phys), 0, "%s",
                 kvmem_error_detail()->text);
    cr_assert_eq(kvi_backend_reserve(backend, bytes, 0, &base), 0);
    cr_assert_eq(kvi_backend_map(backend, phys, base, bytes, KVI_ACCESS_RW), 0, "%s",
                 kvmem_error_detail()->text);
    cr_assert_eq(kvi_backend_copy_in(backend, base, "abcdefgh", 8, 0), 0);
    return base;
}

Test(daemon_cuda, a_client_imports_what_it_is_sent)
{
    struct kvi_backend_cuda_options options = {
        .options_bytes = sizeof(options), .device_index = 1, .driver_path = kvt_fake_path()};
    uint64_t bytes = SEGMENT_BLOCKS * UINT64_C(16384);
    struct kvi_msg_blocks_request request;
    struct kvi_backend *backend;
    struct kvi_phys phys;
    uint32_t space;

    start("cuda:0,cuda:1", "");
    join("one", 1, &space);
    kvi_wire_begin(&request, KVI_OP_BLOCKS_REQUEST, 0);
    request.space = space;
    request.block_count = 2 * SEGMENT_BLOCKS;
    cr_assert_eq(kvt_raw_call(&client, &request, &message), KVT_RAW_MESSAGE);
    cr_assert(message.as.header.opcode == KVI_OP_GRANT && message.fd_count >= 1);
    cr_assert_eq(kvi_backend_cuda_create(&options, &backend), 0, "%s", kvmem_error_detail()->text);
    cr_assert_neq(import_and_write(backend, bytes), 0);
    for (uint32_t i = 1; i < message.fd_count; i++)
        cr_assert_eq(close(message.fds[i]), 0);
    kvi_backend_destroy(backend);
    /* On another device than it was created on it is no segment. */
    cr_assert_eq(blocks(space, SEGMENT_BLOCKS), 0);
    options.device_index = 0;
    cr_assert_eq(kvi_backend_cuda_create(&options, &backend), 0);
    kvi_wire_begin(&request, KVI_OP_BLOCKS_REQUEST, 0);
    request.space = space;
    request.block_count = SEGMENT_BLOCKS;
    cr_assert_eq(kvt_raw_call(&client, &request, &message), KVT_RAW_MESSAGE);
    cr_assert_geq(message.fd_count, 1);
    cr_assert_eq(kvi_backend_segment_import_consume(backend, message.fds[0], bytes, &phys),
                 KVMEM_E_CORRUPT);
    kvi_backend_destroy(backend);
    is_clean();
    stop();
}

Test(daemon_cuda, a_full_device_is_answered_and_comes_back)
{
    uint32_t space;
    int code = 0;

    start("cuda:0", "");
    join("greedy", 0, &space);
    for (uint32_t i = 0; i < 200 && code == 0; i++)
        code = blocks(space, SEGMENT_BLOCKS);
    cr_assert_eq(code, KVMEM_E_DEVICE_FULL);
    is_clean();
    cr_assert(kvt_raw_goodbye(&client));
    kvt_raw_close(&client);
    join("next", 0, &space);
    cr_assert_eq(blocks(space, 8 * SEGMENT_BLOCKS), 0);
    is_clean();
    stop();
}

/* The nth of the driver calls for four segments fails: the client gets a code, or what there is,
 * and the second time its memory. */
static void fails_once(const char *call, int nth)
{
    char words[64];
    uint32_t space;
    int code;

    snprintf(words, sizeof(words), "fail=%s:%d:2", call, nth);
    start("cuda:0", words);
    join("one", 0, &space);
    code = blocks(space, 4 * SEGMENT_BLOCKS);
    cr_assert(code == 0 || code == KVMEM_E_DEVICE_FULL || code == KVMEM_E_SYSTEM, "%s: %d", words,
              code);
    is_logged("CUDA_ERROR_OUT_OF_MEMORY");
    cr_assert_eq(blocks(space, SEGMENT_BLOCKS), 0, "%s: the second time", words);
    is_clean();
    cr_assert(kvt_raw_goodbye(&client));
    stop();
}

Test(daemon_cuda, any_driver_call_may_fail)
{
    for (int nth = 2; nth <= 5; nth++) { /* the first is the anchor's */
        fails_once("cuMemCreate", nth);
        fails_once("cuMemExportToShareableHandle", nth);
    }
}

Test(daemon_cuda, memory_that_cannot_be_released_is_lost_and_said)
{
    uint32_t space;

    start("cuda:0", "fail=cuMemRelease:1:999");
    for (int i = 0; i < 2; i++) {
        join("one", 0, &space);
        cr_assert(kvt_raw_space_open_on(&client, i == 0 ? "first/x" : "second/x", 0, &space));
        while (blocks(space, 16 * SEGMENT_BLOCKS) == 0)
            ;
        is_clean();
        cr_assert(kvt_raw_goodbye(&client));
        kvt_raw_close(&client);
    }
    is_logged(" is lost until the daemon ends: segment_release: cuMemRelease");
    stop();
}

/* ---- drivers that hang ---- */

/* Output of kvmemctl devices. */
static const char *ctl_devices(void)
{
    char line[512];
    size_t used;
    FILE *out;

    snprintf(line, sizeof(line), "%s --socket %s devices", kvt_program_path("bin/kvmemctl"),
             daemon_.socket_path);
    out = popen(line, "r");
    cr_assert_not_null(out);
    used = fread(text, 1, sizeof(text) - 1, out);
    text[used] = '\0';
    cr_assert_eq(pclose(out), 0);
    return text;
}

/* Requests that cannot be served by device 0 are refused within a second. */
static void is_refused_quickly(uint32_t space)
{
    uint64_t start_ns = kvt_now_ns();

    cr_assert_eq(blocks(space, SEGMENT_BLOCKS), KVMEM_E_TIMED_OUT);
    cr_assert_lt(kvt_now_ns() - start_ns, (uint64_t)KVT_SLOWDOWN * KVT_MS(1000));
}

static void hang_and_recover(const char *call)
{
    struct kvi_rec_device_info info;
    uint32_t spaces[2];
    char words[64];
    int fds_before;

    setenv("KVMEM_STUCK_MS", "100", 1);
    snprintf(words, sizeof(words), "hang=%s:4:3000", call); /* 1 and 2: the anchors */
    start("cuda:0,cuda:1", words);
    join("one", 0, &spaces[0]);
    cr_assert(kvt_raw_space_open_on(&client, "two", 1, &spaces[1]));
    cr_assert_eq(blocks(spaces[0], SEGMENT_BLOCKS), 0);
    fds_before = kvt_process_fd_count(daemon_.process.pid);
    is_refused_quickly(spaces[0]); /* the call that hangs, */
    is_refused_quickly(spaces[0]); /* and at once from then on */
    cr_assert_eq(device(0).state, 1);
    cr_assert(strstr(ctl_devices(), "stuck") && strstr(text, "nvidia-smi"), "%s", text);
    is_logged("device cuda:0 Fake GPU 0 is stuck");
    cr_assert_eq(device(1).state, 0);
    cr_assert_eq(blocks(spaces[1], SEGMENT_BLOCKS), 0, "the other device goes on");
    is_clean();
    is_logged("device cuda:0 Fake GPU 0 answers again");
    cr_assert_eq(device(0).state, 0);
    cr_assert_eq(blocks(spaces[0], SEGMENT_BLOCKS), 0);
    info = device(0);
    cr_assert_eq(info.segment_count, 2, "what came late has been released");
    /* A segment on each device: a memfd of the fake driver's, and a descriptor that is kept. */
    fds_come_down_to(fds_before + 4);
    is_clean();
    stop();
}

Test(daemon_cuda, a_creation_that_hangs)
{
    hang_and_recover("cuMemCreate");
}

Test(daemon_cuda, an_export_that_hangs)
{
    hang_and_recover("cuMemExportToShareableHandle");
}

Test(daemon_cuda, it_ends_while_a_call_hangs)
{
    uint64_t start_ns;
    uint32_t space;

    setenv("KVMEM_STUCK_MS", "100", 1);
    start("cuda:0", "hang=cuMemCreate:2:60000");
    join("one", 0, &space);
    is_refused_quickly(space);
    kvt_raw_close(&client);
    start_ns = kvt_now_ns();
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0);
    cr_assert_lt(kvt_now_ns() - start_ns, (uint64_t)KVT_SLOWDOWN * KVT_MS(4000));
    is_logged("a driver call has still not returned: ending without it");
}

Test(daemon_cuda, a_signal_during_the_call_does_not_wait_for_the_watchdog)
{
    struct kvi_msg_blocks_request request;
    uint32_t space;

    start("cuda:0", "hang=cuMemCreate:2:60000");
    join("one", 0, &space);
    kvi_wire_begin(&request, KVI_OP_BLOCKS_REQUEST, 0);
    request.space = space;
    request.block_count = 1;
    cr_assert_eq(kvt_raw_send(&client, &request), 0);
    kvt_sleep_ns(KVT_MS(50));
    kill(daemon_.process.pid, SIGTERM);
    kvt_raw_close(&client);
    cr_assert_eq(kvt_daemon_wait(&daemon_, KVT_SLOWDOWN * KVT_MS(4000)), 0);
}
