/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What block status keeps from one question to the next.
 *
 * A client walks over the disk: it asks where the last answer has ended.  It
 * may ask for one extent at a time (QEMU always does), or for small ranges.
 * Without memory each of these questions costs a round trip to a remote source.
 * So two lists are kept:
 *
 *   answer   what the clone has said about a range; true until a client changes
 *            something
 *   source   what the source has said about a range; always true, because the
 *            source is immutable
 *
 * LOOKING AHEAD.  The first question of a walk costs what it would cost the
 * source: one extent if the client wants one.  Each further question that needs
 * a new list gets one that is KEPT_AHEAD times as long as the walk has been so
 * far.  So a whole walk takes few lists, and most of what is in them is used.
 * For the answer only the part of the walk since the last change counts: while
 * a client writes all the time, each answer is used once, and is not longer
 * than it must be.
 *
 * WHEN IS A KEPT ANSWER TRUE?  The clone counts each change of a client twice:
 * changes_begun before it touches anything, changes_ended after it has touched
 * everything and before it is acknowledged, also if it fails.  An answer is
 * kept if both were equal before the look at the map.  It is true as long as
 * changes_begun is the same.  One counter is not enough:
 *
 *   changes_begun alone: a change begins; the answer is made; the change writes
 *     its data.  The counter is as before, and the answer shows a hole.
 *   changes_ended alone: the answer is made; a change writes its data; another
 *     client reads them; the change has not ended.  The answer shows a hole
 *     where that client has seen data.
 *
 * Hydration, copy-on-read and cache requests are not counted: what a region
 * reads as stays the same when it becomes valid.  If the map is set back, the
 * gate has been closed more often (gate_closings), and the answer is void.
 *
 * Memory: each list has a bound, see kept_keep.  One of each is kept for the
 * whole clone, not for each client: of two clients that walk at the same time
 * each may have to ask again.
 */

#ifndef CLONE_KEPT_EXTENTS_H
#define CLONE_KEPT_EXTENTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/extents.h"

#define KEPT_AHEAD 8
/* The most bytes to look ahead. */
#define KEPT_AHEAD_MAX (UINT64_C (4) << 30)

struct kept_extents {
  pthread_mutex_t lock; /* protects all that follows; not held across I/O */
  struct extents answer;
  uint64_t changes, closings; /* of the question that the answer is from */
  struct extents source;
  uint64_t forgotten; /* how many times */

  /* The walk: where its next question begins, and how many bytes it has got,
   * in all and since the last change.
   */
  uint64_t next, walked, unchanged;
};

/* A client's question. */
struct kept_question {
  uint64_t offset, count;
  bool one; /* the client wants one extent */

  /* From before the look at the map: changes_begun; whether changes_ended, read
   * before it, was the same; gate_closings.
   */
  uint64_t changes;
  bool quiet;
  uint64_t closings;

  /* Set by kept_find: the walk so far, 0 if this is its first question. */
  uint64_t walked, unchanged;
  uint64_t forgotten;
};

extern void kept_init (struct kept_extents *k);
extern void kept_destroy (struct kept_extents *k);

/* Forget everything, because the source is closed or may have changed.  Answers
 * to questions that are being asked now are not kept.
 */
extern void kept_forget (struct kept_extents *k);

/* Answer the question from what is kept: append extents to list, which is
 * empty.  1: done.  0: ask the backends.  -1 with errno ENOMEM.
 */
extern int kept_find (struct kept_extents *k, struct kept_question *q,
                      struct extents *list);

/* How far to look ahead after a walk of so many bytes. */
extern uint64_t kept_ahead (uint64_t walked);

/* Append to list, which is empty, what the source has said about [start, end),
 * in at most max extents.  Nothing if start is not covered.  -1 with errno
 * ENOMEM.
 */
extern int kept_source (struct kept_extents *k, uint64_t start, uint64_t end,
                        size_t max, struct extents *list);

/* The client gets so many bytes of this answer.  Keep the answer, if no change
 * was in progress, and the source's list; an empty list is not kept.  The
 * caller bounds both lists, and gets others in exchange, for it to free.
 */
extern void kept_keep (struct kept_extents *k, const struct kept_question *q,
                       struct extents *answer, uint64_t bytes,
                       struct extents *source);

#endif /* CLONE_KEPT_EXTENTS_H */
