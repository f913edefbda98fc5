/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The plan: what hydration copies next.
 *
 * The plan decides the order of hydration, and cuts the disk into ranges that
 * are not larger than the caller's batch.  It knows the source's extents from
 * ahead.h.  It does no I/O and has no lock: the caller's lock protects it.
 * plan_next hands out a range; the caller copies it and says how that ended.
 *
 * The order (plan_next_of_all in plan.c):
 *
 *   1  wishes, the latest first
 *   2  returned ranges
 *   3  the round over bad ranges, if there is one
 *   4  the disk, from its start to its end
 *
 * THE DISK.  A walk goes over the disk once and skips regions that are valid.
 * plan_restart begins it anew, for regions that are still invalid after an
 * error, or invalid again because the map was set back.
 *
 * WISHES.  A wish is a stretch of the disk, of whole regions, that is to come
 * first (plan_want).  Each wish has a walk of its own.  A wish lies ahead of
 * the disk's walk and does not overlap another wish, and the disk's walk goes
 * around it.  So nothing is handed out twice.  A wish ends when its last copy
 * is done.
 *
 * RETURNED RANGES.  A range whose copy was interrupted because a server was
 * lost is returned (plan_return).  If the range was a piece of a region, the
 * whole region is returned.  The range stays in a list until a later copy of it
 * is done, and all walks but the one over returned ranges go around it.  So
 * nothing is forgotten, and nothing is handed out twice.  While the list is
 * long, returned ranges come before wishes.
 *
 * BAD RANGES.  A range that the source cannot read is bad (plan_bad).  All
 * walks go around it.  plan_retry begins a round, which hands out each bad
 * range once more, in smaller pieces: in pieces of PLAN_BAD_PIECE in the first
 * round, and region by region later.  (If a region is larger than a batch, the
 * smallest piece is PLAN_PIECE_ALIGN.)  So a bad sector ends up as one bad
 * region, and everything around it is hydrated.  A round ends early after
 * PLAN_MAX_FAILURES, and the next round continues there.  A client's write
 * makes regions valid, and valid regions are not bad any more.
 *
 * So that a round over a repaired source is fast, pieces grow: after each piece
 * that was read the next may have twice its size, up to the batch.  After a
 * failure they are small again.  If a grown piece fails, its range is tried in
 * the next round in small pieces that do not grow.  So because of the growth,
 * at most two more rounds pass until a bad sector is one bad region.
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

/* The longest range of zeroes that is handed out at once. */
#define PLAN_MAX_ZERO (UINT64_C (1) << 30)

/* A region too large for one copy, which is cut into pieces.  It becomes valid
 * when all of its pieces are in the destination.
 */
struct plan_cut {
  uint64_t start, end; /* the region */
  unsigned pieces;     /* handed out and not done */
  struct plan_walk *walk; /* hands out more pieces; NULL: there are no more */
  bool failed;         /* a piece is missing */
  bool was_returned;   /* this cut copies a returned region */
  bool returned;       /* when this cut is done, the region is returned */
  LIST_ENTRY (plan_cut) link;
};

/* A walk over a part of the disk.  [pos, end) is still to be handed out. */
struct plan_walk {
  uint64_t pos, end;
  bool zero;            /* all of it is known to be zeroes */
  struct plan_cut *cut; /* the region that is being cut at pos, or NULL */
};

struct plan_wish {
  bool open;             /* false: this place is free */
  uint64_t start;        /* only this wish hands out [start, walk.end) */
  struct plan_walk walk;
  unsigned copies;       /* handed out and not done */
  uint64_t number;       /* later ones have larger numbers */
};

/* One more wish replaces the oldest wish that has handed out nothing.  If there
 * is no such wish, the new one is ignored.
 */
#define PLAN_MAX_WISHES 16

#define PLAN_BAD_PIECE (UINT64_C (64) << 10)
#define PLAN_MAX_FAILURES 256

/* A round over the bad ranges. */
struct plan_retry {
  bool on;           /* there is more to hand out */
  uint64_t pos;      /* where this round, or the next one, continues */
  unsigned copies;   /* handed out and not done */
  unsigned failures; /* in this round */
  uint64_t piece;    /* size to which pieces have grown; 0: they have not */
};

/* A range to copy.  It was invalid when it was planned: look again before you
 * write it.
 */
struct plan_range {
  uint64_t start, end;
  bool zero;              /* the source reads as zeroes, so is not read */
  struct plan_cut *cut;   /* NULL: whole regions */
  struct plan_wish *wish; /* NULL: it belongs to no wish */
  bool retry;             /* it is bad, and tried again */
  bool probe;             /* do not copy it, only read it, to see whether it is
                           * still bad.  It is part of a region in pieces.  When
                           * no part is bad, all pieces are copied anew */
  bool grown;             /* it is larger than the piece size in the note of
                           * its bad range, because pieces have grown */
  bool bad;               /* plan_bad was called */
  bool was_returned;      /* it was returned earlier, and is copied again */
  bool returned;          /* plan_return was called */
  uint64_t restarts;      /* the plan's, when the range was handed out */
};

