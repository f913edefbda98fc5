/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Zero, on a channel: zero requests where the server takes them, else zeroes
 * are written.
 *
 * With BACKEND_IF_DATA (zero-if-data.h) the pieces of a range are
 *
 *   extents   the server's block status, if it has one
 *   zero      for what is not known to be zero, where zeroing is fast
 *   read      elsewhere, followed by a
 *   write     of zeroes if the piece that was read holds anything else
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "backend/nbd-channel-internal.h"
#include "backend/zero-if-data.h"
#include "base/clock.h"
#include "base/iszero.h"
#include "base/rounding.h"

static bool
zero_if_data_only (const struct transfer *t)
{
  return t->io->flags & BACKEND_IF_DATA;
}

void
nbd_channel_zero_begin (struct nbd *n, struct transfer *t)
{
  t->begin = monotonic_seconds ();
  t->by_request = n->b.can_zero;
  if (zero_if_data_only (t))
    t->by_request &= zero_how (&n->b, t->io->flags) == ZERO_BY_REQUEST;
  if (!zero_if_data_only (t) || !n->b.knows_extents)
    t->data_end = t->end;
}

/* Skip what the server's answer says is zero.  If data follows, set data_end.
 * A block that is zero in part counts as data.
 */
static void
zero_skip_known (struct nbd *n, struct transfer *t)
{
  for (size_t i = extents_find (&t->reply, t->next);
       i < t->reply.len && t->next < t->end; ++i) {
    const struct extent *e = &t->reply.extent[i];
    const uint64_t end = e->offset + e->length;

    if (e->flags & EXTENT_ZERO)
      t->next = MAX (t->next, MIN (nbd_block_start (n, end), t->end));
    if (t->next < MIN (end, t->end)) {
      t->data_end = MIN (nbd_block_end (n, end), t->end);
      return;
    }
  }
}

static void
zero_ask_extents (struct transfer *t)
{
  extents_clear (&t->reply);
  t->req.type = NBD_REQUEST_EXTENTS;
  t->req.extents = &t->reply;
  t->req.count = MIN (t->end - t->next, NBD_MAX_STATUS);
}

bool
nbd_channel_zero_next (struct nbd *n, struct transfer *t)
{
  unsigned flags = t->io->flags & ~BACKEND_IF_DATA;

  if (t->data_end <= t->next)
    zero_skip_known (n, t);
  if (t->next == t->end) {
    zero_step_learn (&n->b.zero_step, t->io->count,
                     monotonic_seconds () - t->begin);
    return false;
  }
  t->req.offset = t->next;
  if (t->data_end <= t->next)
    zero_ask_extents (t);
  else if (t->by_request) {
    if (zero_if_data_only (t) && n->b.can_fast_zero)
      flags |= BACKEND_FAST;
    t->req.type = NBD_REQUEST_ZERO;
    t->req.flags = nbd_zero_flags (n, flags);
    t->req.count = MIN (t->data_end - t->next, NBD_MAX_RANGE);
  }
  else {
    t->req.count = MIN (t->data_end - t->next, nbd_zeroes_limit (n));
    t->req.type = NBD_REQUEST_WRITE;
    t->req.buf = nbd_zeroes;
    if (zero_if_data_only (t) && !t->is_data) {
      if (t->buf == NULL)
        t->buf = malloc (nbd_zeroes_limit (n));
      if (t->buf) {
        t->req.type = NBD_REQUEST_READ;
        t->req.buf = t->buf;
      }
    }
    t->is_data = false;
  }
  return true;
}

int
nbd_channel_zero_done (struct nbd *n, struct transfer *t)
{
  const int error = t->req.error;

  if (error == ENOTCONN)
    return error;
  switch (t->req.type) {
  case NBD_REQUEST_EXTENTS:
    /* What the server knows nothing about is data. */
    if (error || extents_find (&t->reply, t->next) == t->reply.len)
      t->data_end = t->end;
    return 0;
  case NBD_REQUEST_READ:
    /* To write what cannot be read may repair it. */
    t->is_data = error || !is_zero (t->buf, t->req.count);
    if (!t->is_data)
      t->next += t->req.count;
    return 0;
  case NBD_REQUEST_ZERO:
    if (nbd_is_refusal (error)) {
      t->by_request = false;
      return 0;
    }
    break;
  default:
    break;
  }
  if (error == 0)
    t->next += t->req.count;
  return error;
}
