/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Whole sectors of the map: dirty ones for the commit, and those that are
 * loaded or taken over when a clone is opened.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/iszero.h"
#include "store/region-map-internal.h"

bool
region_map_has_stray_bits (uint64_t regions, uint32_t sector,
                           const uint64_t words[WORDS_PER_SECTOR])
{
  const uint64_t base = (uint64_t)sector * WORDS_PER_SECTOR;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    uint64_t start = (base + i) * 64;
    uint64_t allowed =
      start >= regions ? 0 : region_map_mask (base + i, start, regions - start);

    if (words[i] & ~allowed)
      return true;
  }
  return false;
}

/* ---- for commit ---- */

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
      map->dirty_next[s] = TAKEN;
      sectors[n++] = s;
    }
    if (n > 0)
      region_map_check (map, sectors[0], sectors[n - 1]);
  }
  qsort (sectors, n, sizeof sectors[0], compare_sectors);
  return n;
}

void
region_map_put_dirty (struct region_map *map, uint32_t sector)
{
  LOCK_FOR_SCOPE (&map->dirty_lock);

  region_map_list_sector (map, sector);
  region_map_check (map, sector, sector);
}

static void
region_map_copy_words (const _Atomic uint64_t *bits, uint32_t sector,
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
  region_map_copy_words (map->valid, sector, words);
}

void
region_map_durable (const struct region_map *map, uint32_t sector,
                    uint64_t words[WORDS_PER_SECTOR])
{
  region_map_copy_words (map->durable, sector, words);
}

/* The lock is held. */
static void
region_map_set_durable_words (struct region_map *map, uint32_t sector,
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

void
region_map_set_durable (struct region_map *map, uint32_t sector,
                        const uint64_t words[WORDS_PER_SECTOR])
{
  LOCK_FOR_SCOPE (&map->dirty_lock);

  region_map_set_durable_words (map, sector, words);
  if (map->dirty_next[sector] == TAKEN)
    map->dirty_next[sector] = NOT_LISTED;
  region_map_check (map, sector, sector);
}

/* ---- for opening ---- */

int
region_map_load (struct region_map *map, uint32_t sector,
                 const uint64_t words[WORDS_PER_SECTOR])
{
  _Atomic uint64_t *valid = &map->valid[(uint64_t)sector * WORDS_PER_SECTOR];
  uint64_t n = 0;
  LOCK_FOR_SCOPE (&map->dirty_lock);

  if (region_map_has_stray_bits (map->regions, sector, words)) {
    errno = EINVAL;
    return -1;
  }
  /* Zeroes are not stored, so that pages of a new map stay untouched. */
  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    if (words[i]) {
      atomic_store (&valid[i], words[i]);
      n += __builtin_popcountll (words[i]);
    }
  if (n > 0) {
    atomic_fetch_add (&map->nr_valid, n);
    region_map_set_durable_words (map, sector, words);
  }
  region_map_check (map, sector, sector);
  return 0;
}

size_t
region_map_words_size (const struct region_map *map)
{
  return (size_t)map->sectors * WORDS_PER_SECTOR * sizeof *map->valid;
}

/* Merge the map's valid bits into words.  Returns how many regions of these
 * were invalid in the map.  The lock is held.
 */
static uint64_t
region_map_merge_words (struct region_map *map, _Atomic uint64_t *words)
{
  uint64_t regions = 0;

  for (uint32_t s = 0; s < map->sectors; ++s) {
    const uint64_t first = (uint64_t)s * WORDS_PER_SECTOR;

    for (uint64_t w = first; w < first + WORDS_PER_SECTOR; ++w) {
      const uint64_t valid = map->valid[w], news = words[w] & ~valid;

      if (words[w] != (valid | news))
        words[w] = valid | news;
      regions += __builtin_popcountll (news);
      if ((valid | news) != map->durable[w])
        region_map_list_sector (map, s);
    }
  }
  return regions;
}

int
region_map_move (struct region_map *map, void *words, uint64_t *regions)
{
  uint64_t last[WORDS_PER_SECTOR];
  LOCK_FOR_SCOPE (&map->dirty_lock);

  /* Only the last sector has bits that stand for no region. */
  region_map_copy_words (words, map->sectors - 1, last);
  if (region_map_has_stray_bits (map->regions, map->sectors - 1, last)) {
    errno = EINVAL;
    return -1;
  }

  *regions = 0;
  /* If there is nothing to merge, the pages of a new map stay untouched. */
  if (map->nr_valid > 0 || !is_zero (words, region_map_words_size (map)))
    *regions = region_map_merge_words (map, words);
  map->nr_valid += *regions;

  if (!map->moved)
    free (map->valid);
  map->valid = words;
  map->moved = true;
  region_map_check (map, 0, map->sectors - 1);
  return 0;
}
