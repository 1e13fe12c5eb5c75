/* SPDX-License-Identifier: Apache-2.0
 *
 * Merging partial results on the CPU, one row and head at a time, summed in double.
 */
#include <math.h>

#include "../internal.h"
#include "element.h"

#define PART_LIMIT 256u /* as kva_check_merge has them */
#define DIM_LIMIT  1024u

/* Weights of the parts of one row and head, Σ = 1 where anything counts; returns their lse. A NaN
 * among part_lse makes all weights NaN. */
static double weigh(const float *lse, uint64_t part_stride, uint32_t part_count, double *weights)
{
    double most = -INFINITY, sum = 0;

    for (uint32_t p = 0; p < part_count; p++)
        most = fmax(most, (double)lse[p * part_stride]);
    for (uint32_t p = 0; p < part_count; p++) {
        double one = lse[p * part_stride];

        weights[p] = one == -INFINITY ? 0 : exp(one - most);
        sum += weights[p];
    }
    for (uint32_t p = 0; p < part_count && sum != 0; p++)
        weights[p] /= sum;
    return most + log(sum);
}

/* at: row × head_count + head. */
static void merge_head(const struct kva_merge_job *job, uint64_t at)
{
    const struct kva_merge *what = job->what;
    uint64_t vectors = (uint64_t)what->row_count * what->head_count;
    uint64_t to =
        at / what->head_count * job->out_row_stride + at % what->head_count * job->out_head_stride;
    double weights[PART_LIMIT], sums[DIM_LIMIT] = {0};
    float vector[DIM_LIMIT];
    double lse = weigh(job->part_lse + at, vectors, what->part_count, weights);

    for (uint32_t p = 0; p < what->part_count; p++) {
        if (weights[p] == 0)
            continue; /* what it holds may be NaN */
        kva_load(what->part_dtype, job->parts, (p * vectors + at) * what->head_dim, what->head_dim,
                 vector, 1);
        for (uint32_t d = 0; d < what->head_dim; d++)
            sums[d] += weights[p] * vector[d];
    }
    for (uint32_t d = 0; d < what->head_dim; d++)
        vector[d] = (float)sums[d];
    kva_store(what->dtype, job->out, to, what->head_dim, vector);
    if (job->lse)
        job->lse[at] = (float)lse;
}

int kva_merge_cpu(const struct kva_merge_job *job)
{
    uint64_t first = 0, end = job->what->row_count;

    if (job->row_bounds) {
        first = (uint64_t)job->row_bounds[0];
        end = (uint64_t)job->row_bounds[job->bound_count];
    }
    for (uint64_t at = first * job->what->head_count; at < end * job->what->head_count; at++)
        merge_head(job, at);
    return 0;
}
