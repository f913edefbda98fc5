/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The bitmap of a store: its sectors, one by one and as a whole.  metadata.h
 * has the format.
 */

#ifndef CLONE_BITMAP_H
#define CLONE_BITMAP_H

#include <stddef.h>
#include <stdint.h>

#include "store/metadata.h"
#include "store/region-map.h"

/* The number of bitmap sectors for this disk, and the offset of sector s. */
extern uint32_t metadata_sectors (uint64_t size, uint64_t region_size);
extern uint64_t metadata_sector_offset (uint32_t s);

/* Called with bitmap sector s.  If the sector is valid, wrong is NULL and words
 * are its bits; else wrong says what is wrong, and words are 0.  To end the
 * walk the visitor logs why, and returns -1.
 */
typedef int metadata_visitor (void *opaque, uint32_t s, const char *wrong,
                              const uint64_t words[WORDS_PER_SECTOR]);

/* Read and check the whole bitmap, sector by sector, in ascending order.
 * Sectors past the end of a truncated store are visited as wrong.  -1 if a read
 * failed, which is logged, or if the visitor returned -1.
 */
extern int metadata_walk (struct backend *b, const struct superblock *sb,
                          metadata_visitor *visit, void *opaque,
                          const struct log *log);

/* Read and check the whole bitmap into map, which is new and has the
 * superblock's geometry.  The map takes the bits for durable, so the store,
 * superblocks included, is flushed.  -1 on damage or I/O error, which is
 * logged.
 */
extern int metadata_load (struct metadata *md, struct region_map *map);

/* Encode words as bitmap sector s. */
extern void metadata_encode (const struct metadata *md, uint32_t s,
                             const uint64_t words[WORDS_PER_SECTOR],
                             uint8_t image[METADATA_SECTOR]);

/* Decode them.  -1 with errno EINVAL if the image is not a valid sector s. */
extern int metadata_decode (const struct metadata *md, uint32_t s,
                            const uint8_t image[METADATA_SECTOR],
                            uint64_t words[WORDS_PER_SECTOR]);

/* Write n sectors: images[i] is sector sectors[i], and the numbers ascend.
 * Adjacent sectors become one segment.  They are not durable before
 * metadata_flush.  -1 with errno as backend_pwrite; nothing is logged.
 *
 * A server that is lost between the write and the flush may have dropped what
 * was written, and be back for the flush.  The caller makes sure that both
 * reach one incarnation of the server, or that one of them fails with ENOTCONN
 * (commit.h).  The same is true of the functions in superblock.h that write and
 * flush.
 */
extern int metadata_write (struct metadata *md, const uint32_t *sectors,
                           uint8_t (*images)[METADATA_SECTOR], size_t n);
extern int metadata_flush (struct metadata *md);

/* Write a bitmap in which no region is valid.  -1 with errno, not logged. */
extern int bitmap_write_empty (struct metadata *md);

#endif /* CLONE_BITMAP_H */
