/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <string.h>

#include "base/cleanup.h"
#include "clone-status.h"
#include "nbdclone.h"

/* NULL if it is not a text. */
static const char *
text_of (const json_t *object, const char *key)
{
  return json_string_value (json_object_get (object, key));
}

/* 0 if it is not there, or negative. */
static uint64_t
number_of (const json_t *object, const char *key)
{
  const json_int_t n = json_integer_value (json_object_get (object, key));

  return n > 0 ? (uint64_t)n : 0;
}

int
clone_status_read (struct clone_status *s, json_t *json)
{
  const json_t *eta = json_object_get (json, "eta_seconds");
  const json_t *source = json_object_get (json, "source");

  *s = (struct clone_status){
    .json = json_incref (json),
    .size = number_of (json, "size"),
    .valid = number_of (json, "bytes_hydrated"),
    .rate = number_of (json, "rate"),
    .eta_known = json_is_integer (eta),
    .eta = number_of (json, "eta_seconds"),
    .state = text_of (json, "state"),
    .mode = text_of (json, "mode"),
    .source = {
      .name = text_of (source, "name"),
      .connected = json_is_true (json_object_get (source, "connected")),
      .connections = (unsigned)number_of (source, "connections"),
      .error = text_of (source, "error"),
    },
    .destination = text_of (json_object_get (json, "destination"), "name"),
    .bad = number_of (json_object_get (json, "bad"), "bytes"),
    .settings = json_object_get (json, "settings"),
  };
  if (s->size == 0 || s->state == NULL || s->mode == NULL ||
      !json_is_integer (json_object_get (json, "durable")))
    return -1;
  /* The disk's last region may be shorter. */
  if (__builtin_mul_overflow (number_of (json, "durable"),
                              number_of (json, "region_size"), &s->durable) ||
      s->durable > s->valid)
    s->durable = s->valid;
  s->is_complete = strcmp (s->state, "complete") == 0;
  s->has_failed = strcmp (s->state, "failed") == 0;
  return 0;
}

void
clone_status_free (struct clone_status *s)
{
  json_decref (s->json);
  *s = (struct clone_status){ 0 };
}

void
line_add_source (struct line *l, const struct clone_status *s)
{
  if (s->is_complete)
    line_add (l, PLAIN, "closed");
  else if (s->source.error)
    line_add (l, BAD, "lost: %s", s->source.error);
  else if (!s->source.connected)
    line_add (l, BAD, "lost");
  else
    line_add (l, PLAIN, "connected, %u connection%s", s->source.connections,
              s->source.connections == 1 ? "" : "s");
}

static bool
is_size (const char *key)
{
  return strcmp (key, "hydration-rate") == 0 ||
    strcmp (key, "hydration-threshold") == 0 ||
    strcmp (key, "hydration-batch-size") == 0;
}

void
line_add_setting (struct line *l, const char *key, const json_t *value)
{
  const bool is_rate = strcmp (key, "hydration-rate") == 0;
  CLEANUP_FREE char *text = NULL;
  char words[WORDS_MAX];
  uint64_t n;

  line_add (l, PLAIN, "%s: ", key);
  if (json_is_integer (value) && is_size (key)) {
    n = (uint64_t)json_integer_value (value);
    line_add (l, PLAIN, "%s%s", is_rate && n == 0 ? "no limit"
              : size_words (n, words), is_rate && n ? "/s" : "");
  }
  else if (json_is_string (value))
    line_add (l, PLAIN, "%s", json_string_value (value));
  else {
    text = json_dumps (value, JSON_ENCODE_ANY | JSON_COMPACT);
    if (text == NULL)
      out_of_memory ();
    line_add (l, PLAIN, "%s", text);
  }
}
