/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The format, and what makes a superblock valid, is in metadata.h. */

#include <config.h>

#include <endian.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "store/region-map.h"
#include "store/superblock.h"

const uint64_t superblock_offset[2] = {
  METADATA_SUPERBLOCK_A, METADATA_SUPERBLOCK_B
};
static const char magic[8] = "NBDCLONE";

/* A superblock as it is on disk. */
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

/* ---- encoding and decoding ---- */

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
  memcpy (image->magic, magic, sizeof image->magic);
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

/* Decode bytes 192..511, in which the versions differ.  NULL if they are valid.
 */
static const char *
superblock_decode_tail (const struct superblock_image *image,
                        struct superblock *sb)
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

/* NULL if the image is a valid superblock, else what is wrong with it. */
static const char *
superblock_decode (const struct superblock_image *image,
                   struct superblock *sb)
{
  memset (sb, 0, sizeof *sb);
  if (is_zero (image, sizeof *image))
    return "all zeroes";
  if (memcmp (image->magic, magic, sizeof image->magic) != 0)
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
  return superblock_decode_tail (image, sb);
}

/* If the superblock is whole, but has an unknown version or unknown incompat
 * features, name them in `what'.
 */
static void
superblock_note_unsupported (const struct superblock_image *image, char *what,
                             size_t size)
{
  const uint32_t version = le32toh (image->version);
  const uint32_t features = le32toh (image->incompat) & ~METADATA_INCOMPAT;

  if (memcmp (image->magic, magic, sizeof image->magic) != 0 ||
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

/* ---- reading ---- */

/* Read both superblocks.  Bytes past the end of the backend are zero. */
static int
superblock_read_images (struct backend *b, struct superblock_image image[2])
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
superblock_presence (const struct superblock_image image[2],
                     const struct superblocks *found)
{
  if (found->unsupported[0])
    return METADATA_UNSUPPORTED;
  if (!found->wrong[0] || !found->wrong[1])
    return METADATA_PRESENT;
  if (is_zero (image, 2 * sizeof image[0]))
    return METADATA_ABSENT;
  for (unsigned i = 0; i < 2; ++i)
    if (memcmp (image[i].magic, magic, sizeof image[i].magic) == 0)
      return METADATA_DAMAGED;
  return METADATA_FOREIGN;
}

/* The current superblock, or -1. */
static int
superblock_choose (const struct superblocks *found)
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

  if (superblock_read_images (b, image) == -1)
    return -1;
  found->unsupported[0] = '\0';
  for (unsigned i = 0; i < 2; ++i) {
    found->wrong[i] = superblock_decode (&image[i], &found->sb[i]);
    superblock_note_unsupported (&image[i], found->unsupported,
                                 sizeof found->unsupported);
  }
  found->presence = superblock_presence (image, found);
  found->current = superblock_choose (found);
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

/* ---- writing ---- */

int
superblock_write (struct metadata *md, unsigned copy,
                  const struct superblock *sb)
{
  struct superblock_image image;

  superblock_encode (sb, &image);
  if (backend_pwrite (md->backend, &image, sizeof image,
                      superblock_offset[copy], 0) == -1)
    return -1;
  return backend_flush (md->backend);
}

/* Write both copies, the current one last.  After that the caller changes
 * md->sb: only the fields that are new, because other threads read the others.
 */
static int
superblock_update (struct metadata *md, struct superblock *sb)
{
  sb->generation = ++md->generation;
  if (superblock_write (md, 1 - md->current, sb) == -1)
    return -1;
  /* That copy is durable, so it is the current one, even if the next write
   * fails: then the next update begins with the other copy.
   */
  md->current = 1 - md->current;
  if (superblock_write (md, 1 - md->current, sb) == -1)
    return -1;
  md->sb.generation = sb->generation;
  return 0;
}

int
metadata_set_flags (struct metadata *md, uint32_t flags)
{
  struct superblock sb = md->sb;

  if (sb.flags == flags)
    return 0;
  sb.flags = flags;
  if (superblock_update (md, &sb) == -1)
    return -1;
  md->sb.flags = flags;
  return 0;
}

int
metadata_set_generation (struct metadata *md, uint64_t generation)
{
  struct superblock sb = md->sb;

  md->generation = generation - 1;
  return superblock_update (md, &sb);
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
  if (superblock_update (md, &sb) == -1)
    return -1;
  md->sb.destination = *id;
  return 0;
}
