/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "control/status.h"
#include "store/region-map.h"

#define ARRAY_SIZE(a) (sizeof (a) / sizeof (a)[0])

static const char *const state_names[] = {
  [HYDRATE_HYDRATING] = "hydrating",
  [HYDRATE_PAUSED] = "paused",
  [HYDRATE_WAITING] = "waiting",
  [HYDRATE_COMPLETE] = "complete",
  [HYDRATE_FAILED] = "failed",
};

static const char *const mode_names[] = {
  [MODE_RW] = "rw",
  [MODE_RO] = "ro",
  [MODE_FAIL] = "fail",
};

/* What can be changed while the clone runs.  JSON's integers end at INT64_MAX,
 * which is no limit to anybody.
 */
static const struct setting {
  const char *name;
  size_t offset; /* in struct hydrate_settings */
  uint64_t min, max;
} all_settings[] = {
  { "hydration-rate", offsetof (struct hydrate_settings, rate), 0, INT64_MAX },
  { "hydration-threshold", offsetof (struct hydrate_settings, threshold), 0,
    HYDRATE_THRESHOLD_MAX },
  { "hydration-batch-size", offsetof (struct hydrate_settings, batch),
    HYDRATE_BATCH_MIN, HYDRATE_BATCH_MAX },
};

/* ---- the status ---- */

void
status_get (const struct service *service, struct status *status)
{
  struct clone *c = service->clone;
  const struct region_map *map = clone_map (c);

  /* Each of these can only make the next one larger while we look: complete
   * comes after durable, and durable after valid.
   */
  hydrate_get_status (service->hydrate, &status->hydration);
  status->durable = region_map_count_durable (map);
  status->hydrated = region_map_count_valid (map);
  status->bytes_hydrated = region_map_bytes_valid (map);

  status->size = region_map_size (map);
  status->region_size = region_map_region_size (map);
  status->regions = region_map_regions (map);
  status->mode = clone_mode (c);
  clone_source_reason (c, status->source_error, sizeof status->source_error);
  hydrate_get_settings (service->hydrate, &status->settings);
}

bool
status_ended (const struct status *status)
{
  return status->hydration.state == HYDRATE_COMPLETE ||
         status->hydration.state == HYDRATE_FAILED;
}

static json_t *
eta_json (const struct hydrate_status *h)
{
  if (h->state == HYDRATE_COMPLETE)
    return json_integer (0);
  if (!h->eta_known)
    return json_null ();
  return json_integer ((json_int_t)h->eta);
}

/* Null where there is no error.  Its text can come from a server, or hold the
 * name of a file, and so need not be UTF-8, which JSON is.
 */
static json_t *
error_json (const char *error)
{
  char text[STATUS_ERROR_MAX];
  json_t *json;

  if (error[0] == '\0')
    return json_null ();
  json = json_string (error);
  if (json)
    return json;
  snprintf (text, sizeof text, "%s", error);
  for (char *p = text; *p; p++) {
    if (*p & 0x80)
      *p = '?';
  }
  return json_string (text);
}

static json_t *
bad_json (const struct plan_bad_sum *bad)
{
  json_t *ranges = json_array ();

  for (unsigned i = 0; ranges && i < bad->ranges; i++) {
    const uint64_t start = bad->range[i].start, end = bad->range[i].end;

    if (json_array_append_new (ranges,
                               json_pack ("[I, I]", (json_int_t)start,
                                          (json_int_t)(end - start))) == -1) {
      json_decref (ranges);
      ranges = NULL;
    }
  }
  return json_pack ("{s:I, s:I, s:o}", "regions", (json_int_t)bad->regions,
                    "bytes", (json_int_t)bad->bytes, "ranges", ranges);
}

json_t *
status_json (const struct status *status)
{
  const struct hydrate_status *h = &status->hydration;

  return json_pack ("{s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:I, s:o,"
                    " s:{s:b, s:I, s:o}, s:o, s:o}",
                    "size", (json_int_t)status->size,
                    "region_size", (json_int_t)status->region_size,
                    "regions", (json_int_t)status->regions,
                    "hydrated", (json_int_t)status->hydrated,
                    "hydrating", (json_int_t)h->hydrating,
                    "durable", (json_int_t)status->durable,
                    "state", state_names[h->state],
                    "mode", mode_names[status->mode],
                    "bytes_hydrated", (json_int_t)status->bytes_hydrated,
                    "rate", (json_int_t)h->rate,
                    "eta_seconds", eta_json (h),
                    "source",
                      "connected", (int)h->source_connected,
                      "connections", (json_int_t)h->source_connections,
                      "error", error_json (status->source_error),
                    "bad", bad_json (&h->bad),
                    "settings", settings_json (&status->settings));
}

/* ---- settings ---- */

