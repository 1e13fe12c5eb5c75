/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's devices by themselves: the host's, and GPUs of the fake driver with their workers,
 * which fail, hang and are left on order. What is promised: every creation is answered once; a
 * creation finds free what was released before it was asked for; nothing leaks, whatever fails.
 */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <kvmem/error.h>

#include "clock.h"
#include "devices.h"
#include "support/cuda_fake.h"
#include "support/random.h"
#include "support/spawn.h"

#define GRANULE  (UINT64_C(64) << 10)
#define LIMIT_NS (UINT64_C(20) * KVD_SECOND_NS)

static struct kvd_devices *devices;
static struct fake_cuda_control *fake;
static int fds_before;

/* Open the fake driver by its path: "libcuda.so.1" names what is open already. */
static void start(const char *stuck_ms)
{
    void *library = dlopen(kvt_fake_path(), RTLD_NOW);

    fake = library != NULL ? dlsym(library, FAKE_CUDA_CONTROL) : NULL;
    cr_assert_not_null(fake, "no fake driver: %s", dlerror());
    setenv("KVMEM_STUCK_MS", stuck_ms, 1);
    setenv("KVMEM_SPARE_MS", "0", 0); /* none, but where the test is about them */
    setenv("CUDA_MPS_PIPE_DIRECTORY", "/nonexistent", 1);
    fds_before = kvt_process_fd_count(getpid());
}

static void open_gpus(uint32_t count, uint64_t device_bytes)
{
    struct kvd_device_options options[KVI_DEVICE_LIMIT] = {0};

    for (uint32_t i = 0; i < count; i++)
        options[i] = (struct kvd_device_options){
            .kind = KVD_DEVICE_CUDA, .ordinal = i, .device_bytes = device_bytes};
    cr_assert_eq(kvd_devices_create(&kvi_alloc_libc, options, count, &devices), 0, "%s",
                 kvmem_error_detail()->text);
}

/* Nothing is left in the driver, in this process, or wrong. */
static void end(void)
{
    cr_assert(kvd_devices_destroy(devices));
    cr_assert_eq(fake->misuse, 0, "%s", fake->misused);
    cr_assert(fake->objects == 0 && fake->handle_refs == 0 && fake->context_refs == 0);
    cr_assert_eq(fake->used_bytes, 0);
    cr_assert_eq(kvt_process_fd_count(getpid()), fds_before);
}

/* The next answer, waited for as the loop does. False when there is none within `limit_ns`. */
static bool answer(uint32_t *segment, int *code, uint64_t limit_ns)
{
    uint64_t end_ns = kvd_now_ns() + limit_ns;

    while (!kvd_devices_next_created(devices, segment, code)) {
        struct pollfd state = {.fd = kvd_devices_fd(devices), .events = POLLIN};
        uint64_t now_ns = kvd_now_ns();
        uint64_t wait_ns = kvd_earlier_ns(kvd_devices_deadline_ns(devices), end_ns);
        uint64_t count;

        if (now_ns >= end_ns)
            return false;
        wait_ns = wait_ns > now_ns ? wait_ns - now_ns : 0;
        if (poll(&state, 1, (int)(wait_ns / KVD_MILLISECOND_NS) + 1) == 1)
            cr_assert_eq(read(state.fd, &count, sizeof(count)), sizeof(count));
        kvd_devices_look(devices);
    }
    return true;
}

static void is_answered(uint32_t segment, int code)
{
    uint32_t got_segment = UINT32_MAX;
    int got_code = 1;

    cr_assert(answer(&got_segment, &got_code, LIMIT_NS), "segment %u is not answered", segment);
    cr_assert(got_segment == segment && got_code == code, "segment %u, code %d", got_segment,
              got_code);
}

/* A descriptor of it shows memory of that size. The file that it is. */
static ino_t exported(uint32_t segment, uint64_t bytes)
{
    struct stat status;
    int fd;

    cr_assert_eq(kvd_devices_segment_export(devices, segment, &fd), 0);
    cr_assert_eq(fstat(fd, &status), 0);
    cr_assert_eq((uint64_t)status.st_size, bytes);
    cr_assert_eq(close(fd), 0);
    return status.st_ino;
}

