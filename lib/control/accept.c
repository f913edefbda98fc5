/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/rounding.h"
#include "control/accept.h"

/* The most connections that are accepted before requests are served again. */
#define TURN 10u

/* Milliseconds until the next try after accept has failed, mostly because the
 * process has no file descriptor left.  The listening socket stays readable, so
 * without a pause the loop would spin.
 */
#define PAUSE 100

void
acceptor_init (struct acceptor *a, struct MHD_Daemon *daemon, int fd,
               unsigned max)
{
  *a = (struct acceptor){ .daemon = daemon, .fd = fd, .max = max };
}

static unsigned
count_connections (const struct acceptor *a)
{
  return MHD_get_daemon_info (a->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS)
    ->num_connections;
}

/* Accept one connection.  False if there is none, or if it has to wait. */
static bool
accept_one (struct acceptor *a)
{
  struct sockaddr_storage addr;
  socklen_t len = sizeof addr;
  const int fd = accept4 (a->fd, (struct sockaddr *)&addr, &len,
                          SOCK_CLOEXEC | SOCK_NONBLOCK);

  if (fd >= 0) {
    /* On failure this closes the socket: there is no memory. */
    MHD_add_connection (a->daemon, fd, (struct sockaddr *)&addr, len);
    return true;
  }
  switch (errno) {
  case ECONNABORTED: case EINTR: case EPROTO: /* only this one has failed */
    return true;
  case EAGAIN:
    return false;
  default:
    a->pause_until = monotonic_ms () + PAUSE;
    return false;
  }
}

void
acceptor_run (struct acceptor *a)
{
  const unsigned n = count_connections (a);
  unsigned turn;

  if (acceptor_timeout (a) > 0)
    return;
  a->pause_until = 0;
  if (a->fd == -1 || n >= a->max)
    return;
  for (turn = MIN (a->max - n, TURN); turn > 0 && accept_one (a); turn--)
    ;
}

int
acceptor_poll_fd (const struct acceptor *a)
{
  return a->pause_until == 0 && count_connections (a) < a->max ? a->fd : -1;
}

int64_t
acceptor_timeout (const struct acceptor *a)
{
  return a->pause_until ? MAX (a->pause_until - monotonic_ms (), 0) : -1;
}

void
acceptor_close (struct acceptor *a)
{
  a->fd = -1;
}
