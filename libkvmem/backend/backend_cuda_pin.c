/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's pins. The driver registers a page of a process once, whichever context it
 * is asked in; but a daemon has one backend a device, and they share the timeline pages of their
 * clients. So registrations belong to the process and are counted:
 *
 *   registration   a range registered with the driver (portable: for all contexts), and a
 *                  reference on the context that it was registered in, which must outlive it
 *   pin            one backend's use of a range within a registration
 *
 *   refs of a registration = pins, of all backends, that name it; it goes with the last
 *
 * A range that laps over the end of a registration is refused: the driver could not register the
 * rest of it either.
 *
 * Threads: one mutex of the process over the registrations, held while the driver registers
 * (milliseconds for large ranges); each backend's pin_lock for look-ups.
 */
#include <inttypes.h>

#include "backend/backend_cuda_internal.h"
#include "util/error.h"

struct kvi_backend_cuda_registration {
    struct kvi_backend_cuda_registration *next;
    const struct kvi_cuda_driver *driver;
    kvi_cu_device device;
    kvi_cu_context context; /* retained */
    uint64_t start;
    uint64_t bytes;
    uint64_t refs;
};

static pthread_mutex_t pins_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kvi_backend_cuda_registration *registrations;

/* ---- registrations, under pins_lock ---- */

static int driver_register(const struct kvi_backend_cuda *cuda, uint64_t start, uint64_t bytes)
{
    int result = cuda->driver->host_register((void *)(uintptr_t)start, bytes,
                                             KVI_CU_REGISTER_PORTABLE | KVI_CU_REGISTER_DEVICEMAP);

    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_NO_MEMORY, "host_pin",
                               "cuMemHostRegister");
    return 0;
}

static int registration_new(struct kvi_backend_cuda *cuda, uint64_t start, uint64_t bytes,
                            struct kvi_backend_cuda_registration **out)
{
    struct kvi_backend_cuda_registration *one = kvi_allocate(&kvi_alloc_libc, sizeof(*one));
    int result;
    int rc;

    if (one == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "host_pin: no memory for a record");
    result = cuda->driver->context_retain(&one->context, cuda->device);
    if (result != 0) {
        rc = kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "host_pin",
                             "cuDevicePrimaryCtxRetain");
        goto fail_one;
    }
    rc = driver_register(cuda, start, bytes);
    if (rc < 0)
        goto fail_context;
    one->driver = cuda->driver;
    one->device = cuda->device;
    one->start = start;
    one->bytes = bytes;
    one->next = registrations;
    registrations = one;
    *out = one;
    return 0;

fail_context:
    (void)cuda->driver->context_release(cuda->device);
fail_one:
    kvi_release(&kvi_alloc_libc, one, sizeof(*one));
    return rc;
}

/* A registration that holds the whole range, with a reference taken. */
static int registration_ref(struct kvi_backend_cuda *cuda, uint64_t start, uint64_t bytes,
                            struct kvi_backend_cuda_registration **out)
{
    struct kvi_backend_cuda_registration *one = registrations;
    int rc = 0;

    while (one != NULL && (one->driver != cuda->driver || one->start >= start + bytes ||
                           start >= one->start + one->bytes))
        one = one->next;
    if (one == NULL)
        rc = registration_new(cuda, start, bytes, &one);
    else if (start < one->start || start + bytes > one->start + one->bytes)
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "host_pin: memory %#" PRIx64 " of %" PRIu64 " bytes overlaps the end of "
                           "what another backend pinned",
                           start, bytes);
    if (rc < 0)
        return rc;
    one->refs++;
    *out = one;
    return 0;
}

static int driver_unregister(const struct kvi_backend_cuda_registration *one)
{
    const struct kvi_cuda_driver *driver = one->driver;
    kvi_cu_context popped;
    int result = driver->context_push(one->context);

    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "host_unpin", "cuCtxPushCurrent");
    result = driver->host_unregister((void *)(uintptr_t)one->start);
    (void)driver->context_pop(&popped);
    if (result != 0)
        return kvi_cuda_failed(driver, result, KVMEM_E_SYSTEM, "host_unpin", "cuMemHostUnregister");
    return 0;
}

/* Let go of a reference. The last one unregisters; if that fails, all stays as it was, but with
 * `anyway`, since in a dead context it always fails, and the record must not outlive its pins. */
static int registration_unref(struct kvi_backend_cuda_registration *one, bool anyway)
{
    struct kvi_backend_cuda_registration **at = &registrations;
    int rc;

    if (one->refs > 1) {
        one->refs--;
        return 0;
    }
    rc = driver_unregister(one);
    if (rc < 0 && !anyway)
        return rc;
    while (*at != one)
        at = &(*at)->next;
    *at = one->next;
    (void)one->driver->context_release(one->device);
    kvi_release(&kvi_alloc_libc, one, sizeof(*one));
    return 0;
}

