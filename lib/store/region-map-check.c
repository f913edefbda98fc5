/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The invariants are in region-map-internal.h. */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include "store/region-map-internal.h"

/* Maps of at most this many sectors are checked as a whole. */
#define SMALL_MAP 8

static const char *
region_map_broken_sector (const struct region_map *map, uint32_t s)
{
  const bool clean = map->dirty_next[s] == NOT_LISTED;
  uint64_t words[WORDS_PER_SECTOR];

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    const uint64_t w = (uint64_t)s * WORDS_PER_SECTOR + i;
    const uint64_t valid = atomic_load (&map->valid[w]);
    const uint64_t durable = atomic_load (&map->durable[w]);

    if (durable & ~valid)
      return "a durable region is not valid";
    if (clean && valid != durable)
      return "a sector with dirty bits is not on the list";
    words[i] = valid;
  }
  return region_map_has_stray_bits (map->regions, s, words)
    ? "a bit stands for no region" : NULL;
}

static const char *
region_map_broken_counts (const struct region_map *map)
{
  uint64_t valid = 0, durable = 0;

  for (uint64_t w = 0; w < (uint64_t)map->sectors * WORDS_PER_SECTOR; ++w) {
    valid += __builtin_popcountll (map->valid[w]);
    durable += __builtin_popcountll (map->durable[w]);
  }
  if (valid != map->nr_valid)
    return "the number of valid regions is wrong";
  if (durable != map->nr_durable)
    return "the number of durable regions is wrong";
  return NULL;
}

static const char *
region_map_broken_list (const struct region_map *map)
{
  uint32_t listed = 0, length = 0;

  for (uint32_t s = 0; s < map->sectors; ++s)
    listed += map->dirty_next[s] < TAKEN || map->dirty_next[s] == END_OF_LIST;
  for (uint32_t s = map->dirty_first; s != END_OF_LIST; s = map->dirty_next[s])
    if (s >= map->sectors || ++length > listed)
      return "the list of dirty sectors is broken";
  return length == listed ? NULL : "the list of dirty sectors is broken";
}

const char *
region_map_broken (const struct region_map *map, uint32_t first, uint32_t last)
{
  const char *broken = NULL;

  if (map->sectors <= SMALL_MAP) {
    for (uint32_t s = 0; !broken && s < map->sectors; ++s)
      broken = region_map_broken_sector (map, s);
    if (!broken)
      broken = region_map_broken_counts (map);
    return broken ? broken : region_map_broken_list (map);
  }
  broken = region_map_broken_sector (map, first);
  return broken ? broken : region_map_broken_sector (map, last);
}

#ifdef CLONE_CHECKS
void
region_map_check (const struct region_map *map, uint32_t first, uint32_t last)
{
  const char *broken = region_map_broken (map, first, last);

  if (broken) {
    fprintf (stderr, "region map: %s\n", broken);
    abort ();
  }
}
#endif
