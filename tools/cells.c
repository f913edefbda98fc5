/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <string.h>

#include "base/rounding.h"
#include "cells.h"

const char *const cell_state_names[CELL_STATES] = {
  [CELL_DURABLE] = "durable",
  [CELL_DIRTY] = "dirty",
  [CELL_INVALID] = "invalid",
  [CELL_IN_FLIGHT] = "in flight",
  [CELL_BAD] = "bad",
  [CELL_UNKNOWN] = "unknown",
};

/* ---- from GET /map ---- */

static int
read_cell (struct cell *cell, const json_t *json)
{
  json_int_t offset, length, durable, dirty, invalid, in_flight, bad;

  if (json_unpack ((json_t *)json, "{s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
                   "offset", &offset, "length", &length, "durable", &durable,
                   "dirty", &dirty, "invalid", &invalid,
                   "in_flight", &in_flight, "bad", &bad) == -1)
    return -1;
  if (offset < 0 || length <= 0 || durable < 0 || dirty < 0 || in_flight < 0 ||
      bad < 0 || invalid < 0 || durable > length || dirty > length - durable ||
      invalid != length - durable - dirty)
    return -1;
  /* The two are counted at different moments than the rest. */
  bad = MIN (bad, invalid);
  in_flight = MIN (in_flight, invalid - bad);
  *cell = (struct cell){
    .offset = (uint64_t)offset,
    .length = (uint64_t)length,
    .in = {
      [CELL_DURABLE] = (uint64_t)durable,
      [CELL_DIRTY] = (uint64_t)dirty,
      [CELL_INVALID] = (uint64_t)(invalid - bad - in_flight),
      [CELL_IN_FLIGHT] = (uint64_t)in_flight,
      [CELL_BAD] = (uint64_t)bad,
    },
  };
  return 0;
}

int
cells_read (struct cells *cells, const json_t *json)
{
  const json_t *array = json_object_get (json, "cells");
  const json_int_t size = json_integer_value (json_object_get (json, "size"));

  cells->size = (uint64_t)size;
  cells->n = json_array_size (array);
  if (size <= 0 || cells->n == 0 || cells->n > CELLS_MAX)
    return -1;
  for (size_t i = 0; i < cells->n; ++i)
    if (read_cell (&cells->cell[i], json_array_get (array, i)) == -1)
      return -1;
  return 0;
}

/* ---- what they show ---- */

struct cell
cells_sum (const struct cells *cells)
{
  struct cell sum = { 0 };

  for (size_t i = 0; i < cells->n; ++i) {
    sum.length += cells->cell[i].length;
    for (int state = 0; state < CELL_STATES; ++state)
      sum.in[state] += cells->cell[i].in[state];
  }
  return sum;
}

void
line_add_cell (struct line *l, const struct cell *cell)
{
  const bool utf8 = l->screen->utf8;
  const uint64_t durable = cell->in[CELL_DURABLE];
  const uint64_t valid = durable + cell->in[CELL_DIRTY];

  if (cell->in[CELL_BAD])
    line_add (l, BAD, "!");
  else if (cell->in[CELL_UNKNOWN])
    line_add (l, BAD, "?");
  else if (durable == cell->length)
    line_add (l, GOOD, "%s", utf8 ? "\u2588" : "#");
  else if (valid == cell->length)
    line_add (l, WARNING, "%s", utf8 ? "\u2593" : "=");
  else if (valid || cell->in[CELL_IN_FLIGHT])
    line_add (l, PLAIN, "%s", utf8 ? "\u2591" : "-");
  else
    line_add (l, FAINT, "%s", utf8 ? "\u00b7" : ".");
}
