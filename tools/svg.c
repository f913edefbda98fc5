/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "nbdclone.h"
#include "svg.h"

/* Cells in a row, and the picture's measures in pixels. */
#define COLUMNS 64u
#define CELL 10u
#define MARGIN 10u
#define LINE 18u
#define WIDTH (2 * MARGIN + COLUMNS * CELL)

static const char *const colors[CELL_STATES] = {
  [CELL_DURABLE] = "#2e7d32",
  [CELL_DIRTY] = "#f9a825",
  [CELL_INVALID] = "#cfd8dc",
  [CELL_IN_FLIGHT] = "#1e88e5",
  [CELL_BAD] = "#c62828",
  [CELL_UNKNOWN] = "#6a1b9a",
};

/* A file's name may contain characters that XML does not allow. */
static void
write_text (FILE *f, const char *text)
{
  for (const unsigned char *p = (const unsigned char *)text; *p; ++p) {
    if (*p == '&')
      fputs ("&amp;", f);
    else if (*p == '<')
      fputs ("&lt;", f);
    else if (*p < ' ' || *p > '~')
      fputc ('?', f);
    else
      fputc (*p, f);
  }
}

/* A cell is a square.  Its states fill it from the bottom to the top. */
static void
write_cell (FILE *f, const struct cell *cell, size_t i)
{
  const double x = MARGIN + i % COLUMNS * CELL;
  double y = MARGIN + LINE + (i / COLUMNS + 1) * CELL;

  for (int state = 0; state < CELL_STATES; ++state) {
    const double height =
      (CELL - 1.0) * (double)cell->in[state] / (double)cell->length;

    if (cell->in[state] == 0)
      continue;
    y -= height;
    fprintf (f, "<rect x=\"%.0f\" y=\"%.3f\" width=\"%u\" height=\"%.3f\" "
             "fill=\"%s\"/>\n", x, y, CELL - 1, height, colors[state]);
  }
}

static void
write_legend (FILE *f, const struct cell *sum, unsigned y)
{
  char words[WORDS_MAX];

  for (int state = 0; state < CELL_STATES; ++state, y += LINE)
    fprintf (f, "<rect x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\" "
             "fill=\"%s\"/>\n"
             "<text x=\"%u\" y=\"%u\">%s: %" PRIu64 " bytes (%s)</text>\n",
             MARGIN, y - CELL, CELL, CELL, colors[state], MARGIN + 2 * CELL, y,
             cell_state_names[state], sum->in[state],
             size_words (sum->in[state], words));
}

static void
write_picture (FILE *f, const struct cells *cells, const char *title)
{
  const struct cell sum = cells_sum (cells);
  const unsigned rows = (unsigned)((cells->n + COLUMNS - 1) / COLUMNS);
  const unsigned legend = MARGIN + LINE + rows * CELL + 2 * LINE;
  char words[WORDS_MAX];

  fprintf (f, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
           "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" "
           "height=\"%u\" font-family=\"sans-serif\" font-size=\"12\">\n"
           "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
           "<text x=\"%u\" y=\"%u\">", WIDTH,
           legend + CELL_STATES * LINE, MARGIN, MARGIN + LINE / 2);
  write_text (f, title);
  fprintf (f, ", %s</text>\n", size_words (cells->size, words));
  for (size_t i = 0; i < cells->n; ++i)
    write_cell (f, &cells->cell[i], i);
  write_legend (f, &sum, legend);
  fputs ("</svg>\n", f);
}

int
svg_write (const char *file, const struct cells *cells, const char *title)
{
  FILE *f = fopen (file, "we");
  bool failed;

  if (f) {
    write_picture (f, cells, title);
    failed = ferror (f);
    failed |= fclose (f) == EOF;
  }
  if (f && !failed)
    return 0;
  log_error (&tool_log, "cannot write to %s: %m", file);
  return -1;
}
