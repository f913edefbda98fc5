/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Regions that are copied in pieces.  A cut begins when a walk comes to such a
 * region.  It exists until the walk has left the region and all pieces that
 * were handed out are done.
 */

#include <config.h>

#include <stdlib.h>

#include "base/rounding.h"
#include "hydration/plan-internal.h"

void
plan_begin_cut (struct plan *p, struct plan_walk *walk)
{
  const uint64_t region_size = region_map_region_size (p->map);

  walk->cut = calloc (1, sizeof *walk->cut);
  if (walk->cut == NULL)
    return;
  walk->cut->start = walk->pos;
  walk->cut->end = MIN (walk->pos + region_size, region_map_size (p->map));
  walk->cut->walk = walk;
  LIST_INSERT_HEAD (&p->cuts, walk->cut, link);
  p->open_cuts++;
}

static struct plan_cut *
plan_find_cut (const struct plan *p, uint64_t start)
{
  struct plan_cut *cut;

  LIST_FOREACH (cut, &p->cuts, link)
    if (cut->start == start)
      break;
  return cut;
}

/* A returned region comes again.  If the disk's walk has begun anew, it may
 * have cut the region already: then the region comes again after that cut.
 */
void
plan_cut_done (struct plan *p, struct plan_cut *cut)
{
  struct plan_cut *other;

  LIST_REMOVE (cut, link);
  p->open_cuts--;
  if (cut->was_returned)
    bad_remove (&p->returned, cut->start, cut->end);
  if (cut->returned) {
    other = plan_find_cut (p, cut->start);
    if (other)
      other->returned = true;
    else
      plan_return_region (p, cut->start, cut->end);
  }
  free (cut);
}

void
plan_end_cut (struct plan *p, struct plan_walk *walk, bool failed)
{
  struct plan_cut *cut = walk->cut;

  walk->cut = NULL;
  cut->walk = NULL;
  cut->failed |= failed;
  if (cut->pieces == 0)
    plan_cut_done (p, cut);
}

bool
plan_piece_done (struct plan *p, struct plan_cut *cut, bool ok)
{
  cut->failed |= !ok;
  if (--cut->pieces > 0 || cut->walk)
    return false;
  if (!cut->failed)
    return true;
  plan_cut_done (p, cut);
  return false;
}
