/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that hydration's window shrinks while clients' reads of the source are
 * late, settles where about one in a hundred is late, stays within its limits,
 * and is the threshold without clients.
 */

#include <config.h>

#include <stdlib.h>

#include <check.h>

#include "base/rounding.h"
#include "hydration/pace.h"
#include "mock-backend.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)
#define BATCH (256 * K)
#define THRESHOLD (16 * M)

static uint64_t
window_at (struct pace *p, double now)
{
  return pace_window (p, now, BATCH, THRESHOLD);
}

static void
was_read (struct pace *p, double took, double now)
{
  pace_was_read (p, 4 * K, took, now, BATCH, THRESHOLD);
}

START_TEST (alone)
{
  struct pace p = { 0 };

  ck_assert_uint_eq (window_at (&p, 1000), THRESHOLD);
  ck_assert_uint_eq (pace_window (&p, 1001, BATCH, 4 * K), BATCH);
  ck_assert_uint_eq (window_at (&p, 1002), THRESHOLD);
}
END_TEST

/* Late reads shrink the window, down to a batch.  Reads in time let it grow.
 * Without reads it is the threshold at once.
 */
START_TEST (gives_way)
{
  struct pace p = { 0 };
  double now = 1000;

  for (unsigned i = 0; i < PACE_PROBE; ++i) {
    was_read (&p, i == 3 ? 0.010 : 0.1, now);
    ck_assert_uint_eq (window_at (&p, now), BATCH);
  }
  was_read (&p, 0.010, now);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);
  was_read (&p, 0.0114, now += 0.01);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);
  was_read (&p, 0.0116, now += 0.01);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD / 4 * 3);
  for (unsigned i = 0; i < 100; ++i)
    was_read (&p, 0.1, now += 0.01);
  ck_assert_uint_eq (window_at (&p, now), BATCH);
  for (unsigned i = 0; i < 500; ++i)
    was_read (&p, 0.01, now += 0.001);
  ck_assert_uint_gt (window_at (&p, now), 3 * BATCH);
  ck_assert_uint_lt (window_at (&p, now), 4 * BATCH);
  ck_assert_uint_lt (window_at (&p, now + PACE_IDLE * 0.99), 4 * BATCH);
  ck_assert_uint_eq (window_at (&p, now + PACE_IDLE), THRESHOLD);
}
END_TEST

/* A source that is slower with more under way: with the threshold, reads take
 * twice as long, and a little more or less by chance.
 */
START_TEST (settles)
{
  struct pace p = { 0 };
  uint64_t state = 1;
  const double by_itself = 0.010 * (1 + (double)BATCH / THRESHOLD);
  unsigned late = 0;
  double now = 1000, took;

  for (unsigned i = 0; i < 100000; ++i) {
    took = 0.010 * (1 + (double)window_at (&p, now) / THRESHOLD) +
      mock_random (&state) % 1000 / 1e7;
    was_read (&p, took, now += 0.0025);
    if (i >= 10000)
      late += took > by_itself * 1.1 + PACE_SLACK;
  }
  ck_assert_uint_gt (late, 90000 / 300);
  ck_assert_uint_lt (late, 90000 / 50);
  ck_assert_uint_gt (window_at (&p, now), THRESHOLD / 10);
  ck_assert_uint_lt (window_at (&p, now), THRESHOLD / 2);
}
END_TEST

/* The source becomes slower: its former times do not count for ever. */
START_TEST (forgets)
{
  struct pace p = { 0 };
  double now = 1000;

  was_read (&p, 0.001, now);
  for (unsigned i = 0; i < 3 * PACE_MEMORY * 100; ++i)
    was_read (&p, 0.05, now += 0.01);
  ck_assert_uint_gt (p.reads.size, BATCH);
}
END_TEST

/* Long reads do not count. */
START_TEST (long_reads)
{
  struct pace p = { 0 };

  for (unsigned i = 0; i <= PACE_PROBE; ++i)
    was_read (&p, 0.01, 1000);
  pace_was_read (&p, PACE_MAX_READ + 1, 0.1, 1000, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, 1000), THRESHOLD);
  pace_was_read (&p, PACE_MAX_READ, 0.1, 1000, BATCH, THRESHOLD);
  ck_assert_uint_lt (window_at (&p, 1000), THRESHOLD);
}
END_TEST

