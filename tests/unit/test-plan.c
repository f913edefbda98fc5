/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the plan hands out everything that is invalid, and nothing twice.
 * Wishes come first, the latest first.  Holes are not read, and the work
 * depends on the number of extents, however many the source has.  Large regions
 * come in pieces, wished for or not.  Ranges that a lost server interrupted
 * come again, before the walk over the disk continues, and none is forgotten,
 * even if the map is set back.  Unreadable ranges are set aside, and come again
 * in a round, in smaller pieces.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "base/rounding.h"
#include "hydration/plan.h"
#include "mock-backend.h"
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

/* The next range must be this one.  end is 0 where it does not matter. */
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

/* The range is in the destination now. */
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

/* A server was lost while the range was copied. */
static void
returned (struct plan_range *range)
{
  plan_return (&plan, range);
  failed (range);
}

/* All valid regions become durable. */
static void
commit (void)
{
  uint64_t words[WORDS_PER_SECTOR];
  uint32_t sector;

  while (region_map_take_dirty (map, &sector, 1) == 1) {
    region_map_snapshot (map, sector, words);
    region_map_set_durable (map, sector, words);
  }
}

/* All regions that are not durable become invalid. */
static void
set_back (unsigned *times)
{
  ++*times;
  region_map_forget (map);
  plan_set_back (&plan);
}

/* The source cannot read the range.  True: that is news. */
static bool
bad (struct plan_range *range)
{
  const bool new = plan_bad (&plan, range);

  failed (range);
  return new;
}

static void
must_be_at_end (void)
{
  struct plan_range range;

  ck_assert_int_eq (plan_next (&plan, BATCH, &range), PLAN_END);
}

/* Copy all ranges that come, but fail where the source is bad.  Returns how
 * many came.
 */
static unsigned
copy_all (uint64_t bad_start, uint64_t bad_end)
{
  struct plan_range range;
  unsigned n = 0;

  for (; plan_next (&plan, BATCH, &range) == PLAN_RANGE; ++n) {
    if (range.start < bad_end && bad_start < range.end)
      bad (&range);
    else if (range.probe)
      plan_range_done (&plan, &range);
    else
      done (&range);
  }
  return n;
}

/* Exactly this range must be bad; nothing if both are 0. */
static void
bad_must_be (uint64_t start, uint64_t end, uint64_t regions)
{
  struct plan_bad_sum sum;

  plan_sum_bad (&plan, &sum);
  ck_assert_uint_eq (sum.bytes, end - start);
  ck_assert_uint_eq (sum.regions, regions);
  ck_assert_uint_eq (sum.ranges, end > start);
  if (end > start) {
    ck_assert_uint_eq (sum.range[0].start, start);
    ck_assert_uint_eq (sum.range[0].end, end);
  }
}

/* Without wishes: the order of the disk, without valid regions. */
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

/* The latest wish comes first, in whole regions, then the others.  The walk
 * over the disk leaves out all of them, even while they are being copied.
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

/* Regions that are under way, or valid, or in another wish, are not handed out
 * again.
 */
START_TEST (wishes_apart)
{
  begin (4 * M, 4 * K, false);
  must_be (0, BATCH);
  plan_want (&plan, 0, BATCH);
  must_be (BATCH, 2 * BATCH);
  /* A wish that begins before another one, and one that ends behind it. */
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

/* The oldest wishes are forgotten, but none that is under way. */
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
  /* All wishes are under way: there is no place for another. */
  plan_want (&plan, 100 * M, 101 * M);
  must_be (0, BATCH);
  end ();
}
END_TEST

/* A wish for a region larger than a batch, while the disk's walk is inside the
 * same region, and while it is inside another one.
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

/* A client has written the wish's regions, or the plan begins again. */
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

/* Known holes are zeroes, also in a wish.  Only the disk's walk waits until
 * they are known.
 */
