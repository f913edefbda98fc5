/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The control interface: HTTP with JSON, on a unix socket or a TCP port.
 *
 *   GET /status      the status (status.h)
 *   GET /wait        the status, when it is complete or failed
 *   POST /pause      pause hydration; the status
 *   POST /resume     resume it, also after a failure; the status
 *   POST /stop       end the process; the status before that
 *   GET /settings    the settings
 *   PATCH /settings  change some, all or none; all settings
 *
 * HEAD is answered like GET.  Each answer is a JSON object and a newline;
 * errors are {"error": "what is wrong"} with 400, 401, 403, 404, 405 or 413.
 *
 * One thread does everything.  It does no I/O but on its own sockets and
 * takes no lock that is held across I/O, so that clients of the disk never
 * notice it.  Requests to wait are suspended and cost no thread.  They are
 * answered early, with the status as it is, when the control interface stops
 * and when their client has closed its connection, even for writing only.
 *
 * Limits: a request's body, 64 KiB; connections, half of the file descriptors
 * that the process may have and at most 4096, more have to wait; a connection
 * on which nothing happens and that does not wait is closed after 30 seconds.
 *
 * Access: a unix socket is for its owner only (mode 0600).  Where there is a
 * token, each request must bring it along ("Authorization: Bearer TOKEN").
 * An address that is not loopback must have one.
 */

#ifndef CLONE_CONTROL_H
#define CLONE_CONTROL_H

#include <stdbool.h>

#include "base/log.h"
#include "control/instance.h"

struct control;

/* Create the socket and listen, so that what is wrong is known early; requests
 * are answered from control_start on.
 *
 * address is an absolute path, or ADDRESS:PORT with a name, an IPv4 address or
 * an IPv6 address in brackets.  A socket that nobody listens on any more is
 * replaced, anything else that exists is refused.  token may be NULL.  instance
 * may be filled in until control_start, and must stay until control_stop.
 *
 * NULL on failure; the reason is logged.
 */
extern struct control *control_new (const char *address, const char *token,
                                    const struct instance *instance,
                                    const struct log *log);

/* Start the thread, with all signals blocked.  Not before the process has
 * forked for the last time.  -1, logged, where that fails.
 */
extern int control_start (struct control *c);

/* Have a look now whether those who wait can be answered.  Without it they are
 * within a second.  opaque is the struct control, so that this can be given to
 * hydrate_new.  Any thread may call it, from control_new to control_free.
 */
extern void control_wake (void *opaque);

/* Answer those who wait, close all connections, join the thread.  Takes a
 * second at most, whatever clients do.  Does nothing where it was not started.
 */
extern void control_stop (struct control *c);

/* Close the socket and, where it is a unix socket and still ours, remove it.
 * Stopped; NULL is allowed.
 */
extern void control_free (struct control *c);

#endif /* CLONE_CONTROL_H */
