/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone status: show the status of a running clone. */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/rounding.h"
#include "client.h"
#include "clone-status.h"
#include "nbdclone.h"
#include "screen.h"

/* Columns of the names on the left. */
#define NAMES 14u

/* The narrowest bar, and the widest. */
#define BAR_MIN 12u
#define BAR_MAX 62u

static void
print_and_free (char *line)
{
  puts (line);
  free (line);
}

static void
begin (struct line *l, const struct screen *screen, const char *name)
{
  line_begin (l, screen, 0);
  line_add (l, FAINT, "%s", name);
  line_tab (l, NAMES);
}

static void print_text (const struct screen *screen, const char *name,
                        enum style style, const char *fmt, ...)
  __attribute__ ((format (printf, 4, 5)));

static void
print_text (const struct screen *screen, const char *name, enum style style,
            const char *fmt, ...)
{
  struct line l;
  va_list args;

  begin (&l, screen, name);
  va_start (args, fmt);
  line_vadd (&l, style, fmt, args);
  va_end (args);
  print_and_free (line_end (&l));
}

static void
print_bar (const struct screen *screen, const struct clone_status *s)
{
  const unsigned room = screen->columns - MIN (screen->columns, NAMES + 9);
  char percent[WORDS_MAX];
  struct line l;

  begin (&l, screen, "");
  line_add_bar (&l, MAX (MIN (room, BAR_MAX), BAR_MIN), s->valid, s->size);
  line_add (&l, PLAIN, " %s", percent_words (s->valid, s->size, percent));
  print_and_free (line_end (&l));
}

static void
print_sizes (const struct screen *screen, const struct clone_status *s)
{
  char valid[WORDS_MAX], size[WORDS_MAX], durable[WORDS_MAX];

  print_text (screen, "valid", PLAIN, "%s of %s, durable %s",
              size_words (s->valid, valid), size_words (s->size, size),
              size_words (s->durable, durable));
}

static void
print_rate (const struct screen *screen, const struct clone_status *s)
{
  char rate[WORDS_MAX], left[WORDS_MAX];

  if (s->is_complete)
    return;
  print_text (screen, "rate", PLAIN, "%s/s%s%s", size_words (s->rate, rate),
              s->eta_known ? ", time left " : "",
              s->eta_known ? time_words (s->eta, left) : "");
}

static void
print_source (const struct screen *screen, const struct clone_status *s)
{
  struct line l;
  char bad[WORDS_MAX];

  begin (&l, screen, "source");
  line_add_source (&l, s);
  if (s->bad)
    line_add (&l, BAD, "; %s cannot be read", size_words (s->bad, bad));
  print_and_free (line_end (&l));
}

static void
print_status (const char *control, const struct clone_status *s)
{
  struct screen screen;
  struct line l;
  const char *title = "settings", *key;
  json_t *value;

  screen_init (&screen);
  print_text (&screen, "clone", PLAIN, "%s", control);
  if (s->source.name)
    print_text (&screen, "from", PLAIN, "%s", s->source.name);
  if (s->destination)
    print_text (&screen, "to", PLAIN, "%s", s->destination);
  print_text (&screen, "state", state_style (s->state), "%s", s->state);
  print_bar (&screen, s);
  print_sizes (&screen, s);
  print_rate (&screen, s);
  print_text (&screen, "mode", strcmp (s->mode, "rw") == 0 ? PLAIN : BAD,
              "%s", s->mode);
  print_source (&screen, s);
  /* Jansson's macro only reads, but does not take a const json_t. */
  json_object_foreach ((json_t *)s->settings, key, value) {
    begin (&l, &screen, title);
    line_add_setting (&l, key, value);
    print_and_free (line_end (&l));
    title = "";
  }
}

static int
show (struct client *c, bool json)
{
  const struct request request = { .method = "GET", .path = "/status" };
  struct clone_status s = { 0 };
  struct answer a;
  int status = EXIT_DONE;

  client_ask (c, &request, &a);
  if (a.kind != ANSWER_GOOD)
    status = answer_fail (&a, client_control (c));
  else if (clone_status_read (&s, a.json) == -1)
    status = answer_fail_wrong (client_control (c));
  else if (json)
    fputs (a.text, stdout);
  else
    print_status (client_control (c), &s);
  clone_status_free (&s);
  answer_free (&a);
  return status;
}

int
status_main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "json", no_argument, NULL, 'j' },
    CLIENT_LONG_OPTIONS,
    { 0 }
  };
  struct client_options client_options = CLIENT_OPTIONS_INIT;
  struct clients *clients;
  struct client *client;
  bool json = false;
  int c, status = EXIT_USAGE;

  while ((c = next_option (argc, argv, options)) != -1) {
    if (c == 'j')
      json = true;
    else if (client_option (c, &client_options) == -1)
      return EXIT_USAGE;
  }
  if (!has_operands (argc, argv, 1, "status [--json] CONTROL"))
    return EXIT_USAGE;

  clients = clients_new (&client_options);
  client = clients ? client_new (clients, argv[optind]) : NULL;
  if (client)
    status = show (client, json);
  clients_free (clients);
  return status;
}
