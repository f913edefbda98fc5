/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How the plugin learns at once that nbdkit is told to end.
 *
 * nbdkit then waits for its clients before it calls the plugin, and has no
 * callback that comes earlier.  (It wakes up threads that sleep in
 * nbdkit_nanosleep, but logs an error when it does so.)  So the signals that
 * end nbdkit are caught: the handler first calls nbdkit's own handler, and then
 * wakes up shutdown_wait.
 *
 * A filter can end nbdkit without a signal.  Then shutdown_wait returns when
 * nbdkit has no client any more and calls cleanup.
 */

#ifndef CLONE_SHUTDOWN_H
#define CLONE_SHUTDOWN_H

/* Catch the signals, after nbdkit has forked.  Called once. */
extern void shutdown_catch (void);

/* Wait for one of the signals or for shutdown_over.  For one thread. */
extern void shutdown_wait (void);

/* Give the signals back to nbdkit, which may unload the plugin afterwards, and
 * end shutdown_wait.  Nothing happens without shutdown_catch.
 */
extern void shutdown_over (void);

#endif /* CLONE_SHUTDOWN_H */
