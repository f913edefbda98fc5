/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commit: how dirty regions become durable.
 *
 * A commit takes one epoch, a snapshot of the dirty bits, through five steps.
 * A note says what a power cut after the step leaves.  (After a crash of the
 * program alone, see inherit.h.)
 *
 *   1. Snapshot: take the dirty sectors off the map's list and copy their bits.
 *      The bytes of these regions are in the destination, but perhaps only in a
 *      volatile cache.
 *        Power cut: the bitmap is that of the last epoch.  The snapshot's new
 *        regions are invalid again.  No client was told that they are durable.
 *   2. Flush the destination.  Now the bytes of all regions of the snapshot are
 *      durable.  Bits that are set meanwhile are not in the snapshot.
 *        Power cut: as before.  The regions are copied again, which does no
 *        harm.
 *   3. Write the snapshot's sectors to the metadata.
 *        Power cut: any subset of them is on disk.  Each bit there is true.
 *   4. Flush the metadata.
 *        Power cut: all of them are on disk.
 *   5. Mark the snapshot's bits durable in the map.
 *
 * A snapshot takes at most COMMIT_SECTORS dirty sectors, so that its memory is
 * bounded.  If there may be more, the commit repeats the steps in another
 * round, with a snapshot of its own.  After the last round it wakes the threads
 * that wait for it.
 *
 * Group commit: at most one commit runs.  Requests that ask for one while it
 * runs wait for the next commit.  The next commit takes its snapshot after all
 * of these requests have arrived; the thread of one of them runs it for all.
 * Without dirty sectors a commit is step 2 alone.  It does not touch the
 * metadata, unless the last write there has failed, or the clone has become
 * complete.
 *
 * FAILURES
 *
 *   - A server is lost (ENOTCONN): the commit fails with that error, and its
 *     sectors are dirty again.  The request may be repeated when the server is
 *     back.
 *   - Step 2 fails because the destination is full (ENOSPC, EDQUOT): the file
 *     system has dropped data that it could not allocate space for.  The mode
 *     is ro until the map has been set back (see below).
 *   - Step 2 fails with another error: Linux may have dropped dirty pages, and
 *     reports that only once, to this flush.  A later flush would succeed.  It
 *     would acknowledge writes whose data is gone, and make bits durable of
 *     regions whose data is gone.  So from now on every flush fails and no bit
 *     is written, whether the clone is complete or not.  The mode is ro.  This
 *     ends when the clone is opened again, or when the destination's server is
 *     lost and the map is set back.
 *   - Step 3 or 4 fails: the data is durable, the bits are not.  Their sectors
 *     are dirty again, so that the next commit writes them again.  The mode is
 *     ro until a commit succeeds.  Each commit tries to write, even if no
 *     sector is dirty.
 *
 * All requests that wait for a commit get its error.  A failure makes no region
 * invalid.
 *
 * SETTING BACK.  Two kinds of destination may have dropped what was not
 * flushed: one whose server was lost and is back, and one that is full.  The
 * process survives, but the outcome is that of a power cut of the destination:
 * regions that are not durable become invalid (region_map_forget), and writes
 * that were not flushed are gone, also those to durable regions.  The caller of
 * commit_set_back has made sure that nothing is inside the gate (gate.h).  So
 * no commit runs, no request is between its look at the map and its call of the
 * destination, and nothing that was meant for an earlier incarnation of the
 * server is written to the next one.
 *
 * A later flush would succeed, so clients must be told in another way.
 * commit_set_back counts a setback if and only if clients' changes may be gone.
 * Clients learn of it from their next flush (clone_flush).  Two counters
 * decide:
 *
 *   changes   the number of successful changes without FUA, counted inside the
 *             gate, before the client is told
 *   covered   the value of `changes' at the start of the last commit that
 *             succeeded
 *
 * Changes may be gone if these two differ.  (Changes of a local destination are
 * not counted.  For it, the map is set back only after a flush that failed
 * because the destination is full, and that always counts as a setback.)
 *
 * THE METADATA'S SERVER.  A commit holds a lock in steps 3 to 5.  After that
 * server was lost, commit_metadata_lost takes the lock before the new
 * connection comes into use.  So steps 3 and 4 never reach two incarnations of
 * the server: if it is lost between them, step 4 fails.
 */

#ifndef CLONE_COMMIT_H
#define CLONE_COMMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"
#include "store/metadata.h"
#include "store/region-map.h"

/* The sectors of one round: 4 MiB, 33 million regions. */
#define COMMIT_SECTORS 8192

enum clone_mode {
  MODE_RW,   /* all is well */
  MODE_RO,   /* no region can become valid: see commit_may_set */
  MODE_FAIL, /* the destination is lost: valid regions cannot be served */
};

struct commit;
struct inheritance;

/* The objects are not owned, and outlive the commit.  NULL with errno ENOMEM.
 */
extern struct commit *commit_new (struct backend *dest, struct metadata *md,
                                  struct region_map *map,
                                  const struct log *log);
extern void commit_free (struct commit *c); /* NULL is allowed */

/* The inheritance to tell of failures and of completion.  Not owned; NULL is
 * allowed.  Set before the first commit, and valid until the last.
 */
extern void commit_set_inheritance (struct commit *c, struct inheritance *i);

/* For tests: make rounds of at most this many sectors, up to COMMIT_SECTORS.
 * Called before the first commit.
 */
extern void commit_limit_round (struct commit *c, size_t max_sectors);

/* ---- committing ---- */

/* Make durable all that was written to the destination, and all regions that
 * became valid, before the call (I6).  The caller is inside the gate.  -1 with
 * errno EIO, ENOSPC, ENOMEM or ENOTCONN.
 */
extern int commit_flush (struct commit *c);

/* The periodic commit: the same, but without dirty regions it does nothing,
 * because no client waits for a flush.  If the last write to the metadata has
 * failed, it runs even then.
 */
extern int commit_background (struct commit *c);

/* After the last commit, which has succeeded: if the mode is rw, set the clean
 * flag.  -1 with errno.
 */
extern int commit_mark_clean (struct commit *c);

/* The pause before the next periodic commit, in seconds, if the last one took
 * `took' seconds.  Writes to the destination are slow while it is flushed.  So
 * the pause is ten times `took', but at most COMMIT_PAUSE_MAX, and it is at
 * least `interval'.  For the first pause pass COMMIT_FIRST, the time that a
 * disk may need to flush what is copied in a second.
 */
