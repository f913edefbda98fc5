/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The metadata: which regions are valid, durably.
 *
 * FORMAT, version 1.  All integers are little-endian.
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
 *     8..11     version, 1
 *     12..15    CRC32C of the 512 bytes, with these four taken as zero
 *     16..31    UUID of this store
 *     32..39    generation, counts the superblock's updates
 *     40..47    size of the source, bytes
 *     48..55    region size, bytes
 *     56..59    flags: 1 clean, 2 complete
 *     60..63    zero
 *     64..191   fingerprint of the source: 32 CRC32C values (fingerprint.h)
 *     192..511  zero
 *
 *   bitmap sector s: bytes
 *     0..503    63 words of 64 bits; bit b of word w stands for region
 *               4032*s + 64*w + b, and is 1 where that region is valid
 *     504..507  magic "CLBM"
 *     508..511  CRC32C of the UUID, of s as 64 bits, and of bytes 0..507
 *
 * A superblock is valid if and only if its magic, version and CRC are right,
 * size is from 1 to 2^63 - 1, the region size is a power of two from 4K to 1G
 * that gives at most 2^31 regions, no unknown flag is set and the bytes said to
 * be zero are zero.  A bitmap sector is valid if and only if its magic and CRC
 * are right and no bit is set that stands for no region.
 *
 * A store is valid if and only if it is not shorter than that, at least one
 * superblock is valid, two valid ones agree in all but generation and flags,
 * every bitmap sector is valid, and where the complete flag is set every
 * region's bit is 1.  The superblock that counts is the valid one of the higher
 * generation, A where they are equal.  A store in which both superblocks are
 * all zeroes is not there: creation did not get to its end.
 * (Not so in a file, which gets its name after its creation has.)
 *
 * WHY A CRASH DOES NO HARM.  The unit that is written in one piece is a sector
 * of 512 bytes.  Bits go from 0 to 1 only, and whatever mix of old and new
 * sectors a crash leaves, each of them has a right CRC, each bit that was
 * durable (the new sector has all bits of the old one), and no bit that
 * was not in a commit's snapshot.  The order that makes such bits true is
 * commit.h's.  The two superblocks are written one after the other with a flush
 * between them, the one that does not count first, so that one of them is whole
 * at any time; and what differs between them is never more than generation and
 * flags, which only save work.
 *
 * A bit that flipped, or a sector that was lost, breaks a CRC or a magic, and
 * the store is refused: to read damage as "invalid" would silently bring the
 * source's old content back.
 */

#ifndef CLONE_METADATA_H
#define CLONE_METADATA_H

#include <stdint.h>

#include "backend.h"
#include "fingerprint.h"
#include "region-map.h"

#define METADATA_VERSION 1
#define METADATA_SECTOR 512
#define METADATA_UUID_SIZE 16

/* Offsets.  The bitmap's is that of sector 0. */
#define METADATA_SUPERBLOCK_A 0
#define METADATA_SUPERBLOCK_B 4096
#define METADATA_BITMAP 8192

#define METADATA_CLEAN 1    /* closed in order: every valid bit is on disk */
#define METADATA_COMPLETE 2 /* every bit is 1: the source is not needed */

struct superblock {
  uint8_t uuid[METADATA_UUID_SIZE];
  uint64_t generation;
  uint64_t size;        /* bytes */
  uint64_t region_size; /* bytes */
  uint32_t flags;
  struct fingerprint fingerprint;
};

struct metadata {
  struct backend *backend; /* owned */
  const struct log *log;
  struct superblock sb;    /* as on disk */
  unsigned current;        /* which copy that is: 0 for A, 1 for B */
  _Atomic unsigned losses; /* of the server, see metadata_lost */
};

enum metadata_presence {
  METADATA_IO_ERROR = -1, /* logged */
  METADATA_ABSENT,        /* both superblocks are zero, or there is no room
                           * for them */
  METADATA_PRESENT,       /* at least one valid superblock */
  METADATA_DAMAGED,       /* superblocks that are ours, but none is valid */
  METADATA_FOREIGN,       /* something else */
};

/* The two superblocks of a store, A and B, as they are found. */
struct superblocks {
  enum metadata_presence presence;
  const char *wrong[2];    /* NULL where it is valid, else what is wrong */
  struct superblock sb[2]; /* where it is valid */
  /* The one that counts; -1 where none is valid or the two do not agree. */
  int current;
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
 * have been written to the destination under an older store.  sb->uuid,
 * generation and flags are filled in here.  On success the new object owns b;
 * on failure NULL, and the reason is logged.
 */
extern struct metadata *metadata_create (struct backend *b,
                                         const struct superblock *sb,
                                         const struct log *log);

/* The same in steps, for a store that begins with bits: metadata_begin leaves
 * a store that is not there; metadata_write must then write every sector; and
 * metadata_finish makes it there, durably, or fails with errno, nothing logged.
 * A crash before leaves a store that is not there.  sb->flags are used as they
 * are, and must be true of the bits.
 */
extern struct metadata *metadata_begin (struct backend *b,
                                        const struct superblock *sb,
                                        const struct log *log);
extern int metadata_finish (struct metadata *md);

/* Open a store: its superblock, not its bitmap.  On success the new object owns
 * b; on failure NULL, and the reason is logged.
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

/* Read and check the whole bitmap.  map is new and has the superblock's
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
 */
extern int metadata_write (struct metadata *md, const uint32_t *sectors,
                           uint8_t (*images)[METADATA_SECTOR], size_t n);
extern int metadata_flush (struct metadata *md);

/* The server was lost, with perhaps everything that had been written and not
 * flushed, and nothing has reached it again yet.  Whoever writes and flushes
 * looks at md->losses before and after, and begins again where it has changed.
 * Any thread may call this.
 */
extern void metadata_lost (struct metadata *md);

/* Durably set the flags.  Every bit that the flags speak of is durable before.
 * Not thread safe.  -1 with errno; the store is valid whatever happens.
 */
extern int metadata_set_flags (struct metadata *md, uint32_t flags);

#endif /* CLONE_METADATA_H */
