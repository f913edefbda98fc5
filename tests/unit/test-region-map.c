/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the map's bits, runs, counts and list of dirty sectors are those
 * of a naive model, at all boundaries of words and sectors; that a commit never
 * misses a bit that another thread can see; that the memory is bounded; and
 * that builds with CLONE_CHECKS, as the library of this test, notice a map
 * whose invariants are broken.
 */

#include <config.h>

#include <errno.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "base/clock.h"
#include "base/rounding.h"
#include "mock-backend.h"
#include "run-suite.h"
#include "store/region-map-internal.h"

#define K UINT64_C (1024)

/* Sizes and region sizes at the limits are accepted, those just outside
 * refused.
 */
START_TEST (limits)
{
  static const struct {
    uint64_t size, region_size, regions; /* regions 0: refused */
    uint32_t sectors;
  } t[] = {
    { 1, 4 * K, 1, 1 },
    { 4 * K, 4 * K, 1, 1 },
    { 4 * K + 1, 4 * K, 2, 1 },
    { 4032 * 4 * K, 4 * K, 4032, 1 },
    { 4032 * 4 * K + 1, 4 * K, 4033, 2 },
    { 5 * K * K * K, K * K * K, 5, 1 },
    { UINT64_C (1) << 43, 4 * K, UINT64_C (1) << 31, 532611 },
    { (UINT64_C (1) << 43) + 1, 4 * K, 0, 0 },
    { 0, 4 * K, 0, 0 },
    { 1, 2 * K, 0, 0 },
    { 1, 5 * K, 0, 0 },
    { 1, 0, 0, 0 },
    { 1, 2 * K * K * K, 0, 0 },
    { UINT64_MAX, K * K * K, 0, 0 },
  };

  for (unsigned i = 0; i < sizeof t / sizeof t[0]; ++i) {
    struct region_map *map = region_map_new (t[i].size, t[i].region_size);

    if (t[i].regions == 0) {
      ck_assert_ptr_null (map);
      ck_assert_int_eq (errno, EINVAL);
      continue;
    }
    ck_assert_ptr_nonnull (map);
    ck_assert_uint_eq (region_map_size (map), t[i].size);
    ck_assert_uint_eq (region_map_region_size (map), t[i].region_size);
    ck_assert_uint_eq (region_map_regions (map), t[i].regions);
    ck_assert_uint_eq (region_map_sectors (map), t[i].sectors);
    ck_assert_uint_eq (region_map_count_valid (map), 0);
    ck_assert (!region_map_is_dirty (map));
    region_map_free (map);
  }
  region_map_free (NULL);
}
END_TEST

/* Regions of the naive model. */
#define REGIONS (3 * REGIONS_PER_SECTOR - 37)

static bool model[REGIONS], model_durable[REGIONS];

static struct region_map *
new_map (void)
{
  /* The last region has 1000 bytes. */
  struct region_map *map =
    region_map_new ((REGIONS - 1) * 4 * K + 1000, 4 * K);

  ck_assert_ptr_nonnull (map);
  ck_assert_uint_eq (region_map_regions (map), REGIONS);
  memset (model, 0, sizeof model);
  memset (model_durable, 0, sizeof model_durable);
  return map;
}

static void
set (struct region_map *map, uint64_t first, uint64_t count)
{
  region_map_set (map, first, count);
  memset (model + first, true, count);
}

static void
check_run (struct region_map *map, uint64_t first, uint64_t end)
{
  uint64_t n = 1;
  bool valid;

  while (first + n < end && model[first + n] == model[first])
    n++;
  ck_assert_uint_eq (region_map_run (map, first, end, &valid), n);
  ck_assert_int_eq (valid, model[first]);
}

static enum region_state
model_state (uint64_t region)
{
  return model_durable[region] ? REGION_DURABLE
    : model[region] ? REGION_DIRTY : REGION_INVALID;
}

