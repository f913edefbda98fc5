/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Split an operation into requests within the server's limits, and run these in
 * parallel.
 */

#include <config.h>

#include <errno.h>

#include "backend/nbd-internal.h"
#include "base/rounding.h"

/* The most pieces in flight at once. */
#define BATCH_MAX 64

char nbd_zeroes[1 << 20];

struct batch {
  struct nbd *nbd;
  int error; /* 0, or the first error in the order of the requests */
  size_t n;
  struct nbd_request req[BATCH_MAX];
};

int
nbd_to_errno (int error)
{
  switch (error) {
  case 0:
  case EIO:
  case ENOSPC:
  case ENOMEM:
  case EPERM:
  case ENOTCONN:
    return error;
  default:
    return EIO;
  }
}

int
nbd_result (int error)
{
  if (error == 0)
    return 0;
  errno = nbd_to_errno (error);
  return -1;
}

bool
nbd_is_refusal (int error)
{
  return error == ENOTSUP || error == EOPNOTSUPP || error == EINVAL;
}

uint64_t
nbd_zeroes_limit (const struct nbd *n)
{
  return MIN (sizeof nbd_zeroes, n->max_transfer);
}

/* Send the requests gathered so far, and wait for them. */
static void
batch_run (struct batch *batch)
{
  struct nbd *n = batch->nbd;

  if (batch->n == 0)
    return;
  if (n->only)
    nbd_connection_call (n->only, batch->req, batch->n);
  else
    nbd_pool_call (n->pool, batch->req, batch->n);
  for (size_t i = 0; i < batch->n && batch->error == 0; i++)
    batch->error = batch->req[i].error;
  batch->n = 0;
}

/* Split a range into requests of at most limit bytes.  buf may be NULL;
 * nbd_zeroes is sent again for each request.
 */
static void
batch_add (struct batch *batch, enum nbd_request_type type, void *buf,
           uint64_t count, uint64_t offset, uint32_t flags, uint64_t limit)
{
  while (count > 0 && batch->error == 0) {
    uint64_t piece = MIN (count, limit);

    batch->req[batch->n++] = (struct nbd_request){
      .type = type, .flags = flags, .buf = buf, .count = piece,
      .offset = offset
    };
    if (batch->n == BATCH_MAX)
      batch_run (batch);
    if (buf && buf != nbd_zeroes)
      buf = (char *)buf + piece;
    count -= piece;
    offset += piece;
  }
}

int
nbd_transfer (struct nbd *n, enum nbd_request_type type,
              const struct segment *seg, size_t nseg, uint32_t flags,
              uint64_t limit)
{
  struct batch batch;

  batch.nbd = n;
  batch.error = 0;
  batch.n = 0;
  for (size_t i = 0; i < nseg; i++)
    batch_add (&batch, type, seg[i].buf, seg[i].count, seg[i].offset, flags,
               limit);
  batch_run (&batch);
  return batch.error;
}

int
nbd_transfer_range (struct nbd *n, enum nbd_request_type type, void *buf,
                    uint64_t count, uint64_t offset, uint32_t flags)
{
  const struct segment seg = { buf, count, offset };

  return nbd_transfer (n, type, &seg, 1, flags,
                       buf == nbd_zeroes ? nbd_zeroes_limit (n)
                       : buf ? n->max_transfer : NBD_MAX_RANGE);
}
