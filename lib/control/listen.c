/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "control/listen.h"
#include "control/socket-owner.h"

/* ---- a unix socket ---- */

bool
listen_address_is_path (const char *address)
{
  return strchr (address, '/') != NULL || strchr (address, ':') == NULL;
}

static int
bind_path (struct listener *l)
{
  l->fd = socket_path_open (&l->path, l->address, l->log);
  if (l->fd == -1)
    return -1;
  l->is_path = true;
  return socket_owner_begin (&l->path, &l->helper);
}

/* ---- a TCP port ---- */

static bool
is_loopback (const struct sockaddr *addr)
{
  if (addr->sa_family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *)addr;

    return ntohl (in->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  else {
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;

    return IN6_IS_ADDR_LOOPBACK (&in6->sin6_addr);
  }
}

/* Split ADDRESS:PORT or [ADDRESS]:PORT in place.  -1 if it is neither. */
static int
split_address (char *address, const char **host, const char **port)
{
  char *colon = strrchr (address, ':');
  char *end = colon;
  unsigned long n;

  *colon = '\0';
  *host = address;
  *port = colon + 1;
  if (address[0] == '[') {
    end--;
    if (end == address || *end != ']')
      return -1;
    *end = '\0';
    (*host)++;
  }
  else if (strchr (address, ':'))
    return -1;

  n = strtoul (*port, &end, 10);
  return **host && **port >= '1' && **port <= '9' && *end == '\0' && n <= 65535
    ? 0 : -1;
}

static struct addrinfo *
resolve (struct listener *l)
{
  const struct addrinfo hints = {
    .ai_family = AF_UNSPEC,
    .ai_socktype = SOCK_STREAM,
    .ai_flags = AI_NUMERICSERV,
  };
  struct addrinfo *list = NULL;
  const char *host, *port;
  CLEANUP_FREE char *copy = strdup (l->address);
  int err;

  if (copy == NULL) {
    log_error (l->log, "control=%s: %m", l->address);
    return NULL;
  }
  if (split_address (copy, &host, &port) == -1) {
    log_error (l->log, "control=%s: must be the path of a unix socket, or "
               "ADDRESS:PORT with a port from 1 to 65535 and brackets around "
               "an IPv6 address", l->address);
    return NULL;
  }
  err = getaddrinfo (host, port, &hints, &list);
  if (err) {
    log_error (l->log, "control=%s: no such address: %s", l->address,
               err == EAI_SYSTEM ? strerror (errno) : gai_strerror (err));
    return NULL;
  }
  return list;
}

static int
bind_one (const struct addrinfo *ai)
{
  const int on = 1;
  int fd, err;

  fd = socket (ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd == -1)
    return -1;
  setsockopt (fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (ai->ai_family == AF_INET6)
    setsockopt (fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  if (bind (fd, ai->ai_addr, ai->ai_addrlen) == -1 ||
      listen (fd, SOMAXCONN) == -1) {
    err = errno;
    close (fd);
    errno = err;
    return -1;
  }
  return fd;
}

/* A name may have several addresses.  Use the first that works. */
static int
bind_address (struct listener *l, bool anywhere)
{
  struct addrinfo *list = resolve (l), *ai;
  bool refused = false;

  if (list == NULL)
    return -1;
  for (ai = list; ai && !refused && l->fd == -1; ai = ai->ai_next) {
    refused = !anywhere && !is_loopback (ai->ai_addr);
    if (!refused)
      l->fd = bind_one (ai);
  }
  if (refused)
    log_error (l->log, "control=%s: control-token=+FILE is needed for an "
               "address that is not loopback", l->address);
  else if (l->fd == -1)
    log_error (l->log, "control=%s: cannot listen: %m", l->address);
  freeaddrinfo (list);
  return l->fd == -1 ? -1 : 0;
}

/* ---- both ---- */

int
listen_open (struct listener *l, const char *address, bool anywhere,
             const struct log *log)
{
  int r;

  *l = (struct listener)LISTENER_CLOSED;
  l->address = address;
  l->log = log;
  if (listen_address_is_path (address))
    r = bind_path (l);
  else
    r = bind_address (l, anywhere);
  if (r == -1)
    listen_close (l);
  return r;
}

void
listen_user_is_final (struct listener *l)
{
  /* A failure is logged.  The server is of use to root all the same. */
  socket_owner_finish (&l->path, l->helper);
  l->helper = -1;
}

void
listen_close (struct listener *l)
{
  /* The name goes first, see socket_path_remove. */
  if (l->is_path)
    socket_path_remove (&l->path);
  if (l->fd >= 0)
    close (l->fd);
  if (l->helper >= 0)
    close (l->helper);
  *l = (struct listener)LISTENER_CLOSED;
}