/* Sums, and the first run, of bytes that begin and end anywhere. */
static void
check_states (struct region_map *map, uint64_t *seed)
{
  const uint64_t size = region_map_size (map);
  const uint64_t offset = mock_random (seed) % size;
  const uint64_t end = mock_random (seed) % 2
    ? offset + 1 + mock_random (seed) % (size - offset)
    : MIN (offset + 1 + mock_random (seed) % (20 * K), size);
  uint64_t bytes[3] = { 0 }, run = 0, n;
  bool in_run = true;
  struct region_sum sum;
  enum region_state state;

  for (uint64_t pos = offset; pos < end; pos += n) {
    n = MIN (4 * K - pos % (4 * K), end - pos);
    bytes[model_state (pos / (4 * K))] += n;
    in_run &= model_state (pos / (4 * K)) == model_state (offset / (4 * K));
    run += in_run ? n : 0;
  }
  region_map_sum (map, offset, end, &sum);
  ck_assert_uint_eq (sum.durable, bytes[REGION_DURABLE]);
  ck_assert_uint_eq (sum.dirty, bytes[REGION_DIRTY]);
  ck_assert_uint_eq (region_map_state_run (map, offset, end, &state), run);
  ck_assert_int_eq (state, model_state (offset / (4 * K)));
}

static void
check_counts (struct region_map *map)
{
  uint64_t valid = 0, durable = 0, bytes = 0;

  for (uint64_t r = 0; r < REGIONS; ++r) {
    ck_assert_int_eq (region_map_is_valid (map, r), model[r]);
    ck_assert_int_eq (region_map_is_durable (map, r, 1), model_durable[r]);
    valid += model[r];
    durable += model_durable[r];
    bytes += !model[r] ? 0 : r == REGIONS - 1 ? 1000 : 4 * K;
  }
  ck_assert_uint_eq (region_map_count_valid (map), valid);
  ck_assert_uint_eq (region_map_count_durable (map), durable);
  ck_assert_uint_eq (region_map_bytes_valid (map), bytes);
}

/* Half of the time near a multiple of 64 or of REGIONS_PER_SECTOR. */
static uint64_t
random_region (uint64_t *seed)
{
  static const uint64_t base[] = {
    0, 64, 128, REGIONS_PER_SECTOR, 2 * REGIONS_PER_SECTOR, REGIONS
  };
  int64_t r;

  if (mock_random (seed) % 2)
    return mock_random (seed) % REGIONS;
  r = base[mock_random (seed) % 6] + mock_random (seed) % 5 - 2;
  return MIN (MAX (r, 0), (int64_t)REGIONS - 1);
}

/* After random sets, states, runs and counts equal those of the model. */
START_TEST (random_against_model)
{
  struct region_map *map = new_map ();
  uint64_t seed = 1;

  check_counts (map);
  for (unsigned i = 0; i < 300; ++i) {
    uint64_t first = random_region (&seed);
    uint64_t count = 1 + mock_random (&seed) %
      MIN (REGIONS - first, i % 10 ? 70 : UINT64_C (5000));

    /* Keep some regions invalid for as long as possible. */
    set (map, first, i % 10 || i > 250 ? count : 1);
    for (unsigned j = 0; j < 100; ++j) {
      uint64_t from = random_region (&seed);

      check_run (map, from,
                 from + 1 + mock_random (&seed) % (REGIONS - from));
    }
    if (i % 30 == 0)
      check_counts (map);
  }
  check_counts (map);

  /* Regions that are not durable are forgotten, and no commit sees them. */
  for (uint32_t s = 0; s < 2; ++s) {
    uint64_t words[WORDS_PER_SECTOR];

    region_map_snapshot (map, s, words);
    region_map_set_durable (map, s, words);
  }
  memcpy (model_durable, model, 2 * REGIONS_PER_SECTOR);
  set (map, 2 * REGIONS_PER_SECTOR + 63, 2);
  check_counts (map);
  for (unsigned i = 0; i < 300; ++i)
    check_states (map, &seed);
  ck_assert (region_map_is_dirty (map));
  ck_assert_uint_gt (region_map_forget (map), 0);
  memcpy (model, model_durable, sizeof model);
  check_counts (map);
  ck_assert (!region_map_is_dirty (map));
  ck_assert_uint_eq (region_map_forget (map), 0);

  set (map, 0, REGIONS);
  check_counts (map);
  check_run (map, 0, REGIONS);
  region_map_free (map);
}
END_TEST