static void wait_until_idle(uint64_t objects)
{
    uint64_t end_ns = kvd_now_ns() + LIMIT_NS;

    while (__atomic_load_n(&fake->objects, __ATOMIC_RELAXED) != objects && kvd_now_ns() < end_ns)
        kvt_sleep_ns(KVT_MS(1));
    cr_assert_eq(fake->objects, objects);
}

/* ---- what it is ---- */

Test(device, the_host_answers_on_the_callers_thread, .timeout = 60)
{
    struct kvd_device_options options = {.kind = KVD_DEVICE_HOST, .device_bytes = 4 * GRANULE};

    fds_before = kvt_process_fd_count(getpid());
    cr_assert_eq(kvd_devices_create(&kvi_alloc_libc, &options, 1, &devices), 0);
    for (uint32_t i = 0; i < 5; i++)
        kvd_devices_segment_create(devices, i, 0, GRANULE);
    for (uint32_t i = 0; i < 5; i++)
        is_answered(i, i < 4 ? 0 : KVMEM_E_DEVICE_FULL);
    kvd_devices_segment_release(devices, 2);
    kvd_devices_segment_create(devices, 2, 0, GRANULE);
    is_answered(2, 0);
    cr_assert_neq(exported(2, GRANULE), exported(1, GRANULE));
    cr_assert_eq(kvd_devices_deadline_ns(devices), KVD_NEVER_NS);
    cr_assert(kvd_devices_destroy(devices));
    cr_assert_eq(kvt_process_fd_count(getpid()), fds_before);
}

Test(device, a_gpu_is_described, .timeout = 60)
{
    const struct kvi_dir_device *about;

    start("0");
    fake->granule_bytes = UINT64_C(2) << 20;
    open_gpus(2, 0);
    about = kvd_device_about(kvd_devices_at(devices, 1));
    cr_assert_str_eq(about->name, "cuda:1 Fake GPU 1");
    cr_assert_eq(about->kind, 2);
    cr_assert_eq(about->granule_bytes, UINT64_C(2) << 20);
    cr_assert_eq(about->device_bytes, UINT64_C(52) << 20,
                 "just under 90 %% of 60 MiB, in whole granules");
    cr_assert_eq(memcmp(about->uuid, "fake gpu no. 1", 15), 0);
    cr_assert_not(about->exit_proves_nothing);
    cr_assert_not(about->releases_reclaim_mapped);
    end();
}

static int under_mps(enum kvd_mps mps)
{
    struct kvd_device_options options = {.kind = KVD_DEVICE_CUDA, .mps = mps};
    int answered;

    cr_assert_eq(kvd_devices_create(&kvi_alloc_libc, &options, 1, &devices), 0);
    answered = kvd_device_about(kvd_devices_at(devices, 0))->exit_proves_nothing;
    cr_assert(kvd_devices_destroy(devices));
    return answered;
}

Test(device, mps_is_found_out_or_said, .timeout = 60)
{
    char directory[] = "/tmp/kvmem-mps-XXXXXX";
    char path[64];
    FILE *control;

    start("0");
    cr_assert_not(under_mps(KVD_MPS_AUTO));
    cr_assert(under_mps(KVD_MPS_ON));
    fake->mps_enabled = 1;
    cr_assert(under_mps(KVD_MPS_AUTO));
    cr_assert_not(under_mps(KVD_MPS_OFF));
    fake->mps_enabled = -1; /* a driver that does not know */
    cr_assert_not(under_mps(KVD_MPS_AUTO));
    cr_assert_not_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/control", directory);
    control = fopen(path, "w");
    cr_assert(control != NULL && fclose(control) == 0);
    setenv("CUDA_MPS_PIPE_DIRECTORY", directory, 1);
    cr_assert(under_mps(KVD_MPS_AUTO));
    cr_assert_not(under_mps(KVD_MPS_OFF));
    cr_assert(unlink(path) == 0 && rmdir(directory) == 0);
}

