/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The steps, and what a power cut leaves after each, are in commit.h. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "base/test-point.h"
#include "store/bitmap.h"
#include "store/commit.h"
#include "store/inherit.h"
#include "store/superblock.h"

/* A request that waits for the next commit.  It is on its thread's stack. */
struct commit_waiter {
  pthread_cond_t cond;
  bool lead;  /* this thread runs that commit, for all waiters */
  bool done;
  int error;  /* when done: 0 or an errno */
  STAILQ_ENTRY (commit_waiter) entry;
};
STAILQ_HEAD (commit_waiters, commit_waiter);

struct commit {
  struct backend *dest;            /* these are not owned */
  struct metadata *metadata;
  struct region_map *map;
  const struct log *log;
  struct inheritance *inheritance; /* may be NULL */
  bool counts_changes;             /* the destination is a server */
  size_t max_sectors;              /* of one round */

  pthread_mutex_t lock;            /* protects the next four */
  bool running;                    /* a thread is in steps 1 to 5 */
  struct commit_waiters waiters;   /* for the next commit */
  uint64_t flushes, shared;        /* see commit_get_flushes */

  pthread_mutex_t metadata_lock;   /* held in steps 3 to 5 */

  _Atomic uint64_t commits;        /* rounds that wrote to the metadata */
  _Atomic int flush_error;         /* of the destination, or 0 */
  _Atomic bool metadata_failed;    /* the last write to the metadata failed */
  _Atomic bool complete;           /* durable bitmap full, flag on disk */

  _Atomic uint64_t changes, covered, setbacks;

  uint32_t *sectors;               /* the running commit's snapshot */
  uint8_t (*images)[METADATA_SECTOR];
};

struct commit *
commit_new (struct backend *dest, struct metadata *md, struct region_map *map,
            const struct log *log)
{
  struct commit *c = calloc (1, sizeof *c);

  if (c == NULL)
    return NULL;
  c->dest = dest;
  c->metadata = md;
  c->map = map;
  c->log = log;
  c->counts_changes = backend_has_peer (dest);
  c->max_sectors = COMMIT_SECTORS;
  c->complete = (md->sb.flags & METADATA_COMPLETE) != 0;
  pthread_mutex_init (&c->lock, NULL);
  pthread_mutex_init (&c->metadata_lock, NULL);
  STAILQ_INIT (&c->waiters);

  c->sectors = malloc (COMMIT_SECTORS * sizeof *c->sectors);
  c->images = malloc (COMMIT_SECTORS * sizeof *c->images);
  if (c->sectors == NULL || c->images == NULL) {
    commit_free (c);
    errno = ENOMEM;
    return NULL;
  }
  return c;
}

void
commit_free (struct commit *c)
{
  if (c == NULL)
    return;
  pthread_mutex_destroy (&c->metadata_lock);
  pthread_mutex_destroy (&c->lock);
  free (c->sectors);
  free (c->images);
  free (c);
}

void
commit_set_inheritance (struct commit *c, struct inheritance *i)
{
  c->inheritance = i;
}

void
commit_limit_round (struct commit *c, size_t max_sectors)
{
  c->max_sectors = MIN (max_sectors, (size_t)COMMIT_SECTORS);
}

/* ---- the steps ---- */

/* Step 1.  Returns the number of dirty sectors in the snapshot. */
static size_t
take_snapshot (struct commit *c)
{
  uint64_t words[WORDS_PER_SECTOR];
  size_t n = region_map_take_dirty (c->map, c->sectors, c->max_sectors);

  for (size_t i = 0; i < n; ++i) {
    region_map_snapshot (c->map, c->sectors[i], words);
    metadata_encode (c->metadata, c->sectors[i], words, c->images[i]);
  }
  return n;
}

/* Step 2 has failed, with errno set. */
static void
flush_has_failed (struct commit *c)
{
  if (errno == ENOTCONN)
    return;
  inheritance_spoil (c->inheritance, true);
  c->flush_error = errno;
  log_error (c->log, "destination %s: flush failed: %m; data written since the "
             "last flush may be lost%s", c->dest->name,
             commit_wants_set_back (c) ? ": make room there; the mode is ro"
             : ", no flush will succeed and no region can become valid any "
             "more: repair the destination and start again; the mode is ro");
}

