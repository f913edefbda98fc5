/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the plan hands out everything that is invalid, and nothing twice;
 * that what is wanted comes first, the latest first; that holes are not read;
 * and that large regions come in pieces, wanted or not.
 */

#include <config.h>

#include <stdlib.h>

#include <check.h>

#include "mock-backend.h"
#include "plan.h"
#include "rounding.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)
#define BATCH (256 * K)

static struct region_map *map;
static struct plan plan;

static void
begin (uint64_t size, uint64_t region_size, bool use_extents)
{
  map = region_map_new (size, region_size);
  ck_assert_ptr_nonnull (map);
  plan_init (&plan, map, use_extents);
}

static void
end (void)
{
  plan_destroy (&plan);
  region_map_free (map);
}

/* The next range must be this; its end is 0 where it does not matter. */
static struct plan_range
must_be (uint64_t start, uint64_t end)
{
  struct plan_range range;

  ck_assert_int_eq (plan_next (&plan, BATCH, &range), PLAN_RANGE);
  ck_assert_uint_eq (range.start, start);
  if (end)
    ck_assert_uint_eq (range.end, end);
  return range;
}

/* It is in the destination now. */
static void
done (const struct plan_range *range)
{
  const uint64_t region_size = region_map_region_size (map);
  struct plan_cut *cut = range->cut;

  if (cut == NULL)
    region_map_set (map, range->start / region_size,
                    div_round_up (range->end - range->start, region_size));
  else if (plan_piece_done (&plan, cut, true)) {
    region_map_set (map, cut->start / region_size, 1);
    plan_cut_done (&plan, cut);
  }
  plan_range_done (&plan, range);
}

static void
failed (const struct plan_range *range)
{
  if (range->cut)
    ck_assert (!plan_piece_done (&plan, range->cut, false));
  plan_range_done (&plan, range);
}

/* Without wishes: the order of the disk, what is valid left out. */
START_TEST (disk_order)
{
  struct plan_range range;

  begin (M, 4 * K, false);
  region_map_set (map, 32, 32);
  must_be (0, 128 * K);
  must_be (256 * K, 512 * K);
  must_be (512 * K, 768 * K);
  must_be (768 * K, M);
  ck_assert_int_eq (plan_next (&plan, BATCH, &range), PLAN_END);
  end ();
}
END_TEST

/* The latest wish comes first, whole regions of it; then the others; and the
 * walk over the disk leaves all of them out, also while they are being copied.
 */
START_TEST (wishes_first)
{
  struct plan_range a, b, range;

  begin (4 * M, 4 * K, false);
  must_be (0, BATCH);
  plan_want (&plan, 2 * M + 100, 2 * M + 300 * K);
  plan_want (&plan, M + 4095, M + 4097);
  a = must_be (M, M + 8 * K);
  b = must_be (2 * M, 2 * M + BATCH);
  must_be (2 * M + BATCH, 2 * M + 300 * K);
  must_be (BATCH, 2 * BATCH);
  must_be (2 * BATCH, 3 * BATCH);
  must_be (3 * BATCH, M);
  must_be (M + 8 * K, M + 8 * K + BATCH);
  done (&b);
  done (&a);
  for (uint64_t pos = M + 8 * K + BATCH; pos < 2 * M; pos = range.end)
    range = must_be (pos, MIN (pos + BATCH, 2 * M));
  must_be (2 * M + 300 * K, 0);
  end ();
}
END_TEST

/* What is under way, or valid, or another's wish, is not handed out again. */
START_TEST (wishes_apart)
{
  begin (4 * M, 4 * K, false);
  must_be (0, BATCH);
  plan_want (&plan, 0, BATCH);
  must_be (BATCH, 2 * BATCH);
  /* Around another one, and behind one. */
  plan_want (&plan, M, M + 16 * K);
  plan_want (&plan, M - 8 * K, M + 8 * K);
  plan_want (&plan, M + 4 * K, M + 32 * K);
  region_map_set (map, M / (4 * K) + 5, 1);
  must_be (M + 16 * K, M + 20 * K);
  must_be (M + 24 * K, M + 32 * K);
  must_be (M - 8 * K, M);
  must_be (M, M + 16 * K);
  plan_want (&plan, M, M + 16 * K);
  must_be (2 * BATCH, 3 * BATCH);
  must_be (3 * BATCH, M - 8 * K);
  must_be (M + 32 * K, M + 32 * K + BATCH);
  end ();
}
END_TEST

/* The oldest are forgotten, but never what is under way. */
START_TEST (too_many_wishes)
{
  begin (256 * M, 4 * K, false);
  plan_want (&plan, M, M + 2 * BATCH);
  must_be (M, M + BATCH);
  for (unsigned i = 2; i < 2 + 2 * PLAN_MAX_WISHES; ++i)
    plan_want (&plan, i * M, i * M + 4 * K);
  for (unsigned i = 1 + 2 * PLAN_MAX_WISHES; i > 2 + PLAN_MAX_WISHES; --i)
    must_be (i * M, i * M + 4 * K);
  must_be (M + BATCH, M + 2 * BATCH);
  /* All are under way: there is no place. */
  plan_want (&plan, 100 * M, 101 * M);
  must_be (0, BATCH);
  end ();
}
END_TEST

/* A region larger than a batch, wanted while the disk's walk is inside another,
 * and while it is inside that same one.
 */
