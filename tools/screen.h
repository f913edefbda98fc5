/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Lines of text for people: their width, colours, bars, and numbers in words.
 *
 * A line never contains a control character that came from elsewhere, such as
 * a server or a file's name, so nothing of it can be an escape sequence.
 */

#ifndef CLONE_SCREEN_H
#define CLONE_SCREEN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* What stdout is.  columns and rows are 80 and 24 where it does not say. */
struct screen {
  bool is_terminal;
  bool color;       /* a terminal, not a dumb one, and NO_COLOR is not set */
  bool utf8;
  unsigned columns, rows;
};

/* Look at stdout, and set the locale of characters. */
extern void screen_init (struct screen *screen);

/* Look at its size again. */
extern void screen_measure (struct screen *screen);

enum style { PLAIN, GOOD, WARNING, BAD, FAINT };

/* The style of a clone's state. */
extern enum style state_style (const char *state);

/* A line that is being made.  What exceeds `max' columns is left out. */
struct line {
  const struct screen *screen;
  unsigned columns, max;
  FILE *file;  /* writes to text */
  char *text;
  size_t len;
};

/* max 0: there is no limit. */
extern void line_begin (struct line *l, const struct screen *screen,
                        unsigned max);
extern void line_add (struct line *l, enum style style, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));
extern void line_vadd (struct line *l, enum style style, const char *fmt,
                       va_list args)
  __attribute__ ((format (printf, 3, 0)));

/* A bar of so many columns, of which part/whole is filled. */
extern void line_add_bar (struct line *l, unsigned columns, uint64_t part,
                          uint64_t whole);

/* Fill up with blanks to this column. */
extern void line_tab (struct line *l, unsigned column);

/* The line without a newline.  The caller frees it. */
extern char *line_end (struct line *l);

/* Numbers in words.  The result is in buf. */
#define WORDS_MAX 40

/* "1.5 GiB".  Unlike text_size (base/text.h), this shows what is not exact: a
 * disk has "5 TiB", and "5.0 TiB" is a little more or less.
 */
extern const char *size_words (uint64_t bytes, char buf[WORDS_MAX]);

/* "42.3%": 100.0% only if part is the whole. */
extern const char *percent_words (uint64_t part, uint64_t whole,
                                  char buf[WORDS_MAX]);

/* "12 s", "3:05 min", "1:02:03 h", "4 days" */
extern const char *time_words (uint64_t seconds, char buf[WORDS_MAX]);

#endif /* CLONE_SCREEN_H */
