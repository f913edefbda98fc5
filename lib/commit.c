/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The steps, and what a crash leaves after each, are in commit.h. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "cleanup.h"
#include "commit.h"
#include "rounding.h"
#include "test-point.h"

/* Somebody who waits for the commit after the running one.  On its stack. */
struct commit_waiter {
  pthread_cond_t cond;
  bool lead;  /* run that commit, for all who wait */
  bool done;
  int error;  /* when done: 0 or an errno */
  struct commit_waiter *next;
};

int
commit_init (struct commit *c, struct backend *dest, struct metadata *md,
             struct region_map *map, const struct log *log)
{
  *c = (struct commit){
    .dest = dest, .metadata = md, .map = map, .log = log, .mode = MODE_RW,
    .complete = (md->sb.flags & METADATA_COMPLETE) != 0,
    .incarnation = 1,
  };
  c->sectors = malloc (COMMIT_SECTORS * sizeof *c->sectors);
  c->images = malloc (COMMIT_SECTORS * sizeof *c->images);
  if (c->sectors == NULL || c->images == NULL) {
    free (c->sectors);
    free (c->images);
    return -1;
  }
  pthread_mutex_init (&c->lock, NULL);
  pthread_rwlock_init (&c->incarnation_lock, NULL);
  return 0;
}

void
commit_destroy (struct commit *c)
{
  pthread_rwlock_destroy (&c->incarnation_lock);
  pthread_mutex_destroy (&c->lock);
  free (c->sectors);
  free (c->images);
}

/* Before step 1: what is flushed was done before.  In this order, so that a
 * loss sees one of the two at any time; what is noted in between was done before
 * the flush as well.
 */
static void
note_what_is_flushed (struct commit *c)
{
  if (c->unflushed) {
    c->flushing = true;
    c->unflushed = false;
  }
}

/* Step 1.  The number of dirty sectors in the snapshot. */
static size_t
take_snapshot (struct commit *c)
{
  uint64_t words[WORDS_PER_SECTOR];
  size_t n = region_map_take_dirty (c->map, c->sectors, COMMIT_SECTORS);

  for (size_t i = 0; i < n; ++i) {
    region_map_snapshot (c->map, c->sectors[i], words);
    metadata_encode (c->metadata, c->sectors[i], words, c->images[i]);
  }
  return n;
}

/* Step 2. */
static int
flush_destination (struct commit *c)
{
  if (backend_flush (c->dest) == 0)
    return 0;

  log_error (c->log, "destination %s: flush failed: %m; what was written since "
             "the last flush may be lost, no flush will succeed and no region "
             "can become valid any more: repair the destination and start "
             "again", c->dest->name);
  c->lost = true;
  c->mode = MODE_RO;
  return -1;
}

/* Steps 3 and 4, until both were in one incarnation of the metadata. */
static int
write_bitmap (struct commit *c, size_t n)
{
  struct metadata *md = c->metadata;
  unsigned losses;

  do {
    losses = md->losses;
    if (metadata_write (md, c->sectors, c->images, n) == -1)
      return -1;
    TEST_POINT (COMMIT_WRITTEN);
    if (metadata_flush (md) == -1)
      return -1;
  } while (losses != md->losses);
  return 0;
}

/* Step 5. */
static void
mark_durable (struct commit *c, size_t n)
{
  uint64_t words[WORDS_PER_SECTOR];

  for (size_t i = 0; i < n; ++i) {
    /* The image was made here, a moment ago: it decodes. */
    metadata_decode (c->metadata, c->sectors[i], c->images[i], words);
    region_map_set_durable (c->map, c->sectors[i], words);
  }
}

/* A write or flush of the metadata failed, with errno set. */
static void
metadata_has_failed (struct commit *c)
{
  if (!c->metadata_failed)
    log_error (c->log, "metadata %s: cannot write: %m; no other region can "
               "become valid until this works again",
               c->metadata->backend->name);
  c->metadata_failed = true;
  c->mode = MODE_RO;
}

static void
metadata_has_succeeded (struct commit *c)
{
  if (!c->metadata_failed)
    return;
  log_info (c->log, "metadata %s: can be written again",
            c->metadata->backend->name);
  c->metadata_failed = false;
  c->mode = MODE_RW;
}

/* Steps 3 to 5, in an incarnation that does not end meanwhile. */
static int
make_durable (struct commit *c, size_t n)
{
  if (n == 0)
    return 0;
  if (write_bitmap (c, n) == -1) {
    metadata_has_failed (c);
    for (size_t i = 0; i < n; ++i)
      region_map_put_dirty (c->map, c->sectors[i]);
    return -1;
  }
  TEST_POINT (COMMIT_DURABLE);
  metadata_has_succeeded (c);
  mark_durable (c, n);
  c->commits++;
  log_debug (c->log, LOG_COMMIT, "commit: %zu sectors, %" PRIu64 " of %" PRIu64
             " regions are durable", n, region_map_count_durable (c->map),
             region_map_regions (c->map));
  return 0;
}

/* One round of the five steps.  1 where there is more to do, 0 where all is
 * done, or -1.
 */