/* For each pair of boundaries around a word, a set sets exactly these bits, and
 * runs find both ends.
 */
START_TEST (word_boundaries)
{
  for (uint64_t first = 60; first < 70; ++first)
    for (uint64_t end = first + 1; end < 200; ++end) {
      struct region_map *map = region_map_new (256 * 4 * K, 4 * K);
      bool valid;

      region_map_set (map, first, end - first);
      ck_assert_uint_eq (region_map_count_valid (map), end - first);
      ck_assert_uint_eq (region_map_run (map, 0, 256, &valid), first);
      ck_assert (!valid);
      ck_assert_uint_eq (region_map_run (map, first, 256, &valid),
                         end - first);
      ck_assert (valid);
      ck_assert_uint_eq (region_map_run (map, end, 256, &valid), 256 - end);
      ck_assert (!valid);
      region_map_free (map);
    }
}
END_TEST

/* Runs in bytes begin anywhere in a region, and end at the given end.  The last
 * region is short.
 */
START_TEST (runs_in_bytes)
{
  struct region_map *map = region_map_new (10 * 4 * K + 1000, 4 * K);
  bool valid;

  region_map_set (map, 2, 3);
  region_map_set (map, 10, 1);
  ck_assert_uint_eq (region_map_run_bytes (map, 1, 40 * K, &valid),
                     8 * K - 1);
  ck_assert (!valid);
  ck_assert_uint_eq (region_map_run_bytes (map, 1, 2, &valid), 1);
  ck_assert_uint_eq (region_map_run_bytes (map, 8 * K + 5, 8 * K + 6, &valid),
                     1);
  ck_assert (valid);
  ck_assert_uint_eq (region_map_run_bytes (map, 12 * K - 1, 40 * K, &valid),
                     8 * K + 1);
  ck_assert (valid);
  ck_assert_uint_eq (region_map_run_bytes (map, 40 * K, 40 * K + 1000, &valid),
                     1000);
  ck_assert (valid);

  ck_assert_uint_eq (region_map_bytes (map, 0, 11), 40 * K + 1000);
  ck_assert_uint_eq (region_map_bytes (map, 9, 2), 4 * K + 1000);
  ck_assert_uint_eq (region_map_bytes (map, 10, 1), 1000);
  ck_assert_uint_eq (region_map_bytes (map, 3, 2), 8 * K);
  ck_assert_uint_eq (region_map_bytes_valid (map), 12 * K + 1000);
  region_map_free (map);
}
END_TEST

/* Make all dirty regions durable, as a commit does. */
static void
commit_all (struct region_map *map, size_t max)
{
  uint64_t words[WORDS_PER_SECTOR];
  uint32_t sectors[8];
  size_t n;

  do {
    n = region_map_take_dirty (map, sectors, max);
    for (size_t i = 0; i < n; ++i) {
      ck_assert (i == 0 || sectors[i] > sectors[i - 1]);
      region_map_snapshot (map, sectors[i], words);
      region_map_set_durable (map, sectors[i], words);
    }
  } while (n == max);
}

/* A sector with new bits is on the list once.  A sector that was taken is not,
 * until it has new bits or is put back.  The count of durable regions follows.
 */
