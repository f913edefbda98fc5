/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that block status costs as many questions to source and destination as
 * their extents need, whether the map is fragmented or not, and whatever the
 * client asks for at once; that an answer which is kept is used as long as it
 * is true, and no longer; and that what is kept has a bound.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "clone/private.h"
#include "mock-backend.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)
#define REGION (4 * K)
#define HOLE (EXTENT_HOLE | EXTENT_ZERO)

static struct mock_disk *d;
static uint8_t *want, *say; /* flags, one a byte */

/* A source of holes and data in turns, so many bytes each, and a destination
 * that is one hole.
 */
static void
new_disk (uint64_t size, uint64_t piece)
{
  d = mock_disk_new (size, REGION, 5000);
  mock_fill (d->dest, NULL, size, 0);
  want = calloc (1, size);
  say = malloc (size);
  for (uint64_t pos = 0; pos < size; pos += 2 * piece) {
    mock_fill (d->source, NULL, MIN (piece, size - pos), pos);
    memset (want + pos, HOLE, MIN (piece, size - pos));
  }
}

static void
teardown (void)
{
  if (d)
    mock_disk_free (d);
  free (want);
  free (say);
  d = NULL;
  want = say = NULL;
}

static int
try_write (uint64_t count, uint64_t offset)
{
  CLEANUP_FREE uint8_t *buf = malloc (count);

  memset (buf, 1, count);
  return clone_pwrite (d->clone, buf, count, offset, 0);
}

static void
must_write (uint64_t count, uint64_t offset)
{
  ck_assert_int_eq (try_write (count, offset), 0);
  memset (want + offset, 0, count);
}

/* Make a hole of whole regions. */
static void
must_zero (uint64_t count, uint64_t offset)
{
  ck_assert_int_eq (clone_zero (d->clone, count, offset, BACKEND_MAY_TRIM), 0);
  memset (want + offset, HOLE, count);
}

/* Ask once; returns where the answer ends. */
static uint64_t
ask (uint64_t count, uint64_t offset, unsigned flags)
{
  CLEANUP_EXTENTS_FREE struct extents list = EXTENTS_INIT;

  count = MIN (count, d->size - offset);
  ck_assert_int_eq (clone_extents (d->clone, count, offset, flags, &list), 0);
  ck_assert_uint_ge (list.len, 1);
  if (flags & BACKEND_REQ_ONE)
    ck_assert_uint_eq (list.len, 1);
  ck_assert_uint_le (list.len, 32768);
  ck_assert_uint_eq (list.extent[0].offset, offset);
  ck_assert_uint_le (extents_end (&list), offset + count);
  for (size_t i = 0; i < list.len; ++i)
    memset (say + list.extent[i].offset, list.extent[i].flags,
            list.extent[i].length);
  return extents_end (&list);
}

/* Walk over the disk with questions of so many bytes; returns their number. */
static unsigned
walk (uint64_t count, unsigned flags)
{
  unsigned questions = 0;

  memset (say, 0xff, d->size);
  for (uint64_t pos = 0; pos < d->size; ++questions)
    pos = ask (count, pos, flags);
  return questions;
}

static void
check_walk (uint64_t count, unsigned flags)
{
  walk (count, flags);
  ck_assert_mem_eq (say, want, d->size);
}

static void
run_walk (void *opaque)
{
  walk (d->size, 0);
}

static size_t
asked (const struct mock *m)
{
  return mock_count (m, MOCK_EXTENTS);
}

/* Write every fourth region. */
static void
fragment (void)
{
  for (uint64_t pos = 0; pos < d->size; pos += 4 * REGION)
    must_write (REGION, pos);
}

/* ---- the number of questions ---- */

/* Thousands of runs: each side is asked once.  If an answer is short, it is
 * asked as often as it has so many extents.
 */
