/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The metadata: which regions are valid, durably.
 *
 * FORMAT, versions 1 and 2.  All integers are little-endian.
 *
 *   offset          content
 *   0               superblock A (512 bytes)
 *   4096            superblock B (512 bytes)
 *   8192 + 512*s    bitmap sector s, 0 <= s < ceil (regions / 4032)
 *
 * The store ends at the next multiple of 4096.  What lies between is not used.
 * regions is ceil (size / region size).
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
 *     64..191   fingerprint of the source: 32 CRC32C values (fingerprint.h),
 *               0 where the sample could not be read when it was taken
 *   in version 1
 *     192..511  zero
 *   in version 2
 *     192..195  compat: features that a program need not know
 *     196..199  ro_compat: features that it must know to serve the clone, but
 *               not to read the metadata
 *     200..203  incompat: features that it must know to read the metadata
 *     204..207  zero
 *     208..215  destination: inode number of the regular file
 *     216..223  its time of birth, seconds since 1970, signed
 *     224..227  nanoseconds of that.  Both are 0 where the file system does not
 *               know it, and all three where the destination is no regular file
 *     228..231  zero
 *     232..511  belong to the features; zero where there are none
 *
 *   bitmap sector s: bytes
 *     0..503    63 words of 64 bits; bit b of word w stands for region
 *               4032*s + 64*w + b, and is 1 where that region is valid
 *     504..507  magic "CLBM"
 *     508..511  CRC32C of the UUID, of s as 64 bits, and of bytes 0..507
 *
 * Each bit of compat, ro_compat and incompat is a feature; this program knows
 * none.  Who changes a superblock keeps the compat bits, and bytes 232..511, as
 * they are.
 *
 * A superblock is valid if and only if its magic, version and CRC are right,
 * size is from 1 to 2^63 - 1, the region size is a power of two from 4K to 1G
 * that gives at most 2^31 regions, no unknown flag and no unknown incompat
 * feature is set, the nanoseconds are less than 10^9, and the bytes said to be
 * zero are zero.  A bitmap sector is valid if and only if its magic and CRC are
 * right and no bit is set that stands for no region.
 *
 * A store is valid if and only if it is not shorter than that; at least one
 * superblock is valid, and none has a right magic and CRC with another version
 * or an unknown incompat feature; two valid ones have the same version, UUID,
 * size and region size, and in version 1 the same fingerprint, in version 2 the
 * same bytes where they have the same generation; every bitmap sector is valid;
 * and where the complete flag is set every region's bit is 1.  The superblock
 * that counts is the valid one of the higher generation, A where they are
 * equal.  A store in which both superblocks are all zeroes is not there:
 * creation did not get to its end.  (Not so in a file, which gets its name
 * after its creation has.)
 *
 * New stores are of version 2.  A store of version 1 is never made one of 2.
 *
 * WHY A CRASH DOES NO HARM.  The unit that is written in one piece is a sector
 * of 512 bytes.  Bits go from 0 to 1 only, and whatever mix of old and new
 * sectors a crash leaves, each of them has a right CRC, each bit that was
 * durable (the new sector has all bits of the old one), and no bit that
 * was not in a commit's snapshot.  The order that makes such bits true is
 * commit.h's.  The two superblocks are written one after the other with a flush
 * between them, the one that does not count first, so that one of them is whole
 * at any time, and the new one counts as soon as it is durable.  Each update
 * has a generation of its own, also one that failed halfway, so that two
 * superblocks of one generation never say different things.  Either of them may
 * count after a crash: the flags only save work, and an old identity of the
 * destination is noticed, and replaced, once more.
 *
 * A bit that flipped, or a sector that was lost, breaks a CRC or a magic, and
 * the store is refused: to read damage as "invalid" would silently bring the
 * source's old content back.
 */

#ifndef CLONE_METADATA_H
#define CLONE_METADATA_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "store/fingerprint.h"
#include "store/region-map.h"

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

/* Where the features' own bytes begin. */
#define METADATA_FEATURE_AREA 232

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

struct metadata {
  struct backend *backend; /* owned */
  const struct log *log;
  struct superblock sb;    /* as on disk, in both copies if no update failed */
  unsigned current;        /* the copy that counts: 0 for A, 1 for B */
  uint64_t generation;     /* of the last update, also if it failed */
};

enum metadata_presence {
  METADATA_IO_ERROR = -1, /* logged */
  METADATA_ABSENT,        /* both superblocks are zero, or there is no room
                           * for them */
  METADATA_PRESENT,       /* at least one valid superblock */
  METADATA_DAMAGED,       /* superblocks that are ours, but none is valid */
  METADATA_FOREIGN,       /* something else */
  METADATA_UNSUPPORTED,   /* of another version, or with unknown features */
};

/* The two superblocks of a store, A and B, as they are found. */
struct superblocks {
  enum metadata_presence presence;
  const char *wrong[2];    /* NULL where it is valid, else what is wrong */
  struct superblock sb[2]; /* where it is valid */
  /* The one that counts; -1 where none is valid, the two do not agree, or the
   * store is not supported.
   */
  int current;
  /* What of a store that is not supported is not known, for example "format
   * version 3"; empty otherwise.
   */
  char unsupported[64];
};