/* The anchor's granule is taken first, is no part of the size, and comes back last. */
Test(device, a_granule_is_the_anchor, .timeout = 60)
{
    start("0");
    fake->device_bytes = 20 * GRANULE;
    open_gpus(1, 0);
    cr_assert(fake->objects == 1 && fake->used_bytes == GRANULE && fake->modules == 0);
    cr_assert_eq(kvd_device_about(kvd_devices_at(devices, 0))->device_bytes, 17 * GRANULE,
                 "90 %% of 19, in whole granules");
    end();
    fake->device_bytes = 4 * GRANULE;
    open_gpus(1, 3 * GRANULE);
    for (uint32_t i = 0; i < 4; i++)
        kvd_devices_segment_create(devices, i, 0, GRANULE);
    for (uint32_t i = 0; i < 4; i++)
        is_answered(i, i < 3 ? 0 : KVMEM_E_DEVICE_FULL);
    cr_assert_eq(fake->used_bytes, fake->device_bytes);
    end();
}

/* ---- order ---- */

Test(device, what_was_released_before_is_free_for_a_creation, .timeout = 60)
{
    start("0");
    open_gpus(1, 4 * GRANULE);
    for (uint32_t i = 0; i < 4; i++)
        kvd_devices_segment_create(devices, i, 0, GRANULE);
    for (uint32_t i = 0; i < 4; i++)
        is_answered(i, 0);
    for (int round = 0; round < 200; round++) {
        for (uint32_t i = 0; i < 4; i++)
            kvd_devices_segment_release(devices, i); /* not waited for: */
        for (uint32_t i = 0; i < 4; i++)
            kvd_devices_segment_create(devices, 3 - i, 0, GRANULE);
        for (uint32_t i = 0; i < 4; i++)
            is_answered(3 - i, 0);
    }
    exported(0, GRANULE);
    end();
}

Test(device, a_number_is_reused_on_another_device_while_its_release_waits, .timeout = 60)
{
    start("0");
    open_gpus(2, 4 * GRANULE);
    kvd_devices_segment_create(devices, 7, 0, GRANULE);
    is_answered(7, 0);
    fake->hang_name = "cuMemRelease";
    fake->hang_ms = 200;
    fake->hang_nth = 1;
    kvd_devices_segment_release(devices, 7);
    kvd_devices_segment_create(devices, 7, 1, 2 * GRANULE);
    is_answered(7, 0);
    cr_assert_eq(fake->objects, 4, "two anchors, and the first is still being released");
    exported(7, 2 * GRANULE);
    kvd_devices_segment_release(devices, 7);
    kvd_devices_segment_create(devices, 7, 0, 4 * GRANULE);
    is_answered(7, 0);
    exported(7, 4 * GRANULE);
    end();
}

/* ---- failures ---- */

/* Create, export and release with the nth driver call failing; true when none failed. */
static bool fail_nth(uint64_t nth)
{
    uint64_t failed_before = fake->failed;
    uint32_t segment;
    int code;

    fake->fail_name = "*";
    fake->fail_result = nth % 2 == 0 ? KVI_CU_OUT_OF_MEMORY : 999;
    fake->fail_nth = nth;
    kvd_devices_segment_create(devices, 5, 0, GRANULE);
    cr_assert(answer(&segment, &code, LIMIT_NS));
    cr_assert_eq(segment, 5);
    if (code == 0) {
        exported(5, GRANULE);
        kvd_devices_segment_release(devices, 5);
    } else {
        cr_assert(code == KVMEM_E_DEVICE_FULL || code == KVMEM_E_SYSTEM, "%d", code);
    }
    /* A later creation is answered when the release is done. */
    kvd_devices_segment_create(devices, 6, 0, GRANULE);
    cr_assert(answer(&segment, &code, LIMIT_NS));
    if (code == 0)
        kvd_devices_segment_release(devices, 6);
    fake->fail_nth = 0;
    kvd_devices_segment_create(devices, 8, 0, GRANULE);
    is_answered(8, 0);
    kvd_devices_segment_release(devices, 8);
    return fake->failed == failed_before;
}

