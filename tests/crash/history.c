/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clone/private.h"
#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "history.h"
#include "hydration/hydrate.h"

#define K UINT64_C (1024)
#define CLIENTS HISTORY_CLIENTS
#define MAX_REQUESTS 16

static void *
must (void *ptr)
{
  if (ptr == NULL)
    abort ();
  return ptr;
}

/* ---- states ---- */

/* Small disks more often than others: they give more images a second.  There is
 * a short last region, a disk of one region, one whose window lies in two
 * sectors of the bitmap, and a region that is copied in pieces.
 */
static const struct {
  uint64_t size, region_size, window;
  unsigned requests;
} shapes[] = {
  { 64 * K, 4 * K, 0, 16 },
  { 64 * K, 4 * K, 0, 16 },
  { 64 * K, 8 * K, 0, 16 },
  { 64 * K, 16 * K, 0, 16 },
  { 90 * K + 512, 4 * K, 0, 16 },
  { 90 * K + 512, 16 * K, 0, 16 },
  { 128 * K, 16 * K, 0, 16 },
  { 48 * K, 64 * K, 0, 16 },
  { 256 * K, 16 * K, 0, 16 },
  { 512 * K, 64 * K, 0, 12 },
  { (REGIONS_PER_SECTOR + 8) * 4 * K, 4 * K, 16 * 4 * K, 16 },
  { (REGIONS_PER_SECTOR + 8) * 4 * K, 4 * K, 16 * 4 * K, 16 },
  { 2 * CLONE_COPY_MAX + 1024, 2 * CLONE_COPY_MAX, 0, 3 },
};
#define SHAPES (sizeof shapes / sizeof shapes[0])

/* In 4K blocks, so that there are regions with and without holes, and regions
 * that are one.
 */
static value_t
source_value (const struct state *s, uint64_t sector)
{
  uint64_t seed = s->source_seed + sector / 8;

  return mock_random (&seed) % 4 == 0 ? VALUE_ZERO : VALUE_SOURCE;
}

/* Hydrate all but the window. */
static void
hydrate_before_window (struct state *s)
{
  struct mock_disk *d = state_disk (s, false);

  mock_disk_create (d);
  if (clone_cache (d->clone, s->size - s->window, 0) == -1 ||
      mock_disk_close (d) == -1)
    abort ();
  memcpy (s->dest, mock_content (d->dest), mock_backend (d->dest)->size);
  memcpy (s->meta, mock_content (d->meta), mock_backend (d->meta)->size);
  mock_disk_free (d);
}

struct state
state_new (uint64_t seed, value_t next_value)
{
  const unsigned shape = mock_random (&seed) % SHAPES;
  struct state s = {
    .size = shapes[shape].size, .region_size = shapes[shape].region_size,
    .window = shapes[shape].window, .requests = shapes[shape].requests,
    .excess = 1024, .source_seed = mock_random (&seed),
    .next_value = next_value,
  };
  const uint64_t store = metadata_store_size (s.size, s.region_size);

  s.dest = must (malloc (s.size + s.excess));
  memset (s.dest, MOCK_GARBAGE, s.size + s.excess);
  s.meta = must (calloc (1, store));
  s.values = must (calloc (s.size / SECTOR, sizeof *s.values));
  for (uint64_t i = 0; i < s.size / SECTOR; ++i)
    s.values[i] = source_value (&s, i);
  if (s.window == 0)
    s.window = s.size;
  else
    hydrate_before_window (&s);
  return s;
}

void
state_free (struct state *s)
{
  free (s->dest);
  free (s->meta);
  free (s->values);
  *s = (struct state){ 0 };
}

uint64_t
state_window (const struct state *s)
{
  return (s->size - s->window) / SECTOR;
}

