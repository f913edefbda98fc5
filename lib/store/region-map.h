/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The states of all regions, in memory.
 *
 * A region is invalid (its bytes are the source's) or valid (its bytes are in
 * the destination).  It goes from invalid to valid, once, and never back (I1).
 * The map has two bits for each region, `valid' and `durable'.  A durable
 * region is valid in the bitmap on disk, too.  A valid region that is not
 * durable is dirty.  (The exception to I1 is region_map_forget.)
 *
 * The bits are grouped into bitmap sectors, as in the metadata.  One sector has
 * REGIONS_PER_SECTOR regions.  Sectors with dirty bits are on a list, so that
 * the cost of a commit depends on what has changed, not on the disk's size.
 *
 * Locking: a look takes no lock.  region_map_is_valid and region_map_run are
 * atomic loads.  The caller of region_map_set owns the regions (range-lock.h).
 * Functions that change the map take its lock, which is never held across I/O.
 * The functions "for commit" are called by one thread at a time, the one that
 * runs the commit.  Those "for opening" are called before other threads use the
 * map.
 *
 * Memory: 2 bits for each region, and 4 bytes for each sector.
 */

#ifndef CLONE_REGION_MAP_H
#define CLONE_REGION_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REGION_SIZE_MIN (UINT64_C (4) << 10)
#define REGION_SIZE_MAX (UINT64_C (1) << 30)
#define REGIONS_MAX (UINT64_C (1) << 31)

/* A sector of 512 bytes without its trailer of 8 bytes. */
#define WORDS_PER_SECTOR 63
#define REGIONS_PER_SECTOR (WORDS_PER_SECTOR * 64)

struct region_map;

/* Make a map for a disk of size bytes, with all regions invalid.  NULL with
 * errno ENOMEM; or EINVAL if size is 0, region_size is not a power of two
 * within its limits, or there would be more than REGIONS_MAX regions.
 */
extern struct region_map *region_map_new (uint64_t size, uint64_t region_size);
extern void region_map_free (struct region_map *map); /* NULL is allowed */

extern uint64_t region_map_size (const struct region_map *map);
extern uint64_t region_map_region_size (const struct region_map *map);
extern uint64_t region_map_regions (const struct region_map *map);
extern uint32_t region_map_sectors (const struct region_map *map);

/* The bytes of regions [first, first + count).  The disk's last region may be
 * short.
 */
extern uint64_t region_map_bytes (const struct region_map *map, uint64_t first,
                                  uint64_t count);

/* ---- looks and changes ---- */

extern bool region_map_is_valid (const struct region_map *map,
                                 uint64_t region);

/* The length of the run of regions that begins at first, is all valid or all
 * invalid, and ends at `end' or before.  first < end; the result is at least 1.
 */
extern uint64_t region_map_run (const struct region_map *map, uint64_t first,
                                uint64_t end, bool *valid);

/* The same for bytes [offset, end) of the disk. */
extern uint64_t region_map_run_bytes (const struct region_map *map,
                                      uint64_t offset, uint64_t end,
                                      bool *valid);

/* Make regions valid; some may be valid already.  They are dirty as soon as
 * another thread can see that they are valid: a snapshot that is taken after
 * that look has them.
 */
extern void region_map_set (struct region_map *map, uint64_t first,
                            uint64_t count);

/* Make invalid all regions that are not durable, and return their number.  The
 * content of these regions in the destination is unknown.  Meanwhile no thread
 * sets bits and no commit runs.
 */
extern uint64_t region_map_forget (struct region_map *map);

/* Are all of these regions durable? */
extern bool region_map_is_durable (const struct region_map *map,
                                   uint64_t first, uint64_t count);

/* The numbers of valid and of durable regions. */
extern uint64_t region_map_count_valid (const struct region_map *map);
extern uint64_t region_map_count_durable (const struct region_map *map);
/* The bytes of all valid regions. */
extern uint64_t region_map_bytes_valid (const struct region_map *map);

/* ---- all three states, in bytes [offset, end) of the disk ---- */

enum region_state { REGION_INVALID, REGION_DIRTY, REGION_DURABLE };

/* How many bytes are in each of two states; the others are invalid. */
struct region_sum {
  uint64_t durable, dirty;
};
extern void region_map_sum (const struct region_map *map, uint64_t offset,
                            uint64_t end, struct region_sum *sum);

/* The length of the run at offset of bytes in one state, which ends at `end' or
 * before.
 */
extern uint64_t region_map_state_run (const struct region_map *map,
                                      uint64_t offset, uint64_t end,
                                      enum region_state *state);

/* ---- whole sectors ---- */

/* Does this bitmap sector, of a disk with `regions' regions, have a bit that
 * stands for no region?
 */
extern bool region_map_has_stray_bits (uint64_t regions, uint32_t sector,
                                       const uint64_t words[WORDS_PER_SECTOR]);

/* Is a sector on the list? */
extern bool region_map_is_dirty (struct region_map *map);

/* For commit: take up to max sectors off the list.  Returns their number;
 * sectors gets their numbers, in ascending order.  If there are fewer than
 * max, the list is empty now.  The caller ends what it began with
 * region_map_set_durable or region_map_put_dirty for each of them.
 */
extern size_t region_map_take_dirty (struct region_map *map,
                                     uint32_t *sectors, size_t max);

/* For commit: put back a sector that was taken. */
extern void region_map_put_dirty (struct region_map *map, uint32_t sector);

/* For commit: copy a sector's valid bits.  A bit that is set after
 * region_map_take_dirty took the sector may be in the copy or not; in both
 * cases the sector is on the list again.
 */
extern void region_map_snapshot (const struct region_map *map,
                                 uint32_t sector,
                                 uint64_t words[WORDS_PER_SECTOR]);

/* For commit: copy a sector's durable bits. */
extern void region_map_durable (const struct region_map *map, uint32_t sector,
                                uint64_t words[WORDS_PER_SECTOR]);

/* For commit: these bits of the sector, from a snapshot, are durable now. */
extern void region_map_set_durable (struct region_map *map, uint32_t sector,
                                    const uint64_t words[WORDS_PER_SECTOR]);

/* For opening: these bits of the sector are on disk, so valid and durable.
 * -1 with errno EINVAL if a bit stands for no region.
 */
extern int region_map_load (struct region_map *map, uint32_t sector,
                            const uint64_t words[WORDS_PER_SECTOR]);

/* For opening: keep the valid bits in the caller's memory from now on.  It has
 * region_map_words_size bytes, and outlives the map.  It holds the valid bits
 * of an earlier process: these regions become valid, too, and dirty if they are
 * not durable; *regions is the number of these.  -1 with errno EINVAL, and no
 * change, if a bit stands for no region.
 */
extern size_t region_map_words_size (const struct region_map *map);
extern int region_map_move (struct region_map *map, void *words,
                            uint64_t *regions);

#endif /* CLONE_REGION_MAP_H */
