/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Waiting for servers that are lost.
 *
 * A request that fails with ENOTCONN may succeed after something has happened:
 * a connection was made or another one lost, the map was set back.  Whoever
 * wants to try again
 *
 *   1. notes outage_events before the try,
 *   2. tries, and gets ENOTCONN,
 *   3. waits until the number is another one.
 *
 * What happens after step 1 is not missed, and nobody tries again before
 * anything has happened.  It does not matter which server the request needs: a
 * try that comes too early fails at once.
 */

#ifndef CLONE_OUTAGE_H
#define CLONE_OUTAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct outage {
  _Atomic uint64_t events;
  atomic_bool ended;
  pthread_mutex_t lock;
  pthread_cond_t changed;
};

extern void outage_init (struct outage *o);
extern void outage_destroy (struct outage *o);

extern uint64_t outage_events (const struct outage *o);

/* Something has happened.  Any thread; waits for nothing. */
extern void outage_happened (struct outage *o);

/* From now on nobody waits. */
extern void outage_end (struct outage *o);
extern bool outage_has_ended (const struct outage *o);

/* Wait until something has happened since the number was `events', or for so
 * many milliseconds, or until the end.
 */
extern void outage_wait (struct outage *o, uint64_t events, int milliseconds);

#endif /* CLONE_OUTAGE_H */
