/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/private.h"
#include "store/inherit.h"

/* Milliseconds without a reply that are left to the servers at the end.  The
 * destination has no limit: what it is given then is what clients have written.
 */
#define SOURCE_GRACE 1000
#define METADATA_GRACE 1500

struct clone *
clone_new (struct backend *source, struct backend *dest, struct metadata *md,
           struct region_map *map, const struct clone_options *options,
           const struct log *log)
{
  struct clone *c = aligned_alloc (_Alignof (struct clone), sizeof *c);

  if (c == NULL)
    return NULL;
  memset (c, 0, sizeof *c);
  c->commit = commit_new (dest, md, map, log);
  if (c->commit == NULL) {
    free (c);
    return NULL;
  }
  c->log = log;
  c->size = region_map_size (map);
  c->options = *options;
  c->copy_on_read = options->copy_on_read;
  c->counters.timed = options->timed;
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
  kept_init (&c->kept);
  for (unsigned i = 0; i < CLONE_SIDES; ++i)
    last_error_init (&c->last_error[i]);
  if (source == NULL)
    source_remove_gate (c);
  return c;
}

int
clone_start (struct clone *c, const struct clone_service *service)
{
  const struct backend_service dest = {
    .consequence = servers_tell_mode, .lost = servers_lost_destination,
    .changed = servers_changed, .opaque = c
  };
  const struct backend_service md = {
    .lost = servers_lost_metadata, .changed = servers_changed, .opaque = c
  };
  const struct backend_service source = {
    .timeout = service->source_timeout,
    .same_disk = c->options.source_check ? servers_same_source : NULL,
    .changed = servers_changed, .opaque = c,
  };

  c->source_timeout = service->source_timeout;
  inheritance_open (&c->inheritance, c->dest, c->metadata, c->map, c->log);
  commit_set_inheritance (c->commit, c->inheritance);
  if (backend_start (c->dest, &dest) == -1 ||
      backend_start (c->metadata->backend, &md) == -1 ||
      (c->source && backend_start (c->source, &source) == -1))
    return -1;
  return committer_start (&c->committer, service->commit_interval);
}

void
clone_interrupt (struct clone *c)
{
  outage_end_waiting (&c->outage);
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
    r = commit_mark_clean (c->commit);
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
  commit_free (c->commit);
  committer_destroy (&c->committer);
  outage_destroy (&c->outage);
  range_lock_destroy (&c->ownership);
  gate_destroy (&c->gate);
  pthread_mutex_destroy (&c->source_lock);
  kept_destroy (&c->kept);
  for (unsigned i = 0; i < CLONE_SIDES; ++i)
    last_error_destroy (&c->last_error[i]);
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
  r = commit_flush (c->commit);
  if (r == 0)
    r = commit_mark_clean (c->commit);
  if (r == 0)
    inheritance_remove (c->inheritance);
  else
    log_error (c->log, "the last commit failed: %m");
  return r;
}

enum clone_mode
clone_mode (struct clone *c)
{
  if (backend_connections (c->dest) == 0)
    return MODE_FAIL;
  return commit_mode (c->commit);
}

/* ---- settings ---- */

bool
clone_copy_on_read (const struct clone *c)
{
  return c->copy_on_read;
}

void
clone_set_copy_on_read (struct clone *c, bool on)
{
  c->copy_on_read = on;
}

unsigned
clone_source_timeout (const struct clone *c)
{
  return c->source_timeout;
}

void
clone_set_source_timeout (struct clone *c, unsigned seconds)
{
  c->source_timeout = seconds;
  {
    LOCK_FOR_SCOPE (&c->source_lock);
    if (c->source)
      backend_set_timeout (c->source, seconds);
  }
  outage_happened (&c->outage);
}

/* ---- errors ---- */

void
clone_note_error (struct clone *c, enum clone_side side, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  last_error_set (&c->last_error[side], fmt, args);
  va_end (args);
}

void
clone_last_error (struct clone *c, enum clone_side side, char *buf,
                  size_t size)
{
  last_error_get (&c->last_error[side], buf, size);
}

/* A loss is noted in servers.c.  EOPNOTSUPP is the answer to a fast zero.  If
 * no region can become valid, the error that was noted before is the reason.
 */
int
clone_check_dest (struct clone *c, int r, const char *what, uint64_t count,
                  uint64_t offset)
{
  if (r == -1 && errno != ENOTCONN && errno != EOPNOTSUPP && clone_may_set (c))
    clone_note_error (c, CLONE_DESTINATION, "cannot %s %" PRIu64
                      " bytes at offset %" PRIu64 ": %m", what, count, offset);
  return r;
}

void
clone_note_commit (struct clone *c)
{
  const int err = errno;

  errno = commit_flush_error (c->commit);
  if (errno)
    clone_note_error (c, CLONE_DESTINATION, "flush failed: %m");
  errno = err;
}

/* ---- counters ---- */

void
clone_get_counters (struct clone *c, struct clone_counters *sum)
{
  counters_sum (&c->counters, &sum->counts);
  sum->commits = commit_rounds (c->commit);
  commit_get_flushes (c->commit, &sum->flushes, &sum->flushes_shared);
}

void
clone_count_hydration (struct clone *c, uint64_t bytes)
{
  counters_source_read (&c->counters, COUNTED_HYDRATION, bytes);
}

/* ---- look-ups ---- */

bool
clone_whole_regions (const struct clone *c, uint64_t *start, uint64_t *end)
{
  const uint64_t region_size = region_map_region_size (c->map);

  *start = round_up (*start, region_size);
  if (*end < c->size)
    *end = round_down (*end, region_size);
  return *start < *end;
}

uint64_t
clone_size (const struct clone *c)
{
  return c->size;
}

const struct region_map *
clone_map (const struct clone *c)
{
  return c->map;
}

struct backend *
clone_destination (const struct clone *c)
{
  return c->dest;
}

bool
clone_can_share (const struct clone *c, const struct backend *source)
{
  return c->options.discard_passdown && backend_can_share (c->dest, source);
}

bool
clone_is_complete (const struct clone *c)
{
  return commit_is_complete (c->commit);
}

bool
clone_may_set (const struct clone *c)
{
  return commit_may_set (c->commit);
}

uint64_t
clone_requests (const struct clone *c)
{
  return atomic_load_explicit (&c->requests, memory_order_relaxed);
}

void
clone_ask_commit (struct clone *c)
{
  committer_ask (&c->committer);
}

bool
clone_wait_committed (struct clone *c, double seconds)
{
  return committer_wait (&c->committer, seconds);
}
