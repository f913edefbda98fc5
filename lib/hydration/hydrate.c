/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Hydration from outside: its life, the clone's events, settings and status.
 * hydrate.h draws how a range is copied.  private.h has the locking.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "hydration/hydrate.h"
#include "hydration/pace.h"
#include "hydration/plan.h"
#include "hydration/private.h"

/* For hydrate_choose_batch. */
#define REQUESTS_SERVED 16
#define SMALLEST_CHOICE (UINT64_C (512) << 10)
#define LARGEST_CHOICE (UINT64_C (1) << 20)

/* The weight of the latest tick in the average rate. */
#define RATE_WEIGHT 0.3

/* ---- for the other files ---- */

void
hydrate_wake (struct hydrate *h)
{
  for (unsigned i = 0; i < h->nr_workers; ++i)
    if (h->worker[i].loop)
      ev_async_send (h->worker[i].loop, &h->worker[i].wake);
}

bool
hydrate_is_running (const struct hydrate *h)
{
  return h->running && !h->stopping;
}

/* With the lock, or before the threads start. */
static bool
hydrate_is_paused (const struct hydrate *h)
{
  return h->paused || h->settings.threshold == 0;
}

bool
hydrate_is_over (struct hydrate *h)
{
  return h->stopping || clone_is_complete (h->clone);
}

/* ---- the clone's events ---- */

/* A client is about to read these bytes from the source: copy them soon, and a
 * batch of what follows.
 */
static void
hydrate_source_read (void *opaque, uint64_t start, uint64_t end)
{
  struct hydrate *h = opaque;
  LOCK_FOR_SCOPE (&h->lock);

  if (hydrate_is_running (h) && h->settings.access && !h->paused && !h->failed)
    plan_want (&h->plan, start, end + admission_batch (&h->settings));
}

/* A client has read `count' bytes from the source in `took' seconds. */
static void
hydrate_source_was_read (void *opaque, uint64_t count, double took)
{
  struct hydrate *h = opaque;
  const double now = monotonic_seconds ();
  LOCK_FOR_SCOPE (&h->lock);

  if (hydrate_is_running (h))
    pace_was_read (&h->pace, count, took, now, admission_batch (&h->settings),
                   h->settings.threshold);
}

/* Hydration or clients have made the clone complete. */
static void
hydrate_completed (void *opaque)
{
  struct hydrate *h = opaque;
  bool had_bad;

  {
    LOCK_FOR_SCOPE (&h->lock);
    if (!hydrate_is_running (h))
      return;
    had_bad = h->bad.said > 0;
  }
  news_log_end (h->log, h->clone, &h->news, monotonic_seconds ());
  if (had_bad)
    log_info (h->log, "all unreadable ranges of the source have been read by "
              "now, or written by clients");
  hydrate_tell_end (h);
  hydrate_wake (h);
}

/* The map was set back.  Copies that are under way go on: their regions are
 * invalid again.
 */
static void
hydrate_set_back (void *opaque)
{
  struct hydrate *h = opaque;
  LOCK_FOR_SCOPE (&h->lock);

  if (hydrate_is_running (h))
    plan_set_back (&h->plan);
}

static void
hydrate_servers_changed (void *opaque)
{
  struct hydrate *h = opaque;
  unsigned connections;

  {
    LOCK_FOR_SCOPE (&h->lock);
    if (!hydrate_is_running (h))
      return;
  }
  if (clone_source_status (h->clone, &connections) == BACKEND_REFUSED)
    hydrate_tell_end (h);
  hydrate_wake (h);
}

struct clone_events
hydrate_events (struct hydrate *h)
{
  return (struct clone_events){
    .complete = hydrate_completed, .committed = hydrate_committed,
    .set_back = hydrate_set_back, .servers_changed = hydrate_servers_changed,
    .source_read = hydrate_source_read,
    .source_was_read = hydrate_source_was_read,
    .opaque = h,
  };
}

/* ---- start and end ---- */

struct hydrate *
hydrate_new (const struct hydrate_settings *settings, bool paused,
             void (*on_end) (void *opaque), void *opaque,
             const struct log *log)
{
  struct hydrate *h = calloc (1, sizeof *h);

  if (h == NULL)
    return NULL;
  h->log = log;
  h->settings = *settings;
  h->paused = paused;
  h->on_end = on_end;
  h->on_end_opaque = opaque;
  pthread_mutex_init (&h->lock, NULL);
  pthread_mutex_init (&h->telling, NULL);
  return h;
}

