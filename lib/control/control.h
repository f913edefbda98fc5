/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The control interface: HTTP with JSON, on a unix socket or a TCP port.
 *
 *   GET /status      the status (status.h)
 *   GET /wait        the status, as soon as the state is complete or failed
 *   POST /pause      pause hydration; the status
 *   POST /resume     resume hydration, also after a failure; the status
 *   POST /stop       the status; then end the process
 *   GET /settings    all settings (settings.h)
 *   PATCH /settings  change some settings, or none on error; all settings
 *   GET /map         which parts of the disk are in which state (map.h)
 *   GET /metrics     the status and the counters for Prometheus (metrics.h)
 *
 * HEAD is answered like GET.  Each answer but that of /metrics is a JSON object
 * and a newline.
 * Errors are {"error": "what is wrong"} with 400, 401, 403, 404, 405, 413 or
 * 421.
 *
 * One thread does everything.  Its only I/O is on its own sockets, and it takes
 * no lock that is held across I/O, so it never slows the disk's clients down.
 *
 * GET /wait costs no thread.  It is answered early, with the status of that
 * moment, when the control interface stops, and when its client closes the
 * connection, even if only for writing.
 *
 * Limits: the body of a request has at most 64 KiB.  There are at most 4096
 * connections, and not more than half of the process's file descriptors; others
 * have to wait.  A connection is closed after 30 seconds without activity,
 * unless it waits for the answer to GET /wait.
 *
 * Access: a unix socket is for its owner only (mode 0600).  If there is a
 * token, each request must carry it ("Authorization: Bearer TOKEN").  A TCP
 * address that is not loopback needs a token, and a request over TCP must name
 * it in its Host header (host.h).
 */

#ifndef CLONE_CONTROL_H
#define CLONE_CONTROL_H

#include "base/log.h"
#include "control/instance.h"

struct control;

/* Create the socket and listen, so that errors are found early.  Requests are
 * answered after control_start.
 *
 * address is as for listen_open.  token is NULL, or the token that each request
 * must carry.  Both are copied.  NULL on failure, which is logged.
 */
extern struct control *control_new (const char *address, const char *token,
                                    const struct instance *instance,
                                    const struct log *log);

/* Start the thread, with all signals blocked.  The process must neither fork
 * nor change its user after this: a unix socket belongs to its present user
 * from now on.  -1 on failure, which is logged.
 */
extern int control_start (struct control *c);

/* Answer GET /wait requests now, if the state has become complete or failed.
 * Without this call they are answered within a second.  opaque is the struct
 * control, so that this can be given to hydrate_new.  Any thread may call
 * it, from control_new to control_free.
 */
extern void control_wake (void *opaque);

/* Answer all requests, close all connections, and join the thread.  This takes
 * a second at most, whatever clients do.  Does nothing if the thread was not
 * started.
 */
extern void control_stop (struct control *c);

/* Close the socket and, if it is a unix socket and nobody has replaced it,
 * remove its name.  The thread must have stopped.  NULL is allowed.
 */
extern void control_free (struct control *c);

#endif /* CLONE_CONTROL_H */
