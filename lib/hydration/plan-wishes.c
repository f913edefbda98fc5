/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Wishes: stretches of the disk that clients need first.  They are ahead of the
 * disk's walk, and apart from each other.
 */

#include <config.h>

#include "base/rounding.h"
#include "hydration/plan-internal.h"

static void
plan_wish_close_if_done (struct plan_wish *wish)
{
  if (wish->walk.pos == wish->walk.end && wish->copies == 0)
    wish->open = false;
}

void
plan_wish_range_done (struct plan_wish *wish)
{
  wish->copies--;
  plan_wish_close_if_done (wish);
}

void
plan_leave_out_wishes (const struct plan *p, uint64_t *start, uint64_t *end)
{
  bool again;

  do {
    again = false;
    for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i) {
      const struct plan_wish *w = &p->wish[i];

      if (!w->open || w->walk.end <= *start || w->start >= *end)
        continue;
      if (w->start > *start)
        *end = w->start;
      else {
        *start = MIN (w->walk.end, *end);
        again = true;           /* another one may begin here */
      }
    }
  } while (again && *start < *end);
}

/* A place for another wish: a free one, or that of the oldest wish that has
 * handed out nothing.  NULL: there is none.
 */
static struct plan_wish *
plan_place_for_wish (struct plan *p)
{
  struct plan_wish *oldest = NULL;

  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i) {
    struct plan_wish *w = &p->wish[i];

    if (!w->open)
      return w;
    if (w->walk.pos == w->start && w->walk.cut == NULL && w->copies == 0 &&
        (oldest == NULL || w->number < oldest->number))
      oldest = w;
  }
  return oldest;
}

void
plan_want (struct plan *p, uint64_t start, uint64_t end)
{
  const uint64_t size = region_map_size (p->map);
  const uint64_t region_size = region_map_region_size (p->map);
  const uint64_t first = p->disk.cut ? p->disk.cut->end : p->disk.pos;
  struct plan_wish *w;

  start = MAX (round_down (start, region_size), first);
  end = end < size ? MIN (round_up (end, region_size), size) : size;
  if (start >= end)
    return;
  plan_leave_out_wishes (p, &start, &end);
  if (start == end)
    return;
  w = plan_place_for_wish (p);
  if (w)
    *w = (struct plan_wish){
      .open = true, .start = start, .walk = { .pos = start, .end = end },
      .number = ++p->wishes,
    };
}

/* The latest wish that may have something left to hand out.  NULL: none. */
static struct plan_wish *
plan_latest_wish (struct plan *p)
{
  struct plan_wish *latest = NULL;

  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i) {
    struct plan_wish *w = &p->wish[i];

    if (w->open && w->walk.pos < w->walk.end &&
        (latest == NULL || w->number > latest->number))
      latest = w;
  }
  return latest;
}

/* Hand out nothing more of the wish: the disk's walk comes to the rest. */
static void
plan_give_up_wish (struct plan *p, struct plan_wish *w)
{
  if (w->walk.cut) {
    w->walk.pos = w->walk.cut->end;
    plan_end_cut (p, &w->walk, true);
  }
  w->walk.end = w->walk.pos;
  plan_wish_close_if_done (w);
}

void
plan_give_up_wishes (struct plan *p)
{
  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i)
    if (p->wish[i].open)
      plan_give_up_wish (p, &p->wish[i]);
}

enum plan_result
plan_next_wish (struct plan *p, uint64_t batch, struct plan_range *range)
{
  struct plan_wish *wish;

  while ((wish = plan_latest_wish (p)) != NULL) {
    if (plan_next_of_walk (p, &wish->walk, batch, range) == PLAN_RANGE) {
      range->wish = wish;
      wish->copies++;
      return PLAN_RANGE;
    }
    plan_give_up_wish (p, wish);
  }
  return PLAN_END;
}
