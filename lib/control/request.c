/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "control/request.h"
#include "control/json-text.h"

/* Queue the text as the answer, and free it later. */
static enum MHD_Result
queue_text (struct request *r, unsigned code, char *text, size_t len,
            const char *type, const char *header, const char *value)
{
  struct MHD_Response *response =
    MHD_create_response_from_buffer (len, text, MHD_RESPMEM_MUST_FREE);
  enum MHD_Result ret = MHD_NO;

  if (response == NULL) {
    free (text);
    return MHD_NO;
  }
  if (MHD_add_response_header (response, MHD_HTTP_HEADER_CONTENT_TYPE,
                               type) == MHD_YES &&
      (header == NULL ||
       MHD_add_response_header (response, header, value) == MHD_YES))
    ret = MHD_queue_response (r->connection, code, response);
  MHD_destroy_response (response);
  return ret;
}

/* Queue the object and a newline as the answer.  Takes over the reference. */
static enum MHD_Result
queue_answer (struct request *r, unsigned code, json_t *json,
              const char *header, const char *value)
{
  CLEANUP_FREE char *text = json ? json_dumps (json, 0) : NULL;
  char *line;

  json_decref (json);
  if (text == NULL || asprintf (&line, "%s\n", text) == -1)
    return MHD_NO;
  return queue_text (r, code, line, strlen (line), "application/json", header,
                     value);
}

enum MHD_Result
request_answer (struct request *r, json_t *json)
{
  return queue_answer (r, MHD_HTTP_OK, json, NULL, NULL);
}

enum MHD_Result
request_answer_text (struct request *r, char *text, size_t len,
                     const char *type)
{
  return queue_text (r, MHD_HTTP_OK, text, len, type, NULL, NULL);
}

enum MHD_Result
request_fail (struct request *r, unsigned code, const char *message,
              const char *header, const char *value)
{
  return queue_answer (r, code,
                       json_pack ("{s:o}", "error", text_json (message)),
                       header, value);
}
