/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop's side and the workers of two GPUs of the fake driver at full speed: requests, answers,
 * descriptors, a call that fails, one that hangs until the watchdog gives it up, and the end. Run
 * under ThreadSanitizer by `make test-tsan`; without it, it still checks that every request is
 * answered once and that nothing is left in the driver.
 */
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "clock.h"
#include "devices.h"
#include "support/cuda_fake.h"
#include "support/random.h"
#include "support/spawn.h"

#define GRANULE  (UINT64_C(64) << 10)
#define NUMBERS  32u
#define REQUESTS 4000u

static struct kvd_devices *devices;
static enum {
    FREE,
    ASKED,
    LIVE
} states[NUMBERS];

static void check(bool is_true, const char *what)
{
    if (!is_true)
        kvt_die("%s", what);
}

/* Take in what there is; wait for it at most so long. Answers, by their codes. */
static uint32_t take(int timeout_ms, uint32_t *refused)
{
    struct pollfd state = {.fd = kvd_devices_fd(devices), .events = POLLIN};
    uint32_t answered = 0;
    uint32_t segment;
    uint64_t count;
    int code;
    int fd;

    if (poll(&state, 1, timeout_ms) == 1)
        check(read(state.fd, &count, sizeof(count)) == sizeof(count), "the eventfd");
    kvd_devices_look(devices);
    while (kvd_devices_next_created(devices, &segment, &code)) {
        check(segment < NUMBERS && states[segment] == ASKED, "an answer to no question");
        states[segment] = code == 0 ? LIVE : FREE;
        answered++;
        *refused += code != 0;
        if (code == 0)
            check(kvd_devices_segment_export(devices, segment, &fd) == 0 && close(fd) == 0,
                  "a descriptor");
    }
    return answered;
}

static void ask(uint64_t *seed)
{
    uint32_t segment = (uint32_t)(kvt_random(seed) % NUMBERS);

    if (states[segment] == FREE) {
        states[segment] = ASKED;
        kvd_devices_segment_create(devices, segment, (uint32_t)(kvt_random(seed) % 2), GRANULE);
    } else if (states[segment] == LIVE) {
        states[segment] = FREE;
        kvd_devices_segment_release(devices, segment);
    }
}

int main(void)
{
    struct kvd_device_options options[] = {
        {.kind = KVD_DEVICE_CUDA, .device_bytes = NUMBERS * GRANULE},
        {.kind = KVD_DEVICE_CUDA, .device_bytes = NUMBERS * GRANULE, .ordinal = 1}};
    uint64_t seed = kvt_seed("devices");
    struct fake_cuda_control *fake;
    uint32_t answered = 0;
    uint32_t refused = 0;
    void *library;

    setenv("KVMEM_FAKE_CUDA", "hang=cuMemCreate:200:400 fail=cuMemExportToShareableHandle:300:2",
           1);
    setenv("KVMEM_STUCK_MS", "100", 1);
    setenv("KVMEM_SPARE_MS", "20", 1);
    library = dlopen(kvt_fake_path(), RTLD_NOW); /* "libcuda.so.1" is this one from now on */
    fake = library != NULL ? dlsym(library, FAKE_CUDA_CONTROL) : NULL;
    check(fake != NULL, "no fake driver");
    check(kvd_devices_create(&kvi_alloc_libc, options, 2, &devices) == 0, "devices");
    while (answered < REQUESTS) {
        for (int i = 0; i < 8; i++)
            ask(&seed);
        answered += take(kvd_devices_deadline_ns(devices) != KVD_NEVER_NS ? 1 : 0, &refused);
    }
    check(refused >= 2, "nothing was refused: neither failure nor hang");
    check(kvd_devices_destroy(devices), "a worker is left");
    check(fake->misuse == 0 && fake->objects == 0 && fake->context_refs == 0, "a leak");
    printf("%u answers, %u of them refusals\n", answered, refused);
    return 0;
}
