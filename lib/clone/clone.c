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
#include "base/clock.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "base/test-point.h"
#include "clone/clone.h"
#include "store/fingerprint.h"
#include "store/inherit.h"

/* Segments handed to a backend at once. */
#define MAX_SEGMENTS 64

/* Two runs of a read that both need the source become one read of it when no
 * more than this lies between them: a round trip costs more.
 */
#define READ_GAP (UINT64_C (64) << 10)

/* Milliseconds without a reply that are left to the servers at the end.  The
 * destination has no limit: what it is given then is what clients have written.
 */
#define SOURCE_GRACE 1000
#define METADATA_GRACE 1500

/* Milliseconds between two looks whether a client that waits is still there. */
#define WAIT_TICK 1000

static int
fail (int error)
{
  errno = error;
  return -1;
}

/* ---- events ---- */

void
clone_listen (struct clone *c, const struct clone_events *events)
{
  pthread_rwlock_wrlock (&c->events_lock);
  c->events = events ? *events : (struct clone_events){ 0 };
  pthread_rwlock_unlock (&c->events_lock);
}

/* Tell an event, whose further arguments follow. */
#define TELL(c, event, ...)                                             \
  do {                                                                  \
    pthread_rwlock_rdlock (&(c)->events_lock);                          \
    if ((c)->events.event)                                              \
      (c)->events.event ((c)->events.opaque, ## __VA_ARGS__);           \
    pthread_rwlock_unlock (&(c)->events_lock);                          \
  } while (0)

void
clone_committed (struct clone *c, int error)
{
  TELL (c, committed, error);
}

/* ---- servers that are lost ---- */

static void
servers_changed (void *opaque)
{
  struct clone *c = opaque;

  outage_happened (&c->outage);
  TELL (c, servers_changed);
}

static void
metadata_server_lost (void *opaque)
{
  struct clone *c = opaque;

  commit_metadata_lost (&c->commit);
}

/* Set the map back, with always false only where a commit has failed and nobody
 * else has done it.  Outside the gate.
 */
static void
set_back (struct clone *c, bool always)
{
  if (!always && !commit_wants_set_back (&c->commit))
    return;
  gate_close (&c->gate);
  if (always || commit_wants_set_back (&c->commit)) {
    commit_set_back (&c->commit);
    TELL (c, set_back);
  }
  gate_open (&c->gate);
  servers_changed (c);
}

static void
destination_lost (void *opaque)
{
  set_back (opaque, true);
}

/* The clone is complete: nothing can be invalid again.  But what clients have
 * written and a server has lost must still be told.
 */
static void
remove_gate (struct clone *c)
{
  if (!backend_has_peer (c->dest))
    gate_remove (&c->gate);
}

/* A request is tried until it succeeds, or fails for another reason than a lost
 * server.
 */
struct attempt {
  uint64_t events;  /* outage_events before this try */
  double lost;      /* when the first try failed, 0: none has */
};

/* Is it in vain to wait for the source?  Only if nothing else is waited for. */
static bool
source_is_given_up (struct clone *c, double since)
{
  unsigned connections;
  const enum backend_state state = clone_source_status (c, &connections);

  if (state == BACKEND_UP || backend_state (c->dest) != BACKEND_UP)
    return false;
  return state == BACKEND_REFUSED ||
         (c->source_timeout &&
          monotonic_seconds () - since >= c->source_timeout);
}

static bool
client_is_gone (const struct clone *c)
{
  return c->options.client_is_gone && c->options.client_is_gone ();
}

/* A try has failed, with errno set.  Wait until the request may succeed.  -1,
 * with errno set, where it has failed for good.
 */
static int
try_again (struct clone *c, struct attempt *a)
{
  uint64_t events;
  int wait;

  if (errno != ENOTCONN)
    return -1;
  if (a->lost == 0)
    a->lost = monotonic_seconds ();
  for (;;) {
    events = outage_events (&c->outage);
    if (outage_has_ended (&c->outage) || client_is_gone (c))
      return fail (ESHUTDOWN);
    if (events != a->events) {
      a->events = events;
      return 0;
    }
    if (source_is_given_up (c, a->lost))
      return fail (EIO);
    wait = WAIT_TICK;
    if (c->source_timeout)
      wait = MIN (wait, (int)((a->lost + c->source_timeout -
                               monotonic_seconds ()) * 1000) + 1);
    outage_wait (&c->outage, events, MAX (wait, 1));
  }
}

/* What `once', a try of the request, returns in the end: 0 or -1. */
#define UNTIL_DONE(c, once)                                             \
  ({                                                                    \
    struct attempt try_ = { .events = outage_events (&(c)->outage) };   \
    int r_;                                                             \
                                                                        \
    do                                                                  \
      r_ = (once);                                                      \
    while (r_ == -1 && try_again (c, &try_) == 0);                      \
    r_;                                                                 \
  })

/* ---- life ---- */

struct clone *
clone_new (struct backend *source, struct backend *dest, struct metadata *md,
           struct region_map *map, const struct clone_options *options,
           const struct log *log)
{
  struct clone *c = aligned_alloc (_Alignof (struct clone), sizeof *c);

  if (c == NULL)
    return NULL;
  memset (c, 0, sizeof *c);
  if (commit_init (&c->commit, dest, md, map, log) == -1) {
    free (c);
    return NULL;
  }
  c->log = log;
  c->size = region_map_size (map);
  c->options = *options;
  c->dest = dest;
  c->metadata = md;
  c->map = map;
  c->source = source;
  c->source_users = source != NULL;
  c->source_dropped = source == NULL;
  gate_init (&c->gate);
  range_lock_init (&c->ownership);
  outage_init (&c->outage);
  committer_init (&c->committer, c);
  pthread_mutex_init (&c->source_lock, NULL);
  pthread_rwlock_init (&c->events_lock, NULL);
  if (source == NULL)
    remove_gate (c);
  return c;
}

/* Does the source that came back have the fingerprint of the first one? */
static int
same_source (void *opaque, struct backend *source, char **why)
{
  struct clone *c = opaque;
  int r;

  *why = NULL;
  r = fingerprint_check (source, &c->metadata->sb.fingerprint, why);
  if (r == -1 && *why == NULL &&
      asprintf (why, "its fingerprint cannot be read: %m") == -1)
    *why = NULL;
  return r;
}

int
clone_start (struct clone *c, const struct clone_service *service)
{
  const struct backend_service dest = {
    .lost = destination_lost, .changed = servers_changed, .opaque = c
  };
  const struct backend_service md = {
    .lost = metadata_server_lost, .changed = servers_changed, .opaque = c
  };
  const struct backend_service source = {
    .timeout = service->source_timeout,
    .same_disk = c->options.source_check ? same_source : NULL,
    .changed = servers_changed, .opaque = c,
  };

  c->source_timeout = service->source_timeout;
  inheritance_open (&c->inheritance, c->dest, c->metadata, c->map, c->log);
  c->commit.inheritance = c->inheritance;
  if (backend_start (c->dest, &dest) == -1 ||
      backend_start (c->metadata->backend, &md) == -1 ||
      (c->source && backend_start (c->source, &source) == -1))
    return -1;
  return committer_start (&c->committer, service->commit_interval);
}

void
clone_interrupt (struct clone *c)
{
  outage_end (&c->outage);
  backend_interrupt (c->dest, -1);
  backend_interrupt (c->metadata->backend, METADATA_GRACE);
  {
    LOCK_FOR_SCOPE (&c->source_lock);
    if (c->source)
      backend_interrupt (c->source, SOURCE_GRACE);
  }
  committer_ask (&c->committer);
}

void
clone_stop (struct clone *c)
{
  clone_interrupt (c);
  committer_stop (&c->committer);
  if (!atomic_exchange (&c->source_dropped, true))
    clone_source_put (c);
}

int
clone_close (struct clone *c)
{
  int r;

  committer_stop (&c->committer);
  r = clone_commit (c, true);
  if (r == 0)
    r = commit_mark_clean (&c->commit);
  if (r == 0)
    inheritance_remove (c->inheritance);
  else
    log_error (c->log, "the last commit failed: what clients wrote and did "
               "not flush may be lost");

  backend_close (c->source);
  backend_close (c->dest);
  metadata_close (c->metadata);
  region_map_free (c->map);
  inheritance_close (c->inheritance);
  commit_destroy (&c->commit);
  committer_destroy (&c->committer);
  outage_destroy (&c->outage);
  range_lock_destroy (&c->ownership);
  gate_destroy (&c->gate);
  pthread_mutex_destroy (&c->source_lock);
  pthread_rwlock_destroy (&c->events_lock);
  free (c);
  return r;
}

int
clone_halt (struct clone *c)
{
  int r;

  /* Who is inside the gate may wait for it. */
  backend_interrupt (c->metadata->backend, METADATA_GRACE);
  gate_close (&c->gate);
  r = commit_flush (&c->commit);
  if (r == 0)
    r = commit_mark_clean (&c->commit);
  if (r == 0)
    inheritance_remove (c->inheritance);
  else
    log_error (c->log, "the last commit failed: %m");
  return r;
}

/* ---- the source, as long as it is needed ---- */

struct backend *
clone_source_get (struct clone *c)
{
  LOCK_FOR_SCOPE (&c->source_lock);

  if (c->source)
    c->source_users++;
  return c->source;
}

void
clone_source_put (struct clone *c)
{
  struct backend *last = NULL;

  {
    LOCK_FOR_SCOPE (&c->source_lock);
    if (--c->source_users == 0) {
      last = c->source;
      c->source = NULL;
    }
  }
  if (last && commit_is_complete (&c->commit))
    log_info (c->log, "hydration is complete: %s stands alone, the source %s "
              "is closed", c->dest->name, last->name);
  backend_close (last);
}

/* After a commit: once the clone is complete, let the source go.  Whoever still
 * reads from it keeps it open until then.
 */
static void
drop_source (struct clone *c)
{
  if (!commit_is_complete (&c->commit) ||
      atomic_exchange (&c->source_dropped, true))
    return;
  TEST_POINT (SOURCE_DROPPED);
  remove_gate (c);
  clone_source_put (c);
  TELL (c, complete);
}

/* ---- flush ---- */

void
clone_client_init (struct clone *c, struct clone_client *client)
{
  client->losses = c->losses_told;
}

/* Tell the client of losses that it does not know of, by an error. */
static int
tell_losses (struct clone *c, struct clone_client *client)
{
  const uint64_t losses = commit_losses (&c->commit);

  if (atomic_exchange (&client->losses, losses) == losses)
    return 0;
  c->losses_told = losses;
  return fail (EIO);
}

int
clone_commit (struct clone *c, bool always)
{
  struct gate_pass pass;
  int r, err;

  gate_enter (&c->gate, &pass);
  r = always ? commit_flush (&c->commit) : commit_background (&c->commit);
  err = errno;
  gate_leave (&c->gate, &pass);
  if (r == 0)
    drop_source (c);
  else
    set_back (c, false);
  errno = err;
  return r;
}

int
clone_flush (struct clone *c, struct clone_client *client)
{
  if (UNTIL_DONE (c, clone_commit (c, true)) == -1)
    return -1;
  return client ? tell_losses (c, client) : 0;
}

/* For hydration's pace; so not where that is over. */
static void
count_request (struct clone *c)
{
  if (!atomic_load_explicit (&c->source_dropped, memory_order_relaxed))
    atomic_fetch_add_explicit (&c->requests, 1, memory_order_relaxed);
}

/* The regions that a range of bytes touches. */
static void
regions_of (const struct clone *c, uint64_t start, uint64_t end,
            uint64_t *first, uint64_t *count)
{
  const uint64_t region_size = region_map_region_size (c->map);

  *first = start / region_size;
  *count = div_round_up (end, region_size) - *first;
}

void
clone_set_valid (struct clone *c, uint64_t start, uint64_t end,
                 const char *why)
{
  uint64_t first, count;

  regions_of (c, start, end, &first, &count);
  region_map_set (c->map, first, count);
  log_debug (c->log, LOG_REGION, "region %" PRIu64 "+%" PRIu64 ": valid, %s",
             first, count, why);
}

/* How FUA is honoured for a range.  Where its regions are durable already, the
 * destination's own FUA is enough, unless it could hide from a commit that data
 * were lost (I8).  Otherwise what is written becomes durable by a commit after
 * the writes, which flushes the destination.
 */
static bool
wants_commit (struct clone *c, uint32_t count, uint64_t offset,
              unsigned *flags)
{
  uint64_t first, n;

  if (!(*flags & BACKEND_FUA))
    return false;
  regions_of (c, offset, offset + count, &first, &n);
  if (region_map_is_durable (c->map, first, n) &&
      (!c->dest->fua_takes_errors || commit_is_complete (&c->commit)))
    return false;
  *flags &= ~BACKEND_FUA;
  return true;
}

/* ---- copies: regions that become valid without being changed ---- */

/* Copy source bytes of one invalid region to the destination without making
 * the region valid: for regions that are too large to be held in memory.  Stops
 * where the region has become valid.
 */
static int
copy_bytes (struct clone *c, struct backend *source, uint8_t *buf,
            uint64_t start, uint64_t end)
{
  const uint64_t region = start / region_map_region_size (c->map);
  uint64_t n;
  int r = 0;

  for (; start < end && r == 0; start += n) {
    struct gate_pass pass;
    struct owner owner;

    n = MIN (end - start, CLONE_COPY_MAX);
    if (region_map_is_valid (c->map, region))
      return 0;
    if (backend_pread (source, buf, n, start) == -1)
      return -1;

    gate_enter (&c->gate, &pass);
    range_lock_acquire (&c->ownership, &owner, start, start + n);
    if (!region_map_is_valid (c->map, region))
      r = backend_pwrite (c->dest, buf, n, start, 0);
    range_lock_release (&c->ownership, &owner);
    gate_leave (&c->gate, &pass);
  }
  return r;
}

/* Has the map been set back?  Then what was seen before, or written to invalid
 * regions, does not count, and the request begins anew.
 */
static int
check_not_set_back (struct clone *c, uint64_t closings)
{
  return gate_closings (&c->gate) == closings ? 0 : fail (ENOTCONN);
}

/* Write source bytes to those regions of [start, end) that are still invalid,
 * as their owner, and make them valid.  buf is the byte at start; NULL where
 * the bytes are in the destination already.  They were read or written since
 * the gate had been closed so many times.  Zeroes become a hole.
 */
static int
install_copy (struct clone *c, uint64_t closings, const uint8_t *buf,
              uint64_t start, uint64_t end)
{
  struct gate_pass pass;
  struct owner owner;
  uint64_t n;
  bool valid;
  int r;

  gate_enter (&c->gate, &pass);
  TEST_POINT (COPY_UNOWNED);
  range_lock_acquire (&c->ownership, &owner, start, end);
  TEST_POINT (COPY_OWNED);
  r = check_not_set_back (c, closings);
  for (uint64_t pos = start; pos < end && r == 0; pos += n) {
    n = region_map_run_bytes (c->map, pos, end, &valid);
    if (valid)
      continue;
    if (!commit_may_set (&c->commit))
      r = fail (EIO);
    else if (buf && is_zero (buf + (pos - start), n))
      r = backend_zero (c->dest, n, pos, BACKEND_MAY_TRIM);
    else if (buf)
      r = backend_pwrite (c->dest, buf + (pos - start), n, pos, 0);
    if (r == -1)
      break;
    TEST_POINT (COPY_WRITTEN);
    clone_set_valid (c, pos, pos + n, "copied for a client");
    TEST_POINT (COPY_SET);
  }
  range_lock_release (&c->ownership, &owner);
  gate_leave (&c->gate, &pass);
  return r;
}

/* How much is installed at once, so that nobody waits for more than that. */
static uint64_t
copy_step (const struct clone *c)
{
  return MAX (region_map_region_size (c->map), CLONE_COPY_MAX);
}

/* Copy those of the whole regions [start, end) that are invalid. */
static int
copy_invalid (struct clone *c, struct backend *source, uint64_t start,
              uint64_t end)
{
  CLEANUP_FREE uint8_t *buf = malloc (MIN (end - start, CLONE_COPY_MAX));
  const uint64_t step = copy_step (c);
  uint64_t n;
  bool valid;
  int r = buf ? 0 : -1;

  for (; start < end && r == 0; start += n) {
    const uint64_t closings = gate_closings (&c->gate);

    n = region_map_run_bytes (c->map, start, end, &valid);
    if (valid)
      continue;
    n = MIN (n, step);
    /* A large region: piece by piece, then it becomes valid as a whole. */
    r = n <= CLONE_COPY_MAX ? backend_pread (source, buf, n, start)
      : copy_bytes (c, source, buf, start, start + n);
    if (r == 0)
      r = install_copy (c, closings, n <= CLONE_COPY_MAX ? buf : NULL, start,
                        start + n);
  }
  return r;
}

/* The whole regions in a range of bytes.  False if there is none. */
static bool
shrink_to_regions (const struct clone *c, uint64_t *start, uint64_t *end)
{
  const uint64_t region_size = region_map_region_size (c->map);

  *start = round_up (*start, region_size);
  if (*end < c->size)
    *end = round_down (*end, region_size);
  return *start < *end;
}

/* ---- read ---- */

/* Read from b those runs of [offset, end) that are valid, or those that are
 * not, and gaps of at most max_gap between them.  How many bytes that was, or
 * -1.
 */
static int64_t
read_runs (struct clone *c, struct backend *b, bool wanted, uint64_t max_gap,
           uint8_t *buf, uint64_t offset, uint64_t end)
{
  struct segment seg[MAX_SEGMENTS];
  uint64_t stop = offset, run;
  int64_t count = 0;
  size_t n = 0;
  bool valid;

  for (uint64_t pos = offset; pos < end; pos += run) {
    run = region_map_run_bytes (c->map, pos, end, &valid);
    if (valid != wanted)
      continue;
    if (n == 0 || pos - stop > max_gap) {
      if (n == MAX_SEGMENTS) {
        if (backend_preadv (b, seg, n) == -1)
          return -1;
        n = 0;
      }
      seg[n++] = (struct segment){ buf + (pos - offset), 0, pos };
      stop = pos;
    }
    seg[n - 1].count += pos + run - stop;
    count += pos + run - stop;
    stop = pos + run;
  }
  return backend_preadv (b, seg, n) == -1 ? -1 : count;
}

/* Fill from the source what is invalid, and valid gaps, which are replaced
 * later; and tell who wants to know.
 */
static int
read_invalid (struct clone *c, struct backend *source, uint8_t *buf,
              uint64_t offset, uint64_t end)
{
  double before;
  int64_t count;
  bool valid;

  if (c->events.source_read)
    c->events.source_read (c->events.opaque, offset, end);
  before = monotonic_seconds ();
  count = read_runs (c, source, false, READ_GAP, buf, offset, end);
  /* The source may be unable to read what lies in a gap, since a client wrote
   * there for that very reason.
   */
  if (count == -1 && errno != ENOTCONN &&
      region_map_run_bytes (c->map, offset, end, &valid) < end - offset)
    count = read_runs (c, source, false, 0, buf, offset, end);
  /* A read that failed, or that came when all had become valid, does not say
   * how long the source takes.
   */
  if (count > 0 && c->events.source_was_read)
    c->events.source_was_read (c->events.opaque, count,
                               monotonic_seconds () - before);
  return count == -1 ? -1 : 0;
}

/* What copy-on-read cannot keep is read anyway. */
static void
could_not_keep (struct clone *c, uint64_t start, uint64_t end)
{
  log_debug (c->log, LOG_REGION, "bytes %" PRIu64 "+%" PRIu64
             ": read and not kept: %m", start, end - start);
}

/* copy-on-read, before the read: the region at one end of it is copied whole if
 * the read covers only a part.
 */
static void
keep_end (struct clone *c, struct backend *source, uint64_t pos)
{
  const uint64_t region_size = region_map_region_size (c->map);
  const uint64_t start = round_down (pos, region_size);
  const uint64_t end = MIN (start + region_size, c->size);

  if (pos > start && pos < end && copy_invalid (c, source, start, end) == -1)
    could_not_keep (c, start, end);
}

/* copy-on-read, after the read, which began when the gate had been closed so
 * many times.  A region that is invalid when it is owned has then not been
 * anything else since, so buf has the source's bytes of it.
 */
static void
keep (struct clone *c, uint64_t closings, const uint8_t *buf, uint64_t offset,
      uint64_t end)
{
  const uint64_t step = copy_step (c);
  uint64_t start = offset, n;

  if (!shrink_to_regions (c, &start, &end))
    return;
  for (; start < end; start += n) {
    n = MIN (step, end - start);
    if (install_copy (c, closings, buf + (start - offset), start,
                      start + n) == -1) {
      could_not_keep (c, start, end);
      return;
    }
  }
}

/* Some of it was invalid: read that from the source, and what is valid by then
 * from the destination.  A region that becomes valid between the two is read
 * twice, and what a client wrote there wins.
 */
static int
read_both (struct clone *c, struct backend *source, uint8_t *buf,
           uint64_t offset, uint64_t end)
{
  const uint64_t closings = gate_closings (&c->gate);
  struct gate_pass pass;
  int r;

  TEST_POINT (READ_CHOSE_SOURCE);
  if (c->options.copy_on_read) {
    keep_end (c, source, offset);
    keep_end (c, source, end);
  }
  if (read_invalid (c, source, buf, offset, end) == -1)
    return -1;
  gate_enter (&c->gate, &pass);
  r = check_not_set_back (c, closings);
  if (r == 0 && read_runs (c, c->dest, true, 0, buf, offset, end) == -1)
    r = -1;
  gate_leave (&c->gate, &pass);
  if (r == 0 && c->options.copy_on_read)
    keep (c, closings, buf, offset, end);
  return r;
}

static int
read_once (struct clone *c, void *buf, uint32_t count, uint64_t offset)
{
  struct gate_pass pass;
  struct backend *source = NULL;
  bool valid;
  int r = 0;

  gate_enter (&c->gate, &pass);
  if (region_map_run_bytes (c->map, offset, offset + count, &valid) < count ||
      !valid)
    source = clone_source_get (c);
  if (source == NULL)           /* all is valid, at the latest by now */
    r = backend_pread (c->dest, buf, count, offset);
  gate_leave (&c->gate, &pass);

  if (source) {
    r = read_both (c, source, buf, offset, offset + count);
    clone_source_put (c);
  }
  return r;
}

int
clone_pread (struct clone *c, void *buf, uint32_t count, uint64_t offset)
{
  count_request (c);
  return UNTIL_DONE (c, read_once (c, buf, count, offset));
}

/* ---- changes ---- */

/* What a client wants done to a range. */
struct change {
  enum { CHANGE_WRITE, CHANGE_ZERO, CHANGE_TRIM } type;
  const uint8_t *buf; /* CHANGE_WRITE: the byte at offset */
  uint64_t offset;
  unsigned flags;     /* BACKEND_FUA, BACKEND_MAY_TRIM, BACKEND_FAST */
};

/* The source's bytes around a change, in the regions that it covers partly and
 * that were invalid at the first look.
 */
struct edges {
  uint64_t start, end;   /* the change, in whole regions */
  uint8_t *buf;          /* head, then tail */
  uint64_t head, tail;   /* how many bytes, 0: none are needed */
  bool copied;           /* they are in the destination instead, written since
                          * the gate had been closed so many times: */
  uint64_t closings;
};

static int
change_valid (struct clone *c, const struct change *ch, uint64_t start,
              uint64_t end)
{
  switch (ch->type) {
  case CHANGE_WRITE:
    return backend_pwrite (c->dest, ch->buf + (start - ch->offset),
                           end - start, start, ch->flags);
  case CHANGE_ZERO:
    return backend_zero (c->dest, end - start, start, ch->flags);
  case CHANGE_TRIM:
    if (!c->options.discard_passdown)
      return 0;
    return backend_trim (c->dest, end - start, start, ch->flags);
  }
  __builtin_unreachable ();
}

/* Where the change needs source bytes around it: e->head before it in its first
 * region, e->tail after it in its last one, 0 where that is valid or covered.
 */
static struct edges
find_edges (const struct clone *c, uint64_t start, uint64_t end)
{
  const uint64_t region_size = region_map_region_size (c->map);
  struct edges e = {
    .start = round_down (start, region_size),
    .end = MIN (round_up (end, region_size), c->size),
  };

  if (!region_map_is_valid (c->map, e.start / region_size))
    e.head = start - e.start;
  if (!region_map_is_valid (c->map, (e.end - 1) / region_size))
    e.tail = e.end - end;
  return e;
}

/* Get them, unowned and outside the gate, since the source never changes.
 * Large ones are copied to the destination right away.
 */
static int
read_edges (struct clone *c, struct backend *source, struct edges *e)
{
  const uint64_t total = e->head + e->tail;
  struct segment seg[2] = {
    { NULL, e->head, e->start }, { NULL, e->tail, e->end - e->tail },
  };
  int r = 0;

  e->closings = gate_closings (&c->gate);
  e->copied = total > CLONE_COPY_MAX;
  e->buf = malloc (MIN (total, CLONE_COPY_MAX));
  if (e->buf == NULL)
    return -1;
  if (!e->copied) {
    seg[0].buf = e->buf;
    seg[1].buf = e->buf + e->head;
    return backend_preadv (source, e->head ? seg : seg + 1,
                           (e->head > 0) + (e->tail > 0));
  }
  for (unsigned i = 0; i < 2 && r == 0; ++i)
    r = copy_bytes (c, source, e->buf, seg[i].offset,
                    seg[i].offset + seg[i].count);
  return r;
}

/* Write the change [start, end) and its edges as the owner of its regions.
 * The second look: the regions at the edges may have become valid since the
 * source was read, and then hold newer data around the change.
 */
static int
write_owned (struct clone *c, const struct change *ch, uint64_t start,
             uint64_t end, const struct edges *e)
{
  const struct edges now = find_edges (c, start, end);
  const bool head = now.head > 0, tail = now.tail > 0;
  struct segment seg[3];
  size_t n = 0;

  /* Invalid again, after it was valid at the first look: begin anew. */
  if ((head && e->head == 0) || (tail && e->tail == 0))
    return fail (ENOTCONN);

  if (head && !e->copied)
    seg[n++] = (struct segment){ e->buf, e->head, now.start };
  if (ch->type == CHANGE_WRITE)
    seg[n++] = (struct segment){
      (uint8_t *)ch->buf + (start - ch->offset), end - start, start
    };
  if (tail && !e->copied)
    seg[n++] = (struct segment){ e->buf + e->head, e->tail, end };

  /* A commit follows where one is wanted, so FUA is for valid runs only. */
  if (backend_pwritev (c->dest, seg, n, 0) == -1)
    return -1;
  if (ch->type == CHANGE_ZERO)
    return backend_zero (c->dest, end - start, start,
                         ch->flags & ~BACKEND_FUA);
  return 0;
}

/* Trim whole regions as their owner.  What was invalid must read as zeroes
 * afterwards, not as what the destination held before the clone (I9).
 */
static int
trim_owned (struct clone *c, const struct change *ch, uint64_t start,
            uint64_t end)
{
  const unsigned may_trim = c->options.discard_passdown ? BACKEND_MAY_TRIM : 0;
  uint64_t n;
  bool valid;
  int r = 0;

  for (; start < end && r == 0; start += n) {
    n = region_map_run_bytes (c->map, start, end, &valid);
    if (valid)
      r = change_valid (c, ch, start, start + n);
    else
      r = backend_zero (c->dest, n, start, may_trim);
  }
  return r;
}

/* Change [start, end), all of whose regions were invalid a moment ago. */
static int
change_invalid (struct clone *c, const struct change *ch, uint64_t start,
                uint64_t end, const struct edges *e)
{
  const uint64_t region_size = region_map_region_size (c->map);
  struct owner owner;
  int r;

  /* A trim changes whole regions only. */
  if (ch->type == CHANGE_TRIM && !shrink_to_regions (c, &start, &end))
    return 0;

  TEST_POINT (CHANGE_UNOWNED);
  range_lock_acquire (&c->ownership, &owner, round_down (start, region_size),
                     MIN (round_up (end, region_size), c->size));
  TEST_POINT (CHANGE_OWNED);
  if (!commit_may_set (&c->commit))
    r = fail (EIO);
  else if (ch->type == CHANGE_TRIM)
    r = trim_owned (c, ch, start, end);
  else
    r = write_owned (c, ch, start, end, e);
  if (r == 0) {
    TEST_POINT (CHANGE_WRITTEN);
    clone_set_valid (c, start, end, "a client's");
    TEST_POINT (CHANGE_SET);
  }
  range_lock_release (&c->ownership, &owner);
  return r;
}

/* All of it, run by run, and the commit that makes it durable, in one visit: if
 * the destination loses the one before the other, both are done again.
 */
static int
change_inside (struct clone *c, const struct change *ch, uint64_t end,
               const struct edges *e, bool commit)
{
  struct gate_pass pass;
  uint64_t n;
  bool valid;
  int r;

  gate_enter (&c->gate, &pass);
  r = e->copied ? check_not_set_back (c, e->closings) : 0;
  for (uint64_t pos = ch->offset; pos < end && r == 0; pos += n) {
    n = region_map_run_bytes (c->map, pos, end, &valid);
    r = valid ? change_valid (c, ch, pos, pos + n)
      : change_invalid (c, ch, pos, pos + n, e);
  }
  if (r == 0 && !(ch->flags & BACKEND_FUA))
    commit_count_change (&c->commit);
  if (r == 0 && commit)
    r = commit_flush (&c->commit);
  gate_leave (&c->gate, &pass);
  return r;
}

static int
change_once (struct clone *c, struct change ch, uint64_t end)
{
  const bool commit = wants_commit (c, end - ch.offset, ch.offset, &ch.flags);
  struct backend *source;
  struct edges e = { 0 };
  int r = 0, err;

  if (ch.type != CHANGE_TRIM)
    e = find_edges (c, ch.offset, end);
  if (e.head + e.tail > 0 && (source = clone_source_get (c)) != NULL) {
    r = read_edges (c, source, &e);
    clone_source_put (c);
    if (r == 0 && client_is_gone (c))
      r = fail (ESHUTDOWN);
  }
  if (r == 0)
    r = change_inside (c, &ch, end, &e, commit);
  err = errno;
  free (e.buf);
  if (r == -1)
    set_back (c, false);
  else if (commit)
    drop_source (c);
  errno = err;
  return r;
}

static int
change (struct clone *c, struct change ch, uint32_t count)
{
  count_request (c);
  return UNTIL_DONE (c, change_once (c, ch, ch.offset + count));
}

int
clone_pwrite (struct clone *c, const void *buf, uint32_t count,
              uint64_t offset, unsigned flags)
{
  return change (c, (struct change){ CHANGE_WRITE, buf, offset, flags }, count);
}

int
clone_zero (struct clone *c, uint32_t count, uint64_t offset, unsigned flags)
{
  if (flags & BACKEND_FAST) {
    const struct edges e = find_edges (c, offset, offset + count);

    if (e.head + e.tail > 0)
      return fail (EOPNOTSUPP);
  }
  return change (c, (struct change){ CHANGE_ZERO, NULL, offset, flags }, count);
}

int
clone_trim (struct clone *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return change (c, (struct change){ CHANGE_TRIM, NULL, offset, flags }, count);
}

/* ---- cache ---- */

static int
cache_once (struct clone *c, uint32_t count, uint64_t offset)
{
  const uint64_t region_size = region_map_region_size (c->map);
  const uint64_t start = round_down (offset, region_size);
  const uint64_t end = MIN (round_up (offset + count, region_size), c->size);
  struct backend *source;
  bool valid;
  int r;

  if (region_map_run_bytes (c->map, start, end, &valid) == end - start && valid)
    return 0;
  source = clone_source_get (c);
  if (source == NULL)
    return 0;
  r = copy_invalid (c, source, start, end);
  clone_source_put (c);
  return r;
}

int
clone_cache (struct clone *c, uint32_t count, uint64_t offset)
{
  return UNTIL_DONE (c, cache_once (c, count, offset));
}

/* ---- extents ---- */

/* What a server that is lost would have to tell is data. */
static int
ask_extents (struct backend *b, uint64_t count, uint64_t offset,
             unsigned flags, struct extents *list)
{
  if (backend_extents (b, count, offset, flags, list) == 0)
    return 0;
  if (errno != ENOTCONN)
    return -1;
  extents_clear (list);
  return extents_add (list, offset, count, 0);
}

/* Asking the destination costs a round trip where it is a server, so that a
 * request with many runs gets a shorter answer.
 */
#define MAX_ASKED 16

/* Append what list says about [start, end) to result, after b was asked about
 * [start, ask_end) where list is empty.  1 where it says all, 0 where it ends
 * earlier, -1 on error.
 */
static int
add_extents (struct backend *b, uint64_t start, uint64_t end,
             uint64_t ask_end, unsigned flags, struct extents *list,
             struct extents *result)
{
  if (list->len == 0 &&
      ask_extents (b, ask_end - start, start, flags, list) == -1)
    return -1;
  for (size_t i = 0; i < list->len && start < end; ++i) {
    const struct extent *e = &list->extent[i];
    uint64_t stop = MIN (end, e->offset + e->length);

    if (stop <= start)
      continue;
    if (extents_add (result, start, stop - start, e->flags) == -1)
      return -1;
    start = stop;
  }
  return start == end;
}

static int
extents_once (struct clone *c, uint32_t count, uint64_t offset,
              unsigned flags, struct extents *list)
{
  CLEANUP_EXTENTS_FREE struct extents from_source = EXTENTS_INIT;
  CLEANUP_EXTENTS_FREE struct extents from_dest = EXTENTS_INIT;
  const uint64_t end = offset + count;
  struct backend *source = clone_source_get (c);
  unsigned asked = 0;
  uint64_t n;
  bool valid;
  int r = 1;

  for (uint64_t pos = offset; pos < end && r == 1; pos += n) {
    n = region_map_run_bytes (c->map, pos, end, &valid);
    /* The source never changes, so one answer does for all runs.  Without a
     * source all is valid, whatever an older look said.
     */
    if (!valid && source)
      r = add_extents (source, pos, pos + n, end, flags, &from_source, list);
    /* The destination is asked after the look and for this run only: an older
     * or longer answer could call a hole what has been hydrated meanwhile.
     */
    else if (asked++ < MAX_ASKED) {
      extents_clear (&from_dest);
      r = add_extents (c->dest, pos, pos + n, pos + n, flags, &from_dest, list);
    }
    else
      break;
    if ((flags & BACKEND_REQ_ONE) && list->len > 1)
      break;
  }

  if (source)
    clone_source_put (c);
  return r == -1 ? -1 : 0;
}

/* All of it again where the map was set back meanwhile: the destination may
 * have been asked about a region that is invalid.
 */
int
clone_extents (struct clone *c, uint32_t count, uint64_t offset,
               unsigned flags, struct extents *list)
{
  uint64_t closings;
  int r;

  do {
    closings = gate_closings (&c->gate);
    extents_clear (list);
    r = extents_once (c, count, offset, flags, list);
  } while (r == 0 && closings != gate_closings (&c->gate));
  return r;
}

/* ---- status ---- */

enum clone_mode
clone_mode (struct clone *c)
{
  if (backend_connections (c->dest) == 0)
    return MODE_FAIL;
  return commit_mode (&c->commit);
}

enum backend_state
clone_source_status (struct clone *c, unsigned *connections)
{
  LOCK_FOR_SCOPE (&c->source_lock);

  *connections = c->source ? backend_connections (c->source) : 0;
  return c->source ? backend_state (c->source) : BACKEND_LOST;
}

void
clone_source_reason (struct clone *c, char *buf, size_t size)
{
  LOCK_FOR_SCOPE (&c->source_lock);

  buf[0] = '\0';
  if (c->source && backend_state (c->source) != BACKEND_UP)
    backend_reason (c->source, buf, size);
}
