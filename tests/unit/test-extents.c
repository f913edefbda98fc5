/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that a list of extents stays contiguous and merged, that the extent at
 * an offset is found, and that backend_is_zero is right.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include <check.h>

#include "backend/backend.h"
#include "base/extents.h"
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
START_TEST (is_zero)
{
  struct mock_log *log = mock_log_new (false);
  struct mock *m = mock_new (log, "disk", 3 * M + 1, false);
  struct backend *b = mock_backend (m);
  static const uint64_t at[] = { 0, 31, 32, M - 1, M, 2 * M + 5, 3 * M };
  uint8_t zero = 0, one = 1;

  ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0), 1);
  ck_assert_uint_eq (mock_count (m, MOCK_PREAD), 0);
  for (unsigned i = 0; i < sizeof at / sizeof at[0]; ++i) {
    mock_fill (m, &one, 1, at[i]);
    mock_set_max_extents (m, i % 2);
    ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0), 0);
    ck_assert_int_eq (backend_is_zero (b, 1, at[i]), 0);
    if (at[i] > 0)
      ck_assert_int_eq (backend_is_zero (b, at[i], 0), 1);
    mock_fill (m, &zero, 1, at[i]);
    ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0), 1);
  }
  b->knows_extents = false;
  ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0), 1);
  mock_fail (m, MOCK_PREAD, MOCK_ANYWHERE, 2, 1, EIO);
  ck_assert_int_eq (backend_is_zero (b, 3 * M + 1, 0), -1);
  mock_free (m);
  mock_log_free (log);
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
  tcase_add_test (tc, many);
  tcase_add_test (tc, is_zero);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
