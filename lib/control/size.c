/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdbool.h>

#include "control/size.h"

static bool
is_digit (char c)
{
  return c >= '0' && c <= '9';
}

/* Bytes; 0 if c is not a suffix. */
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
