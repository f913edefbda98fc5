/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdkit's side: parameters, callbacks, and the order in which things start and
 * end.  What a request does is in lib/clone.c.
 *
 *   get_ready    bind the control socket, open or create everything: all that
 *                can fail because of the user fails here, before the server
 *                forks and its messages get lost
 *   after_fork   threads: the clone's, hydration, control, progress, watcher
 *   SIGTERM      the watcher wakes up, lets nobody wait for a lost server any
 *                more, and has the clone commit at once, because nbdkit waits
 *                for connected clients before it calls cleanup
 *   cleanup      end_service
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "backend/backend.h"
#include "backend/uri.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/extents.h"
#include "base/log.h"
#include "base/rounding.h"
#include "base/thread.h"
#include "clone/clone.h"
#include "clone/setup.h"
#include "control/control.h"
#include "control/listen.h"
#include "control/progress.h"
#include "control/size.h"
#include "hydration/hydrate.h"
#include "nbdkit-log.h"
#include "store/metadata.h"
#include "store/region-map.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define CONNECTIONS_MAX 64
#define COMMIT_INTERVAL_MAX 3600 /* seconds */
#define SOURCE_TIMEOUT_MAX (365 * 24 * 3600)

/* -D clone.deadline=MILLISECONDS: for tests, instead of all deadlines for NBD
 * servers.
 */
NBDKIT_DLL_PUBLIC int clone_debug_deadline;

/* What the user asked for. */
static struct setup setup = {
  .create = CREATE_AUTO,
  .source_connections = 4,
  .destination_connections = 4,
  .options = { .discard_passdown = true, .source_check = true },
};
static struct clone_events events; /* for hydration */
static struct hydrate_settings settings = {
  .threshold = HYDRATE_THRESHOLD_DEFAULT,
  .batch = HYDRATE_BATCH_DEFAULT,
  .access = true,
};
static bool hydration = true;
static struct clone_service clone_service = { .commit_interval = 1 };
static char *control_address;
static char *control_token;
static int progress_fd = -1;

/* What runs. */
static struct instance service;
static struct control *control;
static struct progress *progress;
static pthread_t watcher_thread;
static bool watcher_started;

/* A client's connection.  They are listed because nbdkit does not close them
 * once it is shutting down.
 */
struct connection {
  struct clone_client client;
  struct connection *prev, *next;
};
static pthread_mutex_t connections_lock = PTHREAD_MUTEX_INITIALIZER;
static struct connection *connections;

/* ---- parameters ---- */

/* The words that nbdkit knows, but with the key in the message. */
static int
parse_bool (const char *key, const char *value, bool *r)
{
  static const char *const words[][2] = {
    { "false", "true" }, { "off", "on" }, { "no", "yes" }, { "0", "1" },
    { "f", "t" }, { "n", "y" }, { "disable", "enable" },
  };

  for (size_t i = 0; i < sizeof words / sizeof words[0]; ++i)
    for (int b = 0; b < 2; ++b)
      if (strcasecmp (value, words[i][b]) == 0) {
        *r = b;
        return 0;
      }
  nbdkit_error ("%s=%s: must be true or false", key, value);
  return -1;
}

/* A size from min to max bytes, in the form that nbdkit's own sizes have. */
static int
parse_size (const char *key, const char *value, uint64_t min, uint64_t max,
            uint64_t *r)
{
  uint64_t size;

  if (size_parse (value, &size) == -1) {
    nbdkit_error ("%s=%s: must be a size in bytes, such as 65536, 64K or 1M",
                  key, value);
    return -1;
  }
  if (size < min || size > max) {
    nbdkit_error ("%s=%s: must be from %" PRIu64 " to %" PRIu64 " bytes",
                  key, value, min, max);
    return -1;
  }
  *r = size;
  return 0;
}

static int
parse_region_size (const char *key, const char *value, uint64_t *r)
{
  if (strcmp (value, "auto") == 0) {
    *r = 0;
    return 0;
  }
  if (parse_size (key, value, REGION_SIZE_MIN, REGION_SIZE_MAX, r) == -1)
    return -1;
  if (!is_power_of_2 (*r)) {
    nbdkit_error ("%s=%s: must be a power of two", key, value);
    return -1;
  }
  return 0;
}

