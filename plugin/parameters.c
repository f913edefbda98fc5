/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "backend/uri.h"
#include "base/cleanup.h"
#include "base/rounding.h"
#include "control/listen.h"
#include "control/size.h"
#include "control/token.h"
#include "parameters.h"
#include "store/region-map.h"

#define CONNECTIONS_MAX 64
#define COMMIT_INTERVAL_MAX 3600            /* seconds */

struct parameters parameters = {
  .setup = {
    .create = CREATE_AUTO,
    .source_connections = 4,
    .destination_connections = 4,
    .options = { .discard_passdown = true, .source_check = true },
  },
  .service = { .commit_interval = 1 },
  .hydration = {
    .threshold = HYDRATE_THRESHOLD_DEFAULT,
    .batch = HYDRATE_BATCH_DEFAULT,
    .access = true,
  },
  .progress_fd = -1,
};

/* ---- values ---- */

/* Accepts the same words as nbdkit_parse_bool, but the message has the key. */
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

/* min and max are bytes.  The suffixes are those of nbdkit_parse_size. */
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

/* The result is 0 for auto. */
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

/* A path or an NBD URI.  Relative names become absolute, because nbdkit changes
 * to the root directory, and a lost server is connected to again after that.
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
parse_control (const char *key, const char *value, char **address)
{
  free (*address);
  *address = listen_address_is_path (value) ? nbdkit_absolute_path (value)
    : strdup (value);
  if (*address == NULL) {
    nbdkit_error ("%s=%s: %m", key, value);
    return -1;
  }
  return 0;
}

/* +FILE, or another form that nbdkit knows for passwords.  nbdkit would accept
 * a file of any length, and cut its line off at a NUL byte.
 */
static int
parse_token (const char *key, const char *value, char **token)
{
  CLEANUP_FREE char *why = NULL;

  free (*token);
  *token = NULL;
  if (value[0] != '+')
    return nbdkit_read_password (value, token);
  *token = token_read (value + 1, &why);
  if (*token)
    return 0;
  nbdkit_error ("%s=%s: %s", key, value, why ? why : "out of memory");
  return -1;
}

static int
parse_progress (const char *key, const char *value, int *fd)
{
  if (strcmp (value, "stderr") == 0) {
    *fd = STDERR_FILENO;
    return 0;
  }
  if (nbdkit_parse_int (key, value, fd) == -1)
    return -1;
  if (*fd < 0) {
    nbdkit_error ("%s=%s: must be stderr or a file descriptor", key, value);
    return -1;
  }
  return 0;
}

/* ---- keys ---- */

int
parameters_config (const char *key, const char *value)
{
  struct parameters *p = &parameters;

  if (strcmp (key, "source") == 0)
    return parse_name (key, value, &p->setup.source);
  else if (strcmp (key, "destination") == 0)
    return parse_name (key, value, &p->setup.destination);
  else if (strcmp (key, "metadata") == 0)
    return parse_name (key, value, &p->setup.metadata);
  else if (strcmp (key, "create") == 0)
    return parse_create (key, value, &p->setup.create);
  else if (strcmp (key, "region-size") == 0)
    return parse_region_size (key, value, &p->setup.region_size);
  else if (strcmp (key, "hydration") == 0) {
    bool on;

    if (parse_bool (key, value, &on) == -1)
      return -1;
    p->hydration_paused = !on;
    return 0;
  }
  else if (strcmp (key, "hydration-threshold") == 0)
    return parse_size (key, value, 0, HYDRATE_THRESHOLD_MAX,
                       &p->hydration.threshold);
  else if (strcmp (key, "hydration-batch-size") == 0)
    return parse_size (key, value, HYDRATE_BATCH_MIN, HYDRATE_BATCH_MAX,
                       &p->hydration.batch);
  else if (strcmp (key, "hydration-rate") == 0)
    return parse_size (key, value, 0, INT64_MAX, &p->hydration.rate);
  else if (strcmp (key, "hydration-priority") == 0)
    return parse_priority (key, value, &p->hydration.access);
  else if (strcmp (key, "copy-on-read") == 0)
    return parse_bool (key, value, &p->setup.options.copy_on_read);
  else if (strcmp (key, "discard-passdown") == 0)
    return parse_bool (key, value, &p->setup.options.discard_passdown);
  else if (strcmp (key, "commit-interval") == 0)
    return parse_number (key, value, 0, COMMIT_INTERVAL_MAX,
                         &p->service.commit_interval);
  else if (strcmp (key, "source-connections") == 0)
    return parse_number (key, value, 1, CONNECTIONS_MAX,
                         &p->setup.source_connections);
  else if (strcmp (key, "destination-connections") == 0)
    return parse_number (key, value, 1, CONNECTIONS_MAX,
                         &p->setup.destination_connections);
  else if (strcmp (key, "source-timeout") == 0)
    return parse_number (key, value, 0, CLONE_SOURCE_TIMEOUT_MAX,
                         &p->service.source_timeout);
  else if (strcmp (key, "source-check") == 0)
    return parse_bool (key, value, &p->setup.options.source_check);
  else if (strcmp (key, "control") == 0)
    return parse_control (key, value, &p->control_address);
  else if (strcmp (key, "control-token") == 0)
    return parse_token (key, value, &p->control_token);
  else if (strcmp (key, "progress") == 0)
    return parse_progress (key, value, &p->progress_fd);

  nbdkit_error ("unknown parameter '%s'; nbdkit clone --help lists them", key);
  return -1;
}

int
parameters_config_complete (void)
{
  const struct parameters *p = &parameters;

  if (p->setup.destination == NULL) {
    nbdkit_error ("%sdestination=... is required: a path or an NBD URI",
                  p->setup.source ? "" : "source=... and ");
    return -1;
  }
  if (p->control_token && p->control_address == NULL) {
    nbdkit_error ("control-token=... needs control=...");
    return -1;
  }
  return 0;
}

void
parameters_unload (void)
{
  free (parameters.control_address);
  free (parameters.control_token);
}
