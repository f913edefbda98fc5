/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The plan: what hydration copies next.
 *
 * This is the one place that knows the order of hydration and how large a copy
 * is.  What the source's extents say is known by ahead.h, which it asks.  It
 * does no I/O and has no lock: its user (hydrate.c) calls it under a lock of
 * its own.
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
 * A range whose copy was interrupted, because a server was lost, is returned
 * (plan_return).  Returned ranges come after wishes and before all else; of a
 * region in pieces the whole region comes again.  A returned range stays in its
 * list, and all others go around it, until a copy of it has ended: so nothing
 * of it is forgotten, and nothing is handed out twice.
 *
 * A range at which the source could not be read (plan_bad) is bad: neither the
 * disk's walk nor a wish comes back to it.  plan_retry begins a round, in which
 * each bad range is handed out once more, in smaller pieces: PLAN_BAD_PIECE
 * first, and what is left of that region by region in the rounds that follow.
 * So a bad sector ends up as one bad region, with all around it hydrated.  A
 * round ends early after PLAN_MAX_FAILURES, and the next one goes on from
 * there.
 *
 * Where an error has healed, a round is as fast as the first walk: pieces grow
 * up to the batch with each one that is read well, and are small again after
 * one that fails.  A grown piece that fails is tried in small pieces next,
 * which do not grow.  So a bad sector costs at most two more rounds than
 * without growth, and the reads of these.
 *
 * Bad is, of the list's ranges, what is invalid: a client's write takes regions
 * out of it.
 *
 * All offsets and sizes are bytes.
 */

#ifndef CLONE_PLAN_H
#define CLONE_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "hydration/ahead.h"
#include "hydration/bad-ranges.h"
#include "store/region-map.h"

/* The longest range of zeroes handed out at once. */
#define PLAN_MAX_ZERO (UINT64_C (1) << 30)

/* A region too large for one copy, which is cut into pieces.  It becomes valid
 * when all of its pieces are in the destination.
 */
struct plan_cut {
  uint64_t start, end; /* the region */
  unsigned pieces;     /* handed out and not done */
  struct plan_walk *walk; /* NULL: no more pieces will come */
  bool failed;         /* a piece is missing */
  bool again;          /* the region was returned before */
  bool returned;       /* the region is to come again when this has ended */
  LIST_ENTRY (plan_cut) link;
};

