/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The format, and what makes it valid, is in metadata.h. */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uuid/uuid.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "store/metadata.h"

/* Stores are multiples of this, so that they suit any block device. */
#define STORE_ALIGN 4096

/* Sectors that creation and loading handle at once: 1 MiB. */
#define CHUNK_SECTORS 2048

/* Segments handed to the backend at once. */
#define MAX_SEGMENTS 64

/* What the user of a damaged store can do. */
#define WHAT_TO_DO "see what nbdclone check says of it and nbdclone repair " \
  "can do, restore a copy of the metadata, or start over with a new destination"

static const uint64_t superblock_offset[2] = {
  METADATA_SUPERBLOCK_A, METADATA_SUPERBLOCK_B
};
static const char superblock_magic[8] = "NBDCLONE";
static const char bitmap_magic[4] = "CLBM";

/* The two kinds of sector, as they are on disk. */
struct superblock_image {
  char magic[8];
  uint32_t version;
  uint32_t crc;
  uint8_t uuid[METADATA_UUID_SIZE];
  uint64_t generation;
  uint64_t size;
  uint64_t region_size;
  uint32_t flags;
  uint32_t zero_1;
  uint32_t fingerprint[FINGERPRINT_SAMPLES];
  /* All zero in version 1. */
  uint32_t compat, ro_compat, incompat;
  uint32_t zero_2;
  uint64_t inode;
  uint64_t birth_sec;
  uint32_t birth_nsec;
  uint32_t zero_3;
  uint8_t feature_area[METADATA_SECTOR - METADATA_FEATURE_AREA];
};
_Static_assert (sizeof (struct superblock_image) == METADATA_SECTOR,
                "a superblock is one sector");
_Static_assert (offsetof (struct superblock_image, feature_area) ==
                METADATA_FEATURE_AREA, "no padding");

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

uint64_t
metadata_store_size (uint64_t size, uint64_t region_size)
{
  return round_up (metadata_sector_offset (metadata_sectors (size,
                                                             region_size)),
                   STORE_ALIGN);
}

/* ---- superblocks ---- */

static uint32_t
superblock_crc (const struct superblock_image *image)
{
  struct superblock_image copy = *image;

  copy.crc = 0;
  return crc32c (0, &copy, sizeof copy);
}

static void
superblock_encode (const struct superblock *sb, struct superblock_image *image)
{
  memset (image, 0, sizeof *image);
  memcpy (image->magic, superblock_magic, sizeof image->magic);
  image->version = htole32 (sb->version);
  memcpy (image->uuid, sb->uuid, sizeof image->uuid);
  image->generation = htole64 (sb->generation);
  image->size = htole64 (sb->size);
  image->region_size = htole64 (sb->region_size);
  image->flags = htole32 (sb->flags);
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i)
    image->fingerprint[i] = htole32 (sb->fingerprint.crc[i]);
  image->compat = htole32 (sb->compat);
  image->ro_compat = htole32 (sb->ro_compat);
  image->incompat = htole32 (sb->incompat);
  image->inode = htole64 (sb->destination.inode);
  image->birth_sec = htole64 (sb->destination.birth_sec);
  image->birth_nsec = htole32 (sb->destination.birth_nsec);
  memcpy (image->feature_area, sb->feature_area, sizeof image->feature_area);
  image->crc = htole32 (superblock_crc (image));
}

/* The two versions differ in bytes 192 and up. */
static const char *
decode_tail (const struct superblock_image *image, struct superblock *sb)
{
  const size_t tail = offsetof (struct superblock_image, compat);

  if (sb->version == 1)
    return is_zero ((const uint8_t *)image + tail, sizeof *image - tail) ? NULL
      : "bytes that should be zero";

  sb->compat = le32toh (image->compat);
  sb->ro_compat = le32toh (image->ro_compat);
  sb->incompat = le32toh (image->incompat);
  sb->destination.inode = le64toh (image->inode);
  sb->destination.birth_sec = le64toh (image->birth_sec);
  sb->destination.birth_nsec = le32toh (image->birth_nsec);
  memcpy (sb->feature_area, image->feature_area, sizeof sb->feature_area);
  if (sb->incompat & ~METADATA_INCOMPAT)
    return "features that this program does not know";
  if (sb->destination.birth_nsec >= 1000000000)
    return "an impossible time";
  if (image->zero_2 != 0 || image->zero_3 != 0 ||
      (!sb->compat && !sb->ro_compat && !sb->incompat &&
       !is_zero (sb->feature_area, sizeof sb->feature_area)))
    return "bytes that should be zero";
  return NULL;
}

