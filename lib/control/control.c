/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The thread runs libmicrohttpd's machine by hand (MHD_run) instead of giving
 * it a thread of its own.  So all that is below "the thread" is single-threaded
 * and needs no lock; other threads only write to the eventfd `wake'.
 *
 *   new connection ---> request: begin_request, take_body, finish_request
 *                                                            |
 *                       answered at once <-------------------+
 *                                                            | /wait
 *                       answered <--- resumed <--- suspended, in `waiters'
 *                                  check_waiters
 */

#include <config.h>

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <jansson.h>
#include <microhttpd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/thread.h"
#include "control/control.h"
#include "control/listen.h"
#include "control/settings.h"
#include "control/status.h"
#include "hydration/hydrate.h"

/* Bytes of a request's body. */
#define BODY_MAX (64 << 10)

/* A body that is too long is read to its end, because a connection that is
 * closed with unread data in it loses the answer.  There is an end to this.
 */
#define BODY_DRAIN_MAX (UINT64_C (16) << 20)

/* libmicrohttpd has changed its name for this, twice. */
#define HTTP_TOO_LARGE 413

#define CONNECTIONS_MAX 4096

/* Memory of a connection, for the headers of its requests. */
#define CONNECTION_MEMORY ((size_t)16 << 10)

/* Seconds without activity. */
#define CONNECTION_TIMEOUT 30

/* Milliseconds: how often to look after those who wait, and how long answers
 * may take when the interface stops.
 */
#define CHECK_INTERVAL 1000
#define STOP_TIMEOUT 1000

struct request;

struct control {
  char *address; /* as the user gave it */
  char *token;   /* NULL: none is needed */
  const struct instance *instance;
  const struct log *log;

  struct listener listener;

  struct MHD_Daemon *daemon;
  pthread_t thread;
  bool started;

  int wake; /* eventfd */
  _Atomic bool stop;

  /* Below: the thread's. */
  struct request *waiters; /* suspended */
  unsigned unanswered;     /* requests that were received, and are not done */
  int64_t next_check;      /* ms, of check_waiters */
};

struct endpoint {
  const char *path, *method;
  enum MHD_Result (*handle) (struct request *r);
};

struct request {
  struct control *control;
  struct MHD_Connection *connection;
  const struct endpoint *endpoint;
  unsigned refused;       /* 0, or the HTTP status of the refusal */
  char *body;
  size_t body_len;        /* bytes in body */
  uint64_t body_received; /* bytes, whether they are kept or not */
  bool received;          /* completely; it counts as unanswered */
  bool wait_is_over;      /* answer, complete or not */
  bool stops;             /* the process is to end when it is answered */
  struct request *prev, *next; /* in waiters */
};

/* ---- answers ---- */

/* Answer with a JSON object, which this consumes, and with one more header
 * unless its name is NULL.
 */
static enum MHD_Result
answer_with (struct request *r, unsigned code, json_t *json,
             const char *header, const char *value)
{
  CLEANUP_FREE char *text = json ? json_dumps (json, 0) : NULL;
  struct MHD_Response *response;
  enum MHD_Result ret = MHD_NO;
  char *line;

  json_decref (json);
  if (text == NULL || asprintf (&line, "%s\n", text) == -1)
    return MHD_NO;
  response = MHD_create_response_from_buffer (strlen (line), line,
                                              MHD_RESPMEM_MUST_FREE);
  if (response == NULL) {
    free (line);
    return MHD_NO;
  }
  if (MHD_add_response_header (response, MHD_HTTP_HEADER_CONTENT_TYPE,
                               "application/json") == MHD_YES &&
      (header == NULL ||
       MHD_add_response_header (response, header, value) == MHD_YES))
    ret = MHD_queue_response (r->connection, code, response);
  MHD_destroy_response (response);
  return ret;
}

static enum MHD_Result
answer (struct request *r, json_t *json)
{
  return answer_with (r, MHD_HTTP_OK, json, NULL, NULL);
}

