/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rounding.h"
#include "oracle.h"

struct oracle {
  const struct history *h;
  uint64_t sectors;
  uint64_t *durable;     /* of each event: the tick at which what it changed is
                          * covered by a completed flush or by FUA */
  uint64_t now;          /* what began later is not there */
  uint64_t *settled;     /* of each sector: when the last write began that must
                          * not be lost; 0: there is none */
};

static bool
covers (const struct event *ev, uint64_t sector)
{
  return ev->first <= sector && sector < ev->first + ev->n;
}

static bool
changes (const struct event *ev)
{
  return ev->type == EVENT_WRITE || ev->type == EVENT_ZERO ||
    ev->type == EVENT_TRIM;
}

/* A request that failed may have been done in part, at an unknown time. */
static uint64_t
end_of (const struct event *ev)
{
  return ev->error ? UINT64_MAX : ev->end;
}

/* It may have been done before the destination's server was lost. */
static bool
may_be_gone (const struct history *h, const struct event *ev)
{
  return ev->start < h->loss_end && h->loss != UINT64_MAX;
}

/* When did the first request begin, FLUSH or FUA, whose failure says that this
 * may be lost?  Where no device fails, only losses make a flush fail.
 */
static uint64_t
failed_at (const struct history *h, const struct event *ev)
{
  uint64_t failed = UINT64_MAX;

  for (size_t i = 0; i < h->n && h->faults; ++i) {
    const struct event *f = &h->event[i];

    if (f->error && (f->type == EVENT_FLUSH || f->fua) && f->end > ev->start)
      failed = MIN (failed, f->start);
  }
  return failed;
}

/* Does the client of this flush know of the loss of the destination's server,
 * because an earlier flush of its has failed since?
 */
static bool
knows_of_loss (const struct history *h, const struct event *flush)
{
  if (flush->client == HISTORY_CLIENTS)
    return true;
  for (size_t i = 0; i < h->n; ++i) {
    const struct event *f = &h->event[i];

    if (f->type == EVENT_FLUSH && f->error && f->client == flush->client &&
        f->end > h->loss && f->end <= flush->start)
      return true;
  }
  return false;
}

/* Does this flush promise that what the request changed is durable? */
static bool
promises (const struct history *h, const struct event *flush,
          const struct event *ev, uint64_t failed)
{
  return flush->type == EVENT_FLUSH && !flush->error &&
    flush->start > ev->end && flush->end < failed &&
    (!may_be_gone (h, ev) || flush->end < h->loss ||
     !knows_of_loss (h, flush));
}

static uint64_t
durable_at (const struct history *h, const struct event *ev)
{
  const uint64_t failed = failed_at (h, ev);
  uint64_t durable = ev->fua ? ev->end : UINT64_MAX;

  if (ev->error)
    return UINT64_MAX;
  for (size_t i = 0; i < h->n; ++i)
    if (promises (h, &h->event[i], ev, failed))
      durable = MIN (durable, h->event[i].end);
  return durable;
}

struct oracle *
oracle_new (const struct history *h)
{
  struct oracle *o = calloc (1, sizeof *o);

  if (o == NULL)
    abort ();
  o->h = h;
  o->sectors = h->before.size / SECTOR;
  o->durable = calloc (h->n, sizeof *o->durable);
  o->settled = calloc (o->sectors, sizeof *o->settled);
  if (o->durable == NULL || o->settled == NULL)
    abort ();
  for (size_t i = 0; i < h->n; ++i)
    o->durable[i] = durable_at (h, &h->event[i]);
  return o;
}

void
oracle_free (struct oracle *o)
{
  free (o->durable);
  free (o->settled);
  free (o);
}

/* This must not be lost, nor what it replaced come back.  A trim may be. */
static void
settle (struct oracle *o, const struct event *ev)
{
  if (ev->type != EVENT_WRITE && ev->type != EVENT_ZERO)
    return;
  for (uint64_t s = ev->first; s < ev->first + ev->n; ++s)
    o->settled[s] = MAX (o->settled[s], ev->start);
}

void
oracle_set_cut (struct oracle *o, uint64_t cut)
{
  o->now = cut;
  memset (o->settled, 0, o->sectors * sizeof *o->settled);
  for (size_t i = 0; i < o->h->n; ++i)
    if (o->durable[i] <= cut)
      settle (o, &o->h->event[i]);
}

/* May the sector have what this request left there? */
static bool
may_remain (const struct oracle *o, const struct event *ev, uint64_t sector)
{
  return changes (ev) && covers (ev, sector) && ev->start <= o->now &&
    end_of (ev) > o->settled[sector];
}

bool
oracle_allows (const struct oracle *o, uint64_t sector, value_t value)
{
  if (o->settled[sector] == 0 && value == o->h->before.values[sector])
    return true;
  for (size_t i = 0; i < o->h->n; ++i)
    if (o->h->event[i].value == value &&
        may_remain (o, &o->h->event[i], sector))
      return true;
  return false;
}

void
oracle_print (const struct oracle *o, uint64_t sector)
{
  fprintf (stderr, "allowed are:");
  if (o->settled[sector] == 0)
    fprintf (stderr, " %s (from the beginning)",
             value_name (o->h->before.values[sector]));
  for (size_t i = 0; i < o->h->n; ++i)
    if (may_remain (o, &o->h->event[i], sector))
      fprintf (stderr, " %s (begun at %" PRIu64 ")",
               value_name (o->h->event[i].value), o->h->event[i].start);
  fputc ('\n', stderr);
}

/* While all is running nothing gets lost: whatever had returned when the read
 * began is there, but for what is lost with the destination's server.
 */
static bool
check_read (struct oracle *o, const struct event *read, uint64_t *sector)
{
  o->now = read->end;
  memset (o->settled, 0, o->sectors * sizeof *o->settled);
  for (size_t i = 0; i < o->h->n; ++i)
    if (end_of (&o->h->event[i]) < read->start &&
        !(may_be_gone (o->h, &o->h->event[i]) && o->durable[i] > o->h->loss &&
          read->end > o->h->loss))
      settle (o, &o->h->event[i]);

  for (uint64_t i = 0; i < read->n; ++i)
    if (!oracle_allows (o, read->first + i, read->seen[i])) {
      *sector = read->first + i;
      return false;
    }
  return true;
}

const struct event *
oracle_check_reads (struct oracle *o, uint64_t *sector)
{
  for (size_t i = 0; i < o->h->n; ++i) {
    const struct event *ev = &o->h->event[i];

    if (ev->type == EVENT_READ && !ev->error && !check_read (o, ev, sector))
      return ev;
  }
  return NULL;
}