/* ---- pins ---- */

/* Room for one more pin, if the range overlaps none. */
static int pin_place(struct kvi_backend_cuda *cuda, uint64_t start, uint64_t bytes)
{
    int rc = 0;

    pthread_mutex_lock(&cuda->pin_lock);
    for (size_t i = 0; i < cuda->pin_count && rc == 0; i++)
        if (start < cuda->pins[i].start + cuda->pins[i].bytes &&
            cuda->pins[i].start < start + bytes)
            rc = kvi_error_set(KVMEM_E_INVALID,
                               "host_pin: memory %#" PRIx64 " of %" PRIu64 " bytes overlaps a pin",
                               start, bytes);
    if (rc == 0)
        rc = kvi_book_grow(cuda->alloc, &cuda->pins, &cuda->pin_capacity, cuda->pin_count,
                           sizeof(*cuda->pins));
    pthread_mutex_unlock(&cuda->pin_lock);
    return rc;
}

/* In the context, under pins_lock. */
static int pin_add(struct kvi_backend_cuda *cuda, uint64_t start, uint64_t bytes)
{
    struct kvi_backend_cuda_pin pin = {.start = start, .bytes = bytes};
    int rc = pin_place(cuda, start, bytes);
    int result;

    if (rc == 0)
        rc = registration_ref(cuda, start, bytes, &pin.registration);
    if (rc < 0)
        return rc;
    /* Documented for the start of a registration alone. */
    result = cuda->driver->host_address(&pin.device_address,
                                        (void *)(uintptr_t)pin.registration->start, 0);
    if (result != 0) {
        (void)registration_unref(pin.registration, true);
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, "host_pin",
                               "cuMemHostGetDevicePointer");
    }
    pin.device_address += start - pin.registration->start;
    pthread_mutex_lock(&cuda->pin_lock);
    cuda->pins[cuda->pin_count++] = pin;
    pthread_mutex_unlock(&cuda->pin_lock);
    return 0;
}

int kvi_backend_cuda_host_pin(struct kvi_backend *b, void *memory, uint64_t bytes)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    int rc = kvi_backend_cuda_enter(cuda, "host_pin");

    if (rc < 0)
        return rc;
    pthread_mutex_lock(&pins_lock);
    rc = pin_add(cuda, (uintptr_t)memory, bytes);
    pthread_mutex_unlock(&pins_lock);
    kvi_backend_cuda_leave(cuda);
    return rc;
}

/* Under pins_lock, which keeps other changes of the array away. */
static int pin_remove(struct kvi_backend_cuda *cuda, uint64_t start, uint64_t bytes)
{
    size_t at = 0;
    int rc;

    while (at < cuda->pin_count && (cuda->pins[at].start != start || cuda->pins[at].bytes != bytes))
        at++;
    if (at == cuda->pin_count)
        return kvi_error_set(KVMEM_E_INVALID,
                             "host_unpin: memory %#" PRIx64 " of %" PRIu64
                             " bytes was not pinned like this",
                             start, bytes);
    rc = registration_unref(cuda->pins[at].registration, false);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&cuda->pin_lock);
    cuda->pins[at] = cuda->pins[--cuda->pin_count];
    pthread_mutex_unlock(&cuda->pin_lock);
    return 0;
}

int kvi_backend_cuda_host_unpin(struct kvi_backend *b, void *memory, uint64_t bytes)
{
    int rc;

    pthread_mutex_lock(&pins_lock);
    rc = pin_remove(kvi_backend_cuda_of(b), (uintptr_t)memory, bytes);
    pthread_mutex_unlock(&pins_lock);
    return rc;
}

int kvi_backend_cuda_pin_find(struct kvi_backend_cuda *cuda, const void *memory, uint64_t bytes,
                              const char *operation, kvi_cu_address *out_address)
{
    uint64_t start = (uintptr_t)memory;
    bool found = false;

    pthread_mutex_lock(&cuda->pin_lock);
    for (size_t i = 0; i < cuda->pin_count && !found; i++) {
        const struct kvi_backend_cuda_pin *pin = &cuda->pins[i];

        found = start >= pin->start && start - pin->start < pin->bytes &&
                bytes <= pin->bytes - (start - pin->start);
        if (found)
            *out_address = pin->device_address + (start - pin->start);
    }
    pthread_mutex_unlock(&cuda->pin_lock);
    if (!found)
        return kvi_error_set(KVMEM_E_INVALID, "%s: %p of %" PRIu64 " bytes is in no pinned memory",
                             operation, memory, bytes);
    return 0;
}

void kvi_backend_cuda_pins_fini(struct kvi_backend_cuda *cuda)
{
    pthread_mutex_lock(&pins_lock);
    for (size_t i = 0; i < cuda->pin_count; i++)
        (void)registration_unref(cuda->pins[i].registration, true);
    pthread_mutex_unlock(&pins_lock);
}
