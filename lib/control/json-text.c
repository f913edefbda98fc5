/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <string.h>

#include "base/cleanup.h"
#include "control/json-text.h"

json_t *
text_json (const char *text)
{
  json_t *json = json_string (text);
  CLEANUP_FREE char *copy = NULL;

  if (json)
    return json;
  copy = strdup (text);
  if (copy == NULL)
    return NULL;
  for (char *p = copy; *p; p++) {
    if (*p & 0x80)
      *p = '?';
  }
  return json_string (copy);
}
