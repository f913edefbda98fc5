/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves the commit's order (snapshot, flush the destination, write the bitmap,
 * flush the metadata); that exactly the snapshot becomes durable; which
 * requests share a commit; and what remains true if a device fails (I5, I6, I8,
 * I10).
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "base/rounding.h"
#include "mock-backend.h"
#include "run-suite.h"
#include "store/bitmap.h"
#include "store/commit.h"
#include "store/metadata.h"
#include "store/region-map.h"
#include "store/superblock.h"

#define SECTORS 20
#define REGION UINT64_C (4096)
#define BITMAP UINT64_C (8192)

/* Threads that ask for a commit while one runs. */
#define LATE 15

/* Region number r of bitmap sector s. */
#define IN(s, r) ((uint64_t)(s) * REGIONS_PER_SECTOR + (r))

static struct mock_log *history;
static struct mock *dest, *meta;
static struct metadata *md;
static struct region_map *map;
static struct commit *commit;

static void
open_store (uint64_t regions)
{
  const struct superblock sb = {
    .size = regions * REGION, .region_size = REGION
  };

  history = mock_log_new (false);
  /* Commits only flush it. */
  dest = mock_new (history, "destination", 4096, false);
  mock_set_server (dest);
  meta = mock_new (history, "metadata",
                   metadata_store_size (sb.size, REGION), false);
  mock_set_server (meta);
  md = metadata_create (mock_backend (meta), &sb, &mock_messages);
  ck_assert_ptr_nonnull (md);
  ck_assert_int_eq (metadata_set_flags (md, 0), 0);
  map = region_map_new (sb.size, REGION);
  commit = commit_new (mock_backend (dest), md, map, &mock_messages);
  ck_assert_ptr_nonnull (commit);
  mock_log_clear (history);
}

static void
setup (void)
{
  open_store (SECTORS * (uint64_t)REGIONS_PER_SECTOR);
}

static void
teardown (void)
{
  commit_free (commit);
  region_map_free (map);
  metadata_close (md);
  mock_free (meta);
  mock_free (dest);
  mock_log_free (history);
}

/* Is the region's bit durable in the metadata? */
static bool
on_medium (uint64_t region)
{
  uint64_t words[WORDS_PER_SECTOR];
  uint32_t s = region / REGIONS_PER_SECTOR;
  unsigned bit = region % REGIONS_PER_SECTOR;

  ck_assert_int_eq (metadata_decode (md, s, mock_durable (meta) + BITMAP +
                                     s * METADATA_SECTOR, words), 0);
  return words[bit / 64] >> (bit % 64) & 1;
}

static uint64_t
bits_on_medium (void)
{
  uint64_t words[WORDS_PER_SECTOR], n = 0;

  for (uint32_t s = 0; s < region_map_sectors (map); ++s) {
    ck_assert_int_eq (metadata_decode (md, s, mock_durable (meta) + BITMAP +
                                       s * METADATA_SECTOR, words), 0);
    for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
      n += __builtin_popcountll (words[i]);
  }
  return n;
}

/* A commit on a thread of its own. */
struct caller {
  struct mock_thread *thread;
  uint64_t region;
  int result, error;
  bool durable;      /* the region was durable when the commit was over */
};

static void
call_flush (void *opaque)
{
  struct caller *c = opaque;

  c->result = commit_flush (commit);
  c->error = errno;
  c->durable = region_map_is_durable (map, c->region, 1);
}

static void
start_flush (struct caller *c, uint64_t region)
{
  *c = (struct caller){ .region = region };
  c->thread = mock_thread (call_flush, c);
}

static int
wait_for (struct caller *c)
{
  mock_join (c->thread);
  return c->result;
}

static bool
keep_none (uint64_t sector, void *opaque)
{
  return false;
}

/* Setting back forgets the regions that are not durable.  A setback is counted
 * if and only if clients had made changes that no successful commit covered.
 */
