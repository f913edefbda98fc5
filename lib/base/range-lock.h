/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Ownership of byte ranges: the right to write to invalid regions of the
 * destination and to make them valid.
 *
 * Rules for the users of this module (invariants I2 and I3):
 *
 *   - To make a region valid, own all of its bytes.  To copy source bytes into
 *     a part of an invalid region without making it valid, own those bytes.
 *   - A state that was looked up before ownership is a hint.  Look again after
 *     taking ownership.  Leave alone what has become valid in the meantime: it
 *     holds newer data of another owner.
 *   - Set the bits after the bytes are in the destination and before the
 *     release.
 *   - Never hold ownership across a read of the source.  The source does not
 *     change, so read it first.
 *   - Hold one range at a time, so that no two owners wait for each other.
 *   - A valid region needs no owner, neither to read nor to write it.
 *
 * A granted range is exclusive: no other owner of an overlapping range exists
 * until the release, and all that former owners wrote and set is visible.
 *
 * Overlapping ranges are granted in order of arrival, so no owner starves.
 * Ranges that do not overlap never wait for each other.
 *
 * Locking: one mutex inside.  It is held while the list of owned and waiting
 * ranges is searched, never across I/O or a call of a user's function.
 */

#ifndef CLONE_RANGE_LOCK_H
#define CLONE_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct owner {
  uint64_t start, end; /* bytes, [start, end) */
  void *opaque;        /* the user's */

  /* Private to range-lock.c. */
  unsigned conflicts; /* earlier overlapping ranges that still exist */
  void (*granted) (struct owner *owner);
  pthread_cond_t *cond;
  TAILQ_ENTRY (owner) link;
  STAILQ_ENTRY (owner) wake;
};

struct range_lock {
  pthread_mutex_t lock;
  TAILQ_HEAD (, owner) owners; /* owned and waiting, in order of arrival */
};

extern void range_lock_init (struct range_lock *o);
/* No range may be owned or waited for. */
extern void range_lock_destroy (struct range_lock *o);

/* Own [start, end).  Waits for as long as it takes. */
extern void range_lock_acquire (struct range_lock *o, struct owner *owner,
                                uint64_t start, uint64_t end);

/* Own [start, end) without waiting here.  True: owned now; granted is not
 * called.  False: granted is called once the range is owned, by the thread
 * that releases the last range in the way, with no lock held.
 */
extern bool range_lock_request (struct range_lock *o, struct owner *owner,
                                uint64_t start, uint64_t end,
                                void (*granted) (struct owner *owner));

/* Give up an owned range. */
extern void range_lock_release (struct range_lock *o, struct owner *owner);

#endif /* CLONE_RANGE_LOCK_H */
