/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The gate: the one way to the destination, and the way to be alone with the
 * map.
 *
 * Every request, copy and commit that looks at the map and touches the
 * destination because of what it saw is inside the gate from that look until
 * the destination has answered.  The map only ever goes from invalid to valid
 * while anybody is inside.
 *
 * To set the map back, because the destination has lost what was not durable,
 * gate_close keeps newcomers out and waits until all have left.  Nobody inside
 * waits for anything but the destination, the metadata, and others who are
 * inside, so they leave soon: requests to a server that is lost fail at once.
 * Reads of the source are made outside.
 *
 *   gate_enter --> inside --> gate_leave          any thread but a loop's
 *   gate_try_enter: false while it is closed      a loop, which never waits
 *   gate_close --> alone --> gate_open            counts one closing
 *
 * Whoever leaves and comes back, to read the source in between, compares
 * gate_closings before and after: if it has changed, the map may have been set
 * back and what was seen before does not count.
 *
 * Order of locks: the gate before ownership (range-lock.h).  A thread is inside
 * at most once.
 *
 * Cost: two atomic operations on a cache line that threads on other processors
 * do not use; after gate_remove, when nothing can be set back any more, one
 * look.
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

  /* Who is inside, counted in one of these. */
  struct {
    _Alignas (64) atomic_uint inside;
  } stripe[GATE_STRIPES];
};

/* Where somebody inside was counted: the caller keeps it until gate_leave. */
struct gate_pass {
  atomic_uint *inside; /* NULL: not counted, there was no gate */
};

extern void gate_init (struct gate *g);
/* Nobody may be inside. */
extern void gate_destroy (struct gate *g);

/* Waits while the gate is closed. */
extern void gate_enter (struct gate *g, struct gate_pass *pass);
extern bool gate_try_enter (struct gate *g, struct gate_pass *pass);
extern void gate_leave (struct gate *g, struct gate_pass *pass);

/* How often it has been closed. */
extern uint64_t gate_closings (const struct gate *g);

/* Close it and wait until all have left, and others who closed it have opened
 * it.  The caller is not inside.
 */
extern void gate_close (struct gate *g);
extern void gate_open (struct gate *g);

/* The map is never set back again: from now on nobody is counted, and
 * gate_close waits for nobody.
 */
extern void gate_remove (struct gate *g);

#endif /* CLONE_GATE_H */
