/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the files of the plan share.  plan.h describes the plan.
 *
 *   plan.c           the order, and beginning anew
 *   plan-walk.c      walks over a part of the disk
 *   plan-wishes.c    stretches of the disk that clients need first
 *   plan-returned.c  ranges that a lost server interrupted
 *   plan-bad.c       unreadable ranges, and rounds over them
 *   plan-cuts.c      regions that are copied in pieces
 */

#ifndef CLONE_PLAN_INTERNAL_H
#define CLONE_PLAN_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "hydration/plan.h"

/* Pieces of a large region are multiples of this, which is not less than the
 * minimum block size of any server.
 */
#define PLAN_PIECE_ALIGN (UINT64_C (64) << 10)

/* Was the map set back since the range was handed out?  Then the range may be
 * invalid although it was copied, and the disk's walk, which has begun anew,
 * may have gone around it.
 */
static inline bool
plan_is_old (const struct plan *p, const struct plan_range *range)
{
  return range->restarts < p->set_back;
}

/* ---- plan-walk.c ---- */

/* The next range of this walk; see plan_next in plan.h.  PLAN_END: the walk is
 * at its end.
 */
extern enum plan_result plan_next_of_walk (struct plan *p,
                                           struct plan_walk *walk,
                                           uint64_t batch,
                                           struct plan_range *range);

/* Shrink [*start, *end) to its first part without a region that the list
 * touches.  If there is none, *start becomes *end.
 */
extern void plan_leave_out_list (const struct plan *p,
                                 const struct bad_ranges *list,
                                 uint64_t *start, uint64_t *end);

/* ---- plan-wishes.c ---- */

/* The next range of the latest wish that has one. */
extern enum plan_result plan_next_wish (struct plan *p, uint64_t batch,
                                        struct plan_range *range);

/* The same as plan_leave_out_list, for open wishes. */
extern void plan_leave_out_wishes (const struct plan *p, uint64_t *start,
                                   uint64_t *end);

/* A range of this wish is done. */
extern void plan_wish_range_done (struct plan_wish *wish);

/* Leave to the disk's walk all that wishes have not handed out. */
extern void plan_give_up_wishes (struct plan *p);

/* ---- plan-returned.c ---- */

/* The next of the returned ranges.  PLAN_END: all are under way. */
extern enum plan_result plan_next_returned (struct plan *p, uint64_t batch,
                                            struct plan_range *range);

/* Does the list have RETURNED_MANY ranges, so that wishes wait? */
extern bool plan_returned_are_many (const struct plan *p);

/* A region in pieces is to be copied again. */
extern void plan_return_region (struct plan *p, uint64_t start, uint64_t end);

/* A returned range is done. */
extern void plan_returned_range_done (struct plan *p,
                                      const struct plan_range *range);

/* ---- plan-bad.c ---- */

/* The next range of the round.  PLAN_END: there is no round, or it is over. */
extern enum plan_result plan_next_bad (struct plan *p, uint64_t batch,
                                       struct plan_range *range);

/* A bad range that was tried again is done. */
extern void plan_retried_range_done (struct plan *p,
                                     const struct plan_range *range);

/* ---- plan-cuts.c ---- */

/* Cut the region at the walk's position.  walk->cut is NULL without memory. */
extern void plan_begin_cut (struct plan *p, struct plan_walk *walk);

/* The walk hands out no more pieces of its region; failed: some are missing. */
extern void plan_end_cut (struct plan *p, struct plan_walk *walk, bool failed);

#endif /* CLONE_PLAN_INTERNAL_H */
