/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The map itself: looks, and changes of regions.  region-map-sectors.c has the
 * functions for whole sectors.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "store/region-map-internal.h"

/* Bytes, on most machines. */
#define HUGE_PAGE ((size_t)2 << 20)

/* Allocate the words of this number of sectors, all 0.  Pages that are not
 * touched take no memory.  Huge pages are asked for because the hydration of a
 * sparse disk touches all pages at once, and would spend most of its time in
 * page faults.
 */
static void *
region_map_new_words (uint32_t sectors)
{
  const size_t sector = WORDS_PER_SECTOR * sizeof (uint64_t);
  char *words = calloc (sectors, sector);
  const size_t size = sectors * sector;
  const size_t skip = -(uintptr_t)words % HUGE_PAGE;

  if (words && size >= 2 * HUGE_PAGE)
    /* Advice: the result does not matter. */
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

  map->valid = region_map_new_words (map->sectors);
  map->durable = region_map_new_words (map->sectors);
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
      uint64_t mask = region_map_mask (w, first, count);
      uint64_t old = atomic_fetch_or (&map->valid[w], mask);

      news += __builtin_popcountll (mask & ~old);
    }
    if (news > 0) {
      region_map_list_sector (map, s);
      atomic_fetch_add (&map->nr_valid, news);
    }
  }
  region_map_check (map, first / REGIONS_PER_SECTOR,
                    (first + count - 1) / REGIONS_PER_SECTOR);
}

bool
region_map_is_durable (const struct region_map *map, uint64_t first,
                       uint64_t count)
{
  const uint64_t end_word = div_round_up (first + count, 64);

  for (uint64_t w = first / 64; w < end_word; ++w) {
    uint64_t mask = region_map_mask (w, first, count);

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
  region_map_check (map, 0, map->sectors - 1);
  return forgotten;
}
