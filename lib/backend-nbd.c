/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The backend for NBD exports: a pool of connections, requests split and
 * aligned as the server wants them, and what the server lacks made up for.
 *
 * Connections: where the server has multi-conn, half of them serve clients,
 * each request the least busy one, and each channel gets one of the others for
 * itself.  So no client's request stands in a queue behind those of hydration.
 * Without multi-conn a flush covers one connection only, so there is only one,
 * which everybody shares (nbd-conn.h says how).
 *
 * Alignment: a server may want whole blocks.  Blocks that a write covers
 * partly are read, changed and written; all writes of such a backend, also
 * those of whole blocks, own their blocks meanwhile, because a write that came
 * between that reading and writing would be lost.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <ev.h>
#include <libnbd.h>

#include "backend.h"
#include "channel.h"
#include "cleanup.h"
#include "clock.h"
#include "nbd-conn.h"
#include "ownership.h"
#include "rounding.h"

/* The largest transfer: qemu-nbd drops the connection above this. */
#define MAX_TRANSFER (UINT64_C (32) << 20)
/* The largest zero, trim and block status. */
#define MAX_RANGE (UINT64_C (1) << 30)
/* Pieces of one call that are in flight together. */
#define BATCH_MAX 64

/* Milliseconds for the first connection, and at most for each further one:
 * some servers accept so many clients and leave the others waiting.
 */
#define FIRST_TIMEOUT 30000
#define FURTHER_TIMEOUT 5000

/* For servers that cannot zero.  It is never written to. */
static char zeroes[1 << 20];

struct slot {
  struct nbd_conn *conn;
  unsigned channels; /* that use it; protected by nbd.lock */
};

struct nbd {
  struct backend b;
  struct slot *slots;
  unsigned connections; /* slots in use, at least 1 */
  unsigned clients;     /* of which the first so many are for clients */
  pthread_mutex_t lock;

  uint64_t max_transfer;
  bool can_zero, can_trim, can_fua;
  struct ownership blocks; /* minimum_block > 1: who writes to them */
};

