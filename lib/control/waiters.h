/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The waiters: GET /wait requests whose answer is due when the state becomes
 * complete or failed.
 *
 * libmicrohttpd suspends their connections, so a waiter costs no thread.  A
 * resumed request goes to its endpoint's handler again.
 *
 * Everything here belongs to the control interface's thread and needs no lock.
 */

#ifndef CLONE_WAITERS_H
#define CLONE_WAITERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "control/request.h"

struct waiters {
  const struct instance *instance;
  LIST_HEAD (, request) list;
  int64_t next_check; /* monotonic_ms */
  bool closed;
};

extern void waiters_init (struct waiters *w, const struct instance *instance);

/* Suspend a request.  False if it must be answered now instead: its client has
 * closed the connection, or the waiters are closed.
 */
extern bool waiters_add (struct request *r);

/* Milliseconds until the next check is due, at least 0; -1 if nobody waits. */
extern int64_t waiters_timeout (const struct waiters *w);

/* Resume all waiters if the state is complete or failed, and otherwise those
 * whose clients have closed the connection.  Call this at least when a check is
 * due.
 */
extern void waiters_check (struct waiters *w);

/* Resume all waiters, whatever the state is.  No request is suspended any more.
 */
extern void waiters_close (struct waiters *w);

#endif /* CLONE_WAITERS_H */
