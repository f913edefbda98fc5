/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone map: show which parts of a disk are valid, as blocks or as a
 * picture.
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "cells.h"
#include "client.h"
#include "nbdclone.h"
#include "screen.h"
#include "svg.h"

#define BLOCKS_MAX 64u

static void
print_blocks (const struct cells *cells, const struct screen *screen)
{
  const size_t columns = MAX (MIN (screen->columns, BLOCKS_MAX), 1u);

  for (size_t i = 0; i < cells->n; i += columns) {
    CLEANUP_FREE char *text = NULL;
    struct line l;

    line_begin (&l, screen, 0);
    for (size_t j = i; j < MIN (i + columns, cells->n); ++j)
      line_add_cell (&l, &cells->cell[j]);
    text = line_end (&l);
    puts (text);
  }
}

/* Print how much is in each state, after a block for it. */
static void
print_legend (const struct cells *cells, const struct screen *screen)
{
  const struct cell sum = cells_sum (cells);

  for (int state = 0; state < CELL_STATES; ++state) {
    struct cell sample = { .length = 1 };
    CLEANUP_FREE char *text = NULL;
    char words[WORDS_MAX];
    struct line l;

    sample.in[state] = 1;
    line_begin (&l, screen, 0);
    line_add_cell (&l, &sample);
    line_add (&l, PLAIN, " %s%s: %s", cell_state_names[state],
              state == CELL_IN_FLIGHT ? ", or partly valid" : "",
              size_words (sum.in[state], words));
    text = line_end (&l);
    puts (text);
  }
}

static int
ask_map (struct client *c, struct cells *cells)
{
  const struct request request = { .method = "GET", .path = "/map" };
  struct answer a;
  int status = EXIT_DONE;

  client_ask (c, &request, &a);
  if (a.kind != ANSWER_GOOD)
    status = answer_fail (&a, client_control (c));
  else if (cells_read (cells, a.json) == -1)
    status = answer_fail_wrong (client_control (c));
  answer_free (&a);
  return status;
}

static int
map_of_control (const char *control, const struct client_options *options,
                struct cells *cells)
{
  struct clients *clients = clients_new (options);
  struct client *client = clients ? client_new (clients, control) : NULL;
  int status = client ? ask_map (client, cells) : EXIT_USAGE;

  clients_free (clients);
  return status;
}

static int
show (const struct cells *cells, const char *name, const char *svg)
{
  struct screen screen;

  if (svg)
    return svg_write (svg, cells, name) == 0 ? EXIT_DONE : EXIT_UNREACHABLE;
  screen_init (&screen);
  print_blocks (cells, &screen);
  print_legend (cells, &screen);
  return EXIT_DONE;
}

int
map_main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "svg", required_argument, NULL, 's' },
    CLIENT_LONG_OPTIONS,
    { 0 }
  };
  struct client_options client_options = CLIENT_OPTIONS_INIT;
  struct cells cells = { 0 };
  const char *svg = NULL;
  int c, status;

  while ((c = next_option (argc, argv, options)) != -1) {
    if (c == 's')
      svg = optarg;
    else if (client_option (c, &client_options) == -1)
      return EXIT_USAGE;
  }
  if (!has_operands (argc, argv, 1, "map [--svg=FILE] CONTROL|METADATA"))
    return EXIT_USAGE;

  status = client_is_control (argv[optind])
    ? map_of_control (argv[optind], &client_options, &cells)
    : cells_of_metadata (&cells, argv[optind]);
  return status == EXIT_DONE ? show (&cells, argv[optind], svg) : status;
}
