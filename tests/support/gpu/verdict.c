/* SPDX-License-Identifier: Apache-2.0
 *
 * What checks found, and where tokens lie.
 */
#include <stdio.h>
#include <string.h>

#include "support/gpu/gpu.h"
#include "support/gpu/kernels.h"
#include "support/spawn.h"

#define DEVICE_LIMIT 64

struct kvt_gpu_verdict *kvt_gpu_verdict_new(void)
{
    struct kvt_gpu_verdict *verdict = kvt_gpu_alloc(sizeof(*verdict));

    kvt_gpu_verdict_clear(verdict, NULL);
    kvt_gpu_sync(NULL);
    return verdict;
}

void kvt_gpu_verdict_clear(struct kvt_gpu_verdict *verdict, void *stream)
{
    kvt_gpu_set(verdict, 0, sizeof(*verdict), stream);
}

struct kvt_gpu_verdict kvt_gpu_verdict_read(const struct kvt_gpu_verdict *verdict, void *stream)
{
    struct kvt_gpu_verdict out;

    kvt_gpu_copy(&out, verdict, sizeof(out), stream);
    kvt_gpu_sync(stream);
    return out;
}

/* The words that a check of `part` looks at. */
static uint64_t words_of(const struct kvt_gpu_part *part)
{
    const struct kvt_gpu_shape *shape = part->shape;
    uint64_t tokens = part->end_token ? part->end_token - part->first_token : shape->block_tokens;

    return part->count * (shape->block_bytes / 8) * tokens / shape->block_tokens;
}

uint64_t kvt_gpu_wrong(const struct kvt_gpu_part *part, void *stream)
{
    static struct kvt_gpu_verdict *verdicts[DEVICE_LIMIT]; /* kernels add to their own device's */
    struct kvt_gpu_verdict **verdict = &verdicts[kvt_gpu_current() % DEVICE_LIMIT], out;

    if (!*verdict)
        *verdict = kvt_gpu_verdict_new();
    kvt_gpu_verdict_clear(*verdict, stream);
    kvt_gpu_check(part, *verdict, stream);
    out = kvt_gpu_verdict_read(*verdict, stream);
    if (part->step_words <= 1 && out.checked != words_of(part))
        kvt_die("%llu words were looked at, not %llu", out.checked,
                (unsigned long long)words_of(part));
    if (out.wrong)
        printf("  %llu of %llu words are wrong; at %#llx: %#llx, not %#llx\n", out.wrong,
               out.checked, out.where, out.found, out.expected);
    return out.wrong;
}

struct kvt_gpu_shape kvt_gpu_shape_of(const struct kvmem_space *space,
                                      const struct kvmem_geometry *geometry,
                                      enum kvmem_layout layout)
{
    struct kvt_gpu_shape shape = {.base = kvmem_space_base(space, 0, 0),
                                  .write_base = kvmem_space_write_base(space, 0, 0),
                                  .stride_bytes = geometry->index_stride_bytes,
                                  .block_bytes = geometry->block_bytes,
                                  .block_tokens = geometry->block_tokens};

    shape.run_bytes = (uint32_t)(layout == KVMEM_LAYOUT_TOKEN_MAJOR ? geometry->block_bytes
                                                                    : geometry->v_offset_bytes);
    shape.token_bytes = shape.run_bytes / geometry->block_tokens;
    return shape;
}
