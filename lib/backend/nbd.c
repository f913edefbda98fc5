/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The backend for NBD exports: requests split and aligned as the server wants
 * them, and what the server lacks made up for.  Its connections are those of a
 * pool (nbd-pool.h), its channels are in nbd-channel.c.
 *
 * Alignment: a server may want whole blocks.  Blocks that a write covers
 * partly are read, changed and written; all writes of such a backend, also
 * those of whole blocks, own their blocks meanwhile, because a write that came
 * between that reading and writing would be lost.  (Those of channels need not:
 * hydration writes whole regions that nobody else writes to.)
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "backend/backend.h"
#include "backend/nbd-connection.h"
#include "backend/nbd-pool.h"
#include "backend/nbd.h"
#include "base/cleanup.h"
#include "base/range-lock.h"
#include "base/rounding.h"

/* The largest transfer: qemu-nbd drops the connection above this. */
#define MAX_TRANSFER (UINT64_C (32) << 20)
/* Larger blocks than hydration's pieces are not served. */
#define MAX_BLOCK (INT64_C (64) << 10)
/* Pieces of one call that are in flight together. */
#define BATCH_MAX 64

char nbd_zeroes[1 << 20];

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

static int
result (int error)
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

/* ---- Batches: the pieces of one call ---- */

struct batch {
  struct nbd *nbd;
  int error; /* the first */
  size_t n;
  struct nbd_req req[BATCH_MAX];
};

static void
batch_run (struct batch *batch)
{
  struct nbd *n = batch->nbd;

  if (batch->n == 0)
    return;
  if (n->only)
    nbd_conn_call (n->only, batch->req, batch->n);
  else
    nbd_pool_call (n->pool, batch->req, batch->n);
  for (size_t i = 0; i < batch->n && batch->error == 0; i++)
    batch->error = batch->req[i].error;
  batch->n = 0;
}

/* Split a range at limit.  Of the buffer, which may be NULL, the same pieces
 * are taken; nbd_zeroes serves again and again.
 */
