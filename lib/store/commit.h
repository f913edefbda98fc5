/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commit: how dirty regions become durable.
 *
 * One commit takes one epoch, the bits that are dirty when it begins, through
 * five steps.  Each has a note on what a crash after it leaves.
 *
 *   1. Snapshot: take the dirty sectors off the map's list and copy their bits.
 *      The data of each of these bits are in the destination, but perhaps only
 *      in a volatile cache.
 *        Crash: the bitmap is that of the last epoch.  The new regions are
 *        invalid again.  No client was told that they are durable.
 *   2. Flush the destination.  Now the data of each bit of the snapshot are
 *      durable.  Bits that are set meanwhile are not in the snapshot.
 *        Crash: as before.  The regions are copied again, which does no harm.
 *   3. Write the snapshot's sectors to the metadata.
 *        Crash: any subset of them is on disk.  Each bit there is true.
 *   4. Flush the metadata.
 *        Crash: all of them are on disk.
 *   5. Mark the snapshot's bits durable in the map, and wake the waiters.
 *
 * If an epoch has more than COMMIT_SECTORS dirty sectors, the commit repeats
 * the steps, in several rounds, so that snapshots take a constant amount of
 * memory.
 *
 * Group commit: at most one commit runs.  Requests that ask for one while it
 * runs wait for the next.  Its snapshot is taken after all of these requests
 * have arrived, and one of them runs it for all.  Without dirty sectors a
 * commit is step 2 alone.  It does not touch the metadata, unless the last
 * write there failed.
 *
 * FAILURES
 *
 *   - A server is lost (ENOTCONN): the commit fails with that error, and its
 *     sectors are dirty again.  The request may be repeated when the server is
 *     back.
 *   - Step 2 fails because the destination is full (ENOSPC, EDQUOT): it has
 *     dropped what it could not allocate.  The mode is ro until the map has
 *     been set back (see below).
 *   - Step 2 fails with another error: Linux may have dropped dirty pages, and
 *     reports that only once, to this flush.  A later flush would succeed.  It
 *     would acknowledge writes, and commit bits, whose data are gone.  So from
 *     now on every flush fails and no bit is written, whether the clone is
 *     complete or not.  Only opening the disk again, or a new start of its
 *     server, ends this.  The mode becomes ro.
 *   - Step 3 or 4 fails: the data are durable, the bits are not.  Their sectors
 *     are dirty again, so that the next commit writes them again.  The mode is
 *     ro until a commit succeeds.  Each commit tries to write, even if no
 *     sector is dirty.
 *
 * All waiters of a commit get its error.  A failure does not touch the map:
 * valid regions stay valid.
 *
 * SETTING BACK.  A destination that was lost and is back may have dropped what
 * it had not flushed.  The process survives, but the outcome is that of a power
 * cut of the destination: regions that are not durable become invalid
 * (region_map_forget), and writes that were not flushed are gone, also those to
 * durable regions.  The caller of commit_set_back has made sure
 * that nothing is inside the gate (gate.h).  So no commit runs, no request is
 * between its look at the map and its call of the destination, and no data of
 * an earlier incarnation of the server are written to the next one.
 *
 * A later flush would succeed, so clients must be told in another way.
 * commit_set_back counts a setback if and only if clients' changes may be gone.
 * Clients learn of it from their next flush (clone_flush).  Two counters
 * decide:
 *
 *   changes   the changes that clients were told are done, counted inside the
 *             gate
 *   covered   the value of `changes' at the start of the last commit that
 *             succeeded
 *
 * Changes may be gone if these two differ.  (Changes of a local destination are
 * not counted.  It is set back only after a flush failed because it is full,
 * and that always is a setback.)
 *
 * THE METADATA'S SERVER.  A commit holds a lock in steps 3 to 5.  After that
 * server was lost, commit_metadata_lost takes the lock before the new
 * connection comes into use.  So either what step 3 has written is there for
 * step 4 to flush, or step 4 fails.
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
 * because no client waits for a flush.  If the metadata could not be written
 * before, it tries that again in any case.
 */
extern int commit_background (struct commit *c);

/* After the last commit, which has succeeded: set the clean flag, unless the
 * mode is not rw.  -1 with errno.
 */
extern int commit_mark_clean (struct commit *c);

/* The pause before the next periodic commit, in seconds, after one that took so
 * long.  Writes to the destination are slow while it is flushed, so periodic
 * commits take at most a tenth of the time; but that makes no pause longer than
 * COMMIT_PAUSE_MAX.  For the first pause pass COMMIT_FIRST, the time that a
 * disk may need to flush what is copied in a second.
 */
#define COMMIT_PAUSE_MAX 30
#define COMMIT_FIRST 0.3
extern double commit_pause (double interval, double took);

/* ---- state; from any thread, without a lock ---- */

extern enum clone_mode commit_mode (const struct commit *c);

/* May a region become valid?  Only in mode rw: else a client would be told that
 * a write is done which no flush can ever make durable.
 */
extern bool commit_may_set (const struct commit *c);

/* Are the durable bitmap full and the complete flag set? */
extern bool commit_is_complete (const struct commit *c);

/* The number of rounds that wrote to the metadata: for tests and statistics. */
extern uint64_t commit_count (const struct commit *c);

/* The number of flushes that wait for the next commit, for tests. */
extern unsigned commit_count_waiting (struct commit *c);

/* ---- setting back ---- */

/* A client's change is done and not durable, and the client will be told that
 * it is done.  The caller is inside the gate.
 */
extern void commit_count_change (struct commit *c);

/* Has a flush of the destination failed because it is full? */
extern bool commit_wants_set_back (const struct commit *c);

/* The destination may have dropped everything that is not durable.  Nothing is
 * inside the gate.
 */
extern void commit_set_back (struct commit *c);

/* The number of times that clients' changes may be gone. */
extern uint64_t commit_setbacks (const struct commit *c);

/* The metadata's server was lost, and no new connection has come into use.
 * Waits for a commit that is in steps 3 to 5; its requests fail.
 */
extern void commit_metadata_lost (struct commit *c);

#endif /* CLONE_COMMIT_H */
