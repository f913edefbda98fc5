/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Make a new clone: may it be made, and how? */

#include <config.h>

#include <inttypes.h>

#include "backend/file.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/text.h"
#include "clone/setup-internal.h"
#include "store/fingerprint.h"
#include "store/metadata.h"
#include "store/superblock.h"

/* ---- is the destination empty? ---- */

/* Seconds until the log says that this takes time, and between two messages. */
#define CHECK_FIRST 1
#define CHECK_AGAIN 5

struct check {
  struct setup_work *w;
  uint64_t size;
  double next;          /* when the log says something */
};

static double
check_now (const struct check *check)
{
  return check->w->s->clock ? check->w->s->clock () : monotonic_seconds ();
}

/* backend_is_zero's progress.  No client can connect before the check ends. */
static void
check_progress (void *opaque, uint64_t done)
{
  struct check *check = opaque;
  const double now = check_now (check);

  if (now < check->next)
    return;
  check->next = now + CHECK_AGAIN;
  log_info (check->w->log, "checking that destination %s is empty: %u %% of "
            "%s; create=always skips this check", check->w->dest->name,
            text_percent (done, check->size), text_size (check->size).s);
}

static int
create_check_empty (struct setup_work *w, uint64_t size)
{
  struct check check = { .w = w, .size = size };

  check.next = check_now (&check) + CHECK_FIRST;
  switch (backend_is_zero (w->dest, size, 0, check_progress, &check)) {
  case 1:
    return 0;
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

/* ---- rules ---- */

/* May new metadata be made? */
static int
create_check_rules (struct setup_work *w, enum metadata_presence presence,
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

  return w->dest && w->s->create == CREATE_AUTO ? create_check_empty (w, size)
    : 0;
}

/* ---- making it ---- */

static int
create_choose_region_size (struct setup_work *w, struct superblock *sb)
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
  if (setup_check_block_size (w, w->source, "source", sb->region_size) == -1)
    return -1;
  return setup_check_block_size (w, w->dest, "destination", sb->region_size);
}

static int
create_files (struct setup_work *w, const struct superblock *sb)
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

int
setup_create (struct setup_work *w, enum metadata_presence presence)
{
  struct superblock sb = { 0 };
  uint64_t wanted;

  if (setup_open_source (w) == -1)
    return -1;
  sb.size = w->source->size;
  if (setup_check_destination_size (w, sb.size) == -1 ||
      create_choose_region_size (w, &sb) == -1)
    return -1;

  if (create_check_rules (w, presence, sb.size) == -1)
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
  if (setup_new_map (w) == -1)
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