enum plan_result {
  PLAN_RANGE,        /* copy this range */
  PLAN_WANT_EXTENTS, /* ask again after plan_answer */
  PLAN_END,          /* everything was handed out */
};

struct plan {
  const struct region_map *map;
  bool use_extents;      /* the source knows its extents */
  uint64_t max_zero;     /* the longest range of zeroes, at most PLAN_MAX_ZERO.
                          * The caller may change it between calls */
  struct plan_walk disk;
  struct ahead ahead;    /* the source's extents, ahead of the disk's walk */
  unsigned open_cuts;    /* regions in pieces, planned or under way */
  LIST_HEAD (, plan_cut) cuts;
  struct plan_wish wish[PLAN_MAX_WISHES];
  uint64_t wishes;       /* ever made */
  struct bad_ranges returned; /* the returned ranges (plan-returned.c) */
  struct plan_walk returned_walk; /* the walk over one of them */
  struct bad_ranges bad; /* a note has the size of pieces, and a flag
                          * (plan-bad.c) */
  struct plan_retry retry;
  uint64_t restarts;     /* how often the disk's walk has begun anew */
  uint64_t set_back;     /* value of restarts when the map was last set back */
};

/* The sum of all bad ranges.  Adjacent ranges count as one. */
#define PLAN_BAD_SHOWN 32
struct plan_bad_sum {
  uint64_t regions; /* that contain bad bytes */
  uint64_t bytes;
  unsigned ranges;  /* entries of range[], which has the first bad ranges */
  struct { uint64_t start, end; } range[PLAN_BAD_SHOWN];
};

extern void plan_init (struct plan *p, const struct region_map *map,
                       bool use_extents);
extern void plan_destroy (struct plan *p);

/* The next range: data of at most batch bytes, or zeroes of at most max_zero.
 * Larger regions are cut into pieces.  A piece may have PLAN_PIECE_ALIGN bytes,
 * even if the batch has less.
 */
extern enum plan_result plan_next (struct plan *p, uint64_t batch,
                                   struct plan_range *range);

/* The copy of the range has ended, well or not.  This is the last call for a
 * range, after plan_bad or plan_return, if any, and plan_piece_done.
 */
extern void plan_range_done (struct plan *p, const struct plan_range *range);

/* Make a wish: copy the invalid regions of these bytes before others.  Left out
 * is what the disk's walk has passed, what is in another wish, and what lies
 * behind such a wish.
 */
extern void plan_want (struct plan *p, uint64_t start, uint64_t end);

/* The source cannot read this range.  The caller also ends the range as usual.
 * True: the range has become bad.  False: it was bad before, or it does not
 * matter because all of it is valid now.
 */
extern bool plan_bad (struct plan *p, struct plan_range *range);

/* The range was not copied because a server was lost: hand it out again, before
 * the walk over the disk continues.  The caller also ends the range as usual,
 * with plan_piece_done (cut, false) if it has a cut.  A region in pieces is
 * handed out again when all of its pieces are done.  A bad range stays bad.
 */
extern void plan_return (struct plan *p, struct plan_range *range);

/* Begin a round over the bad ranges, unless one is under way. */
extern void plan_retry (struct plan *p);

/* Add up the bad ranges.  This takes time in proportion to their size, whatever
 * the size of the disk.
 */
extern void plan_sum_bad (const struct plan *p, struct plan_bad_sum *sum);

/* Begin again at the start of the disk.  Wishes hand out nothing more; their
 * copies that are under way go on.
 */
extern void plan_restart (struct plan *p);

/* The map has been set back: regions that were not durable are invalid again.
 * Regions in pieces that are under way fail, wishes are dropped, and the disk's
 * walk begins anew.
 */
extern void plan_set_back (struct plan *p);

/* A piece is done; ok: it is in the destination.  True: all pieces of the
 * region are in the destination.  The caller then takes ownership of the
 * region, makes it valid, and calls plan_cut_done.  If the map may be set back
 * in between, the caller must look at cut->failed, and leave the region invalid
 * if it is true.  A caller that stays inside the gate need not look.
 */
extern bool plan_piece_done (struct plan *p, struct plan_cut *cut, bool ok);
extern void plan_cut_done (struct plan *p, struct plan_cut *cut);

/* The next question about the source's extents, and its answer.  See ahead.h.
 */
extern struct ahead_question *plan_ask (struct plan *p);
extern int plan_answer (struct plan *p, struct ahead_question *q,
                        const struct extents *list);

/* Instead of plan_answer: the server was lost.  The question is asked again
 * later; until the server is back, the caller should not call plan_ask.  When a
 * question was not answered AHEAD_MAX_UNANSWERED times in a row, its range
 * counts as data, because the answer may be the reason why the connection is
 * lost.
 */
extern void plan_unanswered (struct plan *p, struct ahead_question *q);

#endif /* CLONE_PLAN_H */