/* NULL where the image is a valid superblock, else what is wrong with it. */
static const char *
superblock_decode (const struct superblock_image *image,
                   struct superblock *sb)
{
  memset (sb, 0, sizeof *sb);
  if (is_zero (image, sizeof *image))
    return "all zeroes";
  if (memcmp (image->magic, superblock_magic, sizeof image->magic) != 0)
    return "wrong magic";
  if (le32toh (image->crc) != superblock_crc (image))
    return "wrong checksum";
  sb->version = le32toh (image->version);
  if (sb->version < METADATA_VERSION_MIN || sb->version > METADATA_VERSION)
    return "a format version that this program does not know";

  memcpy (sb->uuid, image->uuid, sizeof sb->uuid);
  sb->generation = le64toh (image->generation);
  sb->size = le64toh (image->size);
  sb->region_size = le64toh (image->region_size);
  sb->flags = le32toh (image->flags);
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i)
    sb->fingerprint.crc[i] = le32toh (image->fingerprint[i]);

  if (sb->size == 0 || sb->size > INT64_MAX ||
      !is_power_of_2 (sb->region_size) ||
      sb->region_size < REGION_SIZE_MIN || sb->region_size > REGION_SIZE_MAX ||
      div_round_up (sb->size, sb->region_size) > REGIONS_MAX)
    return "impossible sizes";
  if (sb->flags & ~(METADATA_CLEAN | METADATA_COMPLETE))
    return "unknown flags";
  if (image->zero_1 != 0)
    return "bytes that should be zero";
  return decode_tail (image, sb);
}

/* Is the superblock whole, but of a kind that is not known?  It says in `what',
 * which is not changed otherwise, what that is.
 */
static void
note_unsupported (const struct superblock_image *image, char *what, size_t size)
{
  const uint32_t version = le32toh (image->version);
  const uint32_t features = le32toh (image->incompat) & ~METADATA_INCOMPAT;

  if (memcmp (image->magic, superblock_magic, sizeof image->magic) != 0 ||
      le32toh (image->crc) != superblock_crc (image))
    return;
  if (version < METADATA_VERSION_MIN || version > METADATA_VERSION)
    snprintf (what, size, "format version %" PRIu32, version);
  else if (version >= 2 && features)
    snprintf (what, size, "incompat features 0x%" PRIx32, features);
}

/* Do two valid superblocks belong to the same store? */
static bool
superblocks_agree (const struct superblock *a, const struct superblock *b)
{
  if (a->version != b->version ||
      memcmp (a->uuid, b->uuid, sizeof a->uuid) != 0 ||
      a->size != b->size || a->region_size != b->region_size)
    return false;
  if (a->version == 1)
    return memcmp (&a->fingerprint, &b->fingerprint,
                   sizeof a->fingerprint) == 0;
  if (a->generation == b->generation) {
    struct superblock_image x, y;

    superblock_encode (a, &x);
    superblock_encode (b, &y);
    return memcmp (&x, &y, sizeof x) == 0;
  }
  return true;
}

/* Read what the backend has of each superblock; the rest stays zero. */
static int
read_images (struct backend *b, struct superblock_image image[2])
{
  struct segment seg[2];
  size_t n = 0;

  memset (image, 0, 2 * sizeof image[0]);
  for (unsigned i = 0; i < 2; ++i) {
    uint64_t offset = superblock_offset[i];

    if (b->size > offset)
      seg[n++] = (struct segment){
        &image[i], MIN (b->size - offset, sizeof image[i]), offset
      };
  }
  return backend_preadv (b, seg, n);
}

static enum metadata_presence
presence (const struct superblock_image image[2],
          const struct superblocks *found)
{
  if (found->unsupported[0])
    return METADATA_UNSUPPORTED;
  if (!found->wrong[0] || !found->wrong[1])
    return METADATA_PRESENT;
  if (is_zero (image, 2 * sizeof image[0]))
    return METADATA_ABSENT;
  for (unsigned i = 0; i < 2; ++i)
    if (memcmp (image[i].magic, superblock_magic, sizeof image[i].magic) == 0)
      return METADATA_DAMAGED;
  return METADATA_FOREIGN;
}

/* The superblock that counts, or -1. */
static int
choose_superblock (const struct superblocks *found)
{
  const struct superblock *sb = found->sb;

  if (found->unsupported[0])
    return -1;
  if (found->wrong[0] || found->wrong[1])
    return !found->wrong[0] ? 0 : !found->wrong[1] ? 1 : -1;
  if (!superblocks_agree (&sb[0], &sb[1]))
    return -1;
  return sb[1].generation > sb[0].generation;
}

