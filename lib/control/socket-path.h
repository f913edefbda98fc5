/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A listening unix socket with a name in the file system.
 *
 * A server that is killed leaves its socket's name behind, and the next one
 * replaces it.  To see whether a process listens, and to replace the name, are
 * two steps, and so are to create a socket and to listen on it.  Whoever does
 * these steps holds a lock, so that nobody replaces the socket of a server that
 * has just started.  The lock is on the file PATH.lock, which is removed when
 * the lock is released.
 */

#ifndef CLONE_SOCKET_PATH_H
#define CLONE_SOCKET_PATH_H

#include <sys/types.h>

#include "base/log.h"

struct socket_path {
  const char *path; /* not owned */
  const struct log *log;
  dev_t dev;        /* the identity of the socket's file */
  ino_t ino;
};

/* Create the socket, with mode 0600, and listen.  An existing socket on which
 * no process listens is replaced; any other existing file is an error.  May
 * wait for another process that does the same.  Returns the descriptor, which
 * does not block, or -1, logged.
 */
extern int socket_path_open (struct socket_path *s, const char *path,
                             const struct log *log);

/* Remove the name, unless another file has taken its place.  The socket must
 * still be open: then its inode number is not reused for another file, and no
 * other server replaces it.
 */
extern void socket_path_remove (const struct socket_path *s);

#endif /* CLONE_SOCKET_PATH_H */
