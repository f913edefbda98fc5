/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A store that may be damaged, and what can still be known from it.  metadata.h
 * has the format.
 *
 * A region is valid, invalid or unknown.  The regions of a bitmap sector that
 * is not valid are unknown.  The complete flag tells more, because it is set
 * when all bits on disk are 1, and bits never go back:
 *
 *   - If no valid sector contradicts the flag, the regions of sectors that are
 *     not valid are valid, and no region is unknown.
 *   - If a valid sector has a 0, the flag or that sector is wrong, although
 *     both have a right CRC.  (A device that drops a write does that.)  Each
 *     region whose bit is not seen to be 1 is unknown.
 *
 * A store of any size is read in pieces: no map is in memory.  It is opened
 * read-only, with a lock that no running clone shares.
 */

#ifndef CLONE_STORE_H
#define CLONE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/bitmap.h"
#include "store/superblock.h"

struct store {
  struct backend *backend;
  struct superblocks found;
  const struct superblock *sb; /* the current one */
  uint64_t regions;
  uint32_t sectors;            /* of the bitmap */
  uint64_t expected_size;      /* bytes */

  /* Known after store_examine. */
  uint32_t damaged;            /* bitmap sectors that are not valid */
  uint64_t contradicting;      /* regions with bit 0 despite the flag */
  uint64_t first_contradicting;
  bool believe_complete;
  uint64_t valid;              /* regions; these three add up to all */
  uint64_t invalid;
  uint64_t unknown;
};

/* Open a store and read its superblocks.  Returns EXIT_CLEAN; EXIT_UNREPAIRABLE
 * if there is no current superblock; or EXIT_TROUBLE.  The last two are logged.
 * The caller closes the store in any case.
 */
extern int store_open (struct store *store, const char *name);
extern void store_close (struct store *store);

/* Called with a bitmap sector that is not valid, and what is wrong with it. */
typedef void store_damage (void *opaque, uint32_t s, const char *wrong);

/* Read the whole bitmap, and fill in the rest of store.  Calls report, unless
 * it is NULL, for each sector that is not valid, in ascending order.  -1 on a
 * read error, which is logged.
 */
extern int store_examine (struct store *store, store_damage *report,
                          void *opaque);

/* Is nothing wrong with the store?  Called after store_examine. */
extern bool store_is_clean (const struct store *store);

/* Called with the regions of bitmap sector s, as bits.  No region is both valid
 * and unknown; one that is neither is invalid.  -1 ends the walk.
 */
typedef int store_visitor (void *opaque, uint32_t s,
                           const uint64_t valid[WORDS_PER_SECTOR],
                           const uint64_t unknown[WORDS_PER_SECTOR]);

/* Read the bitmap again, in ascending order.  Called after store_examine.  -1
 * on a read error, which is logged, or if the visitor returned -1.
 */
extern int store_walk (const struct store *store, store_visitor *visit,
                       void *opaque);

/* The first region of bitmap sector first, and the last region of sector last.
 */
extern uint64_t store_first_region (uint32_t first);
extern uint64_t store_last_region (const struct store *store, uint32_t last);

/* The disk's offset at the end of region last. */
extern uint64_t store_end_byte (const struct store *store, uint64_t last);

#endif /* CLONE_STORE_H */
