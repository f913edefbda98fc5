/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Why no entry is missed: gate_try_enter counts the entry and then looks
 * whether the gate is closed; gate_close marks it closed and then looks at the
 * counts. These operations are sequentially consistent, so at least one of the
 * two threads sees what the other has done.
 */

#include <config.h>

#include <sched.h>

#include "base/cleanup.h"
#include "clone/gate.h"

void
gate_init (struct gate *g)
{
  atomic_init (&g->closed, false);
  atomic_init (&g->removed, false);
  atomic_init (&g->closings, 0);
  for (unsigned i = 0; i < GATE_STRIPES; ++i)
    atomic_init (&g->stripe[i].inside, 0);
  pthread_mutex_init (&g->closing, NULL);
  pthread_mutex_init (&g->lock, NULL);
  pthread_cond_init (&g->opened, NULL);
  pthread_cond_init (&g->left, NULL);
}

void
gate_destroy (struct gate *g)
{
  pthread_mutex_destroy (&g->closing);
  pthread_mutex_destroy (&g->lock);
  pthread_cond_destroy (&g->opened);
  pthread_cond_destroy (&g->left);
}

void
gate_leave (struct gate *g, struct gate_pass *pass)
{
  if (pass->inside == NULL)
    return;
  atomic_fetch_sub (pass->inside, 1);
  pass->inside = NULL;
  if (atomic_load (&g->closed)) {
    LOCK_FOR_SCOPE (&g->lock);
    pthread_cond_signal (&g->left);
  }
}

bool
gate_try_enter (struct gate *g, struct gate_pass *pass)
{
  pass->inside = NULL;
  if (atomic_load_explicit (&g->removed, memory_order_acquire))
    return true;

  /* Any stripe is right, even if the thread moves to another processor now. */
  pass->inside = &g->stripe[(unsigned)sched_getcpu () % GATE_STRIPES].inside;
  atomic_fetch_add (pass->inside, 1);
  if (!atomic_load (&g->closed))
    return true;
  gate_leave (g, pass);
  return false;
}

void
gate_enter (struct gate *g, struct gate_pass *pass)
{
  while (!gate_try_enter (g, pass)) {
    LOCK_FOR_SCOPE (&g->lock);

    while (atomic_load (&g->closed))
      pthread_cond_wait (&g->opened, &g->lock);
  }
}

uint64_t
gate_closings (const struct gate *g)
{
  return atomic_load (&g->closings);
}

static bool
is_empty (const struct gate *g)
{
  for (unsigned i = 0; i < GATE_STRIPES; ++i)
    if (atomic_load (&g->stripe[i].inside) > 0)
      return false;
  return true;
}

void
gate_close (struct gate *g)
{
  pthread_mutex_lock (&g->closing);
  atomic_store (&g->closed, true);
  atomic_fetch_add (&g->closings, 1);

  LOCK_FOR_SCOPE (&g->lock);
  while (!is_empty (g))
    pthread_cond_wait (&g->left, &g->lock);
}

void
gate_open (struct gate *g)
{
  {
    LOCK_FOR_SCOPE (&g->lock);
    atomic_store (&g->closed, false);
    pthread_cond_broadcast (&g->opened);
  }
  pthread_mutex_unlock (&g->closing);
}

void
gate_remove (struct gate *g)
{
  atomic_store_explicit (&g->removed, true, memory_order_release);
}