Test(device, any_driver_call_may_fail, .timeout = 60)
{
    uint64_t nth = 1;

    start("0");
    open_gpus(1, 16 * GRANULE);
    while (!fail_nth(nth))
        nth++;
    cr_assert_gt(nth, 6, "create, export, release and their contexts");
    end();
}

Test(device, any_driver_call_may_fail_while_it_is_opened, .timeout = 60)
{
    struct kvd_device_options options[2] = {{.kind = KVD_DEVICE_CUDA},
                                            {.kind = KVD_DEVICE_CUDA, .ordinal = 1}};
    uint64_t nth = 0;
    bool failed;
    int rc;

    start("0");
    do {
        fake->fail_name = "*";
        fake->fail_result = KVI_CU_OUT_OF_MEMORY;
        fake->fail_nth = ++nth;
        rc = kvd_devices_create(&kvi_alloc_libc, options, 2, &devices);
        failed = fake->fail_nth == 0;
        fake->fail_nth = 0;
        cr_assert((rc < 0) == failed);
        if (rc == 0)
            cr_assert(kvd_devices_destroy(devices));
        cr_assert(fake->context_refs == 0 && fake->objects == 0, "after call %d", (int)nth);
        cr_assert_eq(kvt_process_fd_count(getpid()), fds_before);
    } while (failed);
    cr_assert(nth > 40, "%d calls", (int)nth);
}

/* ---- the spare segment ---- */

static void start_with_spares(const char *stuck_ms, const char *spare_ms)
{
    setenv("KVMEM_SPARE_MS", spare_ms, 1);
    start(stuck_ms);
}

/* The loop's turns, until there are as many objects in the driver. */
static void turn_until(uint64_t objects)
{
    uint64_t end_ns = kvd_now_ns() + LIMIT_NS;

    while (__atomic_load_n(&fake->objects, __ATOMIC_RELAXED) != objects && kvd_now_ns() < end_ns) {
        kvd_devices_look(devices);
        kvt_sleep_ns(KVT_MS(1));
    }
    cr_assert_eq(fake->objects, objects);
}

/* Answered in the call itself. */
static void is_answered_at_once(uint32_t segment)
{
    uint32_t got_segment = UINT32_MAX;
    int got_code = 1;

    cr_assert(kvd_devices_next_created(devices, &got_segment, &got_code));
    cr_assert(got_segment == segment && got_code == 0);
}

Test(device, a_spare_segment_answers_at_once, .timeout = 60)
{
    ino_t first;

    start_with_spares("0", "60000");
    open_gpus(2, 8 * GRANULE);
    kvd_devices_segment_create(devices, 0, 1, 2 * GRANULE);
    is_answered(0, 0);
    first = exported(0, 2 * GRANULE);
    turn_until(2 + 2);
    fake->fail_name = "cuMemCreate"; /* nothing calls it: */
    fake->fail_nth = 1;
    kvd_devices_segment_create(devices, 1, 1, 2 * GRANULE);
    is_answered_at_once(1);
    cr_assert_eq(fake->fail_nth, 1);
    fake->fail_nth = 0;
    cr_assert_neq(exported(1, 2 * GRANULE), first);
    turn_until(2 + 3);
    kvd_devices_segment_create(devices, 2, 0, 2 * GRANULE); /* the other device has none */
    is_answered(2, 0);
    kvd_devices_segment_create(devices, 3, 1, GRANULE); /* nor is one of that size there */
    is_answered(3, 0);
    turn_until(2 + 4 + 2);
    cr_assert_eq(fake->used_bytes, (2 + 2 + 2 + 2 + 1 + 2 + 1) * GRANULE);
    end();
}

