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
 * is step 2 alone, and the metadata is not touched.
 *
 * FAILURES
 *
 *   - Step 2 fails: Linux may have dropped dirty pages, and would report that
 *     once only, to this flush.  Whoever else wrote some of them would be told
 *     that the next flush succeeded, and bits would be committed whose data are
 *     gone.  So no flush succeeds and no bit is written any more until the disk
 *     is opened again, complete or not.  The mode becomes ro, for good.
 *   - Step 3 or 4 fails: the data are durable, the bits are not.  Their
 *     sectors become dirty again, for the next commit to write anew.  The mode
 *     becomes ro until one succeeds.
 *
 * Whoever waits for the commit gets EIO.  The map is not touched by a failure:
 * what is valid stays valid.
 *
 * A LOST DESTINATION.  A server of the destination that is reached again may
 * have crashed, and have lost what it had not flushed.  That is a power cut of
 * the destination which the process survives, and it has the same outcome: the
 * regions that are not durable become invalid (region_map_forget), and what was
 * written and not flushed is gone, in valid regions too.  A later flush would
 * not tell, so it is told here: `losses' counts, for clone_flush, how often
 * that happened to changes that clients had been told were done.
 *
 * The time between two losses is an incarnation of the destination.  What has
 * been written in one incarnation is not there in the next, so
 *
 *   - whoever made regions valid names the incarnation in which their bytes
 *     were written, or an earlier one: commit_set_valid does nothing when that
 *     is over;
 *   - whoever looks at the map, and then reads or writes what was valid, looks
 *     at the incarnation before and after, and begins again when another has
 *     begun: no request reaches the server of the next incarnation before the
 *     map has forgotten;
 *   - a commit whose steps 1 and 2 were not in one incarnation begins again,
 *     and no other begins from step 3 to step 5.
 */

#ifndef CLONE_COMMIT_H
#define CLONE_COMMIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "metadata.h"
#include "region-map.h"

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

  pthread_mutex_t lock;           /* protects what follows */
  bool running;                   /* somebody is in the steps above */
  struct commit_waiter *waiters;  /* those who wait for the next one */

  _Atomic uint64_t commits;       /* rounds that wrote to the metadata */
  _Atomic int mode;               /* enum clone_mode */
  bool lost;                      /* a destination flush has failed; only the
                                   * running commit looks at it */
  _Atomic bool metadata_failed;   /* the last try to write failed */
  _Atomic bool complete;          /* durable bitmap full, flag on disk */

  /* Write-locked while another incarnation begins.  The only lock that is held
   * across I/O, that of steps 3 and 4.
   */
  pthread_rwlock_t incarnation_lock;
  _Atomic uint64_t incarnation;   /* from 1 */
  _Atomic uint64_t losses;
  _Atomic bool unflushed;         /* clients' changes since the last snapshot */
  _Atomic bool flushing;          /* and those that a commit is flushing */

  uint32_t *sectors;              /* the running commit's snapshot */
  uint8_t (*images)[METADATA_SECTOR];
};

/* -1 with errno ENOMEM. */
extern int commit_init (struct commit *c, struct backend *dest,
                        struct metadata *md, struct region_map *map,
                        const struct log *log);
extern void commit_destroy (struct commit *c);

/* Make durable everything that was written to the destination, and every
 * region that became valid, before the call (I6).  -1 with errno EIO.
 */
extern int commit_flush (struct commit *c);

/* The same, but do nothing where no region is dirty and nothing is left to
 * retry: for the periodic commit, which owes nobody a flush.
 */
extern int commit_background (struct commit *c);

/* How long to wait for the next periodic commit, in seconds, after one that
 * took so long.  While it flushes the destination all who write there are slow,
 * so commits have a tenth of the time at most; but no pause is made longer than
 * COMMIT_PAUSE_MAX by that.  Before the first, nobody knows how long one takes:
 * COMMIT_FIRST is what a disk may need to flush a second of copying.
 */
#define COMMIT_PAUSE_MAX 30
#define COMMIT_FIRST 0.3
extern double commit_pause (double interval, double took);

/* May a region become valid now?  False in any mode but rw: a client would be
 * told that a write was done which no flush can ever make durable.
 */
extern bool commit_may_set (struct commit *c);

extern enum clone_mode commit_mode (struct commit *c);

/* Is the durable bitmap full, and the metadata's complete flag set? */
extern bool commit_is_complete (struct commit *c);

/* Which incarnation of the destination this is. */
extern uint64_t commit_incarnation (struct commit *c);

/* Make regions valid, whose bytes were written in this incarnation or later.
 * False, and nothing is done, where it is over.
 */
extern bool commit_set_valid (struct commit *c, uint64_t incarnation,
                              uint64_t first, uint64_t count);

/* A client's change has been done, and the client will be told so. */
extern void commit_changed (struct commit *c);

/* The destination's server was lost, and nothing has reached it again yet.  May
 * wait for the metadata.
 */
extern void commit_destination_lost (struct commit *c);

/* How often were changes lost that no flush had made durable? */
extern uint64_t commit_losses (struct commit *c);

/* How many commits wrote to the metadata: for tests and statistics. */
extern uint64_t commit_count (struct commit *c);

#endif /* CLONE_COMMIT_H */
