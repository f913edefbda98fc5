/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Read, write and flush. */

#include <config.h>

#include <libnbd.h>

#include "backend/nbd-internal.h"
#include "base/rounding.h"

uint32_t
nbd_fua_flag (const struct nbd *n, unsigned flags)
{
  return flags & BACKEND_FUA && n->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
}

/* One connection's flush covers all of them: there is more than one only if the
 * server promises that (multi-conn).
 */
static int
flush_export (struct nbd *n)
{
  struct nbd_request req = { .type = NBD_REQUEST_FLUSH };

  nbd_pool_call (n->pool, &req, 1);
  return req.error;
}

int
nbd_finish_write (struct nbd *n, int error, unsigned flags)
{
  if (error == 0 && flags & BACKEND_FUA && !n->can_fua)
    error = flush_export (n);
  return nbd_result (error);
}

int
nbd_backend_flush (struct backend *b)
{
  return nbd_result (flush_export (to_nbd (b)));
}

int
nbd_backend_pread (struct backend *b, const struct segment *seg, size_t nseg)
{
  struct nbd *n = to_nbd (b);
  int error = 0;

  if (nbd_all_aligned (n, seg, nseg))
    error = nbd_transfer (n, NBD_REQUEST_READ, seg, nseg, 0, n->max_transfer);
  else {
    for (size_t i = 0; i < nseg && error == 0; i++)
      error = nbd_read_part (n, &seg[i]);
  }
  return nbd_result (error);
}

/* Write segments of whole blocks, all in flight together.  The range from the
 * first to the last one is owned, since nobody owns more than one range at a
 * time.
 */
static int
write_segments (struct nbd *n, const struct segment *seg, size_t nseg,
                unsigned flags)
{
  uint64_t start = seg[0].offset, end = seg[0].offset + seg[0].count;
  struct owner owner;
  int error;

  for (size_t i = 1; i < nseg; i++) {
    start = MIN (start, seg[i].offset);
    end = MAX (end, seg[i].offset + seg[i].count);
  }
  nbd_own_blocks (n, &owner, start, end);
  error = nbd_transfer (n, NBD_REQUEST_WRITE, seg, nseg,
                        nbd_fua_flag (n, flags), n->max_transfer);
  nbd_disown_blocks (n, &owner);
  return error;
}

int
nbd_backend_pwrite (struct backend *b, const struct segment *seg, size_t nseg,
                    unsigned flags)
{
  struct nbd *n = to_nbd (b);
  int error = 0;

  if (nbd_all_aligned (n, seg, nseg))
    error = write_segments (n, seg, nseg, flags);
  else {
    for (size_t i = 0; i < nseg && error == 0; i++)
      error = nbd_write_part (n, seg[i].buf, seg[i].count, seg[i].offset,
                              flags);
  }
  return nbd_finish_write (n, error, flags);
}
