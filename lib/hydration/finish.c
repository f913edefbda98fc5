/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What happens at the end of a walk over the disk, and when an error stops
 * hydration.
 *
 *   the plan is at its end, no copy is under way: hydrate_finish
 *     |
 *     +- all regions are valid: ask for a commit
 *     |    |
 *     |    +- it makes the clone complete: the event "complete" (hydrate.c)
 *     |    +- it does not: hydrate_committed, then finish_begin_again
 *     |
 *     +- only bad regions are still invalid: rest, then try them again
 *     |  (bad-source.c)
 *     +- other regions are, too: another walk
 *
 * Other regions are still invalid after an error of the destination, or after
 * the map was set back.
 */

#include <config.h>

#include <errno.h>

#include "base/cleanup.h"
#include "hydration/plan.h"
#include "hydration/private.h"

bool
hydrate_fail (struct hydrate *h, bool by_mode)
{
  LOCK_FOR_SCOPE (&h->lock);

  if (h->failed || h->stopping)
    return false;
  h->failed = true;
  h->failed_by_mode = by_mode;
  return true;
}

void
hydrate_tell_end (struct hydrate *h)
{
  LOCK_FOR_SCOPE (&h->telling);

  if (h->on_end)
    h->on_end (h->on_end_opaque);
}

void
hydrate_start_over (struct hydrate *h)
{
  if (!h->failed)
    return;
  h->failed = h->failed_by_mode = false;
  plan_restart (&h->plan);
}

/* Start another walk for the regions that are still invalid, now or after a
 * rest.
 */
static void
finish_begin_again (struct hydrate *h)
{
  {
    LOCK_FOR_SCOPE (&h->lock);
    if (!bad_source_rest (h))
      plan_restart (&h->plan);
    h->finishing = false;
  }
  hydrate_wake (h);
}

/* This runs on a loop, which must not wait: the committer makes the commit. */
void
hydrate_finish (struct worker *w)
{
  struct hydrate *h = w->h;
  const struct region_map *map = clone_map (h->clone);

  bad_source_summarize (w);
  if (region_map_count_valid (map) == region_map_regions (map))
    clone_ask_commit (h->clone);
  else
    finish_begin_again (h);
}

/* Any requested commit ends here, not only the one that hydrate_finish asked
 * for. A full destination or a lost server does not stop hydration: regions
 * that have become invalid are copied again.  After another error hydrate_tick
 * resumes hydration when the mode is rw again.
 */
void
hydrate_committed (void *opaque, int error)
{
  struct hydrate *h = opaque;
  bool last, full;

  {
    LOCK_FOR_SCOPE (&h->lock);
    last = hydrate_is_running (h) && h->finishing && !hydrate_is_over (h);
  }
  if (!last)
    return;
  full = error == ENOSPC && clone_may_set (h->clone);
  if (error && error != ENOTCONN && !full && hydrate_fail (h, true)) {
    errno = error;
    log_error (h->log, "hydration stopped: the commit that would complete the "
               "clone failed: %m; remove the cause, then resume hydration or "
               "start again");
    hydrate_tell_end (h);
  }
  finish_begin_again (h);
}