START_TEST (holes)
{
  struct extents list = EXTENTS_INIT;
  struct ahead_question *q;
  struct plan_range range;

  begin (4 * M, 4 * K, true);
  ck_assert_int_eq (plan_next (&plan, BATCH, &range), PLAN_WANT_EXTENTS);
  plan_want (&plan, 3 * M, 3 * M + 8 * K);
  range = must_be (3 * M, 3 * M + 8 * K);
  ck_assert (!range.zero);
  ck_assert_int_eq (plan_next (&plan, BATCH, &range), PLAN_WANT_EXTENTS);
  q = plan_ask (&plan);
  ck_assert_ptr_nonnull (q);
  ck_assert_uint_eq (q->offset, 0);
  extents_add (&list, 0, M, 0);
  extents_add (&list, M, 3 * M, EXTENT_ZERO);
  ck_assert_int_eq (plan_answer (&plan, q, &list), 0);
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

/* Many extents, in short answers.  After each answer the plan is asked as often
 * as four workers do.  The source has bytes of data and between them holes of
 * one byte, or long holes.  The work is to look at each extent a few times.  A
 * region that must be known as a whole, because a batch is not smaller, does
 * not wait for ever.
 * _i: short or long holes; regions of 4 KiB, 2 MiB, 1 GiB; batch.
 */
START_TEST (many_extents)
{
  const uint64_t hole = _i % 2 ? 128 * K : 1;
  const uint64_t region_size = (4 * K) << _i / 2 % 3 * 9;
  const uint64_t batch = _i < 6 ? BATCH : 1024 * M;
  const uint64_t size = _i % 2 ? 1024 * M + 5 : 256 * K + 5;
  const size_t each = 64;
  struct extents list = EXTENTS_INIT;
  uint64_t told = 0, asked = 0, read = 0, zero = 0;
  struct plan_range range;
  enum plan_result r;

  begin (size, region_size, true);
  do {
    struct ahead_question *q = plan_ask (&plan);

    if (q) {
      uint64_t pos = q->offset;

      extents_clear (&list);
      while (pos < size && list.len < each) {
        const bool data = pos % (hole + 1) == 0;
        const uint64_t n = data ? 1 : MIN (hole, size - pos);

        extents_add (&list, pos, n, data ? 0 : EXTENT_ZERO);
        pos += n;
      }
      ck_assert_int_eq (plan_answer (&plan, q, &list), 0);
      told += list.len;
    }
    for (unsigned i = 0; i < 4; ++i) {
      asked++;
      r = plan_next (&plan, batch, &range);
      if (r == PLAN_RANGE) {
        *(range.zero ? &zero : &read) += range.end - range.start;
        done (&range);
      }
    }
    ck_assert (q || r != PLAN_WANT_EXTENTS);
  } while (r != PLAN_END);

  ck_assert_uint_eq (read + zero, size);
  ck_assert_uint_eq (region_map_count_valid (map), region_map_regions (map));
  if (_i % 2 == 0)
    ck_assert_uint_le (zero, region_size < size ? 4 * K : 0);
  else if (region_size == 4 * K)
    ck_assert_uint_le (read, size / 8);
  ck_assert_uint_le (plan.ahead.looked_at, 5 * told + 5 * asked);
  extents_free (&list);
  end ();
}
END_TEST

/* Returned ranges come after wishes and before the disk's walk: neighbours as
 * one, in batches, without regions that have become valid, and not twice.
 * Zeroes are still known to be zeroes.
 */
START_TEST (returned_ranges)
{
  struct extents list = EXTENTS_INIT;
  struct plan_range range[4], again;

  begin (8 * M, 4 * K, true);
  extents_add (&list, 0, 2 * M, 0);
  extents_add (&list, 2 * M, M, EXTENT_ZERO);
  extents_add (&list, 3 * M, 5 * M, 0);
  ck_assert_int_eq (plan_answer (&plan, plan_ask (&plan), &list), 0);
  for (unsigned i = 0; i < 4; ++i)
    range[i] = must_be (i * BATCH, (i + 1) * BATCH);
  returned (&range[2]);
  returned (&range[1]);
  done (&range[3]);
  plan_want (&plan, 6 * M, 6 * M + 4 * K);
  region_map_set (map, BATCH / (4 * K), 1);
  must_be (6 * M, 6 * M + 4 * K);
  range[1] = must_be (BATCH + 4 * K, 2 * BATCH + 4 * K);
  ck_assert (range[1].was_returned && !range[1].zero && !range[1].wish);
  /* While one is under way another is returned, and the walk continues. */
  returned (&range[0]);
  range[0] = must_be (0, BATCH);
  range[2] = must_be (2 * BATCH + 4 * K, 3 * BATCH);
  again = must_be (M, M + BATCH);
  ck_assert (!again.was_returned);
  /* Returned once more. */
  returned (&range[2]);
  range[2] = must_be (2 * BATCH + 4 * K, 3 * BATCH);
  for (unsigned i = 0; i < 3; ++i)
    done (&range[i]);
  must_be (M + BATCH, 0);
  ck_assert_uint_eq (region_map_count_valid (map), M / (4 * K));
  must_be (M + 2 * BATCH, 0);
  must_be (M + 3 * BATCH, 2 * M);
  range[0] = must_be (2 * M, 3 * M);
  must_be (3 * M, 0);
  returned (&range[0]);
  range[0] = must_be (2 * M, 3 * M);
  ck_assert (range[0].zero && range[0].was_returned);
  done (&range[0]);
  ck_assert_uint_eq (plan.returned.len, 0);
  extents_free (&list);
  end ();
}
END_TEST

/* A wish whose range was returned lies ahead of the disk's walk, which goes
 * around the range until it has been copied.
 */
START_TEST (returned_wish)
{
  struct plan_range range;

  begin (2 * M, _i ? BATCH : 4 * K, false);
  plan_want (&plan, M, M + BATCH);
  range = must_be (M, M + BATCH);
  returned (&range);
  ck_assert (!plan.wish[0].open);
  range = must_be (M, M + BATCH);
  ck_assert (range.was_returned);
  /* Wished for again, while it is under way. */
  plan_want (&plan, M, M + BATCH);
  for (unsigned i = 0; i < 8; ++i)
    if (i != 4)
      must_be (i * BATCH, (i + 1) * BATCH);
  must_be_at_end ();
  returned (&range);
  range = must_be (M, M + BATCH);
  done (&range);
  must_be_at_end ();
  end ();
}
END_TEST

/* A piece is returned: the whole region comes again after all pieces that are
 * under way have ended, and no other piece begins before.  The region is
 * complete when all pieces of the second time are.
 * _i: of the disk's walk, of a wish; 2: all pieces were handed out, 3: and the
 * plan begins again.
 */
START_TEST (returned_pieces)
{
  struct plan_range piece[4], other;
  const uint64_t start = _i == 1 ? 4 * M : 0;
  const unsigned n = _i < 2 ? 3 : 4;

  begin (8 * M, M, false);
  if (_i == 1)
    plan_want (&plan, 4 * M, 5 * M);
  for (unsigned i = 0; i < n; ++i)
    piece[i] = must_be (start + i * BATCH, start + (i + 1) * BATCH);
  done (&piece[0]);
  returned (&piece[1]);
  if (_i == 3) {
    plan_restart (&plan);
    region_map_set (map, 0, 1);
  }
  other = must_be (_i == 1 ? 0 : M, 0);
  if (_i == 3) {
    done (&piece[2]);
    done (&piece[3]);
    ck_assert_uint_eq (plan.open_cuts, 1);
    end ();
    return;
  }
  for (unsigned i = 2; i < n; ++i)
    done (&piece[i]);
  ck_assert (!region_map_is_valid (map, start / M));
  for (unsigned i = 0; i < 4; ++i) {
    piece[i] = must_be (start + i * BATCH, start + (i + 1) * BATCH);
    ck_assert (piece[i].cut->was_returned);
  }
  must_be (other.end, 0);
  done (&piece[1]);
  done (&piece[0]);
  done (&piece[3]);
  ck_assert (!region_map_is_valid (map, start / M));
  done (&piece[2]);
  ck_assert (region_map_is_valid (map, start / M));
  ck_assert_uint_eq (plan.returned.len, 0);
  end ();
}
END_TEST

/* A bad range that is returned while it is tried again stays bad, and is tried
 * in the next round.  A returned range that becomes bad is returned no more.
 */
START_TEST (returned_and_bad)
{
  struct plan_range range;

  begin (M, 4 * K, false);
  range = must_be (0, BATCH);
  ck_assert (bad (&range));
  plan_retry (&plan);
  range = must_be (0, PLAN_BAD_PIECE);
  returned (&range);
  bad_must_be (0, BATCH, 64);
  copy_all (0, 0);
  bad_must_be (0, PLAN_BAD_PIECE, 16);
  plan_retry (&plan);
  copy_all (0, 0);
  bad_must_be (0, 0, 0);
  ck_assert_uint_eq (region_map_count_valid (map), 256);
  end ();

  begin (M, 4 * K, false);
  range = must_be (0, BATCH);
  returned (&range);
  range = must_be (0, BATCH);
  ck_assert (bad (&range));
  ck_assert_uint_eq (plan.returned.len, 0);
  must_be (BATCH, 2 * BATCH);
  end ();
}
END_TEST

/* Very many separate wishes are returned: they come again before the list has
 * to join any of them, and none is lost.
 */
START_TEST (many_returned)
{
  const unsigned n = 3 * BAD_MAX;
  struct plan_range range[64];
  unsigned way = 0, next = 0;
  uint64_t state = 1;

  begin (n * 8 * K, 4 * K, false);
  for (unsigned i = 0; i < n; ++i)
    region_map_set (map, 2 * i, 1);
  while (next < n || way > 0) {
    if (next < n) {
      plan_want (&plan, next * 8 * K + 4 * K, next * 8 * K + 8 * K);
      next++;
    }
    if (way < 64 && next < n) {
      ck_assert_int_eq (plan_next (&plan, BATCH, &range[way]), PLAN_RANGE);
      for (unsigned i = 0; i < way; ++i)
        ck_assert (range[way].end <= range[i].start ||
                   range[i].end <= range[way].start);
      way++;
      continue;
    }
    while (way > 0)
      if (mock_random (&state) % 16 == 0)
        done (&range[--way]);
      else
        returned (&range[--way]);
    ck_assert_uint_le (plan.returned.len, BAD_MAX / 2 + 64);
  }
  ck_assert_uint_ge (plan.returned.len, BAD_MAX / 4);
  copy_all (0, 0);
  ck_assert_uint_eq (region_map_count_valid (map), region_map_regions (map));
  ck_assert_uint_eq (plan.returned.len, 0);
  end ();
}
END_TEST

/* The map is set back: a region in pieces is not complete if one of its pieces
 * was written before, whether pieces are left, all were handed out, or the
 * region was reported as complete.  Everything that was handed out comes again,
 * also of a wish, around which the disk's walk goes.
 */
START_TEST (setting_back)
{
  struct plan_range a[4], b[4], c[2], d[4];
  struct plan_cut *reported;

  begin (8 * M, M, false);
  region_map_set (map, 0, 1);
  commit ();
  for (unsigned i = 0; i < 4; ++i)
    a[i] = must_be (M + i * BATCH, M + (i + 1) * BATCH);
  for (unsigned i = 0; i < 3; ++i)
    done (&a[i]);
  ck_assert (plan_piece_done (&plan, a[3].cut, true));
  reported = a[3].cut;
  plan_want (&plan, 5 * M, 6 * M);
  for (unsigned i = 0; i < 4; ++i)
    b[i] = must_be (5 * M + i * BATCH, 5 * M + (i + 1) * BATCH);
  for (unsigned i = 0; i < 2; ++i)
    c[i] = must_be (2 * M + i * BATCH, 2 * M + (i + 1) * BATCH);
  done (&b[0]);
  done (&c[0]);
  ck_assert (!reported->failed);

  region_map_forget (map);
  plan_set_back (&plan);
  ck_assert (reported->failed);
  plan_cut_done (&plan, reported);
  plan_range_done (&plan, &a[3]);
  for (unsigned i = 0; i < 4; ++i)
    d[i] = must_be (M + i * BATCH, M + (i + 1) * BATCH);
  returned (&c[1]);
  for (unsigned i = 1; i < 4; ++i)
    done (&b[i]);
  ck_assert_uint_eq (region_map_count_valid (map), 1);
  for (unsigned i = 0; i < 4; ++i)
    done (&d[i]);
  ck_assert (region_map_is_valid (map, 1));
  copy_all (0, 0);
  ck_assert_uint_eq (region_map_count_valid (map), 8);
  ck_assert_uint_eq (plan.open_cuts, 0);
  ck_assert_uint_eq (plan.returned.len, 0);
  end ();

  /* Whole regions.  A range of the old walk is not handed out twice. */
  begin (2 * M, 4 * K, false);
  a[0] = must_be (0, BATCH);
  a[1] = must_be (BATCH, 2 * BATCH);
  returned (&a[1]);
  a[1] = must_be (BATCH, 2 * BATCH);
  plan_set_back (&plan);
  b[0] = must_be (0, BATCH);
  returned (&a[0]);
  b[1] = must_be (2 * BATCH, 3 * BATCH);
  returned (&a[1]);
  a[1] = must_be (BATCH, 2 * BATCH);
  done (&a[1]);
  done (&b[0]);
  done (&b[1]);
  copy_all (0, 0);
  ck_assert_uint_eq (region_map_count_valid (map), 512);
  end ();
}
END_TEST

/* The disk's walk begins anew while a range is tried again, and goes around it:
 * the range is not forgotten, even if it was copied, but too early.
 * _i: a region in pieces that was handed out before the map was set back, or
 * begun before a restart; whole regions that were returned, or that were bad.
 */
START_TEST (set_back_and_around)
{
  struct plan_range range[4];
  const unsigned n = _i == 0 ? 4 : _i == 1 ? 2 : 1;

  begin (4 * M, _i < 2 ? M : 4 * K, false);
  range[0] = must_be (0, BATCH);
  if (_i < 3)
    returned (&range[0]);
  else {
    bad (&range[0]);
    plan_retry (&plan);
  }
  for (unsigned i = 0; i < n; ++i)
    range[i] = must_be (i * BATCH, _i < 3 ? (i + 1) * BATCH : PLAN_BAD_PIECE);
  if (_i == 1)
    plan_restart (&plan);
  else {
    if (_i > 1)
      region_map_set (map, 0, 16);
    region_map_forget (map);
    plan_set_back (&plan);
  }
  copy_all (0, 0);
  for (unsigned i = 0; i < n; ++i)
    if (_i < 2)
      done (&range[i]);
    else
      plan_range_done (&plan, &range[i]);
  ck_assert (!region_map_is_valid (map, 0));
  plan_retry (&plan);
  must_be (0, 0);
  end ();
}
END_TEST

/* Bad ranges of a walk and of a wish are set aside.  Each round tries them in
 * smaller pieces, down to the one region that is unreadable, until it is not.
 */
START_TEST (bad_region)
{
  const uint64_t sector = M + 3 * K;
  struct plan_range range;

  begin (4 * M + 512, 4 * K, false);
  plan_want (&plan, M, M + 1);
  range = must_be (M, M + 4 * K);
  ck_assert (bad (&range));
  plan_want (&plan, M, M + 16 * K);
  must_be (M + 4 * K, M + 16 * K);
  plan_restart (&plan);
  bad_must_be (M, M + 4 * K, 1);

  /* A round: a range that was bad before is no news. */
  must_be (0, BATCH);
  plan_retry (&plan);
  range = must_be (M, M + 4 * K);
  ck_assert (range.retry && !range.probe);
  plan_retry (&plan);           /* this round is not over */
  must_be (BATCH, 2 * BATCH);
  ck_assert (!bad (&range));
  plan_retry (&plan);
  range = must_be (M, M + 4 * K);
  done (&range);
  bad_must_be (0, 0, 0);
  end ();

  begin (4 * M + 512, 4 * K, false);
  ck_assert_uint_eq (copy_all (sector, sector + 1), 17);
  bad_must_be (M, M + BATCH, 64);
  plan_restart (&plan);
  must_be_at_end ();
  for (unsigned i = 0; i < 3; ++i) {
    static const unsigned reads[] = { 3, 5, 1 };

    plan_retry (&plan);
    ck_assert_uint_eq (copy_all (sector, sector + 1), reads[i]);
    must_be_at_end ();
    bad_must_be (M, M + (i ? 4 : 64) * K, i ? 1 : 16);
  }
  plan_retry (&plan);
  ck_assert_uint_eq (copy_all (0, 0), 1);
  bad_must_be (0, 0, 0);
  ck_assert_uint_eq (region_map_count_valid (map), region_map_regions (map));
  end ();
}
END_TEST

/* Regions that a client has written are not bad any more: at the end of a bad
 * range, in its middle, all of it, and while it is being tried again.
 */
START_TEST (bad_and_written)
{
  struct plan_range range;
  struct plan_bad_sum sum;

  begin (BATCH, 4 * K, false);
  copy_all (0, BATCH);
  bad_must_be (0, BATCH, 64);
  region_map_set (map, 0, 4);
  region_map_set (map, 32, 28);
  plan_sum_bad (&plan, &sum);
  ck_assert_uint_eq (sum.regions, 32);
  ck_assert_uint_eq (sum.bytes, 128 * K);
  ck_assert_uint_eq (sum.ranges, 2);
  ck_assert_uint_eq (sum.range[1].start, BATCH - 16 * K);

  plan_retry (&plan);
  range = must_be (16 * K, 80 * K);
  region_map_set (map, 4, 16);
  ck_assert (!bad (&range));
  must_be (80 * K, 128 * K);
  range = must_be (BATCH - 16 * K, BATCH);
  region_map_set (map, 16, 48);
  ck_assert (!bad (&range));
  must_be_at_end ();
  bad_must_be (0, 0, 0);
  end ();

  /* The range became valid before its first failure: nothing is bad. */
  begin (BATCH, 4 * K, false);
  range = must_be (0, BATCH);
  region_map_set (map, 0, 64);
  ck_assert (!bad (&range));
  must_be_at_end ();
  end ();
}
END_TEST

/* A region in pieces, one of which is bad.  The region waits until no piece is
 * bad, and then all pieces are copied anew.
 */
START_TEST (bad_piece)
{
  const uint64_t sector = 5 * M + 70 * K;
  struct plan_range range;

  begin (8 * M, 4 * M, false);
  copy_all (sector, sector + 1);
  bad_must_be (5 * M, 5 * M + BATCH, 1);
  ck_assert_uint_eq (region_map_count_valid (map), 1);
  ck_assert_uint_eq (plan.open_cuts, 0);
  plan_restart (&plan);
  plan_want (&plan, 6 * M, 7 * M);
  must_be_at_end ();
  for (unsigned i = 0; i < 3; ++i) {
    static const unsigned reads[] = { 3, 2, 1 };

    plan_retry (&plan);
    ck_assert_uint_eq (copy_all (sector, sector + 1), reads[i]);
    bad_must_be (5 * M + 64 * K, 5 * M + (i ? 128 : 192) * K, 1);
    plan_restart (&plan);
  }
  plan_retry (&plan);
  range = must_be (5 * M + 64 * K, 5 * M + 128 * K);
  ck_assert (range.retry && range.probe && range.cut == NULL);
  /* While the piece is read it is still bad. */
  must_be_at_end ();
  plan_range_done (&plan, &range);
  bad_must_be (0, 0, 0);
  plan_restart (&plan);
  ck_assert_uint_eq (copy_all (0, 0), 4 * M / BATCH);
  ck_assert_uint_eq (region_map_count_valid (map), 2);
  end ();
}
END_TEST

/* The batch changes after a range became bad: regions are not copied in pieces
 * any more, and then they are again.
 */
START_TEST (bad_and_other_batches)
{
  struct plan_range range;

  begin (4 * M, M, false);
  copy_all (M + 300 * K, M + 301 * K);
  bad_must_be (M + BATCH, M + 2 * BATCH, 1);
  plan_retry (&plan);
  ck_assert_int_eq (plan_next (&plan, 4 * M, &range), PLAN_RANGE);
  ck_assert (range.retry && !range.probe);
  ck_assert_uint_eq (range.start, M);
  ck_assert_uint_eq (range.end, 2 * M);
  ck_assert (!bad (&range));
  bad_must_be (M, 2 * M, 1);
  must_be_at_end ();
  plan_retry (&plan);
  ck_assert_uint_eq (copy_all (0, 0), 6);
  plan_restart (&plan);
  ck_assert_uint_eq (copy_all (0, 0), 4);
  ck_assert_uint_eq (region_map_count_valid (map), 4);
  end ();
}
END_TEST

/* A source that cannot read anything: a round ends after PLAN_MAX_FAILURES, and
 * the next round continues there.
 */
START_TEST (bad_disk)
{
  const uint64_t size = 3 * PLAN_MAX_FAILURES * PLAN_BAD_PIECE / 2;
  struct plan_range range;

  begin (size, 4 * K, false);
  copy_all (0, size);
  bad_must_be (0, size, size / (4 * K));
  plan_retry (&plan);
  ck_assert_uint_eq (copy_all (0, size), PLAN_MAX_FAILURES);
  plan_retry (&plan);
  range = must_be (size / 3 * 2, size / 3 * 2 + PLAN_BAD_PIECE);
  bad (&range);
  ck_assert_uint_eq (copy_all (0, size), PLAN_MAX_FAILURES / 2 - 1);
  bad_must_be (0, size, size / (4 * K));
  /* And from the start, in even smaller pieces. */
  plan_retry (&plan);
  range = must_be (0, 4 * K);
  bad (&range);
  copy_all (0, size);
  bad_must_be (0, size, size / (4 * K));
  /* As soon as the source is readable, two rounds copy all of it. */
  for (unsigned i = 0; i < 2; ++i) {
    plan_retry (&plan);
    copy_all (0, 0);
  }
  bad_must_be (0, 0, 0);
  ck_assert_uint_eq (region_map_count_valid (map), region_map_regions (map));
  end ();
}
END_TEST

/* The source was repaired: pieces grow up to the batch, whatever their size was
 * after rounds that failed.  So a round does not take many more reads than a
 * walk.
 * _i: rounds that fail; regions in pieces.
 */
START_TEST (bad_and_healed)
{
  const uint64_t size = 32 * M;
  const unsigned rounds = _i % 3;
  struct plan_range range;
  uint64_t largest = 0;
  unsigned reads = 0;

  begin (size, _i < 3 ? 4 * K : 2 * M, false);
  copy_all (0, size);
  bad_must_be (0, size, _i < 3 ? size / (4 * K) : 16);
  for (unsigned i = 0; i < rounds; ++i) {
    plan_retry (&plan);
    ck_assert_uint_eq (copy_all (0, size), PLAN_MAX_FAILURES);
  }
  for (unsigned i = 0; i < 2; ++i) {
    plan_retry (&plan);
    while (plan_next (&plan, BATCH, &range) == PLAN_RANGE) {
      largest = MAX (largest, range.end - range.start);
      reads++;
      if (range.probe)
        plan_range_done (&plan, &range);
      else
        done (&range);
    }
  }
  bad_must_be (0, 0, 0);
  ck_assert_uint_eq (largest, BATCH);
  /* Pieces reach the batch after 2 to 6 smaller ones, in each of two rounds. */
  ck_assert_uint_le (reads, size / BATCH + 12);
  end ();
}
END_TEST

/* After a piece that fails, the next one is small. */
START_TEST (bad_after_good)
{
  struct plan_range range;

  begin (4 * M, 4 * K, false);
  copy_all (0, 4 * M);
  plan_retry (&plan);
  range = must_be (0, 64 * K);
  done (&range);
  range = must_be (64 * K, 192 * K);
  done (&range);
  range = must_be (192 * K, 448 * K);
  ck_assert (!bad (&range));
  range = must_be (448 * K, 512 * K);
  done (&range);
  range = must_be (512 * K, 640 * K);
  done (&range);
  copy_all (0, 0);
  /* The range of the one that failed is tried in small pieces only. */
  plan_retry (&plan);
  range = must_be (192 * K, 256 * K);
  done (&range);
  must_be (256 * K, 320 * K);
  end ();
}
END_TEST

/* The source was repaired except for some sectors, and several pieces are under
 * way at once: everything but the regions of these sectors is hydrated, in a
 * bounded number of rounds and reads.  The first and the last of these sectors
 * are at the ends of the disk.
 */
START_TEST (bad_and_mostly_healed)
{
  const uint64_t size = 32 * M;
  const unsigned sectors = 1 + _i % 4, together = 1 + _i / 4 * 7;
  struct plan_range way[8], range;
  struct plan_bad_sum sum;
  unsigned reads = 0, rounds = 0, n;
  uint64_t at;

  begin (size, 4 * K, false);
  copy_all (0, size);
  do {
    enum plan_result r = PLAN_RANGE;

    rounds++;
    plan_retry (&plan);
    for (n = 0; r == PLAN_RANGE || n > 0; ) {
      if (r == PLAN_RANGE && n < together) {
        r = plan_next (&plan, BATCH, &range);
        if (r == PLAN_RANGE)
          way[n++] = range;
        continue;
      }
      range = way[0];
      memmove (way, way + 1, --n * sizeof *way);
      reads++;
      for (unsigned i = 0; i < sectors; ++i) {
        at = i == 3 ? size - 1 : i * (7 * M + 76 * K);
        if (range.start <= at && at < range.end) {
          bad (&range);
          break;
        }
      }
      if (!range.bad)
        done (&range);
    }
    plan_sum_bad (&plan, &sum);
    ck_assert_uint_le (rounds, 5);
  } while (sum.regions > sectors);

  ck_assert_uint_eq (sum.regions, sectors);
  ck_assert_uint_eq (sum.ranges, sectors);
  ck_assert_uint_eq (sum.range[0].start, 0);
  ck_assert_uint_eq (sum.range[0].end, 4 * K);
  if (sectors == 4)
    ck_assert_uint_eq (sum.range[3].end, size);
  ck_assert_uint_eq (region_map_regions (map) - region_map_count_valid (map),
                     sectors);
  ck_assert_uint_le (reads, size / BATCH + sectors * 40 + together * 8);
  /* Then a round costs one read for each sector. */
  for (unsigned i = 0; i < 2; ++i) {
    plan_retry (&plan);
    for (n = 0; plan_next (&plan, BATCH, &range) == PLAN_RANGE; ++n)
      bad (&range);
    ck_assert_uint_eq (n, sectors);
  }
  end ();
}
END_TEST

/* More bad ranges than the list has room for: all are counted and tried again,
 * and the first are shown.
 */
START_TEST (many_bad)
{
  const unsigned n = BAD_MAX + 500;
  struct plan_range range;
  struct plan_bad_sum sum;
  unsigned i;

  begin (n * 8 * K, 4 * K, false);
  for (i = 0; i < n; ++i) {
    plan_want (&plan, i * 8 * K, i * 8 * K + 4 * K);
    range = must_be (i * 8 * K, i * 8 * K + 4 * K);
    ck_assert (bad (&range));
    ck_assert_uint_le (plan.bad.len, BAD_MAX);
  }
  /* Regions between them are copied, or bad too, but never forgotten. */
  copy_all (0, 0);
  plan_sum_bad (&plan, &sum);
  ck_assert_uint_ge (sum.regions, n);
  ck_assert_uint_eq (sum.regions,
                     region_map_regions (map) - region_map_count_valid (map));
  ck_assert_uint_eq (sum.bytes, sum.regions * 4 * K);
  ck_assert_uint_eq (sum.ranges, PLAN_BAD_SHOWN);
  ck_assert_uint_eq (sum.range[1].start % (8 * K), 0);
  plan_retry (&plan);
  copy_all (0, 0);
  bad_must_be (0, 0, 0);
  ck_assert_uint_eq (region_map_count_valid (map), region_map_regions (map));
  end ();
}
END_TEST

/* The list of bad ranges against a plain array of blocks, at random. */
START_TEST (bad_list)
{
  static struct bad_ranges list;
  uint8_t model[600] = { 0 };   /* each block's note; 0: not bad */
  uint64_t state = _i + 1;

  list = (struct bad_ranges){ 0 };
  for (unsigned n = 0; n < 3000; ++n) {
    const unsigned start = mock_random (&state) % 599;
    const unsigned end = start + 1 + mock_random (&state) %
      MIN (600 - start, 30u);
    const unsigned note = mock_random (&state) % 3;
    uint8_t got[600] = { 0 };
    bool apart = true, found = true;

    if (note)
      bad_add (&list, start, end, note);
    else
      bad_remove (&list, start, end);
    memset (model + start, note, end - start);

    for (unsigned i = 0; i < list.len; ++i) {
      const struct bad_range *b = &list.range[i];

      apart &= b->start < b->end &&
        (i == 0 || b[-1].end < b->start ||
         (b[-1].end == b->start && b[-1].note != b->note));
      found &= bad_find (&list, i ? b[-1].end : 0) == b &&
        bad_find (&list, b->end - 1) == b;
      memset (got + b->start, b->note, b->end - b->start);
    }
    ck_assert (apart && found);
    ck_assert_ptr_null (bad_find (&list, 599 + (model[599] != 0)));
    ck_assert_mem_eq (got, model, sizeof model);
  }
}
END_TEST

/* At random: clients wish and write, copies end in any order, some fail, some
 * ranges are bad, servers are lost, and the map is set back.  No range is
 * handed out while it is under way, or after it was copied, except for ranges
 * that were under way when the map was set back.  In the end everything is
 * valid.  If servers were lost and nothing worse happened, one walk over the
 * disk is enough.
 * _i: even: nothing worse happens.
 */
START_TEST (everything_once)
{
  const uint64_t size = 16 * M - (_i % 3) * 1536, region_size =
    (4 * K) << _i % 5 * 2;
  struct plan_range way[8], range;
  const unsigned worse = _i % 2;
  unsigned n = 0, i;
  uint64_t state = _i + 1, pos;
  unsigned set_backs = 0;
  struct plan_bad_sum sum;
  bool restart = false;
  enum plan_result r;

  begin (size, region_size, false);
  for (;;) {
    if (mock_random (&state) % 4 == 0) {
      pos = mock_random (&state) % size;
      plan_want (&plan, pos, pos + 1 + mock_random (&state) % M);
    }
    if (mock_random (&state) % 64 == 0)
      plan_retry (&plan);
    if (mock_random (&state) % 16 == 0)
      region_map_set (map, mock_random (&state) % region_map_regions (map), 1);
    if (mock_random (&state) % 32 == 0)
      commit ();
    if (mock_random (&state) % 64 == 0 && set_backs < 20)
      set_back (&set_backs);

    r = n < 8 ? plan_next (&plan, BATCH, &range) : PLAN_WANT_EXTENTS;
    if (r == PLAN_RANGE) {
      ck_assert_uint_lt (range.start, range.end);
      ck_assert_uint_le (range.end, size);
      if (!range.cut && !range.probe)
        ck_assert_uint_eq (range.start % region_size, 0);
      for (i = 0; i < n; ++i)
        ck_assert (range.end <= way[i].start || way[i].end <= range.start ||
                   way[i].restarts < range.restarts ||
                   (set_backs > 0 && (way[i].retry || range.retry)));
      ck_assert (!region_map_is_valid (map, range.start / region_size));
      way[n++] = range;
    }
    if (n > 0 && (r != PLAN_RANGE || mock_random (&state) % 2 == 0)) {
      i = mock_random (&state) % n;
      range = way[i];
      way[i] = way[--n];
      if (mock_random (&state) % 8 == 0) {
        returned (&range);
        restart |= range.retry;
      }
      else if (worse && mock_random (&state) % 32 == 0) {
        bad (&range);
        restart = true;
      }
      else if (range.probe) {
        plan_range_done (&plan, &range);
        restart = true;
      }
      else if (mock_random (&state) % 64 == 0 && set_backs < 20) {
        if (!range.cut)
          region_map_set (map, range.start / region_size,
                          div_round_up (range.end - range.start, region_size));
        set_back (&set_backs);
        failed (&range);
      }
      else if (!worse || mock_random (&state) % 64)
        done (&range);
      else {
        failed (&range);
        restart = true;
      }
    }
    else if (n == 0 && r == PLAN_END) {
      plan_sum_bad (&plan, &sum);
      if (!restart && sum.bytes == 0)
        break;
      plan_retry (&plan);
      plan_restart (&plan);
      restart = false;
    }
  }
  ck_assert_uint_eq (region_map_count_valid (map), region_map_regions (map));
  ck_assert_uint_eq (plan.open_cuts, 0);
  ck_assert_uint_eq (plan.returned.len, 0);
  bad_must_be (0, 0, 0);
  for (i = 0; i < PLAN_MAX_WISHES; ++i)
    ck_assert (!plan.wish[i].open);
  end ();
}
END_TEST

/* Zeroes come in ranges of at most max_zero, and a larger region of zeroes in
 * pieces.
 */
START_TEST (limited_zeroes)
{
  const uint64_t region_size = _i ? 1 * M : 4 * K;
  struct extents list = EXTENTS_INIT;
  struct plan_range range;
  unsigned n;

  begin (4 * M, region_size, true);
  plan.max_zero = 256 * K;
  ck_assert_int_eq (extents_add (&list, 0, 4 * M, EXTENT_ZERO), 0);
  ck_assert_int_eq (plan_answer (&plan, plan_ask (&plan), &list), 0);
  extents_free (&list);
  for (n = 0; plan_next (&plan, BATCH, &range) == PLAN_RANGE; ++n) {
    ck_assert (range.zero);
    ck_assert_uint_eq (range.end - range.start, 256 * K);
    ck_assert (!range.cut == (_i == 0));
    done (&range);
  }
  ck_assert_uint_eq (n, 16);
  ck_assert_uint_eq (region_map_count_valid (map), 4 * M / region_size);
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
  tcase_add_loop_test (tc, many_extents, 0, 12);
  tcase_add_test (tc, returned_ranges);
  tcase_add_loop_test (tc, returned_wish, 0, 2);
  tcase_add_loop_test (tc, returned_pieces, 0, 4);
  tcase_add_test (tc, returned_and_bad);
  tcase_add_test (tc, many_returned);
  tcase_add_test (tc, setting_back);
  tcase_add_loop_test (tc, set_back_and_around, 0, 4);
  tcase_add_test (tc, bad_region);
  tcase_add_test (tc, bad_and_written);
  tcase_add_test (tc, bad_piece);
  tcase_add_test (tc, bad_and_other_batches);
  tcase_add_test (tc, bad_disk);
  tcase_add_loop_test (tc, bad_and_healed, 0, 6);
  tcase_add_test (tc, bad_after_good);
  tcase_add_loop_test (tc, bad_and_mostly_healed, 0, 8);
  tcase_add_test (tc, many_bad);
  tcase_add_loop_test (tc, bad_list, 0, 10);
  tcase_add_loop_test (tc, everything_once, 0, 60);
  tcase_add_loop_test (tc, limited_zeroes, 0, 2);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
