/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone wait: wait until clones are complete.
 *
 * For each clone GET /status comes first, then GET /wait.  A server that hangs,
 * or whose host cannot be reached any more, looks like one that has nothing to
 * say yet.  So GET /wait is given up after the time that an answer may take,
 * and GET /status must be answered again.
 */

#include <config.h>

#include <stdlib.h>

#include "base/clock.h"
#include "client.h"
#include "clone-status.h"
#include "nbdclone.h"

struct waiting {
  bool asked;        /* the first status of this clone has come */
  bool complete;
  int status;        /* EXIT_DONE, or why it is no use to wait */
  bool waits;        /* the request under way is GET /wait */
};

static void look_at (void *opaque, struct client *c, struct answer *a);

static void
ask (struct client *c, struct waiting *w, bool waits)
{
  const struct request request = {
    .method = "GET", .path = waits ? "/wait" : "/status"
  };

  w->waits = waits;
  client_send (c, &request, look_at, w);
}

/* An answer that came in time. */
static void
look_at_status (struct client *c, struct waiting *w, struct answer *a)
{
  struct clone_status s = { 0 };

  if (clone_status_read (&s, a->json) == -1)
    w->status = answer_fail_wrong (client_control (c));
  else if (s.is_complete)
    w->complete = true;
  else if (s.has_failed) {
    log_error (&tool_log, "%s: hydration has failed; nbdclone status and "
               "nbdkit's log say more", client_control (c));
    w->status = EXIT_REFUSED;
  }
  else if (w->waits) {
    log_error (&tool_log, "%s: nbdkit ends, and the clone is not complete",
               client_control (c));
    w->status = EXIT_UNREACHABLE;
  }
  else
    ask (c, w, true);
  clone_status_free (&s);
}

static void
look_at (void *opaque, struct client *c, struct answer *a)
{
  struct waiting *w = opaque;

  if (a->kind == ANSWER_GOOD)
    look_at_status (c, w, a);
  else if (a->kind == ANSWER_LATE && w->waits)
    ask (c, w, false);
  else
    w->status = answer_fail (a, client_control (c));
  w->asked = true;
}

/* Wait for n clones.  timeout is in seconds, negative: none. */
static int
wait_for (struct clients *clients, const struct waiting *w, size_t n,
          double timeout)
{
  const double end = monotonic_seconds () + timeout;

  while (1) {
    size_t complete = 0, asked = 0;
    double left = 3600;

    for (size_t i = 0; i < n; ++i) {
      if (w[i].status != EXIT_DONE)
        return w[i].status;
      complete += w[i].complete;
      asked += w[i].asked;
    }
    if (complete == n)
      return EXIT_DONE;
    /* Each clone is asked once at least. */
    if (timeout >= 0 && asked == n) {
      left = end - monotonic_seconds ();
      if (left <= 0) {
        log_error (&tool_log, "%zu of %zu clones are complete after %g seconds",
                   complete, n, timeout);
        return EXIT_TIMEOUT;
      }
    }
    clients_run (clients, -1, left);
  }
}

static int
wait_all (struct clients *clients, char *controls[], size_t n, double timeout)
{
  struct waiting *w = calloc (n, sizeof *w);
  int status = EXIT_DONE;

  if (w == NULL)
    out_of_memory ();
  for (size_t i = 0; i < n && status == EXIT_DONE; ++i) {
    struct client *c = client_new (clients, controls[i]);

    if (c)
      ask (c, &w[i], false);
    else
      status = EXIT_USAGE;
  }
  if (status == EXIT_DONE)
    status = wait_for (clients, w, n, timeout);
  clients_free (clients);
  free (w);
  return status;
}

int
wait_main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "timeout", required_argument, NULL, 't' },
    CLIENT_LONG_OPTIONS,
    { 0 }
  };
  struct client_options client_options = CLIENT_OPTIONS_INIT;
  struct clients *clients;
  double timeout = -1;
  int c;

  while ((c = next_option (argc, argv, options)) != -1) {
    if (c == 't') {
      if (parse_seconds ("--timeout", optarg, &timeout) == -1)
        return EXIT_USAGE;
    }
    else if (client_option (c, &client_options) == -1)
      return EXIT_USAGE;
  }
  if (optind == argc) {
    log_error (&tool_log,
               "usage: nbdclone wait [--timeout=SECONDS] CONTROL...");
    return EXIT_USAGE;
  }

  clients = clients_new (&client_options);
  if (clients == NULL)
    return EXIT_USAGE;
  return wait_all (clients, argv + optind, (size_t)(argc - optind), timeout);
}
