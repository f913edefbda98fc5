/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "control/map.h"
#include "control/request.h"
#include "control/size.h"
#include "hydration/hydrate.h"
#include "store/region-map.h"

/* ---- ranges that are in flight or bad ---- */

/* Both kinds in one list.  It ascends, and no two ranges overlap: what is in
 * flight again does not count as bad.
 */
struct special {
  uint64_t start, end;
  bool bad;
};

struct specials {
  size_t len;
  struct special range[2 * HYDRATE_FLIGHT_MAX + HYDRATE_BAD_MAX];
};

static int
compare_specials (const void *a, const void *b)
{
  const struct special *x = a, *y = b;

  return (x->start > y->start) - (x->start < y->start);
}

static void
specials_add (struct specials *s, uint64_t start, uint64_t end, bool bad)
{
  if (start < end)
    s->range[s->len++] = (struct special){ start, end, bad };
}

static void
specials_add_flight (struct specials *s, const struct hydrate_ranges *ranges)
{
  uint64_t pos = 0;

  for (unsigned i = 0; i < ranges->flight; i++)
    specials_add (s, ranges->in_flight[i].start, ranges->in_flight[i].end,
                  false);
  qsort (s->range, s->len, sizeof s->range[0], compare_specials);
  /* They overlap only after the map was set back. */
  for (size_t i = 0; i < s->len; i++) {
    struct special *r = &s->range[i];

    r->start = MIN (MAX (r->start, pos), r->end);
    pos = MAX (pos, r->end);
  }
}

/* Add the parts of the bad ranges that are not in flight. */
static void
specials_add_bad (struct specials *s, const struct hydrate_ranges *ranges)
{
  const size_t flight = s->len;
  size_t f = 0;

  for (unsigned i = 0; i < ranges->bad; i++) {
    uint64_t pos = ranges->bad_range[i].start;
    const uint64_t end = ranges->bad_range[i].end;

    while (f < flight && s->range[f].end <= pos)
      f++;
    for (size_t k = f; k < flight && s->range[k].start < end; k++) {
      specials_add (s, pos, MIN (s->range[k].start, end), true);
      pos = MAX (pos, s->range[k].end);
    }
    specials_add (s, pos, end, true);
  }
  qsort (s->range, s->len, sizeof s->range[0], compare_specials);
}

/* To be freed; NULL if out of memory. */
static struct specials *
specials_get (const struct request *r)
{
  CLEANUP_FREE struct hydrate_ranges *ranges = malloc (sizeof *ranges);
  struct specials *s = malloc (sizeof *s);

  if (ranges == NULL || s == NULL) {
    free (s);
    return NULL;
  }
  s->len = 0;
  hydrate_get_ranges (r->instance->hydrate, ranges);
  specials_add_flight (s, ranges);
  specials_add_bad (s, ranges);
  return s;
}

/* ---- cells ---- */

/* The invalid bytes of [start, end) that are in flight or bad.  *next is the
 * first range that may reach into this cell, or a later one.
 */
static void
count_specials (const struct region_map *map, const struct specials *s,
                size_t *next, uint64_t start, uint64_t end, uint64_t max,
                uint64_t bytes[2])
{
  struct region_sum sum;

  bytes[0] = bytes[1] = 0;
  while (*next < s->len && s->range[*next].end <= start)
    ++*next;
  for (size_t i = *next; i < s->len && s->range[i].start < end; i++) {
    const uint64_t from = MAX (s->range[i].start, start);
    const uint64_t to = MIN (s->range[i].end, end);

    if (from >= to)
      continue;
    region_map_sum (map, from, to, &sum);
    bytes[s->range[i].bad] += to - from - sum.durable - sum.dirty;
  }
  /* The map may have been set back since the cell was counted. */
  bytes[0] = MIN (bytes[0], max);
  bytes[1] = MIN (bytes[1], max - bytes[0]);
}

static void
print_cells (FILE *fp, const struct region_map *map, const struct specials *s)
{
  const uint64_t size = region_map_size (map);
  const uint64_t region_size = region_map_region_size (map);
  const uint64_t cell = round_up (div_round_up (size, MAP_CELLS), region_size);
  struct region_sum sum;
  uint64_t bytes[2], invalid, n;
  size_t next = 0;

  fprintf (fp, "{\"size\": %" PRIu64 ", \"region_size\": %" PRIu64
           ", \"offset\": 0, \"length\": %" PRIu64 ", \"cell\": %" PRIu64
           ", \"cells\": [", size, region_size, size, cell);
  for (uint64_t pos = 0; pos < size; pos += n) {
    n = MIN (cell, size - pos);
    region_map_sum (map, pos, pos + n, &sum);
    invalid = n - sum.durable - sum.dirty;
    count_specials (map, s, &next, pos, pos + n, invalid, bytes);
    fprintf (fp, "%s{\"offset\": %" PRIu64 ", \"length\": %" PRIu64
             ", \"durable\": %" PRIu64 ", \"dirty\": %" PRIu64
             ", \"invalid\": %" PRIu64 ", \"in_flight\": %" PRIu64
             ", \"bad\": %" PRIu64 "}", pos ? ", " : "", pos, n, sum.durable,
             sum.dirty, invalid, bytes[0], bytes[1]);
  }
  fputs ("]}\n", fp);
}

