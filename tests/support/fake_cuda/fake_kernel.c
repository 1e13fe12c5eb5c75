/* SPDX-License-Identifier: Apache-2.0
 *
 * The fake driver's modules and launches: the library's own kernels, by name, on the CPU. See
 * fake_cuda.h.
 *
 * Parameters are taken by value at the launch, as the driver does. What they point to is looked
 * at when the stream gets there: memory that was unmapped or unpinned meanwhile is misuse.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/kernels.h"
#include "support/fake_cuda/fake_internal.h"

#define FATBIN_MAGIC 0xba55ed50u
#define MODULES_MAX  256
#define LAB          "kvt_lab_"

struct fake_module {
    bool is_loaded;
    int device;
};

/* One whose unloading was made to fail stays: the driver, too, drops it with its context only. */
static struct fake_module modules[MODULES_MAX];

/* Dynamic shared memory that any kernel may ask for, and the most that one can be allowed. */
#define SHARED_ANY (48 * 1024)
#define SHARED_MAX (227 * 1024)

enum {
    FUNCTION_COPY,
    FUNCTION_ZERO,
    FUNCTION_CELLS,
    FUNCTIONS
};

/* What a handle of a function points to: the device is that of the module. */
static struct fake_function {
    const char *name;
    size_t parameter_bytes;
    unsigned shared_bytes_max;
} functions[FUNCTIONS] = {
    [FUNCTION_COPY] = {KVI_KERNEL_COPY, sizeof(struct kvi_kernel_blocks), SHARED_ANY},
    [FUNCTION_ZERO] = {KVI_KERNEL_ZERO, sizeof(struct kvi_kernel_blocks), SHARED_ANY},
    [FUNCTION_CELLS] = {KVI_KERNEL_CELLS, sizeof(struct fake_kernel_cells), SHARED_ANY},
};

/* ---- modules ---- */

int fake_module_load(kvi_cu_module *out, const void *image, unsigned option_count, int *options,
                     void **values)
{
    int result = fake_enter("cuModuleLoadDataEx");
    struct fake_module *one;
    uint32_t magic = 0;

    (void)options, (void)values;
    if (result != 0)
        return result;
    if (image != NULL)
        memcpy(&magic, image, sizeof(magic));
    if (magic != FATBIN_MAGIC || option_count != 0 || fake_current_device() < 0) {
        result = fake_misused("cuModuleLoadDataEx", KVI_CU_INVALID_VALUE);
    } else {
        one = modules;
        while (one < modules + MODULES_MAX && one->is_loaded)
            one++;
        if (one == modules + MODULES_MAX)
            abort();
        one->is_loaded = true;
        one->device = fake_current_device();
        fake_cuda_control.modules++;
        *out = one;
    }
    fake_leave();
    return result;
}

int fake_module_unload(kvi_cu_module module)
{
    int result = fake_enter("cuModuleUnload");

    if (result != 0)
        return result;
    if (module == NULL || fake_current_device() != ((struct fake_module *)module)->device) {
        result = fake_misused("cuModuleUnload", KVI_CU_INVALID_CONTEXT);
    } else {
        ((struct fake_module *)module)->is_loaded = false;
        fake_cuda_control.modules--;
    }
    fake_leave();
    return result;
}

/* Its number, FUNCTIONS for none. A laboratory's kernels (support/lab) all copy. */
static size_t function_called(const char *name)
{
    size_t i = 0;

    if (strncmp(name, LAB, strlen(LAB)) == 0)
        return FUNCTION_COPY;
    while (i < FUNCTIONS && strcmp(functions[i].name, name) != 0)
        i++;
    return i;
}

int fake_module_function(kvi_cu_function *out, kvi_cu_module module, const char *name)
{
    int result = fake_enter("cuModuleGetFunction");
    size_t i;

    (void)module;
    if (result != 0)
        return result;
    i = function_called(name);
    if (i == FUNCTIONS)
        result = fake_misused("cuModuleGetFunction", FAKE_NOT_FOUND);
    else
        *out = &functions[i];
    fake_leave();
    return result;
}

/* Only of dynamic shared memory, beyond what every kernel may have. */
int fake_function_attribute(kvi_cu_function function, int attribute, int value)
{
    int result = fake_enter("cuFuncSetAttribute");

    if (result != 0)
        return result;
    if (attribute != KVI_CU_FUNCTION_DYNAMIC_SHARED_BYTES_MAX || value < 0 || value > SHARED_MAX)
        result = fake_misused("cuFuncSetAttribute", KVI_CU_INVALID_VALUE);
    else
        ((struct fake_function *)function)->shared_bytes_max = (unsigned)value;
    fake_leave();
    return result;
}

