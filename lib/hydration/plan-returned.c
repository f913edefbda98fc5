/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Returned ranges: a lost server interrupted their copies.  A range stays in
 * the list until a later copy of it is done.
 */

#include <config.h>

#include "hydration/plan-internal.h"

/* The notes of the list.  Where two ranges become one the smaller note stays,
 * which is right for both.
 */
enum { RETURNED_DATA, RETURNED_ZERO, RETURNED_UNDER_WAY };

/* With this number of ranges in the list, wishes wait, so that the list does
 * not grow without bound.
 */
#define RETURNED_MANY (BAD_MAX / 2)

bool
plan_returned_are_many (const struct plan *p)
{
  return p->returned.len >= RETURNED_MANY;
}

void
plan_return_region (struct plan *p, uint64_t start, uint64_t end)
{
  bad_add (&p->returned, start, end, RETURNED_DATA);
}

/* Hand out no more pieces: all of the region is copied again. */
static void
plan_return_cut (struct plan *p, struct plan_cut *cut)
{
  struct plan_walk *walk = cut->walk;

  cut->returned = true;
  if (walk) {
    walk->pos = cut->end;
    plan_end_cut (p, walk, true);
  }
}

/* If the disk's walk has begun anew since, and does not go around the range, it
 * comes to the range by itself.
 */
void
plan_return (struct plan *p, struct plan_range *range)
{
  range->returned = true;
  if (range->cut)
    plan_return_cut (p, range->cut);
  else if (range->was_returned ||
           (range->wish && !plan_is_old (p, range)) ||
           (!range->retry && range->restarts == p->restarts))
    bad_add (&p->returned, range->start, range->end,
             range->zero ? RETURNED_ZERO : RETURNED_DATA);
}

void
plan_returned_range_done (struct plan *p, const struct plan_range *range)
{
  if (range->cut || range->returned)
    return;
  if (plan_is_old (p, range))
    bad_add (&p->returned, range->start, range->end, RETURNED_DATA);
  else
    bad_remove (&p->returned, range->start, range->end);
}

/* Let the walk over returned ranges begin with another one.  False: all are
 * under way.
 */
static bool
plan_begin_returned (struct plan *p)
{
  for (unsigned i = 0; i < p->returned.len; ++i) {
    const struct bad_range *b = &p->returned.range[i];

    if (b->note != RETURNED_UNDER_WAY) {
      p->returned_walk = (struct plan_walk){
        .pos = b->start, .end = b->end, .zero = b->note == RETURNED_ZERO,
      };
      return true;
    }
  }
  return false;
}

/* The walk began at start, and has found a range, or none.  The regions that it
 * skipped leave the list: they are valid, or in the list of bad ranges.  The
 * range is under way, and with it all of a region in pieces.
 */
static void
plan_note_returned (struct plan *p, uint64_t start, enum plan_result r,
                    const struct plan_range *range)
{
  struct plan_walk *walk = &p->returned_walk;
  uint64_t end;

  if (r != PLAN_RANGE) {
    bad_remove (&p->returned, start, walk->pos);
    return;
  }
  bad_remove (&p->returned, start, range->start);
  end = range->end;
  if (range->cut) {
    range->cut->was_returned = true;
    end = range->cut->end;
    if (walk->cut)
      walk->end = end;
  }
  bad_add (&p->returned, range->start, end, RETURNED_UNDER_WAY);
}

enum plan_result
plan_next_returned (struct plan *p, uint64_t batch, struct plan_range *range)
{
  struct plan_walk *walk = &p->returned_walk;
  enum plan_result r;

  while (walk->cut || plan_begin_returned (p)) {
    const struct plan_cut *before = walk->cut;
    const uint64_t start = walk->pos;

    r = plan_next_of_walk (p, walk, batch, range);
    if (r == PLAN_RANGE)
      range->was_returned = true;
    if (before == NULL)
      plan_note_returned (p, start, r, range);
    if (r != PLAN_END)
      return r;
  }
  return PLAN_END;
}