/* Somebody on the way through a part of the disk. */
struct plan_walk {
  uint64_t pos, end;
  bool zero;            /* all of it is known to be zeroes */
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

#define PLAN_BAD_PIECE (UINT64_C (64) << 10)
#define PLAN_MAX_FAILURES 256

/* A round over the bad ranges. */
struct plan_retry {
  bool on;           /* it has more to hand out */
  uint64_t pos;      /* what comes next in this round, or the next one */
  unsigned copies;   /* handed out and not done */
  unsigned failures; /* in this round */
  uint64_t piece;    /* what pieces have grown to; 0: they are small */
};

/* Something to copy.  Invalid when it was planned: whoever writes it looks
 * again.
 */
struct plan_range {
  uint64_t start, end;
  bool zero;              /* the source reads as zeroes here: no need to read */
  struct plan_cut *cut;   /* NULL: whole regions */
  struct plan_wish *wish; /* NULL: none's */
  bool retry;             /* it was bad when it was handed out */
  bool probe;             /* only read it, to see whether it is still bad: a
                           * part of a region that is copied in pieces, which
                           * begins anew when none of it is bad */
  bool grown;             /* a retry larger than the range's own piece */
  bool bad;               /* plan_bad was called */
  bool again;             /* it was returned before */
  bool returned;          /* plan_return was called */
  uint64_t restarts;      /* of the plan, when it was handed out */
};

enum plan_result {
  PLAN_RANGE,        /* here is one */
  PLAN_WANT_EXTENTS, /* first plan_answer must tell more */
  PLAN_END,          /* everything was handed out */
};

struct plan {
  const struct region_map *map;
  bool use_extents;      /* the source knows its extents */
  struct plan_walk disk;
  struct ahead ahead;    /* the source's extents: wherever the disk's walk
                          * goes they are known first */
  unsigned open_cuts;    /* regions in pieces, planned or under way: */
  LIST_HEAD (, plan_cut) cuts;
  struct plan_wish wish[PLAN_MAX_WISHES];
  uint64_t wishes;       /* ever made */
  struct bad_ranges returned; /* and not copied; their notes are plan.c's */
  struct plan_walk again; /* over one of those ranges */
  struct bad_ranges bad; /* a note is the piece in which to try again */
  struct plan_retry retry;
  uint64_t restarts;     /* so often has the disk's walk begun anew, */
  uint64_t set_back;     /* the last of them because the map was set back */
};

/* What is bad, added up.  Neighbours are one range. */
#define PLAN_BAD_SHOWN 32
struct plan_bad_sum {
  uint64_t regions; /* with something bad in them */
  uint64_t bytes;
  unsigned ranges;  /* the first of them, at most PLAN_BAD_SHOWN */
  struct { uint64_t start, end; } range[PLAN_BAD_SHOWN];
};

extern void plan_init (struct plan *p, const struct region_map *map,
                       bool use_extents);
extern void plan_destroy (struct plan *p);

/* The next range: data of at most batch bytes (but one whole region at least,
 * where it is not cut), or zeroes of any length.
 */
extern enum plan_result plan_next (struct plan *p, uint64_t batch,
                                   struct plan_range *range);

/* The range has been copied, or not: this comes last, after plan_piece_done and
 * perhaps plan_bad or plan_return.
 */
extern void plan_range_done (struct plan *p, const struct plan_range *range);

/* Copy these bytes before others: what is invalid of them and not handed out.
 */
extern void plan_want (struct plan *p, uint64_t start, uint64_t end);

/* The source could not be read at this range, which is to be ended as usual,
 * too.  True where it has become bad; false where it was, or where it does not
 * matter any more, because all of it is valid.
 */
extern bool plan_bad (struct plan *p, struct plan_range *range);

/* The range could not be copied because a server was lost: hand it out again,
 * before the walk over the disk goes on.  It is to be ended as usual, too, with
 * plan_piece_done (cut, false) where it has a cut.  A region in pieces comes
 * again when all of its pieces have ended.  A bad range stays bad.
 */
extern void plan_return (struct plan *p, struct plan_range *range);

/* Begin a round over the bad ranges, unless one is under way. */
extern void plan_retry (struct plan *p);

/* Looks at all of the map where all is bad, and at none where nothing is. */
extern void plan_sum_bad (const struct plan *p, struct plan_bad_sum *sum);

/* Begin again at the start of the disk.  Wishes are forgotten, but for what of
 * them was handed out.
 */
extern void plan_restart (struct plan *p);

/* The map has been set back: what was not durable is invalid again.  Regions in
 * pieces that are under way fail, and all walks begin anew.
 */
extern void plan_set_back (struct plan *p);

/* A range with a cut has ended, well or not.  True for the last of a region
 * all of whose pieces are in the destination: the caller then owns the region,
 * makes it valid unless cut->failed says that the map was set back meanwhile,
 * and calls plan_cut_done.
 */
extern bool plan_piece_done (struct plan *p, struct plan_cut *cut, bool ok);
extern void plan_cut_done (struct plan *p, struct plan_cut *cut);

/* Which range of the source should be asked for its extents now?  See ahead.h.
 */
extern struct ahead_question *plan_ask (struct plan *p);
extern int plan_answer (struct plan *p, struct ahead_question *q,
                        const struct extents *list);

/* A question could not be asked because the server was lost: it is asked again
 * later.  After PLAN_MAX_UNANSWERED times its range counts as data: a
 * connection may be lost because of what its server says about extents.  Until
 * the server is back, the user should not call plan_ask.
 */
#define PLAN_MAX_UNANSWERED AHEAD_MAX_UNANSWERED
extern void plan_unanswered (struct plan *p, struct ahead_question *q);

#endif /* CLONE_PLAN_H */
