/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Accepting the connections of the control interface.
 *
 * libmicrohttpd could do this itself, but it watches the listening socket again
 * only when it runs next, perhaps after a connection's timeout, once it has
 * stopped at its limit of connections or without file descriptors.
 *
 * Everything here belongs to the control interface's thread and needs no lock.
 */

#ifndef CLONE_ACCEPT_H
#define CLONE_ACCEPT_H

#include <stdint.h>

#include <microhttpd.h>

struct acceptor {
  struct MHD_Daemon *daemon; /* gets the connections */
  int fd;                    /* the listening socket; -1: accept no more */
  unsigned max;              /* connections at one time; others have to wait */
  int64_t pause_until;       /* monotonic_ms; 0: there is no pause */
};

/* The socket does not block, and stays the caller's. */
extern void acceptor_init (struct acceptor *a, struct MHD_Daemon *daemon,
                           int fd, unsigned max);

/* Accept some of the connections that wait.  libmicrohttpd must run after this,
 * because it counts only the connections that it has seen.
 */
extern void acceptor_run (struct acceptor *a);

/* The descriptor that becomes readable when there is something to accept; -1 if
 * nothing may be accepted now.
 */
extern int acceptor_poll_fd (const struct acceptor *a);

/* Milliseconds until the pause ends, at least 0; -1 if there is none. */
extern int64_t acceptor_timeout (const struct acceptor *a);

/* Accept no more connections. */
extern void acceptor_close (struct acceptor *a);

#endif /* CLONE_ACCEPT_H */
