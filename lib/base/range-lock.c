/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A list in order of arrival.  Each entry counts the earlier entries that
 * overlap it.  The count is taken once, on arrival; each release of a range in
 * the way decrements it.  At 0 the entry owns its range.
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

STAILQ_HEAD (owner_queue, owner);

static bool
owners_overlap (const struct owner *a, const struct owner *b)
{
  return a->start < b->end && b->start < a->end;
}

/* Count the conflicts and append to the list.  Called with the lock. */
static void
owner_arrive (struct range_lock *o, struct owner *owner, uint64_t start,
              uint64_t end)
{
  const struct owner *e;

  owner->start = start;
  owner->end = end;
  owner->conflicts = 0;
  owner->granted = NULL;
  owner->cond = NULL;

  TAILQ_FOREACH (e, &o->owners, link)
    if (owners_overlap (e, owner))
      owner->conflicts++;
  TAILQ_INSERT_TAIL (&o->owners, owner, link);
}

/* Remove from the list.  Of the later entries that own their ranges now, those
 * that wait in range_lock_acquire are woken, and those with a function are
 * appended to to_call.  Called with the lock.
 */
static void
owner_leave (struct range_lock *o, struct owner *owner,
             struct owner_queue *to_call)
{
  struct owner *e = owner;

  while ((e = TAILQ_NEXT (e, link))) {
    if (!owners_overlap (e, owner) || --e->conflicts > 0)
      continue;
    if (e->granted)
      STAILQ_INSERT_TAIL (to_call, e, wake);
    else
      pthread_cond_signal (e->cond);
  }
  TAILQ_REMOVE (&o->owners, owner, link);
}

void
range_lock_init (struct range_lock *o)
{
  pthread_mutex_init (&o->lock, NULL);
  TAILQ_INIT (&o->owners);
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

  owner_arrive (o, owner, start, end);
  owner->cond = &cond;
  while (owner->conflicts > 0)
    pthread_cond_wait (&cond, &o->lock);
}

bool
range_lock_request (struct range_lock *o, struct owner *owner, uint64_t start,
                    uint64_t end, void (*granted) (struct owner *owner))
{
  LOCK_FOR_SCOPE (&o->lock);

  owner_arrive (o, owner, start, end);
  owner->granted = granted;
  return owner->conflicts == 0;
}

void
range_lock_release (struct range_lock *o, struct owner *owner)
{
  struct owner_queue to_call = STAILQ_HEAD_INITIALIZER (to_call);
  struct owner *e;

  {
    LOCK_FOR_SCOPE (&o->lock);
    owner_leave (o, owner, &to_call);
  }

  /* An owner may be gone as soon as its function has been called. */
  while ((e = STAILQ_FIRST (&to_call))) {
    STAILQ_REMOVE_HEAD (&to_call, wake);
    e->granted (e);
  }
}