struct mock_disk *
state_disk (const struct state *s, bool record)
{
  struct mock_disk *d = mock_disk_devices (s->size, s->region_size, s->excess,
                                           record);
  uint8_t buf[SECTOR];

  mock_log_enable (d->log, record);
  for (uint64_t i = 0; i < s->size / SECTOR; ++i) {
    value_t value = source_value (s, i);

    value_fill (buf, value, i);
    mock_fill (d->source, value == VALUE_ZERO ? NULL : buf, SECTOR,
               i * SECTOR);
  }
  mock_fill (d->dest, s->dest, s->size + s->excess, 0);
  mock_fill (d->meta, s->meta, mock_backend (d->meta)->size, 0);
  return d;
}

/* ---- clients ---- */

struct client {
  struct history *history;
  unsigned number;
  uint64_t seed;
  struct event event[MAX_REQUESTS];
  size_t n;
  struct clone_client told;
  struct mock_thread *thread;
};

static const enum event_type mix[] = {
  EVENT_WRITE, EVENT_WRITE, EVENT_WRITE, EVENT_WRITE, EVENT_WRITE,
  EVENT_WRITE, EVENT_WRITE, EVENT_WRITE, EVENT_ZERO, EVENT_ZERO, EVENT_TRIM,
  EVENT_TRIM, EVENT_CACHE, EVENT_READ, EVENT_READ, EVENT_FLUSH, EVENT_FLUSH,
  EVENT_FLUSH
};

/* Whole regions, or any sectors. */
static void
choose_range (struct client *cl, struct event *ev)
{
  const struct state *s = &cl->history->before;
  const uint64_t sectors = s->window / SECTOR;
  const uint64_t region = MIN (s->region_size / SECTOR, sectors);

  ev->first = mock_random (&cl->seed) % sectors;
  ev->n = 1 + mock_random (&cl->seed) % (region * 3 / 2);
  if (mock_random (&cl->seed) % 3 == 0) {
    ev->first = ev->first / region * region;
    ev->n = region * (1 + mock_random (&cl->seed) % 2);
  }
  ev->n = MIN (ev->n, sectors - ev->first);
  ev->first += state_window (s);
}

static struct event *
choose_event (struct client *cl)
{
  struct event *ev = &cl->event[cl->n];

  *ev = (struct event){
    .type = mix[mock_random (&cl->seed) % (sizeof mix / sizeof mix[0])],
    .client = cl->number,
  };
  choose_range (cl, ev);
  if (ev->type == EVENT_WRITE)
    ev->value = cl->history->before.next_value +
      cl->number * MAX_REQUESTS + cl->n;
  if (ev->type <= EVENT_TRIM && ev->type >= EVENT_WRITE)
    ev->fua = mock_random (&cl->seed) % 5 == 0;
  cl->n++;
  return ev;
}

static int
run_event (struct client *cl, struct event *ev, uint8_t *buf)
{
  struct clone *c = cl->history->disk->clone;
  const uint64_t offset = ev->first * SECTOR, count = ev->n * SECTOR;
  const unsigned flags = ev->fua ? BACKEND_FUA : 0;

  switch (ev->type) {
  case EVENT_READ:
    return clone_pread (c, buf, count, offset);
  case EVENT_WRITE:
    return clone_pwrite (c, buf, count, offset, flags);
  case EVENT_ZERO:
    return clone_zero (c, count, offset,
                       flags | (ev->n % 2 ? BACKEND_MAY_TRIM : 0));
  case EVENT_TRIM:
    return clone_trim (c, count, offset, flags);
  case EVENT_CACHE:
    return clone_cache (c, count, offset);
  case EVENT_FLUSH:
    return clone_flush (c, &cl->told);
  }
  abort ();
}

static void
client_main (void *opaque)
{
  struct client *cl = opaque;
  struct mock_log *log = cl->history->disk->log;

  for (unsigned i = 0; i < cl->history->before.requests; ++i) {
    struct event *ev = choose_event (cl);
    CLEANUP_FREE uint8_t *buf = must (malloc (ev->n * SECTOR));

    if (ev->type == EVENT_WRITE)
      values_fill (buf, ev->value, ev->first, ev->n);
    if (mock_random (&cl->seed) % 4 == 0)
      usleep (mock_random (&cl->seed) % 300);

    ev->start = mock_log_tick (log);
    if (run_event (cl, ev, buf) == -1)
      ev->error = errno;
    ev->end = mock_log_tick (log);
    if (ev->error && !cl->history->faults &&
        !(ev->type == EVENT_FLUSH && cl->history->loss < ev->end)) {
      fprintf (stderr, "a request of client %u failed: %s\n", cl->number,
               strerror (ev->error));
      abort ();
    }

    if (ev->type == EVENT_READ && !ev->error) {
      ev->seen = must (calloc (ev->n, sizeof *ev->seen));
      values_of (buf, ev->seen, ev->first, ev->n);
    }
  }
}

