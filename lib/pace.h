/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The pace of hydration beside clients that read from the source.
 *
 * The rule: hydration may have as many bytes under way as the window says,
 * which is never more than the threshold and never less than a batch.  Each
 * short read of the source for a client is timed.  The shortest time of the
 * last seconds is what the source needs by itself; a read is late when it takes
 * a tenth and PACE_SLACK longer than that.  Each late one makes the window
 * smaller by a quarter, and each that is in time makes it larger by 1/400.  So
 * it settles where about one read in a hundred is late.  When no client has
 * read from the source for PACE_IDLE, the window is the threshold.
 *
 * To see what the source needs by itself, hydration gets out of the way now and
 * then, for PACE_PROBE reads: nobody would know otherwise, if it began before
 * the first of them.  (TCP BBR looks for the round trip time in this way.)
 *
 * What a client reads from the destination does not count, nor does what it
 * writes: they do not wait for the source.
 *
 * Times are in seconds, by a clock that never goes back; sizes in bytes.  There
 * is no lock: the user's protects it.
 */

#ifndef CLONE_PACE_H
#define CLONE_PACE_H

#include <stdint.h>

#define PACE_SLACK 0.0005
#define PACE_IDLE 0.5

/* For how long the shortest time counts, at least, and after how long hydration
 * gets out of the way again.
 */
#define PACE_MEMORY 10
#define PACE_PROBE 8

/* A longer read takes time for itself. */
#define PACE_MAX_READ (UINT64_C (128) << 10)

struct pace {
  double window;         /* bytes; 0: as large as it may be */
  double last_read;      /* when a client's read of the source ended */
  double shortest;       /* in the period that began then, */
  double period_began;
  double shortest_before; /* and in the period before; 0: no read */
  unsigned probe;         /* for so many reads more the window is a batch */
};

/* A read of the source for a client has ended, and took so long. */
extern void pace_was_read (struct pace *p, uint64_t count, double took,
                           double now, uint64_t batch, uint64_t threshold);

extern uint64_t pace_window (const struct pace *p, double now, uint64_t batch,
                             uint64_t threshold);

#endif /* CLONE_PACE_H */