int
metadata_read_superblocks (struct backend *b, struct superblocks *found)
{
  struct superblock_image image[2];

  if (read_images (b, image) == -1)
    return -1;
  found->unsupported[0] = '\0';
  for (unsigned i = 0; i < 2; ++i) {
    found->wrong[i] = superblock_decode (&image[i], &found->sb[i]);
    note_unsupported (&image[i], found->unsupported,
                      sizeof found->unsupported);
  }
  found->presence = presence (image, found);
  found->current = choose_superblock (found);
  return 0;
}

enum metadata_presence
metadata_probe (struct backend *b, const struct log *log)
{
  struct superblocks found;

  if (metadata_read_superblocks (b, &found) == 0)
    return found.presence;
  backend_log_failure (b, "metadata", "cannot read the superblocks");
  return METADATA_IO_ERROR;
}

/* Write one superblock and make it durable. */
static int
write_superblock (struct metadata *md, unsigned which,
                  const struct superblock *sb)
{
  struct superblock_image image;

  superblock_encode (sb, &image);
  if (backend_pwrite (md->backend, &image, sizeof image,
                      superblock_offset[which], 0) == -1)
    return -1;
  return backend_flush (md->backend);
}

/* Write both, the one that does not count first, and nothing else. */
static int
update_superblock (struct metadata *md, struct superblock *sb)
{
  sb->generation = ++md->generation;
  if (write_superblock (md, 1 - md->current, sb) == -1)
    return -1;
  /* It is durable, so it counts now, and the other may be written; also where
   * that fails, and a later update begins.
   */
  md->current = 1 - md->current;
  if (write_superblock (md, 1 - md->current, sb) == -1)
    return -1;
  md->sb = *sb;
  return 0;
}

int
metadata_set_flags (struct metadata *md, uint32_t flags)
{
  struct superblock sb = md->sb;

  if (sb.flags == flags)
    return 0;
  sb.flags = flags;
  return update_superblock (md, &sb);
}

int
metadata_set_generation (struct metadata *md, uint64_t generation)
{
  struct superblock sb = md->sb;

  md->generation = generation - 1;
  return update_superblock (md, &sb);
}

bool
metadata_same_identity (const struct backend_identity *a,
                        const struct backend_identity *b)
{
  return a->inode == b->inode && a->birth_sec == b->birth_sec &&
    a->birth_nsec == b->birth_nsec;
}

int
metadata_set_destination (struct metadata *md,
                          const struct backend_identity *id)
{
  struct superblock sb = md->sb;

  if (sb.version == 1 || metadata_same_identity (&sb.destination, id))
    return 0;
  sb.destination = *id;
  return update_superblock (md, &sb);
}

/* ---- bitmap sectors ---- */

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