START_TEST (fragmented)
{
  const unsigned max = 64;

  new_disk (16 * M, 16 * K);
  fragment ();
  mock_log_clear (d->log);
  check_walk (d->size, 0);
  ck_assert_uint_eq (asked (d->source), 1);
  ck_assert_uint_eq (asked (d->dest), 1);

  /* The source has 1024 extents, the destination 2048. */
  kept_forget (&d->clone->kept);
  mock_log_clear (d->log);
  mock_set_max_extents (d->source, max);
  mock_set_max_extents (d->dest, max);
  check_walk (d->size, 0);
  ck_assert_uint_le (asked (d->source), 1024 / max + 1);
  ck_assert_uint_le (asked (d->dest), 2048 / max + 1);
}
END_TEST

/* The destination is not asked about what is behind the last valid region, nor
 * the source about what is behind the last invalid one.
 */
START_TEST (not_behind_the_last_run)
{
  const struct mock_call *call;

  new_disk (M, 16 * K);
  must_write (REGION, 64 * K);
  must_write (512 * K, 512 * K);
  ck_assert_int_eq (clone_trim (d->clone, 4 * K, 128 * K, 0), 0);
  memset (want + 128 * K, HOLE, 4 * K);
  mock_log_clear (d->log);
  ask (256 * K, 0, 0);
  call = mock_log_find (d->log, d->dest, MOCK_EXTENTS, 0, NULL);
  ck_assert_uint_eq (call->range->offset, 64 * K);
  ck_assert_uint_eq (call->range->count, 68 * K);
  kept_forget (&d->clone->kept);
  mock_log_clear (d->log);
  ask (M, 0, 0);
  call = mock_log_find (d->log, d->source, MOCK_EXTENTS, 0, NULL);
  ck_assert_uint_eq (call->range->offset, 0);
  ck_assert_uint_eq (call->range->count, 512 * K);
}
END_TEST

/* A client that asks for one extent at a time, or for small ranges, costs few
 * questions, however many extents there are.
 */
START_TEST (walks)
{
  static const struct { uint64_t count; unsigned flags; } how[] = {
    { 16 * M, BACKEND_REQ_ONE }, { 16 * K, 0 }, { 16 * K, BACKEND_REQ_ONE },
  };

  for (uint64_t piece = 4 * K; piece <= 64 * K; piece *= 4) {
    new_disk (16 * M, piece);
    fragment ();
    mock_log_clear (d->log);
    check_walk (how[_i].count, how[_i].flags);
    ck_assert_uint_le (asked (d->source), 8);
    ck_assert_uint_le (asked (d->dest), 8);
    teardown ();
  }
}
END_TEST

/* The same while a client writes all the time, so that no answer can be kept:
 * the source has no more to say, and the destination is asked a bounded number
 * of times for each question, about the first extent.
 */
START_TEST (walk_of_a_busy_disk)
{
  unsigned questions = 0;

  new_disk (16 * M, 16 * K);
  fragment ();
  mock_log_clear (d->log);
  memset (say, 0xff, d->size);
  for (uint64_t pos = 0; pos < d->size; ++questions) {
    must_write (100, 1000);
    pos = _i ? ask (16 * K, pos, 0) : ask (d->size, pos, BACKEND_REQ_ONE);
  }
  ck_assert_mem_eq (say, want, d->size);
  ck_assert_uint_le (asked (d->source), 8);
  ck_assert_uint_le (asked (d->dest), questions * 4);
}
END_TEST

/* A disk of very many extents: each answer is bounded, and so is what is kept.
 * _i: the source has the extents, or the map
 */
START_TEST (bounded)
{
  new_disk (40 * M, _i ? 4 * M : 512);
  if (_i)
    fragment ();
  check_walk (d->size, 0);
  check_walk (d->size, BACKEND_REQ_ONE);
  ck_assert_uint_le (d->clone->kept.answer.len, 32768);
}
END_TEST