void
hydrate_free (struct hydrate *h)
{
  if (h == NULL)
    return;
  for (unsigned i = 0; i < h->nr_workers; ++i)
    if (h->worker[i].loop)
      ev_loop_destroy (h->worker[i].loop);
  if (h->clone)
    plan_destroy (&h->plan);
  pthread_mutex_destroy (&h->lock);
  pthread_mutex_destroy (&h->telling);
  free (h);
}

/* One worker for each processor, and for each two connections of the source:
 * the others are for clients.
 */
static unsigned
hydrate_choose_workers (struct backend *source)
{
  const long processors = sysconf (_SC_NPROCESSORS_ONLN);
  unsigned n = MIN (MAX (processors, 1), HYDRATE_MAX_WORKERS);

  if (source->ops->connections)
    n = MIN (n, MAX (backend_connections (source) / 2, 1u));
  return n;
}

/* The threshold is as many batches as the servers work on at once: nbdkit and
 * qemu-nbd process 16 requests of each connection, and each worker uses one
 * connection.  Small batches overlap more, and fill their buffers sooner.
 * Below SMALLEST_CHOICE the cost of a request matters.
 */
static uint64_t
hydrate_choose_batch (uint64_t threshold, unsigned workers)
{
  const uint64_t share = threshold / (workers * REQUESTS_SERVED);

  return share >= LARGEST_CHOICE ? LARGEST_CHOICE : SMALLEST_CHOICE;
}

/* source is NULL where the clone is complete. */
static void
hydrate_attach (struct hydrate *h, struct clone *c, struct backend *source)
{
  const struct region_map *map = clone_map (c);
  LOCK_FOR_SCOPE (&h->lock);

  h->nr_workers = source ? hydrate_choose_workers (source) : 1;
  if (h->settings.batch == HYDRATE_BATCH_DEFAULT)
    h->settings.batch = hydrate_choose_batch (h->settings.threshold,
                                              h->nr_workers);
  plan_init (&h->plan, map, source && source->knows_extents);
  h->valid_then = region_map_bytes_valid (map);
  news_init (&h->news, clone_size (c), h->valid_then, monotonic_seconds ());
  h->clone = c;
}

int
hydrate_start (struct hydrate *h, struct clone *c)
{
  struct backend *source = clone_source_get (c);
  int r = 0;

  hydrate_attach (h, c, source);
  news_log_begin (h->log, source, c, hydrate_is_paused (h));
  if (source == NULL)
    return 0;
  clone_source_put (c);

  for (unsigned i = 0; i < h->nr_workers && r == 0; ++i)
    r = worker_init (h, &h->worker[i]);
  {
    LOCK_FOR_SCOPE (&h->lock);
    h->running = r == 0;
  }
  for (unsigned i = 0; i < h->nr_workers && r == 0; ++i)
    r = worker_start (&h->worker[i]);
  if (r == -1)
    hydrate_stop (h);
  return r;
}

void
hydrate_stop (struct hydrate *h)
{
  {
    LOCK_FOR_SCOPE (&h->lock);
    h->stopping = true;
  }
  hydrate_wake (h);
  for (unsigned i = 0; i < h->nr_workers; ++i)
    worker_join (&h->worker[i]);

  /* A thread of the clone's may still be in an event. */
  LOCK_FOR_SCOPE (&h->telling);
  h->on_end = NULL;
}

/* ---- pause, resume, settings ---- */

void
hydrate_wind_down (struct hydrate *h)
{
  LOCK_FOR_SCOPE (&h->lock);

  h->paused = h->ending = true;
}

/* Without the lock.  was: hydrate_is_paused, before a change. */
static void
hydrate_tell_pause (struct hydrate *h, bool was)
{
  bool is, quiet;

  {
    LOCK_FOR_SCOPE (&h->lock);
    is = hydrate_is_paused (h);
    quiet = h->ending || !h->running || hydrate_is_over (h);
  }
  if (is != was && !quiet)
    log_info (h->log, is ? "hydration is paused" : "hydration goes on");
}

