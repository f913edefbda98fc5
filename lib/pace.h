/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The pace of hydration: how many bytes it has under way at once.  That is never
 * more than the threshold and never less than a batch, and the smallest of
 * three windows.
 *
 * Beside clients that read from the source.  Each short read of the source for a
 * client is timed.  The shortest time of the last seconds is what the source
 * needs by itself; a read is late when it takes a tenth and PACE_SLACK longer
 * than that.  Each late one makes the window smaller by a quarter, and each that
 * is in time makes it larger by 1/400.  So it settles where about one read in a
 * hundred is late.  What a client reads from the destination does not count, nor
 * does what it writes: they do not wait for the source.
 *
 * As much as the source can use.  Hydration's own reads of whole batches are
 * timed, too.  More under way than fills the way to the source and back only
 * waits in a queue there, and meanwhile drops out of the processors' caches: a
 * read is late when it takes twice as long as the shortest, and PACE_QUEUE.
 * Each late one makes the window smaller by a tenth, and each that is in time
 * makes it larger by a twentieth.  But it is no less than a quarter of the
 * threshold, because a short time may have come out of a cache, and the next
 * ones from a disk that wants many requests.
 *
 * Beside clients in general, who want processors as well, that queue is to be
 * nearly empty: the same, but a read is late when it takes half again as long
 * as the shortest, and the least is a batch.  Where the source is near this is
 * mostly one copy, which is nearly as fast as many; where it is far, about what
 * fills the way.
 *
 * When no client has come for PACE_IDLE, clients do not count any more.
 *
 * To see what the source needs by itself, hydration gets out of the way now and
 * then: for PACE_PROBE of the clients' reads, and for one copy of its own, which
 * it makes alone.  (TCP BBR looks for the round trip time in this way, and TCP
 * Vegas bounds the queue.)
 *
 * Times are in seconds, by a clock that never goes back; sizes in bytes.  There
 * is no lock: the user's protects it.
 */

#ifndef CLONE_PACE_H
#define CLONE_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_SLACK 0.0005
#define PACE_QUEUE 0.004
#define PACE_IDLE 0.5

/* For how long the shortest time counts, at least, and after how long hydration
 * gets out of the way again.
 */
#define PACE_MEMORY 10
#define PACE_PROBE 8

/* A longer read takes time for itself. */
#define PACE_MAX_READ (UINT64_C (128) << 10)

struct pace_shortest {
  double now;            /* in the period that began then, */
  double began;
  double before;         /* and in the period before; 0: nothing was timed */
};

struct pace {
  double window;         /* bytes; 0: as large as it may be */
  double last_read;      /* when a client's read of the source ended */
  struct pace_shortest reads;
  unsigned probe;        /* for so many reads more the window is a batch */

  double copies_window;  /* the same for hydration's own reads */
  struct pace_shortest copies;
  bool probe_copy;       /* until a copy was made alone the window is a batch */
  double last_client;    /* when a client came; 0: never */
};

/* A client has come since the last call, whatever it wants. */
extern void pace_client_came (struct pace *p, double now, uint64_t batch);

/* A read of the source for a client has ended, and took so long. */
extern void pace_was_read (struct pace *p, uint64_t count, double took,
                           double now, uint64_t batch, uint64_t threshold);

/* So has a read for hydration.  alone: nothing else was under way when it
 * began.
 */
extern void pace_copy_was_read (struct pace *p, uint64_t count, double took,
                                bool alone, double now, uint64_t batch,
                                uint64_t threshold);

extern uint64_t pace_window (const struct pace *p, double now, uint64_t batch,
                             uint64_t threshold);

#endif /* CLONE_PACE_H */