Test(device, a_spare_segment_is_free_memory, .timeout = 60)
{
    start_with_spares("0", "60000");
    open_gpus(1, 4 * GRANULE);
    kvd_devices_segment_create(devices, 0, 0, GRANULE);
    is_answered(0, 0);
    turn_until(1 + 2);
    kvd_devices_segment_create(devices, 1, 0, 3 * GRANULE); /* there are two beside the spare */
    is_answered(1, 0);
    exported(1, 3 * GRANULE);
    turn_until(1 + 2);
    kvt_sleep_ns(KVT_MS(5));
    kvd_devices_look(devices); /* no room for another one, and no word of that */
    cr_assert(answer(&(uint32_t){0}, &(int){0}, KVT_MS(5)) == false);
    cr_assert_eq(fake->used_bytes, 5 * GRANULE);
    kvd_devices_segment_create(devices, 2, 0, GRANULE);
    is_answered(2, KVMEM_E_DEVICE_FULL);
    end();
}

Test(device, a_spare_segment_that_is_not_used_goes, .timeout = 60)
{
    start_with_spares("0", "40");
    open_gpus(1, 4 * GRANULE);
    kvd_devices_segment_create(devices, 0, 0, GRANULE);
    is_answered(0, 0);
    turn_until(1 + 2);
    turn_until(1 + 1);
    cr_assert_eq(kvd_devices_deadline_ns(devices), KVD_NEVER_NS);
    end();
}

/* Its number's old memory is still being released when the spare takes its place. */
Test(device, a_spare_segment_takes_a_number_whose_release_is_under_way, .timeout = 60)
{
    ino_t first;

    start_with_spares("0", "60000");
    open_gpus(1, 4 * GRANULE);
    kvd_devices_segment_create(devices, 0, 0, GRANULE);
    is_answered(0, 0);
    first = exported(0, GRANULE);
    turn_until(1 + 2);
    fake->hang_name = "cuMemRelease";
    fake->hang_ms = 100;
    fake->hang_nth = 1;
    kvd_devices_segment_release(devices, 0);
    kvt_sleep_ns(KVT_MS(20));
    kvd_devices_segment_create(devices, 0, 0, GRANULE);
    is_answered(0, 0);
    cr_assert_neq(exported(0, GRANULE), first);
    turn_until(1 + 2);
    cr_assert_neq(exported(0, GRANULE), first);
    end();
}

/* Create a segment, let a spare come, use it, let it go, with the nth driver call failing; true
 * when none failed. */
static bool fail_nth_with_spares(uint64_t nth)
{
    uint64_t failed_before = fake->failed;
    uint64_t end_ns;
    uint32_t segment;
    int code;

    fake->fail_name = "*";
    fake->fail_result = nth % 2 == 0 ? KVI_CU_OUT_OF_MEMORY : 999;
    fake->fail_nth = nth;
    for (uint32_t i = 0; i < 3; i++) {
        kvd_devices_segment_create(devices, i, 0, GRANULE * (1 + i / 2));
        cr_assert(answer(&segment, &code, LIMIT_NS));
        cr_assert_eq(segment, i);
        end_ns = kvd_now_ns() + KVT_MS(12);
        while (kvd_now_ns() < end_ns)
            cr_assert_not(answer(&segment, &code, KVT_MS(3)));
        if (code == 0)
            kvd_devices_segment_release(devices, i);
    }
    kvd_devices_segment_create(devices, 8, 0, 15 * GRANULE); /* the spare has to go */
    cr_assert(answer(&segment, &code, LIMIT_NS));
    if (code == 0)
        kvd_devices_segment_release(devices, 8);
    fake->fail_nth = 0;
    return fake->failed == failed_before;
}

Test(device, any_driver_call_for_spares_may_fail, .timeout = 120)
{
    uint64_t nth = 1;

    start_with_spares("0", "60000");
    open_gpus(1, 40 * GRANULE);
    while (!fail_nth_with_spares(nth))
        nth++;
    cr_assert_gt(nth, 20, "%d calls", (int)nth);
    end();
}

/* ---- the watchdog ---- */

static struct kvd_device *at(uint32_t index)
{
    return kvd_devices_at(devices, index);
}