void
hydrate_pause (struct hydrate *h)
{
  bool was;

  {
    LOCK_FOR_SCOPE (&h->lock);
    was = hydrate_is_paused (h);
    h->paused = true;
  }
  hydrate_tell_pause (h, was);
}

void
hydrate_resume (struct hydrate *h)
{
  bool was;

  {
    LOCK_FOR_SCOPE (&h->lock);
    was = hydrate_is_paused (h);
    h->paused = false;
    hydrate_start_over (h);
    bad_source_retry (h);
  }
  hydrate_tell_pause (h, was);
  hydrate_wake (h);
}

void
hydrate_get_settings (struct hydrate *h, struct hydrate_settings *settings)
{
  LOCK_FOR_SCOPE (&h->lock);

  *settings = h->settings;
}

void
hydrate_set_settings (struct hydrate *h,
                      const struct hydrate_settings *settings)
{
  bool was;

  {
    LOCK_FOR_SCOPE (&h->lock);
    was = hydrate_is_paused (h);
    h->settings = *settings;
    h->rate_next = 0;
  }
  hydrate_tell_pause (h, was);
  hydrate_wake (h);
}

/* ---- status ---- */

void
hydrate_tick (struct hydrate *h)
{
  const uint64_t valid = region_map_bytes_valid (clone_map (h->clone));
  struct hydrate_status st;
  unsigned tenth = 0;

  {
    LOCK_FOR_SCOPE (&h->lock);
    /* Fewer bytes than before are valid after the map was set back. */
    const double now = valid > h->valid_then ?
                       (valid - h->valid_then) / HYDRATE_TICK : 0;

    h->rate = h->rate ? h->rate + RATE_WEIGHT * (now - h->rate) : now;
    h->valid_then = valid;
    if (h->failed_by_mode && clone_may_set (h->clone))
      hydrate_start_over (h);
    bad_source_tick (h, valid);
    if (!h->ending)
      tenth = news_tenth (&h->news, valid, monotonic_seconds ());
  }
  if (tenth > 0) {
    hydrate_get_status (h, &st);
    news_log_tenth (h->log, h->clone, tenth, valid, &st);
  }
  hydrate_wake (h);
}

/* With the lock. */
static enum hydrate_state
hydrate_state (const struct hydrate *h, enum backend_state source,
               unsigned connections)
{
  if (h->failed || source == BACKEND_REFUSED)
    return HYDRATE_FAILED;
  if (connections == 0)
    return HYDRATE_WAITING;
  if (hydrate_is_paused (h))
    return HYDRATE_PAUSED;
  return HYDRATE_HYDRATING;
}

void
hydrate_get_status (struct hydrate *h, struct hydrate_status *st)
{
  struct clone *c = h->clone;
  const uint64_t missing = clone_size (c) -
                           region_map_bytes_valid (clone_map (c));
  enum backend_state source;
  double rate;

  *st = (struct hydrate_status){ 0 };
  if (clone_is_complete (c)) {
    st->state = HYDRATE_COMPLETE;
    st->eta_known = true;
    return;
  }
  source = clone_source_status (c, &st->source_connections);
  st->source_connected = st->source_connections > 0;

  LOCK_FOR_SCOPE (&h->lock);
  st->hydrating = h->regions + h->plan.open_cuts;
  plan_sum_bad (&h->plan, &st->bad);
  st->state = hydrate_state (h, source, st->source_connections);
  rate = st->state == HYDRATE_HYDRATING ? h->rate : 0;
  st->rate = rate;
  st->eta_known = rate >= 1;
  if (st->eta_known)
    st->eta = missing / rate;
}

void
hydrate_get_ranges (struct hydrate *h, struct hydrate_ranges *ranges)
{
  const struct bad_ranges *bad = &h->plan.bad;
  LOCK_FOR_SCOPE (&h->lock);

  ranges->flight = h->copies;
  memcpy (ranges->in_flight, h->in_flight,
          h->copies * sizeof h->in_flight[0]);
  ranges->bad = bad->len;
  for (unsigned i = 0; i < bad->len; ++i)
    ranges->bad_range[i] =
      (struct hydrate_range){ bad->range[i].start, bad->range[i].end };
}
