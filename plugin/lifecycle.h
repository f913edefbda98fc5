/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How the clone starts and ends.
 *
 *   get_ready    listen on the control socket, open or create source,
 *                destination and metadata.  Errors that the user can cause are
 *                found here, before nbdkit forks and messages can get lost
 *   after_fork   start the threads: the clone's, hydration, control, progress
 *                lines, and the watcher
 *
 * There are two ends:
 *
 *   SIGTERM      nbdkit first waits for its clients to disconnect, then calls
 *   or similar   cleanup.  The watcher notices the signal at once: it
 *                interrupts requests that wait for a lost server, and commits
 *   POST /stop   the stopper lets no further request reach the destination,
 *                makes everything durable, and ends the process with _exit
 */

#ifndef CLONE_LIFECYCLE_H
#define CLONE_LIFECYCLE_H

#include "control/instance.h"

/* The running clone, from lifecycle_get_ready to lifecycle_cleanup. */
extern struct instance instance;

/* nbdkit's callbacks of these names. */
extern int lifecycle_get_ready (void);
extern int lifecycle_after_fork (void);
extern void lifecycle_cleanup (void);

#endif /* CLONE_LIFECYCLE_H */