static void wait_until_well(void)
{
    uint64_t end_ns = kvd_now_ns() + LIMIT_NS;

    while (kvd_device_is_stuck(at(0)) && kvd_now_ns() < end_ns)
        kvt_sleep_ns(KVT_MS(1));
    cr_assert_not(kvd_device_is_stuck(at(0)));
    kvd_devices_look(devices);
}

/* The first call of `name` hangs while segments 0 and 1 are being created. */
static void hang(const char *name, uint64_t ms)
{
    fake->hang_name = name;
    fake->hang_ms = ms;
    fake->hang_nth = 1;
    kvd_devices_segment_create(devices, 0, 0, GRANULE);
    kvd_devices_segment_create(devices, 1, 0, GRANULE);
}

static void stuck_and_well(const char *name)
{
    start("50");
    open_gpus(2, 4 * GRANULE);
    hang(name, 600);
    is_answered(0, KVMEM_E_TIMED_OUT);
    is_answered(1, KVMEM_E_TIMED_OUT);
    cr_assert(kvd_device_is_stuck(at(0)));
    cr_assert_not(kvd_device_is_stuck(at(1)));
    kvd_devices_segment_create(devices, 0, 0, GRANULE); /* at once: */
    is_answered(0, KVMEM_E_TIMED_OUT);
    cr_assert(kvd_device_is_stuck(at(0)));
    kvd_devices_segment_create(devices, 1, 1, GRANULE); /* the other one goes on */
    is_answered(1, 0);
    wait_until_well();
    for (uint32_t i = 2; i < 6; i++) /* what came late has been released: all four fit */
        kvd_devices_segment_create(devices, i, 0, GRANULE);
    for (uint32_t i = 2; i < 6; i++)
        is_answered(i, 0);
    wait_until_idle(5 + 2); /* and the anchors */
    end();
}

Test(device, a_creation_that_hangs_is_answered_and_given_up, .timeout = 60)
{
    stuck_and_well("cuMemCreate");
}

Test(device, an_export_that_hangs_is_answered_and_given_up, .timeout = 60)
{
    stuck_and_well("cuMemExportToShareableHandle");
}

Test(device, releases_wait_for_a_call_that_hangs, .timeout = 60)
{
    start("50");
    open_gpus(1, 4 * GRANULE);
    for (uint32_t i = 0; i < 4; i++)
        kvd_devices_segment_create(devices, i, 0, GRANULE);
    for (uint32_t i = 0; i < 4; i++)
        is_answered(i, 0);
    fake->hang_name = "cuMemRelease";
    fake->hang_ms = 400;
    fake->hang_nth = 1;
    for (uint32_t i = 0; i < 4; i++)
        kvd_devices_segment_release(devices, i);
    kvd_devices_segment_create(devices, 0, 0, GRANULE);
    is_answered(0, KVMEM_E_TIMED_OUT);
    cr_assert_gt(fake->objects, 1);
    wait_until_well();
    for (uint32_t i = 0; i < 4; i++)
        kvd_devices_segment_create(devices, i, 0, GRANULE);
    for (uint32_t i = 0; i < 4; i++)
        is_answered(i, 0);
    end();
}

/* Nobody waits for it; but the device is stuck all the same. What comes late is a spare segment. */
Test(device, a_spare_segment_that_hangs_makes_the_device_stuck, .timeout = 60)
{
    uint32_t segment;
    int code;

    start_with_spares("50", "60000");
    open_gpus(1, 4 * GRANULE);
    kvd_devices_segment_create(devices, 0, 0, GRANULE);
    is_answered(0, 0);
    fake->hang_name = "cuMemCreate";
    fake->hang_ms = 600;
    fake->hang_nth = 1;
    cr_assert_not(answer(&segment, &code, KVT_MS(200)));
    cr_assert(kvd_device_is_stuck(at(0)));
    kvd_devices_segment_create(devices, 1, 0, GRANULE);
    is_answered(1, KVMEM_E_TIMED_OUT);
    wait_until_well();
    turn_until(1 + 2);
    kvd_devices_segment_create(devices, 1, 0, GRANULE);
    is_answered_at_once(1);
    end();
}

