/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clone/clone.h"
#include "clone/private.h"
#include "hydration/hydrate.h"
#include "judge.h"

struct judge {
  const struct history *h;
  struct oracle *oracle;
  struct mock_disk *disk;
  uint64_t from, n;         /* the sectors that are looked at */
  uint8_t *first, *second;  /* two readings of them */
};

struct judge *
judge_new (const struct history *h, struct oracle *o)
{
  struct judge *j = calloc (1, sizeof *j);

  if (j == NULL)
    abort ();
  j->h = h;
  j->oracle = o;
  j->disk = state_disk (&h->before, false);
  j->first = malloc (h->before.size);
  j->second = malloc (h->before.size);
  if (j->first == NULL || j->second == NULL)
    abort ();
  return j;
}

void
judge_free (struct judge *j)
{
  mock_disk_free (j->disk);
  free (j->first);
  free (j->second);
  free (j);
}

static bool
__attribute__ ((format (printf, 1, 2)))
illegal (const char *fmt, ...)
{
  va_list args;

  fprintf (stderr, "illegal: ");
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fputc ('\n', stderr);
  return false;
}

/* What setup.c does: metadata that is there is opened, else it is created, and
 * it can only not be there where creation did not get to its end.
 */
static bool
open_disk (struct judge *j, uint64_t cut)
{
  struct mock_disk *d = j->disk;

  switch (mock_disk_probe (d)) {
  case METADATA_PRESENT:
    if (mock_disk_open (d) == -1)
      return illegal ("the metadata is refused: %s", mock_last_error ());
    return true;
  case METADATA_ABSENT:
    if (cut >= j->h->created)
      return illegal ("the metadata is gone");
    mock_disk_create (d);
    return true;
  default:
    return illegal ("the metadata is not recognised");
  }
}

static bool
read_disk (struct judge *j, uint8_t *buf)
{
  if (clone_pread (j->disk->clone, buf, j->n * SECTOR,
                   j->from * SECTOR) == -1)
    return illegal ("the disk cannot be read: %s", strerror (errno));
  return true;
}

static bool
check_values (struct judge *j, uint64_t cut, const value_t *values)
{
  for (uint64_t s = j->from; s < j->from + j->n; ++s)
    if (!oracle_allows (j->oracle, s, values[s])) {
      illegal ("sector %" PRIu64 " reads as %s", s, value_name (values[s]));
      oracle_print (j->oracle, s);
      history_print (j->h, s, cut);
      return false;
    }
  return true;
}

/* The first reading is what the disk holds: it must not change. */
static bool
check_same (struct judge *j, const uint8_t *buf, const char *what)
{
  for (uint64_t i = 0; i < j->n; ++i) {
    const uint8_t *then = j->first + i * SECTOR, *now = buf + i * SECTOR;
    const uint64_t s = j->from + i;

    if (memcmp (now, then, SECTOR) != 0)
      return illegal ("sector %" PRIu64 " was %s, and is %s %s", s,
                      value_name (value_of (then, s)),
                      value_name (value_of (now, s)), what);
  }
  return true;
}

static bool
is_complete (struct judge *j)
{
  return commit_is_complete (j->disk->clone->commit);
}

static void
hydrate (struct judge *j)
{
  const struct hydrate_settings settings = {
    .batch = HYDRATE_BATCH_MIN, .threshold = HYDRATE_BATCH_MIN * 4
  };
  struct hydrate *h = mock_disk_hydrate (j->disk, &settings, false, NULL);

  for (unsigned ms = 0; ms < 5000 && !is_complete (j); ++ms)
    usleep (1000);
  mock_disk_end_hydration (j->disk, h);
}

static void
copy (struct judge *j)
{
  struct clone *c = j->disk->clone;

  if (clone_cache (c, j->h->before.size, 0) == -1 ||
      clone_flush (c, NULL) == -1)
    abort ();
}

/* To the end, and the destination is the disk, with and without a clone on top
 * of it.
 */
static bool
check_end (struct judge *j, enum depth depth)
{
  struct mock_disk *d = j->disk;

  if (depth == DEPTH_HYDRATE)
    hydrate (j);
  else
    copy (j);
  if (!is_complete (j))
    return illegal ("hydration does not come to its end");
  if (!read_disk (j, j->second) ||
      !check_same (j, j->second, "after hydration") ||
      !check_same (j, mock_durable (d->dest), "in the destination alone"))
    return false;

  if (mock_disk_close (d) == -1 || mock_disk_open (d) == -1)
    return illegal ("the complete clone cannot be opened");
  if (d->clone->source)
    return illegal ("complete, and yet the source is wanted");
  return read_disk (j, j->second) &&
    check_same (j, j->second, "after it was complete and opened again");
}

static bool
check_disk (struct judge *j, uint64_t cut, enum depth depth, value_t *values)
{
  if (!read_disk (j, j->first))
    return false;
  values_of (j->first, values + j->from, j->from, j->n);
  if (!check_values (j, cut, values) || !read_disk (j, j->second) ||
      !check_same (j, j->second, "when read again"))
    return false;
  return depth == DEPTH_READ || check_end (j, depth);
}

bool
judge_image (struct judge *j, uint64_t cut, const uint8_t *dest,
             const uint8_t *meta, enum depth depth, value_t *values)
{
  struct mock_disk *d = j->disk;
  const struct state *s = &j->h->before;
  const uint64_t window = s->size - s->window;
  bool ok;

  j->from = depth == DEPTH_READ ? state_window (s) : 0;
  j->n = s->size / SECTOR - j->from;
  mock_fill (d->dest, dest + window, s->window, window);
  mock_fill (d->meta, meta, mock_backend (d->meta)->size, 0);
  if (!open_disk (j, cut))
    return false;
  ok = check_disk (j, cut, depth, values);
  if (d->clone && mock_disk_close (d) == -1)
    ok = illegal ("it cannot be closed");
  return ok;
}