/* NULL where the image is valid as sector s, else what is wrong with it. */
static const char *
bitmap_decode (const struct superblock *sb, uint32_t s,
               const uint8_t in[METADATA_SECTOR],
               uint64_t words[WORDS_PER_SECTOR])
{
  struct bitmap_image image;

  memcpy (&image, in, sizeof image);
  if (memcmp (image.magic, bitmap_magic, sizeof image.magic) != 0)
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
  memcpy (image.magic, bitmap_magic, sizeof image.magic);
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

/* ---- whole stores ---- */

struct metadata *
metadata_begin (struct backend *b, const struct superblock *sb,
                const struct log *log)
{
  struct metadata *md = calloc (1, sizeof *md);

  if (md == NULL) {
    log_error (log, "calloc: %m");
    return NULL;
  }
  md->backend = b;
  md->log = log;
  md->sb = *sb;
  md->sb.generation = md->generation = 1;
  uuid_generate (md->sb.uuid);

  if (backend_zero (b, METADATA_BITMAP, 0, 0) == -1 ||
      backend_flush (b) == -1) {
    backend_log_failure (b, "metadata", "cannot create it");
    free (md);
    return NULL;
  }
  return md;
}

int
metadata_finish (struct metadata *md)
{
  if (backend_flush (md->backend) == -1 ||
      write_superblock (md, 0, &md->sb) == -1)
    return -1;
  return write_superblock (md, 1, &md->sb);
}

/* Write a bitmap in which no region is valid. */
static int
write_empty_bitmap (struct metadata *md)
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

struct metadata *
metadata_create (struct backend *b, const struct superblock *sb,
                 const struct log *log)
{
  struct superblock empty = *sb;
  struct metadata *md;

  empty.version = METADATA_VERSION;
  empty.flags = METADATA_CLEAN;
  md = metadata_begin (b, &empty, log);
  if (md == NULL)
    return NULL;

  if (write_empty_bitmap (md) == -1 || metadata_finish (md) == -1) {
    backend_log_failure (b, "metadata", "cannot create it");
    free (md);
    return NULL;
  }
  return md;
}

/* Say why none of the superblocks counts. */
static void
refuse_superblocks (const struct superblocks *found, const struct backend *b,
                    const struct log *log)
{
  if (found->unsupported[0])
    log_error (log, "metadata %s: this program does not know %s; use a newer "
               "one", b->name, found->unsupported);
  else if (found->wrong[0])
    log_error (log, "metadata %s: both superblocks are damaged: %s at offset "
               "%d, %s at offset %d; " WHAT_TO_DO, b->name,
               found->wrong[0], METADATA_SUPERBLOCK_A,
               found->wrong[1], METADATA_SUPERBLOCK_B);
  else
    log_error (log, "metadata %s: the superblocks at offsets %d and %d "
               "belong to different stores; " WHAT_TO_DO, b->name,
               METADATA_SUPERBLOCK_A, METADATA_SUPERBLOCK_B);
}

struct metadata *
metadata_open (struct backend *b, const struct log *log)
{
  struct superblocks found;
  struct metadata *md;
  uint64_t wanted;
  uint32_t unknown;

  if (metadata_read_superblocks (b, &found) == -1) {
    backend_log_failure (b, "metadata", "cannot read the superblocks");
    return NULL;
  }
  if (found.current == -1) {
    refuse_superblocks (&found, b, log);
    return NULL;
  }
  unknown = found.sb[found.current].ro_compat & ~METADATA_RO_COMPAT;
  if (unknown) {
    log_error (log, "metadata %s: this program does not know ro_compat "
               "features 0x%" PRIx32 ", and must not serve the clone; use a "
               "newer one", b->name, unknown);
    return NULL;
  }

  md = calloc (1, sizeof *md);
  if (md == NULL) {
    log_error (log, "calloc: %m");
    return NULL;
  }
  md->backend = b;
  md->log = log;
  md->current = found.current;
  md->sb = found.sb[found.current];
  md->generation = md->sb.generation;

  wanted = metadata_store_size (md->sb.size, md->sb.region_size);
  if (b->size < wanted) {
    log_error (log, "metadata %s: it was cut: it has %" PRIu64 " bytes and "
               "should have %" PRIu64 "; " WHAT_TO_DO, b->name, b->size,
               wanted);
    free (md);
    return NULL;
  }
  for (unsigned i = 0; i < 2; ++i)
    if (found.wrong[i])
      log_info (log, "metadata %s: superblock at offset %" PRIu64 " is damaged "
                "(%s), going on with the other copy", b->name,
                superblock_offset[i], found.wrong[i]);
  return md;
}

void
metadata_close (struct metadata *md)
{
  if (md == NULL)
    return;
  backend_close (md->backend);
  free (md);
}

/* Hand the sectors from first on to the visitor; images has the first n of
 * them, and the store the first `readable'.
 */
static int
visit_sectors (const struct superblock *sb, uint32_t first, uint32_t n,
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
    if (visit_sectors (sb, s, n, images, readable, visit, opaque) == -1)
      return -1;
    s += n;
  }
  return 0;
}

struct loading {
  const struct metadata *md;
  struct region_map *map;
};

static int
load_sector (void *opaque, uint32_t s, const char *wrong,
             const uint64_t words[WORDS_PER_SECTOR])
{
  const struct loading *l = opaque;

  if (!wrong && region_map_load (l->map, s, words) == -1)
    wrong = "bits that stand for no region";
  if (!wrong)
    return 0;
  log_error (l->md->log, "metadata %s: bitmap sector %" PRIu32 " at offset "
             "%" PRIu64 " is damaged: %s; " WHAT_TO_DO, l->md->backend->name,
             s, metadata_sector_offset (s), wrong);
  return -1;
}

int
metadata_load (struct metadata *md, struct region_map *map)
{
  struct loading l = { md, map };

  if (metadata_walk (md->backend, &md->sb, load_sector, &l, md->log) == -1)
    return -1;

  if ((md->sb.flags & METADATA_COMPLETE) &&
      region_map_count_valid (map) != region_map_regions (map)) {
    log_error (md->log, "metadata %s: it is marked complete, but %" PRIu64
               " of %" PRIu64 " regions are not valid; " WHAT_TO_DO,
               md->backend->name,
               region_map_regions (map) - region_map_count_valid (map),
               region_map_regions (map));
    return -1;
  }
  /* A process that was killed may have written this and not flushed it. */
  if (metadata_flush (md) == -1) {
    log_error (md->log, "metadata %s: cannot write: %m", md->backend->name);
    return -1;
  }
  return 0;
}