static int
parse_create (const char *key, const char *value, enum setup_create *r)
{
  if (strcmp (value, "auto") == 0)
    *r = CREATE_AUTO;
  else if (strcmp (value, "always") == 0)
    *r = CREATE_ALWAYS;
  else if (strcmp (value, "never") == 0)
    *r = CREATE_NEVER;
  else {
    nbdkit_error ("%s=%s: must be auto, always or never", key, value);
    return -1;
  }
  return 0;
}

static int
parse_priority (const char *key, const char *value, bool *access)
{
  *access = strcmp (value, "access") == 0;
  if (*access || strcmp (value, "sequential") == 0)
    return 0;
  nbdkit_error ("%s=%s: must be access or sequential", key, value);
  return -1;
}

static int
parse_number (const char *key, const char *value, unsigned min, unsigned max,
              unsigned *r)
{
  if (nbdkit_parse_unsigned (key, value, r) == -1)
    return -1;
  if (*r < min || *r > max) {
    nbdkit_error ("%s=%s: must be from %u to %u", key, value, min, max);
    return -1;
  }
  return 0;
}

/* nbdkit changes to the root directory, where a URI's relative names would not
 * be found when a lost server is connected to again.
 */
static int
parse_name (const char *key, const char *value, const char **name)
{
  CLEANUP_FREE char *cwd = getcwd (NULL, 0);
  CLEANUP_FREE char *absolute = cwd ? uri_absolute (value, cwd) : NULL;

  if (absolute == NULL) {
    nbdkit_error ("%s=%s: the current directory: %m", key, value);
    return -1;
  }
  *name = nbdkit_strdup_intern (absolute);
  return *name ? 0 : -1;
}

/* nbdkit changes to the root directory before the socket is removed. */
static int
parse_control (const char *value)
{
  free (control_address);
  control_address = listen_address_is_path (value) ?
    nbdkit_absolute_path (value) : strdup (value);
  if (control_address == NULL) {
    nbdkit_error ("control=%s: %m", value);
    return -1;
  }
  return 0;
}

static int
parse_progress (const char *key, const char *value)
{
  if (strcmp (value, "stderr") == 0) {
    progress_fd = STDERR_FILENO;
    return 0;
  }
  if (nbdkit_parse_int (key, value, &progress_fd) == -1)
    return -1;
  if (progress_fd < 0) {
    nbdkit_error ("%s=%s: must be stderr or a file descriptor", key, value);
    return -1;
  }
  return 0;
}

static int
clone_config (const char *key, const char *value)
{
  if (strcmp (key, "source") == 0)
    return parse_name (key, value, &setup.source);
  else if (strcmp (key, "destination") == 0)
    return parse_name (key, value, &setup.destination);
  else if (strcmp (key, "metadata") == 0)
    return parse_name (key, value, &setup.metadata);
  else if (strcmp (key, "create") == 0)
    return parse_create (key, value, &setup.create);
  else if (strcmp (key, "region-size") == 0)
    return parse_region_size (key, value, &setup.region_size);
  else if (strcmp (key, "hydration") == 0)
    return parse_bool (key, value, &hydration);
  else if (strcmp (key, "hydration-threshold") == 0)
    return parse_size (key, value, 0, HYDRATE_THRESHOLD_MAX,
                       &settings.threshold);
  else if (strcmp (key, "hydration-batch-size") == 0)
    return parse_size (key, value, HYDRATE_BATCH_MIN, HYDRATE_BATCH_MAX,
                       &settings.batch);
  else if (strcmp (key, "hydration-rate") == 0)
    return parse_size (key, value, 0, INT64_MAX, &settings.rate);
  else if (strcmp (key, "hydration-priority") == 0)
    return parse_priority (key, value, &settings.access);
  else if (strcmp (key, "copy-on-read") == 0)
    return parse_bool (key, value, &setup.options.copy_on_read);
  else if (strcmp (key, "discard-passdown") == 0)
    return parse_bool (key, value, &setup.options.discard_passdown);
  else if (strcmp (key, "commit-interval") == 0)
    return parse_number (key, value, 0, COMMIT_INTERVAL_MAX,
                         &clone_service.commit_interval);
  else if (strcmp (key, "source-connections") == 0)
    return parse_number (key, value, 1, CONNECTIONS_MAX,
                         &setup.source_connections);
  else if (strcmp (key, "destination-connections") == 0)
    return parse_number (key, value, 1, CONNECTIONS_MAX,
                         &setup.destination_connections);
  else if (strcmp (key, "source-timeout") == 0)
    return parse_number (key, value, 0, SOURCE_TIMEOUT_MAX,
                         &clone_service.source_timeout);
  else if (strcmp (key, "source-check") == 0)
    return parse_bool (key, value, &setup.options.source_check);
  else if (strcmp (key, "control") == 0)
    return parse_control (value);
  else if (strcmp (key, "control-token") == 0) {
    free (control_token);
    return nbdkit_read_password (value, &control_token);
  }
  else if (strcmp (key, "progress") == 0)
    return parse_progress (key, value);
  else {
    nbdkit_error ("unknown parameter '%s'; nbdkit clone --help lists them",
                  key);
    return -1;
  }
  return 0;
}

