/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The Host header of requests over TCP.
 *
 * A web page can make its site's name point to any address, such as 127.0.0.1
 * (DNS rebinding).  A browser then takes this server for a part of that site,
 * and lets the page read the answers.  But the Host header still has the site's
 * name.  So a request is accepted only if it names this server in a way in
 * which no foreign site can: by an address, or by a name that means this host.
 */

#ifndef CLONE_HOST_H
#define CLONE_HOST_H

#include <stdbool.h>
#include <sys/socket.h>

/* Does the value of a Host header name this server?  It does if it consists of
 *
 *   - the ADDRESS in `address', which is the ADDRESS:PORT of listen_open,
 *     localhost, 127.0.0.1, [::1], or the address in `local',
 *   - and the port in `local', which may be missing if it is 80.
 *
 * local is the address that the client has connected to.  value is NULL if the
 * request has no such header: then the result is false.
 */
extern bool host_is_ours (const char *value, const char *address,
                          const struct sockaddr *local);

#endif /* CLONE_HOST_H */