/* ---- runs ---- */

struct map_range {
  uint64_t offset, length; /* UINT64_MAX: as much as there is */
};

/* The run at pos, of regions in one state; an invalid run is cut where a range
 * that is in flight or bad begins or ends.  *next is as in count_specials.
 */
static const char *
find_run (const struct region_map *map, const struct specials *s, size_t *next,
          uint64_t pos, uint64_t end, uint64_t *length)
{
  static const char *const names[] = {
    [REGION_INVALID] = "invalid", [REGION_DIRTY] = "dirty",
    [REGION_DURABLE] = "durable",
  };
  const struct special *r;
  enum region_state state;

  *length = region_map_state_run (map, pos, end, &state);
  while (*next < s->len && s->range[*next].end <= pos)
    ++*next;
  if (state != REGION_INVALID || *next == s->len)
    return names[state];
  r = &s->range[*next];
  if (r->start > pos) {
    *length = MIN (*length, r->start - pos);
    return names[state];
  }
  *length = MIN (*length, r->end - pos);
  return r->bad ? "bad" : "in_flight";
}

static void
print_runs (FILE *fp, const struct region_map *map, const struct specials *s,
            const struct map_range *range)
{
  const uint64_t size = region_map_size (map);
  const uint64_t length = MIN (range->length, size - range->offset);
  const uint64_t end = range->offset + length;
  uint64_t pos = range->offset, begin = pos, n;
  const char *state = NULL, *run;
  size_t next = 0;
  unsigned runs = 0;

  fprintf (fp, "{\"size\": %" PRIu64 ", \"region_size\": %" PRIu64
           ", \"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"runs\": [",
           size, region_map_region_size (map), pos, length);
  /* The run [begin, pos) is printed when its end is known. */
  for (;;) {
    run = NULL;
    if (pos < end)
      run = find_run (map, s, &next, pos, end, &n);
    if (state && run != state) {
      fprintf (fp, "%s{\"offset\": %" PRIu64 ", \"length\": %" PRIu64
               ", \"state\": \"%s\"}", runs ? ", " : "", begin, pos - begin,
               state);
      begin = pos;
      runs++;
    }
    state = run;
    if (run == NULL || runs == MAP_RUNS)
      break;
    pos += n;
  }
  if (begin < end)
    fprintf (fp, "], \"next\": %" PRIu64 "}\n", begin);
  else
    fputs ("], \"next\": null}\n", fp);
}

/* ---- the request ---- */

struct arguments {
  const struct request *request;
  struct map_range range;
  bool given; /* offset or length */
  char *why;  /* not NULL: something is wrong */
};

/* libmicrohttpd calls this for each argument. */
static enum MHD_Result
take_argument (void *opaque, enum MHD_ValueKind kind, const char *key,
               const char *value)
{
  struct arguments *a = opaque;
  uint64_t *number = strcmp (key, "offset") == 0 ? &a->range.offset
    : strcmp (key, "length") == 0 ? &a->range.length : NULL;
  int r = 0;

  if (number == NULL)
    r = asprintf (&a->why, "/map has only the arguments offset and length");
  else if (size_parse (value ? value : "", number) == -1)
    r = asprintf (&a->why, "%s must be a number of bytes", key);
  else
    a->given = true;
  if (r == -1)
    a->why = NULL;
  return r == 0 ? MHD_YES : MHD_NO;
}

static enum MHD_Result
fail_range (struct request *r, const char *message)
{
  return request_fail (r, MHD_HTTP_BAD_REQUEST, message, NULL, NULL);
}

enum MHD_Result
map_handle (struct request *r)
{
  const struct region_map *map = clone_map (r->instance->clone);
  struct arguments a = { .request = r, .range = { 0, UINT64_MAX } };
  CLEANUP_FREE struct specials *specials = NULL;
  char *text = NULL;
  size_t len;
  FILE *fp;

  MHD_get_connection_values (r->connection, MHD_GET_ARGUMENT_KIND,
                             take_argument, &a);
  if (a.why) {
    CLEANUP_FREE char *why = a.why;

    return fail_range (r, why);
  }
  if (a.range.offset >= region_map_size (map))
    return fail_range (r, "offset must be less than the disk's size");
  if (a.range.length == 0)
    return fail_range (r, "length must be at least 1");

  specials = specials_get (r);
  fp = specials ? open_memstream (&text, &len) : NULL;
  if (fp == NULL)
    return MHD_NO;
  if (a.given)
    print_runs (fp, map, specials, &a.range);
  else
    print_cells (fp, map, specials);
  if (fclose (fp) == EOF) {
    free (text);
    return MHD_NO;
  }
  return request_answer_text (r, text, len, "application/json");
}
