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
  const char *address; /* not owned */
  const struct log *log;
  int fd;              /* -1: closed */
  bool is_path;        /* a unix socket whose name was not removed */
  dev_t dev;           /* if is_path: the identity of the socket's file */
  ino_t ino;
};

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

/* Close the socket and, if it is a unix socket and nobody has replaced it,
 * remove its name.  Does nothing if l is closed.
 */
extern void listen_close (struct listener *l);

#endif /* CLONE_LISTEN_H */
