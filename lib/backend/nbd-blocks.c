/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Servers may accept whole blocks only.  A block that a write covers partly is
 * read, changed and written back.  Another write to the block in between would
 * be lost.  So every write to such a server owns its blocks while it runs, also
 * a write of whole blocks.  (The writes of channels need not own their blocks:
 * hydration writes whole regions that nobody else writes to.)
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/nbd-internal.h"
#include "base/cleanup.h"
#include "base/rounding.h"

uint64_t
nbd_block_start (const struct nbd *n, uint64_t offset)
{
  return round_down (offset, n->b.minimum_block);
}

/* The last block is short if the size is not a multiple of the block size. */
uint64_t
nbd_block_end (const struct nbd *n, uint64_t offset)
{
  return MIN (round_up (offset, n->b.minimum_block), n->b.size);
}

bool
nbd_is_aligned (const struct nbd *n, uint64_t count, uint64_t offset)
{
  return nbd_block_start (n, offset) == offset &&
         nbd_block_end (n, offset + count) == offset + count;
}

bool
nbd_all_aligned (const struct nbd *n, const struct segment *seg, size_t nseg)
{
  while (nseg > 0 && nbd_is_aligned (n, seg->count, seg->offset))
    seg++, nseg--;
  return nseg == 0;
}

void
nbd_own_blocks (struct nbd *n, struct owner *owner, uint64_t start,
                uint64_t end)
{
  if (n->b.minimum_block > 1)
    range_lock_acquire (&n->blocks, owner, nbd_block_start (n, start),
                        round_up (end, n->b.minimum_block));
}

void
nbd_disown_blocks (struct nbd *n, struct owner *owner)
{
  if (n->b.minimum_block > 1)
    range_lock_release (&n->blocks, owner);
}

/* Read the whole blocks around the segment. */
int
nbd_read_part (struct nbd *n, const struct segment *seg)
{
  const uint64_t start = nbd_block_start (n, seg->offset);
  const uint64_t end = nbd_block_end (n, seg->offset + seg->count);
  CLEANUP_FREE char *buf = malloc (end - start);
  int error = buf ? 0 : ENOMEM;

  if (buf)
    error = nbd_transfer_range (n, NBD_REQUEST_READ, buf, end - start, start,
                                0);
  if (error == 0)
    memcpy (seg->buf, buf + (seg->offset - start), seg->count);
  return error;
}

/* Read the blocks at both ends, change them, and write all blocks. */
int
nbd_write_part (struct nbd *n, const void *data, uint64_t count,
                uint64_t offset, unsigned flags)
{
  const uint64_t start = nbd_block_start (n, offset);
  const uint64_t end = nbd_block_end (n, offset + count);
  const uint64_t last = nbd_block_start (n, end - 1);
  CLEANUP_FREE char *buf = malloc (end - start);
  const struct segment edge[] = {
    { buf, MIN (end - start, (uint64_t)n->b.minimum_block), start },
    { buf + (last - start), end - last, last },
  };
  struct owner owner;
  int error;

  if (buf == NULL)
    return ENOMEM;
  nbd_own_blocks (n, &owner, offset, offset + count);
  error = nbd_transfer (n, NBD_REQUEST_READ, edge, last > start ? 2 : 1, 0,
                        n->max_transfer);
  if (error == 0) {
    memcpy (buf + (offset - start), data, count);
    error = nbd_transfer_range (n, NBD_REQUEST_WRITE, buf, end - start, start,
                                nbd_fua_flag (n, flags));
  }
  nbd_disown_blocks (n, &owner);
  return error;
}
