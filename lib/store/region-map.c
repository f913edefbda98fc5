/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How a dirty bit is never missed.
 *
 * As soon as a bit is set anybody may see it, without a lock, write to the
 * valid region, and flush: that flush must find the bit.  So a bit is set and
 * its sector put on the list of dirty ones under one lock, and a commit takes
 * sectors off the list under the same lock.  Whoever has seen the bit takes
 * that lock after the setter has given it up, and finds the sector on the list,
 * or taken by a commit whose copy of the bits, which comes later still, has the
 * bit.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "store/region-map.h"

/* dirty_next[s] of a sector that is not on the list, and the list's end. */
#define NOT_LISTED UINT32_MAX
#define END_OF_LIST (UINT32_MAX - 1)

/* Bytes, on most machines. */
#define HUGE_PAGE ((size_t)2 << 20)

struct region_map {
  uint64_t size;    /* bytes */
  unsigned shift;   /* log2 of the region size */
  uint64_t regions;
  uint32_t sectors;

  /* One bit a region; WORDS_PER_SECTOR words for each sector, and bits that
   * stand for no region are 0.
   */
  _Atomic uint64_t *valid;
  _Atomic uint64_t *durable;
  bool moved;       /* the valid bits are in the user's memory */
  _Atomic uint64_t nr_valid;
  _Atomic uint64_t nr_durable;

  /* Protects what follows; also held while bits of `valid' are set. */
  pthread_mutex_t dirty_lock;
  /* The sectors with dirty bits that no commit has taken: a list threaded
   * through one array.
   */
  uint32_t *dirty_next;
  uint32_t dirty_first;
};

/* The words of so many sectors, all 0.  Pages that nobody writes to take no
 * memory.  The hydration of a sparse disk writes to all of them in a moment,
 * and most of that would go into page faults, were they small.
 */
static void *
new_words (uint32_t sectors)
{
  const size_t sector = WORDS_PER_SECTOR * sizeof (uint64_t);
  char *words = calloc (sectors, sector);
  const size_t size = sectors * sector;
  const size_t skip = -(uintptr_t)words % HUGE_PAGE;

  if (words && size >= 2 * HUGE_PAGE)
    /* Advice: it does not matter whether it is taken. */
    madvise (words + skip, round_down (size - skip, HUGE_PAGE),
             MADV_HUGEPAGE);
  return words;
}

struct region_map *
region_map_new (uint64_t size, uint64_t region_size)
{
  struct region_map *map;
  uint64_t regions;

  if (size == 0 || !is_power_of_2 (region_size) ||
      region_size < REGION_SIZE_MIN || region_size > REGION_SIZE_MAX) {
    errno = EINVAL;
    return NULL;
  }
  regions = div_round_up (size, region_size);
  if (regions > REGIONS_MAX) {
    errno = EINVAL;
    return NULL;
  }

  map = calloc (1, sizeof *map);
  if (map == NULL)
    return NULL;
  map->size = size;
  map->shift = __builtin_ctzll (region_size);
  map->regions = regions;
  map->sectors = div_round_up (regions, REGIONS_PER_SECTOR);
  map->dirty_first = END_OF_LIST;
  pthread_mutex_init (&map->dirty_lock, NULL);

  map->valid = new_words (map->sectors);
  map->durable = new_words (map->sectors);
  map->dirty_next = malloc (map->sectors * sizeof *map->dirty_next);
  if (!map->valid || !map->durable || !map->dirty_next) {
    region_map_free (map);
    errno = ENOMEM;
    return NULL;
  }
  for (uint32_t s = 0; s < map->sectors; ++s)
    map->dirty_next[s] = NOT_LISTED;
  return map;
}

void
region_map_free (struct region_map *map)
{
  if (map == NULL)
    return;
  if (!map->moved)
    free (map->valid);
  free (map->durable);
  free (map->dirty_next);
  pthread_mutex_destroy (&map->dirty_lock);
  free (map);
}

uint64_t
region_map_size (const struct region_map *map)
{
  return map->size;
}

uint64_t
region_map_region_size (const struct region_map *map)
{
  return UINT64_C (1) << map->shift;
}

uint64_t
region_map_regions (const struct region_map *map)
{
  return map->regions;
}

uint32_t
region_map_sectors (const struct region_map *map)
{
  return map->sectors;
}

uint64_t
region_map_bytes (const struct region_map *map, uint64_t first,
                  uint64_t count)
{
  uint64_t start = first << map->shift;
  uint64_t end = (first + count) << map->shift;

  return MIN (end, map->size) - MIN (start, map->size);
}