/* message is UTF-8. */
static enum MHD_Result
answer_error (struct request *r, unsigned code, const char *message,
              const char *header, const char *value)
{
  return answer_with (r, code, json_pack ("{s:s}", "error", message), header,
                      value);
}

static enum MHD_Result
answer_status (struct request *r)
{
  struct status status;

  status_get (r->control->instance, &status);
  return answer (r, status_json (&status));
}

/* ---- the endpoints ---- */

static enum MHD_Result
get_status (struct request *r)
{
  return answer_status (r);
}

static enum MHD_Result
get_wait (struct request *r)
{
  struct control *c = r->control;
  struct status status;

  status_get (c->instance, &status);
  if (r->wait_is_over || c->stop || status_ended (&status))
    return answer (r, status_json (&status));

  r->prev = NULL;
  r->next = c->waiters;
  if (c->waiters)
    c->waiters->prev = r;
  c->waiters = r;
  MHD_suspend_connection (r->connection);
  return MHD_YES;
}

static enum MHD_Result
post_pause (struct request *r)
{
  hydrate_pause (r->control->instance->hydrate);
  return answer_status (r);
}

static enum MHD_Result
post_resume (struct request *r)
{
  hydrate_resume (r->control->instance->hydrate);
  return answer_status (r);
}

/* The process ends when this has been answered: on_request_done. */
static enum MHD_Result
post_stop (struct request *r)
{
  r->stops = true;
  return answer_status (r);
}

static enum MHD_Result
get_settings (struct request *r)
{
  struct hydrate_settings settings;

  hydrate_get_settings (r->control->instance->hydrate, &settings);
  return answer (r, settings_json (&settings));
}

static enum MHD_Result
answer_bad_json (struct request *r, const json_error_t *error)
{
  CLEANUP_FREE char *message = NULL;

  if (asprintf (&message, "the body is not valid JSON: line %d, column %d: %s",
                error->line, error->column, error->text) == -1) {
    message = NULL;
    return MHD_NO;
  }
  return answer_error (r, MHD_HTTP_BAD_REQUEST, message, NULL, NULL);
}

static enum MHD_Result
patch_settings (struct request *r)
{
  CLEANUP_FREE char *why = NULL;
  json_error_t error;
  json_t *patch;
  int err;

  patch = json_loadb (r->body ? r->body : "", r->body_len,
                      JSON_REJECT_DUPLICATES, &error);
  if (patch == NULL)
    return answer_bad_json (r, &error);

  err = settings_apply (r->control->instance, patch, &why);
  json_decref (patch);
  if (err == -1)
    return why ? answer_error (r, MHD_HTTP_BAD_REQUEST, why, NULL, NULL)
      : MHD_NO;
  return get_settings (r);
}

/* Those of one path are neighbours. */
static const struct endpoint endpoints[] = {
  { "/status", "GET", get_status },
  { "/wait", "GET", get_wait },
  { "/pause", "POST", post_pause },
  { "/resume", "POST", post_resume },
  { "/stop", "POST", post_stop },
  { "/settings", "GET", get_settings },
  { "/settings", "PATCH", patch_settings },
};

static const struct endpoint *const endpoints_end =
  endpoints + sizeof endpoints / sizeof endpoints[0];

/* ---- refusals ---- */

/* Does the request bring the token along?  The time that it takes does not
 * depend on where a wrong one differs.
 */
static bool
is_authorized (struct control *c, struct MHD_Connection *connection)
{
  static const char scheme[] = "Bearer ";
  volatile unsigned char diff;
  const char *given;
  size_t i, len, given_len;

  if (c->token == NULL)
    return true;
  given = MHD_lookup_connection_value (connection, MHD_HEADER_KIND,
                                       MHD_HTTP_HEADER_AUTHORIZATION);
  if (given == NULL || strncasecmp (given, scheme, strlen (scheme)) != 0)
    return false;
  given += strlen (scheme);
  given += strspn (given, " ");

  len = strlen (c->token);
  given_len = strlen (given);
  diff = len != given_len;
  for (i = 0; i < len; i++)
    diff |= c->token[i] ^ given[i < given_len ? i : 0];
  return diff == 0;
}

