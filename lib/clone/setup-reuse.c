/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Go on with a clone: is everything still what the metadata was made for? */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "backend/file.h"
#include "base/cleanup.h"
#include "base/extents.h"
#include "clone/setup-internal.h"
#include "store/bitmap.h"
#include "store/fingerprint.h"
#include "store/metadata.h"
#include "store/superblock.h"

/* A text that helps the user to find out what happened to a local file; the
 * caller frees it.  NULL: there is none.
 */
static char *
reuse_source_hint (struct setup_work *w)
{
  char time[32], *hint;
  struct stat st;
  struct tm tm;

  if (!w->source->is_file || stat (w->source->name, &st) == -1 ||
      gmtime_r (&st.st_mtime, &tm) == NULL ||
      strftime (time, sizeof time, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0 ||
      asprintf (&hint, " (its inode is %ju, and it was last changed at %s)",
                (uintmax_t)st.st_ino, time) == -1)
    return NULL;
  return hint;
}

/* Is this the disk that the metadata was made for? (I12) */
static int
reuse_check_source (struct setup_work *w)
{
  CLEANUP_FREE char *why = NULL, *hint = NULL;
  const struct superblock *sb = &w->md->sb;

  if (w->source->size != sb->size) {
    log_error (w->log, "source %s has %" PRIu64 " bytes, but metadata %s "
               "belongs to a source of %" PRIu64 " bytes: this is another "
               "source, or it was resized", w->source->name, w->source->size,
               w->meta->name, sb->size);
    return -1;
  }
  if (!w->s->options.source_check)
    return 0;
  switch (fingerprint_check (w->source, &sb->fingerprint, &why)) {
  case 0:
    return 0;
  case 1:
    hint = reuse_source_hint (w);
    log_error (w->log, "source %s %s, when metadata %s was made: this is "
               "another source, or it was written to%s; source-check=false "
               "goes on all the same", w->source->name, why, w->meta->name,
               hint ?: "");
    return -1;
  default:
    log_error (w->log, "source %s: cannot read enough of it to compare it with "
               "the one that metadata %s was made for: %m; "
               "source-check=false goes on all the same", w->source->name,
               w->meta->name);
    return -1;
  }
}

/* Is there nothing at all in the destination, as in a file that was just made?
 * Zeroes that were written are something.  1 yes, 0 no, -1 error, logged.
 */
static int
reuse_destination_is_empty (struct setup_work *w)
{
  CLEANUP_EXTENTS_FREE struct extents list = EXTENTS_INIT;
  const uint64_t size = w->md->sb.size;
  uint64_t offset = 0;

  while (offset < size) {
    extents_clear (&list);
    if (backend_extents (w->dest, size - offset, offset, 0, &list) == -1) {
      log_error (w->log, "destination %s: cannot tell whether it is empty: %m",
                 w->dest->name);
      return -1;
    }
    for (size_t i = 0; i < list.len; ++i)
      if (!(list.extent[i].flags & EXTENT_HOLE))
        return 0;
    offset = extents_end (&list);
  }
  return 1;
}

/* Is the destination the file that the metadata was made for?  One that was
 * deleted and made anew is refused: it has nothing of what the metadata calls
 * valid.  Another file with content was moved here, or restored from a copy.
 */
static int
reuse_check_destination (struct setup_work *w)
{
  static const struct backend_identity none;
  const uint64_t valid = region_map_count_durable (w->map);
  struct backend_identity stored = w->md->sb.destination, id;

  backend_file_identity (w->dest, &id);
  if (metadata_same_identity (&stored, &none) ||
      metadata_same_identity (&stored, &id) || valid == 0)
    return 0;
  switch (reuse_destination_is_empty (w)) {
  case 0:
    w->moved_dest = true;
    return 0;
  case 1:
    log_error (w->log, "destination %s is another file than before, and empty, "
               "but %" PRIu64 " of %" PRIu64 " regions are in it by metadata "
               "%s: it was deleted and made anew; bring the file back that had "
               "the inode %" PRIu64 ", or remove the metadata to start over",
               w->dest->name, valid, region_map_regions (w->map),
               w->meta->name, stored.inode);
    return -1;
  default:
    return -1;
  }
}

/* The store's changes before clients come. */
static int
reuse_update_store (struct setup_work *w)
{
  const uint32_t flags = w->md->sb.flags;
  struct backend_identity id;

  backend_file_identity (w->dest, &id);
  if (metadata_set_destination (w->md, &id) == -1 ||
      (!(flags & METADATA_COMPLETE) &&
       metadata_set_flags (w->md, flags & ~METADATA_CLEAN) == -1)) {
    backend_log_failure (w->meta, "metadata", "cannot write");
    return -1;
  }
  if (w->moved_dest)
    log_info (w->log, "destination %s is another file than the one that "
              "metadata %s was last used with: it was moved, or restored from "
              "a copy; going on with it", w->dest->name, w->meta->name);
  return 0;
}

int
setup_reuse (struct setup_work *w)
{
  const struct superblock *sb;

  w->md = metadata_open (w->meta, w->log);
  if (w->md == NULL)
    return -1;
  sb = &w->md->sb;

  if (w->dest == NULL) {
    log_error (w->log, "destination %s is missing, but its metadata %s is "
               "there: what the clone holds is lost without it; bring it "
               "back, or remove the metadata to start over",
               w->s->destination, w->meta->name);
    return -1;
  }
  if (w->s->region_size && w->s->region_size != sb->region_size) {
    log_error (w->log, "region-size %" PRIu64 " differs from the one in "
               "metadata %s, which is %" PRIu64 "; leave it out to go on",
               w->s->region_size, w->meta->name, sb->region_size);
    return -1;
  }
  if (setup_check_destination_size (w, sb->size) == -1)
    return -1;

  if (!(sb->flags & METADATA_COMPLETE)) {
    if (setup_open_source (w) == -1 ||
        setup_check_block_size (w, w->source, "source",
                                sb->region_size) == -1 ||
        reuse_check_source (w) == -1)
      return -1;
  }
  if (setup_check_block_size (w, w->dest, "destination",
                              sb->region_size) == -1 ||
      setup_new_map (w) == -1 || metadata_load (w->md, w->map) == -1 ||
      reuse_check_destination (w) == -1)
    return -1;
  return reuse_update_store (w);
}
