/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The order of hydration, and beginning anew.  plan-internal.h lists the other
 * files of the plan.
 */

#include <config.h>

#include <stdlib.h>

#include "hydration/plan-internal.h"

void
plan_init (struct plan *p, const struct region_map *map, bool use_extents)
{
  *p = (struct plan){
    .map = map, .use_extents = use_extents, .disk.end = region_map_size (map),
    .max_zero = PLAN_MAX_ZERO,
  };
  ahead_init (&p->ahead, p->disk.end);
}

void
plan_destroy (struct plan *p)
{
  struct plan_cut *cut;

  while ((cut = LIST_FIRST (&p->cuts)) != NULL) {
    LIST_REMOVE (cut, link);
    free (cut);
  }
  ahead_destroy (&p->ahead);
}

/* ---- the order ---- */

/* Each source of ranges is asked in turn, and PLAN_END means that it has none
 * now.  So the order of these lines is the order of hydration.
 */
static enum plan_result
plan_next_of_all (struct plan *p, uint64_t batch, struct plan_range *range)
{
  enum plan_result r;

  if (plan_returned_are_many (p) &&
      (r = plan_next_returned (p, batch, range)) != PLAN_END)
    return r;
  if ((r = plan_next_wish (p, batch, range)) != PLAN_END ||
      (r = plan_next_returned (p, batch, range)) != PLAN_END ||
      (r = plan_next_bad (p, batch, range)) != PLAN_END)
    return r;
  return plan_next_of_walk (p, &p->disk, batch, range);
}

enum plan_result
plan_next (struct plan *p, uint64_t batch, struct plan_range *range)
{
  const enum plan_result r = plan_next_of_all (p, batch, range);

  range->restarts = p->restarts;
  return r;
}

void
plan_range_done (struct plan *p, const struct plan_range *range)
{
  if (range->retry)
    plan_retried_range_done (p, range);
  if (range->was_returned)
    plan_returned_range_done (p, range);
  if (range->wish)
    plan_wish_range_done (range->wish);
}

/* ---- beginning anew ---- */

void
plan_restart (struct plan *p)
{
  if (p->disk.cut)
    plan_end_cut (p, &p->disk, true);
  if (p->returned_walk.cut) {
    p->returned_walk.cut->returned = true; /* the disk's walk goes around it */
    plan_end_cut (p, &p->returned_walk, true);
  }
  p->disk.pos = 0;
  p->restarts++;
  ahead_restart (&p->ahead);
  plan_give_up_wishes (p);
}

void
plan_set_back (struct plan *p)
{
  struct plan_cut *cut;

  LIST_FOREACH (cut, &p->cuts, link) {
    cut->failed = true;
    cut->returned |= cut->was_returned;
  }
  plan_restart (p);
  p->set_back = p->restarts;

  /* Regions of a wish that were valid are invalid again, so the disk's walk
   * must not go around them.
   */
  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i)
    p->wish[i].start = p->wish[i].walk.pos = p->wish[i].walk.end = 0;
}

/* ---- the source's extents ---- */

struct ahead_question *
plan_ask (struct plan *p)
{
  return p->use_extents ? ahead_ask (&p->ahead, p->disk.pos) : NULL;
}

int
plan_answer (struct plan *p, struct ahead_question *q,
             const struct extents *list)
{
  return ahead_answer (&p->ahead, q, list);
}

void
plan_unanswered (struct plan *p, struct ahead_question *q)
{
  ahead_unanswered (&p->ahead, q);
}