/* What fails ahead of a walk does not fail the walk's questions. */
START_TEST (failure_ahead)
{
  CLEANUP_EXTENTS_FREE struct extents list = EXTENTS_INIT;
  struct mock *m;
  uint64_t pos = 0;

  new_disk (M, 16 * K);
  m = _i ? d->dest : d->source;
  if (_i)
    must_write (M, 0);
  mock_fail (m, MOCK_EXTENTS, M - 16 * K, 16 * K, 1, 0, EIO);
  while (pos < M - 16 * K)
    pos = ask (16 * K, pos, 0);
  ck_assert_mem_eq (say, want, M - 16 * K);
  ck_assert_int_eq (clone_extents (d->clone, 16 * K, pos, 0, &list), -1);
  ck_assert_int_eq (errno, EIO);
  mock_heal (m);
  check_walk (16 * K, 0);
}
END_TEST

/* ---- kept answers ---- */

/* Ask for everything, and see that the answer is kept. */
static void
keep (void)
{
  check_walk (d->size, 0);
  mock_log_clear (d->log);
  check_walk (d->size, 0);
  check_walk (16 * K, BACKEND_REQ_ONE);
  ck_assert_uint_eq (mock_log_len (d->log), 0);
}

/* No answer is used after a change that has ended, whether in a valid region or
 * an invalid one; nor after one that has failed half way.
 */
START_TEST (not_after_a_change)
{
  new_disk (M, 64 * K);
  must_zero (64 * K, 512 * K);
  keep ();
  must_write (4 * K, 4 * K);        /* an invalid hole */
  keep ();
  must_write (5, 512 * K + 7);      /* a valid one */
  memset (want + 512 * K, 0, 512);  /* a sector of the mock */
  keep ();
  must_zero (64 * K, 64 * K);
  keep ();
  ck_assert_int_eq (clone_trim (d->clone, 64 * K, 192 * K, 0), 0);
  memset (want + 192 * K, HOLE, 64 * K);
  keep ();

  must_write (4 * K, 260 * K);
  keep ();
  mock_fail (d->dest, MOCK_PWRITE, 260 * K, 1, 1, 1, EIO);
  ck_assert_int_eq (try_write (8 * K, 256 * K), -1);
  memset (want + 256 * K, 0, 4 * K);
  keep ();
}
END_TEST

/* Copies do not change what the clone reads as. */
START_TEST (after_a_copy)
{
  new_disk (M, 64 * K);
  keep ();
  ck_assert_int_eq (clone_cache (d->clone, 512 * K, 0), 0);
  mock_log_clear (d->log);
  check_walk (d->size, 0);
  ck_assert_uint_eq (mock_log_len (d->log), 0);
}
END_TEST

static void
run_write (void *opaque)
{
  must_write (4 * K, 0);
}

/* A change begins; the answer is made; the change takes effect and ends.
 * _i: the region is invalid, or valid
 */
START_TEST (change_in_flight)
{
  struct mock_gate *gate;
  struct mock_thread *thread;

  new_disk (M, 64 * K);
  if (_i)
    must_zero (64 * K, 0);
  gate = mock_gate (d->dest, MOCK_PWRITE, MOCK_ANYWHERE, 1);
  thread = mock_thread (run_write, NULL);
  mock_gate_wait (gate);
  check_walk (d->size, 0);
  mock_gate_open (gate);
  mock_join (thread);
  check_walk (d->size, 0);
}
END_TEST

/* The answer is made; a change begins, and has taken effect, but has not ended:
 * a client that reads its data must not then be told of a hole.
 */
