/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The format, and what makes a bitmap sector valid, is in metadata.h. */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "store/bitmap.h"

/* Sectors that are read or written at once: 1 MiB. */
#define CHUNK_SECTORS 2048

/* Segments of one write. */
#define MAX_SEGMENTS 64

static const char magic[4] = "CLBM";

/* A bitmap sector as it is on disk. */
struct bitmap_image {
  uint64_t words[WORDS_PER_SECTOR];
  char magic[4];
  uint32_t crc;
};
_Static_assert (sizeof (struct bitmap_image) == METADATA_SECTOR,
                "a bitmap sector is one sector");

uint32_t
metadata_sectors (uint64_t size, uint64_t region_size)
{
  return div_round_up (div_round_up (size, region_size), REGIONS_PER_SECTOR);
}

uint64_t
metadata_sector_offset (uint32_t s)
{
  return METADATA_BITMAP + (uint64_t)s * METADATA_SECTOR;
}

/* ---- one sector ---- */

static uint32_t
bitmap_crc (const struct superblock *sb, uint32_t s,
            const struct bitmap_image *image)
{
  const uint64_t number = htole64 (s);
  uint32_t crc;

  crc = crc32c (0, sb->uuid, sizeof sb->uuid);
  crc = crc32c (crc, &number, sizeof number);
  return crc32c (crc, image, offsetof (struct bitmap_image, crc));
}

/* NULL if the image is a valid sector s, else what is wrong with it. */
static const char *
bitmap_decode (const struct superblock *sb, uint32_t s,
               const uint8_t in[METADATA_SECTOR],
               uint64_t words[WORDS_PER_SECTOR])
{
  struct bitmap_image image;

  memcpy (&image, in, sizeof image);
  if (memcmp (image.magic, magic, sizeof image.magic) != 0)
    return is_zero (in, METADATA_SECTOR) ? "all zeroes" : "wrong magic";
  if (le32toh (image.crc) != bitmap_crc (sb, s, &image))
    return "wrong checksum";
  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    words[i] = le64toh (image.words[i]);
  if (region_map_has_stray_bits (div_round_up (sb->size, sb->region_size), s,
                                 words))
    return "bits for regions past the end of the disk";
  return NULL;
}

void
metadata_encode (const struct metadata *md, uint32_t s,
                 const uint64_t words[WORDS_PER_SECTOR],
                 uint8_t out[METADATA_SECTOR])
{
  struct bitmap_image image;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    image.words[i] = htole64 (words[i]);
  memcpy (image.magic, magic, sizeof image.magic);
  image.crc = htole32 (bitmap_crc (&md->sb, s, &image));
  memcpy (out, &image, sizeof image);
}

int
metadata_decode (const struct metadata *md, uint32_t s,
                 const uint8_t image[METADATA_SECTOR],
                 uint64_t words[WORDS_PER_SECTOR])
{
  if (bitmap_decode (&md->sb, s, image, words) == NULL)
    return 0;
  errno = EINVAL;
  return -1;
}

/* ---- writing ---- */

int
metadata_write (struct metadata *md, const uint32_t *sectors,
                uint8_t (*images)[METADATA_SECTOR], size_t n)
{
  struct segment seg[MAX_SEGMENTS];
  size_t nr_seg = 0;

  for (size_t i = 0; i < n; ) {
    size_t run = 1;

    while (i + run < n && sectors[i + run] == sectors[i] + run)
      run++;
    seg[nr_seg++] = (struct segment){
      images[i], run * METADATA_SECTOR, metadata_sector_offset (sectors[i])
    };
    i += run;

    if (nr_seg == MAX_SEGMENTS || i == n) {
      if (backend_pwritev (md->backend, seg, nr_seg, 0) == -1)
        return -1;
      nr_seg = 0;
    }
  }
  return 0;
}

int
metadata_flush (struct metadata *md)
{
  return backend_flush (md->backend);
}