START_TEST (dirty_list)
{
  struct region_map *map = new_map ();
  uint32_t sectors[8];

  set (map, 2 * REGIONS_PER_SECTOR, 1);
  set (map, REGIONS_PER_SECTOR - 1, 2);
  set (map, 5, 1);
  ck_assert (region_map_is_dirty (map));

  ck_assert_uint_eq (region_map_take_dirty (map, sectors, 8), 3);
  ck_assert_uint_eq (sectors[0], 0);
  ck_assert_uint_eq (sectors[1], 1);
  ck_assert_uint_eq (sectors[2], 2);
  ck_assert (!region_map_is_dirty (map));
  ck_assert_uint_eq (region_map_take_dirty (map, sectors, 8), 0);

  /* The bit was set before: the sector is not listed. */
  set (map, 5, 1);
  ck_assert (!region_map_is_dirty (map));
  set (map, 6, 1);
  ck_assert_uint_eq (region_map_take_dirty (map, sectors, 8), 1);
  ck_assert_uint_eq (sectors[0], 0);

  for (uint32_t s = 0; s < 3; ++s) {
    region_map_put_dirty (map, s);
    region_map_put_dirty (map, s);
  }
  ck_assert_uint_eq (region_map_count_durable (map), 0);
  commit_all (map, 2);
  memcpy (model_durable, model, sizeof model);
  check_counts (map);
  ck_assert (!region_map_is_dirty (map));

  ck_assert (region_map_is_durable (map, REGIONS_PER_SECTOR - 1, 2));
  ck_assert (!region_map_is_durable (map, REGIONS_PER_SECTOR - 2, 3));
  ck_assert (!region_map_is_durable (map, REGIONS_PER_SECTOR - 1, 3));

  /* A dirty region beside durable ones. */
  set (map, REGIONS_PER_SECTOR + 1, 1);
  ck_assert (!region_map_is_durable (map, REGIONS_PER_SECTOR - 1, 3));
  region_map_free (map);
}
END_TEST

/* Loaded regions are valid and durable, and nothing is dirty. */
START_TEST (load)
{
  struct region_map *map = new_map ();
  uint64_t words[WORDS_PER_SECTOR] = { 0 };

  words[0] = 0x8000000000000001;
  words[62] = UINT64_C (1) << 63;
  ck_assert_int_eq (region_map_load (map, 1, words), 0);
  model[REGIONS_PER_SECTOR] = model[REGIONS_PER_SECTOR + 63] =
    model[2 * REGIONS_PER_SECTOR - 1] = true;
  memcpy (model_durable, model, sizeof model);
  check_counts (map);
  ck_assert (!region_map_is_dirty (map));
  region_map_free (map);
}
END_TEST

/* Each bit of the last sector that stands for no region is refused, and changes
 * nothing.  The others are accepted.
 */
START_TEST (load_refuses_stray_bits)
{
  for (unsigned bit = 0; bit < REGIONS_PER_SECTOR; ++bit) {
    struct region_map *map = new_map ();
    uint64_t words[WORDS_PER_SECTOR] = { 0 };
    bool ok = 2 * REGIONS_PER_SECTOR + bit < REGIONS;

    words[bit / 64] = UINT64_C (1) << (bit % 64);
    errno = 0;
    ck_assert_int_eq (region_map_load (map, 2, words), ok ? 0 : -1);
    ck_assert_int_eq (errno, ok ? 0 : EINVAL);
    ck_assert_uint_eq (region_map_count_valid (map), ok);
    ck_assert_uint_eq (region_map_count_durable (map), ok);
    region_map_free (map);
  }
}
END_TEST

/* ---- invariants ---- */

static void
add_valid_bit (struct region_map *map)
{
  map->valid[0] |= 2;
}

static void
add_durable_bit (struct region_map *map)
{
  map->durable[0] |= 2;
}

static void
clear_valid_bit (struct region_map *map)
{
  map->valid[0] &= ~UINT64_C (1);
}

static void
add_stray_bit (struct region_map *map)
{
  map->valid[map->sectors * WORDS_PER_SECTOR - 1] |= UINT64_C (1) << 63;
  map->durable[map->sectors * WORDS_PER_SECTOR - 1] |= UINT64_C (1) << 63;
}

static void
count_too_many (struct region_map *map)
{
  map->nr_valid++;
}

static void
count_too_few_durable (struct region_map *map)
{
  map->nr_durable--;
}

static void
forget_list (struct region_map *map)
{
  map->dirty_first = END_OF_LIST;
}

static void
close_list (struct region_map *map)
{
  map->dirty_next[map->dirty_first] = map->dirty_first;
}

static void
unlist (struct region_map *map)
{
  map->dirty_next[map->dirty_first] = NOT_LISTED;
  map->dirty_first = END_OF_LIST;
}