/* A write or a flush of the metadata has returned r, with errno set. */
static int
metadata_returned (struct commit *c, int r)
{
  if (r == -1 && errno == ENOTCONN)
    return -1;
  if (r == -1 && !c->metadata_failed)
    log_error (c->log, "metadata %s: cannot write: %m; no other region can "
               "become valid until this works again; the mode is ro",
               c->metadata->backend->name);
  if (r == 0 && c->metadata_failed)
    log_info (c->log, "metadata %s: can be written again; the mode is %s",
              c->metadata->backend->name, c->flush_error ? "ro" : "rw");
  c->metadata_failed = r == -1;
  return r;
}

/* Steps 3 and 4.  The metadata lock is held. */
static int
write_bitmap (struct commit *c, const uint32_t *sectors,
              uint8_t (*images)[METADATA_SECTOR], size_t n)
{
  int r = metadata_write (c->metadata, sectors, images, n);

  if (r == 0) {
    TEST_POINT (COMMIT_WRITTEN);
    r = metadata_flush (c->metadata);
  }
  if (r == 0)
    TEST_POINT (COMMIT_DURABLE);
  return metadata_returned (c, r);
}

/* Rewrite a sector, to see whether the metadata can be written again.  The
 * metadata lock is held.
 */
static void
try_metadata (struct commit *c)
{
  const uint32_t sector = 0;
  uint8_t image[1][METADATA_SECTOR];
  uint64_t words[WORDS_PER_SECTOR];

  region_map_durable (c->map, sector, words);
  metadata_encode (c->metadata, sector, words, image[0]);
  write_bitmap (c, &sector, image, 1);
}

/* Steps 3 to 5, for n sectors.  A commit that has no sector to write does not
 * fail if the metadata cannot be written.
 */
static int
make_durable (struct commit *c, size_t n)
{
  uint64_t words[WORDS_PER_SECTOR];
  LOCK_FOR_SCOPE (&c->metadata_lock);

  if (n == 0) {
    if (c->metadata_failed)
      try_metadata (c);
    return 0;
  }
  if (write_bitmap (c, c->sectors, c->images, n) == -1)
    return -1;
  for (size_t i = 0; i < n; ++i) {
    /* take_snapshot has made this image, so it is valid. */
    metadata_decode (c->metadata, c->sectors[i], c->images[i], words);
    region_map_set_durable (c->map, c->sectors[i], words);
  }
  c->commits++;
  log_debug (c->log, LOG_COMMIT, "commit: %zu sectors, %" PRIu64 " of %" PRIu64
             " regions are durable", n, region_map_count_durable (c->map),
             region_map_regions (c->map));
  return 0;
}

/* One round of the five steps.  1 if there may be more dirty sectors, 0 if
 * there are none, or -1.
 */
static int
run_round (struct commit *c)
{
  const size_t n = take_snapshot (c);

  TEST_POINT (COMMIT_SNAPSHOT);
  if (backend_flush (c->dest) == -1) {
    flush_has_failed (c);
    goto failed;
  }
  TEST_POINT (COMMIT_FLUSHED);
  if (make_durable (c, n) == -1)
    goto failed;
  return n == c->max_sectors;

 failed:
  for (size_t i = 0; i < n; ++i)
    region_map_put_dirty (c->map, c->sectors[i]);
  return -1;
}

/* If the durable bitmap is full, set the complete flag (I10). */
static int
mark_complete (struct commit *c)
{
  int r;
  LOCK_FOR_SCOPE (&c->metadata_lock);

  if (c->complete ||
      region_map_count_durable (c->map) != region_map_regions (c->map))
    return 0;
  r = metadata_set_flags (c->metadata,
                          c->metadata->sb.flags | METADATA_COMPLETE);
  if (metadata_returned (c, r) == -1)
    return -1;
  c->complete = true;
  inheritance_remove (c->inheritance);
  return 0;
}

int
commit_mark_clean (struct commit *c)
{
  LOCK_FOR_SCOPE (&c->metadata_lock);

  if (commit_mode (c) != MODE_RW)
    return 0;
  return metadata_set_flags (c->metadata,
                             c->metadata->sb.flags | METADATA_CLEAN);
}

/* A whole commit.  Called by one thread at a time, without the lock. */
static int
run_commit (struct commit *c)
{
  const uint64_t changes = c->changes;
  int r;

  if (c->flush_error) {
    errno = c->flush_error;
    return -1;
  }

  do
    r = run_round (c);
  while (r == 1);
  if (r == -1)
    return -1;

  c->covered = changes;
  return mark_complete (c);
}

/* ---- group commit ---- */

