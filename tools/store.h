/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A store (metadata.h gives the format) that may be damaged, and what can still
 * be known from it.
 *
 * A region is valid, invalid or unknown.  Unknown are those of a bitmap sector
 * that is not valid.  The complete flag tells more, because it is set when all
 * bits are 1 on disk, and bits never go back:
 *
 *   - no valid sector contradicts it: the regions of sectors that are not valid
 *     are valid, nothing is unknown;
 *   - a valid sector has a 0: either flag or sector is wrong, though both have
 *     a right CRC (a device that lost a write does that).  Every region whose
 *     bit is not seen to be 1 is unknown.
 *
 * A store is read in pieces, whatever its size: nothing here holds the map.  It
 * is opened read-only, and with a lock that no running clone shares.
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
  const struct superblock *sb; /* the one that counts */
  uint64_t regions;
  uint32_t sectors;            /* of the bitmap */
  uint64_t expected_size;      /* bytes */

  /* Known after store_examine. */
  uint32_t damaged;            /* bitmap sectors that are not valid */
  uint64_t contradicting;      /* regions with bit 0, against the flag */
  uint64_t first_contradicting;
  bool believe_complete;
  uint64_t valid;              /* regions; the three make up all */
  uint64_t invalid;
  uint64_t unknown;
};

/* Open a store and read its superblocks.  EXIT_CLEAN, or, with a message,
 * EXIT_LOST where no superblock counts, or EXIT_TROUBLE.  The store must be
 * closed in any case.
 */
extern int store_open (struct store *store, const char *name);
extern void store_close (struct store *store);

/* A bitmap sector that is not valid, and what is wrong with it. */
typedef void store_damage (void *opaque, uint32_t s, const char *wrong);

/* Read the whole bitmap, and find out what is known.  Each sector that is not
 * valid is told to report, ascending; NULL is allowed.  -1 on a read error,
 * which is logged.
 */
extern int store_examine (struct store *store, store_damage *report,
                          void *opaque);

/* Is the store in the state that it should be in?  After store_examine. */
extern bool store_is_clean (const struct store *store);

/* Called with the regions of bitmap sector s, as bits.  No region is both; one
 * that is neither is invalid.  -1 ends the walk.
 */
typedef int store_visitor (void *opaque, uint32_t s,
                           const uint64_t valid[WORDS_PER_SECTOR],
                           const uint64_t unknown[WORDS_PER_SECTOR]);

/* Read the bitmap again, ascending.  After store_examine.  -1 on a read error,
 * which is logged, or where the visitor says so.
 */
extern int store_walk (const struct store *store, store_visitor *visit,
                       void *opaque);

/* The regions of bitmap sectors [first, last]. */
extern uint64_t store_first_region (uint32_t first);
extern uint64_t store_last_region (const struct store *store, uint32_t last);

/* The disk's bytes in regions up to last: the offset behind them. */
extern uint64_t store_end_byte (const struct store *store, uint64_t last);

#endif /* CLONE_STORE_H */
