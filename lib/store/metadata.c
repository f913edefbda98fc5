/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The format is in metadata.h. */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>

#include <uuid/uuid.h>

#include "base/rounding.h"
#include "store/bitmap.h"
#include "store/metadata.h"
#include "store/superblock.h"

/* Stores are multiples of this, so that they fit any block device. */
#define STORE_ALIGN 4096

uint64_t
metadata_store_size (uint64_t size, uint64_t region_size)
{
  return round_up (metadata_sector_offset (metadata_sectors (size,
                                                             region_size)),
                   STORE_ALIGN);
}

/* ---- creation ---- */

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
      superblock_write (md, 0, &md->sb) == -1)
    return -1;
  return superblock_write (md, 1, &md->sb);
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

  if (bitmap_write_empty (md) == -1 || metadata_finish (md) == -1) {
    backend_log_failure (b, "metadata", "cannot create it");
    free (md);
    return NULL;
  }
  return md;
}

/* ---- opening ---- */

/* Log why there is no current superblock. */
static void
metadata_log_refusal (const struct superblocks *found,
                      const struct backend *b, const struct log *log)
{
  if (found->unsupported[0])
    log_error (log, "metadata %s: this program does not know %s; use a newer "
               "one", b->name, found->unsupported);
  else if (found->wrong[0])
    log_error (log, "metadata %s: both superblocks are damaged: %s at offset "
               "%d, %s at offset %d; " METADATA_ADVICE, b->name,
               found->wrong[0], METADATA_SUPERBLOCK_A,
               found->wrong[1], METADATA_SUPERBLOCK_B);
  else
    log_error (log, "metadata %s: the superblocks at offsets %d and %d "
               "belong to different stores; " METADATA_ADVICE, b->name,
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
    metadata_log_refusal (&found, b, log);
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
    log_error (log, "metadata %s: it is cut: it has %" PRIu64 " bytes and "
               "should have %" PRIu64 "; " METADATA_ADVICE, b->name, b->size,
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
