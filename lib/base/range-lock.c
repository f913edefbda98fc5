/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A list in order of arrival.  An entry is granted when none of the entries
 * before it overlaps it, which each entry counts: its count is taken once, when
 * it arrives, and goes down with each release of a range in its way.
 *
 *              range_lock_acquire, range_lock_request
 *                 |                        |
 *     conflicts > 0                        | conflicts == 0
 *                 v                        v
 *              waiting -----------------> owned -----> gone
 *                       the last range in       range_lock_release
 *                       the way is released
 */

#include <config.h>

#include <stddef.h>

#include "base/cleanup.h"
#include "base/range-lock.h"

static bool
overlap (const struct owner *a, const struct owner *b)
{
  return a->start < b->end && b->start < a->end;
}

/* Append to the list and count the conflicts.  Called with the lock. */
static void
arrive (struct range_lock *o, struct owner *owner, uint64_t start,
        uint64_t end)
{
  owner->start = start;
  owner->end = end;
  owner->conflicts = 0;
  owner->granted = NULL;
  owner->cond = NULL;

  for (const struct owner *e = o->first; e; e = e->next)
    if (overlap (e, owner))
      owner->conflicts++;

  owner->prev = o->last;
  owner->next = NULL;
  if (o->last)
    o->last->next = owner;
  else
    o->first = owner;
  o->last = owner;
}

/* Take off the list.  Returns those of the later entries that are owned by
 * this, linked by their wake members, and have a function to be called;
 * those that sleep have been woken.  Called with the lock.
 */
static struct owner *
leave (struct range_lock *o, struct owner *owner)
{
  struct owner *to_call = NULL, **tail = &to_call;

  for (struct owner *e = owner->next; e; e = e->next) {
    if (!overlap (e, owner) || --e->conflicts > 0)
      continue;
    if (e->granted) {
      e->wake = NULL;
      *tail = e;
      tail = &e->wake;
    }
    else
      pthread_cond_signal (e->cond);
  }

  if (owner->prev)
    owner->prev->next = owner->next;
  else
    o->first = owner->next;
  if (owner->next)
    owner->next->prev = owner->prev;
  else
    o->last = owner->prev;

  return to_call;
}

void
range_lock_init (struct range_lock *o)
{
  pthread_mutex_init (&o->lock, NULL);
  o->first = o->last = NULL;
}

void
range_lock_destroy (struct range_lock *o)
{
  pthread_mutex_destroy (&o->lock);
}

void
range_lock_acquire (struct range_lock *o, struct owner *owner, uint64_t start,
                   uint64_t end)
{
  pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
  LOCK_FOR_SCOPE (&o->lock);

  arrive (o, owner, start, end);
  owner->cond = &cond;
  while (owner->conflicts > 0)
    pthread_cond_wait (&cond, &o->lock);
}

bool
range_lock_request (struct range_lock *o, struct owner *owner, uint64_t start,
                   uint64_t end, void (*granted) (struct owner *owner))
{
  LOCK_FOR_SCOPE (&o->lock);

  arrive (o, owner, start, end);
  owner->granted = granted;
  return owner->conflicts == 0;
}

void
range_lock_release (struct range_lock *o, struct owner *owner)
{
  struct owner *next, *to_call;

  {
    LOCK_FOR_SCOPE (&o->lock);
    to_call = leave (o, owner);
  }

  /* An owner may end as soon as its function has been called. */
  for (; to_call; to_call = next) {
    next = to_call->wake;
    to_call->granted (to_call);
  }
}
