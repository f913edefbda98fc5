/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The HTTP server of the control interface, by libmicrohttpd: its limits, which
 * requests it refuses, and the life of a request.
 *
 *   headers ---> body, in pieces ---> complete ---> answered ---> done
 *                                        |  ^
 *                                        v  | resumed
 *                                     suspended (waiters.h)
 *
 * The server has no thread.  The thread that calls server_run does everything.
 */

#ifndef CLONE_SERVER_H
#define CLONE_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include <microhttpd.h>

#include "control/accept.h"
#include "control/instance.h"
#include "control/waiters.h"

/* All of these stay the caller's. */
struct server_options {
  int fd;              /* the listening socket */
  const char *address; /* where it listens, as for listen_open */
  const char *token;   /* NULL: none is needed */
  const struct instance *instance;
};

struct server {
  struct server_options options;
  struct MHD_Daemon *daemon;
  struct acceptor acceptor;
  struct waiters waiters;
  unsigned unanswered; /* complete requests that are not done */
};

/* -1 if the server cannot be started. */
extern int server_start (struct server *s,
                         const struct server_options *options);

/* Do everything that can be done without waiting. */
extern void server_run (struct server *s);

/* Wait until server_run has something to do, or `wake' is readable, but at most
 * `max' milliseconds if that is not negative.  True if `wake' is readable.
 */
extern bool server_wait (struct server *s, int wake, int64_t max);

/* Accept no more connections. */
extern void server_quiesce (struct server *s);

/* Close all connections. */
extern void server_stop (struct server *s);

#endif /* CLONE_SERVER_H */