static void
batch_add (struct batch *batch, enum nbd_req_type type, void *buf,
           uint64_t count, uint64_t offset, uint32_t flags, uint64_t limit)
{
  while (count > 0 && batch->error == 0) {
    uint64_t piece = MIN (count, limit);

    batch->req[batch->n++] = (struct nbd_req){
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

/* All segments, in flight together.  0 or the error, as the server sent it. */
static int
transfer (struct nbd *n, enum nbd_req_type type, const struct segment *seg,
          size_t nseg, uint32_t flags, uint64_t limit)
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

/* The same, of one range. */
static int
transfer_range (struct nbd *n, enum nbd_req_type type, void *buf,
                uint64_t count, uint64_t offset, uint32_t flags)
{
  const struct segment seg = { buf, count, offset };

  return transfer (n, type, &seg, 1, flags,
                   buf == nbd_zeroes ? nbd_zeroes_limit (n)
                   : buf ? n->max_transfer : NBD_MAX_RANGE);
}

/* ---- Durability ---- */

static uint32_t
fua_flag (const struct nbd *n, unsigned flags)
{
  return flags & BACKEND_FUA && n->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
}

/* One connection's flush covers all of them: there is more than one only where
 * the server promises that (multi-conn).
 */
static int
flush (struct nbd *n)
{
  struct nbd_req req = { .type = NBD_REQ_FLUSH };

  nbd_pool_call (n->pool, &req, 1);
  return req.error;
}

/* The end of each operation that may have BACKEND_FUA. */
static int
finish_write (struct nbd *n, int error, unsigned flags)
{
  if (error == 0 && flags & BACKEND_FUA && !n->can_fua)
    error = flush (n);
  return result (error);
}

static int
nbd_backend_flush (struct backend *b)
{
  return result (flush ((struct nbd *)b));
}

/* ---- Blocks ---- */

uint64_t
nbd_block_start (const struct nbd *n, uint64_t offset)
{
  return round_down (offset, n->b.minimum_block);
}

/* The last block is short where the size is no multiple. */
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

static bool
all_aligned (const struct nbd *n, const struct segment *seg, size_t nseg)
{
  while (nseg > 0 && nbd_is_aligned (n, seg->count, seg->offset))
    seg++, nseg--;
  return nseg == 0;
}

/* ---- Reading ---- */

/* Read the whole blocks around it. */
static int
read_part (struct nbd *n, const struct segment *seg)
{
  const uint64_t start = nbd_block_start (n, seg->offset);
  const uint64_t end = nbd_block_end (n, seg->offset + seg->count);
  CLEANUP_FREE char *buf = malloc (end - start);
  int error = buf ? 0 : ENOMEM;

  if (buf)
    error = transfer_range (n, NBD_REQ_READ, buf, end - start, start, 0);
  if (error == 0)
    memcpy (seg->buf, buf + (seg->offset - start), seg->count);
  return error;
}

static int
nbd_backend_pread (struct backend *b, const struct segment *seg, size_t nseg)
{
  struct nbd *n = (struct nbd *)b;
  int error = 0;

  if (all_aligned (n, seg, nseg))
    error = transfer (n, NBD_REQ_READ, seg, nseg, 0, n->max_transfer);
  else {
    for (size_t i = 0; i < nseg && error == 0; i++)
      error = read_part (n, &seg[i]);
  }
  return result (error);
}

/* ---- Writing and zeroing ---- */

static void
own_blocks (struct nbd *n, struct owner *owner, uint64_t start, uint64_t end)
{
  if (n->b.minimum_block > 1)
    range_lock_acquire (&n->blocks, owner, nbd_block_start (n, start),
                       round_up (end, n->b.minimum_block));
}

static void
disown_blocks (struct nbd *n, struct owner *owner)
{
  if (n->b.minimum_block > 1)
    range_lock_release (&n->blocks, owner);
}

uint32_t
nbd_zero_flags (const struct nbd *n, unsigned flags)
{
  return fua_flag (n, flags) |
         (flags & BACKEND_MAY_TRIM ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
         (flags & BACKEND_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
}

static int
request_zero (struct nbd *n, uint64_t count, uint64_t offset, unsigned flags)
{
  return n->can_zero ? transfer_range (n, NBD_REQ_ZERO, NULL, count, offset,
                                       nbd_zero_flags (n, flags)) : ENOTSUP;
}

/* Zero whole blocks.  Where the server zeroes the first piece fast, it gets the
 * others without that condition: a refusal must not come after something has
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
    error = transfer_range (n, NBD_REQ_WRITE, nbd_zeroes, count, offset,
                            fua_flag (n, flags));
  return error;
}

/* Read the blocks at the edges, change them, and write it all. */
static int
write_part (struct nbd *n, const void *data, uint64_t count, uint64_t offset,
            unsigned flags)
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
  own_blocks (n, &owner, offset, offset + count);
  error = transfer (n, NBD_REQ_READ, edge, last > start ? 2 : 1, 0,
                    n->max_transfer);
  if (error == 0) {
    memcpy (buf + (offset - start), data, count);
    error = transfer_range (n, NBD_REQ_WRITE, buf, end - start, start,
                            fua_flag (n, flags));
  }
  disown_blocks (n, &owner);
  return error;
}

/* The parts of blocks at the edges, and the whole blocks between them. */
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
    error = write_part (n, nbd_zeroes, middle - offset, offset, flags);
  if (error == 0 && middle < last) {
    own_blocks (n, &owner, middle, last);
    error = zero_blocks (n, last - middle, middle, flags);
    disown_blocks (n, &owner);
  }
  if (error == 0 && last < end)
    error = write_part (n, nbd_zeroes, end - last, last, flags);
  return error;
}

/* All segments, of whole blocks, in flight together.  What lies between them is
 * owned too: nobody owns more than one range at a time.
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
  own_blocks (n, &owner, start, end);
  error = transfer (n, NBD_REQ_WRITE, seg, nseg, fua_flag (n, flags),
                    n->max_transfer);
  disown_blocks (n, &owner);
  return error;
}

static int
nbd_backend_pwrite (struct backend *b, const struct segment *seg, size_t nseg,
                    unsigned flags)
{
  struct nbd *n = (struct nbd *)b;
  int error = 0;

  if (all_aligned (n, seg, nseg))
    error = write_segments (n, seg, nseg, flags);
  else {
    for (size_t i = 0; i < nseg && error == 0; i++)
      error = write_part (n, seg[i].buf, seg[i].count, seg[i].offset, flags);
  }
  return finish_write (n, error, flags);
}

static int
nbd_backend_zero (struct backend *b, uint64_t count, uint64_t offset,
                  unsigned flags)
{
  struct nbd *n = (struct nbd *)b;
  int error = EOPNOTSUPP; /* the edges would have to be written */

  if (!(flags & BACKEND_FAST) || nbd_is_aligned (n, count, offset))
    error = zero_part (n, count, offset, flags);
  if (error == EOPNOTSUPP && flags & BACKEND_FAST) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return finish_write (n, error, flags);
}

/* Only whole blocks.  A server that does not want to trim need not. */
static int
nbd_backend_trim (struct backend *b, uint64_t count, uint64_t offset,
                  unsigned flags)
{
  struct nbd *n = (struct nbd *)b;
  uint64_t start = nbd_block_end (n, offset);
  uint64_t end = offset + count;
  struct owner owner;
  int error;

  if (end != n->b.size)
    end = nbd_block_start (n, end);
  if (!n->can_trim || start >= end)
    return 0;
  own_blocks (n, &owner, start, end);
  error = transfer_range (n, NBD_REQ_TRIM, NULL, end - start, start,
                          fua_flag (n, flags));
  disown_blocks (n, &owner);
  return nbd_is_refusal (error) ? 0 : finish_write (n, error, flags);
}

/* ---- Extents ---- */

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

static int
nbd_backend_extents (struct backend *b, uint64_t count, uint64_t offset,
                     unsigned flags, struct extents *list)
{
  struct nbd *n = (struct nbd *)b;
  CLEANUP_EXTENTS_FREE struct extents reply = EXTENTS_INIT;
  struct nbd_req req = {
    .type = NBD_REQ_EXTENTS, .offset = nbd_block_start (n, offset),
    .flags = flags & BACKEND_REQ_ONE ? LIBNBD_CMD_FLAG_REQ_ONE : 0,
    .extents = &reply,
  };

  if (n->b.knows_extents) {
    count = MIN (count, NBD_MAX_STATUS - n->b.minimum_block);
    req.count = nbd_block_end (n, offset + count) - req.offset;
    nbd_pool_call (n->pool, &req, 1);
  }
  return result (nbd_clip_extents (list, &reply, req.error, count, offset));
}

/* ---- The peer, and whether it is there ---- */

static unsigned
nbd_backend_connections (struct backend *b)
{
  return nbd_pool_alive (((struct nbd *)b)->pool);
}

static int
nbd_backend_start (struct backend *b, const struct backend_service *service)
{
  struct nbd *n = (struct nbd *)b;

  n->same_disk = service->same_disk;
  n->same_disk_opaque = service->opaque;
  return nbd_pool_start (n->pool, service);
}

static void
nbd_backend_interrupt (struct backend *b, int grace)
{
  nbd_pool_interrupt (((struct nbd *)b)->pool, grace);
}

static enum backend_state
nbd_backend_state (struct backend *b)
{
  return nbd_pool_state (((struct nbd *)b)->pool);
}

static void
nbd_backend_reason (struct backend *b, char *buf, size_t size)
{
  nbd_pool_reason (((struct nbd *)b)->pool, buf, size);
}

/* Reads of this one are done on this connection. */
static struct nbd
alone (const struct nbd *n, struct nbd_conn *conn)
{
  return (struct nbd){
    .b = n->b, .only = conn, .max_transfer = n->max_transfer
  };
}

/* Has it answered?  With what does not matter. */
static bool
answers (struct nbd *n, struct nbd_conn *witness)
{
  struct nbd w = alone (n, witness);
  char c;
  const struct segment seg = { &c, 1, 0 };

  return n->b.size == 0 || nbd_backend_pread (&w.b, &seg, 1) == 0 ||
         errno != ENOTCONN;
}

/* In what does this server differ from the first one?  NULL, or a text that is
 * to be freed.
 */
static char *
differs (struct nbd *n, struct nbd_handle *h)
{
  const int64_t size = nbd_get_size (h);
  const int64_t minimum = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  const int64_t maximum = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);
  char *text = NULL;
  int r = 0;

  if (size != (int64_t)n->b.size)
    r = asprintf (&text, "has %" PRId64 " bytes instead of %" PRIu64, size,
                  n->b.size);
  else if (minimum > (int64_t)n->b.minimum_block)
    r = asprintf (&text, "wants blocks of %" PRId64 " bytes, %" PRIu32
                  " before", minimum, n->b.minimum_block);
  else if (maximum > 0 && maximum < (int64_t)n->max_transfer)
    r = asprintf (&text, "takes %" PRId64 " bytes at once, %" PRIu64 " before",
                  maximum, n->max_transfer);
  else if (!n->b.readonly &&
           (nbd_is_read_only (h) != 0 || nbd_can_flush (h) != 1 ||
            nbd_can_fua (h) != n->can_fua || nbd_can_zero (h) != n->can_zero ||
            nbd_can_trim (h) != n->can_trim))
    r = asprintf (&text, "does not support the same requests as before");
  return r == -1 ? NULL : text;
}

/* Another export than the first connection's, as far as can be seen?  For the
 * pool.
 */
static int
check_conn (void *opaque, struct nbd_conn *conn, struct nbd_conn *witness,
            char **why)
{
  struct nbd *n = opaque;
  struct nbd a = alone (n, conn);
  int r = 0;

  *why = differs (n, conn->nbd);
  if (*why)
    return 1;
  if (n->same_disk)
    r = n->same_disk (n->same_disk_opaque, &a.b, why);
  if (r == 0 && witness && !answers (n, witness)) {
    *why = strdup ("another connection was lost");
    r = -1;
  }
  return r;
}

/* ---- Opening and closing ---- */

static void
nbd_backend_close (struct backend *b)
{
  struct nbd *n = (struct nbd *)b;

  nbd_pool_close (n->pool);
  range_lock_destroy (&n->blocks);
  free (n->b.name);
  free (n);
}

static const struct backend_ops nbd_ops = {
  .close = nbd_backend_close,
  .pread = nbd_backend_pread,
  .pwrite = nbd_backend_pwrite,
  .zero = nbd_backend_zero,
  .trim = nbd_backend_trim,
  .flush = nbd_backend_flush,
  .extents = nbd_backend_extents,
  .channel = nbd_channel_new,
  .connections = nbd_backend_connections,
  .start = nbd_backend_start,
  .interrupt = nbd_backend_interrupt,
  .state = nbd_backend_state,
  .reason = nbd_backend_reason,
};

/* Can the export serve as what it is opened for?  NULL, or why not. */
static const char *
check_export (struct nbd_handle *h, const struct backend_params *params)
{
  const char *protocol = nbd_get_protocol (h);

  /* It has no names of exports, block sizes, extents, nor TLS. */
  if (protocol && strcmp (protocol, "oldstyle") == 0)
    return "the server speaks the oldstyle protocol, which is not supported, "
           "let it speak newstyle";
  if (nbd_get_size (h) == -1)
    return "the server does not tell the size";
  if (nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM) > MAX_BLOCK)
    return "the server's minimum block size is larger than 64K, which is not "
           "supported";
  if (!params->readonly && nbd_is_read_only (h) != 0)
    return "it is read-only, let its server export it for writing";
  if (!params->readonly && nbd_can_flush (h) != 1)
    return "the server does not support flush, without which nothing can be "
           "made durable";
  return NULL;
}

