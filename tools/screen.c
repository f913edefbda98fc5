/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>
#include <wctype.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "nbdclone.h"
#include "screen.h"

/* ---- the screen ---- */

void
screen_measure (struct screen *screen)
{
  struct winsize size;

  screen->columns = 80;
  screen->rows = 24;
  if (ioctl (STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 &&
      size.ws_row > 0) {
    screen->columns = size.ws_col;
    screen->rows = size.ws_row;
  }
}

void
screen_init (struct screen *screen)
{
  const char *no_color = getenv ("NO_COLOR");
  const char *term = getenv ("TERM");

  setlocale (LC_CTYPE, "");
  screen->is_terminal = isatty (STDOUT_FILENO);
  screen->utf8 = strcmp (nl_langinfo (CODESET), "UTF-8") == 0;
  screen->color = screen->is_terminal && (!no_color || !*no_color) &&
    term && strcmp (term, "dumb") != 0;
  screen_measure (screen);
}

enum style
state_style (const char *state)
{
  if (strcmp (state, "complete") == 0)
    return GOOD;
  if (strcmp (state, "failed") == 0)
    return BAD;
  return strcmp (state, "hydrating") == 0 ? PLAIN : WARNING;
}

/* ---- lines ---- */

static const char *const escapes[] = {
  [PLAIN] = NULL,
  [GOOD] = "\033[32m",
  [WARNING] = "\033[33m",
  [BAD] = "\033[31m",
  [FAINT] = "\033[2m",
};

void
line_begin (struct line *l, const struct screen *screen, unsigned max)
{
  *l = (struct line){ .screen = screen, .max = max ? max : UINT32_MAX };
  l->file = open_memstream (&l->text, &l->len);
  if (l->file == NULL)
    out_of_memory ();
}

/* Add one character of s, or a question mark if it cannot be printed.  Returns
 * its bytes, or 0 if the line is full.
 */
static size_t
add_character (struct line *l, const char *s)
{
  mbstate_t state = { 0 };
  wchar_t wc;
  size_t n = mbrtowc (&wc, s, strlen (s), &state);
  int columns = 1;
  const char *shown = s;
  size_t bytes = n;

  if (n == (size_t)-1 || n == (size_t)-2) {
    n = bytes = 1;
    shown = "?";
  }
  else if (!iswprint (wc) || (columns = wcwidth (wc)) < 0) {
    bytes = columns = 1;
    shown = "?";
  }
  if ((unsigned)columns > l->max - l->columns)
    return 0;
  fwrite (shown, 1, bytes, l->file);
  l->columns += columns;
  return n;
}

static void
add_text (struct line *l, enum style style, const char *text)
{
  const char *escape = l->screen->color ? escapes[style] : NULL;
  size_t n;

  if (escape)
    fputs (escape, l->file);
  for (; *text && (n = add_character (l, text)) > 0; text += n)
    ;
  if (escape)
    fputs ("\033[0m", l->file);
}

void
line_vadd (struct line *l, enum style style, const char *fmt, va_list args)
{
  CLEANUP_FREE char *text = NULL;

  if (vasprintf (&text, fmt, args) == -1) {
    text = NULL;
    out_of_memory ();
  }
  add_text (l, style, text);
}

void
line_add (struct line *l, enum style style, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  line_vadd (l, style, fmt, args);
  va_end (args);
}

void
line_add_bar (struct line *l, unsigned columns, uint64_t part, uint64_t whole)
{
  const unsigned inner = columns > 2 ? columns - 2 : 0;
  const unsigned full = whole == 0 ? inner
    : (unsigned)((unsigned __int128)part * inner / whole);

  add_text (l, PLAIN, "[");
  for (unsigned i = 0; i < inner; ++i)
    add_text (l, PLAIN, i < full ? "=" : i == full ? ">" : " ");
  add_text (l, PLAIN, "]");
}

void
line_tab (struct line *l, unsigned column)
{
  while (l->columns < MIN (column, l->max))
    add_text (l, PLAIN, " ");
}

char *
line_end (struct line *l)
{
  if (ferror (l->file) || fclose (l->file) == EOF)
    out_of_memory ();
  l->file = NULL;
  return l->text;
}

/* ---- numbers in words ---- */

const char *
size_words (uint64_t bytes, char buf[WORDS_MAX])
{
  static const char *const units[] = {
    "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"
  };
  double n = (double)bytes / 1024;
  size_t i = 0;

  if (bytes < 1024) {
    snprintf (buf, WORDS_MAX, "%" PRIu64 " bytes", bytes);
    return buf;
  }
  /* What is printed as 1024.0 belongs to the next unit. */
  for (; n >= 1023.95; n /= 1024)
    ++i;
  snprintf (buf, WORDS_MAX, "%.*f %s", n >= 100 || n == (int)n ? 0 : 1, n,
            units[i]);
  return buf;
}

const char *
percent_words (uint64_t part, uint64_t whole, char buf[WORDS_MAX])
{
  const unsigned n = part >= whole ? 1000
    : (unsigned)((unsigned __int128)part * 1000 / whole);

  snprintf (buf, WORDS_MAX, "%u.%u%%", n / 10, n % 10);
  return buf;
}

const char *
time_words (uint64_t seconds, char buf[WORDS_MAX])
{
  const uint64_t minutes = seconds / 60, hours = minutes / 60;

  if (seconds < 60)
    snprintf (buf, WORDS_MAX, "%" PRIu64 " s", seconds);
  else if (hours == 0)
    snprintf (buf, WORDS_MAX, "%" PRIu64 ":%02" PRIu64 " min", minutes,
              seconds % 60);
  else if (hours < 96)
    snprintf (buf, WORDS_MAX, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64 " h",
              hours, minutes % 60, seconds % 60);
  else
    snprintf (buf, WORDS_MAX, "%" PRIu64 " days", hours / 24);
  return buf;
}
