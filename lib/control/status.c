/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "base/cleanup.h"
#include "control/settings.h"
#include "control/status.h"
#include "control/json-text.h"
#include "store/region-map.h"

const char *const status_state_names[STATUS_STATES] = {
  [HYDRATE_HYDRATING] = "hydrating",
  [HYDRATE_PAUSED] = "paused",
  [HYDRATE_WAITING] = "waiting",
  [HYDRATE_COMPLETE] = "complete",
  [HYDRATE_FAILED] = "failed",
};

const char *const status_mode_names[STATUS_MODES] = {
  [MODE_RW] = "rw",
  [MODE_RO] = "ro",
  [MODE_FAIL] = "fail",
};

const char *const status_request_names[COUNTED_REQUESTS] = {
  [COUNTED_READ] = "read",
  [COUNTED_WRITE] = "write",
  [COUNTED_ZERO] = "zero",
  [COUNTED_TRIM] = "trim",
  [COUNTED_FLUSH] = "flush",
  [COUNTED_CACHE] = "cache",
  [COUNTED_EXTENTS] = "extents",
};

bool
status_request_has_sides (enum counted_request request)
{
  return request <= COUNTED_TRIM;
}

void
status_get (const struct instance *instance, struct status *status)
{
  struct clone *c = instance->clone;
  const struct region_map *map = clone_map (c);

  /* The order matters, because all this goes on changing: the state is complete
   * only after all regions are durable, and a region is durable only after it
   * is valid.
   */
  hydrate_get_status (instance->hydrate, &status->hydration);
  status->durable = region_map_count_durable (map);
  status->hydrated = region_map_count_valid (map);
  status->bytes_hydrated = region_map_bytes_valid (map);

  status->size = region_map_size (map);
  status->region_size = region_map_region_size (map);
  status->regions = region_map_regions (map);
  status->mode = clone_mode (c);
  clone_source_reason (c, status->source_error, sizeof status->source_error);
  settings_get (instance, &status->settings);
  clone_get_counters (c, &status->counters);
  for (unsigned i = 0; i < CLONE_SIDES; i++)
    clone_last_error (c, i, status->last_error[i],
                      sizeof status->last_error[i]);
}

bool
status_ended (const struct status *status)
{
  return status->hydration.state == HYDRATE_COMPLETE ||
         status->hydration.state == HYDRATE_FAILED;
}

/* ---- JSON ---- */

static json_t *
eta_json (const struct hydrate_status *h)
{
  if (h->state == HYDRATE_COMPLETE)
    return json_integer (0);
  if (!h->eta_known)
    return json_null ();
  return json_integer ((json_int_t)h->eta);
}

/* Null if the text is empty. */
static json_t *
text_or_null_json (const char *text)
{
  return text[0] ? text_json (text) : json_null ();
}

/* Unreadable ranges of the source. */
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

/* Requests of all types; flush, cache and extents are one number each. */
static json_t *
requests_json (const struct counts *counts)
{
  json_t *object = json_object (), *json;

  for (unsigned i = 0; object && i < COUNTED_REQUESTS; i++) {
    const uint64_t *n = counts->requests[i];

    if (status_request_has_sides (i))
      json = json_pack ("{s:I, s:I, s:I}",
                        "source", (json_int_t)n[COUNTED_SOURCE],
                        "destination", (json_int_t)n[COUNTED_DESTINATION],
                        "both", (json_int_t)n[COUNTED_BOTH]);
    else
      json = json_pack ("{s:I}", "all", (json_int_t)n[COUNTED_ALL]);
    if (json_object_set_new (object, status_request_names[i], json) == -1) {
      json_decref (object);
      object = NULL;
    }
  }
  return object;
}

static json_t *
counters_json (const struct clone_counters *c)
{
  const uint64_t *bytes = c->counts.source_bytes;

  return json_pack ("{s:{s:I, s:I}, s:o, s:I, s:I, s:I}",
                    "source_read_bytes",
                      "clients", (json_int_t)bytes[COUNTED_CLIENTS],
                      "hydration", (json_int_t)bytes[COUNTED_HYDRATION],
                    "requests", requests_json (&c->counts),
                    "commits", (json_int_t)c->commits,
                    "flushes", (json_int_t)c->flushes,
                    "flushes_shared", (json_int_t)c->flushes_shared);
}

json_t *
status_json (const struct status *status)
{
  json_t *object = status_line_json (status);
  const char *source = status->last_error[CLONE_SOURCE];
  const char *dest = status->last_error[CLONE_DESTINATION];
  json_t *more = json_pack ("{s:o, s:{s:o, s:o}}",
                            "counters", counters_json (&status->counters),
                            "last_error",
                              "source", text_or_null_json (source),
                              "destination", text_or_null_json (dest));

  if (json_object_update (object, more) == -1) {
    json_decref (object);
    object = NULL;
  }
  json_decref (more);
  return object;
}

json_t *
status_line_json (const struct status *status)
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
                    "state", status_state_names[h->state],
                    "mode", status_mode_names[status->mode],
                    "bytes_hydrated", (json_int_t)status->bytes_hydrated,
                    "rate", (json_int_t)h->rate,
                    "eta_seconds", eta_json (h),
                    "source",
                      "connected", (int)h->source_connected,
                      "connections", (json_int_t)h->source_connections,
                      "error", text_or_null_json (status->source_error),
                    "bad", bad_json (&h->bad),
                    "settings", settings_json (&status->settings));
}

json_t *
status_json_named (const struct instance *instance,
                   const struct status *status)
{
  CLEANUP_FREE char *source = clone_source_name (instance->clone);
  const char *dest = clone_destination (instance->clone)->name;
  json_t *json = status_json (status);

  if (json_object_set_new (json_object_get (json, "source"), "name",
                           text_or_null_json (source ? source : "")) == -1 ||
      json_object_set_new (json, "destination",
                           json_pack ("{s:o}", "name", text_json (dest))) ==
      -1) {
    json_decref (json);
    return NULL;
  }
  return json;
}
