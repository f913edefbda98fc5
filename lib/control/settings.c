/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "control/settings.h"
#include "control/size.h"

#define ARRAY_SIZE(a) (sizeof (a) / sizeof (a)[0])

/* All settings that can be changed, in the order in which they are shown.  A
 * new setting of hydration is one more line.  A setting of another part of the
 * clone also needs a place to be read from and written to: settings_apply.
 *
 * JSON's integers end at INT64_MAX, so that is the limit where there is no
 * other.
 */
static const struct setting {
  const char *name;
  size_t offset;     /* of an uint64_t in struct hydrate_settings */
  uint64_t min, max; /* bytes */
} all_settings[] = {
  { "hydration-rate", offsetof (struct hydrate_settings, rate), 0, INT64_MAX },
  { "hydration-threshold", offsetof (struct hydrate_settings, threshold), 0,
    HYDRATE_THRESHOLD_MAX },
  { "hydration-batch-size", offsetof (struct hydrate_settings, batch),
    HYDRATE_BATCH_MIN, HYDRATE_BATCH_MAX },
};

static uint64_t *
setting_in (const struct setting *s, struct hydrate_settings *settings)
{
  return (uint64_t *)((char *)settings + s->offset);
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

/* ---- patches that are refused ---- */

/* Set *why, and return -1. */
static int refuse_patch (char **why, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

static int
refuse_patch (char **why, const char *fmt, ...)
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
  return refuse_patch (why, "\"%s\" is not a setting that can be changed; "
                       "these are: %s", name, names);
}

static int
refuse_range (char **why, const struct setting *s)
{
  return refuse_patch (why, "%s must be from %" PRIu64 " to %" PRIu64 " bytes",
                       s->name, s->min, s->max);
}

/* ---- patches ---- */

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
    return refuse_patch (why, "%s must be a whole number of bytes, or a string "
                         "with a suffix such as \"16M\"", s->name);
  else if (size_parse (json_string_value (value), v) == -1) {
    if (errno == ERANGE)
      return refuse_range (why, s);
    return refuse_patch (why, "%s: \"%s\" is not a size: use digits and a "
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
    return refuse_patch (why, "the settings must be a JSON object, such as "
                         "{\"%s\": 0}", all_settings[0].name);

  /* Jansson's macro only reads, but does not take a const json_t. */
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

int
settings_apply (const struct instance *instance, const json_t *patch,
                char **why)
{
  struct hydrate_settings settings;

  hydrate_get_settings (instance->hydrate, &settings);
  if (settings_patch (patch, &settings, why) == -1)
    return -1;
  hydrate_set_settings (instance->hydrate, &settings);
  return 0;
}
