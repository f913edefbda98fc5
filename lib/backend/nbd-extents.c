/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Get extents from the server, with block status requests. */

#include <config.h>

#include <errno.h>

#include <libnbd.h>

#include "backend/nbd-internal.h"
#include "base/extents.h"
#include "base/rounding.h"

int
nbd_clip_extents (struct extents *list, const struct extents *reply, int error,
                  uint64_t count, uint64_t offset)
{
  if (error == ENOTCONN)
    return error;
  for (size_t i = 0; i < reply->len && error == 0; i++) {
    const struct extent *e = &reply->extent[i];
    uint64_t start = MAX (e->offset, offset);
    uint64_t end = MIN (e->offset + e->length, offset + count);

    if (start < end &&
        extents_add (list, start, end - start, e->flags) == -1) {
      extents_clear (list);
      break;
    }
  }
  if (list->len > 0)
    return 0;
  return extents_add (list, offset, count, 0) == -1 ? ENOMEM : 0;
}

int
nbd_backend_extents (struct backend *b, uint64_t count, uint64_t offset,
                     unsigned flags, struct extents *list)
{
  struct nbd *n = to_nbd (b);
  CLEANUP_EXTENTS_FREE struct extents reply = EXTENTS_INIT;
  struct nbd_request req = {
    .type = NBD_REQUEST_EXTENTS, .offset = nbd_block_start (n, offset),
    .flags = flags & BACKEND_REQ_ONE ? LIBNBD_CMD_FLAG_REQ_ONE : 0,
    .extents = &reply,
  };

  if (n->b.knows_extents) {
    count = MIN (count, NBD_MAX_STATUS - n->b.minimum_block);
    req.count = nbd_block_end (n, offset + count) - req.offset;
    nbd_pool_call (n->pool, &req, 1);
  }
  return nbd_result (nbd_clip_extents (list, &reply, req.error, count, offset));
}
