/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The format, and what makes it valid, is in metadata.h. */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <uuid/uuid.h>

#include "cleanup.h"
#include "crc32c.h"
#include "iszero.h"
#include "metadata.h"
#include "rounding.h"

#define SUPERBLOCK_A 0
#define SUPERBLOCK_B 4096
#define BITMAP 8192
/* Stores are multiples of this, so that they suit any block device. */
#define STORE_ALIGN 4096

/* Sectors that creation and loading handle at once: 1 MiB. */
#define CHUNK_SECTORS 2048

/* Segments handed to the backend at once. */
#define MAX_SEGMENTS 64

static const uint64_t superblock_offset[2] = { SUPERBLOCK_A, SUPERBLOCK_B };
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
  uint8_t zero_2[METADATA_SECTOR - 192];
};
_Static_assert (sizeof (struct superblock_image) == METADATA_SECTOR,
                "a superblock is one sector");

struct bitmap_image {
  uint64_t words[WORDS_PER_SECTOR];
  char magic[4];
  uint32_t crc;
};
_Static_assert (sizeof (struct bitmap_image) == METADATA_SECTOR,
                "a bitmap sector is one sector");

static uint32_t
nr_sectors (uint64_t size, uint64_t region_size)
{
  return div_round_up (div_round_up (size, region_size), REGIONS_PER_SECTOR);
}

uint64_t
metadata_store_size (uint64_t size, uint64_t region_size)
{
  uint64_t sectors = nr_sectors (size, region_size);

  return round_up (BITMAP + sectors * METADATA_SECTOR, STORE_ALIGN);
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
  image->version = htole32 (METADATA_VERSION);
  memcpy (image->uuid, sb->uuid, sizeof image->uuid);
  image->generation = htole64 (sb->generation);
  image->size = htole64 (sb->size);
  image->region_size = htole64 (sb->region_size);
  image->flags = htole32 (sb->flags);
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i)
    image->fingerprint[i] = htole32 (sb->fingerprint.crc[i]);
  image->crc = htole32 (superblock_crc (image));
}

/* NULL where the image is a valid superblock, else what is wrong with it. */
static const char *
superblock_decode (const struct superblock_image *image,
                   struct superblock *sb)
{
  if (memcmp (image->magic, superblock_magic, sizeof image->magic) != 0)
    return "wrong magic";
  if (le32toh (image->crc) != superblock_crc (image))
    return "wrong checksum";
  if (le32toh (image->version) != METADATA_VERSION)
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
  if (image->zero_1 != 0 || !is_zero (image->zero_2, sizeof image->zero_2))
    return "bytes that should be zero";
  return NULL;
}

/* Do two superblocks belong to the same store? */
static bool
superblocks_agree (const struct superblock *a, const struct superblock *b)
{
  return memcmp (a->uuid, b->uuid, sizeof a->uuid) == 0 &&
    a->size == b->size && a->region_size == b->region_size &&
    fingerprint_compare (&a->fingerprint, &b->fingerprint) == -1;
}

static int
read_superblocks (struct backend *b, struct superblock_image image[2])
{
  const struct segment seg[2] = {
    { &image[0], sizeof image[0], SUPERBLOCK_A },
    { &image[1], sizeof image[1], SUPERBLOCK_B },
  };

  return backend_preadv (b, seg, 2);
}

