/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The pace of hydration beside clients.
 *
 * The rule: hydration may have as many bytes under way as the smaller of two
 * windows says, which are never more than the threshold and never less than a
 * batch.  Each is ruled by how long something takes.  The shortest time of the
 * last seconds is what that takes by itself; what takes much longer is late,
 * and makes the window smaller by a quarter; what is in time makes it larger.
 *
 *   reads   each short read of the source for a client.  It is late when it
 *           takes a tenth and PACE_SLACK longer; one that is in time makes the
 *           window larger by 1/400.  So it settles where about one read in a
 *           hundred is late.
 *
 *   copies  each read of a whole batch for hydration, while clients are busy
 *           with whatever they do: PACE_BUSY requests a second.  It is late
 *           when it takes twice as long, because then it has waited for others
 *           as long as for the source; one that is in time makes the window
 *           larger by 1/20.  So clients compete with no more copies than keep
 *           the source busy: one where it is near, many where it is far.  (TCP
 *           Vegas finds its window like that.)  A copy that began before the
 *           window became smaller says nothing about the smaller one.
 *
 * When there was nothing to be timed for PACE_IDLE, a window is the threshold.
 *
 * To see what something takes by itself, hydration gets out of the way now and
 * then, for PACE_PROBE of them: nobody would know otherwise, if it began before
 * the first.  (TCP BBR looks for the round trip time in this way.)
 *
 * Times are in seconds, by a clock that never goes back; sizes in bytes.  There
 * is no lock: the user's protects it.
 */

#ifndef CLONE_PACE_H
#define CLONE_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_SLACK 0.0005
#define PACE_IDLE 0.5

/* For how long the shortest time counts, at least, and after how long hydration
 * gets out of the way again.
 */
#define PACE_MEMORY 10
#define PACE_PROBE 8

/* A longer read for a client takes time for itself. */
#define PACE_MAX_READ (UINT64_C (128) << 10)

/* Clients' requests a second, looked at every so many seconds. */
#define PACE_BUSY 100
#define PACE_LOOK 0.05

struct pace_window {
  double size;            /* bytes; 0: as large as it may be */
  double last;            /* when something that was timed ended */
  double reduced;         /* when it last became smaller */
  double shortest;        /* in the period that began then, */
  double period_began;
  double shortest_before; /* and in the period before; 0: nothing was timed */
  unsigned probe;         /* for so many more the window is a batch */
};

/* All zeroes in the beginning. */
struct pace {
  struct pace_window reads, copies;
  uint64_t batch;         /* of the copies that were timed */
  bool busy;              /* the clients */
  uint64_t requests;      /* of clients, at the last look, */
  double looked;          /* which was then */
};

/* A read of the source for a client has ended, and took so long. */
extern void pace_was_read (struct pace *p, uint64_t count, double took,
                           double now, uint64_t batch, uint64_t threshold);

/* A read of the source for hydration has ended, and took so long.  requests is
 * how many clients have made until now.
 */
extern void pace_was_copied (struct pace *p, uint64_t count, double took,
                             uint64_t requests, double now, uint64_t batch,
                             uint64_t threshold);

extern uint64_t pace_window (const struct pace *p, double now, uint64_t batch,
                             uint64_t threshold);

#endif /* CLONE_PACE_H */
