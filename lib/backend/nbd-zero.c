/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Zero and trim. */

#include <config.h>

#include <errno.h>

#include <libnbd.h>

#include "backend/nbd-internal.h"
#include "base/rounding.h"

uint32_t
nbd_zero_flags (const struct nbd *n, unsigned flags)
{
  return nbd_fua_flag (n, flags) |
         (flags & BACKEND_MAY_TRIM ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
         (flags & BACKEND_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
}

static int
request_zero (struct nbd *n, uint64_t count, uint64_t offset, unsigned flags)
{
  if (!n->b.can_zero)
    return ENOTSUP;
  return nbd_transfer_range (n, NBD_REQUEST_ZERO, NULL, count, offset,
                             nbd_zero_flags (n, flags));
}

/* Zero whole blocks.  After a fast zero of the first piece the others are sent
 * without that condition, because a refusal must not come after something has
 * been done.
 */
static int
zero_blocks (struct nbd *n, uint64_t count, uint64_t offset, unsigned flags)
{
  int error;

  if (flags & BACKEND_FAST) {
    uint64_t piece = MIN (count, NBD_MAX_RANGE);

    if (!n->b.can_fast_zero)
      return EOPNOTSUPP;
    error = request_zero (n, piece, offset, flags);
    if (error)
      return nbd_is_refusal (error) ? EOPNOTSUPP : error;
    count -= piece;
    offset += piece;
    flags &= ~BACKEND_FAST;
  }
  if (count == 0)
    return 0;
  error = request_zero (n, count, offset, flags);
  if (nbd_is_refusal (error))
    error = nbd_transfer_range (n, NBD_REQUEST_WRITE, nbd_zeroes, count, offset,
                                nbd_fua_flag (n, flags));
  return error;
}

/* Write the partly covered blocks at both ends, zero those between them. */
static int
zero_part (struct nbd *n, uint64_t count, uint64_t offset, unsigned flags)
{
  const uint64_t end = offset + count;
  const uint64_t middle = MIN (nbd_block_end (n, offset), end);
  const uint64_t last = nbd_block_end (n, end) == end ? end
                        : MAX (nbd_block_start (n, end), middle);
  struct owner owner;
  int error = 0;

  if (offset < middle)
    error = nbd_write_part (n, nbd_zeroes, middle - offset, offset, flags);
  if (error == 0 && middle < last) {
    nbd_own_blocks (n, &owner, middle, last);
    error = zero_blocks (n, last - middle, middle, flags);
    nbd_disown_blocks (n, &owner);
  }
  if (error == 0 && last < end)
    error = nbd_write_part (n, nbd_zeroes, end - last, last, flags);
  return error;
}

int
nbd_backend_zero (struct backend *b, uint64_t count, uint64_t offset,
                  unsigned flags)
{
  struct nbd *n = to_nbd (b);
  int error = EOPNOTSUPP; /* partly covered blocks must be written */

  if (!(flags & BACKEND_FAST) || nbd_is_aligned (n, count, offset))
    error = zero_part (n, count, offset, flags);
  if (error == EOPNOTSUPP && flags & BACKEND_FAST) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return nbd_finish_write (n, error, flags);
}

/* Trim the whole blocks in the range.  A server may refuse to trim. */
int
nbd_backend_trim (struct backend *b, uint64_t count, uint64_t offset,
                  unsigned flags)
{
  struct nbd *n = to_nbd (b);
  uint64_t start = nbd_block_end (n, offset);
  uint64_t end = offset + count;
  struct owner owner;
  int error;

  if (end != n->b.size)
    end = nbd_block_start (n, end);
  if (!n->can_trim || start >= end)
    return 0;
  nbd_own_blocks (n, &owner, start, end);
  error = nbd_transfer_range (n, NBD_REQUEST_TRIM, NULL, end - start, start,
                              nbd_fua_flag (n, flags));
  nbd_disown_blocks (n, &owner);
  return nbd_is_refusal (error) ? 0 : nbd_finish_write (n, error, flags);
}
