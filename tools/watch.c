/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone watch: show the progress of clones until they are complete.
 *
 * Each clone is asked for its status at intervals.  On a terminal the same rows
 * are drawn again and again; elsewhere each change is a line.
 */

#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/text.h"
#include "client.h"
#include "clone-status.h"
#include "nbdclone.h"
#include "screen.h"

/* Seconds between two questions. */
#define INTERVAL 1.0
#define INTERVAL_MIN 0.1

struct watched {
  struct client *client;
  struct watch *all;
  bool asking;
  double next;             /* when to ask again */
  struct clone_status s;   /* the last one, if s.json is not NULL */
  bool ended;              /* nothing changes any more */
  int status;              /* the exit status, once ended */
  char *error;             /* why it cannot be watched any more; NULL: it can */
  unsigned printed_percent;
  char printed_state[32];  /* empty: nothing was printed */
};

struct watch {
  struct clients *clients;
  struct screen screen;
  double interval;         /* seconds */
  size_t n;
  struct watched *clones;
  bool changed;            /* since the last drawing */
  size_t rows;             /* on the screen now */
};

/* ---- one clone in a line ---- */

#define BAR_MIN 12u
#define BAR_MAX 50u
#define NAME_MAX_COLUMNS 30u

static const char *
name_of (const struct watched *w)
{
  const char *name = client_control (w->client);
  const size_t len = strlen (name);

  /* The end of a path says more than its start. */
  return len <= NAME_MAX_COLUMNS ? name : name + len - NAME_MAX_COLUMNS;
}

static unsigned
name_columns (const struct watch *watch)
{
  size_t max = 0;

  for (size_t i = 0; i < watch->n; ++i)
    max = MAX (max, strlen (name_of (&watch->clones[i])));
  return (unsigned)max;
}

static void
add_rate (struct line *l, const struct clone_status *s)
{
  char rate[WORDS_MAX], left[WORDS_MAX];

  if (s->is_complete)
    return;
  line_add (l, PLAIN, "  %s/s", size_words (s->rate, rate));
  if (s->eta_known)
    line_add (l, PLAIN, "  %s left", time_words (s->eta, left));
}

/* The source, if all is not well with it, and the mode. */
static void
add_health (struct line *l, const struct clone_status *s)
{
  char bad[WORDS_MAX];

  if (!s->is_complete && !s->source.connected) {
    line_add (l, PLAIN, "  source ");
    line_add_source (l, s);
  }
  if (s->bad)
    line_add (l, BAD, "  %s cannot be read", size_words (s->bad, bad));
  if (strcmp (s->mode, "rw") != 0)
    line_add (l, BAD, "  mode %s", s->mode);
}

static void
add_clone (struct line *l, const struct watched *w, unsigned name, unsigned bar)
{
  const struct clone_status *s = &w->s;
  char percent[WORDS_MAX];

  line_add (l, PLAIN, "%s", name_of (w));
  line_tab (l, name + 1);
  if (w->error) {
    line_add (l, BAD, "%s", w->error);
    return;
  }
  if (s->json == NULL)
    return;
  line_add_bar (l, bar, s->valid, s->size);
  line_add (l, PLAIN, " %6s ", percent_words (s->valid, s->size, percent));
  line_add (l, state_style (s->state), "%s", s->state);
  add_rate (l, s);
  add_health (l, s);
}

/* ---- on a terminal ---- */

static void
draw (struct watch *watch)
{
  const unsigned columns = watch->screen.columns;
  const unsigned name = name_columns (watch);
  const unsigned bar = MAX (MIN (columns / 3, BAR_MAX), BAR_MIN);
  /* What does not fit on the screen could not be drawn again. */
  const size_t room = MAX (watch->screen.rows, 2u) - 1;
  const size_t rows = MIN (watch->n, room);

  if (watch->rows > 0)
    printf ("\033[%zuA\r\033[J", watch->rows);
  for (size_t i = 0; i < rows; ++i) {
    CLEANUP_FREE char *text = NULL;
    struct line l;

    line_begin (&l, &watch->screen, columns - 1);
    if (i == rows - 1 && rows < watch->n)
      line_add (&l, PLAIN, "and %zu more", watch->n - rows + 1);
    else
      add_clone (&l, &watch->clones[i], name, bar);
    text = line_end (&l);
    puts (text);
  }
  watch->rows = rows;
  fflush (stdout);
}

/* ---- elsewhere ---- */

static void
print_change (struct watch *watch, struct watched *w)
{
  const struct clone_status *s = &w->s;
  const unsigned percent = text_percent (s->valid, s->size);
  char valid[WORDS_MAX], size[WORDS_MAX];
  CLEANUP_FREE char *text = NULL;
  struct line l;

  if (percent == w->printed_percent && strcmp (s->state, w->printed_state) == 0)
    return;
  w->printed_percent = percent;
  snprintf (w->printed_state, sizeof w->printed_state, "%s", s->state);
  line_begin (&l, &watch->screen, 0);
  line_add (&l, PLAIN, "%s: %u%% %s  %s of %s", client_control (w->client),
            percent, s->state, size_words (s->valid, valid),
            size_words (s->size, size));
  add_rate (&l, s);
  add_health (&l, s);
  text = line_end (&l);
  puts (text);
  fflush (stdout);
}

/* ---- asking ---- */

static void
end (struct watched *w, int status)
{
  w->ended = true;
  w->status = status;
}