static int
clone_config_complete (void)
{
  if (setup.destination == NULL) {
    nbdkit_error ("%sdestination=... is required: a path or an NBD URI",
                  setup.source ? "" : "source=... and ");
    return -1;
  }
  if (control_token && control_address == NULL) {
    nbdkit_error ("control-token=... is of no use without control=...");
    return -1;
  }
  return 0;
}

#define clone_config_help                                               \
  "[source=]<SOURCE>                Path or NBD URI to clone.\n"        \
  "destination=<DEST>    (required) Path or NBD URI of the copy.\n"     \
  "metadata=<META>                  Where to keep the state [DEST.clone].\n" \
  "create=auto|always|never         When to make new metadata [auto].\n" \
  "region-size=<SIZE>               4K to 1G, a power of two [auto].\n" \
  "hydration=on|off                 Copy in the background [on].\n"     \
  "hydration-threshold=<SIZE>       Most being copied at once [16M].\n" \
  "hydration-batch-size=<SIZE>      Largest single copy [auto].\n"      \
  "hydration-rate=<SIZE>            Bytes a second, 0 for no limit [0].\n" \
  "hydration-priority=access|sequential  What comes first [access].\n" \
  "copy-on-read=true|false          Keep what clients read [false].\n"  \
  "discard-passdown=true|false      Trim the destination [true].\n"     \
  "commit-interval=<SECONDS>        Between background commits [1].\n"  \
  "source-connections=<N>           To an NBD source [4].\n"            \
  "destination-connections=<N>      To an NBD destination [4].\n"       \
  "source-timeout=<SECONDS>         To wait when it is lost [for ever].\n" \
  "source-check=true|false          Is it the same source? [true].\n"   \
  "control=<PATH>|<ADDRESS>:<PORT>  Where to serve the status.\n"       \
  "control-token=+<FILE>            Password for it.\n"                 \
  "progress=stderr|<FD>             Where to write progress lines."

static void
clone_dump_plugin (void)
{
  printf ("clone_metadata_version=%d\n", METADATA_VERSION);
  printf ("clone_control=yes\n");
}

/* ---- life ---- */

/* On a thread that runs a client's request this returns at once, but not with 0
 * when the client has closed the connection or the server is quitting.
 */
static bool
client_is_gone (void)
{
  return nbdkit_nanosleep (0, 1) == -1;
}

static void stop_now (void);

/* POST /stop ends the process, on this thread. */
static bool stopping;
static pthread_t stopper_thread;

static int
clone_get_ready (void)
{
  if (control_address) {
    control = control_new (control_address, control_token, &service,
                           &nbdkit_log);
    if (control == NULL)
      return -1;
  }
  if (progress_fd >= 0) {
    progress = progress_new (progress_fd, &service, &nbdkit_log);
    if (progress == NULL)
      goto error;
  }

  setup.timeout = clone_service.source_timeout;
  setup.deadline = clone_debug_deadline;
  setup.options.client_is_gone = client_is_gone;
  service.stop = stop_now;
  service.hydrate = hydrate_new (&settings, !hydration,
                                 control ? control_wake : NULL, control,
                                 &nbdkit_log);
  if (service.hydrate == NULL) {
    nbdkit_error ("malloc: %m");
    goto error;
  }
  events = hydrate_events (service.hydrate);
  setup.options.events = &events;
  service.clone = setup_clone (&setup, &nbdkit_log);
  if (service.clone == NULL)
    goto error;
  return 0;

 error:
  hydrate_free (service.hydrate);
  service.hydrate = NULL;
  progress_free (progress);
  control_free (control);
  progress = NULL;
  control = NULL;
  return -1;
}

/* Seconds after which the end is said to be slow. */
#define SLOW_END 2

/* Sleeps until the server shuts down, and begins the end: nbdkit may wait for
 * clients for ever, and they for servers that are lost.
 */