/* A browser says so when a page of another site makes it send a request.  On a
 * loopback port without a token any page could pause hydration otherwise.
 */
static bool
is_from_web_page (struct MHD_Connection *connection)
{
  return MHD_lookup_connection_value (connection, MHD_HEADER_KIND,
                                      MHD_HTTP_HEADER_ORIGIN) != NULL;
}

/* Find the endpoint, or 404 or 405. */
static unsigned
find_endpoint (const char *path, const char *method,
               const struct endpoint **endpoint)
{
  const struct endpoint *e;
  unsigned refused = MHD_HTTP_NOT_FOUND;

  /* libmicrohttpd leaves the body out. */
  if (strcmp (method, MHD_HTTP_METHOD_HEAD) == 0)
    method = MHD_HTTP_METHOD_GET;

  for (e = endpoints; e < endpoints_end; e++) {
    if (strcmp (e->path, path) == 0) {
      refused = MHD_HTTP_METHOD_NOT_ALLOWED;
      if (strcmp (e->method, method) == 0) {
        *endpoint = e;
        return 0;
      }
    }
  }
  return refused;
}

static enum MHD_Result
refuse_path (struct request *r)
{
  char message[256];
  const struct endpoint *e;
  size_t len;

  len = snprintf (message, sizeof message, "no such path: there are");
  for (e = endpoints; e < endpoints_end && len < sizeof message; e++) {
    if (e == endpoints || strcmp (e->path, e[-1].path) != 0)
      len += snprintf (message + len, sizeof message - len, "%s%s",
                       e == endpoints ? " " : ", ", e->path);
  }
  return answer_error (r, MHD_HTTP_NOT_FOUND, message, NULL, NULL);
}

static enum MHD_Result
refuse_method (struct request *r, const char *path)
{
  char allowed[64] = "", message[128];
  const struct endpoint *e;
  size_t len = 0;

  for (e = endpoints; e < endpoints_end && len < sizeof allowed; e++) {
    if (strcmp (e->path, path) == 0)
      len += snprintf (allowed + len, sizeof allowed - len, "%s%s%s",
                       len ? ", " : "", e->method,
                       strcmp (e->method, "GET") == 0 ? ", HEAD" : "");
  }
  snprintf (message, sizeof message, "this method is not for %s, only %s", path,
            allowed);
  return answer_error (r, MHD_HTTP_METHOD_NOT_ALLOWED, message,
                       MHD_HTTP_HEADER_ALLOW, allowed);
}

static enum MHD_Result
answer_refusal (struct request *r, const char *path)
{
  switch (r->refused) {
  case MHD_HTTP_UNAUTHORIZED:
    return answer_error (r, r->refused, "the header \"Authorization: Bearer\" "
                         "with the token of control-token is needed",
                         MHD_HTTP_HEADER_WWW_AUTHENTICATE,
                         "Bearer realm=\"nbdkit-clone\"");
  case MHD_HTTP_FORBIDDEN:
    return answer_error (r, r->refused, "requests with the header \"Origin\", "
                         "which web pages send, are refused", NULL, NULL);
  case MHD_HTTP_NOT_FOUND:
    return refuse_path (r);
  case MHD_HTTP_METHOD_NOT_ALLOWED:
    return refuse_method (r, path);
  default:
    return answer_error (r, r->refused, "the body is longer than 64 KiB", NULL,
                         NULL);
  }
}

/* ---- requests ---- */

/* The headers are here. */
static struct request *
begin_request (struct control *c, struct MHD_Connection *connection,
               const char *path, const char *method)
{
  struct request *r = calloc (1, sizeof *r);

  if (r == NULL)
    return NULL;
  r->control = c;
  r->connection = connection;
  if (!is_authorized (c, connection))
    r->refused = MHD_HTTP_UNAUTHORIZED;
  else if (is_from_web_page (connection))
    r->refused = MHD_HTTP_FORBIDDEN;
  else
    r->refused = find_endpoint (path, method, &r->endpoint);
  return r;
}

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

