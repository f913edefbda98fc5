/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <assert.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/tcp.h>

#include <libnbd.h>

#include "backend/nbd-connection-internal.h"
#include "base/cleanup.h"

struct nbd_connection *
nbd_connection_new (void)
{
  struct nbd_connection *conn = calloc (1, sizeof *conn);

  if (conn == NULL)
    return NULL;
  pthread_mutex_init (&conn->lock, NULL);
  pthread_mutex_init (&conn->driving, NULL);
  conn->users = 1;
  conn->alive = true;
  conn->fd = -1;
  conn->wakeup = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (conn->wakeup >= 0)
    return conn;
  nbd_connection_put (conn);
  return NULL;
}

void
nbd_connection_put (struct nbd_connection *conn)
{
  if (conn == NULL || atomic_fetch_sub (&conn->users, 1) > 1)
    return;
  assert (conn->load == 0);

  /* Try to send NBD_CMD_DISC, without waiting. */
  if (conn->nbd && conn->alive)
    nbd_aio_disconnect (conn->nbd, 0);
  nbd_close (conn->nbd);
  if (conn->fd >= 0)
    close (conn->fd);
  if (conn->wakeup >= 0)
    close (conn->wakeup);
  pthread_mutex_destroy (&conn->lock);
  pthread_mutex_destroy (&conn->driving);
  free (conn);
}

void
nbd_connection_kill (struct nbd_connection *conn, const char *why)
{
  LOCK_FOR_SCOPE (&conn->lock);

  conn->alive = false;
  if (conn->why[0] == '\0')
    snprintf (conn->why, sizeof conn->why, "%s", why);
  /* shutdown wakes the driver.  conn->fd is our duplicate: libnbd may have
   * closed its own descriptor, whose number may belong to another file by now.
   */
  if (conn->fd >= 0)
    shutdown (conn->fd, SHUT_RDWR);
}

const char *
nbd_connection_confirm_death (struct nbd_connection *conn)
{
  nbd_connection_kill (conn, conn->nbd && nbd_aio_is_closed (conn->nbd)
                 ? "the server closed it" : "sending failed");
  return conn->why;
}

bool
nbd_connection_handle_died (const struct nbd_connection *conn)
{
  /* Only a handle that is dead or closed wants neither to read nor to write. */
  return nbd_aio_get_direction (conn->nbd) == 0;
}

uint64_t
nbd_connection_received (const struct nbd_connection *conn)
{
  struct tcp_info info = { 0 };
  socklen_t len = sizeof info;

  getsockopt (conn->fd, IPPROTO_TCP, TCP_INFO, &info, &len);
  return info.tcpi_bytes_received;
}

bool
nbd_connection_has_unread (const struct nbd_connection *conn)
{
  struct pollfd pfd = { .fd = conn->fd, .events = POLLIN };

  return poll (&pfd, 1, 0) > 0;
}