static int
run_round (struct commit *c)
{
  const uint64_t incarnation = c->incarnation;
  size_t n;
  int r;

  note_what_is_flushed (c);
  n = take_snapshot (c);
  TEST_POINT (COMMIT_SNAPSHOT);
  if (flush_destination (c) == -1)
    return -1;
  TEST_POINT (COMMIT_FLUSHED);

  pthread_rwlock_rdlock (&c->incarnation_lock);
  if (c->incarnation != incarnation)
    r = 1;
  else {
    c->flushing = false;
    r = make_durable (c, n);
    if (r == 0 && n == COMMIT_SECTORS)
      r = 1;
  }
  pthread_rwlock_unlock (&c->incarnation_lock);
  return r;
}

/* Say on disk that the source is not needed any more (I10). */
static int
mark_complete (struct commit *c)
{
  if (c->complete ||
      region_map_count_durable (c->map) != region_map_regions (c->map))
    return 0;
  if (metadata_set_flags (c->metadata,
                          c->metadata->sb.flags | METADATA_COMPLETE) == -1) {
    metadata_has_failed (c);
    return -1;
  }
  metadata_has_succeeded (c);
  c->complete = true;
  return 0;
}

/* A whole commit.  Called by one thread at a time, without the lock. */
static int
run_commit (struct commit *c)
{
  int r;

  if (c->lost) {
    errno = EIO;
    return -1;
  }

  do
    r = run_round (c);
  while (r == 1);

  return r == -1 ? -1 : mark_complete (c);
}

/* The commit is over: tell everybody it was run for, and let one of those who
 * came meanwhile run the next.  Called with the lock.
 */
static void
finish_commit (struct commit *c, struct commit_waiter *batch, int error)
{
  struct commit_waiter *next;

  for (; batch; batch = next) {
    next = batch->next; /* once done is seen, the waiter is gone */
    batch->error = error;
    batch->done = true;
    pthread_cond_signal (&batch->cond);
  }

  if (c->waiters) {
    c->waiters->lead = true;
    pthread_cond_signal (&c->waiters->cond);
  }
  else
    c->running = false;
}

int
commit_flush (struct commit *c)
{
  struct commit_waiter self = { .cond = PTHREAD_COND_INITIALIZER };
  struct commit_waiter *batch;
  int error;
  LOCK_FOR_SCOPE (&c->lock);

  self.next = c->waiters;
  c->waiters = &self;
  if (c->running) {
    while (!self.lead && !self.done)
      pthread_cond_wait (&self.cond, &c->lock);
    if (self.done)
      goto out;
  }

  /* From here on those who ask wait for the next commit, because the snapshot
   * of this one may be taken before they came.
   */
  c->running = true;
  batch = c->waiters;
  c->waiters = NULL;

  pthread_mutex_unlock (&c->lock);
  error = run_commit (c) == -1 ? EIO : 0;
  pthread_mutex_lock (&c->lock);

  finish_commit (c, batch, error);

 out:
  if (self.error) {
    errno = self.error;
    return -1;
  }
  return 0;
}

int
commit_background (struct commit *c)
{
  if (!c->metadata_failed && !region_map_is_dirty (c->map))
    return 0;
  return commit_flush (c);
}

double
commit_pause (double interval, double took)
{
  return MAX (interval, MIN (10 * took, (double)COMMIT_PAUSE_MAX));
}

bool
commit_may_set (struct commit *c)
{
  return c->mode == MODE_RW;
}

enum clone_mode
commit_mode (struct commit *c)
{
  return c->mode;
}

bool
commit_is_complete (struct commit *c)
{
  return c->complete;
}

/* ---- incarnations of the destination ---- */

uint64_t
commit_incarnation (struct commit *c)
{
  return c->incarnation;
}

bool
commit_set_valid (struct commit *c, uint64_t incarnation, uint64_t first,
                  uint64_t count)
{
  bool same;

  pthread_rwlock_rdlock (&c->incarnation_lock);
  same = c->incarnation == incarnation;
  if (same)
    region_map_set (c->map, first, count);
  pthread_rwlock_unlock (&c->incarnation_lock);
  return same;
}

void
commit_changed (struct commit *c)
{
  if (!c->unflushed)
    c->unflushed = true;
}

void
commit_destination_lost (struct commit *c)
{
  uint64_t forgotten;
  bool changes;

  pthread_rwlock_wrlock (&c->incarnation_lock);
  forgotten = region_map_forget (c->map);
  changes = atomic_exchange (&c->unflushed, false) || c->flushing;
  c->flushing = false;
  if (changes)
    c->losses++;
  c->incarnation++;
  pthread_rwlock_unlock (&c->incarnation_lock);

  if (forgotten)
    log_info (c->log, "destination %s: %" PRIu64 " regions that were not "
              "durable are copied again", c->dest->name, forgotten);
  if (changes)
    log_error (c->log, "destination %s: what clients have written and not "
               "flushed may be lost with its server; the next flush of each "
               "of them fails, to say so", c->dest->name);
}

uint64_t
commit_losses (struct commit *c)
{
  return c->losses;
}

uint64_t
commit_count (struct commit *c)
{
  return c->commits;
}