static void
take_status (void *opaque, struct client *c, struct answer *a)
{
  struct watched *w = opaque;
  struct watch *watch = w->all;

  w->asking = false;
  w->next = monotonic_seconds () + watch->interval;
  watch->changed = true;
  clone_status_free (&w->s);
  if (a->kind != ANSWER_GOOD) {
    end (w, a->kind == ANSWER_REFUSED || a->kind == ANSWER_NO_PATH
         ? EXIT_REFUSED : EXIT_UNREACHABLE);
    w->error = a->message;
    a->message = NULL;
    return;
  }
  if (clone_status_read (&w->s, a->json) == -1) {
    clone_status_free (&w->s);
    end (w, EXIT_UNREACHABLE);
    w->error = strdup ("the answer is not that of a clone");
    if (w->error == NULL)
      out_of_memory ();
    return;
  }
  if (w->s.is_complete || w->s.has_failed)
    end (w, w->s.is_complete ? EXIT_DONE : EXIT_REFUSED);
  if (!watch->screen.is_terminal)
    print_change (watch, w);
}

/* Ask the clones that are due.  Returns the seconds until the next one is. */
static double
ask_all (struct watch *watch)
{
  static const struct request request = { .method = "GET", .path = "/status" };
  const double now = monotonic_seconds ();
  double wait = 3600;

  for (size_t i = 0; i < watch->n; ++i) {
    struct watched *w = &watch->clones[i];

    if (w->ended || w->asking)
      continue;
    if (w->next <= now) {
      w->asking = true;
      client_send (w->client, &request, take_status, w);
    }
    else
      wait = MIN (wait, w->next - now);
  }
  return wait;
}

static bool
all_ended (const struct watch *watch)
{
  for (size_t i = 0; i < watch->n; ++i)
    if (!watch->clones[i].ended)
      return false;
  return true;
}

/* The terminal's size has changed. */
static void
take_signal (struct watch *watch, int fd)
{
  struct signalfd_siginfo info;

  if (fd >= 0 && read (fd, &info, sizeof info) == sizeof info) {
    screen_measure (&watch->screen);
    watch->changed = true;
  }
}

/* A descriptor that is readable when SIGWINCH arrives; -1 if there is none. */
static int
catch_resizes (void)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGWINCH);
  if (sigprocmask (SIG_BLOCK, &set, NULL) == -1)
    return -1;
  return signalfd (-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* The exit status: that of a clone that cannot be reached, or that of one that
 * has failed, or EXIT_DONE.
 */
static int
result (const struct watch *watch)
{
  int status = EXIT_DONE;

  for (size_t i = 0; i < watch->n; ++i) {
    const struct watched *w = &watch->clones[i];

    status = MAX (status, w->status);
    if (w->error)
      log_error (&tool_log, "%s: %s", client_control (w->client), w->error);
    else if (w->status != EXIT_DONE)
      log_error (&tool_log, "%s: hydration has failed",
                 client_control (w->client));
  }
  return status;
}

static int
watch_all (struct watch *watch)
{
  CLEANUP_CLOSE int fd = catch_resizes ();

  do {
    const double wait = ask_all (watch);

    clients_run (watch->clients, fd, wait);
    take_signal (watch, fd);
    if (watch->changed && watch->screen.is_terminal)
      draw (watch);
    watch->changed = false;
  } while (!all_ended (watch) && !ferror (stdout));
  return result (watch);
}

static int
begin (struct watch *watch, char *controls[])
{
  watch->clones = calloc (watch->n, sizeof *watch->clones);
  if (watch->clones == NULL)
    out_of_memory ();
  screen_init (&watch->screen);
  for (size_t i = 0; i < watch->n; ++i) {
    watch->clones[i].all = watch;
    watch->clones[i].client = client_new (watch->clients, controls[i]);
    if (watch->clones[i].client == NULL)
      return EXIT_USAGE;
  }
  return EXIT_DONE;
}

static void
finish (struct watch *watch)
{
  clients_free (watch->clients);
  for (size_t i = 0; watch->clones && i < watch->n; ++i) {
    clone_status_free (&watch->clones[i].s);
    free (watch->clones[i].error);
  }
  free (watch->clones);
}

int
watch_main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "interval", required_argument, NULL, 'i' },
    CLIENT_LONG_OPTIONS,
    { 0 }
  };
  struct client_options client_options = CLIENT_OPTIONS_INIT;
  struct watch watch = { .interval = INTERVAL };
  int c, status = EXIT_USAGE;

  while ((c = next_option (argc, argv, options)) != -1) {
    if (c == 'i') {
      if (parse_seconds ("--interval", optarg, &watch.interval) == -1)
        return EXIT_USAGE;
      if (watch.interval < INTERVAL_MIN) {
        log_error (&tool_log, "--interval=%s: must be at least %g", optarg,
                   INTERVAL_MIN);
        return EXIT_USAGE;
      }
    }
    else if (client_option (c, &client_options) == -1)
      return EXIT_USAGE;
  }
  if (optind == argc) {
    log_error (&tool_log,
               "usage: nbdclone watch [--interval=SECONDS] CONTROL...");
    return EXIT_USAGE;
  }

  watch.n = (size_t)(argc - optind);
  watch.clients = clients_new (&client_options);
  if (watch.clients)
    status = begin (&watch, argv + optind);
  if (status == EXIT_DONE)
    status = watch_all (&watch);
  finish (&watch);
  return status;
}
