/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Ownership of byte ranges: who may write to invalid regions of the
 * destination, and turn them valid.
 *
 * The rules that the users of this module keep (invariants I2 and I3):
 *
 *   - To make a region valid, own all of its bytes.  To copy source bytes into
 *     a part of an invalid region without making it valid, own those bytes.
 *   - A state that was looked up before ownership is a hint.  After taking
 *     ownership look again, and leave alone what has become valid meanwhile:
 *     somebody else's newer data are there.
 *   - Set the bits after the bytes are in the destination, before the release.
 *   - Never hold ownership across a read of the source.  The source does not
 *     change, so read first.
 *   - Hold one range at a time, so that no two owners wait for each other.
 *   - A valid region needs no owner, neither to read nor to write it.
 *
 * What a grant proves: no other owner of an overlapping range exists until
 * the release; and whatever former owners wrote and set is visible.
 *
 * Grants are in order of arrival among ranges that overlap, so that nobody
 * starves; ranges that do not overlap never wait for each other.
 *
 * Locking: one mutex inside, held for a walk over the ranges owned and waited
 * for at this moment, never across I/O or a call to a user's function.
 */

#ifndef CLONE_RANGE_LOCK_H
#define CLONE_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct owner {
  uint64_t start, end; /* bytes, [start, end) */
  void *opaque;        /* the user's */

  /* Below: this module's. */
  unsigned conflicts; /* earlier overlapping ranges that still exist */
  void (*granted) (struct owner *owner);
  pthread_cond_t *cond;
  struct owner *prev, *next, *wake;
};

struct range_lock {
  pthread_mutex_t lock;
  struct owner *first, *last; /* in order of arrival */
};

extern void range_lock_init (struct range_lock *o);
/* Nobody may own or wait. */
extern void range_lock_destroy (struct range_lock *o);

/* Own [start, end), waiting for as long as it takes. */
extern void range_lock_acquire (struct range_lock *o, struct owner *owner,
                               uint64_t start, uint64_t end);

/* For those who must not wait.  True: owned now, and granted is not called.
 * False: granted is called once, when the range is owned, on the thread that
 * releases the last range in the way, with no lock held.
 */
extern bool range_lock_request (struct range_lock *o, struct owner *owner,
                               uint64_t start, uint64_t end,
                               void (*granted) (struct owner *owner));

/* Give up a range that is owned. */
extern void range_lock_release (struct range_lock *o, struct owner *owner);

#endif /* CLONE_RANGE_LOCK_H */
