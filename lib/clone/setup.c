/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/file.h"
#include "base/rounding.h"
#include "clone/setup-internal.h"
#include "store/metadata.h"

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

/* ---- open the three backends ---- */

/* The default goes beside a destination that is a regular file, or will be. */
static int
setup_name_metadata (struct setup_work *w)
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
setup_open_destination (struct setup_work *w)
{
  const struct backend_params params = {
    .role = "destination", .name = w->s->destination, .lock = true,
    .connections = w->s->destination_connections,
    .deadline = w->s->deadline,
  };

  return backend_open (&params, w->log);
}

static struct backend *
setup_open_metadata (struct setup_work *w)
{
  const struct backend_params params = {
    .role = "metadata", .name = w->metadata_name, .lock = true,
    .connections = 1, .deadline = w->s->deadline,
  };

  return backend_open (&params, w->log);
}

/* Open the destination and the metadata if they are there.  A missing one stays
 * NULL.
 */
static int
setup_open_existing (struct setup_work *w)
{
  w->dest = setup_open_destination (w);
  if (w->dest == NULL && errno != ENOENT)
    return -1;
  if (w->s->metadata == NULL && w->dest && !w->dest->is_file) {
    log_error (w->log, "metadata=... is required, because destination %s is "
               "not a regular file", w->s->destination);
    return -1;
  }

  w->meta = setup_open_metadata (w);
  if (w->meta == NULL && errno != ENOENT)
    return -1;
  return 0;
}

int
setup_open_source (struct setup_work *w)
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

/* ---- checks ---- */

static int
setup_check_not_same (struct setup_work *w, const char *role_a, const char *a,
                const char *role_b, const char *b)
{
  if (!backend_same (a, b))
    return 0;
  log_error (w->log, "%s %s and %s %s are the same, or parts of one disk that "
             "overlap; give each its own", role_a, a, role_b, b);
  return -1;
}

/* Before anything is opened, because to lock one file twice would fail with a
 * message that misleads.
 */
static int
setup_check_all_differ (struct setup_work *w)
{
  const char *source = w->s->source, *dest = w->s->destination;
  const char *meta = w->metadata_name;

  if (source &&
      (setup_check_not_same (w, "source", source, "destination", dest) == -1 ||
       setup_check_not_same (w, "source", source, "metadata", meta) == -1))
    return -1;
  return setup_check_not_same (w, "destination", dest, "metadata", meta);
}

int
setup_check_destination_size (struct setup_work *w, uint64_t size)
{
  if (w->dest == NULL || w->dest->size >= size)
    return 0;
  log_error (w->log, "destination %s has %" PRIu64 " bytes, which is smaller "
             "than the source's %" PRIu64 "; make it at least as large",
             w->dest->name, w->dest->size, size);
  return -1;
}

int
setup_check_block_size (struct setup_work *w, const struct backend *b,
                        const char *role,
                        uint64_t region_size)
{
  if (b == NULL || b->minimum_block <= region_size)
    return 0;
  log_error (w->log, "region-size %" PRIu64 " is smaller than the minimum "
             "block size of %s %s, which is %" PRIu32, region_size, role,
             b->name, b->minimum_block);
  return -1;
}

int
setup_new_map (struct setup_work *w)
{
  w->map = region_map_new (w->md->sb.size, w->md->sb.region_size);
  if (w->map == NULL) {
    log_error (w->log, "no memory for the states of the regions: %m");
    return -1;
  }
  return 0;
}

/* ---- all together ---- */

static struct clone *
setup_make (struct setup_work *w)
{
  struct clone *c;
  enum metadata_presence presence = METADATA_ABSENT;

  if (setup_name_metadata (w) == -1 || setup_check_all_differ (w) == -1 ||
      setup_open_existing (w) == -1)
    return NULL;
  if (w->meta) {
    presence = metadata_probe (w->meta, w->log);
    if (presence == METADATA_IO_ERROR)
      return NULL;
  }

  if (presence == METADATA_PRESENT || presence == METADATA_DAMAGED ||
      presence == METADATA_UNSUPPORTED) {
    if (setup_reuse (w) == -1)        /* says what is wrong with it */
      return NULL;
  }
  else if (setup_create (w, presence) == -1)
    return NULL;

  c = clone_new (w->source, w->dest, w->md, w->map, &w->s->options,
                 w->log);
  if (c == NULL)
    log_error (w->log, "malloc: %m");
  return c;
}

/* Close what was opened, remove what was created. */
static void
setup_undo (struct setup_work *w)
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
  struct setup_work w = { .s = s, .log = log };
  struct clone *c = setup_make (&w);

  if (c == NULL)
    setup_undo (&w);
  free (w.metadata_name);
  return c;
}
