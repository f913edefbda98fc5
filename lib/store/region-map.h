/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The states of all regions, in memory.
 *
 * A region is invalid (its bytes are the source's) or valid (they are in the
 * destination).  It goes from invalid to valid, once, and never back (I1).
 * The map holds two bits a region, `valid' and `durable': a durable region is
 * valid also in the bitmap on disk.  A region that is valid and not durable is
 * dirty.  (The exception: region_map_forget.)
 *
 * The bits are grouped as in the metadata: one bitmap sector holds
 * REGIONS_PER_SECTOR regions, and a sector that got dirty bits is listed once,
 * so that a commit costs what has changed and not what exists.
 *
 * Locking: none is needed to look.  region_map_is_valid and region_map_run are
 * atomic loads.  region_map_set wants the caller to own the regions
 * (range-lock.h), and has a lock inside that is never held across I/O.  The
 * functions of the "for commit" group are called by one thread at a time, the
 * one that runs the commit.
 *
 * Memory: 2 bits a region, and 4 bytes for each 4032 regions.
 */

#ifndef CLONE_REGION_MAP_H
#define CLONE_REGION_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REGION_SIZE_MIN (UINT64_C (4) << 10)
#define REGION_SIZE_MAX (UINT64_C (1) << 30)
#define REGIONS_MAX (UINT64_C (1) << 31)

/* A 512 byte sector less its 8 byte trailer. */
#define WORDS_PER_SECTOR 63
#define REGIONS_PER_SECTOR (WORDS_PER_SECTOR * 64)

struct region_map;

/* Is a bit of this bitmap sector set that stands for none of the disk's
 * regions?
 */
extern bool region_map_has_stray_bits (uint64_t regions, uint32_t sector,
                                       const uint64_t words[WORDS_PER_SECTOR]);

/* For a disk of size bytes.  NULL with errno ENOMEM, or EINVAL where
 * region_size is not a power of two in its limits or there would be more than
 * REGIONS_MAX regions.  All regions are invalid.
 */
extern struct region_map *region_map_new (uint64_t size, uint64_t region_size);
extern void region_map_free (struct region_map *map); /* NULL is allowed */

extern uint64_t region_map_size (const struct region_map *map);
extern uint64_t region_map_region_size (const struct region_map *map);
extern uint64_t region_map_regions (const struct region_map *map);
extern uint32_t region_map_sectors (const struct region_map *map);

/* The bytes of regions [first, first + count): the last region may be short. */
extern uint64_t region_map_bytes (const struct region_map *map, uint64_t first,
                                  uint64_t count);

extern bool region_map_is_valid (const struct region_map *map,
                                 uint64_t region);

/* The length in regions, 1 or more, of the run of regions in one state that
 * begins at first and ends before end.
 */
extern uint64_t region_map_run (const struct region_map *map, uint64_t first,
                                uint64_t end, bool *valid);

/* The same in bytes: the state at offset, and for how many bytes, up to end,
 * it is the same.  end is not past the disk's size.
 */
extern uint64_t region_map_run_bytes (const struct region_map *map,
                                      uint64_t offset, uint64_t end,
                                      bool *valid);

/* Make regions valid, whatever they were.  As soon as anybody can see that they
 * are, they are dirty: a snapshot that is taken afterwards has them.
 */
extern void region_map_set (struct region_map *map, uint64_t first,
                            uint64_t count);

/* Are all of these regions valid in the bitmap on disk? */
extern bool region_map_is_durable (const struct region_map *map,
                                   uint64_t first, uint64_t count);

/* How many regions are valid, and how many of them are durable. */
extern uint64_t region_map_count_valid (const struct region_map *map);
extern uint64_t region_map_count_durable (const struct region_map *map);
/* The bytes of all valid regions. */
extern uint64_t region_map_bytes_valid (const struct region_map *map);

/* Is there a sector with dirty bits that no commit has taken yet? */
extern bool region_map_is_dirty (struct region_map *map);

/* For commit: take at most max sectors off the list of dirty ones, ascending.
 * The number taken; fewer than max means that the list is empty now.
 */
extern size_t region_map_take_dirty (struct region_map *map,
                                     uint32_t *sectors, size_t max);

/* For commit: put a sector that was taken back on the list. */
extern void region_map_put_dirty (struct region_map *map, uint32_t sector);

/* For commit: copy a sector's valid bits as they are now.  Bits that are set
 * after region_map_take_dirty took the sector may or may not be there; in
 * either case the sector is on the list again.
 */
extern void region_map_snapshot (const struct region_map *map,
                                 uint32_t sector,
                                 uint64_t words[WORDS_PER_SECTOR]);

/* For commit: copy a sector's durable bits. */
extern void region_map_durable (const struct region_map *map, uint32_t sector,
                                uint64_t words[WORDS_PER_SECTOR]);

/* For commit: these bits of the sector are durable now. */
extern void region_map_set_durable (struct region_map *map, uint32_t sector,
                                    const uint64_t words[WORDS_PER_SECTOR]);

/* Make invalid all regions that are not durable: what is in the destination is
 * not known.  Returns how many that were.  No bit is set and no commit is at
 * work meanwhile.
 */
extern uint64_t region_map_forget (struct region_map *map);

/* For opening: let the valid bits live in these words from now on, so many
 * bytes of the caller's which must outlive the map.  What they hold are bits of
 * an earlier process: those regions are valid, too, and dirty where they are
 * not durable; *regions is how many that are.  Nobody uses the map meanwhile.
 * -1 with errno EINVAL, and nothing is done, where a bit stands for no region.
 */
extern size_t region_map_words_size (const struct region_map *map);
extern int region_map_move (struct region_map *map, void *words,
                            uint64_t *regions);

/* For opening: these bits of the sector are on disk, so valid and durable.
 * -1 with errno EINVAL where a bit stands for no region.
 */
extern int region_map_load (struct region_map *map, uint32_t sector,
                            const uint64_t words[WORDS_PER_SECTOR]);

#endif /* CLONE_REGION_MAP_H */