START_TEST (set_back)
{
  region_map_set (map, IN (0, 5), 1);
  commit_count_change (commit);
  ck_assert_int_eq (commit_flush (commit), 0);
  region_map_set (map, IN (2, 0), 1);
  commit_set_back (commit);
  ck_assert_uint_eq (commit_setbacks (commit), 0);
  ck_assert (region_map_is_valid (map, IN (0, 5)));
  ck_assert (!region_map_is_valid (map, IN (2, 0)));

  commit_count_change (commit);
  commit_set_back (commit);
  ck_assert_uint_eq (commit_setbacks (commit), 1);
  commit_set_back (commit);
  ck_assert_uint_eq (commit_setbacks (commit), 1);

  region_map_set (map, IN (3, 0), 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert (on_medium (IN (0, 5)));
  ck_assert (on_medium (IN (3, 0)));
  ck_assert_uint_eq (bits_on_medium (), 2);
}
END_TEST

/* A commit that fails in any step covers no changes, so that setting back
 * counts a setback.  For example, the periodic commit flushes the destination
 * and cannot write the metadata; then the destination's server is lost, and the
 * changed region is forgotten although its data is there.
 */
START_TEST (failed_commit_covers_nothing)
{
  region_map_set (map, IN (0, 5), 1);
  commit_count_change (commit);
  mock_fail (meta, _i == 0 ? MOCK_PWRITE : MOCK_FLUSH, MOCK_ANYWHERE, 1, 1,
             EIO);
  ck_assert_int_eq (commit_background (commit), -1);
  commit_set_back (commit);
  ck_assert (!region_map_is_valid (map, IN (0, 5)));
  ck_assert_uint_eq (commit_setbacks (commit), 1);
}
END_TEST

/* The destination's server is lost between two rounds of a commit.  The changes
 * are not covered, although the first round has made some of them durable.  The
 * next commit covers them.
 */
START_TEST (lost_between_rounds)
{
  struct mock_gate *gate = mock_gate (dest, MOCK_FLUSH, MOCK_ANYWHERE, 2);
  struct caller c;

  commit_limit_round (commit, 1);
  region_map_set (map, IN (0, 5), 1);
  region_map_set (map, IN (1, 5), 1);
  commit_count_change (commit);
  start_flush (&c, IN (0, 5));
  mock_gate_wait (gate);
  ck_assert_uint_eq (region_map_count_durable (map), 1);
  mock_server_crash (dest, keep_none, NULL);
  ck_assert_int_eq (wait_for (&c), -1);
  ck_assert_int_eq (c.error, ENOTCONN);
  commit_set_back (commit);
  ck_assert_uint_eq (commit_setbacks (commit), 1);
  ck_assert_uint_eq (region_map_count_valid (map), 1);

  mock_server_back (dest);
  commit_count_change (commit);
  region_map_set (map, IN (0, 5), 1);
  region_map_set (map, IN (1, 5), 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  commit_set_back (commit);
  ck_assert_uint_eq (commit_setbacks (commit), 1);
  ck_assert_uint_eq (region_map_count_valid (map), 2);
}
END_TEST

/* The destination's server is lost while a commit flushes it.  The commit
 * fails, its waiters get the error, and its sectors are dirty again.
 */
START_TEST (lost_while_flushing)
{
  struct mock_gate *gate = mock_gate (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);
  struct caller c;

  region_map_set (map, IN (0, 5), 1);
  start_flush (&c, IN (0, 5));
  mock_gate_wait (gate);
  mock_server_crash (dest, keep_none, NULL);
  ck_assert_int_eq (wait_for (&c), -1);
  ck_assert_int_eq (c.error, ENOTCONN);
  ck_assert (!c.durable);
  ck_assert (region_map_is_dirty (map));
  ck_assert_int_eq (commit_mode (commit), MODE_RW);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert_int_eq (errno, ENOTCONN);
  ck_assert_uint_eq (bits_on_medium (), 0);
  mock_server_back (dest);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert (on_medium (IN (0, 5)));
}
END_TEST

static void
lose_metadata (void *opaque)
{
  _Atomic bool *returned = opaque;

  commit_metadata_lost (commit);
  *returned = true;
}

/* commit_metadata_lost, which is called before a new connection to the metadata
 * comes into use, waits for a commit in steps 3 to 5.
 */
START_TEST (metadata_loss_waits_for_steps)
{
  struct mock_gate *gate = mock_gate (meta, MOCK_PWRITE, MOCK_ANYWHERE, 1);
  struct mock_gate *flush = mock_gate (meta, MOCK_FLUSH, MOCK_ANYWHERE, 1);
  _Atomic bool returned = false;
  struct mock_thread *loss;
  struct caller c;

  region_map_set (map, IN (0, 5), 1);
  start_flush (&c, IN (0, 5));
  mock_gate_wait (gate);
  loss = mock_thread (lose_metadata, &returned);
  mock_gate_open (gate);
  mock_gate_wait (flush);
  mock_settle ();
  ck_assert (!returned);
  mock_gate_open (flush);
  ck_assert_int_eq (wait_for (&c), 0);
  mock_join (loss);
  ck_assert (on_medium (IN (0, 5)));
}
END_TEST

/* The metadata's server is lost between step 3 and step 4.  The commit fails
 * without a message, because no disk has failed, and the next one repeats both
 * steps.
 */
START_TEST (lost_metadata)
{
  struct mock_gate *gate = mock_gate (meta, MOCK_FLUSH, MOCK_ANYWHERE, 1);
  const unsigned errors = mock_errors ();
  struct caller c;

  region_map_set (map, IN (0, 5), 1);
  start_flush (&c, IN (0, 5));
  mock_gate_wait (gate);
  mock_server_crash (meta, keep_none, NULL);
  ck_assert_int_eq (wait_for (&c), -1);
  ck_assert_int_eq (c.error, ENOTCONN);
  ck_assert (!c.durable);
  ck_assert (commit_may_set (commit));
  mock_server_back (meta);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert (on_medium (IN (0, 5)));
  ck_assert_uint_eq (mock_errors (), errors);
}
END_TEST

/* Each step begins after the last one ended.  Adjacent sectors are one segment
 * of one write, and no other sector is written.
 */
START_TEST (order)
{
  const struct mock_call *c[3];

  region_map_set (map, IN (0, 5), 1);
  region_map_set (map, IN (2, 0), 1);
  region_map_set (map, IN (3, 4031), 1);
  ck_assert_int_eq (commit_flush (commit), 0);

  ck_assert_uint_eq (mock_log_len (history), 3);
  for (size_t i = 0; i < 3; ++i)
    c[i] = mock_log_call (history, i);
  ck_assert (c[0]->mock == dest && c[0]->kind == MOCK_FLUSH);
  ck_assert (c[1]->mock == meta && c[1]->kind == MOCK_PWRITE);
  ck_assert (c[2]->mock == meta && c[2]->kind == MOCK_FLUSH);
  ck_assert_uint_lt (c[0]->end, c[1]->start);
  ck_assert_uint_lt (c[1]->end, c[2]->start);

  ck_assert_uint_eq (c[1]->n, 2);
  ck_assert_uint_eq (c[1]->range[0].offset, BITMAP);
  ck_assert_uint_eq (c[1]->range[0].count, 512);
  ck_assert_uint_eq (c[1]->range[1].offset, BITMAP + 2 * 512);
  ck_assert_uint_eq (c[1]->range[1].count, 2 * 512);

  ck_assert (on_medium (IN (0, 5)));
  ck_assert (on_medium (IN (2, 0)));
  ck_assert (on_medium (IN (3, 4031)));
  ck_assert_uint_eq (bits_on_medium (), 3);
  ck_assert_uint_eq (region_map_count_durable (map), 3);
  ck_assert_uint_eq (commit_rounds (commit), 1);
  ck_assert_int_eq (commit_mode (commit), MODE_RW);
}
END_TEST

/* Bits that are set while the destination is being flushed, in a sector of the
 * snapshot or in another one, are not written by that commit, because the flush
 * may not cover their data.  The next commit writes them.
 */
START_TEST (snapshot_is_taken_before_the_flush)
{
  struct caller a;
  struct mock_gate *gate = mock_gate (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);

  region_map_set (map, IN (1, 100), 1);
  start_flush (&a, IN (1, 100));
  mock_gate_wait (gate);
  region_map_set (map, IN (1, 101), 1);
  region_map_set (map, IN (7, 0), 1);
  mock_gate_open (gate);
  ck_assert_int_eq (wait_for (&a), 0);
  ck_assert (a.durable);

  ck_assert (on_medium (IN (1, 100)));
  ck_assert_uint_eq (bits_on_medium (), 1);
  ck_assert (!region_map_is_durable (map, IN (1, 101), 1));
  ck_assert (!region_map_is_durable (map, IN (7, 0), 1));
  ck_assert (region_map_is_dirty (map));

  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert_uint_eq (bits_on_medium (), 3);
  ck_assert_uint_eq (region_map_count_durable (map), 3);
}
END_TEST

/* The same for bits that are set in later steps. */
START_TEST (snapshot_does_not_grow)
{
  static const enum mock_kind kinds[] = { MOCK_PWRITE, MOCK_FLUSH };
  struct caller a;

  for (unsigned i = 0; i < 2; ++i) {
    struct mock_gate *gate = mock_gate (meta, kinds[i], MOCK_ANYWHERE, 1);

    region_map_set (map, IN (i, 0), 1);
    start_flush (&a, IN (i, 0));
    mock_gate_wait (gate);
    region_map_set (map, IN (i, 1), 1);
    mock_gate_open (gate);
    ck_assert_int_eq (wait_for (&a), 0);
    ck_assert (on_medium (IN (i, 0)));
    ck_assert (!on_medium (IN (i, 1)));
    ck_assert (!region_map_is_durable (map, IN (i, 1), 1));
  }
}
END_TEST

static bool
all_late_wait (void *opaque)
{
  return commit_count_waiting (commit) == LATE;
}

/* All flushes that arrive while a commit runs share the next one, whose
 * snapshot has their bits.  None of them ends with the running commit.  So 16
 * clients that write and flush cause two commits.
 */
START_TEST (group_commit)
{
  struct caller first, late[LATE];
  struct mock_gate *gate = mock_gate (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);

  region_map_set (map, IN (0, 0), 1);
  start_flush (&first, IN (0, 0));
  mock_gate_wait (gate);
  for (unsigned i = 0; i < LATE; ++i) {
    region_map_set (map, IN (0, i + 1), 1);
    start_flush (&late[i], IN (0, i + 1));
  }
  mock_wait_until (all_late_wait, NULL);
  mock_gate_open (gate);
  ck_assert_int_eq (wait_for (&first), 0);
  for (unsigned i = 0; i < LATE; ++i) {
    ck_assert_int_eq (wait_for (&late[i]), 0);
    ck_assert (late[i].durable);
  }
  ck_assert_uint_eq (mock_count (dest, MOCK_FLUSH), 2);
  ck_assert_uint_eq (mock_count (meta, MOCK_PWRITE), 2);
  ck_assert_uint_eq (commit_rounds (commit), 2);
  ck_assert_uint_eq (region_map_count_durable (map), 1 + LATE);
}
END_TEST

/* A flush that arrives during a commit waits for a flush of the destination
 * that begins later, even if no region is dirty: the client's data may have
 * been written after the running flush began.
 */
START_TEST (late_flush_is_a_new_flush)
{
  struct caller first, second;
  struct mock_gate *gate = mock_gate_after (dest, MOCK_FLUSH, MOCK_ANYWHERE,
                                            1);

  start_flush (&first, 0);
  mock_gate_wait (gate);
  start_flush (&second, 0);
  mock_settle ();
  ck_assert_uint_eq (mock_count (dest, MOCK_FLUSH), 1);
  mock_gate_open (gate);
  ck_assert_int_eq (wait_for (&first), 0);
  ck_assert_int_eq (wait_for (&second), 0);
  ck_assert_uint_eq (mock_count (dest, MOCK_FLUSH), 2);
}
END_TEST

/* Without dirty regions a commit only flushes the destination, and the periodic
 * commit does nothing.
 */
START_TEST (clean_commit_leaves_metadata_alone)
{
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert_uint_eq (mock_log_len (history), 1);
  ck_assert_uint_eq (mock_count (dest, MOCK_FLUSH), 1);

  region_map_set (map, 1, 1);
  ck_assert_int_eq (commit_background (commit), 0);
  ck_assert (on_medium (1));
  mock_log_clear (history);
  ck_assert_int_eq (commit_background (commit), 0);
  ck_assert_uint_eq (mock_log_len (history), 0);
  ck_assert_uint_eq (commit_rounds (commit), 1);
}
END_TEST

/* After a failed flush of the destination no commit writes any bit, of that
 * snapshot or of a later one, even though the next flush would succeed: Linux
 * may have dropped the data.  Each later flush of a client fails.
 */
START_TEST (failed_flush_is_for_good)
{
  const unsigned errors = mock_errors ();

  region_map_set (map, 1, 1);
  ck_assert_int_eq (commit_flush (commit), 0);

  region_map_set (map, 2, 1);
  mock_log_clear (history);
  mock_fail (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (commit_mode (commit), MODE_RO);
  ck_assert (!commit_may_set (commit));

  /* A change that was under way. */
  region_map_set (map, IN (5, 3), 1);
  for (unsigned i = 0; i < 3; ++i) {
    errno = 0;
    ck_assert_int_eq (commit_flush (commit), -1);
    ck_assert_int_eq (errno, EIO);
    ck_assert_int_eq (commit_background (commit), -1);
  }
  ck_assert_int_eq (commit_mode (commit), MODE_RO);
  ck_assert_uint_eq (mock_count (meta, MOCK_PWRITE), 0);
  ck_assert_uint_eq (mock_count (meta, MOCK_FLUSH), 0);
  ck_assert_uint_eq (bits_on_medium (), 1);
  ck_assert_uint_eq (region_map_count_durable (map), 1);
  /* The map does not change. */
  ck_assert (region_map_is_valid (map, 2));
  ck_assert_uint_eq (mock_errors (), errors + 1);
}
END_TEST

/* The same for bits that were set while the failing flush ran, and for waiters
 * of the next commit: a later flush that succeeds does not save their bits.
 */
START_TEST (failed_flush_concerns_later_bits)
{
  struct caller first, second;
  struct mock_gate *gate = mock_gate (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);

  mock_fail (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  region_map_set (map, 2, 1);
  start_flush (&first, 2);
  mock_gate_wait (gate);
  region_map_set (map, 3, 1);
  start_flush (&second, 3);
  mock_settle ();
  mock_gate_open (gate);
  ck_assert_int_eq (wait_for (&first), -1);
  ck_assert_int_eq (wait_for (&second), -1);
  ck_assert_int_eq (first.error, EIO);
  ck_assert_int_eq (second.error, EIO);
  ck_assert_uint_eq (mock_count (meta, MOCK_PWRITE), 0);
  ck_assert_uint_eq (bits_on_medium (), 0);
}
END_TEST

/* The same if no region was dirty when the flush failed: Linux reports dropped
 * data once, and another client's next flush would succeed without them.
 */
START_TEST (failed_flush_without_dirty_regions)
{
  region_map_set (map, 1, 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  mock_fail (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert (!commit_may_set (commit));
  mock_log_clear (history);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert_uint_eq (mock_count (dest, MOCK_FLUSH), 0);
  ck_assert (!commit_may_set (commit));
}
END_TEST

/* If the periodic commit's flush fails, the next flush of a client fails, too,
 * even if all valid regions are durable.
 */
START_TEST (failed_background_flush_is_told)
{
  region_map_set (map, 1, 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  region_map_put_dirty (map, 0);
  mock_fail (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (commit_background (commit), -1);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert_int_eq (errno, EIO);
}
END_TEST

/* A flush fails for want of space.  The client gets that error, later flushes
 * make nothing durable, and after the map was set back everything works again.
 * It is a setback even if no change was counted.
 */
START_TEST (no_space)
{
  region_map_set (map, IN (0, 5), 1);
  mock_fail (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, _i == 0 ? ENOSPC : EDQUOT);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_int_eq (commit_mode (commit), MODE_RO);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert (commit_wants_set_back (commit));

  commit_set_back (commit);
  ck_assert (!commit_wants_set_back (commit));
  ck_assert_uint_eq (commit_setbacks (commit), 1);
  ck_assert_int_eq (commit_mode (commit), MODE_RW);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert_uint_eq (bits_on_medium (), 0);
}
END_TEST

/* After a failed write of the metadata each commit tries to write it, even if
 * no region is dirty because the map was set back: the periodic commit, and a
 * client's flush if there is none.  That flush does not fail, because it has
 * nothing to write.
 */
START_TEST (failed_metadata_is_tried_with_nothing_dirty)
{
  region_map_set (map, IN (0, 7), 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  region_map_set (map, IN (0, 5), 1);
  mock_fail (meta, MOCK_PWRITE, MOCK_ANYWHERE, 1, 2, EIO);
  ck_assert_int_eq (commit_flush (commit), -1);
  commit_set_back (commit);
  ck_assert_int_eq (commit_mode (commit), MODE_RO);
  for (unsigned i = 0; i < 2; ++i) {
    ck_assert_int_eq (commit_mode (commit), MODE_RO);
    ck_assert_int_eq (_i ? commit_background (commit)
                      : commit_flush (commit), 0);
  }
  ck_assert_int_eq (commit_mode (commit), MODE_RW);
  ck_assert (on_medium (IN (0, 7)));
  ck_assert_uint_eq (bits_on_medium (), 1);
}
END_TEST

/* The metadata's device fails.  The commit fails, the mode is ro, and the bits
 * stay dirty.  The next commit flushes the destination and writes them again;
 * when it succeeds, the mode is rw.
 */
START_TEST (failed_metadata_is_retried)
{
  /* _i: which step fails */
  const enum mock_kind kind = _i == 0 ? MOCK_PWRITE : MOCK_FLUSH;

  region_map_set (map, IN (1, 1), 1);
  region_map_set (map, IN (4, 1), 1);
  mock_fail (meta, kind, MOCK_ANYWHERE, 1, 2, ENOSPC);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert_int_eq (commit_mode (commit), MODE_RO);
  ck_assert (!commit_may_set (commit));
  ck_assert_uint_eq (region_map_count_durable (map), 0);
  ck_assert (region_map_is_dirty (map));
  ck_assert_int_eq (commit_background (commit), -1);
  ck_assert_int_eq (commit_mode (commit), MODE_RO);

  mock_log_clear (history);
  ck_assert_int_eq (commit_background (commit), 0);
  ck_assert_int_eq (commit_mode (commit), MODE_RW);
  ck_assert (commit_may_set (commit));
  ck_assert_uint_eq (mock_count (dest, MOCK_FLUSH), 1);
  ck_assert_uint_eq (mock_bytes (meta, MOCK_PWRITE), 2 * 512);
  ck_assert_uint_eq (region_map_count_durable (map), 2);
  ck_assert_uint_eq (bits_on_medium (), 2);
}
END_TEST

/* All waiters of a failed commit fail; those of the next one do not. */
START_TEST (one_commits_error_is_not_the_nexts)
{
  struct caller first, late;
  struct mock_gate *gate = mock_gate (dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);

  mock_fail (meta, MOCK_PWRITE, MOCK_ANYWHERE, 1, 1, EIO);
  region_map_set (map, 1, 1);
  start_flush (&first, 1);
  mock_gate_wait (gate);
  start_flush (&late, 1);
  mock_settle ();
  mock_gate_open (gate);
  ck_assert_int_eq (wait_for (&first), -1);
  ck_assert_int_eq (wait_for (&late), 0);
  ck_assert (late.durable);
}
END_TEST

/* All of many segments are written, more than one write takes. */
START_TEST (many_segments)
{
  teardown ();
  open_store (300 * (uint64_t)REGIONS_PER_SECTOR);
  for (uint32_t s = 0; s < 300; s += 2)
    region_map_set (map, IN (s, s), 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert_uint_eq (mock_bytes (meta, MOCK_PWRITE), 150 * 512);
  ck_assert_uint_eq (mock_count (meta, MOCK_FLUSH), 1);
  ck_assert_uint_eq (bits_on_medium (), 150);
  for (uint32_t s = 0; s < 300; s += 2)
    ck_assert (on_medium (IN (s, s)));
}
END_TEST

/* An epoch has more sectors than one round takes.  Each round flushes the
 * destination after its snapshot, and all bits are durable on return.
 */
START_TEST (rounds)
{
  const uint32_t sectors = 2 * COMMIT_SECTORS + 5;
  size_t at = 0;

  teardown ();
  open_store (sectors * (uint64_t)REGIONS_PER_SECTOR);
  for (uint32_t s = 0; s < sectors; ++s)
    region_map_set (map, IN (s, 7), 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert_uint_eq (region_map_count_durable (map), sectors);
  ck_assert_uint_eq (bits_on_medium (), sectors);
  ck_assert_uint_eq (mock_count (dest, MOCK_FLUSH), 3);
  ck_assert_uint_eq (commit_rounds (commit), 3);

  for (unsigned round = 0; round < 3; ++round) {
    const struct mock_call *flush, *write, *flush_meta;

    flush = mock_log_find (history, dest, MOCK_FLUSH, at, &at);
    write = mock_log_find (history, meta, MOCK_PWRITE, at, NULL);
    flush_meta = mock_log_find (history, meta, MOCK_FLUSH, at, &at);
    ck_assert_uint_lt (flush->end, write->start);
    ck_assert_uint_lt (write->end, flush_meta->start);
  }
}
END_TEST

/* Does the durable superblock at this offset have the complete flag? */
static bool
says_complete (uint64_t offset)
{
  return mock_durable (meta)[offset + 56] & METADATA_COMPLETE;
}

/* The complete flag is written only after the last bits are durable, first to
 * one superblock, then, after a flush, to the other (I10).
 */
START_TEST (complete)
{
  struct caller a;
  struct mock_gate *gate;
  const struct mock_call *call_a, *call_b, *flush;
  size_t at;

  region_map_set (map, 0, region_map_regions (map));
  gate = mock_gate_after (meta, MOCK_FLUSH, MOCK_ANYWHERE, 1);
  start_flush (&a, 0);
  mock_gate_wait (gate);
  ck_assert (!commit_is_complete (commit));
  ck_assert_uint_eq (mock_bytes_in (meta, MOCK_PWRITE, 0, BITMAP), 0);
  mock_gate_open (gate);
  ck_assert_int_eq (wait_for (&a), 0);
  ck_assert (commit_is_complete (commit));
  ck_assert (says_complete (0) && says_complete (4096));

  /* dest flush, bitmap, flush, A, flush, B, flush */
  ck_assert_uint_eq (mock_log_len (history), 7);
  flush = mock_log_find (history, meta, MOCK_FLUSH, 0, &at);
  call_a = mock_log_find (history, meta, MOCK_PWRITE, at, &at);
  ck_assert_uint_eq (call_a->range[0].offset % 4096, 0);
  ck_assert_uint_lt (flush->end, call_a->start);
  flush = mock_log_find (history, meta, MOCK_FLUSH, at, &at);
  call_b = mock_log_find (history, meta, MOCK_PWRITE, at, &at);
  ck_assert_uint_eq (call_b->range[0].offset,
                     4096 - call_a->range[0].offset);
  ck_assert_uint_lt (call_a->end, flush->start);
  ck_assert_uint_lt (flush->end, call_b->start);

  /* Nothing is written after that. */
  mock_log_clear (history);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert_uint_eq (mock_log_len (history), 1);
}
END_TEST

/* With one bit missing the clone is not complete. */
START_TEST (almost_complete)
{
  region_map_set (map, 0, region_map_regions (map) - 1);
  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert (!commit_is_complete (commit));
  ck_assert (!says_complete (0) && !says_complete (4096));
}
END_TEST

/* If the flag cannot be written, the clone is not complete until a later
 * commit, with no region dirty, has written it.
 */
START_TEST (complete_flag_is_retried)
{
  region_map_set (map, 0, region_map_regions (map));
  /* _i: the bitmap is written first, then the superblocks fail */
  mock_fail (meta, MOCK_PWRITE, _i ? 4096 : 0, 512, 1, 1, EIO);
  ck_assert_int_eq (commit_flush (commit), -1);
  ck_assert (!commit_is_complete (commit));
  ck_assert_int_eq (commit_mode (commit), MODE_RO);
  ck_assert_int_eq (commit_background (commit), 0);
  ck_assert (commit_is_complete (commit));
  ck_assert_int_eq (commit_mode (commit), MODE_RW);
  ck_assert (says_complete (0) && says_complete (4096));
}
END_TEST

#define CLIENTS 6

static void
client (void *opaque)
{
  uint64_t seed = (uintptr_t)opaque;

  for (unsigned i = 0; i < 60; ++i) {
    uint64_t r = mock_random (&seed) % region_map_regions (map);

    region_map_set (map, r, 1);
    if (mock_random (&seed) % 4 == 0)
      continue;
    if (commit_flush (commit) == -1 || !region_map_is_durable (map, r, 1))
      abort ();
  }
}

static void
periodic (void *opaque)
{
  const _Atomic bool *end = opaque;

  while (!*end)
    if (commit_background (commit) == -1)
      abort ();
}

/* Many clients, and the periodic commit.  A client whose flush has returned
 * finds its region durable, and in the end all regions are durable in the
 * metadata.
 */
START_TEST (stress)
{
  struct mock_thread *thread[CLIENTS], *background;
  _Atomic bool end = false;

  mock_set_delay (dest, 200);
  mock_set_delay (meta, 100);
  background = mock_thread (periodic, &end);
  for (uintptr_t i = 0; i < CLIENTS; ++i)
    thread[i] = mock_thread (client, (void *)(i + 1));
  for (unsigned i = 0; i < CLIENTS; ++i)
    mock_join (thread[i]);
  end = true;
  mock_join (background);

  ck_assert_int_eq (commit_flush (commit), 0);
  ck_assert_uint_eq (bits_on_medium (), region_map_count_valid (map));
  ck_assert_uint_eq (region_map_count_durable (map),
                     region_map_count_valid (map));
  for (uint64_t r = 0; r < region_map_regions (map); ++r)
    if (region_map_is_valid (map, r))
      ck_assert (on_medium (r));
}
END_TEST

/* Periodic commits take at most a tenth of the time, but no pause is longer
 * than the limit because of that.
 */
START_TEST (pauses)
{
  ck_assert_double_eq (commit_pause (1, 0), 1);
  ck_assert_double_eq (commit_pause (1, 0.09), 1);
  ck_assert_double_eq_tol (commit_pause (1, 0.5), 5, 1e-9);
  ck_assert_double_eq_tol (commit_pause (5, 0.5), 5, 1e-9);
  ck_assert_double_eq (commit_pause (1, 1000), COMMIT_PAUSE_MAX);
  ck_assert_double_eq (commit_pause (3600, 1000), 3600);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("commit");
  TCase *tc = tcase_create ("commit");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, order);
  tcase_add_test (tc, snapshot_is_taken_before_the_flush);
  tcase_add_test (tc, snapshot_does_not_grow);
  tcase_add_test (tc, group_commit);
  tcase_add_test (tc, late_flush_is_a_new_flush);
  tcase_add_test (tc, clean_commit_leaves_metadata_alone);
  tcase_add_test (tc, failed_flush_is_for_good);
  tcase_add_test (tc, failed_flush_concerns_later_bits);
  tcase_add_test (tc, failed_flush_without_dirty_regions);
  tcase_add_test (tc, failed_background_flush_is_told);
  tcase_add_loop_test (tc, failed_metadata_is_retried, 0, 2);
  tcase_add_test (tc, one_commits_error_is_not_the_nexts);
  tcase_add_test (tc, many_segments);
  tcase_add_test (tc, rounds);
  tcase_add_test (tc, complete);
  tcase_add_test (tc, almost_complete);
  tcase_add_loop_test (tc, complete_flag_is_retried, 0, 2);
  tcase_add_test (tc, set_back);
  tcase_add_loop_test (tc, failed_commit_covers_nothing, 0, 2);
  tcase_add_test (tc, lost_between_rounds);
  tcase_add_test (tc, lost_while_flushing);
  tcase_add_test (tc, metadata_loss_waits_for_steps);
  tcase_add_test (tc, lost_metadata);
  tcase_add_loop_test (tc, no_space, 0, 2);
  tcase_add_loop_test (tc, failed_metadata_is_tried_with_nothing_dirty, 0, 2);
  tcase_add_test (tc, pauses);
  tcase_add_test (tc, stress);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
