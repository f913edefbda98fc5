/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/rounding.h"
#include "control/endpoints.h"
#include "control/host.h"
#include "control/request.h"
#include "control/server.h"
#include "control/token.h"

/* Bytes of a request's body. */
#define BODY_MAX (64 << 10)

/* A body that is too long is read to its end, up to this many bytes: the client
 * would not get the answer if the connection were closed with unread data.
 */
#define BODY_DRAIN_MAX (UINT64_C (16) << 20)

/* libmicrohttpd has renamed its own constant twice. */
#define HTTP_TOO_LARGE 413

#define CONNECTIONS_MAX 4096

/* Bytes a connection, for the headers of its requests. */
#define CONNECTION_MEMORY ((size_t)16 << 10)

/* Seconds without activity after which a connection is closed. */
#define CONNECTION_TIMEOUT 30

/* ---- refusals ---- */

static const char *
header_of (struct MHD_Connection *connection, const char *name)
{
  return MHD_lookup_connection_value (connection, MHD_HEADER_KIND, name);
}

/* See host.h.  On a unix socket any Host header is right. */
static bool
host_is_right (const struct server *s, struct MHD_Connection *connection)
{
  const union MHD_ConnectionInfo *info =
    MHD_get_connection_info (connection, MHD_CONNECTION_INFO_CONNECTION_FD);
  union {
    struct sockaddr addr;
    struct sockaddr_storage storage;
  } local;
  socklen_t len = sizeof local;

  if (info == NULL || getsockname (info->connect_fd, &local.addr, &len) == -1)
    return false;
  return local.addr.sa_family == AF_UNIX ||
         host_is_ours (header_of (connection, MHD_HTTP_HEADER_HOST),
                       s->options.address, &local.addr);
}

/* 0, or the HTTP status of the refusal.
 *
 * A browser sets the Origin header when a page of another site makes it send a
 * request.  Without this check, any page could pause hydration through a
 * loopback port that needs no token.
 */
static unsigned
check_headers (const struct server *s, struct MHD_Connection *connection)
{
  const char *token = s->options.token;

  if (!host_is_right (s, connection))
    return MHD_HTTP_MISDIRECTED_REQUEST;
  if (token &&
      !token_matches (token,
                      header_of (connection, MHD_HTTP_HEADER_AUTHORIZATION)))
    return MHD_HTTP_UNAUTHORIZED;
  if (header_of (connection, MHD_HTTP_HEADER_ORIGIN))
    return MHD_HTTP_FORBIDDEN;
  return 0;
}

static enum MHD_Result
answer_refusal (struct request *r, const char *path)
{
  switch (r->refused) {
  case MHD_HTTP_UNAUTHORIZED:
    return request_fail (r, r->refused, "the header \"Authorization: Bearer\" "
                         "with the token of control-token is needed",
                         MHD_HTTP_HEADER_WWW_AUTHENTICATE,
                         "Bearer realm=\"nbdkit-clone\"");
  case MHD_HTTP_FORBIDDEN:
    return request_fail (r, r->refused, "requests with the header \"Origin\", "
                         "which web pages send, are refused", NULL, NULL);
  case MHD_HTTP_MISDIRECTED_REQUEST:
    return request_fail (r, r->refused, "the header \"Host\" does not name "
                         "this server: use its address, localhost, 127.0.0.1 "
                         "or [::1], and its port", NULL, NULL);
  case MHD_HTTP_NOT_FOUND:
    return endpoints_refuse_path (r);
  case MHD_HTTP_METHOD_NOT_ALLOWED:
    return endpoints_refuse_method (r, path);
  default:
    return request_fail (r, r->refused, "the body is longer than 64 KiB", NULL,
                         NULL);
  }
}

/* ---- the life of a request ---- */

/* The headers have been received. */
static struct request *
begin_request (struct server *s, struct MHD_Connection *connection,
               const char *path, const char *method)
{
  struct request *r = calloc (1, sizeof *r);

  if (r == NULL)
    return NULL;
  r->server = s;
  r->instance = s->options.instance;
  r->connection = connection;
  r->refused = check_headers (s, connection);
  if (!r->refused)
    r->refused = endpoints_find (path, method, &r->endpoint);
  return r;
}