START_TEST (change_that_can_be_read)
{
  struct mock_gate *gate;
  struct mock_thread *thread;
  uint8_t byte;

  new_disk (M, 64 * K);
  must_zero (64 * K, 0);
  keep ();
  gate = mock_gate_after (d->dest, MOCK_PWRITE, MOCK_ANYWHERE, 1);
  thread = mock_thread (run_write, NULL);
  mock_gate_wait (gate);
  ck_assert_int_eq (clone_pread (d->clone, &byte, 1, 0), 0);
  ck_assert_int_eq (byte, 1);
  ck_assert_uint_lt (ask (d->size, 0, BACKEND_REQ_ONE), 64 * K);
  ck_assert_int_eq (say[0], 0);
  mock_gate_open (gate);
  mock_join (thread);
  keep ();
}
END_TEST

/* A hole in the destination is lost when the map is set back: the region is the
 * source's again, which is data.
 */
START_TEST (not_after_setting_back)
{
  new_disk (M, 64 * K);
  must_zero (64 * K, 64 * K);
  keep ();
  mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, ENOSPC);
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  memset (want + 64 * K, 0, 64 * K);
  keep ();
}
END_TEST

static bool
is_closed (void *opaque)
{
  return gate_closings (&d->clone->gate) > 0;
}

static void
run_set_back (void *opaque)
{
  servers_set_back (d->clone);
}

/* The question arrives when the gate has been closed, and before the map is set
 * back, because a request is still inside.
 */
START_TEST (amid_setting_back)
{
  struct gate_pass pass;
  struct mock_gate *gate;
  struct mock_thread *flush, *thread;

  new_disk (M, 64 * K);
  must_write (4 * K, 512 * K);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  must_zero (64 * K, 64 * K);
  mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, ENOSPC);
  ck_assert_int_eq (commit_flush (d->clone->commit), -1);
  gate_enter (&d->clone->gate, &pass);
  flush = mock_thread (run_set_back, NULL);
  mock_wait_until (is_closed, NULL);
  gate = mock_gate_after (d->dest, MOCK_EXTENTS, MOCK_ANYWHERE, 1);
  thread = mock_thread (run_walk, NULL);
  mock_settle ();
  gate_leave (&d->clone->gate, &pass);
  mock_join (flush);
  mock_gate_open (gate);
  mock_join (thread);
  memset (want + 64 * K, 0, 64 * K);
  ck_assert_mem_eq (say, want, d->size);
  keep ();
}
END_TEST

/* After kept_forget both sides are asked again; a question that was being asked
 * leaves nothing behind.
 */
START_TEST (forgets)
{
  struct mock_gate *gate;
  struct mock_thread *thread;

  new_disk (M, 64 * K);
  must_write (4 * K, 512 * K);
  keep ();
  kept_forget (&d->clone->kept);
  gate = mock_gate (d->dest, MOCK_EXTENTS, MOCK_ANYWHERE, 1);
  thread = mock_thread (run_walk, NULL);
  mock_gate_wait (gate);
  kept_forget (&d->clone->kept);
  mock_gate_open (gate);
  mock_join (thread);
  mock_log_clear (d->log);
  check_walk (d->size, 0);
  ck_assert_uint_eq (asked (d->source), 1);
  ck_assert_uint_eq (asked (d->dest), 1);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("block status");
  TCase *tc = tcase_create ("block status");

  tcase_set_timeout (tc, 240);
  tcase_add_checked_fixture (tc, NULL, teardown);
  tcase_add_test (tc, fragmented);
  tcase_add_test (tc, not_behind_the_last_run);
  tcase_add_loop_test (tc, walks, 0, 3);
  tcase_add_loop_test (tc, walk_of_a_busy_disk, 0, 2);
  tcase_add_loop_test (tc, bounded, 0, 2);
  tcase_add_loop_test (tc, failure_ahead, 0, 2);
  tcase_add_test (tc, not_after_a_change);
  tcase_add_test (tc, after_a_copy);
  tcase_add_loop_test (tc, change_in_flight, 0, 2);
  tcase_add_test (tc, change_that_can_be_read);
  tcase_add_test (tc, not_after_setting_back);
  tcase_add_test (tc, amid_setting_back);
  tcase_add_test (tc, forgets);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
