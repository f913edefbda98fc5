/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "base/rounding.h"
#include "hydration/pace.h"

/* How long something takes by itself.  0: not known. */
static double
pace_shortest (const struct pace_window *w)
{
  if (w->shortest == 0 || w->shortest_before == 0)
    return MAX (w->shortest, w->shortest_before);
  return MIN (w->shortest, w->shortest_before);
}

static bool
pace_is_idle (const struct pace_window *w, double now)
{
  return w->size == 0 || now - w->last >= PACE_IDLE;
}

/* Something that is timed has ended. */
static void
pace_count_in (struct pace_window *w, double now, uint64_t threshold)
{
  if (pace_is_idle (w, now))
    w->size = threshold;
  w->last = now;
  if (now - w->period_began < PACE_MEMORY)
    return;
  w->shortest_before =
    now - w->period_began < 2 * PACE_MEMORY ? w->shortest : 0;
  w->shortest = 0;
  w->period_began = now;
  w->probe = 1 + PACE_PROBE; /* this one, which has ended, counts, too */
}

/* False: this was one of the probe, so the window stays. */
static bool
pace_remember (struct pace_window *w, double took)
{
  if (w->shortest == 0 || took < w->shortest)
    w->shortest = took;
  return w->probe == 0 || --w->probe == 0;
}

static void
pace_resize (struct pace_window *w, double factor, double now, uint64_t batch,
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
  pace_count_in (w, now, threshold);
  if (pace_remember (w, took))
    pace_resize (w, took > pace_shortest (w) * 1.1 + PACE_SLACK ?
                 0.75 : 1 + 1.0 / 400, now, batch, threshold);
}

static bool
pace_clients_are_busy (struct pace *p, uint64_t requests, double now)
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

  if (!pace_clients_are_busy (p, requests, now) || count < batch)
    return;
  if (batch != p->batch) {
    *w = (struct pace_window){ 0 };
    p->batch = batch;
  }
  pace_count_in (w, now, threshold);
  /* A copy that began before the probe was under way with many others. */
  if (began < w->period_began || !pace_remember (w, took))
    return;
  late = took > pace_shortest (w) * 2;
  if (!late || began >= w->reduced)
    pace_resize (w, late ? 0.75 : 1 + 1.0 / 20, now, batch, threshold);
}

static uint64_t
pace_one_window (const struct pace_window *w, double now, uint64_t batch,
                 uint64_t threshold)
{
  if (pace_is_idle (w, now))
    return MAX (threshold, batch);
  if (w->probe > 0)
    return batch;
  return MAX (MIN ((uint64_t)w->size, threshold), batch);
}

uint64_t
pace_window (const struct pace *p, double now, uint64_t batch,
             uint64_t threshold)
{
  return MIN (pace_one_window (&p->reads, now, batch, threshold),
              pace_one_window (&p->copies, now, batch, threshold));
}
