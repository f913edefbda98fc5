/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "backend/file.h"
#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/setup.h"
#include "store/bitmap.h"
#include "store/fingerprint.h"
#include "store/metadata.h"
#include "store/superblock.h"

/* What is open so far, and what must be undone if the rest fails. */
struct work {
  const struct setup *s;
  const struct log *log;
  char *metadata_name;
  struct backend *source, *dest, *meta;
  struct metadata *md;
  struct region_map *map;
  bool created_dest, created_meta;
  bool moved_dest; /* another file than before */
};

uint64_t
setup_region_size (uint64_t size)
{
  const uint64_t most_regions = (UINT64_C (32) << 20) * 8;
  uint64_t region_size = REGION_SIZE_MIN;

  while (region_size < REGION_SIZE_MAX &&
         div_round_up (size, region_size) > most_regions)
    region_size *= 2;
  return region_size;
}

/* ---- opening the three backends ---- */

/* The default goes beside a destination that is a regular file, or will be. */
static int
name_metadata (struct work *w)
{
  if (w->s->metadata)
    w->metadata_name = strdup (w->s->metadata);
  else if (backend_name_is_uri (w->s->destination)) {
    log_error (w->log, "metadata=... is required, because destination %s is "
               "not a regular file", w->s->destination);
    return -1;
  }
  else if (asprintf (&w->metadata_name, "%s.clone",
                     w->s->destination) == -1)
    w->metadata_name = NULL;
  if (w->metadata_name == NULL) {
    log_error (w->log, "malloc: %m");
    return -1;
  }
  return 0;
}

static struct backend *
open_destination (struct work *w)
{
  const struct backend_params params = {
    .role = "destination", .name = w->s->destination, .lock = true,
    .connections = w->s->destination_connections,
    .deadline = w->s->deadline,
  };

  return backend_open (&params, w->log);
}

static struct backend *
open_metadata (struct work *w)
{
  const struct backend_params params = {
    .role = "metadata", .name = w->metadata_name, .lock = true,
    .connections = 1, .deadline = w->s->deadline,
  };

  return backend_open (&params, w->log);
}

/* The source must be there. */
static int
open_source (struct work *w)
{
  const struct backend_params params = {
    .role = "source", .name = w->s->source, .readonly = true,
    .connections = w->s->source_connections,
    .timeout = w->s->timeout, .deadline = w->s->deadline,
  };

  if (w->s->source == NULL) {
    log_error (w->log, "source=... is required, the clone is not complete");
    return -1;
  }
  w->source = backend_open (&params, w->log);
  if (w->source == NULL) {
    if (errno == ENOENT)
      log_error (w->log, "cannot open source %s: %m", w->s->source);
    return -1;
  }
  if (w->source->size == 0) {
    log_error (w->log, "source %s is empty", w->source->name);
    return -1;
  }
  return 0;
}

/* Open the destination and the metadata if they are there.  A missing one stays
 * NULL.
 */
static int
open_existing (struct work *w)
{
  w->dest = open_destination (w);
  if (w->dest == NULL && errno != ENOENT)
    return -1;
  if (w->s->metadata == NULL && w->dest && !w->dest->is_file) {
    log_error (w->log, "metadata=... is required, because destination %s is "
               "not a regular file", w->s->destination);
    return -1;
  }

  w->meta = open_metadata (w);
  if (w->meta == NULL && errno != ENOENT)
    return -1;
  return 0;
}

/* ---- checks ---- */

static int
check_not_same (struct work *w, const char *role_a, const char *a,
                const char *role_b, const char *b)
{
  if (!backend_same (a, b))
    return 0;
  log_error (w->log, "%s %s and %s %s are the same; give each its own",
             role_a, a, role_b, b);
  return -1;
}

/* Before anything is opened, because to lock one file twice would fail with a
 * message that misleads.
 */
static int
check_all_differ (struct work *w)
{
  const char *source = w->s->source, *dest = w->s->destination;
  const char *meta = w->metadata_name;

  if (source &&
      (check_not_same (w, "source", source, "destination", dest) == -1 ||
       check_not_same (w, "source", source, "metadata", meta) == -1))
    return -1;
  return check_not_same (w, "destination", dest, "metadata", meta);
}

static int
check_destination_size (struct work *w, uint64_t size)
{
  if (w->dest == NULL || w->dest->size >= size)
    return 0;
  log_error (w->log, "destination %s has %" PRIu64 " bytes, which is smaller "
             "than the source's %" PRIu64 "; make it at least as large",
             w->dest->name, w->dest->size, size);
  return -1;
}

/* Servers with a minimum block size are asked for whole regions. */
static int
check_block_size (struct work *w, const struct backend *b, const char *role,
                  uint64_t region_size)
{
  if (b == NULL || b->minimum_block <= region_size)
    return 0;
  log_error (w->log, "region-size %" PRIu64 " is smaller than the minimum "
             "block size of %s %s, which is %" PRIu32, region_size, role,
             b->name, b->minimum_block);
  return -1;
}

