/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/kept-extents.h"

void
kept_init (struct kept_extents *k)
{
  *k = (struct kept_extents){ .answer = EXTENTS_INIT, .source = EXTENTS_INIT };
  pthread_mutex_init (&k->lock, NULL);
}

void
kept_destroy (struct kept_extents *k)
{
  kept_forget (k);
  pthread_mutex_destroy (&k->lock);
}

void
kept_forget (struct kept_extents *k)
{
  LOCK_FOR_SCOPE (&k->lock);

  extents_free (&k->answer);
  extents_free (&k->source);
  k->forgotten++;
}

uint64_t
kept_ahead (uint64_t walked)
{
  return walked < KEPT_AHEAD_MAX / KEPT_AHEAD ? walked * KEPT_AHEAD
    : KEPT_AHEAD_MAX;
}

/* The client gets so many bytes as the walk's next answer. */
static void
kept_walk (struct kept_extents *k, const struct kept_question *q,
           uint64_t bytes)
{
  k->next = q->offset + bytes;
  k->walked = q->walked + bytes;
  k->unchanged = q->unchanged + bytes;
}

int
kept_find (struct kept_extents *k, struct kept_question *q,
           struct extents *list)
{
  LOCK_FOR_SCOPE (&k->lock);
  const bool walks = q->offset == k->next;
  const bool is_true = k->answer.len > 0 && k->changes == q->changes &&
    k->closings == q->closings;

  q->walked = walks ? k->walked : 0;
  q->unchanged = walks && is_true ? k->unchanged : 0;
  q->forgotten = k->forgotten;
  if (!is_true || !extents_covers (&k->answer, q->offset))
    return 0;
  if (extents_copy (&k->answer, q->offset, q->offset + q->count,
                    q->one ? 1 : SIZE_MAX, list) == -1)
    return -1;
  kept_walk (k, q, extents_end (list) - q->offset);
  return 1;
}

int
kept_source (struct kept_extents *k, uint64_t start, uint64_t end, size_t max,
             struct extents *list)
{
  LOCK_FOR_SCOPE (&k->lock);

  if (!extents_covers (&k->source, start))
    return 0;
  return extents_copy (&k->source, start, end, max, list);
}

void
kept_keep (struct kept_extents *k, const struct kept_question *q,
           struct extents *answer, uint64_t bytes, struct extents *source)
{
  LOCK_FOR_SCOPE (&k->lock);

  kept_walk (k, q, bytes);
  if (q->forgotten != k->forgotten)
    return;
  if (q->quiet && answer->len > 0) {
    extents_swap (&k->answer, answer);
    k->changes = q->changes;
    k->closings = q->closings;
  }
  if (source->len > 0)
    extents_swap (&k->source, source);
}
