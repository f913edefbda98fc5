/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Progress lines for programs: the status as JSON (status.h), one object a
 * line, at the start, each second, and at the end.
 *
 * The last line is the one whose state is "complete", or the one that
 * progress_stop writes.
 *
 * A line is written whole or not at all: if the reader is slow, lines are
 * dropped.  The line with the state "complete" is not dropped, but tried again
 * each second.  If writing fails, because the reader has closed the pipe or the
 * disk is full, no more lines follow; nothing else stops.
 *
 * A thread of its own writes the lines.  It never waits for the reader, and
 * takes no lock that is held across I/O.
 */

#ifndef CLONE_PROGRESS_H
#define CLONE_PROGRESS_H

#include "base/log.h"
#include "control/instance.h"

struct progress;

/* Write to fd, which is duplicated and stays the caller's.  So lines still
 * reach the same file after a daemon has redirected its standard error.  NULL
 * on failure, which is logged, for example if fd is not open for writing.
 */
extern struct progress *progress_new (int fd, const struct instance *instance,
                                      const struct log *log);

/* Start the thread, with all signals blocked.  The process must not fork after
 * this.  -1 on failure, which is logged.
 */
extern int progress_start (struct progress *p);

/* Write the last line, unless it has been written, and join the thread.  Does
 * nothing if the thread was not started.
 */
extern void progress_stop (struct progress *p);

/* The thread must have stopped.  NULL is allowed. */
extern void progress_free (struct progress *p);

#endif /* CLONE_PROGRESS_H */
