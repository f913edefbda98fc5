/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the region-map*.c files share: the map itself, the list of dirty
 * sectors, and the map's invariants.
 *
 * HOW A DIRTY BIT IS NEVER MISSED.  As soon as a bit is set, another thread may
 * see it, without a lock, write to the valid region, and flush.  That flush
 * must find the bit.  So a thread sets the bit and puts its sector on the list
 * under one lock, and a commit takes sectors off the list under the same lock.
 * The thread that has seen the bit takes the lock after the setter has released
 * it.  Then the sector is on the list, or a commit has taken it and copies the
 * bits later, this one included.
 */

#ifndef CLONE_REGION_MAP_INTERNAL_H
#define CLONE_REGION_MAP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/rounding.h"
#include "store/region-map.h"

/* dirty_next[s] where it is not the next sector of the list. */
#define NOT_LISTED UINT32_MAX
#define END_OF_LIST (UINT32_MAX - 1)
#define TAKEN (UINT32_MAX - 2) /* not listed: a commit has it */

struct region_map {
  uint64_t size;    /* bytes */
  unsigned shift;   /* log2 of the region size */
  uint64_t regions;
  uint32_t sectors;

  pthread_mutex_t dirty_lock; /* held for each change of what follows */

  /* One bit for each region, WORDS_PER_SECTOR words for each sector.  Bits that
   * stand for no region are 0.  Looks take no lock.
   */
  _Atomic uint64_t *valid;
  _Atomic uint64_t *durable;
  bool moved;       /* the valid bits are in the caller's memory */
  _Atomic uint64_t nr_valid;
  _Atomic uint64_t nr_durable;

  /* The list of sectors with dirty bits, threaded through one array. */
  uint32_t *dirty_next;
  uint32_t dirty_first;
};

/* The bits of regions [first, first + count) in word w. */
static inline uint64_t
region_map_mask (uint64_t w, uint64_t first, uint64_t count)
{
  uint64_t start = MAX (first, w * 64);
  uint64_t end = MIN (first + count, (w + 1) * 64);
  uint64_t n = end - start;

  return (n == 64 ? UINT64_MAX : (UINT64_C (1) << n) - 1) << (start % 64);
}

/* Put a sector on the list, unless it is there.  The lock is held. */
static inline void
region_map_list_sector (struct region_map *map, uint32_t s)
{
  if (map->dirty_next[s] < TAKEN || map->dirty_next[s] == END_OF_LIST)
    return;
  map->dirty_next[s] = map->dirty_first;
  map->dirty_first = s;
}

/* Check the invariants:
 *
 *   - each durable region is valid;
 *   - a sector with dirty bits is on the list, or a commit has taken it;
 *   - no bit is set that stands for no region;
 *   - nr_valid and nr_durable are the numbers of bits; and
 *   - the list is what dirty_next says.
 *
 * In a large map the last two are left out, and the others are checked in
 * sectors first and last only, so that a check after each change is cheap.  The
 * lock is held.  The broken invariant, or NULL.
 */
extern const char *region_map_broken (const struct region_map *map,
                                      uint32_t first, uint32_t last);

/* Called at the end of each function that changes sectors first to last.
 * Builds with CLONE_CHECKS abort here if an invariant is broken.
 */
#ifdef CLONE_CHECKS
extern void region_map_check (const struct region_map *map, uint32_t first,
                              uint32_t last);
#else
static inline void
region_map_check (const struct region_map *map, uint32_t first, uint32_t last)
{
}
#endif

#endif /* CLONE_REGION_MAP_INTERNAL_H */