#define COMMIT_PAUSE_MAX 30
#define COMMIT_FIRST 0.3
extern double commit_pause (double interval, double took);

/* ---- state; from any thread, without a lock ---- */

extern enum clone_mode commit_mode (const struct commit *c);

/* May a region become valid?  Only in mode rw.  In another mode a client would
 * be told that its write is done, although no flush can make it durable.
 */
extern bool commit_may_set (const struct commit *c);

/* Are the durable bitmap full and the complete flag set? */
extern bool commit_is_complete (const struct commit *c);

/* The number of rounds that wrote to the metadata: for tests and statistics. */
extern uint64_t commit_rounds (const struct commit *c);

/* The number of calls of commit_flush that have ended, and how many of them a
 * commit has served that another call ran.
 */
extern void commit_get_flushes (struct commit *c, uint64_t *flushes,
                                uint64_t *shared);

/* 0, or the errno of the flush of the destination that has failed, after which
 * the mode is ro.
 */
extern int commit_flush_error (const struct commit *c);

/* The number of flushes that wait for the next commit, for tests. */
extern unsigned commit_count_waiting (struct commit *c);

/* ---- setting back ---- */

/* Count a client's change that is done and not durable, before the client is
 * told that it is done.  The caller is inside the gate.
 */
extern void commit_count_change (struct commit *c);

/* Has a flush of the destination failed because it is full? */
extern bool commit_wants_set_back (const struct commit *c);

/* Make all regions invalid that are not durable, count a setback if clients'
 * changes may be gone, and forget a failed flush.  Called when the destination
 * may have dropped everything that is not durable.  Nothing is inside the gate.
 */
extern void commit_set_back (struct commit *c);

/* The number of times that clients' changes may be gone. */
extern uint64_t commit_setbacks (const struct commit *c);

/* The metadata's server was lost, and no new connection has come into use.
 * Waits until no commit is in steps 3 to 5.  That is soon, because the commit's
 * requests to the lost server fail.
 */
extern void commit_metadata_lost (struct commit *c);

#endif /* CLONE_COMMIT_H */
