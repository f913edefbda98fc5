/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commit: how dirty regions become durable.
 *
 * One commit takes one epoch, the bits that are dirty when it begins, through
 * these steps.  What a crash leaves behind is said after each.
 *
 *   1. Snapshot: take the dirty sectors off the map's list and copy their
 *      bits.  The data of each of these bits are in the destination, perhaps
 *      in a volatile cache only.
 *        Crash: the bitmap is the last epoch's.  The new regions are invalid
 *        again; nobody was told that they are durable.
 *   2. Flush the destination.  Now the data of every bit of the snapshot are
 *      durable; bits that are set meanwhile are not in the snapshot.
 *        Crash: as before, and copying the regions again is harmless.
 *   3. Write the snapshot's sectors to the metadata.
 *        Crash: any subset of them is on disk.  Each bit there is true.
 *   4. Flush the metadata.
 *        Crash: all of them are.
 *   5. Mark the snapshot's bits durable in the map, wake the waiters.
 *
 * An epoch with more than COMMIT_SECTORS dirty sectors goes through the steps
 * in several rounds, so that the memory for snapshots is a constant.
 *
 * Group commit: at most one commit runs.  Whoever asks while one runs waits
 * for the next, whose snapshot is taken after all of those who wait for it
 * have asked; one of them runs it for all.  Without dirty sectors a commit
 * is step 2 alone, and the metadata is not touched, unless it has failed.
 *
 * FAILURES
 *
 *   - A server is lost (ENOTCONN): the commit ends with that error.  Its
 *     sectors are dirty again, and whoever asked may ask again when the server
 *     is back.
 *   - Step 2 fails for want of space (ENOSPC, EDQUOT): the destination has lost
 *     what it could not allocate.  The mode is ro until the map has been set
 *     back (see below); then everything goes on.
 *   - Step 2 fails otherwise: Linux may have dropped dirty pages, and would
 *     report that once only, to this flush.  Whoever else wrote some of them
 *     would be told that the next flush succeeded, and bits would be committed
 *     whose data are gone.  So no flush succeeds and no bit is written any more
 *     until the disk is opened again, or its server, complete or not.  The mode
 *     becomes ro.
 *   - Step 3 or 4 fails: the data are durable, the bits are not.  Their
 *     sectors are dirty again, for the next commit to write anew.  The mode
 *     becomes ro until one succeeds; each commit tries, also when no sector is
 *     dirty.
 *
 * Everybody who waits for the commit gets its error.  The map is not touched by
 * a failure: what is valid stays valid.
 *
 * SETTING BACK.  A destination that was lost and is back may have lost what it
 * had not flushed.  That is a power cut of the destination which the process
 * survives, and it has the same outcome: the regions that are not durable
 * become invalid (region_map_forget), and what was written and not flushed is
 * gone, in valid regions too.  commit_set_back does this while nobody is inside
 * the gate (gate.h), so that no commit runs, no request is between its look at
 * the map and the destination, and nobody writes to the next incarnation of the
 * server what belongs to the last one.
 *
 * A later flush would not tell the clients, so commit_set_back counts it as a
 * loss for clone_flush to tell, if and only if something was lost:
 *
 *   changes   what clients have been told is done, counted inside the gate
 *   covered   what `changes' was when the last commit began that succeeded
 *
 * A loss is one if changes is ahead of covered.  (A local destination is set
 * back only after a flush failed for want of space, which always is one; so
 * its changes are not counted.)
 *
 * THE METADATA'S SERVER.  Steps 3 to 5 hold a lock which commit_metadata_lost
 * takes before a new connection comes into use.  So what step 3 has written is
 * there for step 4 to flush, or step 4 fails.
 */

#ifndef CLONE_COMMIT_H
#define CLONE_COMMIT_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "store/metadata.h"
#include "store/region-map.h"

/* Sectors that one round writes: 4 MiB, 33 million regions. */
#define COMMIT_SECTORS 8192

enum clone_mode {
  MODE_RW,   /* all is well */
  MODE_RO,   /* no region can become valid: see commit_may_set */
  MODE_FAIL, /* the destination is lost: nothing that is valid can be served */
};

struct commit_waiter;

struct commit {
  struct backend *dest;      /* not owned */
  struct metadata *metadata; /* not owned */
  struct region_map *map;    /* not owned */
  const struct log *log;
  bool counts_changes;       /* the destination is a server */
  struct inheritance *inheritance; /* not owned; may be NULL */
  size_t max_sectors;        /* that one round writes: COMMIT_SECTORS, but tests
                              * lower it before the first commit */

  pthread_mutex_t lock;           /* protects what follows */
  bool running;                   /* somebody is in the steps above */
  struct commit_waiter *waiters;  /* those who wait for the next one */

  pthread_mutex_t metadata_lock;  /* held in steps 3 to 5 */

  _Atomic uint64_t commits;       /* rounds that wrote to the metadata */
  _Atomic int flush_error;        /* the destination flush that failed, or 0 */
  _Atomic bool metadata_failed;   /* the last try to write failed */
  _Atomic bool complete;          /* durable bitmap full, flag on disk */

  _Atomic uint64_t changes, covered;
  _Atomic uint64_t losses;

  uint32_t *sectors;              /* the running commit's snapshot */
  uint8_t (*images)[METADATA_SECTOR];
};

/* -1 with errno ENOMEM. */
extern int commit_init (struct commit *c, struct backend *dest,
                        struct metadata *md, struct region_map *map,
                        const struct log *log);
extern void commit_destroy (struct commit *c);

/* Make durable everything that was written to the destination, and every region
 * that became valid, before the call (I6).  The caller is inside the gate. -1
 * with errno EIO, ENOSPC, ENOMEM or ENOTCONN.
 */
extern int commit_flush (struct commit *c);

/* The same, but do nothing where no region is dirty: for the periodic commit,
 * which owes nobody a flush.  When the metadata could not be written before, it
 * tries that again in any case.
 */
extern int commit_background (struct commit *c);

/* After the last commit, which has succeeded: say so in the metadata, unless
 * the mode is not rw.  -1 with errno.
 */
extern int commit_mark_clean (struct commit *c);

/* How long to wait for the next periodic commit, in seconds, after one that
 * took so long.  While it flushes the destination all who write there are slow,
 * so commits have a tenth of the time at most; but no pause is made longer than
 * COMMIT_PAUSE_MAX by that.  Before the first, nobody knows how long one takes:
 * COMMIT_FIRST is what a disk may need to flush a second of copying.
 */
#define COMMIT_PAUSE_MAX 30
#define COMMIT_FIRST 0.3
extern double commit_pause (double interval, double took);

static inline enum clone_mode
commit_mode (struct commit *c)
{
  return c->flush_error || c->metadata_failed ? MODE_RO : MODE_RW;
}

/* May a region become valid now?  False in any mode but rw: a client would be
 * told that a write was done which no flush can ever make durable.
 */
static inline bool
commit_may_set (struct commit *c)
{
  return commit_mode (c) == MODE_RW;
}

/* Is the durable bitmap full, and the metadata's complete flag set? */
static inline bool
commit_is_complete (struct commit *c)
{
  return c->complete;
}

/* A client's change has been done and is not durable, and the client will be
 * told that it is done.  The caller is inside the gate.
 */
static inline void
commit_count_change (struct commit *c)
{
  if (c->counts_changes)
    c->changes++;
}

/* A destination flush has failed in a way that commit_set_back makes good. */
static inline bool
commit_wants_set_back (struct commit *c)
{
  return c->flush_error == ENOSPC || c->flush_error == EDQUOT;
}

/* The destination may have lost everything that is not durable.  Nobody is
 * inside the gate.
 */
extern void commit_set_back (struct commit *c);

/* The metadata's server was lost, and no new connection has come into use.
 * Waits for a commit that is between steps 3 and 5, whose requests fail.
 */
extern void commit_metadata_lost (struct commit *c);

/* How often were changes lost that no flush had made durable? */
static inline uint64_t
commit_losses (struct commit *c)
{
  return c->losses;
}

/* How many commits wrote to the metadata: for tests and statistics. */
static inline uint64_t
commit_count (struct commit *c)
{
  return c->commits;
}

#endif /* CLONE_COMMIT_H */
