/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The plugin: nbdkit's callbacks for connections and requests, and the table of
 * all callbacks.  Parameters are in parameters.c, start and end in lifecycle.c.
 * What a request does is in lib/clone.
 */

#include <config.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/queue.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "backend/backend.h"
#include "base/cleanup.h"
#include "base/extents.h"
#include "base/log.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "lifecycle.h"
#include "nbdkit-log.h"
#include "parameters.h"
#include "store/metadata.h"
#include "store/region-map.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static void
clone_plugin_dump_plugin (void)
{
  printf ("clone_metadata_version=%d\n", METADATA_VERSION);
  printf ("clone_control=yes\n");
}

/* ---- connections ---- */

/* A client's connection: nbdkit's handle. */
struct connection {
  struct clone_client client;
  LIST_ENTRY (connection) next;
};

/* All connections, because nbdkit does not call .close once it shuts down. */
static pthread_mutex_t connections_lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD (, connection) connections =
  LIST_HEAD_INITIALIZER (connections);

static void *
clone_plugin_open (int readonly)
{
  struct connection *conn = malloc (sizeof *conn);

  if (conn == NULL) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  clone_client_init (instance.clone, &conn->client);

  LOCK_FOR_SCOPE (&connections_lock);
  LIST_INSERT_HEAD (&connections, conn, next);
  return conn;
}

static void
clone_plugin_close (void *handle)
{
  struct connection *conn = handle;

  {
    LOCK_FOR_SCOPE (&connections_lock);
    LIST_REMOVE (conn, next);
  }
  free (conn);
}

static void
clone_plugin_cleanup (void)
{
  while (!LIST_EMPTY (&connections))
    clone_plugin_close (LIST_FIRST (&connections));
  lifecycle_cleanup ();
}

static int64_t
clone_plugin_get_size (void *handle)
{
  return clone_size (instance.clone);
}

/* Writes of whole regions need nothing from the source.  But clients must not
 * be made to write megabytes because regions are large.
 */
static int
clone_plugin_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                         uint32_t *maximum)
{
  const uint64_t region_size =
    region_map_region_size (clone_map (instance.clone));

  *minimum = 1;
  *preferred = MIN (region_size, UINT64_C (65536));
  *maximum = UINT32_MAX;
  return 0;
}

static int
clone_plugin_can_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

static int
clone_plugin_can_fast_zero (void *handle)
{
  return clone_destination (instance.clone)->can_fast_zero;
}

/* A flush on one connection covers the writes of all. */
static int
clone_plugin_can_multi_conn (void *handle)
{
  return 1;
}

/* ---- requests ---- */

static unsigned
backend_flags (uint32_t flags)
{
  return
    (flags & NBDKIT_FLAG_FUA ? BACKEND_FUA : 0) |
    (flags & NBDKIT_FLAG_MAY_TRIM ? BACKEND_MAY_TRIM : 0) |
    (flags & NBDKIT_FLAG_FAST_ZERO ? BACKEND_FAST : 0) |
    (flags & NBDKIT_FLAG_REQ_ONE ? BACKEND_REQ_ONE : 0);
}

/* Log the result of a request, and return it.  Preserves errno.  (The library
 * returns only errors that the NBD protocol knows, and logs their causes.)
 */
static int
request_result (const char *what, uint32_t count, uint64_t offset, int r)
{
  if (r == -1)
    nbdkit_debug ("clone: %s %" PRIu32 " bytes at offset %" PRIu64 ": %m",
                  what, count, offset);
  else
    log_debug (&nbdkit_log, LOG_REQUEST, "clone: %s %" PRIu32
               " bytes at offset %" PRIu64, what, count, offset);
  return r;
}

static int
clone_plugin_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  return request_result ("pread", count, offset,
                         clone_pread (instance.clone, buf, count, offset));
}

static int
clone_plugin_pwrite (void *handle, const void *buf, uint32_t count,
                     uint64_t offset, uint32_t flags)
{
  return request_result ("pwrite", count, offset,
                         clone_pwrite (instance.clone, buf, count, offset,
                                       backend_flags (flags)));
}

static int
clone_plugin_zero (void *handle, uint32_t count, uint64_t offset,
                   uint32_t flags)
{
  return request_result ("zero", count, offset,
                         clone_zero (instance.clone, count, offset,
                                     backend_flags (flags)));
}

static int
clone_plugin_trim (void *handle, uint32_t count, uint64_t offset,
                   uint32_t flags)
{
  return request_result ("trim", count, offset,
                         clone_trim (instance.clone, count, offset,
                                     backend_flags (flags)));
}

static int
clone_plugin_flush (void *handle, uint32_t flags)
{
  struct connection *conn = handle;

  return request_result ("flush", 0, 0,
                         clone_flush (instance.clone, &conn->client));
}

static int
clone_plugin_cache (void *handle, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  return request_result ("cache", count, offset,
                         clone_cache (instance.clone, count, offset));
}

static int
clone_plugin_extents (void *handle, uint32_t count, uint64_t offset,
                      uint32_t flags, struct nbdkit_extents *extents)
{
  CLEANUP_EXTENTS_FREE struct extents list = EXTENTS_INIT;
  int r = clone_extents (instance.clone, count, offset, backend_flags (flags),
                         &list);

  for (size_t i = 0; i < list.len && r == 0; ++i) {
    const struct extent *e = &list.extent[i];

    r = nbdkit_add_extent (extents, e->offset, e->length,
                           (e->flags & EXTENT_HOLE ? NBDKIT_EXTENT_HOLE : 0) |
                           (e->flags & EXTENT_ZERO ? NBDKIT_EXTENT_ZERO : 0));
  }
  return request_result ("extents", count, offset, r);
}

/* ---- the table ---- */

/* nbdkit assumes that the plugin can do what it has a callback for, except for
 * the can_* callbacks here.
 */
static struct nbdkit_plugin plugin = {
  .name = "clone",
  .longname = "nbdkit clone plugin",
  .version = PACKAGE_VERSION,
  .description = "make a slow or remote disk available at once, "
                 "and copy it in the background",
  .load = nbdkit_log_load,
  .unload = parameters_unload,
  .config = parameters_config,
  .config_complete = parameters_config_complete,
  .config_help = PARAMETERS_HELP,
  .magic_config_key = "source",
  .dump_plugin = clone_plugin_dump_plugin,
  .get_ready = lifecycle_get_ready,
  .after_fork = lifecycle_after_fork,
  .cleanup = clone_plugin_cleanup,
  .open = clone_plugin_open,
  .close = clone_plugin_close,
  .get_size = clone_plugin_get_size,
  .block_size = clone_plugin_block_size,
  .can_fua = clone_plugin_can_fua,
  .can_fast_zero = clone_plugin_can_fast_zero,
  .can_multi_conn = clone_plugin_can_multi_conn,
  .pread = clone_plugin_pread,
  .pwrite = clone_plugin_pwrite,
  .zero = clone_plugin_zero,
  .trim = clone_plugin_trim,
  .flush = clone_plugin_flush,
  .cache = clone_plugin_cache,
  .extents = clone_plugin_extents,
  /* So nbdkit takes a request's error from errno. */
  .errno_is_preserved = 1,
};

/* The macro defines this function, and clang wants it declared. */
extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
