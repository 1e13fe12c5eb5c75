/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/seq.h. The forms for one sequence are batches of one.
 */
#include "client/seq.h"

#include "api/check.h"

static int check_batch(const struct kvmem_space *space, uint32_t n, const void *seqs)
{
    return space ? kvi_api_check_array(seqs, n, "seqs") : kvi_api_is_null("space");
}

int kvmem_seqs_create(struct kvmem_space *space, uint32_t n, struct kvmem_seq *seqs)
{
    int code = check_batch(space, n, seqs);

    return code ? code : kvi_seqs_create(space, n, seqs);
}

int kvmem_seq_create(struct kvmem_space *space, struct kvmem_seq *seq)
{
    return kvmem_seqs_create(space, 1, seq);
}

int kvmem_seqs_free(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    struct kvmem_fence fence)
{
    int code = check_batch(space, n, seqs);

    if (!code)
        code = kvi_api_check_fence(space, &fence);
    return code ? code : kvi_seqs_free(space, n, seqs, &fence);
}

int kvmem_seq_free(struct kvmem_space *space, struct kvmem_seq seq, struct kvmem_fence fence)
{
    return kvmem_seqs_free(space, 1, &seq, fence);
}

int kvmem_seqs_fork(struct kvmem_space *space, struct kvmem_seq parent, uint32_t n,
                    struct kvmem_seq *children)
{
    int code = check_batch(space, n, children);

    return code ? code : kvi_seqs_fork(space, parent, n, children);
}

int kvmem_seq_fork(struct kvmem_space *space, struct kvmem_seq parent, struct kvmem_seq *child)
{
    return kvmem_seqs_fork(space, parent, 1, child);
}

int kvmem_seq_reserve(struct kvmem_space *space, struct kvmem_seq seq, uint32_t tokens)
{
    return space ? kvi_seq_reserve(space, seq, tokens) : kvi_api_is_null("space");
}

int kvmem_seqs_append(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                      const uint32_t *counts, struct kvmem_fence fence)
{
    int code = check_batch(space, n, seqs);

    if (!code)
        code = kvi_api_check_fence(space, &fence);
    return code ? code : kvi_seqs_append(space, n, seqs, counts, &fence);
}

int kvmem_seq_append(struct kvmem_space *space, struct kvmem_seq seq, uint32_t tokens,
                     struct kvmem_fence fence)
{
    return kvmem_seqs_append(space, 1, &seq, &tokens, fence);
}

int kvmem_seqs_commit(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                      const uint32_t *counts)
{
    int code = check_batch(space, n, seqs);

    return code ? code : kvi_seqs_commit(space, n, seqs, counts);
}

int kvmem_seq_commit(struct kvmem_space *space, struct kvmem_seq seq, uint32_t tokens)
{
    return kvmem_seqs_commit(space, 1, &seq, &tokens);
}

int kvmem_seq_truncate(struct kvmem_space *space, struct kvmem_seq seq, uint64_t tokens,
                       struct kvmem_fence fence)
{
    int code = space ? kvi_api_check_fence(space, &fence) : kvi_api_is_null("space");

    return code ? code : kvi_seq_truncate(space, seq, tokens, &fence);
}

int kvmem_seq_info(const struct kvmem_space *space, struct kvmem_seq seq,
                   struct kvmem_seq_info *out)
{
    int code = kvi_api_check_out(space, out, sizeof(*out));

    return code ? code : kvi_seq_info(space, seq, out);
}
