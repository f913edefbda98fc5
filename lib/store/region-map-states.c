/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Looks at all three states of regions, for people who watch the clone.  They
 * go over the map word by word.
 */

#include <config.h>

#include "store/region-map-internal.h"

/* The valid and the durable bits of a word.  A durable region is valid, but
 * between the two looks the map may be set back.
 */
static void
region_map_load_word (const struct region_map *map, uint64_t w,
                      uint64_t *valid, uint64_t *durable)
{
  *durable = atomic_load_explicit (&map->durable[w], memory_order_acquire);
  *valid = atomic_load_explicit (&map->valid[w], memory_order_acquire);
  *durable &= *valid;
}

static void
region_map_sum_regions (const struct region_map *map, uint64_t first,
                        uint64_t count, struct region_sum *sum)
{
  const uint64_t end_word = div_round_up (first + count, 64);
  uint64_t valid, durable, nr_dirty = 0, nr_durable = 0;

  for (uint64_t w = first / 64; w < end_word; ++w) {
    const uint64_t mask = region_map_mask (w, first, count);

    region_map_load_word (map, w, &valid, &durable);
    valid &= mask;
    durable &= mask;
    if (durable == UINT64_MAX)
      nr_durable += 64;
    else if (valid) {
      nr_durable += __builtin_popcountll (durable);
      nr_dirty += __builtin_popcountll (valid & ~durable);
    }
  }
  sum->durable += nr_durable << map->shift;
  sum->dirty += nr_dirty << map->shift;
}

/* Add so many bytes of this region. */
static void
region_map_sum_part (const struct region_map *map, uint64_t region,
                     uint64_t bytes, struct region_sum *sum)
{
  const uint64_t bit = UINT64_C (1) << (region % 64);
  uint64_t valid, durable;

  region_map_load_word (map, region / 64, &valid, &durable);
  if (durable & bit)
    sum->durable += bytes;
  else if (valid & bit)
    sum->dirty += bytes;
}

void
region_map_sum (const struct region_map *map, uint64_t offset, uint64_t end,
                struct region_sum *sum)
{
  const uint64_t region_size = region_map_region_size (map);
  const uint64_t first = div_round_up (offset, region_size);
  const uint64_t last = end >> map->shift;

  *sum = (struct region_sum){ 0 };
  if (first > last) {           /* a part of one region */
    region_map_sum_part (map, last, end - offset, sum);
    return;
  }
  if (offset < first << map->shift)
    region_map_sum_part (map, first - 1, (first << map->shift) - offset, sum);
  if (first < last)
    region_map_sum_regions (map, first, last - first, sum);
  if (last << map->shift < end)
    region_map_sum_part (map, last, end - (last << map->shift), sum);
}

/* The bits of the regions that are not in this state. */
static uint64_t
region_map_others (uint64_t valid, uint64_t durable, enum region_state state)
{
  switch (state) {
  case REGION_INVALID: return valid;
  case REGION_DIRTY: return ~(valid & ~durable);
  case REGION_DURABLE: return ~durable;
  }
  __builtin_unreachable ();
}

uint64_t
region_map_state_run (const struct region_map *map, uint64_t offset,
                      uint64_t end, enum region_state *state)
{
  const uint64_t first = offset >> map->shift;
  const uint64_t last_word = ((end - 1) >> map->shift) / 64;
  const uint64_t bit = UINT64_C (1) << (first % 64);
  uint64_t w = first / 64, valid, durable, others;

  region_map_load_word (map, w, &valid, &durable);
  *state = durable & bit ? REGION_DURABLE
    : valid & bit ? REGION_DIRTY : REGION_INVALID;
  others = region_map_others (valid, durable, *state) & -bit;
  while (others == 0 && ++w <= last_word) {
    region_map_load_word (map, w, &valid, &durable);
    others = region_map_others (valid, durable, *state);
  }
  if (others == 0)
    return end - offset;
  return MIN ((w * 64 + __builtin_ctzll (others)) << map->shift, end) - offset;
}
