/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that sizes, rates and times are printed with the right units, and are
 * never rounded to 1024 of a unit; and that 100 percent is everything.
 */

#include <config.h>

#include <check.h>

#include "base/text.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)
#define G (K * M)

START_TEST (sizes)
{
  static const struct { uint64_t size; const char *text; } cases[] = {
    { 0, "0 bytes" }, { 512, "512 bytes" }, { 1023, "1023 bytes" },
    { K, "1 KiB" }, { 4 * K, "4 KiB" }, { K + 512, "1.5 KiB" },
    { M - 1, "1 MiB" }, { M, "1 MiB" }, { 1023 * K, "1023 KiB" },
    { 40 * G, "40 GiB" }, { 25 * G / 2, "12.5 GiB" },
    { 123 * G + G / 2, "124 GiB" }, { 3 * G + 1, "3 GiB" },
    { 1024 * K * G, "1 PiB" }, { INT64_MAX, "8192 PiB" },
  };

  for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; ++i)
    ck_assert_str_eq (text_size (cases[i].size).s, cases[i].text);
}
END_TEST

START_TEST (rates)
{
  ck_assert_str_eq (text_rate (0).s, "0 bytes/s");
  ck_assert_str_eq (text_rate (99.5 * M).s, "99.5 MiB/s");
  ck_assert_str_eq (text_rate (1.3 * G).s, "1.3 GiB/s");
}
END_TEST

START_TEST (times)
{
  static const struct { double time; const char *text; } cases[] = {
    { -1, "0 ms" }, { 0, "0 ms" }, { 0.26, "260 ms" }, { 0.9996, "1 s" },
    { 9.5, "9.5 s" }, { 10.7, "10 s" }, { 119, "119 s" }, { 120, "2 min 0 s" },
    { 725, "12 min 5 s" }, { 3599, "59 min 59 s" }, { 3600, "1 h 0 min" },
    { 19200, "5 h 20 min" }, { 172799, "47 h 59 min" },
    { 172800, "2 d 0 h" }, { 273600, "3 d 4 h" },
  };

  for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; ++i)
    ck_assert_str_eq (text_time (cases[i].time).s, cases[i].text);
  /* However long: it fits. */
  ck_assert_str_eq (text_time (1e300).s, "11574074074 d 1 h");
}
END_TEST

START_TEST (percents)
{
  ck_assert_uint_eq (text_percent (0, 1), 0);
  ck_assert_uint_eq (text_percent (1, 1), 100);
  ck_assert_uint_eq (text_percent (1, 3), 33);
  ck_assert_uint_eq (text_percent (999, 1000), 99);
  ck_assert_uint_eq (text_percent (INT64_MAX - 1, INT64_MAX), 99);
  ck_assert_uint_eq (text_percent (INT64_MAX, INT64_MAX), 100);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("text");
  TCase *tc = tcase_create ("text");

  tcase_add_test (tc, sizes);
  tcase_add_test (tc, rates);
  tcase_add_test (tc, times);
  tcase_add_test (tc, percents);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
