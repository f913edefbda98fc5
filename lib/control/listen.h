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
#include <sys/types.h>

#include "base/log.h"

struct listener {
  const char *address; /* the caller's, which keeps it */
  const struct log *log;
  int fd;
  bool is_path;        /* a unix socket, whose name is still there */
  dev_t dev;           /* which file that name was given to */
  ino_t ino;
};

/* Is this a path, and not ADDRESS:PORT?  It is where it contains a slash or no
 * colon.
 */
extern bool listen_address_is_path (const char *address);

/* Create the socket and listen.
 *
 * address is an absolute path, or ADDRESS:PORT with a name, an IPv4 address or
 * an IPv6 address in brackets.  A unix socket is for its owner only (mode
 * 0600); one that nobody listens on any more is replaced, anything else that
 * exists is refused.  A TCP address must be loopback, unless anywhere is true.
 *
 * -1 on failure; the reason is logged, and l is closed.
 */
extern int listen_open (struct listener *l, const char *address, bool anywhere,
                        const struct log *log);

/* Close the socket and, where it is a unix socket and still ours, remove its
 * name.  Does nothing where it is closed.
 */
extern void listen_close (struct listener *l);

#endif /* CLONE_LISTEN_H */
