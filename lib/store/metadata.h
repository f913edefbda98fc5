/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The metadata: the durable record of which regions are valid.
 *
 * This header has the format, and the functions for a store as a whole.
 * superblock.h and bitmap.h have the functions for its two parts.
 *
 * FORMAT, versions 1 and 2.  All integers are little-endian.
 *
 *   offset          content
 *   0               superblock A (512 bytes)
 *   4096            superblock B (512 bytes)
 *   8192 + 512*s    bitmap sector s, 0 <= s < ceil (regions / 4032)
 *
 * The store ends at the next multiple of 4096.  The bytes in between are not
 * used.  regions is ceil (size / region size).
 *
 *   superblock: bytes
 *     0..7      magic "NBDCLONE"
 *     8..11     version, 1 or 2
 *     12..15    CRC32C of the 512 bytes, with these four taken as zero
 *     16..31    UUID of this store
 *     32..39    generation, higher with each update of the superblock
 *     40..47    size of the source, bytes
 *     48..55    region size, bytes
 *     56..59    flags: 1 clean, 2 complete
 *     60..63    zero
 *     64..191   fingerprint of the source: 32 CRC32C values (fingerprint.h);
 *               0 where the sample was unreadable
 *   in version 1
 *     192..511  zero
 *   in version 2
 *     192..195  compat: features that a program may ignore
 *     196..199  ro_compat: features that a program must know to serve the
 *               clone; without them it may still read the metadata
 *     200..203  incompat: features that a program must know to read the
 *               metadata
 *     204..207  zero
 *     208..215  destination: inode number of the regular file
 *     216..223  its time of birth, seconds since 1970, signed
 *     224..227  nanoseconds of that.  Both are 0 where the file system does not
 *               record it; all three are 0 where the destination is not a
 *               regular file
 *     228..231  zero
 *     232..511  feature area: data of the features; zero if there are none
 *
 *   bitmap sector s: bytes
 *     0..503    63 words of 64 bits; bit b of word w stands for region
 *               4032*s + 64*w + b, and is 1 if that region is valid
 *     504..507  magic "CLBM"
 *     508..511  CRC32C of the UUID, of s as 64 bits, and of bytes 0..507
 *
 * Each bit of compat, ro_compat and incompat is a feature; this program knows
 * none.  A program that changes a superblock keeps its compat bits and bytes
 * 232..511 as they are.
 *
 * A superblock is valid if and only if
 *   - its magic, version and CRC are right,
 *   - size is from 1 to 2^63 - 1, and the region size is a power of two from
 *     4K to 1G that gives at most 2^31 regions,
 *   - it has no unknown flag and no unknown incompat feature,
 *   - the nanoseconds are less than 10^9, and
 *   - the bytes that are zero by the table above are zero.
 *
 * A bitmap sector is valid if and only if its magic and CRC are right, and each
 * bit that stands for no region is 0.
 *
 * A store is valid if and only if
 *   - it is at least as long as the first table says,
 *   - at least one superblock is valid,
 *   - no superblock with a right magic and CRC has another version or an
 *     unknown incompat feature,
 *   - two valid superblocks have the same version, UUID, size and region size;
 *     in version 1 they have the same fingerprint; in version 2, if they have
 *     the same generation, all their bytes are the same,
 *   - every bitmap sector is valid, and
 *   - if the complete flag is set, every region's bit is 1.
 *
 * The current superblock is the valid one with the higher generation, A if both
 * have the same.  If both superblocks are all zeroes there is no store: its
 * creation was interrupted.  (A regular file gets its name after its creation,
 * so that such a file was damaged.)
 *
 * New stores have version 2.  A store of version 1 is never converted.
 *
 * WHY A CRASH DOES NO HARM.  A sector of 512 bytes is written in one piece.
 * Bits only change from 0 to 1.  Whatever mix of old and new sectors a crash
 * leaves, each sector has a right CRC; each durable bit is there, because a new
 * sector has all bits of the old one; and no bit is there that was not in a
 * commit's snapshot.  commit.h has the order of writes and flushes which makes
 * these bits true.
 *
 * The two superblocks are written one after the other, with a flush after each.
 * The one that is not current comes first.  So one of them is whole at any
 * time, and the new one is current as soon as it is durable.  Each update has
 * its own generation, even if it failed halfway, so that two superblocks of one
 * generation never differ.  After a crash either of them may be current.  Both
 * are good: the flags only save work, and an outdated identity of the
 * destination is detected and replaced again.
 *
 * A flipped bit or a sector that was never written breaks a CRC or a magic, and
 * the store is refused.  To read damage as "invalid" would silently bring back
 * the source's old content.
 */

