/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone pause, resume, stop and set: tell a running clone to do something.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "client.h"
#include "clone-status.h"
#include "control/size.h"
#include "nbdclone.h"
#include "screen.h"

/* Nanoseconds between two looks at a clone that stops. */
#define STOP_LOOK 50000000

/* What the commands need of their arguments. */
struct telling {
  const char *usage;
  double timeout;       /* seconds; negative: none */
  struct clients *clients;
  struct client *client; /* of the first operand */
};

/* Parse options and the first operand.  Up to `max' operands are allowed.
 * EXIT_DONE, or EXIT_USAGE, logged.
 */
static int
begin (struct telling *t, int argc, char *argv[], bool has_timeout,
       int min, int max)
{
  static const struct option options[] = {
    CLIENT_LONG_OPTIONS,
    { "timeout", required_argument, NULL, 't' },
    { 0 }
  };
  static const struct option options_without[] = {
    CLIENT_LONG_OPTIONS,
    { 0 }
  };
  struct client_options client_options = CLIENT_OPTIONS_INIT;
  int c;

  t->timeout = -1;
  while ((c = next_option (argc, argv, has_timeout ? options
                           : options_without)) != -1) {
    if (c == 't') {
      if (parse_seconds ("--timeout", optarg, &t->timeout) == -1)
        return EXIT_USAGE;
    }
    else if (client_option (c, &client_options) == -1)
      return EXIT_USAGE;
  }
  if (argc - optind < min || argc - optind > max) {
    log_error (&tool_log, "usage: nbdclone %s", t->usage);
    return EXIT_USAGE;
  }
  t->clients = clients_new (&client_options);
  t->client = t->clients ? client_new (t->clients, argv[optind]) : NULL;
  return t->client ? EXIT_DONE : EXIT_USAGE;
}

/* Send a request without a body. */
static int
tell (struct client *c, const char *path)
{
  const struct request request = { .method = "POST", .path = path };
  struct answer a;
  int status = EXIT_DONE;

  client_ask (c, &request, &a);
  if (a.kind != ANSWER_GOOD)
    status = answer_fail (&a, client_control (c));
  answer_free (&a);
  return status;
}

/* ---- pause and resume ---- */

static int
tell_main (int argc, char *argv[], const char *usage, const char *path)
{
  struct telling t = { .usage = usage };
  int status = begin (&t, argc, argv, false, 1, 1);

  if (status == EXIT_DONE)
    status = tell (t.client, path);
  clients_free (t.clients);
  return status;
}

int
pause_main (int argc, char *argv[])
{
  return tell_main (argc, argv, "pause CONTROL", "/pause");
}

int
resume_main (int argc, char *argv[])
{
  return tell_main (argc, argv, "resume CONTROL", "/resume");
}

/* ---- stop ---- */

/* Has the process ended?  Then its end of the connection is closed.  A new
 * connection may lead to the next process.
 */
static bool
has_ended (struct client *c)
{
  const struct request request = { .method = "GET", .path = "/status" };
  struct answer a;
  bool answered;

  client_ask (c, &request, &a);
  answered = a.kind != ANSWER_NONE;
  answer_free (&a);
  return !answered || client_has_reconnected (c);
}

static int
wait_for_end (struct client *c, double timeout)
{
  const double end = monotonic_seconds () + timeout;

  while (!has_ended (c)) {
    const struct timespec pause = { .tv_nsec = STOP_LOOK };

    if (timeout >= 0 && monotonic_seconds () >= end) {
      log_error (&tool_log, "%s: nbdkit has not ended after %g seconds; it "
                 "goes on making data durable", client_control (c), timeout);
      return EXIT_TIMEOUT;
    }
    nanosleep (&pause, NULL);
  }
  return EXIT_DONE;
}

int
stop_main (int argc, char *argv[])
{
  struct telling t = { .usage = "stop [--timeout=SECONDS] CONTROL" };
  int status = begin (&t, argc, argv, true, 1, 1);

  if (status == EXIT_DONE)
    status = tell (t.client, "/stop");
  if (status == EXIT_DONE)
    status = wait_for_end (t.client, t.timeout);
  clients_free (t.clients);
  return status;
}

/* ---- set ---- */

static bool
is_number (const char *value)
{
  return *value && value[strspn (value, "0123456789")] == '\0';
}

/* The words for booleans are the plugin's. */
static json_t *
boolean_json (const char *value)
{
  static const char *const words[][2] = {
    { "false", "true" }, { "off", "on" }, { "no", "yes" }, { "0", "1" },
  };

  for (size_t i = 0; i < sizeof words / sizeof words[0]; ++i)
    for (int b = 0; b < 2; ++b)
      if (strcmp (words[i][b], value) == 0)
        return json_boolean (b);
  return NULL;
}

/* What the plugin's parameters mean.  The clone refuses what it does not
 * accept.  NULL if the value is not UTF-8.
 */
static json_t *
value_json (const char *key, const char *value)
{
  json_t *json = NULL;
  uint64_t n;

  if (strcmp (key, "copy-on-read") == 0)
    json = boolean_json (value);
  else if ((is_number (value) || strncmp (key, "hydration-", 10) == 0) &&
           size_parse (value, &n) == 0)
    json = json_integer ((json_int_t)n);
  return json ? json : json_string (value);
}

/* Make a JSON object of KEY=VALUE arguments.  NULL, logged, on failure. */
static char *
settings_text (char *args[], size_t n)
{
  json_t *object = json_object ();
  char *text = NULL;

  for (size_t i = 0; i < n; ++i) {
    const char *value = strchr (args[i], '=');
    CLEANUP_FREE char *key = strndup (args[i], value ? value - args[i] : 0);

    if (key == NULL)
      out_of_memory ();
    if (*key == '\0' ||
        json_object_set_new (object, key, value_json (key, value + 1)) == -1) {
      log_error (&tool_log, "%s: a setting has the form KEY=VALUE", args[i]);
      goto out;
    }
  }
  text = json_dumps (object, JSON_COMPACT);
  if (text == NULL)
    out_of_memory ();
 out:
  json_decref (object);
  return text;
}

static void
print_settings (json_t *settings)
{
  struct screen screen;
  const char *key;
  json_t *value;

  screen_init (&screen);
  json_object_foreach (settings, key, value) {
    CLEANUP_FREE char *text = NULL;
    struct line l;

    line_begin (&l, &screen, 0);
    line_add_setting (&l, key, value);
    text = line_end (&l);
    puts (text);
  }
}

static int
set (struct client *c, const char *settings)
{
  const struct request request = {
    .method = "PATCH", .path = "/settings", .body = settings
  };
  struct answer a;
  int status = EXIT_DONE;

  client_ask (c, &request, &a);
  if (a.kind == ANSWER_GOOD)
    print_settings (a.json);
  else
    status = answer_fail (&a, client_control (c));
  answer_free (&a);
  return status;
}

int
set_main (int argc, char *argv[])
{
  struct telling t = { .usage = "set CONTROL KEY=VALUE..." };
  int status = begin (&t, argc, argv, false, 2, argc);

  if (status == EXIT_DONE) {
    CLEANUP_FREE char *settings =
      settings_text (argv + optind + 1, (size_t)(argc - optind - 1));

    status = settings ? set (t.client, settings) : EXIT_USAGE;
  }
  clients_free (t.clients);
  return status;
}