static void
learn_export (struct nbd *n, struct nbd_handle *h)
{
  int64_t minimum = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t maximum = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  n->b.size = nbd_get_size (h);
  n->b.minimum_block = minimum > 0 && is_power_of_2 (minimum) ? minimum : 1;
  n->max_transfer = maximum > 0 ? MIN (MAX_TRANSFER, (uint64_t) maximum)
                    : MAX_TRANSFER;
  n->max_transfer = MAX (nbd_block_start (n, n->max_transfer),
                         (uint64_t) n->b.minimum_block);
  n->can_zero = nbd_can_zero (h) == 1;
  n->can_trim = nbd_can_trim (h) == 1;
  n->can_fua = nbd_can_fua (h) == 1;
  /* nbdkit and QEMU write and fdatasync, for FUA, the file that they flush. */
  n->b.fua_takes_errors = true;
  n->b.can_fast_zero = n->can_zero && nbd_can_fast_zero (h) == 1;
  n->b.knows_extents =
    nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
}

static int
connect_all (struct nbd *n, const struct backend_params *params)
{
  const struct nbd_pool_params pp = {
    .role = params->role, .uri = n->b.name, .log = n->b.log,
    .connections = params->connections, .together = !params->readonly,
    .timeout = params->timeout, .deadline = params->deadline,
    .check = check_conn, .opaque = n,
  };

  const char *why;

  n->pool = nbd_pool_open (&pp);
  if (n->pool == NULL) {
    errno = EIO;
    return -1;
  }
  why = check_export (nbd_pool_handle (n->pool), params);
  if (why) {
    log_error (n->b.log, "%s %s: %s", params->role, params->name, why);
    errno = EINVAL;
    return -1;
  }
  learn_export (n, nbd_pool_handle (n->pool));
  nbd_pool_connect_further (n->pool);
  return 0;
}

struct backend *
backend_nbd_open (const struct backend_params *params, const struct log *log)
{
  struct nbd *n = calloc (1, sizeof *n);
  int err;

  if (n == NULL) {
    log_error (log, "%s %s: %m", params->role, params->name);
    return NULL;
  }
  n->b.ops = &nbd_ops;
  n->b.log = log;
  n->b.readonly = params->readonly;
  n->b.minimum_block = 1;
  range_lock_init (&n->blocks);
  n->b.name = strdup (params->name);
  if (n->b.name == NULL)
    log_error (log, "%s %s: %m", params->role, params->name);
  else if (connect_all (n, params) == 0)
    return &n->b;

  err = errno;
  nbd_backend_close (&n->b);
  errno = err;
  return NULL;
}