/* How many bytes a store for this disk takes. */
extern uint64_t metadata_store_size (uint64_t size, uint64_t region_size);

/* Its bitmap sectors, and where one of them lies. */
extern uint32_t metadata_sectors (uint64_t size, uint64_t region_size);
extern uint64_t metadata_sector_offset (uint32_t s);

/* Read the superblocks, and nothing else.  What a store that was cut does not
 * have of them is taken for zeroes.  -1 with errno as backend_pread, nothing is
 * logged.
 */
extern int metadata_read_superblocks (struct backend *b,
                                      struct superblocks *found);

/* What is there?  Reads the superblocks only, changes nothing, logs only I/O
 * errors.
 */
extern enum metadata_presence metadata_probe (struct backend *b,
                                              const struct log *log);

/* Make a new store.  Order: the superblocks become zero, flush; the bitmap,
 * flush; superblock A, flush; superblock B, flush.  A crash before A is
 * durable leaves a store that is not there, after it a valid one.
 *
 * The caller has made sure that nothing is lost by this, and that nothing can
 * have been written to the destination under an older store.  sb->version,
 * uuid, generation and flags are filled in here.  On success the new object
 * owns b; on failure NULL, and the reason is logged.
 */
extern struct metadata *metadata_create (struct backend *b,
                                         const struct superblock *sb,
                                         const struct log *log);

/* The same in steps, for a store that begins with bits: metadata_begin leaves
 * a store that is not there; metadata_write must then write every sector; and
 * metadata_finish makes it there, durably, or fails with errno, nothing logged.
 * A crash before leaves a store that is not there.  sb->version is used as it
 * is, and so are the flags, which must be true of the bits.
 */
extern struct metadata *metadata_begin (struct backend *b,
                                        const struct superblock *sb,
                                        const struct log *log);
extern int metadata_finish (struct metadata *md);

/* Open a store that a clone is to be served with: its superblock, not its
 * bitmap.  On success the new object owns b; on failure NULL, and the reason is
 * logged.
 */
extern struct metadata *metadata_open (struct backend *b,
                                       const struct log *log);

extern void metadata_close (struct metadata *md); /* NULL is allowed */

/* Called with bitmap sector s: wrong is NULL, and words are its bits; or wrong
 * says what is wrong with it, and words are all 0.  -1, having logged why, ends
 * the walk.
 */
typedef int metadata_visitor (void *opaque, uint32_t s, const char *wrong,
                              const uint64_t words[WORDS_PER_SECTOR]);

/* Read and check the whole bitmap, sector by sector, in ascending order.  A
 * store that was cut lacks its last sectors: that is what is wrong with them.
 * -1 where a read failed, which is logged, or the visitor.
 */
extern int metadata_walk (struct backend *b, const struct superblock *sb,
                          metadata_visitor *visit, void *opaque,
                          const struct log *log);

/* Read and check the whole bitmap, and make durable what was read, superblocks
 * included: the map takes it for durable.  map is new and has the superblock's
 * geometry.  -1 on damage or I/O error, which is logged.
 */
extern int metadata_load (struct metadata *md, struct region_map *map);

/* Turn words into the image of bitmap sector s. */
extern void metadata_encode (const struct metadata *md, uint32_t s,
                             const uint64_t words[WORDS_PER_SECTOR],
                             uint8_t image[METADATA_SECTOR]);

/* The words in an image.  -1 where it is not valid as sector s. */
extern int metadata_decode (const struct metadata *md, uint32_t s,
                            const uint8_t image[METADATA_SECTOR],
                            uint64_t words[WORDS_PER_SECTOR]);

/* Write n sectors, images[i] being that of sector sectors[i]; the numbers
 * ascend.  Neighbours become one write.  Not durable before metadata_flush.
 * -1 with errno as backend_pwrite, nothing is logged.
 *
 * A server may be lost between the two, with what was written, and be back for
 * the flush.  The caller sees to it that both, and each metadata_set_..., reach
 * one incarnation of the server, or fail with ENOTCONN (commit.h).
 */
extern int metadata_write (struct metadata *md, const uint32_t *sectors,
                           uint8_t (*images)[METADATA_SECTOR], size_t n);
extern int metadata_flush (struct metadata *md);

/* Durably set the flags.  Every bit that the flags speak of is durable before.
 * Not thread safe.  -1 with errno; the store is valid whatever happens, and has
 * old or new flags.
 */
extern int metadata_set_flags (struct metadata *md, uint32_t flags);

/* The same, for a generation that is higher than the one that counts. */
extern int metadata_set_generation (struct metadata *md, uint64_t generation);

/* Are both the same file, or both not known? */
extern bool metadata_same_identity (const struct backend_identity *a,
                                    const struct backend_identity *b);

/* As metadata_set_flags, for the identity of the destination.  A store of
 * version 1 has no place for it, and is left as it is.
 */
extern int metadata_set_destination (struct metadata *md,
                                     const struct backend_identity *id);

#endif /* CLONE_METADATA_H */
