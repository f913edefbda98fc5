/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Connecting to a server, and the handshake. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/tcp.h>

#include <libnbd.h>

#include "backend/nbd-connection-internal.h"
#include "base/cleanup.h"

/* How often the kernel repeats the first packet to an address before it gives
 * up: after 7 seconds, or 3 when connecting again.  So each address of a name
 * gets its turn.
 */
#define SYN_RETRIES 2
#define SYN_RETRIES_AGAIN 1

/* Milliseconds between two looks whether the connection was killed.  (A kill
 * usually ends the wait at once.  It does not while libnbd changes to another
 * socket.)
 */
#define CONNECT_TICK 100

const char *
nbd_connection_error (void)
{
  const char *error = nbd_get_error ();
  const char *colon;

  if (error == NULL)
    return "unknown error";
  colon = strstr (error, ": ");
  return strncmp (error, "nbd_", 4) == 0 && colon ? colon + 2 : error;
}

/* libnbd need not clear the buffers of reads: on_chunk does that, and only
 * where the server left a gap.  libnbd must not check alignment, because then
 * the last block of an export whose size is not a multiple of the block size
 * could not be reached; our callers align.
 */
static bool
create_handle (struct nbd_connection *conn, const char *role)
{
  struct nbd_handle *nbd = conn->nbd = nbd_create ();

  return nbd &&
    nbd_set_handle_name (nbd, role) == 0 &&
    nbd_set_uri_allow_local_file (nbd, true) == 0 &&
    nbd_set_opt_mode (nbd, true) == 0 &&
    nbd_set_pread_initialize (nbd, false) == 0 &&
    nbd_set_strict_mode (nbd, nbd_get_strict_mode (nbd) &
                         ~LIBNBD_STRICT_ALIGN) == 0 &&
    nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0;
}

/* Notice a peer that has vanished: one that has not answered the kernel for 30
 * seconds.  On sockets other than TCP the kernel knows at once.
 */
static void
set_timeouts (int fd, int syn_retries)
{
  const struct { int level, name, value; } options[] = {
    { SOL_SOCKET, SO_KEEPALIVE, 1 },
    { IPPROTO_TCP, TCP_KEEPIDLE, 10 }, /* seconds; then 4 times 5 */
    { IPPROTO_TCP, TCP_KEEPINTVL, 5 },
    { IPPROTO_TCP, TCP_KEEPCNT, 4 },
    { IPPROTO_TCP, TCP_USER_TIMEOUT, 30000 }, /* milliseconds */
    { IPPROTO_TCP, TCP_SYNCNT, syn_retries },
  };

  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
    setsockopt (fd, options[i].level, options[i].name, &options[i].value,
                sizeof options[i].value);
}

/* Learn which socket libnbd uses; for each address of a name it is another
 * one.  NULL, or why this failed.
 */
static const char *
adopt_socket (struct nbd_connection *conn, int syn_retries)
{
  const int fd = nbd_aio_get_fd (conn->nbd);
  struct stat st;
  LOCK_FOR_SCOPE (&conn->lock);

  if (fd == -1 || fstat (fd, &st) == -1)
    return nbd_connection_error ();
  if (conn->fd >= 0 && st.st_ino == conn->socket)
    return NULL;
  if (conn->fd >= 0)
    close (conn->fd);
  conn->fd = fcntl (fd, F_DUPFD_CLOEXEC, 0);
  if (conn->fd == -1)
    return strerror (errno);
  conn->socket = st.st_ino;
  set_timeouts (fd, syn_retries);
  conn->progress++;
  return NULL;
}

/* The addresses of a URI's host, or NULL. */
static struct addrinfo *
resolve_host (const char *uri)
{
  const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
  const char *authority = strstr (uri, "://") + 3;
  const char *user_end = authority + strcspn (authority, "@/?#");
  char host[256], port[16] = "10809";
  struct addrinfo *list;

  if (*user_end == '@')
    authority = user_end + 1;
  if (sscanf (authority, "[%255[^]]]:%15[0-9]", host, port) < 1 &&
      sscanf (authority, "%255[^:/?#]:%15[0-9]", host, port) < 1)
    return NULL;
  return getaddrinfo (host, port, &hints, &list) == 0 ? list : NULL;
}