/* The bits [first, first + count) that lie in word w. */
static uint64_t
mask_in_word (uint64_t w, uint64_t first, uint64_t count)
{
  uint64_t start = MAX (first, w * 64);
  uint64_t end = MIN (first + count, (w + 1) * 64);
  uint64_t n = end - start;

  return (n == 64 ? UINT64_MAX : (UINT64_C (1) << n) - 1) << (start % 64);
}

bool
region_map_is_valid (const struct region_map *map, uint64_t region)
{
  uint64_t word = atomic_load_explicit (&map->valid[region / 64],
                                        memory_order_acquire);

  return word >> (region % 64) & 1;
}

uint64_t
region_map_run (const struct region_map *map, uint64_t first, uint64_t end,
                bool *valid)
{
  uint64_t w = first / 64, word, r;

  word = atomic_load_explicit (&map->valid[w], memory_order_acquire);
  *valid = word >> (first % 64) & 1;

  /* In each word look for the first bit of the other state. */
  word = (*valid ? ~word : word) & ~UINT64_C (0) << (first % 64);
  while (word == 0) {
    if (++w * 64 >= end)
      return end - first;
    word = atomic_load_explicit (&map->valid[w], memory_order_acquire);
    if (*valid)
      word = ~word;
  }
  r = w * 64 + __builtin_ctzll (word);
  return MIN (r, end) - first;
}

uint64_t
region_map_run_bytes (const struct region_map *map, uint64_t offset,
                      uint64_t end, bool *valid)
{
  uint64_t first = offset >> map->shift;
  uint64_t last = (end - 1) >> map->shift;
  uint64_t run = region_map_run (map, first, last + 1, valid);

  return MIN ((first + run) << map->shift, end) - offset;
}

/* Put a sector on the list, unless it is there.  The lock is held. */
static void
list_sector (struct region_map *map, uint32_t s)
{
  if (map->dirty_next[s] != NOT_LISTED)
    return;
  map->dirty_next[s] = map->dirty_first;
  map->dirty_first = s;
}

void
region_map_set (struct region_map *map, uint64_t first, uint64_t count)
{
  const uint64_t end_word = div_round_up (first + count, 64);
  uint64_t w = first / 64;
  LOCK_FOR_SCOPE (&map->dirty_lock);

  while (w < end_word) {
    uint32_t s = w / WORDS_PER_SECTOR;
    uint64_t end = MIN (end_word, (uint64_t)(s + 1) * WORDS_PER_SECTOR);
    uint64_t news = 0;

    for (; w < end; ++w) {
      uint64_t mask = mask_in_word (w, first, count);
      uint64_t old = atomic_fetch_or (&map->valid[w], mask);

      news += __builtin_popcountll (mask & ~old);
    }
    if (news > 0) {
      list_sector (map, s);
      atomic_fetch_add (&map->nr_valid, news);
    }
  }
}

bool
region_map_is_durable (const struct region_map *map, uint64_t first,
                       uint64_t count)
{
  const uint64_t end_word = div_round_up (first + count, 64);

  for (uint64_t w = first / 64; w < end_word; ++w) {
    uint64_t mask = mask_in_word (w, first, count);

    if ((atomic_load_explicit (&map->durable[w], memory_order_acquire) &
         mask) != mask)
      return false;
  }
  return true;
}

uint64_t
region_map_count_valid (const struct region_map *map)
{
  return atomic_load (&map->nr_valid);
}

uint64_t
region_map_count_durable (const struct region_map *map)
{
  return atomic_load (&map->nr_durable);
}

uint64_t
region_map_bytes_valid (const struct region_map *map)
{
  uint64_t bytes = region_map_count_valid (map) << map->shift;
  uint64_t missing = (map->regions << map->shift) - map->size;

  if (missing > 0 && region_map_is_valid (map, map->regions - 1))
    bytes -= MIN (missing, bytes);
  return bytes;
}

bool
region_map_is_dirty (struct region_map *map)
{
  LOCK_FOR_SCOPE (&map->dirty_lock);

  return map->dirty_first != END_OF_LIST;
}

static int
compare_sectors (const void *a, const void *b)
{
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

  return (x > y) - (x < y);
}

size_t
region_map_take_dirty (struct region_map *map, uint32_t *sectors, size_t max)
{
  size_t n = 0;

  {
    LOCK_FOR_SCOPE (&map->dirty_lock);

    while (n < max && map->dirty_first != END_OF_LIST) {
      uint32_t s = map->dirty_first;

      map->dirty_first = map->dirty_next[s];
      map->dirty_next[s] = NOT_LISTED;
      sectors[n++] = s;
    }
  }
  qsort (sectors, n, sizeof sectors[0], compare_sectors);
  return n;
}

void
region_map_put_dirty (struct region_map *map, uint32_t sector)
{
  LOCK_FOR_SCOPE (&map->dirty_lock);

  list_sector (map, sector);
}

