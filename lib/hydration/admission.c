/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Admission: may another copy begin now, and how large may it be?  plan_next
 * decides which range that is.
 *
 * A copy needs all of these:
 *
 *   state  hydration is not paused, failed, finishing or over, and does not
 *          rest (bad-source.c); its threshold is not 0; source and destination
 *          can be reached
 *   room   the worker has fewer than HYDRATE_MAX_COPIES copies; and another
 *          batch fits into the window, which pace.c adapts to how long reads
 *          take, and into the worker's share of the window
 *   rate   the time has come at which the rate limit allows the next copy
 */

#include <config.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "hydration/pace.h"
#include "hydration/plan.h"
#include "hydration/private.h"

/* With a rate limit, a batch is what may be read in RATE_SLICE seconds, but at
 * least HYDRATE_BATCH_MIN.
 */
#define RATE_SLICE 0.25

bool
admission_is_open (const struct worker *w)
{
  struct hydrate *h = w->h;

  return !h->paused && !h->failed && !hydrate_is_over (h) &&
    backend_state (w->source) == BACKEND_UP &&
    backend_state (clone_destination (h->clone)) == BACKEND_UP;
}

uint64_t
admission_batch (const struct hydrate_settings *s)
{
  uint64_t batch = MIN (s->batch, s->threshold);

  if (s->rate)
    batch = MIN (batch, (uint64_t)(s->rate * RATE_SLICE));
  return MAX (batch, HYDRATE_BATCH_MIN);
}

/* Put a range into hydrate.in_flight, after the other ones, or take it out. */
static void
admission_note (struct hydrate *h, const struct plan_range *range, int by)
{
  struct hydrate_range *r = h->in_flight;

  if (by > 0) {
    r[h->copies] = (struct hydrate_range){ range->start, range->end };
    return;
  }
  while (r->start != range->start || r->end != range->end)
    r++;
  *r = h->in_flight[h->copies - 1];
}

void
admission_count (struct worker *w, const struct plan_range *range,
                 uint64_t cost, int by)
{
  struct hydrate *h = w->h;
  const uint64_t region_size = region_map_region_size (clone_map (h->clone));

  admission_note (h, range, by);
  w->copies += by;
  w->bytes += by * cost;
  h->copies += by;
  h->bytes += by * cost;
  if (!range->cut)
    h->regions += by * div_round_up (range->end - range->start, region_size);
}

/* A batch always fits into the window if no other data is being copied, and
 * into the worker's share if this worker copies no other data.
 */
static bool
admission_has_room (const struct worker *w, uint64_t batch, double now)
{
  const struct hydrate *h = w->h;
  const uint64_t window = pace_window (&h->pace, now, batch,
                                       h->settings.threshold);
  const uint64_t share = MAX (window / h->nr_workers, batch);

  return w->copies < HYDRATE_MAX_COPIES &&
    (h->bytes == 0 || h->bytes + batch <= window) &&
    (w->bytes == 0 || w->bytes + batch <= share);
}

enum admission
admission_next (struct worker *w, struct plan_range *range, uint64_t *cost,
                double *wait)
{
  struct hydrate *h = w->h;
  const struct hydrate_settings *s = &h->settings;
  /* ev_now is not used, because it jumps when the time of day is set. */
  const double now = monotonic_seconds ();
  uint64_t batch;
  LOCK_FOR_SCOPE (&h->lock);

  if (!admission_is_open (w) || h->finishing || h->bad.rest_until ||
      s->threshold == 0)
    return ADMISSION_WAIT;
  batch = admission_batch (s);
  if (!admission_has_room (w, batch, now))
    return ADMISSION_WAIT;
  if (s->rate && h->rate_next > now) {
    *wait = h->rate_next - now;
    return ADMISSION_LATER;
  }

  h->plan.max_zero =
    zero_step_get (&clone_destination (h->clone)->zero_step);
  switch (plan_next (&h->plan, batch, range)) {
  case PLAN_WANT_EXTENTS:
    return ADMISSION_WAIT;
  case PLAN_END:
    if (h->copies > 0)
      return ADMISSION_WAIT;
    h->finishing = true;
    return ADMISSION_END;
  case PLAN_RANGE:
    break;
  }

  *cost = range->zero ? 0 : range->end - range->start;
  if (s->rate)
    h->rate_next = MAX (h->rate_next, now) + (double)*cost / s->rate;
  admission_count (w, range, *cost, 1);
  return ADMISSION_RANGE;
}
