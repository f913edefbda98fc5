/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The thread calls server_run in a loop of its own, instead of leaving the
 * thread to libmicrohttpd.  So server, requests and waiters are single-threaded
 * and need no lock.  Other threads only set `stop' and write to `wake'.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "control/control.h"
#include "control/listen.h"
#include "control/server.h"
#include "control/token.h"

/* Milliseconds that answers may take when the interface stops. */
#define STOP_TIMEOUT 1000

struct control {
  char *address; /* as the user gave it */
  char *token;   /* NULL: none is needed */
  const struct instance *instance;
  const struct log *log;

  struct listener listener;
  struct server server; /* the thread's, while it runs */
  pthread_t thread;
  bool started;

  int wake; /* eventfd */
  _Atomic bool stop;
};

/* ---- the thread ---- */

/* Wait for the server, but at most `max' milliseconds if that is not negative.
 * True if control_wake was called.
 */
static bool
control_wait (struct control *c, int64_t max)
{
  uint64_t count;

  return server_wait (&c->server, c->wake, max) &&
         read (c->wake, &count, sizeof count) == sizeof count;
}

/* Let clients have the answers to the requests that were received. */
static void
finish_answers (struct control *c)
{
  const int64_t end = monotonic_ms () + STOP_TIMEOUT;
  int64_t now;

  server_quiesce (&c->server);
  waiters_close (&c->server.waiters);
  server_run (&c->server);
  while (c->server.unanswered > 0 && (now = monotonic_ms ()) < end) {
    control_wait (c, end - now);
    server_run (&c->server);
  }
}

static void *
control_thread (void *opaque)
{
  struct control *c = opaque;
  struct waiters *waiters = &c->server.waiters;

  while (!c->stop) {
    server_run (&c->server);
    if (control_wait (c, waiters_timeout (waiters)) ||
        waiters_timeout (waiters) == 0)
      waiters_check (waiters);
  }
  finish_answers (c);
  return NULL;
}

int
control_start (struct control *c)
{
  const struct server_options options = {
    .fd = c->listener.fd, .address = c->address, .token = c->token,
    .instance = c->instance,
  };

  listen_user_is_final (&c->listener);
  if (server_start (&c->server, &options) == -1) {
    log_error (c->log, "control=%s: cannot start the HTTP server", c->address);
    return -1;
  }
  if (thread_start (&c->thread, "control", control_thread, c, c->log) == -1) {
    server_stop (&c->server);
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

  /* If this fails the counter is full, and the thread wakes up, too. */
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
  server_stop (&c->server);
}

/* ---- creation ---- */

static int
open_control (struct control *c)
{
  /* Nobody could send a token that does not fit into a header. */
  if (c->token && !token_is_valid (c->token)) {
    log_error (c->log, "control-token: the token must be 1 to %d printable "
               "ASCII characters without blanks", TOKEN_MAX);
    return -1;
  }
  c->wake = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (c->wake == -1) {
    log_error (c->log, "control=%s: eventfd: %m", c->address);
    return -1;
  }
  return listen_open (&c->listener, c->address, c->token != NULL, c->log);
}

struct control *
control_new (const char *address, const char *token,
             const struct instance *instance, const struct log *log)
{
  struct control *c = calloc (1, sizeof *c);

  if (c) {
    c->listener = (struct listener)LISTENER_CLOSED;
    c->wake = -1;
    c->instance = instance;
    c->log = log;
    c->address = strdup (address);
    c->token = token ? strdup (token) : NULL;
  }
  if (c == NULL || c->address == NULL || (token && c->token == NULL)) {
    log_error (log, "control=%s: %m", address);
    control_free (c);
    return NULL;
  }
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