static void *
watcher (void *arg)
{
  while (nbdkit_nanosleep (3600, 0) == 0)
    ;
  hydrate_pause (service.hydrate);
  clone_interrupt (service.clone);
  if (!clone_wait_committed (service.clone, SLOW_END))
    log_info (&nbdkit_log, "shutting down: waiting for destination %s to make "
              "durable what was written", clone_destination (service.clone)->name);
  return NULL;
}

/* The end, whatever the reason.  The order matters:
 *
 *   - the watcher has interrupted everything that waits;
 *   - the threads that use hydration and the clone end;
 *   - the clone's own threads, and those of the source's connections, end;
 *   - the last commit is made, and the destination is closed;
 *   - hydration, which hears the clone's events until then, is freed.
 */
static void
end_service (void)
{
  if (service.clone == NULL)
    return;
  clone_interrupt (service.clone);
  if (watcher_started)
    pthread_join (watcher_thread, NULL);
  if (control)
    control_stop (control);
  if (stopping)
    pthread_join (stopper_thread, NULL); /* it never returns */
  if (progress)
    progress_stop (progress);
  hydrate_stop (service.hydrate);
  clone_stop (service.clone);

  progress_free (progress);
  control_free (control);
  clone_close (service.clone);
  hydrate_free (service.hydrate);
  progress = NULL;
  control = NULL;
  service = (struct instance){ 0 };
}

/* POST /stop.  Not through nbdkit, which would answer every request that is
 * under way with ESHUTDOWN, an I/O error for a guest, and then wait for its
 * clients.  For the same reason signals for nbdkit are ignored from now on:
 * whoever asks for the end may send one after the answer, as systemd does.
 */