/* Answer with the errors that backend.h allows. */
static int
to_errno (int error)
{
  switch (error) {
  case 0:
  case EIO:
  case ENOSPC:
  case ENOMEM:
  case EPERM:
  case ESHUTDOWN:
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
  errno = to_errno (error);
  return -1;
}

/* The server did not even try. */
static bool
is_refusal (int error)
{
  return error == ENOTSUP || error == EOPNOTSUPP || error == EINVAL;
}

/* ---- Batches: the pieces of one call ---- */

struct batch {
  struct nbd_conn *conn;
  int error; /* the first */
  size_t n;
  struct nbd_req req[BATCH_MAX];
};

/* The client connection that has the least to do.  One of the channels' where
 * all of those were lost.
 */
static struct nbd_conn *
pick_connection (struct nbd *n)
{
  struct nbd_conn *best = n->slots[0].conn;

  for (unsigned i = 1; i < n->connections; i++) {
    struct nbd_conn *conn = n->slots[i].conn;

    if (!nbd_conn_is_alive (conn))
      continue;
    if (!nbd_conn_is_alive (best) ||
        (i < n->clients && nbd_conn_load (conn) < nbd_conn_load (best)))
      best = conn;
  }
  return best;
}

static void
batch_begin (struct batch *batch, struct nbd *n)
{
  batch->conn = pick_connection (n);
  batch->error = 0;
  batch->n = 0;
}

static void
batch_run (struct batch *batch)
{
  if (batch->n == 0)
    return;
  nbd_conn_call (batch->conn, batch->req, batch->n);
  for (size_t i = 0; i < batch->n && batch->error == 0; i++)
    batch->error = batch->req[i].error;
  batch->n = 0;
}

/* Split a range at limit.  Of the buffer, which may be NULL, the same pieces
 * are taken.
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
    buf = buf ? (char *)buf + piece : NULL;
    count -= piece;
    offset += piece;
  }
}

static void
batch_read (struct batch *batch, struct nbd *n, const struct segment *seg)
{
  batch_add (batch, NBD_REQ_READ, seg->buf, seg->count, seg->offset, 0,
             n->max_transfer);
}

static void
batch_write (struct batch *batch, struct nbd *n, const struct segment *seg,
             uint32_t flags)
{
  batch_add (batch, NBD_REQ_WRITE, seg->buf, seg->count, seg->offset, flags,
             n->max_transfer);
}

/* 0 or the error, as the server sent it. */
static int
batch_end (struct batch *batch)
{
  batch_run (batch);
  return batch->error;
}

static int
one_request (struct nbd *n, enum nbd_req_type type, uint64_t count,
             uint64_t offset, uint32_t flags, struct extents *list)
{
  struct nbd_req req = {
    .type = type, .flags = flags, .count = count, .offset = offset,
    .extents = list
  };

  nbd_conn_call (pick_connection (n), &req, 1);
  return req.error;
}

/* ---- Durability ---- */

static uint32_t
fua_flag (struct nbd *n, unsigned flags)
{
  return flags & BACKEND_FUA && n->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
}

/* One connection's flush covers all of them: there is more than one only where
 * the server promises that (multi-conn).
 */
static int
flush (struct nbd *n)
{
  return one_request (n, NBD_REQ_FLUSH, 0, 0, 0, NULL);
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

/* A range, and the blocks at its edges that it covers partly. */
struct span {
  uint64_t start, end;   /* the range */
  uint64_t first, last;  /* the whole blocks in it; empty if not first < last */
  struct segment head, tail; /* buffers for the blocks; count 0 if none */
};

static uint64_t
block_start (const struct nbd *n, uint64_t offset)
{
  return round_down (offset, n->b.minimum_block);
}

/* The last block is short where the size is no multiple. */
static uint64_t
block_end (const struct nbd *n, uint64_t offset)
{
  return MIN (round_up (offset, n->b.minimum_block), n->b.size);
}

static bool
is_aligned (const struct nbd *n, uint64_t count, uint64_t offset)
{
  return block_start (n, offset) == offset &&
         block_end (n, offset + count) == offset + count;
}

static bool
all_aligned (const struct nbd *n, const struct segment *seg, size_t nseg)
{
  while (nseg > 0 && is_aligned (n, seg->count, seg->offset))
    seg++, nseg--;
  return nseg == 0;
}

/* Free span->head.buf when done with it.  0 or ENOMEM. */
static int
span_init (struct span *span, const struct nbd *n, uint64_t count,
           uint64_t offset)
{
  uint64_t end = offset + count;
  char *blocks = malloc (n->b.minimum_block * UINT64_C (2));

  if (blocks == NULL)
    return ENOMEM;
  *span = (struct span){
    .start = offset, .end = end, .first = offset, .last = end,
    .head = { .buf = blocks },
    .tail = { .buf = blocks + n->b.minimum_block },
  };
  if (block_start (n, offset) != offset) {
    span->head.offset = block_start (n, offset);
    span->first = block_end (n, offset);
    span->head.count = span->first - span->head.offset;
  }
  if (block_end (n, end) != end && block_start (n, end) >= span->first) {
    span->last = span->tail.offset = block_start (n, end);
    span->tail.count = block_end (n, end) - span->last;
  }
  return 0;
}

/* The segment of the span's whole blocks. */
static struct segment
span_middle (const struct span *span, void *buf)
{
  struct segment middle = { .offset = span->first };

  if (span->first < span->last) {
    middle.buf = buf ? (char *)buf + (span->first - span->start) : NULL;
    middle.count = span->last - span->first;
  }
  return middle;
}

/* Where the span and a block at its edge overlap: the bytes' place in the
 * block, and their offset in the span.
 */
static char *
overlap (const struct span *span, const struct segment *edge, size_t *count,
         size_t *at)
{
  uint64_t start = MAX (span->start, edge->offset);
  uint64_t end = MIN (span->end, edge->offset + edge->count);

  *count = edge->count ? end - start : 0;
  *at = edge->count ? start - span->start : 0;
  return (char *)edge->buf + (edge->count ? start - edge->offset : 0);
}

static void
copy_from_edge (const struct span *span, const struct segment *edge, char *buf)
{
  size_t count, at;
  const char *block = overlap (span, edge, &count, &at);

  memcpy (buf + at, block, count);
}

/* With a buffer that is NULL the bytes become zero. */
static void
copy_to_edge (const struct span *span, const struct segment *edge,
              const char *buf)
{
  size_t count, at;
  char *block = overlap (span, edge, &count, &at);

  if (buf)
    memcpy (block, buf + at, count);
  else
    memset (block, 0, count);
}

/* ---- Reading ---- */

static int
read_span (struct nbd *n, const struct segment *seg)
{
  struct span span;
  struct segment middle;
  CLEANUP_FREE void *blocks = NULL;
  struct batch batch;
  int error = span_init (&span, n, seg->count, seg->offset);

  if (error)
    return error;
  blocks = span.head.buf;
  middle = span_middle (&span, seg->buf);
  batch_begin (&batch, n);
  batch_read (&batch, n, &span.head);
  batch_read (&batch, n, &middle);
  batch_read (&batch, n, &span.tail);
  error = batch_end (&batch);
  if (error)
    return error;
  copy_from_edge (&span, &span.head, seg->buf);
  copy_from_edge (&span, &span.tail, seg->buf);
  return 0;
}

static int
nbd_backend_pread (struct backend *b, const struct segment *seg, size_t nseg)
{
  struct nbd *n = (struct nbd *)b;
  struct batch batch;
  int error = 0;

  if (!all_aligned (n, seg, nseg)) {
    for (size_t i = 0; i < nseg && error == 0; i++)
      error = read_span (n, &seg[i]);
    return result (error);
  }

  batch_begin (&batch, n);
  for (size_t i = 0; i < nseg; i++)
    batch_read (&batch, n, &seg[i]);
  return result (batch_end (&batch));
}

/* ---- Writing and zeroing ---- */

static void
own_blocks (struct nbd *n, struct owner *owner, uint64_t start, uint64_t end)
{
  if (n->b.minimum_block > 1)
    ownership_acquire (&n->blocks, owner, block_start (n, start),
                       round_up (end, n->b.minimum_block));
}

static void
disown_blocks (struct nbd *n, struct owner *owner)
{
  if (n->b.minimum_block > 1)
    ownership_release (&n->blocks, owner);
}

/* The most that one write of zeroes may have. */
static uint64_t
zeroes_limit (const struct nbd *n)
{
  return MIN (sizeof zeroes, n->max_transfer);
}

static int
write_zeroes (struct nbd *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct batch batch;

  batch_begin (&batch, n);
  while (count > 0 && batch.error == 0) {
    struct segment seg = { zeroes, MIN (count, zeroes_limit (n)), offset };

    batch_write (&batch, n, &seg, fua_flag (n, flags));
    count -= seg.count;
    offset += seg.count;
  }
  return batch_end (&batch);
}

static uint32_t
zero_flags (struct nbd *n, unsigned flags)
{
  return fua_flag (n, flags) |
         (flags & BACKEND_MAY_TRIM ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
         (flags & BACKEND_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
}

static int
request_zero (struct nbd *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct batch batch;

  if (!n->can_zero)
    return ENOTSUP;
  batch_begin (&batch, n);
  batch_add (&batch, NBD_REQ_ZERO, NULL, count, offset, zero_flags (n, flags),
             MAX_RANGE);
  return batch_end (&batch);
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
    uint64_t piece = MIN (count, MAX_RANGE);

    if (!n->b.can_fast_zero)
      return EOPNOTSUPP;
    error = request_zero (n, piece, offset, flags);
    if (error)
      return is_refusal (error) ? EOPNOTSUPP : error;
    count -= piece;
    offset += piece;
    flags &= ~BACKEND_FAST;
  }
  if (count == 0)
    return 0;
  error = request_zero (n, count, offset, flags);
  return is_refusal (error) ? write_zeroes (n, count, offset, flags) : error;
}

/* Read, change and write the blocks at the edges, which the caller owns, and
 * write or (buf is NULL) zero those between.
 */
static int
change_span (struct nbd *n, const struct span *span, char *buf, unsigned flags)
{
  struct segment middle = span_middle (span, buf);
  uint32_t fua = fua_flag (n, flags);
  struct batch batch;
  int error;

  batch_begin (&batch, n);
  batch_read (&batch, n, &span->head);
  batch_read (&batch, n, &span->tail);
  error = batch_end (&batch);
  if (error)
    return error;
  copy_to_edge (span, &span->head, buf);
  copy_to_edge (span, &span->tail, buf);

  batch_begin (&batch, n);
  batch_write (&batch, n, &span->head, fua);
  if (buf)
    batch_write (&batch, n, &middle, fua);
  batch_write (&batch, n, &span->tail, fua);
  error = batch_end (&batch);
  if (error == 0 && buf == NULL && middle.count > 0)
    error = zero_blocks (n, middle.count, middle.offset, flags);
  return error;
}

static int
write_span (struct nbd *n, char *buf, uint64_t count, uint64_t offset,
            unsigned flags)
{
  CLEANUP_FREE void *blocks = NULL;
  struct owner owner;
  struct span span;
  int error = span_init (&span, n, count, offset);

  if (error)
    return error;
  blocks = span.head.buf;
  own_blocks (n, &owner, span.start, span.end);
  error = change_span (n, &span, buf, flags);
  disown_blocks (n, &owner);
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
  struct batch batch;
  int error;

  for (size_t i = 1; i < nseg; i++) {
    start = MIN (start, seg[i].offset);
    end = MAX (end, seg[i].offset + seg[i].count);
  }
  own_blocks (n, &owner, start, end);
  batch_begin (&batch, n);
  for (size_t i = 0; i < nseg; i++)
    batch_write (&batch, n, &seg[i], fua_flag (n, flags));
  error = batch_end (&batch);
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
      error = write_span (n, seg[i].buf, seg[i].count, seg[i].offset, flags);
  }
  return finish_write (n, error, flags);
}

static int
nbd_backend_zero (struct backend *b, uint64_t count, uint64_t offset,
                  unsigned flags)
{
  struct nbd *n = (struct nbd *)b;
  struct owner owner;
  int error;

  if (is_aligned (n, count, offset)) {
    own_blocks (n, &owner, offset, offset + count);
    error = zero_blocks (n, count, offset, flags);
    disown_blocks (n, &owner);
  }
  else if (flags & BACKEND_FAST) /* the edges would have to be written */
    error = EOPNOTSUPP;
  else
    error = write_span (n, NULL, count, offset, flags);

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
  uint64_t start = block_end (n, offset);
  uint64_t end = offset + count;
  struct owner owner;
  struct batch batch;
  int error;

  if (end != n->b.size)
    end = block_start (n, end);
  if (!n->can_trim || start >= end)
    return 0;
  own_blocks (n, &owner, start, end);
  batch_begin (&batch, n);
  batch_add (&batch, NBD_REQ_TRIM, NULL, end - start, start,
             fua_flag (n, flags), MAX_RANGE);
  error = batch_end (&batch);
  disown_blocks (n, &owner);
  return is_refusal (error) ? 0 : finish_write (n, error, flags);
}

/* ---- Extents ---- */

/* Give the caller what lies in its range of extents that a server sent for
 * that range rounded to blocks.  Where the server failed, sent nothing, or
 * nothing for the beginning, the range is data: reading it tells the truth, or
 * fails.
 */
static int
clip_extents (struct extents *list, const struct extents *reply,
              uint64_t count, uint64_t offset)
{
  for (size_t i = 0; i < reply->len; i++) {
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
  uint64_t start = block_start (n, offset), end;

  if (n->b.knows_extents) {
    count = MIN (count, MAX_RANGE - n->b.minimum_block);
    end = block_end (n, offset + count);
    if (one_request (n, NBD_REQ_EXTENTS, end - start, start,
                     flags & BACKEND_REQ_ONE ? LIBNBD_CMD_FLAG_REQ_ONE : 0,
                     &reply) != 0)
      extents_clear (&reply);
  }
  return result (clip_extents (list, &reply, count, offset));
}

/* ---- Channels ---- */

/* A channel is one loop's use of one connection.  Each struct io gets a struct
 * transfer, which carries its pieces one after the other.
 *
 *   nbd_channel_submit -> start_transfer -> start_piece <-+
 *                            |                   |        |
 *        blocks owned by     |              piece_done ---+
 *        somebody else       v                   |
 *   blocks_granted -> channel_wakeup             v
 *                                         finish_transfer -> io->done
 */
struct transfer {
  struct nbd_req req; /* the piece in flight; must be first */
  struct io *io;
  struct nbd_channel *ch;
  uint64_t start, end; /* the io's range, in whole blocks */
  uint64_t next;       /* what is left of it begins here */
  char *bounce;        /* a read of parts of blocks comes here */
  bool as_data;        /* a zero, for which zeroes are written */
  bool owns;           /* its blocks */
  struct owner owner;
  struct extents reply;
  struct transfer *link;
};

struct nbd_channel {
  struct channel channel;
  struct nbd *n;
  struct slot *slot;
  struct ev_loop *loop;
  struct nbd_attachment *attachment;
  struct transfer *spare;
  struct io *finished; /* without the wire: done is due on the loop's turn */

  ev_async wakeup;
  pthread_mutex_t lock;
  struct transfer *granted; /* they own their blocks now; lock protects this */
};

static void
finish_later (struct nbd_channel *ch, struct io *io, int error)
{
  io->error = to_errno (error);
  io->next = ch->finished;
  ch->finished = io;
  ev_async_send (ch->loop, &ch->wakeup);
}

static struct transfer *
new_transfer (struct nbd_channel *ch, struct io *io)
{
  struct nbd *n = ch->n;
  struct transfer *t = ch->spare;

  if (t)
    ch->spare = t->link;
  else if ((t = malloc (sizeof *t)))
    t->reply = EXTENTS_INIT;
  else
    return NULL;
  t->io = io;
  t->ch = ch;
  t->next = t->start = block_start (n, io->offset);
  t->end = block_end (n, io->offset + io->count);
  t->bounce = NULL;
  t->as_data = io->type == IO_ZERO && !n->can_zero;
  t->owns = n->b.minimum_block > 1 &&
            (io->type == IO_WRITE || io->type == IO_ZERO);
  t->owner.opaque = t;
  return t;
}

static void
free_transfer (struct transfer *t)
{
  if (t->owns)
    ownership_release (&t->ch->n->blocks, &t->owner);
  extents_clear (&t->reply);
  free (t->bounce);
  t->link = t->ch->spare;
  t->ch->spare = t;
}

static void
finish_transfer (struct transfer *t, int error)
{
  struct io *io = t->io;

  if (t->bounce && error == 0)
    memcpy (io->buf, t->bounce + (io->offset - t->start), io->count);
  free_transfer (t);
  io->error = to_errno (error);
  io->done (io);
}

/* The io's place for the transfer's next byte. */
static char *
place (const struct transfer *t)
{
  return t->bounce ? t->bounce + (t->next - t->start)
         : (char *)t->io->buf + (t->next - t->io->offset);
}

static void piece_done (struct nbd_req *req);

static void
start_piece (struct transfer *t)
{
  struct nbd *n = t->ch->n;
  uint64_t left = t->end - t->next;

  t->req = (struct nbd_req){ .offset = t->next, .done = piece_done };
  switch (t->io->type) {
  case IO_READ:
  case IO_WRITE:
    t->req.type = t->io->type == IO_READ ? NBD_REQ_READ : NBD_REQ_WRITE;
    t->req.buf = place (t);
    t->req.count = MIN (left, n->max_transfer);
    break;
  case IO_ZERO:
    t->req.type = t->as_data ? NBD_REQ_WRITE : NBD_REQ_ZERO;
    t->req.flags = t->as_data ? 0 : zero_flags (n, t->io->flags);
    t->req.buf = zeroes;
    t->req.count = MIN (left, t->as_data ? zeroes_limit (n) : MAX_RANGE);
    break;
  case IO_EXTENTS:
    t->req.type = NBD_REQ_EXTENTS;
    t->req.extents = &t->reply;
    t->req.count = MIN (left, MAX_RANGE);
    break;
  }
  nbd_attachment_submit (t->ch->attachment, &t->req);
}

static void
finish_extents (struct transfer *t)
{
  struct io *io = t->io;

  if (t->req.error)
    extents_clear (&t->reply);
  finish_transfer (t, clip_extents (io->extents, &t->reply, io->count,
                                    io->offset));
}

static void
piece_done (struct nbd_req *req)
{
  struct transfer *t = (struct transfer *)req;

  if (t->io->type == IO_EXTENTS) {
    finish_extents (t);
    return;
  }
  if (req->type == NBD_REQ_ZERO && is_refusal (req->error))
    t->as_data = true;
  else if (req->error) {
    finish_transfer (t, req->error);
    return;
  }
  else
    t->next += req->count;

  if (t->next < t->end)
    start_piece (t);
  else
    finish_transfer (t, 0);
}

/* Writes of parts of blocks are rare (they need regions that are smaller than
 * the server's blocks), so the loop waits for them.
 */
static void
change_now (struct transfer *t)
{
  struct nbd_channel *ch = t->ch;
  struct io *io = t->io;
  CLEANUP_FREE void *blocks = NULL;
  struct span span;
  int error = span_init (&span, ch->n, io->count, io->offset);

  if (error == 0) {
    blocks = span.head.buf;
    error = change_span (ch->n, &span, io->type == IO_WRITE ? io->buf : NULL,
                         io->flags & BACKEND_MAY_TRIM);
  }
  free_transfer (t);
  finish_later (ch, io, error);
}

/* Its blocks are owned, if it needs that. */
static void
run_transfer (struct transfer *t)
{
  if (t->owns && !is_aligned (t->ch->n, t->io->count, t->io->offset))
    change_now (t);
  else
    start_piece (t);
}

/* On any thread: only the loop's may go on. */
static void
blocks_granted (struct owner *owner)
{
  struct transfer *t = owner->opaque;
  struct nbd_channel *ch = t->ch;
  LOCK_FOR_SCOPE (&ch->lock);

  t->link = ch->granted;
  ch->granted = t;
  ev_async_send (ch->loop, &ch->wakeup);
}

static struct transfer *
take_granted (struct nbd_channel *ch)
{
  LOCK_FOR_SCOPE (&ch->lock);
  struct transfer *granted = ch->granted;

  ch->granted = NULL;
  return granted;
}

static void
channel_wakeup (struct ev_loop *loop, ev_async *w, int revents)
{
  struct nbd_channel *ch = w->data;
  struct transfer *t = take_granted (ch), *t_next;
  struct io *io = ch->finished, *io_next;

  ch->finished = NULL;
  for (; t; t = t_next) {
    t_next = t->link;
    run_transfer (t);
  }
  for (; io; io = io_next) {
    io_next = io->next;
    io->done (io);
  }
}

static void
start_transfer (struct transfer *t)
{
  struct nbd *n = t->ch->n;

  if (!t->owns ||
      ownership_request (&n->blocks, &t->owner, t->start,
                         round_up (t->end, n->b.minimum_block),
                         blocks_granted))
    run_transfer (t);
}

static void
nbd_channel_submit (struct channel *channel, struct io *io)
{
  static const struct extents unknown;
  struct nbd_channel *ch = (struct nbd_channel *)channel;
  struct nbd *n = ch->n;
  struct transfer *t;

  if (n->b.readonly && (io->type == IO_WRITE || io->type == IO_ZERO)) {
    finish_later (ch, io, EPERM);
    return;
  }
  if (io->type == IO_EXTENTS && !n->b.knows_extents) {
    finish_later (ch, io, clip_extents (io->extents, &unknown, io->count,
                                        io->offset));
    return;
  }
  t = new_transfer (ch, io);
  if (t && io->type == IO_READ && !is_aligned (n, io->count, io->offset)) {
    t->bounce = malloc (t->end - t->start);
    if (t->bounce == NULL) {
      free_transfer (t);
      t = NULL;
    }
  }
  if (t)
    start_transfer (t);
  else
    finish_later (ch, io, ENOMEM);
}

static void
nbd_channel_free (struct channel *channel)
{
  struct nbd_channel *ch = (struct nbd_channel *)channel;
  struct transfer *t;

  nbd_conn_detach (ch->attachment);
  ev_async_stop (ch->loop, &ch->wakeup);
  pthread_mutex_lock (&ch->n->lock);
  ch->slot->channels--;
  pthread_mutex_unlock (&ch->n->lock);
  while ((t = ch->spare)) {
    ch->spare = t->link;
    extents_free (&t->reply);
    free (t);
  }
  pthread_mutex_destroy (&ch->lock);
  free (ch);
}

static const struct channel_ops nbd_channel_ops = {
  .submit = nbd_channel_submit,
  .free = nbd_channel_free,
};

/* A connection for a channel: alive rather than lost, then the one with the
 * fewest channels, then one that clients do not use.
 */
static struct slot *
take_slot (struct nbd *n)
{
  LOCK_FOR_SCOPE (&n->lock);
  struct slot *best = &n->slots[n->connections - 1];

  for (struct slot *s = best; s >= n->slots; s--) {
    bool alive = nbd_conn_is_alive (s->conn);
    bool best_alive = nbd_conn_is_alive (best->conn);

    if (alive != best_alive ? alive : s->channels < best->channels)
      best = s;
  }
  best->channels++;
  return best;
}

static struct channel *
nbd_backend_channel (struct backend *b, struct ev_loop *loop)
{
  struct nbd_channel *ch = calloc (1, sizeof *ch);

  if (ch == NULL) {
    log_error (b->log, "%s: channel: %m", b->name);
    return NULL;
  }
  ch->channel.ops = &nbd_channel_ops;
  ch->n = (struct nbd *)b;
  ch->loop = loop;
  pthread_mutex_init (&ch->lock, NULL);
  ev_async_init (&ch->wakeup, channel_wakeup);
  ch->wakeup.data = ch;
  ev_async_start (loop, &ch->wakeup);
  ch->slot = take_slot (ch->n);
  ch->attachment = nbd_conn_attach (ch->slot->conn, loop);
  if (ch->attachment == NULL) {
    log_error (b->log, "%s: channel: %m", b->name);
    nbd_channel_free (&ch->channel);
    return NULL;
  }
  return &ch->channel;
}

/* ---- Opening and closing ---- */

static unsigned
nbd_backend_connections (struct backend *b)
{
  struct nbd *n = (struct nbd *)b;
  unsigned alive = 0;

  for (unsigned i = 0; i < n->connections; i++)
    alive += nbd_conn_probe (n->slots[i].conn);
  return alive;
}

static void
nbd_backend_close (struct backend *b)
{
  struct nbd *n = (struct nbd *)b;

  for (unsigned i = 0; i < n->connections; i++)
    nbd_conn_close (n->slots[i].conn);
  ownership_destroy (&n->blocks);
  pthread_mutex_destroy (&n->lock);
  free (n->slots);
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
  .channel = nbd_backend_channel,
  .connections = nbd_backend_connections,
};

/* Can the export serve as what it is opened for? */
static int
check_export (struct nbd_handle *h, const struct backend_params *params,
              const struct log *log)
{
  if (nbd_get_size (h) == -1) {
    log_error (log, "%s %s: the server does not tell the size: %s",
               params->role, params->name, nbd_conn_strerror ());
    errno = EINVAL;
    return -1;
  }
  if (params->readonly)
    return 0;
  if (nbd_is_read_only (h) != 0) {
    log_error (log, "%s %s is read-only, let its server export it for writing",
               params->role, params->name);
    errno = EROFS;
    return -1;
  }
  if (nbd_can_flush (h) != 1) {
    log_error (log, "%s %s: the server does not support flush, without which "
               "nothing can be made durable", params->role, params->name);
    errno = EINVAL;
    return -1;
  }
  return 0;
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
  n->max_transfer = MAX (block_start (n, n->max_transfer),
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

/* Two connections to one export, as far as can be seen. */
static bool
is_like (struct nbd_handle *a, struct nbd_handle *b)
{
  const char *context = LIBNBD_CONTEXT_BASE_ALLOCATION;

  return nbd_get_size (a) == nbd_get_size (b) &&
         nbd_is_read_only (a) == nbd_is_read_only (b) &&
         nbd_can_flush (a) == nbd_can_flush (b) &&
         nbd_can_fua (a) == nbd_can_fua (b) &&
         nbd_can_zero (a) == nbd_can_zero (b) &&
         nbd_can_trim (a) == nbd_can_trim (b) &&
         nbd_can_meta_context (a, context) == nbd_can_meta_context (b, context);
}

/* As many more as wanted, as long as the server plays along.  A server that is
 * not going to answer should not delay the start for long: one that took T for
 * the first handshake does not need more than a multiple of T.
 */
static void
connect_further (struct nbd *n, const struct backend_params *params,
                 int64_t first_took)
{
  struct nbd_handle *first = nbd_conn_handle (n->slots[0].conn);
  const struct nbd_conn_params cp = {
    .role = params->role, .uri = params->name, .log = n->b.log,
    .timeout = MIN (FURTHER_TIMEOUT, 1000 + 10 * first_took)
  };

  if (nbd_can_multi_conn (first) != 1)
    return;
  while (n->connections < params->connections) {
    struct nbd_conn *conn = nbd_conn_open (&cp);

    if (conn == NULL)
      return;
    if (!is_like (nbd_conn_handle (conn), first)) {
      log_debug (n->b.log, LOG_HYDRATE, "no further connection to %s %s: "
                 "it shows another export", params->role, params->name);
      nbd_conn_close (conn);
      return;
    }
    n->slots[n->connections++].conn = conn;
  }
}

static int
connect_all (struct nbd *n, const struct backend_params *params)
{
  const struct nbd_conn_params cp = {
    .role = params->role, .uri = params->name, .log = n->b.log,
    .timeout = FIRST_TIMEOUT, .required = true
  };
  int64_t begin = monotonic_ms ();
  struct nbd_conn *conn = nbd_conn_open (&cp);

  if (conn == NULL) {
    errno = EIO;
    return -1;
  }
  n->slots[0].conn = conn;
  n->connections = 1;
  if (check_export (nbd_conn_handle (conn), params, n->b.log) == -1)
    return -1;
  learn_export (n, nbd_conn_handle (conn));
  connect_further (n, params, monotonic_ms () - begin);
  n->clients = MAX (n->connections / 2, 1u);
  log_debug (n->b.log, LOG_HYDRATE, "%s %s: %u connections, of which %u are "
             "for clients", params->role, params->name, n->connections,
             n->clients);
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
  pthread_mutex_init (&n->lock, NULL);
  ownership_init (&n->blocks);
  n->b.name = strdup (params->name);
  n->slots = calloc (MAX (params->connections, 1u), sizeof *n->slots);
  if (n->b.name == NULL || n->slots == NULL)
    log_error (log, "%s %s: %m", params->role, params->name);
  else if (connect_all (n, params) == 0)
    return &n->b;

  err = errno;
  nbd_backend_close (&n->b);
  errno = err;
  return NULL;
}
