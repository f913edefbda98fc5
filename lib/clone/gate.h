/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The gate: requests that use the destination pass through it, so that the map
 * can be set back while no request is using it.
 *
 * A request, copy or commit that looks at the map and then touches the
 * destination because of what it saw is inside the gate from that look until
 * the destination has answered.  While anything is inside, regions only change
 * from invalid to valid.
 *
 * When the destination has lost what was not durable, the map must be set back.
 * gate_close keeps new requests out and waits until all have left; then the
 * caller is alone with the map; gate_open lets requests in again.
 *
 *   gate_enter --> inside --> gate_leave          any thread but a loop's
 *   gate_try_enter: false while it is closed      a loop, which never waits
 *   gate_close --> alone --> gate_open            counts one closing
 *
 * The wait is short.  Inside, a thread waits only for the destination, for the
 * metadata, and for other threads that are inside; requests to a server that is
 * lost fail at once.  The source is read outside the gate.
 *
 * A request that leaves the gate to read the source, and enters it again,
 * compares gate_closings before and after.  If the number has changed, the map
 * may have been set back, and what the request saw before does not count.
 *
 * Lock order: the gate before ownership (install.h).  A thread is inside at
 * most once.
 *
 * Cost: two atomic operations on a cache line that threads on other processors
 * rarely use.  After gate_remove, when nothing can be set back any more: one
 * atomic look.
 */

#ifndef CLONE_GATE_H
#define CLONE_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define GATE_STRIPES 16

struct gate {
  atomic_bool closed;
  atomic_bool removed;
  _Atomic uint64_t closings;

  pthread_mutex_t closing; /* held from gate_close to gate_open */
  pthread_mutex_t lock;    /* for the two conditions */
  pthread_cond_t opened;
  pthread_cond_t left;

  /* The sum of these is the number of requests, copies and commits inside. */
  struct {
    _Alignas (64) atomic_uint inside;
  } stripe[GATE_STRIPES];
};

/* Where one entry was counted.  The caller keeps it until gate_leave. */
struct gate_pass {
  atomic_uint *inside; /* NULL: not counted, there was no gate */
};

extern void gate_init (struct gate *g);
/* Nothing may be inside. */
extern void gate_destroy (struct gate *g);

/* Waits while the gate is closed. */
extern void gate_enter (struct gate *g, struct gate_pass *pass);
extern bool gate_try_enter (struct gate *g, struct gate_pass *pass);
extern void gate_leave (struct gate *g, struct gate_pass *pass);

/* How many times the gate was closed. */
extern uint64_t gate_closings (const struct gate *g);

/* Close the gate, and wait until everything inside has left.  If another thread
 * has closed it, wait for that thread's gate_open first.  The caller is not
 * inside.
 */
extern void gate_close (struct gate *g);
extern void gate_open (struct gate *g);

/* The map is never set back again: from now on entries are not counted, and
 * gate_close waits only for those that were.
 */
extern void gate_remove (struct gate *g);

#endif /* CLONE_GATE_H */