/* All of it is here; or it had to wait, and is here again. */
static enum MHD_Result
finish_request (struct request *r, const char *path)
{
  if (!r->received) {
    r->received = true;
    r->control->unanswered++;
  }
  if (r->refused)
    return answer_refusal (r, path);
  return r->endpoint->handle (r);
}

/* libmicrohttpd calls this when it has the headers, for each piece of the body
 * with *len not 0, and with 0 at the end and after a suspension.
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
  return finish_request (r, path);
}

static void
on_request_done (void *opaque, struct MHD_Connection *connection,
                 void **request, enum MHD_RequestTerminationCode code)
{
  struct request *r = *request;

  if (r == NULL)
    return;
  if (r->received)
    r->control->unanswered--;
  if (r->stops)
    r->control->instance->stop ();
  free (r->body);
  free (r);
  *request = NULL;
}

/* ---- the thread ---- */

/* A client that went away while it waited must not keep its connection until
 * hydration ends, perhaps days later.
 */
static bool
is_gone (struct request *r)
{
  const union MHD_ConnectionInfo *info =
    MHD_get_connection_info (r->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
  struct pollfd pfd = { .events = POLLRDHUP };

  if (info == NULL)
    return false;
  pfd.fd = info->connect_fd;
  return poll (&pfd, 1, 0) > 0;
}

static void
resume_waiter (struct request *r)
{
  if (r->prev)
    r->prev->next = r->next;
  else
    r->control->waiters = r->next;
  if (r->next)
    r->next->prev = r->prev;
  MHD_resume_connection (r->connection);
}

static void
check_waiters (struct control *c, bool stop)
{
  struct status status;
  struct request *r, *next;
  bool ended;

  c->next_check = monotonic_ms () + CHECK_INTERVAL;
  if (c->waiters == NULL)
    return;
  status_get (c->instance, &status);
  ended = status_ended (&status);

  for (r = c->waiters; r; r = next) {
    next = r->next;
    r->wait_is_over = stop || is_gone (r);
    if (ended || r->wait_is_over)
      resume_waiter (r);
  }
}

/* Wait until there is something to do, max milliseconds at most, or for ever
 * where max is negative.  True when control_wake was called.
 */
static bool
wait_for_events (struct control *c, int64_t max)
{
  const union MHD_DaemonInfo *info =
    MHD_get_daemon_info (c->daemon, MHD_DAEMON_INFO_EPOLL_FD);
  struct pollfd pfd[2] = {
    { .fd = c->wake, .events = POLLIN },
    { .fd = info->epoll_fd, .events = POLLIN },
  };
  MHD_UNSIGNED_LONG_LONG timeout;
  uint64_t count;

  if (MHD_get_timeout (c->daemon, &timeout) == MHD_YES &&
      (max < 0 || timeout < (uint64_t)max))
    max = (int64_t)MIN (timeout, (MHD_UNSIGNED_LONG_LONG)INT_MAX);
  if (poll (pfd, 2, (int)MIN (max, INT_MAX)) <= 0 || pfd[0].revents == 0)
    return false;
  return read (c->wake, &count, sizeof count) == sizeof count;
}

/* Let those who were answered have their answers, no others come in. */
static void
finish_answers (struct control *c)
{
  const int64_t end = monotonic_ms () + STOP_TIMEOUT;
  int64_t now;

  MHD_quiesce_daemon (c->daemon);
  check_waiters (c, true);
  MHD_run (c->daemon);
  while (c->unanswered > 0 && (now = monotonic_ms ()) < end) {
    wait_for_events (c, end - now);
    MHD_run (c->daemon);
  }
}

static void *
control_thread (void *opaque)
{
  struct control *c = opaque;

  while (!c->stop) {
    int64_t wait;

    MHD_run (c->daemon);
    wait = c->waiters ? MAX (c->next_check - monotonic_ms (), 0) : -1;
    if (wait_for_events (c, wait) || monotonic_ms () >= c->next_check)
      check_waiters (c, false);
  }
  finish_answers (c);
  return NULL;
}

/* The process needs descriptors for other things, too. */
static unsigned
max_connections (void)
{
  struct rlimit limit;
  unsigned n = CONNECTIONS_MAX;

  if (getrlimit (RLIMIT_NOFILE, &limit) == 0)
    n = (unsigned)MIN ((rlim_t)n, MAX (limit.rlim_cur / 2, (rlim_t)1));
  return n;
}

static void
stop_daemon (struct control *c)
{
  /* Without this it would close the listening socket, too. */
  MHD_quiesce_daemon (c->daemon);
  MHD_stop_daemon (c->daemon);
  c->daemon = NULL;
}

int
control_start (struct control *c)
{
  c->daemon =
    MHD_start_daemon (MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL,
                      on_request, c,
                      MHD_OPTION_LISTEN_SOCKET, c->listener.fd,
                      MHD_OPTION_NOTIFY_COMPLETED, on_request_done, c,
                      MHD_OPTION_CONNECTION_LIMIT, max_connections (),
                      MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY,
                      MHD_OPTION_CONNECTION_TIMEOUT,
                      (unsigned)CONNECTION_TIMEOUT,
                      MHD_OPTION_END);
  if (c->daemon == NULL) {
    log_error (c->log, "control=%s: cannot start the HTTP server", c->address);
    return -1;
  }
  if (thread_start (&c->thread, "control", control_thread, c, c->log) == -1) {
    stop_daemon (c);
    return -1;
  }
  c->started = true;
  return 0;
}

void
control_wake (void *opaque)
{
  struct control *c = opaque;
  const uint64_t one = 1;

  /* It can only fail because the counter is full, and then it wakes, too. */
  while (write (c->wake, &one, sizeof one) == -1 && errno == EINTR)
    ;
}

void
control_stop (struct control *c)
{
  if (!c->started)
    return;
  c->stop = true;
  control_wake (c);
  pthread_join (c->thread, NULL);
  c->started = false;
  stop_daemon (c);
}

/* ---- creation ---- */

/* A token that no request could carry would lock everybody out. */
static int
check_token (struct control *c)
{
  const char *p;

  if (c->token == NULL)
    return 0;
  for (p = c->token; *p > ' ' && *p <= '~'; p++)
    ;
  if (p > c->token && *p == '\0')
    return 0;
  log_error (c->log, "control-token: the token must be one or more printable "
             "ASCII characters without blanks");
  return -1;
}

static int
open_control (struct control *c)
{
  if (check_token (c) == -1)
    return -1;
  c->wake = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (c->wake == -1) {
    log_error (c->log, "control=%s: eventfd: %m", c->address);
    return -1;
  }
  /* An address that others can reach needs a token. */
  return listen_open (&c->listener, c->address, c->token != NULL, c->log);
}

struct control *
control_new (const char *address, const char *token,
             const struct instance *instance, const struct log *log)
{
  struct control *c = calloc (1, sizeof *c);

  if (c) {
    c->address = strdup (address);
    c->token = token ? strdup (token) : NULL;
  }
  if (c == NULL || c->address == NULL || (token && c->token == NULL)) {
    log_error (log, "control=%s: %m", address);
    if (c) {
      free (c->address);
      free (c->token);
      free (c);
    }
    return NULL;
  }
  c->instance = instance;
  c->log = log;
  c->listener.fd = c->wake = -1;
  if (open_control (c) == -1) {
    control_free (c);
    return NULL;
  }
  return c;
}

void
control_free (struct control *c)
{
  if (c == NULL)
    return;
  listen_close (&c->listener);
  if (c->wake >= 0)
    close (c->wake);
  if (c->token)
    explicit_bzero (c->token, strlen (c->token));
  free (c->token);
  free (c->address);
  free (c);
}