static void *
stopper (void *arg)
{
  static const int signals[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP };

  for (size_t i = 0; i < sizeof signals / sizeof signals[0]; ++i)
    signal (signals[i], SIG_IGN);
  hydrate_pause (service.hydrate);
  log_info (&nbdkit_log, "stopping: making everything durable");
  _exit (clone_halt (service.clone) == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* On the control interface's thread. */
static void
stop_now (void)
{
  if (!stopping)
    stopping = thread_start (&stopper_thread, "stop", stopper, NULL,
                             &nbdkit_log) == 0;
}

static int
clone_after_fork (void)
{
  if (clone_start (service.clone, &clone_service) == -1 ||
      hydrate_start (service.hydrate, service.clone) == -1 ||
      (control && control_start (control) == -1) ||
      (progress && progress_start (progress) == -1) ||
      thread_start (&watcher_thread, "watch", watcher, NULL,
                    &nbdkit_log) == -1) {
    end_service ();
    return -1;
  }
  watcher_started = true;
  return 0;
}

static void clone_connection_close (void *handle);

static void
clone_cleanup (void)
{
  while (connections)
    clone_connection_close (connections);
  end_service ();
}

static void
clone_unload (void)
{
  free (control_address);
  free (control_token);
}

/* ---- what the disk can do ---- */

static void *
clone_open (int readonly)
{
  struct connection *conn = malloc (sizeof *conn);

  if (conn == NULL) {
    nbdkit_error ("malloc: %m");
    return NULL;
  }
  clone_client_init (service.clone, &conn->client);

  LOCK_FOR_SCOPE (&connections_lock);
  conn->prev = NULL;
  conn->next = connections;
  if (connections)
    connections->prev = conn;
  connections = conn;
  return conn;
}

static void
clone_connection_close (void *handle)
{
  struct connection *conn = handle;

  {
    LOCK_FOR_SCOPE (&connections_lock);
    if (conn->next)
      conn->next->prev = conn->prev;
    *(conn->prev ? &conn->prev->next : &connections) = conn->next;
  }
  free (conn);
}

static int64_t
clone_get_size (void *handle)
{
  return clone_size (service.clone);
}

static int
clone_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                  uint32_t *maximum)
{
  const uint64_t region_size = region_map_region_size (clone_map (service.clone));

  /* Writes of whole regions need nothing from the source; but a client should
   * not be made to write megabytes because regions are large.
   */
  *minimum = 1;
  *preferred = MIN (region_size, UINT64_C (65536));
  *maximum = UINT32_MAX;
  return 0;
}

static int
can_do (void *handle)
{
  return 1;
}

static int
clone_can_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

static int
clone_can_cache (void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

static int
clone_can_fast_zero (void *handle)
{
  return clone_destination (service.clone)->can_fast_zero;
}

/* ---- requests ---- */

static unsigned
flags_of (uint32_t flags)
{
  return
    (flags & NBDKIT_FLAG_FUA ? BACKEND_FUA : 0) |
    (flags & NBDKIT_FLAG_MAY_TRIM ? BACKEND_MAY_TRIM : 0) |
    (flags & NBDKIT_FLAG_FAST_ZERO ? BACKEND_FAST : 0) |
    (flags & NBDKIT_FLAG_REQ_ONE ? BACKEND_REQ_ONE : 0);
}

/* Give a request's result to nbdkit.  The library's errors are all of those
 * that NBD knows.
 */
static int
result (const char *what, uint32_t count, uint64_t offset, int r)
{
  const int err = errno;

  if (r == -1) {
    nbdkit_debug ("clone: %s %" PRIu32 " bytes at offset %" PRIu64
                  ": %s", what, count, offset, strerror (err));
    nbdkit_set_error (err);
    errno = err;
  }
  else
    log_debug (&nbdkit_log, LOG_REQUEST, "clone: %s %" PRIu32
               " bytes at offset %" PRIu64, what, count, offset);
  return r;
}

static int
clone_plugin_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  return result ("pread", count, offset,
                 clone_pread (service.clone, buf, count, offset));
}

static int
clone_plugin_pwrite (void *handle, const void *buf, uint32_t count,
                     uint64_t offset, uint32_t flags)
{
  return result ("pwrite", count, offset,
                 clone_pwrite (service.clone, buf, count, offset,
                               flags_of (flags)));
}

static int
clone_plugin_zero (void *handle, uint32_t count, uint64_t offset,
                   uint32_t flags)
{
  return result ("zero", count, offset,
                 clone_zero (service.clone, count, offset, flags_of (flags)));
}

static int
clone_plugin_trim (void *handle, uint32_t count, uint64_t offset,
                   uint32_t flags)
{
  return result ("trim", count, offset,
                 clone_trim (service.clone, count, offset, flags_of (flags)));
}

static int
clone_plugin_flush (void *handle, uint32_t flags)
{
  return result ("flush", 0, 0, clone_flush (service.clone,
                              &((struct connection *)handle)->client));
}

static int
clone_plugin_cache (void *handle, uint32_t count, uint64_t offset,
                    uint32_t flags)
{
  return result ("cache", count, offset,
                 clone_cache (service.clone, count, offset));
}

static int
clone_plugin_extents (void *handle, uint32_t count, uint64_t offset,
                      uint32_t flags, struct nbdkit_extents *extents)
{
  CLEANUP_EXTENTS_FREE struct extents list = EXTENTS_INIT;
  int r = clone_extents (service.clone, count, offset, flags_of (flags),
                         &list);

  for (size_t i = 0; i < list.len && r == 0; ++i) {
    const struct extent *e = &list.extent[i];

    r = nbdkit_add_extent (extents, e->offset, e->length,
                           (e->flags & EXTENT_HOLE ? NBDKIT_EXTENT_HOLE : 0) |
                           (e->flags & EXTENT_ZERO ? NBDKIT_EXTENT_ZERO : 0));
  }
  return result ("extents", count, offset, r);
}

static struct nbdkit_plugin plugin = {
  .name = "clone",
  .longname = "nbdkit clone plugin",
  .version = PACKAGE_VERSION,
  .description = "make a slow or remote disk available at once, "
                 "and copy it in the background",
  .load = nbdkit_log_load,
  .unload = clone_unload,
  .config = clone_config,
  .config_complete = clone_config_complete,
  .config_help = clone_config_help,
  .magic_config_key = "source",
  .dump_plugin = clone_dump_plugin,
  .get_ready = clone_get_ready,
  .after_fork = clone_after_fork,
  .cleanup = clone_cleanup,
  .open = clone_open,
  .close = clone_connection_close,
  .get_size = clone_get_size,
  .block_size = clone_block_size,
  .can_write = can_do,
  .can_flush = can_do,
  .can_trim = can_do,
  .can_zero = can_do,
  .can_fast_zero = clone_can_fast_zero,
  .can_fua = clone_can_fua,
  .can_extents = can_do,
  .can_cache = clone_can_cache,
  .can_multi_conn = can_do,
  .pread = clone_plugin_pread,
  .pwrite = clone_plugin_pwrite,
  .zero = clone_plugin_zero,
  .trim = clone_plugin_trim,
  .flush = clone_plugin_flush,
  .cache = clone_plugin_cache,
  .extents = clone_plugin_extents,
  /* Errors are those of the NBD protocol, in errno. */
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
