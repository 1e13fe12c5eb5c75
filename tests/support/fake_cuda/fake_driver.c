/* SPDX-License-Identifier: Apache-2.0
 *
 * The fake driver's entry, devices and contexts. See fake_cuda.h.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/fake_cuda/fake_internal.h"

#define STACK_DEPTH 16

FAKE_EXPORT struct fake_cuda_control fake_cuda_control = {
    .version = 13000,
    .device_count = 2,
    .granule_bytes = UINT64_C(64) << 10,
    .device_bytes = UINT64_C(64) << 20,
};

struct fake_context {
    int device;
    uint64_t refs;
};

static pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
static bool initialised;
static struct fake_context contexts[FAKE_DEVICES_MAX];
static _Thread_local struct fake_context *stack[STACK_DEPTH];
static _Thread_local int stack_depth;

/* ---- failures on order ---- */

static int failure_take(const char *name)
{
    struct fake_cuda_control *control = &fake_cuda_control;

    if (control->fail_nth == 0 || strcmp(name, "cuCtxPopCurrent") == 0 ||
        (strcmp(control->fail_name, "*") != 0 && strcmp(control->fail_name, name) != 0))
        return 0;
    if (control->fail_nth > 1) {
        control->fail_nth--;
        return 0;
    }
    if (!control->fail_always)
        control->fail_nth = 0;
    control->failed++;
    return control->fail_result;
}

static bool hang_take(const char *name)
{
    struct fake_cuda_control *control = &fake_cuda_control;

    return control->hang_nth != 0 && strcmp(control->hang_name, name) == 0 &&
           --control->hang_nth == 0;
}

int fake_enter(const char *name)
{
    int result;

    pthread_mutex_lock(&fake_lock);
    if (hang_take(name)) {
        pthread_mutex_unlock(&fake_lock);
        usleep((useconds_t)fake_cuda_control.hang_ms * 1000);
        pthread_mutex_lock(&fake_lock);
    }
    result = failure_take(name);
    if (result == 0 && !initialised && strcmp(name, "cuInit") != 0)
        result = fake_misused(name, KVI_CU_NOT_INITIALIZED);
    if (result != 0)
        pthread_mutex_unlock(&fake_lock);
    return result;
}

void fake_leave(void)
{
    pthread_mutex_unlock(&fake_lock);
}

int fake_misused(const char *name, int result)
{
    if (fake_cuda_control.misuse++ == 0)
        snprintf(fake_cuda_control.misused, sizeof(fake_cuda_control.misused), "%s", name);
    return result;
}

/* ---- symbols ---- */

/* "name:n:m" or "name:n": cut at the name; `numbers` that are not given stay. */
static bool call_take(char *call, uint64_t numbers[2])
{
    char *rest = strchr(call, ':');

    if (rest == NULL)
        return false;
    *rest = '\0';
    numbers[0] = strtoull(rest + 1, &rest, 0);
    if (*rest == ':')
        numbers[1] = strtoull(rest + 1, NULL, 0);
    return true;
}

/* Words of KVMEM_FAKE_CUDA. The name of a function to fail stays in `words`, for good. */
static void word_take(char *word)
{
    struct fake_cuda_control *control = &fake_cuda_control;
    char *value = strchr(word, '=');
    uint64_t numbers[2] = {0, KVI_CU_OUT_OF_MEMORY};

    if (value == NULL)
        return;
    *value++ = '\0';
    if (strcmp(word, "version") == 0)
        control->version = atoi(value);
    else if (strcmp(word, "devices") == 0)
        control->device_count = atoi(value);
    else if (strcmp(word, "granule") == 0)
        control->granule_bytes = strtoull(value, NULL, 0);
    else if (strcmp(word, "bytes") == 0)
        control->device_bytes = strtoull(value, NULL, 0);
    else if (strcmp(word, "init") == 0)
        control->init_result = atoi(value);
    else if (strcmp(word, "off") == 0)
        control->attribute_off = atoi(value);
    else if (strcmp(word, "mps") == 0)
        control->mps_enabled = atoi(value);
    else if (strcmp(word, "fail") == 0 && call_take(value, numbers)) {
        control->fail_name = value;
        control->fail_nth = numbers[0];
        control->fail_result = (int)numbers[1];
    } else if (strcmp(word, "hang") == 0 && call_take(value, numbers)) {
        control->hang_name = value;
        control->hang_nth = numbers[0];
        control->hang_ms = numbers[1];
    }
}

