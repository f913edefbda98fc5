/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "answer.h"
#include "nbdclone.h"

void
answer_free (struct answer *a)
{
  free (a->text);
  free (a->message);
  json_decref (a->json);
  *a = (struct answer){ 0 };
}

/* A message can contain what a server has sent.  Replace the control characters
 * of ASCII, and those from U+0080 to U+009F in UTF-8.
 */
static void
make_printable (char *text)
{
  for (unsigned char *p = (unsigned char *)text; *p; ++p) {
    if (*p < ' ' || *p == 0x7f)
      *p = '?';
    else if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0)
      p[0] = p[1] = '?';
  }
}

void
answer_set_message (struct answer *a, enum answer_kind kind, const char *fmt,
                    ...)
{
  va_list args;

  a->kind = kind;
  va_start (args, fmt);
  if (vasprintf (&a->message, fmt, args) == -1)
    a->message = NULL;
  va_end (args);
  if (a->message == NULL)
    out_of_memory ();
  make_printable (a->message);
}

void
answer_read (struct answer *a, long code, const char *text, size_t len,
             bool has_token)
{
  json_t *json = json_loadb (text ? text : "", len, 0, NULL);
  const char *error = json_string_value (json_object_get (json, "error"));

  if (json_is_object (json) && code >= 200 && code < 300) {
    a->kind = ANSWER_GOOD;
    a->json = json;
    return;
  }
  if (code == 401)
    answer_set_message (a, ANSWER_NONE, "access is refused: the token is %s",
                        has_token ? "wrong" : "missing; see --token");
  else if (error && code >= 400 && code < 500)
    answer_set_message (a, code == 404 ? ANSWER_NO_PATH : ANSWER_REFUSED, "%s",
                        error);
  else
    answer_set_message (a, ANSWER_NONE, "this is not the control interface of "
                        "a clone: it answers with HTTP status %ld and %s", code,
                        json ? "other JSON" : "no JSON");
  json_decref (json);
}

int
answer_fail (const struct answer *a, const char *control)
{
  log_error (&tool_log, "%s: %s", control, a->message);
  return a->kind == ANSWER_REFUSED || a->kind == ANSWER_NO_PATH ? EXIT_REFUSED
    : EXIT_UNREACHABLE;
}

int
answer_fail_wrong (const char *control)
{
  log_error (&tool_log, "%s: the answer is not that of a clone", control);
  return EXIT_UNREACHABLE;
}