/* A piece of the body has been received. */
static enum MHD_Result
take_body (struct request *r, const char *data, size_t len)
{
  char *body;

  r->body_received += len;
  if (r->body_received > BODY_DRAIN_MAX)
    return MHD_NO;
  if (r->refused)
    return MHD_YES;
  if (r->body_received > BODY_MAX) {
    r->refused = HTTP_TOO_LARGE;
    return MHD_YES;
  }

  body = realloc (r->body, r->body_len + len);
  if (body == NULL)
    return MHD_NO;
  memcpy (body + r->body_len, data, len);
  r->body = body;
  r->body_len += len;
  return MHD_YES;
}

/* The request is complete, or was suspended and is resumed. */
static enum MHD_Result
handle_request (struct request *r, const char *path)
{
  if (!r->received) {
    r->received = true;
    r->server->unanswered++;
  }
  if (r->refused)
    return answer_refusal (r, path);
  return r->endpoint->handle (r);
}

/* libmicrohttpd calls this when it has the headers; then for each piece of the
 * body, with *len not 0; and with *len 0 at the end and after a suspension.
 */
static enum MHD_Result
on_request (void *opaque, struct MHD_Connection *connection, const char *path,
            const char *method, const char *version, const char *data,
            size_t *len, void **request)
{
  struct request *r = *request;

  if (r == NULL) {
    *request = r = begin_request (opaque, connection, path, method);
    return r ? MHD_YES : MHD_NO;
  }
  if (*len > 0) {
    const size_t n = *len;

    *len = 0;
    return take_body (r, data, n);
  }
  return handle_request (r, path);
}

/* The answer has been sent, or the connection has ended without it. */
static void
on_request_done (void *opaque, struct MHD_Connection *connection,
                 void **request, enum MHD_RequestTerminationCode code)
{
  struct request *r = *request;

  if (r == NULL)
    return;
  if (r->received)
    r->server->unanswered--;
  if (r->stops)
    r->instance->stop ();
  free (r->body);
  free (r);
  *request = NULL;
}

/* ---- the server ---- */

/* Half of the file descriptors at most, because the process needs some for
 * other things.
 */
static unsigned
max_connections (void)
{
  struct rlimit limit;
  unsigned n = CONNECTIONS_MAX;

  if (getrlimit (RLIMIT_NOFILE, &limit) == 0)
    n = (unsigned)MIN ((rlim_t)n, MAX (limit.rlim_cur / 2, (rlim_t)1));
  return n;
}

int
server_start (struct server *s, const struct server_options *options)
{
  const unsigned max = max_connections ();

  *s = (struct server){ .options = *options };
  waiters_init (&s->waiters, options->instance);
  s->daemon =
    MHD_start_daemon (MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME |
                      MHD_USE_NO_LISTEN_SOCKET, 0, NULL, NULL, on_request, s,
                      MHD_OPTION_NOTIFY_COMPLETED, on_request_done, s,
                      MHD_OPTION_CONNECTION_LIMIT, max,
                      MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY,
                      MHD_OPTION_CONNECTION_TIMEOUT,
                      (unsigned)CONNECTION_TIMEOUT,
                      MHD_OPTION_END);
  acceptor_init (&s->acceptor, s->daemon, options->fd, max);
  return s->daemon ? 0 : -1;
}

void
server_run (struct server *s)
{
  acceptor_run (&s->acceptor);
  MHD_run (s->daemon);
}

bool
server_wait (struct server *s, int wake, int64_t max)
{
  const union MHD_DaemonInfo *info =
    MHD_get_daemon_info (s->daemon, MHD_DAEMON_INFO_EPOLL_FD);
  struct pollfd pfd[3] = {
    { .fd = wake, .events = POLLIN },
    { .fd = info->epoll_fd, .events = POLLIN },
    { .fd = acceptor_poll_fd (&s->acceptor), .events = POLLIN },
  };
  const int64_t pause = acceptor_timeout (&s->acceptor);
  MHD_UNSIGNED_LONG_LONG timeout;

  if (MHD_get_timeout (s->daemon, &timeout) == MHD_YES &&
      (max < 0 || timeout < (uint64_t)max))
    max = (int64_t)MIN (timeout, (MHD_UNSIGNED_LONG_LONG)INT_MAX);
  if (pause >= 0 && (max < 0 || pause < max))
    max = pause;
  return poll (pfd, 3, (int)MIN (max, INT_MAX)) > 0 && pfd[0].revents != 0;
}

void
server_quiesce (struct server *s)
{
  acceptor_close (&s->acceptor);
}

void
server_stop (struct server *s)
{
  MHD_stop_daemon (s->daemon);
  s->daemon = NULL;
}
