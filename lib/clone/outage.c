/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clone/outage.h"

void
outage_init (struct outage *o)
{
  atomic_init (&o->events, 0);
  atomic_init (&o->waiting_ended, false);
  pthread_mutex_init (&o->lock, NULL);
  cond_init_monotonic (&o->changed);
}

void
outage_destroy (struct outage *o)
{
  pthread_mutex_destroy (&o->lock);
  pthread_cond_destroy (&o->changed);
}

uint64_t
outage_events (const struct outage *o)
{
  return atomic_load_explicit (&o->events, memory_order_acquire);
}

void
outage_happened (struct outage *o)
{
  LOCK_FOR_SCOPE (&o->lock);

  atomic_fetch_add (&o->events, 1);
  pthread_cond_broadcast (&o->changed);
}

void
outage_end_waiting (struct outage *o)
{
  LOCK_FOR_SCOPE (&o->lock);

  atomic_store (&o->waiting_ended, true);
  pthread_cond_broadcast (&o->changed);
}

bool
outage_waiting_has_ended (const struct outage *o)
{
  return atomic_load_explicit (&o->waiting_ended, memory_order_acquire);
}

void
outage_wait (struct outage *o, uint64_t events, int milliseconds)
{
  const struct timespec until = monotonic_after (milliseconds / 1000.0);
  LOCK_FOR_SCOPE (&o->lock);

  while (!o->waiting_ended && o->events == events &&
         pthread_cond_timedwait (&o->changed, &o->lock, &until) != ETIMEDOUT)
    ;
}