/* ---- what goes on beside the clients ---- */

struct periodic {
  struct clone *clone;
  _Atomic bool stop;
};

static void
periodic_main (void *opaque)
{
  struct periodic *cm = opaque;

  while (!cm->stop) {
    clone_commit (cm->clone, false);
    usleep (500);
  }
}

enum hydration { HYDRATION_OFF, HYDRATION_SLOW, HYDRATION_TO_THE_END };

static struct hydrate *
start_hydration (struct history *h, enum hydration how, uint64_t *seed)
{
  struct hydrate_settings settings = {
    .batch = HYDRATE_BATCH_MIN << mock_random (seed) % 3,
  };

  settings.threshold = settings.batch * 2;
  return mock_disk_hydrate (h->disk, &settings, how == HYDRATION_OFF, NULL);
}

/* A second at most: broken builds may never get there. */
static void
wait_for_the_end (struct hydrate *h)
{
  struct hydrate_status st;

  for (unsigned ms = 0; ms < 1000; ++ms) {
    hydrate_get_status (h, &st);
    if (st.state == HYDRATE_COMPLETE || st.state == HYDRATE_FAILED)
      return;
    usleep (1000);
  }
}

/* The server of the destination, of the metadata, or both, crashes once, at
 * some time, and of what it had not flushed nothing is left, or some.  It comes
 * back at once, or later.  Between a loss of the metadata and one of the
 * destination there is time for a commit, which fails.
 */
struct loser {
  struct history *history;
  uint64_t seed;
  bool dest, meta, meta_first;
  unsigned kept;       /* number of sectors in 256 that survive */
  unsigned after, between, away; /* microseconds */
};

static bool
survives (uint64_t sector, void *opaque)
{
  struct loser *l = opaque;

  return mock_random (&l->seed) % 256 < l->kept;
}

static void
loser_main (void *opaque)
{
  struct loser *l = opaque;
  struct history *h = l->history;

  usleep (l->after);
  if (l->meta && l->meta_first) {
    mock_server_crash (h->disk->meta, survives, l);
    usleep (l->between);
  }
  if (l->dest) {
    h->loss = mock_log_tick (h->disk->log);
    mock_server_crash (h->disk->dest, survives, l);
  }
  if (l->meta && !l->meta_first)
    mock_server_crash (h->disk->meta, survives, l);
  usleep (l->away);
  mock_server_back (h->disk->dest);
  mock_server_back (h->disk->meta);
  if (l->dest)
    h->loss_end = mock_log_tick (h->disk->log);
}

/* NULL where it does not crash. */
static struct mock_thread *
start_loser (struct loser *l, uint64_t *seed)
{
  static const unsigned kept[] = { 0, 128, 256 };
  const unsigned which = 1 + mock_random (seed) % 3;

  if (mock_random (seed) % 3 != 0)
    return NULL;
  l->seed = mock_random (seed);
  l->dest = which & 1;
  l->meta = which & 2;
  l->kept = kept[mock_random (seed) % 3];
  l->after = mock_random (seed) % 10000;
  l->away = mock_random (seed) % 2 * 1000;
  l->meta_first = mock_random (seed) % 2;
  l->between = mock_random (seed) % 2000;
  return mock_thread (loser_main, l);
}

/* ---- the history ---- */

static void
add_event (struct history *h, const struct event *ev)
{
  if (h->n == h->alloc) {
    h->alloc = h->alloc ? h->alloc * 2 : 64;
    h->event = must (reallocarray (h->event, h->alloc, sizeof *h->event));
  }
  h->event[h->n++] = *ev;
}