__attribute__((constructor)) static void environment_read(void)
{
    static char words[512];
    const char *given = getenv("KVMEM_FAKE_CUDA");
    char *rest = words;
    char *word;

    snprintf(words, sizeof(words), "%s", given != NULL ? given : "");
    while ((word = strsep(&rest, " ")) != NULL)
        word_take(word);
}

FAKE_EXPORT int cuDriverGetVersion(int *out_version)
{
    *out_version = fake_cuda_control.version;
    return 0;
}

struct fake_symbol {
    const char *name;
    void *function;
};

#define FUNCTION(f) (__extension__(void *)(f))

static const struct fake_symbol symbols[] = {
#define SYMBOL_ROW(member, name, parameters) {#name, FUNCTION(fake_##member)},
    KVI_CUDA_CALL_TABLE(SYMBOL_ROW)
#undef SYMBOL_ROW
        {"cuCtxGetCurrent", FUNCTION(fake_context_current)},
    {"cuStreamCreate", FUNCTION(fake_stream_create)},
    {"cuStreamDestroy", FUNCTION(fake_stream_destroy)},
    {"cuStreamQuery", FUNCTION(fake_stream_query)},
};

FAKE_EXPORT int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags,
                                    int *out_status)
{
    const char *missing = fake_cuda_control.missing;

    *out = NULL;
    *out_status = 1;
    if (version != 12000 || flags != KVI_CU_PROC_ADDRESS_LEGACY_STREAM)
        return fake_misused("cuGetProcAddress", KVI_CU_INVALID_VALUE);
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++)
        if (strcmp(symbols[i].name, name) == 0 && (missing == NULL || strcmp(missing, name) != 0)) {
            *out = symbols[i].function;
            *out_status = 0;
            return 0;
        }
    return FAKE_NOT_FOUND;
}

int fake_init(unsigned flags)
{
    int result = fake_enter("cuInit");

    if (result != 0)
        return result;
    result = flags != 0 ? KVI_CU_INVALID_VALUE : fake_cuda_control.init_result;
    initialised = result == 0;
    fake_leave();
    return result;
}