Test(device, leaving_does_not_wait_for_a_call_that_hangs, .timeout = 60)
{
    uint64_t start_ns;

    start("0");
    open_gpus(1, 4 * GRANULE);
    hang("cuMemCreate", 30000);
    kvt_sleep_ns(KVT_MS(50));
    start_ns = kvd_now_ns();
    cr_assert_not(kvd_devices_destroy(devices));
    cr_assert_lt(kvd_now_ns() - start_ns, 5 * KVD_SECOND_NS);
}

/* ---- at random, against a twin that knows what must be there ---- */

enum twin {
    FREE,
    ASKED,
    LIVE
};

#define NUMBERS 24u

static struct {
    enum twin state;
    uint64_t bytes;
} twins[NUMBERS];

static uint32_t answered;
static uint32_t refused;

static void take_answer(uint32_t segment, int code)
{
    cr_assert(segment < NUMBERS && twins[segment].state == ASKED);
    twins[segment].state = code == 0 ? LIVE : FREE;
    answered++;
    refused += code != 0;
    if (code == 0)
        exported(segment, twins[segment].bytes);
    else
        cr_assert(code == KVMEM_E_TIMED_OUT || code == KVMEM_E_DEVICE_FULL ||
                  code == KVMEM_E_SYSTEM);
}

static void trouble(uint64_t *seed)
{
    static const char *const calls[] = {"cuMemCreate", "cuMemExportToShareableHandle",
                                        "cuMemRelease"};
    const char *call = calls[kvt_random(seed) % 3];

    if (kvt_random(seed) % 2 == 0) {
        fake->hang_name = call;
        fake->hang_ms = kvt_random(seed) % 60;
        fake->hang_nth = 1 + kvt_random(seed) % 4;
    } else if (call != calls[2]) { /* what is not released stays, as it must */
        fake->fail_name = call;
        fake->fail_result = KVI_CU_OUT_OF_MEMORY;
        fake->fail_nth = 1 + kvt_random(seed) % 4;
    }
}

static void step(uint64_t *seed)
{
    uint32_t segment = (uint32_t)(kvt_random(seed) % NUMBERS);
    int code;

    if (twins[segment].state == FREE) {
        twins[segment].state = ASKED;
        twins[segment].bytes = GRANULE * (1 + kvt_random(seed) % 2);
        kvd_devices_segment_create(devices, segment, (uint32_t)(kvt_random(seed) % 2),
                                   twins[segment].bytes);
    } else if (twins[segment].state == LIVE) {
        exported(segment, twins[segment].bytes);
        twins[segment].state = FREE;
        kvd_devices_segment_release(devices, segment);
    }
    if (kvt_random(seed) % 40 == 0)
        trouble(seed);
    while (answer(&segment, &code, kvt_random(seed) % 4 == 0 ? KVD_MILLISECOND_NS / 2 : 0))
        take_answer(segment, code);
}

Test(device, random_requests_are_each_answered_once_and_nothing_leaks, .timeout = 120)
{
    uint64_t seed = kvt_seed("device");
    uint32_t segment;
    uint32_t open = 0;
    int code;

    start_with_spares("20", "30");
    open_gpus(2, 18 * GRANULE);
    for (int i = 0; i < 4000; i++)
        step(&seed);
    fake->hang_nth = fake->fail_nth = 0;
    for (uint32_t i = 0; i < NUMBERS; i++)
        open += twins[i].state == ASKED;
    while (open-- > 0) {
        cr_assert(answer(&segment, &code, LIMIT_NS));
        take_answer(segment, code);
    }
    cr_assert(answered > 500 && refused > 10, "answered %u, refused %u", answered, refused);
    for (uint32_t i = 0; i < NUMBERS; i++)
        if (twins[i].state == LIVE)
            kvd_devices_segment_release(devices, i);
    turn_until(2);
    end();
}