enum metadata_presence
metadata_probe (struct backend *b, const struct log *log)
{
  struct superblock_image image[2];
  struct superblock sb;
  bool ours = false;

  /* The smallest store there is; what is shorter was never one, unless it was
   * cut, which only a superblock can tell.
   */
  memset (image, 0, sizeof image);
  if (b->size >= SUPERBLOCK_B + sizeof image[1]) {
    if (read_superblocks (b, image) == -1)
      goto error;
  }
  else if (b->size > 0) {
    if (backend_pread (b, &image[0], MIN (b->size, sizeof image[0]),
                       SUPERBLOCK_A) == -1)
      goto error;
  }

  if (is_zero (image, sizeof image))
    return METADATA_ABSENT;
  for (unsigned i = 0; i < 2; ++i) {
    if (superblock_decode (&image[i], &sb) == NULL)
      return METADATA_PRESENT;
    if (memcmp (image[i].magic, superblock_magic, sizeof image[i].magic) == 0)
      ours = true;
  }
  return ours ? METADATA_DAMAGED : METADATA_FOREIGN;

 error:
  log_error (log, "metadata %s: cannot read the superblocks: %m", b->name);
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

int
metadata_set_flags (struct metadata *md, uint32_t flags)
{
  struct superblock sb = md->sb;

  if (sb.flags == flags)
    return 0;
  sb.flags = flags;
  sb.generation++;
  if (write_superblock (md, 1 - md->current, &sb) == -1 ||
      write_superblock (md, md->current, &sb) == -1)
    return -1;
  md->sb = sb;
  return 0;
}

/* ---- bitmap sectors ---- */

static uint32_t
bitmap_crc (const struct metadata *md, uint32_t s,
            const struct bitmap_image *image)
{
  const uint64_t number = htole64 (s);
  uint32_t crc;

  crc = crc32c (0, md->sb.uuid, sizeof md->sb.uuid);
  crc = crc32c (crc, &number, sizeof number);
  return crc32c (crc, image, offsetof (struct bitmap_image, crc));
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
  image.crc = htole32 (bitmap_crc (md, s, &image));
  memcpy (out, &image, sizeof image);
}

int
metadata_decode (const struct metadata *md, uint32_t s,
                 const uint8_t in[METADATA_SECTOR],
                 uint64_t words[WORDS_PER_SECTOR])
{
  struct bitmap_image image;

  memcpy (&image, in, sizeof image);
  if (memcmp (image.magic, bitmap_magic, sizeof image.magic) != 0 ||
      le32toh (image.crc) != bitmap_crc (md, s, &image)) {
    errno = EINVAL;
    return -1;
  }
  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    words[i] = le64toh (image.words[i]);
  return 0;
}

static uint64_t
sector_offset (uint32_t s)
{
  return BITMAP + (uint64_t)s * METADATA_SECTOR;
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
      images[i], run * METADATA_SECTOR, sector_offset (sectors[i])
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

/* Steps 1 to 3 of creation, see metadata.h. */
static int
create_store (struct metadata *md)
{
  CLEANUP_FREE uint8_t (*images)[METADATA_SECTOR] = NULL;
  CLEANUP_FREE uint32_t *sectors = NULL;
  static const uint64_t no_bits[WORDS_PER_SECTOR];
  const uint32_t total = nr_sectors (md->sb.size, md->sb.region_size);

  images = malloc (CHUNK_SECTORS * sizeof *images);
  sectors = malloc (CHUNK_SECTORS * sizeof *sectors);
  if (images == NULL || sectors == NULL)
    return -1;

  if (backend_zero (md->backend, BITMAP, 0, 0) == -1 ||
      backend_flush (md->backend) == -1)
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
  if (backend_flush (md->backend) == -1)
    return -1;

  if (write_superblock (md, 0, &md->sb) == -1)
    return -1;
  return write_superblock (md, 1, &md->sb);
}

struct metadata *
metadata_create (struct backend *b, const struct superblock *sb,
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
  md->sb.generation = 1;
  md->sb.flags = METADATA_CLEAN;
  uuid_generate (md->sb.uuid);

  if (create_store (md) == -1) {
    log_error (log, "metadata %s: cannot create it: %m", b->name);
    free (md);
    return NULL;
  }
  return md;
}

/* Choose the superblock that counts.  -1, logged, where there is none. */
static int
choose_superblock (struct metadata *md,
                   const struct superblock_image image[2])
{
  struct superblock sb[2];
  const char *why[2];

  for (unsigned i = 0; i < 2; ++i)
    why[i] = superblock_decode (&image[i], &sb[i]);

  if (why[0] && why[1]) {
    log_error (md->log, "metadata %s: both superblocks are damaged: "
               "%s at offset %d, %s at offset %d; restore a copy of the "
               "metadata, or start over with a new destination",
               md->backend->name, why[0], SUPERBLOCK_A, why[1], SUPERBLOCK_B);
    return -1;
  }
  if (!why[0] && !why[1] && !superblocks_agree (&sb[0], &sb[1])) {
    log_error (md->log, "metadata %s: the superblocks at offsets %d and %d "
               "belong to different stores; restore a copy of the metadata, "
               "or start over with a new destination",
               md->backend->name, SUPERBLOCK_A, SUPERBLOCK_B);
    return -1;
  }
  for (unsigned i = 0; i < 2; ++i)
    if (why[i])
      log_info (md->log, "metadata %s: superblock at offset %" PRIu64 " has "
                "%s, going on with the other copy", md->backend->name,
                superblock_offset[i], why[i]);

  md->current = why[0] ||
    (!why[1] && sb[1].generation > sb[0].generation);
  md->sb = sb[md->current];
  return 0;
}

struct metadata *
metadata_open (struct backend *b, const struct log *log)
{
  struct superblock_image image[2];
  struct metadata *md;
  uint64_t wanted;

  if (b->size < SUPERBLOCK_B + METADATA_SECTOR) {
    log_error (log, "metadata %s: it was cut to %" PRIu64 " bytes; "
               "restore a copy of the metadata, or start over with a new "
               "destination", b->name, b->size);
    return NULL;
  }
  if (read_superblocks (b, image) == -1) {
    log_error (log, "metadata %s: cannot read the superblocks: %m", b->name);
    return NULL;
  }

  md = calloc (1, sizeof *md);
  if (md == NULL) {
    log_error (log, "calloc: %m");
    return NULL;
  }
  md->backend = b;
  md->log = log;
  if (choose_superblock (md, image) == -1)
    goto error;

  wanted = metadata_store_size (md->sb.size, md->sb.region_size);
  if (b->size < wanted) {
    log_error (log, "metadata %s: it was cut: it has %" PRIu64 " bytes and "
               "should have %" PRIu64 "; restore a copy of the metadata, or "
               "start over with a new destination", b->name, b->size, wanted);
    goto error;
  }
  return md;

 error:
  free (md);
  return NULL;
}

void
metadata_close (struct metadata *md)
{
  if (md == NULL)
    return;
  backend_close (md->backend);
  free (md);
}

/* Put n sectors' images, from sector first on, into the map. */
static int
load_images (struct metadata *md, struct region_map *map, uint32_t first,
             uint8_t (*images)[METADATA_SECTOR], uint32_t n)
{
  uint64_t words[WORDS_PER_SECTOR];

  for (uint32_t i = 0; i < n; ++i) {
    if (metadata_decode (md, first + i, images[i], words) == -1) {
      log_error (md->log, "metadata %s: bitmap sector %" PRIu32 " at offset "
                 "%" PRIu64 " is damaged; restore a copy of the metadata, or "
                 "start over with a new destination", md->backend->name,
                 first + i, sector_offset (first + i));
      return -1;
    }
    if (region_map_load (map, first + i, words) == -1) {
      log_error (md->log, "metadata %s: bitmap sector %" PRIu32 " at offset "
                 "%" PRIu64 " has bits for regions past the end of the disk",
                 md->backend->name, first + i, sector_offset (first + i));
      return -1;
    }
  }
  return 0;
}

int
metadata_load (struct metadata *md, struct region_map *map)
{
  CLEANUP_FREE uint8_t (*images)[METADATA_SECTOR] = NULL;
  const uint32_t total = region_map_sectors (map);

  images = malloc (CHUNK_SECTORS * sizeof *images);
  if (images == NULL) {
    log_error (md->log, "malloc: %m");
    return -1;
  }

  for (uint32_t s = 0; s < total; ) {
    uint32_t n = MIN (total - s, (uint32_t)CHUNK_SECTORS);

    if (backend_pread (md->backend, images, n * sizeof *images,
                       sector_offset (s)) == -1) {
      log_error (md->log, "metadata %s: cannot read %zu bytes at offset "
                 "%" PRIu64 ": %m", md->backend->name, n * sizeof *images,
                 sector_offset (s));
      return -1;
    }
    if (load_images (md, map, s, images, n) == -1)
      return -1;
    s += n;
  }

  if ((md->sb.flags & METADATA_COMPLETE) &&
      region_map_count_valid (map) != region_map_regions (map)) {
    log_error (md->log, "metadata %s: it is marked complete, but %" PRIu64
               " of %" PRIu64 " regions are not valid", md->backend->name,
               region_map_regions (map) - region_map_count_valid (map),
               region_map_regions (map));
    return -1;
  }
  return 0;
}