#ifndef CLONE_METADATA_H
#define CLONE_METADATA_H

#include <stdint.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "store/fingerprint.h"

#define METADATA_VERSION 2 /* of new stores */
#define METADATA_VERSION_MIN 1
#define METADATA_SECTOR 512
#define METADATA_UUID_SIZE 16

/* Offsets.  The bitmap's is that of sector 0. */
#define METADATA_SUPERBLOCK_A 0
#define METADATA_SUPERBLOCK_B 4096
#define METADATA_BITMAP 8192

#define METADATA_CLEAN 1    /* closed in order: every valid bit is on disk */
#define METADATA_COMPLETE 2 /* every bit is 1: the source is not needed */

/* Features that this program knows. */
#define METADATA_COMPAT 0
#define METADATA_RO_COMPAT 0
#define METADATA_INCOMPAT 0

#define METADATA_FEATURE_AREA 232

/* For messages about a damaged store. */
#define METADATA_ADVICE \
  "run nbdclone check to see the damage and nbdclone repair to save what is " \
  "left, restore a copy of the metadata, or start over with a new destination"

struct superblock {
  uint32_t version;
  uint8_t uuid[METADATA_UUID_SIZE];
  uint64_t generation;
  uint64_t size;        /* bytes */
  uint64_t region_size; /* bytes */
  uint32_t flags;
  struct fingerprint fingerprint;
  /* All zero in version 1. */
  uint32_t compat, ro_compat, incompat;
  struct backend_identity destination;
  uint8_t feature_area[METADATA_SECTOR - METADATA_FEATURE_AREA];
};

/* An open store. */
struct metadata {
  struct backend *backend; /* owned */
  const struct log *log;
  struct superblock sb;    /* as on disk, in both copies if no update failed */
  unsigned current;        /* the current copy: 0 for A, 1 for B */
  uint64_t generation;     /* the last update's, even if the update failed */
};

/* The size of a store for this disk, in bytes. */
extern uint64_t metadata_store_size (uint64_t size, uint64_t region_size);

/* Create a store in which no region is valid.  Order: zero the superblocks,
 * flush; write the bitmap, flush; write superblock A, flush; write superblock
 * B, flush.  A crash before A is durable leaves no store, a later one a valid
 * store.
 *
 * The caller has made sure that b holds nothing of value, and that nothing was
 * written to the destination under an older store.  sb->version, uuid,
 * generation and flags are ignored.  On success the new object owns b.  On
 * failure NULL, and the reason is logged.
 */
extern struct metadata *metadata_create (struct backend *b,
                                         const struct superblock *sb,
                                         const struct log *log);

/* The same in steps, for a store with valid regions.  After metadata_begin,
 * which may fail as metadata_create, the caller writes every sector with
 * metadata_write, and calls metadata_finish.  That makes the store exist,
 * durably; -1 with errno, not logged, if it fails.  A crash before leaves no
 * store.  sb->version and sb->flags are used; the flags must be true of the
 * bits.
 */
extern struct metadata *metadata_begin (struct backend *b,
                                        const struct superblock *sb,
                                        const struct log *log);
extern int metadata_finish (struct metadata *md);

/* Open a store to serve its clone.  Reads the superblocks, not the bitmap.  On
 * success the new object owns b.  On failure NULL, and the reason is logged.
 */
extern struct metadata *metadata_open (struct backend *b,
                                       const struct log *log);

extern void metadata_close (struct metadata *md); /* NULL is allowed */

#endif /* CLONE_METADATA_H */
