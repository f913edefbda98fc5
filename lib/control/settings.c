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

#include "clone/clone.h"
#include "control/settings.h"
#include "control/size.h"

#define ARRAY_SIZE(a) (sizeof (a) / sizeof (a)[0])

/* What a setting's value is, and the type of its member. */
enum kind {
  SIZE,     /* bytes: uint64_t */
  SECONDS,  /* uint64_t */
  SWITCH,   /* bool */
  PRIORITY, /* of hydration: bool, true for "access" */
};

/* All settings that can be changed, in the order in which they are shown.  A
 * new setting is one more line, and a member of struct settings, which
 * settings_get reads and settings_apply writes.
 *
 * JSON's integers end at INT64_MAX, so that is the limit where there is no
 * other.
 */
static const struct setting {
  const char *name;
  enum kind kind;
  size_t offset;     /* in struct settings */
  uint64_t min, max; /* of numbers */
} all_settings[] = {
  { "hydration-rate", SIZE, offsetof (struct settings, hydration.rate),
    0, INT64_MAX },
  { "hydration-threshold", SIZE,
    offsetof (struct settings, hydration.threshold), 0, HYDRATE_THRESHOLD_MAX },
  { "hydration-batch-size", SIZE, offsetof (struct settings, hydration.batch),
    HYDRATE_BATCH_MIN, HYDRATE_BATCH_MAX },
  { "hydration-priority", PRIORITY,
    offsetof (struct settings, hydration.access), 0, 0 },
  { "copy-on-read", SWITCH, offsetof (struct settings, copy_on_read), 0, 0 },
  { "source-timeout", SECONDS, offsetof (struct settings, source_timeout),
    0, CLONE_SOURCE_TIMEOUT_MAX },
};

/* The setting's member: of the first two kinds, and of the others. */
static uint64_t *
number_in (const struct setting *s, struct settings *settings)
{
  return (uint64_t *)((char *)settings + s->offset);
}

static bool *
bool_in (const struct setting *s, struct settings *settings)
{
  return (bool *)((char *)settings + s->offset);
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

static json_t *
value_json (const struct setting *s, struct settings *settings)
{
  switch (s->kind) {
  case SWITCH:
    return json_boolean (*bool_in (s, settings));
  case PRIORITY:
    return json_string (*bool_in (s, settings) ? "access" : "sequential");
  case SIZE: case SECONDS:
    break;
  }
  return json_integer ((json_int_t)*number_in (s, settings));
}

json_t *
settings_json (const struct settings *settings)
{
  struct settings copy = *settings;
  json_t *object = json_object ();
  size_t i;

  for (i = 0; object && i < ARRAY_SIZE (all_settings); i++) {
    const struct setting *s = &all_settings[i];

    if (json_object_set_new (object, s->name, value_json (s, &copy)) == -1) {
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
  return refuse_patch (why, "%s must be from %" PRIu64 " to %" PRIu64 " %s",
                       s->name, s->min, s->max,
                       s->kind == SIZE ? "bytes" : "seconds");
}

/* ---- values ---- */

static int
refuse_size (char **why, const struct setting *s, const json_t *value)
{
  if (json_is_string (value))
    return refuse_patch (why, "%s: \"%s\" is not a size: use digits and a "
                         "suffix, such as \"16M\"", s->name,
                         json_string_value (value));
  return refuse_patch (why, "%s must be a whole number of bytes, or a string "
                       "with a suffix such as \"16M\"", s->name);
}

static int
refuse_seconds (char **why, const struct setting *s)
{
  return refuse_patch (why, "%s must be a whole number of seconds", s->name);
}

/* Parse the string of a size or of seconds.  -1 with errno as size_parse. */
static int
parse_number (const struct setting *s, const char *str, uint64_t *v)
{
  if (s->kind == SECONDS && str[strspn (str, "0123456789")] != '\0') {
    errno = EINVAL;
    return -1;
  }
  return size_parse (str, v);
}

static int
read_number (const struct setting *s, const json_t *value, uint64_t *v,
             char **why)
{
  bool ok = true, in_range = true;

  if (json_is_integer (value)) {
    in_range = json_integer_value (value) >= 0;
    *v = (uint64_t)json_integer_value (value);
  }
  else if (!json_is_string (value))
    ok = false;
  else if (parse_number (s, json_string_value (value), v) == -1) {
    ok = errno == ERANGE;
    in_range = false;
  }

  if (!ok)
    return s->kind == SIZE ? refuse_size (why, s, value)
           : refuse_seconds (why, s);
  if (!in_range || *v < s->min || *v > s->max)
    return refuse_range (why, s);
  return 0;
}

/* Read one of two words, which stand for true and false. */
static int
read_word (const struct setting *s, const json_t *value, const char *yes,
           const char *no, bool *v, char **why)
{
  const char *word = json_string_value (value);

  *v = word && strcmp (word, yes) == 0;
  if (*v || (word && strcmp (word, no) == 0))
    return 0;
  return refuse_patch (why, s->kind == SWITCH ? "%s must be %s or %s"
                       : "%s must be \"%s\" or \"%s\"", s->name, yes, no);
}

static int
read_value (const struct setting *s, const json_t *value,
            struct settings *settings, char **why)
{
  switch (s->kind) {
  case SWITCH:
    if (json_is_boolean (value)) {
      *bool_in (s, settings) = json_is_true (value);
      return 0;
    }
    return read_word (s, value, "true", "false", bool_in (s, settings), why);
  case PRIORITY:
    return read_word (s, value, "access", "sequential", bool_in (s, settings),
                      why);
  case SIZE: case SECONDS:
    break;
  }
  return read_number (s, value, number_in (s, settings), why);
}

int
settings_patch (const json_t *patch, struct settings *settings, char **why)
{
  struct settings new = *settings;
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
    if (read_value (s, value, &new, why) == -1)
      return -1;
  }

  *settings = new;
  return 0;
}

/* ---- a running instance ---- */

void
settings_get (const struct instance *instance, struct settings *settings)
{
  hydrate_get_settings (instance->hydrate, &settings->hydration);
  settings->copy_on_read = clone_copy_on_read (instance->clone);
  settings->source_timeout = clone_source_timeout (instance->clone);
}

int
settings_apply (const struct instance *instance, const json_t *patch,
                char **why)
{
  struct settings old, new;

  settings_get (instance, &old);
  new = old;
  if (settings_patch (patch, &new, why) == -1)
    return -1;
  hydrate_set_settings (instance->hydrate, &new.hydration);
  clone_set_copy_on_read (instance->clone, new.copy_on_read);
  if (new.source_timeout != old.source_timeout)
    clone_set_source_timeout (instance->clone, (unsigned)new.source_timeout);
  return 0;
}