static const struct {
  void (*damage) (struct region_map *map);
  const char *broken;
  bool in_large_map;           /* it is noticed there, too */
} damages[] = {
  { add_valid_bit, "a sector with dirty bits is not on the list", true },
  { add_durable_bit, "a durable region is not valid", true },
  { clear_valid_bit, "a durable region is not valid", true },
  { add_stray_bit, "a bit stands for no region", true },
  { count_too_many, "the number of valid regions is wrong", false },
  { count_too_few_durable, "the number of durable regions is wrong", false },
  { forget_list, "the list of dirty sectors is broken", false },
  { close_list, "the list of dirty sectors is broken", false },
  { unlist, "a sector with dirty bits is not on the list", true },
};
#define DAMAGES (sizeof damages / sizeof damages[0])

/* A map with a durable region in the first sector, and a dirty one in the last.
 */
static struct region_map *
map_to_damage (uint32_t sectors)
{
  const uint64_t regions = (uint64_t)sectors * REGIONS_PER_SECTOR - 1;
  struct region_map *map = region_map_new (regions * 4 * K, 4 * K);

  region_map_set (map, 0, 1);
  commit_all (map, 8);
  region_map_set (map, regions - 1, 1);
  return map;
}

/* Each broken invariant is noticed, in small maps and in large ones. */
START_TEST (broken_invariants)
{
  for (unsigned large = 0; large < 2; ++large) {
    const uint32_t sectors = large ? 1000 : 2;
    struct region_map *map = map_to_damage (sectors);
    const char *broken;

    ck_assert_ptr_null (region_map_broken (map, 0, sectors - 1));
    damages[_i].damage (map);
    broken = region_map_broken (map, 0, sectors - 1);
    if (!large || damages[_i].in_large_map)
      ck_assert_pstr_eq (broken, damages[_i].broken);
    region_map_free (map);
  }
}
END_TEST

static void
call_set (struct region_map *map)
{
  region_map_set (map, 5, 1);
}

static void
call_forget (struct region_map *map)
{
  region_map_forget (map);
}

static void
call_take (struct region_map *map)
{
  uint32_t sector;

  region_map_take_dirty (map, &sector, 1);
}

static void
call_put (struct region_map *map)
{
  region_map_put_dirty (map, 0);
}

static void
call_set_durable (struct region_map *map)
{
  static const uint64_t words[WORDS_PER_SECTOR] = { 1 };

  region_map_set_durable (map, 0, words);
}

static void
call_load (struct region_map *map)
{
  static const uint64_t words[WORDS_PER_SECTOR] = { 1 };

  region_map_load (map, 0, words);
}

static void
call_move (struct region_map *map)
{
  uint64_t regions;

  region_map_move (map, calloc (1, region_map_words_size (map)), &regions);
}

static void (*const changes[]) (struct region_map *map) = {
  call_set, call_forget, call_take, call_put, call_set_durable, call_load,
  call_move
};
#define CHANGES (sizeof changes / sizeof changes[0])

/* Each function that changes states checks the invariants at its end. */
START_TEST (changes_are_checked)
{
  struct region_map *map = map_to_damage (2);

  map->nr_valid += 7;
  changes[_i] (map);
}
END_TEST

/* ---- threads ---- */

#define SETTERS 3

static struct region_map *shared;
static _Atomic bool stop;

/* Each thread sets its own third of the regions, in small pieces. */
static void
setter (void *opaque)
{
  uint64_t i = (uintptr_t)opaque, seed = i;
  uint64_t r = i * REGIONS / SETTERS, end = (i + 1) * REGIONS / SETTERS;

  while (r < end) {
    uint64_t n = MIN (1 + mock_random (&seed) % 5, end - r);

    region_map_set (shared, r, n);
    r += n;
  }
}

static void
committer (void *opaque)
{
  while (!stop)
    commit_all (shared, 2);
}

/* Commits that run while bits are set miss none: when the setters are done, one
 * more commit makes all regions durable.
 */
START_TEST (commits_miss_no_bit)
{
  for (unsigned round = 0; round < 30; ++round) {
    struct mock_thread *s[SETTERS], *c;

    shared = new_map ();
    stop = false;
    c = mock_thread (committer, NULL);
    for (uintptr_t i = 0; i < SETTERS; ++i)
      s[i] = mock_thread (setter, (void *)i);
    for (unsigned i = 0; i < SETTERS; ++i)
      mock_join (s[i]);
    stop = true;
    mock_join (c);
    commit_all (shared, 2);
    ck_assert_uint_eq (region_map_count_valid (shared), REGIONS);
    ck_assert_uint_eq (region_map_count_durable (shared), REGIONS);
    ck_assert (region_map_is_durable (shared, 0, REGIONS));
    region_map_free (shared);
  }
}
END_TEST

