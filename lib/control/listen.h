/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The listening socket of the control interface: a unix socket or a TCP port.
 *
 * Used by one thread at a time.
 */

#ifndef CLONE_LISTEN_H
#define CLONE_LISTEN_H

#include <stdbool.h>

#include "base/log.h"
#include "control/socket-path.h"

struct listener {
  const char *address;     /* not owned */
  const struct log *log;
  int fd;                  /* -1: closed */
  bool is_path;            /* a unix socket */
  struct socket_path path; /* if is_path */
  int helper;              /* for socket_owner_finish, or -1 */
};

#define LISTENER_CLOSED { .fd = -1, .helper = -1 }

/* Is this a path, and not ADDRESS:PORT?  A path contains a slash or no colon.
 */
extern bool listen_address_is_path (const char *address);

/* Create the socket and listen.
 *
 * address is an absolute path, or ADDRESS:PORT.  ADDRESS is a name, an IPv4
 * address, or an IPv6 address in brackets.  It must be loopback unless anywhere
 * is true.
 *
 * A unix socket is for its owner only (mode 0600).  An existing socket on which
 * no process listens is replaced; any other existing file is an error.
 *
 * On failure, which is logged, the result is -1 and l is closed.
 */
extern int listen_open (struct listener *l, const char *address, bool anywhere,
                        const struct log *log);

/* The process has changed its user, or will not do so.  A unix socket belongs
 * to this user from now on.
 */
extern void listen_user_is_final (struct listener *l);

/* Close the socket and, if it is a unix socket and nobody has replaced it,
 * remove its name.  Does nothing if l is closed.
 */
extern void listen_close (struct listener *l);

#endif /* CLONE_LISTEN_H */