static uint64_t *
setting_in (const struct setting *s, struct hydrate_settings *settings)
{
  return (uint64_t *)((char *)settings + s->offset);
}

json_t *
settings_json (const struct hydrate_settings *settings)
{
  struct hydrate_settings copy = *settings;
  json_t *object = json_object ();
  size_t i;

  for (i = 0; object && i < ARRAY_SIZE (all_settings); i++) {
    const struct setting *s = &all_settings[i];

    if (json_object_set_new (object, s->name,
                             json_integer (*setting_in (s, &copy))) == -1) {
      json_decref (object);
      object = NULL;
    }
  }
  return object;
}

static const struct setting *
find_setting (const char *name)
{
  size_t i;

  for (i = 0; i < ARRAY_SIZE (all_settings); i++) {
    if (strcmp (all_settings[i].name, name) == 0)
      return &all_settings[i];
  }
  return NULL;
}

/* Say why a patch is refused. */
static int refuse (char **why, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

static int
refuse (char **why, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  if (vasprintf (why, fmt, args) == -1)
    *why = NULL;
  va_end (args);
  return -1;
}

static int
refuse_name (char **why, const char *name)
{
  char names[256] = "";
  size_t i, len = 0;

  for (i = 0; i < ARRAY_SIZE (all_settings) && len < sizeof names; i++)
    len += snprintf (names + len, sizeof names - len, "%s%s", i ? ", " : "",
                     all_settings[i].name);
  return refuse (why, "\"%s\" is not one of the settings that can be changed: "
                 "%s", name, names);
}

static int
refuse_range (char **why, const struct setting *s)
{
  return refuse (why, "%s must be from %" PRIu64 " to %" PRIu64 " bytes",
                 s->name, s->min, s->max);
}

static int
read_value (const struct setting *s, const json_t *value, uint64_t *v,
            char **why)
{
  if (json_is_integer (value)) {
    if (json_integer_value (value) < 0)
      return refuse_range (why, s);
    *v = (uint64_t)json_integer_value (value);
  }
  else if (!json_is_string (value))
    return refuse (why, "%s must be a whole number of bytes, or a string with "
                   "a suffix such as \"16M\"", s->name);
  else if (size_parse (json_string_value (value), v) == -1) {
    if (errno == ERANGE)
      return refuse_range (why, s);
    return refuse (why, "%s: \"%s\" is not a size: it must be digits and a "
                   "suffix, such as \"16M\"", s->name,
                   json_string_value (value));
  }

  if (*v < s->min || *v > s->max)
    return refuse_range (why, s);
  return 0;
}

int
settings_patch (const json_t *patch, struct hydrate_settings *settings,
                char **why)
{
  struct hydrate_settings new = *settings;
  const char *name;
  json_t *value;

  if (!json_is_object (patch))
    return refuse (why, "the settings must be a JSON object, such as "
                   "{\"%s\": 0}", all_settings[0].name);

  /* Jansson's loop only reads, but its macro wants a json_t that is not const.
   */
  json_object_foreach ((json_t *)patch, name, value) {
    const struct setting *s = find_setting (name);

    if (s == NULL)
      return refuse_name (why, name);
    if (read_value (s, value, setting_in (s, &new), why) == -1)
      return -1;
  }

  *settings = new;
  return 0;
}

/* ---- sizes ---- */

static bool
is_digit (char c)
{
  return c >= '0' && c <= '9';
}

/* 0 where this is no suffix. */
static uint64_t
suffix_unit (char c)
{
  switch (c) {
  case 'b': case 'B': return 1;
  case 's': case 'S': return 512;
  case 'k': case 'K': return UINT64_C (1) << 10;
  case 'm': case 'M': return UINT64_C (1) << 20;
  case 'g': case 'G': return UINT64_C (1) << 30;
  case 't': case 'T': return UINT64_C (1) << 40;
  case 'p': case 'P': return UINT64_C (1) << 50;
  case 'e': case 'E': return UINT64_C (1) << 60;
  default: return 0;
  }
}

int
size_parse (const char *str, uint64_t *size)
{
  const char *p = str;
  uint64_t n = 0, unit = 1;
  bool overflow = false;

  for (; is_digit (*p); p++) {
    overflow |= __builtin_mul_overflow (n, 10, &n);
    overflow |= __builtin_add_overflow (n, (uint64_t)(*p - '0'), &n);
  }
  if (p == str)
    goto invalid;
  if (*p) {
    unit = suffix_unit (*p);
    if (unit == 0 || p[1] != '\0')
      goto invalid;
  }

  overflow |= __builtin_mul_overflow (n, unit, &n);
  if (overflow || n > INT64_MAX) {
    errno = ERANGE;
    return -1;
  }
  *size = n;
  return 0;

 invalid:
  errno = EINVAL;
  return -1;
}
