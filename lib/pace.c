/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "pace.h"
#include "rounding.h"

/* What the source needs by itself.  0: not known. */
static double
shortest (const struct pace *p)
{
  if (p->shortest == 0 || p->shortest_before == 0)
    return MAX (p->shortest, p->shortest_before);
  return MIN (p->shortest, p->shortest_before);
}

static void
remember (struct pace *p, double took, double now)
{
  if (now - p->period_began >= PACE_MEMORY) {
    p->shortest_before =
      now - p->period_began < 2 * PACE_MEMORY ? p->shortest : 0;
    p->shortest = 0;
    p->period_began = now;
    p->probe = PACE_PROBE;
  }
  else if (p->probe > 0)
    p->probe--;
  if (p->shortest == 0 || took < p->shortest)
    p->shortest = took;
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
  remember (p, took, now);
  if (p->probe > 0)
    return;
  p->window *= took > shortest (p) * 1.1 + PACE_SLACK ? 0.75 : 1 + 1.0 / 400;
  p->window = MAX (MIN (p->window, (double)threshold), (double)batch);
}

uint64_t
pace_window (const struct pace *p, double now, uint64_t batch,
             uint64_t threshold)
{
  if (p->window == 0 || now - p->last_read >= PACE_IDLE)
    return MAX (threshold, batch);
  if (p->probe > 0)
    return batch;
  return MAX (MIN ((uint64_t)p->window, threshold), batch);
}
