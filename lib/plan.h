/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The plan: what hydration copies next.
 *
 * This is the one place that knows the order of hydration, how large a copy is,
 * and what the source's extents say.  It does no I/O and has no lock: its user
 * (hydrate.c) calls it under a lock of its own.
 *
 * The order is that of the disk.  A cursor goes over it once; what is valid
 * already is skipped.  When the cursor is at the end, plan_restart lets it look
 * for what was left out because of an error.
 *
 * All offsets and sizes are bytes.
 */

#ifndef CLONE_PLAN_H
#define CLONE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "extents.h"
#include "region-map.h"

/* The longest range of zeroes handed out at once. */
#define PLAN_MAX_ZERO (UINT64_C (1) << 30)

/* A region too large for one copy, which is cut into pieces.  It becomes valid
 * when all of its pieces are in the destination.
 */
struct plan_cut {
  uint64_t start, end; /* the region */
  unsigned pieces;     /* handed out and not done */
  bool planned;        /* no more pieces will come */
  bool failed;         /* a piece is missing */
};

/* Something to copy.  Invalid when it was planned: whoever writes it looks
 * again.
 */
struct plan_range {
  uint64_t start, end;
  bool zero;            /* the source reads as zeroes here: no need to read */
  struct plan_cut *cut; /* NULL: whole regions */
};

enum plan_result {
  PLAN_RANGE,        /* here is one */
  PLAN_WANT_EXTENTS, /* first plan_add_extents must tell more */
  PLAN_END,          /* the cursor is at the end of the disk */
};

struct plan {
  const struct region_map *map;
  bool use_extents;     /* the source knows its extents */
  uint64_t cursor;
  struct extents known; /* what the source said, contiguous */
  struct plan_cut *cut; /* the region being cut at the cursor */
  unsigned open_cuts;   /* regions in pieces, planned or under way */
};

extern void plan_init (struct plan *p, const struct region_map *map,
                       bool use_extents);
extern void plan_destroy (struct plan *p);

/* The next range: data of at most batch bytes (but one whole region at least,
 * where it is not cut), or zeroes of any length.
 */
extern enum plan_result plan_next (struct plan *p, uint64_t batch,
                                   struct plan_range *range);

/* Begin again at the start of the disk. */
extern void plan_restart (struct plan *p);

/* A range with a cut has ended, well or not.  True for the last of a region
 * all of whose pieces are in the destination: the caller then makes the region
 * valid and calls plan_cut_done.
 */
extern bool plan_piece_done (struct plan *p, struct plan_cut *cut, bool ok);
extern void plan_cut_done (struct plan *p, struct plan_cut *cut);

/* Which range of the source should be asked for its extents now?  False where
 * enough is known.
 */
extern bool plan_wants_extents (struct plan *p, uint64_t *offset,
                                uint64_t *count);

/* What the source said about the range that plan_wants_extents named; it may
 * cover less of it.  -1 with errno ENOMEM.
 */
extern int plan_add_extents (struct plan *p, const struct extents *list);

#endif /* CLONE_PLAN_H */
