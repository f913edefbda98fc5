/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Does a buffer hold only zeroes, and where? */

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

/* The length of the run of granules at the start of a buffer that are all zero,
 * or all not.  The buffer's last granule may be short.
 */
static inline size_t
uniform_run (const char *buf, size_t n, size_t granule, bool *zero)
{
  size_t run = n < granule ? n : granule;

  *zero = is_zero (buf, run);
  while (run < n) {
    size_t next = n - run < granule ? n - run : granule;

    if (is_zero (buf + run, next) != *zero)
      break;
    run += next;
  }
  return run;
}

/* The length of the run of zeroes, or of data, at the start of a buffer.  It
 * consists of whole granules.  Less than min zeroes beside data are data.
 */
static inline size_t
zero_run (const void *buf, size_t n, size_t granule, size_t min, bool *zero)
{
  const char *p = buf;
  size_t run = uniform_run (p, n, granule, zero);

  if (*zero && (run >= min || run == n))
    return run;
  *zero = false;
  while (run < n) {
    bool next_zero;
    size_t next = uniform_run (p + run, n - run, granule, &next_zero);

    if (next_zero && next >= min)
      break;
    run += next;
  }
  return run;
}

#endif /* CLONE_ISZERO_H */
