/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <string.h>

#include "base/rounding.h"
#include "cells.h"
#include "nbdclone.h"
#include "store.h"

struct walk {
  const struct store *store;
  struct cells *cells;
  uint64_t regions; /* in each cell but the last */
};

/* Add the first n regions of a word to their cells. */
static void
add_word (struct walk *w, uint64_t first, unsigned n, uint64_t valid,
          uint64_t unknown)
{
  for (unsigned b = 0; b < n; ++b) {
    const uint64_t region = first + b;
    const uint64_t start = region * w->store->sb->region_size;
    const uint64_t length = store_end_byte (w->store, region) - start;
    struct cell *cell = &w->cells->cell[region / w->regions];

    if (cell->length == 0)
      cell->offset = start;
    cell->length += length;
    cell->in[valid >> b & 1 ? CELL_DURABLE
             : unknown >> b & 1 ? CELL_UNKNOWN : CELL_INVALID] += length;
  }
}

static int
add_sector (void *opaque, uint32_t s, const uint64_t valid[WORDS_PER_SECTOR],
            const uint64_t unknown[WORDS_PER_SECTOR])
{
  struct walk *w = opaque;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    const uint64_t first = store_first_region (s) + i * 64;

    if (first >= w->store->regions)
      break;
    add_word (w, first,
              (unsigned)MIN (w->store->regions - first, UINT64_C (64)),
              valid[i], unknown[i]);
  }
  return 0;
}

int
cells_of_metadata (struct cells *cells, const char *name)
{
  struct store store;
  struct walk w = { .store = &store, .cells = cells };
  int status = store_open (&store, name) == EXIT_CLEAN ? EXIT_DONE
    : EXIT_UNREACHABLE;

  memset (cells, 0, sizeof *cells);
  if (status == EXIT_DONE) {
    cells->size = store.sb->size;
    w.regions = div_round_up (store.regions, (uint64_t)CELLS_MAX);
    cells->n = div_round_up (store.regions, w.regions);
    if (store_examine (&store, NULL, NULL) == -1 ||
        store_walk (&store, add_sector, &w) == -1)
      status = EXIT_UNREACHABLE;
  }
  store_close (&store);
  return status;
}
