/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that a list of extents stays contiguous and merged, that the extent at
 * an offset is found, that runs of zeroes are found and backend_is_zero is
 * right, and how much is zeroed at once.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include <check.h>

#include "backend/backend.h"
#include "backend/zero-step.h"
#include "base/extents.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "mock-backend.h"
#include "run-suite.h"

#define M (UINT64_C (1) << 20)

/* Neighbours with equal flags are merged, others are not.  An empty extent is
 * ignored.
 */
START_TEST (merge)
{
  struct extents list = EXTENTS_INIT;

  ck_assert_uint_eq (extents_end (&list), 0);
  ck_assert_int_eq (extents_add (&list, 100, 0, 1), 0);
  ck_assert_uint_eq (list.len, 0);
  ck_assert_int_eq (extents_add (&list, 100, 5, 1), 0);
  ck_assert_int_eq (extents_add (&list, 105, 5, 1), 0);
  ck_assert_int_eq (extents_add (&list, 110, 5, 0), 0);
  ck_assert_uint_eq (list.len, 2);
  ck_assert_uint_eq (list.extent[0].offset, 100);
  ck_assert_uint_eq (list.extent[0].length, 10);
  ck_assert_uint_eq (list.extent[0].flags, 1);
  ck_assert_uint_eq (list.extent[1].flags, 0);
  ck_assert_uint_eq (extents_end (&list), 115);
  extents_free (&list);
}
END_TEST

/* An extent that leaves a gap or overlaps is refused and changes nothing. */
START_TEST (contiguous)
{
  struct extents list = EXTENTS_INIT;

  ck_assert_int_eq (extents_add (&list, 0, 10, 0), 0);
  ck_assert_int_eq (extents_add (&list, 11, 10, 0), -1);
  ck_assert_int_eq (errno, EINVAL);
  ck_assert_int_eq (extents_add (&list, 9, 10, 0), -1);
  ck_assert_uint_eq (extents_end (&list), 10);
  extents_clear (&list);
  ck_assert_int_eq (extents_add (&list, 500, 1, 0), 0);
  ck_assert_uint_eq (extents_end (&list), 501);
  extents_free (&list);
}
END_TEST

/* In lists of all small lengths, each offset is found in its extent.  Offsets
 * before the list give its first extent, those after it its length.
 */
START_TEST (find)
{
  struct extents list = EXTENTS_INIT;

  ck_assert_uint_eq (extents_find (&list, 0), 0);
  for (uint64_t n = 0; n < 40; ++n) {
    const uint64_t end = 100 + n * (n + 1) / 2;

    ck_assert_int_eq (extents_add (&list, end, n + 1, n % 2), 0);
    ck_assert_uint_eq (extents_find (&list, 0), 0);
    ck_assert_uint_eq (extents_find (&list, end + n + 1), n + 1);
    for (size_t i = 0; i < list.len; ++i) {
      const struct extent *e = &list.extent[i];

      ck_assert_uint_eq (extents_find (&list, e->offset), i);
      ck_assert_uint_eq (extents_find (&list, e->offset + e->length - 1), i);
    }
  }
  extents_free (&list);
}
END_TEST

/* A copy is a part of a list, from any byte to any byte, and as much of it as
 * there is room for.
 */
START_TEST (copies)
{
  struct extents from = EXTENTS_INIT, to = EXTENTS_INIT;

  ck_assert (!extents_covers (&from, 0));
  ck_assert_int_eq (extents_add (&from, 100, 10, 0), 0);
  ck_assert_int_eq (extents_add (&from, 110, 10, 1), 0);
  ck_assert_int_eq (extents_add (&from, 120, 10, 0), 0);
  for (uint64_t pos = 90; pos < 140; ++pos)
    ck_assert (extents_covers (&from, pos) == (pos >= 100 && pos < 130));

  for (uint64_t start = 100; start < 130; ++start)
    for (uint64_t end = start + 1; end < 140; ++end)
      for (size_t max = 1; max < 5; ++max) {
        const size_t first = (start - 100) / 10;
        const uint64_t room = MIN (100 + (first + max) * 10, UINT64_C (130));
        const uint64_t stop = MIN (end, room);

        extents_clear (&to);
        ck_assert_int_eq (extents_copy (&from, start, end, max, &to), 0);
        ck_assert_uint_eq (to.extent[0].offset, start);
        ck_assert_uint_eq (extents_end (&to), stop);
        ck_assert_uint_eq (to.len, (stop - 1) / 10 - 10 - first + 1);
        for (size_t i = 0; i < to.len; ++i)
          ck_assert_uint_eq (to.extent[i].flags, (first + i) % 2);
      }
  ck_assert_int_eq (extents_copy (&from, 130, 140, 9, &to), 0);

  /* Merged with what is there; no room for another. */
  extents_clear (&to);
  ck_assert_int_eq (extents_add (&to, 105, 2, 0), 0);
  ck_assert_int_eq (extents_copy (&from, 107, 130, 2, &to), 0);
  ck_assert_uint_eq (to.len, 2);
  ck_assert_uint_eq (extents_end (&to), 120);

  extents_swap (&from, &to);
  ck_assert_uint_eq (from.len, 2);
  ck_assert_uint_eq (to.len, 3);
  extents_free (&from);
  extents_free (&to);
}
END_TEST

/* Many extents keep their order. */
START_TEST (many)
{
  struct extents list = EXTENTS_INIT;

  for (uint64_t i = 0; i < 1000; ++i)
    ck_assert_int_eq (extents_add (&list, i * 7, 7, i % 2), 0);
  ck_assert_uint_eq (list.len, 1000);
  for (uint64_t i = 0; i < 1000; ++i)
    ck_assert_uint_eq (list.extent[i].offset, i * 7);
  extents_free (&list);
}
END_TEST