/* ---- what the kernels do ---- */

static void block_run(const struct kvi_kernel_blocks *list, uint32_t block, bool zero)
{
    uint64_t to = list->to_base + (uint64_t)(uint32_t)list->to[block] * list->stride_bytes;
    uint64_t from = list->from_base + (uint64_t)(uint32_t)list->from[block] * list->stride_bytes;

    if (!fake_range_ok(to, list->bytes, true) ||
        (!zero && !fake_range_ok(from, list->bytes, false))) {
        fake_misused("cuLaunchKernel", KVI_CU_ILLEGAL_ADDRESS);
        return;
    }
    for (uint32_t piece = 0; piece < list->pieces; piece++) {
        uint64_t offset = (uint64_t)piece * list->piece_bytes;
        uint64_t bytes = list->bytes - offset;

        bytes = bytes < list->piece_bytes ? bytes : list->piece_bytes;
        if (zero)
            memset((void *)(uintptr_t)(to + offset), 0, bytes);
        else
            memmove((void *)(uintptr_t)(to + offset), (const void *)(uintptr_t)(from + offset),
                    bytes);
    }
}

static void cells_run(const struct fake_kernel_cells *what)
{
    uint64_t host = what->cells & ~FAKE_HOST_ALIAS;
    const uint32_t *cells = (const uint32_t *)(uintptr_t)host;

    if (what->count == 0)
        return;
    if (!(what->cells & FAKE_HOST_ALIAS) || !fake_registered(host, UINT64_C(8) * what->count)) {
        fake_misused("cuLaunchKernel", KVI_CU_ILLEGAL_ADDRESS);
        return;
    }
    for (uint32_t i = 0; i < what->count; i++) {
        uint64_t to = what->base + UINT64_C(4) * cells[2 * i];

        if (fake_range_ok(to, 4, true))
            memcpy((void *)(uintptr_t)to, &cells[2 * i + 1], 4);
        else
            fake_misused("cuLaunchKernel", KVI_CU_ILLEGAL_ADDRESS);
    }
}

void fake_kernel_run(const void *function, const void *parameters)
{
    const struct kvi_kernel_blocks *list = parameters;

    if (function == &functions[FUNCTION_CELLS])
        cells_run(parameters);
    else
        for (uint32_t block = 0; block < list->count; block++)
            block_run(list, block, function == &functions[FUNCTION_ZERO]);
}

/* ---- launches ---- */

static bool blocks_fit(const struct kvi_kernel_blocks *list)
{
    if (list->count == 0) /* a launch with nothing to do */
        return true;
    return list->count <= KVI_KERNEL_BLOCKS && list->piece_bytes > 0 &&
           list->piece_bytes % 16 == 0 && list->bytes % 16 == 0 && list->bytes > 0 &&
           list->bytes <= list->stride_bytes && (list->to_base | list->from_base) % 16 == 0 &&
           list->pieces == (list->bytes + list->piece_bytes - 1) / list->piece_bytes;
}

static bool parameters_fit(const struct fake_function *function, const void *parameters,
                           uint64_t threads)
{
    const struct fake_kernel_cells *cells = parameters;

    if (function != &functions[FUNCTION_CELLS])
        return blocks_fit(parameters);
    return cells->count <= threads;
}

int fake_launch(kvi_cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                kvi_cu_stream stream, void **parameters, void **extra)
{
    const struct fake_function *one = function;
    int result = fake_enter("cuLaunchKernel");
    unsigned char *taken;

    if (result != 0)
        return result;
    taken = calloc(1, sizeof(struct kvi_kernel_blocks));
    if (taken == NULL)
        abort();
    if (one == &functions[FUNCTION_CELLS]) {
        struct fake_kernel_cells cells;

        memcpy(&cells.base, parameters[0], sizeof(cells.base));
        memcpy(&cells.cells, parameters[1], sizeof(cells.cells));
        memcpy(&cells.count, parameters[2], sizeof(cells.count));
        memcpy(taken, &cells, sizeof(cells));
    } else {
        memcpy(taken, parameters[0], one->parameter_bytes);
    }
    if (fake_current_device() < 0 || extra != NULL || grid_x == 0 || grid_y != 1 || grid_z != 1 ||
        shared_bytes > one->shared_bytes_max || block_x == 0 || block_x > 1024 || block_y != 1 ||
        block_z != 1 || !parameters_fit(one, taken, (uint64_t)grid_x * block_x)) {
        result = fake_misused("cuLaunchKernel", KVI_CU_INVALID_VALUE);
        free(taken);
    } else {
        fake_cuda_control.launches++;
        fake_kernel_add(stream, function, taken);
    }
    fake_leave();
    return result;
}