static void
copy_words (const _Atomic uint64_t *bits, uint32_t sector,
            uint64_t words[WORDS_PER_SECTOR])
{
  bits += (uint64_t)sector * WORDS_PER_SECTOR;
  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    words[i] = atomic_load (&bits[i]);
}

void
region_map_snapshot (const struct region_map *map, uint32_t sector,
                     uint64_t words[WORDS_PER_SECTOR])
{
  copy_words (map->valid, sector, words);
}

void
region_map_durable (const struct region_map *map, uint32_t sector,
                    uint64_t words[WORDS_PER_SECTOR])
{
  copy_words (map->durable, sector, words);
}

void
region_map_set_durable (struct region_map *map, uint32_t sector,
                        const uint64_t words[WORDS_PER_SECTOR])
{
  _Atomic uint64_t *durable =
    &map->durable[(uint64_t)sector * WORDS_PER_SECTOR];
  uint64_t news = 0;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    uint64_t old = atomic_fetch_or (&durable[i], words[i]);

    news += __builtin_popcountll (words[i] & ~old);
  }
  atomic_fetch_add (&map->nr_durable, news);
}

uint64_t
region_map_forget (struct region_map *map)
{
  const uint64_t words = (uint64_t)map->sectors * WORDS_PER_SECTOR;
  uint64_t forgotten = 0;
  LOCK_FOR_SCOPE (&map->dirty_lock);

  for (uint64_t w = 0; w < words; ++w) {
    const uint64_t durable = atomic_load (&map->durable[w]);
    const uint64_t valid = atomic_load (&map->valid[w]);

    if (valid != durable) {
      forgotten += __builtin_popcountll (valid & ~durable);
      atomic_store (&map->valid[w], durable);
    }
  }
  atomic_fetch_sub (&map->nr_valid, forgotten);

  while (map->dirty_first != END_OF_LIST) {
    uint32_t s = map->dirty_first;

    map->dirty_first = map->dirty_next[s];
    map->dirty_next[s] = NOT_LISTED;
  }
  return forgotten;
}

bool
region_map_has_stray_bits (uint64_t regions, uint32_t sector,
                           const uint64_t words[WORDS_PER_SECTOR])
{
  const uint64_t base = (uint64_t)sector * WORDS_PER_SECTOR;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    uint64_t start = (base + i) * 64;
    uint64_t allowed =
      start >= regions ? 0 : mask_in_word (base + i, start, regions - start);

    if (words[i] & ~allowed)
      return true;
  }
  return false;
}

int
region_map_load (struct region_map *map, uint32_t sector,
                 const uint64_t words[WORDS_PER_SECTOR])
{
  _Atomic uint64_t *valid = &map->valid[(uint64_t)sector * WORDS_PER_SECTOR];
  uint64_t n = 0;

  if (region_map_has_stray_bits (map->regions, sector, words)) {
    errno = EINVAL;
    return -1;
  }
  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    if (words[i]) {
      atomic_store (&valid[i], words[i]);
      n += __builtin_popcountll (words[i]);
    }
  if (n > 0) {
    atomic_fetch_add (&map->nr_valid, n);
    region_map_set_durable (map, sector, words);
  }
  return 0;
}

size_t
region_map_words_size (const struct region_map *map)
{
  return (size_t)map->sectors * WORDS_PER_SECTOR * sizeof *map->valid;
}

int
region_map_move (struct region_map *map, void *words, uint64_t *regions)
{
  _Atomic uint64_t *to = words;
  uint64_t sector[WORDS_PER_SECTOR];

  /* Only the last sector has bits that stand for no region. */
  copy_words (to, map->sectors - 1, sector);
  if (region_map_has_stray_bits (map->regions, map->sectors - 1, sector)) {
    errno = EINVAL;
    return -1;
  }

  *regions = 0;
  /* Not to touch the pages of a map in which nothing is valid. */
  if (map->nr_valid == 0 && is_zero (words, region_map_words_size (map)))
    goto move;
  for (uint32_t s = 0; s < map->sectors; ++s) {
    const uint64_t first = (uint64_t)s * WORDS_PER_SECTOR;

    for (uint64_t w = first; w < first + WORDS_PER_SECTOR; ++w) {
      const uint64_t valid = map->valid[w], news = to[w] & ~valid;

      if (to[w] != (valid | news))
        to[w] = valid | news;
      *regions += __builtin_popcountll (news);
      if ((valid | news) != map->durable[w])
        list_sector (map, s);
    }
  }
  map->nr_valid += *regions;

 move:
  if (!map->moved)
    free (map->valid);
  map->valid = to;
  map->moved = true;
  return 0;
}