/* Start to connect to this address, with a new socket that replaces libnbd's.
 * 0 or an errno.
 */
static int
try_address (int fd, const struct addrinfo *a, int syn_retries)
{
  const int on = 1;
  CLEANUP_CLOSE int s = socket (a->ai_family, SOCK_STREAM | SOCK_NONBLOCK |
                                SOCK_CLOEXEC, a->ai_protocol);

  if (s == -1)
    return errno;
  setsockopt (s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  set_timeouts (s, syn_retries);
  if (connect (s, a->ai_addr, a->ai_addrlen) == -1 && errno != EINPROGRESS)
    return errno;
  return dup3 (s, fd, O_CLOEXEC) == -1 ? errno : 0;
}

/* libnbd 1.14 continues when connecting has only started, so it never tries
 * the second address of a name.  Wait here, and on failure try the other
 * addresses.  NULL, or why connecting failed.
 */
static const char *
wait_connected (struct nbd_connection *conn, const char *uri, int syn_retries)
{
  const char *why = adopt_socket (conn, syn_retries);
  struct pollfd pfd = { .fd = nbd_aio_get_fd (conn->nbd), .events = POLLOUT };
  struct addrinfo *list = NULL, *next = NULL;
  int error = EINPROGRESS;

  while (why == NULL && error && conn->alive) {
    socklen_t len = sizeof error;

    if (poll (&pfd, 1, CONNECT_TICK) <= 0)
      continue;
    if (getsockopt (pfd.fd, SOL_SOCKET, SO_ERROR, &error, &len) == -1)
      error = errno;
    if (error && list == NULL && (list = resolve_host (uri)))
      next = list->ai_next;
    for (int tried = error; tried && next; next = next->ai_next) {
      tried = try_address (pfd.fd, next, syn_retries);
      if (tried == 0)
        error = EINPROGRESS;
    }
    why = error && error != EINPROGRESS ? strerror (error)
          : adopt_socket (conn, syn_retries);
  }
  if (list)
    freeaddrinfo (list);
  return why;
}

/* Let libnbd negotiate until it succeeds or fails.  NULL, or why it failed. */
static const char *
negotiate (struct nbd_connection *conn)
{
  while (conn->alive && nbd_aio_is_connecting (conn->nbd))
    if (nbd_poll (conn->nbd, CONNECT_TICK) == -1)
      return nbd_connection_error ();
  conn->progress++;
  return NULL;
}

/* The server's reply to NBD_OPT_GO.  Only here is libnbd's text for an error
 * at hand.
 */
static int
on_opt_go (void *opaque, int *error)
{
  if (*error)
    nbd_connection_kill (opaque, nbd_connection_error ());
  return 1;
}

/* libnbd stops before it asks for the export.  Until then a server can send
 * only a limited amount, and we learn the socket.
 */
static const char *
handshake (struct nbd_connection *conn, const char *role, const char *uri,
           int syn_retries)
{
  const nbd_completion_callback completion = { on_opt_go, conn, NULL };
  const char *why;

  if (!create_handle (conn, role) || nbd_aio_connect_uri (conn->nbd, uri) == -1)
    return nbd_connection_error ();
  why = wait_connected (conn, uri, syn_retries);
  if (why == NULL)
    why = negotiate (conn);
  if (why == NULL && nbd_aio_is_negotiating (conn->nbd)) {
    if (nbd_aio_opt_go (conn->nbd, completion) == -1)
      return nbd_connection_error ();
    why = negotiate (conn);
  }
  if (why == NULL && !nbd_aio_is_ready (conn->nbd))
    why = "the server closed it";
  return why;
}

bool
nbd_connection_connect (struct nbd_connection *conn, const char *role,
                        const char *uri, bool again)
{
  const char *why = handshake (conn, role, uri,
                               again ? SYN_RETRIES_AGAIN : SYN_RETRIES);

  if (why)
    nbd_connection_kill (conn, why);
  return conn->alive;
}
