/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Is a buffer all zeroes? */

#ifndef CLONE_ISZERO_H
#define CLONE_ISZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Most data show a byte that is not zero at once, so look at the beginning
 * first.  Where that is zero, and each byte equals the one that far before
 * it, all are zero; memcmp is the fastest loop there is for the second half.
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
