/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The steps, and what a crash leaves after each, are in commit.h. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "base/test-point.h"
#include "store/bitmap.h"
#include "store/commit.h"
#include "store/inherit.h"
#include "store/superblock.h"

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
    .dest = dest, .metadata = md, .map = map, .log = log,
    .counts_changes = backend_has_peer (dest),
    .max_sectors = COMMIT_SECTORS,
    .complete = (md->sb.flags & METADATA_COMPLETE) != 0,
  };
  c->sectors = malloc (COMMIT_SECTORS * sizeof *c->sectors);
  c->images = malloc (COMMIT_SECTORS * sizeof *c->images);
  if (c->sectors == NULL || c->images == NULL) {
    free (c->sectors);
    free (c->images);
    return -1;
  }
  pthread_mutex_init (&c->lock, NULL);
  pthread_mutex_init (&c->metadata_lock, NULL);
  return 0;
}

void
commit_destroy (struct commit *c)
{
  pthread_mutex_destroy (&c->metadata_lock);
  pthread_mutex_destroy (&c->lock);
  free (c->sectors);
  free (c->images);
}

/* Step 1.  The number of dirty sectors in the snapshot. */
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

/* A flush of the destination failed, with errno set. */
static void
destination_has_failed (struct commit *c)
{
  if (errno == ENOTCONN)
    return;
  inheritance_spoil (c->inheritance, true);
  c->flush_error = errno;
  log_error (c->log, "destination %s: flush failed: %m; what was written since "
             "the last flush may be lost%s", c->dest->name,
             commit_wants_set_back (c) ? ": make room there"
             : ", no flush will succeed and no region can become valid any "
             "more: repair the destination and start again");
}

/* What a write and a flush of the metadata have returned, with errno set. */
static int
metadata_returned (struct commit *c, int r)
{
  if (r == -1 && errno == ENOTCONN)
    return -1;
  if (r == -1 && !c->metadata_failed)
    log_error (c->log, "metadata %s: cannot write: %m; no other region can "
               "become valid until this works again",
               c->metadata->backend->name);
  if (r == 0 && c->metadata_failed)
    log_info (c->log, "metadata %s: can be written again",
              c->metadata->backend->name);
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

/* Write a sector anew, to see whether the metadata can be written again.  The
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

/* Steps 3 to 5.  Nobody's flush fails because of metadata for which it has
 * nothing.
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
    /* The image was made here, a moment ago: it decodes. */
    metadata_decode (c->metadata, c->sectors[i], c->images[i], words);
    region_map_set_durable (c->map, c->sectors[i], words);
  }
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
  const size_t n = take_snapshot (c);

  TEST_POINT (COMMIT_SNAPSHOT);
  if (backend_flush (c->dest) == -1) {
    destination_has_failed (c);
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

/* Say on disk that the source is not needed any more (I10). */
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

/* An errno that a client may get. */
static int
client_errno (int error)
{
  if (error == EDQUOT)
    return ENOSPC;
  return error == ENOSPC || error == ENOMEM || error == ENOTCONN ? error : EIO;
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
  error = run_commit (c) == -1 ? client_errno (errno) : 0;
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
  if (!region_map_is_dirty (c->map) && !c->metadata_failed)
    return 0;
  return commit_flush (c);
}

double
commit_pause (double interval, double took)
{
  return MAX (interval, MIN (10 * took, (double)COMMIT_PAUSE_MAX));
}

void
commit_set_back (struct commit *c)
{
  const bool lost = c->changes != c->covered || commit_wants_set_back (c);
  const uint64_t forgotten = region_map_forget (c->map);

  c->covered = c->changes;
  if (lost)
    c->losses++;
  c->flush_error = 0;
  inheritance_spoil (c->inheritance, false);

  if (forgotten)
    log_info (c->log, "destination %s: %" PRIu64 " regions that were not "
              "durable are copied again", c->dest->name, forgotten);
  if (lost)
    log_error (c->log, "destination %s: what clients have written and not "
               "flushed may be lost; the next flush of each client fails, to "
               "say so", c->dest->name);
}

void
commit_metadata_lost (struct commit *c)
{
  LOCK_FOR_SCOPE (&c->metadata_lock);
}
