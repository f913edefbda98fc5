/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "pace.h"
#include "rounding.h"

/* What the source needs by itself.  0: not known. */
static double
shortest (const struct pace_shortest *s)
{
  if (s->now == 0 || s->before == 0)
    return MAX (s->now, s->before);
  return MIN (s->now, s->before);
}

/* True where this is the first of a period. */
static bool
remember (struct pace_shortest *s, double took, double now)
{
  const bool first = now - s->began >= PACE_MEMORY;

  if (first) {
    s->before = now - s->began < 2 * PACE_MEMORY ? s->now : 0;
    s->now = 0;
    s->began = now;
  }
  if (s->now == 0 || took < s->now)
    s->now = took;
  return first;
}

static double
bounded (double window, double least, double most)
{
  return MAX (MIN (window, most), least);
}

static bool
has_clients (const struct pace *p, double now)
{
  return p->last_client && now - p->last_client < PACE_IDLE;
}

void
pace_client_came (struct pace *p, double now, uint64_t batch)
{
  /* Those who were not there wait for nothing now. */
  if (!has_clients (p, now))
    p->copies_window = batch;
  p->last_client = now;
}

void
pace_was_read (struct pace *p, uint64_t count, double took, double now,
               uint64_t batch, uint64_t threshold)
{
  if (count > PACE_MAX_READ)
    return;
  if (p->window == 0 || now - p->last_read >= PACE_IDLE)
    p->window = threshold;
  p->last_read = now;
  if (remember (&p->reads, took, now))
    p->probe = PACE_PROBE;
  else if (p->probe > 0)
    p->probe--;
  if (p->probe > 0)
    return;
  p->window *=
    took > shortest (&p->reads) * 1.1 + PACE_SLACK ? 0.75 : 1 + 1.0 / 400;
  p->window = bounded (p->window, batch, threshold);
}

/* What the copies' window may be. */
static double
least_window (const struct pace *p, double now, uint64_t batch,
              uint64_t threshold)
{
  return has_clients (p, now) ? batch : MAX (batch, threshold / 4);
}

void
pace_copy_was_read (struct pace *p, uint64_t count, double took, bool alone,
                    double now, uint64_t batch, uint64_t threshold)
{
  const bool first_ever = p->copies.began == 0;
  double in_time;

  if (count == batch && remember (&p->copies, took, now) && !first_ever)
    p->probe_copy = true;
  if (alone)
    p->probe_copy = false;
  if (p->probe_copy || count != batch)
    return;

  in_time = shortest (&p->copies);
  in_time = has_clients (p, now) ? in_time * 1.5 : in_time * 2 + PACE_QUEUE;
  if (p->copies_window == 0)
    p->copies_window = threshold;
  p->copies_window *= took > in_time ? 0.9 : 1.05;
  p->copies_window = bounded (p->copies_window,
                              least_window (p, now, batch, threshold),
                              threshold);
}

uint64_t
pace_window (const struct pace *p, double now, uint64_t batch,
             uint64_t threshold)
{
  uint64_t window = threshold;

  if (p->probe_copy)
    return batch;
  if (p->copies_window)
    window = bounded (p->copies_window,
                      least_window (p, now, batch, threshold), threshold);
  if (p->window && now - p->last_read < PACE_IDLE)
    window = p->probe > 0 ? batch : MIN ((uint64_t)p->window, window);
  return MAX (window, batch);
}