/* Hydration reads for `seconds'.  A read takes by_itself when it is alone, and
 * the source answers one read in `each' seconds.  Clients make `requests' a
 * second.  Returns the window in the end.
 */
static uint64_t
copies (struct pace *p, double by_itself, double each, uint64_t requests,
        double seconds)
{
  double now = 1000;

  while (now < 1000 + seconds) {
    const double under_way = (double)window_at (p, now) / BATCH;
    const double took = MAX (by_itself, under_way * each);

    now += MAX (each, took / under_way);
    pace_was_copied (p, BATCH, took, requests * (now - 1000), now, BATCH,
                     THRESHOLD);
  }
  return window_at (p, now);
}

/* Beside busy clients hydration has at most two copies under way from a near
 * source, which one copy keeps busy.  From a far source it has enough to fill
 * the link, and not many more.  While clients are not busy, the window is the
 * threshold.
 */
START_TEST (busy_clients)
{
  struct pace p = { 0 };
  uint64_t w = copies (&p, 0.0004, 0.0004, 2 * PACE_BUSY, 5);

  ck_assert_uint_le (w, 5 * BATCH / 2);

  p = (struct pace){ 0 };
  w = copies (&p, 0.01, 0.0004, 2 * PACE_BUSY, 5);
  ck_assert_uint_ge (w, 25 * BATCH);
  ck_assert_uint_le (w, 55 * BATCH);

  p = (struct pace){ 0 };
  w = copies (&p, 0.0004, 0.0004, PACE_BUSY / 2, 5);
  ck_assert_uint_eq (w, THRESHOLD);

  /* They were busy, but not any more. */
  p = (struct pace){ 0 };
  copies (&p, 0.0004, 0.0004, 2 * PACE_BUSY, 5);
  ck_assert_uint_lt (window_at (&p, 1005), 3 * BATCH);
  for (double now = 1005; now < 1005 + 2 * PACE_IDLE; now += 0.01)
    pace_was_copied (&p, BATCH, 0.01, 10 * PACE_BUSY, now, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, 1005 + 2 * PACE_IDLE), THRESHOLD);
}
END_TEST

/* A copy of less than a batch does not count, nor does one that began before
 * the probe, or before the window shrank.
 */
START_TEST (copies_that_do_not_count)
{
  struct pace p = { 0 };
  double now = 1000;
  uint64_t requests = 0;

  pace_was_copied (&p, BATCH, 0.1, 0, now, BATCH, THRESHOLD);
  pace_was_copied (&p, BATCH - 1, 0.1, requests += 1000, now += 0.1, BATCH,
                   THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);
  /* The first copy, and others that were under way with it. */
  for (unsigned i = 0; i < 100; ++i) {
    pace_was_copied (&p, BATCH, 0.2, requests += 1000, now += 0.001, BATCH,
                     THRESHOLD);
    ck_assert_uint_eq (window_at (&p, now), BATCH);
  }
  now += 0.1;
  for (unsigned i = 0; i <= PACE_PROBE; ++i) {
    ck_assert_uint_eq (window_at (&p, now), BATCH);
    pace_was_copied (&p, BATCH, 0.01, requests += 1000, now += 0.01, BATCH,
                     THRESHOLD);
  }
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);

  /* Four that were late together count as one. */
  for (unsigned i = 0; i < 4; ++i)
    pace_was_copied (&p, BATCH, 0.021, requests += 1000, now, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD / 4 * 3);
  pace_was_copied (&p, BATCH, 0.021, requests += 1000, now += 0.022, BATCH,
                   THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD / 16 * 9);

  /* Another batch takes another time, so everything begins again. */
  pace_was_copied (&p, 2 * BATCH, 0.021, requests += 1000, now += 0.001,
                   2 * BATCH, THRESHOLD);
  ck_assert_uint_eq (pace_window (&p, now, 2 * BATCH, THRESHOLD), 2 * BATCH);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("pace");
  TCase *tc = tcase_create ("pace");

  tcase_add_test (tc, alone);
  tcase_add_test (tc, gives_way);
  tcase_add_test (tc, settles);
  tcase_add_test (tc, forgets);
  tcase_add_test (tc, long_reads);
  tcase_add_test (tc, busy_clients);
  tcase_add_test (tc, copies_that_do_not_count);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
