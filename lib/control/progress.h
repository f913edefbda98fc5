/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Progress lines for programs: the object of GET /status (status.h), in one
 * line, when it starts, each second, and at the end.
 *
 * The end is a line whose state is "complete", or progress_stop.  Nothing is
 * written after it.
 *
 * Lines are written whole or not at all: where the reader is slow, a line is
 * left out.  The line that says "complete" is tried again each second until it
 * is out.  When writing fails, because the reader has gone or the disk is
 * full, there are no more lines, and that is all that happens.
 *
 * A thread of its own does it, which never waits for the reader and touches
 * nothing that serves clients.
 */

#ifndef CLONE_PROGRESS_H
#define CLONE_PROGRESS_H

#include "base/log.h"
#include "control/status.h"

struct progress;

/* Lines go to fd, which stays the caller's: it is duplicated, so that the lines
 * go on where it leads now even when a server that becomes a daemon redirects
 * its standard error.  service may be filled in until progress_start, and must
 * stay until progress_stop.  NULL on failure, for example when fd is not open
 * for writing; the reason is logged.
 */
extern struct progress *progress_new (int fd, const struct service *service,
                                      const struct log *log);

/* Start the thread, with all signals blocked.  Not before the process has
 * forked for the last time.  -1, logged, where that fails.
 */
extern int progress_start (struct progress *p);

/* Write the last line, unless the end has come before, and join the thread.
 * Does nothing where it was not started.
 */
extern void progress_stop (struct progress *p);

extern void progress_free (struct progress *p); /* stopped; NULL is allowed */

#endif /* CLONE_PROGRESS_H */