/* Holes are not read.  One byte that is not zero is found anywhere in data, and
 * does not matter outside the range.
 */
START_TEST (all_zero)
{
  struct mock_log *log = mock_log_new (false);
  struct mock *m = mock_new (log, "disk", 3 * M + 1, false);
  struct backend *b = mock_backend (m);
  static const uint64_t at[] = { 0, 31, 32, M - 1, M, 2 * M + 5, 3 * M };
  uint8_t zero = 0, one = 1;

  ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0, NULL, NULL), 1);
  ck_assert_uint_eq (mock_count (m, MOCK_PREAD), 0);
  for (unsigned i = 0; i < sizeof at / sizeof at[0]; ++i) {
    mock_fill (m, &one, 1, at[i]);
    mock_set_max_extents (m, i % 2);
    ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0, NULL, NULL), 0);
    ck_assert_int_eq (backend_is_zero (b, 1, at[i], NULL, NULL), 0);
    if (at[i] > 0)
      ck_assert_int_eq (backend_is_zero (b, at[i], 0, NULL, NULL), 1);
    mock_fill (m, &zero, 1, at[i]);
    ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0, NULL, NULL), 1);
  }
  b->knows_extents = false;
  ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0, NULL, NULL), 1);
  mock_fail (m, MOCK_PREAD, MOCK_ANYWHERE, 2, 1, EIO);
  ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0, NULL, NULL), -1);
  mock_free (m);
  mock_log_free (log);
}
END_TEST

/* Runs of zeroes and of data. */
START_TEST (runs)
{
  char buf[10000] = { 0 };
  bool zero;

  ck_assert_uint_eq (zero_run (buf, 10000, 4096, 4096, &zero), 10000);
  ck_assert (zero);
  ck_assert_uint_eq (zero_run (buf, 100, 4096, 4096, &zero), 100);
  ck_assert (zero);
  buf[4095] = buf[8192] = 1;
  ck_assert_uint_eq (zero_run (buf, 10000, 4096, 4096, &zero), 4096);
  ck_assert (!zero);
  ck_assert_uint_eq (zero_run (buf + 4096, 5904, 4096, 4096, &zero), 4096);
  ck_assert (zero);
  ck_assert_uint_eq (zero_run (buf + 8192, 1808, 4096, 4096, &zero), 1808);
  ck_assert (!zero);
  ck_assert_uint_eq (zero_run (buf + 4094, 2, 4096, 4096, &zero), 2);
  ck_assert (!zero);
  /* One granule that is zero only in part is data. */
  ck_assert_uint_eq (zero_run (buf, 10000, 16384, 16384, &zero), 10000);
  ck_assert (!zero);
}
END_TEST

/* Short runs of zeroes belong to the data beside them, long ones end where the
 * data begins.
 */
START_TEST (short_runs)
{
  char buf[100] = { 0 };
  bool zero;

  buf[20] = buf[30] = buf[71] = 1;
  ck_assert_uint_eq (zero_run (buf, 100, 1, 20, &zero), 20);
  ck_assert (zero);
  ck_assert_uint_eq (zero_run (buf, 100, 1, 21, &zero), 31);
  ck_assert (!zero);
  ck_assert_uint_eq (zero_run (buf + 20, 80, 1, 20, &zero), 11);
  ck_assert (!zero);
  ck_assert_uint_eq (zero_run (buf + 31, 69, 1, 20, &zero), 40);
  ck_assert (zero);
  ck_assert_uint_eq (zero_run (buf + 71, 29, 1, 20, &zero), 1);
  ck_assert_uint_eq (zero_run (buf + 71, 29, 1, 40, &zero), 29);
  ck_assert (!zero);
  ck_assert_uint_eq (zero_run (buf + 72, 28, 1, 40, &zero), 28);
  ck_assert (zero);
}
END_TEST

/* A step grows while zeroes take no time, shrinks to what takes a tenth of a
 * second, and stays within its limits.
 */
START_TEST (zero_steps)
{
  struct zero_step step = { 0 };

  ck_assert_uint_eq (zero_step_get (&step), 32 * M);
  zero_step_learn (&step, 16 * M, 0.001); /* says nothing about 32M */
  ck_assert_uint_eq (zero_step_get (&step), 32 * M);
  zero_step_learn (&step, 32 * M, 0.001);
  ck_assert_uint_eq (zero_step_get (&step), 64 * M);
  zero_step_learn (&step, 64 * M, 0.07);
  ck_assert_uint_eq (zero_step_get (&step), 64 * M);
  zero_step_learn (&step, 64 * M, 0.4);
  ck_assert_uint_eq (zero_step_get (&step), 16 * M);
  zero_step_learn (&step, 100 * M, 0.2); /* no reason to grow */
  ck_assert_uint_eq (zero_step_get (&step), 16 * M);
  zero_step_learn (&step, 16 * M, 1000);
  ck_assert_uint_eq (zero_step_get (&step), ZERO_STEP_MIN);
  for (unsigned i = 0; i < 20; ++i)
    zero_step_learn (&step, 1 << 30, 0);
  ck_assert_uint_eq (zero_step_get (&step), ZERO_STEP_MAX);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("extents");
  TCase *tc = tcase_create ("extents");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, merge);
  tcase_add_test (tc, contiguous);
  tcase_add_test (tc, find);
  tcase_add_test (tc, copies);
  tcase_add_test (tc, many);
  tcase_add_test (tc, all_zero);
  tcase_add_test (tc, runs);
  tcase_add_test (tc, short_runs);
  tcase_add_test (tc, zero_steps);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