/* The devices' behaviour: slow enough for calls to overlap, in ways that differ
 * from one history to the next.
 */
static void
set_up_devices (struct history *h, uint64_t *seed)
{
  static const unsigned delays[] = { 0, 20, 100, 300 };
  struct mock_disk *d = h->disk;

  h->trims = mock_random (seed) % 4 != 0;
  mock_set_trim (d->dest, h->trims ? MOCK_TRIM_ZEROES : MOCK_TRIM_NOTHING);
  if (mock_random (seed) % 3 == 0)
    mock_set_share (d->dest, mock_random (seed) % 4, EINVAL);
  mock_set_delay (d->source, delays[mock_random (seed) % 4]);
  mock_set_delay (d->dest, delays[mock_random (seed) % 4]);
  mock_set_delay (d->meta, delays[mock_random (seed) % 4]);
  mock_set_server (d->dest);
  mock_set_server (d->meta);
  if (mock_random (seed) % 2) {
    mock_set_async (d->source);
    mock_set_async (d->dest);
  }
}

/* From now on something fails, for a while. */
static void
set_up_fault (struct history *h, uint64_t *seed)
{
  static const struct { bool meta; enum mock_kind kind; int error; } kinds[] = {
    { false, MOCK_FLUSH, EIO }, { false, MOCK_FLUSH, EIO },
    { false, MOCK_FLUSH, EIO }, { false, MOCK_FLUSH, EIO },
    { false, MOCK_PWRITE, ENOSPC }, { false, MOCK_ZERO, ENOSPC },
    { true, MOCK_PWRITE, ENOSPC }, { true, MOCK_FLUSH, EIO },
  };
  const unsigned i = mock_random (seed) % (sizeof kinds / sizeof kinds[0]);
  const unsigned nth = 1 + mock_random (seed) % 5;
  const unsigned times = 1 + mock_random (seed) % 3;

  if (mock_random (seed) % 3 != 0)
    return;
  h->faults = true;
  mock_fail (kinds[i].meta ? h->disk->meta : h->disk->dest, kinds[i].kind,
             MOCK_ANYWHERE, nth, times, kinds[i].error);
}

static void
open_or_create (struct history *h)
{
  struct mock_disk *d = h->disk;

  if (mock_disk_probe (d) == METADATA_ABSENT) {
    mock_disk_create (d);
    h->created = mock_log_tick (d->log);
  }
  else if (mock_disk_open (d) == -1)
    abort ();
}

/* A clean end makes all durable, as a flush does of a client that knows of all
 * losses.
 */
static void
close_disk (struct history *h)
{
  struct event ev = { .type = EVENT_FLUSH, .client = CLIENTS };

  ev.start = mock_log_tick (h->disk->log);
  if (mock_disk_close (h->disk) == -1) {
    if (!h->faults)
      abort ();
    ev.error = EIO;
  }
  ev.end = mock_log_tick (h->disk->log);
  add_event (h, &ev);
}

static void
run_clients (struct history *h, uint64_t *seed)
{
  struct client client[CLIENTS];

  for (unsigned i = 0; i < CLIENTS; ++i) {
    client[i] = (struct client){
      .history = h, .number = i, .seed = mock_random (seed),
    };
    clone_client_init (h->disk->clone, &client[i].told);
  }
  /* All clients exist from the beginning: one that begins after a loss was told
   * is not told of it.
   */
  for (unsigned i = 0; i < CLIENTS; ++i)
    client[i].thread = mock_thread (client_main, &client[i]);
  for (unsigned i = 0; i < CLIENTS; ++i) {
    mock_join (client[i].thread);
    for (size_t j = 0; j < client[i].n; ++j)
      add_event (h, &client[i].event[j]);
  }
}