#define VISIBLE (is_under_tool () ? UINT64_C (2000) : 20000)

/* Called while waiting for the other thread.  Gives up the processor now and
 * then, in case the other thread needs it.
 */
static void
spin (unsigned *spins)
{
  if (++*spins % 10000 == 0)
    sched_yield ();
}

static void
slow_setter (void *opaque)
{
  unsigned spins = 0;

  for (uint64_t r = 0; r < VISIBLE && !stop; ++r) {
    region_map_set (shared, r, 1);
    /* Wait until the other thread has made it durable. */
    while (!region_map_is_durable (shared, r, 1) && !stop)
      spin (&spins);
  }
}

/* A thread that sees a valid region, and then asks for a commit, gets a commit
 * with that region in its snapshot, even if the owner has not yet returned from
 * region_map_set.  A flush after a write to a region that has just become valid
 * depends on it.
 */
START_TEST (visible_bit_is_in_next_snapshot)
{
  struct mock_thread *thread;
  /* On a busy machine each turn takes long. */
  const double end = monotonic_seconds () + 20;
  unsigned spins = 0;
  uint64_t missed = 0;

  shared = region_map_new (VISIBLE * 4 * K, 4 * K);
  stop = false;
  thread = mock_thread (slow_setter, NULL);
  for (uint64_t r = 0; r < VISIBLE && monotonic_seconds () < end; ++r) {
    while (!region_map_is_valid (shared, r))
      spin (&spins);
    commit_all (shared, 8);
    if (!region_map_is_durable (shared, r, 1)) {
      missed++;
      /* The owner lists it a moment later. */
      while (!region_map_is_durable (shared, r, 1))
        commit_all (shared, 8);
    }
  }
  stop = true;
  mock_join (thread);
  region_map_free (shared);
  ck_assert_uint_eq (missed, 0);
}
END_TEST

/* P10: no more than 2.5 bits a region, even with every bit set and dirty. */
START_TEST (memory)
{
  const uint64_t regions = UINT64_C (1) << 26;
  const struct mallinfo2 before = mallinfo2 ();
  struct region_map *map = region_map_new (regions * 4 * K, 4 * K);
  struct mallinfo2 after;
  uint64_t bytes;

  ck_assert_ptr_nonnull (map);
  region_map_set (map, 0, regions);
  after = mallinfo2 ();
  bytes = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
  region_map_free (map);
  ck_assert_uint_le (bytes * 8, regions * 5 / 2);
#if !defined (__SANITIZE_ADDRESS__) && !defined (__SANITIZE_THREAD__)
  if (getenv ("CK_FORK") == NULL) /* valgrind's malloc does not count */
    ck_assert_uint_ge (bytes * 8, regions * 2);
#endif
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("region-map");
  TCase *alone = tcase_create ("one thread");
  TCase *threads = tcase_create ("threads");

  tcase_set_tags (alone, "one-thread");
  tcase_set_timeout (alone, 120);
  tcase_add_test (alone, limits);
  tcase_add_test (alone, random_against_model);
  tcase_add_test (alone, word_boundaries);
  tcase_add_test (alone, runs_in_bytes);
  tcase_add_test (alone, dirty_list);
  tcase_add_test (alone, load);
  tcase_add_test (alone, load_refuses_stray_bits);
  tcase_add_test (alone, memory);
  tcase_add_loop_test (alone, broken_invariants, 0, DAMAGES);
  if (getenv ("CK_FORK") == NULL) /* no process to lose under valgrind */
    tcase_add_loop_test_raise_signal (alone, changes_are_checked, SIGABRT, 0,
                                      CHANGES);
  suite_add_tcase (suite, alone);

  tcase_set_timeout (threads, 120);
  tcase_add_test (threads, commits_miss_no_bit);
  tcase_add_test (threads, visible_bit_is_in_next_snapshot);
  suite_add_tcase (suite, threads);

  return run_suite (suite);
}
