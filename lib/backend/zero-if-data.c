/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "backend/zero-if-data.h"
#include "base/cleanup.h"
#include "base/iszero.h"
#include "base/rounding.h"

enum zero_how
zero_how (const struct backend *b, unsigned flags)
{
  if (!b->can_zero)
    return ZERO_BY_READING;
  return flags & BACKEND_MAY_TRIM || b->knows_extents ? ZERO_BY_REQUEST
    : ZERO_BY_READING;
}

/* Write zeroes over what is not zero.  What cannot be read is written, too:
 * that may repair it.  The read does not use the page cache: after a failed
 * write-back that may have zeroes which the device has not.
 */
static int
zero_by_reading (struct backend *b, uint64_t count, uint64_t offset,
                 unsigned flags)
{
  CLEANUP_FREE char *buf = aligned_alloc (BACKEND_ALIGN, ZERO_PIECE);
  const uint64_t end = offset + count;

  if (buf == NULL)
    return -1;
  while (offset < end) {
    size_t n = MIN (ZERO_PIECE, end - offset), run;
    bool zero = false;
    int r = backend_pread_once (b, buf, n, offset);

    if (r == -1 && errno == ENOTCONN)
      return -1;
    for (size_t i = 0; i < n; i += run) {
      run = r == -1 ? n : zero_run (buf + i, n - i, ZERO_GRANULE,
                                   ZERO_GRANULE, &zero);
      if (!zero && b->ops->zero (b, run, offset + i, flags) == -1)
        return -1;
    }
    offset += n;
  }
  return 0;
}

/* A range that is not known to read as zeroes. */
static int
zero_data (struct backend *b, uint64_t count, uint64_t offset, unsigned flags)
{
  if (zero_how (b, flags) == ZERO_BY_REQUEST) {
    int r = b->ops->zero (b, count, offset,
                          flags | (b->can_fast_zero ? BACKEND_FAST : 0));

    if (r == 0 || errno != EOPNOTSUPP)
      return r;
  }
  return zero_by_reading (b, count, offset, flags);
}

int
zero_if_data (struct backend *b, uint64_t count, uint64_t offset,
              unsigned flags)
{
  CLEANUP_EXTENTS_FREE struct extents list = EXTENTS_INIT;
  const uint64_t end = offset + count;

  flags &= ~BACKEND_IF_DATA;
  while (offset < end) {
    extents_clear (&list);
    if (backend_extents (b, end - offset, offset, 0, &list) == -1) {
      if (errno == ENOTCONN)
        return -1;
      return zero_data (b, end - offset, offset, flags);
    }
    for (size_t i = 0; i < list.len; ++i) {
      const struct extent *e = &list.extent[i];

      if (!(e->flags & EXTENT_ZERO) &&
          zero_data (b, e->length, e->offset, flags) == -1)
        return -1;
    }
    offset = extents_end (&list);
  }
  return 0;
}
