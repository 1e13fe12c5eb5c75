/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of a GPU. Both end the program with 77 where there is none, with 2 in a build without
 * CUDA. They return whether a row missed its limit.
 */
#ifndef KVB_ATTENTION_CUDA_ROWS_H
#define KVB_ATTENTION_CUDA_ROWS_H

#include "../shape.h"

int kvb_cuda_rows(const struct kvb_shape *shape);

/* One shape, beside a plain read of the same bytes, without a limit. */
int kvb_cuda_any(const struct kvb_shape *shape);

#endif
