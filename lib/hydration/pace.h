/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The pace of hydration beside clients.
 *
 * Two windows bound the bytes that hydration may have under way.  The smaller
 * one counts.  A window is never more than the threshold, and never less than a
 * batch.  Each window is controlled by how long something takes.  The shortest
 * time of the last seconds is what that takes by itself.  If it takes much
 * longer it is late, and the window shrinks by a quarter.  If it is in time,
 * the window grows.
 *
 *   reads   Each short read of the source for a client.  It is late when it
 *           takes PACE_SLACK and a tenth longer.  If it is in time, the window
 *           grows by 1/400.  So the window settles where about one read in a
 *           hundred is late.
 *
 *   copies  Each read of a whole batch for hydration, while clients are busy
 *           with requests of any kind, PACE_BUSY a second or more.  It is late
 *           when it takes twice as long, because then it has waited for other
 *           requests as long as for the source.  If it is in time, the window
 *           grows by 1/20.  So hydration has no more copies under way than keep
 *           the source busy: one for a near source, many for a far one.  (TCP
 *           Vegas finds its window in this way.)  A copy that began before the
 *           window shrank says nothing about the smaller window.
 *
 * After PACE_IDLE without anything to time, a window is the threshold.
 *
 * To learn how long something takes by itself, hydration gets out of the way
 * from time to time: for a probe of PACE_PROBE reads or copies, the window is a
 * batch.  Without probes nobody could know, because hydration may begin before
 * the first client.  (TCP BBR measures the round trip time in this way.)
 *
 * Times are in seconds of a monotonic clock, sizes in bytes.  There is no lock:
 * the caller's protects it.
 */

#ifndef CLONE_PACE_H
#define CLONE_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_SLACK 0.0005
#define PACE_IDLE 0.5

/* The shortest time counts for at least PACE_MEMORY seconds, which is also the
 * time between two probes.  PACE_PROBE is a number of reads or copies.
 */
#define PACE_MEMORY 10
#define PACE_PROBE 8

/* Longer reads for clients are not timed, because the transfer of their bytes
 * takes time, too.
 */
#define PACE_MAX_READ (UINT64_C (128) << 10)

/* Clients are busy if they make at least PACE_BUSY requests a second, counted
 * every PACE_LOOK seconds.
 */
#define PACE_BUSY 100
#define PACE_LOOK 0.05

struct pace_window {
  double size;            /* bytes; 0: the threshold */
  double last;            /* when something that was timed last ended */
  double reduced;         /* when it last shrank */
  double shortest;        /* shortest time in this period; 0: none was taken */
  double period_began;
  double shortest_before; /* shortest time in the period before */
  unsigned probe;         /* reads or copies that the probe still needs */
};

/* Initialize with zeroes. */
struct pace {
  struct pace_window reads, copies;
  uint64_t batch;         /* the batch of the copies that were timed */
  bool busy;              /* clients are busy */
  uint64_t requests;      /* clients' requests, counted at the last look */
  double looked;          /* time of the last look */
};

/* A read of count bytes of the source for a client has ended, after `took'
 * seconds.
 */
extern void pace_was_read (struct pace *p, uint64_t count, double took,
                           double now, uint64_t batch, uint64_t threshold);

/* The same for a read for hydration.  requests is the number of all requests
 * that clients have made.
 */
extern void pace_was_copied (struct pace *p, uint64_t count, double took,
                             uint64_t requests, double now, uint64_t batch,
                             uint64_t threshold);

/* How many bytes may be under way now. */
extern uint64_t pace_window (const struct pace *p, double now, uint64_t batch,
                             uint64_t threshold);

#endif /* CLONE_PACE_H */
