/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that hydration's window gives way to clients whose reads of the source
 * are late, settles where about one in a hundred is, stays within its limits,
 * and is all of the threshold for whoever is alone; and that it is no larger
 * than fills the way to the source, with a long queue or, beside clients,
 * nearly none.
 */

#include <config.h>

#include <stdlib.h>

#include <check.h>

#include "mock-backend.h"
#include "pace.h"
#include "rounding.h"
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

/* A source at a distance that handles a batch in 0.7 ms: how long one takes with
 * this much under way.
 */
static double
takes (double distance, uint64_t window)
{
  return MAX (distance + 0.0007, 0.0007 * window / BATCH);
}

/* So many copies from there, the way always full; the mean window. */
static double
copy (struct pace *p, double distance, unsigned n, double *now, bool clients)
{
  double sum = 0, took;
  uint64_t window;

  for (unsigned i = 0; i < n; ++i) {
    if (clients)
      pace_client_came (p, *now, BATCH);
    window = window_at (p, *now);
    took = takes (distance, window);
    *now += took / (window / BATCH);
    pace_copy_was_read (p, BATCH, took, window == BATCH, *now, BATCH,
                        THRESHOLD);
    sum += window;
  }
  return sum / n;
}

/* With no clients: a near source takes a queue of some milliseconds, or a quarter
 * of the threshold, a far one all of it.
 */
START_TEST (no_long_queue)
{
  struct pace p = { 0 };
  double now = 1000;

  pace_copy_was_read (&p, BATCH, 0.0007, true, now, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);
  copy (&p, 0, 100, &now, false);
  ck_assert_double_eq_tol (copy (&p, 0, 1000, &now, false), THRESHOLD / 4,
                           THRESHOLD / 16);

  p = (struct pace){ 0 };
  pace_copy_was_read (&p, BATCH, 0.0507, true, now, BATCH, THRESHOLD);
  copy (&p, 0.05, 1000, &now, false);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);
}
END_TEST

/* Beside clients: one copy from a near source, and what fills the way to a far
 * one; from the first on, and until they are gone.
 */
START_TEST (beside_clients)
{
  struct pace p = { 0 };
  double now = 1000, filled = 0.0107 / 0.0007 * BATCH;

  pace_copy_was_read (&p, BATCH, 0.0007, true, now, BATCH, THRESHOLD);
  pace_client_came (&p, now, BATCH);
  ck_assert_uint_eq (window_at (&p, now), BATCH);
  ck_assert_double_le (copy (&p, 0, 1000, &now, true), 2 * BATCH);
  ck_assert_uint_le (window_at (&p, now + PACE_IDLE * 0.99), 2 * BATCH);
  ck_assert_uint_eq (window_at (&p, now + PACE_IDLE), THRESHOLD / 4);

  p = (struct pace){ 0 };
  copy (&p, 0.01, 1000, &now, true);
  ck_assert_double_ge (copy (&p, 0.01, 1000, &now, true), filled);
  ck_assert_double_le (copy (&p, 0.01, 1000, &now, true), 2 * filled);
}
END_TEST

/* After some time one copy is made alone, of whatever length, to see whether the
 * source has become slower.
 */
START_TEST (copies_alone)
{
  struct pace p = { 0 };
  double now = 1000;

  pace_copy_was_read (&p, BATCH, 0.01, false, now, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);
  now += PACE_MEMORY;
  pace_copy_was_read (&p, BATCH, 0.01, false, now, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), BATCH);
  pace_copy_was_read (&p, BATCH, 0.01, false, now, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), BATCH);
  pace_copy_was_read (&p, BATCH / 2, 0.01, true, now, BATCH, THRESHOLD);
  ck_assert_uint_eq (window_at (&p, now), THRESHOLD);
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
  tcase_add_test (tc, no_long_queue);
  tcase_add_test (tc, beside_clients);
  tcase_add_test (tc, copies_alone);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
