/* SPDX-License-Identifier: Apache-2.0
 *
 * The picture of the pool. Pure: records in, text out.
 *
 *   seg  space    owner       state      blocks                             used
 *     0  llama8b  1 engine-a  owned      ■■■■■■■■□●●●●●○◆◆◆◆◇··········:···  61%
 *   1-9  llama8b  directory   handed in  ●●●●●●●●●●●●●●●●●●●●●●●●●●●●●●●●●● 100%
 *
 * Every block of a segment is of one class, so the classes of a cell, of a row and of the pool
 * add up to its blocks:
 *   leased + evictable + used + waiting + free = total
 * The daemon sends up to 64 cells a segment, each count as a 255th of the cell's blocks. Cells
 * are drawn one glyph each, or 2, 4, ... to a glyph when the terminal is too narrow: the class
 * of most of their blocks, hollow when other classes are there too.
 */
#ifndef KVCTL_MAP_H
#define KVCTL_MAP_H

#include "pool.h"
#include "style.h"

enum kvctl_block_class {
    KVCTL_BLOCK_LEASED,    /* entries with a lease or a pin */
    KVCTL_BLOCK_EVICTABLE, /* entries without */
    KVCTL_BLOCK_USED,      /* unpublished, in sequences of the owner */
    KVCTL_BLOCK_WAITING,   /* no use before a process is gone or has unmapped them */
    KVCTL_BLOCK_FREE,
    KVCTL_BLOCK_CLASSES
};

#define KVCTL_MAP_CELLS 64

struct kvctl_blocks {
    uint64_t of[KVCTL_BLOCK_CLASSES];
};

struct kvctl_map_options {
    bool is_all;        /* do not fold runs of rows that look the same */
    unsigned row_limit; /* rows of segments that fit on the screen; 0 = any number */
    const char *title;  /* where this comes from; may be NULL */
};

/* Blocks of a segment by class; counts that contradict each other are clamped. */
struct kvctl_blocks kvctl_map_count(const struct kvi_rec_segment_info *segment);

/* A share of 255 of `total` blocks: exact below 255 blocks; some are never none, and not all are
 * never all. */
uint64_t kvctl_map_from_share(uint8_t share, uint64_t total);

/* Blocks of each cell by class; returns how many cells there are. */
unsigned kvctl_map_cells(const struct kvi_rec_segment_info *segment,
                         struct kvctl_blocks cells[KVCTL_MAP_CELLS]);

/* What is drawn for a cell: its class × 2, + 1 when others are mixed in. Ties go to the class
 * that comes first in the enum. */
unsigned kvctl_map_glyph(const struct kvctl_blocks *cell);

/* Draw it. Fits style->width_columns. */
void kvctl_map_print(FILE *out, const struct kvctl_pool *pool,
                     const struct kvctl_map_options *options, const struct kvctl_style *style);

#endif
