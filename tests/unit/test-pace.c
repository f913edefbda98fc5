/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that hydration's window gives way to clients whose reads of the source
 * are late, settles where about one in a hundred is, stays within its limits,
 * and is all of the threshold for whoever is alone.
 */

#include <config.h>

#include <stdlib.h>

#include <check.h>

#include "mock-backend.h"
#include "pace.h"
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

/* Late reads make it small, down to a batch; reads in time make it large again;
 * and when there are none it is large at once.
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

/* A source where more under way means later: reads take twice as long with all
 * of the threshold, and a little more or less by chance.
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

/* A source that becomes slower: what was fast once does not count for ever. */
START_TEST (forgets)
{
  struct pace p = { 0 };
  double now = 1000;

  was_read (&p, 0.001, now);
  for (unsigned i = 0; i < 3 * PACE_MEMORY * 100; ++i)
    was_read (&p, 0.05, now += 0.01);
  ck_assert_uint_gt (p.window, BATCH);
}
END_TEST

/* Long reads say nothing. */
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
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