struct history *
history_run (const struct state *before, uint64_t seed, bool may_fail)
{
  struct history *h = must (calloc (1, sizeof *h));
  enum hydration how = mock_random (&seed) % 3;
  struct periodic cm = { 0 };
  struct loser loser = { .history = h };
  struct mock_thread *thread, *losing;
  struct hydrate *hydrate;

  h->before = *before;
  h->seed = seed;
  h->loss = h->loss_end = UINT64_MAX;
  h->disk = state_disk (before, true);
  h->disk->options.copy_on_read = mock_random (&seed) % 2;
  h->next_value = before->next_value + CLIENTS * MAX_REQUESTS;
  set_up_devices (h, &seed);
  open_or_create (h);
  if (may_fail)
    set_up_fault (h, &seed);

  cm.clone = h->disk->clone;
  thread = mock_thread (periodic_main, &cm);
  hydrate = start_hydration (h, how, &seed);
  losing = start_loser (&loser, &seed);
  run_clients (h, &seed);
  if (losing)
    mock_join (losing);
  if (how == HYDRATION_TO_THE_END)
    wait_for_the_end (hydrate);
  hydrate_stop (hydrate);
  cm.stop = true;
  mock_join (thread);
  mock_disk_end_hydration (h->disk, hydrate);
  close_disk (h);
  return h;
}

void
history_free (struct history *h)
{
  for (size_t i = 0; i < h->n; ++i)
    free (h->event[i].seen);
  free (h->event);
  mock_disk_free (h->disk);
  state_free (&h->before);
  free (h);
}

/* ---- printing ---- */

static const char *const event_names[] = {
  "read", "write", "zero", "trim", "cache", "flush"
};

static const char *const call_names[MOCK_KINDS] = {
  "pread", "pwrite", "zero", "trim", "flush", "extents", "close"
};

static bool
call_touches (const struct mock_call *call, uint64_t sector)
{
  if (call->n == 0)
    return true;
  for (size_t i = 0; i < call->n; ++i)
    if (call->range[i].offset / SECTOR <= sector &&
        sector * SECTOR < call->range[i].offset + call->range[i].count)
      return true;
  return false;
}

static void
print_call (const struct history *h, const struct mock_call *call)
{
  const char *name = call->mock == h->disk->meta ? "metadata" :
    call->mock == h->disk->dest ? "destination" : "source";

  fprintf (stderr, "%6" PRIu64 " ..%6" PRIu64 " ..%6" PRIu64 "  %s %s",
           call->start, call->effect, call->end, name,
           call_names[call->kind]);
  for (size_t i = 0; i < call->n; ++i)
    fprintf (stderr, " %" PRIu64 "+%" PRIu64,
             call->range[i].offset / SECTOR, call->range[i].count / SECTOR);
  fprintf (stderr, "%s%s\n", call->flags & BACKEND_FUA ? " FUA" : "",
           call->error ? ", failed" : "");
}

static void
print_event (const struct event *ev)
{
  fprintf (stderr, "%6" PRIu64 " .........%6" PRIu64 "  client %u: %s",
           ev->start, ev->end, ev->client, event_names[ev->type]);
  if (ev->type != EVENT_FLUSH)
    fprintf (stderr, " %" PRIu64 "+%" PRIu64, ev->first, ev->n);
  if (ev->type == EVENT_WRITE)
    fprintf (stderr, " (%s)", value_name (ev->value));
  fprintf (stderr, "%s%s\n", ev->fua ? " FUA" : "",
           ev->error ? ", failed" : "");
}

void
history_print (const struct history *h, uint64_t sector, uint64_t cut)
{
  const struct mock_call *call;

  fprintf (stderr, "what touched sector %" PRIu64 " until the cut at %" PRIu64
           ", from the start, over the effect, to the end, in ticks;\n"
           "ranges are sectors, a region has %" PRIu64 " of them:\n", sector,
           cut, h->before.region_size / SECTOR);
  for (size_t i = 0; i < h->n; ++i) {
    const struct event *ev = &h->event[i];

    if (ev->start <= cut &&
        (ev->type == EVENT_FLUSH ||
         (ev->first <= sector && sector < ev->first + ev->n)))
      print_event (ev);
  }
  for (size_t i = 0; (call = mock_log_call (h->disk->log, i)); ++i)
    if (call->start <= cut &&
        (call->mock == h->disk->meta || call_touches (call, sector)))
      print_call (h, call);
}