int fake_error_name(int result, const char **out_name)
{
    static const struct {
        int result;
        const char *name;
    } names[] = {
        {KVI_CU_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {KVI_CU_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {KVI_CU_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {KVI_CU_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {KVI_CU_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
    };

    *out_name = NULL;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].result == result)
            *out_name = names[i].name;
    return *out_name != NULL ? 0 : KVI_CU_INVALID_VALUE;
}

/* ---- devices ---- */

int fake_device_count(int *out_count)
{
    int result = fake_enter("cuDeviceGetCount");

    if (result != 0)
        return result;
    *out_count = fake_cuda_control.device_count;
    fake_leave();
    return 0;
}

int fake_device_get(kvi_cu_device *out, int ordinal)
{
    int result = fake_enter("cuDeviceGet");

    if (result != 0)
        return result;
    if (ordinal < 0 || ordinal >= fake_cuda_control.device_count)
        result = fake_misused("cuDeviceGet", KVI_CU_INVALID_DEVICE);
    else
        *out = ordinal;
    fake_leave();
    return result;
}

int fake_device_name(char *name, int name_bytes, kvi_cu_device device)
{
    int result = fake_enter("cuDeviceGetName");

    if (result != 0)
        return result;
    snprintf(name, (size_t)name_bytes, "Fake GPU %d", device);
    fake_leave();
    return 0;
}

int fake_device_total(size_t *out_bytes, kvi_cu_device device)
{
    int result = fake_enter("cuDeviceTotalMem");

    (void)device;
    if (result != 0)
        return result;
    *out_bytes = fake_cuda_control.device_bytes;
    fake_leave();
    return 0;
}

int fake_device_uuid(struct kvi_cu_uuid *out, kvi_cu_device device)
{
    int result = fake_enter("cuDeviceGetUuid");

    if (result != 0)
        return result;
    memset(out, 0, sizeof(*out));
    snprintf((char *)out->bytes, sizeof(out->bytes), "fake gpu no. %d", device);
    fake_leave();
    return 0;
}

int fake_device_attribute(int *out_value, int attribute, kvi_cu_device device)
{
    int result = fake_enter("cuDeviceGetAttribute");

    (void)device;
    if (result != 0)
        return result;
    if (attribute == KVI_CU_ATTRIBUTE_MPS_ENABLED) {
        if (fake_cuda_control.mps_enabled < 0)
            result = KVI_CU_INVALID_VALUE;
        *out_value = fake_cuda_control.mps_enabled;
        fake_leave();
        return result;
    }
    *out_value = attribute == KVI_CU_ATTRIBUTE_CAPABILITY_MAJOR       ? 9
                 : attribute == KVI_CU_ATTRIBUTE_CAPABILITY_MINOR     ? 0
                 : attribute == KVI_CU_ATTRIBUTE_MULTIPROCESSOR_COUNT ? 132
                 : attribute == KVI_CU_ATTRIBUTE_SHARED_BYTES_PER_SM  ? 228 * 1024
                                                                      : 1;
    if (attribute == fake_cuda_control.attribute_off)
        *out_value = 0;
    fake_leave();
    return 0;
}

/* ---- contexts ---- */

int fake_context_retain(kvi_cu_context *out, kvi_cu_device device)
{
    int result = fake_enter("cuDevicePrimaryCtxRetain");

    if (result != 0)
        return result;
    contexts[device].device = device;
    contexts[device].refs++;
    fake_cuda_control.context_refs++;
    *out = &contexts[device];
    fake_leave();
    return 0;
}

int fake_context_release(kvi_cu_device device)
{
    int result = fake_enter("cuDevicePrimaryCtxRelease");

    if (result != 0)
        return result;
    if (contexts[device].refs == 0) {
        result = fake_misused("cuDevicePrimaryCtxRelease", KVI_CU_INVALID_CONTEXT);
    } else {
        contexts[device].refs--;
        fake_cuda_control.context_refs--;
    }
    fake_leave();
    return result;
}

int fake_context_push(kvi_cu_context context)
{
    struct fake_context *one = context;
    int result = fake_enter("cuCtxPushCurrent");

    if (result != 0)
        return result;
    if (one == NULL || one->refs == 0 || stack_depth == STACK_DEPTH)
        result = fake_misused("cuCtxPushCurrent", KVI_CU_INVALID_CONTEXT);
    else
        stack[stack_depth++] = one;
    fake_leave();
    return result;
}

int fake_context_pop(kvi_cu_context *out)
{
    int result = fake_enter("cuCtxPopCurrent");

    if (result != 0)
        return result;
    if (stack_depth == 0)
        result = fake_misused("cuCtxPopCurrent", KVI_CU_INVALID_CONTEXT);
    else
        *out = stack[--stack_depth];
    fake_leave();
    return result;
}

int fake_context_current(kvi_cu_context *out)
{
    *out = stack_depth > 0 ? stack[stack_depth - 1] : NULL;
    return 0;
}

int fake_current_device(void)
{
    return stack_depth > 0 && stack[stack_depth - 1]->refs > 0 ? stack[stack_depth - 1]->device
                                                               : -1;
}