int
bitmap_write_empty (struct metadata *md)
{
  CLEANUP_FREE uint8_t (*images)[METADATA_SECTOR] = NULL;
  CLEANUP_FREE uint32_t *sectors = NULL;
  static const uint64_t no_bits[WORDS_PER_SECTOR];
  const uint32_t total = metadata_sectors (md->sb.size, md->sb.region_size);

  images = malloc (CHUNK_SECTORS * sizeof *images);
  sectors = malloc (CHUNK_SECTORS * sizeof *sectors);
  if (images == NULL || sectors == NULL)
    return -1;

  for (uint32_t s = 0; s < total; ) {
    uint32_t n = MIN (total - s, (uint32_t)CHUNK_SECTORS);

    for (uint32_t i = 0; i < n; ++i) {
      sectors[i] = s + i;
      metadata_encode (md, s + i, no_bits, images[i]);
    }
    if (metadata_write (md, sectors, images, n) == -1)
      return -1;
    s += n;
  }
  return 0;
}

/* ---- reading ---- */

/* Visit n sectors, from sector `first' on.  images has those of them that the
 * store has; its first `readable' sectors are not past its end.
 */
static int
bitmap_visit (const struct superblock *sb, uint32_t first, uint32_t n,
              uint8_t (*images)[METADATA_SECTOR], uint32_t readable,
              metadata_visitor *visit, void *opaque)
{
  for (uint32_t i = 0; i < n; ++i) {
    uint64_t words[WORDS_PER_SECTOR] = { 0 };
    const char *wrong = first + i < readable
      ? bitmap_decode (sb, first + i, images[i], words)
      : "past the end of the file";

    if (wrong)
      memset (words, 0, sizeof words);
    if (visit (opaque, first + i, wrong, words) == -1)
      return -1;
  }
  return 0;
}

int
metadata_walk (struct backend *b, const struct superblock *sb,
               metadata_visitor *visit, void *opaque, const struct log *log)
{
  CLEANUP_FREE uint8_t (*images)[METADATA_SECTOR] = NULL;
  const uint32_t total = metadata_sectors (sb->size, sb->region_size);
  uint32_t readable = total;

  if (b->size < metadata_sector_offset (total))
    readable = b->size < METADATA_BITMAP ? 0
      : (b->size - METADATA_BITMAP) / METADATA_SECTOR;

  images = malloc (CHUNK_SECTORS * sizeof *images);
  if (images == NULL) {
    log_error (log, "malloc: %m");
    return -1;
  }
  for (uint32_t s = 0; s < total; ) {
    uint32_t n = MIN (total - s, (uint32_t)CHUNK_SECTORS);
    size_t count = MIN (MAX (readable, s) - s, n) * sizeof *images;

    if (backend_pread (b, images, count, metadata_sector_offset (s)) == -1) {
      log_error (log, "metadata %s: cannot read %zu bytes at offset "
                 "%" PRIu64 ": %m", b->name, count,
                 metadata_sector_offset (s));
      return -1;
    }
    if (bitmap_visit (sb, s, n, images, readable, visit, opaque) == -1)
      return -1;
    s += n;
  }
  return 0;
}

struct bitmap_loading {
  const struct metadata *md;
  struct region_map *map;
};

static int
bitmap_load_sector (void *opaque, uint32_t s, const char *wrong,
                    const uint64_t words[WORDS_PER_SECTOR])
{
  const struct bitmap_loading *l = opaque;

  if (!wrong && region_map_load (l->map, s, words) == -1)
    wrong = "bits that stand for no region";
  if (!wrong)
    return 0;
  log_error (l->md->log, "metadata %s: bitmap sector %" PRIu32 " at offset "
             "%" PRIu64 " is damaged: %s; " METADATA_ADVICE,
             l->md->backend->name, s, metadata_sector_offset (s), wrong);
  return -1;
}

int
metadata_load (struct metadata *md, struct region_map *map)
{
  struct bitmap_loading l = { md, map };

  if (metadata_walk (md->backend, &md->sb, bitmap_load_sector, &l,
                     md->log) == -1)
    return -1;

  if ((md->sb.flags & METADATA_COMPLETE) &&
      region_map_count_valid (map) != region_map_regions (map)) {
    log_error (md->log, "metadata %s: it is marked complete, but %" PRIu64
               " of %" PRIu64 " regions are not valid; " METADATA_ADVICE,
               md->backend->name,
               region_map_regions (map) - region_map_count_valid (map),
               region_map_regions (map));
    return -1;
  }
  /* A process that was killed may have written these bits without a flush. */
  if (metadata_flush (md) == -1) {
    log_error (md->log, "metadata %s: cannot write: %m", md->backend->name);
    return -1;
  }
  return 0;
}