/* For the user, who may find out with it what happened to a local file: a text
 * to be freed, or NULL.
 */
static char *
source_hint (struct work *w)
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

/* The same disk as the one that the metadata were made for? (I12) */
static int
check_source_identity (struct work *w)
{
  CLEANUP_FREE char *why = NULL, *hint = NULL;
  const struct superblock *sb = &w->md->sb;

  if (w->source->size != sb->size) {
    log_error (w->log, "source %s has %" PRIu64 " bytes, but metadata %s "
               "belong to a source of %" PRIu64 " bytes: this is another "
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
    hint = source_hint (w);
    log_error (w->log, "source %s %s, when metadata %s were made: this is "
               "another source, or it was written to%s; source-check=false "
               "goes on all the same", w->source->name, why, w->meta->name,
               hint ?: "");
    return -1;
  default:
    log_error (w->log, "source %s: cannot read enough of it to compare it with "
               "the one that metadata %s were made for: %m; "
               "source-check=false goes on all the same", w->source->name,
               w->meta->name);
    return -1;
  }
}

/* A map in which no region is valid. */
static int
new_map (struct work *w)
{
  w->map = region_map_new (w->md->sb.size, w->md->sb.region_size);
  if (w->map == NULL) {
    log_error (w->log, "no memory for the states of the regions: %m");
    return -1;
  }
  return 0;
}

/* ---- going on with a clone ---- */

/* Is there nothing at all in the destination, as in a file that was just made?
 * Zeroes that were written are something.  1 yes, 0 no, -1 error, logged.
 */
static int
destination_is_empty (struct work *w)
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

/* Is the destination the file that the metadata were made for?  One that was
 * deleted and made anew is refused: it has nothing of what the metadata call
 * valid.  Another file with content was moved here, or restored from a copy.
 */
static int
check_destination_identity (struct work *w)
{
  static const struct backend_identity none;
  const uint64_t valid = region_map_count_durable (w->map);
  struct backend_identity stored = w->md->sb.destination, id;

  backend_file_identity (w->dest, &id);
  if (metadata_same_identity (&stored, &none) ||
      metadata_same_identity (&stored, &id) || valid == 0)
    return 0;
  switch (destination_is_empty (w)) {
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
update_store (struct work *w)
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
              "metadata %s were last used with: it was moved, or restored from "
              "a copy; going on with it", w->dest->name, w->meta->name);
  return 0;
}

static int
reuse (struct work *w)
{
  const struct superblock *sb;

  w->md = metadata_open (w->meta, w->log);
  if (w->md == NULL)
    return -1;
  sb = &w->md->sb;

  if (w->dest == NULL) {
    log_error (w->log, "destination %s is missing, but its metadata %s are "
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
  if (check_destination_size (w, sb->size) == -1)
    return -1;

  if (!(sb->flags & METADATA_COMPLETE)) {
    if (open_source (w) == -1 ||
        check_block_size (w, w->source, "source", sb->region_size) == -1 ||
        check_source_identity (w) == -1)
      return -1;
  }
  if (check_block_size (w, w->dest, "destination", sb->region_size) == -1 ||
      new_map (w) == -1 || metadata_load (w->md, w->map) == -1 ||
      check_destination_identity (w) == -1)
    return -1;
  return update_store (w);
}

/* ---- a new clone ---- */

/* May new metadata be made? */
static int
check_creation_rules (struct work *w, enum metadata_presence presence,
                      uint64_t size)
{
  if (w->s->create == CREATE_NEVER) {
    log_error (w->log, "there is no metadata in %s, and create=never was "
               "asked for", w->metadata_name);
    return -1;
  }
  if (presence == METADATA_ABSENT && w->meta && w->meta->is_file) {
    log_error (w->log, "metadata %s is a file without content, or with its "
               "beginning cut off or overwritten; restore it, or, if it never "
               "belonged to a clone, remove it", w->meta->name);
    return -1;
  }
  if (presence == METADATA_FOREIGN &&
      (w->meta->is_file || w->s->create != CREATE_ALWAYS)) {
    log_error (w->log, "%s holds something that is not a clone's metadata; "
               "choose another metadata=..., or %s", w->meta->name,
               w->meta->is_file ? "remove the file" :
               "use create=always to overwrite it");
    return -1;
  }

  if (w->dest && w->s->create == CREATE_AUTO) {
    switch (backend_is_zero (w->dest, size, 0)) {
    case 1:
      break;
    case 0:
      log_error (w->log, "destination %s holds data, and there is no metadata "
                 "in %s; choose an empty destination, or use create=always to "
                 "overwrite it", w->dest->name, w->metadata_name);
      return -1;
    default:
      backend_log_failure (w->dest, "destination", "cannot read it");
      return -1;
    }
  }
  return 0;
}

static int
choose_region_size (struct work *w, struct superblock *sb)
{
  sb->region_size = w->s->region_size;
  if (sb->region_size == 0) {
    sb->region_size = MAX (setup_region_size (sb->size),
                           (uint64_t)w->source->minimum_block);
    if (w->dest)
      sb->region_size = MAX (sb->region_size,
                             (uint64_t)w->dest->minimum_block);
  }
  if (div_round_up (sb->size, sb->region_size) > REGIONS_MAX) {
    log_error (w->log, "region-size %" PRIu64 " would give more than %" PRIu64
               " regions; choose a larger one", sb->region_size, REGIONS_MAX);
    return -1;
  }
  if (check_block_size (w, w->source, "source", sb->region_size) == -1)
    return -1;
  return check_block_size (w, w->dest, "destination", sb->region_size);
}

static int
create_files (struct work *w, const struct superblock *sb)
{
  const struct backend_params dest = {
    .role = "destination", .name = w->s->destination, .lock = true
  };
  const struct backend_params meta = {
    .role = "metadata", .name = w->metadata_name, .lock = true,
    .nameless = true
  };

  if (w->dest == NULL) {
    w->dest = backend_create (&dest, sb->size, w->log);
    if (w->dest == NULL)
      return -1;
    w->created_dest = true;
  }
  if (w->meta == NULL) {
    w->meta = backend_create (&meta, metadata_store_size (sb->size,
                                                          sb->region_size),
                              w->log);
    if (w->meta == NULL)
      return -1;
    w->created_meta = true;
  }
  return 0;
}

static int
create (struct work *w, enum metadata_presence presence)
{
  struct superblock sb = { 0 };
  uint64_t wanted;

  if (open_source (w) == -1)
    return -1;
  sb.size = w->source->size;
  if (check_destination_size (w, sb.size) == -1 ||
      choose_region_size (w, &sb) == -1)
    return -1;

  if (check_creation_rules (w, presence, sb.size) == -1)
    return -1;
  wanted = metadata_store_size (sb.size, sb.region_size);
  if (w->meta && w->meta->size < wanted) {
    log_error (w->log, "metadata %s has %" PRIu64 " bytes, but %" PRIu64
               " are needed; make it larger, or choose a larger region-size",
               w->meta->name, w->meta->size, wanted);
    return -1;
  }
  if (fingerprint_take (w->source, &sb.fingerprint) == -1) {
    backend_log_failure (w->source, "source", "cannot read it");
    return -1;
  }

  if (create_files (w, &sb) == -1)
    return -1;
  backend_file_identity (w->dest, &sb.destination);
  w->md = metadata_create (w->meta, &sb, w->log);
  if (w->md == NULL)
    return -1;
  if (new_map (w) == -1)
    return -1;
  if (metadata_set_flags (w->md, w->md->sb.flags & ~METADATA_CLEAN) == -1) {
    backend_log_failure (w->meta, "metadata", "cannot write");
    return -1;
  }
  /* Under its name a metadata file is whole at any time, so that one which is
   * not has been damaged.
   */
  return w->created_meta ? backend_file_publish (w->meta) : 0;
}

/* ---- all together ---- */

static struct clone *
make_clone (struct work *w)
{
  struct clone *c;
  enum metadata_presence presence = METADATA_ABSENT;

  if (name_metadata (w) == -1 || check_all_differ (w) == -1 ||
      open_existing (w) == -1)
    return NULL;
  if (w->meta) {
    presence = metadata_probe (w->meta, w->log);
    if (presence == METADATA_IO_ERROR)
      return NULL;
  }

  if (presence == METADATA_PRESENT || presence == METADATA_DAMAGED ||
      presence == METADATA_UNSUPPORTED) {
    if (reuse (w) == -1)        /* says what is wrong with it */
      return NULL;
  }
  else if (create (w, presence) == -1)
    return NULL;

  c = clone_new (w->source, w->dest, w->md, w->map, &w->s->options,
                 w->log);
  if (c == NULL)
    log_error (w->log, "malloc: %m");
  return c;
}

/* Close what was opened, remove what was created. */
static void
undo (struct work *w)
{
  if (w->created_meta)
    backend_file_unlink (w->meta);
  if (w->created_dest)
    backend_file_unlink (w->dest);
  region_map_free (w->map);
  if (w->md)
    metadata_close (w->md);
  else
    backend_close (w->meta);
  backend_close (w->dest);
  backend_close (w->source);
}

struct clone *
setup_clone (const struct setup *s, const struct log *log)
{
  struct work w = { .s = s, .log = log };
  struct clone *c = make_clone (&w);

  if (c == NULL)
    undo (&w);
  free (w.metadata_name);
  return c;
}
