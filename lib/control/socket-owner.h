/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The owner of the control interface's unix socket.
 *
 * The socket is created early, so that errors are found.  A process that root
 * has started may change its user after that (nbdkit's --user and --group).
 * Then the socket should belong to the new user, but only root can give a file
 * away.  So a helper process, which stays root, waits for that moment.
 *
 *   socket_owner_begin    if the process is root: start the helper
 *     --> the process changes its user, and perhaps forks
 *     --> socket_owner_finish   the helper gives the socket away, and ends
 *
 * The helper ends, too, when the process ends.
 */

#ifndef CLONE_SOCKET_OWNER_H
#define CLONE_SOCKET_OWNER_H

#include "control/socket-path.h"

/* Start the helper for this socket.  *helper is a descriptor for
 * socket_owner_finish, or -1 if no helper is needed.  -1 on failure, logged.
 */
extern int socket_owner_begin (const struct socket_path *s, int *helper);

/* Make the process's user and group the owners of the socket, and end the
 * helper.  Closes the descriptor, which may be -1.  -1 on failure, logged.
 */
extern int socket_owner_finish (const struct socket_path *s, int helper);

#endif /* CLONE_SOCKET_OWNER_H */
