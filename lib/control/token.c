/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stddef.h>
#include <string.h>
#include <strings.h>

#include "control/token.h"

bool
token_is_valid (const char *token)
{
  const char *p;

  for (p = token; *p > ' ' && *p <= '~'; p++)
    ;
  return p > token && *p == '\0';
}

bool
token_matches (const char *token, const char *value)
{
  static const char scheme[] = "Bearer ";
  volatile unsigned char diff;
  size_t i, len, given_len;

  if (value == NULL || strncasecmp (value, scheme, strlen (scheme)) != 0)
    return false;
  value += strlen (scheme);
  value += strspn (value, " ");

  len = strlen (token);
  given_len = strlen (value);
  diff = len != given_len;
  for (i = 0; i < len; i++)
    diff |= token[i] ^ value[i < given_len ? i : 0];
  return diff == 0;
}
