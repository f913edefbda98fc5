/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The superblocks of a store: reading the two copies, choosing the current one,
 * and updating both.  metadata.h has the format.
 */

#ifndef CLONE_SUPERBLOCK_H
#define CLONE_SUPERBLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "store/metadata.h"

enum metadata_presence {
  METADATA_IO_ERROR = -1, /* logged */
  METADATA_ABSENT,        /* both superblocks are zero, or lie past the end */
  METADATA_PRESENT,       /* at least one valid superblock */
  METADATA_DAMAGED,       /* our magic, but no valid superblock */
  METADATA_FOREIGN,       /* something else */
  METADATA_UNSUPPORTED,   /* unknown version or unknown incompat features */
};

/* The superblocks A and B of a store, as found. */
struct superblocks {
  enum metadata_presence presence;
  const char *wrong[2];    /* NULL if it is valid, else what is wrong with it */
  struct superblock sb[2]; /* if it is valid */
  /* The current one; -1 if neither is valid, they do not belong together, or
   * the store is not supported.
   */
  int current;
  /* Why the store is not supported, for example "format version 3", or "". */
  char unsupported[64];
};

/* The offsets of A and B. */
extern const uint64_t superblock_offset[2];

/* Read the superblocks, and nothing else.  Bytes past the end of the store are
 * taken as zeroes.  -1 with errno as backend_pread; nothing is logged.
 */
extern int metadata_read_superblocks (struct backend *b,
                                      struct superblocks *found);

/* Is there a store?  Reads the superblocks and changes nothing.  Only I/O
 * errors are logged.
 */
extern enum metadata_presence metadata_probe (struct backend *b,
                                              const struct log *log);

/* Write sb to copy 0 or 1, and flush.  -1 with errno, not logged. */
extern int superblock_write (struct metadata *md, unsigned copy,
                             const struct superblock *sb);

/* Durably set the flags.  Every bit that the flags vouch for is durable before.
 * Not thread safe.  -1 with errno, not logged; the store is valid in any case,
 * and has the old or the new flags.
 */
extern int metadata_set_flags (struct metadata *md, uint32_t flags);

/* Likewise set the generation, which must be higher than the current one. */
extern int metadata_set_generation (struct metadata *md, uint64_t generation);

/* Likewise set the identity of the destination.  A store of version 1 has no
 * place for it, and is not changed.
 */
extern int metadata_set_destination (struct metadata *md,
                                     const struct backend_identity *id);

/* Are both the same file, or both unknown? */
extern bool metadata_same_identity (const struct backend_identity *a,
                                    const struct backend_identity *b);

#endif /* CLONE_SUPERBLOCK_H */
