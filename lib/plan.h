/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The plan: what hydration copies next.
 *
 * This is the one place that knows the order of hydration, how large a copy is,
 * and what the source's extents say.  It does no I/O and has no lock: its user
 * (hydrate.c) calls it under a lock of its own.
 *
 * The order is that of the disk, but for wishes.  A walk goes over the disk
 * once; what is valid already is skipped.  When it is at the end, plan_restart
 * lets it look for what was left out because of an error.
 *
 * A wish is a stretch of the disk, of whole regions, that somebody wants to
 * come first (plan_want).  Each has a walk of its own, and the latest is served
 * first.  A wish is ahead of the disk's walk and apart from all others, and the
 * disk's walk goes around it, so nothing is handed out twice.  It ends with its
 * last copy.
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
  uint64_t incarnation; /* 0 at first: for the plan's user */
};

/* Somebody on the way through a part of the disk. */
struct plan_walk {
  uint64_t pos, end;
  struct plan_cut *cut; /* the region being cut at pos */
};

struct plan_wish {
  bool open;             /* false: free for another */
  uint64_t start;        /* [start, walk.end) is this wish's alone */
  struct plan_walk walk;
  unsigned copies;       /* handed out and not done */
  uint64_t number;       /* later ones have larger numbers */
};

/* More are forgotten, the oldest first. */
#define PLAN_MAX_WISHES 16

/* Something to copy.  Invalid when it was planned: whoever writes it looks
 * again.
 */
struct plan_range {
  uint64_t start, end;
  bool zero;              /* the source reads as zeroes here: no need to read */
  struct plan_cut *cut;   /* NULL: whole regions */
  struct plan_wish *wish; /* NULL: none's */
};

enum plan_result {
  PLAN_RANGE,        /* here is one */
  PLAN_WANT_EXTENTS, /* first plan_add_extents must tell more */
  PLAN_END,          /* everything was handed out */
};

struct plan {
  const struct region_map *map;
  bool use_extents;      /* the source knows its extents */
  struct plan_walk disk;
  struct extents known;  /* what the source said, contiguous; wherever the
                          * disk's walk goes it is known first */
  unsigned open_cuts;    /* regions in pieces, planned or under way */
  struct plan_wish wish[PLAN_MAX_WISHES];
  uint64_t wishes;       /* ever made */
};

extern void plan_init (struct plan *p, const struct region_map *map,
                       bool use_extents);
extern void plan_destroy (struct plan *p);

/* The next range: data of at most batch bytes (but one whole region at least,
 * where it is not cut), or zeroes of any length.
 */
extern enum plan_result plan_next (struct plan *p, uint64_t batch,
                                   struct plan_range *range);

/* The range has been copied, or not: this comes last, after plan_piece_done. */
extern void plan_range_done (struct plan *p, const struct plan_range *range);

/* Copy these bytes before others: what is invalid of them and not handed out.
 */
extern void plan_want (struct plan *p, uint64_t start, uint64_t end);

/* Begin again at the start of the disk.  Wishes are forgotten, but for what of
 * them was handed out.
 */
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
