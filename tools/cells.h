/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The map of a disk in cells: how much of each is in which state.
 *
 * All numbers are bytes.
 */

#ifndef CLONE_CELLS_H
#define CLONE_CELLS_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "screen.h"

#define CELLS_MAX 1024

enum cell_state {
  CELL_DURABLE,
  CELL_DIRTY,      /* valid, not durable yet */
  CELL_INVALID,    /* neither of the next two */
  CELL_IN_FLIGHT,  /* invalid, being copied */
  CELL_BAD,        /* invalid, and the source cannot read it */
  CELL_UNKNOWN,    /* the metadata is damaged here */
  CELL_STATES
};

extern const char *const cell_state_names[CELL_STATES];

struct cell {
  uint64_t offset, length;
  uint64_t in[CELL_STATES]; /* they add up to length */
};

struct cells {
  uint64_t size;            /* of the disk */
  size_t n;
  struct cell cell[CELLS_MAX];
};

/* Read the answer to GET /map.  -1 if it is none. */
extern int cells_read (struct cells *cells, const json_t *json);

/* Make cells of metadata that no running clone uses.  Returns an exit status;
 * what is wrong is logged.
 */
extern int cells_of_metadata (struct cells *cells, const char *name);

/* All cells together. */
extern struct cell cells_sum (const struct cells *cells);

/* Add a block for a cell to a line. */
extern void line_add_cell (struct line *l, const struct cell *cell);

#endif /* CLONE_CELLS_H */