/* Turn an errno into one that clients may get. */
static int
client_errno (int error)
{
  if (error == EDQUOT)
    return ENOSPC;
  return error == ENOSPC || error == ENOMEM || error == ENOTCONN ? error : EIO;
}

/* The commit is over.  Wake the requests that it was run for, and let one that
 * has arrived meanwhile run the next.  The lock is held.
 */
static void
finish_commit (struct commit *c, struct commit_waiters *batch, int error)
{
  struct commit_waiter *w;

  STAILQ_FOREACH (w, batch, entry) {
    w->error = error;
    w->done = true;
    pthread_cond_signal (&w->cond);
  }

  w = STAILQ_FIRST (&c->waiters);
  if (w) {
    w->lead = true;
    pthread_cond_signal (&w->cond);
  }
  else
    c->running = false;
}

int
commit_flush (struct commit *c)
{
  struct commit_waiter self = { .cond = PTHREAD_COND_INITIALIZER };
  struct commit_waiters batch = STAILQ_HEAD_INITIALIZER (batch);
  int error;
  LOCK_FOR_SCOPE (&c->lock);

  STAILQ_INSERT_TAIL (&c->waiters, &self, entry);
  if (c->running) {
    while (!self.lead && !self.done)
      pthread_cond_wait (&self.cond, &c->lock);
    if (self.done) {
      c->shared++;
      goto out;
    }
  }

  /* Requests that arrive from here on wait for the next commit, because this
   * one may take its snapshot before they arrive.
   */
  c->running = true;
  STAILQ_CONCAT (&batch, &c->waiters);

  pthread_mutex_unlock (&c->lock);
  error = run_commit (c) == -1 ? client_errno (errno) : 0;
  pthread_mutex_lock (&c->lock);

  finish_commit (c, &batch, error);

 out:
  c->flushes++;
  if (self.error) {
    errno = self.error;
    return -1;
  }
  return 0;
}

void
commit_get_flushes (struct commit *c, uint64_t *flushes, uint64_t *shared)
{
  LOCK_FOR_SCOPE (&c->lock);

  *flushes = c->flushes;
  *shared = c->shared;
}

unsigned
commit_count_waiting (struct commit *c)
{
  const struct commit_waiter *waiter;
  unsigned n = 0;
  LOCK_FOR_SCOPE (&c->lock);

  STAILQ_FOREACH (waiter, &c->waiters, entry)
    n++;
  return n;
}

int
commit_background (struct commit *c)
{
  if (!region_map_is_dirty (c->map) && !c->metadata_failed)
    return 0;
  return commit_flush (c);
}

double
commit_pause (double interval, double took)
{
  return MAX (interval, MIN (10 * took, (double)COMMIT_PAUSE_MAX));
}

/* ---- state ---- */

enum clone_mode
commit_mode (const struct commit *c)
{
  return c->flush_error || c->metadata_failed ? MODE_RO : MODE_RW;
}

bool
commit_may_set (const struct commit *c)
{
  return commit_mode (c) == MODE_RW;
}

bool
commit_is_complete (const struct commit *c)
{
  return c->complete;
}

int
commit_flush_error (const struct commit *c)
{
  return c->flush_error;
}

uint64_t
commit_rounds (const struct commit *c)
{
  return c->commits;
}

/* ---- setting back ---- */

void
commit_count_change (struct commit *c)
{
  if (c->counts_changes)
    c->changes++;
}

bool
commit_wants_set_back (const struct commit *c)
{
  return c->flush_error == ENOSPC || c->flush_error == EDQUOT;
}

void
commit_set_back (struct commit *c)
{
  const bool gone = c->changes != c->covered || commit_wants_set_back (c);
  const uint64_t forgotten = region_map_forget (c->map);

  c->covered = c->changes;
  if (gone)
    c->setbacks++;
  c->flush_error = 0;
  inheritance_spoil (c->inheritance, false);

  if (forgotten)
    log_info (c->log, "destination %s: %" PRIu64 " regions that were not "
              "durable are copied again", c->dest->name, forgotten);
  if (gone)
    log_error (c->log, "destination %s: what clients have written and not "
               "flushed may be lost; the next flush of each client fails, to "
               "say so", c->dest->name);
}

uint64_t
commit_setbacks (const struct commit *c)
{
  return c->setbacks;
}

void
commit_metadata_lost (struct commit *c)
{
  LOCK_FOR_SCOPE (&c->metadata_lock);
}
