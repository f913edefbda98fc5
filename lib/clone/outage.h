/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The events that a request waits for while a server is lost.
 *
 * A request that failed with ENOTCONN may succeed after the next event: a
 * connection was made or lost, or the map was set back.  To try again, a thread
 *
 *   1. reads outage_events before the try,
 *   2. tries, and gets ENOTCONN,
 *   3. waits until outage_events has changed.
 *
 * An event after step 1 is not missed, and there is no other try before an
 * event.  The events of all servers are counted together.  So the event may be
 * another server's; then the next try fails at once, and the thread waits
 * again.
 */

#ifndef CLONE_OUTAGE_H
#define CLONE_OUTAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct outage {
  _Atomic uint64_t events;
  atomic_bool waiting_ended;
  pthread_mutex_t lock;
  pthread_cond_t changed;
};

extern void outage_init (struct outage *o);
extern void outage_destroy (struct outage *o);

extern uint64_t outage_events (const struct outage *o);

/* Count an event.  Any thread may call it; it waits for nothing. */
extern void outage_happened (struct outage *o);

/* The process ends: from now on outage_wait returns at once. */
extern void outage_end_waiting (struct outage *o);
extern bool outage_waiting_has_ended (const struct outage *o);

/* Wait until the number of events differs from `events', or outage_end_waiting
 * is called, or the time is over.
 */
extern void outage_wait (struct outage *o, uint64_t events, int milliseconds);

#endif /* CLONE_OUTAGE_H */
