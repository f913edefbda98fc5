/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Does a buffer hold only zeroes? */

#ifndef CLONE_ISZERO_H
#define CLONE_ISZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Most data has a byte that is not zero near its start, so look there first.
 * If the first 32 bytes are zero, and each later byte equals the one 32 bytes
 * before it, all bytes are zero.  memcmp is the fastest loop for this.
 */
static inline bool
is_zero (const void *buf, size_t n)
{
  static const char zero[32];
  const char *p = buf;

  if (n <= sizeof zero)
    return memcmp (p, zero, n) == 0;
  return memcmp (p, zero, sizeof zero) == 0 &&
         memcmp (p, p + sizeof zero, n - sizeof zero) == 0;
}

#endif /* CLONE_ISZERO_H */