START_TEST (wishes_for_pieces)
{
  struct plan_range piece[4];

  begin (8 * M, M, false);
  must_be (0, BATCH);
  plan_want (&plan, 5, M / 2);
  must_be (BATCH, 2 * BATCH);
  plan_want (&plan, 3 * M + 5, 3 * M + 6);
  for (unsigned i = 0; i < 4; ++i) {
    piece[i] = must_be (3 * M + i * BATCH, 3 * M + (i + 1) * BATCH);
    ck_assert_ptr_nonnull (piece[i].cut);
  }
  must_be (2 * BATCH, 3 * BATCH);
  for (unsigned i = 0; i < 4; ++i) {
    ck_assert (!region_map_is_valid (map, 3));
    done (&piece[i]);
  }
  ck_assert (region_map_is_valid (map, 3));
  end ();
}
END_TEST

/* A client has written what was wanted, or the plan begins again. */
START_TEST (wishes_that_end_early)
{
  struct plan_range range;

  begin (8 * M, _i ? M : 4 * K, false);
  plan_want (&plan, 3 * M, 4 * M);
  range = must_be (3 * M, 3 * M + BATCH);
  if (_i < 2) {
    region_map_set (map, 3 * M / region_map_region_size (map),
                    M / region_map_region_size (map));
    must_be (0, BATCH);
    done (&range);
  }
  else {
    plan_restart (&plan);
    failed (&range);
    must_be (0, BATCH);
    plan_want (&plan, 3 * M, 4 * M);
    must_be (3 * M, 3 * M + BATCH);
  }
  end ();
}
END_TEST

/* Holes that are known are zeroes, wanted or not, and waited for by the disk's
 * walk only.
 */
START_TEST (holes)
{
  struct extents list = EXTENTS_INIT;
  struct plan_range range;
  uint64_t offset, count;

  begin (4 * M, 4 * K, true);
  ck_assert_int_eq (plan_next (&plan, BATCH, &range), PLAN_WANT_EXTENTS);
  plan_want (&plan, 3 * M, 3 * M + 8 * K);
  range = must_be (3 * M, 3 * M + 8 * K);
  ck_assert (!range.zero);
  ck_assert_int_eq (plan_next (&plan, BATCH, &range), PLAN_WANT_EXTENTS);
  ck_assert (plan_wants_extents (&plan, &offset, &count));
  ck_assert_uint_eq (offset, 0);
  extents_add (&list, 0, M, 0);
  extents_add (&list, M, 3 * M, EXTENT_ZERO);
  ck_assert_int_eq (plan_add_extents (&plan, &list), 0);
  plan_want (&plan, 2 * M, 2 * M + 8 * K);
  range = must_be (2 * M, 2 * M + 8 * K);
  ck_assert (range.zero);
  for (unsigned i = 0; i < 4; ++i)
    must_be (i * BATCH, (i + 1) * BATCH);
  range = must_be (M, 2 * M);
  ck_assert (range.zero);
  must_be (2 * M + 8 * K, 3 * M);
  must_be (3 * M + 8 * K, 4 * M);
  extents_free (&list);
  end ();
}
END_TEST

/* At random: clients want and write, copies end in any order, some of them
 * without success.  Nothing is handed out that is under way, or was copied; and
 * in the end all is valid.
 */
START_TEST (everything_once)
{
  const uint64_t size = 16 * M - (_i % 3) * 1536, region_size =
    (4 * K) << _i % 5 * 2;
  struct plan_range way[8], range;
  unsigned n = 0, i;
  uint64_t state = _i + 1, pos;
  bool restart = false;
  enum plan_result r;

  begin (size, region_size, false);
  for (;;) {
    if (mock_random (&state) % 4 == 0) {
      pos = mock_random (&state) % size;
      plan_want (&plan, pos, pos + 1 + mock_random (&state) % M);
    }
    if (mock_random (&state) % 16 == 0)
      region_map_set (map, mock_random (&state) % region_map_regions (map), 1);

    r = n < 8 ? plan_next (&plan, BATCH, &range) : PLAN_WANT_EXTENTS;
    if (r == PLAN_RANGE) {
      ck_assert_uint_lt (range.start, range.end);
      ck_assert_uint_le (range.end, size);
      if (!range.cut)
        ck_assert_uint_eq (range.start % region_size, 0);
      for (i = 0; i < n; ++i)
        ck_assert (range.end <= way[i].start || way[i].end <= range.start);
      ck_assert (!region_map_is_valid (map, range.start / region_size));
      way[n++] = range;
    }
    if (n > 0 && (r != PLAN_RANGE || mock_random (&state) % 2 == 0)) {
      i = mock_random (&state) % n;
      range = way[i];
      way[i] = way[--n];
      if (mock_random (&state) % 64)
        done (&range);
      else {
        failed (&range);
        restart = true;
      }
    }
    else if (n == 0 && r == PLAN_END) {
      if (!restart)
        break;
      plan_restart (&plan);
      restart = false;
    }
  }
  ck_assert_uint_eq (region_map_count_valid (map), region_map_regions (map));
  ck_assert_uint_eq (plan.open_cuts, 0);
  for (i = 0; i < PLAN_MAX_WISHES; ++i)
    ck_assert (!plan.wish[i].open);
  end ();
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("plan");
  TCase *tc = tcase_create ("plan");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, disk_order);
  tcase_add_test (tc, wishes_first);
  tcase_add_test (tc, wishes_apart);
  tcase_add_test (tc, too_many_wishes);
  tcase_add_test (tc, wishes_for_pieces);
  tcase_add_loop_test (tc, wishes_that_end_early, 0, 3);
  tcase_add_test (tc, holes);
  tcase_add_loop_test (tc, everything_once, 0, 30);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
