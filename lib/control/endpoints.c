/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "base/cleanup.h"
#include "control/endpoints.h"
#include "control/map.h"
#include "control/metrics.h"
#include "control/request.h"
#include "control/settings.h"
#include "control/status.h"
#include "control/waiters.h"
#include "hydration/hydrate.h"

/* ---- the handlers ---- */

static enum MHD_Result
get_status (struct request *r)
{
  struct status status;

  status_get (r->instance, &status);
  return request_answer (r, status_json_named (r->instance, &status));
}

static enum MHD_Result
get_wait (struct request *r)
{
  struct status status;

  status_get (r->instance, &status);
  if (!status_ended (&status) && waiters_add (r))
    return MHD_YES;
  return request_answer (r, status_json_named (r->instance, &status));
}

static enum MHD_Result
post_pause (struct request *r)
{
  hydrate_pause (r->instance->hydrate);
  return get_status (r);
}

static enum MHD_Result
post_resume (struct request *r)
{
  hydrate_resume (r->instance->hydrate);
  return get_status (r);
}

static enum MHD_Result
post_stop (struct request *r)
{
  r->stops = true;
  return get_status (r);
}

static enum MHD_Result
get_settings (struct request *r)
{
  struct settings settings;

  settings_get (r->instance, &settings);
  return request_answer (r, settings_json (&settings));
}

static enum MHD_Result
fail_bad_json (struct request *r, const json_error_t *error)
{
  CLEANUP_FREE char *message = NULL;

  if (asprintf (&message, "the body is not valid JSON: line %d, column %d: %s",
                error->line, error->column, error->text) == -1) {
    message = NULL;
    return MHD_NO;
  }
  return request_fail (r, MHD_HTTP_BAD_REQUEST, message, NULL, NULL);
}

static enum MHD_Result
patch_settings (struct request *r)
{
  CLEANUP_FREE char *why = NULL;
  json_error_t error;
  json_t *patch;
  int err;

  patch = json_loadb (r->body ? r->body : "", r->body_len,
                      JSON_REJECT_DUPLICATES, &error);
  if (patch == NULL)
    return fail_bad_json (r, &error);

  err = settings_apply (r->instance, patch, &why);
  json_decref (patch);
  if (err == 0)
    return get_settings (r);
  if (why == NULL)
    return MHD_NO;
  return request_fail (r, MHD_HTTP_BAD_REQUEST, why, NULL, NULL);
}

/* ---- the table ---- */

/* The methods of one path are neighbours. */
static const struct endpoint endpoints[] = {
  { "/status", "GET", get_status },
  { "/wait", "GET", get_wait },
  { "/pause", "POST", post_pause },
  { "/resume", "POST", post_resume },
  { "/stop", "POST", post_stop },
  { "/settings", "GET", get_settings },
  { "/settings", "PATCH", patch_settings },
  { "/map", "GET", map_handle },
  { "/metrics", "GET", metrics_handle },
};

static const struct endpoint *const endpoints_end =
  endpoints + sizeof endpoints / sizeof endpoints[0];

unsigned
endpoints_find (const char *path, const char *method,
                const struct endpoint **endpoint)
{
  const struct endpoint *e;
  unsigned refused = MHD_HTTP_NOT_FOUND;

  /* libmicrohttpd does not send the body of an answer to HEAD. */
  if (strcmp (method, MHD_HTTP_METHOD_HEAD) == 0)
    method = MHD_HTTP_METHOD_GET;

  for (e = endpoints; e < endpoints_end; e++) {
    if (strcmp (e->path, path) == 0) {
      refused = MHD_HTTP_METHOD_NOT_ALLOWED;
      if (strcmp (e->method, method) == 0) {
        *endpoint = e;
        return 0;
      }
    }
  }
  return refused;
}

enum MHD_Result
endpoints_refuse_path (struct request *r)
{
  char message[256];
  const struct endpoint *e;
  size_t len;

  len = snprintf (message, sizeof message, "no such path: there are");
  for (e = endpoints; e < endpoints_end && len < sizeof message; e++) {
    if (e == endpoints || strcmp (e->path, e[-1].path) != 0)
      len += snprintf (message + len, sizeof message - len, "%s%s",
                       e == endpoints ? " " : ", ", e->path);
  }
  return request_fail (r, MHD_HTTP_NOT_FOUND, message, NULL, NULL);
}

enum MHD_Result
endpoints_refuse_method (struct request *r, const char *path)
{
  char allowed[64] = "", message[128];
  const struct endpoint *e;
  size_t len = 0;

  for (e = endpoints; e < endpoints_end && len < sizeof allowed; e++) {
    if (strcmp (e->path, path) == 0)
      len += snprintf (allowed + len, sizeof allowed - len, "%s%s%s",
                       len ? ", " : "", e->method,
                       strcmp (e->method, "GET") == 0 ? ", HEAD" : "");
  }
  snprintf (message, sizeof message, "%s has only these methods: %s", path,
            allowed);
  return request_fail (r, MHD_HTTP_METHOD_NOT_ALLOWED, message,
                       MHD_HTTP_HEADER_ALLOW, allowed);
}
