/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves the rule of news.h: each tenth of the disk is logged once, a second
 * after it was reached; of several tenths within a second only the last; the
 * end is not a tenth; and after a set-back a tenth is logged again only if the
 * one before it was lost, too.
 */

#include <config.h>

#include <stdint.h>

#include <check.h>

#include "hydration/news.h"
#include "run-suite.h"

#define SIZE UINT64_C (1000)

static struct news n;

/* Nothing is valid. */
static void
setup (void)
{
  news_init (&n, SIZE, 0, 100);
}

/* Each tenth, once, and not before its time. */
START_TEST (each_once)
{
  double now = 100;

  for (uint64_t valid = 1; valid < SIZE; ++valid) {
    ck_assert_uint_eq (news_tenth (&n, valid, now), 0);
    now += NEWS_DELAY / 2.0;
    ck_assert_uint_eq (news_tenth (&n, valid, now), 0);
    now += NEWS_DELAY / 2.0;
    ck_assert_uint_eq (news_tenth (&n, valid, now),
                       valid % 100 == 0 ? valid / 100 : 0);
    now += 10;
  }
  ck_assert_uint_eq (news_tenth (&n, SIZE, now), 0);
  ck_assert_uint_eq (news_tenth (&n, SIZE, now + 10), 0);
}
END_TEST

/* Several tenths within a second: only the last. */
START_TEST (only_the_last)
{
  ck_assert_uint_eq (news_tenth (&n, 100, 100), 0);
  ck_assert_uint_eq (news_tenth (&n, 200, 100.5), 0);
  ck_assert_uint_eq (news_tenth (&n, 399, 101), 3);
  ck_assert_uint_eq (news_tenth (&n, 399, 200), 0);
  /* All of the rest: the end says that. */
  ck_assert_uint_eq (news_tenth (&n, 500, 201), 0);
  ck_assert_uint_eq (news_tenth (&n, SIZE, 201.5), 0);
  ck_assert_uint_eq (news_tenth (&n, SIZE, 202), 0);
}
END_TEST

/* What was valid at the start is no news. */
START_TEST (not_the_start)
{
  news_init (&n, SIZE, 555, 100);
  ck_assert_uint_eq (news_tenth (&n, 555, 102), 0);
  ck_assert_uint_eq (news_tenth (&n, 599, 104), 0);
  ck_assert_uint_eq (news_tenth (&n, 600, 106), 0);
  ck_assert_uint_eq (news_tenth (&n, 600, 107), 6);
}
END_TEST

START_TEST (set_back)
{
  news_tenth (&n, 500, 100);
  ck_assert_uint_eq (news_tenth (&n, 500, 101), 5);
  /* A little is lost, and copied again. */
  ck_assert_uint_eq (news_tenth (&n, 400, 110), 0);
  ck_assert_uint_eq (news_tenth (&n, 500, 120), 0);
  ck_assert_uint_eq (news_tenth (&n, 599, 130), 0);
  /* 40 percent are lost, too. */
  ck_assert_uint_eq (news_tenth (&n, 399, 140), 0);
  ck_assert_uint_eq (news_tenth (&n, 400, 150), 0);
  ck_assert_uint_eq (news_tenth (&n, 400, 151), 4);
  ck_assert_uint_eq (news_tenth (&n, 500, 160), 0);
  ck_assert_uint_eq (news_tenth (&n, 500, 161), 5);
}
END_TEST

/* A tenth that is lost before it was logged is not logged. */
START_TEST (lost_at_once)
{
  ck_assert_uint_eq (news_tenth (&n, 100, 100), 0);
  ck_assert_uint_eq (news_tenth (&n, 99, 100.5), 0);
  ck_assert_uint_eq (news_tenth (&n, 99, 101), 0);
  ck_assert_uint_eq (news_tenth (&n, 100, 102), 0);
  ck_assert_uint_eq (news_tenth (&n, 100, 103), 1);
}
END_TEST

/* Disks of any size. */
START_TEST (sizes)
{
  static const uint64_t cases[] = { 1, 7, 511, INT64_MAX };
  const uint64_t size = cases[_i];

  news_init (&n, size, 0, 0);
  ck_assert_uint_eq (news_tenth (&n, size - 1, 1), 0);
  ck_assert_uint_eq (news_tenth (&n, size - 1, 2),
                     size == 1 ? 0 : size == 7 ? 8 : 9);
  ck_assert_uint_eq (news_tenth (&n, size, 3), 0);
  ck_assert_uint_eq (news_tenth (&n, size, 4), 0);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("news");
  TCase *tc = tcase_create ("news");

  tcase_add_checked_fixture (tc, setup, NULL);
  tcase_add_test (tc, each_once);
  tcase_add_test (tc, only_the_last);
  tcase_add_test (tc, not_the_start);
  tcase_add_test (tc, set_back);
  tcase_add_test (tc, lost_at_once);
  tcase_add_loop_test (tc, sizes, 0, 4);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
