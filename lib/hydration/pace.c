/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "base/rounding.h"
#include "hydration/pace.h"

/* What it takes by itself.  0: not known. */
static double
shortest (const struct pace_window *w)
{
  if (w->shortest == 0 || w->shortest_before == 0)
    return MAX (w->shortest, w->shortest_before);
  return MIN (w->shortest, w->shortest_before);
}

static bool
is_idle (const struct pace_window *w, double now)
{
  return w->size == 0 || now - w->last >= PACE_IDLE;
}

/* Something ended that is timed. */
static void
count_in (struct pace_window *w, double now, uint64_t threshold)
{
  if (is_idle (w, now))
    w->size = threshold;
  w->last = now;
  if (now - w->period_began < PACE_MEMORY)
    return;
  w->shortest_before =
    now - w->period_began < 2 * PACE_MEMORY ? w->shortest : 0;
  w->shortest = 0;
  w->period_began = now;
  w->probe = 1 + PACE_PROBE; /* the one that has ended, and then so many */
}

/* False: this was for finding out how long it takes, and the window stays. */
static bool
remember (struct pace_window *w, double took)
{
  if (w->shortest == 0 || took < w->shortest)
    w->shortest = took;
  return w->probe == 0 || --w->probe == 0;
}

static void
resize (struct pace_window *w, double factor, double now, uint64_t batch,
        uint64_t threshold)
{
  w->size = MAX (MIN (w->size * factor, (double)threshold), (double)batch);
  if (factor < 1)
    w->reduced = now;
}

void
pace_was_read (struct pace *p, uint64_t count, double took, double now,
               uint64_t batch, uint64_t threshold)
{
  struct pace_window *w = &p->reads;

  if (count > PACE_MAX_READ)
    return;
  count_in (w, now, threshold);
  if (remember (w, took))
    resize (w, took > shortest (w) * 1.1 + PACE_SLACK ? 0.75 : 1 + 1.0 / 400,
            now, batch, threshold);
}

static bool
are_busy (struct pace *p, uint64_t requests, double now)
{
  const double passed = now - p->looked;

  if (passed >= PACE_LOOK) {
    p->busy = requests - p->requests >= PACE_BUSY * passed;
    p->requests = requests;
    p->looked = now;
  }
  return p->busy;
}

void
pace_was_copied (struct pace *p, uint64_t count, double took,
                 uint64_t requests, double now, uint64_t batch,
                 uint64_t threshold)
{
  struct pace_window *w = &p->copies;
  const double began = now - took;
  bool late;

  if (!are_busy (p, requests, now) || count < batch)
    return;
  if (batch != p->batch) {
    *w = (struct pace_window){ 0 };
    p->batch = batch;
  }
  count_in (w, now, threshold);
  /* With those that were under way before hydration got out of the way? */
  if (began < w->period_began || !remember (w, took))
    return;
  late = took > shortest (w) * 2;
  if (!late || began >= w->reduced)
    resize (w, late ? 0.75 : 1 + 1.0 / 20, now, batch, threshold);
}

static uint64_t
window (const struct pace_window *w, double now, uint64_t batch,
        uint64_t threshold)
{
  if (is_idle (w, now))
    return MAX (threshold, batch);
  if (w->probe > 0)
    return batch;
  return MAX (MIN ((uint64_t)w->size, threshold), batch);
}

uint64_t
pace_window (const struct pace *p, double now, uint64_t batch,
             uint64_t threshold)
{
  return MIN (window (&p->reads, now, batch, threshold),
              window (&p->copies, now, batch, threshold));
}
